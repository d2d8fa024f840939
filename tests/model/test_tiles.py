"""Attention in tiles (model/tiles.py), interpreted, against attention written out."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from launch.aot.programs import traced_squares
from model import kernels, tiles
from model.config import resolve
from model.positions import REGISTRY, Dims, EncodingInputs, build
from model.ring import visible_pairs
from model.tiles import LOWEST, TileOptions
from model.transformer import Transformer

SIDE = 128
BATCH, HEADS, KV_HEADS, TIME = 2, 4, 2, 4 * SIDE
KEY_SIZE, VALUE_SIZE = 24, 16  # of heads: neither fills the lanes
SEGMENTS = np.stack([np.repeat([1, 2, 0], [100, 360, 52]), np.repeat([1, 2], [200, 312])])
POSITIONS = np.stack(
    [np.concatenate([np.arange(n) for n in row]) for row in ([100, 360, 52], [200, 312])]
)
DIMS = Dims(32, HEADS, KV_HEADS, 8, 1, TIME)
REAL = (SEGMENTS > 0)[:, None, :, None]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Cuts a text into 16 tiles, and its queries into 4 spans in the backward pass."""
    monkeypatch.setattr(tiles, '_LARGEST', SIDE)
    monkeypatch.setattr(tiles, '_DQ_BYTES', 1)


def arrays(seed=0):
    """Returns q, k, v and the gradient of what is read, [B,H,T,d] float32."""
    rng = np.random.default_rng(seed)
    sizes = ((HEADS, KEY_SIZE), (KV_HEADS, KEY_SIZE), (KV_HEADS, VALUE_SIZE), (HEADS, VALUE_SIZE))
    return [rng.normal(size=(BATCH, n, TIME, d)).astype(np.float32) for n, d in sizes]


def written_out(q, k, v, line, cap):
    """Returns what queries read, with the bias as an array [T,T]."""
    k, v = (jnp.repeat(x, HEADS // KV_HEADS, 1) for x in (k, v))
    z = jnp.einsum('bhtd,bhsd->bhts', q, k)
    z = cap * jnp.tanh(z / cap) if cap else z
    place = np.arange(TIME)
    ahead = line.shape[1] - TIME
    z += line[:, np.maximum(place[:, None] - place + ahead, 0)]
    same = (SEGMENTS[:, :, None] == SEGMENTS[:, None])[:, None]
    return jnp.einsum('bhts,bhsd->bhtd', jax.nn.softmax(jnp.where(same, z, LOWEST), -1), v)


@functools.partial(jax.jit, static_argnums=(6, 7))
def read_and_gradients(q, k, v, line, curve, g, options, dtype='float32'):
    """Returns what queries read in tiles, and the gradients of the first five."""
    q, k, v, g = (x.astype(dtype) for x in (q, k, v, g))

    def attend(q, k, v, line, curve):
        return tiles.attend_in_tiles(q, k, v, SEGMENTS.astype(np.int32), line, curve, options)

    out, pull = jax.vjp(attend, q, k, v, line, curve)
    return out, pull(g)


@functools.partial(jax.jit, static_argnums=(5,))
def expected_read_and_gradients(q, k, v, line, g, cap):
    out, pull = jax.vjp(functools.partial(written_out, cap=cap), q, k, v, line)
    return out, pull(g)


def error(x, y):
    """Returns the largest difference of arrays, as a share of the largest number."""
    return max(
        float(np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max())
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    )


def random_line(causal, window):
    ahead = tiles.count_ahead(TIME, causal, SIDE)
    distance = np.arange(-ahead, TIME)
    seen = (distance >= 0) | (not causal)
    if window:
        seen &= abs(distance) < window
    noise = np.random.default_rng(1).normal(size=(HEADS, len(distance)))
    return np.where(seen, noise, LOWEST).astype(np.float32)


@pytest.mark.parametrize(
    'causal, window, cap, dtype, bound',
    [
        (True, 0, 0.0, 'float32', 3e-6),
        (True, 150, 5.0, 'float32', 3e-6),
        (False, 150, 0.0, 'float32', 3e-6),
        (True, 0, 0.0, 'bfloat16', 2e-2),
    ],
)
def test_tiles_equal_attention_written_out(causal, window, cap, dtype, bound):
    """Catches a bias on the wrong diagonal, a tile that is skipped or counted twice, heads of a
    group that read others' keys, a gradient of the line that misses a tile, documents that see each
    other, and a cap that bends the bias."""
    q, k, v, g = arrays()
    g = g * REAL  # what padding reads counts for nothing
    line = random_line(causal, window)
    options = TileOptions(causal, window, cap, interpret=True)
    result = read_and_gradients(q, k, v, line, None, g, options, dtype)
    expected = expected_read_and_gradients(q, k, v, line, g, cap)
    assert error(result, expected) < bound

    # A control: with a line that is one token off nothing is equal.
    off = expected_read_and_gradients(q, k, v, np.roll(line, 1, 1), g, cap)
    assert error(result, off) > 0.1


# --- Encodings ------------------------------------------------------------------------------------

SERVED = [
    name
    for name, kind in REGISTRY.items()
    if kind.enters() & {'bias', 'mask'}
    and not kernels.find_refusal('tiles', build(name, {}, DIMS)[0], DIMS, 'float32', 0.0)
]
ARGUMENTS = {
    'fire': {'threshold': 64.0},
    'window': {'window': 150},
    'forgetting_fixed': {'longest': 32.0},
}


def test_what_it_serves():
    """Catches an encoding of distances that is refused, and one that is none and is not."""
    assert set(SERVED) == {
        't5',
        't5_unscaled',
        'alibi',
        'alibi_learned',
        'windowed_heads',
        'kerple_log',
        'kerple_power',
        'fire',
        'sandwich',
        'forgetting_fixed',
        'forgetting_bias_only',
        'window',
    }


class Parameters:
    """Holds the parameters of an encoding by name; makes those that are not there, not at 0."""

    def __init__(self, values=None):
        self.values = {} if values is None else values

    def __call__(self, name, init, shape, axes):
        if name not in self.values:
            number = len(self.values)
            first = np.asarray(init(jax.random.key(number), shape, jnp.float32))
            noise = np.random.default_rng(number).normal(size=shape)
            self.values[name] = (first + 0.1 * noise * max(float(first.std()), 0.1)).astype('f')
        return self.values[name]


@pytest.mark.parametrize('name', [*SERVED, 'alibi+kerple_log', 't5+windowed_heads', 'fire+t5'])
def test_an_encoding_equals_its_reference(name):
    """Catches a line that is not the bias and the mask that the reference adds, of packed
    documents, and a gradient of a learned bias that is lost or of another head."""
    encoding = build(name, ARGUMENTS.get(name, {}), DIMS)[0]
    config = SimpleNamespace(causal=True, window=0)
    q, k, v, g = arrays()
    ids = POSITIONS.astype(np.int32)
    segments = SEGMENTS.astype(np.int32)
    inputs = EncodingInputs(
        None,
        ids,
        ids,
        segments,
        k_ids=ids,
        k_positions=ids,
        k_segment_ids=segments,
        visible=visible_pairs(ids, segments, ids, segments, 0, True),
        consecutive=True,
    )

    def with_parameters(values):
        param = Parameters(values)
        shared = {p: p.share(dataclasses.replace(inputs, param=param)) for p in encoding.parts}
        shared = encoding.collect_shared(shared)
        return dataclasses.replace(inputs, param=param, shared=shared)

    # The reference: its bias and its mask are arrays [T,T].
    def reference(q, k, v, values):
        own = with_parameters(values)
        k, v = (jnp.repeat(x, HEADS // KV_HEADS, 1) for x in (k, v))
        z = jnp.einsum('bhtd,bhsd->bhts', q, k)
        bias = encoding.additive(own)
        mask = encoding.mask(own)
        seen = own.visible if mask is None else own.visible & mask
        weights = jax.nn.softmax(jnp.where(seen, z if bias is None else z + bias, LOWEST), -1)
        return jnp.einsum('bhts,bhsd->bhtd', weights, v)

    values = {}
    with_parameters(values)
    encoding.bias(with_parameters(values))
    g = g * REAL
    expected, pull = jax.vjp(jax.jit(reference), q, k, v, values)
    *d_expected, d_values = pull(g)

    # In tiles: the bias is a line, and a curve.
    def in_tiles(values):
        own = with_parameters(values)
        line = tiles.bias_line(encoding, own, config, SIDE)
        return line, tiles.bias_curve(encoding, own, SIDE)

    (line, curve), pull_biases = jax.vjp(in_tiles, values)
    options = TileOptions(True, 0, 0.0, interpret=True)
    out, (*gradients, d_line, d_curve) = read_and_gradients(q, k, v, line, curve, g, options)
    assert error(out * REAL, expected * REAL) < 1e-5
    assert error(gradients, d_expected) < 1e-5
    assert set(values) == set(d_values)
    # Softmax drops what moves a whole row: a gradient that is not there is rounding.
    largest = max([float(np.abs(g).max()) for g in d_values.values()], default=0.0)
    for name, gradient in pull_biases((d_line, d_curve))[0].items():
        bound = 1e-4 * max(float(np.abs(d_values[name]).max()), 0.1 * largest)
        assert np.abs(gradient - d_values[name]).max() < bound, name
        assert np.abs(gradient).max() > 0


@pytest.mark.parametrize(
    'positions', ['t5', 'kerple_log', 'sandwich', 'alibi', 'rope+window', 'forgetting', 'fire']
)
def test_no_square_array_at_32k(positions, monkeypatch):
    """Catches an array [T,T], of a bias, a mask or weights, in a train step of long texts."""
    monkeypatch.undo()  # tiles of their own size
    length = 2**15
    config = base.get_config().model
    sizes = dict(width=256, num_layers=1, num_heads=2, num_kv_heads=1)
    config.update(positions=positions, attention='tiles', remat='full', **sizes)
    model = Transformer(resolve(config, 17, length))
    row = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), *[jnp.ones((1, 2), jnp.int32)] * 3)

    def loss(params, tokens, positions, segments):
        return model.apply(params, tokens, positions, segments)[0].sum()

    traced = jax.jit(jax.grad(loss)).trace(nn.meta.unbox(params), row, row, row)
    assert not traced_squares(traced.jaxpr.jaxpr, length)


def test_kernels_are_lowered_for_a_tpu():
    """Catches what the interpreter takes and Mosaic does not: an operation, or a block's shape."""
    q, k, v, g = arrays()
    line = random_line(True, 0)
    arguments = (q, k, v, line, None, g)
    text = read_and_gradients.trace(*arguments, TileOptions(True, 0, 5.0, interpret=False))
    assert text.lower(lowering_platforms=('tpu',)).as_text().count('tpu_custom_call') == 2
