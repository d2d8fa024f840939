"""The entry point of every command (`python -m package.command`).

A command's file is read from top to bottom, as it runs: it defines its flags and calls
`parse_flags`, which answers `--help` and mistakes in a tenth of a second; it imports what takes
seconds (JAX); and it ends in `run(main)`, which applies the settings that results or speed depend
on. Where nothing slow is imported, `run` alone does: it reads the flags itself. How a program ends,
and how a user's mistake becomes one line, is in `runtime/exit.py`.
"""

import ctypes
import logging
import os
import pathlib
import sys
from typing import NoReturn

from absl import logging as absl_logging

from data.records import printable
from runtime import compiled, exit, refused
from runtime.errors import RunError

_LOG = logging.getLogger('ordem')

# Settings of JAX that results depend on, or without which nothing here runs: the same whatever the
# environment says (JAX_ENABLE_X64, ...).
_OF_JAX = {
    'jax_threefry_partitionable': True,  # changed between JAX versions: said, not assumed
    'jax_default_prng_impl': 'threefry2x32',
    'jax_random_seed_offset': 0,
    'jax_enable_x64': False,
    'jax_numpy_dtype_promotion': 'standard',
    'jax_numpy_rank_promotion': 'allow',
    'jax_transfer_guard': 'allow',
}


class _Formatter(logging.Formatter):
    def formatMessage(self, record):
        """Returns the message in one line, whatever ends of lines the names in it have."""
        return super().formatMessage(record).replace('\n', '\\n')

    def format(self, record):
        """Returns the record as text that commands no terminal, whatever names are in it."""
        return printable(super().format(record))


def run(main, words: bool = False, keeps: bool = False) -> NoReturn:
    """Runs main(), or main(words), as the program; arguments as of `runtime.exit.run`."""
    exit.run(main, words, keeps, settle)


def parse_flags() -> None:
    """Reads the flags above the imports that take seconds; help and mistakes end the program."""
    exit.parse_flags()


def settle() -> None:
    """Applies the settings that results or speed depend on, the same for all commands."""
    _check_imported_model()
    _settle_logging()
    _settle_jax()
    compiled.keep()
    if sys.platform == 'linux':
        _settle_malloc()


def _check_imported_model() -> None:
    """Ends the program where `import model` leads to another package of that name."""
    import model

    expected = pathlib.Path(__file__).resolve().parents[1] / 'model'
    imported = pathlib.Path(str(model.__file__)).parent
    if imported.resolve() != expected:
        exit.fail(
            f'the package `model` that was imported is {imported}, not {expected}: '
            f'run from the repository root, in its own environment'
        )


def _settle_logging() -> None:
    """Sends the log of Ordem to stderr, a line a message, and silences that of Orbax."""
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs what it raises as well
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter('%(levelname)s: %(message)s'))
    _LOG.addHandler(handler)
    _LOG.propagate = False
    _LOG.setLevel(logging.INFO)


def _settle_malloc() -> None:
    """Makes glibc keep large temporaries.

    It would map and unmap them at every step, each page faulted in anew.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-8, 1)  # M_ARENA_MAX


def _settle_jax() -> None:
    """Gives JAX the settings above; says which of the environment are not taken."""
    import jax  # not at the top: flags are read without it

    for name, value in _OF_JAX.items():
        variable = name.upper()
        if variable in os.environ and getattr(jax.config, name) != value:
            _LOG.warning(
                '%s=%s is not taken: Ordem computes with %s',
                variable,
                os.environ[variable],
                value,
            )
        jax.config.update(name, value)


def check_path(name: str, path: str) -> None:
    """Raises RunError where the system would refuse a path whatever is done with it.

    Also for '', which the system reads as the folder one is in. Paths in flags and configs are
    looked at before main runs. `name`: what holds the path.
    """
    if not path.strip():
        raise RunError(f'{name} is empty: expected a path')
    refused.check(name, path)


def check_writable(name: str, path: str) -> None:
    """Raises RunError where nothing can be made in a path: before work whose result goes there."""
    refused.check_writable(name, path)
