"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864, equations 14 and 34)."""
import dataclasses

import jax
import jax.numpy as jnp

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec


@dataclasses.dataclass(frozen=True)
class Rope(PositionalEncoding):
    """Pair c of a head is rotated by the angle p * base^(-2c/d). `layout`: which dimensions pair up,
    half (c with c + d/2: GPT-NeoX, Llama) or interleaved (2c with 2c + 1: GPT-J, the paper)."""
    base: float = 10000.0
    layout: str = 'half'
    spec = Spec('RoPE', 'Su et al. 2021, arXiv 2104.09864, equation 34', shift_invariant=True)

    def check(self):
        if self.dims.head_dim % 2:
            raise ModelError(f'config.model.head_dim is {self.dims.head_dim}: rope needs an even head size')
        if self.layout not in ('half', 'interleaved'):
            raise ModelError(f"config.model.positions_args.layout is {self.layout!r}: expected 'half' or 'interleaved'")

    def share(self, site):
        """cos and sin [B,1,T,d/2], float32: bfloat16 cannot hold the positions from 257 on."""
        d = self.dims.head_dim
        frequency = self.base ** (-jnp.arange(0, d, 2, dtype=jnp.float32) / d)
        angle = site.q_positions[:, None, :, None].astype(jnp.float32) * frequency
        return jnp.cos(angle), jnp.sin(angle)

    def rotate(self, site, q, k):
        return self._rotated(q, *site.shared), self._rotated(k, *site.shared)

    def _rotated(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        if self.layout == 'half':
            a, b = jnp.split(wide, 2, axis=-1)
            out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
        else:
            a, b = wide[..., 0::2], wide[..., 1::2]
            out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
        return out.astype(x.dtype)
