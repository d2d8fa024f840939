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


def weighted_token_loss(logits: jax.Array, batch: dict, z_loss: float = 0.0) -> tuple[jax.Array, dict]:
    """Next-token and answer-only training alike: `loss_weights` say which targets count.

    Returns (the sum to minimise, {'nll', 'weight', 'correct'}: sums over the weighted targets). z-loss: z_loss * log(Z)^2
    (PaLM, Chowdhery et al. 2022, section 5).
    """
    weights = batch['loss_weights']
    nll, log_z = cross_entropy(logits, batch['targets'])
    total = ((nll + z_loss * jnp.square(log_z)) * weights).sum() if z_loss else (nll * weights).sum()
    return total, {'nll': (nll * weights).sum(), 'weight': weights.sum()}
