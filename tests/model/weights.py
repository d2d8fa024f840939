"""The weights of attention with an encoding, at queries, keys and parameters that are known.

x is the identity matrix, so that the kernels of the projections are the queries and keys of each
token.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from configs import base
from model.attention import Attention, Parameters, TokenLayout
from model.config import resolve
from model.positions import REGISTRY, Dims

T, HEADS, KV_HEADS, D, LONGEST, TRAINED = 12, 4, 2, 8, 24, 8
PLACES = np.arange(T)
DRAWN = np.array([0, 2, 3, 4, 7, 8, 9, 13, 14, 17, 19, 22])
# On both sides of where they are held.
KERPLE = dict(p=np.array([-0.3, 2.5, 0.7, 1.4]), a=np.array([0.6, 0.9, -0.2, 1.7]))


def alone(name, d=D, longest=LONGEST, trained=TRAINED, **arguments):
    """The encoding by itself."""
    encoding = REGISTRY[name](Dims(T, HEADS, KV_HEADS, d, 1, longest, trained), **arguments)
    encoding.check()
    return encoding


def resolved(name, arguments, changes):
    c = base.get_config().model
    c.update(
        width=T,
        num_layers=1,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=D,
        max_len=LONGEST,
        attention='reference',
        positions=name,
        positions_args=arguments,
        **changes,
    )
    return resolve(c, 17, TRAINED)


def run(
    name,
    arguments=None,
    ids=None,
    given=None,
    initial=False,
    scale=0.7,
    changed=lambda e: e,
    model=None,
    **fields,
):
    """Attention with an encoding -> what a reference needs (float64), its weights and what it gives
    out.

    Args:
      ids: [T], in place of the tokens' places.
      given: parameters of the encoding by name; the others are drawn, N(0, scale^2), or have
        their initial values (`initial`).
      changed: encoding -> the one to use.
      model: fields of config.model to change.
      fields: positions, segments [T]; query, key [T,H,d].
    """
    config = resolved(name, arguments or {}, model or {})
    rng = np.random.default_rng(7)
    given = given or {}
    held = {}
    encoding = changed(config.encodings[0])

    def param(name, init, shape, axes):
        if name in held:
            return held[name]
        if initial:
            held[name] = init(jax.random.key(3), shape, jnp.float32)
        elif name in given:
            held[name] = jnp.asarray(np.broadcast_to(given[name], shape), jnp.float32)
        else:
            held[name] = jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)
        return held[name]

    def instead(declared, args, kwargs, context):
        own = isinstance(context.module, Parameters) and context.method_name == '__call__'
        return param(*args) if own else declared(*args, **kwargs)

    sizes = {
        'query': (T, HEADS, D),
        'key': (T, KV_HEADS, D),
        'value': (T, KV_HEADS, D),
        'out': (HEADS, D, T),
    }
    kernel = {
        n: fields.get(n, np.random.default_rng(i).normal(size=s) * 1.2)
        for i, (n, s) in enumerate(sizes.items())
    }
    kernel = {n: jnp.asarray(a, jnp.float32) for n, a in kernel.items()}
    where, segments = fields.get('positions', PLACES), fields.get('segments', np.ones(T, int))
    at, ids_, segments = (
        jnp.asarray(a)[None] for a in (where, where if ids is None else ids, segments)
    )
    layout = TokenLayout(
        at, segments, ids_, at, segments, ids_, None, None, consecutive=ids is None
    )
    shared = encoding.collect_shared(
        {p: p.share(layout.encoding_inputs(param)) for p in encoding.parts}
    )
    with nn.intercept_methods(instead):
        (out, _), sown = Attention(config, encoding).apply(
            {'params': {n: {'kernel': a} for n, a in kernel.items()}},
            jnp.eye(T)[None],
            layout,
            shared,
            None,
            mutable=['intermediates'],
        )

    def widen(tree):
        return {n: np.asarray(a, float) for n, a in tree.items()}

    q, k, v, out_kernel = widen(kernel).values()
    return types.SimpleNamespace(
        q=np.moveaxis(q, 0, 1),
        k=of_kv(np.moveaxis(k, 0, 1)),
        v=of_kv(np.moveaxis(v, 0, 1)),
        out_kernel=out_kernel,
        x=np.eye(T),
        pos=np.asarray(ids_[0]),
        p=types.SimpleNamespace(**widen(held)),
        out=np.asarray(out[0], float),
        weights=np.asarray(sown['intermediates']['attention'][0][0], float),
    )


def of_kv(a):
    """[K,...], of each key-value head -> [H,...], of each head."""
    return a.repeat(HEADS // KV_HEADS, 0)


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
