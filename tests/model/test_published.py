"""Encodings and whole models beside those of published packages, with the same random weights, in float32.

Written against torch 2.13.0, transformers 5.23.0 and x-transformers 2.31.10; what is not installed is skipped.
"""
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from model.config import resolve
from model.positions import REGISTRY, Dims, Site
from model.transformer import Transformer
from tests.model.weights import D, HEADS, T, alone, close, of_kv, run

WHY = 'the packages that encodings are compared with: pip install torch transformers x-transformers'
torch = pytest.importorskip('torch', reason=WHY)
transformers = pytest.importorskip('transformers', reason=WHY)
torch.set_grad_enabled(False)


def modeling(name):
    """The module of transformers with the model `name`."""
    return pytest.importorskip(f'transformers.models.{name}.modeling_{name}', reason=WHY)


def tensor(a):
    return torch.from_numpy(np.array(a, np.float32))


def at(ids):
    """A site of one document whose tokens have these ids."""
    ids = jnp.asarray(ids)[None]
    ones = jnp.ones(ids.shape, jnp.int32)
    return Site(None, ids, ids, ones, k_positions=ids, k_places=ids, k_segment_ids=ones)


# ---- frequencies of RoPE

def turn(name, arguments, d, longest=131072, trained=4096, length=2):
    """The frequencies, and the factor of queries and keys, by which an encoding turns the token at position 1 of `length` tokens."""
    encoding = REGISTRY[name](Dims(4 * d, 4, 4, d, 1, longest, trained), **arguments)
    encoding.check()
    site = at([1, length - 1])
    site, half = dataclasses.replace(site, shared=encoding.share(site)), encoding.rotary_dim // 2
    q, k = (np.asarray(x[0, 0, 0], float) for x in encoding.read(site, *encoding.rotate(
        site, *2 * (jnp.broadcast_to(jnp.arange(d) < half, (1, 1, 2, d)).astype(jnp.float32),))))
    np.testing.assert_array_equal(q, k)
    assert not q[2 * half:].any()
    return np.arctan2(q[half:2 * half], q[:half]), np.hypot(q[half:2 * half], q[:half])


def published_turn(kind, d, longest=131072, length=None, **parameters):
    """The same of transformers, `kind` a rope_type."""
    config = transformers.LlamaConfig(hidden_size=4 * d, num_attention_heads=4, head_dim=d, max_position_embeddings=longest,
                                      rope_parameters={'rope_type': kind, 'rope_theta': 10000.0, **parameters})
    if kind == 'default':
        return modeling('gpt_neox').GPTNeoXRotaryEmbedding.compute_default_rope_parameters(config)
    return transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)


def same_turn(name, arguments, kind, parameters, **ours):
    """Compares for heads of 64 and 128; lists of factors are cut to the size of the head."""
    for d in (64, 128):
        cut = lambda of: {k: v[:d // 2] if isinstance(v, (list, tuple)) else v for k, v in of.items()}
        frequencies, factor = published_turn(kind, d, **cut(parameters))
        found, found_factor = turn(name, cut(arguments), d, **ours)
        np.testing.assert_allclose(found, frequencies.numpy(), rtol=2e-6, atol=0)
        np.testing.assert_allclose(found_factor, factor, rtol=1e-6)


@pytest.mark.parametrize('theta', [10000.0, 500000.0])
def test_frequencies(theta):
    """Catches exponents that count pairs in place of dimensions, or the whole head where a part of it turns, and the wrong share of
    the frequencies kept (the highest are)."""
    same_turn('rope', dict(base=theta), 'default', dict(rope_theta=theta))
    same_turn('rope_interpolated', dict(base=theta, stretch=1.0), 'default', dict(rope_theta=theta))
    for share in (0.25, 0.5, 0.75, 1.0):
        same_turn('rope_partial', dict(base=theta, fraction=share), 'default', dict(rope_theta=theta, partial_rotary_factor=share))
        same_turn('rope_proportional', dict(base=theta, fraction=share), 'proportional',
                  dict(rope_theta=theta, partial_rotary_factor=share))


def test_interpolated_frequencies():
    """Catches a stretch that multiplies, and one that ignores the ratio of the lengths."""
    for stretch in (2.0, 8.0, 32.0):
        same_turn('rope_interpolated', dict(stretch=stretch), 'linear', dict(factor=stretch))
    same_turn('rope_interpolated', {}, 'linear', dict(factor=32.0))


@pytest.mark.parametrize('length', [100, 4096, 4097, 9000, 131072])
def test_dynamic_frequencies(length):
    """Catches a base that changes within the trained length, l/L without the factor, and an exponent d/(d - 2) left out."""
    for stretch in (1.0, 2.0, 8.0):
        same_turn('rope_dynamic', dict(stretch=stretch), 'dynamic', dict(factor=stretch, longest=4096, length=length), length=length)


@pytest.mark.parametrize('stretch, trained, theta', [(4.0, 2048, 1e4), (16.0, 4096, 1e4), (40.0, 4096, 5e5), (4.0, 32768, 1e6)])
def test_yarn_frequencies(stretch, trained, theta):
    """Catches a ramp in the frequency or wavelength in place of the index, ends that are not rounded, fast and slow exchanged,
    0.1 ln s + 1 applied once in all or squared, and `mscale_all_dim` multiplied in place of divided."""
    ours, theirs = dict(stretch=stretch, length=trained, base=theta), dict(
        factor=stretch, original_max_position_embeddings=trained, rope_theta=theta)
    same_turn('yarn', ours, 'yarn', theirs)
    same_turn('yarn', dict(ours, beta_fast=16.0, beta_slow=2.0), 'yarn', dict(theirs, beta_fast=16.0, beta_slow=2.0))
    same_turn('rope_by_parts', ours, 'yarn', dict(theirs, attention_factor=1.0))
    for one, all_ in ((1.0, 1.0), (0.707, 0.707), (1.0, 0.5), (0.8, 1.3)):
        same_turn('yarn', dict(ours, mscale=one, mscale_all=all_), 'yarn', dict(theirs, mscale=one, mscale_all_dim=all_))
    same_turn('yarn', dict(base=theta), 'yarn', dict(theirs, factor=None, original_max_position_embeddings=4096))


def test_longrope_frequencies():
    """Catches the list of long texts used for short ones, factors that multiply, and a factor of the logits that is the root's
    square, uses the logarithm of the longest text, or is there without a stretch."""
    rng = np.random.default_rng(0)
    short, long = (tuple(np.sort(rng.uniform(1, top, 64)).tolist()) for top in (1.5, 60.0))
    ours = dict(short=short, long=long)
    theirs = dict(short_factor=list(short), long_factor=list(long), original_max_position_embeddings=4096)
    for longest in (8192, 131072):
        same_turn('longrope', ours, 'longrope', dict(theirs, longest=longest, length=longest), longest=longest)
    same_turn('longrope', ours, 'longrope', dict(theirs, longest=4096, length=4096), longest=4096)
    same_turn('longrope', dict(ours, stretch=32.0), 'longrope', dict(theirs, factor=32.0, length=4096), longest=4096)
    same_turn('longrope', dict(ours, stretch=20.0), 'longrope', dict(theirs, factor=20.0, length=131072))


@pytest.mark.parametrize('stretch, low, high, trained, theta', [
    (8.0, 1.0, 4.0, 8192, 500000.0), (32.0, 1.0, 4.0, 8192, 500000.0), (8.0, 2.0, 8.0, 4096, 10000.0)])
def test_llama3_frequencies(stretch, low, high, trained, theta):
    """Catches low and high exchanged, a blend in the wavelength, and the wrong end divided; ours by default are Llama 3.1's."""
    theirs = dict(factor=stretch, low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=trained,
                  rope_theta=theta)
    same_turn('llama3', dict(stretch=stretch, low=low, high=high, length=trained, base=theta), 'llama3', theirs)
    if (stretch, theta) == (8.0, 500000.0):
        same_turn('llama3', {}, 'llama3', theirs)


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_rotated_queries_and_keys(layout):
    """Catches the other pairing of dimensions, a turn of the wrong sign, and keys that turn against queries: dimension by dimension
    Llama's halves and GPT-J's neighbours, of a whole head and of its first half."""
    length, d, rng = 40, 64, np.random.default_rng(0)
    for name, part in (('rope', d), ('rope_partial', d // 2)):
        q, k = rng.normal(size=(2, 1, 3, length, d)).astype(np.float32)
        arguments = dict(layout=layout) | ({} if part == d else dict(fraction=0.5))
        encoding = alone(name, d, **arguments)
        site = at(range(length))
        found = [np.asarray(x) for x in encoding.rotate(dataclasses.replace(site, shared=encoding.share(site)), q, k)]
        if layout == 'half':
            module = modeling('llama')
            config = transformers.LlamaConfig(head_dim=part, rope_parameters={'rope_type': 'default', 'rope_theta': 10000.0})
            cos, sin = module.LlamaRotaryEmbedding(config)(tensor(q), torch.arange(length)[None])
            turned = module.apply_rotary_pos_emb(tensor(q[..., :part]), tensor(k[..., :part]), cos, sin)
        else:
            module = modeling('gptj')
            sin, cos = module.create_sinusoidal_positions(length, part)[None].chunk(2, -1)
            turned = [module.apply_rotary_pos_emb(tensor(x[..., :part]).transpose(1, 2), sin, cos).transpose(1, 2) for x in (q, k)]
        expected = [np.concatenate([t.numpy(), x[..., part:]], -1) for t, x in zip(turned, (q, k))]
        for a, b in zip(found, expected):
            close(a, b)
        close(found[0] @ found[1].swapaxes(2, 3), expected[0] @ expected[1].swapaxes(2, 3), 2e-4)     # sums of 64 products


# ---- biases

@pytest.mark.parametrize('heads', [6, 8, 12, 40])
def test_alibi_slopes(heads):
    """Catches slopes of another ratio, in another order where heads are no power of two, or of the wrong sign."""
    length = 9
    encoding, site = REGISTRY['alibi'](Dims(heads * 8, heads, heads, 8, 1, length)), at(range(length))
    bias, of_key = (np.asarray(b, float).reshape(heads, length, -1) for b in (encoding.bias(site), encoding.key_bias(site)[0, :, :, None]))
    bloom = modeling('bloom').build_alibi_tensor(torch.ones(1, length), heads, torch.float32)       # [H,1,S], m j
    mpt = modeling('mpt').build_mpt_alibi_tensor(heads, length)                                     # [H,1,S], m (j - i) of the last i
    np.testing.assert_allclose(of_key[..., 0], bloom[:, 0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(bias[:, -1], mpt[:, 0].numpy(), rtol=1e-6)
    ahead = np.triu(np.ones((length, length), bool), 1)
    np.testing.assert_allclose(np.where(ahead, 0, bias - bias[..., :1]), np.where(ahead, 0, bloom.numpy()), rtol=1e-6)
    x = pytest.importorskip('x_transformers.x_transformers', reason=WHY)
    np.testing.assert_allclose(np.where(ahead, 0, bias), np.where(ahead, 0, x.AlibiPositionalBias(heads)(length, length).numpy()), rtol=1e-6)


@pytest.mark.parametrize('buckets, longest', [(32, 128), (32, 256), (64, 128), (16, 64)])
def test_t5_buckets(buckets, longest):
    """Catches a bound that is off by one, halves that are not of `buckets`, and the buckets of the two-sided form."""
    n = np.arange(2001)
    encoding = REGISTRY['t5'](Dims(8, 1, 1, 8, 1, 2001), num_buckets=buckets, max_distance=longest)
    site = Site(None, jnp.array([[2000]]), k_positions=2000 - jnp.asarray(n)[None], shared=jnp.arange(float(buckets))[:, None])
    theirs = modeling('t5').T5Attention._relative_position_bucket(-torch.arange(2001), False, buckets, longest).numpy()
    np.testing.assert_array_equal(np.asarray(encoding.bias(site)).ravel(), theirs)


# ---- attention whose input is the identity matrix (weights.py), so that projections are the queries and keys of each token

def x_attention(x, m, options=None, parameters=None, **inputs):
    """The Attention of x-transformers with the projections of what we ran -> its weights and what it gives out."""
    attention = x.Attention(T, dim_head=D, heads=HEADS, causal=True, **options or {})
    of_heads = lambda a: a.transpose(0, 2, 1).reshape(-1, T)                # [H,T,d] -> [(H d),T]
    values = {'to_q.weight': of_heads(m.q), 'to_k.weight': of_heads(m.k), 'to_v.weight': of_heads(m.v),
              'to_out.weight': m.out_kernel.reshape(-1, T).T, **(parameters or {})}
    for name, value in values.items():
        attention.get_parameter(name).copy_(tensor(value))
    out, more = attention(torch.eye(T)[None], return_intermediates=True, **inputs)
    return more.post_softmax_attn[0].numpy(), out[0].numpy()


def x_rotary(x, m, d=D, **options):
    return x_attention(x, m, rotary_pos_emb=x.RotaryEmbedding(d, **options)(torch.arange(T)))


def x_polar(x, m):
    polar = x.PolarEmbedding(D, HEADS)
    polar.learned_bias.copy_(tensor(of_kv(m.p.delta))[:, None])
    return x_attention(x, m, polar_pos_emb=polar(torch.arange(T)))


def x_buckets(x, m):
    relative = x.RelativePositionBias(1.0, causal=True, num_buckets=6, max_distance=10, heads=HEADS)
    relative.relative_attention_bias.weight.copy_(tensor(m.p.table))
    return x_attention(x, m, rel_pos=relative)


X_CASES = {   # name -> our arguments, the attention of x-transformers
    'none': ({}, x_attention),
    'rope_interleaved': ({}, x_rotary),
    'rope_partial': (dict(layout='interleaved', fraction=0.5), lambda x, m: x_rotary(x, m, D // 2)),
    'rope_interpolated': (dict(layout='interleaved', stretch=3.0), lambda x, m: x_rotary(x, m, interpolation_factor=3.0)),
    'rope_ntk': (dict(layout='interleaved', stretch=5.0), lambda x, m: x_rotary(x, m, base_rescale_factor=5.0)),
    'xpos': (dict(layout='interleaved', scale_base=16.0), lambda x, m: x_rotary(x, m, use_xpos=True, scale_base=16)),
    'pope': ({}, x_polar),
    'alibi': ({}, lambda x, m: x_attention(x, m, rel_pos=x.AlibiPositionalBias(HEADS))),
    't5': (dict(num_buckets=6, max_distance=10), x_buckets),
    'forgetting': ({}, lambda x, m: x_attention(x, m, dict(data_dependent_alibi=True), {
        'data_dependent_alibi.to_forget_gates.0.weight': m.p.gate.T, 'data_dependent_alibi.to_forget_gates.0.bias': m.p.gate_bias})),
    'cope_unscaled': (dict(places=4), lambda x, m: x_attention(
        x, m, dict(use_cope=True, cope_max_pos=4), {'attend.cope.pos_emb': m.p.table})),
    'selective': ({}, lambda x, m: x_attention(x, m, dict(selective=True))),
    'window': (dict(window=3), lambda x, m: x_attention(x, m, dict(max_attend_past=2)))}       # tokens before its own


@pytest.mark.parametrize('name', X_CASES)
def test_attention_of_x_transformers(name):
    """Catches a term of the wrong sign, scale, head or direction, one that leaves out or doubles the token itself, and what enters
    before the scale of the logits in place of after it."""
    x = pytest.importorskip('x_transformers.x_transformers', reason=WHY)
    arguments, attention = X_CASES[name]
    m = run(name, arguments, given=dict(delta=-np.linspace(-0.5, 7.0, D)) if name == 'pope' else None)
    weights, out = attention(x, m)
    close(m.weights, weights)
    close(m.out, out, 2e-4)
    assert name == 'none' or abs(weights - x_attention(x, m)[0]).max() > 1e-2, 'compared at values that do nothing'


def test_scaled_sinusoids_of_x_transformers():
    """Catches sines and cosines that alternate, words that are scaled, and a scale of the words in place of the positions."""
    x = pytest.importorskip('x_transformers.x_transformers', reason=WHY)
    theirs, words = x.ScaledSinusoidalEmbedding(T), np.random.default_rng(0).normal(size=(1, 30, T)).astype(np.float32)
    given = lambda name, init, shape, axes: init(None, shape, jnp.float32)
    close(alone('sinusoidal_scaled').embed(dataclasses.replace(at(range(30)), param=given), words), words + theirs(tensor(words)).numpy())


def linear(layer, weight, bias=None):
    """Writes [H,T,d] of each token, or [W,H,d], into a linear layer of transformers."""
    weight = tensor(weight).movedim(1, 0) if len(weight) == HEADS else tensor(weight)           # [W,H,d]
    layer.weight.zero_()
    layer.weight[:, :len(weight)] = weight.flatten(1).T
    if layer.bias is not None:
        layer.bias.copy_(torch.zeros(layer.bias.shape) if bias is None else tensor(bias).flatten())


CAUSAL = np.tril(np.ones((T, T), bool))


def deberta(m):
    """DeBERTa-v2 with a causal mask; its rows for keys ahead are drawn, and must not matter."""
    config = types.SimpleNamespace(
        hidden_size=T, num_attention_heads=HEADS, attention_head_size=D, pos_att_type=['c2p', 'p2c'], relative_attention=True,
        position_buckets=-1, max_relative_positions=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    attention = modeling('deberta_v2').DisentangledSelfAttention(config)
    for layer, weight in ((attention.query_proj, m.q), (attention.key_proj, m.k), (attention.value_proj, m.v),
                          (attention.pos_key_proj, m.p.keys)):
        linear(layer, weight)
    linear(attention.pos_query_proj, m.p.queries, m.p.query_bias)
    rows = torch.cat([torch.randn(5, T), tensor(m.p.table)])
    return attention(torch.eye(T)[None], torch.tensor(CAUSAL)[None, None], True, rel_embeddings=rows)[1][0]


def transformer_xl(m):
    """XLNet's attention, one-directional and without segments: Transformer-XL's, of the same authors."""
    module = modeling('xlnet')
    attention = module.XLNetRelativeAttention(types.SimpleNamespace(d_model=T, n_head=HEADS, d_head=D, layer_norm_eps=1e-5, dropout=0.0))
    of = types.SimpleNamespace(d_model=T, attn_type='uni', bi_data=False, clamp_len=-1,
                               positional_embedding=module.XLNetModel.positional_embedding)
    values = dict(q=m.q.swapaxes(0, 1), k=m.k.swapaxes(0, 1), v=m.v.swapaxes(0, 1), r=m.p.w_r, o=m.out_kernel.transpose(2, 0, 1),
                  r_w_bias=m.p.u, r_r_bias=m.p.v)
    for name, value in values.items():
        attention.get_parameter(name).copy_(tensor(value))
    places = module.XLNetModel.relative_positional_encoding(of, T, T)
    ahead = tensor(~CAUSAL)[:, :, None, None]
    return attention(torch.eye(T)[:, None], None, ahead, None, places, None, output_attentions=True)[2][:, :, 0].permute(2, 0, 1)


def shaw(m):
    """Wav2Vec2-BERT's keys of relative positions, four back and none ahead, in a causal mask; it has none for values."""
    config = types.SimpleNamespace(
        hidden_size=HEADS * D, num_attention_heads=HEADS, attention_dropout=0.0, position_embeddings_type='relative_key',
        left_max_position_embeddings=4, right_max_position_embeddings=0, _attn_implementation='eager')
    attention = modeling('wav2vec2_bert').Wav2Vec2BertSelfAttention(config)
    for layer, weight in ((attention.linear_q, m.q), (attention.linear_k, m.k), (attention.linear_v, m.v)):
        linear(layer, weight)
    attention.distance_embedding.weight.copy_(tensor(m.p.keys[::-1]))
    return attention(torch.eye(T, HEADS * D)[None], tensor(np.where(CAUSAL, 0, -1e30)))[1][0]


@pytest.mark.parametrize('name, arguments, attention', [
    ('deberta', dict(span=5), deberta), ('transformer_xl', {}, transformer_xl), ('shaw', dict(clip=4), shaw)])
def test_weights_of_relative_keys(name, arguments, attention):
    """Catches a table read from the wrong end or clipped one row early, a term of the key looked up at the query's row, another scale
    of the terms, and the two biases of Transformer-XL exchanged."""
    m = run(name, arguments)
    close(m.weights, attention(m).numpy())


# ---- whole models

VOCAB, WIDTH, MLP, TIME, HEAD = 31, 32, 48, 60, 16
TOKENS = np.random.default_rng(3).integers(0, VOCAB, (2, TIME))


def weights(w_q, w_k, w_v, w_out, up, down, norms, gate=None):
    """Linear weights [out,in] of a layer of theirs -> ours."""
    heads, kernel = (lambda w: {'kernel': w.reshape(-1, HEAD, WIDTH).permute(2, 0, 1)}), (lambda w: {'kernel': w.T})
    names = ('attention_norm', 'feed_forward_norm')
    return {'attention': {'query': heads(w_q), 'key': heads(w_k), 'value': heads(w_v),
                          'out': {'kernel': w_out.T.reshape(-1, HEAD, WIDTH)}},
            'feed_forward': {'up': kernel(up), 'down': kernel(down), **({} if gate is None else {'gate': kernel(gate)})},
            **{n: norm(x) for n, x in zip(names, norms)}}


def norm(x):
    bias = getattr(x, 'bias', None)
    return {'scale': x.weight, 'bias': torch.zeros(WIDTH) if bias is None else bias}


def same_logits(model, layers, embedding, final, more=None, **changes):
    """Compares our logits with theirs after all weights are drawn; `layers` reads them. Biases but those of norms are 0."""
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        of_norm = 'norm' in name or 'ln_' in name
        p.copy_((torch.randn(p.shape) * 0.2 + (name.endswith('weight') and p.ndim == 1)) * (of_norm or p.ndim > 1))
    theirs = model.eval()(torch.tensor(TOKENS)).logits.numpy()
    params = {'embedding': embedding.weight, 'final_norm': norm(final), **{f'layer_{i}': x for i, x in enumerate(layers())}, **(more or {})}
    c = base.get_config().model
    c.update(width=WIDTH, num_heads=4, num_kv_heads=4, head_dim=HEAD, mlp_width=MLP, num_layers=2)
    c.update(changes)
    ours = Transformer(resolve(c, VOCAB, TIME))
    places, ones = np.tile(np.arange(TIME), (2, 1)), np.ones((2, TIME), np.int32)
    call = jax.jit(lambda p: ours.apply({'params': p}, TOKENS, places, ones)[0])
    np.testing.assert_allclose(call(jax.tree.map(lambda x: x.numpy(), params)), theirs, rtol=0, atol=1e-4)


def test_gpt2():
    """Catches positions that start at 1, a norm after its part or none at the end, epsilon or variance of LayerNorm, and another GELU."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=TIME, n_embd=WIDTH, n_layer=2, n_head=2, n_inner=MLP, layer_norm_epsilon=1e-6))
    body = model.transformer
    layers = lambda: [weights(*b.attn.c_attn.weight.T.chunk(3), b.attn.c_proj.weight.T, b.mlp.c_fc.weight.T, b.mlp.c_proj.weight.T,
                              (b.ln_1, b.ln_2)) for b in body.h]
    same_logits(model, layers, body.wte, body.ln_f, {'positions_learned': {'table': body.wpe.weight}}, positions='learned',
                norm='layernorm', activation='gelu', num_heads=2, num_kv_heads=2)


def of_llama(model):
    return lambda: [weights(a.q_proj.weight, a.k_proj.weight, a.v_proj.weight, a.o_proj.weight, f.up_proj.weight, f.down_proj.weight,
                            (b.input_layernorm, b.post_attention_layernorm), f.gate_proj.weight)
                    for b in model.model.layers for a, f in [(b.self_attn, getattr(b, 'mlp', None) or b.feed_forward)]]


SMALL = dict(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=MLP, num_attention_heads=4, num_key_value_heads=2, head_dim=HEAD,
             rms_norm_eps=1e-6, tie_word_embeddings=True, attn_implementation='eager', bos_token_id=None, eos_token_id=None,
             pad_token_id=None)
NEAR, FAR = (list(np.linspace(1.0, top, HEAD // 2)) for top in (1.2, 6.0))
LLAMAS = {   # label -> ours, theirs; trained on 20 tokens
    'rope': ({}, dict(rope_type='default')),
    'rope_interpolated': (dict(stretch=3.0), dict(rope_type='linear', factor=3.0)),
    'rope_dynamic': (dict(stretch=2.0, length=20), dict(rope_type='dynamic', factor=2.0)),
    'yarn': (dict(stretch=3.0, length=20, beta_fast=3.0), dict(
        rope_type='yarn', factor=3.0, original_max_position_embeddings=20, beta_fast=3.0)),
    'longrope': (dict(stretch=3.0, length=20, short=NEAR, long=FAR), dict(
        rope_type='longrope', factor=3.0, original_max_position_embeddings=20, short_factor=NEAR, long_factor=FAR)),
    'llama3': (dict(stretch=3.0, length=20, high=3.0), dict(
        rope_type='llama3', factor=3.0, original_max_position_embeddings=20, low_freq_factor=1.0, high_freq_factor=3.0))}


@pytest.mark.parametrize('name', LLAMAS)
def test_llama(name):
    """Catches query heads given to the wrong key-value head, gate and up exchanged, a scale by the width, and a stretch, or its factor
    of queries and keys, that the model does not get: the text is three times as long as the trained length."""
    ours, theirs = LLAMAS[name]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **SMALL, num_hidden_layers=2, max_position_embeddings=20 if name == 'rope_dynamic' else TIME,
        rope_parameters=dict(theirs, rope_theta=20.0)))
    same_logits(model, of_llama(model), model.model.embed_tokens, model.model.norm, positions=name, num_kv_heads=2,
                positions_args=dict(ours, base=20.0))


@pytest.mark.parametrize('pattern', ['smollm3', 'rnope_swa'])
def test_smollm3(pattern):
    """Catches a pattern that begins with the layer that has no positions, a window in that layer, and one off by a token."""
    windows = dict(use_sliding_window=True, sliding_window=7, layer_types=['sliding_attention'] * 3 + ['full_attention'])
    model = transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(
        **SMALL, num_hidden_layers=4, rope_parameters=dict(rope_type='default', rope_theta=20.0), **(windows if pattern == 'rnope_swa' else {})))
    same_logits(model, of_llama(model), model.model.embed_tokens, model.model.norm, positions=pattern, num_layers=4, num_kv_heads=2,
                positions_args=dict(base=20.0) | (dict(window=7) if pattern == 'rnope_swa' else {}))


def test_llama4():
    """Catches chunks counted from the query, a norm of queries and keys before the rotation or with a scale, a temperature in the
    layers with RoPE, off by one or without the floor: the dense layers of Llama 4."""
    model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(
        **SMALL, num_hidden_layers=4, intermediate_size_mlp=MLP, moe_layers=[], attention_chunk_size=8, floor_scale=7, attn_scale=0.5,
        rope_parameters=dict(rope_type='default', rope_theta=20.0)))
    same_logits(model, of_llama(model), model.model.embed_tokens, model.model.norm, positions='irope', num_layers=4, num_kv_heads=2,
                positions_args=dict(base=20.0, layout='interleaved', chunk=8, floor=7, strength=0.5, eps=1e-6))


@pytest.mark.parametrize('heads', [4, 6])
def test_mpt(heads):
    """Catches a bias of ALiBi that is scaled with the logits or of the wrong sign, and slopes given to the wrong heads; MPT's GELU is
    exchanged for ours, which is the one with tanh."""
    wide = heads * HEAD
    model = transformers.MptForCausalLM(transformers.MptConfig(
        vocab_size=VOCAB, d_model=WIDTH, n_heads=heads, n_layers=2, max_seq_len=TIME, layer_norm_epsilon=1e-6))
