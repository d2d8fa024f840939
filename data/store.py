"""The token store: text tokenized once, kept on disk under the hash of what determines it.

A folder with, for each split, `<split>.tokens` (uint16 or uint32), `<split>.offsets` (int64, where
each document begins, and the end), `<split>.answered` (uint8 per token, conversations only), and
`manifest.json`.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from data import cache, sources, tokenizer as tokenizers
from data.cached_store import CachedStore, smallest_token_dtype
from data.chat import SYSTEM, encode_messages, system_note
from data.progress import track
from data.records import BadRecord, DataError, Record, did_you_mean, printable
from data.splits import SPLITS, Splitter, split_rules
from data.tokenizer import Tokenizer

_LOG = logging.getLogger('ordem')

# Part of the key: raised where the same records would be written in another way.
FORMAT = 3

_CHUNK_RECORDS = 1024
_CHUNK_CHARACTERS = 1 << 20  # tokenized together; each takes about 50 bytes meanwhile
_THREADS = 16  # at most: so many chunks are tokenized at a time, and as many wait


@dataclasses.dataclass(frozen=True)
class Split:
    """The documents of one split.

    Attributes:
      tokens: [N] uint16 or uint32, of all documents.
      offsets: [documents + 1] int64, where each begins, and the end.
      answered: [N] uint8, 1 where a token is one that the assistant says; None for plain text.
      num_bytes: bytes of the text in UTF-8.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    answered: np.ndarray | None
    num_bytes: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, [documents] int64."""
        return np.diff(self.offsets)

    def document(self, index: int) -> np.ndarray:
        """Returns the tokens of a document, its begin and end mark included."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


class TokenStore(CachedStore):
    """The store of the documents or conversations of a source."""

    NOUN = 'token store'
    PREFIX = 'store'

    @classmethod
    def key(cls, config: ConfigDict, tokenizer: Tokenizer, reading: int) -> list:
        return [
            FORMAT,
            sources.fingerprint(config, reading=reading),
            config.validation,
            config.split,
            tokenizer.hash,
            # Stores of older runs are found under the key that they were given then.
            *(split_rules(config) if reading > 1 else []),
        ]

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        check(config)

    @classmethod
    def build(
        cls, config: ConfigDict, tokenizer: Tokenizer, folder: pathlib.Path, progress: bool
    ) -> None:
        _build(config, tokenizer, folder, progress)

    def check_content(self, config: ConfigDict, tokenizer: Tokenizer) -> None:
        """Warns where the tokenizer has no mark for the system messages that there are."""
        num_system_messages = self.manifest.get('system_messages')
        note = system_note(tokenizer) if num_system_messages else ''
        if note:
            _LOG.warning('%d system messages: %s', num_system_messages, note)

    def split(self, name: str) -> Split:
        """Returns the documents of 'train' or 'validation', memory-mapped."""
        # Text trains on every token; only conversations say which ones count.
        answered = None
        if self.manifest['conversations']:
            answered = self.map_array(f'{name}.answered', np.uint8)

        # Tokens may be larger than memory. Offsets are small, and every batch looks through them.
        return Split(
            self.map_array(f'{name}.tokens', self.token_dtype),
            self.read_array(f'{name}.offsets', np.int64),
            answered,
            self.manifest['splits'][name]['bytes'],
        )


def check(config: ConfigDict) -> None:
    """Raises DataError where a field that says what becomes of records has no valid value."""
    if config.split not in ('documents', 'tail'):
        raise DataError(f"config.data.split is {config.split!r}: expected 'documents' or 'tail'")
    if not 0 <= config.validation <= 1:
        raise DataError(
            f'config.data.validation is {config.validation}: expected a share of the text, '
            'from 0 to 1'
        )
    if config.on_broken not in cache.ON_BROKEN:
        raise DataError(
            f"config.data.on_broken is {config.on_broken!r}: expected 'skip' (up to half of the "
            "records), 'skip_all' or 'fatal'" + did_you_mean(config.on_broken, cache.ON_BROKEN)
        )
    prefer = config.files.prefer if 'files' in config else 'text'
    if prefer not in ('text', 'conversation'):
        raise DataError(
            f"config.data.files.prefer is {prefer!r}: expected 'text' or 'conversation'"
        )


def training_texts(config: ConfigDict) -> Iterator[str]:
    """Yields the texts of the training split, for the tokenizer.

    Held-out text has no say in the vocabulary. Raises DataError where there is none, and on a
    broken record under `on_broken='fatal'`.
    """
    check(config)
    report = cache.Report(config.on_broken, quiet=True)
    splitter = Splitter(config)
    empty = True

    # Parted as the store parts them, equal records included, so that none is on both sides.
    for record in report.good(sources.read(config)):
        for split, piece in splitter.pieces(record):
            if split == 'train':
                empty = False
                yield from piece.parts()
    if empty:
        raise _no_records_error(config, report)
    report.end()


def _no_records_error(config: ConfigDict, report: cache.Report) -> DataError:
    """Returns the error for a source that leaves nothing to train on, with advice."""
    advice = ''
    if config.split == 'documents':
        advice = ", or hold out the end of each document with config.data.split='tail'"
    return report.no_records_error(config, 'record', advice)


def tokenizer_key(config: ConfigDict) -> str:
    """Returns a hash of what an experiment's tokenizer is trained on, and how."""
    key = [
        config.tokenizer.to_dict(),
        sources.fingerprint(config.data),
        config.data.validation,
        config.data.split,
        *split_rules(config.data),
    ]
    return cache.stable_hash(key)[:16]


def kept_tokenizer(config: ConfigDict) -> Tokenizer | None:
    """Returns the tokenizer that an experiment asks for, or None where the cache has none.

    A file bears its own hash in its name; one that does not have it any more is passed over.
    """
    # Several may match: a damaged one, or those that two versions of SentencePiece trained.
    pattern = f'tokenizer-{tokenizer_key(config)}-*.*'
    for path in sorted(pathlib.Path(config.data.cache).glob(pattern)):
        if cache.file_hash(path).startswith(path.stem.rpartition('-')[2]):
            return tokenizers.load(path)
        _LOG.warning('%s: damaged tokenizer: passed over', path)
    return None


def take_chunk(items: Iterator) -> list:
    """Returns the next items that are tokenized together; [] at the end.

    `items`: BadRecords and whatever has `parts()`. A chunk has at most 1,024 of them, and ends with
    the one that fills it.
    """
    chunk = []
    room = _CHUNK_CHARACTERS
    for item in itertools.islice(items, _CHUNK_RECORDS):
        chunk.append(item)
        if not isinstance(item, BadRecord):
            room -= sum(map(len, item.parts()))

        # A thousand long documents at once would take gigabytes.
        if room < 0:
            break
    return chunk


def source_facts(report: cache.Report, splitter: Splitter, passed_over: str) -> dict:
    """Returns what a manifest says of the records of a source."""
    return dict(
        **report.facts(),
        equal=dict(records=splitter.num_equal, moved=splitter.num_moved),
        passed_over=passed_over,
    )


def log_left_out(passed_over: str, splitter: Splitter) -> None:
    """Logs which files were passed over, and how many records were equal."""
    if passed_over:
        _LOG.info('passed over: %s', printable(passed_over))
    if splitter.num_equal:
        _LOG.info('%s', splitter.describe())


@dataclasses.dataclass(frozen=True)
class _Document:
    """A record that was tokenized.

    Attributes:
      tokens: its marks included, [tokens] int.
      answered: which of them the assistant says, [tokens], 0 or 1; None for plain text.
    """

    record: Record
    tokens: np.ndarray
    answered: list[int] | None = None


class _SplitWriter:
    """Writes the documents of one split as they come; only lengths are held in memory."""

    def __init__(self, folder: pathlib.Path, split: str, dtype: np.dtype):
        self._offsets_path = folder / f'{split}.offsets'
        self._tokens = open(folder / f'{split}.tokens', 'wb')
        self._answered = open(folder / f'{split}.answered', 'wb')
        self._dtype = dtype
        self._lengths: list[int] = []
        self._num_bytes = 0

    def add(self, documents: list['_Document']) -> None:
        """Appends documents."""
        if not documents:
            return

        # Straight to the disk: the tokens of a split need not fit in memory.
        tokens = np.concatenate([document.tokens for document in documents])
        self._tokens.write(tokens.astype(self._dtype).tobytes())
        for document in documents:
            if document.answered is not None:
                self._answered.write(np.asarray(document.answered, np.uint8).tobytes())
            self._num_bytes += sum(len(part.encode()) for part in document.record.parts())
        self._lengths += [len(document.tokens) for document in documents]

    def finish(self) -> dict:
        """Writes the offsets, closes the files, and returns counts for the manifest."""
        self._tokens.close()
        self._answered.close()
        offsets = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(self._lengths, out=offsets[1:])
        offsets.tofile(self._offsets_path)
        return dict(documents=len(self._lengths), tokens=int(offsets[-1]), bytes=self._num_bytes)


def _build(config: ConfigDict, tokenizer: Tokenizer, folder: pathlib.Path, progress: bool) -> None:
    """Tokenizes the records of a source into a folder, and writes its manifest."""
    dtype = smallest_token_dtype(tokenizer)
    report = cache.Report(config.on_broken)
    splitter = Splitter(config)
    writers = {split: _SplitWriter(folder, split, dtype) for split in SPLITS}
    conversations = None  # the first record says which of the two the source holds
    num_system_messages = 0
    records = iter(track(sources.read(config), 'tokenizing', unit='records', show=progress))

    threads = min(os.cpu_count() or 1, _THREADS)
    waiting: collections.deque[tuple[list[str], concurrent.futures.Future]] = collections.deque()

    def write_next() -> None:
        """Writes the documents of the chunk that has waited longest."""
        splits, future = waiting.popleft()
        documents = list(zip(splits, future.result(), strict=True))
        for split, writer in writers.items():
            writer.add([document for side, document in documents if side == split])

    # Chunks are tokenized in the background, some at a time, while the next ones are read: the
    # tokenizer is fast on many texts, and memory stays bounded.
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        while chunk := take_chunk(records):
            good = []
            for record in report.good(chunk):
                # Mixed sources are refused: the loss is on answers alone, or on every token.
                if conversations is None:
                    conversations = record.messages is not None
                if conversations != (record.messages is not None):
                    raise DataError(
                        f'{record.where}: texts and conversations in one source; train on one or '
                        'the other'
                    )
                good.append(record)

            # Whole records need not wait until it is known to which split they go.
            if config.split == 'documents':
                future = pool.submit(_encode, good, tokenizer)
                splits = [split for record in good for split, _ in splitter.pieces(record)]
            else:
                pieces = [piece for record in good for piece in splitter.pieces(record)]
                splits = [split for split, _ in pieces]
                good = [record for _, record in pieces]
                future = pool.submit(_encode, good, tokenizer)
            waiting.append((splits, future))

            # Counted here, since a tokenizer from before such messages has no mark for them.
            if conversations:
                num_system_messages += sum(record.messages[0][0] == SYSTEM for record in good)
            if len(waiting) > threads:
                write_next()
        while waiting:
            write_next()

    # A store without training text is an error now, not an empty epoch later.
    counts = {split: writer.finish() for split, writer in writers.items()}
    if not counts['train']['documents']:
        raise _no_records_error(config, report)

    # The manifest comes last: a folder without one is not whole.
    passed_over = sources.passed_over(config)
    cache.write_manifest(
        folder,
        [f'{split}.{array}' for split in SPLITS for array in ('tokens', 'offsets', 'answered')],
        dict(
            format=FORMAT,
            dtype=dtype.name,
            conversations=bool(conversations),
            system_messages=num_system_messages,
            splits=counts,
            **source_facts(report, splitter, passed_over),
            tokenizer=tokenizer.hash,
            source=sources.fingerprint(config),
        ),
    )
    log_left_out(passed_over, splitter)
    _LOG.info(
        'tokenized %d records (%d broken, skipped): %d training and %d held-out tokens',
        report.kept + report.num_broken,
        report.num_broken,
        counts['train']['tokens'],
        counts['validation']['tokens'],
    )


def _encode(records: list[Record], tokenizer: Tokenizer) -> list[_Document]:
    """Returns records with their tokens: all of them texts, or all conversations."""
    if records and records[0].messages is not None:
        return [_encode_conversation(record, tokenizer) for record in records]

    # A thread for each chunk; all of them for one that is much larger, a single long text.
    texts = [record.text or '' for record in records]
    threads = -1 if sum(map(len, texts)) > 2 * _CHUNK_CHARACTERS else 1
    rows = tokenizer.encode_arrays(texts, threads)
    begin = np.asarray(tokenizer.begin, np.int32)
    end = np.asarray([tokenizer.eos], np.int32)
    return [
        _Document(record, np.concatenate([begin, ids, end])) for record, ids in zip(records, rows)
    ]


def _encode_conversation(record: Record, tokenizer: Tokenizer) -> _Document:
    """Returns a conversation with its tokens; errors name the record."""
    try:
        ids, answered = encode_messages(record.messages, tokenizer)
    except DataError as error:
        raise DataError(f'{record.where}: {error}') from None
    return _Document(record, np.asarray(ids), answered)
