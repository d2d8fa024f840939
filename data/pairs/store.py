"""The store of pairs: each text tokenized once, and which of them belong together.

A folder as `data/store.py` makes one. For each split it has

    <split>.tokens            uint16 or uint32, of all texts
    <split>.offsets           int64, where each text begins, and the end
    <split>.pairs             int32 [examples, 2], text ids of query and positive
    <split>.negatives         int32, text ids
    <split>.negative_offsets  int64, where the negatives of each example begin, and the end

and `manifest.json`. Texts that only white space or the normal form tells apart are one text
(`data/pairs/read.py: normal`); of pairs that are made of texts also those that look alike
(`words.plain`).
"""

import array
import dataclasses
import hashlib
import logging
import pathlib
import sys
from collections.abc import Iterable

import numpy as np

from data import cache, store, words
from data.cached_store import CachedStore, smallest_token_dtype
from data.pairs import read as read_pairs
from data.pairs.read import Pair
from data.progress import track
from data.records import DataError
from data.splits import SPLITS, Splitter, split_rules
from data.tokenizer import Tokenizer

_LOG = logging.getLogger('ordem')

FORMAT = 1
_ARRAYS = ('tokens', 'offsets', 'pairs', 'negatives', 'negative_offsets')


@dataclasses.dataclass(frozen=True)
class PairSplit:
    """The pairs of one split; an example is one query and one text that answers it.

    Attributes:
      tokens: [N] uint16 or uint32, of all texts.
      offsets: [texts + 1] int64, where each text begins, and the end.
      pairs: [examples, 2] int32, text ids of query and positive.
      negatives: [M] int32, text ids.
      negative_offsets: [examples + 1] int64, where those of each example begin, and the end.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    pairs: np.ndarray
    negatives: np.ndarray
    negative_offsets: np.ndarray

    def text(self, index: int) -> np.ndarray:
        """Returns the tokens of a text, uncut: begin mark, text, end mark."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def first_alike(self, longest: int) -> np.ndarray:
        """Returns, for each text, the first text with the same leading tokens: int32 [texts].

        Texts are compared as they are cut to `longest` tokens; whole texts all differ.
        """
        firsts = np.arange(len(self.offsets) - 1, dtype=np.int32)
        seen: dict[bytes, int] = {}
        for text_id in np.flatnonzero(np.diff(self.offsets) >= longest):
            begin = self.offsets[text_id]
            tokens = self.tokens[begin : begin + longest - 1]  # the last one is the end mark
            key = hashlib.sha256(tokens.tobytes()).digest()[:16]
            firsts[text_id] = seen.setdefault(key, text_id)
        return firsts


class PairStore(CachedStore):
    """The store of the pairs of a source."""

    NOUN = 'pair store'
    PREFIX = 'pairs'

    @classmethod
    def key(cls, config, tokenizer: Tokenizer, reading: int) -> list:
        # Given pairs go to a split by their query, so the rules for records do not bear on them.
        by_record = reading > 1 and read_pairs.kinds_to_make(config)
        return [
            FORMAT,
            read_pairs.fingerprint(config, reading),
            config.validation,
            config.split,
            tokenizer.hash,
            *(split_rules(config) if by_record else []),
        ]

    @classmethod
    def check(cls, config) -> None:
        store.check(config)
        read_pairs.check(config)

    @classmethod
    def build(cls, config, tokenizer: Tokenizer, folder: pathlib.Path, progress: bool) -> None:
        _build(config, tokenizer, folder, progress)

    def check_content(self, config, tokenizer: Tokenizer) -> None:
        """Raises DataError where a run asks for negatives and no training pair has one."""
        asked = config.pairs.negatives
        if asked and not self.manifest['splits']['train']['negatives']:
            raise DataError(
                f'config.data.pairs.negatives is {asked}: no training pair of the source '
                f'{config.source!r} has a negative'
            )

    def split(self, name: str) -> PairSplit:
        """Returns the pairs of 'train' or 'validation', the tokens memory-mapped."""
        return PairSplit(
            self.map_array(f'{name}.tokens', self.token_dtype),
            self.read_array(f'{name}.offsets', np.int64),
            self.read_array(f'{name}.pairs', np.int32).reshape(-1, 2),
            self.read_array(f'{name}.negatives', np.int32),
            self.read_array(f'{name}.negative_offsets', np.int64),
        )


class _SplitWriter:
    """Writes the pairs of one split.

    In memory are 16 bytes of hash and an id for each text, and the ids of each example.

    Args:
      folder: of the store.
      split: its name.
      dtype: of tokens.
      merge_alike: texts that look alike are one text.
    """

    def __init__(self, folder: pathlib.Path, split: str, dtype: np.dtype, merge_alike: bool):
        self._folder = folder
        self._split = split
        self._dtype = dtype
        self._merge_alike = merge_alike
        self._tokens = open(folder / f'{split}.tokens', 'wb')
        self._ids: dict[bytes, int] = {}  # key of a text -> its id
        self._offsets = array.array('q', [0])
        self._examples = array.array('i')  # query, positive, query, positive, ...
        self._negatives = array.array('i')  # example, negative, example, negative, ...
        self._num_bytes = 0

    def _key(self, text: str) -> bytes:
        if self._merge_alike:
            text = words.plain(text)
        return hashlib.sha256(read_pairs.normal(text).encode()).digest()[:16]

    def register(self, texts: Iterable[str]) -> list[str]:
        """Gives ids to the texts that have none yet, and returns those, each once."""
        new = []
        for text in texts:
            key = self._key(text)
            if key not in self._ids:
                self._ids[key] = len(self._ids)
                new.append(text)
        return new

    def write(self, texts: list[str], encoded: list[list[int]]) -> None:
        """Appends the texts that `register` returned, in that order."""
        for text, ids in zip(texts, encoded):
            self._tokens.write(np.asarray(ids, self._dtype).tobytes())
            self._offsets.append(self._offsets[-1] + len(ids))
            self._num_bytes += len(text.encode())

    def add(self, pair: Pair) -> None:
        """Notes the examples of a pair, whose texts are registered: one for each positive."""
        query = self._ids[self._key(pair.query)]
        negatives = [self._ids[self._key(text)] for text in pair.negatives]
        for text in pair.positives:
            for negative in negatives:
                self._negatives.extend((len(self._examples) // 2, negative))
            self._examples.extend((query, self._ids[self._key(text)]))

    def finish(self) -> dict:
        """Writes what is left, closes the file, and returns counts for the manifest.

        Each (query, positive) is kept once, where it came first, with the negatives of all.
        """
        self._tokens.close()
        examples = np.asarray(self._examples, np.int32).reshape(-1, 2)
        negatives = np.asarray(self._negatives, np.int32).reshape(-1, 2)

        # Equal examples become one; `ranks` numbers the different ones by their first coming.
        _, first, inverse = np.unique(examples, axis=0, return_index=True, return_inverse=True)
        ranks = np.empty(len(first), np.int64)
        ranks[np.argsort(first)] = np.arange(len(first))

        # Each negative moves to the example that stands for its own; equal ones become one.
        owners = ranks[inverse.reshape(-1)][negatives[:, 0]]
        owned = np.stack([owners, negatives[:, 1]], 1)
        _, chosen = np.unique(owned, axis=0, return_index=True)
        chosen = chosen[np.lexsort((chosen, owners[chosen]))]  # by example, in order of coming
        negative_offsets = np.searchsorted(owners[chosen], np.arange(len(first) + 1))

        arrays = {
            'offsets': np.asarray(self._offsets, np.int64),
            'pairs': np.asarray(examples[np.sort(first)], np.int32),
            'negatives': np.asarray(negatives[chosen, 1], np.int32),
            'negative_offsets': np.asarray(negative_offsets, np.int64),
        }
        for name, values in arrays.items():
            values.tofile(self._folder / f'{self._split}.{name}')
        return dict(
            texts=len(self._ids),
            examples=len(first),
            negatives=len(chosen),
            tokens=self._offsets[-1],
            bytes=self._num_bytes,
        )


def _build(config, tokenizer: Tokenizer, folder: pathlib.Path, progress: bool) -> None:
    dtype = smallest_token_dtype(tokenizer)
    report = cache.Report(config.on_broken)
    splitter = Splitter(config)
    made_of_texts = bool(read_pairs.kinds_to_make(config))
    writers = {split: _SplitWriter(folder, split, dtype, made_of_texts) for split in SPLITS}
    pairs = iter(
        track(read_pairs.read(config, splitter), 'tokenizing', unit='pairs', show=progress)
    )

    # A chunk at a time: the tokenizer is fast on many texts, and memory stays bounded.
    while chunk := store.take_chunk(pairs):
        good = list(report.good(chunk))

        # Texts come first, each one once, so that examples can name them by their ids.
        for split, writer in writers.items():
            texts = [text for pair in good if pair.split == split for text in pair.parts()]
            new = writer.register(texts)
            writer.write(new, read_pairs.encode_texts(new, tokenizer, sys.maxsize))
        for pair in good:
            writers[pair.split].add(pair)

    counts = {split: writer.finish() for split, writer in writers.items()}
    if not counts['train']['examples']:
        raise _no_pairs_error(config, report)

    # The manifest comes last: a folder without one is not whole.
    passed_over = read_pairs.passed_over(config)
    cache.write_manifest(
        folder,
        [f'{split}.{name}' for split in SPLITS for name in _ARRAYS],
        dict(
            format=FORMAT,
            dtype=dtype.name,
            splits=counts,
            **store.source_facts(report, splitter, passed_over),
            tokenizer=tokenizer.hash,
            source=read_pairs.fingerprint(config),
        ),
    )
    store.log_left_out(passed_over, splitter)
    _LOG.info(
        'tokenized %d pairs (%d broken, skipped): %d training and %d held-out examples',
        report.kept + report.num_broken,
        report.num_broken,
        counts['train']['examples'],
        counts['validation']['examples'],
    )


def _no_pairs_error(config, report: cache.Report) -> DataError:
    if read_pairs.kinds_to_make(config) and not (report.kept or report.num_broken):
        return DataError(
            f'config.data.pairs.kind is {config.pairs.kind!r}: no text of the source '
            f'{config.source!r} makes such a pair'
        )
    return report.no_records_error(config, 'pair')
