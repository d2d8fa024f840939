"""What stands in attention's place: an independent forward pass, packing, the cache, devices."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec as P

from configs import base
from model.config import resolve
from model.errors import ModelError
from model.generate import empty_cache, generate, unroll_layers
from model.sampling import Sampling
from model.transformer import Transformer
from runtime import metrics

VOCAB, TIME, WINDOW = 29, 16, 3
KINDS = {'window': WINDOW, 'average': WINDOW, 'none': 0}


def config_of(mixing='attention', **changes):
    c = base.get_config().model
    c.update(width=24, num_layers=2, num_heads=4, num_kv_heads=2, positions='none')
    c.update({'mixing': mixing, 'window': KINDS.get(mixing, 0), **changes})
    return c


def built(mixing, **changes):
    model = Transformer(resolve(config_of(mixing, **changes), VOCAB, TIME))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *packed_rows())['params']
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: np.float32(rng.normal(size=x.shape) * (x.shape[0] ** -0.5)), nn.meta.unbox(shapes)
    )
    return model, params


def packed_rows():
    """Tokens, positions and segments: two documents and padding in a row."""
    rng = np.random.default_rng(0)
    column = np.arange(TIME)
    segments = np.stack([np.where(column < 6, 1, 2), np.where(column < 11, 1, 0)]).astype(np.int32)
    positions = np.where(segments == 2, column - 6, column * segments).astype(np.int32)
    return rng.integers(1, VOCAB, (2, TIME)).astype(np.int32), positions, segments


def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def swiglu(h, p):
    gate = h @ p['gate']['kernel']
    return (h @ p['up']['kernel'] * gate / (1 + np.exp(-gate))) @ p['down']['kernel']


def reference(c, params, tokens):
    """Logits [T,V] of one document in float64, token by token."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = p['embedding'][tokens]
    for i in range(c.num_layers):
        layer = p[f'layer_{i}']
        read = np.zeros_like(x)
        for t in range(len(x)):
            if c.mixing == 'none':
                continue
            h = norm(x, layer['mixing_norm']['scale'])
            last = [h[s] for s in range(t, max(-1, t - WINDOW), -1)]
            if c.mixing == 'average':
                read[t] = sum(last) / len(last)
            else:
                last += [np.zeros(c.width)] * (WINDOW - len(last))
                read[t] = swiglu(np.concatenate(last), layer['mixing'])
        x = x + read
        x = x + swiglu(norm(x, layer['feed_forward_norm']['scale']), layer['feed_forward'])
    return norm(x, p['final_norm']['scale']) @ p['embedding'].T


@pytest.mark.parametrize('mixing', KINDS)
def test_it_is_what_the_equations_say(mixing):
    """Catches a window of another length or order, one that reads the document before it, padding
    or what is to come, and a cache that finds other tokens behind the padding of a prompt."""
    model, params = built(mixing)
    tokens, positions, segments = packed_rows()
    apply = jax.jit(functools.partial(model.apply, {'params': params}))
    logits = np.asarray(apply(tokens, positions, segments)[0])
    for row, columns in ((0, slice(0, 6)), (0, slice(6, TIME)), (1, slice(0, 11))):
        expected = reference(model.config, params, tokens[row, columns])
        np.testing.assert_allclose(logits[row, columns], expected, rtol=2e-3, atol=2e-3)

    # Greedy generation from prompts of unlike length writes what the whole pass says.
    prompts = [tokens[0, :6].tolist(), tokens[1, :2].tolist()]
    texts = generate(model, params, prompts, 4, Sampling(temperature=0.0))
    for prompt, text in zip(prompts, texts):
        whole = prompt + text
        greedy = reference(model.config, params, np.array(whole)).argmax(-1)
        assert text == greedy[len(prompt) - 1 : -1].tolist()


@pytest.mark.parametrize('mixing', ['window', 'average'])
def test_a_chunk_read_behind_others(mixing):
    """Catches a window that ends where a call of the model begins."""
    model, params = built(mixing)
    tokens, positions, segments = packed_rows()
    tokens, positions, segments = tokens[1:, :9], positions[1:, :9], segments[1:, :9]
    apply = jax.jit(functools.partial(model.apply, {'params': params}))
    whole = apply(tokens, positions, segments)[0]
    cache = empty_cache(model, 1, TIME)
    parts = []
    for start in (0, 3, 6):
        inputs = (x[:, start : start + 3] for x in (tokens, positions, segments))
        logits, cache = apply(*inputs, cache=cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('mixing', KINDS)
def test_scanned_recomputed_and_cut_over_devices(mixing):
    """Catches a window that is blind to the end of another device's part, layers that differ when
    they are scanned, and gradients that remat changes."""
    model, scanned = built(mixing, scan_layers=True, remat='attention')
    flat, params = unroll_layers(model, scanned)
    inputs = packed_rows()

    def loss(model, params, *inputs):
        seen = inputs[2][..., None] > 0
        return ((model.apply({'params': params}, *inputs)[0] * seen) ** 2).mean()

    value, grads = jax.jit(jax.value_and_grad(functools.partial(loss, model)))(scanned, *inputs)
    flat_value, flat_grads = jax.jit(jax.value_and_grad(functools.partial(loss, flat)))(
        params, *inputs
    )
    np.testing.assert_allclose(value, flat_value, rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(unroll_layers(model, grads)[1]), jax.tree.leaves(flat_grads), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)

    axis = dict(axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    cut = jax.shard_map(
        lambda *inputs: flat.apply({'params': params}, *inputs)[0],
        mesh=jax.make_mesh((4,), ('context',), **axis),
        in_specs=(P(None, 'context'),) * 3,
        out_specs=P(None, 'context'),
        check_vma=False,
    )
    whole = np.asarray(flat.apply({'params': params}, *inputs)[0])
    seen = inputs[2] > 0
    np.testing.assert_allclose(np.asarray(jax.jit(cut)(*inputs))[seen], whole[seen], atol=2e-4)


@pytest.mark.parametrize('activation', ['swiglu', 'gelu'])
@pytest.mark.parametrize('mixing', KINDS)
def test_weights_are_those_of_attention(mixing, activation):
    """Catches models of unlike size that are compared, and FLOPs of attention where is none."""

    def count(mixing):
        c = config_of(mixing, width=192, num_heads=6, num_kv_heads=6, activation=activation)
        model = Transformer(resolve(c, 1024, 128))
        shapes = jax.eval_shape(model.init, jax.random.key(0), *packed_rows())['params']
        shapes = nn.meta.unbox(shapes)
        size = sum(x.size for x in jax.tree.leaves(shapes))
        return size, metrics.flops_per_token(shapes, model.config, 128)

    size, flops = count(mixing)
    attention_size, attention_flops = count('attention')
    assert size == pytest.approx(attention_size, rel=0.01)
    assert 0.93 < flops / attention_flops < 0.99  # what is missing are products with keys, values


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(mixing='window', window=0), 'config.model.window 0: expected at least 1'),
        (dict(mixing='none', window=4), 'config.model.window 4: expected 0'),
        (dict(mixing='average', causal=False), 'reads what came before'),
        (dict(mixing='window', positions='rope'), 'enters attention, which is not there'),
        (dict(mixing='pool'), "is 'pool': .*valid: attention, window, average, none"),
    ],
)
def test_what_does_not_go_together(changes, message):
    """Catches a field without an effect that is taken in silence."""
    with pytest.raises(ModelError, match=message):
        resolve(config_of(**changes), VOCAB, TIME)
    resolve(config_of('window', positions='sinusoidal'), VOCAB, TIME)
