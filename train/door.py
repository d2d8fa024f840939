"""What every door (`python -m room.door`) does first: settings, then flags and mistakes (`train/guard.py`)."""

import ctypes
import logging
import pathlib
import sys

import jax
from absl import logging as absl_logging

from data.records import printable
from train import guard, refused


class _Formatter(logging.Formatter):
    def format(self, record):
        return printable(
            super().format(record)
        )  # file names and text of data must not command a terminal


def run(main, words: bool = False, keeps: bool = False) -> None:
    """Runs main(), or main(words), as the program, with the settings below and `train.guard` around
    it; `keeps` as there."""
    guard.run(main, words, keeps, settle)


def settle() -> None:
    """Settings that results or speed depend on, the same for all doors."""
    import model

    beside = pathlib.Path(__file__).resolve().parents[1] / 'model'
    if pathlib.Path(model.__file__).resolve().parent != beside:
        guard.fail(
            f'the package `model` that was imported is {pathlib.Path(model.__file__).parent}, not {beside}: '
            f'run from the repository root, in its own environment'
        )
    jax.config.update(
        'jax_threefry_partitionable', True
    )  # changed between JAX versions: said, not assumed
    jax.config.update('jax_default_prng_impl', 'threefry2x32')
    absl_logging.set_verbosity(
        absl_logging.FATAL
    )  # Orbax tells of its insides what it raises as well
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter('%(levelname)s: %(message)s'))
    log = logging.getLogger('ordem')
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.INFO)
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


def check_path(name: str, path: str) -> None:
    """Raises RunError where the system would refuse a path whatever is done with it; `name`: what
    holds it. Paths in flags and configs are looked at before main runs."""
    refused.check(name, path)


def check_writable(name: str, path: str) -> None:
    """Raises RunError where nothing can be made under a path: before work whose result goes there."""
    refused.check_writable(name, path)
