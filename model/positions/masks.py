"""Masks of a layer, and the normalisation of its queries and keys.

They are parts of patterns such as RNoPE-SWA and Llama 4's.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model.positions.base import PositionalEncoding, Spec, positive


@dataclasses.dataclass(frozen=True)
class Window(PositionalEncoding):
    """A query sees its own token and the `window` - 1 before it.

    In this layer only. For all layers alike, as a control: `config.model.window`.
    """

    window: int = 4096
    spec = Spec(
        'sliding window',
        'Beltagy et al. 2020, arXiv 2004.05150, section 3.1',
        shift_invariant=True,
        differs=(
            'looks back only, the own token among the `window`; there half of it ahead '
            '(section 3.1)',
            "4,096 as in RNoPE-SWA; Longformer's is 512 (longformer.py:39)",
            'no dilation, no tokens that see everything (section 3.1)',
        ),
    )

    def check(self):
        positive('window', self.window)

    def mask(self, inputs):
        places_apart = inputs.positions[:, :, None] - inputs.k_positions[:, None, :]
        return (places_apart < self.window)[:, None]


@dataclasses.dataclass(frozen=True)
class Chunk(PositionalEncoding):
    """A query sees the tokens of its own chunk of `chunk` tokens, up to itself.

    So do the layers of Llama 4 that have RoPE.
    """

    chunk: int = 8192
    spec = Spec(
        'chunked attention', 'Meta 2025, Llama 4, the released model', shift_invariant=False
    )

    def check(self):
        positive('chunk', self.chunk)

    def mask(self, inputs):
        chunk_of_query = inputs.positions[:, :, None] // self.chunk
        chunk_of_key = inputs.k_positions[:, None, :] // self.chunk
        return (chunk_of_query == chunk_of_key)[:, None]


@dataclasses.dataclass(frozen=True)
class QkNorm(PositionalEncoding):
    """Sets the root mean square of each query and key to 1 (Llama 4).

    There is no learned scale. It comes after the rotation that is named before it.
    """

    eps: float = 1e-5
    spec = Spec(
        'QK norm',
        'Henry et al. 2020, arXiv 2010.04245; Llama 4, the released model',
        shift_invariant=True,
        sees_order=False,
        wraps=True,
        differs=(
            'root mean square 1 and no scale, as in Llama 4 (modeling_llama4.py:332); '
            'Henry et al.: length 1 and a learned g (layers.py:39-42, 79-85)',
        ),
    )

    def rotate(self, inputs, q, k):
        return self._normalize(q), self._normalize(k)

    def _normalize(self, x):
        wide = x.astype(jnp.float32)
        mean_square = jnp.square(wide).mean(-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype)
