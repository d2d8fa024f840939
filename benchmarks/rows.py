"""Rows of random tokens, for the benchmarks of training."""

import numpy as np

from data.batches import FIELDS, Batch


def random_rows(vocabulary: int, rows: int, length: int) -> Batch:
    """Returns a batch [rows, length] of one whole document a row, every target weighted."""
    rng = np.random.default_rng(0)
    shape = (rows, length)
    batch = dict(
        tokens=rng.integers(0, vocabulary, shape),
        targets=rng.integers(0, vocabulary, shape),
        loss_weights=np.ones(shape),
        segment_ids=np.ones(shape),
        positions=np.broadcast_to(np.arange(length), shape),
    )
    return {name: batch[name].astype(dtype) for name, dtype in FIELDS.items()}
