"""How long training is blocked by an asynchronous save, as a share of a step.

    python -m benchmarks.saves --config=configs/gpt2_124m.py --rows=1 --rounds=4

Interleaves steps without and with a save in one process, on random tokens, and prints medians as
JSON: seconds of a step, seconds for which `save` holds training up, split into checksums and the
rest, the share of a step, and how much slower the step beside the writing is.
"""

from runtime import cli, config_flags, options

if __name__ == '__main__':  # above the imports that take seconds
    config_flags.define_flag()
    options.whole('rows', 1, 'Rows of the batch', 1, options.COUNT)
    options.whole('rounds', 5, 'Steps without and with a save', 1, options.COUNT)
    options.path(
        'out',
        'runs/benchmarks',
        'On which disk: the checkpoints go to a folder of their own there, and are removed',
    )
    cli.parse_flags()

import json
import pathlib
import statistics
import tempfile
import time

import jax
from absl import flags
from etils import epath

from benchmarks.rows import random_rows
from model.config import resolve
from model.transformer import Transformer
from runtime import checkpoint, field_checks
from runtime.run_dir import Run
from train import mesh as meshes, step as steps
from train.losses import TokenLoss
from train.optimizer import make_optimizer


def measure(c, rows: int, rounds: int, folder: pathlib.Path) -> dict:
    """Returns the figures, seconds as medians of `rounds`.

    Args:
      c: an experiment.
      rows: of the batch.
      rounds: steps without and with a save.
      folder: an empty one, for the checkpoints.
    """
    mesh = meshes.make_mesh(c.mesh)
    vocabulary = c.tokenizer.vocab_size
    model, optimizer = (
        Transformer(resolve(c.model, vocabulary, c.data.seq_len)),
        make_optimizer(c.optimizer, c.train.steps),
    )
    state, shardings = steps.init_state(model, optimizer, 0, mesh)
    step = steps.make_step(model, optimizer, TokenLoss(), mesh, shardings)
    batch = meshes.to_devices(mesh, random_rows(vocabulary, rows, c.data.seq_len), rows)
    checkpoints = checkpoint.Checkpoints(Run(epath.Path(folder)), c.checkpoint)

    def timed(function):
        began = time.perf_counter()
        result = function()
        jax.block_until_ready(result)
        return result, time.perf_counter() - began

    lists: dict[str, list] = {name: [] for name in ('step', 'checksums', 'blocked', 'step_beside')}
    (state, _), compiling = timed(lambda: step(state, batch))
    timed(lambda: checkpoint.checksums(state))  # compiled
    for _ in range(rounds):
        (state, _), seconds = timed(lambda: step(state, batch))
        lists['step'].append(seconds)
        lists['checksums'].append(timed(lambda: checkpoint.checksums(state))[1])
        lists['blocked'].append(timed(lambda: checkpoints.save(state, None))[1])
        (state, _), seconds = timed(lambda: step(state, batch))
        lists['step_beside'].append(seconds)
        checkpoints.wait()
    checkpoints.close()
    medians = {name: statistics.median(values) for name, values in lists.items()}
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return dict(
        rows=rows,
        seq_len=c.data.seq_len,
        state_gib=size / 2**30,
        rounds=rounds,
        compile_seconds=compiling,
        **medians,
        share_of_a_step=medians['blocked'] / medians['step'],
        step_beside_the_writing=medians['step_beside'] / medians['step'],
        device=jax.devices()[0].device_kind,
        raw=lists,
    )


def main() -> None:
    f = flags.FLAGS
    config = config_flags.get()
    field_checks.check(config)
    pathlib.Path(f.out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=f.out) as folder:
        figures = measure(config, f.rows, f.rounds, pathlib.Path(folder))
        print(json.dumps({'config': config_flags.file(), **figures}, indent=1))


if __name__ == '__main__':
    cli.run(main)
