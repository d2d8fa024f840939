"""Logical axes: the one table that says which mesh axis each named dimension lies on."""
import jax
from jax.sharding import PartitionSpec as P

RULES = {           # logical axis -> mesh axis; a name not here is not sharded
    'batch': 'fsdp',        # inside the step, where `data` and `context` are manual (train/step.py)
    'embed': 'fsdp',        # of parameters: width
    'vocab': 'tensor', 'heads': 'tensor', 'kv_heads': 'tensor', 'mlp': 'tensor'}


def spec(*names: str | None) -> P:
    """Logical names of the dimensions of an array -> its PartitionSpec."""
    return P(*(RULES.get(n) if n else None for n in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks for `x` to lie as the rules say, under the mesh in force; without one, or on an axis of size 1, nothing happens."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or all(mesh.shape.get(a, 1) == 1 for a in ('fsdp', 'tensor')):
        return x
    return jax.lax.with_sharding_constraint(x, spec(*names))
