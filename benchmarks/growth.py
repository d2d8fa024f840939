"""How do a train step's time and memory grow with the text, the layers and the devices?

    python -m benchmarks.growth --out=benchmarks/results/growth.jsonl
    python -m benchmarks.growth --what=length --most=4096
    python -m benchmarks.growth --quick

A model of the smallest width, in float32. `length`: tokens of the one row, doubled up to --most;
seconds of a step, and the memory that the compiled step takes for temporaries. `depth`: layers,
doubled up to 64, scanned and, up to 16, unrolled; processor seconds of tracing and of compilation.
`devices`: 1 to 8 forced ones along `data` and `fsdp`; bytes of the collectives that the compiled
step names, loops counted, beside what a formula says: along `data` one all-reduce of all gradients.
"""

from absl import flags

from benchmarks import turns
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    flags.DEFINE_list('what', ['length', 'depth', 'devices'], 'What grows')
    options.whole('most', 32768, 'Tokens of the longest text', 1, options.COUNT)
    options.path('out', '', 'A JSON line of each measurement is appended to this file')
    flags.DEFINE_bool('quick', False, 'The same work at the smallest sizes, in a few seconds')
    cli.parse_flags()

import json
import time

import jax
from ml_collections import ConfigDict

from benchmarks.rows import random_rows
from configs import base
from launch.aot import hlo, loop_counts
from model.config import resolve
from model.transformer import Transformer
from runtime.errors import RunError
from train import footprint, mesh as meshes, step as steps
from train.losses import TokenLoss
from train.optimizer import make_optimizer

_VOCABULARY = 64
_WHAT = ('length', 'depth', 'devices')
_DEVICES = 8
_UNROLLED = 16  # layers at most: more take minutes to compile


def build(length: int, layers: int = 1, scan: bool = False, rows: int = 1, **mesh: int):
    """Returns the lowered train step of a tiny model, and what makes its arguments.

    Args:
      length: tokens of a row.
      layers, scan: of the model.
      rows: of the batch.
      mesh: devices along its axes; 1 where not given.
    """
    config = base.get_config()
    sizes = dict(width=32, num_heads=1, num_kv_heads=1, mlp_width=64)
    config.model.update(sizes, num_layers=layers, scan_layers=scan)
    axes = dict(data=1, fsdp=1, tensor=1, context=1) | mesh
    count = 1
    for size in axes.values():
        count *= size
    devices = meshes.make_mesh(ConfigDict(axes), jax.devices()[:count])
    model = Transformer(resolve(config.model, _VOCABULARY, length))
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    abstract, shardings = steps.abstract_state(model, optimizer, devices)
    step = steps.make_step(model, optimizer, TokenLoss(), devices, shardings)
    batch = random_rows(_VOCABULARY, rows, length)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

    def arguments():
        state, _ = steps.init_state(model, optimizer, 0, devices)
        return state, meshes.to_devices(devices, batch, rows)

    return step.lower(abstract, shapes), abstract, arguments


def of_length(length: int) -> dict:
    """Returns seconds of a step on one row, and the megabytes of its temporaries."""
    lowered, _, arguments = build(length)
    compiled = lowered.compile()
    state, batch = arguments()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    memory = compiled.memory_analysis()
    assert memory is not None, 'a device that counts no memory'
    return dict(
        what='length',
        length=length,
        seconds=min(seconds),
        megabytes=memory.temp_size_in_bytes / 1e6,
    )


def of_depth(layers: int, scan: bool) -> dict:
    """Returns the processor seconds in which a step is traced, lowered and compiled."""
    began = time.process_time()
    lowered, _, _ = build(32, layers, scan)
    traced = time.process_time()
    lowered.compile()
    compiled = time.process_time()
    return dict(
        what='depth',
        layers=layers,
        scan=scan,
        trace_seconds=traced - began,
        compile_seconds=compiled - traced,
    )


def of_devices(axis: str, count: int) -> dict:
    """Returns the bytes of a step's collectives on a device, and those that a formula gives.

    Along `data` all gradients are reduced once, in float32, with a few scalars beside them.
    """
    lowered, abstract, _ = build(32, layers=2, scan=True, rows=_DEVICES, **{axis: count})
    program = hlo.parse(lowered.compile().as_text())
    counted = {kind: 0.0 for kind in hlo.COLLECTIVES}
    _count(program, program.entry, 1, counted)
    line: dict = dict(what='devices', axis=axis, devices=count)
    line['counted'] = {kind: size for kind, size in counted.items() if size}
    if axis == 'data':
        line['formula'] = footprint.bytes_per_device(abstract['params']) if count > 1 else 0
    return line


def _count(program, computation, times: int, counted: dict[str, float]) -> None:
    """Adds the bytes of what each collective of a computation reads, as often as it runs."""
    for op in computation.ops:
        kind = op.kind.removesuffix('-start')
        if kind in counted:
            operands = (computation.by_name[name] for name in op.operands)
            counted[kind] += times * sum(s.bytes for operand in operands for s in operand.shapes)
        if op.kind == 'while':
            trips = loop_counts.trips(program, computation, op).count
            _count(program, program.called(op, 'body'), times * trips, counted)
        elif op.kind in ('call', 'conditional'):
            for name in ('to_apply', 'true_computation', 'false_computation'):
                inner = program.called(op, name)
                if inner is not None:
                    _count(program, inner, times, counted)


def main() -> None:
    f = flags.FLAGS
    if unknown := {*f.what} - {*_WHAT}:
        raise RunError(f'--what={unknown.pop()}: expected some of {", ".join(_WHAT)}')
    if 'devices' in f.what:
        jax.config.update('jax_num_cpu_devices', _DEVICES)
    lengths = [length for length in (2**n for n in range(10, 30)) if length <= f.most]
    depths = [1, 2, 4, 8, 16, 32, 64]
    counts = [1, 2, 4, 8]
    if f.quick:
        lengths = [64, 128]
        depths = [1, 2]
        counts = [1, 2]
    measurements = {
        'length': [(of_length, (length,)) for length in lengths],
        'depth': [
            (of_depth, (n, scan))
            for n in depths
            for scan in (True, False)
            if scan or n <= _UNROLLED
        ],
        'devices': [(of_devices, (axis, n)) for axis in ('data', 'fsdp') for n in counts],
    }
    for what in f.what:
        for measure, arguments in measurements[what]:
            line = measure(*arguments)
            print(json.dumps(line), flush=True)
            if f.out:
                turns.keep(f.out, [line])


if __name__ == '__main__':
    cli.run(main)
