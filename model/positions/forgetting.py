"""Forgetting: each token makes the ones before it fade (FoX); and the same at a constant rate.

b_ij = sum of log f_l over j < l <= i = c_i - c_j, c the running sum: a key column and a constant
of the row.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from model.positions.base import PositionalEncoding, Spec


@dataclasses.dataclass(frozen=True)
class Forgetting(PositionalEncoding):
    """f_t = sigmoid(w_h . x_t + b_h), in each layer."""

    spec = Spec(
        'FoX (forgetting)',
        'Lin et al. 2025, arXiv 2503.02130, equations 6 to 10',
        shift_invariant=True,
        bias_form='rank 1',
        differs=(
            'the gate alone, without the output gate, norms and shifts of FoX (Pro) '
            '(modeling_forgetting_transformer.py:108-119)',
        ),
    )
    sign: ClassVar[float] = 1.0

    def key_state(self, inputs):
        d = self.dims
        init = nn.initializers.normal(0.02)
        w = inputs.float32_param('gate', init, (d.width, d.num_heads), (None, 'heads'))
        b = inputs.float32_param('gate_bias', nn.initializers.zeros, (d.num_heads,), ('heads',))
        # Whole float32: rounding of a gate adds up over all keys behind it.
        x = inputs.x.astype(jnp.float32)
        gate = jnp.einsum('btd,dh->bht', x, w, precision=jax.lax.Precision.HIGHEST)
        return {'log_f': jax.nn.log_sigmoid(self.sign * (gate + b[:, None]))}

    def key_bias(self, inputs):
        """Returns -c_j, float32 [B,H,S].

        Between two keys of a document there may be padding, which forgets nothing.
        """
        is_token = inputs.k_segment_ids[:, None] > 0
        return -jnp.cumsum(jnp.where(is_token, inputs.state['log_f'], 0.0), axis=-1)


@dataclasses.dataclass(frozen=True)
class FixedForgetting(PositionalEncoding):
    """f_h = sigmoid(b_h), b_h = -log(exp(1/T_h) - 1), so that log f_h is -1/T_h.

    Further keys fade as in ALiBi with slopes 1/T_h, time constants T_h spaced evenly in the
    logarithm from `shortest` to `longest`. The authors' `fgate_type` "fixed": b is a constant.
    `learned`: b is a parameter of each layer, which is their "bias_only" (`forgetting_bias_only`).
    """

    shortest: float = 2.0
    longest: float = 1024.0
    learned: bool = False
    spec = Spec(
        'fixed forgetting',
        'Lin et al. 2025, arXiv 2503.02130, section 4.5; "fixed" in the authors\' code '
        '(modeling_forgetting_transformer.py, lines 210-235)',
        shift_invariant=True,
        bias_form='rank 1',
        version=2,
        before={'learned': True},
        differs=(
            'time constants are 2 to 1,024; the code has no default for either end '
            '(modeling_forgetting_transformer.py:112-113, 222-230)',
        ),
    )

    def times(self) -> np.ndarray:
        """Returns the time constants T at first, float64 [H]."""
        return np.geomspace(self.shortest, self.longest, self.dims.num_heads)

    def _rate(self, inputs):
        """Returns -log f of each head, float32 [H]."""
        times = self.times()
        if not self.learned:
            return jnp.asarray(1 / times, jnp.float32)

        def init(key, shape, dtype):
            return jnp.asarray(-np.log(np.expm1(1 / times)), dtype)

        b = inputs.float32_param('gate_bias', init, (self.dims.num_heads,), ('heads',))
        return -jax.nn.log_sigmoid(b)

    def bias(self, inputs):
        return -self._rate(inputs)[:, None, None] * inputs.reach[:, None]

    def key_bias(self, inputs):
        return self._rate(inputs)[:, None] * inputs.k_ids[:, None].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class BiasOnlyForgetting(FixedForgetting):
    """Fixed forgetting with b learned in each layer, the data-independent gate of the paper.

    The authors' `fgate_type` "bias_only" with `fgate_bias_init`.
    """

    learned: bool = True
    spec = Spec(
        'data-independent forgetting',
        'Lin et al. 2025, arXiv 2503.02130, section 4.5; "bias_only" in the authors\' code '
        '(modeling_forgetting_transformer.py, lines 207-235)',
        shift_invariant=True,
        bias_form='rank 1',
        differs=(
            'b begins at time constants of 2 to 1,024; no default for them in the code '
            '(modeling_forgetting_transformer.py:112-113, 222-230)',
            'as with fgate_bias_init; without it b begins at 0 there '
            '(modeling_forgetting_transformer.py:111, 208)',
        ),
    )

    @property
    def name(self):
        return FixedForgetting.__name__.lower()  # the parameters are the same


@dataclasses.dataclass(frozen=True)
class Cable(Forgetting):
    """b_ij = - sum of softplus(w_h . x_l + b_h) over j < l <= i.

    It is FoX with the sign of the gate turned. (The stored code of the authors leaves the logits
    unscaled.)
    """

    spec = Spec(
        'Cable',
        "Veisi et al. 2025, arXiv 2503.08067, equation 5; the authors' code",
        shift_invariant=True,
        bias_form='rank 1',
        differs=('logits are scaled by 1/sqrt(d), which the stored code leaves out (Cable.py:59)',),
    )
    sign = -1.0
