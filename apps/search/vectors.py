"""The nearest of many vectors, by a graph of usearch.

It is HNSW (Malkov and Yashunin 2016, arXiv 1603.09320), float16, memory-mapped to search in it. A
vector that is gone stays in the graph as a way to others, and is passed over by who searches, until
every fifth is one.
"""

import pathlib

import numpy as np
from usearch.index import Index

STALE = 0.2  # share of vectors that are gone with which a graph is built anew
_FEW = 10_000  # vectors at most that are compared one by one
FORM = dict(metric='l2sq', dtype='f16')
SETTINGS = dict(
    connectivity=16,
    expansion_add=96,
    expansion_search=128,
    enable_key_lookups=False,  # a lookup would read every node on opening
)


def make(size: int) -> Index:
    """Returns an empty graph for vectors of length 1.

    No two of them may be the same: of many that are, most are never reached, and hide others.
    Distances are squared differences: rounding to float16 changes lengths, which products take for
    nearness (recall 0.80 in place of 0.99 where cosines are 0.997).
    """
    return Index(ndim=size, **FORM, **SETTINGS)


def load(path: pathlib.Path) -> Index:
    """Returns a graph read into memory, to add to it."""
    return Index.restore(path, **SETTINGS)


def view(path: pathlib.Path) -> Index:
    """Returns a graph that is memory-mapped: nothing but its head is read.

    Raises RuntimeError or ValueError where it is no graph.
    """
    return Index.restore(path, view=True, **SETTINGS)


def add(index: Index, ids: np.ndarray, vectors: np.ndarray) -> None:
    """Adds float16 vectors [N, size] with these ids [N], on all cores."""
    index.add(ids.astype(np.uint64), vectors)


def nearest(index: Index, vector: np.ndarray, count: int) -> list[int]:
    """Returns the ids of so many vectors, the nearest first.

    Of few vectors all are compared: that takes no longer, and misses none (a graph of 5,000: 1 %).
    """
    return index.search(vector, count, exact=len(index) <= _FEW).keys.tolist()


def save(index: Index, path: pathlib.Path) -> None:
    """Writes a graph. Raises OSError where the disk is full."""
    try:
        index.save(path)
    except RuntimeError as error:
        raise OSError(f'{path}: {error}') from None


def unpack(data: list[bytes], size: int) -> np.ndarray:
    """Returns vectors, which the database has as bytes, as float16 [N, size]."""
    return np.frombuffer(b''.join(data), np.float16).reshape(-1, size)


def cosines(data: list[bytes], vector: np.ndarray) -> np.ndarray:
    """Returns the cosines of vectors of the database to one of length 1: float32 [N]."""
    others = unpack(data, len(vector)).astype(np.float32)
    return others @ vector / np.maximum(np.linalg.norm(others, axis=1), 1e-6)
