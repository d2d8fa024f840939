"""Which attention is fast here, for each encoding: a training step's loss and gradients with every kernel that can carry it.

    python -m benchmarks.kernels --length=2048 --rows=8 > kernels.json

A model in bfloat16 with one document a row, on random tokens, without the optimizer. Kernels take turns in one process; seconds are medians of
the rounds. `ratio`: the rate over that of the reference path with the same encoding; `of_none`: over no positions with its fastest kernel, which
is what an encoding costs. `auto`: what config.model.attention='auto' takes, and why. `step_mb`: temporaries of the compiled program.
"""
import concurrent.futures
import json
import statistics
import time

import jax
from absl import flags
from flax import linen as nn

from benchmarks.rows import random_rows
from configs import base
from model import kernels
from model.config import resolve
from model.errors import ModelError
from model.transformer import Transformer
from train import door, losses

_VOCABULARY = 4096


def built(f, positions: str, kernel: str) -> Transformer:
    c = base.get_config().model
    c.update(width=f.width, num_layers=f.layers, num_heads=f.heads, num_kv_heads=f.heads, positions=positions, attention=kernel, dtype='bfloat16')
    return Transformer(resolve(c, _VOCABULARY, f.length))


def compiled(model: Transformer, batch: dict):
    """The program and its parameters."""
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), *(batch[k][:1, :1] for k in ('tokens', 'positions', 'segment_ids')))['params'])

    def total(p, b):
        logits, _ = model.apply({'params': p}, b['tokens'], b['positions'], b['segment_ids'])
        return losses.weighted_token_loss(logits, b)[0]
    return jax.jit(jax.value_and_grad(total)).lower(params, batch).compile(), params


def measure(f, names: list[str], asked: list[str]) -> dict:
    """`names`: encodings; `asked`: kernels."""
    batch = jax.device_put(random_rows(_VOCABULARY, f.rows, f.length))
    building, programs, found = {}, {}, {}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for name in names:
            found[name] = {'auto': kernels.paths(built(f, name, 'auto').config), 'refused': {}}
            for kernel in asked:
                try:
                    building[name, kernel] = pool.submit(compiled, built(f, name, kernel), batch)
                except ModelError as error:
                    found[name]['refused'][kernel] = str(error)
    for (name, kernel), future in building.items():
        try:
            program, params = future.result()
            jax.block_until_ready(program(params, batch))
            programs[name, kernel] = program, params
        except Exception as error:                       # whatever a compiler or a kernel raises is a finding
            found[name]['refused'][kernel] = str(error).splitlines()[0][:300]
    seconds = {key: [] for key in programs}
    for _ in range(f.rounds):
        for key, (program, params) in programs.items():
            began = time.perf_counter()
            for _ in range(f.steps):
                out = program(params, batch)
            jax.block_until_ready(out)
            seconds[key].append((time.perf_counter() - began) / f.steps)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    fastest = lambda name: min((s for (n, _), s in median.items() if n == name), default=float('nan'))
    for (name, kernel), s in median.items():
        found[name][kernel] = dict(milliseconds=s * 1e3, tokens_per_second=round(f.rows * f.length / s),
                                   ratio=median.get((name, 'reference'), float('nan')) / s, of_none=fastest('none') / s,
                                   step_mb=round(programs[name, kernel][0].memory_analysis().temp_size_in_bytes / 2**20, 1))
    return found


def main() -> None:
    f = flags.FLAGS
    names = list(dict.fromkeys(['none', *f.positions]))
    print(json.dumps(dict(device=jax.devices()[0].device_kind, jax=jax.__version__, length=f.length, rows=f.rows, width=f.width, layers=f.layers,
                          heads=f.heads, encodings=measure(f, names, f.kernels)), indent=1))


if __name__ == '__main__':
    flags.DEFINE_list('positions', 'rope,alibi,t5,fire,kerple_log,forgetting,pope,windowed_heads,cope', 'Encodings; no positions come with them')
    flags.DEFINE_list('kernels', 'reference,xla,cudnn', 'Of config.model.attention')
    for name, default in dict(length=1024, rows=8, width=512, layers=4, heads=8, steps=10, rounds=3).items():
        flags.DEFINE_integer(name, default, 'Of the model, the batch, or the measuring', lower_bound=1)
    door.run(main)
