"""How likely a model takes given continuations to be, many at a time.

Dimensions: B texts, T tokens.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from model.generate import round_up
from model.loss import cross_entropy
from model.transformer import Transformer, make_row_keys

_BATCH_TOKENS = 4096  # read at a time


def log_likelihoods(
    model: Transformer,
    params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_tokens: int = _BATCH_TOKENS,
) -> list[tuple[float, bool]]:
    """Returns log p(continuation | context) in nats, and whether greedy decoding writes it.

    Texts of like length are read together, padded on the right to a power of two.

    Args:
      pairs: token ids of context and continuation, at least one of each. Where both are longer than
        the context of the model, the context's beginning is left out.
      batch_tokens: tokens that are read at a time, at least one text.
    """
    # The last token is predicted, and not read.
    longest = model.config.max_len
    texts = [[*context, *continuation][-longest - 1 :] for context, continuation in pairs]
    counts = [min(len(continuation), longest) for _, continuation in pairs]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))

    results: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
    while order:
        columns = min(longest, round_up(len(texts[order[-1]]) - 1))
        rows = max(1, batch_tokens // columns)
        here = order[-rows:]
        order = order[:-rows]
        tokens = np.zeros((rows, columns + 1), np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, i in enumerate(here):
            tokens[row, : len(texts[i])] = texts[i]
            lengths[row] = len(texts[i]) - 1
        nats, greedy = jax.device_get(_score(model, params, tokens, lengths))
        for row, i in enumerate(here):
            of_continuation = slice(lengths[row] - counts[i], lengths[row])
            is_greedy = bool(greedy[row, of_continuation].all())
            results[i] = (-float(nats[row, of_continuation].sum(dtype=np.float64)), is_greedy)
    return results


@functools.partial(jax.jit, static_argnames='model')
def _score(model: Transformer, params, tokens: jax.Array, lengths: jax.Array):
    """Returns nats of each next token and whether it is the likeliest, [B,T] of tokens [B,T+1]."""
    columns = tokens.shape[1] - 1
    place = jnp.broadcast_to(jnp.arange(columns, dtype=jnp.int32), (len(tokens), columns))
    is_read = place < lengths[:, None]
    logits, _ = model.apply(
        {'params': params},
        tokens[:, :-1],
        jnp.where(is_read, place, 0),
        is_read.astype(jnp.int32),
        row_keys=make_row_keys(0 * lengths),  # a text does not depend on its company
    )
    return cross_entropy(logits, tokens[:, 1:])[0], logits.argmax(-1) == tokens[:, 1:]
