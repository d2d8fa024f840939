"""The contract of positional encodings: each place of entry is honoured, in the full forward,
packed, and with a cache."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from model import generate as decoding, positions as registry
from model.config import resolve
from model.errors import ModelError
from model.positions import REGISTRY, Dims
from model.positions.alibi import slopes
from model.positions.base import PositionalEncoding, Spec
from model.positions.t5 import bucket_bounds
from model.transformer import Transformer, make_row_keys
from tests.model.parameters import draw

VOCAB, TIME = 17, 10
TOKENS = np.random.default_rng(0).integers(1, VOCAB, (2, TIME)).astype(np.int32)
POSITIONS = np.tile(np.arange(TIME, dtype=np.int32), (2, 1))
ONES = np.ones((2, TIME), np.int32)


class Toy(PositionalEncoding):
    spec = Spec('toy', 'this test', shift_invariant=False)


class Ids(Toy):
    """Random, growing ids, drawn for each row of the global batch; bias by their distance."""

    drawn_at_test = True

    def position_ids(self, inputs):
        if inputs.row_keys is None:
            return inputs.q_ids * 3
        shape = inputs.q_ids.shape[1:]
        gaps = jax.vmap(lambda key: jax.random.randint(key, shape, 1, 5))(inputs.row_keys)
        return jnp.cumsum(gaps, -1)

    def bias(self, inputs):
        return -0.3 * inputs.distance[:, None].astype(jnp.float32)


class Embeds(Toy):
    def embed(self, inputs, x):
        shift = inputs.param('shift', nn.initializers.ones, (self.dims.width,), (None,))
        return x + shift * inputs.q_ids[..., None]


class Shares(Toy):
    """One table for all layers, of positions, used as the rotation of q and k (here: a scaling by
    position)."""

    def share(self, inputs):
        rate = inputs.param('rate', nn.initializers.constant(0.1), (), ())
        return rate * inputs.q_ids[:, None, :, None]

    def rotate(self, inputs, q, k):
        return q * (1 + inputs.shared), k * (1 - inputs.shared)


class Scales(Toy):
    def scale(self, inputs, q):
        return q * jnp.log(2.0 + inputs.q_ids)[:, None, :, None]


class Forgets(Toy):
    """A gate per token and head, summed along the keys: data-dependent, and kept in the cache
    (FoX-like)."""

    def key_state(self, inputs):
        w = inputs.param(
            'gate',
            nn.initializers.normal(1.0),
            (self.dims.width, self.dims.num_heads),
            (None, 'heads'),
        )
        return {'log_gate': jax.nn.log_sigmoid(jnp.einsum('btd,dh->bht', inputs.x, w))}

    def bias(self, inputs):
        total = jnp.cumsum(jnp.where(inputs.k_ids[:, None] >= 0, inputs.state['log_gate'], 0), -1)
        rows = jnp.einsum(
            'bht,bts->bhs',
            total[..., -inputs.q.shape[2] :],
            jnp.zeros((total.shape[0], inputs.q.shape[2], total.shape[2])),
        )
        return rows[:, :, None] - total[:, :, None]


class Masks(Toy):
    def mask(self, inputs):
        return (inputs.distance % 2 == 0)[:, None]


class Sigmoid(Toy):
    def softmax(self, inputs, logits, mask):
        return jnp.where(mask, jax.nn.sigmoid(logits), 0)


class Reads(Toy):
    """Keys are kept as they are and scaled when read, by a length that grows."""

    def read(self, inputs, q, k):
        return q, k / (1.0 + inputs.k_positions)[:, None, :, None]


class Products(Toy):
    def product(self, inputs):
        return inputs.z * jnp.cos(0.5 * inputs.distance)[:, None]


class KeyBias(Toy):
    def key_bias(self, inputs):
        of_head = jnp.arange(1.0, self.dims.num_heads + 1)
        return jnp.sqrt(1.0 + inputs.k_ids)[:, None] * of_head[:, None]


class Logits(Toy):
    """Gated by the logits themselves, summed along the keys (CoPE-like)."""

    def logits(self, inputs):
        gates = jnp.where(inputs.visible, jax.nn.sigmoid(inputs.z), 0)
        return inputs.z + 0.3 * jnp.cumsum(gates, -1)


class Carries(Toy):
    """What earlier queries said of a key (selective-like)."""

    def said(self, inputs):
        return jnp.where(inputs.visible[:, 0], jax.nn.relu(inputs.z[:, 0]), 0)

    def logits(self, inputs):
        said = self.said(inputs)
        earlier = inputs.carried.get('said', jnp.zeros_like(said[:, 0]))[:, None]
        before = earlier + jnp.cumsum(said, 1) - said
        return inputs.z - before[:, None]

    def carry(self, inputs):
        said = self.said(dataclasses.replace(inputs, z=inputs.z))
        return {'said': inputs.carried.get('said', 0) + said.sum(1)}


class Values(Toy):
    def value(self, inputs, weights):
        near = jnp.where(inputs.distance[:, None] == 1, weights, 0).sum(-1, keepdims=True)
        return near * inputs.param(
            'direction', nn.initializers.normal(1.0), (self.dims.head_dim,), (None,)
        )


TOYS = {
    'reads': Reads,
    'products': Products,
    'key_bias': KeyBias,
    'logits': Logits,
    'carries': Carries,
    'values': Values,
    'ids': Ids,
    'embeds': Embeds,
    'shares': Shares,
    'scales': Scales,
    'forgets': Forgets,
    'masks': Masks,
    'sigmoid': Sigmoid,
}


def model_of(positions, **changes):
    c = base.get_config().model
    c.update(width=16, num_layers=2, num_heads=2, num_kv_heads=1, positions=positions, **changes)
    return Transformer(resolve(c, VOCAB, TIME))


@functools.cache
def built(positions):
    model = model_of(positions)
    params = draw(model)

    @jax.jit
    def apply(params, tokens, positions, segments, row_keys=None):
        rows = tokens, positions, segments
        return model.apply({'params': params}, *rows, row_keys=row_keys)[0]

    return model, params, apply


def without(tree, word='positions'):
    return {
        '/'.join(k.key for k in path): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if not any(k.key.startswith(word) for k in path)
    }


def test_every_place_of_entry_has_a_toy():
    """Catches a hook that this file forgets, and one that a composite leaves to the default, which
    knows of no part."""
    assert set().union(*(t.enters() for t in TOYS.values())) == set(registry.ENTERS)
    takes_inputs = {
        n
        for n, m in vars(PositionalEncoding).items()
        if inspect.isfunction(m) and 'inputs' in inspect.signature(m).parameters
    }
    assert takes_inputs - set(vars(registry.Composite)) == {
        'position_ids',
        'embed',
        'share',
        'share_anew',
    }  # asked of the parts themselves


@pytest.mark.parametrize('name', TOYS)
def test_a_place_is_honoured(name, monkeypatch):
    """Catches a hook that is not called, or called only without a cache: each toy changes the
    logits, and decoding agrees."""
    monkeypatch.setitem(REGISTRY, name, TOYS[name])
    plain = built('none')
    model, params, apply = built(name)
    full = apply(params, TOKENS, POSITIONS, ONES)
    assert not np.allclose(full, plain[2](plain[1], TOKENS, POSITIONS, ONES), atol=1e-3)
    state = decoding.prefill(model, params, jnp.asarray(TOKENS), jnp.array([4, 4]), TIME + 4)
    cache = state['cache']
    logits = state['logits']
    # Goes on where the prompts end: the columns after them are written anew.
    cache['column'] = jnp.int32(4)
    cache['segment_ids'] = cache['segment_ids'].at[:, 4:].set(0)
    step = jax.jit(lambda cache, *rows: model.apply({'params': params}, *rows, cache=cache))
    for at in range(4, TIME):
        np.testing.assert_allclose(logits, full[:, at - 1], rtol=2e-5, atol=2e-5)
        rows = TOKENS[:, at : at + 1], POSITIONS[:, at : at + 1], ONES[:, :1]
        out, cache = step(cache, *rows)
        logits = out[:, 0]


def test_random_ids_are_those_of_the_row(monkeypatch):
    """Catches ids drawn once for all rows, and ids that do not follow the row's key."""
    monkeypatch.setitem(REGISTRY, 'ids', Ids)
    _, params, apply = built('ids')
    keys = jax.random.split(jax.random.key(5), 2)
    same = np.stack([TOKENS[0], TOKENS[0]])
    drawn = apply(params, same, POSITIONS, ONES, keys)
    swapped = apply(params, same, POSITIONS, ONES, keys[::-1])
    assert not np.allclose(drawn[0], drawn[1]) and np.allclose(drawn, swapped[::-1], atol=1e-5)


def test_keys_at_test_are_for_drawn_ids():
    """Catches dropout, offsets of task ids or a training recipe (PoSE) in an evaluation, whose keys
    are for ids that are drawn there, too."""

    def logits(positions, training, ids=TOKENS % 5, **changes):
        c = base.get_config().model
        c.update(
            width=16, num_layers=1, num_heads=2, num_kv_heads=1, positions=positions, **changes
        )
        model = Transformer(resolve(c, VOCAB, TIME), training)
        keys = make_row_keys(jnp.arange(2))
        params = nn.meta.unbox(
            jax.eval_shape(model.init, keys[0], TOKENS, POSITIONS, ONES, ids)['params']
        )
        drawn = np.random.default_rng(0)
        params = jax.tree.map(lambda x: drawn.normal(size=x.shape).astype(x.dtype), params)

        @jax.jit
        def apply(params):
            rows = TOKENS, POSITIONS, ONES, ids
            return model.apply({'params': params}, *rows, row_keys=keys)[0]

        return np.asarray(apply(params))

    drawn, none = 'abacus+randomized+rope', {'offsets': 0}
    expected = logits(drawn, True, positions_args=none)
    np.testing.assert_array_equal(logits(drawn, False, dropout=0.5), expected)
    assert not np.allclose(logits(drawn, True), expected) and not np.allclose(
        logits(drawn, True, dropout=0.5, positions_args=none), expected
    )
    assert not np.allclose(logits('abacus+rope', False), expected)
    np.testing.assert_array_equal(
        logits('pose+rope', False, None, positions_args={'target': 60}), logits('rope', False, None)
    )


@pytest.mark.parametrize('scan', [False, True])
def test_other_parameters_do_not_depend_on_the_encoding(scan, monkeypatch):
    """Catches initial values that shift with an encoding's own parameters: comparisons would not be
    paired."""
    toys = {
        'learned': REGISTRY['learned'],
        't5': REGISTRY['t5'],
        'rope': REGISTRY['rope'],
        'embeds': Embeds,
        'forgets': Forgets,
    }
    for name, toy in toys.items():
        monkeypatch.setitem(REGISTRY, name, toy)
    models = {name: model_of(name, scan_layers=scan) for name in ('none', *toys)}

    @jax.jit  # all in one program, where what all draw alike is compiled once
    def init(key):
        made = {n: m.init(key, TOKENS, POSITIONS, ONES)['params'] for n, m in models.items()}
        return nn.meta.unbox(made)

    params = init(jax.random.key(0))
    reference = without(params['none'])
    for name in toys:
        found = params[name]
        others = without(found)
        assert others.keys() == reference.keys()
        assert all(np.array_equal(others[k], reference[k]) for k in reference)
        own = jax.tree.structure(found) != jax.tree.structure(others) and len(
            jax.tree.leaves(found)
        ) > len(others)
        # No parameter beyond its own.
        assert own == (name in ('learned', 't5', 'embeds', 'forgets'))


@pytest.mark.parametrize(
    'name', [*(n for n, c in REGISTRY.items() if c.spec.limited), 'randomized+rope']
)
def test_a_position_beyond_a_table_has_no_row(name):
    """Catches the clamped row of another position, which JAX's gathers give by default."""
    c = base.get_config().model
    c.update(width=16, num_layers=1, num_heads=2, num_kv_heads=1, positions=name, max_len=64)
    model = Transformer(resolve(c, VOCAB, TIME))
    params = draw(model)
    apply = jax.jit(lambda positions: model.apply({'params': params}, TOKENS, positions, ONES)[0])
    assert np.isnan(apply(POSITIONS + 60)[:, -1]).all()
    assert np.isfinite(apply(POSITIONS + 54)).all()


@pytest.mark.parametrize('name', ['randomized+learned', 'randomized+tupe', 'pose+learned'])
def test_tables_have_a_row_for_each_drawn_id(name):
    """Catches a table of max_len rows where ids are drawn from more: the logits were NaN."""
    c = base.get_config().model
    c.update(
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        positions=name,
        positions_args={'target' if 'pose' in name else 'range': 90},
    )
    keys, training = make_row_keys(jnp.arange(2)), 'pose' in name
    model = Transformer(resolve(c, VOCAB, TIME), training)
    params = draw(model)
    assert params[f'positions_{name[name.index("+") + 1 :]}']['table'].shape == (90, 16)

    @jax.jit
    def run(*rows):
        return model.apply({'params': params}, *rows, row_keys=keys)[0]

    assert np.isfinite(run(TOKENS, POSITIONS, ONES)).all()
    if name == 'randomized+learned':
        text = np.stack(
            [np.ones((2, 100), np.int32), np.tile(np.arange(100, dtype=np.int32), (2, 1))]
        )
        long, padded = (
            run(text[0], text[1] * seen, seen)
            for seen in (text[0], (text[1] < 80).astype(np.int32))
        )
        assert np.isnan(long[:, -1]).all() and np.isfinite(padded[:, :80]).all()


def test_xpos_grows_from_the_middle_of_the_ids():
    """Catches growth from the middle of the longest text where ids are drawn from more: on one side
    it left float32."""
    dims = Dims(16, 2, 1, 8, 2, 10)
    _, xpos = registry.build('randomized+xpos', {'range': 32_000}, dims)[0].parts
    *_, grow = xpos.share(registry.EncodingInputs(None, jnp.array([[0, 31_999]])))
    assert 1e-18 < grow.min() and grow.max() < 1e18


@pytest.mark.parametrize(
    'heads, expected',
    [
        (8, [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (12, [*(2**-k for k in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
        (40, [*(2 ** -(k / 4) for k in range(1, 33)), *(2 ** -(k / 8) for k in range(1, 16, 2))]),
    ],
)
def test_alibi_slopes_are_the_official_ones_in_order(heads, expected):
    """Catches the naive formula for heads that are no power of two, an exponent from 0, and another
    order."""
    np.testing.assert_allclose(slopes(heads), expected, rtol=1e-12)


@pytest.mark.parametrize('distance, last', [(128, 113), (256, 216), (512, 413), (1024, 790)])
def test_t5_buckets(distance, last):
    """Catches a rounding of the logarithm that moves a bucket."""
    bounds = bucket_bounds(32, distance)
    assert (
        list(bounds[:17]) == list(range(17)) and bounds[-1] == last and (np.diff(bounds) > 0).all()
    )


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_rope(layout):
    """Catches a rotation that changes norms or position 0, logits that depend on more than the
    distance, and a wrong layout."""
    with jax.enable_x64(True):
        dims = Dims(16, 1, 1, 8, 1, 64)
        rope = REGISTRY['rope'](dims, layout=layout)
        rng = np.random.default_rng(0)
        q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

        def at(x, position, encoding=rope):
            inputs = registry.EncodingInputs(None, jnp.array([[position]]))
            inputs = dataclasses.replace(inputs, shared=encoding.share(inputs))
            return np.asarray(encoding.rotate(inputs, x, x)[0], np.float64)

        np.testing.assert_array_equal(at(q, 0), q)
        np.testing.assert_allclose(np.linalg.norm(at(q, 37)), np.linalg.norm(q), rtol=1e-6)
        products = [(at(q, 5 + s) * at(k, 2 + s)).sum() for s in (0, 1, 11, 50)]
        np.testing.assert_allclose(products, products[0], rtol=1e-5)
        assert abs((at(q, 5) * at(k, 3)).sum() - products[0]) > 1e-3
        if layout == 'interleaved':
            # 0 2 4 6 1 3 5 7: pairs side by side -> halves.
            order = np.arange(8).reshape(4, 2).T.reshape(-1)
            half = REGISTRY['rope'](dims, layout='half')
            np.testing.assert_allclose(
                at(q, 13)[..., order], at(q[..., order], 13, half), rtol=1e-6
            )


def test_angles_are_wide_in_low_precision():
    """Catches positions in bfloat16, where 256 and 257 are the same."""
    rope = REGISTRY['rope'](Dims(16, 1, 1, 8, 1, 10**4))
    cos, _ = rope.share(registry.EncodingInputs(None, jnp.array([[4095, 4096, 4097]])))
    assert cos.dtype == jnp.float32
    np.testing.assert_allclose(cos[0, 0, :, 0], np.cos([4095, 4096, 4097]), atol=1e-3)


@pytest.mark.parametrize(
    'pattern, arguments, message',
    [
        ('ropee', {}, "no encoding 'ropee'; did you mean 'rope'"),
        ('rope,none,t5', {}, 'config.model.positions has 3 entries, config.model.num_layers is 2'),
        ('rope', {'bass': 1.0}, "rope has no such parameter; did you mean 'base'"),
        ('rope', {'base': 'x'}, "config.model.positions_args.base is 'x': expected float"),
        ('rope', {'layout': 'whole'}, "config.model.positions_args.layout is 'whole'"),
        ('rope+alibi,none', {'bass': 1.0}, r'rope\+alibi,none has no such parameter'),
        ('rope+yarn', {}, 'puts RoPE and YaRN into one layer: both enter the rotate'),
        ('randomized+pose+rope', {}, 'both enter the position_ids'),
        ('abacus+coupling', {}, 'asks for two kinds of ids from the data'),
        ('randomized', {}, 'randomized positions alone does nothing'),
        (
            'randomized+rope',
            {'range': 9},
            r'positions_args.range is 9: shorter than the longest text '
            r'\(config.model.max_len is 10\)',
        ),
        (
            'rope_dynamic',
            {'cached': 'rotated'},
            "cached is 'rotated': dynamic NTK changes its base as the text grows",
        ),
        (
            'yarn',
            {'beta_fast': 0.5},
            'positions_args.beta_fast is 0.5: expected more than beta_slow',
        ),
        ('longrope', {'long': (1.0, 2.0)}, 'positions_args.long has 2 factors: expected 4'),
        ('windowed_heads', {'heads': 3}, 'positions_args.heads is 3: expected 0 to num_heads'),
        (
            'rope_partial',
            {'fraction': 0.4},
            'RoPE, partial rotates 3 of them, expected an even number',
        ),
        (
            'xpos',
            {'scale_base': 0.05},
            'config.model.max_len is 10: xPos with scale_base 0.05 would overflow',
        ),
        (
            'randomized+xpos',
            {'range': 200_000},
            'the number of ids that are drawn .* is 200000: xPos with scale_base 512.0 would '
            'overflow',
        ),
        ('fire', {'hidden': 0}, 'positions_args.hidden is 0: expected more than 0'),
        ('irope', {}, 'config.model.positions has 4 entries, config.model.num_layers is 2'),
        ('t5', {'num_buckets': 7}, 'config.model.positions_args.num_buckets is 7'),
        ('t5', {'max_distance': 9}, 'config.model.positions_args.max_distance is 9'),
    ],
)
def test_mistakes(pattern, arguments, message):
    """Catches an encoding that falls back silently."""
    with pytest.raises(ModelError, match=message):
        registry.build(pattern, arguments, Dims(16, 2, 1, 8, 2, 10))
    with pytest.raises(
        ModelError,
        match='config.model.head_dim is 7: RoPE rotates 7 of them, expected an even number',
    ):
        registry.build('rope', {}, Dims(14, 2, 1, 7, 2, 10))
