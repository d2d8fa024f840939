"""Pairs of texts that differ in one thing: which of the two a model prefers.

BLiMP: Warstadt et al. 2020, arXiv 1912.00582. Here only the sets whose two sentences have the same
words in another order.

Dimensions: N texts, T tokens.
"""

import collections
import functools
import pathlib
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data import sources
from data.records import BadRecord
from data.tokenizer import Tokenizer
from model.loss import cross_entropy
from model.transformer import Transformer, make_row_keys
from runtime.errors import RunError

_ROWS = 64  # of a batch
_LETTERS = re.compile(r'▁[^\W\d_]+')


def preferred(better: np.ndarray, worse: np.ndarray) -> float:
    """Returns the share of pairs whose better text has fewer nats; a tie is half of one."""
    better = np.asarray(better)
    worse = np.asarray(worse)
    return float(np.mean((better < worse) + 0.5 * (better == worse)))


def text_nats(
    model: Transformer,
    params,
    texts: Sequence[Sequence[int]],
    columns: int,
    begins: Sequence[int] | None = None,
) -> np.ndarray:
    """Returns the nats of each text, all but its first token predicted, [N] float64.

    Args:
      texts: token ids, their begin mark first.
      columns: tokens of the longest text, or more: what has as many is compiled once.
      begins: of each text the first token that counts; None: all but its begin mark.
    """
    nats = []
    for start in range(0, len(texts), _ROWS):
        rows = texts[start : start + _ROWS]
        tokens = np.zeros((_ROWS, columns), np.int32)
        for row, text in zip(tokens, rows):
            row[: len(text)] = text
        lengths = np.array([len(text) for text in rows] + [1] * (_ROWS - len(rows)))
        of_tokens = np.asarray(_nats(model, params, tokens, lengths), np.float64)
        place = np.arange(1, columns)
        counted = place < lengths[:, None]
        if begins is not None:
            of_rows = np.array([*begins[start : start + _ROWS], *[1] * (_ROWS - len(rows))])
            counted &= place >= of_rows[:, None]
        nats.append((of_tokens * counted).sum(1)[: len(rows)])
    return np.concatenate(nats)


@functools.partial(jax.jit, static_argnames='model')
def _nats(model: Transformer, params, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns the nats of each token but the first, [N,T-1]; what is to be predicted is not read
    as long as the model is causal, and never the last token of a text."""
    place = jnp.arange(tokens.shape[1] - 1)
    real = place < lengths[:, None] - 1
    logits, _ = model.apply(
        {'params': params},
        jnp.where(real, tokens[:, :-1], 0),
        jnp.where(real, place, 0),
        real.astype(jnp.int32),
        row_keys=make_row_keys(jnp.arange(len(tokens))),
    )
    return cross_entropy(logits, tokens[:, 1:])[0]


def read_blimp(path: pathlib.Path, field: str, most: int) -> dict[str, list[tuple[str, str]]]:
    """Returns {set: pairs of a good and a bad sentence} of the sets that are about order alone.

    Args:
      path: of a file of {"sentence_good", "sentence_bad", "UID"} objects.
      field: what names it, for messages.
      most: pairs of a set.
    Raises:
      RunError: it is not there, or holds no pair of sentences with the same words.
    """
    if not path.is_file():
        raise RunError(f'{field} is {str(path)!r}: no such file; expected one of BLiMP')

    def parse(where, fields):
        return fields

    sets: dict[str, list[tuple[str, str]]] = {}
    mixed = set()
    for fields in sources.objects(path, parse):
        if isinstance(fields, BadRecord) or not isinstance(fields, dict):
            continue
        texts = [fields.get(name) for name in ('sentence_good', 'sentence_bad', 'UID')]
        if not all(isinstance(text, str) for text in texts):
            continue
        good, bad, name = map(str, texts)
        if _words(good) != _words(bad):
            mixed.add(name)
        sets.setdefault(name, []).append((good, bad))
    chosen = {name: pairs[:most] for name, pairs in sets.items() if name not in mixed}
    if not chosen:
        raise RunError(
            f'{field} is {str(path)!r}: expected pairs of sentences with the same words, '
            'sentence_good and sentence_bad, in sets named UID'
        )
    return chosen


def _words(text: str) -> collections.Counter:
    return collections.Counter(re.findall(r"[\w']+", text.lower()))


def swap_words(
    documents: Sequence[np.ndarray], tokenizer: Tokenizer, count: int, length: int, seed: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns pieces of documents, and the same with two neighbouring words in each other's place.

    Both of a pair have the same tokens. Words are of letters alone and stand in the second half of
    a piece, so that some text comes before them.

    Args:
      documents: token ids, the begin mark first.
      count: pairs.
      length: tokens of a piece, the begin mark included.
    Raises:
      RunError: the documents hold no such pair.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    usable = [document for document in documents if len(document) > length]
    real = []
    swapped = []
    for _ in range(20 * count if usable else 0):
        document = usable[rng.integers(len(usable))]
        start = int(rng.integers(1, len(document) - length + 1))
        end = start + length - len(tokenizer.begin)
        piece = [*tokenizer.begin, *document[start:end].tolist()]
        words = _neighbours(piece, tokenizer)
        if not words:
            continue
        a, b, end = words[rng.integers(len(words))]
        real.append(piece)
        swapped.append([*piece[:a], *piece[b:end], *piece[a:b], *piece[end:]])
        if len(real) == count:
            return real, swapped
    raise RunError(
        f'the held-out text has fewer than {count} pieces of {length} tokens with two words side '
        'by side: expected more text'
    )


def _neighbours(piece: list[int], tokenizer: Tokenizer) -> list[tuple[int, int, int]]:
    """Returns where two unlike words stand side by side: begin, begin of the second, end."""
    pieces = [tokenizer.piece(token) for token in piece]
    starts = [i for i, text in enumerate(pieces) if text.startswith('▁')]
    spans = [
        (begin, end)
        for begin, end in zip(starts, starts[1:])
        if _LETTERS.fullmatch(''.join(pieces[begin:end]))
    ]
    return [
        (begin, middle, end)
        for (begin, middle), (second, end) in zip(spans, spans[1:])
        if middle == second
        and begin >= len(piece) // 2
        and piece[begin:middle] != piece[middle:end]
    ]
