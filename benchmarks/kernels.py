"""Which attention is fast here, for each encoding?

    python -m benchmarks.kernels --length=2048 --rows=8 > kernels.jsonl

Measures a training step's loss and gradients with every kernel that can carry the encoding: a model
in bfloat16 with one document a row, on random tokens, without the optimizer. A line of JSON for
each encoding, as soon as it is measured: its kernels take turns in one process, with the fastest of
no positions; seconds are medians of the rounds.

ratio: the rate over that of the reference path with the same encoding.
of_none: the rate over no positions with that kernel, which is what an encoding costs.
auto: what config.model.attention='auto' takes, and why.
step_mb: temporaries of the compiled program.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    flags.DEFINE_list(
        'positions',
        'rope,alibi,t5,fire,kerple_log,forgetting,pope,windowed_heads,cope',
        'Encodings; no positions come with them',
    )
    flags.DEFINE_list('kernels', 'reference,xla,cudnn', 'Of config.model.attention')
    for name, default in dict(
        length=1024, rows=8, width=512, layers=4, heads=8, steps=10, rounds=3
    ).items():
        options.whole(name, default, 'Of the model, the batch, or the measuring', 1, options.COUNT)
    cli.parse_flags()

import concurrent.futures
import json
import statistics
import time
from collections.abc import Iterator

import jax
from flax import linen as nn

from benchmarks.rows import random_rows
from configs import base
from model import kernels, loss
from model.config import resolve
from model.errors import ModelError
from model.transformer import Transformer

_VOCABULARY = 4096


def built(f, positions: str, kernel: str) -> Transformer:
    """Returns a model of the flags `f`, with this encoding and kernel."""
    c = base.get_config().model
    c.update(
        width=f.width,
        num_layers=f.layers,
        num_heads=f.heads,
        num_kv_heads=f.heads,
        positions=positions,
        attention=kernel,
        dtype='bfloat16',
    )
    return Transformer(resolve(c, _VOCABULARY, f.length))


def initialized(model: Transformer, batch: dict) -> dict:
    """Returns parameters, which are the same with each kernel."""
    token = [batch[field][:1, :1] for field in ('tokens', 'positions', 'segment_ids')]
    return nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), *token)['params'])


def compiled(model: Transformer, params: dict, batch: dict):
    """Returns the program, (params, batch) -> loss and gradients, when it has run once."""

    def total(p, b):
        logits, _ = model.apply({'params': p}, b['tokens'], b['positions'], b['segment_ids'])
        return loss.weighted_token_loss(logits, b)[0]

    program = jax.jit(jax.value_and_grad(total)).lower(params, batch).compile()
    jax.block_until_ready(program(params, batch))
    return program


def seconds_of_a_step(f, programs: dict, batch: dict) -> dict[str, float]:
    """Returns the median seconds of each program with its parameters; they take turns."""
    seconds = {key: [] for key in programs}
    for _ in range(f.rounds):
        for key, (program, params) in programs.items():
            began = time.perf_counter()
            for _ in range(f.steps):
                out = program(params, batch)
            jax.block_until_ready(out)
            seconds[key].append((time.perf_counter() - began) / f.steps)
    return {key: statistics.median(values) for key, values in seconds.items()}


def measure(f, names: list[str], asked: list[str]) -> Iterator[dict]:
    """Yields the figures of each encoding, as soon as they are there.

    `names`: encodings, of which the first is `none`; `asked`: kernels.
    """
    batch = jax.device_put(random_rows(_VOCABULARY, f.rows, f.length))
    none = {}  # the fastest program of no positions, which takes turns with the others
    for name in names:
        models: dict = {}
        building: dict = {}
        programs: dict = {}
        refused: dict[str, str] = {}
        for kernel in asked:
            try:
                models[kernel] = built(f, name, kernel)
            except ModelError as error:
                refused[kernel] = str(error)
        if models:
            params = initialized(next(iter(models.values())), batch)
        with concurrent.futures.ThreadPoolExecutor() as pool:  # which ends before anything is timed
            for kernel, model in models.items():
                building[kernel] = pool.submit(compiled, model, params, batch)
        for kernel, future in building.items():
            try:
                programs[kernel] = future.result(), params
            except Exception as error:  # whatever a compiler or a kernel raises is a finding
                refused[kernel] = str(error).splitlines()[0][:300]
        seconds = seconds_of_a_step(f, none | programs, batch)
        if not none and seconds:
            fastest = min(seconds, key=seconds.get)
            none = {'none': programs[fastest]}
            seconds['none'] = seconds[fastest]
        figures = {}
        for kernel, (program, _) in programs.items():
            took = seconds[kernel]
            figures[kernel] = dict(
                milliseconds=took * 1e3,
                tokens_per_second=round(f.rows * f.length / took),
                ratio=seconds['reference'] / took if 'reference' in seconds else None,
                of_none=seconds['none'] / took if 'none' in seconds else None,
                step_mb=round(program.memory_analysis().temp_size_in_bytes / 2**20, 1),
            )
        yield {
            'encoding': name,
            'auto': kernels.describe_kernels(built(f, name, 'auto').config),
            'refused': refused,
            **figures,
        }


def main() -> None:
    f = flags.FLAGS
    names = list(dict.fromkeys(['none', *f.positions]))
    setting = dict(
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
        length=f.length,
        rows=f.rows,
        width=f.width,
        layers=f.layers,
        heads=f.heads,
    )
    print(json.dumps(setting), flush=True)
    for figures in measure(f, names, f.kernels):
        print(json.dumps(figures), flush=True)


if __name__ == '__main__':
    cli.run(main)
