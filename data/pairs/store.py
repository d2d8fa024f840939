"""The store of pairs: each text tokenized once, and which of them belong together, kept as `data/store.py` keeps documents.

A folder with, for each split, `<split>.tokens` (uint16 or uint32), `<split>.offsets` (int64, where each text begins, and the end),
`<split>.pairs` (int32 [examples, 2], text ids of query and positive), `<split>.negatives` (int32, text ids), `<split>.negative_offsets`
(int64, where each example's begin, and the end), and `manifest.json`. Texts that only white space
or the normal form tells apart are one text (`pairs.normal`); of made pairs also those that look
alike (`words.plain`).
"""

import array
import dataclasses
import hashlib
import logging
import pathlib
import sys

import numpy as np

from data import cache, store, words
from data.pairs import read as pairs
from data.pairs.read import Pair
from data.progress import track
from data.records import DataError
from data.store import SPLITS
from data.text import READING
from data.tokenizer import Tokenizer

_LOG = logging.getLogger('ordem')

FORMAT = 1
_WHAT = 'pair store'
_FILES = ('tokens', 'offsets', 'pairs', 'negatives', 'negative_offsets')


@dataclasses.dataclass(frozen=True)
class PairSplit:
    """Pairs of one split: `tokens` [N] of all texts, `offsets` [texts + 1]; of examples, each of one query and one text that answers it,
    the text ids `pairs` [E,2], `negatives` [M] and `negative_offsets` [E+1]."""

    tokens: np.ndarray
    offsets: np.ndarray
    pairs: np.ndarray
    negatives: np.ndarray
    negative_offsets: np.ndarray

    def text(self, index: int) -> np.ndarray:
        """The tokens of a text, uncut: begin mark, text, end mark."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def alike(self, longest: int) -> np.ndarray:
        """Of each text the first one whose beginning is the same, when both are cut to so many tokens: int32 [texts]. Whole texts all differ."""
        found, first = np.arange(len(self.offsets) - 1, dtype=np.int32), {}
        for i in np.flatnonzero(np.diff(self.offsets) >= longest):
            row = self.tokens[
                self.offsets[i] : self.offsets[i] + longest - 1
            ]  # the end mark is that of all
            found[i] = first.setdefault(hashlib.sha256(row.tobytes()).digest()[:16], i)
        return found


@dataclasses.dataclass(frozen=True)
class PairStore:
    path: pathlib.Path
    manifest: dict

    @property
    def hash(self) -> str:
        """Of the tokens and which texts belong together: the identity of the data in a run's lineage."""
        return self.manifest['hash']

    def split(self, name: str) -> PairSplit:
        kind, counts = self.manifest['dtype'], self.manifest['splits'][name]
        if kind not in (
            'uint16',
            'uint32',
        ):  # of type object, a file's bytes would be taken for addresses
            raise DataError(
                f'{self.path}: damaged {_WHAT} (tokens of type {kind!r}); remove it to build it again'
            )
        read = lambda what, dtype: np.fromfile(self.path / f'{name}.{what}', dtype)
        tokens = (
            np.memmap(self.path / f'{name}.tokens', kind, 'r')
            if counts['tokens']
            else np.zeros(0, kind)
        )
        return PairSplit(
            tokens,
            read('offsets', np.int64),
            read('pairs', np.int32).reshape(-1, 2),
            read('negatives', np.int32),
            read('negative_offsets', np.int64),
        )


def path_of(config, tokenizer: Tokenizer, reading: int = READING) -> pathlib.Path:
    """Where the store for this `data` config and tokenizer is kept: in the cache, by hash.
    `reading`: 1 for where it was before the rules of reading and parting had numbers."""
    found = pairs.fingerprint(config, reading)
    numbered = store.rules(config) if reading > 1 and pairs.made(config) else []
    key = cache.stable_hash(
        [FORMAT, found, config.validation, config.split, tokenizer.hash, *numbered]
    )
    return pathlib.Path(config.cache) / f'pairs-{key[:16]}'


def find(config, tokenizer: Tokenizer, wanted: str = '') -> PairStore | None:
    """The store in the cache, or None: nothing is built. `wanted`: its hash, where a run says it;
    one that was made under earlier rules is found by that.

    Raises DataError where it is damaged, or where the text is not there.
    """
    path = path_of(config, tokenizer)
    if manifest := cache.find_earlier(path_of(config, tokenizer, 1), wanted):
        return PairStore(path_of(config, tokenizer, 1), manifest)
    manifest = cache.find(path, _WHAT)
    return manifest and PairStore(path, manifest)


def open_or_build(
    config, tokenizer: Tokenizer, progress: bool = True, wanted: str = ''
) -> PairStore:
    """The store for this `data` config and tokenizer: the one in `config.cache`, or a new one built there. One whose files are not
    what its manifest states is said to be damaged, and built again. `wanted`: as `find` takes it.

    Raises DataError on a broken record under `on_broken='fatal'`, on a source without a single pair, and where `config.pairs.negatives` asks
    for negatives and no training pair has one.
    """
    store.check(config)
    pairs.check(config)
    path, before = path_of(config, tokenizer), path_of(config, tokenizer, 1)
    manifest = cache.find_earlier(before, wanted)
    path = before if manifest else path
    manifest = manifest or cache.get_or_build(
        path, lambda folder: _build(config, tokenizer, folder, progress), _WHAT, config.on_broken
    )
    if config.pairs.negatives and not manifest['splits']['train']['negatives']:
        raise DataError(
            f'config.data.pairs.negatives is {config.pairs.negatives}: no training pair of the source {config.source!r} has a negative'
        )
    return PairStore(path, manifest)


class _Writer:
    """One split while it is written. What is kept in memory: 16 bytes of hash and an id for each text, ids for each example."""

    def __init__(self, path: pathlib.Path, split: str, dtype, alike: bool):
        """`alike`: texts that look alike are one."""
        self.path, self.split, self.dtype, self.alike = path, split, dtype, alike
        self.file = open(path / f'{split}.tokens', 'wb')
        self.ids: dict[bytes, int] = {}
        self.offsets = array.array('q', [0])
        self.examples, self.negatives = (
            array.array('i'),
            array.array('i'),
        )  # [query, positive] and [example, negative], one after the other
        self.num_bytes = 0

    def _key(self, text: str) -> bytes:
        text = pairs.normal(words.plain(text) if self.alike else text)
        return hashlib.sha256(text.encode()).digest()[:16]

    def new(self, texts) -> list[str]:
        """Those of the texts that are not there yet, each once; they have ids from here on."""
        found = []
        for text in texts:
            key = self._key(text)
            if key not in self.ids:
                self.ids[key] = len(self.ids)
                found.append(text)
        return found

    def write(self, texts: list[str], encoded: list[list[int]]) -> None:
        """Texts as `new` has given them, in that order."""
        for text, ids in zip(texts, encoded):
            self.file.write(np.asarray(ids, self.dtype).tobytes())
            self.offsets.append(self.offsets[-1] + len(ids))
            self.num_bytes += len(text.encode())

    def add(self, pair: Pair) -> None:
        query, negatives = (
            self.ids[self._key(pair.query)],
            [self.ids[self._key(text)] for text in pair.negatives],
        )
        for text in pair.positives:
            for negative in negatives:
                self.negatives.extend((len(self.examples) // 2, negative))
            self.examples.extend((query, self.ids[self._key(text)]))

    def finish(self) -> dict:
        """Writes what is left: each (query, positive) once, where it came first, with the negatives of all. Returns counts."""
        self.file.close()
        examples, negatives = (
            np.asarray(x, np.int32).reshape(-1, 2) for x in (self.examples, self.negatives)
        )
        _, first, same = np.unique(examples, axis=0, return_index=True, return_inverse=True)
        place = np.empty(len(first), np.int64)
        place[np.argsort(first)] = np.arange(
            len(first)
        )  # of each different example, in order of its first coming
        owner = place[same.reshape(-1)][negatives[:, 0]]
        _, firsts = np.unique(np.stack([owner, negatives[:, 1]], 1), axis=0, return_index=True)
        firsts = firsts[np.lexsort((firsts, owner[firsts]))]  # by example, in order of coming
        offsets = np.searchsorted(owner[firsts], np.arange(len(first) + 1))
        for what, values, dtype in (
            ('offsets', self.offsets, np.int64),
            ('pairs', examples[np.sort(first)], np.int32),
            ('negatives', negatives[firsts, 1], np.int32),
            ('negative_offsets', offsets, np.int64),
        ):
            np.asarray(values, dtype).tofile(self.path / f'{self.split}.{what}')
        return dict(
            texts=len(self.ids),
            examples=len(first),
            negatives=len(firsts),
            tokens=self.offsets[-1],
            bytes=self.num_bytes,
        )


def _build(config, tokenizer: Tokenizer, path: pathlib.Path, progress: bool) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    report, parting = cache.Report(config.on_broken), store.Parting(config)
    made = bool(pairs.made(config))
    writers = {split: _Writer(path, split, dtype, made) for split in SPLITS}
    found = iter(track(pairs.read(config, parting), 'tokenizing', unit='pairs', show=progress))
    for batch in iter(lambda: list(store.take_chunk(found)), []):
        good = list(report.good(batch))
        new = {
            split: writer.new(text for pair in good if pair.split == split for text in pair.parts())
            for split, writer in writers.items()
        }
        encoded = iter(
            pairs.encode_texts(
                [text for texts in new.values() for text in texts], tokenizer, sys.maxsize
            )
        )
        for split, writer in writers.items():
            writer.write(new[split], [next(encoded) for _ in new[split]])
        for pair in good:
            writers[pair.split].add(pair)
    counts = {split: writer.finish() for split, writer in writers.items()}
    if not counts['train']['examples']:
        if pairs.made(config) and not (report.kept or report.num_broken):
            raise DataError(
                f'config.data.pairs.kind is {config.pairs.kind!r}: no text of the source {config.source!r} makes such a pair'
            )
        raise report.nothing(config, 'pair')
    passed_over = pairs.passed_over(config)
    cache.write_manifest(
        path,
        [f'{split}.{what}' for split in SPLITS for what in _FILES],
        dict(
            format=FORMAT,
            dtype=np.dtype(dtype).name,
            splits=counts,
            **report.facts(),
            equal=dict(records=parting.equal, moved=parting.moved),
            passed_over=passed_over,
            tokenizer=tokenizer.hash,
            source=pairs.fingerprint(config),
        ),
    )
    store.tell(passed_over, parting)
    _LOG.info(
        'tokenized %d pairs (%d broken, skipped): %d training and %d held-out examples',
        report.kept + report.num_broken,
        report.num_broken,
        counts['train']['examples'],
        counts['validation']['examples'],
    )
