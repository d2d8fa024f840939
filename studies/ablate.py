"""A study in one command: encodings x tasks x seeds, raw lines, and a report.

    python -m studies.ablate --config=configs/ablations/quick.py

A cell is one training run of a study: an encoding, a task, a seed. What it measured becomes one
line of `cells.jsonl` in `--out`. Started again after it was killed, or with more seeds, a study
goes on with the cells that are not there.
On CPU one pinned process of one thread runs on each core; on an accelerator one process runs them
all. `--together=5` trains five seeds of a cell in one program: on a GPU, say so, with
`--workers=8`, since processes take turns on it but draw data side by side
(`python -m benchmarks.seeds` measures where you are).
"""

from absl import flags

from runtime import cli, config_flags, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('out', '', 'Where the raw lines and the report go; default: runs/ablations/NAME')
    options.workers()
    options.whole('together', 1, 'Seeds of a cell that one program trains', 1, 2**12)
    flags.DEFINE_bool('dry_run', False, 'Print cells, tokens and the time to expect, and stop')
    config_flags.define_flag()
    cli.parse_flags()

import functools
import json
import logging
import pathlib
import statistics
import time

from runtime.run_dir import write_atomically
from studies import cells, records as study_records, workers as processes

_LOG = logging.getLogger('ordem')


def _row_length(config, task: str) -> int:
    """Returns the tokens of a row of training."""
    return cells.kind(config, task).sizes(config, task)[1]


def _training_tokens(config, task: str) -> int:
    """Returns the tokens that the training of one cell reads."""
    return _row_length(config, task) * config.train.batch_size * cells.steps_of(config, task)


def measured_speed(config, workers: int) -> float:
    """Returns tokens a second of training in one process, on the task with most tokens.

    It trains a few steps, in a process like those that would run the cells.
    """
    task = max(config.tasks, key=lambda task: _training_tokens(config, task))
    if workers == 0:
        return cells.speed(config, task)
    with processes.pool(1) as pool:
        return pool.submit(cells.speed, config, task).result()


def plan(config, records: list[dict], workers: int, speed: float = 0.0) -> str:
    """Returns what `--dry_run` prints: cells, tokens and the time to expect.

    The time comes from the records there are, else from `speed`, tokens a second of a process.
    """
    swept = cells.sweep_cells(config)
    compared = cells.study_cells(config, cells.chosen_rates(config, records))
    every = [*swept, *compared]
    at_once = max(workers, 1)

    # Records that this study still asks for: of encodings that have changed since, none counts.
    keys = {record['key'] for record in records}
    done = sum(cells.key(config, cell) in keys for cell in every)
    lines = [
        f'{config.title}: {len(cells.arms(config))} encodings x {len(config.tasks)} tasks x '
        f'{config.seeds} seeds = {len(compared)} cells, {len(swept)} to choose learning rates, '
        f'{done} records there'
    ]
    tokens = 0
    for task in config.tasks:
        each = _training_tokens(config, task)
        count = sum(cell.task == task for cell in every)
        tokens += each * count
        row = _row_length(config, task)
        lines.append(f'  {task}: {count} cells of {each / 1e6:.2f}M tokens (rows of {row})')
    lines.append(f'{tokens / 1e6:.0f}M tokens in all')

    if records:
        seconds = statistics.mean(record['seconds'] for record in records)
        left = len(every) - done
        minutes = left * seconds / at_once / 60
        lines.append(
            f'{seconds:.0f} s a cell so far: about {minutes:.0f} minutes for the {left} left on '
            f'{at_once} processes'
        )
    elif speed:
        minutes = tokens / speed / at_once / 60
        lines.append(
            f'{speed:,.0f} tokens a second in training here, one process: about {minutes:.1f} '
            f'minutes on {at_once} processes, and the measuring of each cell'
        )
    return '\n'.join(lines)


class _Progress:
    """Prints a line for each cell that ends."""

    def __init__(self):
        self._began = time.perf_counter()
        self._count = 0

    def __call__(self, record: dict) -> None:
        self._count += 1
        minutes = (time.perf_counter() - self._began) / 60
        shown = [f for f in ('inside', 'beyond') if record.get(f) is not None]
        score = ', '.join(f'{field} {record[field]:.3f}' for field in shown)
        print(
            f'[{self._count}, {minutes:.1f} min] {record["arm"]} / {record["task"]} / '
            f'seed {record["seed"]} / lr {record["lr"]:g}: '
            f'{score or "loss " + format(record["validation_nats"], ".3f")}',
            flush=True,
        )


def run(config, folder: pathlib.Path, workers: int, together: int = 1) -> dict:
    """Runs the whole study and writes its report; returns the summary that the report shows.

    Args:
      config: of the study.
      folder: where lines and report go.
      workers: processes; 0: this one runs all.
      together: seeds of a cell that one program trains, at most.
    """
    from studies import report

    folder.mkdir(parents=True, exist_ok=True)
    cells.check(config)
    write_atomically(folder / 'config.json', json.dumps(config.to_dict(), indent=1))
    show = _Progress()
    for line in cells.paths(config):
        _LOG.info('%s', line)

    def run_missing(wanted: list[cells.Cell]) -> None:
        done = {record['key'] for record in study_records.read_records(folder)}
        missing = [cell for cell in wanted if cells.key(config, cell) not in done]
        groups = cells.together(missing, together)
        measure = functools.partial(cells.measure, config)
        processes.run_groups(measure, groups, folder / study_records.FILE, workers, show)

    # The cells that choose the learning rates come first: the compared ones are trained with them.
    run_missing(cells.sweep_cells(config))
    rates = cells.chosen_rates(config, study_records.read_records(folder))
    run_missing(cells.study_cells(config, rates))

    rates, records = study_records.select_records(config, study_records.read_records(folder))
    return report.write(config, rates, records, folder)


def main() -> None:
    config = config_flags.get(base=None)
    name = pathlib.Path(str(config_flags.file())).stem
    folder = pathlib.Path(flags.FLAGS.out or f'runs/ablations/{name}')
    if flags.FLAGS.dry_run:
        cells.check(config)
        records = study_records.read_records(folder)
        speed = 0.0 if records else measured_speed(config, processes.count(flags.FLAGS.workers))
        print(plan(config, records, processes.count(flags.FLAGS.workers), speed))
        return
    cli.check_writable('--out', str(folder))
    run(config, folder, processes.count(flags.FLAGS.workers), flags.FLAGS.together)
    print(f'{folder}/report/index.html')


if __name__ == '__main__':
    cli.run(main, keeps=True)
