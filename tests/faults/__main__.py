"""Harms real training processes and runs, and sees that the next start goes on as if nothing had happened:

    python -m tests.faults --out=tests/faults/results

Each case is a line of `faults.jsonl` in --out: what was done, how the process ended, what was wrong (nothing, if all is well). README.md there is the
table of them. A run that was harmed must end with the arrays (by checksum, optimizer and PRNG included) and the metrics of one that was not.
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
    numbers = iter(range(10**6))

    def case(rng, name=None):
        name = name or rng.choice([n for n in wanted if n != 'group'])
        where = folder / f'case{next(numbers)}'
        where.mkdir()
        return kinds.Case(made[name], where, rng, wanted[name])

    def poisoned(mode):
        """A run with a NaN in it that is not killed, to compare with those that are."""
        number = 9
        lives.live(
            made['atlas'].command(
                folder / mode, {'nan': [number]}, (f'--config.train.on_spike={mode}',)
            )
        )
        return dict(number=number, state=lives.state(folder / mode))

    todo, chain = [], 10
    rng = lambda: random.Random(f'{seed} {next(numbers)}')
    for what, in_saves in (('kills', False), ('saves', True)):
        if what in chosen:
            for i in range(0, 5 * cases, chain):
                todo.append(
                    functools.partial(
                        kinds.kills,
                        case(rng(), [n for n in wanted if n != 'group'][(i // chain) % 4]),
                        min(chain, 5 * cases - i),
                        in_saves,
                    )
                )
    for i in range(cases):
        if 'signals' in chosen:
            todo += [
                functools.partial(kinds.signals, case(rng()), signal.SIGTERM),
                functools.partial(kinds.signals, case(rng()), signal.SIGINT),
            ]
        if 'disk' in chosen:
            todo.append(functools.partial(kinds.full_disk, case(rng())))
        if 'damage' in chosen:
            for target in ('checkpoint', 'store', 'tokenizer', 'config'):
                made_case = case(rng())
                todo.append(
                    functools.partial(
                        kinds.damage, made_case, folder / 'half' / made_case.experiment.name, target
                    )
                )
            if 'processes' in chosen and i % 2 == 0:
                todo.append(
                    functools.partial(
                        kinds.damage, case(rng(), 'group'), folder / 'half' / 'group', 'checkpoint'
                    )
                )
        if 'processes' in chosen:
            todo += [
                functools.partial(kinds.lost_process, case(rng(), 'group'), stops)
                for stops in (False, True)
            ]
            todo.append(functools.partial(kinds.signals, case(rng(), 'group'), signal.SIGTERM))
        if 'nan' in chosen:
            todo.append(functools.partial(kinds.not_finite, case(rng()), 'stop', None))
        if 'hang' in chosen:
            todo.append(functools.partial(kinds.hang, case(rng())))
    if 'nan' in chosen:
        for mode in ('skip', 'rollback'):
            found = poisoned(mode)
            todo += [
                functools.partial(kinds.not_finite, case(rng(), 'atlas'), mode, found)
                for _ in range(-(-cases // 2))
            ]
    with concurrent.futures.ThreadPoolExecutor(flags.FLAGS.workers) as pool:
        running = {pool.submit(one): one for one in todo}
        for done in concurrent.futures.as_completed(running):
            try:
                rows = done.result()
            except (
                Exception
            ) as error:  # of the harness, or of a state that cannot be read: a case that failed
                rows = dict(
                    kind=running[done].func.__name__, wrong=[f'{type(error).__name__}: {error}']
                )
            for row in [rows] if isinstance(rows, dict) else rows:
                log({'wrong': [], **row})
            one = running[done].args[0]
            if not one.wrong:
                shutil.rmtree(one.folder, ignore_errors=True)


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
