"""Which record goes to which split: training, or what is held out.

By hash, so that the same text goes the same way, wherever it stands and whatever is added.
"""

import dataclasses
import hashlib
import itertools
import types
from collections.abc import Iterator

from data import text as texts
from data.records import Record

SPLITS = ('train', 'validation')
RULES = 2  # by which records go to a split; 1: equal ones went by their place


def in_split(ordinal: int | str, config) -> str:
    """Returns the split of the `ordinal`-th record, or of all records that share a key.

    By hash, so that adding records moves none.
    """
    digest = hashlib.sha256(f'split {ordinal}'.encode()).digest()
    share = int.from_bytes(digest[:8], 'big') / 2**64
    return 'validation' if share < config.validation else 'train'


def split_record(
    record: Record, ordinal: int, config, cut: int | None = None
) -> Iterator[tuple[str, Record]]:
    """Yields (split, record) pairs: the record whole, or under `split='tail'` its two ends.

    `cut`: the character with which the held-out end begins, where it is known.
    """
    if config.split != 'tail' or record.text is None:
        yield in_split(ordinal, config), record
        return
    if cut is None:
        cut = _tail_begins(record.text, config)
    for split, text in (('train', record.text[:cut]), ('validation', record.text[cut:])):
        if text:
            yield split, dataclasses.replace(record, text=text)


def _tail_begins(text: str, config) -> int:
    return int(len(text) * (1 - config.validation))


class Splitter:
    """Says which split each record of a source belongs to; they come one after the other.

    Equal records (`data/text.py: identity`) go where the first of them went, cut after the same
    words, so that nothing held out is trained on.

    Attributes:
      num_equal: records that were like an earlier one.
      num_moved: of these, how many their place would have sent to the other split.
    """

    def __init__(self, config):
        self.num_equal = 0
        self.num_moved = 0
        # Read for each record, which takes a ConfigDict its time.
        self._config = types.SimpleNamespace(validation=config.validation, split=config.split)
        self._ordinals = itertools.count()
        self._first: dict[bytes, int] = {}  # identity -> ordinal of the first such record
        self._heads: dict[int, int] = {}  # that ordinal -> words of it that are trained on

    def pieces(self, record: Record) -> Iterator[tuple[str, Record]]:
        """Returns the (split, record) pairs of the next record, as `split_record` does."""
        ordinal = next(self._ordinals)
        if not 0 < self._config.validation < 1:
            return split_record(record, ordinal, self._config)
        first = self._first.setdefault(texts.identity(record.parts()), ordinal)

        # An equal text may differ in white space: its cut is put after the same words.
        cut = None
        if self._config.split == 'tail' and record.text is not None:
            head = texts.seen(record.text[: _tail_begins(record.text, self._config)])
            first_head = self._heads.setdefault(first, head)
            if first_head != head:
                cut = texts.place(record.text, first_head)

        if first == ordinal:
            return split_record(record, ordinal, self._config)
        self.num_equal += 1
        if self._config.split == 'documents':
            own_split = in_split(ordinal, self._config)
            self.num_moved += own_split != in_split(first, self._config)
        return split_record(record, first, self._config, cut)

    def describe(self) -> str:
        """Returns a line on equal records, or '' where there are none."""
        if not self.num_equal:
            return ''
        return (
            f'equal to an earlier record, and on its side of the split: {self.num_equal} '
            f'({self.num_moved} would have been on the other)'
        )


def split_rules(config) -> list:
    """Returns what a key holds of the rules of splitting; nothing for the first ones."""
    if config.split == 'documents' and 0 < config.validation < 1:
        return [RULES]
    return []
