"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864, equations 14 and 34) and their kin.

Pair c of the rotated dimensions turns by the angle p * theta_c. Frequencies are computed in float64
and angles in float32: bfloat16 cannot hold the positions from 257 on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import ModelError
from model.kernels import platform
from model.positions.base import PositionalEncoding, Spec, positive

_ROPE = 'Su et al. 2021, arXiv 2104.09864, equation 34'


@dataclasses.dataclass(frozen=True)
class Rope(PositionalEncoding):
    """theta_c = base^(-2c/d).

    `layout`: which dimensions pair up, half (c with c + d/2: GPT-NeoX, Llama) or interleaved (2c
    with 2c + 1: GPT-J, the paper).
    """

    base: float = 10000.0
    layout: str = 'half'
    spec = Spec(
        'RoPE',
        _ROPE,
        shift_invariant=True,
        differs=(
            'dimension c pairs up with c + d/2, as in GPT-NeoX; equation 34 pairs 2c '
            'with 2c + 1 (rope_interleaved; layout)',
        ),
    )

    def check(self):
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.dims.head_dim:
            raise ModelError(
                f'config.model.head_dim is {self.dims.head_dim}: {self.spec.title} rotates '
                f'{self.rotary_dim} of them, expected an even number'
            )
        if self.layout not in ('half', 'interleaved'):
            raise ModelError(
                f"config.model.positions_args.layout is {self.layout!r}: expected 'half' or "
                f"'interleaved'"
            )
        positive('base', self.base)

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head are rotated, the first ones."""
        return self.dims.head_dim

    def frequencies(self) -> np.ndarray:
        """Returns theta_c, radians a position, float64 [rotary_dim / 2]."""
        return self.base ** (-np.arange(0, self.rotary_dim, 2) / self.rotary_dim)

    @property
    def factor(self) -> float:
        """A factor of rotated queries and keys."""
        return 1.0

    def share(self, inputs):
        """Returns cos and sin [B,1,T,rotary_dim/2], float32."""
        return self.turn(inputs.q_ids)

    def share_anew(self, inputs):
        return self.share(inputs)

    def rotate(self, inputs, q, k):
        return self.rotated(q, *inputs.shared), self.rotated(k, *inputs.shared)

    def turn(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns cos and sin [B,1,T,rotary_dim/2] of the angles at positions [B,T]."""
        # float is float32 here, and 64 bits wide under x64.
        angle = positions[:, None, :, None].astype(float) * jnp.asarray(self.frequencies())
        return self.factor * jnp.cos(angle), self.factor * jnp.sin(angle)

    def rotated(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        """Returns x [B,H,T,d] turned, in float32.

        Dimensions that are not rotated stay as they are, bit by bit.
        """
        wide = x[..., : self.rotary_dim].astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.layout == 'half' and platform() == 'tpu':
            # The halves change places in a matrix unit, which costs nothing beside them; a TPU's
            # lanes would take longer than the projections.
            swap = jnp.roll(jnp.eye(self.rotary_dim, dtype=x.dtype), self.rotary_dim // 2, 0)
            exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
            other = jnp.einsum(
                '...d,de->...e',
                x[..., : self.rotary_dim],
                swap,
                precision=exact,
                preferred_element_type=wide.dtype,
            )
            cos_both = jnp.concatenate([cos, cos], axis=-1)
            sin_both = jnp.concatenate([-sin, sin], axis=-1)
            out = wide * cos_both + other * sin_both
        elif self.layout == 'half':
            a, b = jnp.split(wide, 2, axis=-1)
            out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
        else:
            a = wide[..., 0::2]
            b = wide[..., 1::2]
            out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(wide.shape)
        return jnp.concatenate([out.astype(x.dtype), x[..., self.rotary_dim :]], axis=-1)


@dataclasses.dataclass(frozen=True)
class Lengthened(Rope):
    """RoPE for texts longer than those of training.

    `length`: the context of training; 0: config.data.seq_len, in post-training the longest of the
    runs before it.
    """

    length: int = 0

    def check(self):
        super().check()
        if self.length < 0:
            raise ModelError(
                f'config.model.positions_args.length is {self.length}: expected at least 0'
            )

    @property
    def trained(self) -> int:
        """The context of training, in tokens."""
        return self.length or self.dims.trained


@dataclasses.dataclass(frozen=True)
class InterleavedRope(Rope):
    """Pairs dimensions as the paper, 2c with 2c + 1: RoPE up to a fixed permutation of them."""

    layout: str = 'interleaved'
    spec = Spec(
        'RoPE, interleaved pairs',
        f'{_ROPE}; GPT-J (Wang and Komatsuzaki 2021)',
        shift_invariant=True,
        differs=(
            'the whole head turns, as in the paper; GPT-J turns 64 of its 256 '
            'dimensions (6B_roto_256.json:8)',
        ),
    )


@dataclasses.dataclass(frozen=True)
class PartialRope(Rope):
    """Rotates the first `fraction` of the dimensions (GPT-NeoX, Pythia: 0.25).

    Exponents count the rotated dimensions only.
    """

    fraction: float = 0.25
    spec = Spec(
        'RoPE, partial',
        'Black et al. 2022, arXiv 2204.06745, section 2 (GPT-NeoX)',
        shift_invariant=True,
    )

    @property
    def rotary_dim(self):
        return int(self.dims.head_dim * self.fraction)


@dataclasses.dataclass(frozen=True)
class ProportionalRope(Rope):
    """p-RoPE: the frequencies of the whole head, the lowest share 1 - `fraction` of them zero."""

    fraction: float = 0.75
    spec = Spec(
        'p-RoPE (proportional)',
        'Barbero et al. 2025, arXiv 2410.06205, section 6',
        shift_invariant=True,
    )

    def check(self):
        super().check()
        if not 0 <= self.fraction <= 1:
            raise ModelError(
                f'config.model.positions_args.fraction is {self.fraction}: expected from 0 to 1'
            )

    def frequencies(self):
        theta = super().frequencies()
        return np.where(np.arange(len(theta)) < int(self.fraction * len(theta)), theta, 0.0)


@dataclasses.dataclass(frozen=True)
class Xpos(Rope):
    """RoPE with q * zeta_c^((p - m)/scale_base), k * zeta_c^(-(p - m)/scale_base).

    zeta_c = (2c + gamma d)/((1 + gamma) d). m, the middle of the ids, cancels out of the logits and
    keeps both factors inside float32; fixed, so that keys can be cached rotated.
    """

    gamma: float = 0.4
    scale_base: float = 512.0
    spec = Spec(
        'xPos',
        'Sun et al. 2022, arXiv 2212.10554, equation 12',
        shift_invariant=True,
        differs=(
            'dimension c pairs up with c + d/2, torchscale pairs 2c with 2c + 1 '
            '(xpos_relative_position.py:16-35; layout)',
            'm is the middle of all ids, not of the text at hand, so that keys can be '
            'cached (xpos_relative_position.py:51-53)',
        ),
    )
    bidirectional = False  # what lies ahead would grow with its distance

    def check(self):
        super().check()
        positive('gamma', self.gamma)
        positive('scale_base', self.scale_base)
        # Powers up to 40, of 88 that float32 holds: products of both sides stay finite.
        ids = self.dims.num_ids
        steepest = -np.log(self.gamma / (1 + self.gamma))
        if steepest * ids / 2 / self.scale_base > 40:
            field = 'the number of ids that are drawn (config.model.positions_args)'
            if ids == self.dims.max_len:
                field = 'config.model.max_len'
            raise ModelError(
                f'{field} is {ids}: xPos with scale_base {self.scale_base} would overflow; '
                f'expected at most {int(40 * 2 * self.scale_base / steepest)}'
            )

    def log_zeta(self) -> np.ndarray:
        """Returns log zeta_c, float64 [d / 2]."""
        d = self.dims.head_dim
        return np.log((np.arange(0, d, 2) + self.gamma * d) / ((1 + self.gamma) * d))

    def share(self, inputs):
        from_middle = inputs.q_ids[:, None, :, None].astype(float) - self.dims.num_ids // 2
        power = from_middle / self.scale_base
        return *self.turn(inputs.q_ids), jnp.exp(power * jnp.asarray(self.log_zeta()))

    def rotate(self, inputs, q, k):
        cos, sin, grow = inputs.shared
        return self.rotated(q, cos * grow, sin * grow), self.rotated(k, cos / grow, sin / grow)
