"""What may stand in the place of attention: networks that read a window of the last tokens.

With `config.model.mixing` other than attention, tokens are weighed by how far back they stand and
never by what they are. Windows end at the beginning of a document, as attention does.

Dimensions: B batch, T tokens of this call, S columns of all of them, D width, W tokens of a window,
F hidden size.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.config import ModelConfig
from model.kernels import stored
from model.layers import activate, fan_in, multiply
from model.sharding import constrain, gather_context, own_context_part

if TYPE_CHECKING:
    from model.attention import Cache, TokenLayout


class WindowMixing(nn.Module):
    """Lets each token read the last W tokens of its document, itself among them.

    average: their mean, without parameters (as the pooling of Yu et al. 2022, arXiv 2111.11418, on
    what came before). window: a feed-forward network over all of them, one after the other, with as
    many weights as attention would have (as in Bengio et al. 2003, A Neural Probabilistic Language
    Model, equation 5).
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, layout: 'TokenLayout', cache: 'Cache | None'
    ) -> tuple[jax.Array, 'Cache | None']:
        """Returns what the tokens read, [B,T,D], and the cache with the new tokens in it.

        `cache`: of this layer, as in `Attention`; it holds 'mixed' [B,S,D], what was read from.
        """
        cfg = self.config
        has_earlier = bool(cache)
        if cache is not None:
            cache = _update_cache(cache, x_BxTxD, layout)

        # The window of each token, the nearest first; zeros where its document had not begun.
        if has_earlier and cache is not None:
            windows_BxTxWxD, seen_BxTxW = _windows_of_cache(cache['mixed'], layout, cfg.window)
        else:
            windows_BxTxWxD, seen_BxTxW = _windows_of_row(x_BxTxD, layout, cfg.window)

        if cfg.mixing == 'average':
            count_BxTx1 = jnp.maximum(seen_BxTxW.sum(-1, keepdims=True), 1)
            y_BxTxD = windows_BxTxWxD.sum(2) / count_BxTx1.astype(x_BxTxD.dtype)
        else:
            y_BxTxD = self._feed_forward(windows_BxTxWxD)
        return checkpoint_name(y_BxTxD, 'attention_out'), cache

    def _feed_forward(self, windows_BxTxWxD: jax.Array) -> jax.Array:
        """Returns what a network makes of each window, [B,T,D]."""
        cfg = self.config
        x_BxTxE = windows_BxTxWxD.reshape(*windows_BxTxWxD.shape[:2], -1)
        h_BxTxF = constrain(self._project_up(x_BxTxE, 'up'), 'batch', None, 'mlp')
        h_BxTxF = activate(cfg.activation, h_BxTxF, lambda: self._project_up(x_BxTxE, 'gate'))
        shape = (cfg.mixing_width, cfg.width)
        init = fan_in(cfg.residual_scale, 'fan_in', 'normal')
        axes = ('mlp', 'embed')
        return multiply(stored(h_BxTxF), cfg.weight(shape, axes, init, 'down')(), axes)

    def _project_up(self, x_BxTxE: jax.Array, name: str) -> jax.Array:
        cfg = self.config
        shape = (x_BxTxE.shape[-1], cfg.mixing_width)
        axes = ('embed', 'mlp')
        w_ExF = cfg.weight(shape, axes, fan_in(1.0, 'fan_in', 'normal'), name)()
        return checkpoint_name(multiply(x_BxTxE, w_ExF, axes), name)


def _windows_of_row(
    x_BxTxD: jax.Array, layout: 'TokenLayout', window: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the windows of rows that are whole, [B,T,W,D], and which of their tokens are seen.

    The tokens of a document stand side by side, so a window is of the columns before.
    """
    # A part of the context may begin inside a window.
    x_BxSxD = gather_context(x_BxTxD, 1)
    segment_ids_BxS = gather_context(layout.segment_ids, 1)

    windows = []
    seen = []
    for back in range(window):
        columns = x_BxSxD.shape[1]
        before_BxS = jnp.pad(segment_ids_BxS, ((0, 0), (back, 0)))[:, :columns]
        is_seen_BxS = (before_BxS == segment_ids_BxS) & (segment_ids_BxS > 0)
        shifted_BxSxD = jnp.pad(x_BxSxD, ((0, 0), (back, 0), (0, 0)))[:, :columns]
        windows.append(jnp.where(is_seen_BxS[..., None], shifted_BxSxD, 0))
        seen.append(is_seen_BxS)
    windows_BxSxWxD = jnp.stack(windows, axis=2)
    return own_context_part(windows_BxSxWxD, 1), own_context_part(jnp.stack(seen, axis=2), 1)


def _windows_of_cache(
    x_BxSxD: jax.Array, layout: 'TokenLayout', window: int
) -> tuple[jax.Array, jax.Array]:
    """Returns windows as `_windows_of_row`, from the columns of a cache.

    Between a prompt and what follows it there may be padding, so tokens are found by position.
    """
    is_document_BxTxS = layout.segment_ids[:, :, None] == layout.k_segment_ids[:, None, :]
    is_document_BxTxS &= layout.k_segment_ids[:, None, :] > 0
    back_BxTxS = layout.positions[:, :, None] - layout.k_positions[:, None, :]

    windows = []
    seen = []
    for back in range(window):
        is_it_BxTxS = is_document_BxTxS & (back_BxTxS == back)
        is_seen_BxT = is_it_BxTxS.any(-1)
        column_BxTx1 = jnp.argmax(is_it_BxTxS, axis=-1)[..., None]
        token_BxTxD = jnp.take_along_axis(x_BxSxD, column_BxTx1, axis=1)
        windows.append(jnp.where(is_seen_BxT[..., None], token_BxTxD, 0))
        seen.append(is_seen_BxT)
    return jnp.stack(windows, axis=2), jnp.stack(seen, axis=2)


def _update_cache(cache: 'Cache', x_BxTxD: jax.Array, layout: 'TokenLayout') -> 'Cache':
    """Returns the cache with the tokens of this call from `layout.column` on."""
    assert layout.column is not None, 'a layout without a cache'
    old = cache.get('mixed')
    if old is None:
        old = jnp.zeros((x_BxTxD.shape[0], layout.columns, x_BxTxD.shape[2]), x_BxTxD.dtype)
    return {'mixed': jax.lax.dynamic_update_slice_in_dim(old, x_BxTxD, layout.column, 1)}
