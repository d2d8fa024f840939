"""`batch(step)` of pairs: a pure function of the config, the step and the store.

    queries   [B,Q]   int32   token ids, 0 after the end mark
    documents [B,G,T] int32   the text that answers the query, then those that do not, or zeros
    lengths   [B,1+G] int32   tokens of the query and of each document; 0: none
    text_ids  [B,1+G] int32   their numbers in the split; -1: none
    known     [B,K]   int32   numbers of all documents that belong to the query, in order, then -1

Dimensions: B config.batch_size, Q config.pairs.query_len or else seq_len, T config.seq_len,
G 1 + config.pairs.negatives, K the most documents that belong to any query of the split.

A text that is longer than its row is cut and keeps its end mark. Queries that are the same when
they are cut have the number of the first of them, and all that belongs to one of them, their own
texts too; so have documents. In an epoch every example is a row exactly once.
"""

import functools

import numpy as np

from data.batches import Batch, EpochRng, Rows
from data.pairs.store import PairSplit
from data.records import DataError


def query_len(config) -> int:
    """Returns the most tokens that a query has."""
    return config.pairs.query_len or config.seq_len


def blank(config, count: int, known: int = 1) -> Batch:
    """Returns `count` rows without a pair; `known`: the most documents of any query."""
    group = 1 + config.pairs.negatives

    def full(value: int, *shape: int) -> np.ndarray:
        return np.full((count, *shape), value, np.int32)

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
      seed: of the shuffling, and of which negatives an epoch takes where an example has more than
        it takes.
      shuffle: False: examples in the order of the store, each with its first negatives.
    Raises:
      DataError: no pair at all.
    """

    dropped = 0

    def __init__(self, split: PairSplit, config, seed: int, shuffle: bool = True):
        if not len(split.pairs):
            raise DataError('no pairs in this split')
        self.split = split
        self.rows_per_epoch = len(split.pairs)
        self.batch_size = config.batch_size
        self.seq_len = config.seq_len
        self.query_len = query_len(config)
        self.num_negatives = config.pairs.negatives
        self.rng = EpochRng(seed, shuffle)
        self._config = config
        self._order = functools.lru_cache(maxsize=2)(self._epoch_order)

        # Texts that are one when they are cut, and then what belongs to each query.
        self._as_query = split.first_alike(self.query_len)
        self._as_document = split.first_alike(self.seq_len)
        self._known, self._known_offsets = self._find_known()
        self.most_known = int(np.diff(self._known_offsets).max())

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return self.rng.permutation(epoch, 'pairs', self.rows_per_epoch)

    def empty(self, count: int) -> Batch:
        """Returns `count` rows without a pair."""
        return blank(self._config, count, self.most_known)

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        """Writes rows of an epoch (their numbers, from 0) over `empty(len(rows))`."""
        examples = self._order(epoch)[rows]
        ids = out['text_ids']
        ids[:, :2] = self.split.pairs[examples]
        if self.num_negatives:
            for row, example in enumerate(examples):
                negatives = self._take_negatives(epoch, int(example))
                ids[row, 2 : 2 + len(negatives)] = negatives

        # Tokens are read by each text's own number, before equal ones get the number of the first.
        out['queries'][:], out['lengths'][:, 0] = self._read_texts(ids[:, 0], self.query_len)
        out['documents'][:], out['lengths'][:, 1:] = self._read_texts(ids[:, 1:], self.seq_len)
        ids[:, 0] = self._as_query[ids[:, 0]]
        ids[:, 1:] = np.where(ids[:, 1:] < 0, -1, self._as_document[ids[:, 1:]])

        queries = ids[:, :1]
        places = self._known_offsets[queries] + np.arange(self.most_known)
        inside = places < self._known_offsets[queries + 1]
        out['known'][:] = np.where(inside, self._known[np.where(inside, places, 0)], -1)

    def _find_known(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids, offsets): ids[offsets[q]:offsets[q + 1]] are the documents of query q.

        They are in order; there are none where q is no query. The text of a query that is cut like
        others belongs to them all; any other query's own text has the number of the query itself.
        """
        queries, documents = self.split.pairs.T
        own = np.unique(queries)
        shared = np.bincount(self._as_query)[self._as_query[own]] > 1
        own = own[shared | (self._as_document[own] != own)]

        as_query = self._as_query[np.concatenate([queries, own])]
        as_document = self._as_document[np.concatenate([documents, own])]
        pairs = np.unique(np.stack([as_query, as_document], 1), axis=0)
        offsets = np.searchsorted(pairs[:, 0], np.arange(len(self.split.offsets)))
        return pairs[:, 1], offsets

    def _take_negatives(self, epoch: int, example: int) -> np.ndarray:
        begin, end = self.split.negative_offsets[example : example + 2]
        negatives = self.split.negatives[begin:end]
        if len(negatives) <= self.num_negatives:
            return negatives
        order = self.rng.permutation(epoch, f'negatives {example}', len(negatives))
        return negatives[order[: self.num_negatives]]

    def _read_texts(self, ids: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens [..., longest] and lengths [...] of text ids [...]; -1 is none."""
        begin = self.split.offsets[ids]
        end = self.split.offsets[ids + 1]
        lengths = np.where(ids < 0, 0, np.minimum(end - begin, longest))

        # The last token of a row is the end mark, also of a text that is cut.
        column = np.arange(longest)
        inside = column < lengths[..., None]
        last = column == lengths[..., None] - 1
        source = np.where(last, end[..., None] - 1, begin[..., None] + column)
        return np.where(inside, self.split.tokens[np.where(inside, source, 0)], 0), lengths
