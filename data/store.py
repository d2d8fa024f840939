"""The token store: text tokenized once, kept on disk under the hash of everything that determines it.

A folder with, for each split, `<split>.tokens` (uint16 or uint32), `<split>.offsets` (int64, where each document begins, and
the end), `<split>.answered` (uint8 per token, conversations only), and `manifest.json`.
"""

import dataclasses
import hashlib
import itertools
import logging
import pathlib

import numpy as np

from data import cache, sources, text as texts, tokenizer as tokenizers
from data.chat import SYSTEM, encode_messages, system_note
from data.progress import track
from data.records import BadRecord, DataError, Record, did_you_mean, printable
from data.tokenizer import Tokenizer

_LOG = logging.getLogger('ordem')

FORMAT = 3
PARTING = 2  # of the rules by which records go to a split. 1: equal ones were parted by their place
SPLITS = ('train', 'validation')
_WHAT = 'token store'
_TOGETHER = (
    4 << 20
)  # characters that are tokenized together, or one document: each takes about 50 bytes meanwhile


@dataclasses.dataclass(frozen=True)
class Split:
    """Documents of one split: `tokens` [N], `offsets` [documents + 1], `answered` [N] or None, `num_bytes` of text."""

    tokens: np.ndarray
    offsets: np.ndarray
    answered: np.ndarray | None
    num_bytes: int

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def document(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


@dataclasses.dataclass(frozen=True)
class Store:
    path: pathlib.Path
    manifest: dict

    @property
    def hash(self) -> str:
        """Of the tokens and where documents begin: the identity of the data in a run's lineage."""
        return self.manifest['hash']

    def split(self, name: str) -> Split:
        kind, known = self.manifest['dtype'], self.manifest['splits'][name]
        if kind not in (
            'uint16',
            'uint32',
        ):  # of type object, a file's bytes would be taken for addresses
            raise DataError(
                f'{self.path}: damaged token store (tokens of type {kind!r}); remove it to build it again'
            )
        read = lambda what, dtype: (
            np.memmap(self.path / f'{name}.{what}', dtype, 'r')
            if known['tokens']
            else np.zeros(0, dtype)
        )
        answered = read('answered', np.uint8) if self.manifest['conversations'] else None
        return Split(
            read('tokens', kind),
            np.fromfile(self.path / f'{name}.offsets', np.int64),
            answered,
            known['bytes'],
        )


def in_split(ordinal: int | str, config) -> str:
    """Which split the `ordinal`-th record belongs to, or all that has a key in common: by hash, so that adding records moves none."""
    draw = int.from_bytes(hashlib.sha256(f'split {ordinal}'.encode()).digest()[:8], 'big') / 2**64
    return 'validation' if draw < config.validation else 'train'


def pieces(record: Record, ordinal: int, config, cut: int | None = None):
    """A record -> (split, record) pairs: itself whole, or under `split='tail'` its head and its
    held-out end, which begins with character `cut` where that is given."""
    if config.split == 'tail' and record.text is not None:
        cut = _cut(record.text, config) if cut is None else cut
        for split, text in (('train', record.text[:cut]), ('validation', record.text[cut:])):
            if text:
                yield split, dataclasses.replace(record, text=text)
    else:
        yield in_split(ordinal, config), record


def _cut(text: str, config) -> int:
    return int(len(text) * (1 - config.validation))


class Parting:
    """Which split the records of a source belong to, which come one after the other: equal ones
    (`data/text.py: identity`) where the first of them does, cut after the same words. `equal`: how
    many were like an earlier one, `moved`: of these, how many would have gone to the other split by
    their place."""

    def __init__(self, config):
        self.equal = self.moved = 0
        self._config, self._ordinals = config, itertools.count()
        self._first: dict[bytes, int] = {}
        self._heads: dict[int, int] = {}  # of the first ones: what is seen of what is not held out

    def pieces(self, record: Record):
        """(split, record) pairs, as `pieces` gives them, of the next record."""
        ordinal, first, cut = next(self._ordinals), None, None
        if 0 < self._config.validation < 1:
            first = self._first.setdefault(texts.identity(record.parts()), ordinal)
            if self._config.split == 'tail' and record.text is not None:
                head = texts.seen(record.text[: _cut(record.text, self._config)])
                if (wanted := self._heads.setdefault(first, head)) != head:
                    cut = texts.place(record.text, wanted)
        if first in (None, ordinal):
            return pieces(record, ordinal, self._config)
        self.equal += 1
        if self._config.split == 'documents':
            here, there = (in_split(number, self._config) for number in (ordinal, first))
            self.moved += here != there
        return pieces(record, first, self._config, cut)

    def told(self) -> str:
        """What to say of equal records; '' where there are none."""
        if not self.equal:
            return ''
        return (
            f'equal to an earlier record, and on its side of the split: {self.equal} '
            f'({self.moved} would have been on the other)'
        )


def check(config) -> None:
    """Raises DataError where a field that says what becomes of records has no valid value."""
    if config.split not in ('documents', 'tail'):
        raise DataError(f"config.data.split is {config.split!r}: expected 'documents' or 'tail'")
    if not 0 <= config.validation <= 1:
        raise DataError(
            f'config.data.validation is {config.validation}: expected a share of the text, from 0 to 1'
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


def training_texts(config):
    """The texts of the training split, for the tokenizer: held-out text has no say in the vocabulary.

    Raises DataError where there is none, and on a broken record under `on_broken='fatal'`.
    """
    check(config)
    report, empty = cache.Report(config.on_broken, quiet=True), True
    parting = Parting(config)
    for record in report.good(sources.read(config)):
        for split, part in parting.pieces(record):
            if split == 'train':
                empty = False
                yield from part.parts()
    if empty:
        raise _nothing(config, report)
    report.end()


def _nothing(config, report: cache.Report) -> DataError:
    other = (
        ", or hold out the end of each document with config.data.split='tail'"
        if config.split == 'documents'
        else ''
    )
    return report.nothing(config, 'record', other)


def tokenizer_key(config) -> str:
    """Of the tokenizer that an experiment asks for: a hash of what it is trained on, and how."""
    return cache.stable_hash(
        [
            config.tokenizer.to_dict(),
            sources.fingerprint(config.data),
            config.data.validation,
            config.data.split,
            *rules(config.data),
        ]
    )[:16]


def kept_tokenizer(config) -> Tokenizer | None:
    """The tokenizer that an experiment asks for, where it is in the cache and whole: a file with its own hash in its name."""
    for path in sorted(
        pathlib.Path(config.data.cache).glob(f'tokenizer-{tokenizer_key(config)}-*.model')
    ):
        if cache.file_hash(path).startswith(path.stem.rpartition('-')[2]):
            return tokenizers.load(path)
        _LOG.warning('%s: damaged tokenizer: passed over', path)
    return None


def rules(config) -> list:
    """What a key has of the rules by which records go to a split; nothing where they are the
    first."""
    return [PARTING] if config.split == 'documents' and 0 < config.validation < 1 else []


def path_of(config, tokenizer: Tokenizer, reading: int = texts.READING) -> pathlib.Path:
    """Where the store for this `data` config and tokenizer is kept: in the cache, by hash.
    `reading`: 1 for where it was before the rules of reading and parting had numbers."""
    found = sources.fingerprint(config, reading=reading)
    key = cache.stable_hash(
        [
            FORMAT,
            found,
            config.validation,
            config.split,
            tokenizer.hash,
            *(rules(config) if reading > 1 else []),
        ]
    )[:16]
    return pathlib.Path(config.cache) / f'store-{key}'


def find(config, tokenizer: Tokenizer, wanted: str = '') -> Store | None:
    """The store in the cache, or None: nothing is built. `wanted`: its hash, where a run says it;
    one that was made under earlier rules is found by that.

    Raises DataError where it is damaged, or where the text is not there.
    """
    path = path_of(config, tokenizer)
    if manifest := cache.find_earlier(path_of(config, tokenizer, 1), wanted):
        return Store(path_of(config, tokenizer, 1), manifest)
    manifest = cache.find(path, _WHAT)
    return manifest and Store(path, manifest)


def open_or_build(config, tokenizer: Tokenizer, progress: bool = True, wanted: str = '') -> Store:
    """The store for this `data` config and tokenizer: the one in `config.cache`, or a new one built there. One whose files are not
    what its manifest states is said to be damaged, and built again. `wanted`: as `find` takes it.

    Raises DataError on a broken record under `on_broken='fatal'`, and on a source without a single record.
    """
    check(config)
    path = path_of(config, tokenizer)
    before = path_of(config, tokenizer, 1)
    manifest = cache.find_earlier(before, wanted)
    path = before if manifest else path
    manifest = manifest or cache.get_or_build(
        path, lambda folder: _build(config, tokenizer, folder, progress), _WHAT, config.on_broken
    )
    if manifest.get('system_messages') and system_note(tokenizer):
        _LOG.warning('%d system messages: %s', manifest['system_messages'], system_note(tokenizer))
    return Store(path, manifest)


def take_chunk(found):
    """The next records, of anything with `parts()`: at most 1,024 of them, and none after one that fills what is tokenized at a time."""
    room = _TOGETHER
    for item in itertools.islice(found, 1024):
        yield item
        room -= 0 if isinstance(item, BadRecord) else sum(map(len, item.parts()))
        if room < 0:
            return


def tell(passed_over: str, parting: Parting) -> None:
    """Logs what was left out of a source, and what was put where its like is."""
    if passed_over:
        _LOG.info('passed over: %s', printable(passed_over))
    if parting.equal:
        _LOG.info('%s', parting.told())


def _encoded(record: Record, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    try:
        return encode_messages(record.messages, tokenizer)
    except DataError as error:
        raise DataError(f'{record.where}: {error}') from None


def _build(config, tokenizer: Tokenizer, path: pathlib.Path, progress: bool) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    counts = {s: dict(documents=0, tokens=0, bytes=0) for s in SPLITS}
    offsets = {s: [0] for s in SPLITS}
    report, parting = cache.Report(config.on_broken), Parting(config)
    conversations, systems = None, 0
    files = {
        (s, what): open(path / f'{s}.{what}', 'wb')
        for s in SPLITS
        for what in ('tokens', 'answered')
    }
    found = iter(track(sources.read(config), 'tokenizing', unit='records', show=progress))
    for batch in iter(lambda: list(take_chunk(found)), []):
        good = []
        for item in report.good(batch):
            if conversations is None:
                conversations = item.messages is not None
            if (item.messages is not None) != conversations:
                raise DataError(
                    f'{item.where}: texts and conversations in one source; train on one or the other'
                )
            good += parting.pieces(item)
        if conversations:
            encoded = [_encoded(record, tokenizer) for _, record in good]
            systems += sum(record.messages[0][0] == SYSTEM for _, record in good)
        else:
            encoded = [
                ([tokenizer.bos, *ids, tokenizer.eos], None)
                for ids in tokenizer.encode_batch([record.text for _, record in good])
            ]
        for (split, record), (ids, answered) in zip(good, encoded):
            files[split, 'tokens'].write(np.asarray(ids, dtype).tobytes())
            if answered is not None:
                files[split, 'answered'].write(np.asarray(answered, np.uint8).tobytes())
            offsets[split].append(offsets[split][-1] + len(ids))
            count = counts[split]
            count['documents'] += 1
            count['tokens'] += len(ids)
            count['bytes'] += sum(len(part.encode()) for part in record.parts())
    for file in files.values():
        file.close()
    if not counts['train']['documents']:
        raise _nothing(config, report)
    for split in SPLITS:
        np.asarray(offsets[split], np.int64).tofile(path / f'{split}.offsets')
    passed_over = sources.passed_over(config)
    cache.write_manifest(
        path,
        [f'{s}.{what}' for s in SPLITS for what in ('tokens', 'offsets', 'answered')],
        dict(
            format=FORMAT,
            dtype=np.dtype(dtype).name,
            conversations=bool(conversations),
            system_messages=systems,
            splits=counts,
            **report.facts(),
            equal=dict(records=parting.equal, moved=parting.moved),
            passed_over=passed_over,
            tokenizer=tokenizer.hash,
            source=sources.fingerprint(config),
        ),
    )
    tell(passed_over, parting)
    _LOG.info(
        'tokenized %d records (%d broken, skipped): %d training and %d held-out tokens',
        report.kept + report.num_broken,
        report.num_broken,
        counts['train']['tokens'],
        counts['validation']['tokens'],
    )
