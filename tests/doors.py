"""All doors of the product (`python -m room.door`), and the flags that each of them defines."""

import contextlib
import functools
import logging
import pathlib
import runpy
import sys
import warnings
from unittest import mock

import grain  # noqa: F401  (defines flags of its own, once)
from absl import flags

from train import door, guard

ROOMS = ('apps', 'benchmarks', 'data', 'evals', 'launch', 'model', 'train')


@contextlib.contextmanager
def root_logger_kept():
    """Leaves the root logger as it was: absl gives it a handler and a level when a door is run."""
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


def names() -> list[str]:
    """Returns the modules that end in `door.run(...)` or `guard.run(...)`."""
    found = []
    for path in sorted(p for room in ROOMS for p in pathlib.Path(room).rglob('*.py')):
        text = path.read_text()
        if "if __name__ == '__main__':" in text and ('door.run(' in text or 'guard.run(' in text):
            found.append('.'.join(path.with_suffix('').parts).removesuffix('.__main__'))
    return found


@functools.cache
def flags_of(name: str) -> dict[str, flags.Flag]:
    """Returns {name: flag} of what a door defines before it parses; nothing of it runs."""
    known = set(flags.FLAGS)
    with (
        mock.patch.object(door, 'run'),
        mock.patch.object(guard, 'run'),
        mock.patch.object(sys, 'argv', [name]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')  # runpy's, of a module that is there already
        runpy.run_module(name, run_name='__main__')
    found = {new: flags.FLAGS[new] for new in set(flags.FLAGS) - known}
    for new in found:
        delattr(flags.FLAGS, new)
    return found
