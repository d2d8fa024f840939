"""Says which mesh axis each named dimension lies on, in one table; and cuts time.

`data` and `context` are manual inside the train step (train/step.py), where a device sees only its
own part; `fsdp` and `tensor` are automatic: arrays look whole, and XLA moves what it needs.
"""

import functools
from collections.abc import Callable
from typing import cast

import jax
from flax import linen as nn
from jax.sharding import PartitionSpec as P

RULES = {  # logical axis -> mesh axis; a name not here is not sharded
    'batch': 'fsdp',
    'embed': 'fsdp',  # of parameters: width
    'vocab': 'tensor',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'mlp': 'tensor',
}
CONTEXT = 'context'
EXCHANGING = ('TPU v4', 'TPU v5')  # kinds of devices, see `exchanges_gradients`


def spec(mesh, shape: tuple[int, ...], names: tuple[str | None, ...]) -> P:
    """Returns the PartitionSpec of an array whose dimensions have these logical names.

    A dimension that cannot be cut evenly is not cut.
    """
    axes = []
    for name, size in zip(names, shape):
        axis = RULES.get(name) if name else None
        is_cut = axis is not None and not size % mesh.shape.get(axis, 1)
        axes.append(axis if is_cut else None)
    return P(*axes)


def with_axes(init: Callable, axes: tuple[str | None, ...]) -> Callable[..., jax.Array]:
    """Returns an initializer whose parameters carry logical axes, for `Module.param`.

    It makes boxes (`nn.Partitioned`), which the state keeps and `param` opens: a module has arrays.
    """
    return cast(Callable[..., jax.Array], nn.with_partitioning(init, axes))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks for `x` to lie as the rules say, under the mesh in force.

    Without a mesh, or where `fsdp` and `tensor` have size 1, nothing happens.
    """
    if not _is_cut():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, spec(mesh, x.shape, names))


def _is_cut() -> bool:
    """Returns True under a mesh whose automatic axes cut anything."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and any(mesh.shape.get(axis, 1) > 1 for axis in ('fsdp', 'tensor'))


def gather_weight(w: jax.Array, axes: tuple[str | None, ...], whole: bool = False) -> jax.Array:
    """Returns a weight whole along `fsdp`; its gradient is cut again where it comes to be.

    The transpose of a constraint asks the same of the gradient: that of a whole weight would be
    summed whole on all devices, and cut after that.

    Args:
      axes: logical names of its dimensions as it is stored.
      whole: along `tensor` too.
    """
    if not exchanges_gradients():
        return constrain(w, *((None,) * w.ndim if whole else without_fsdp(axes)))
    return _gather(w, axes, whole)


def exchanges_gradients() -> bool:
    """Returns True where devices exchange parts of gradients: on TPUs v4 and v5 that cut weights.

    Elsewhere they are left to XLA (docs/lab/tpu-gradients.md).
    """
    device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
    kind = getattr(device, 'device_kind', '')
    return _is_cut() and kind.startswith(EXCHANGING)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w, axes, whole):
    return constrain(w, *((None,) * w.ndim if whole else without_fsdp(axes)))


def _gather_forward(w, axes, whole):
    return _gather(w, axes, whole), None


def _gather_backward(axes, whole, _, gradient):
    # Of a table only along `fsdp`: XLA aborts on a scatter into what two automatic axes cut.
    if whole:
        axes = tuple(axis if RULES.get(axis or '') == 'fsdp' else None for axis in axes)
    return (constrain(gradient, *axes),)


_gather.defvjp(_gather_forward, _gather_backward)


def without_fsdp(axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Returns logical names, None in place of those that lie on `fsdp`."""
    return tuple(None if axis and RULES.get(axis) == 'fsdp' else axis for axis in axes)


def context_parts() -> int:
    """Returns into how many parts the time of the arrays at hand is cut.

    It is the size of the `context` axis inside the step's shard_map, and 1 elsewhere.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[CONTEXT] if CONTEXT in mesh.manual_axes else 1


def gather_context(x: jax.Array, axis: int) -> jax.Array:
    """Returns the parts of all devices along the context, one after the other on `axis`."""
    return jax.lax.all_gather(x, CONTEXT, axis=axis, tiled=True) if context_parts() > 1 else x


def own_context_part(x: jax.Array, axis: int) -> jax.Array:
    """Returns this device's part of an array that is whole along `axis`."""
    parts = context_parts()
    if parts == 1:
        return x
    size = x.shape[axis] // parts
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(CONTEXT) * size, size, axis)
