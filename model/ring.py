"""Ring attention, whose keys travel round the `context` axis, and parts that all share.

Liu et al. 2023, arXiv 2310.01889. Each device has the queries of its part of the
text. In each turn it adds up what they read from the keys it holds, by the running maximum and sum
of the softmax, and hands the keys on. What is random access to all keys is small and gathered: ids,
segments, states.

Dimensions: B batch, T queries, S keys, H heads, K key-value heads, d head size.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model.kernels import is_cpu_decoding
from model.positions.base import EncodingInputs
from model.sharding import CONTEXT, context_parts

_LOWEST = -1e30


def scaled_products(q_BxHxTxd: jax.Array, k_BxKxSxd: jax.Array, config) -> jax.Array:
    """Returns q.k / sqrt(d), float32 [B,H,T,S]."""
    batch, heads, length = q_BxHxTxd.shape[:3]
    float32 = jnp.float32
    if is_cpu_decoding(length):
        k_NxSxd = merge_heads(k_BxKxSxd)
        q_NxGxd = q_BxHxTxd.reshape(len(k_NxSxd), -1, q_BxHxTxd.shape[3])
        z = jnp.einsum('NGd,NSd->NGS', q_NxGxd, k_NxSxd, preferred_element_type=float32)
    else:
        q_BxKxGxTxd = q_BxHxTxd.reshape(batch, config.num_kv_heads, -1, *q_BxHxTxd.shape[2:])
        z = jnp.einsum('BKGTd,BKSd->BKGTS', q_BxKxGxTxd, k_BxKxSxd, preferred_element_type=float32)
    return z.reshape(batch, heads, length, -1) * config.head_dim**-0.5


def merge_heads(x_BxKxSxd: jax.Array) -> jax.Array:
    """Returns keys or values with rows and heads as one dimension, [B*K,S,d]."""
    return x_BxKxSxd.reshape(-1, *x_BxKxSxd.shape[2:])


def soft_cap(z: jax.Array, config) -> jax.Array:
    """Returns products under the soft cap of `config.model.logit_cap`, or as they are without one.

    Source: Gemma Team 2024, Gemma 2, arXiv 2408.00118, section 2.
    """
    return config.logit_cap * jnp.tanh(z / config.logit_cap) if config.logit_cap else z


def weigh_values(weights_BxHxTxS: jax.Array, v_BxKxSxd: jax.Array) -> jax.Array:
    """Returns the values by their weights, [B,H,T,d]; heads of a group read the same ones."""
    b, heads, t, s = weights_BxHxTxS.shape
    if is_cpu_decoding(t):
        v_NxSxd = merge_heads(v_BxKxSxd)
        weights_NxGxS = weights_BxHxTxS.reshape(len(v_NxSxd), -1, s)
        return jnp.einsum('NGS,NSd->NGd', weights_NxGxS, v_NxSxd).reshape(b, heads, t, -1)
    grouped = weights_BxHxTxS.reshape(b, v_BxKxSxd.shape[1], -1, t, s)
    return jnp.einsum('BKGTS,BKSd->BKGTd', grouped, v_BxKxSxd).reshape(b, heads, t, -1)


def visible_pairs(
    positions: jax.Array,
    segment_ids: jax.Array,
    k_positions: jax.Array,
    k_segment_ids: jax.Array,
    window: int,
    causal: bool,
) -> jax.Array:
    """Returns which keys a query sees, bool [B,1,T,S].

    Those of the same document, not later ones where `causal`, and inside the window (0: none).
    Padding (segment 0) is never seen.

    Args:
      positions, segment_ids: of queries, [B,T] int32.
      k_positions, k_segment_ids: of keys, [B,S] int32.
    """
    seen = (segment_ids[:, :, None] == k_segment_ids[:, None, :]) & (k_segment_ids[:, None, :] > 0)
    distance = positions[:, :, None] - k_positions[:, None, :]
    if causal:
        seen &= distance >= 0
    else:
        distance = abs(distance)
    if window:
        seen &= distance < window
    return seen[:, None]


def ring_attention(inputs: EncodingInputs, v_BxKxTxd: jax.Array, encoding, config) -> jax.Array:
    """Returns what the queries of this device read from all keys, [B,H,T,d].

    Args:
      inputs: with q and k of this device's part, [B,H,T,d] and [B,K,T,d]; ids, segments and states
        of the whole text.
      encoding: one whose logits are a bias or a mask on top of q.k (`kernels.choose_context_path`).
      config: ModelConfig.
    """
    assert inputs.q is not None and inputs.k is not None
    parts = context_parts()
    here = jax.lax.axis_index(CONTEXT)
    length = inputs.k.shape[2]
    key_bias = encoding.key_bias(inputs)
    to_next_device = [(i, (i + 1) % parts) for i in range(parts)]

    @jax.checkpoint  # the logits of a block are computed again in the backward pass: none is kept
    def add_block(q, k, v, turn, total, top, out):
        # After so many turns, the keys at hand are those of the device so many places before.
        def of_block(x, axis):
            start = (here - turn) % parts * length
            return jax.lax.dynamic_slice_in_dim(x, start, length, axis)

        block = dataclasses.replace(
            inputs,
            q=q,
            k=k,
            visible=None,
            k_ids=of_block(inputs.k_ids, 1),
            k_positions=of_block(inputs.k_positions, 1),
            k_segment_ids=of_block(inputs.k_segment_ids, 1),
        )
        seen = visible_pairs(
            block.positions,
            block.segment_ids,
            block.k_positions,
            block.k_segment_ids,
            config.window,
            config.causal,
        )

        # Logits of the block, with the biases and the mask of the encoding.
        z_BxHxTxS = soft_cap(scaled_products(q, k, config), config)
        pair_bias = encoding.pair_bias(block)
        if pair_bias is not None:
            z_BxHxTxS += pair_bias
        if key_bias is not None:
            z_BxHxTxS += of_block(key_bias, 2)[:, :, None]
        encoding_mask = encoding.mask(block)
        if encoding_mask is not None:
            seen = seen & encoding_mask
        z_BxHxTxS = jnp.where(seen, z_BxHxTxS, _LOWEST)

        # The sums so far are of weights relative to the old maximum: they are brought to the new.
        new_top = jnp.maximum(top, jax.lax.stop_gradient(z_BxHxTxS.max(-1)))
        weights = jnp.exp(z_BxHxTxS - new_top[..., None])
        shrink = jnp.exp(top - new_top)
        read = weigh_values(weights.astype(v.dtype), v).astype(jnp.float32)
        return total * shrink + weights.sum(-1), new_top, out * shrink[..., None] + read

    def take_turn(carry, turn):
        k, v, *sums = carry
        sums = add_block(inputs.q, k, v, turn, *sums)
        return (*jax.lax.ppermute((k, v), CONTEXT, to_next_device), *sums), None

    # The sum of weights, their maximum, and what they read: nothing yet.
    zero = jnp.zeros(inputs.q.shape[:3], jnp.float32)
    out = jnp.zeros((*zero.shape, v_BxKxTxd.shape[3]), jnp.float32)
    start = (inputs.k, v_BxKxTxd, zero, zero + _LOWEST, out)
    (_, _, total, _, out), _ = jax.lax.scan(take_turn, start, jnp.arange(parts))
    return (out / total[..., None]).astype(inputs.q.dtype)
