"""Losses as sums over tokens, so that shards and microbatches add up exactly.

A loss maps (logits, batch) to (the sum to minimise, sums to report).

Dimensions: B batch, T time, D width, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Loss = Callable[[jax.Array, dict], tuple[jax.Array, dict]]


def cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the negative log likelihood of each target and log(Z), each [B,T] float32.

    The label's logit is picked by comparison, not by a gather, which XLA could not partition over
    the vocabulary.
    """
    logits_BxTxV = logits_BxTxV.astype(jnp.float32)
    log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    ids_BxTxV = jax.lax.broadcasted_iota(jnp.int32, logits_BxTxV.shape, 2)
    is_label_BxTxV = ids_BxTxV == targets_BxT[..., None]
    label_logits_BxT = jnp.where(is_label_BxTxV, logits_BxTxV, 0).sum(-1)
    return log_z_BxT - label_logits_BxT, log_z_BxT


def weighted_token_loss(
    logits: jax.Array, batch: dict, z_loss: float = 0.0
) -> tuple[jax.Array, dict]:
    """Returns the loss of next-token and of answer-only training, and its sums.

    Args:
      logits: [B,T,V].
      batch: `loss_weights` [B,T] float32 say which of the `targets` [B,T] int32 count.
      z_loss: weight of log(Z)^2 (PaLM, Chowdhery et al. 2022, arXiv 2204.02311, section 5).
    Returns:
      the sum to minimise; {'nll', 'weight'}: sums over the weighted targets.
    """
    weights = batch['loss_weights']
    nll, log_z = cross_entropy(logits, batch['targets'])
    if z_loss:
        total = ((nll + z_loss * jnp.square(log_z)) * weights).sum()
    else:
        total = (nll * weights).sum()
    return total, {'nll': (nll * weights).sum(), 'weight': weights.sum()}


def loss_in_chunks(
    loss: Loss,
    logits_of: Callable[[jax.Array], jax.Array],
    hidden_BxTxD: jax.Array,
    batch: dict,
    chunks: int,
) -> tuple[jax.Array, dict]:
    """Returns the loss, computed with the logits of T / chunks columns at a time.

    They are computed again in the backward pass, so that no more of them are ever held.

    Args:
      logits_of: hidden states [B,t,D] -> logits [B,t,V].
    """
    if chunks == 1:
        return loss(logits_of(hidden_BxTxD), batch)

    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def loss_of_chunk(chunk):
        hidden, part_of_batch = chunk
        return loss(logits_of(hidden), part_of_batch)

    sums = jax.lax.map(loss_of_chunk, (cut(hidden_BxTxD), jax.tree.map(cut, batch)))
    return jax.tree.map(lambda x: x.sum(0), sums)


def choose_chunks(columns: int, logits_bytes: int, wanted: int) -> int:
    """Returns into how many chunks the logits are cut.

    As `wanted`, else (0) 1 as long as a device's logits stay below 4 GiB, and then so many that a
    chunk has at most 1 GiB. In chunks they cost one more matmul (predicted on a v5e: 2 % of a step
    at a vocabulary of 32k).
    """
    if wanted or logits_bytes <= 4 * 2**30:
        return wanted or 1
    for chunks in range(1, columns + 1):
        if not columns % chunks and logits_bytes <= chunks * 2**30:
            return chunks
    return columns
