"""Encodings together, and each with a soft cap: the logits are those of the papers' parts added up,
with a cache as without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from model import generate
from model.config import resolve
from model.errors import ModelError
from model.transformer import Transformer
from tests.model import references as R, references_rotary as Rot
from tests.model.test_references import path
from tests.model.weights import HEADS, PLACES, D, T, close, run

CAP = 1.5


def wall(m):
    return R.wall(
        m.q,
        m.k,
        R.log_sigmoid(np.einsum('tD,Dhd->htd', m.x, m.p.wall_gate) + m.p.wall_gate_bias[:, None]),
    )


def gates(m):
    """The whole effect of forgetting inside PaTH: with its gates and without."""
    log_f = R.log_sigmoid(m.x @ m.p.gate + m.p.gate_bias).T
    return np.where(np.tri(T) > 0, R.forgetting(0 * m.q, m.k, log_f), 0) * D**-0.5


def _alibi_bias(m):
    return np.where(np.tri(T) > 0, R.alibi(0 * m.q, m.k, m.pos), 0)


@pytest.mark.parametrize(
    'name, arguments, product, bias, cap',
    [
        (
            'rerope+alibi',
            {'within': 4, 'log_n': False},
            lambda m: Rot.rerope(m.q, m.k, m.pos, 4),
            _alibi_bias,
            0.0,
        ),
        (
            'alibi+string',
            {'within': 5, 'local': 2},
            lambda m: Rot.string(m.q, m.k, m.pos, 5, 2),
            _alibi_bias,
            CAP,
        ),
        ('wall+alibi', {}, wall, _alibi_bias, CAP),
        ('path', {'forget': True}, path, gates, CAP),
    ],
)
def test_products_and_biases(name, arguments, product, bias, cap):
    """Catches a product that takes the place of q.k together with the biases of other parts, and a
    soft cap of q.k, or of a part of the keys, where another product stands, or of what is added to
    it."""
    m = run(name, arguments, model={'logit_cap': cap})
    z = product(m)
    close(
        m.weights,
        R.softmax((np.where(np.isfinite(z), cap * np.tanh(z / cap), z) if cap else z) + bias(m)),
    )


SEEN = {
    'window': np.minimum(PLACES + 1, 3),
    'chunk': PLACES % 5 + 1,
    'windowed_heads': np.minimum(PLACES + 1, [[1], [2], [3], [99]]),
    'lm_infinite': np.minimum(PLACES + 1, 4) + np.clip(PLACES - 3, 0, 2),
}


@pytest.mark.parametrize(
    'beside, arguments',
    [
        ('window', {'window': 3}),
        ('chunk', {'chunk': 5}),
        ('windowed_heads', {'heads': 3}),
        ('lm_infinite', {'within': 4, 'first': 2}),
    ],
)
def test_ssmax_counts_what_is_seen(beside, arguments):
    """Catches ln of the length of the text where a query sees less of it: SSMax is the same as
    queries that are longer by s ln n."""
    m = run(f'{beside}+ssmax', arguments)
    factor = m.p.scalablesoftmax_s[:, None] * np.log(np.broadcast_to(SEEN[beside], (HEADS, T)))
    close(
        m.weights, run(beside, arguments, query=np.moveaxis(m.q * factor[..., None], 0, 1)).weights
    )
    if beside == 'window':
        given = {'scalablesoftmax_s': m.p.scalablesoftmax_s, 's': m.p.scalablesoftmax_s}
        close(m.weights, run('ssmax', given=given, model={'window': 3}).weights)


VOCAB, TIME = 17, 14


@pytest.mark.parametrize(
    'positions, arguments',
    [
        (
            'alibi+kerple_log,rope+t5,forgetting+fire,rerope+alibi,path+kerple_log',
            {'threshold': 8.0, 'within': 4},
        ),
        (
            'shaw+selective,cope+selective,selective+grape_m_context,dape_v2,rope+ssmax+window',
            {'clip': 3, 'window': 4},
        ),
    ],
)
def test_cached_in_chunks(positions, arguments):
    """One layer of each; prompts of 5 and 4 tokens, then three at a time. Catches what earlier
    queries leave behind counted before an earlier part changed the logits, a state given to another
    part, and a chunk whose first token's place is taken for that of all."""
    c = base.get_config().model
    c.update(
        width=32,
        num_layers=5,
        num_heads=4,
        num_kv_heads=2,
        mlp_width=32,
        max_len=32,
        positions=positions,
        positions_args=arguments,
    )
    model, rng = Transformer(resolve(c, VOCAB, 8)), np.random.default_rng(0)
    fields = (
        rng.integers(1, VOCAB, (2, TIME)),
        np.tile(np.arange(TIME), (2, 1)),
        np.ones((2, TIME), int),
    )
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *fields)['params'])
    params = jax.tree.map(
        lambda x: jnp.asarray(0.1 + 0.3 * rng.standard_normal(x.shape), x.dtype), shapes
    )
    run = jax.jit(lambda cache, *fields: model.apply({'params': params}, *fields, cache=cache))
    full, _ = run(None, *fields)
    padded = [np.stack([x[0], np.insert(x[1], 4, 0)[:-1]]) for x in fields]
    cache, found = generate.empty_cache(model, 2, TIME), []
    for begin, end in ((0, 5), (5, 8), (8, 11), (11, 14)):
        logits, cache = run(cache, *(x[:, begin:end] for x in padded))
        found.append(logits)
    found = np.concatenate(found, 1)
    np.testing.assert_allclose(found[0], full[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.delete(found[1], 4, 0), full[1, :-1], rtol=1e-4, atol=1e-4)


def test_one_product_in_a_layer():
    """Catches two products in place of q.k, the second of which undoes the first or adds to it."""
    with pytest.raises(
        ModelError, match='puts PaTH and wall attention into one layer: both enter the product'
    ):
        run('path+wall')
