"""Encodings and whole models beside those of published packages, same random weights, float32.

Each test runs twice: beside the packages' outputs as they are kept in `tests/golden/references`,
and, in the tier `reference`, beside the packages themselves.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from model.config import resolve
from model.positions import REGISTRY, Dims, EncodingInputs
from model.transformer import Transformer
from tests.golden.references import outputs
from tests.model.weights import HEADS, KV_HEADS, D, T, alone, close, run


@pytest.fixture(params=['kept', pytest.param('packages', marks=pytest.mark.reference)])
def published(request):
    """Returns the outputs of a function of `packages.py`, by its name and arguments."""
    return outputs.SOURCES[request.param]


def at(ids):
    """Returns inputs of one document whose tokens have these ids."""
    ids = jnp.asarray(ids)[None]
    ones = jnp.ones(ids.shape, jnp.int32)
    return EncodingInputs(None, ids, ids, ones, k_ids=ids, k_positions=ids, k_segment_ids=ones)


def drawn(**shapes):
    """Returns parameters, N(0, 0.7^2), by name."""
    rng = np.random.default_rng(7)
    return {name: rng.normal(size=shape) * 0.7 for name, shape in shapes.items()}


def test_an_output_never_answers_for_other_arguments():
    """Catches kept outputs that are read for arguments which they were not made for."""
    kept = outputs.SOURCES['kept']
    slopes = kept('alibi', 8, 9)
    assert set(slopes) == {'bloom', 'mpt', 'x_transformers'}
    for wrong in (('alibi', 8, 10), ('alibi', 8), ('nothing', 8, 9)):
        with pytest.raises(LookupError, match='python -m tests.golden.references.make'):
            kept(*wrong)

    # Rounding of another machine does not matter, anything that a test could mean does.
    a = np.linspace(-1, 1, 6).astype(np.float32)
    same = [(a, 0.1, {'n': 1}), (a.astype(float) + 1e-6, 0.1 + 1e-9, {'n': 1})]
    assert len({outputs.key_of(arguments) for arguments in same}) == 1
    others = [(a.reshape(2, 3), 0.1, {'n': 1}), (-a, 0.1, {'n': 1}), (a, 0.1, {'m': 1}), (a, 0.1)]
    assert len({outputs.key_of(arguments) for arguments in [same[0], *others]}) == 5


# ---- frequencies of RoPE


def turn(name, arguments, d, longest=131072, trained=4096, length=2):
    """Returns our frequencies, and the factor of queries and keys.

    They are those by which the token at position 1 of `length` tokens is turned.
    """
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


def turns(d):
    """Yields pairs for heads of d dimensions: ours, and the same of transformers.

    Ours is (name, its arguments, further arguments of `turn`), theirs (rope_type, its parameters,
    `longest` and `length` of the text among them).
    """
    yield from plain_turns()
    yield from stretched_turns()
    yield from yarn_turns()
    yield from longrope_turns(d)
    yield from llama3_turns()


def plain_turns():
    for base_ in (10000.0, 500000.0):
        theirs = dict(rope_theta=base_)
        yield ('rope', dict(base=base_), {}), ('default', theirs)
        for share in (0.25, 0.5, 0.75, 1.0):
            for name, kind in (('rope_partial', 'default'), ('rope_proportional', 'proportional')):
                yield (
                    (name, dict(base=base_, fraction=share), {}),
                    (kind, dict(theirs, partial_rotary_factor=share)),
                )


def stretched_turns():
    yield ('rope_interpolated', {}, {}), ('linear', dict(factor=131072 / 4096))
    for s in (1.0, 2.0, 8.0):
        yield ('rope_interpolated', dict(stretch=s), {}), ('linear', dict(factor=s))
        for n in (100, 4096, 4097, 9000, 131072):
            yield (
                ('rope_dynamic', dict(stretch=s), dict(length=n)),
                ('dynamic', dict(factor=s, longest=4096, length=n)),
            )


def yarn_turns():
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


def longrope_turns(d):
    short, long = (
        np.sort(np.random.default_rng(0).uniform(1, top, d // 2)).tolist() for top in (1.5, 60.0)
    )
    ours = dict(short=short, long=long)
    theirs = dict(short_factor=short, long_factor=long, original_max_position_embeddings=4096)

    # Ours knows the longest text, theirs looks at the one it is given.
    for n in (4096, 8192, 131072):
        yield ('longrope', ours, dict(longest=n)), ('longrope', dict(theirs, longest=n, length=n))
        yield (
            ('longrope', dict(ours, stretch=20.0), dict(longest=n)),
            ('longrope', dict(theirs, factor=20.0, length=n)),
        )


def llama3_turns():
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
        ours = dict(stretch=s, low=low, high=high, length=n, base=base_)
        if (s, n) == (8.0, 8192):
            ours = {}  # our defaults
        yield ('llama3', ours, {}), ('llama3', theirs)


@pytest.mark.parametrize('d', [64, 128])
@pytest.mark.parametrize('name', dict.fromkeys(ours[0] for ours, _ in turns(64)))
def test_frequencies(name, d, published):
    """Catches a wrong frequency or factor of queries and keys.

    Exponents that count pairs or the whole head, a stretch that multiplies or misses the ratio of
    the lengths, a base that changes within the trained length, a ramp in the frequency in place of
    the index, ends that are not rounded or exchanged, the list of the other texts, and a factor
    that is squared, rooted or inverted.
    """
    for (ours, arguments, more), (kind, parameters) in turns(d):
        if ours != name:
            continue
        theirs = published('frequencies', kind, d, parameters)
        frequencies, factor = turn(name, arguments, d, **more)
        case = f'{arguments} {parameters}'
        np.testing.assert_allclose(frequencies, theirs['frequencies'], rtol=2e-6, err_msg=case)
        np.testing.assert_allclose(factor, theirs['factor'], rtol=1e-6, err_msg=case)


@pytest.mark.parametrize('part', [64, 32])
@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_rotated_queries_and_keys(layout, part, published):
    """Catches the other pairing of dimensions and a turn of the wrong sign.

    Also dimensions turned that should stay: Llama's halves and GPT-J's neighbours, of a whole head
    and of its first half.
    """
    n, d = 40, 64
    q, k = np.random.default_rng(0).normal(size=(2, 1, 3, n, d)).astype(np.float32)
    encoding, inputs = alone('rope_partial', d, layout=layout, fraction=part / d), at(range(n))
    inputs = dataclasses.replace(inputs, shared=encoding.share(inputs))
    ours = [np.asarray(a) for a in encoding.rotate(inputs, q, k)]
    theirs = published('rotated', layout, part, q, k)
    expected = [theirs['q'], theirs['k']]
    close(ours, expected)
    # Sums of 64 products.
    close(ours[0] @ ours[1].swapaxes(2, 3), expected[0] @ expected[1].swapaxes(2, 3), 1e-4)


def test_sinusoids(published):
    """Catches sines and cosines in the other order or layout.

    Also a scale of the words in place of the positions.
    """
    words = np.random.default_rng(0).normal(size=(1, 30, T)).astype(np.float32)
    theirs = published('sinusoids', 30, T)

    def initial(name, init, shape, axes):
        return init(None, shape, jnp.float32)

    inputs = dataclasses.replace(at(range(30)), param=initial)
    close(alone('sinusoidal_scaled').embed(inputs, words), words + theirs['scaled'])
    for name, table in (
        ('sinusoidal_concatenated', theirs['marian']),
        ('sinusoidal', theirs['xlm']),
    ):
        close(alone(name).embed(inputs, words), words * T**0.5 + table)


@pytest.mark.parametrize('heads', [6, 8, 12, 40])
def test_alibi(heads, published):
    """Catches slopes of another ratio or order, and a bias that grows with the distance.

    The order is a matter of heads that are no power of two.
    """
    n = 9
    seen = np.tril(np.ones((n, n), bool))
    encoding, inputs = REGISTRY['alibi'](Dims(heads * 8, heads, heads, 8, 1, n)), at(range(n))
    bias = np.asarray(encoding.bias(inputs))[0]
    theirs = published('alibi', heads, n)

    def same(a, b):
        np.testing.assert_allclose(np.where(seen, a, 0), np.where(seen, b, 0), rtol=1e-6)

    same(bias - bias[..., :1], theirs['bloom'])  # m j, up to a constant a row
    same(np.asarray(encoding.key_bias(inputs))[0, :, None], theirs['bloom'])
    same(bias[:, -1:], theirs['mpt'])  # m (j - i) of the last i
    same(bias, theirs['x_transformers'])


@pytest.mark.parametrize('buckets, longest', [(32, 128), (32, 256), (64, 128), (16, 64)])
def test_t5_buckets(buckets, longest, published):
    """Catches a bound off by one, halves that are not of `buckets`, and the two-sided form."""
    dims = Dims(8, 1, 1, 8, 1, 2001)
    encoding = REGISTRY['t5'](dims, num_buckets=buckets, max_distance=longest)
    inputs = EncodingInputs(
        None,
        jnp.array([[2000]]),
        k_ids=2000 - jnp.arange(2001)[None],
        shared=jnp.arange(float(buckets))[:, None],
    )
    theirs = published('t5_buckets', buckets, longest, 2001)['buckets']
    np.testing.assert_array_equal(np.asarray(encoding.bias(inputs)).ravel(), theirs)


# ---- attention whose input is the identity matrix (weights.py), so that projections are the
# queries and keys of each token


def projections(m):
    return dict(q=m.q, k=m.k, v=m.v, out_kernel=m.out_kernel)


X_CASES = {  # name -> our arguments, our parameters
    'rope_interleaved': ({}, {}),
    'rope_ntk': (dict(layout='interleaved', stretch=5.0), {}),
    'xpos': (dict(layout='interleaved', scale_base=16.0), {}),
    'pope': ({}, dict(delta=np.tile(-np.linspace(-0.5, 7.0, D), (KV_HEADS, 1)))),
    'alibi': ({}, {}),
    'forgetting': ({}, drawn(gate=(T, HEADS), gate_bias=(HEADS,))),
    'cope_unscaled': (dict(places=4), drawn(table=(4, D))),
    'selective': ({}, {}),
    'window': (dict(window=3), {}),
}


@pytest.mark.parametrize('name', X_CASES)
def test_attention_of_x_transformers(name, published):
    """Catches a term of the wrong sign, scale, head or direction, or that enters at another place.

    Also one that leaves out or doubles the token itself, and what enters before the scale of the
    logits in place of after it.
    """
    arguments, parameters = X_CASES[name]
    m = run(name, arguments, given=parameters)
    assert vars(m.p).keys() == parameters.keys()
    theirs = published('attention', name, projections(m), vars(m.p))
    close(m.weights, theirs['weights'])
    close(m.out, theirs['out'], 2e-4)  # sums of 32 products of some size
    without = published('attention', 'none', projections(m), {})
    apart = abs(theirs['weights'] - without['weights']).max()
    assert apart > 1e-2, 'compared at values that do nothing'


SPAN = 5
RELATIVE = {  # name -> our arguments, our parameters
    'deberta': (
        dict(span=SPAN),
        drawn(table=(SPAN, T), query_bias=(HEADS, D), keys=(T, HEADS, D), queries=(T, HEADS, D)),
    ),
    'transformer_xl': ({}, drawn(u=(HEADS, D), v=(HEADS, D), w_r=(T, HEADS, D))),
}


@pytest.mark.parametrize('name', RELATIVE)
def test_relative_keys(name, published):
    """Catches a table read from the wrong end, a term looked up at the wrong row, or another scale.

    Also a table clipped one row early, and the two biases of Transformer-XL exchanged.
    """
    arguments, parameters = RELATIVE[name]
    m = run(name, arguments, given=parameters)
    given = dict(vars(m.p))
    assert given.keys() == parameters.keys()
    if name == 'deberta':
        # Rows for keys ahead, which must not matter.
        given['ahead'] = np.random.default_rng(8).normal(size=(SPAN, T))
    theirs = published(name, m.q, m.k, given)
    close(m.weights, theirs['weights'])


# ---- whole models, trained on 20 tokens where that matters, at texts of 60

VOCAB, TIME, HEAD, MLP = 31, 60, 16, 48
TOKENS = np.random.default_rng(3).integers(0, VOCAB, (2, TIME))


def draw_weights(shapes):
    """Returns weights by their names in transformers: N(0, 0.2^2), norms' around 1, biases 0.

    Biases of norms are drawn too.
    """
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in shapes.items():
        values = rng.normal(size=shape) * 0.2
        if len(shape) == 1 and name.endswith('weight'):
            values += 1
        elif len(shape) == 1 and 'ln_' not in name:
            values *= 0
        weights[name] = values.astype(np.float32)
    return weights


def norm_of(weights, name):
    """Returns our norm from theirs; where theirs has no bias it is 0."""
    scale = weights[f'{name}.weight']
    return {'scale': scale, 'bias': weights.get(f'{name}.bias', np.zeros_like(scale))}


def layer_of(q, k, v, out, up, down, gate=None):
    """Returns our kernels of a layer from theirs, [out,in]."""

    def split_heads(kernel):
        """[(H d),D] -> [D,H,d]."""
        return kernel.reshape(-1, HEAD, kernel.shape[1]).transpose(2, 0, 1)

    layer = {
        'attention': {
            'query': {'kernel': split_heads(q)},
            'key': {'kernel': split_heads(k)},
            'value': {'kernel': split_heads(v)},
            'out': {'kernel': out.T.reshape(-1, HEAD, len(out))},
        },
        'feed_forward': {'up': {'kernel': up.T}, 'down': {'kernel': down.T}},
    }
    if gate is not None:
        layer['feed_forward']['gate'] = {'kernel': gate.T}
    return layer


def check_logits(theirs, params, **changes):
    """Compares the logits of our model, with these parameters, with theirs."""
    c = base.get_config().model
    sizes = dict(
        width=64,
        num_layers=sum(name.startswith('layer_') for name in params),
        num_heads=4,
        num_kv_heads=4,
        head_dim=HEAD,
        mlp_width=MLP,
    )
    c.update(sizes | changes)
    model = Transformer(resolve(c, VOCAB, TIME))
    places = np.tile(np.arange(TIME), (2, 1))
    params = jax.tree.map(jnp.asarray, params)
    ours = model.apply({'params': params}, TOKENS, places, np.ones_like(places))[0]
    close(ours, theirs['logits'], 1e-4)


def test_gpt2(published):
    """Catches positions that start at 1, a norm after its part, and another LayerNorm or GELU.

    Also a model without a norm at its end.
    """
    width, layers = 64, 2
    shapes = {'wte.weight': (VOCAB, width), 'wpe.weight': (TIME, width)}
    for i in range(layers):
        for name, shape in (
            ('ln_1', (width,)),
            ('attn.c_attn', (width, 3 * width)),
            ('attn.c_proj', (width, width)),
            ('ln_2', (width,)),
            ('mlp.c_fc', (width, MLP)),
            ('mlp.c_proj', (MLP, width)),
        ):
            shapes[f'h.{i}.{name}.weight'] = shape
            shapes[f'h.{i}.{name}.bias'] = shape[-1:]
    shapes |= {'ln_f.weight': (width,), 'ln_f.bias': (width,)}
    weights = draw_weights(shapes)

    params = {
        'embedding': weights['wte.weight'],
        'positions_learned': {'table': weights['wpe.weight']},
        'final_norm': norm_of(weights, 'ln_f'),
    }
    for i in range(layers):
        block = f'h.{i}'
        params[f'layer_{i}'] = {
            **layer_of(
                *np.split(weights[f'{block}.attn.c_attn.weight'].T, 3),
                out=weights[f'{block}.attn.c_proj.weight'].T,
                up=weights[f'{block}.mlp.c_fc.weight'].T,
                down=weights[f'{block}.mlp.c_proj.weight'].T,
            ),
            'attention_norm': norm_of(weights, f'{block}.ln_1'),
            'feed_forward_norm': norm_of(weights, f'{block}.ln_2'),
        }

    config = dict(
        vocab_size=VOCAB,
        n_positions=TIME,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        n_inner=MLP,
        layer_norm_epsilon=1e-6,
    )
    named = {f'transformer.{name}': values for name, values in weights.items()}
    check_logits(
        published('logits', 'GPT2LMHeadModel', config, named, TOKENS),
        params,
        positions='learned',
        norm='layernorm',
        activation='gelu',
    )


def test_mpt(published):
    """Catches a bias of ALiBi that is scaled with the logits, and slopes of the wrong heads.

    Also one that falls towards the token itself, and another GELU.
    """
    width, layers = 96, 2
    shapes = {'wte.weight': (VOCAB, width)}
    for i in range(layers):
        for name, shape in (
            ('norm_1', (width,)),
            ('attn.Wqkv', (3 * width, width)),
            ('attn.out_proj', (width, width)),
            ('norm_2', (width,)),
            ('ffn.up_proj', (4 * width, width)),
            ('ffn.down_proj', (width, 4 * width)),
        ):
            shapes[f'blocks.{i}.{name}.weight'] = shape
    shapes['norm_f.weight'] = (width,)
    weights = draw_weights(shapes)

    params = {'embedding': weights['wte.weight'], 'final_norm': norm_of(weights, 'norm_f')}
    for i in range(layers):
        block = f'blocks.{i}'
        params[f'layer_{i}'] = {
            **layer_of(
                *np.split(weights[f'{block}.attn.Wqkv.weight'], 3),
                out=weights[f'{block}.attn.out_proj.weight'],
                up=weights[f'{block}.ffn.up_proj.weight'],
                down=weights[f'{block}.ffn.down_proj.weight'],
            ),
            'attention_norm': norm_of(weights, f'{block}.norm_1'),
            'feed_forward_norm': norm_of(weights, f'{block}.norm_2'),
        }

    config = dict(
        vocab_size=VOCAB,
        d_model=width,
        n_heads=6,
        n_layers=layers,
        max_seq_len=TIME,
        layer_norm_epsilon=1e-6,
    )
    named = {f'transformer.{name}': values for name, values in weights.items()}
    check_logits(
        published('logits', 'MptForCausalLM', config, named, TOKENS),
        params,
        positions='alibi',
        norm='layernorm',
        activation='gelu_exact',
        num_heads=6,
        num_kv_heads=6,
        width=width,
        mlp_width=4 * width,
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
            intermediate_size_mlp=MLP,
            moe_layers=[],
            attention_chunk_size=8,
            floor_scale=7,
            attn_scale=0.5,
        ),
        {},
    ),
}


def llama_weights(layers, part):
    """Returns weights of a Llama or its kin; `part` is what its feed-forward is called."""
    shapes = {'embed_tokens.weight': (VOCAB, 64)}
    for i in range(layers):
        for name, shape in (
            ('self_attn.q_proj', (4 * HEAD, 64)),
            ('self_attn.k_proj', (2 * HEAD, 64)),
            ('self_attn.v_proj', (2 * HEAD, 64)),
            ('self_attn.o_proj', (64, 4 * HEAD)),
            (f'{part}.gate_proj', (MLP, 64)),
            (f'{part}.up_proj', (MLP, 64)),
            (f'{part}.down_proj', (64, MLP)),
            ('input_layernorm', (64,)),
            ('post_attention_layernorm', (64,)),
        ):
            shapes[f'layers.{i}.{name}.weight'] = shape
    shapes['norm.weight'] = (64,)
    return draw_weights(shapes)


@pytest.mark.parametrize('positions', MODELS)
def test_llama_and_its_kin(positions, published):
    """Catches query heads of the wrong key-value head, and gate and up exchanged.

    Also a stretch or its factor that the model does not get, a pattern that begins with its layer
    without positions, a window or chunk off by one, and in Llama 4 a norm of queries and keys in
    the wrong layers and a temperature in the others.
    """
    arguments, name, changes, rope = MODELS[positions]
    part = 'feed_forward' if name == 'Llama4' else 'mlp'
    layers = 2 if name == 'Llama' else 4
    weights = llama_weights(layers, part)

    params = {'embedding': weights['embed_tokens.weight'], 'final_norm': norm_of(weights, 'norm')}
    for i in range(layers):
        block = f'layers.{i}'
        q, k, v, out = (weights[f'{block}.self_attn.{n}_proj.weight'] for n in 'qkvo')
        up, down, gate = (
            weights[f'{block}.{part}.{n}_proj.weight'] for n in ('up', 'down', 'gate')
        )
        params[f'layer_{i}'] = {
            **layer_of(q, k, v, out, up, down, gate),
            'attention_norm': norm_of(weights, f'{block}.input_layernorm'),
            'feed_forward_norm': norm_of(weights, f'{block}.post_attention_layernorm'),
        }

    config = dict(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=MLP,
        num_hidden_layers=layers,
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
    named = {f'model.{n}': values for n, values in weights.items()}
    check_logits(
        published('logits', f'{name}ForCausalLM', config | changes, named, TOKENS),
        params,
        num_kv_heads=2,
        positions=positions,
        positions_args=dict(arguments, base=20.0),
    )
