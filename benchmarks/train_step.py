"""How fast is a train step beside what else a user would install?

    python -m benchmarks.train_step --shape=small --rounds=7
    python -m benchmarks.train_step --shape=124m --out=benchmarks/results/train_step.jsonl

A Llama-shaped model in float32, causal, RoPE, RMSNorm, SwiGLU, one table for input and output;
AdamW with clipped gradients; the same weights and the same rows for all, and so, to rounding, the
same losses, which is checked. Contenders: Ordem; `transformers`, LlamaForCausalLM of PyTorch as it
comes; `compiled`, the same under torch.compile. Those that are not installed are left out, said so.
"""

from absl import flags

from benchmarks import turns
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    turns.define_flags()
    flags.DEFINE_list('contenders', ['transformers'], 'Beside Ordem: transformers, compiled')
    options.whole('steps', 2, 'Steps a turn', 1, options.COUNT)
    cli.parse_flags()

import pathlib
import sys
import tempfile
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import shapes, weights
from benchmarks.rows import random_rows
from configs import base
from model.config import resolve
from model.transformer import Transformer
from runtime.errors import RunError
from train import mesh as meshes, step as steps
from train.losses import TokenLoss
from train.optimizer import make_optimizer

_OTHERS = {turns.TRANSFORMERS: [], 'compiled': ['--compile']}


def compare(shape: str, others: list[str], rounds: int, steps: int) -> list[dict]:
    """Returns a measurement of each contender and round: seconds of a step, and the first loss.

    Raises:
      RunError: first losses that differ, so that not the same work was compared.
    """
    with tempfile.TemporaryDirectory() as folder:
        state, _, batch = _build(shape)
        inputs = {name: np.asarray(batch[name]) for name in ('tokens', 'targets')}
        weights.write(pathlib.Path(folder), state['params'], **inputs)
        sizes = [f'--shape={shape}', f'--steps={steps}']
        commands = {
            turns.ORDEM: [
                sys.executable,
                '-m',
                'benchmarks.train_step',
                *sizes,
                f'--serve={folder}',
            ]
        }
        for name in others:
            torch = [*turns.start('benchmarks.torch_llama'), 'train', folder]
            commands[name] = [*torch, *sizes, *_OTHERS[name]]
        lines = turns.take_turns(commands, rounds)

    losses = {line['name']: line['first_loss'] for line in lines}
    for name, loss in losses.items():
        if abs(loss - losses[turns.ORDEM]) > 1e-3:
            raise RunError(f'not the same work: first losses {losses}')
    return lines


def _build(shape: str):
    """Returns the first state, the train step, and the batch on the device."""
    sizes = shapes.SHAPES[shape]
    config = base.get_config()
    config.model.update(sizes.model)
    mesh = meshes.make_mesh(ConfigDict(dict(data=1, fsdp=1, tensor=1, context=1)))
    model = Transformer(resolve(config.model, sizes.vocabulary, sizes.length))
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    state, shardings = steps.init_state(model, optimizer, 0, mesh)
    step = steps.make_step(model, optimizer, TokenLoss(), mesh, shardings)
    rows = random_rows(sizes.vocabulary, sizes.rows, sizes.length)
    return state, step, meshes.to_devices(mesh, rows, sizes.rows)


def serve(shape: str, count: int) -> None:
    """Takes `count` steps a turn, as the contender Ordem."""
    state, step, batch = _build(shape)
    state, metrics = step(state, batch)
    first_loss = float(metrics['loss'])

    def work():
        nonlocal state
        began = time.perf_counter()
        for _ in range(count):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        return dict(seconds=(time.perf_counter() - began) / count)

    turns.serve(work, first_loss=first_loss)


def main() -> None:
    f = flags.FLAGS
    if f.serve:
        return serve(f.shape, f.steps)
    for name in f.contenders:
        if name not in _OTHERS:
            raise RunError(f'--contenders={name}: expected some of {", ".join(_OTHERS)}')
    others = f.contenders
    if others and not turns.has_transformers():
        others = []
    lines = compare(f.shape, others, f.rounds, f.steps)
    if f.out:
        turns.keep(f.out, lines, shape=f.shape)
    print(turns.table(lines, others[0] if others else turns.ORDEM))


if __name__ == '__main__':
    cli.run(main)
