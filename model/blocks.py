"""Causal attention in blocks of queries, each with the keys up to its own end.

What lies ahead of a block is never computed, a little less than half of all products, and no array
[T,T] is held in one piece. It is the reference (model/attention.py) for a part of the queries at a
time, with the places of entry that a block of keys leaves alone, those of the ring (model/ring.py).

Dimensions: B batch, T queries, S keys, H heads, K key-value heads, d head size.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model.kernels import count_blocks
from model.positions.base import EncodingInputs
from model.ring import scaled_products, soft_cap, weigh_values

_RECOMPUTED_FROM = 2048  # tokens from which the backward pass computes a block's weights again


def block_attention(inputs: EncodingInputs, v_BxKxTxd: jax.Array, encoding, config) -> jax.Array:
    """Returns what the queries read from the keys of the same call, [B,H,T,d].

    Args:
      inputs: with q and k of the whole text.
      encoding: one whose logits are a bias or a mask on top of q.k (`kernels.find_refusal`).
      config: ModelConfig; where it is not causal, all queries are one block.
    """
    assert inputs.q is not None and inputs.k is not None
    length = inputs.q.shape[2]
    size = length // count_blocks(length) if config.causal else length

    read = []
    for start in range(0, length, size):
        # Nothing is seen that lies ahead of the last query, or behind the window of the first.
        first_key = max(0, start + 1 - config.window) if config.window else 0
        rows = slice(start, start + size)
        columns = slice(first_key, start + size)
        block = _cut(inputs, rows, columns)

        def attend(q_BxHxTxd, k_BxKxSxd, v_BxKxSxd, block=block):
            z_BxHxTxS = soft_cap(scaled_products(q_BxHxTxd, k_BxKxSxd, config), config)
            bias = encoding.additive(block)
            if bias is not None:
                z_BxHxTxS += bias
            weights_BxHxTxS = encoding.softmax(block, z_BxHxTxS, block.visible)
            return weigh_values(weights_BxHxTxS.astype(config.dtype), v_BxKxSxd)

        if length >= _RECOMPUTED_FROM:
            attend = jax.checkpoint(attend)
        k_BxKxSxd = inputs.k[:, :, columns]
        read.append(attend(inputs.q[:, :, rows], k_BxKxSxd, v_BxKxTxd[:, :, columns]))
    return jnp.concatenate(read, axis=2)


def _cut(inputs: EncodingInputs, rows: slice, columns: slice) -> EncodingInputs:
    """Returns what an encoding sees where `rows` of the queries look at `columns` of the keys."""

    def of_rows(x):
        return None if x is None else x[:, rows]

    assert inputs.k_ids is not None and inputs.visible is not None
    assert inputs.k_positions is not None and inputs.k_segment_ids is not None
    assert inputs.keys_seen is not None
    return dataclasses.replace(
        inputs,
        q_ids=inputs.q_ids[:, rows],
        positions=of_rows(inputs.positions),
        segment_ids=of_rows(inputs.segment_ids),
        task_ids=of_rows(inputs.task_ids),
        x=of_rows(inputs.x),
        k_ids=inputs.k_ids[:, columns],
        k_positions=inputs.k_positions[:, columns],
        k_segment_ids=inputs.k_segment_ids[:, columns],
        state={name: x[..., columns] for name, x in inputs.state.items()},
        visible=inputs.visible[:, :, rows, columns],
        keys_seen=inputs.keys_seen[:, :, rows],
    )
