"""`batch(step)` of pairs: a pure function of the config, the step and the store, as in data/batches.py.

    queries   [B,Q]   int32   token ids, 0 after the end mark; Q = config.pairs.query_len, or seq_len
    documents [B,G,T] int32   the text that answers the query, then G-1 = config.pairs.negatives that do not, zeros where there is none
    lengths   [B,1+G] int32   tokens of the query and of each document; 0: none
    text_ids  [B,1+G] int32   their numbers in the split; -1: none
    known     [B,K]   int32   numbers of all documents of the split that belong to the query, in order, then -1; K: the most that any query has

A text that is longer than its row is cut and keeps its end mark. Queries that are the same when they are cut have the number of the first of
them, and all that belongs to one of them, their own texts too; so have documents. In an epoch every example is a row exactly once.
"""

import functools

import numpy as np

from data.batches import Batch, EpochRng, Rows
from data.pairs.store import PairSplit
from data.records import DataError


def query_len(config) -> int:
    """Tokens of a query at most."""
    return config.pairs.query_len or config.seq_len


def blank(config, count: int, known: int = 1) -> Batch:
    """So many rows without a pair; `known`: the most documents that any query has."""
    group = 1 + config.pairs.negatives
    full = lambda value, *shape: np.full((count, *shape), value, np.int32)
    return dict(
        queries=full(0, query_len(config)),
        documents=full(0, group, config.seq_len),
        lengths=full(0, 1 + group),
        text_ids=full(-1, 1 + group),
        known=full(-1, known),
    )


class PairBatches(Rows):
    """The batches of one split.

    Args:
      split: pairs of a store.
      config: the `data` part of an experiment: seq_len, batch_size, pairs.
      seed: of the shuffling, and of which negatives an epoch takes where an example has more than it takes.
      shuffle: False: examples in the order of the store, each with its first negatives.
    Raises:
      DataError: no pair at all.
    """

    dropped = 0

    def __init__(self, split: PairSplit, config, seed: int, shuffle: bool = True):
        if not len(split.pairs):
            raise DataError('no pairs in this split')
        self.batch_size, self.rows_per_epoch, self.seq_len = (
            config.batch_size,
            len(split.pairs),
            config.seq_len,
        )
        self.query_len, self.negatives, self._config = (
            query_len(config),
            config.pairs.negatives,
            config,
        )
        self.split, self.chance = split, EpochRng(seed, shuffle)
        self._as_query, self._as_document = split.alike(self.query_len), split.alike(self.seq_len)
        self._known = self._belonging()
        self.most_known = int(np.diff(self._known[1]).max())
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: self.chance.permutation(epoch, 'pairs', self.rows_per_epoch)
        )

    def empty(self, count: int) -> Batch:
        return blank(self._config, count, self.most_known)

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        examples = self._order(epoch)[rows]
        ids = out['text_ids']
        ids[:, :2] = self.split.pairs[examples]
        for row, example in enumerate(examples if self.negatives else ()):
            found = self._negatives(epoch, int(example))
            ids[row, 2 : 2 + len(found)] = found
        out['queries'][:], out['lengths'][:, 0] = self._texts(ids[:, 0], self.query_len)
        out['documents'][:], out['lengths'][:, 1:] = self._texts(ids[:, 1:], self.seq_len)
        ids[:, 0], ids[:, 1:] = (
            self._as_query[ids[:, 0]],
            np.where(ids[:, 1:] < 0, -1, self._as_document[ids[:, 1:]]),
        )
        answers, offsets = self._known
        place = offsets[ids[:, :1]] + np.arange(self.most_known)
        there = place < offsets[ids[:, :1] + 1]
        out['known'][:] = np.where(there, answers[np.where(there, place, 0)], -1)

    def _belonging(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, offsets): ids[offsets[q]:offsets[q + 1]] are the documents that belong to query q, in order; none where q is no query. The text of a
        query that is cut like others belongs to them all; any other query's own text has the number of the query itself."""
        queries, documents = self.split.pairs.T
        cut = np.unique(queries)
        shared = np.bincount(self._as_query)[self._as_query[cut]] > 1
        cut = cut[shared | (self._as_document[cut] != cut)]
        pairs = np.unique(
            np.stack(
                [
                    self._as_query[np.concatenate([queries, cut])],
                    self._as_document[np.concatenate([documents, cut])],
                ],
                1,
            ),
            axis=0,
        )
        return pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(len(self.split.offsets)))

    def _negatives(self, epoch: int, example: int) -> np.ndarray:
        found = self.split.negatives[slice(*self.split.negative_offsets[example : example + 2])]
        if len(found) > self.negatives:
            found = found[
                self.chance.permutation(epoch, f'negatives {example}', len(found))[: self.negatives]
            ]
        return found

    def _texts(self, ids: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """Text ids [...], -1 for none -> tokens [..., longest] and lengths [...]."""
        begin, end = self.split.offsets[ids], self.split.offsets[ids + 1]
        lengths = np.where(ids < 0, 0, np.minimum(end - begin, longest))
        column = np.arange(longest)
        inside = column < lengths[..., None]
        source = np.where(
            column == lengths[..., None] - 1, end[..., None] - 1, begin[..., None] + column
        )  # the end mark, also of what is cut
        return np.where(inside, self.split.tokens[np.where(inside, source, 0)], 0), lengths
