"""Encodings and whole models beside those of published packages, with the same random weights, in float32.

Written against torch 2.13.0, transformers 5.23.0 and x-transformers 2.31.10; what is not installed is skipped.
"""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from model.config import resolve
from model.positions import REGISTRY, Dims, EncodingInputs
from model.transformer import Transformer
from tests.model.weights import HEADS, D, T, alone, close, of_kv, run

WHY = "packages to compare with: pip install -e '.[test]'"
torch, transformers = (pytest.importorskip(name, reason=WHY) for name in ('torch', 'transformers'))
torch.set_grad_enabled(False)  # in this process, where nothing else uses it


@pytest.fixture
def x():
    return pytest.importorskip('x_transformers.x_transformers', reason=WHY)


def modeling(name):
    """The module of transformers with the model `name`."""
    return pytest.importorskip(f'transformers.models.{name}.modeling_{name}', reason=WHY)


def tensor(a):
    return torch.from_numpy(np.array(a, np.float32))


def at(ids):
    """Inputs of one document whose tokens have these ids."""
    ids = jnp.asarray(ids)[None]
    ones = jnp.ones(ids.shape, jnp.int32)
    return EncodingInputs(None, ids, ids, ones, k_ids=ids, k_positions=ids, k_segment_ids=ones)


# ---- frequencies of RoPE


def turn(name, arguments, d, longest=131072, trained=4096, length=2):
    """The frequencies, and the factor of queries and keys, by which ours turns the token at position 1 of `length` tokens."""
    encoding = REGISTRY[name](Dims(4 * d, 4, 4, d, 1, longest, trained), **arguments)
    encoding.check()
    inputs, half = at([1, length - 1]), encoding.rotary_dim // 2
    inputs = dataclasses.replace(inputs, shared=encoding.share(inputs))
    ones = jnp.broadcast_to(jnp.arange(d) < half, (1, 1, 2, d)).astype(jnp.float32)
    q, k = (
        np.asarray(a[0, 0, 0], float)
        for a in encoding.read(inputs, *encoding.rotate(inputs, ones, ones))
    )
    np.testing.assert_array_equal(q, k)
    return np.arctan2(q[half : 2 * half], q[:half]), np.hypot(q[half : 2 * half], q[:half])


def published_turn(kind, d, longest=131072, length=None, **parameters):
    """The same of transformers, `kind` a rope_type, for a text of `length` tokens."""
    config = transformers.LlamaConfig(
        head_dim=d,
        max_position_embeddings=longest,
        rope_parameters={'rope_type': kind, 'rope_theta': 10000.0, **parameters},
    )
    if kind == 'default':
        return modeling('gpt_neox').GPTNeoXRotaryEmbedding.compute_default_rope_parameters(config)
    return transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)


def turns(d):
    """(name, arguments, what `turn` is given), (rope_type, what `published_turn` is given) of heads of d dimensions."""
    for base_ in (10000.0, 500000.0):
        theirs = dict(rope_theta=base_)
        yield ('rope', dict(base=base_), {}), ('default', theirs)
        for share in (0.25, 0.5, 0.75, 1.0):
            for name, kind in (('rope_partial', 'default'), ('rope_proportional', 'proportional')):
                yield (
                    (name, dict(base=base_, fraction=share), {}),
                    (kind, dict(theirs, partial_rotary_factor=share)),
                )
    yield ('rope_interpolated', {}, {}), ('linear', dict(factor=131072 / 4096))
    for s in (1.0, 2.0, 8.0):
        yield ('rope_interpolated', dict(stretch=s), {}), ('linear', dict(factor=s))
        for n in (100, 4096, 4097, 9000, 131072):
            yield (
                ('rope_dynamic', dict(stretch=s), dict(length=n)),
                ('dynamic', dict(factor=s, longest=4096, length=n)),
            )
    yield ('yarn', {}, {}), ('yarn', dict(factor=None, original_max_position_embeddings=4096))
    for s, trained, base_ in (
        (4.0, 2048, 1e4),
        (16.0, 4096, 1e4),
        (40.0, 4096, 5e5),
        (4.0, 32768, 1e6),
    ):
        ours = dict(stretch=s, length=trained, base=base_)
        theirs = dict(factor=s, original_max_position_embeddings=trained, rope_theta=base_)
        yield ('rope_by_parts', ours, {}), ('yarn', dict(theirs, attention_factor=1.0))
        for ends in ({}, dict(beta_fast=16.0, beta_slow=2.0), dict(beta_fast=100.0)):
            yield ('yarn', ours | ends, {}), ('yarn', theirs | ends)
        for m, m_all in ((1.0, 1.0), (0.707, 0.707), (1.0, 0.5), (0.8, 1.3)):
            yield (
                ('yarn', dict(ours, mscale=m, mscale_all=m_all), {}),
                ('yarn', dict(theirs, mscale=m, mscale_all_dim=m_all)),
            )
    short, long = (
        np.sort(np.random.default_rng(0).uniform(1, top, d // 2)).tolist() for top in (1.5, 60.0)
    )
    ours, theirs = (
        dict(short=short, long=long),
        dict(short_factor=short, long_factor=long, original_max_position_embeddings=4096),
    )
    for n in (
        4096,
        8192,
        131072,
    ):  # ours knows the longest text, theirs looks at the one it is given
        yield ('longrope', ours, dict(longest=n)), ('longrope', dict(theirs, longest=n, length=n))
        yield (
            ('longrope', dict(ours, stretch=20.0), dict(longest=n)),
            ('longrope', dict(theirs, factor=20.0, length=n)),
        )
    for s, low, high, n, base_ in (
        (8.0, 1.0, 4.0, 8192, 5e5),
        (32.0, 1.0, 4.0, 8192, 5e5),
        (8.0, 2.0, 8.0, 4096, 1e4),
    ):
        theirs = dict(
            factor=s,
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=n,
            rope_theta=base_,
        )
        ours = (
            {}
            if (s, n) == (8.0, 8192)
            else dict(stretch=s, low=low, high=high, length=n, base=base_)
        )
        yield ('llama3', ours, {}), ('llama3', theirs)


@pytest.mark.parametrize('d', [64, 128])
@pytest.mark.parametrize('name', dict.fromkeys(case[0][0] for case in turns(64)))
def test_frequencies(name, d):
    """Catches exponents that count pairs or the whole head, a stretch that multiplies or misses the ratio of the lengths, a base
    that changes within the trained length, a ramp in the frequency in place of the index, ends that are not rounded or exchanged,
    the list of the other texts, and a factor of queries and keys that is squared, rooted or inverted."""
    for (ours, arguments, more), (kind, parameters) in turns(d):
        if ours == name:
            frequencies, factor = published_turn(kind, d, **parameters)
            found, found_factor = turn(name, arguments, d, **more)
            np.testing.assert_allclose(
                found, frequencies.numpy(), rtol=2e-6, err_msg=f'{arguments} {parameters}'
            )
            np.testing.assert_allclose(
                found_factor, factor, rtol=1e-6, err_msg=f'{arguments} {parameters}'
            )


@pytest.mark.parametrize('part', [64, 32])
@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_rotated_queries_and_keys(layout, part):
    """Catches the other pairing of dimensions, a turn of the wrong sign, and dimensions that should stay: Llama's halves, GPT-J's
    neighbours, of a whole head and of its first half."""
    n, d, llama, gptj = 40, 64, modeling('llama'), modeling('gptj')
    q, k = tensor(np.random.default_rng(0).normal(size=(2, 1, 3, n, d)))
    encoding, inputs = alone('rope_partial', d, layout=layout, fraction=part / d), at(range(n))
    found = [
        np.asarray(a)
        for a in encoding.rotate(
            dataclasses.replace(inputs, shared=encoding.share(inputs)), q.numpy(), k.numpy()
        )
    ]
    if layout == 'half':
        config = transformers.LlamaConfig(
            head_dim=part, rope_parameters={'rope_type': 'default', 'rope_theta': 10000.0}
        )
        angles = llama.LlamaRotaryEmbedding(config)(q, torch.arange(n)[None])
        turned = llama.apply_rotary_pos_emb(q[..., :part], k[..., :part], *angles)
    else:
        sin, cos = gptj.create_sinusoidal_positions(n, part)[None].chunk(2, -1)
        turned = [
            gptj.apply_rotary_pos_emb(a[..., :part].transpose(1, 2), sin, cos).transpose(1, 2)
            for a in (q, k)
        ]
    expected = [torch.cat([a, whole[..., part:]], -1).numpy() for a, whole in zip(turned, (q, k))]
    close(found, expected)
    close(
        found[0] @ found[1].swapaxes(2, 3), expected[0] @ expected[1].swapaxes(2, 3), 1e-4
    )  # sums of 64 products


def test_sinusoids(x):
    """Catches sines and cosines in the other order or layout, and a scale of the words in place of the positions."""
    words = np.random.default_rng(0).normal(size=(1, 30, T)).astype(np.float32)
    given = dataclasses.replace(
        at(range(30)), param=lambda name, init, shape, axes: init(None, shape, jnp.float32)
    )
    close(
        alone('sinusoidal_scaled').embed(given, words),
        words + x.ScaledSinusoidalEmbedding(T)(tensor(words)).numpy(),
    )
    marian = modeling('marian').MarianSinusoidalPositionalEmbedding(30, T).create_weight().numpy()
    xlm = modeling('xlm').create_sinusoidal_embeddings(30, T, torch.empty(30, T)).numpy()
    for name, table in (('sinusoidal_concatenated', marian), ('sinusoidal', xlm)):
        close(alone(name).embed(given, words), words * T**0.5 + table)


@pytest.mark.parametrize('heads', [6, 8, 12, 40])
def test_alibi(heads, x):
    """Catches slopes of another ratio, another order where heads are no power of two, and a bias that grows with the distance."""
    n, seen = 9, np.tril(np.ones((9, 9), bool))
    encoding, inputs = REGISTRY['alibi'](Dims(heads * 8, heads, heads, 8, 1, n)), at(range(n))
    bias = np.asarray(encoding.bias(inputs))[0]
    bloom = (
        modeling('bloom').build_alibi_tensor(torch.ones(1, n), heads, torch.float32).numpy()
    )  # m j, up to a constant a row
    same = lambda a, b: np.testing.assert_allclose(
        np.where(seen, a, 0), np.where(seen, b, 0), rtol=1e-6
    )
    same(bias - bias[..., :1], bloom)
    same(np.asarray(encoding.key_bias(inputs))[0, :, None], bloom)
    same(
        bias[:, -1:], modeling('mpt').build_mpt_alibi_tensor(heads, n).numpy()
    )  # m (j - i) of the last i
    same(bias, x.AlibiPositionalBias(heads)(n, n).numpy())


@pytest.mark.parametrize('buckets, longest', [(32, 128), (32, 256), (64, 128), (16, 64)])
def test_t5_buckets(buckets, longest):
    """Catches a bound that is off by one, halves that are not of `buckets`, and the buckets of the two-sided form."""
    encoding, n = (
        REGISTRY['t5'](Dims(8, 1, 1, 8, 1, 2001), num_buckets=buckets, max_distance=longest),
        torch.arange(2001),
    )
    inputs = EncodingInputs(
        None,
        jnp.array([[2000]]),
        k_ids=2000 - jnp.asarray(n)[None],
        shared=jnp.arange(float(buckets))[:, None],
    )
    theirs = modeling('t5').T5Attention._relative_position_bucket(-n, False, buckets, longest)
    np.testing.assert_array_equal(np.asarray(encoding.bias(inputs)).ravel(), theirs.numpy())


# ---- attention whose input is the identity matrix (weights.py), so that projections are the queries and keys of each token


def x_attention(x, m, options=None, parameters=None, **inputs):
    """The Attention of x-transformers with the projections of what we ran -> its weights and what it gives out."""
    attention = x.Attention(T, dim_head=D, heads=HEADS, causal=True, **options or {})
    of_heads = lambda a: a.transpose(0, 2, 1).reshape(-1, T)  # [H,T,d] -> [(H d),T]
    values = {
        'to_q.weight': of_heads(m.q),
        'to_k.weight': of_heads(m.k),
        'to_v.weight': of_heads(m.v),
        'to_out.weight': m.out_kernel.reshape(-1, T).T,
        **(parameters or {}),
    }
    for name, value in values.items():
        attention.get_parameter(name).copy_(tensor(value))
    out, more = attention(torch.eye(T)[None], return_intermediates=True, **inputs)
    return more.post_softmax_attn[0].numpy(), out[0].numpy()


def x_rotary(x, m, **options):
    return x_attention(x, m, rotary_pos_emb=x.RotaryEmbedding(D, **options)(torch.arange(T)))


def x_polar(x, m):
    polar = x.PolarEmbedding(D, HEADS)
    polar.learned_bias.copy_(tensor(of_kv(m.p.delta))[:, None])
    return x_attention(x, m, polar_pos_emb=polar(torch.arange(T)))


X_CASES = {  # name -> our arguments, the attention of x-transformers
    'rope_interleaved': ({}, x_rotary),
    'rope_ntk': (
        dict(layout='interleaved', stretch=5.0),
        lambda x, m: x_rotary(x, m, base_rescale_factor=5.0),
    ),
    'xpos': (
        dict(layout='interleaved', scale_base=16.0),
        lambda x, m: x_rotary(x, m, use_xpos=True, scale_base=16),
    ),
    'pope': ({}, x_polar),
    'alibi': ({}, lambda x, m: x_attention(x, m, rel_pos=x.AlibiPositionalBias(HEADS))),
    'forgetting': (
        {},
        lambda x, m: x_attention(
            x,
            m,
            dict(data_dependent_alibi=True),
            {
                f'data_dependent_alibi.to_forget_gates.0.{n}': a
                for n, a in (('weight', m.p.gate.T), ('bias', m.p.gate_bias))
            },
        ),
    ),
    'cope_unscaled': (
        dict(places=4),
        lambda x, m: x_attention(
            x, m, dict(use_cope=True, cope_max_pos=4), {'attend.cope.pos_emb': m.p.table}
        ),
    ),
    'selective': ({}, lambda x, m: x_attention(x, m, dict(selective=True))),
    'window': (dict(window=3), lambda x, m: x_attention(x, m, dict(max_attend_past=2))),
}  # beside its own token


@pytest.mark.parametrize('name', X_CASES)
def test_attention_of_x_transformers(name, x):
    """Catches a term of the wrong sign, scale, head or direction, one that leaves out or doubles the token itself, and what
    enters before the scale of the logits in place of after it."""
    arguments, attention = X_CASES[name]
    m = run(
        name, arguments, given=dict(delta=-np.linspace(-0.5, 7.0, D)) if name == 'pope' else None
    )
    weights, out = attention(x, m)
    close(m.weights, weights)
    close(m.out, out, 2e-4)  # sums of 32 products of some size
    assert abs(weights - x_attention(x, m)[0]).max() > 1e-2, 'compared at values that do nothing'


def deberta(m, q, k):
    """DeBERTa-v2; its rows for keys ahead are drawn, and must not matter."""
    module = modeling('deberta_v2')
    kind = module.DisentangledSelfAttention
    of = SimpleNamespace(
        num_attention_heads=HEADS,
        pos_att_type=['c2p', 'p2c'],
        share_att_key=False,
        position_buckets=-1,
        max_relative_positions=5,
        pos_ebd_size=5,
        pos_key_proj=lambda rows: rows @ tensor(m.p.keys).flatten(1),
        transpose_for_scores=lambda *a: kind.transpose_for_scores(None, *a),
        pos_query_proj=lambda rows: (
            rows @ tensor(m.p.queries).flatten(1) + tensor(m.p.query_bias).flatten()
        ),
    )
    bias = kind.disentangled_attention_bias(
        of, q, k, None, torch.cat([torch.randn(5, T), tensor(m.p.table)]), 3
    )
    return q @ k.mT / module.scaled_size_sqrt(q, 3) + bias


def transformer_xl(m, q, k):
    """XLNet's attention in one direction, without segments or a mask: Transformer-XL's. The logarithm of its weights."""
    model, kind = modeling('xlnet').XLNetModel, modeling('xlnet').XLNetRelativeAttention
    of = SimpleNamespace(
        d_model=T,
        attn_type='uni',
        bi_data=False,
        clamp_len=-1,
        positional_embedding=model.positional_embedding,
        rel_shift_bnij=kind.rel_shift_bnij,
        r_w_bias=tensor(m.p.u),
        r_r_bias=tensor(m.p.v),
        scale=D**-0.5,
        dropout=lambda a: a,
    )
    places = torch.einsum(
        'ibD,Dhd->ibhd', model.relative_positional_encoding(of, T, T), tensor(m.p.w_r)
    )
    q, k = (a.movedim(1, 0)[:, None] for a in (q, k))
    return (
        kind.rel_attn_core(of, q, k, k, places, output_attentions=True)[1]
        .log()[:, :, 0]
        .permute(2, 0, 1)
    )


@pytest.mark.parametrize(
    'name, arguments, logits',
    [('deberta', dict(span=5), deberta), ('transformer_xl', {}, transformer_xl)],
)
def test_relative_keys(name, arguments, logits):
    """Catches a table read from the wrong end or clipped one row early, a term of the key looked up at the query's row, another
    scale of the terms, and the two biases of Transformer-XL exchanged."""
    m = run(name, arguments)
    expected = logits(m, tensor(m.q), tensor(m.k)).where(torch.ones(T, T).tril() > 0, -1e30)
    close(m.weights, torch.softmax(expected, -1).numpy())


# ---- whole models, trained on 20 tokens where that matters, at texts of 60

VOCAB, TIME, HEAD = 31, 60, 16
TOKENS = np.random.default_rng(3).integers(0, VOCAB, (2, TIME))


def norm(layer):
    return {
        'scale': layer.weight,
        'bias': torch.zeros_like(layer.weight)
        if getattr(layer, 'bias', None) is None
        else layer.bias,
    }


def weights(q, k, v, out, before, between, up, down, gate=None):
    """Linear weights [out,in] and norms of a layer of theirs -> ours."""
    heads = {
        n: w.unflatten(0, (-1, HEAD)).permute(2, 0, 1)
        for n, w in (('query', q), ('key', k), ('value', v))
    }
    wide = {n: w.T for n, w in (('up', up), ('down', down), ('gate', gate)) if w is not None}
    kernels = lambda part: {n: {'kernel': w} for n, w in part.items()}
    return {
        'attention': kernels({**heads, 'out': out.T.unflatten(0, (-1, HEAD))}),
        'feed_forward': kernels(wide),
        'attention_norm': norm(before),
        'feed_forward_norm': norm(between),
    }


def same_logits(model, read, **changes):
    """Draws the weights of a model, its biases but those of norms 0, and compares its logits with ours. `read`: -> table, final
    norm, layers, further parameters."""
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        drawn = torch.randn(p.shape) * 0.2 + (p.ndim == 1 and name.endswith('weight'))
        p.copy_(drawn * (p.ndim > 1 or 'norm' in name or 'ln_' in name))
    theirs = model.eval()(torch.tensor(TOKENS)).logits
    table, final, layers, more = read(model)
    params = {
        'embedding': table,
        'final_norm': norm(final),
        **{f'layer_{i}': layer for i, layer in enumerate(layers)},
        **more,
    }
    c = base.get_config().model
    c.update(
        dict(
            width=64,
            num_layers=len(layers),
            num_heads=4,
            num_kv_heads=4,
            head_dim=HEAD,
            mlp_width=48,
        )
        | changes
    )
    ours, places = Transformer(resolve(c, VOCAB, TIME)), np.tile(np.arange(TIME), (2, 1))
    params = jax.tree.map(lambda w: jnp.asarray(w.numpy()), params)
    close(
        ours.apply({'params': params}, TOKENS, places, np.ones_like(places))[0],
        theirs.numpy(),
        1e-4,
    )


def test_gpt2():
    """Catches positions that start at 1, a norm after its part or none at the end, and another LayerNorm or GELU."""

    def read(model):
        b = model.transformer
        return (
            b.wte.weight,
            b.ln_f,
            [
                weights(
                    *layer.attn.c_attn.weight.T.chunk(3),
                    layer.attn.c_proj.weight.T,
                    layer.ln_1,
                    layer.ln_2,
                    layer.mlp.c_fc.weight.T,
                    layer.mlp.c_proj.weight.T,
                )
                for layer in b.h
            ],
            {'positions_learned': {'table': b.wpe.weight}},
        )

    same_logits(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCAB,
                n_positions=TIME,
                n_embd=64,
                n_layer=2,
                n_head=4,
                n_inner=48,
                layer_norm_epsilon=1e-6,
            )
        ),
        read,
        positions='learned',
        norm='layernorm',
        activation='gelu',
    )


def test_mpt():
    """Catches a bias of ALiBi that is scaled with the logits, or falls towards the token itself, and slopes of the wrong heads.
    MPT's GELU is exchanged for ours, with tanh."""

    def read(model):
        b = model.transformer
        return (
            b.wte.weight,
            b.norm_f,
            [
                weights(
                    *layer.attn.Wqkv.weight.chunk(3),
                    layer.attn.out_proj.weight,
                    layer.norm_1,
                    layer.norm_2,
                    layer.ffn.up_proj.weight,
                    layer.ffn.down_proj.weight,
                )
                for layer in b.blocks
            ],
            {},
        )

    model = transformers.MptForCausalLM(
        transformers.MptConfig(
            vocab_size=VOCAB,
            d_model=96,
            n_heads=6,
            n_layers=2,
            max_seq_len=TIME,
            layer_norm_epsilon=1e-6,
        )
    )
    for layer in model.transformer.blocks:
        layer.ffn.act = torch.nn.GELU(approximate='tanh')
    same_logits(
        model,
        read,
        positions='alibi',
        norm='layernorm',
        activation='gelu',
        num_heads=6,
        num_kv_heads=6,
        width=96,
        mlp_width=384,
    )


NEAR, FAR = (np.linspace(1.0, top, HEAD // 2).tolist() for top in (1.2, 6.0))
THREE, SCALED = dict(stretch=3.0, length=20), dict(factor=3.0, original_max_position_embeddings=20)
MODELS = {  # our positions -> their arguments, model of transformers, its config, its RoPE
    'rope': ({}, 'Llama', {}, {}),
    'rope_dynamic': (
        THREE,
        'Llama',
        dict(max_position_embeddings=20),
        dict(rope_type='dynamic', factor=3.0),
    ),
    'yarn': (
        dict(THREE, beta_fast=3.0),
        'Llama',
        {},
        dict(SCALED, rope_type='yarn', beta_fast=3.0),
    ),
    'longrope': (
        dict(THREE, short=NEAR, long=FAR),
        'Llama',
        {},
        dict(SCALED, rope_type='longrope', short_factor=NEAR, long_factor=FAR),
    ),
    'llama3': (
        dict(THREE, high=3.0),
        'Llama',
        {},
        dict(SCALED, rope_type='llama3', low_freq_factor=1.0, high_freq_factor=3.0),
    ),
    'smollm3': ({}, 'SmolLM3', {}, {}),
    'rnope_swa': (
        dict(window=7),
        'SmolLM3',
        dict(
            use_sliding_window=True,
            sliding_window=7,
            layer_types=[*3 * ['sliding_attention'], 'full_attention'],
        ),
        {},
    ),
    'irope': (
        dict(layout='interleaved', chunk=8, floor=7, strength=0.5, eps=1e-6),
        'Llama4',
        dict(
            intermediate_size_mlp=48,
            moe_layers=[],
            attention_chunk_size=8,
            floor_scale=7,
            attn_scale=0.5,
        ),
        {},
    ),
}


@pytest.mark.parametrize('positions', MODELS)
def test_llama_and_its_kin(positions):
    """Catches query heads of the wrong key-value head, gate and up exchanged, a stretch or its factor that the model does not
    get, a pattern that begins with its layer without positions, a window or chunk off by one, and in Llama 4 a norm of queries
    and keys in the wrong layers and a temperature in the others."""

    def read(model):
        b = model.model
        return (
            b.embed_tokens.weight,
            b.norm,
            [
                weights(
                    *(layer.get_parameter(f'self_attn.{n}_proj.weight') for n in 'qkvo'),
                    layer.input_layernorm,
                    layer.post_attention_layernorm,
                    *(
                        layer.get_parameter(f'{part}.{n}_proj.weight')
                        for n in ('up', 'down', 'gate')
                    ),
                )
                for layer in b.layers
            ],
            {},
        )

    arguments, name, config, rope = MODELS[positions]
    part, kind = (
        'feed_forward' if name == 'Llama4' else 'mlp',
        getattr(transformers, f'{name}ForCausalLM'),
    )
    same_logits(
        kind(
            kind.config_class(
                **dict(
                    vocab_size=VOCAB,
                    hidden_size=64,
                    intermediate_size=48,
                    num_hidden_layers=2 if name == 'Llama' else 4,
                    head_dim=HEAD,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    rms_norm_eps=1e-6,
                    tie_word_embeddings=True,
                    attn_implementation='eager',
                    pad_token_id=None,
                    max_position_embeddings=TIME,
                    rope_parameters=dict(dict(rope_type='default', rope_theta=20.0), **rope),
                )
                | config
            )
        ),
        read,
        num_kv_heads=2,
        positions=positions,
        positions_args=dict(arguments, base=20.0),
    )
