"""A config as a whole: its fields in one list, its paths, what differs from another, its hash."""

import os
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from data import paths
from data.cache import stable_hash
from data.records import DataError
from runtime import schema
from runtime.errors import RunError

REVISION = 1  # of the schema: every run directory has the fields up to this one
ENCODINGS = 'model.encodings'  # what a run keeps of the meaning of its encodings


def flatten(config, prefix: str = '') -> dict[str, Any]:
    """Returns {'a.b': value} of a nested config; lists become tuples."""
    fields = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            fields.update(flatten(value, f'{prefix}{key}.'))
        else:
            fields[prefix + key] = tuple(value) if isinstance(value, list) else value
    return fields


def expand_paths(config, strict: bool = False):
    """Expands `~` in each path of an experiment or a study, in place, and returns it.

    Raises RunError, where it is `strict`, for a user that is not known here.
    """
    for name, value in flatten(config).items():
        if not isinstance(value, str) or '~' not in value:
            continue
        kind = schema.path_kind(name)
        try:
            if kind == 'one':
                _set(config, name, paths.expanded(value, f'config.{name}' if strict else ''))
            elif kind == 'several':
                _set(config, name, paths.expanded_list(value))
        except DataError as error:
            raise RunError(str(error)) from None
    return config


def abbreviate_paths(config: ConfigDict) -> ConfigDict:
    """Returns a copy with `~` for the home folder, as the paths of a run may have been written
    before they were expanded."""
    abbreviated = config.copy_and_resolve_references()
    home = os.path.expanduser('~') + '/'
    fields = flatten(config)
    for name in schema.names(lambda entry: entry.path):
        parts = [re.sub(f'^{re.escape(home)}', '~/', part) for part in fields[name].split(',')]
        _set(abbreviated, name, ','.join(parts))
    return abbreviated


def add_younger(config: ConfigDict) -> None:
    """Adds the fields that came after a run was made, with the value that was meant then.

    Raises ValueError where a group of fields is something else.
    """
    older = schema.names(lambda entry: entry.since <= REVISION)
    older_groups = {name.rpartition('.')[0] for name in older}
    for name, value in schema.younger(REVISION).items():
        *groups, field = name.split('.')
        at = config
        for depth, group in enumerate(groups, 1):
            if group not in at and '.'.join(groups[:depth]) not in older_groups:
                at[group] = ConfigDict()
            if not isinstance(at.get(group), ConfigDict):
                raise ValueError(f'expected a group of fields {group!r}')
            at = at[group]
        if field not in at:
            at[field] = value


def diff_configs(old, new, counts: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Returns 'config.a.b: old -> new' for each field that differs.

    Args:
      old: a config.
      new: another one.
      counts: whether a difference in the field of this name, 'a.b', is one.
    """
    before, now = flatten(old), flatten(new)
    return [
        f'config.{name}: {before.get(name, "absent")!r} -> {now.get(name, "absent")!r}'
        for name in sorted({*before, *now})
        if before.get(name, '\0') != now.get(name, '\0') and counts(name)
    ]


def config_hash(config) -> str:
    """Returns the hash of the fields that determine the result, hexadecimal.

    Of what the encodings mean, those count whose version is above 1; a field that came later does
    not while it has the value that was meant before.
    """
    younger = schema.younger(REVISION)
    counted = {
        name: value
        for name, value in flatten(config).items()
        if not schema.may_change_on_resume(name) and younger.get(name, '\0') != value
    }
    changed = [one for one in counted.pop(ENCODINGS, ()) if one['version'] > 1]
    return stable_hash(counted | ({ENCODINGS: changed} if changed else {}))


def _set(config, name: str, value: Any) -> None:
    """Sets the field 'a.b' of a nested config."""
    *groups, field = name.split('.')
    for group in groups:
        config = config[group]
    config[field] = value
