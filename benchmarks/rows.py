"""What the benchmarks of training feed: rows of random tokens."""

import numpy as np

from data.batches import FIELDS, Batch


def random_rows(vocabulary: int, rows: int, length: int) -> Batch:
    """A batch [rows, length] of one whole document a row, every target weighted."""
    rng, shape = np.random.default_rng(0), (rows, length)
    made = dict(
        tokens=rng.integers(0, vocabulary, shape),
        targets=rng.integers(0, vocabulary, shape),
        loss_weights=np.ones(shape),
        segment_ids=np.ones(shape),
        positions=np.broadcast_to(np.arange(length), shape),
    )
    return {k: made[k].astype(FIELDS[k]) for k in FIELDS}
