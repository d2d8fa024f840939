"""What is true of each field of a config, read as data from `configs/base.py`.

Nothing here names a field: whoever needs all that a resumed run may change, or that hold a path,
asks here. Fields of studies are those of `configs/ablations/base.py` and `configs/claims/base.py`.
Nothing here needs JAX.
"""

import functools
import pathlib
import runpy
from collections.abc import Callable
from typing import Any

_CONFIGS = pathlib.Path(__file__).resolve().parents[1] / 'configs'
EXPERIMENT = _CONFIGS / 'base.py'
STUDY = _CONFIGS / 'ablations' / 'base.py'
CLAIM = _CONFIGS / 'claims' / 'base.py'


def run_config_file(path) -> dict[str, Any]:
    """Returns the names that a config file, which is Python, defines."""
    return runpy.run_path(str(path))


@functools.cache
def _schema(path: pathlib.Path):
    return run_config_file(path)['SCHEMA']


@functools.cache
def _entries(path: pathlib.Path) -> dict[str, Any]:
    return dict(_schema(path).entries())


def entries() -> dict[str, Any]:
    """Returns {'a.b': entry} of all fields of an experiment (`Field` of configs/fields.py)."""
    return _entries(EXPERIMENT)


def find(name: str):
    """Returns the entry of a field of an experiment, a study or a claim, or None.

    Args:
      name: 'optimizer.lr', 'tasks.copy.steps', 'model.positions_args.base'.
    """
    found = (_schema(path).find(name) for path in (EXPERIMENT, STUDY, CLAIM))
    return next(filter(None, found), None)


def names(holds: Callable[[Any], bool]) -> list[str]:
    """Returns the names of an experiment's fields whose entry fulfils a condition."""
    return [name for name, entry in entries().items() if holds(entry)]


def may_change_on_resume(name: str) -> bool:
    """Returns whether a started run may be resumed with another value of a field.

    Where this version does not know the field, what the fields beside it share decides.
    """
    return _entry_or_shared(name).resume != 'fixed'


def must_equal_parent(name: str) -> bool:
    """Returns whether a run must have the value that its parent has; as `may_change_on_resume` for
    fields that are not known."""
    return _entry_or_shared(name).child == 'same'


def _entry_or_shared(name: str):
    """Returns the entry of an experiment's field, or what the fields beside it share."""
    experiment = _schema(EXPERIMENT)
    return experiment.find(name) or experiment.shared_at(name)


def younger(revision: int) -> dict[str, Any]:
    """Returns {field: value that was meant before} of the fields that came after a revision."""
    return {name: entry.before for name, entry in entries().items() if entry.since > revision}


def path_kind(name: str) -> str:
    """Returns whether a field holds a path: 'one', 'several' with commas between them, or ''."""
    entry = find(name)
    return entry.path if entry else ''
