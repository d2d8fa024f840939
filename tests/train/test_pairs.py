"""What can be combined with a mesh, two things at a time, on eight forced CPU devices against
one."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from model.loss import choose_chunks, loss_in_chunks, weighted_token_loss
from tests.train.rows import (
    AXES,
    BATCH,
    TIME,
    VOCAB,
    agree,
    batch_of,
    config_of,
    expected_step,
    first_step,
)

# A pairwise cover: which axes are cut, microbatches, key-value heads, encoding (of the embedding, a
# rotation, a bias, extra columns), scanned
# layers, chunks of the loss.
COVER = [
    ((2, 2, 1, 2), 1, 8, 'rope', True, 1),
    ((2, 1, 1, 4), 2, 8, 'learned', False, 2),
    ((1, 1, 4, 2), 2, 8, 't5', True, 2),
    ((1, 4, 2, 1), 1, 8, 'forgetting', False, 2),
    ((1, 1, 8, 1), 2, 1, 'rope', True, 1),
    ((2, 2, 2, 1), 2, 1, 'learned', False, 2),
    ((8, 1, 1, 1), 1, 1, 't5', True, 2),
    ((1, 4, 1, 2), 2, 1, 'forgetting', True, 1),
    ((4, 2, 1, 1), 2, 2, 'rope', False, 2),
    ((1, 1, 8, 1), 1, 2, 'learned', True, 1),
    ((1, 4, 1, 2), 1, 2, 't5', False, 1),
    ((2, 1, 2, 2), 2, 2, 'forgetting', True, 2),
]


def test_the_cover_is_pairwise():
    """Catches a row taken out of the cover without what it stood for. All four axes at once would
    need sixteen devices."""
    rows = [(*(a > 1 for a in shape), *rest) for shape, *rest in COVER]
    for i, j in itertools.combinations(range(len(rows[0])), 2):
        wanted = set(itertools.product({r[i] for r in rows}, {r[j] for r in rows}))
        assert {(r[i], r[j]) for r in rows} == wanted, (i, j)


@pytest.mark.parametrize('shape, accumulation, kv_heads, positions, scan, chunks', COVER)
def test_pairs(shape, accumulation, kv_heads, positions, scan, chunks):
    """Catches two features that are right alone and wrong together."""

    def make():
        return config_of(positions, kv_heads, scan_layers=scan, remat='full' if scan else 'none')

    agree(first_step(make(), accumulation, chunks, **dict(zip(AXES, shape))), expected_step(make()))


@pytest.mark.parametrize('positions', ['randomized+rope', 'randomized+t5', 'cope', 'path'])
def test_what_needs_the_whole_text_crosses_the_context(positions):
    """Catches ids drawn for each part of a text by itself, and states of the keys (with all keys
    gathered) that stay behind."""
    config = config_of(positions, num_layers=1)
    agree(first_step(config, data=2, context=4), expected_step(config))


@pytest.mark.parametrize(
    'sizes, accumulation, scan',
    [
        (dict(data=2, fsdp=2, tensor=2), 2, False),
        (dict(data=2, context=4), 1, False),
        (dict(data=2, context=4), 1, True),
    ],
)
def test_dropout_is_the_same_on_any_mesh(sizes, accumulation, scan):
    """Catches masks drawn by device, microbatch or part of a text, the same mask in all layers, and
    dropout that drops nothing."""
    whole = expected_step(config_of(dropout=0.2, scan_layers=scan))
    agree(first_step(config_of(dropout=0.2, scan_layers=scan), accumulation, **sizes), whole)
    without = expected_step(config_of(scan_layers=scan))
    assert whole[0] != pytest.approx(without[0], rel=2e-5)


def test_the_loss_in_chunks():
    """Catches chunks that lose tokens or weights, and logits of a whole row held all the same."""
    agree(first_step(config_of(), loss_chunks=8), expected_step(config_of()))
    batch, hidden, w = batch_of(0), jnp.ones((BATCH, TIME, 8)), jnp.ones((8, VOCAB))

    def of(chunks):
        return jax.make_jaxpr(
            jax.grad(
                lambda w: loss_in_chunks(weighted_token_loss, jnp.matmul, hidden, w, batch, chunks)[
                    0
                ]
            )
        )(w)

    whole, part = f'f32[{BATCH},{TIME},{VOCAB}]', f'f32[{BATCH},{TIME // 8},{VOCAB}]'
    assert whole in str(of(1)) and whole not in str(of(8)) and part in str(of(8))


def test_chunks_are_chosen_by_memory():
    """Catches chunks where they only cost time, and a large vocabulary without them."""
    assert choose_chunks(2048, 4 * 2**30, 0) == 1 and choose_chunks(2048, 2**20, 4) == 4
    assert choose_chunks(2048, 8 * 2**30 + 1, 0) == 16 and choose_chunks(6, 5 * 2**30, 0) == 6
    assert choose_chunks(2048, 2**29, 0, on_tpu=True) == 1
    assert choose_chunks(2048, 2**30, 0, on_tpu=True) == 4
