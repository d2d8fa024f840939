"""What every command (`python -m room.command`) does first: settings, then flags and mistakes (`runtime/exit.py`)."""

import ctypes
import logging
import os
import pathlib
import sys

import jax
from absl import logging as absl_logging

from data.records import printable
from runtime import exit, refused
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
        return printable(
            super().format(record)
        )  # file names and text of data must not command a terminal


def run(main, words: bool = False, keeps: bool = False) -> None:
    """Runs main(), or main(words), as the program, with the settings below and `runtime.exit` around
    it; `keeps` as there."""
    exit.run(main, words, keeps, settle)


def settle() -> None:
    """Settings that results or speed depend on, the same for all commands."""
    import model

    beside = pathlib.Path(__file__).resolve().parents[1] / 'model'
    if pathlib.Path(model.__file__).resolve().parent != beside:
        exit.fail(
            f'the package `model` that was imported is {pathlib.Path(model.__file__).parent}, not {beside}: '
            f'run from the repository root, in its own environment'
        )
    absl_logging.set_verbosity(
        absl_logging.FATAL
    )  # Orbax tells of its insides what it raises as well
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter('%(levelname)s: %(message)s'))
    _LOG.addHandler(handler)
    _LOG.propagate = False
    _LOG.setLevel(logging.INFO)
    _settle_jax()
    if sys.platform == 'linux':
        # glibc maps and unmaps large temporaries at every step, each page faulted in anew; keep them instead.
        libc = ctypes.CDLL(None)
        if hasattr(libc, 'mallopt'):
            for option, value in (
                (-4, 0),
                (-1, 2**31 - 1),
                (-8, 1),
            ):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
                libc.mallopt(option, value)


def _settle_jax() -> None:
    """Gives JAX the settings above; says which of the environment are not taken."""
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
    """Raises RunError where the system would refuse a path whatever is done with it; `name`: what
    holds it. Paths in flags and configs are looked at before main runs. Raises it for '' as well,
    which the system reads as the folder one is in."""
    if not path.strip():
        raise RunError(f'{name} is empty: expected a path')
    refused.check(name, path)


def check_writable(name: str, path: str) -> None:
    """Raises RunError where nothing can be made under a path: before work whose result goes there."""
    refused.check_writable(name, path)
