"""Tokens and parameters that are the same at any commit, and the logits of a model for them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

TIME = 40  # tokens: beyond the 16 of training


def params_of(model):
    """Returns parameters of a model, each drawn by its name and shape alone, float32."""
    one = jnp.ones((1, 1), jnp.int32)
    shapes = nn.meta.unbox(
        jax.eval_shape(model.init, jax.random.key(0), one, one * 0, one, one)['params']
    )

    def value(path, x):
        name = '/'.join(k.key for k in path)
        rng = np.random.default_rng([len(name), *name.encode()])
        return jnp.asarray(rng.normal(size=x.shape) * 0.8, jnp.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


def logits(model):
    """Returns logits [2,8] of the last token in two texts, for 8 pieces.

    Without keys, as in decoding, and with keys of the rows, as in training.
    """
    params = params_of(model)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 30, (2, TIME)).astype(np.int32)
    places = np.tile(np.arange(TIME, dtype=np.int32), (2, 1))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(5, impl='threefry2x32'), jnp.arange(2)
    )
    fields = tokens, places, np.ones_like(tokens)

    def run(model, keys):
        return model.apply({'params': params}, *fields, row_keys=keys)[0]

    return {
        'without keys': run(model, None)[:, -1, :8],
        'with keys': run(model.clone(training=True), keys)[:, -1, :8],
    }


def rounded(found: dict) -> dict:
    """Returns numbers with six digits after the point: what floats of another machine keep."""
    return {k: [[round(x, 6) for x in row] for row in rows] for k, rows in found.items()}
