"""Compiles the programs of an experiment for an absent slice, and sums them up.

train: the step of train/step.py, which post-training runs too (its rows differ in their values
alone). prefill, decode: of model/generate.py, on one chip, as `apps.generate` runs them. Everything
is shapes: no array is made.
"""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.interpreters import partial_eval
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from data import tokenizer as tokenizers
from launch.aot import cost_model, hlo, topologies
from launch.aot.topologies import Chip
from model import config as model_config, generate, kernels, lora
from model.sampling import Sampling
from model.transformer import Transformer
from runtime import metrics
from runtime.errors import RunError
from train import footprint, step as steps
from train.mesh import AXES, BATCH, check_batch, check_model, make_mesh
from train.objectives import get_objective
from train.optimizer import make_optimizer
from train.preflight import frozen_names

CHAR_PIECES = 256  # counted for a tokenizer of characters, whose size only its text tells


@dataclasses.dataclass
class Compiled:
    """Holds a compiled program.

    Attributes:
      text: the scheduled program.
      peak, temporary: bytes of a device.
      seconds: of the compilation.
    """

    name: str
    text: str
    peak: int
    temporary: int
    seconds: float


class DoesNotFitError(RunError):
    """Tells of a program that needs more memory than a device has.

    `needed`: bytes, where the compiler says so.
    """

    def __init__(self, message: str, needed: float):
        super().__init__(message)
        self.needed = needed


def vocabulary(config) -> int:
    """Returns entries of the embedding.

    Those of the tokenizer that is named, or of the one that would be trained.
    """
    if config.tokenizer.path:
        return tokenizers.load(config.tokenizer.path).vocab_size
    return CHAR_PIECES if config.tokenizer.kind == 'char' else config.tokenizer.vocab_size


def architecture(config) -> model_config.ModelConfig:
    """Returns the model's config, with the vocabulary that it will have."""
    return model_config.resolve(config.model, vocabulary(config), config.data.seq_len)


def slice_mesh(config, devices: list):
    """Returns the config's mesh over all devices of a slice.

    Raises RunError where it is for another number of them.
    """
    mesh = make_mesh(config.mesh, devices)
    if mesh.size != len(devices):
        raise RunError(
            f'config.mesh is {dict(mesh.shape)}: expected sizes whose product is the number of '
            f'devices ({len(devices)}), at most one of them -1'
        )
    return mesh


def with_rows(config, mesh, rows: int):
    """Returns the config with so many rows on each device in each microbatch.

    0: its own batch.
    """
    config = config.copy_and_resolve_references()
    if rows:
        config.data.batch_size = (
            rows * mesh.shape['data'] * mesh.shape['fsdp'] * config.train.accumulation
        )
    return config


def compiled(name: str, lowered, chip: Chip) -> Compiled:
    """Compiles a program.

    Raises DoesNotFitError where the compiler finds no room for it.
    """
    start = time.perf_counter()
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        needed = _bytes_needed(str(error))
        raise DoesNotFitError(
            f'{name}: does not fit: it needs {needed / topologies.GIB:.2f} GiB of the '
            f'{chip.limit / topologies.GIB:.2f} GiB of a {chip.name} device; take fewer rows '
            '(--rows), another config.model.remat or a larger slice (--fit)',
            needed,
        ) from error
    memory = done.memory_analysis()
    return Compiled(
        name,
        program_text(done),
        memory.peak_memory_in_bytes,
        memory.temp_size_in_bytes,
        time.perf_counter() - start,
    )


def program_text(done) -> str:
    """Returns the text of a compiled program, its constants in full: they steer kernels."""
    from jaxlib import _hlo

    options = _hlo.HloPrintOptions()
    options.print_large_constants = True
    modules = done.runtime_executable().hlo_modules()
    return '\n\n'.join(module.to_string(options) for module in modules)


def _bytes_needed(message: str) -> float:
    """Returns the bytes that the compiler's message names; infinite where it names none."""
    used = re.search(r'Used ([\d.]+)([MG]) of|\(([\d.]+)([MG])\) exceeds', message)
    if not used:
        return float('inf')
    size = used[1] or used[3]
    unit = used[2] or used[4]
    return float(size) * (topologies.GIB if unit == 'G' else 2**20)


def under(mesh, function):
    """Returns `function` traced under a mesh.

    By that it knows what it is compiled for (model/kernels.platform).
    """

    def inside(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return inside


def lower_train(config, mesh):
    """Returns the lowered train step, its abstract state, and the model."""
    traced, state, model = trace_train(config, mesh)
    return traced.lower(), state, model


def trace_train(config, mesh):
    """Returns the traced train step, its abstract state, and the model."""
    check_batch(mesh, config.data.batch_size, config.train.accumulation)
    model = Transformer(lora.adapt(architecture(config), config.lora))
    check_model(mesh, model.config, config.data.seq_len, config.train.loss_chunks)

    # The step as train/setup.py makes it, of a state that is shapes alone.
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    frozen = frozen_names(model)
    state, shardings = steps.abstract_state(model, optimizer, mesh, frozen=frozen)
    objective = get_objective(config.train.objective)
    step = steps.make_step(
        model,
        optimizer,
        objective.training_loss(config, model.config),
        mesh,
        shardings,
        steps.StepOptions(config.train.accumulation),
    )

    # A batch of shapes, with ids of the task for the encodings that read them.
    blank = objective.data.blank_batch(config.data)
    if any(encoding.spec.task_ids for encoding in model.config.parts):
        blank['ids'] = blank['positions']
    sharding = NamedSharding(mesh, BATCH)
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        for name, array in blank.items()
    }
    return step.trace(state, batch), state, model


def summary(done: Compiled, chip: Chip, devices: int, slices: int, model_flops: float) -> dict:
    """Returns what a compiled program costs, as numbers; times are predictions (cost_model.py)."""
    program = hlo.parse(done.text)
    estimate = cost_model.predict(program, chip, slices)
    seconds = estimate.seconds
    collectives = sorted(estimate.collectives.items())
    return {
        'peak_bytes': done.peak,
        'limit_bytes': chip.limit,
        'temporary_bytes': done.temporary,
        'model_flops': model_flops,
        'executed_flops': estimate.flops * devices,
        'memory_bytes': estimate.bytes,
        'step_seconds': seconds,
        'bounds': dict(sorted(estimate.bounds.items())),
        'elementwise_seconds': estimate.vector,
        'mfu': model_flops / (seconds * chip.matrix * devices) if seconds else 0.0,
        'collectives': {kind: dataclasses.asdict(moved) for kind, moved in collectives},
        'kernels': dict(estimate.kernels),
        'kernel_seconds': estimate.kernel_seconds,
        'kernels_without_cost': estimate.unknown_kernels,
        'loops': [
            {'loop': loop, 'trips': trips, 'how': how} for loop, trips, how in estimate.loops
        ],
        'compile_seconds': done.seconds,
    }


def train(
    config, chip: Chip, devices: list, slices: int = 1, rows: int = 0, squares: bool = True
) -> dict:
    """Returns the summary of the train step.

    `squares`: look for [T,T] buffers too, which may take a second, small compilation.
    """
    mesh = slice_mesh(config, devices)
    config = with_rows(config, mesh, rows)
    lowered, state, model = lower_train(config, mesh)
    done = compiled('train', lowered, chip)
    flops = footprint.step_flops(steps.all_params(state), config, model.config)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        paths = kernels.describe_kernels(model.config, mesh.shape['context'])
    costs = summary(done, chip, mesh.size, slices, flops)
    replicas = mesh.shape['data'] * mesh.shape['fsdp']
    return {
        **costs,
        'mesh': {axis: mesh.shape[axis] for axis in AXES},
        'rows_a_device': config.data.batch_size // (replicas * config.train.accumulation),
        'accumulation': config.train.accumulation,
        'batch_size': config.data.batch_size,
        'seq_len': config.data.seq_len,
        'remat': config.model.remat,
        'state_bytes': footprint.state_bytes(state),
        'attention': paths,
        'fused_attention': bool(costs['kernels']),
        'square_buffers': _squares(config, mesh, model, done) if squares else None,
    }


def _squares(config, mesh, model, done: Compiled) -> list[str]:
    """Returns arrays [.., T, T] that the step holds in memory.

    Where T is also another dimension (128: lanes), shapes do not tell: then all that the step
    computes with, kernels and what nothing needs left out, is looked through at a length that no
    other dimension has.
    """
    length = config.data.seq_len // mesh.shape['context']
    c = model.config
    others = {
        c.width,
        c.mlp_width,
        c.vocab_size,
        c.num_heads * c.head_dim,
        c.num_kv_heads * c.head_dim,
        c.num_layers,
        c.head_dim,
        c.num_heads,
        128,
        config.data.batch_size,
        config.data.batch_size // (mesh.shape['data'] * mesh.shape['fsdp']),
    }
    if length not in others:
        return squares(hlo.parse(done.text), length)

    # The next length of whole lanes that is no other dimension.
    lengths = range(length + 128, 8 * length + 1024, 128)
    length = next(each for each in lengths if each not in others)
    config = config.copy_and_resolve_references()
    config.model.max_len = 0
    config.data.seq_len = length * mesh.shape['context']
    return traced_squares(trace_train(config, mesh)[0].jaxpr.jaxpr, length)


def traced_squares(jaxpr, length: int) -> list[str]:
    """Returns shapes with two dimensions of `length` in a traced program, its loops included."""
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    square_shapes = set()
    jaxprs = [jaxpr]
    while jaxprs:
        for equation in jaxprs.pop().eqns:
            # What a kernel holds stays on the chip.
            if equation.primitive.name == 'pallas_call':
                continue
            for variable in equation.outvars:
                if getattr(variable.aval, 'shape', ()).count(length) >= 2:
                    square_shapes.add(variable.aval.str_short())

            # Loops, branches and calls: jaxprs among the parameters.
            parameters = jax.tree.leaves(
                list(equation.params.values()),
                is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr'),
            )
            for value in parameters:
                value = getattr(value, 'jaxpr', value)
                if hasattr(value, 'eqns'):
                    jaxprs.append(value)
    return sorted(square_shapes)


def squares(program: hlo.Program, length: int) -> list[str]:
    """Returns shapes with two dimensions of `length` that operations leave in memory.

    That is outside of fusions and kernels.
    """
    computations = program.computations.values()
    fused = {
        op.attribute('calls')
        for computation in computations
        for op in computation.ops
        if op.kind == 'fusion'
    }
    shapes = [
        shape
        for computation in computations
        if computation.name not in fused
        for op in computation.ops
        if op.kind not in hlo.FREE
        for shape in op.shapes
        if shape.dims.count(length) >= 2
    ]
    return sorted({f'{shape.dtype}[{",".join(map(str, shape.dims))}]' for shape in shapes})


def generation(  # noqa: PLR0913  (each is a flag, but the last)
    config,
    chip: Chip,
    device,
    name: str,
    batch: int,
    context: int,
    weights: str = 'as_computed',
    chunk: int = 32,
) -> dict:
    """Returns the summary of prefill or decode, parameters in the computation's type.

    prefill is of half of the context, decode of `chunk` tokens in one program: its figures are of
    the whole chunk; `token_seconds` and `token_bytes` are of one token of all rows.
    """
    # The model as `apps.generate` loads it, on a mesh of one device.
    c = dataclasses.replace(architecture(config), scan_layers=False, remat='none')
    context = context or c.max_len
    model = Transformer(dataclasses.replace(c, max_len=max(c.max_len, context)))
    mesh = Mesh(np.asarray([[[[device]]]]), AXES)
    here = NamedSharding(mesh, P())

    def put(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

    def init():
        one = jnp.ones((1, 1), jnp.int32)
        variables = model.init(jax.random.key(0), one, one * 0, one, one)
        return generate.narrow_weights(model, nn.meta.unbox(variables['params']), weights)[1]

    def prefill(params, tokens, lengths):
        return generate.prefill.__wrapped__(model, params, tokens, lengths, context)

    def decode(params, state, sampling):
        end = generate.end_ids((0,))
        return generate.decode.__wrapped__(model, params, state, sampling, chunk, chunk, end)

    # Arguments: weights, prompts of half of the context, and the state that they leave.
    params = put(jax.eval_shape(init))
    prompt = max(16, context // 2 // 16 * 16)
    tokens_BxT = jax.ShapeDtypeStruct((batch, prompt), jnp.int32)
    lengths_B = jax.ShapeDtypeStruct((batch,), jnp.int32)
    prompts = put((tokens_BxT, lengths_B))
    prefill = under(mesh, prefill)
    state = put(jax.eval_shape(prefill, params, *prompts))

    if name == 'prefill':
        lowered = jax.jit(prefill).lower(params, *prompts)
        tokens = prompt
    else:
        state['key'] = put(jax.eval_shape(lambda: jax.random.key(0)))
        sampling = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, dataclasses.asdict(Sampling())))
        donating = jax.jit(under(mesh, decode), donate_argnums=1)
        lowered = donating.lower(params, state, put(sampling))
        tokens = chunk
    done = compiled(name, lowered, chip)

    # The forward pass is a third of forward and backward.
    forward = metrics.flops_per_token(params, c, context // 2) / 3
    costs = {
        **summary(done, chip, 1, 1, forward * batch * tokens),
        'batch': batch,
        'context': context,
        'weight_bytes': footprint.bytes_per_device(params),
        'cache_bytes': footprint.bytes_per_device(state['cache']),
    }
    if name == 'decode':
        costs['token_seconds'] = costs['step_seconds'] / chunk
        costs['token_bytes'] = costs['memory_bytes'] / chunk
    return costs
