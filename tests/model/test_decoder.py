"""The decoder: an independent forward pass, generation, scan, remat, low precision. Causality,
packing, padding and the cache are tested for every encoding in test_properties.py."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from model import generate as decoding
from model.config import resolve
from model.sampling import Sampling
from model.transformer import Transformer
from tests.model.parameters import draw

VOCAB, TIME = 29, 12
# What other model classes are made of; eps are large enough to be seen.
NEOX = (
    ('residual', 'parallel'),
    ('biases', 'all'),
    ('activation', 'gelu_exact'),
    ('norm', 'layernorm'),
    ('norm_eps', 0.1),
    ('tied', False),
)
OLMO = (
    ('residual', 'post_norm'),
    ('biases', 'qkv'),
    ('qk_norm', True),
    ('qk_norm_over', 'heads'),
    ('norm_eps', 0.2),
)
BLOOM = (
    ('embedding_norm', True),
    ('biases', 'attention'),
    ('norm', 'layernorm_no_bias'),
    ('activation', 'gelu'),
)
QKV_BIASES = {'query_bias', 'key_bias', 'value_bias'}
CORE = ('none', 'sinusoidal', 'learned', 'rope', 'alibi', 't5')
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, VOCAB, (2, TIME)).astype(np.int32)
POSITIONS = np.tile(np.arange(TIME, dtype=np.int32), (2, 1))
ONES = np.ones((2, TIME), np.int32)


@functools.lru_cache
def built(positions='rope', **changes):
    c = base.get_config().model
    c.update(width=24, num_layers=2, num_heads=4, num_kv_heads=2, positions=positions)
    c.update(changes)
    model = Transformer(resolve(c, VOCAB, TIME))
    # Away from what initial values make special, unit norms too.
    rng = np.random.default_rng(2)
    params = jax.tree.map(
        lambda x: jnp.float32(
            x + 0.3 * rng.normal(size=x.shape) * (1 if x.ndim == 1 else np.std(x) or 1)
        ),
        draw(model),
    )
    return model, params, jax.jit(lambda p, t, i, s: model.apply({'params': p}, t, i, s)[0])


# ---- an independent forward pass, in float64, loop by loop


def norm(x, p, c, kind=None):
    kind = kind or c.norm
    assert ('bias' in p) == (kind == 'layernorm')
    if kind == 'rmsnorm':
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * p['scale']
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.norm_eps)
    return x * p['scale'] + p.get('bias', 0)


def project(x, p, name):
    return x @ p[name]['kernel'] + p.get(f'{name}_bias', 0)


def rotated(x, position):
    half = len(x) // 2
    angle = position * 10000.0 ** (-np.arange(half) / half)
    return np.concatenate(
        [
            x[:half] * np.cos(angle) - x[half:] * np.sin(angle),
            x[half:] * np.cos(angle) + x[:half] * np.sin(angle),
        ]
    )


def bucket(n):
    """T5's buckets as its authors compute them, 32 buckets to a distance of 128."""
    return n if n < 16 else min(31, 16 + int(np.log(n / 16) / np.log(128 / 16) * 16))


def fed_forward(c, f, h):
    up = project(h, f, 'up')
    if c.activation == 'swiglu':
        gate = project(h, f, 'gate')
        up = up * gate / (1 + np.exp(-gate))
    elif c.activation == 'gelu':
        up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    else:
        up = 0.5 * up * (1 + np.vectorize(math.erf)(up / np.sqrt(2)))
    return project(up, f, 'down')


def reference(c, p, tokens):
    """Logits [T,V] of one document, by the equations of the papers."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    d, names = c.head_dim, [type(e).__name__.lower() for e in c.encodings]
    x = p['embedding'][tokens] * (np.sqrt(c.width) if c.scale_embedding else 1)
    if 'learned' in names:
        x = x + p['positions_learned']['table'][: len(x)]
    if 'sinusoidal' in names:
        angle = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, c.width, 2) / c.width)
        x = x * np.sqrt(c.width) + np.stack([np.sin(angle), np.cos(angle)], -1).reshape(len(x), -1)
    if c.embedding_norm:
        x = norm(x, p['embedding_norm'], c)
    post = c.residual == 'post_norm'
    for i, name in enumerate(names):
        layer = p[f'layer_{i}']
        a, h = layer['attention'], x if post else norm(x, layer['attention_norm'], c)
        mixed = np.zeros_like(x) + a.get('out_bias', 0)
        q_all, k_all, v_all = (
            np.einsum('td,dhe->the', h, a[n]['kernel']) + a.get(f'{n}_bias', 0)
            for n in ('query', 'key', 'value')
        )
        if c.qk_norm_over == 'heads':
            q_all, k_all = (
                norm(y.reshape(len(y), -1), a[n], c, 'rmsnorm').reshape(y.shape)
                for y, n in ((q_all, 'query_norm'), (k_all, 'key_norm'))
            )
        for head in range(c.num_heads):
            group = head // (c.num_heads // c.num_kv_heads)
            q, k, v = q_all[:, head], k_all[:, group], v_all[:, group]
            if c.qk_norm and c.qk_norm_over == 'head':
                q, k = norm(q, a['query_norm'], c, 'rmsnorm'), norm(k, a['key_norm'], c, 'rmsnorm')
            if name == 'rope':
                q, k = (np.stack([rotated(row, t) for t, row in enumerate(y)]) for y in (q, k))
            for t in range(len(x)):
                seen = range(
                    max(0, t + 1 - c.window) if c.window else 0,
                    t + 1 if c.causal else min(len(x), t + (c.window or len(x))),
                )
                z = np.array([q[t] @ k[s] / np.sqrt(d) for s in seen])
                if c.logit_cap:
                    z = c.logit_cap * np.tanh(z / c.logit_cap)
                if name == 'alibi':
                    z = z - np.array(
                        [2.0 ** (-8 * (head + 1) / c.num_heads) * (t - s) for s in seen]
                    )
                if name == 't5':
                    z = z + np.array(
                        [p['positions_t5']['table'][bucket(t - s), head] for s in seen]
                    )
                w = np.exp(z - z.max())
                mixed[t] += (w / w.sum()) @ v[list(seen)] @ a['out']['kernel'][head]
        y = x + (norm(mixed, layer['attention_norm'], c) if post else mixed)
        read = x if c.residual == 'parallel' else y
        h = read if post else norm(read, layer['feed_forward_norm'], c)
        down = fed_forward(c, layer['feed_forward'], h)
        x = y + (norm(down, layer['feed_forward_norm'], c) if post else down)
    x = norm(x, p['final_norm'], c)
    return x @ (p['embedding'].T if c.tied else p['output']['kernel'])


@pytest.mark.parametrize(
    'positions, changes',
    [
        *((p, ()) for p in CORE),
        ('rope,none', ()),
        ('rope', (('qk_norm', True), ('window', 4))),
        ('alibi', (('logit_cap', 2.0), ('tied', False))),
        ('learned', (('norm', 'layernorm'), ('activation', 'gelu'))),
        ('rope', (('causal', False), ('scale_embedding', True))),
        ('learned', (('causal', False), ('window', 3))),
        ('rope', NEOX),
        ('rope', OLMO),
        ('alibi', BLOOM),
        ('none', (('biases', 'feed_forward'), ('residual', 'post_norm'), ('norm', 'layernorm'))),
    ],
)
def test_the_forward_pass_is_the_papers(positions, changes):
    """Catches a wrong pairing of heads and groups, a misplaced scale, cap, bias or norm, a rotation
    of the wrong sign, and what lies ahead hidden where it is to be seen.

    Also a bias that a projection lacks or that another one adds, the other GELU, an eps that a norm
    does not get, a norm before what it should come after, and a feed-forward that reads what it
    stands beside."""
    model, params, apply = built(positions, **dict(changes))
    layer = params['layer_0']
    biases = {name for part in ('attention', 'feed_forward') for name in layer[part]}
    gated = {'gate_bias'} if model.config.activation == 'swiglu' else set()
    assert {name for name in biases if name.endswith('_bias')} == {
        'none': set(),
        'qkv': QKV_BIASES,
        'attention': QKV_BIASES | {'out_bias'},
        'feed_forward': {'up_bias', 'down_bias'} | gated,
        'all': QKV_BIASES | {'out_bias', 'up_bias', 'down_bias'} | gated,
    }[model.config.biases]

    found = apply(params, TOKENS, POSITIONS, ONES)
    for row in range(2):
        np.testing.assert_allclose(
            found[row], reference(model.config, params, TOKENS[row]), rtol=2e-4, atol=2e-4
        )


@pytest.mark.parametrize(
    'positions, changes',
    [(p, ()) for p in ('learned', 'rope', 'forgetting', 'rope,none')] + [('rope', OLMO)],
)
def test_generation(positions, changes):
    """Catches rows that depend on their batch, chunks that change the text, and greedy that is not
    the most likely token."""
    model, params, apply = built(positions, num_layers=1 + (',' in positions), **dict(changes))
    prompts = [[3, 5, 7], [2, 4, 6, 8, 10]]
    greedy = decoding.generate(model, params, prompts, 5, Sampling(temperature=0.0))
    for prompt, out in zip(prompts, greedy):
        ids = list(prompt)
        for token in out:
            row = np.pad(ids, (0, TIME - len(ids)))[None].astype(np.int32)
            logits = apply(
                params, row, POSITIONS[:1], (np.arange(TIME) < len(ids)).astype(np.int32)[None]
            )
            assert int(logits[0, len(ids) - 1].argmax()) == token
            ids.append(token)
    drawn = decoding.generate(model, params, prompts, 5, Sampling(), seed=3)
    assert drawn == decoding.generate(
        model, params, prompts, 5, Sampling(), seed=3, stop=decoding.Stop(every=3)
    )
    assert drawn[0] == decoding.generate(model, params, prompts[:1], 5, Sampling(), seed=3)[0]
    assert drawn != decoding.generate(model, params, prompts, 5, Sampling(), seed=4)


def test_generation_ends():
    """Catches an end token that is written, a context that is overrun, and a watcher that is not
    heard."""
    model, params, _ = built()
    whole = decoding.generate(model, params, [[3, 5]], 50, Sampling(temperature=0.0))[0]
    assert len(whole) == TIME - 2
    cut = decoding.generate(
        model, params, [[3, 5]], 50, Sampling(temperature=0.0), stop=decoding.Stop((whole[3],))
    )[0]
    assert cut == whole[: whole.index(whole[3])]
    heard = decoding.generate(
        model,
        params,
        [[3, 5]],
        50,
        Sampling(temperature=0.0),
        stop=decoding.Stop(watch=lambda rows: True, every=2),
    )[0]
    assert heard == whole[:2]
    with pytest.raises(
        decoding.ModelError, match=f'the prompt has {TIME} tokens, the context of this model {TIME}'
    ):
        decoding.generate(model, params, [[1] * TIME], 5)


@pytest.mark.parametrize('positions, changes', [('rope', OLMO), ('t5', NEOX), ('rope,none', ())])
def test_scanned_layers_and_remat_change_nothing(positions, changes):
    """Catches a period of layers in the wrong order, and a policy that changes the gradient."""
    model, params, _ = built(positions, scan_layers=True, **dict(changes))

    def grad(m, p):
        def total(p):
            return jnp.square(m.apply({'params': p}, TOKENS, POSITIONS, ONES)[0]).mean()

        return jax.jit(jax.value_and_grad(total))(p)

    value, gradient = grad(model, params)
    flat_model, flat_params = decoding.unroll_layers(model, params)
    flat_value, flat_gradient = grad(flat_model, flat_params)
    np.testing.assert_allclose(value, flat_value, rtol=1e-5)
    close = functools.partial(
        jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    )
    close(decoding.unroll_layers(model, gradient)[1], flat_gradient)
    for remat in ('full', 'attention', 'minimal'):
        close(
            grad(Transformer(dataclasses.replace(model.config, remat=remat)), params),
            (value, gradient),
        )


def test_low_precision_keeps_softmax_and_norms_wide():
    """Catches a bfloat16 softmax: its error would be many times the rounding of inputs."""
    model, params, apply = built()
    narrow = Transformer(dataclasses.replace(model.config, dtype='bfloat16'))
    program = jax.jit(lambda p: narrow.apply({'params': p}, TOKENS, POSITIONS, ONES)[0])
    text = program.lower(params).as_text()
    assert not [
        line
        for line in text.splitlines()
        if 'stablehlo.exponential' in line and f'{TIME}x{TIME}xbf16' in line
    ]
    assert not [line for line in text.splitlines() if 'stablehlo.rsqrt' in line and 'bf16' in line]
    found = program(params)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, apply(params, TOKENS, POSITIONS, ONES), atol=0.15)
