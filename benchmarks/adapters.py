"""What a step that trains adapters costs beside one that trains all parameters.

    python -m benchmarks.adapters --shape=small --rank=8 --rounds=9

Three steps take turns in one process, on the same rows: `full`, which trains all parameters;
`adapters`, the step as it is, which multiplies tokens by each thin factor; and `merged`, which adds
the factors' product to the matrix first and so needs the gradient of the whole matrix. Printed are
seconds of a step, and bytes: of the parameters that are trained, the optimizer, and what the
compiled step holds beside its arguments.
"""

from absl import flags

from benchmarks import turns
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    turns.define_flags(serve=False)
    options.whole('rank', 8, 'Rank of the adapters', 1, options.COUNT)
    cli.parse_flags()

import time
from unittest import mock

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import shapes
from benchmarks.rows import random_rows
from configs import base
from model import layers, lora
from model.config import resolve
from model.transformer import Transformer
from train import footprint, mesh as meshes, step as steps
from train.losses import TokenLoss
from train.optimizer import make_optimizer
from train.preflight import frozen_names


class _Merged:
    """Stands in for `model.lora.Adapted`: the matrix with the product of its factors added."""

    def __new__(cls, w, a, b):
        return w + jnp.tensordot(a, b, 1)


WAYS = {'full': None, 'adapters': lora.Adapted, 'merged': _Merged}


def _build(shape: str, way: str, rank: int):
    """Returns the first state, the compiled step, the batch on the device, and bytes."""
    sizes = shapes.SHAPES[shape]
    config = base.get_config()
    config.model.update(sizes.model)
    config.lora.rank = 0 if way == 'full' else rank
    mesh = meshes.make_mesh(ConfigDict(dict(data=1, fsdp=1, tensor=1, context=1)))
    architecture = resolve(config.model, sizes.vocabulary, sizes.length)
    model = Transformer(lora.adapt(architecture, config.lora))
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    frozen = frozen_names(model)
    state, shardings = steps.init_state(model, optimizer, 0, mesh, frozen=frozen)
    step = steps.make_step(model, optimizer, TokenLoss(), mesh, shardings)
    rows = random_rows(sizes.vocabulary, sizes.rows, sizes.length)
    batch = meshes.to_devices(mesh, rows, sizes.rows)
    with mock.patch.object(layers, 'Adapted', WAYS[way] or lora.Adapted):
        compiled = step.lower(state, batch).compile()
    bytes_of = {
        'trained': footprint.bytes_per_device(state['params']),
        'optimizer': footprint.state_bytes(state)['optimizer'],
        'temporary': compiled.memory_analysis().temp_size_in_bytes,
    }
    return state, compiled, batch, bytes_of


def compare(shape: str, rank: int, rounds: int) -> list[dict]:
    """Returns a measurement of each way and round: seconds of a step, and bytes."""
    contenders = {way: _build(shape, way, rank) for way in WAYS}
    states = {way: state for way, (state, *_) in contenders.items()}
    lines = []
    for number in range(-1, rounds):  # a first round that is not kept settles caches
        for way, (_, step, batch, bytes_of) in contenders.items():
            began = time.perf_counter()
            states[way], metrics = step(states[way], batch)
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - began
            if number >= 0:
                lines.append(dict(name=way, round=number, seconds=seconds, **bytes_of))
    return lines


def main() -> None:
    f = flags.FLAGS
    lines = compare(f.shape, f.rank, f.rounds)
    if f.out:
        turns.keep(f.out, lines, shape=f.shape, rank=f.rank)
    print(turns.table(lines, 'full'))
    for way in WAYS:
        line = next(line for line in lines if line['name'] == way)
        sizes = ', '.join(
            f'{name} {line[name] / 2**20:.2f} MiB' for name in ('trained', 'optimizer', 'temporary')
        )
        print(f'{way}: {sizes}')


if __name__ == '__main__':
    cli.run(main)
