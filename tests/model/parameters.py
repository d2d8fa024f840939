"""Parameters of models for tests, drawn by numpy: nothing is compiled for them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def draw(model, seed: int = 3):
    """Returns parameters that are away from initial values that do nothing, on the side meant."""
    one = jnp.ones((1, 2), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), one, one * 0, one, one)
    rng = np.random.default_rng(seed)

    def value(path, x):
        names = [k.key for k in path]
        is_encoding = any(n.startswith('positions') for n in names)
        if is_encoding and x.ndim < 2:
            return jnp.asarray(rng.uniform(0.3, 0.9, x.shape), x.dtype)
        if not is_encoding and names[-1] == 'scale':
            return jnp.asarray(np.ones(x.shape), x.dtype)
        size = 2 if is_encoding else 1.5
        summed = x.shape[names[0] == 'layers']  # scanned layers lie side by side on axis 0
        return jnp.asarray(rng.normal(size=x.shape) * summed**-0.5 * size, x.dtype)

    return jax.tree_util.tree_map_with_path(value, nn.meta.unbox(variables['params']))
