"""Sinusoidal position embeddings (Vaswani et al. 2017, arXiv 1706.03762, section 3.5)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec


def sinusoids(
    positions: jax.Array, width: int, base: float = 10000.0, interleaved: bool = True
) -> jax.Array:
    """Returns sin and cos of p / base^(2c/width), float32 [...,width] at positions [...].

    Alternating where `interleaved`, else all sines first.
    """
    frequency = jnp.asarray(base ** (-np.arange(0, width, 2) / width), jnp.float32)
    angle = positions[..., None].astype(jnp.float32) * frequency
    pair = (jnp.sin(angle), jnp.cos(angle))
    if interleaved:
        return jnp.stack(pair, -1).reshape(*positions.shape, width)
    return jnp.concatenate(pair, -1)


@dataclasses.dataclass(frozen=True)
class Sinusoidal(PositionalEncoding):
    """e[p, 2c] = sin(p / base^(2c/D)), e[p, 2c+1] = cos(p / base^(2c/D)); x * sqrt(D) + e.

    `scale_tokens`: multiply the token embeddings by sqrt(D) first, as the paper's section 3.4 does.
    """

    base: float = 10000.0
    scale_tokens: bool = True
    interleaved: bool = True
    spec = Spec(
        'sinusoidal',
        'Vaswani et al. 2017, arXiv 1706.03762, section 3.5',
        shift_invariant=False,
        differs=(
            'sines and cosines alternate as in the paper; tensor2tensor puts the sines '
            'first and divides c by D/2 - 1 (common_attention.py:443-454)',
        ),
    )

    def check(self):
        if self.dims.width % 2:
            raise ModelError(
                f'config.model.width is {self.dims.width}: sinusoidal positions need an even width'
            )

    def embed(self, inputs, x):
        width = self.dims.width
        scaled = x.astype(jnp.float32) * (width**0.5 if self.scale_tokens else 1.0)
        table = sinusoids(inputs.q_ids, width, self.base, self.interleaved)
        return (scaled + self.amplitude(inputs) * table).astype(x.dtype)

    def amplitude(self, inputs):
        """Returns what the sinusoids are multiplied by, a scalar."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class ConcatenatedSinusoidal(Sinusoidal):
    """All sines first, then all cosines, at the paper's frequencies.

    The layout of Marian and of Kazemnejad et al. 2023.
    """

    interleaved: bool = False
    spec = Spec(
        'sinusoidal, concatenated',
        'Vaswani et al. 2017, arXiv 1706.03762, section 3.5; Kazemnejad et al. 2023, the code',
        shift_invariant=False,
        differs=(
            'words begin at N(0, 1/D) and are scaled by sqrt(D); those of Kazemnejad et '
            'al. begin at N(0, 1) (modeling_t5.py:577)',
            'divides c by D/2; Marian by D/2 - 1 (tensor_operators.cpp:1737-1743)',
        ),
    )


@dataclasses.dataclass(frozen=True)
class ScaledSinusoidal(Sinusoidal):
    """x + s e with one learned s, 1/sqrt(D) at first; the words keep their size."""

    scale_tokens: bool = False
    interleaved: bool = False
    spec = Spec(
        'sinusoidal, learned scale',
        'Hua et al. 2022, arXiv 2202.10447, appendix B (ScaledSin)',
        shift_invariant=False,
        differs=(
            's begins at D^-.5 as x-transformers has it (x_transformers.py:409); '
            'FLASH-pytorch begins at 1 (flash_pytorch.py:41)',
        ),
    )

    def amplitude(self, inputs):
        init = nn.initializers.constant(self.dims.width**-0.5)
        return inputs.float32_param('scale', init, (), ())
