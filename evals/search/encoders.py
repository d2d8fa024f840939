"""Texts become vectors: by a model, by its token embeddings alone, or by the untrained model.

Dimensions: P passages, N texts, D width.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from data.pairs.read import encode_texts
from model.embed import Embedder

_QUERIES_AT_ONCE = 256  # whose products with all passages are held at one time


@dataclasses.dataclass(frozen=True)
class Passages:
    """The token ids of each passage of texts, `rows` [P]; `starts` [N]: where each text's begin.

    The first `begin` ids of each are begin marks, the last is the end mark.
    """

    rows: list[list[int]]
    starts: np.ndarray
    begin: int


@dataclasses.dataclass(frozen=True)
class Vectors:
    """The vectors of passages, `rows` [P,D] float32 of length 1.

    starts: [N], where the passages of each text begin.
    """

    rows: np.ndarray
    starts: np.ndarray

    def cut(self, size: int) -> 'Vectors':
        """Returns the leading dimensions only, of length 1 again.

        Matryoshka, Kusupati et al. 2022, arXiv 2205.13147.
        """
        return Vectors(_unit(self.rows[:, :size]), self.starts)


def passages(tokenizer, texts: list[str], most: int) -> Passages:
    """Cuts texts into passages of at most `most` tokens, with a mark at either end of each."""
    begin = len(tokenizer.begin)
    room = most - begin - 1
    rows: list[list[int]] = []
    starts = []
    for row in encode_texts(texts, tokenizer, 1 << 60):
        tokens = row[begin:-1]
        starts.append(len(rows))
        cuts = range(0, max(1, len(tokens)), room)
        rows += [[*row[:begin], *tokens[i : i + room], row[-1]] for i in cuts]
    return Passages(rows, np.array(starts), begin)


def embedded(model, params, cut: Passages, pooling: str) -> Vectors:
    """Returns the vectors that a model makes of passages, pooled so."""
    return Vectors(Embedder(model, params, pooling)(cut.rows), cut.starts)


def static(params, cut: Passages) -> Vectors:
    """Returns the mean of the embeddings of a passage's tokens.

    That is what there is of meaning without attention, order and depth.
    """
    table = np.asarray(params['embedding'], np.float32)
    means = [table[ids[cut.begin : -1] or ids[-1:]].mean(0) for ids in cut.rows]
    return Vectors(_unit(np.stack(means)), cut.starts)


def untrained(model, seed: int):
    """Returns the parameters that a run of this model and seed begins with.

    They are made as train/step.py makes them.
    """
    key, _ = jax.random.split(jax.random.key(seed, impl='threefry2x32'))
    token = jnp.ones((1, 1), jnp.int32)
    return nn.meta.unbox(jax.jit(model.init)(key, token, token * 0, token, token)['params'])


def nearest(queries: Vectors, documents: Vectors) -> Iterator[np.ndarray]:
    """Yields the cosines [N] of each query, by its first passage, with all documents.

    Of several passages of a document the best counts (MaxP; Dai and Callan 2019, arXiv 1905.09217).
    """
    for at in range(0, len(queries.starts), _QUERIES_AT_ONCE):
        rows = queries.rows[queries.starts[at : at + _QUERIES_AT_ONCE]]
        yield from np.maximum.reduceat(rows @ documents.rows.T, documents.starts, axis=1)


def alike(first: Vectors, second: Vectors) -> np.ndarray:
    """Returns the cosine of each text with the one of the same place, [N], by first passages.

    Rounded: two that rounding alone tells apart are a tie, as those of the same sentence twice.
    """
    one, other = (vectors.rows[vectors.starts] for vectors in (first, second))
    return np.einsum('nd,nd->n', one, other).round(5)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
