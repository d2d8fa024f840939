"""Makes the kept outputs of the published packages again, of all that the tests ask for:

    ORDEM_ENV=.venv-reference ORDEM_EXTRAS=reference sh launch/env.sh \\
        python -m tests.golden.references.make

Runs the tests that compare with the packages themselves, and writes what they were given when all
of them passed: one compressed file for each function of `packages.py`, the versions in `made.json`.
"""

import importlib.metadata
import json
import platform
import sys

import numpy as np
import pytest

from tests.golden.references import outputs

TESTS = (
    'tests/model/test_published.py',
    'tests/apps/test_exchange.py',
    'tests/data/test_fast_tokenizer.py',
)
PACKAGES = ('torch', 'transformers', 'x-transformers', 'numpy')


class RecordedOutputs:
    """Outputs of the installed packages, remembered."""

    def __init__(self):
        self.files = {}  # function -> KEY.NAME -> array

    def __call__(self, function, *arguments):
        arrays = outputs.compute(function, *arguments)
        file = self.files.setdefault(function, {})
        key = outputs.key_of(arguments)
        for name, array in arrays.items():
            file[f'{key}.{name}'] = array
        return arrays


def main():
    recorded = RecordedOutputs()
    outputs.SOURCES['packages'] = recorded
    code = pytest.main(['-n0', '-m', 'reference', *TESTS])
    if code:
        sys.exit(f'error: nothing is written, since not all of {", ".join(TESTS)} passed')

    for path in outputs.FOLDER.glob('*.npz'):
        path.unlink()
    for function, arrays in recorded.files.items():
        np.savez_compressed(outputs.FOLDER / f'{function}.npz', **dict(sorted(arrays.items())))
    made = {
        'command': outputs.MAKE,
        'python': platform.python_version(),
        'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
        'arrays': {function: len(arrays) for function, arrays in sorted(recorded.files.items())},
    }
    (outputs.FOLDER / 'made.json').write_text(json.dumps(made, indent=1) + '\n')
    print(f'wrote {len(recorded.files)} files to {outputs.FOLDER}')


if __name__ == '__main__':
    main()
