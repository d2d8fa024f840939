"""Attention with grouped key-value heads, and the places where a positional encoding enters it.

Dimensions: B batch, T queries, S keys, D width, H heads, K key-value heads, d head size. Letters of
einsums are the same, so that 'BTD,DHd->BHTd' sums over the width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.blocks import block_attention
from model.config import ModelConfig
from model.kernels import (
    choose_context_path,
    choose_kernel,
    choose_kernel_of_prompt,
    fused_attention,
    name_for_remat,
    platform,
)
from model.layers import Norm, contract, declare_bias, fan_in, multiply
from model.positions import EncodingInputs, PositionalEncoding
from model.ring import (
    merge_heads,
    ring_attention,
    scaled_products,
    soft_cap,
    visible_pairs,
    weigh_values,
)
from model.sharding import constrain, context_parts, gather_context, with_axes

# Of one layer: 'k', 'v' [B,K,S,d], on a CPU [B*K,S,d] (`kernels.is_cpu_decoding`); 'state_...' of
# the encoding and 'carried_...' [B,...,S].
Cache = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """Positions, segments and ids of the tokens of one forward pass.

    Arrays are int32, [B,T] for the tokens of this call and [B,S] for all keys, those in the cache
    included. `positions` count tokens in their document, `ids` are what the encoding sees (int32 or
    float32); they differ where it has ids of its own. Of the other fields see `EncodingInputs`.
    """

    positions: jax.Array
    segment_ids: jax.Array
    ids: jax.Array
    k_positions: jax.Array
    k_segment_ids: jax.Array
    k_ids: jax.Array
    row_keys: jax.Array | None
    task_ids: jax.Array | None
    consecutive: bool = dataclasses.field(default=False, metadata={'static': True})
    draw_keys: jax.Array | None = None
    batch_key: jax.Array | None = None
    column: jax.Array | None = None  # of the cache, the first that the new tokens take; or no cache
    columns: int = dataclasses.field(default=0, metadata={'static': True})  # of the cache

    def encoding_inputs(self, param, shared=None, x=None) -> EncodingInputs:
        """Returns what an encoding sees of this layout, before there are queries and keys."""
        return EncodingInputs(
            param=param,
            q_ids=self.ids,
            positions=self.positions,
            segment_ids=self.segment_ids,
            row_keys=self.row_keys,
            task_ids=self.task_ids,
            k_ids=self.k_ids,
            k_positions=self.k_positions,
            k_segment_ids=self.k_segment_ids,
            shared=shared,
            x=x,
            draw_keys=self.draw_keys,
            batch_key=self.batch_key,
            consecutive=self.consecutive,
        )


class Parameters(nn.Module):
    """Declares the parameters of a positional encoding, in a scope of its own."""

    param_dtype: str

    @nn.compact
    def __call__(self, name, init, shape, axes) -> jax.Array:
        return self.param(name, with_axes(init, axes), shape, jnp.dtype(self.param_dtype))


class Attention(nn.Module):
    """Lets each token read from those that it sees: softmax(q k^T / sqrt(d) + bias) v.

    Vaswani et al. 2017, arXiv 1706.03762, equation 1; grouped key-value heads: Ainslie et al. 2023,
    arXiv 2305.13245. Everything but that product is a place where an encoding may enter.
    """

    config: ModelConfig
    encoding: PositionalEncoding

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        layout: TokenLayout,
        shared: Any,
        cache: Cache | None,
        layer: int | jax.Array = 0,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns what the tokens read, [B,T,D], and the cache with the new tokens in it.

        Args:
          shared: what the encoding shares between layers (`PositionalEncoding.share`).
          cache: of this layer, None in training. Empty before its first tokens, which see each
            other alone: they are attended to as in training.
          layer: number of the layer, counted from 0.
        """
        cfg = self.config
        encoding = self.encoding

        # 1. Queries, keys and values. Groups of query heads share a key head, so there are fewer.
        q_BxHxTxd = self._project(x_BxTxD, cfg.num_heads, 'heads', 'query')
        k_BxKxTxd = self._project(x_BxTxD, cfg.num_kv_heads, 'kv_heads', 'key')
        v_BxKxTxd = self._project(x_BxTxD, cfg.num_kv_heads, 'kv_heads', 'value')
        if cfg.qk_norm:
            q_BxHxTxd = self._normalize(q_BxHxTxd, 'query_norm')
            k_BxKxTxd = self._normalize(k_BxKxTxd, 'key_norm')

        # 2. Where the encoding turns queries and keys (RoPE and kin). It comes before the cache,
        #    so that a key is turned once and not again for each later token.
        inputs = self._encoding_inputs(x_BxTxD, layout, shared, layer)
        q_BxHxTxd, k_BxKxTxd = encoding.rotate(inputs, q_BxHxTxd, k_BxKxTxd)
        q_BxHxTxd = encoding.scale(inputs, q_BxHxTxd)
        state = encoding.key_state(inputs)

        # 3. Keys and values: those of this call, of the cache, or of the whole context. From here
        #    on their T is S.
        carried: dict[str, jax.Array] = {}
        kernel = self._choose_kernel(cache, x_BxTxD.shape[1])
        if cache is not None:
            is_first = not cache
            cache, carried = self._update_cache(cache, k_BxKxTxd, v_BxKxTxd, state, layout)
            if not is_first:
                heads = k_BxKxTxd.shape[:2]
                k_BxKxTxd = cache['k'].reshape(*heads, *cache['k'].shape[-2:])
                v_BxKxTxd = cache['v'].reshape(*heads, *cache['v'].shape[-2:])
                state = {name: cache[f'state_{name}'] for name in state}
        elif context_parts() > 1:
            state = {name: gather_context(x, x.ndim - 1) for name, x in state.items()}
            # A ring hands keys and values round by itself, and never holds them all.
            if choose_context_path(cfg, encoding)[0] == 'gather':
                k_BxKxTxd = gather_context(k_BxKxTxd, 2)
                v_BxKxTxd = gather_context(v_BxKxTxd, 2)
        inputs = dataclasses.replace(inputs, state=state, carried=carried)
        q_BxHxTxd, k_BxKxTxd = encoding.read(inputs, q_BxHxTxd, k_BxKxTxd)

        # 4. The kernel: the fastest that can carry this encoding. A fused one names its own
        #    inputs for remat, since it may widen them first.
        if kernel in ('reference', 'blocks', 'gather', 'ring'):
            q_BxHxTxd, k_BxKxTxd, v_BxKxTxd = name_for_remat(q_BxHxTxd, k_BxKxTxd, v_BxKxTxd)

        # 5. Attend: each query reads the values of the keys that it sees.
        inputs = dataclasses.replace(inputs, q=q_BxHxTxd, k=k_BxKxTxd)
        out_BxHxTxd, cache = self._attend(kernel, inputs, v_BxKxTxd, cache, layout.columns)

        # 6. Back into the residual stream: heads are summed, each through its part of the matrix.
        out_BxHxTxd = constrain(out_BxHxTxd, 'batch', 'heads', None, None)
        axes = ('heads', None, 'embed')
        w_HxdxD = cfg.weight(
            (cfg.num_heads, cfg.head_dim, cfg.width),
            axes,
            fan_in(cfg.residual_scale, 'fan_in', 'normal', in_axis=(0, 1), out_axis=2),
            'out',
        )()
        if platform() == 'cpu':
            out_BxTxE = jnp.swapaxes(out_BxHxTxd, 1, 2).reshape(*x_BxTxD.shape[:2], -1)
            y_BxTxD = multiply(out_BxTxE, w_HxdxD.reshape(-1, cfg.width), axes[1:])
        else:
            y_BxTxD = contract('BHTd,HdD->BTD', out_BxHxTxd, w_HxdxD, axes)
        if cfg.has_bias('out'):
            y_BxTxD += declare_bias(self, 'out', (cfg.width,), (None,))
        return checkpoint_name(y_BxTxD, 'attention_out'), cache

    def _project(self, x_BxTxD: jax.Array, heads: int, axis: str, name: str) -> jax.Array:
        """Projects tokens to a vector a head, [B,heads,T,d]; `axis`: the heads' logical axis."""
        cfg = self.config
        axes = ('embed', axis, None)
        w_DxHxd = cfg.weight(
            (cfg.width, heads, cfg.head_dim),
            axes,
            fan_in(1.0, 'fan_in', 'normal', in_axis=0, out_axis=(1, 2)),
            name,
        )()
        if platform() == 'cpu':  # a matrix as it lies: XLA would transpose it for each token
            y_BxTxE = multiply(x_BxTxD, w_DxHxd.reshape(cfg.width, -1), axes[:2])
            y_BxHxTxd = _split_heads(y_BxTxE, heads)
        else:
            y_BxHxTxd = contract('BTD,DHd->BHTd', x_BxTxD, w_DxHxd, axes)
        if cfg.has_bias(name):
            y_BxHxTxd += declare_bias(self, name, (heads, cfg.head_dim), (axis, None))[:, None]
        return y_BxHxTxd

    def _normalize(self, x_BxHxTxd: jax.Array, name: str) -> jax.Array:
        """Normalises queries or keys, those of each head by themselves or of all together."""
        cfg = self.config
        norm = Norm('rmsnorm', cfg.norm_eps, name=name)
        if cfg.qk_norm_over == 'head':
            return norm(x_BxHxTxd)
        x_BxTxE = jnp.swapaxes(x_BxHxTxd, 1, 2).reshape(x_BxHxTxd.shape[0], x_BxHxTxd.shape[2], -1)
        return _split_heads(norm(x_BxTxE), x_BxHxTxd.shape[1])

    def _encoding_inputs(
        self, x_BxTxD: jax.Array, layout: TokenLayout, shared: Any, layer: int | jax.Array
    ) -> EncodingInputs:
        """Returns what the encoding may look at in this layer, the visible pairs among it."""
        cfg = self.config
        param = Parameters(cfg.param_dtype, name='positions')
        inputs = layout.encoding_inputs(param, shared, x_BxTxD)
        inputs = self.encoding.redraw(inputs, layer, frozenset())

        # Both are compiled only where something asks for them: a ring has no array [T,S].
        pairs_BxHxTxS = visible_pairs(
            layout.positions,
            layout.segment_ids,
            layout.k_positions,
            layout.k_segment_ids,
            cfg.window,
            cfg.causal,
        )
        keys_seen = layout.positions[:, None] + 1
        encoding_mask = self.encoding.mask(inputs)
        if encoding_mask is not None:
            pairs_BxHxTxS &= encoding_mask
        if encoding_mask is not None or cfg.window:
            keys_seen = jnp.maximum(pairs_BxHxTxS.sum(-1), 1)
        return dataclasses.replace(inputs, visible=pairs_BxHxTxS, keys_seen=keys_seen)

    def _update_cache(
        self,
        cache: Cache,
        k_BxKxTxd: jax.Array,
        v_BxKxTxd: jax.Array,
        state: dict[str, jax.Array],
        layout: TokenLayout,
    ) -> tuple[Cache, dict[str, jax.Array]]:
        """Writes the new keys, values and states from `layout.column` on.

        Returns:
          the cache, an array that was not yet there made; and what earlier queries left for later
          ones (`PositionalEncoding.carry`).
        """
        carried = {
            name.removeprefix('carried_'): x
            for name, x in cache.items()
            if name.startswith('carried_')
        }
        new = {'k': k_BxKxTxd, 'v': v_BxKxTxd}
        if platform() == 'cpu':
            new = {name: merge_heads(x) for name, x in new.items()}
        new |= {f'state_{name}': x for name, x in state.items()}

        assert layout.column is not None, 'a layout without a cache'
        updated = {}
        for name, x in new.items():
            axis = x.ndim - (2 if name in ('k', 'v') else 1)  # that of the keys
            old = cache.get(name)
            if old is None:
                old = jnp.zeros((*x.shape[:axis], layout.columns, *x.shape[axis + 1 :]), x.dtype)
            updated[name] = jax.lax.dynamic_update_slice_in_dim(old, x, layout.column, axis)
        return updated, carried

    def _choose_kernel(self, cache: Cache | None, length: int) -> str:
        """Returns the name of the attention to use for `length` new tokens."""
        if cache is not None:
            return (
                'reference'
                if cache
                else choose_kernel_of_prompt(self.config, self.encoding, length)
            )
        if context_parts() > 1:
            return choose_context_path(self.config, self.encoding)[0]
        # Parameters have the same shapes with any kernel, and the first call may be of any length.
        if self.is_initializing():
            return 'reference'
        return choose_kernel(self.config, self.encoding, length)[0]

    def _attend(
        self,
        kernel: str,
        inputs: EncodingInputs,
        v_BxKxSxd: jax.Array,
        cache: Cache | None,
        columns: int,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns what each head reads, [B,H,T,d], and the cache with what later queries need."""
        cfg = self.config
        encoding = self.encoding
        if kernel == 'ring':
            return ring_attention(inputs, v_BxKxSxd, encoding, cfg), cache
        if kernel == 'blocks':
            return block_attention(inputs, v_BxKxSxd, encoding, cfg), cache
        if kernel not in ('reference', 'gather'):
            q, k = inputs.q, inputs.k
            assert q is not None and k is not None
            return fused_attention(kernel, q, k, v_BxKxSxd, encoding, inputs, cfg), cache

        # The reference, written out, with every place where an encoding can enter. The cap bends
        # products and no bias, so it comes between the two.
        assert inputs.q is not None and inputs.k is not None and inputs.visible is not None
        visible_BxHxTxS = inputs.visible
        inputs = dataclasses.replace(inputs, z=scaled_products(inputs.q, inputs.k, cfg))
        z_BxHxTxS = soft_cap(encoding.product(inputs), cfg)
        bias = encoding.additive(inputs)
        if bias is not None:
            z_BxHxTxS += bias
        inputs = dataclasses.replace(inputs, z=z_BxHxTxS)
        logits_BxHxTxS, carried = encoding.logits_and_carried(inputs)
        weights_BxHxTxS = encoding.softmax(inputs, logits_BxHxTxS, visible_BxHxTxS)

        # Nothing is stored unless the caller makes 'intermediates' mutable (evals/attention.py).
        self.sow('intermediates', 'attention', weights_BxHxTxS)
        if cache is not None:
            for name, x in carried.items():
                missing = columns - x.shape[-1]  # of a cache that was empty
                padding = [(0, 0)] * (x.ndim - 1) + [(0, missing)]
                cache[f'carried_{name}'] = jnp.pad(x, padding)

        # The values, and what the encoding has of its own to be read (Shaw et al.).
        out_BxHxTxd = weigh_values(weights_BxHxTxS.astype(cfg.dtype), v_BxKxSxd)
        encoding_value = encoding.value(inputs, weights_BxHxTxS)
        if encoding_value is not None:
            out_BxHxTxd += encoding_value.astype(cfg.dtype)
        return out_BxHxTxd, cache


def _split_heads(x_BxTxE: jax.Array, heads: int) -> jax.Array:
    """Returns vectors of all heads, one after the other, as [B,heads,T,d]."""
    return jnp.swapaxes(x_BxTxE.reshape(*x_BxTxE.shape[:2], heads, -1), 1, 2)
