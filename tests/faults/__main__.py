"""Harms real training processes, and sees that the next start goes on as if nothing had happened:

    python -m tests.faults --out=tests/faults/results

Each case is a line of `faults.jsonl` in --out: what was done, how the process ended, what was wrong
(nothing, if all is well). README.md there is the table of them. A run that was harmed must end with
the arrays (by checksum, optimizer and PRNG included) and the metrics of one that was not.
`--kinds=hang,signals --cases=2` takes some. About 25 minutes on 2 idle cores.
"""

import collections
import concurrent.futures
import functools
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

from absl import app, flags

from tests.faults import kinds, lives


def plan(folder: pathlib.Path, chosen: list[str], cases: int, seed: int, log) -> None:
    """Makes what the cases are compared with, then the cases; log(row) is called for each."""
    names = ['atlas', 'muon', 'files', 'answers', *(['group'] if 'processes' in chosen else [])]
    made, wanted = lives.untouched(folder, names, names if 'damage' in chosen else ())
    draw = _Draw(folder, seed, made, wanted)
    todo = [
        *_planned_kills(draw, chosen, cases),
        *_planned_faults(draw, chosen, cases),
        *_planned_spikes(draw, chosen, cases),
    ]
    with concurrent.futures.ThreadPoolExecutor(flags.FLAGS.workers) as pool:
        running = {pool.submit(case): case for case in todo}
        for done in concurrent.futures.as_completed(running):
            case = running[done]
            try:
                rows = done.result()
            except Exception as error:
                # Of the harness, or of a state that cannot be read: a case that failed.
                message = f'{type(error).__name__}: {error}'
                rows = {'kind': case.func.__name__, 'wrong': [message]}
            for row in [rows] if isinstance(rows, dict) else rows:
                log({'wrong': [], **row})
            tried = case.args[0]
            if not tried.wrong:
                shutil.rmtree(tried.folder, ignore_errors=True)


class _Draw:
    """Draws the cases, each in a folder and from a random generator of its own."""

    def __init__(self, folder: pathlib.Path, seed: int, made: dict, wanted: dict):
        self.folder, self._seed, self._made, self._wanted = folder, seed, made, wanted
        self._numbers = iter(range(10**6))
        self.alone = [name for name in wanted if name != 'group']

    def case(self, name: str | None = None) -> kinds.Case:
        """Returns a case of the experiment of this name, or of one that is drawn."""
        rng = random.Random(f'{self._seed} {next(self._numbers)}')
        name = name or rng.choice(self.alone)
        folder = self.folder / f'case{next(self._numbers)}'
        folder.mkdir()
        return kinds.Case(self._made[name], folder, rng, self._wanted[name])

    def poisoned(self, mode: str) -> dict:
        """Returns a run with a NaN in it that is not killed, to compare with those that are."""
        number = 9
        on_spike = (f'--config.train.on_spike={mode}',)
        command = self._made['atlas'].command(self.folder / mode, {'nan': [number]}, on_spike)
        lives.live(command)
        return dict(number=number, state=lives.state(self.folder / mode))


def _planned_kills(draw: _Draw, chosen: list[str], cases: int) -> list[functools.partial]:
    """Plans runs that are killed again and again, ten times in a row."""
    todo, chain = [], 10
    for what, in_saves in (('kills', False), ('saves', True)):
        for i in range(0, 5 * cases, chain) if what in chosen else ():
            case = draw.case(draw.alone[(i // chain) % 4])
            todo.append(functools.partial(kinds.kills, case, min(chain, 5 * cases - i), in_saves))
    return todo


def _planned_faults(draw: _Draw, chosen: list[str], cases: int) -> list[functools.partial]:
    """Plans one fault a run: signals, full disks, damaged files, lost processes, hangs."""
    todo = []
    half = draw.folder / 'half'

    def add(kind, case, *args):
        todo.append(functools.partial(kind, case, *args))

    for i in range(cases):
        if 'signals' in chosen:
            add(kinds.signals, draw.case(), signal.SIGTERM)
            add(kinds.signals, draw.case(), signal.SIGINT)
        if 'disk' in chosen:
            add(kinds.full_disk, draw.case())
        if 'damage' in chosen:
            for target in ('checkpoint', 'store', 'tokenizer', 'config'):
                case = draw.case()
                add(kinds.damage, case, half / case.experiment.name, target)
            if 'processes' in chosen and i % 2 == 0:
                add(kinds.damage, draw.case('group'), half / 'group', 'checkpoint')
        if 'processes' in chosen:
            for stops in (False, True):
                add(kinds.lost_process, draw.case('group'), stops)
            add(kinds.signals, draw.case('group'), signal.SIGTERM)
        if 'nan' in chosen:
            add(kinds.not_finite, draw.case(), 'stop', None)
        if 'hang' in chosen:
            add(kinds.hang, draw.case())
    return todo


def _planned_spikes(draw: _Draw, chosen: list[str], cases: int) -> list[functools.partial]:
    """Plans runs with a NaN in them that are killed as well."""
    todo = []
    for mode in ('skip', 'rollback') if 'nan' in chosen else ():
        poisoned = draw.poisoned(mode)
        for _ in range(-(-cases // 2)):
            todo.append(functools.partial(kinds.not_finite, draw.case('atlas'), mode, poisoned))
    return todo


def table(rows: list[dict], command: str) -> str:
    """The summary, as Markdown."""
    by_kind = collections.defaultdict(list)
    for row in rows:
        by_kind[row['kind']].append(row)
    lines = [
        f'`{command}` harmed {len(rows)} runs; each line of [faults.jsonl](faults.jsonl) is one.',
        '',
        '| fault | cases | exit codes | wrong |',
        '|---|---|---|---|',
    ]
    for kind, some in sorted(by_kind.items()):
        codes = collections.Counter(str(row['code']) for row in some if 'code' in row)
        told = ', '.join(f'{code} ({n})' for code, n in sorted(codes.items())) or (
            'killed' if kind.startswith('kill') else '0'
        )
        lines.append(
            f'| {kind} | {len(some)} | {told} | {sum(bool(row["wrong"]) for row in some)} |'
        )
    return '\n'.join(lines) + '\n'


def main(_) -> None:
    rows, began = [], time.monotonic()
    out = pathlib.Path(flags.FLAGS.out) if flags.FLAGS.out else None
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / 'faults.jsonl').write_text('')

    def log(row):
        rows.append(row)
        line = json.dumps(row)
        print(f'{len(rows):4d} {time.monotonic() - began:6.0f} s  {line}', flush=True)
        if out:
            with open(out / 'faults.jsonl', 'a') as file:
                file.write(line + '\n')

    folder = pathlib.Path(tempfile.mkdtemp(prefix='faults-'))
    plan(folder, flags.FLAGS.kinds, flags.FLAGS.cases, flags.FLAGS.seed, log)
    found = table(rows, ' '.join(['python -m tests.faults', *sys.argv[1:]]))
    print(found)
    if out:
        (out / 'README.md').write_text(found)
    wrong = sum(bool(row['wrong']) for row in rows)
    if not wrong:
        shutil.rmtree(folder)
    sys.exit(f'{wrong} cases went wrong; their folders are in {folder}' if wrong else 0)


if __name__ == '__main__':
    flags.DEFINE_string('out', '', 'Where the log and its table go; empty: they are printed')
    flags.DEFINE_list(
        'kinds',
        ['kills', 'saves', 'signals', 'disk', 'damage', 'processes', 'nan', 'hang'],
        'Kinds of faults',
    )
    flags.DEFINE_integer(
        'cases',
        10,
        'Cases of each kind; ten times as many kills, half of them in saves',
        lower_bound=1,
    )
    flags.DEFINE_integer('seed', 0, 'Which random cases')
    flags.DEFINE_integer('workers', 2, 'Cases at one time', lower_bound=1)
    app.run(main)
