"""T5's relative position bias (Raffel et al. 2020, arXiv 1910.10683, section 2.1).

Buckets are those of the authors' code.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec

_BEFORE = {'std': 0.02}  # of version 1


def bucket_bounds(num_buckets: int, max_distance: int) -> np.ndarray:
    """Returns where each causal bucket begins, int64 [num_buckets].

    Bucket n for a distance n < e = num_buckets/2, else the largest b with
    n >= e * (max_distance/e)^((b-e)/(num_buckets-e)). Computed in integers, so that no rounding
    moves a bound.
    """
    exact = num_buckets // 2
    bounds = list(range(exact))
    steps = num_buckets - exact
    for b in range(steps):
        n = max(bounds[-1], exact)
        while n**steps < exact ** (steps - b) * max_distance**b:
            n += 1
        bounds.append(n)
    return np.asarray(bounds)


def bucketed(
    table: jax.Array, distance: jax.Array, num_buckets: int = 32, max_distance: int = 128
) -> jax.Array:
    """Returns a bias looked up by the buckets of distances, float32 [B or 1,H,T,S].

    Args:
      table: [num_buckets, H].
      distance: [B or 1,T,S] int32.
    """
    bounds = jnp.asarray(bucket_bounds(num_buckets, max_distance), jnp.int32)
    # Not searchsorted: it fails inside a shard_map (jax 0.10.2).
    bucket = (jnp.maximum(distance, 0)[..., None] >= bounds).sum(-1) - 1
    return jnp.moveaxis(table.astype(jnp.float32)[bucket], -1, 1)


@dataclasses.dataclass(frozen=True)
class T5(PositionalEncoding):
    """b_ij = W[bucket(i - j), h], W [num_buckets, H] ~ N(0, std^2) shared by all layers.

    `std` 0: width^-0.5, as in transformers (modeling_t5.py, line 620).
    """

    num_buckets: int = 32
    max_distance: int = 128
    std: float = 0.0
    spec = Spec(
        'T5 bias',
        'Raffel et al. 2020, arXiv 1910.10683, section 2.1',
        shift_invariant=True,
        bias_form='Toeplitz',
        version=2,
        before=_BEFORE,
        differs=(
            'the table begins at N(0, 1/D), as in transformers (modeling_t5.py:620); '
            'the authors: Glorot uniform, of heads and buckets (ops.py:4193-4197)',
            'logits keep their 1/sqrt(d); T5 has none and begins its queries smaller '
            '(modeling_t5.py:615; t5_unscaled)',
        ),
    )

    def check(self):
        if self.std < 0:
            raise ModelError(
                f'config.model.positions_args.std is {self.std}: expected more than 0, or 0 for '
                f'config.model.width^-0.5'
            )
        if self.num_buckets < 2 or self.num_buckets % 2:
            raise ModelError(
                f'config.model.positions_args.num_buckets is {self.num_buckets}: expected an even '
                f'number'
            )
        if self.max_distance <= self.num_buckets // 2:
            raise ModelError(
                f'config.model.positions_args.max_distance is {self.max_distance}: expected more '
                f'than half the buckets ({self.num_buckets // 2})'
            )

    def share(self, inputs):
        return inputs.param(
            'table',
            nn.initializers.normal(self.std or self.dims.width**-0.5),
            (self.num_buckets, self.dims.num_heads),
            (None, 'heads'),
        )

    def bias(self, inputs):
        return bucketed(inputs.shared, inputs.distance, self.num_buckets, self.max_distance)


@dataclasses.dataclass(frozen=True)
class UnscaledT5(T5):
    """T5 with its own logits, which are not scaled by 1/sqrt(d)."""

    spec = Spec(
        'T5 bias, unscaled logits',
        "Raffel et al. 2020, arXiv 1910.10683; the authors' code",
        shift_invariant=True,
        bias_form='Toeplitz',
        version=2,
        before=_BEFORE,
        differs=(
            'the table begins at N(0, 1/D), as in transformers (modeling_t5.py:620); '
            'the authors: Glorot uniform, of heads and buckets (ops.py:4193-4197)',
            "queries begin as beside any encoding; T5's sqrt(d) smaller, for the scale "
            'that is not there (modeling_t5.py:615)',
        ),
    )

    def scale(self, inputs, q):
        return q * self.dims.head_dim**0.5
