"""The nearest of many vectors: a graph of usearch (HNSW, Malkov and Yashunin 2016, arXiv 1603.09320), float16, memory-mapped to search in it.

A vector that is gone stays in the graph as a way to others, and is passed over by who searches, until every fifth is one.
"""
import pathlib

import numpy as np
from usearch.index import Index

STALE = 0.2         # share of vectors that are gone with which a graph is built anew
SETTINGS = dict(connectivity=16, expansion_add=96, expansion_search=128, enable_key_lookups=False)     # a lookup would read every node on opening


def make(size: int) -> Index:
    """Of vectors of length 1, whose distance is 1 - their product."""
    return Index(ndim=size, metric='ip', dtype='f16', **SETTINGS)


def load(path: pathlib.Path) -> Index:
    """Into memory, to add to it."""
    return Index.restore(path, **SETTINGS)


def view(path: pathlib.Path) -> Index:
    """Memory-mapped: nothing but its head is read. Raises RuntimeError or ValueError where it is no graph."""
    return Index.restore(path, view=True, **SETTINGS)


def add(index: Index, ids: np.ndarray, found: np.ndarray) -> None:
    """Adds float16 vectors [N, size], on all cores."""
    index.add(ids.astype(np.uint64), found)


def save(index: Index, path: pathlib.Path) -> None:
    """Raises OSError where the disk is full."""
    try:
        index.save(path)
    except RuntimeError as error:
        raise OSError(f'{path}: {error}') from None


def unpacked(data: list[bytes], size: int) -> np.ndarray:
    """Vectors as a database has them -> float16 [N, size]."""
    return np.frombuffer(b''.join(data), np.float16).reshape(-1, size)
