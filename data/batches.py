"""`batch(step)`: a pure function of the config, the step and the store.

    tokens, targets [B,T] int32; loss_weights [B,T] float32; segment_ids, positions [B,T] int32

Segments count from 1 in each row, 0 is padding; positions restart with each segment. There is no iterator state: packing
is arithmetic on a permutation of the documents, drawn anew for each epoch from (seed, epoch). In an epoch every token is an
input exactly once.
"""

import functools
from collections.abc import Iterator

import numpy as np

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


def check(config) -> None:
    """Raises DataError where `config.packing` names no packing."""
    if config.packing not in ('stream', 'whole'):
        raise DataError(f"config.data.packing is {config.packing!r}: expected 'stream' or 'whole'")


class EpochRng:
    """What is random in an epoch, of (seed, epoch) and what it is for; nothing where `shuffle` is False."""

    def __init__(self, seed: int, shuffle: bool):
        self.seed, self.shuffle = seed, shuffle

    def permutation(self, epoch: int, what: str, count: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(count)
        return self.generator(epoch, what).permutation(count)

    def generator(self, epoch: int, what: str) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence([self.seed, epoch, *what.encode()]))
        )


class _Packing(EpochRng):
    """Rows of an epoch. Subclasses say how many there are and which tokens a row holds."""

    def __init__(self, split: Split, seq_len: int, seed: int, shuffle: bool):
        super().__init__(seed, shuffle)
        self.split, self.seq_len = split, seq_len
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)


class Stream(_Packing):
    """Documents one after the other, cut at row ends. The cuts fall elsewhere in each epoch (a random phase)."""

    def __init__(self, split, seq_len, seed, shuffle):
        super().__init__(split, seq_len, seed, shuffle)
        self.num_rows = (
            -(-(len(split.tokens) + seq_len - 1) // seq_len)
            if shuffle
            else -(-len(split.tokens) // seq_len)
        )

    def _epoch(self, epoch):
        documents = self.permutation(epoch, 'documents', len(self.split.lengths))
        ends = np.cumsum(self.split.lengths[documents])
        phase = int(self.generator(epoch, 'phase').integers(self.seq_len)) if self.shuffle else 0
        return documents, ends, phase, self.permutation(epoch, 'rows', self.num_rows)

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        documents, ends, phase, order = self.epoch(epoch)
        first = order[rows][:, None] * self.seq_len - phase
        place = first + np.arange(self.seq_len + 1)  # [rows, T+1] places in the stream
        inside = (place >= 0) & (place < ends[-1])
        place = np.where(inside, place, 0)
        which = np.searchsorted(ends, place, 'right')  # index in the epoch's order of documents
        document = documents[which]
        begin = ends[which] - self.split.lengths[document]  # where it begins in the stream
        source = self.split.offsets[document] + place - begin
        tokens = np.where(inside, self.split.tokens[source], 0)
        answered = (
            inside if self.split.answered is None else inside & (self.split.answered[source] > 0)
        )
        start = np.maximum(
            begin, np.maximum(first, 0)
        )  # of the segment: the document's or the row's
        follows = inside[:, :-1] & inside[:, 1:] & (which[:, :-1] == which[:, 1:])
        lowest = np.where(inside, which, np.iinfo(which.dtype).max).min(1, keepdims=True)
        out['tokens'][:] = tokens[:, :-1]
        out['targets'][:] = np.where(follows, tokens[:, 1:], 0)
        out['loss_weights'][:] = follows & answered[:, 1:]
        out['segment_ids'][:] = np.where(inside, which - lowest + 1, 0)[:, :-1]
        out['positions'][:] = np.where(inside, place - start, 0)[:, :-1]


class Whole(_Packing):
    """Documents kept whole: rows are planned once by best fit over the lengths; an epoch deals documents of equal length anew."""

    def __init__(self, split, seq_len, seed, shuffle):
        super().__init__(split, seq_len, seed, shuffle)
        lengths = split.lengths
        self.too_long = np.flatnonzero(lengths > seq_len)
        fitting = np.flatnonzero(lengths <= seq_len)
        self.by_length = fitting[
            np.argsort(-lengths[fitting], kind='stable')
        ]  # longest first: the slots, in order
        room: dict[int, list[int]] = {}  # free places -> rows that have them
        self.rows: list[list[int]] = []  # row -> slots
        for slot, length in enumerate(lengths[self.by_length].tolist()):
            free = min((f for f in room if f >= length and room[f]), default=None)
            if free is None:
                row, free = len(self.rows), seq_len
                self.rows.append([])
            else:
                row = room[free].pop()
            self.rows[row].append(slot)
            room.setdefault(free - length, []).append(row)
        self.num_rows = len(self.rows)

    def _epoch(self, epoch):
        lengths = self.split.lengths[self.by_length]
        shuffled = self.permutation(epoch, 'documents', len(lengths))
        shuffled = shuffled[
            np.argsort(-lengths[shuffled], kind='stable')
        ]  # dealt anew among equal lengths
        return self.by_length[shuffled], self.permutation(epoch, 'rows', self.num_rows)

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        documents, order = self.epoch(epoch)
        for i, row in enumerate(order[rows]):
            at = 0
            for segment, slot in enumerate(self.rows[row], 1):
                document = documents[slot]
                place = slice(self.split.offsets[document], self.split.offsets[document + 1])
                tokens = np.asarray(self.split.tokens[place], np.int32)
                span, targets = slice(at, at + len(tokens)), slice(at, at + len(tokens) - 1)
                out['tokens'][i, span] = tokens
                out['targets'][i, targets] = tokens[1:]
                out['loss_weights'][i, targets] = (
                    1 if self.split.answered is None else self.split.answered[place][1:] > 0
                )
                out['segment_ids'][i, span] = segment
                out['positions'][i, span] = np.arange(len(tokens))
                at += len(tokens)


class Rows:
    """`batch(step)` of what has `rows_per_epoch` rows an epoch and `batch_size` a batch, which a subclass sets, with how rows are filled."""

    batch_size: int
    rows_per_epoch: int

    def empty(self, count: int) -> Batch:
        """So many rows of padding."""
        raise NotImplementedError

    def fill(self, epoch: int, rows: np.ndarray, out: Batch) -> None:
        """Writes rows of an epoch (their numbers, from 0) over `empty(len(rows))`."""
        raise NotImplementedError

    def __call__(self, step: int, rows: slice = slice(None)) -> Batch:
        """The batch of `step` (from 0), or only its `rows`: a host asks for the rows it holds and reads no others."""
        places = np.arange(self.batch_size)[rows] + step * self.batch_size
        batch, epochs = self.empty(len(places)), places // self.rows_per_epoch
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            part = self.empty(int(mine.sum()))
            self.fill(int(epoch), places[mine] % self.rows_per_epoch, part)
            for name in batch:
                batch[name][mine] = part[name]
        return batch

    def once(self, limit: int = 0, rows: slice = slice(None)) -> Iterator[Batch]:
        """The first epoch (at most `limit` batches of it, only `rows` of each), its last batch filled up with padding: for evaluation."""
        count = -(-self.rows_per_epoch // self.batch_size)
        for step in range(min(count, limit) if limit else count):
            batch = self(step, rows)
            padding = (
                np.arange(self.batch_size)[rows] + step * self.batch_size >= self.rows_per_epoch
            )
            for name, blank in self.empty(int(padding.sum())).items():
                batch[name][padding] = blank
            yield batch


class Batches(Rows):
    """The batches of one split.

    Args:
      split: documents of a store.
      config: the `data` part of an experiment: seq_len, batch_size, packing, on_broken.
      seed: of the shuffling.
      shuffle: False for evaluation: documents in the order of the store.
    Raises:
      DataError: unknown packing, no token at all, or documents longer than a row under packing='whole' with on_broken='fatal'.
    """

    def __init__(self, split: Split, config, seed: int, shuffle: bool = True):
        check(config)
        if not len(split.tokens):
            raise DataError('no tokens in this split')
        self.packing = {'stream': Stream, 'whole': Whole}[config.packing](
            split, config.seq_len, seed, shuffle
        )
        self.batch_size, self.seq_len, self.rows_per_epoch = (
            config.batch_size,
            config.seq_len,
            self.packing.num_rows,
        )
        self.fill = self.packing.fill
        self.dropped = len(getattr(self.packing, 'too_long', ()))
        if self.dropped and (config.on_broken == 'fatal' or self.dropped == len(split.lengths)):
            raise DataError(
                f'{self.dropped} documents are longer than a row (config.data.seq_len is {config.seq_len}), '
                f'the longest has {int(split.lengths.max())} tokens'
            )

    def empty(self, count: int) -> Batch:
        return {name: np.zeros((count, self.seq_len), dtype) for name, dtype in FIELDS.items()}


def prefetched(batch_of, start: int, stop: int, ahead: int) -> Iterator[Batch]:
    """`batch_of(step)` for start <= step < stop, in order, `ahead` of them prepared in the background (grain's threads)."""
    if not ahead:
        return map(batch_of, range(start, stop))
    import grain

    return iter(
        grain.MapDataset.range(start, stop)
        .map(batch_of)
        .to_iter_dataset(grain.ReadOptions(num_threads=min(ahead, 4), prefetch_buffer_size=ahead))
    )
