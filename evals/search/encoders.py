"""Texts become vectors: by a model, or by its token embeddings alone; and the untrained model of the same architecture.

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

_TOGETHER = 256  # queries whose products with all passages are held at one time


@dataclasses.dataclass(frozen=True)
class Passages:
    """Of texts: the token ids of each passage, `rows` [P], and where each text's begin, `starts` [N]."""

    rows: list[list[int]]
    starts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Of the passages of texts, `rows` [P,D] float32 of length 1, and where each text's begin, `starts` [N]."""

    rows: np.ndarray
    starts: np.ndarray

    def cut(self, size: int) -> 'Vectors':
        """Only the leading dimensions (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147), of length 1 again."""
        return Vectors(_unit(self.rows[:, :size]), self.starts)


def passages(tokenizer, texts: list[str], most: int) -> Passages:
    """A text of more than `most` tokens, with a mark at either end, becomes several passages."""
    room, rows, starts = most - 2, [], []
    for bos, *tokens, eos in encode_texts(texts, tokenizer, 1 << 60):
        starts.append(len(rows))
        rows += [[bos, *tokens[i : i + room], eos] for i in range(0, max(1, len(tokens)), room)]
    return Passages(rows, np.array(starts))


def embedded(model, params, cut: Passages, pooling: str) -> Vectors:
    return Vectors(Embedder(model, params, pooling)(cut.rows), cut.starts)


def static(params, cut: Passages) -> Vectors:
    """The mean of the embeddings of a passage's tokens: what there is of meaning without attention, order and depth."""
    table = np.asarray(params['embedding'], np.float32)
    return Vectors(
        _unit(np.stack([table[ids or [eos]].mean(0) for _, *ids, eos in cut.rows])), cut.starts
    )


def untrained(model, seed: int):
    """The parameters that a run of this model and seed begins with (as train/step.py makes them)."""
    key, _ = jax.random.split(jax.random.key(seed, impl='threefry2x32'))
    token = jnp.ones((1, 1), jnp.int32)
    return nn.meta.unbox(jax.jit(model.init)(key, token, token * 0, token, token)['params'])


def nearest(queries: Vectors, documents: Vectors) -> Iterator[np.ndarray]:
    """Cosines of each query, its first passage, with all documents [N]: of several passages of a document the best counts (MaxP; Dai and
    Callan 2019, arXiv 1905.09217)."""
    for at in range(0, len(queries.starts), _TOGETHER):
        yield from np.maximum.reduceat(
            queries.rows[queries.starts[at : at + _TOGETHER]] @ documents.rows.T,
            documents.starts,
            axis=1,
        )


def alike(first: Vectors, second: Vectors) -> np.ndarray:
    """Cosines of each text with the one of the same place, [N]; of their first passages. Rounded: two that rounding alone tells apart are a
    tie, as those of the same sentence twice."""
    return np.einsum('nd,nd->n', first.rows[first.starts], second.rows[second.starts]).round(5)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
