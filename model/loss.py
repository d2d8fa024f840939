"""Losses as sums over tokens, so that shards and microbatches add up exactly.

A loss maps (logits, batch) to (the sum to minimise, sums to report).

Dimensions: B batch, T time, D width, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

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
    logits_of: Callable[[jax.Array, jax.Array], jax.Array],
    hidden_BxTxD: jax.Array,
    output: jax.Array,
    batch: dict,
    chunks: int,
) -> tuple[jax.Array, dict]:
    """Returns the loss, computed with the logits of T / chunks columns at a time.

    A chunk's gradients are computed with it, since the loss is a sum: so its logits are made once,
    and no more of them are ever held. What is reported has no gradient then.

    Args:
      logits_of: (hidden states [B,t,D], output) -> logits [B,t,V].
      output: the matrix of the logits.
    """
    if chunks == 1:
        return loss(logits_of(hidden_BxTxD, output), batch)

    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    dtype = output.dtype

    def loss_of_chunk(hidden, output, part_of_batch):
        return loss(logits_of(hidden, output), part_of_batch)

    @jax.custom_vjp
    def total(hidden_BxTxD, output, batch):
        pieces = (cut(hidden_BxTxD), jax.tree.map(cut, batch))
        sums = jax.lax.map(lambda piece: loss_of_chunk(piece[0], output, piece[1]), pieces)
        return jax.tree.map(lambda x: x.sum(0), sums)

    def forward(hidden_BxTxD, output, batch):
        value_and_grad = jax.value_and_grad(loss_of_chunk, (0, 1), has_aux=True)

        def add(output_grad, piece):
            sums, (hidden_grad, more) = value_and_grad(piece[0], output, piece[1])
            return output_grad + more.astype(jnp.float32), (sums, hidden_grad)

        zero = jnp.zeros(output.shape, jnp.float32)
        pieces = (cut(hidden_BxTxD), jax.tree.map(cut, batch))
        output_grad, (sums, hidden_grads) = jax.lax.scan(add, zero, pieces)
        hidden_grad = jnp.moveaxis(hidden_grads, 0, 1).reshape(hidden_BxTxD.shape)
        return jax.tree.map(lambda x: x.sum(0), sums), (hidden_grad, output_grad, batch)

    def backward(residuals, cotangents):
        hidden_grad, output_grad, batch = residuals
        scale = cotangents[0]
        return (
            (hidden_grad * scale).astype(hidden_grad.dtype),
            (output_grad * scale).astype(dtype),
            jax.tree.map(_no_gradient, batch),
        )

    total.defvjp(forward, backward)
    return total(hidden_BxTxD, output, batch)


def _no_gradient(x: jax.Array):
    """Returns the gradient of what has none: zeros, of the dtype that JAX asks for."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


def choose_chunks(columns: int, logits_bytes: int, wanted: int, on_tpu: bool = False) -> int:
    """Returns into how many chunks the logits are cut.

    As `wanted`, else (0) 1 as long as a device's logits stay below 4 GiB, and then so many that a
    chunk has at most 1 GiB. On a TPU, whose memory and compiler want less at a time, below 512 and
    at most 256 MiB.
    """
    most_whole, most_in_chunk = (2**29, 2**28) if on_tpu else (2**32, 2**30)
    if wanted or logits_bytes <= most_whole:
        return wanted or 1
    for chunks in range(1, columns + 1):
        if not columns % chunks and logits_bytes <= chunks * most_in_chunk:
            return chunks
    return columns
