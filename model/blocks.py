"""Causal attention in blocks of queries, each with the keys up to its own end.

What lies ahead of a block is never computed, a little less than half of all products, and no array
[T,T] is held in one piece. It is the reference (model/attention.py) for a part of the queries at a
time, with the places of entry that a block of keys leaves alone, those of the ring (model/ring.py).

Dimensions: B batch, T queries, S keys, H heads, K key-value heads, d head size.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from model.kernels import count_blocks
from model.positions.base import EncodingInputs
from model.ring import scaled_products, soft_cap, visible_pairs, weigh_values

_RECOMPUTED_FROM = 2048  # tokens from which the backward pass computes a block's weights again
_AT_A_TIME = 512  # queries; a block of more is computed one part after the other


def block_attention(inputs: EncodingInputs, v_BxKxTxd: jax.Array, encoding, config) -> jax.Array:
    """Returns what the queries read from the keys of the same call, [B,H,T,d].

    Args:
      inputs: with q and k of the whole text.
      encoding: one whose logits are a bias or a mask on top of q.k, or another product of q and k
        (`kernels.find_refusal`).
      config: ModelConfig; where it is not causal, all queries are one block.
    """
    assert inputs.q is not None and inputs.k is not None
    length = inputs.q.shape[2]
    size = length // count_blocks(length) if config.causal else length
    at_a_time = math.gcd(size, _AT_A_TIME)

    read = []
    for start in range(0, length, size):
        # Nothing is seen that lies ahead of the last query, or behind the window of the first.
        first_key = max(0, start + 1 - config.window) if config.window else 0
        columns = slice(first_key, start + size)
        keys = _cut_keys(inputs, columns)
        k_BxKxSxd = inputs.k[:, :, columns]
        v_BxKxSxd = v_BxKxTxd[:, :, columns]

        def attend(q_BxHxTxd, first, k_BxKxSxd, v_BxKxSxd, keys=keys):
            block = _cut_queries(keys, first, q_BxHxTxd.shape[2])

            # Found anew here: cut out of those of the whole text they would be held as one [T,T].
            visible_BxHxTxS = visible_pairs(
                block.positions,
                block.segment_ids,
                block.k_positions,
                block.k_segment_ids,
                config.window,
                config.causal,
            )
            mask = encoding.mask(block)
            if mask is not None:
                visible_BxHxTxS &= mask
            block = dataclasses.replace(
                block,
                q=q_BxHxTxd,
                k=k_BxKxSxd,
                visible=visible_BxHxTxS,
                z=scaled_products(q_BxHxTxd, k_BxKxSxd, config),
            )

            z_BxHxTxS = soft_cap(encoding.product(block), config)
            bias = encoding.additive(block)
            if bias is not None:
                z_BxHxTxS += bias
            weights_BxHxTxS = encoding.softmax(block, z_BxHxTxS, visible_BxHxTxS)
            return weigh_values(weights_BxHxTxS.astype(config.dtype), v_BxKxSxd)

        if length >= _RECOMPUTED_FROM:
            attend = jax.checkpoint(attend, static_argnums=1 if size <= _AT_A_TIME else ())
        q_BxHxTxd = inputs.q[:, :, start : start + size]
        if size <= _AT_A_TIME:
            read.append(attend(q_BxHxTxd, start, k_BxKxSxd, v_BxKxSxd))
            continue

        # One after the other: all at once they would hold what grows with the square of the text.
        def attend_some(first_and_q, attend=attend, k=k_BxKxSxd, v=v_BxKxSxd):
            return attend(first_and_q[1], first_and_q[0], k, v)

        parts = size // at_a_time
        cut_shape = (*q_BxHxTxd.shape[:2], parts, at_a_time, q_BxHxTxd.shape[3])
        q_parts = jnp.moveaxis(q_BxHxTxd.reshape(cut_shape), 2, 0)
        firsts = start + at_a_time * jnp.arange(parts)
        out = jax.lax.map(attend_some, (firsts, q_parts))
        read.append(jnp.moveaxis(out, 0, 2).reshape(*out.shape[1:3], size, out.shape[-1]))
    return jnp.concatenate(read, axis=2)


def _cut_keys(inputs: EncodingInputs, columns: slice) -> EncodingInputs:
    """Returns what an encoding sees where all queries look at `columns` of the keys."""
    assert inputs.k_ids is not None
    assert inputs.k_positions is not None and inputs.k_segment_ids is not None
    return dataclasses.replace(
        inputs,
        k_ids=inputs.k_ids[:, columns],
        k_positions=inputs.k_positions[:, columns],
        k_segment_ids=inputs.k_segment_ids[:, columns],
        state={name: x[..., columns] for name, x in inputs.state.items()},
        visible=None,
    )


def _cut_queries(inputs: EncodingInputs, first: int | jax.Array, count: int) -> EncodingInputs:
    """Returns what an encoding sees of `count` queries from `first` on; a number: the last ones."""
    is_last = isinstance(first, int)

    def of_rows(x, axis=1):
        if x is None:
            return None
        if is_last:
            return jax.lax.slice_in_dim(x, first, first + count, axis=axis)
        return jax.lax.dynamic_slice_in_dim(x, first, count, axis)

    return dataclasses.replace(
        inputs,
        q_ids=of_rows(inputs.q_ids),
        positions=of_rows(inputs.positions),
        segment_ids=of_rows(inputs.segment_ids),
        task_ids=of_rows(inputs.task_ids),
        x=of_rows(inputs.x),
        keys_seen=of_rows(inputs.keys_seen, axis=2),
        consecutive=inputs.consecutive and is_last,
    )
