"""ALiBi: attention with linear biases (Press et al. 2022, arXiv 2108.12409, section 3), and its kin."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec


def slopes(num_heads: int) -> np.ndarray:
    """The slope of each head, float64 [H]: 2^(-8h/H) for a power of two, else those of the power below it and every second
    one of the power above, in the order of the authors' code."""
    power = 2 ** math.floor(math.log2(num_heads))
    geometric = lambda n: 2.0 ** (-8.0 * np.arange(1, n + 1) / n)
    return np.concatenate([geometric(power), geometric(2 * power)[0::2][: num_heads - power]])


@dataclasses.dataclass(frozen=True)
class Alibi(PositionalEncoding):
    """b_ij = -m_h (i - j), added after the logits are scaled by 1/sqrt(d); from the distance, exact in any precision."""

    spec = Spec(
        'ALiBi',
        'Press et al. 2022, arXiv 2108.12409, section 3',
        shift_invariant=True,
        bias_form='rank 1',
    )

    def slopes(self, inputs):
        """[H] float32."""
        return jnp.asarray(slopes(self.dims.num_heads), jnp.float32)

    def bias(self, inputs):
        return -self.slopes(inputs)[:, None, None] * inputs.reach[:, None]

    def key_bias(self, inputs):
        return self.slopes(inputs)[:, None] * inputs.k_ids[:, None].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class LearnedAlibi(Alibi):
    """Slopes learned in each layer, from ALiBi's as initial values: the control for encodings that learn to forget."""

    spec = Spec(
        'ALiBi, learned slopes',
        'Press et al. 2022, arXiv 2108.12409, section 3 (trained slopes)',
        shift_invariant=True,
        bias_form='rank 1',
        differs=(
            'slopes of each layer: section 3 does not say; Kazemnejad et al. share '
            'their logarithms (custom_t5_decoder_only.py:705-708)',
        ),
    )

    def slopes(self, inputs):
        fixed = lambda key, shape, dtype: jnp.asarray(slopes(shape[0]), dtype)
        return inputs.param('slopes', fixed, (self.dims.num_heads,), ('heads',)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class WindowedHeads(PositionalEncoding):
    """Head h = 1, 2 .. of the first `heads` sees the h nearest tokens, its own among them; the others see everything and no order
    (`heads` 0: half of them)."""

    heads: int = 0
    spec = Spec(
        'hard-ALiBi (windowed heads)',
        'Jelassi et al. 2024, arXiv 2402.01032, section 3',
        shift_invariant=True,
    )

    def check(self):
        if not 0 <= self.heads <= self.dims.num_heads:
            raise ModelError(
                f'config.model.positions_args.heads is {self.heads}: expected 0 to num_heads ({self.dims.num_heads})'
            )

    def mask(self, inputs):
        count = self.heads or (self.dims.num_heads + 1) // 2
        reach = np.where(
            np.arange(self.dims.num_heads) < count,
            np.arange(1, self.dims.num_heads + 1),
            np.iinfo(np.int32).max,
        )
        return inputs.distance[:, None] < jnp.asarray(reach, jnp.int32)[:, None, None]
