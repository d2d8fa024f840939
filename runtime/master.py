"""A float32 copy of parameters that are narrower (config.model.param_dtype 'bfloat16').

A bfloat16 tells 8 bits apart: a step of less than 1/512 of a parameter rounds to nothing, each time
anew. So the optimizer moves a copy in float32 that is part of its state, and the parameters are
what the copy is rounded to (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1). A state of
float32 parameters has none. A state (train/step.py) with a copy has
{'inner': what optax keeps, 'master': the parameters in float32} as its 'opt_state'.
"""

import jax
import jax.numpy as jnp


def widen(tree):
    """Returns the tree in float32, wider types as they are.

    Gradients, and what the optimizer keeps, are so whatever the type of the parameters, since they
    are sums of many small terms.
    """
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def is_needed(params) -> bool:
    """Returns whether any of the parameters, arrays or shapes, is narrower than float32."""
    return any(x.dtype != jnp.promote_types(x.dtype, jnp.float32) for x in jax.tree.leaves(params))


def add_master(state: dict, shardings: dict) -> dict:
    """Returns the state with a copy that begins from its parameters.

    It takes the place of the one that the state has, if any. Where none is needed the state is as
    it was. `shardings`: of the state with its copy.
    """
    if not is_needed(state['params']):
        return state

    def copied(params):
        return jax.tree.map(jnp.copy, widen(params))  # no buffer of the parameters is shared

    master = jax.jit(copied, out_shardings=shardings['opt_state']['master'])(state['params'])
    inner = drop_master(state)['opt_state']
    return {**state, 'opt_state': {'inner': inner, 'master': master}}


def drop_master(state: dict) -> dict:
    """Returns the state, or its shapes or shardings, as it was kept before there was a copy."""
    opt_state = state['opt_state']
    has_copy = isinstance(opt_state, dict) and 'master' in opt_state
    return {**state, 'opt_state': opt_state['inner'] if has_copy else opt_state}
