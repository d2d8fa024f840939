"""Reads the config of a command: `--config=configs/x.py --config.a.b=value`, checked."""

import contextlib
import difflib
import logging
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from data import paths
from model.errors import ModelError
from runtime import field_checks, options, schema
from runtime.config_tree import ENCODINGS, expand_paths, flatten
from runtime.encoding_meaning import flags_of, get_meaning
from runtime.errors import RunError

flags.disclaim_key_flags()  # `--help` shows flags with the command that asked for them

_LOG = logging.getLogger('ordem')
_ARGS = 'model.positions_args.'  # checked against the encoding (model/positions)


class _PythonFiles(ConfigFileFlagParser):
    """Runs files of Python and no others: it would run a run's config.json, which is data."""

    def parse(self, path):
        if not path.split(':', 1)[0].endswith('.py'):
            raise ValueError('expected a file of Python, like configs/base.py')
        return super().parse(paths.expanded(path, '--config'))


def define_flag() -> None:
    """Defines --config.

    Unknown fields are accepted here and refused in `get`, which knows the nearest valid one.
    """
    config_flags.DEFINE_config_file(
        'config',
        None,
        'An experiment, for example configs/base.py',
        lock_config=False,
        accept_new_attributes=True,
    )
    flags.FLAGS['config'].parser = _PythonFiles('config', lock_config=False)


def file() -> str:
    """Returns the path of the config that --config names."""
    return paths.expanded(config_flags.get_config_filename(flags.FLAGS['config']))


def given() -> list[str]:
    """Returns the names of the fields that flags give, 'model.width'."""
    return list(config_flags.get_override_values(flags.FLAGS['config']))


def get(base: pathlib.Path | None = schema.EXPERIMENT) -> ConfigDict:
    """Returns the config that the command line gives, file and flags.

    Args:
      base: the config whose fields the file must have, no more and no fewer; None: its own.

    Raises:
      RunError: an unknown field, one without effect, or a value of another type.
    """
    if not flags.FLAGS['config'].present:
        raise RunError('--config is missing: expected a config file, for example configs/base.py')
    known = _read_fields(file())
    encodings = known.pop(ENCODINGS, None)
    if base:
        _check_file(known, _read_fields(str(base)))
    given = config_flags.get_override_values(flags.FLAGS['config'])
    if encodings is not None:
        _drop_meaning(flags.FLAGS.config)
    return check(flags.FLAGS.config, given, known)


def read(file: str, words: list[str]) -> ConfigDict:
    """Returns the config in a file with flags that are not on this program's command line.

    `words`: such as '--config.model.width=128'. Raises as `get`, and CombinedError for values that
    do not fit their fields.
    """
    file = paths.expanded(file)
    known = _read_fields(file)
    values = flags.FlagValues()
    argv = ['', f'--config={file}', *words]
    config_flags.DEFINE_config_file(
        'config', None, '', values, lock_config=False, accept_new_attributes=True, sys_argv=argv
    )
    try:
        left = values(argv)[1:]
    except (flags.Error, AttributeError, TypeError, KeyError, ValueError) as error:
        raise RunError(options.plain(str(error))) from None
    if left:
        raise RunError(f'{left[0]!r}: expected flags of {file}, such as --config.model.width=128')
    given = config_flags.get_override_values(values['config'])
    config = check(values['config'].value, given, known)
    field_checks.check(config)
    return config


def check(config: ConfigDict, given: dict[str, Any], known: dict[str, Any]) -> ConfigDict:
    """Returns the config with `~` in its paths expanded.

    Args:
      config: file and flags together.
      given: the flags alone, {'a.b': value}.
      known: the fields of the file alone, {'a.b': value}.

    Raises:
      RunError: an unknown field, one without effect, or a value of another type.
    """
    field_checks.check_digits(config)
    for name, value in given.items():
        if name.startswith(_ARGS):
            continue
        if name not in known:
            raise RunError(_no_such_field(name, known))
        if not _has_type(value, known[name]):
            raise RunError(f'config.{name} is {value!r}: expected {type(known[name]).__name__}')
        need = field_checks.lacking(config, name)
        if need and value != known[name]:
            raise RunError(f'config.{name}={value!r} has no effect: it needs {need}')
    return expand_paths(config, strict=True)


def _check_file(fields: dict[str, Any], base: dict[str, Any]) -> None:
    """Raises RunError where the fields of a config file are not those of the base."""
    for name, value in fields.items():
        if name not in base and not name.startswith(_ARGS):
            raise RunError(f'--config={file()}: config.{name}: no such field{_nearest(name, base)}')
        if name in base and not _has_type(value, base[name]):
            raise RunError(
                f'--config={file()}: config.{name} is {value!r}: expected '
                f'{type(base[name]).__name__}'
            )
    absent = [f'config.{name}' for name in base if name not in fields]
    if absent:
        more = f' and {len(absent) - 3} more' if absent[3:] else ''
        raise RunError(
            f'--config={file()}: lacks {", ".join(absent[:3])}{more}: begin with '
            f'`base.get_config()` of configs/base.py and change what differs'
        )


def _read_fields(path: str) -> dict[str, Any]:
    """Returns the fields of a config file before any flag, {'a.b': value}."""
    if not pathlib.Path(path).is_file():
        beside = [str(other) for other in pathlib.Path(path).parent.glob('*.py')]
        close = difflib.get_close_matches(path, beside, 1)
        hint = f'; did you mean {close[0]}?' if close else ''
        raise RunError(f'--config={path}: no such file{hint}')
    names = schema.run_config_file(path)
    if 'get_config' not in names:
        raise RunError(f'--config={path}: expected a function `get_config`, found none')
    config = names['get_config']()
    if not isinstance(config, ConfigDict):
        raise RunError(
            f'--config={path}: expected `get_config` to return a ConfigDict, found '
            f'{type(config).__name__}'
        )
    return flatten(config)


def _drop_meaning(config: ConfigDict) -> None:
    """Takes out of a config what the config.json of a run keeps of its encodings.

    A resumed run reads that itself; a new one has the encodings as they are now, which is said
    where that is not the same.
    """
    before = config.model.encodings
    del config.model.encodings
    with contextlib.suppress(ModelError):  # told where the model is made
        now = get_meaning(config)
        if now != before:
            _LOG.warning(
                '--config=%s: config.model.encodings says what its run meant, which a new run does '
                'not: it has the encodings as they are now; what they were: %s',
                file(),
                ' '.join(flags_of(before, now)) or 'other initial values',
            )


def _no_such_field(name: str, known: dict[str, Any]) -> str:
    """Returns what to say of a field that is none: that it is a group, or which is nearest."""
    inside = [field for field in known if field.startswith(f'{name}.')]
    if inside:
        fields = ', '.join(f'config.{field}' for field in inside)
        return f'config.{name} is a group of fields: expected one of {fields}'
    return f'config.{name}: no such field{_nearest(name, known)}'


def _nearest(name: str, known: dict[str, Any]) -> str:
    """Returns the end of a message, with the field whose name is nearest."""
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f'; did you mean config.{close[0]}?' if close else ''


def _has_type(value: Any, default: Any) -> bool:
    """Returns whether a value has the type of a field; a whole number is a float too."""
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)
