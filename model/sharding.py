"""Says which mesh axis each named dimension lies on, in one table; and cuts time.

`data` and `context` are manual inside the train step (train/step.py), where a device sees only its
own part; `fsdp` and `tensor` are automatic: arrays look whole, and XLA moves what it needs.
"""

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
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or all(mesh.shape.get(axis, 1) == 1 for axis in ('fsdp', 'tensor')):
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, x.shape, names))


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
