"""Logical axes: the one table that says which mesh axis each named dimension lies on; and the axis that cuts time."""

import jax
from jax.sharding import PartitionSpec as P

RULES = {  # logical axis -> mesh axis; a name not here is not sharded
    'batch': 'fsdp',  # inside the step, where `data` and `context` are manual (train/step.py)
    'embed': 'fsdp',  # of parameters: width
    'vocab': 'tensor',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'mlp': 'tensor',
}
CONTEXT = 'context'


def spec(mesh, shape: tuple[int, ...], names: tuple[str | None, ...]) -> P:
    """Logical names of the dimensions of an array -> its PartitionSpec. A dimension that cannot be cut evenly is not cut."""
    axes = [RULES.get(n) for n in names]
    return P(
        *(a if a and not size % mesh.shape.get(a, 1) else None for a, size in zip(axes, shape))
    )


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks for `x` to lie as the rules say, under the mesh in force; without one, or on an axis of size 1, nothing happens."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or all(mesh.shape.get(a, 1) == 1 for a in ('fsdp', 'tensor')):
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh, x.shape, names))


def context_parts() -> int:
    """Into how many parts the time of the arrays at hand is cut: the size of the `context` axis inside the step's shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[CONTEXT] if CONTEXT in mesh.manual_axes else 1


def gather_context(x: jax.Array, axis: int) -> jax.Array:
    """The parts of all devices along the context, one after the other."""
    return jax.lax.all_gather(x, CONTEXT, axis=axis, tiled=True) if context_parts() > 1 else x


def own_context_part(x: jax.Array, axis: int) -> jax.Array:
    """Of an array that is whole along `axis`: the part that this device has of the context."""
    parts = context_parts()
    return (
        x
        if parts == 1
        else jax.lax.dynamic_slice_in_dim(
            x, jax.lax.axis_index(CONTEXT) * (x.shape[axis] // parts), x.shape[axis] // parts, axis
        )
    )
