"""What an objective (`config.train.objective`) is trained on: the store that keeps its data, and the batches that are made of it."""

import numpy as np

from data import batches, sources
from data.pairs import batches as pair_batches, read as read_pairs
from data.pairs.store import PairStore
from data.store import TokenStore

OBJECTIVES = ('tokens', 'contrastive')


def of(objective: str):
    """(class of the store, class of the batches): each has the same face for both."""
    return (
        (PairStore, pair_batches.PairBatches)
        if objective == 'contrastive'
        else (TokenStore, batches.Batches)
    )


def row_tokens(objective: str, config) -> int:
    """Tokens of a row of the batch, padding included; `config`: the `data` part of an experiment."""
    return (
        pair_batches.query_len(config) + (1 + config.pairs.negatives) * config.seq_len
        if objective == 'contrastive'
        else config.seq_len
    )


def row_bytes(objective: str, config) -> int:
    """Returns the bytes of a row of the batch, at least; `config`: the `data` part of an
    experiment."""
    if objective == 'contrastive':  # tokens, and of each text its length and its number
        return np.dtype(np.int32).itemsize * (
            row_tokens(objective, config) + 2 * (2 + config.pairs.negatives)
        )
    return config.seq_len * sum(np.dtype(kind).itemsize for kind in batches.FIELDS.values())


def blank(objective: str, config) -> batches.Batch:
    """The batch without content: its fields, shapes and types."""
    rows, columns = config.batch_size, config.seq_len
    return (
        pair_batches.blank(config, rows)
        if objective == 'contrastive'
        else {n: np.zeros((rows, columns), t) for n, t in batches.FIELDS.items()}
    )


def records(objective: str):
    """(what checks the fields of `config.data`, the module that reads its records)."""
    return (
        (read_pairs.check, read_pairs) if objective == 'contrastive' else (batches.check, sources)
    )
