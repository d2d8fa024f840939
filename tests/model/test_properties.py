"""What must hold for every encoding of the registry: a new one is tested by being registered.

One program of each encoding, of its outputs for all rows and of a gradient, and one cached run
serve all tests of it. One layer, so that what an encoding cannot see shows; texts of 12 tokens,
half as long again as those of training.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from model import positions
from model.config import resolve
from model.positions import PATTERNS, REGISTRY, EncodingInputs
from model.transformer import Transformer
from tests.model.parameters import draw

VOCAB, TIME, TRAINED, LONGEST = 17, 12, 8, 32
RNG = np.random.default_rng(0)
A, B = RNG.integers(1, VOCAB, (2, TIME)).astype(np.int32)
IDS_A = RNG.integers(0, 5, TIME).astype(np.int32)

# Parameters that make an encoding do something at these lengths; one that is not here is tested as
# it comes.
SMALL = {
    'window': dict(window=3),
    'chunk': dict(chunk=5),
    'temperature': dict(floor=3),
    'lm_infinite': dict(within=4, first=2),
    'self_extend': dict(within=4, group=2),
    'string': dict(within=5, local=2),
    'rerope': dict(within=4),
    'rerope_leaky': dict(within=4),
    'llama3': dict(length=8),
    'rnope_swa': dict(window=3),
    'irope': dict(chunk=5, floor=3),
    'fire': dict(threshold=16.0),
    'shaw': dict(clip=3),
    'deberta': dict(span=5),
    'forgetting_fixed': dict(longest=32.0),
    'rope_proportional': dict(fraction=0.5),
}
# What all layers share, as published; every other parameter belongs to its layer.
SHARED = {
    't5': 'table',
    't5_unscaled': 'table',
    'kerple_log': 'p a',
    'kerple_power': 'p a',
    'pope': 'delta',
    'transformer_xl': 'u v',
    'deberta': 'table',
    'tupe': 'table norm_scale norm_offset queries queries_offset keys keys_offset relative',
    'sinusoidal_scaled': 'scale',
    'learned': 'table',
    'abacus': 'table',
    'coupling': 'table',
}
BESIDE = {
    n: f'{n}+rope' if 'position_ids' in c.enters() else f'rope+{n}'
    for n, c in REGISTRY.items()
    if c.spec.wraps
}
NAMES = [*REGISTRY, *PATTERNS]


@functools.cache
def built(name):
    c = base.get_config().model
    c.update(
        width=32,
        num_layers=4 if name in PATTERNS else 1,
        num_heads=4,
        num_kv_heads=2,
        max_len=LONGEST,
        mlp_width=32,
        tied=False,
        positions=BESIDE.get(name, name),
        positions_args=SMALL.get(name, {}),
    )
    model = Transformer(resolve(c, VOCAB, TRAINED))
    return model, draw(model)


def row(*parts, shift=0):
    """Parts (tokens, segment, ids) side by side -> tokens, positions, segments, task ids of one
    row, padded on the right."""
    out = np.zeros((4, TIME), np.int32)
    at = 0
    for tokens, segment, ids in parts:
        n = len(tokens)
        for field, value in zip(
            out, (tokens, (np.arange(n) + shift) * (segment > 0), segment, ids)
        ):
            field[at : at + n] = value
        at += n
    return out


PERMUTED = np.array([3, 1, 0, 9, 6, 5, 4, 8, 7, 10, 2, 11])
CHANGED = np.concatenate([A[:7], (A[7:] + 5) % VOCAB])
PREFIXES = {n: row((A[:n], 1, IDS_A[:n])) for n in range(4, TIME + 1)}
ROWS = {
    'whole': row((A, 1, IDS_A)),
    'packed': row((A[:5], 1, IDS_A[:5]), (B[:4], 2, IDS_A[:4])),
    'second': row((B[:4], 1, IDS_A[:4])),
    'short': row(
        (A[:1], 1, IDS_A[:1]), (A[:1], 2, IDS_A[:1]), (B[:4], 3, IDS_A[:4]), (A[:1], 4, IDS_A[:1])
    ),
    'left': row((A[:3] * 0, 0, 0), (A[:9], 1, IDS_A[:9])),
    'shifted': row((A, 1, IDS_A), shift=9),
    'permuted': row((A[PERMUTED], 1, IDS_A[PERMUTED])),
    'changed': row((CHANGED, 1, IDS_A)),
    **{f'first {n}': r for n, r in PREFIXES.items()},
    'places': row((np.arange(TIME), 1, IDS_A)),  # each has an embedding of its own
}


@functools.cache
def computed(name):
    """Returns the function from parameters to ((a number, logits of each row), its gradient).

    The number is that of the squared logits at place 6 of the last row.
    """
    model, _ = built(name)
    fields = np.stack(list(ROWS.values()), 1)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def compute(params):
        logits = model.apply({'params': params}, *fields)[0]
        return jnp.square(logits[-1, 6]).sum(), logits

    return compute


@functools.cache
def results(name):
    return computed(name)(built(name)[1])


def outputs(name):
    """Logits of each row, [TIME, VOCAB]."""
    (_, logits), _ = results(name)
    return dict(zip(ROWS, np.asarray(logits)))


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('name', NAMES)
def test_packed_and_padded(name):
    """Catches attention across documents, positions or running sums that go on into the next one,
    and padding that counts."""
    out = outputs(name)
    close(out['packed'][:5], out['first 5'][:5])
    close(out['packed'][5:9], out['second'][:4])
    for alone in (0, 1, 6):  # documents of one token, side by side and after another
        close(out['short'][alone], out['first 4'][0])
    close(out['short'][2:6], out['second'][:4])
    close(out['left'][3:], out['first 9'][:9])
    assert all(np.isfinite(x).all() for x in out.values())


@pytest.mark.parametrize('name', NAMES)
def test_spec_tells_the_truth(name):
    """Catches a wrong claim of shift invariance, an encoding that does not see order, and one that
    sees it but says it does not."""
    model, _ = built(name)
    specs = [e.spec for e in model.config.distinct]
    out = outputs(name)
    assert np.allclose(out['shifted'], out['whole'], atol=1e-4) == all(
        s.shift_invariant for s in specs
    )
    if name not in PATTERNS:
        assert np.allclose(out['permuted'][-1], out['whole'][-1], atol=1e-4) != specs[0].sees_order


def gradient(name):
    """Of the number with respect to parameters, and the number before and after a small step
    against it."""
    (value, _), found = results(name)
    length = sum(float(np.square(g).sum()) for g in jax.tree.leaves(found))
    stepped = jax.tree.map(
        lambda x, g: np.float32(x - 0.001 * value / length * g), built(name)[1], found
    )
    (after, _), _ = computed(name)(stepped)
    return found, value, after


@pytest.mark.parametrize('name', NAMES)
def test_causality_and_gradients(name):
    """Catches a mask off by one, an encoding that looks ahead, and a parameter that no gradient
    reaches."""
    out = outputs(name)
    # Dynamic NTK is apart: its base depends on how long the text is.
    if not isinstance(built(name)[0].config.encodings[0], positions.DynamicNtk):
        close(out['changed'][:7], out['whole'][:7], 1e-6)
        close(out['first 9'][:9], out['whole'][:9])
    found, before, after = gradient(name)
    # A step that should take off a thousandth: the gradient is right.
    np.testing.assert_allclose(after, 0.999 * before, rtol=5e-4)
    of_place = np.abs(found['embedding']).sum(-1)
    sees = {'window': [4, 5, 6], 'chunk': [5, 6], 'lm_infinite': [0, 1, 3, 4, 5, 6]}.get(
        name, range(7)
    )
    assert not of_place[7:].any() and of_place[list(sees)].all()
    for path, g in jax.tree_util.tree_leaves_with_path(found):
        if any(k.key.startswith('positions') for k in path):
            assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize('name', NAMES)
def test_cached_equals_full(name):
    """Catches positions off by one between prefill and decode, sums that the padding of a shorter
    prompt enters, rotated keys that went stale, and what earlier queries left behind for later
    ones. Goes on past the length of training."""
    from model import generate

    model, params = built(name)
    out = outputs(name)
    step = jax.jit(lambda cache, *fields: model.apply({'params': params}, *fields, cache=cache))
    both = np.stack([PREFIXES[4][:, :4], PREFIXES[4][:, :4]], 1)
    both[1:3, 1, 3] = 0  # the second row's prompt is one shorter
    logits, cache = jax.jit(
        lambda *f: model.apply({'params': params}, *f, cache=generate.empty_cache(model, 2, 14))
    )(*both)
    close(logits[0, 3], out['first 4'][3])
    whole = ROWS['whole']
    for i in range(4, TIME):
        # The second row is one token behind.
        fields = np.stack([whole[:, i], whole[:, i - 1]], 1)[..., None]
        logits, cache = step(cache, *fields)
        close(logits[0, 0], out[f'first {i + 1}'][i])
        close(logits[1, 0], out[f'first {i}'][i - 1])
    assert step._cache_size() == 1  # nothing is compiled anew as the text grows


@pytest.mark.parametrize('name', NAMES)
def test_parameters_are_the_encodings_own(name):
    """Catches an encoding that leaves another one's parameters in the tree, or changes the shape of
    the rest of the model."""

    def shapes(n):
        leaves = jax.tree_util.tree_leaves_with_path(built(n)[1])
        return {jax.tree_util.keystr(path): x.shape for path, x in leaves}

    rest = {k: v for k, v in shapes(name).items() if 'positions' not in k}
    plain = shapes('none')
    if name in PATTERNS:
        plain = {k: v for k, v in shapes('smollm3').items() if 'positions' not in k}
    assert rest == plain
    declared = {k for k in shapes(name) if 'positions' in k}
    of_model, of_layer = (
        {k.split("'")[-2] for k in declared if ('layer_' in k) == inside}
        for inside in (False, True)
    )
    assert of_model == set(SHARED.get(name, '').split()) and not of_model & of_layer
    allowed = tuple(f"['positions_{p.name}']" for p in built(name)[0].config.parts) + tuple(
        f"['layer_{i}']['attention']['positions']" for i in range(4)
    )
    assert all(k.startswith(allowed) for k in declared)


@pytest.mark.parametrize(
    'name', [n for n, c in REGISTRY.items() if 'bias' in c.enters() and c.spec.shift_invariant]
)
def test_biases_far_away(name):
    """Catches positions or slopes in low precision: the bias of neighbouring distances at position
    100,000 is that at 0, bit by bit, float32 whatever the computation's dtype."""
    encoding = positions.build(
        name, SMALL.get(name, {}), positions.Dims(32, 4, 2, 8, 1, 200_000, 100_000)
    )[0]

    def bias(start):
        where = start + jnp.arange(TIME)[None]
        inputs = EncodingInputs(
            lambda name, init, shape, axes: init(jax.random.key(0), shape, jnp.float32),
            where,
            where,
            k_ids=where,
            k_positions=where,
        )
        return encoding.bias(dataclasses.replace(inputs, shared=encoding.share(inputs)))

    assert bias(0).dtype == jnp.float32
    np.testing.assert_array_equal(bias(0), bias(100_000))


@pytest.mark.parametrize(
    'name', [n for n, c in REGISTRY.items() if {'rotate', 'read'} & c.enters() or 'sinus' in n]
)
def test_angles_are_wide(name):
    """Catches positions or frequencies in bfloat16 (897 different values of 8,192 positions): a
    model in bfloat16 tells positions 4,096 and 4,097 apart as one in float32 does, by the rotation
    of the fastest pair or the first columns of the table."""
    if name == 'qk_norm':
        pytest.skip('turns nothing')
    dims = positions.Dims(32, 4, 2, 8, 1, 8192, 8192)
    encoding = positions.build(
        BESIDE.get(name, name),
        {k: v for k, v in SMALL.get(name, {}).items() if k != 'length'},
        dims,
    )[0]
    q, k = jnp.ones((1, 4, 2, 8)) * 4, jnp.ones((1, 2, 2, 8)) * 4

    def turned(dtype):
        where, one = jnp.array([[4096, 4097]]), jnp.ones((1, 2), jnp.int32)
        inputs = EncodingInputs(
            lambda name, init, shape, axes: init(jax.random.key(0), shape, jnp.float32),
            where,
            where,
            one,
            k_ids=where,
            k_positions=where,
            k_segment_ids=one,
            x=jnp.ones((1, 2, 32)),
        )
        inputs = dataclasses.replace(inputs, shared=encoding.share(inputs))
        if 'embed' in encoding.enters():
            return encoding.embed(inputs, jnp.zeros((1, 2, 32), dtype)).astype(jnp.float32)
        inputs = dataclasses.replace(inputs, state=encoding.key_state(inputs))
        rotated = encoding.rotate(inputs, q.astype(dtype), k.astype(dtype))
        return encoding.read(inputs, *rotated)[1].astype(jnp.float32)

    narrow, wide = turned(jnp.bfloat16), turned(jnp.float32)
    assert jnp.abs(wide[..., 0, :] - wide[..., 1, :]).max() > 0.05 * jnp.abs(wide).max()
    np.testing.assert_allclose(narrow, wide, atol=0.02 * float(jnp.abs(wide).max()))


ALL_HEADS_ALIKE = [
    n
    for n, c in REGISTRY.items()
    if c.enters() <= {'embed', 'position_ids'}
    or issubclass(c, positions.Rope)
    and c.enters() <= {'rotate', 'read'}
]


@pytest.mark.parametrize('name', [n for n in REGISTRY if n not in ALL_HEADS_ALIKE])
def test_heads_cut_over_devices(name):
    """Catches slopes and tables of the wrong heads where heads lie on different devices: two halves
    of the heads give the whole."""
    from jax.sharding import AxisType

    from train.mesh import state_shardings

    model, params = built(name)
    mesh = jax.make_mesh(
        (1, 2), ('fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2]
    )
    one = jnp.ones((1, 2), jnp.int32)
    boxes = jax.eval_shape(model.init, jax.random.key(0), one, one * 0, one, one)['params']
    cut = jax.device_put(params, state_shardings(mesh, boxes))
    assert len(cut['layer_0']['attention']['query']['kernel'].sharding.device_set) == 2
    fields = np.stack([ROWS['whole'], ROWS['packed']], 1)

    def apply(p, f):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return model.apply({'params': p}, *f)[0]

    found = np.asarray(jax.jit(apply)(cut, fields))
    close(found[0], outputs(name)['whole'])
    close(found[1][:9], outputs(name)['packed'][:9])


@pytest.mark.parametrize(
    'name', [n for n, c in REGISTRY.items() if {'key_bias', 'bias'} <= c.enters()]
)
def test_key_bias_is_the_bias(name):
    """Catches a bias on extra columns that is another one: the two forms differ by a constant of
    the row only."""
    dims = positions.Dims(32, 4, 2, 8, 1, LONGEST)
    encoding = positions.build(name, SMALL.get(name, {}), dims)[0]
    where = jnp.arange(TIME)[None]
    one = jnp.ones((1, TIME), jnp.int32)
    inputs = EncodingInputs(
        lambda name, init, shape, axes: init(jax.random.key(0), shape, jnp.float32),
        where,
        where,
        one,
        k_ids=where,
        k_positions=where,
        k_segment_ids=one,
    )
    inputs = dataclasses.replace(
        inputs, shared=encoding.share(inputs), visible=jnp.tril(jnp.ones((1, 1, TIME, TIME), bool))
    )

    def weights(b):
        return jax.nn.softmax(jnp.where(inputs.visible, b, -jnp.inf), -1)

    close(weights(encoding.bias(inputs)), weights(encoding.key_bias(inputs)[:, :, None]), 1e-6)


def rotary():
    dims = positions.Dims(32, 4, 2, 8, 1, LONGEST, TRAINED)
    for name, kind in REGISTRY.items():
        if (
            issubclass(kind, positions.Rope)
            and kind.spec.shift_invariant
            and 'key_state' not in kind.enters()
        ):
            yield name, positions.build(name, SMALL.get(name, {}), dims)[0]


@pytest.mark.parametrize('name, encoding', rotary())
def test_rotations_in_float64(name, encoding):
    """Catches logits that depend on more than the distance, norms that change, and a turn at
    position 0; in float64, where rounding cannot hide it."""
    with jax.enable_x64(True):
        q, k = (jnp.asarray(np.random.default_rng(s).normal(size=(1, 1, 1, 8))) for s in (1, 2))

        def turned(x, p, other):
            inputs = EncodingInputs(
                lambda name, init, shape, axes: init(None, shape, float),
                jnp.asarray([[p]]),
                k_ids=jnp.asarray([[p]]),
            )
            inputs = dataclasses.replace(inputs, shared=encoding.share(inputs))
            pair = encoding.rotate(inputs, *((x, x * 0) if other else (x * 0, x)))
            return np.asarray(encoding.read(inputs, *pair)[0 if other else 1])

        z = [
            float((turned(q, 5 + c, True) * turned(k, 2 + c, False)).sum())
            for c in (0, 1, 7, 100, 5000)
        ]
        np.testing.assert_allclose(z, z[0], rtol=1e-9)
        if name != 'xpos':
            factor = encoding.factor
            np.testing.assert_allclose(
                np.linalg.norm(turned(q, 37, True)[..., : encoding.rotary_dim]),
                factor * np.linalg.norm(q[..., : encoding.rotary_dim]),
                rtol=1e-12,
            )
            np.testing.assert_allclose(
                turned(q, 0, True)[..., : encoding.rotary_dim],
                factor * q[..., : encoding.rotary_dim],
                rtol=1e-12,
            )
        np.testing.assert_array_equal(
            turned(q, 9, True)[..., encoding.rotary_dim :], q[..., encoding.rotary_dim :]
        )
