"""Sinusoidal position embeddings (Vaswani et al. 2017, arXiv 1706.03762, section 3.5)."""
import dataclasses

import jax.numpy as jnp

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec


@dataclasses.dataclass(frozen=True)
class Sinusoidal(PositionalEncoding):
    """e[p, 2c] = sin(p / base^(2c/D)), e[p, 2c+1] = cos(p / base^(2c/D)); x * sqrt(D) + e.

    `scale_tokens`: multiply the token embeddings by sqrt(D) first, as the paper's section 3.4 does.
    """
    base: float = 10000.0
    scale_tokens: bool = True
    spec = Spec('sinusoidal', 'Vaswani et al. 2017, arXiv 1706.03762, section 3.5', shift_invariant=False)

    def check(self):
        if self.dims.width % 2:
            raise ModelError(f'config.model.width is {self.dims.width}: sinusoidal positions need an even width')

    def embed(self, site, x):
        width = self.dims.width
        frequency = self.base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
        angle = site.q_positions[..., None].astype(jnp.float32) * frequency         # [B,T,D/2], float32 throughout
        e = jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(*angle.shape[:-1], width)
        scaled = x.astype(jnp.float32) * (width**0.5 if self.scale_tokens else 1.0)
        return (scaled + e).astype(x.dtype)
