"""A study in one command: encodings x tasks x seeds, raw lines, and a report.

    python -m studies.ablate --config=configs/ablations/quick.py

Each cell is one training; what it measured becomes one line of `cells.jsonl` in `--out`. Started again after it was killed, or
with more seeds, a study goes on with the cells that are not there yet. On CPU one pinned process of one thread runs on each
core; on an accelerator one process runs them all. `--together=5` trains five seeds of a cell in one program: on a GPU, say so, with
`--workers=8`, since processes take turns on it but draw data side by side (`python -m benchmarks.seeds` measures where you are).
"""

import concurrent.futures
import ctypes
import json
import logging
import multiprocessing
import os
import pathlib
import signal
import statistics
import sys
import tempfile
import time

from absl import flags

from data import safe_read
from runtime import cli, config_flags, options, streams
from runtime.errors import RunError
from runtime.run_dir import cores, write_atomically
from studies import cells
from train import loop

_LOG = logging.getLogger('ordem')

_LINES = 'cells.jsonl'


def read(folder: pathlib.Path) -> list[dict]:
    """The records of a study. Half a line, left by a kill, is no record."""
    path = folder / _LINES
    found = safe_read.objects(path) if path.exists() else ()
    return list({r['key']: r for r in found if isinstance(r.get('key'), str)}.values())


def _start_worker(started, pinned: bool, folder: pathlib.Path) -> None:
    """In a new process, before JAX is: its own core, and an end with the one that started it."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(
            1, signal.SIGTERM
        )  # PR_SET_PDEATHSIG: else it would finish its cell for nobody
    with started.get_lock():
        number = started.value
        started.value += 1
    if pinned and hasattr(os, 'sched_setaffinity'):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[number % len(allowed)]})
    os.environ['XLA_FLAGS'] = (
        f'{os.environ.get("XLA_FLAGS", "")} --xla_cpu_multi_thread_eigen=false'
    )
    streams.settle(keeps=True)
    cli.settle()
    loop.keep_compiled(str(folder))


def _pool(count: int, folder: pathlib.Path) -> concurrent.futures.ProcessPoolExecutor:
    os.environ.setdefault(
        'XLA_PYTHON_CLIENT_PREALLOCATE', 'false'
    )  # else the first process takes most of a GPU's memory
    context = multiprocessing.get_context('spawn')
    return concurrent.futures.ProcessPoolExecutor(
        count, context, _start_worker, (context.Value('i', 0), not _accelerated(), folder)
    )


def run_cells(
    config, todo: list[list[cells.Cell]], folder: pathlib.Path, workers: int, show
) -> None:
    """Runs groups of cells and appends their records as they end."""

    def keep(records):
        with open(folder / _LINES, 'a') as file:
            file.writelines(json.dumps(record) + '\n' for record in records)
        for record in records:
            show(record)

    if not todo:
        return
    if workers == 0:
        loop.keep_compiled(str(folder))
        for group in todo:
            keep(cells.measure(config, group))
        return
    with _pool(min(workers, len(todo)), folder) as pool:
        running = [pool.submit(cells.measure, config, group) for group in todo]
        try:
            for future in concurrent.futures.as_completed(running):
                keep(future.result())
        except concurrent.futures.process.BrokenProcessPool:
            raise RunError(
                f'a process of the study died (killed, or out of memory); {folder / _LINES} holds what was measured, '
                f'start again to go on, with fewer --workers if memory was short'
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _row(config, task: str) -> int:
    return cells.kind(config, task).sizes(config, task)[1]


def _tokens(config, task: str) -> int:
    """Of the training of one cell."""
    return _row(config, task) * config.train.batch_size * cells.steps_of(config, task)


def measured_speed(config, workers: int) -> float:
    """Tokens a second that one process trains on the task with most of them: a few steps, in a process like those that would run the cells."""
    task = max(config.tasks, key=lambda task: _tokens(config, task))
    if workers == 0:
        return cells.speed(config, task)
    with tempfile.TemporaryDirectory() as folder, _pool(1, pathlib.Path(folder)) as pool:
        return pool.submit(cells.speed, config, task).result()


def plan(config, records: list[dict], workers: int, speed: float = 0.0) -> str:
    """What `--dry_run` prints: cells, tokens and the time to expect, from records or else from the tokens a second that a process trains."""
    swept, rates = (
        cells.sweep_cells(config),
        cells.chosen_rates(config, records),
    )
    compared = cells.study_cells(config, rates)
    # Records that this study still asks for: of encodings that have changed since, none counts.
    keys = {r['key'] for r in records}
    there = [c for c in (*swept, *compared) if cells.key(config, c) in keys]
    seconds = [r['seconds'] for r in records]
    tokens = 0
    lines = [
        f'{config.title}: {len(cells.arms(config))} encodings x {len(config.tasks)} tasks x {config.seeds} seeds = {len(compared)} '
        f'cells, {len(swept)} to choose learning rates, {len(there)} records there'
    ]
    for task in config.tasks:
        each, count = _tokens(config, task), len([c for c in (*swept, *compared) if c.task == task])
        tokens += each * count
        lines.append(
            f'  {task}: {count} cells of {each / 1e6:.2f}M tokens (rows of {_row(config, task)})'
        )
    lines.append(f'{tokens / 1e6:.0f}M tokens in all')
    if seconds:
        todo = len(swept) + len(compared) - len(there)
        lines.append(
            f'{statistics.mean(seconds):.0f} s a cell so far: about {todo * statistics.mean(seconds) / max(workers, 1) / 60:.0f} '
            f'minutes for the {todo} left on {max(workers, 1)} processes'
        )
    elif speed:
        lines.append(
            f'{speed:,.0f} tokens a second in training here, one process: about {tokens / speed / max(workers, 1) / 60:.1f} minutes on '
            f'{max(workers, 1)} processes, and the measuring of each cell'
        )
    return '\n'.join(lines)


def run(config, folder: pathlib.Path, workers: int, together: int = 1) -> dict:
    """The whole study, up to `together` seeds of a cell in one program. Returns the summary that the report shows."""
    from studies import report

    folder.mkdir(parents=True, exist_ok=True)
    cells.check(config)
    write_atomically(folder / 'config.json', json.dumps(config.to_dict(), indent=1))
    began, count = time.perf_counter(), [0]

    def show(record):
        count[0] += 1
        score = ', '.join(
            f'{what} {record[what]:.3f}'
            for what in ('inside', 'beyond')
            if record.get(what) is not None
        )
        print(
            f'[{count[0]}, {(time.perf_counter() - began) / 60:.1f} min] {record["arm"]} / {record["task"]} / seed {record["seed"]} / '
            f'lr {record["lr"]:g}: {score or "loss " + format(record["validation_nats"], ".3f")}',
            flush=True,
        )

    def missing(wanted):
        there = {r['key'] for r in read(folder)}
        return cells.together([c for c in wanted if cells.key(config, c) not in there], together)

    for line in cells.paths(config):
        _LOG.info('%s', line)
    run_cells(config, missing(cells.sweep_cells(config)), folder, workers, show)
    rates = cells.chosen_rates(config, read(folder))
    wanted = cells.study_cells(config, rates)
    run_cells(config, missing(wanted), folder, workers, show)
    by_key = {r['key']: r for r in read(folder)}
    lines = report.Lines(
        [by_key[cells.key(config, c)] for c in wanted],
        [by_key[cells.key(config, c)] for c in cells.sweep_cells(config)],
        [r for r in by_key.values() if 'commit' in r],
    )
    return report.write(config, cells.arms(config), rates, lines, folder)


def _accelerated() -> bool:
    import jax

    return os.environ.get('JAX_PLATFORMS', '') != 'cpu' and jax.default_backend() != 'cpu'


def _workers() -> int:
    """Processes to run: as asked, else one a core on CPU and none (this one) on an accelerator."""
    if flags.FLAGS.workers >= 0:
        return flags.FLAGS.workers
    if _accelerated():
        return 0
    return cores()


def main() -> None:
    config = config_flags.get(schema=None)
    name = pathlib.Path(str(config_flags.file())).stem
    folder = pathlib.Path(flags.FLAGS.out or f'runs/ablations/{name}')
    if flags.FLAGS.dry_run:
        cells.check(config)
        records = read(folder)
        print(
            plan(
                config, records, _workers(), 0.0 if records else measured_speed(config, _workers())
            )
        )
        return
    cli.check_writable('--out', str(folder))
    run(config, folder, _workers(), flags.FLAGS.together)
    print(f'{folder}/report/index.html')


if __name__ == '__main__':
    options.path('out', '', 'Where the raw lines and the report go; default: runs/ablations/NAME')
    options.whole(
        'workers',
        -1,
        'Processes; -1: one a core on CPU; 0: all cells in this process',
        -1,
        2**12,
    )
    options.whole('together', 1, 'Seeds of a cell that one program trains', 1, 2**12)
    flags.DEFINE_bool('dry_run', False, 'Print cells, tokens and the time to expect, and stop')
    config_flags.define_flag()
    cli.run(main, keeps=True)
