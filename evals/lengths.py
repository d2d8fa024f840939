"""Accuracy of a model on an algorithmic task, length by length."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from data.batches import Batch
from data.tasks import TaskBatches
from model.transformer import Transformer, make_row_keys


def accuracy(
    model: Transformer, params, batches: TaskBatches, lengths: Iterable[int], rows: int
) -> dict[int, dict[str, float]]:
    """Returns {length: {'exact', 'token', 'nats'}}.

    The share of answers wholly right, the share of their tokens right, the mean loss of a token. An
    answer is wholly right where each of its tokens is the most likely one after the right ones
    before it: just where greedy decoding writes the answer. All lengths are padded to the longest,
    for one compilation.
    """
    lengths = list(lengths)
    width = max(batches.test(n, 1)['tokens'].shape[1] for n in lengths)
    results = {}
    for n in lengths:
        batch = batches.test(n, rows)
        batch = {k: np.pad(x, ((0, 0), (0, width - x.shape[1]))) for k, x in batch.items()}
        measured = jax.device_get(_measure(model, params, batch, n))
        results[n] = {name: round(float(x), 5) for name, x in measured.items()}
    return results


@functools.partial(jax.jit, static_argnums=0)
def _measure(model: Transformer, params, batch: Batch, length: int) -> dict[str, jax.Array]:
    logits, _ = model.apply(
        {'params': params},
        batch['tokens'],
        batch['positions'],
        batch['segment_ids'],
        batch.get('ids'),
        row_keys=make_row_keys(jnp.arange(len(batch['tokens'])), length),
    )
    asked = batch['loss_weights'] > 0
    right = (logits.argmax(-1) == batch['targets']) & asked
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch['targets'][..., None], -1)[..., 0]
    return {
        'exact': (right == asked).all(-1).mean(),
        'token': right.sum() / asked.sum(),
        'nats': jnp.where(asked, nats, 0).sum() / asked.sum(),
    }
