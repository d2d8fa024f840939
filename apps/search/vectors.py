"""The nearest of many vectors: a graph of usearch (HNSW, Malkov and Yashunin 2016, arXiv 1603.09320), float16, memory-mapped to search in it.

A vector that is gone stays in the graph as a way to others, and is passed over by who searches, until every fifth is one.
"""

import pathlib

import numpy as np
from usearch.index import Index

STALE = 0.2  # share of vectors that are gone with which a graph is built anew
_FEW = 10_000
FORM = dict(metric='l2sq', dtype='f16')
SETTINGS = dict(
    connectivity=16, expansion_add=96, expansion_search=128, enable_key_lookups=False
)  # a lookup would read every node on opening


def make(size: int) -> Index:
    """Of vectors of length 1. No two of them may be the same: of many that are, most are never reached, and hide others. Distances are squared
    differences: rounding to float16 changes lengths, which products take for nearness (recall 0.80 in place of 0.99 where cosines are 0.997)."""
    return Index(ndim=size, **FORM, **SETTINGS)


def load(path: pathlib.Path) -> Index:
    """Into memory, to add to it."""
    return Index.restore(path, **SETTINGS)


def view(path: pathlib.Path) -> Index:
    """Memory-mapped: nothing but its head is read. Raises RuntimeError or ValueError where it is no graph."""
    return Index.restore(path, view=True, **SETTINGS)


def add(index: Index, ids: np.ndarray, found: np.ndarray) -> None:
    """Adds float16 vectors [N, size], on all cores."""
    index.add(ids.astype(np.uint64), found)


def nearest(index: Index, vector: np.ndarray, count: int) -> list[int]:
    """Ids of so many vectors, the nearest first. Of few vectors all are compared: that takes no longer, and misses none (a graph of 5,000: 1 %)."""
    return index.search(vector, count, exact=len(index) <= _FEW).keys.tolist()


def save(index: Index, path: pathlib.Path) -> None:
    """Raises OSError where the disk is full."""
    try:
        index.save(path)
    except RuntimeError as error:
        raise OSError(f'{path}: {error}') from None


def unpacked(data: list[bytes], size: int) -> np.ndarray:
    """Vectors as the database has them -> float16 [N, size]."""
    return np.frombuffer(b''.join(data), np.float16).reshape(-1, size)


def cosines(data: list[bytes], vector: np.ndarray) -> np.ndarray:
    """Of vectors as the database has them to one of length 1: float32 [N]."""
    found = unpacked(data, len(vector)).astype(np.float32)
    return found @ vector / np.maximum(np.linalg.norm(found, axis=1), 1e-6)
