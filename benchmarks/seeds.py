"""Do several seeds of a study's cell train faster in one program than one after the other?

    python -m benchmarks.seeds --config=configs/ablations/kazemnejad.py --arm=rope --task=copy

One program is what `studies.ablate --together` gives them. Both take turns, in one process. Prints
JSON: tokens a second of both (compilation left out; medians of the rounds), their ratio, and the
share of the time together that drawing the data takes by itself, which other processes
(`--workers`) can take over.
"""

from absl import flags

from runtime import cli, config_flags, options

if __name__ == '__main__':  # above the imports that take seconds
    config_flags.define_flag()
    flags.DEFINE_string('arm', 'rope', 'Of the study')
    flags.DEFINE_string('task', 'copy', 'Of the study')
    options.whole('seeds', 5, 'Trained together', 2, 2**12)
    options.whole('steps', 64, 'Of training, a round', 8, options.COUNT)
    options.whole('rounds', 3, 'Turns', 1, options.COUNT)
    cli.parse_flags()

import json
import statistics
import time

import jax

from model.errors import did_you_mean
from runtime.errors import RunError
from studies import cells
from train import in_memory


def measure(config, arm: str, task: str, seeds: int, steps: int, rounds: int) -> dict:
    """Returns the figures; a round has `steps` of training. `config`: a study's."""
    config.train.steps = steps
    config.optimizer.warmup = 0
    numbers = list(range(1, seeds + 1))
    model, batches = cells.training(config, [cells.Cell(arm, task, n, 0.0) for n in numbers])

    def rate(batches: list, seeds: list[int]) -> float:
        return in_memory.run(model, config, batches, seeds)[0][1]['tokens_per_second']

    rates: dict[str, list[float]] = dict(alone=[], together=[])
    for _ in range(rounds):
        one_by_one = [rate([rows], [n]) for n, rows in zip(numbers, batches)]
        rates['alone'].append(statistics.harmonic_mean(one_by_one))
        rates['together'].append(rate(batches, numbers))

    # Drawing the data alone.
    began = time.perf_counter()
    tokens = 0
    for step in range(steps):
        tokens += sum(int((rows(step)['segment_ids'] > 0).sum()) for rows in batches)
    drawing = tokens / (time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return dict(
        arm=arm,
        task=task,
        seeds=seeds,
        steps=steps,
        rounds=rounds,
        tokens_per_second=medians,
        ratio=medians['together'] / medians['alone'],
        share_of_drawing=medians['together'] / drawing,
        device=jax.devices()[0].device_kind,
        raw=rates,
    )


def main() -> None:
    f = flags.FLAGS
    config = config_flags.get(base=None)
    known = {
        'arm': list(cells.arms(config)),
        'task': [name for name, t in config.tasks.items() if t.kind == 'task'],
    }
    for name, valid in known.items():
        if f[name].value not in valid:
            raise RunError(f'--{name}={f[name].value}: {did_you_mean(f[name].value, valid)}')
    figures = measure(config, f.arm, f.task, f.seeds, f.steps, f.rounds)
    print(json.dumps({'config': config_flags.file(), **figures}, indent=1))


if __name__ == '__main__':
    cli.run(main)
