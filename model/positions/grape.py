"""GRAPE: group actions as positions (Zhang et al. 2025, arXiv 2512.07805)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from model.errors import ModelError
from model.positions.alibi import slopes
from model.positions.base import PositionalEncoding, Spec
from model.positions.rope import Rope

_GRAPE = 'Zhang et al. 2025, arXiv 2512.07805'


@dataclasses.dataclass(frozen=True)
class GrapeM(Rope):
    """Multiplicative, commuting planes: RoPE whose frequencies are learned, theta_c = exp(l_c / step), one spectrum in each layer.
    RoPE at first. `step` divides what the optimizer moves log theta by; l is float32 whatever the parameters' type, as the authors keep it."""

    step: float = 16.0
    spec = Spec(
        'GRAPE-M',
        f"{_GRAPE}, section 3; the authors' code",
        shift_invariant=True,
        differs=(
            'turns the other way: the same logits up to the signs of half the '
            'dimensions (llama-mha-grape-m-nonctx.py:36-40)',
            'no root mean square norm of queries and keys, theirs after the turn '
            '(llama-mha-grape-m-nonctx.py:206-235); config.model.qk_norm: before',
        ),
    )

    def frequencies_of(self, inputs) -> jax.Array:
        init = lambda key, shape, dtype: jnp.asarray(
            self.step * np.log(self.frequencies()), jnp.promote_types(dtype, jnp.float32)
        )
        return jnp.exp(
            inputs.param('log_frequencies', init, (self.rotary_dim // 2,), (None,)).astype(float)
            / self.step
        )

    def share(self, inputs):
        return None

    def rotate(self, inputs, q, k):
        turn = self._turned(inputs, inputs.q_ids[:, None].astype(float))
        return self.rotated(q, *turn), self.rotated(k, *turn)

    def _turned(self, inputs, phase: jax.Array) -> tuple[jax.Array, jax.Array]:
        """phase [B,1,T] -> cos, sin [B,1,T,d/2]."""
        angle = phase[..., None] * self.frequencies_of(inputs)
        return jnp.cos(angle), jnp.sin(angle)


@dataclasses.dataclass(frozen=True)
class ContextualGrapeM(GrapeM):
    """The angle grows by what the tokens say: phase_t = sum of sigmoid((w . x_s + b)/omega_scale) over s < t, in place of t."""

    step: float = 1.0
    omega_scale: float = 16.0
    spec = Spec(
        'GRAPE-M, contextual',
        f"{_GRAPE}, appendix; the authors' code",
        shift_invariant=True,
        differs=(
            'turns the other way: the same logits up to the signs of half the '
            'dimensions (llama-mha-grape-m-ctx.py:45-46)',
            'no root mean square norm of queries and keys, theirs after the turn '
            '(llama-mha-grape-m-ctx.py:202-247); config.model.qk_norm: before',
        ),
    )

    def rotate(self, inputs, q, k):
        return q, k

    def key_state(self, inputs):
        w = inputs.param('omega', nn.initializers.zeros, (self.dims.width,), (None,)).astype(
            jnp.float32
        )
        b = inputs.param(
            'omega_bias', nn.initializers.constant(float(np.log(np.expm1(1e-3)))), (), ()
        ).astype(jnp.float32)
        return {'omega': jax.nn.sigmoid((inputs.x.astype(jnp.float32) @ w + b) / self.omega_scale)}

    def read(self, inputs, q, k):
        """Keys are kept as they are: the phase is a running sum over the cache."""
        omega = jnp.where(inputs.k_segment_ids > 0, inputs.state['omega'], 0.0)
        before = jnp.cumsum(omega, -1) - omega
        start = jnp.where(inputs.k_positions == 0, before, 0.0)  # of each document
        same = (inputs.k_segment_ids[:, :, None] == inputs.k_segment_ids[:, None, :]).astype(
            jnp.float32
        )
        phase = before - jnp.einsum('bst,bt->bs', same, start, precision=jax.lax.Precision.HIGHEST)
        own = inputs.at_query(phase[:, None])
        return self.rotated(q, *self._turned(inputs, own)), self.rotated(
            k, *self._turned(inputs, phase[:, None])
        )


@dataclasses.dataclass(frozen=True)
class GrapeA(PositionalEncoding):
    """Additive, gated by the key: b_ij = -(i - j) m_h softplus(w_h) softplus(u_h . k_j / sqrt(d)), m the slopes of ALiBi, u of unit
    length. The gate multiplies the distance, so that this is no column of the keys alone."""

    gates: ClassVar[tuple[str, ...]] = ('key',)
    spec = Spec(
        'GRAPE-A, gated by the key',
        f"{_GRAPE}, section 4; the authors' code",
        shift_invariant=True,
        bias_form='data',
        differs=(
            'no root mean square norm of queries and keys, on by default there '
            '(llama-mha-grape-a-keygated.py:161-183; config.model.qk_norm)',
        ),
    )

    def logits(self, inputs):
        d = self.dims
        init = nn.initializers.constant(float(np.log(np.expm1(1.0))))
        rate = nn.softplus(
            inputs.param('w', init, (d.num_heads,), ('heads',)).astype(jnp.float32)
        ) * jnp.asarray(slopes(d.num_heads), jnp.float32)
        gate = 0.0
        for side in self.gates:
            u = inputs.param(
                side,
                nn.initializers.normal(d.head_dim**-0.5),
                (d.num_heads, d.head_dim),
                ('heads', None),
            ).astype(jnp.float32)
            u = u / jnp.maximum(jnp.linalg.norm(u, axis=-1, keepdims=True), 1e-6)
            of = inputs.heads_of_keys if side == 'key' else inputs.q
            opened = nn.softplus(
                jnp.einsum('hd,bhsd->bhs', u, of.astype(jnp.float32)) * d.head_dim**-0.5
            )
            gate += opened[:, :, None] if side == 'key' else opened[..., None]
        return inputs.z - rate[:, None, None] * inputs.reach[:, None] * gate


@dataclasses.dataclass(frozen=True)
class QueryGrapeA(GrapeA):
    """Gated by the query: softplus(v_h . q_i / sqrt(d)) in place of the key's."""

    gates = ('query',)
    spec = Spec(
        'GRAPE-A, gated by the query',
        f"{_GRAPE}, section 4; the authors' code",
        shift_invariant=True,
        bias_form='data',
        differs=(
            'no root mean square norm of queries and keys, on by default there '
            '(llama-mha-grape-a-querygated.py:162-184; config.model.qk_norm)',
        ),
    )


@dataclasses.dataclass(frozen=True)
class BothGrapeA(GrapeA):
    """The sum of both gates."""

    gates = ('query', 'key')
    spec = Spec(
        'GRAPE-A, gated by both',
        f"{_GRAPE}, section 4; the authors' code",
        shift_invariant=True,
        bias_form='data',
        differs=(
            'no root mean square norm of queries and keys, on by default there '
            '(llama-mha-grape-a-querykeygated.py:187-209; config.model.qk_norm)',
        ),
    )


@dataclasses.dataclass(frozen=True)
class GrapeAp(PositionalEncoding):
    """Additive along the path: b_ij = m_h sum over j < l <= i of log sigmoid(p_i . R_l rms(p_l) / dp), p = W x of dp dimensions a head,
    R_l a turn of all its planes by l radians. The turn is the key's own place: not the same for shifted texts."""

    path_dim: int = 8
    spec = Spec(
        'GRAPE-AP (path integral)',
        f"{_GRAPE}, section 4; the authors' code, v1",
        shift_invariant=False,
        bias_form='data',
        differs=(
            'no root mean square norm of queries and keys, on by default there '
            '(llama-mha-grape-ap-v1.py:136-159; config.model.qk_norm)',
            'path_dim 8, as in the runs of that name (config/*_pdim8_*.py:25); the '
            "class has the head's size (llama-mha-grape-ap-v1.py:94-95)",
        ),
    )

    def check(self):
        if self.path_dim < 2 or self.path_dim % 2:
            raise ModelError(
                f'config.model.positions_args.path_dim is {self.path_dim}: expected an even number'
            )

    def _p(self, inputs):
        w = inputs.param(
            'w',
            nn.initializers.normal(0.5 * self.dims.width**-0.5),
            (self.dims.width, self.dims.num_heads, self.path_dim),
            (None, 'heads', None),
        ).astype(jnp.float32)
        return jnp.einsum('btD,Dhp->bhtp', inputs.x.astype(jnp.float32), w)

    def key_state(self, inputs):
        p = self._p(inputs)
        p = p * jax.lax.rsqrt(jnp.square(p).mean(-1, keepdims=True) + jnp.finfo(jnp.float32).eps)
        angle = inputs.q_ids[:, None, :, None].astype(jnp.float32)
        a, b = jnp.split(p, 2, axis=-1)
        turned = jnp.concatenate(
            [a * jnp.cos(angle) + b * jnp.sin(angle), b * jnp.cos(angle) - a * jnp.sin(angle)], -1
        )
        return {'turned': jnp.swapaxes(turned, 2, 3)}

    def logits(self, inputs):
        edge = jax.nn.log_sigmoid(
            jnp.einsum('bhtp,bhps->bhts', self._p(inputs), inputs.state['turned']) / self.path_dim
        )
        edge = jnp.where(inputs.visible, edge, 0.0)
        after = jax.lax.cumsum(edge, axis=3, reverse=True) - edge  # over the keys that come after j
        return (
            inputs.z + jnp.asarray(slopes(self.dims.num_heads), jnp.float32)[:, None, None] * after
        )
