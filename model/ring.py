"""Attention whose keys and values travel round the `context` axis (Liu et al. 2023, Ring Attention, arXiv 2310.01889).

Each device has the queries of its part of the text. In each turn it adds up what they read from the keys it holds, by the running
maximum and sum of the softmax, and hands the keys on. What is random access to all keys is small and gathered: ids, segments, states.

Dimensions: B batch, T queries, S keys, H heads, K key-value heads, d head size.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model.sharding import CONTEXT, context_parts

_LOWEST = -1e30


def scaled_products(q_BxHxTxd: jax.Array, k_BxKxSxd: jax.Array, config) -> jax.Array:
    """q.k / sqrt(d), float32 [B,H,T,S]."""
    grouped = q_BxHxTxd.reshape(q_BxHxTxd.shape[0], config.num_kv_heads, -1, *q_BxHxTxd.shape[2:])
    z = jnp.einsum('bkgtd,bksd->bkgts', grouped, k_BxKxSxd, preferred_element_type=jnp.float32)
    return z.reshape(*q_BxHxTxd.shape[:3], -1) * config.head_dim**-0.5


def soft_cap(z: jax.Array, config) -> jax.Array:
    """Under the soft cap of `config.model.logit_cap`, which bends products and no bias."""
    return config.logit_cap * jnp.tanh(z / config.logit_cap) if config.logit_cap else z


def weigh_values(weights_BxHxTxS: jax.Array, v_BxKxSxd: jax.Array) -> jax.Array:
    """The values by their weights, [B,H,T,d], each key-value head read by the heads of its group."""
    b, heads, t, s = weights_BxHxTxS.shape
    grouped = weights_BxHxTxS.reshape(b, v_BxKxSxd.shape[1], -1, t, s)
    return jnp.einsum('bkgts,bksd->bkgtd', grouped, v_BxKxSxd).reshape(b, heads, t, -1)


def visible_pairs(
    positions, segment_ids, k_positions, k_segment_ids, window: int, causal: bool
) -> jax.Array:
    """[B,1,T,S]: keys of the same document, not later where `causal`, and inside the window (0: none). Padding (segment 0) is never seen."""
    ahead = positions[:, :, None] - k_positions[:, None, :]
    seen = (segment_ids[:, :, None] == k_segment_ids[:, None, :]) & (k_segment_ids[:, None, :] > 0)
    seen, ahead = (seen & (ahead >= 0), ahead) if causal else (seen, abs(ahead))
    return (seen & (ahead < window) if window else seen)[:, None]


def ring_attention(inputs, v_BxKxTxd: jax.Array, encoding, config) -> jax.Array:
    """What the queries of this device read from all keys, [B,H,T,d].

    Args:
      inputs: with q and k of this device's part, [B,H,T,d] and [B,K,T,d]; ids, segments and states of the whole text.
      encoding: one whose logits are a bias or a mask on top of q.k (`kernels.over_context`).
    """
    parts, here, length = context_parts(), jax.lax.axis_index(CONTEXT), inputs.k.shape[2]
    key_bias = encoding.key_bias(inputs)
    onward = [(i, (i + 1) % parts) for i in range(parts)]

    @jax.checkpoint  # the logits of a block are computed again in the backward pass: none is kept
    def block(q, k, v, turn, total, top, out):
        of_block = lambda x, axis: jax.lax.dynamic_slice_in_dim(
            x, (here - turn) % parts * length, length, axis
        )
        fields = {
            f: of_block(getattr(inputs, f), 1) for f in ('k_ids', 'k_positions', 'k_segment_ids')
        }
        at = dataclasses.replace(inputs, q=q, k=k, visible=None, **fields)
        seen = visible_pairs(
            inputs.positions,
            inputs.segment_ids,
            at.k_positions,
            at.k_segment_ids,
            config.window,
            config.causal,
        )
        z_BxHxTxS = soft_cap(scaled_products(q, k, config), config)
        for bias in (
            encoding.pair_bias(at),
            None if key_bias is None else of_block(key_bias, 2)[:, :, None],
        ):
            if bias is not None:
                z_BxHxTxS += bias
        further = encoding.mask(at)
        z_BxHxTxS = jnp.where(seen if further is None else seen & further, z_BxHxTxS, _LOWEST)
        new_top = jnp.maximum(top, jax.lax.stop_gradient(z_BxHxTxS.max(-1)))
        weights, kept = jnp.exp(z_BxHxTxS - new_top[..., None]), jnp.exp(top - new_top)
        out = out * kept[..., None] + weigh_values(weights.astype(v.dtype), v).astype(jnp.float32)
        return total * kept + weights.sum(-1), new_top, out

    def turn(carry, number):
        k, v, *sums = carry
        sums = block(inputs.q, k, v, number, *sums)
        return (*jax.lax.ppermute((k, v), CONTEXT, onward), *sums), None

    zero = jnp.zeros(inputs.q.shape[:3], jnp.float32)
    begin = (
        inputs.k,
        v_BxKxTxd,
        zero,
        zero + _LOWEST,
        jnp.zeros((*zero.shape, v_BxKxTxd.shape[3]), jnp.float32),
    )
    (_, _, total, _, out), _ = jax.lax.scan(turn, begin, jnp.arange(parts))
    return (out / total[..., None]).astype(inputs.q.dtype)
