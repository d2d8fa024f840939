"""ALiBi: attention with linear biases (Press et al. 2022, arXiv 2108.12409, section 3)."""
import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from model.positions.base import PositionalEncoding, Spec


def slopes(num_heads: int) -> np.ndarray:
    """The slope of each head, float64 [H]: 2^(-8h/H) for a power of two, else those of the power below it and every second
    one of the power above, in the order of the authors' code."""
    power = 2 ** math.floor(math.log2(num_heads))
    geometric = lambda n: 2.0 ** (-8.0 * np.arange(1, n + 1) / n)
    return np.concatenate([geometric(power), geometric(2 * power)[0::2][:num_heads - power]])


@dataclasses.dataclass(frozen=True)
class Alibi(PositionalEncoding):
    """b_ij = -m_h (i - j), added after the logits are scaled by 1/sqrt(d); from the distance, exact in any precision."""
    spec = Spec('ALiBi', 'Press et al. 2022, arXiv 2108.12409, section 3', shift_invariant=True)

    def bias(self, site):
        return -jnp.asarray(slopes(self.dims.num_heads), jnp.float32)[:, None, None] * site.distance[:, None]
