"""Passkey: a number hidden in a text of nothing, asked for at its end.

The text, the number and the question are those of Mohtashami and Jaggi 2023 (Landmark attention,
arXiv 2305.16300, section 4.2). A model has found the number where each of its tokens is the
likeliest after those before it: just where greedy decoding writes it.

Dimensions: N trials, L tokens.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from model.transformer import Transformer, make_row_keys, output_matrix, unembed
from runtime.errors import RunError

_HEAD = (
    'There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. '
    'I will quiz you about the important information there.\n'
)
_FILLER = (
    'The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n'
)
_NEEDLE = 'The pass key is {number}. Remember it. {number} is the pass key.\n'
_QUESTION = 'What is the pass key? The pass key is'
_DIGITS = 5


def make_prompts(
    tokenizer, length: int, depth: float, trials: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of texts, [N,L] int32, and how many of the last are the number, [N].

    Args:
      tokenizer: of the model.
      length: L, tokens of a text with the number that ends it.
      depth: where the number is hidden, from 0 (the beginning) to 1.
      trials: N, texts with numbers of their own.
      seed: the same one gives the same numbers.
    Raises:
      RunError: a length that head, number and question do not fit into.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, length])))
    numbers = rng.integers(10 ** (_DIGITS - 1), 10**_DIGITS, size=trials)
    filler = tokenizer.encode(_FILLER)
    first = [*tokenizer.begin]
    rows, counts = [], []
    for number in numbers:
        head = first + tokenizer.encode(_HEAD)
        needle = tokenizer.encode(_NEEDLE.format(number=number))
        question = tokenizer.encode(_QUESTION)
        answer = tokenizer.encode(f'{_QUESTION} {number}')[len(question) :]
        room = length - len(head) - len(needle) - len(question) - len(answer)
        if room < 0:
            raise RunError(f'a passkey in {length} tokens: expected at least {length - room}')

        # Whole lines before the number; what is left of a line stands before the question.
        lines = round(depth * (room // len(filler)))
        before = filler * lines
        after = (filler * (room // len(filler) + 1))[: room - len(before)]
        rows.append(head + before + needle + after + question + answer)
        counts.append(len(answer))
    return np.asarray(rows, np.int32), np.asarray(counts)


def accuracy(
    model: Transformer, params, tokens: np.ndarray, counts: Sequence[int], rows: int = 1
) -> list[bool]:
    """Returns of each text whether its number is found.

    Args:
      tokens, counts: as `make_prompts` gives them.
      rows: texts that are read at a time.
    """
    most = max(counts)
    found: list[bool] = []
    for at in range(0, len(tokens), rows):
        batch = np.pad(tokens[at : at + rows], ((0, rows - len(tokens[at : at + rows])), (0, 0)))
        is_right = np.asarray(_is_right(model, params, most, batch))
        for right, count in zip(is_right, counts[at : at + rows]):
            found.append(bool(right[most - count :].all()))
    return found


@functools.partial(jax.jit, static_argnames=('model', 'last'))
def _is_right(model: Transformer, params, last: int, tokens: jax.Array) -> jax.Array:
    """Returns whether each of the `last` tokens is the likeliest in its place, bool [N,last]."""
    read = tokens[:, :-1]
    positions = jnp.broadcast_to(jnp.arange(read.shape[1], dtype=jnp.int32), read.shape)
    hidden, _ = model.apply(
        {'params': params},
        read,
        positions,
        jnp.ones_like(read),
        row_keys=make_row_keys(jnp.arange(len(tokens))),
        logits=False,
    )
    output = output_matrix(model.config, params)
    logits = unembed(hidden[:, -last:], output, model.config.tied)
    return logits.argmax(-1) == tokens[:, -last:]
