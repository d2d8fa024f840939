"""Scaling of the logits by position or head, beside any encoding ('none+ssmax') or alone."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from model.positions.base import PositionalEncoding, Spec, positive


def scaled(q, factor):
    """Returns q [B,H,T,d] times a factor, multiplied in float32."""
    return (q.astype(jnp.float32) * factor).astype(q.dtype)


@dataclasses.dataclass(frozen=True)
class ScalableSoftmax(PositionalEncoding):
    """SSMax: logits * s_h ln n_i, with one learned s a head in each layer.

    n_i are the keys that query i sees, in a window those of the window.
    """

    initial: float = 0.43
    spec = Spec(
        'SSMax (scalable softmax)',
        'Nakanishi 2025, arXiv 2501.19399, equation 3',
        shift_invariant=False,
        sees_order=False,
        differs=(
            "s begins at .43, the value of figure 1; where it begins in the paper's "
            'training was not found (section 2)',
        ),
    )

    def scale(self, inputs, q):
        init = nn.initializers.constant(self.initial)
        s = inputs.float32_param('s', init, (self.dims.num_heads,), ('heads',))
        log_n = jnp.log(inputs.keys_seen.astype(jnp.float32))
        return scaled(q, s[:, None, None] * log_n[..., None])


@dataclasses.dataclass(frozen=True)
class Temperature(PositionalEncoding):
    """Llama 4: q * (1 + strength ln(floor((p + 1)/floor) + 1)), p the place in the document.

    The factor is 1 up to `floor` tokens.
    """

    strength: float = 0.1
    floor: int = 8192
    spec = Spec(
        'attention temperature (Llama 4)',
        'Meta 2025, the released model; after Nakanishi 2025, arXiv 2501.19399',
        shift_invariant=False,
        sees_order=False,
    )

    def check(self):
        positive('floor', self.floor)

    def scale(self, inputs, q):
        # Divided as whole numbers, before the logarithm.
        steps = ((inputs.positions + 1) // self.floor).astype(jnp.float32)
        return scaled(q, (1 + self.strength * jnp.log1p(steps))[:, None, :, None])


@dataclasses.dataclass(frozen=True)
class HeadScale(PositionalEncoding):
    """A learned factor of the logits of each head, 1 at first: it lets NoPE reach further."""

    spec = Spec(
        'per-head scale',
        'Wang et al. 2024, arXiv 2404.12224, section 4',
        shift_invariant=True,
        sees_order=False,
        differs=(
            '1 at first, as by default there (args/model_args.py:115), where the scale '
            'alone is trained, in a finished model (llama_nope.py:66-71)',
        ),
    )

    def scale(self, inputs, q):
        s = inputs.float32_param('s', nn.initializers.ones, (self.dims.num_heads,), ('heads',))
        return scaled(q, s[:, None, None])
