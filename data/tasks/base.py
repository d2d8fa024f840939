"""The contract of an algorithmic task, and its batches.

A task draws an example of a given length: a prompt and the one right answer, as symbols. A row of
the batch holds `<bos> prompt <sep> answer <eos>` of one or two examples; the loss is on the answer
and its end, or on the symbols of the prompt that are asked where they stand. As everywhere in
`data/`, `batch(step)` is a pure function of the task, the seed and the step.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from data.batches import FIELDS, Batch
from data.records import DataError

BOS = 1  # 0 is padding
SEP = 2
EOS = 3
SPECIAL = ('<pad>', '<bos>', '<sep>', '<eos>')


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and its answer.

    Attributes:
      prompt: its symbols.
      answer: its symbols.
      ids: for each scheme of task-given position ids that the task knows, one id a symbol of prompt
        and answer together with the special ones, <bos> prompt <sep> answer; from 1, 0: none.
      asked: the places of the prompt whose symbols are to be predicted from those before them; the
        answer is empty then, and the loss is on these alone.
    """

    prompt: list[str]
    answer: list[str]
    ids: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    asked: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Task:
    """Base of all tasks: a frozen dataclass whose fields are the parameters of the task."""

    source: ClassVar[str]  # paper and section, or the code that the definition was read from
    length: ClassVar[str]  # what the length of an example counts
    schemes: ClassVar[tuple[str, ...]] = ()  # the task-given ids that examples carry
    shortest: ClassVar[int] = 1

    @property
    def symbols(self) -> tuple[str, ...]:
        """Returns the alphabet, in the order of token ids (from len(SPECIAL) on)."""
        raise NotImplementedError

    def size(self, length: int) -> int:
        """Returns the most symbols that prompt and answer of this length have together."""
        raise NotImplementedError

    def sample(self, rng: np.random.Generator, length: int) -> Example:
        """Returns an example of this length. Raises DataError where there is none."""
        raise NotImplementedError

    def row(self, rng: np.random.Generator, low: int, high: int) -> tuple[Example, Example]:
        """Returns the two examples of a row of training, of lengths from `low` to `high`.

        The first length is uniform, the second `low + high` less that, so that rows are nearly
        full.
        """
        length = int(rng.integers(low, high + 1))
        return self.sample(rng, length), self.sample(rng, low + high - length)

    def row_size(self, low: int, high: int) -> int:
        """Returns the most tokens that the two examples of such a row have, special ones too."""
        whole = [self.size(n) + 3 for n in range(low, high + 1)]
        return max(a + b for a, b in zip(whole, reversed(whole)))

    def tested(self, rng: np.random.Generator, length: int, low: int) -> Example:
        """Returns an example of the test of this length; `low`: the least length of training."""
        return self.sample(rng, length)

    @property
    def before(self) -> dict[str, Any]:
        """Returns parameters that are younger than kept results, as those were made with them."""
        return {}

    def check(self) -> None:
        """Raises DataError where a parameter has no valid value."""

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Returns the token id of each symbol."""
        return {symbol: number for number, symbol in enumerate((*SPECIAL, *self.symbols))}

    @classmethod
    def arguments(cls) -> dict[str, Any]:
        """Returns the parameters of the task with their defaults."""
        return {f.name: f.default for f in dataclasses.fields(cls)}

    def encoded(self, example: Example) -> tuple[np.ndarray, int]:
        """Returns the token ids of the whole example, int32, and where the answer begins."""
        known = self.vocabulary
        tokens = [
            BOS,
            *(known[s] for s in example.prompt),
            SEP,
            *(known[s] for s in example.answer),
            EOS,
        ]
        return np.asarray(tokens, np.int32), len(example.prompt) + 2


def letters(count: int, prefix: str = 'w') -> tuple[str, ...]:
    """Returns `count` symbols without a meaning."""
    return tuple(f'{prefix}{number}' for number in range(count))


class TaskBatches:
    """Batches of one task.

    Training rows hold two examples, in most tasks of lengths l and shortest + longest - l: lengths
    are uniform and rows nearly full (`Task.row`).

    Args:
      task: the task.
      lengths: (shortest, longest) of training, both included.
      batch_size: rows of a batch.
      seed: of the data, apart from that of the parameters.
      scheme: name of the task-given ids that the batch carries as `ids` [B,T] int32; empty: none.
    Raises:
      DataError: lengths out of order or below what the task can make, or a scheme that the task
        does not have.
    """

    def __init__(
        self, task: Task, lengths: tuple[int, int], batch_size: int, seed: int, scheme: str = ''
    ):
        low, high = lengths
        if not task.shortest <= low <= high:
            raise DataError(
                f'lengths are {low} to {high}: {type(task).__name__} needs at least '
                f'{task.shortest}, shorter ones first'
            )
        if scheme and scheme not in task.schemes:
            raise DataError(
                f'{type(task).__name__} gives no {scheme!r} ids (it gives: '
                f'{", ".join(task.schemes) or "none"})'
            )
        self.task = task
        self.low = low
        self.high = high
        self.batch_size = batch_size
        self.seed = seed
        self.scheme = scheme
        self.seq_len = task.row_size(low, high) - 1  # the last <eos> is only a target

    def __call__(self, step: int, rows: slice = slice(None)) -> Batch:
        """Returns the batch of `step`, or only its `rows`."""
        places = range(self.batch_size)[rows]
        batch = self._empty(len(places), self.seq_len)
        for number, row in enumerate(places):
            rng = self._generator('train', step, row)
            self._put(batch, number, self.task.row(rng, self.low, self.high))
        return batch

    def test(self, length: int, count: int, index: int = 0) -> Batch:
        """Returns `count` rows of one example each, all of `length`; the `index`-th such batch.

        It is the same for all models, and apart from those of training.
        """
        batch = self._empty(count, self.task.size(length) + 2)
        for row in range(count):
            rng = self._generator('test', length, index * count + row)
            self._put(batch, row, [self.task.tested(rng, length, self.low)])
        return batch

    def _generator(self, use: str, *key: int) -> np.random.Generator:
        seeds = np.random.SeedSequence([self.seed, *use.encode(), *key])
        return np.random.Generator(np.random.Philox(seeds))

    def _empty(self, rows: int, columns: int) -> Batch:
        fields = {**FIELDS, 'ids': np.int32} if self.scheme else FIELDS
        return {name: np.zeros((rows, columns), dtype) for name, dtype in fields.items()}

    def _put(self, batch: Batch, row: int, examples: Sequence[Example]) -> None:
        """Writes examples into a row, one after the other."""
        at = 0
        for segment, example in enumerate(examples, 1):
            tokens, answer = self.task.encoded(example)
            end = at + len(tokens) - 1
            batch['tokens'][row, at:end] = tokens[:-1]
            batch['targets'][row, at:end] = tokens[1:]
            learned = slice(at + answer - 1, end)
            if example.asked:
                learned = at + np.asarray(example.asked)
            batch['loss_weights'][row, learned] = 1
            batch['segment_ids'][row, at:end] = segment
            batch['positions'][row, at:end] = np.arange(end - at)
            if self.scheme:
                batch['ids'][row, at:end] = example.ids[self.scheme]
            at = end

    @property
    def hash(self) -> str:
        """Returns the identity of the data: the same for all encodings of a seed.

        `ids` are left out: they belong to the encoding.
        """
        digest = hashlib.sha256()
        for step in (0, 1, 1000):
            for name in FIELDS:
                digest.update(self(step, slice(0, 8))[name].tobytes())
        return digest.hexdigest()[:16]
