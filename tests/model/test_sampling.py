"""Sampling against a slow reference in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.errors import ModelError
from model.sampling import Sampling, draw_tokens, filter_logits, penalize_repetition

LOGITS = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32) * 2


def reference(logits, top_k, top_p, min_p):
    """Which tokens stay: walk from the most likely one down."""
    order = np.argsort(-logits)[: top_k or None]
    probs = np.exp(logits[order] - logits[order].max())
    probs /= probs.sum()
    kept, held = set(), 0.0
    for token, p in zip(order, probs):
        if held < top_p and p >= min_p * probs[0]:
            kept.add(int(token))
        held += p
    return kept


@pytest.mark.parametrize(
    'top_k, top_p, min_p',
    [
        (0, 1.0, 0.0),
        (3, 1.0, 0.0),
        (0, 0.6, 0.0),
        (0, 1.0, 0.2),
        (5, 0.8, 0.1),
        (1, 1.0, 0.0),
        (99, 1.0, 0.0),
        (0, 1e-6, 1.0),
    ],
)
def test_filters(top_k, top_p, min_p):
    """Catches a filter off by one, the wrong order of filters, and one that leaves nothing."""
    found = np.asarray(filter_logits(jnp.asarray(LOGITS), top_k, top_p, min_p))
    for row, logits in zip(found, LOGITS):
        assert set(np.flatnonzero(np.isfinite(row))) == reference(logits, top_k, top_p, min_p)
        np.testing.assert_array_equal(row[np.isfinite(row)], logits[np.isfinite(row)])


def test_draws_follow_the_distribution():
    """Catches a temperature that multiplies, a key that all rows share, and greedy that draws."""
    keys = jax.random.split(jax.random.key(0), 20000)
    logits = jnp.tile(LOGITS[:1], (20000, 1))
    seen = jnp.zeros((20000, 12), bool)
    tokens = np.asarray(draw_tokens(logits, keys, seen, Sampling(temperature=2.0)))
    expected = np.exp(LOGITS[0] / 2) / np.exp(LOGITS[0] / 2).sum()
    np.testing.assert_allclose(np.bincount(tokens, minlength=12) / 20000, expected, atol=0.015)
    assert set(np.asarray(draw_tokens(logits, keys, seen, Sampling(temperature=0.0)))) == {
        int(LOGITS[0].argmax())
    }


@pytest.mark.parametrize('field, value', [('top_k', 1), ('top_p', 1e-6), ('min_p', 1.0)])
def test_each_filter_counts_alone(field, value):
    """Catches a filter that is passed over because no other one is set."""
    keys = jax.random.split(jax.random.key(0), 200)
    logits = jnp.tile(LOGITS[:1], (200, 1))
    seen = jnp.zeros((200, 12), bool)

    @jax.jit
    def draw(fields):
        return draw_tokens(logits, keys, seen, Sampling(**fields))

    plain = {'temperature': 2.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
    assert len(set(np.asarray(draw(plain)))) > 3
    assert set(np.asarray(draw({**plain, field: value}))) == {int(LOGITS[0].argmax())}


def test_repetition_penalty():
    """Catches a penalty that raises negative logits, or touches tokens not seen."""
    logits, seen = jnp.array([[2.0, -2.0, 2.0, -2.0]]), jnp.array([[True, True, False, False]])
    np.testing.assert_allclose(penalize_repetition(logits, seen, 2.0), [[1.0, -4.0, 2.0, -2.0]])


@pytest.mark.parametrize(
    'field, value',
    [
        ('temperature', -1.0),
        ('top_k', -1),
        ('top_p', 0.0),
        ('top_p', 1.5),
        ('min_p', 2.0),
        ('repetition_penalty', 0.0),
    ],
)
def test_mistakes(field, value):
    """Catches a value that silently gives nonsense."""
    with pytest.raises(ModelError, match=f'{field} is {value}: expected'):
        Sampling(**{field: value}).check()
