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
    """Multiplicative, commuting planes: RoPE with learned frequencies, theta_c = exp(l_c / step).

    One spectrum in each layer, RoPE's at first. `step` divides what the optimizer moves log theta
    by; l is float32 whatever the parameters' type, as the authors have it.
    """

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
        """Returns theta, [rotary_dim / 2] float32."""

        def init(key, shape, dtype):
            wide = jnp.promote_types(dtype, jnp.float32)
            return jnp.asarray(self.step * np.log(self.frequencies()), wide)

        log_theta = inputs.param('log_frequencies', init, (self.rotary_dim // 2,), (None,))
        return jnp.exp(log_theta.astype(float) / self.step)

    def share(self, inputs):
        return None

    def rotate(self, inputs, q, k):
        turn = self._turned(inputs, inputs.q_ids[:, None].astype(float))
        return self.rotated(q, *turn), self.rotated(k, *turn)

    def _turned(self, inputs, phase: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns cos and sin [B,1,T,d/2] of phases [B,1,T]."""
        angle = phase[..., None] * self.frequencies_of(inputs)
        return jnp.cos(angle), jnp.sin(angle)


@dataclasses.dataclass(frozen=True)
class ContextualGrapeM(GrapeM):
    """GRAPE-M with an angle that grows by what the tokens say.

    phase_t = sum of sigmoid((w . x_s + b)/omega_scale) over s < t, in place of t.
    """

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
        w = inputs.float32_param('omega', nn.initializers.zeros, (self.dims.width,), (None,))
        initial_bias = nn.initializers.constant(float(np.log(np.expm1(1e-3))))
        b = inputs.float32_param('omega_bias', initial_bias, (), ())
        return {'omega': jax.nn.sigmoid((inputs.x.astype(jnp.float32) @ w + b) / self.omega_scale)}

    def read(self, inputs, q, k):
        """Returns q and k turned by their phases, a running sum over the cache."""
        omega = jnp.where(inputs.k_segment_ids > 0, inputs.state['omega'], 0.0)
        before = jnp.cumsum(omega, -1) - omega
        start = jnp.where(inputs.k_positions == 0, before, 0.0)  # of each document
        same = inputs.k_segment_ids[:, :, None] == inputs.k_segment_ids[:, None, :]
        same = same.astype(jnp.float32)
        phase = before - jnp.einsum('bst,bt->bs', same, start, precision=jax.lax.Precision.HIGHEST)
        turn_q = self._turned(inputs, inputs.at_query(phase[:, None]))
        turn_k = self._turned(inputs, phase[:, None])
        return self.rotated(q, *turn_q), self.rotated(k, *turn_k)


@dataclasses.dataclass(frozen=True)
class GrapeA(PositionalEncoding):
    """Additive, gated by the key: b_ij = -(i - j) m_h softplus(w_h) softplus(u_h . k_j / sqrt(d)).

    m the slopes of ALiBi, u of unit length. The gate multiplies the distance, so that this is no
    column of the keys alone.
    """

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
        w = inputs.float32_param('w', init, (d.num_heads,), ('heads',))
        rate = nn.softplus(w) * jnp.asarray(slopes(d.num_heads), jnp.float32)
        gate = 0.0
        for side in self.gates:
            init = nn.initializers.normal(d.head_dim**-0.5)
            shape = (d.num_heads, d.head_dim)
            u = inputs.float32_param(side, init, shape, ('heads', None))
            u = u / jnp.maximum(jnp.linalg.norm(u, axis=-1, keepdims=True), 1e-6)
            vectors = inputs.heads_of_keys if side == 'key' else inputs.q
            products = jnp.einsum('hd,bhsd->bhs', u, vectors.astype(jnp.float32))
            side_gate = nn.softplus(products * d.head_dim**-0.5)
            gate += side_gate[:, :, None] if side == 'key' else side_gate[..., None]
        return inputs.z - rate[:, None, None] * inputs.reach[:, None] * gate


@dataclasses.dataclass(frozen=True)
class QueryGrapeA(GrapeA):
    """GRAPE-A gated by the query: softplus(v_h . q_i / sqrt(d)) in place of the key's."""

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
    """GRAPE-A gated by the sum of both gates."""

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
    """Additive along the path: b_ij = m_h sum of log sigmoid(p_i . R_l rms(p_l) / dp), j < l <= i.

    p = W x of dp dimensions a head, R_l a turn of all its planes by l radians. The turn is the
    key's own place: not the same for shifted texts.
    """

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
        """Returns p, [B,H,T,dp] float32."""
        d = self.dims
        init = nn.initializers.normal(0.5 * d.width**-0.5)
        shape = (d.width, d.num_heads, self.path_dim)
        w = inputs.float32_param('w', init, shape, (None, 'heads', None))
        return jnp.einsum('btD,Dhp->bhtp', inputs.x.astype(jnp.float32), w)

    def key_state(self, inputs):
        p = self._p(inputs)
        p = p * jax.lax.rsqrt(jnp.square(p).mean(-1, keepdims=True) + jnp.finfo(jnp.float32).eps)
        angle = inputs.q_ids[:, None, :, None].astype(jnp.float32)
        cos = jnp.cos(angle)
        sin = jnp.sin(angle)
        a, b = jnp.split(p, 2, axis=-1)
        turned = jnp.concatenate([a * cos + b * sin, b * cos - a * sin], -1)
        return {'turned': jnp.swapaxes(turned, 2, 3)}

    def logits(self, inputs):
        products = jnp.einsum('bhtp,bhps->bhts', self._p(inputs), inputs.state['turned'])
        edge = jax.nn.log_sigmoid(products / self.path_dim)
        edge = jnp.where(inputs.visible, edge, 0.0)
        # Summed over the keys that come after j.
        after = jax.lax.cumsum(edge, axis=3, reverse=True) - edge
        rate = jnp.asarray(slopes(self.dims.num_heads), jnp.float32)
        return inputs.z + rate[:, None, None] * after
