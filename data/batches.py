"""`batch(step)`: a pure function of the config, the step and the store.

    tokens, targets [B,T] int32; loss_weights [B,T] float32; segment_ids, positions [B,T] int32

Segments count from 1 in each row, 0 is padding; positions restart with each segment. There is no
iterator state: packing is arithmetic on a permutation of the documents, drawn anew for each epoch
from (seed, epoch). In an epoch every token is an input exactly once. `Batches`, at the end, puts
together what comes before it: a packing, which fills rows, and `Rows`, which makes batches of them.

Dimensions: R rows that are filled, T tokens a row, B rows a batch.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data.records import DataError
from data.store import Split

Batch = dict[str, np.ndarray]
FIELDS = {
    'tokens': np.int32,
    'targets': np.int32,
    'loss_weights': np.float32,
    'segment_ids': np.int32,
    'positions': np.int32,
}


def check(config: ConfigDict) -> None:
    """Raises DataError where `config.packing` names no packing."""
    if config.packing not in ('stream', 'whole'):
        raise DataError(f"config.data.packing is {config.packing!r}: expected 'stream' or 'whole'")


class EpochRng:
    """What is random in an epoch, drawn from (seed, epoch) and what it is for.

    Nothing is where `shuffle` is False.
    """

    def __init__(self, seed: int, shuffle: bool):
        self.seed = seed
        self.shuffle = shuffle

    def permutation(self, epoch: int, what: str, count: int) -> np.ndarray:
        """Returns int64 [count], a permutation, or the order as it is."""
        if not self.shuffle:
            return np.arange(count)
        return self.generator(epoch, what).permutation(count)

    def generator(self, epoch: int, what: str) -> np.random.Generator:
        """Returns the generator of an epoch for one purpose."""
        seeds = np.random.SeedSequence([self.seed, epoch, *what.encode()])
        return np.random.Generator(np.random.Philox(seeds))


class _Packing(EpochRng):
    """Documents in rows. A subclass says how many rows there are, and which tokens a row holds."""

    num_rows: int

    def __init__(self, split: Split, seq_len: int, seed: int, shuffle: bool):
        super().__init__(seed, shuffle)
        self.split = split
        self.seq_len = seq_len
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> Any:
        """Returns what is the same for all rows of an epoch."""
        raise NotImplementedError

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        """Writes rows of an epoch (their numbers, from 0) over padding."""
        raise NotImplementedError


class Stream(_Packing):
    """Documents one after the other, cut at row ends.

    The cuts fall elsewhere in each epoch, by a random phase.
    """

    def __init__(self, split: Split, seq_len: int, seed: int, shuffle: bool):
        super().__init__(split, seq_len, seed, shuffle)
        phase = seq_len - 1 if shuffle else 0  # at most
        self.num_rows = -(-(len(split.tokens) + phase) // seq_len)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        """Returns the order of documents, where each ends, the phase, and the order of rows."""
        documents = self.permutation(epoch, 'documents', len(self.split.lengths))
        ends = np.cumsum(self.split.lengths[documents])
        phase = int(self.generator(epoch, 'phase').integers(self.seq_len)) if self.shuffle else 0
        return documents, ends, phase, self.permutation(epoch, 'rows', self.num_rows)

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        documents, ends, phase, order = self.epoch(epoch)

        # Places [R,T+1] in the stream of the epoch: a row, and the target of its last token.
        first = order[rows][:, None] * self.seq_len - phase
        place = first + np.arange(self.seq_len + 1)
        inside = (place >= 0) & (place < ends[-1])
        place = np.where(inside, place, 0)

        # Each place belongs to a document, and its token stands somewhere in the store.
        which = np.searchsorted(ends, place, 'right')  # index in the epoch's order of documents
        document = documents[which]
        begin = ends[which] - self.split.lengths[document]  # of the document, in the stream
        source = self.split.offsets[document] + place - begin
        tokens = np.where(inside, self.split.tokens[source], 0)

        # A target counts where it follows in the same document, and is of an answer if any are.
        answered = inside
        if self.split.answered is not None:
            answered = inside & (self.split.answered[source] > 0)
        follows = inside[:, :-1] & inside[:, 1:] & (which[:, :-1] == which[:, 1:])

        # A segment begins with its document, or with the row.
        start = np.maximum(begin, np.maximum(first, 0))
        lowest = np.where(inside, which, np.iinfo(which.dtype).max).min(1, keepdims=True)

        out['tokens'][:] = tokens[:, :-1]
        out['targets'][:] = np.where(follows, tokens[:, 1:], 0)
        out['loss_weights'][:] = follows & answered[:, 1:]
        out['segment_ids'][:] = np.where(inside, which - lowest + 1, 0)[:, :-1]
        out['positions'][:] = np.where(inside, place - start, 0)[:, :-1]


class Whole(_Packing):
    """Documents kept whole, rows planned once by best fit over the lengths.

    An epoch deals documents of equal length anew.
    """

    def __init__(self, split: Split, seq_len: int, seed: int, shuffle: bool):
        super().__init__(split, seq_len, seed, shuffle)
        lengths = split.lengths
        self.too_long = np.flatnonzero(lengths > seq_len)

        # Longest first: the slots, in order, which documents of their length take by turns.
        fitting = np.flatnonzero(lengths <= seq_len)
        self.by_length = fitting[np.argsort(-lengths[fitting], kind='stable')]
        row_of_slot = best_fit(lengths[self.by_length], seq_len)

        # The slots of row i are slots[begins[i] : begins[i + 1]].
        self.slots = np.argsort(row_of_slot, kind='stable')
        self.begins = np.concatenate([[0], np.cumsum(np.bincount(row_of_slot))])
        self.num_rows = len(self.begins) - 1

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the document of each slot, and the order of rows."""
        lengths = self.split.lengths[self.by_length]

        # Dealt anew among equal lengths: a stable sort keeps the shuffled order among them.
        shuffled = self.permutation(epoch, 'documents', len(lengths))
        shuffled = shuffled[np.argsort(-lengths[shuffled], kind='stable')]
        return self.by_length[shuffled], self.permutation(epoch, 'rows', self.num_rows)

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        documents, order = self.epoch(epoch)

        # Documents [D] that stand in the rows, and the row and the segment of each.
        chosen = order[rows]
        counts = self.begins[chosen + 1] - self.begins[chosen]
        row = np.repeat(np.arange(len(rows)), counts)
        segment = count_within(counts)
        document = documents[self.slots[np.repeat(self.begins[chosen], counts) + segment]]

        # Where each begins in its row: after all before it, less those of earlier rows.
        length = self.split.lengths[document]
        before = np.cumsum(length) - length
        first_of_row = np.cumsum(counts) - counts
        begin = before - np.repeat(before[first_of_row], counts)

        # Places [N] of their tokens: in the document, in the store, and in the rows.
        position = count_within(length)
        source = np.repeat(self.split.offsets[document], length) + position
        place = np.repeat(row * self.seq_len + begin, length) + position

        # The last token of a document has no target.
        follows = position < np.repeat(length, length) - 1
        predicted = place[follows]
        weights: np.ndarray | int = 1
        if self.split.answered is not None:
            weights = self.split.answered[source[follows] + 1] > 0

        # Through flat views of the rows.
        flat = {name: array.reshape(-1) for name, array in out.items()}
        flat['tokens'][place] = self.split.tokens[source]
        flat['targets'][predicted] = flat['tokens'][predicted + 1]
        flat['loss_weights'][predicted] = weights
        flat['segment_ids'][place] = np.repeat(segment + 1, length)
        flat['positions'][place] = position


def best_fit(lengths: np.ndarray, size: int) -> np.ndarray:
    """Returns the row of each length, int64 [N]: the one where the least stays free, or a new one.

    Of rows with as much room, that which got it last. Equal lengths are dealt together, so that it
    takes as long as there are different ones.

    Args:
      lengths: int [N], from the largest to the smallest, 1 to `size`.
      size: of a row.
    """
    rows_by_room: list[list[int]] = [[] for _ in range(size + 1)]  # free places -> rows
    row_of = np.zeros(len(lengths), np.int64)
    num_rows = 0
    begin = 0
    for end in (np.flatnonzero(np.diff(lengths, append=0)) + 1).tolist():
        length = int(lengths[begin])

        # The tightest rooms first. A row takes as many as fit: after each its room is the tightest.
        for room in range(length, size + 1):
            each = room // length
            needed = -(-(end - begin) // each)
            if room == size:
                rows_by_room[size] = [*range(num_rows, num_rows + needed)][::-1]
                num_rows += needed
            rows = rows_by_room[room]
            if not rows:
                continue
            taken = rows[-needed:][::-1]
            del rows[-needed:]
            dealt = np.repeat(taken, each)[: end - begin]
            row_of[begin : begin + len(dealt)] = dealt
            begin += len(dealt)

            # The last row may have got fewer.
            in_last = len(dealt) - (len(taken) - 1) * each
            rows_by_room[room - each * length] += taken[:-1]
            rows_by_room[room - in_last * length].append(taken[-1])
            if begin == end:
                break
    return row_of


def count_within(counts: np.ndarray) -> np.ndarray:
    """Returns 0, 1, ... for each of `counts` anew, int64 [sum of counts]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


class Rows:
    """`batch(step)` of rows that a subclass fills.

    It sets `rows_per_epoch`, and `batch_size` rows a batch.
    """

    batch_size: int
    rows_per_epoch: int
    dropped: int = 0  # documents that are left out

    def empty(self, count: int) -> Batch:
        """Returns so many rows of padding."""
        raise NotImplementedError

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        """Writes rows of an epoch (their numbers, from 0) over `empty(len(rows))`."""
        raise NotImplementedError

    def __call__(self, step: int, rows: slice = slice(None)) -> Batch:
        """Returns the batch of `step` (from 0), or only its `rows`.

        A host asks for the rows it holds and reads no others.
        """
        places = np.arange(self.batch_size)[rows] + step * self.batch_size
        epochs = places // self.rows_per_epoch
        batch = self.empty(len(places))

        # A batch may end one epoch and begin the next.
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            part = self.empty(int(mine.sum()))
            self.fill(int(epoch), places[mine] % self.rows_per_epoch, part)
            for name in batch:
                batch[name][mine] = part[name]
        return batch

    def once(self, limit: int = 0, rows: slice = slice(None)) -> Iterator[Batch]:
        """Yields the first epoch, its last batch filled up with padding: for evaluation.

        `limit`: batches of it at most, 0 for all; `rows`: only these of each.
        """
        count = -(-self.rows_per_epoch // self.batch_size)
        for step in range(min(count, limit) if limit else count):
            batch = self(step, rows)

            # Rows of the second epoch, which fill up the last batch, become padding.
            places = np.arange(self.batch_size)[rows] + step * self.batch_size
            beyond = places >= self.rows_per_epoch
            for name, blank in self.empty(int(beyond.sum())).items():
                batch[name][beyond] = blank
            yield batch


class Batches(Rows):
    """The batches of one split.

    Args:
      split: documents of a store.
      config: the `data` part of an experiment: seq_len, batch_size, packing, on_broken.
      seed: of the shuffling.
      shuffle: False for evaluation: documents in the order of the store.
    Raises:
      DataError: unknown packing, no token at all, or documents longer than a row under
        packing='whole' with on_broken='fatal'.
    """

    def __init__(self, split: Split, config: ConfigDict, seed: int, shuffle: bool = True):
        check(config)
        if not len(split.tokens):
            raise DataError('no tokens in this split')
        kinds: dict[str, type[_Packing]] = {'stream': Stream, 'whole': Whole}
        self.packing = kinds[config.packing](split, config.seq_len, seed, shuffle)
        self.batch_size = config.batch_size
        self.seq_len = config.seq_len
        self.rows_per_epoch = self.packing.num_rows

        # Documents are never cut where they are to be kept whole.
        self.dropped = len(getattr(self.packing, 'too_long', ()))
        if self.dropped and (config.on_broken == 'fatal' or self.dropped == len(split.lengths)):
            raise DataError(
                f'{self.dropped} documents are longer than a row (config.data.seq_len is '
                f'{config.seq_len}), the longest has {int(split.lengths.max())} tokens'
            )

    def empty(self, count: int) -> Batch:
        return {name: np.zeros((count, self.seq_len), dtype) for name, dtype in FIELDS.items()}

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        self.packing.fill(epoch, rows, out)


def prefetched(
    batch_of: Callable[[int], Batch], start: int, stop: int, ahead: int
) -> Iterator[Batch]:
    """Returns `batch_of(step)` for start <= step < stop, in order.

    `ahead` of them are prepared in the background (grain's threads).
    """
    if not ahead:
        return map(batch_of, range(start, stop))
    import grain

    threads = grain.ReadOptions(num_threads=min(ahead, 4), prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.range(start, stop).map(batch_of).to_iter_dataset(threads))
