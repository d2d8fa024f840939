"""What does the training loop cost over the bare step, and do several steps a dispatch gain?

    python -m benchmarks.loop --shape=small --rounds=5
    python -m benchmarks.loop --shape=124m --rounds=3 --steps=4
    python -m benchmarks.loop --quick

Contenders, seconds of a step: `bare`, the jitted step on one batch that lies on the device; `loop`,
`train.loop` with its input, metrics and events, where nothing else is due; `together`, as many bare
steps in one dispatch as a turn has. Then what an evaluation and a checkpoint take, and what all of
it costs over the bare step at the defaults of configs/base.py. The text is made, so the vocabulary
is small; a step with a larger one takes longer, and the loop is a smaller part of it.
"""

from absl import flags

from benchmarks import turns
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    turns.define_flags()
    options.whole('steps', 16, 'Steps a turn', 2, options.COUNT)
    flags.DEFINE_string('contender', '', 'For itself: which one')
    flags.DEFINE_bool('quick', False, 'The same work at the smallest sizes, in a few seconds')
    cli.parse_flags()

import json
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks import shapes
from configs import base
from runtime.checkpoint import Checkpoints
from runtime.signals import Signals
from train import loop, setup
from train.evaluate import evaluate
from train.mesh import to_devices
from train.setup import Experiment

BARE, LOOP, TOGETHER = 'bare', 'loop', 'together'  # contenders
_LAST = 10**6  # step of training: a turn never reaches it


def compare(shape: str, steps: int, rounds: int) -> list[dict]:
    """Returns a measurement of each contender and round: seconds of a step.

    The lines of the loop have 'evaluation' and 'checkpoint' too, seconds of one: what holds a step
    up, and 'written', the seconds until a checkpoint is on the disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'benchmarks.loop', f'--serve={folder}']
        command += [f'--shape={shape}', f'--steps={steps}']
        commands = {name: [*command, f'--contender={name}'] for name in (BARE, LOOP, TOGETHER)}
        return turns.take_turns(commands, rounds)


def build(folder: str, name: str, shape: str) -> Experiment:
    """Returns an experiment of a shape on made text, ready to train in `folder`/`name`."""
    sizes = shapes.SHAPES[shape]
    config = base.get_config()
    config.model.update(sizes.model)
    config.data.update(batch_size=sizes.rows, seq_len=sizes.length, cache=f'{folder}/cache-{name}')
    config.tokenizer.update(kind='bpe', vocab_size=440)
    config.data.atlas.update(editions=4, countries=12)
    config.train.steps = _LAST
    config.eval.every = 0  # measured by themselves
    config.checkpoint.every = 0
    return setup.build_experiment(config, f'{folder}/{name}')


def costs(lines: list[dict]) -> dict:
    """Returns the medians, and what each part costs, as a share of the bare step.

    Evaluations and checkpoints are spread over the steps from one to the next.
    """
    medians: dict[str, float] = {}
    for key in ('seconds', 'evaluation', 'checkpoint'):
        values = [line[key] for line in lines if line['name'] == LOOP]
        medians[key] = statistics.median(values)
    seconds = {
        name: [line['seconds'] for line in lines if line['name'] == name] for name in (BARE, LOOP)
    }
    bare = statistics.median(seconds[BARE])
    config = base.get_config()
    shares = dict(
        loop=statistics.median(a / b for a, b in zip(seconds[LOOP], seconds[BARE])) - 1,
        evaluation=medians['evaluation'] / config.eval.every / bare,
        checkpoint=medians['checkpoint'] / config.checkpoint.every / bare,
    )
    return dict(name='costs', bare=bare, **medians, shares=shares, sum=sum(shares.values()))


def serve(folder: str, contender: str, shape: str, count: int) -> None:
    """Takes `count` steps a turn, as one of the contenders."""
    experiment = build(folder, contender, shape)
    if contender == LOOP:
        turns.serve(lambda: _run_loop(experiment, count))
        return
    batch = to_devices(experiment.mesh, experiment.training(0), experiment.config.data.batch_size)
    step = experiment.train_step
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), batch)
    together = jax.jit(lambda state, many: jax.lax.scan(step, state, many), donate_argnums=0)

    def work():
        began = time.perf_counter()
        if contender == TOGETHER:
            experiment.state, metrics = together(experiment.state, many)
        else:
            for _ in range(count):
                experiment.state, metrics = step(experiment.state, batch)
        jax.block_until_ready(metrics)
        return dict(seconds=(time.perf_counter() - began) / count)

    turns.serve(work)


def _run_loop(experiment: Experiment, count: int) -> dict:
    """Trains some steps more, evaluates, and saves; returns seconds."""
    read: list[float] = []  # when the metrics of a step were

    def note(step=None):
        if step is not None:
            read.append(time.perf_counter())

    # From the first step to the last one, without the opening of files before and after.
    experiment.beat = note
    experiment.config.train.stop_at = int(experiment.state['step']) + count
    with Signals() as signals:
        loop.run_steps(experiment, signals, {})
    seconds = (read[count - 1] - read[0]) / (count - 1)

    began = time.perf_counter()
    evaluate(experiment, experiment.state['params'])
    evaluation = time.perf_counter() - began
    checkpoints = Checkpoints(experiment.run, experiment.config.checkpoint)
    began = time.perf_counter()
    checkpoints.save(experiment.state, None)
    checkpoint = time.perf_counter() - began
    checkpoints.close()
    written = time.perf_counter() - began
    return dict(seconds=seconds, evaluation=evaluation, checkpoint=checkpoint, written=written)


def main() -> None:
    f = flags.FLAGS
    if f.serve:
        return serve(f.serve, f.contender, f.shape, f.steps)
    sizes = dict(shape=f.shape, steps=f.steps)
    rounds = f.rounds
    if f.quick:
        sizes = dict(shape='tiny', steps=4)
        rounds = 1
    lines = compare(**sizes, rounds=rounds)
    summary = costs(lines)
    if f.out:
        turns.keep(f.out, [*lines, summary], **sizes)
    print(turns.table(lines, BARE))
    print(json.dumps(summary))


if __name__ == '__main__':
    cli.run(main)
