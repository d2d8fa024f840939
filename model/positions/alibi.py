"""ALiBi and its kin: linear biases (Press et al. 2022, arXiv 2108.12409, section 3)."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec


def slopes(num_heads: int) -> np.ndarray:
    """Returns the slope of each head, float64 [H].

    2^(-8h/H) for a power of two, else those of the power below it and every second one of the power
    above, in the order of the authors' code.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    more = _geometric_slopes(2 * power)[0::2]
    return np.concatenate([_geometric_slopes(power), more[: num_heads - power]])


def _geometric_slopes(count: int) -> np.ndarray:
    return 2.0 ** (-8.0 * np.arange(1, count + 1) / count)


@dataclasses.dataclass(frozen=True)
class Alibi(PositionalEncoding):
    """b_ij = -m_h (i - j), added after the logits are scaled by 1/sqrt(d).

    From the distance, so that it is exact in any precision.
    """

    spec = Spec(
        'ALiBi',
        'Press et al. 2022, arXiv 2108.12409, section 3',
        shift_invariant=True,
        bias_form='rank 1',
    )

    def slopes(self, inputs):
        """Returns m, [H] float32."""
        return jnp.asarray(slopes(self.dims.num_heads), jnp.float32)

    def bias(self, inputs):
        return -self.slopes(inputs)[:, None, None] * inputs.reach[:, None]

    def key_bias(self, inputs):
        return self.slopes(inputs)[:, None] * inputs.k_ids[:, None].astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class LearnedAlibi(Alibi):
    """Slopes learned in each layer, from ALiBi's as initial values.

    The control for encodings that learn to forget.
    """

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
        def init(key, shape, dtype):
            return jnp.asarray(slopes(shape[0]), dtype)

        return inputs.float32_param('slopes', init, (self.dims.num_heads,), ('heads',))


@dataclasses.dataclass(frozen=True)
class WindowedHeads(PositionalEncoding):
    """Head h = 1, 2 .. of the first `heads` sees the h nearest tokens, its own among them.

    The others see everything and no order. `heads` 0: half of them.
    """

    heads: int = 0
    spec = Spec(
        'hard-ALiBi (windowed heads)',
        'Jelassi et al. 2024, arXiv 2402.01032, section 3',
        shift_invariant=True,
    )

    def check(self):
        if not 0 <= self.heads <= self.dims.num_heads:
            raise ModelError(
                f'config.model.positions_args.heads is {self.heads}: expected 0 to num_heads '
                f'({self.dims.num_heads})'
            )

    def windows(self) -> np.ndarray:
        """Returns how many tokens each head sees, int64 [H]; more than there are: all."""
        heads = self.dims.num_heads
        is_windowed = np.arange(heads) < (self.heads or (heads + 1) // 2)
        return np.where(is_windowed, np.arange(1, heads + 1), np.iinfo(np.int32).max)

    def mask(self, inputs):
        windows = jnp.asarray(self.windows(), jnp.int32)
        return inputs.distance[:, None] < windows[:, None, None]
