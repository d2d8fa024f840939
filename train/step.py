"""The train step: one pure function (state, batch) -> (state, metrics).

It is the same on one CPU and on a pod. One outermost shard_map is manual over `data` and `context`;
`fsdp` and `tensor` stay automatic and follow the table of logical axes (model/sharding.py).
Gradients are summed over microbatches first and cross `data` and `context` once, in one psum.

What is minimised is a `Loss` (train/losses.py), which an objective gives (train/objectives.py).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from ml_collections import ConfigDict

from model import lora
from model.sharding import EXCHANGING
from model.transformer import Transformer, make_row_keys
from runtime.master import widen
from train import optimizer as optimizers
from train.losses import Loss, LossContext, Sums
from train.mesh import BATCH, MANUAL, state_shardings

# {'step': int32, 'params', 'opt_state', 'rng': PRNG key data}; where a mean of gradient norms is
# kept 'norms', float32 [2]: the mean and how many steps are in it; and where not all parameters are
# trained 'frozen', the others, of which checkpoints hold nothing.
State = dict[str, Any]

_WHOLE_BATCH = 2**32 - 1  # stands for a row in the key of the whole batch; no row has it
_SEEN = 20  # steps whose gradient norms are in the running mean before one is judged by it
_MEAN_DECAY = 0.98


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a step is taken.

    accumulation: microbatches that each device's rows are cut into; for a loss that takes the whole
      batch, chunks that it goes through one after the other.
    spike: a gradient norm above this many times its running mean is a spike, as one that is not
      finite; 0: no mean is kept.
    skip: leave parameters and optimizer as they are in a step with a spike.
    """

    accumulation: int = 1
    spike: float = 0.0
    skip: bool = False

    @classmethod
    def from_config(cls, config: ConfigDict) -> 'StepOptions':
        """Returns those of the `train` part of an experiment."""
        return cls(config.accumulation, config.spike, config.on_spike == 'skip')


# --- The state ------------------------------------------------------------------------------------


def init_state(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    seed: int | jax.Array,
    mesh: Mesh,
    track_grad_norm: bool = False,
    frozen: frozenset[str] = frozenset(),
    given: frozenset[str] = frozenset(),
) -> tuple[State, State]:
    """Returns a fresh state, made where it lies on the mesh, and its shardings.

    Args:
      model, optimizer, seed, mesh: any.
      track_grad_norm: with a running mean of the gradient norm, by which spikes are told.
      frozen: paths of the parameters that are not trained, 'layer_0/attention/query/kernel'. They
        are another run's: the shardings have their places, and whoever has them adds them.
      given: paths of those that the caller puts in. They are 0 here and not drawn: to compile the
        draws of one array takes a third of a second on a CPU.
    """
    _, shardings = abstract_state(model, optimizer, mesh, track_grad_norm, frozen)

    fresh = {name: part for name, part in shardings.items() if name != 'frozen'}

    def make(key_data):
        state = _init(model, optimizer, key_data, track_grad_norm, frozen, given)
        return nn.meta.unbox({name: state[name] for name in fresh})

    # Jitted with its shardings, so that no device ever holds the whole state.
    return jax.jit(make, out_shardings=fresh)(_key_data(seed)), shardings


def abstract_state(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    track_grad_norm: bool = False,
    frozen: frozenset[str] = frozenset(),
) -> tuple[State, State]:
    """Returns the shapes and dtypes of a state, each with its sharding, and the shardings alone.

    Nothing is computed: the mesh's devices need not be here.
    """
    boxed = jax.eval_shape(lambda: _init(model, optimizer, _key_data(0), track_grad_norm, frozen))
    shardings = state_shardings(mesh, boxed)

    def with_sharding(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(with_sharding, nn.meta.unbox(boxed), shardings), shardings


def _init(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    key_data: jax.Array,
    track_grad_norm: bool,
    frozen: frozenset[str],
    given: frozenset[str] = frozenset(),
) -> State:
    """Returns a fresh state whose parameters are boxed with their logical axes."""
    init_key, rng = jax.random.split(jax.random.wrap_key_data(key_data))

    # One token is enough: no parameter's shape depends on the batch.
    token = jnp.ones((1, 1), jnp.int32)
    whole = model.init(init_key, token, token * 0, token, token)['params']

    def draw(keys, x):
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        return jnp.zeros_like(x) if '/'.join(names) in given else x

    whole = jax.tree_util.tree_map_with_path(draw, whole)
    params, held = lora.split(whole, frozen)

    state = {
        'step': jnp.zeros((), jnp.int32),
        'params': params,
        'opt_state': optimizers.init(optimizer, params),
        'rng': jax.random.key_data(rng),
    }
    if track_grad_norm:
        state['norms'] = jnp.zeros(2)
    if frozen:
        state['frozen'] = held
    return state


def all_params(state: State) -> Any:
    """Returns the parameters of a state, or their shapes or shardings, trained or not."""
    return lora.join(state['params'], state.get('frozen'))


def _key_data(seed: int | jax.Array) -> jax.Array:
    """Returns a PRNG key as the uint32 that checkpoints hold, of one kind on every platform."""
    return jax.random.key_data(jax.random.key(seed, impl='threefry2x32'))


# --- The step -------------------------------------------------------------------------------------


def make_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    mesh: Mesh,
    shardings: State,
    options: StepOptions = StepOptions(),
) -> Callable[[State, dict], tuple[State, Sums]]:
    """Returns the jitted train step, its state donated.

    Args:
      model: any; it is trained with its dropout on.
      optimizer: of train/optimizer.py.
      loss: what is minimised.
      mesh: of all devices, as `make_mesh` makes it.
      shardings: of the state, as `init_state` returns them.
      options: microbatches, and what to do about spikes.
    Returns:
      (state, batch) -> (state, metrics): float32 scalars loss (mean over weighted targets), weight,
      grad_norm, and with `options.spike` or `options.skip` spike, 0 or 1.
    """
    manual_axes = _manual_axes(mesh)
    model = model.clone(training=True)
    accumulation = options.accumulation

    def gradients(key, params, frozen, micro):
        """Returns a microbatch's sums, and float32 gradients that lie as their parameters do."""
        batch, rows = micro

        def total(params):
            context = LossContext(
                mesh,
                manual_axes,
                accumulation,
                row_keys=jax.vmap(jax.random.fold_in, (None, 0))(key, rows),
                batch_key=jax.random.fold_in(key, _WHOLE_BATCH),
            )
            return loss(model, lora.join(params, frozen), batch, context)

        (_, sums), grads = jax.value_and_grad(total, has_aux=True)(params)
        return sums, jax.tree.map(_as_stored, widen(grads), shardings['params'])

    def local_step(state: State, batch: dict, rows: jax.Array) -> tuple[State, Sums]:
        """Takes the step of one device, on its part of the batch along the manual axes."""
        params = state['params']
        frozen = state.get('frozen')

        # What is random in a row depends on seed, step and the row's number, on any mesh.
        key = jax.random.fold_in(jax.random.wrap_key_data(state['rng']), state['step'])

        if accumulation == 1 or loss.takes_whole_batch:
            sums, grads = gradients(key, params, frozen, (batch, rows))
        else:
            sums, grads = _accumulate(
                functools.partial(gradients, key),
                params,
                frozen,
                (batch, rows),
                accumulation,
                shardings['params'],
            )

        # The only exchange between devices of the manual axes: sums over their parts. Losses are
        # sums until here, so that the mean is over all targets, wherever they lie.
        sums, grads = _summed((sums, grads), manual_axes)
        weight = jnp.maximum(sums['weight'], 1)
        grads = jax.tree.map(lambda g: g / weight, grads)

        new_params, opt_state = optimizers.update(optimizer, grads, state['opt_state'], params)
        new = {**state, 'step': state['step'] + 1, 'params': new_params, 'opt_state': opt_state}
        metrics = {
            'loss': sums['nll'] / weight,
            'weight': sums['weight'],
            'grad_norm': optax.global_norm(grads),
        }
        if options.spike or options.skip:
            new = _watch_for_spikes(state, new, metrics, options)
        return new, metrics

    def step(state: State, batch: dict) -> tuple[State, Sums]:
        mapped = _mapped(local_step, mesh, (P(), 'rows and time', 'rows'), (P(), P()))
        return mapped(state, batch, _row_numbers(batch))

    # Where arguments and results lie: the state as it is stored, the batch cut by rows and time,
    # metrics whole on each device. Donated: the new state takes the memory of the old one.
    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, P())),
        compiler_options=_compiler_options(mesh),
    )


def _accumulate(
    gradients: Callable,
    params: Any,
    frozen: Any,
    batch_and_rows: Any,
    count: int,
    shardings: Any,
) -> tuple[Sums, Any]:
    """Returns the sums and gradients of a batch, from `count` microbatches one after the other.

    Args:
      gradients: (params, frozen, microbatch) -> (sums, gradients).
      shardings: of the parameters.
    """

    # Row i goes to microbatch i % count, so that each stays spread over `fsdp`.
    def deal(x):
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    def add(grads, micro):
        # The barrier ties the weights to the microbatch: else XLA gathers all of them over `fsdp`
        # once, before the loop, and keeps them.
        sums, more = gradients(*jax.lax.optimization_barrier((params, frozen, micro)))
        return jax.tree.map(jnp.add, grads, more), sums

    def zeros_like(x, sharding):
        return _as_stored(jnp.zeros_like(x), sharding)

    zero = jax.tree.map(zeros_like, widen(params), shardings)
    grads, sums = jax.lax.scan(add, zero, jax.tree.map(deal, batch_and_rows))
    return jax.tree.map(lambda x: x.sum(0), sums), grads


def make_eval_step(
    model: Transformer, loss: Loss, mesh: Mesh, shardings: State, accumulation: int = 1
) -> Callable[[Any, dict, int], Sums]:
    """Returns the jitted function that measures a batch without learning from it.

    It maps (params, batch, number of its first row in the evaluation) to the loss's sums over the
    whole batch. Nothing is random but ids that an encoding draws at test, too. `accumulation`: as
    in `StepOptions`, for a loss that takes the whole batch.
    """
    manual_axes = _manual_axes(mesh)

    def local_sums(params, batch, rows):
        context = LossContext(mesh, manual_axes, accumulation, row_keys=make_row_keys(rows))
        _, sums = loss(model, params, batch, context)
        return _summed(sums, manual_axes)

    def sums(params, batch, first):
        mapped = _mapped(local_sums, mesh, (P(), 'rows and time', 'rows'), P())
        return mapped(params, batch, first + _row_numbers(batch))

    return jax.jit(
        sums,
        out_shardings=NamedSharding(mesh, P()),
        in_shardings=(all_params(shardings), NamedSharding(mesh, BATCH), None),
    )


# --- Spikes ---------------------------------------------------------------------------------------


def _watch_for_spikes(old: State, new: State, metrics: Sums, options: StepOptions) -> State:
    """Returns the new state as it is after looking for a spike, which is put into `metrics`."""
    is_spike, norms = _judge(metrics, old.get('norms'), options.spike)
    metrics['spike'] = is_spike.astype(jnp.float32)
    if norms is not None:
        new = {**new, 'norms': norms}
    if not options.skip:
        return new

    def keep_old_if_spike(new_value, old_value):
        return jnp.where(is_spike, old_value, new_value)

    kept = {
        part: jax.tree.map(keep_old_if_spike, new[part], old[part])
        for part in ('params', 'opt_state')
    }
    return {**new, **kept}


def _judge(
    metrics: Sums, norms: jax.Array | None, factor: float
) -> tuple[jax.Array, jax.Array | None]:
    """Returns bool whether a step is a spike, and `norms` with this step's in it.

    `norms`: [running mean of the gradient norms of steps that were none, their number], or None.
    """
    norm = metrics['grad_norm']
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(norm)
    if norms is None:
        return ~finite, None

    # A mean of few steps says little, and the norms of the first ones fall quickly.
    mean, seen = norms
    is_spike = ~finite | ((seen >= _SEEN) & (norm > factor * mean))

    # A spike does not move the mean that it was judged by.
    moved = jnp.where(seen > 0, _MEAN_DECAY * mean + (1 - _MEAN_DECAY) * norm, norm)
    return is_spike, jnp.where(is_spike, norms, jnp.stack([moved, seen + 1]))


# --- On the mesh ----------------------------------------------------------------------------------


def _as_stored(gradient: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Cuts a gradient over `fsdp` and `tensor` as its parameter is.

    So no device holds a whole one between microbatches.
    """
    if not any(sharding.spec):
        return gradient
    return jax.lax.with_sharding_constraint(gradient, sharding.spec)


def _row_numbers(batch: dict) -> jax.Array:
    """Returns int32 [B], the rows' places in the global batch."""
    return jnp.arange(len(next(iter(batch.values()))))


def _manual_axes(mesh: Mesh) -> tuple[str, ...]:
    """Returns those of `data` and `context` that are cut.

    XLA's partitioner fails on a sum over manual axes that all have size 1.
    """
    return tuple(axis for axis in MANUAL if mesh.shape[axis] > 1)


def _compiler_options(mesh: Mesh) -> dict[str, bool] | None:
    """Returns what the step asks of XLA: on some TPUs, that gradients travel meanwhile."""
    kind = mesh.devices.flat[0].device_kind
    if not kind.startswith(EXCHANGING) or mesh.shape['fsdp'] == 1:
        return None
    return {'xla_tpu_enable_async_all_to_all': True}


def _mapped(function: Callable, mesh: Mesh, in_specs: tuple, out_specs: Any) -> Callable:
    """Returns `function` under the one outermost shard_map.

    'rows' and 'rows and time' in `in_specs` say how an argument is cut.
    """
    manual_axes = _manual_axes(mesh)
    if not manual_axes:

        def inside(*args):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args)

        return inside

    data, context = (axis if axis in manual_axes else None for axis in MANUAL)
    specs = {'rows': P(data), 'rows and time': P(data, context)}
    return jax.shard_map(
        function,
        mesh=mesh,
        axis_names=set(manual_axes),
        in_specs=tuple(specs[s] if isinstance(s, str) else s for s in in_specs),
        out_specs=out_specs,
        check_vma=False,
    )


def _summed(tree: Any, axes: tuple[str, ...]) -> Any:
    """Returns sums over the devices of the manual axes."""
    return jax.lax.psum(tree, axes) if axes else tree
