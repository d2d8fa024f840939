"""What an objective (`config.train.objective`) is trained on: the store that keeps its data, and the batches that are made of it."""
from data import batches, pair_batches, pair_store, pairs, sources, store

OBJECTIVES = ('tokens', 'contrastive')


def of(objective: str):
    """(module of the store, class of the batches): each has the same face for both."""
    return (pair_store, pair_batches.PairBatches) if objective == 'contrastive' else (store, batches.Batches)


def records(objective: str):
    """(what checks the fields of `config.data`, the module that reads its records)."""
    return (pairs.check, pairs) if objective == 'contrastive' else (batches.check, sources)
