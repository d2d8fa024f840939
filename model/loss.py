"""Objectives. A loss maps (logits, batch) to sums over tokens, so that shards and microbatches add up exactly."""

import jax
import jax.numpy as jnp


def cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log likelihood and log(Z), each [B,T] float32. The label's logit is picked by comparison, not by a gather, which
    XLA could not partition over the vocabulary."""
    logits = logits_BxTxV.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets_BxT[..., None]
    return log_z - jnp.where(label, logits, 0).sum(-1), log_z


def weighted_token_loss(
    logits: jax.Array, batch: dict, z_loss: float = 0.0
) -> tuple[jax.Array, dict]:
    """Next-token and answer-only training alike: `loss_weights` say which targets count.

    Returns (the sum to minimise, {'nll', 'weight'}: sums over the weighted targets). z-loss: z_loss * log(Z)^2
    (PaLM, Chowdhery et al. 2022, section 5).
    """
    weights = batch['loss_weights']
    nll, log_z = cross_entropy(logits, batch['targets'])
    total = (
        ((nll + z_loss * jnp.square(log_z)) * weights).sum() if z_loss else (nll * weights).sum()
    )
    return total, {'nll': (nll * weights).sum(), 'weight': weights.sum()}


def loss_in_chunks(
    loss, logits_of, hidden_BxTxD: jax.Array, batch: dict, chunks: int
) -> tuple[jax.Array, dict]:
    """The loss with the logits of T / chunks columns at a time. They are computed again in the backward pass, so that no more of them
    are ever held. `logits_of`: hidden states -> logits."""
    if chunks == 1:
        return loss(logits_of(hidden_BxTxD), batch)
    cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)
    of_chunk = jax.checkpoint(lambda part: loss(logits_of(part[0]), part[1]))
    sums = jax.lax.map(of_chunk, (cut(hidden_BxTxD), jax.tree.map(cut, batch)))
    return jax.tree.map(lambda x: x.sum(0), sums)


def choose_chunks(columns: int, logits_bytes: int, wanted: int) -> int:
    """Into how many chunks to cut: as `wanted`, else (0) 1 as long as a device's logits stay below 4 GiB, and then so many that a chunk
    has at most 1 GiB. In chunks they cost one more matmul (predicted on a v5e: 2 % of a step at a vocabulary of 32k)."""
    if wanted or logits_bytes <= 4 * 2**30:
        return wanted or 1
    return next(
        (n for n in range(1, columns + 1) if not columns % n and logits_bytes <= n * 2**30), columns
    )
