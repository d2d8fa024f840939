"""Biases that are a function of the distance between query and key, n = i - j, in each head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from model.positions.base import PositionalEncoding, RatioLayer, Spec, positive, uniform_of

_KERPLE = 'Chi et al. 2022, arXiv 2205.09921'


def _uniform(high: float):
    """Returns the initializer U(0, high)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, 0.0, high)


@dataclasses.dataclass(frozen=True)
class KerpleLog(PositionalEncoding):
    """b_n = -p_h log(1 + a_h n), p ~ U(0, 2), a ~ U(0, 1) at first.

    Both are kept at 0.01 at least, and shared by all layers.
    """

    spec = Spec(
        'KERPLE, logarithmic',
        f"{_KERPLE}, equation 9; the authors' code",
        shift_invariant=True,
        bias_form='Toeplitz',
    )

    def share(self, inputs):
        heads = self.dims.num_heads
        p = inputs.float32_param('p', _uniform(2.0), (heads,), ('heads',))
        a = inputs.float32_param('a', _uniform(1.0), (heads,), ('heads',))
        return _at_least(p), _at_least(a)

    def bias(self, inputs):
        p, a = (x[:, None, None] for x in inputs.shared)
        return -p * jnp.log1p(a * inputs.reach[:, None])


@dataclasses.dataclass(frozen=True)
class KerplePower(KerpleLog):
    """b_n = -a_h n^p_h, with p at most 2."""

    spec = Spec(
        'KERPLE, power',
        f"{_KERPLE}, equation 9; the authors' code",
        shift_invariant=True,
        bias_form='Toeplitz',
        differs=(
            'the bias alone; the kernel that multiplies the logits is left out (layers.py:408-421)',
        ),
    )

    def bias(self, inputs):
        p, a = (x[:, None, None] for x in inputs.shared)
        p = p + jax.lax.stop_gradient(jnp.minimum(p, 2.0) - p)
        n = inputs.reach[:, None]
        # 0^p has no gradient in p.
        power = jnp.where(n > 0, jnp.exp(p * jnp.log(jnp.maximum(n, 1.0))), 0.0)
        return -a * power


def _at_least(x):
    """Returns max(x, 0.01), with a gradient that is 1 on both sides.

    The authors clamp the stored parameter, which can come back.
    """
    return x + jax.lax.stop_gradient(jnp.maximum(x, 0.01) - x)


@dataclasses.dataclass(frozen=True)
class Fire(PositionalEncoding):
    """b_ij = MLP(psi(i - j) / psi(max(L, i))), psi(x) = log(|c x| + 1).

    MLP 1 -> hidden -> H with ReLU, in each layer, its weights and biases U(+-1/sqrt(fan_in)) at
    first. c and the multiplier of L = |m| * threshold are learned.
    """

    hidden: int = 32
    threshold: float = 512.0
    c: float = 0.1
    spec = Spec(
        'FIRE',
        'Li et al. 2024, arXiv 2310.04418, equation 19 and appendix listing',
        shift_invariant=False,
        bias_form='other',
        version=2,
    )

    def check(self):
        positive('threshold', self.threshold)
        positive('hidden', self.hidden)

    def ratio_layer(self, inputs):
        heads = self.dims.num_heads
        inner = uniform_of(1)
        outer = uniform_of(self.hidden)
        c = inputs.float32_param('c', nn.initializers.constant(self.c), (), ())
        multiplier = inputs.float32_param('multiplier', nn.initializers.constant(1.0), (), ())
        w1 = inputs.float32_param('w1', inner, (1, self.hidden), (None, None))
        b1 = inputs.float32_param('b1', inner, (self.hidden,), (None,))
        w2 = inputs.float32_param('w2', outer, (self.hidden, heads), (None, 'heads'))
        b2 = inputs.float32_param('b2', outer, (heads,), ('heads',))

        def psi(x):
            return jnp.log1p(jnp.abs(c * x))

        i = jnp.maximum(inputs.q_ids.astype(jnp.float32), jnp.abs(multiplier * self.threshold))
        return RatioLayer(psi(inputs.reach), psi(i) + 1e-6, w1[0], b1, w2, b2)

    def bias(self, inputs):
        layer = self.ratio_layer(inputs)
        ratio = layer.numerator / layer.denominator[:, :, None]
        hidden = nn.relu(ratio[..., None] * layer.w1 + layer.b1)
        # Whole float32: what is hidden is made of distances, which fewer bits would round.
        bias = jnp.matmul(hidden, layer.w2, precision=jax.lax.Precision.HIGHEST) + layer.b2
        return jnp.moveaxis(bias, -1, 1)


@dataclasses.dataclass(frozen=True)
class Sandwich(PositionalEncoding):
    """b_n = H/(8h) sum_c cos(n / 10000^(2c/bar)), c from 0 to bar/2 - 1, h = 1..H.

    The inner product of two sinusoidal embeddings, of rank `bar`, since cos(i - j) splits into
    products.
    """

    bar: int = 128
    spec = Spec(
        'Sandwich',
        'Chi et al. 2023, arXiv 2212.10356, section 4',
        shift_invariant=True,
        bias_form='Toeplitz',
    )

    def bias(self, inputs):
        theta = jnp.asarray(10000.0 ** (-np.arange(0, self.bar, 2) / self.bar), jnp.float32)
        total = jnp.cos(inputs.reach[..., None] * theta).sum(-1)
        heads = self.dims.num_heads
        factor = jnp.asarray(heads / (8.0 * np.arange(1, heads + 1)), jnp.float32)
        return factor[:, None, None] * total[:, None]
