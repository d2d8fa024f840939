"""How a command starts: what it imports before its flags are read."""

import json
import subprocess
import sys

import pytest

from tests import commands

# What takes from tenths of a second to seconds to import.
SLOW = [
    *('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorstore', 'grain', 'sentencepiece', 'numpy'),
    *('scipy', 'matplotlib', 'usearch', 'tensorboardX', 'rich', 'tqdm', 'etils'),
]
# One process that forks for each command, and prints a line of JSON of each. The help itself goes
# to stderr.
_HELP = """
import contextlib, json, os, runpy, sys
import runtime.cli, runtime.config_flags  # once for all
slow, names = json.loads(sys.argv[1])
for name in names:
    if not os.fork():
        sys.argv = [name, *sys.argv[2:]]
        code = None
        try:
            with contextlib.redirect_stdout(sys.stderr):
                runpy.run_module(name, run_name='__main__')
        except SystemExit as end:
            code = end.code
        line = dict(name=name, code=code, imported=[m for m in slow if m in sys.modules])
        print(json.dumps(line), flush=True)
        os._exit(0)
    os.wait()
"""


def _run_each(names: list[str], *words: str) -> tuple[dict[str, dict], str]:
    """Returns {command: how it ended and what was imported} with these flags, and all of stderr."""
    given = json.dumps([SLOW, names])
    done = subprocess.run(
        [sys.executable, '-c', _HELP, given, *words], capture_output=True, text=True, check=True
    )
    return {
        (line := json.loads(text))['name']: line for text in done.stdout.splitlines()
    }, done.stderr


@pytest.fixture(scope='module')
def helps():
    return _run_each(commands.list_commands(), '--help')[0]


@pytest.mark.parametrize('name', commands.list_commands())
def test_help_imports_nothing_slow(name, helps):
    """Catches a command whose --help waits for JAX: an import above `cli.parse_flags()`."""
    assert helps[name] == {'name': name, 'code': 1, 'imported': []}


def test_a_mistake_in_a_flag_is_told_before_slow_imports():
    """Catches a flag that does not exist and is told only after seconds of imports."""
    ends, said = _run_each(['train.pretrain', 'apps.generate', 'launch.local'], '--no_such_flag=1')
    assert {(end['code'], *end['imported']) for end in ends.values()} == {(2,)}
    assert said.splitlines() == ["error: unknown flag 'no_such_flag'"] * len(ends)
