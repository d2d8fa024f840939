"""Biases that are a function of the distance between query and key, n = i - j, in each head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from model.positions.base import PositionalEncoding, Spec, positive, uniform_of

_KERPLE = 'Chi et al. 2022, arXiv 2205.09921'


def _uniform(high: float):
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, 0.0, high)


@dataclasses.dataclass(frozen=True)
class KerpleLog(PositionalEncoding):
    """b_n = -p_h log(1 + a_h n), p ~ U(0, 2), a ~ U(0, 1) at first, both kept at 0.01 at least; shared by all layers."""

    spec = Spec(
        'KERPLE, logarithmic',
        f"{_KERPLE}, equation 9; the authors' code",
        shift_invariant=True,
        bias_form='Toeplitz',
    )

    def share(self, inputs):
        heads = self.dims.num_heads
        p = inputs.param('p', _uniform(2.0), (heads,), ('heads',)).astype(jnp.float32)
        a = inputs.param('a', _uniform(1.0), (heads,), ('heads',)).astype(jnp.float32)
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
        return -a * jnp.where(
            n > 0, jnp.exp(p * jnp.log(jnp.maximum(n, 1.0))), 0.0
        )  # 0^p has no gradient in p


def _at_least(x):
    """max(x, 0.01) whose gradient is 1 on both sides: the authors clamp the stored parameter, which can come back."""
    return x + jax.lax.stop_gradient(jnp.maximum(x, 0.01) - x)


@dataclasses.dataclass(frozen=True)
class Fire(PositionalEncoding):
    """b_ij = MLP(psi(i - j) / psi(max(L, i))), psi(x) = log(|c x| + 1); MLP 1 -> hidden -> H with ReLU, in each layer, its
    weights and biases U(+-1/sqrt(fan_in)) at first. c and the multiplier of L = |m| * threshold are
    learned."""

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

    def bias(self, inputs):
        make = lambda name, init, shape, axes=(None, None): inputs.param(
            name, init, shape, axes
        ).astype(jnp.float32)
        scalar = lambda name, value: make(name, nn.initializers.constant(value), (), ())
        c, longest = scalar('c', self.c), jnp.abs(scalar('multiplier', 1.0) * self.threshold)
        heads, inner, outer = self.dims.num_heads, uniform_of(1), uniform_of(self.hidden)
        w1 = make('w1', inner, (1, self.hidden))
        b1 = make('b1', inner, (self.hidden,), (None,))
        w2 = make('w2', outer, (self.hidden, heads), (None, 'heads'))
        b2 = make('b2', outer, (heads,), ('heads',))
        psi = lambda x: jnp.log1p(jnp.abs(c * x))
        i = jnp.maximum(inputs.q_ids.astype(jnp.float32), longest)
        ratio = psi(inputs.reach) / (psi(i)[:, :, None] + 1e-6)
        hidden = nn.relu(ratio[..., None] * w1[0] + b1)
        return jnp.moveaxis(
            jnp.matmul(hidden, w2, precision=jax.lax.Precision.HIGHEST) + b2, -1, 1
        )  # hidden is of distances


@dataclasses.dataclass(frozen=True)
class Sandwich(PositionalEncoding):
    """b_n = H/(8h) sum_c cos(n / 10000^(2c/bar)), c from 0 to bar/2 - 1, h = 1..H: the inner product of two sinusoidal embeddings.
    Of rank `bar`, since cos(i - j) splits into products."""

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
        heads = jnp.asarray(
            self.dims.num_heads / (8.0 * np.arange(1, self.dims.num_heads + 1)), jnp.float32
        )
        return heads[:, None, None] * total[:, None]
