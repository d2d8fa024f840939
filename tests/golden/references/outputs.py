"""Outputs of the published packages: read from the files here, or asked of the packages.

Tests ask `SOURCES[...]` for a function of `packages.py` with arguments, and get its arrays by name.
The files are keyed by the arguments, so that an output never answers for other ones. Needs numpy
only; `PackageOutputs` needs the extra `reference`.
"""

import functools
import hashlib
import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent
ENVIRONMENT = 'ORDEM_ENV=.venv-reference ORDEM_EXTRAS=reference sh launch/env.sh'
MAKE = f'{ENVIRONMENT} python -m tests.golden.references.make'
TIER = f'{ENVIRONMENT} python -m pytest -m reference'


def key_of(arguments) -> str:
    """Returns a short name of arguments, the same on all machines."""
    text = json.dumps(_plain(arguments), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value):
    """Returns a value as JSON has it; numbers to 6 digits, arrays as a hash of 3 decimals."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return f'{value:.6g}'
    if isinstance(value, np.ndarray):
        thousandths = np.rint(value.astype(np.float64) * 1000).astype('<i8')
        return [list(value.shape), hashlib.sha256(thousandths.tobytes()).hexdigest()]
    return value


@functools.cache
def read_file(function: str) -> dict[str, np.ndarray]:
    """Returns the kept arrays of a function, by `KEY.NAME`; none when there is no file."""
    path = FOLDER / f'{function}.npz'
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


class KeptOutputs:
    """Outputs that were made once, from the files."""

    def __call__(self, function: str, *arguments) -> dict[str, np.ndarray]:
        start = f'{key_of(arguments)}.'
        kept = {
            name.removeprefix(start): array
            for name, array in read_file(function).items()
            if name.startswith(start)
        }
        if not kept:
            raise LookupError(
                f'no output of {function} is kept for these arguments; make all again: {MAKE}'
            )
        return kept


class PackageOutputs:
    """Outputs of the installed packages, held against those that are kept."""

    def __call__(self, function: str, *arguments) -> dict[str, np.ndarray]:
        outputs = compute(function, *arguments)
        kept = KeptOutputs()(function, *arguments)
        assert outputs.keys() == kept.keys()
        for name, array in outputs.items():
            # Another release or machine may round otherwise.
            message = f'{function}: {name} is not what is kept; if that is right: {MAKE}'
            np.testing.assert_allclose(array, kept[name], rtol=1e-5, atol=1e-5, err_msg=message)
        return outputs


def compute(function: str, *arguments) -> dict[str, np.ndarray]:
    """Returns what the installed packages give."""
    try:
        from tests.golden.references import packages
    except ImportError as e:
        raise ImportError(f'{e}; the packages have an environment of their own: {TIER}') from e
    return getattr(packages, function)(*arguments)


SOURCES = {'kept': KeptOutputs(), 'packages': PackageOutputs()}
