"""The table of bad inputs: each is tried in the real command, and what it says and its exit code
become a line of BAD_INPUTS.md.

python -m tests.faults.bad_inputs tries all and prints the table python -m tests.faults.bad_inputs
--write writes it to tests/faults/BAD_INPUTS.md"""

from tests import conftest  # first: it sets what JAX reads when it starts  # isort: skip

import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from unittest import mock

import grain  # noqa: F401  (defines flags of its own, once)
from absl import logging as absl_logging

from runtime.run_dir import Run
from tests import commands
from train import loop

TABLE = pathlib.Path(__file__).with_name('BAD_INPUTS.md')
GOLDEN = conftest.ROOT / 'tests' / 'golden'
MINE = """import json
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(json.load(open('mine.json')))
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input.

    command: module and arguments of the command, tried in a folder that `furnish` made.
    what: what was done, for the table; empty: the arguments say it.
    before: called with that folder, does the damage; a context manager that it returns is open
      while the command runs.
    """

    kind: str
    command: str
    what: str = ''
    before: Callable[[pathlib.Path], object] | None = None
    code: int = 2

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command)

    @property
    def done(self) -> str:
        return self.what or f'`{self.command}`'


def furnish(folder: pathlib.Path) -> None:
    """A folder with configs/, text.txt, a run of 4 steps of 6 made from it (run/), and the config
    that goes on with it (mine.py)."""
    (folder / 'configs').symlink_to(conftest.ROOT / 'configs')
    (folder / 'tests' / 'golden').mkdir(parents=True)
    shutil.copy2(GOLDEN / 'text.txt', folder / 'tests' / 'golden')
    shutil.copy2(GOLDEN / 'text.txt', folder)
    shutil.copytree(GOLDEN / 'format_1', folder / 'run')
    config = Run.parse(str(folder / 'run')).config()
    config.log.progress = False
    (folder / 'mine.json').write_text(json.dumps(config.to_dict()))
    (folder / 'mine.py').write_text(MINE)


def tried(case: Case, run: Callable[[list[str]], tuple[int, str]] | None = None) -> tuple[int, str]:
    """Exit code and stderr of the case, in a folder of its own. Asserts that nothing in the folder,
    caches aside, was changed or added."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = pathlib.Path(name)
        furnish(folder)
        damage = case.before(folder) if case.before else None
        before = _snapshot(folder)
        with damage if hasattr(damage, '__enter__') else contextlib.nullcontext():
            code, said = (run or in_process)(case.words)
        after = _snapshot(folder)
        assert after == before, (
            f'{case.done} changed files: {sorted({*after.items()} ^ {*before.items()})[:4]}'
        )
        return code, normalised(said, folder)


def _snapshot(folder: pathlib.Path) -> dict[str, str]:
    def kept(p):
        return (
            p.is_file()
            and p.name != '.lock'
            and not {'.cache', 'configs', '__pycache__'} & {*p.relative_to(folder).parts}
        )

    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob('*')
        if kept(p)
    }


def in_process(words: list[str]) -> tuple[int, str]:
    """What `python -m WORDS` ends with and says of it, in this process; nothing is trained."""
    log = logging.getLogger('ordem')
    with commands.keep_loggers(), mock.patch.object(loop, 'run_steps', _began):
        log.propagate = False
        log.setLevel(logging.CRITICAL)  # warnings are not what ends a program
        done = commands.run_here(*words, settle=_settle)
    return done.returncode, done.stderr


def _settle() -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)  # of what commands do first, what is seen


def _began(*_):
    raise AssertionError('the run began')


def normalised(said: str, folder: pathlib.Path) -> str:
    """Without what another machine, time or processor would say otherwise."""
    for old, new in (
        (folder.resolve(), '{folder}'),
        (folder, '{folder}'),
        (conftest.ROOT, '{ordem}'),
    ):
        said = said.replace(str(old), new)
    said = re.sub(r'[^\n]*\r', '', said)  # a progress bar, which has cleared its line
    said = re.sub(r'(Error reading ")[^)]*', r'\1{array}"', said)  # whichever of them is read first
    said = re.sub(r'store-[0-9a-f]{16}', 'store-{hash}', said)
    return re.sub(r'tokenizer-[0-9a-f]{16}', 'tokenizer-{hash}', said)


def cases() -> list[Case]:
    from tests.faults import cases_commands, cases_config, cases_data, cases_runs, cases_search

    return [
        *cases_config.CASES,
        *cases_data.CASES,
        *cases_runs.CASES,
        *cases_commands.CASES,
        *cases_search.CASES,
    ]


def table(found: list[tuple[Case, int, str]]) -> str:
    """The Markdown page of what trying the cases gave: (case, exit code, stderr)."""

    def cell(text):
        return text.replace('|', '\\|').replace('\n', ' ')

    lines = [
        '# Bad inputs, and what they say',
        '',
        'Generated by `python -m tests.faults.bad_inputs --write`, which tries each of them; '
        '`tests/faults/test_bad_inputs.py` tries them too, and compares. '
        'Each is tried in a folder with `configs/`, a text (`text.txt`), a run of 4 steps of 6 '
        '(`run/`) and the config that goes on with it (`mine.py`); '
        'after each the files of that folder are what they were.',
        '',
        f'{len(found)} cases.',
    ]
    for kind in dict.fromkeys(case.kind for case, *_ in found):
        lines += ['', f'## {kind}', '', '| done | said | exit code |', '|---|---|---|']
        lines += [
            f'| {cell(case.done)} | {cell(said.strip().removeprefix("error: "))} | {code} |'
            for case, code, said in found
            if case.kind == kind
        ]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    page = table([(case, *tried(case)) for case in cases()])
    if sys.argv[1:] == ['--write']:
        TABLE.write_text(page)
    print(TABLE if sys.argv[1:] == ['--write'] else page)
