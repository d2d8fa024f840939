"""From logits to the next token."""

import dataclasses

import jax
import jax.numpy as jnp

from model.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. In this order: repetition penalty (Keskar et al. 2019, arXiv 1909.05858, equation 2:
    logits of tokens already there are divided by it, multiplied where negative), temperature (0: greedy), top_k (0: all),
    top_p (Holtzman et al. 2020, arXiv 1904.09751), min_p (share of the most likely one's probability; 2407.01082)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def check(self) -> None:
        """Raises ModelError naming the first field out of its range."""
        for name, right, expected in (
            ('temperature', self.temperature >= 0, 'at least 0'),
            ('top_k', self.top_k >= 0, 'at least 0'),
            ('top_p', 0 < self.top_p <= 1, 'above 0, at most 1'),
            ('min_p', 0 <= self.min_p <= 1, 'from 0 to 1'),
            ('repetition_penalty', self.repetition_penalty > 0, 'above 0'),
        ):
            if not right:
                raise ModelError(f'{name} is {getattr(self, name)}: expected {expected}')


def penalize_repetition(logits: jax.Array, seen: jax.Array, penalty) -> jax.Array:
    """logits [B,V], seen [B,V] bool."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def filter_logits(logits: jax.Array, top_k, top_p, min_p) -> jax.Array:
    """logits [B,V] -> the same with what the filters exclude at -inf. The most likely token always stays; ties at the k-th
    place all stay."""
    vocab = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)
    kth = jnp.take_along_axis(
        ordered,
        jnp.broadcast_to(
            jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab) - 1, (logits.shape[0], 1)
        ),
        -1,
    )
    ordered = jnp.where(ordered >= kth, ordered, -jnp.inf)
    probs = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs  # what the more likely ones hold together
    inside = (before < top_p) & (probs >= min_p * probs[:, :1]) & (ordered > -jnp.inf)
    lowest = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def draw_tokens(logits: jax.Array, keys: jax.Array, seen: jax.Array, s: Sampling) -> jax.Array:
    """logits [B,V] float32, keys [B] -> tokens [B] int32. The fields of `s` may be traced, `temperature` of 0 included."""
    logits = penalize_repetition(logits, seen, s.repetition_penalty)
    greedy = jnp.argmax(logits, -1)
    warm = filter_logits(logits / jnp.maximum(s.temperature, 1e-6), s.top_k, s.top_p, s.min_p)
    drawn = jax.vmap(jax.random.categorical)(keys, warm)
    return jnp.where(s.temperature > 0, drawn, greedy).astype(jnp.int32)
