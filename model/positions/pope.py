"""PoPE: polar coordinates, what and where apart (Gopalakrishnan et al. 2025, arXiv 2509.10534)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from model.positions.base import PositionalEncoding, Spec, positive


@dataclasses.dataclass(frozen=True)
class Pope(PositionalEncoding):
    """z_ij = sum over c of softplus(q_c) softplus(k_c) cos((i - j) theta_c - delta_hc) / sqrt(d).

    theta_c = base^(-c/d) for c < d: magnitudes from the words, phases from the places. delta in
    [-2 pi, 0] is learned for each key-value head, 0 at first, and shared by all layers. Queries and
    keys come out with 2d dimensions, so that any kernel takes them.
    """

    base: float = 10000.0
    spec = Spec(
        'PoPE (polar)',
        'Gopalakrishnan et al. 2025, arXiv 2509.10534, section 3',
        shift_invariant=True,
        differs=(
            'delta begins at 0, as for language models (table 6); for tasks the paper '
            'draws it from U(-2 pi, 0)',
            'the gradient passes the bounds of delta; PoPE-pytorch stops it there (pope.py:145)',
            'delta is shared by all layers, as in x-transformers '
            '(x_transformers.py:2790): section 3 does not say',
        ),
    )

    def check(self):
        positive('base', self.base)

    @property
    def head_size(self):
        return 2 * self.dims.head_dim

    def share(self, inputs):
        d = self.dims
        shape = (d.num_kv_heads, d.head_dim)
        delta = inputs.float32_param('delta', nn.initializers.zeros, shape, ('kv_heads', None))
        # Clipped without a loss of its gradient, so that it can come back.
        delta = delta + jax.lax.stop_gradient(jnp.clip(delta, -2 * np.pi, 0.0) - delta)
        return self._angle(inputs), delta

    def share_anew(self, inputs):
        return self._angle(inputs), inputs.shared[1]

    def _angle(self, inputs):
        """Returns the angle of each query in each dimension, [B,1,T,d] radians."""
        d = self.dims.head_dim
        theta = jnp.asarray(self.base ** (-np.arange(d) / d))
        return inputs.q_ids[:, None, :, None].astype(float) * theta

    def rotate(self, inputs, q, k):
        angle, delta = inputs.shared
        return _polar(q, angle), _polar(k, angle + delta[:, None])


def _polar(x: jax.Array, phase: jax.Array) -> jax.Array:
    """Returns x [B,H,T,d] as magnitudes at these phases, in Cartesian coordinates [B,H,T,2d]."""
    magnitude = nn.softplus(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    unit = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], -1)
    return (unit * jnp.tile(magnitude, 2)).astype(x.dtype)
