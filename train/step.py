"""The train step: one pure function (state, batch) -> (state, metrics), the same on one CPU and on a pod.

One outermost shard_map is manual over `data` and `context`; `fsdp` and `tensor` stay automatic and follow the table of
logical axes. Gradients are summed over microbatches first and cross `data` and `context` once, in one psum.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from model.loss import choose_chunks, loss_in_chunks
from model.transformer import Transformer, make_row_keys, output_matrix, unembed
from runtime.master import widened
from train import optimizer as optimizers
from train.mesh import BATCH, MANUAL, state_shardings
from train.objectives import Contrastive

State = dict  # {'step': int32, 'params', 'opt_state', 'rng': PRNG key data}, and 'norms' [2] where spikes are measured

_OF_BATCH = 2**32 - 1  # the number, which no row has, of the key of a whole batch
_SEEN = 20  # steps whose gradient norms are in the running mean before one is judged by it


def init_state(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    seed: int | jax.Array,
    mesh: Mesh,
    norms: bool = False,
) -> tuple[State, State]:
    """A fresh state, made where it lies, and its shardings. `norms`: with what spikes are measured by."""
    _, shardings = abstract_state(model, optimizer, mesh, norms)
    make = jax.jit(
        lambda key: nn.meta.unbox(_init(model, optimizer, key, norms)), out_shardings=shardings
    )
    return make(_key(seed)), shardings


def abstract_state(
    model: Transformer, optimizer: optax.GradientTransformation, mesh: Mesh, norms: bool = False
) -> tuple[State, State]:
    """Shapes and types of a state, each with its sharding, and the shardings alone. Nothing is computed: the mesh's devices need not be here."""
    boxed = jax.eval_shape(lambda: _init(model, optimizer, _key(0), norms))
    shardings = state_shardings(mesh, boxed)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        nn.meta.unbox(boxed),
        shardings,
    ), shardings


def _init(model: Transformer, optimizer, key_data: jax.Array, norms: bool) -> State:
    init_key, rng = jax.random.split(jax.random.wrap_key_data(key_data))
    token = jnp.ones((1, 1), jnp.int32)
    params = model.init(init_key, token, token * 0, token, token)['params']
    return {
        'step': jnp.zeros((), jnp.int32),
        'params': params,
        'opt_state': optimizers.init(optimizer, params),
        'rng': jax.random.key_data(rng),
        **({'norms': jnp.zeros(2)} if norms else {}),
    }


def _key(seed: int | jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl='threefry2x32'))


def make_step(
    model: Transformer,
    optimizer,
    loss,
    mesh: Mesh,
    shardings: State,
    accumulation: int = 1,
    loss_chunks: int = 0,
    spike: float = 0.0,
    skip: bool = False,
):
    """The jitted train step, its state donated.

    Args:
      loss: (logits, batch) -> (sum to minimise, sums to report, 'nll' and 'weight' among them); or a `Contrastive` one, of the whole batch.
      accumulation: microbatches that each device's rows are cut into; of a contrastive loss, chunks that are embedded one after the other.
      loss_chunks: parts of the columns whose logits are held at one time; 0: as many as memory asks for.
      spike: a gradient norm above this many times its running mean is a spike, as one that is not finite; 0: no mean is kept.
      skip: leave parameters and optimizer as they are in a step with a spike.
    Returns:
      (state, batch) -> (state, metrics): float32 scalars loss (mean over weighted targets), weight, grad_norm, and with `spike` or `skip`
      spike, 0 or 1.
    """
    manual, model = _manual_axes(mesh), model.clone(training=True)

    def local_step(state: State, batch: dict, rows: jax.Array) -> tuple[State, dict]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state['rng']), state['step'])

        def total(params, micro):
            batch, rows = micro
            of_batch = jax.random.fold_in(key, _OF_BATCH)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows), of_batch
            return _loss(model, loss, params, batch, mesh, loss_chunks, keys, accumulation)

        def gradients(params, micro):
            (_, sums), grads = jax.value_and_grad(total, has_aux=True)(params, micro)
            return sums, jax.tree.map(_as_stored, widened(grads), shardings['params'])

        params = state['params']
        if accumulation == 1 or isinstance(loss, Contrastive):
            sums, grads = gradients(params, (batch, rows))
        else:
            # Rows are dealt to microbatches like cards, so that each microbatch stays spread over `fsdp`.
            deal = lambda x: jnp.swapaxes(
                x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]), 0, 1
            )
            micros = jax.tree.map(deal, (batch, rows))

            def add(grads, micro):
                # The barrier ties the weights to the microbatch: else XLA gathers all of them over `fsdp` once, before the loop, and keeps them.
                sums, more = gradients(*jax.lax.optimization_barrier((params, micro)))
                return jax.tree.map(jnp.add, grads, more), sums

            zero = jax.tree.map(
                lambda x, s: _as_stored(jnp.zeros_like(x), s),
                widened(state['params']),
                shardings['params'],
            )
            grads, sums = jax.lax.scan(add, zero, micros)
            sums = jax.tree.map(lambda x: x.sum(0), sums)
        sums, grads = _summed((sums, grads), manual)
        weight = jnp.maximum(sums['weight'], 1)
        grads = jax.tree.map(lambda g: g / weight, grads)
        moved, opt_state = optimizers.update(optimizer, grads, state['opt_state'], state['params'])
        new = {**state, 'step': state['step'] + 1, 'params': moved, 'opt_state': opt_state}
        values = {
            'loss': sums['nll'] / weight,
            'weight': sums['weight'],
            'grad_norm': optax.global_norm(grads),
        }
        if spike or skip:
            spiked, new['norms'] = _spiked(values, state.get('norms'), spike)
            values['spike'] = spiked.astype(jnp.float32)
            if skip:
                new |= {
                    part: jax.tree.map(
                        lambda x, old: jnp.where(spiked, old, x), new[part], state[part]
                    )
                    for part in ('params', 'opt_state')
                }
        return {name: part for name, part in new.items() if part is not None}, values

    def step(state: State, batch: dict) -> tuple[State, dict]:
        return _mapped(local_step, mesh, (P(), 'rows and time', 'rows'), (P(), P()))(
            state, batch, _rows(batch)
        )

    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, P())),
    )


def _spiked(
    values: dict, norms: jax.Array | None, factor: float
) -> tuple[jax.Array, jax.Array | None]:
    """Whether a step is a spike, and [running mean of the gradient norm of those that were none, their number] with this one in it."""
    finite = jnp.isfinite(values['loss']) & jnp.isfinite(values['grad_norm'])
    if norms is None:
        return ~finite, None
    mean, seen = norms
    spiked = ~finite | (seen >= _SEEN) & (values['grad_norm'] > factor * mean)
    of_this = jnp.where(seen > 0, 0.98 * mean + 0.02 * values['grad_norm'], values['grad_norm'])
    return spiked, jnp.where(spiked, norms, jnp.stack([of_this, seen + 1]))


def model_inputs(batch: dict) -> tuple:
    """What the model sees of a batch, in the order of its arguments. `ids` are there where the data gives position ids."""
    return batch['tokens'], batch['positions'], batch['segment_ids'], batch.get('ids')


def _loss(
    model: Transformer,
    loss,
    params,
    batch: dict,
    mesh: Mesh,
    loss_chunks: int,
    keys: tuple,
    accumulation: int = 1,
) -> tuple[jax.Array, dict]:
    """The loss of a batch, its logits in chunks where they would be large. `keys`: PRNG keys of the
    rows [B] and of the batch, or None."""
    row_keys, batch_key = keys
    if isinstance(loss, Contrastive):
        return loss(model, params, batch, row_keys, _manual_axes(mesh), accumulation)
    hidden, _ = model.apply(
        {'params': params},
        *model_inputs(batch),
        logits=False,
        row_keys=row_keys,
        batch_key=batch_key,
    )
    rows, columns = batch['tokens'].shape
    parts = mesh.shape['fsdp'] * (
        mesh.shape['tensor'] if not model.config.vocab_size % mesh.shape['tensor'] else 1
    )
    chunks = choose_chunks(
        columns, 4 * rows * columns * model.config.vocab_size // parts, loss_chunks
    )
    output = output_matrix(model.config, params)  # gathered once for all chunks
    return loss_in_chunks(
        loss, lambda x: unembed(x, output, model.config.tied), hidden, batch, chunks
    )


def _as_stored(gradient: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Cut over `fsdp` and `tensor` as its parameter is: no device holds a whole gradient between microbatches."""
    return (
        jax.lax.with_sharding_constraint(gradient, sharding.spec)
        if any(sharding.spec)
        else gradient
    )


def make_eval_step(
    model: Transformer,
    loss,
    mesh: Mesh,
    shardings: State,
    loss_chunks: int = 0,
    accumulation: int = 1,
):
    """(params, batch, number of its first row in the evaluation) -> the loss's sums over the whole batch; nothing is random but ids that an
    encoding draws at test, too. `accumulation`: see `make_step`, for a contrastive loss."""
    manual = _manual_axes(mesh)

    def local_sums(params, batch, rows):
        return _summed(
            _loss(
                model,
                loss,
                params,
                batch,
                mesh,
                loss_chunks,
                (make_row_keys(rows), None),
                accumulation,
            )[1],
            manual,
        )

    def sums(params, batch, first):
        return _mapped(local_sums, mesh, (P(), 'rows and time', 'rows'), P())(
            params, batch, first + _rows(batch)
        )

    return jax.jit(
        sums,
        out_shardings=NamedSharding(mesh, P()),
        in_shardings=(shardings['params'], NamedSharding(mesh, BATCH), None),
    )


def _rows(batch: dict) -> jax.Array:
    """Numbers of the rows of the global batch: what is random in a row is so on any mesh."""
    return jnp.arange(len(next(iter(batch.values()))))


def _manual_axes(mesh: Mesh) -> tuple[str, ...]:
    """`data` and `context` where they are cut: XLA's partitioner fails on a sum over manual axes that all have size 1."""
    return tuple(a for a in MANUAL if mesh.shape[a] > 1)


def _mapped(function, mesh: Mesh, in_specs: tuple, out_specs):
    """`function` under the one outermost shard_map; 'rows' and 'rows and time' say how an argument is cut."""
    manual = _manual_axes(mesh)
    if not manual:

        def inside(*args):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args)

        return inside
    data, context = (a if a in manual else None for a in MANUAL)
    named = {'rows': P(data), 'rows and time': P(data, context)}
    in_specs = tuple(named[s] if isinstance(s, str) else s for s in in_specs)
    return jax.shard_map(
        function,
        mesh=mesh,
        axis_names=set(manual),
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
    )


def _summed(tree, axes: tuple[str, ...]):
    return jax.lax.psum(tree, axes) if axes else tree
