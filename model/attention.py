"""Attention with grouped key-value heads, and the places where a positional encoding enters it.

Dimensions: B batch, T queries, S keys, D width, H heads, K key-value heads, d head size.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.config import ModelConfig
from model.kernels import choose_context_path, choose_kernel, fused_attention, name_for_remat
from model.layers import Norm, fan_in
from model.positions import EncodingInputs, PositionalEncoding
from model.ring import ring_attention, scaled_products, soft_cap, visible_pairs, weigh_values
from model.sharding import constrain, context_parts, gather_context

Cache = dict[str, jax.Array]


@flax.struct.dataclass
class TokenLayout:
    """Where the tokens of a forward pass stand; arrays [B,T], and [B,S] for all keys, those of the cache included.

    `positions` count tokens in their document, `ids` are what the encoding sees; they differ where it has ids of its own.
    """

    positions: jax.Array
    segment_ids: jax.Array
    ids: jax.Array
    k_positions: jax.Array
    k_segment_ids: jax.Array
    k_ids: jax.Array
    row_keys: jax.Array | None
    task_ids: jax.Array | None
    consecutive: bool = flax.struct.field(pytree_node=False, default=False)  # see EncodingInputs
    draw_keys: jax.Array | None = None  # see EncodingInputs
    batch_key: jax.Array | None = None  # see EncodingInputs
    column: jax.Array | None = (
        None  # first column of the cache that the new tokens take; None: no cache
    )

    def encoding_inputs(self, param, shared=None, x=None) -> EncodingInputs:
        """What an encoding sees of this layout."""
        return EncodingInputs(
            param,
            self.ids,
            self.positions,
            self.segment_ids,
            self.row_keys,
            self.task_ids,
            self.k_ids,
            self.k_positions,
            self.k_segment_ids,
            shared,
            x,
            draw_keys=self.draw_keys,
            batch_key=self.batch_key,
            consecutive=self.consecutive,
        )


class Parameters(nn.Module):
    """The scope that a positional encoding declares its parameters in."""

    param_dtype: str

    @nn.compact
    def __call__(self, name, init, shape, axes):
        return self.param(
            name, nn.with_partitioning(init, axes), shape, jnp.dtype(self.param_dtype)
        )


class Attention(nn.Module):
    config: ModelConfig
    encoding: PositionalEncoding

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, layout: TokenLayout, shared, cache: Cache | None, layer=0
    ) -> tuple[jax.Array, Cache | None]:
        c, encoding = self.config, self.encoding
        project = lambda heads, axis, name: jnp.einsum(
            'btd,dhk->bhtk',
            x_BxTxD,
            c.weight(
                (c.width, heads, c.head_dim),
                ('embed', axis, None),
                fan_in(1.0, 'fan_in', 'normal', in_axis=0, out_axis=(1, 2)),
                name,
            )(),
        )
        q_BxHxTxd = project(c.num_heads, 'heads', 'query')
        k_BxKxTxd, v_BxKxTxd = (
            project(c.num_kv_heads, 'kv_heads', 'key'),
            project(c.num_kv_heads, 'kv_heads', 'value'),
        )
        if c.qk_norm:
            q_BxHxTxd, k_BxKxTxd = (
                Norm('rmsnorm', name='query_norm')(q_BxHxTxd),
                Norm('rmsnorm', name='key_norm')(k_BxKxTxd),
            )

        inputs = layout.encoding_inputs(
            Parameters(c.param_dtype, name='positions'), shared, x_BxTxD
        )
        inputs = encoding.redraw(inputs, layer, frozenset())
        pairs = visible_pairs(
            layout.positions,
            layout.segment_ids,
            layout.k_positions,
            layout.k_segment_ids,
            c.window,
            c.causal,
        )
        further, count = encoding.mask(inputs), layout.positions[:, None] + 1
        if further is not None:
            pairs &= further
        if further is not None or c.window:
            count = jnp.maximum(pairs.sum(-1), 1)
        inputs = dataclasses.replace(
            inputs, visible=pairs, keys_seen=count
        )  # compiled only for what asks for them: a ring has no [T,S]
        q_BxHxTxd, k_BxKxTxd = encoding.rotate(inputs, q_BxHxTxd, k_BxKxTxd)
        q_BxHxTxd = encoding.scale(inputs, q_BxHxTxd)
        state, carried, kernel = encoding.key_state(inputs), {}, 'reference'
        if cache is not None:
            carried = {
                n.removeprefix('carried_'): a for n, a in cache.items() if n.startswith('carried_')
            }
            new = {'k': k_BxKxTxd, 'v': v_BxKxTxd, **{f'state_{n}': s for n, s in state.items()}}
            cache = _written(cache, new, layout.column, layout.k_ids.shape[1])
            k_BxKxTxd, v_BxKxTxd = cache['k'], cache['v']  # from here on T is S for them
            state = {n: cache[f'state_{n}'] for n in state}
        elif context_parts() > 1:
            kernel, _ = choose_context_path(c, encoding)
            state = {n: gather_context(s, s.ndim - 1) for n, s in state.items()}
            if kernel == 'gather':
                k_BxKxTxd, v_BxKxTxd = gather_context(k_BxKxTxd, 2), gather_context(v_BxKxTxd, 2)
        elif not self.is_initializing():
            kernel, _ = choose_kernel(c, encoding, x_BxTxD.shape[1])
        inputs = dataclasses.replace(inputs, state=state, carried=carried)
        q_BxHxTxd, k_BxKxTxd = encoding.read(inputs, q_BxHxTxd, k_BxKxTxd)
        if kernel in ('reference', 'gather', 'ring'):
            q_BxHxTxd, k_BxKxTxd, v_BxKxTxd = name_for_remat(q_BxHxTxd, k_BxKxTxd, v_BxKxTxd)
        inputs = dataclasses.replace(inputs, q=q_BxHxTxd, k=k_BxKxTxd)
        if kernel in ('reference', 'gather'):
            out_BxHxTxd, cache = self._reference(inputs, v_BxKxTxd, cache)
        elif kernel == 'ring':
            out_BxHxTxd = ring_attention(inputs, v_BxKxTxd, encoding, c)
        else:
            out_BxHxTxd = fused_attention(
                kernel, q_BxHxTxd, k_BxKxTxd, v_BxKxTxd, encoding, inputs, c
            )
        out_BxHxTxd = constrain(out_BxHxTxd, 'batch', 'heads', None, None)
        out = c.weight(
            (c.num_heads, c.head_dim, c.width),
            ('heads', None, 'embed'),
            fan_in(c.residual_scale, 'fan_in', 'normal', in_axis=(0, 1), out_axis=2),
            'out',
        )()
        return checkpoint_name(
            jnp.einsum('bhtk,hkd->btd', out_BxHxTxd, out), 'attention_out'
        ), cache

    def _reference(
        self, inputs: EncodingInputs, v_BxKxSxd: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        """Attention written out, every place of entry honoured: [B,H,T,d]."""
        c, encoding = self.config, self.encoding
        z_BxHxTxS = soft_cap(
            encoding.product(dataclasses.replace(inputs, z=scaled_products(inputs.q, inputs.k, c))),
            c,
        )
        bias = encoding.additive(inputs)
        if bias is not None:
            z_BxHxTxS += bias
        inputs = dataclasses.replace(inputs, z=z_BxHxTxS)
        logits, carried = encoding.logits_and_carried(inputs)
        weights = encoding.softmax(inputs, logits, inputs.visible)
        self.sow(
            'intermediates', 'attention', weights
        )  # [B,H,T,S]; kept only where 'intermediates' are asked for
        if cache is not None:
            cache |= {f'carried_{n}': a for n, a in carried.items()}
        out_BxHxTxd = weigh_values(weights.astype(c.dtype), v_BxKxSxd)
        more = encoding.value(inputs, weights)
        return out_BxHxTxd if more is None else out_BxHxTxd + more.astype(c.dtype), cache


def _written(cache: Cache, new: Cache, column: jax.Array, columns: int) -> Cache:
    """The cache with `new` from `column` on; an array not yet there is made. Keys are axis 2 of k and v, the last of states."""

    def put(name, x):
        axis = 2 if name in ('k', 'v') else x.ndim - 1
        old = cache.get(name)
        if old is None:
            old = jnp.zeros((*x.shape[:axis], columns, *x.shape[axis + 1 :]), x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(old, x, column, axis)

    return {name: put(name, x) for name, x in new.items()}
