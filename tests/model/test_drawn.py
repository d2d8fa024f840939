"""Randomized positions as Ruoss et al. ran them: distances beside biases, ids beside rotations,
anew in each layer, one draw for a batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from model import generate
from model.config import resolve
from model.errors import ModelError
from model.positions import Dims, EncodingInputs, build
from model.positions.alibi import slopes
from model.transformer import Transformer, make_row_keys
from tests.model import references as R
from tests.model.weights import HEADS, PLACES, T, close, run

RANGE, ROWS = 40, 3
DIMS = Dims(16, HEADS, HEADS, 8, 2, 24, 12)
KEYS, BATCH = make_row_keys(jnp.arange(ROWS)), jax.random.key(9, impl='threefry2x32')
WHOLE = np.ones((ROWS, T), np.int32)
PACKED = np.tile(np.repeat([1, 2, 0], [7, 4, 1]), (ROWS, 1))


def places_of(segments):
    return np.stack([[list(row[:i]).count(row[i]) for i in range(T)] for row in segments])


def drawn(name, layer, segments=WHOLE, batch_key=BATCH, keys=KEYS, **arguments):
    """The inputs that a layer sees, of rows with these documents."""
    encoding = build(name, dict(range=RANGE, **arguments), DIMS)[0]
    places, segments = (jnp.asarray(x, jnp.int32) for x in (places_of(segments), segments))
    first = EncodingInputs(None, places, places, segments, keys, batch_key=batch_key)
    ids = encoding.parts[0].position_ids(first)
    inputs = dataclasses.replace(
        first,
        q_ids=ids,
        k_ids=ids,
        k_positions=places,
        k_segment_ids=segments,
        draw_keys=keys,
    )
    shared = tuple(
        p.share(dataclasses.replace(inputs, param=lambda n, i, shape, a: jnp.zeros(shape)))
        for p in encoding.parts
    )
    return encoding.redraw(dataclasses.replace(inputs, shared=shared), layer)


@pytest.mark.parametrize('beside', ['alibi', 't5', 'fire', 'shaw', 'transformer_xl', 'deberta'])
def test_distances_are_drawn_beside_biases(beside):
    """Catches ids in place of distances, whose differences are 7, 10 and 8 on one diagonal where
    the authors' are 1, 1 and 1; a token that is apart from itself; distances of 0, beyond the range
    or that fall; another draw for each row of a batch, and one for all layers."""
    layers = [np.asarray(drawn(f'randomized+{beside}', layer).distance) for layer in (0, 1)]
    for found in layers:
        of = [[set(np.diagonal(row, -n).tolist()) for n in range(T)] for row in found]
        assert all(len(values) == 1 for row in of for values in row)
        assert all(row == of[0] for row in of)
        growing = np.array([values.pop() for values in of[0]])
        assert growing[0] == 0 and (np.diff(growing) > 0).all() and growing[-1] < RANGE
    assert (layers[0] != layers[1]).any()


def test_distances_are_a_uniform_sample():
    """Catches distances that crowd at one end: the mean of the k-th of n from 1 .. L is
    k (L + 1)/(n + 1)."""
    keys = make_row_keys(jnp.arange(2000))
    segments = np.broadcast_to(WHOLE[:1], (2000, T))
    encoding = build('randomized+alibi', dict(range=RANGE), DIMS)[0].parts[0]
    places = jnp.broadcast_to(jnp.arange(T), (2000, T))
    found = np.asarray(encoding._ids(places, jnp.asarray(segments), keys, 0, True))
    close(found.mean(0), np.arange(T) * RANGE / T, 0.8)


@pytest.mark.parametrize('beside', ['rope', 'xpos', 'rerope', 'rope_dynamic'])
def test_ids_are_drawn_beside_rotations(beside):
    """Catches one draw for all layers, angles of the ids that the model drew before, another draw
    for each row, and distances that are not those of the ids."""
    all_inputs = [drawn(f'randomized+{beside}', layer) for layer in (0, 1)]
    for inputs in all_inputs:
        ids = np.asarray(inputs.q_ids)
        assert (np.diff(ids) > 0).all() and ids.min() >= 0 and ids.max() < RANGE
        assert (ids == ids[0]).all() and (ids == np.asarray(inputs.k_ids)).all()
        np.testing.assert_array_equal(inputs.distance, ids[:, :, None] - ids[:, None, :])
        if beside == 'rope':
            rope = build('rope', {}, DIMS)[0]
            np.testing.assert_array_equal(inputs.shared[1][0], rope.turn(inputs.q_ids)[0])
    assert (all_inputs[0].q_ids != all_inputs[1].q_ids).any()


def test_each_document_has_its_own():
    """Catches distances across the documents of a row, and a second one that goes on counting."""
    found = np.asarray(drawn('randomized+alibi', 0, PACKED).distance)[0]
    for start, stop in ((0, 7), (7, 11)):
        part = found[start:stop, start:stop]
        assert all(len(set(np.diagonal(part, -n))) == 1 for n in range(stop - start))
        growing = part[:, 0]
        assert growing[0] == 0 and (np.diff(growing) > 0).all() and growing[-1] < RANGE
    assert (found[7:11, 7] != found[:4, 0]).any()


def test_rows_draw_for_themselves_without_a_key_of_the_batch():
    """Catches a result that depends on the other rows of an evaluation."""
    found = np.asarray(drawn('randomized+alibi', 0, batch_key=None).distance)
    one = np.asarray(drawn('randomized+alibi', 0, WHOLE[:1], None, KEYS[1:2]).distance)
    assert (found[0] != found[1]).any() and (found[1] == one[0]).all()


def test_once_is_what_it_was():
    """Catches layers that draw for themselves where ids are asked for once, for each document."""
    all_inputs = [drawn('randomized+alibi', layer, draw='once') for layer in (0, 1)]
    ids = np.asarray(all_inputs[0].q_ids)
    assert (ids == np.asarray(all_inputs[1].q_ids)).all() and (ids[0] != ids[1]).any()
    np.testing.assert_array_equal(all_inputs[0].distance, ids[:, :, None] - ids[:, None, :])


def test_weights_beside_alibi():
    """Catches a bias that is still that of the places, or of keys alone."""
    ids = np.sort(np.random.default_rng(0).choice(RANGE, 24, replace=False))[:T]  # of the model
    m = run('randomized+alibi', dict(range=RANGE), ids)
    rng = np.random.default_rng(1)  # the table of layer 0, as decoding has it
    far = np.concatenate([[0], np.sort(1 + rng.choice(RANGE - 1, 23, replace=False))])
    places = np.maximum(PLACES[:, None] - PLACES, 0)
    expected = R.none(m.q, m.k) - slopes(HEADS)[:, None, None] * far[places]
    close(m.weights, R.softmax(expected))


def built(positions, training=False, layers=2):
    c = base.get_config().model
    c.update(width=16, num_layers=layers, num_heads=2, num_kv_heads=1, max_len=24)
    c.update(positions=positions, positions_args=dict(range=RANGE))
    model = Transformer(resolve(c, 17, T), training)
    tokens = np.random.default_rng(0).integers(1, 17, (1, T)).astype(np.int32)
    fields = np.tile(tokens, (ROWS, 1)), places_of(WHOLE).astype(np.int32), WHOLE
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *fields)['params'])
    rng = np.random.default_rng(1)

    # Larger ones make rounding large: a layer would give thousands of times what it gets.
    def draw(x):
        return jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype)

    params = jax.tree.map(draw, shapes)
    return model, params, fields


def test_the_model_draws_once_a_batch():
    """Catches layers that are not given their number or the batch's key, and rows of a batch in
    training that draw for themselves."""
    model, params, fields = built('randomized+alibi', training=True)

    @jax.jit
    def apply(batch_key):
        keys = dict(row_keys=KEYS, batch_key=batch_key)
        return model.apply({'params': params}, *fields, **keys)[0]

    together = apply(BATCH)
    apart = apply(None)
    close(together[0], together[1], 1e-5)
    assert abs(apart[0] - apart[1]).max() > 1e-2
    model = Transformer(dataclasses.replace(model.config, attention='auto'), True)
    assert model.config.encodings[0].kernel() == 'reference'


def test_decoding_agrees_with_the_whole():
    """Catches a table that moves with the columns of the cache, or is another in each step."""
    model, params, (tokens, places, ones) = built('randomized+alibi')
    apply = jax.jit(lambda cache, *fields: model.apply({'params': params}, *fields, cache=cache))
    whole, _ = apply(None, tokens, places, ones)
    cache = generate.empty_cache(model, ROWS, T)
    out, cache = apply(cache, tokens[:, :9], places[:, :9], ones[:, :9])
    close(out, whole[:, :9], 1e-4)
    for at in range(9, T):
        here = slice(at, at + 1)
        fields = tokens[:, here], places[:, here], ones[:, here]
        out, cache = apply(cache, *fields)
        close(out[:, 0], whole[:, at], 1e-4)


@pytest.mark.parametrize(
    'name, one, two', [('randomized', 'range=40', 'range=200'), ('pose', 'target=64', 'target=99')]
)
def test_ids_are_changed_once(name, one, two):
    """Catches layers whose ids are drawn from two ranges, and fall from one token to the next."""
    with pytest.raises(ModelError, match='position ids are the same for all layers'):
        build(f'{name}({one})+rope,{name}({two})+alibi', {}, DIMS)
    given = dict([one.split('=')])
    given = {key: int(value) for key, value in given.items()}
    assert (
        len(
            {
                part
                for e in build(f'{name}({one})+rope,{name}+alibi', given, DIMS)
                for part in e.parts
            }
        )
        == 3
    )
