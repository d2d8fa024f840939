"""Each bad input, tried; and the table of them, which is what trying them gives."""

import os
import re
import subprocess
import sys

import pytest

from tests.faults import bad_inputs

CASES = bad_inputs.cases()
FOUND: dict[int, tuple] = {}  # place in CASES -> what trying it gave, for the table


def tried(place: int) -> tuple:
    if place not in FOUND:
        FOUND[place] = bad_inputs.tried(CASES[place])
    return FOUND[place]


@pytest.mark.parametrize(
    'place', range(len(CASES)), ids=lambda i: re.sub(r'\W+', '_', CASES[i].done)[:60]
)
def test_a_bad_input(place):
    """Catches a traceback, a second line, another exit code, a line that speaks of something else,
    and a saved file that was changed."""
    case, (code, said) = CASES[place], tried(place)
    assert code == case.code and said.startswith('error: ') and said.count('\n') == 1, said
    given = {*re.findall(r'\w{3,}', ' '.join([*case.words[1:], case.what, 'run']))} - {
        'config',
        'configs',
        'base',
        'mine',
        'model',
        'data',
        'train',
        'the',
    }
    assert re.search(r'--\w|config\.\w', said) or any(word in said for word in given), said


@pytest.mark.parametrize(
    'what',
    [
        '`config.model.widht=64`',
        'an unknown suffix',
        '`tokenizer.model` is empty',
        'all arrays are zeros',
    ],
)
def test_as_a_person_does_it(what):
    """Catches a command that says something else than its parts do, and what libraries print by
    themselves."""

    def as_a_process(words):
        done = subprocess.run(
            [sys.executable, '-m', *words],
            capture_output=True,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(bad_inputs.conftest.ROOT)},
        )
        assert not done.stdout and all(
            line.startswith(('error: ', 'ERROR: run: checkpoint passed over'))
            for line in done.stderr.splitlines()
        ), done.stderr
        return done.returncode, done.stderr.splitlines()[-1] + '\n'

    place = next(i for i, case in enumerate(CASES) if case.done == what)
    assert bad_inputs.tried(CASES[place], as_a_process) == tried(place)


def test_the_table():
    """Catches a table that is not what trying gives. `python -m tests.faults.bad_inputs --write`
    writes it."""
    assert bad_inputs.TABLE.read_text() == bad_inputs.table(
        [(case, *tried(i)) for i, case in enumerate(CASES)]
    )
