"""Draws the next token from logits.

Dimensions: B batch, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Says how the next token is drawn; the fields apply in this order.

    Attributes:
      repetition_penalty: logits of tokens already there are divided by it, multiplied where
        negative (Keskar et al. 2019, arXiv 1909.05858, equation 2).
      temperature: 0 is greedy.
      top_k: 0 keeps all.
      top_p: Holtzman et al. 2020, arXiv 1904.09751.
      min_p: share of the most likely token's probability (Nguyen et al. 2024, arXiv 2407.01082).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def check(self) -> None:
        """Raises ModelError naming the first field out of its range."""
        for name, is_valid, expected in (
            ('temperature', self.temperature >= 0, 'at least 0'),
            ('top_k', self.top_k >= 0, 'at least 0'),
            ('top_p', 0 < self.top_p <= 1, 'above 0, at most 1'),
            ('min_p', 0 <= self.min_p <= 1, 'from 0 to 1'),
            ('repetition_penalty', self.repetition_penalty > 0, 'above 0'),
        ):
            if not is_valid:
                raise ModelError(f'{name} is {getattr(self, name)}: expected {expected}')


def penalize_repetition(logits: jax.Array, seen: jax.Array, penalty) -> jax.Array:
    """Returns logits [B,V] with those of tokens that are `seen` (bool [B,V]) made less likely."""
    penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, penalized, logits)


def filter_logits(logits: jax.Array, top_k, top_p, min_p) -> jax.Array:
    """Returns logits [B,V] with what the filters exclude at -inf.

    The most likely token always stays; ties at the k-th place all stay.
    """
    batch, vocab = logits.shape
    ordered = -jnp.sort(-logits, axis=-1)

    # top_k: nothing below the k-th. It may be traced, and so may 0, which stands for all.
    k = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab)
    kth = jnp.take_along_axis(ordered, jnp.broadcast_to(k - 1, (batch, 1)), -1)
    ordered = jnp.where(ordered >= kth, ordered, -jnp.inf)

    # top_p and min_p: a token stays while those before it hold less than top_p together.
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    stays = (before < top_p) & (probs >= min_p * probs[:, :1]) & (ordered > -jnp.inf)
    lowest = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def draw_tokens(
    logits: jax.Array, keys: jax.Array, seen: jax.Array, sampling: Sampling
) -> jax.Array:
    """Draws tokens [B] int32 from logits [B,V] float32.

    Args:
      keys: a PRNG key a row, [B].
      seen: bool [B,V], tokens that a row holds already.
      sampling: its fields may be traced, a temperature of 0 included.
    """
    logits = penalize_repetition(logits, seen, sampling.repetition_penalty)

    def take_likeliest(logits):
        return jnp.argmax(logits, -1)

    def draw(logits):
        # A filter sorts the vocabulary, which takes longer than a small model: only where one is.
        scaled = logits / jnp.maximum(sampling.temperature, 1e-6)
        filters = (sampling.top_k, sampling.top_p, sampling.min_p)
        is_filtered = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
        kept = jax.lax.cond(is_filtered, lambda x: filter_logits(x, *filters), lambda x: x, scaled)
        return jax.vmap(jax.random.categorical)(keys, kept)

    # Branches, so that what is not asked for is not computed.
    is_drawn = jnp.asarray(sampling.temperature) > 0
    return jax.lax.cond(is_drawn, draw, take_likeliest, logits).astype(jnp.int32)
