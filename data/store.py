"""The token store: text tokenized once, kept on disk under the hash of everything that determines it.

A folder with, for each split, `<split>.tokens` (uint16 or uint32), `<split>.offsets` (int64, where each document begins, and
the end), `<split>.answered` (uint8 per token, conversations only), and `manifest.json`.
"""
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import tempfile

import numpy as np
from tqdm import tqdm

from data import sources
from data import tokenizer as tokenizers
from data.chat import encode_messages
from data.records import Broken, DataError, Record, printable
from data.tokenizer import Tokenizer

_LOG = logging.getLogger('ordem')

FORMAT = 3
SPLITS = ('train', 'validation')
_TOGETHER = 4 << 20     # characters that are tokenized together, or one document: each takes about 50 bytes meanwhile
_TOLD = 100            # broken records that are named; all are counted


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
        return self.tokens[self.offsets[index]:self.offsets[index + 1]]


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
        if kind not in ('uint16', 'uint32'):            # of type object, a file's bytes would be taken for addresses
            raise DataError(f'{self.path}: damaged token store (tokens of type {kind!r}); remove it to build it again')
        read = lambda what, dtype: np.memmap(self.path / f'{name}.{what}', dtype, 'r') if known['tokens'] else np.zeros(0, dtype)
        answered = read('answered', np.uint8) if self.manifest['conversations'] else None
        return Split(read('tokens', kind), np.fromfile(self.path / f'{name}.offsets', np.int64), answered, known['bytes'])


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def in_split(ordinal: int, config) -> str:
    """Which split the `ordinal`-th record belongs to: by hash, so that adding records moves none."""
    draw = int.from_bytes(hashlib.sha256(f'split {ordinal}'.encode()).digest()[:8], 'big') / 2**64
    return 'validation' if draw < config.validation else 'train'


def pieces(record: Record, ordinal: int, config):
    """A record -> (split, record) pairs: itself whole, or under `split='tail'` its head and its held-out end."""
    if config.split == 'tail' and record.text is not None:
        cut = int(len(record.text) * (1 - config.validation))
        for split, text in (('train', record.text[:cut]), ('validation', record.text[cut:])):
            if text:
                yield split, dataclasses.replace(record, text=text)
    else:
        yield in_split(ordinal, config), record


def check(config) -> None:
    """Raises DataError where a field that says what becomes of records has no valid value."""
    if config.split not in ('documents', 'tail'):
        raise DataError(f"config.data.split is {config.split!r}: expected 'documents' or 'tail'")
    if not 0 <= config.validation <= 1:
        raise DataError(f'config.data.validation is {config.validation}: expected a share of the text, from 0 to 1')
    if config.on_broken not in ('skip', 'fatal'):
        raise DataError(f"config.data.on_broken is {config.on_broken!r}: expected 'skip' or 'fatal'")


def training_texts(config):
    """The texts of the training split, for the tokenizer: held-out text has no say in the vocabulary.

    Raises DataError where there is none, and on a broken record under `on_broken='fatal'`.
    """
    check(config)
    records, num_broken, first, empty = 0, 0, None, True
    for record in sources.read(config):
        if isinstance(record, Broken):
            if config.on_broken == 'fatal':
                raise _fatal(record)
            num_broken, first = num_broken + 1, first or record
            continue
        for split, part in pieces(record, records, config):
            if split == 'train':
                empty = False
                yield from part.parts()
        records += 1
    if empty:
        raise _nothing(config, records, num_broken, first)


def _nothing(config, records: int, num_broken: int, first: Broken | None) -> DataError:
    """Why a source of so many records has no training text."""
    if not records:
        return DataError(f'no usable record in the source {config.source!r}: {num_broken} broken'
                         + (f', the first {first.where}: {first.reason}' if first else ''))
    other = ", or hold out the end of each document with config.data.split='tail'" if config.split == 'documents' else ''
    return DataError(f'all {records} records fell into the held-out split: lower config.data.validation ({config.validation}){other}')


def tokenizer_key(config) -> str:
    """Of the tokenizer that an experiment asks for: a hash of what it is trained on, and how."""
    return _digest([config.tokenizer.to_dict(), sources.fingerprint(config.data), config.data.validation, config.data.split])[:16]


def kept_tokenizer(config) -> Tokenizer | None:
    """The tokenizer that an experiment asks for, where it is in the cache and whole: a file with its own hash in its name."""
    for path in sorted(pathlib.Path(config.data.cache).glob(f'tokenizer-{tokenizer_key(config)}-*.model')):
        if _hash(path).startswith(path.stem.rpartition('-')[2]):
            return tokenizers.load(path)
        _LOG.warning('%s: damaged tokenizer: passed over', path)
    return None


def path_of(config, tokenizer: Tokenizer) -> pathlib.Path:
    """Where the store for this `data` config and tokenizer is kept: in the cache, by hash."""
    key = _digest([FORMAT, sources.fingerprint(config), config.validation, config.split, tokenizer.hash])[:16]
    return pathlib.Path(config.cache) / f'store-{key}'


def find(config, tokenizer: Tokenizer) -> Store | None:
    """The store in the cache, or None: nothing is built. Raises DataError where it is damaged, or where the text is not there."""
    path = path_of(config, tokenizer)
    if not path.exists():
        return None
    fault = damage(path)
    if fault:
        raise DataError(f'{path}: damaged token store ({fault}); the next run that needs it builds it again')
    return Store(path, json.loads((path / 'manifest.json').read_text()))


def open_or_build(config, tokenizer: Tokenizer, progress: bool = True) -> Store:
    """The store for this `data` config and tokenizer: the one in `config.cache`, or a new one built there. One whose files are not
    what its manifest states is said to be damaged, and built again.

    Raises DataError on a broken record under `on_broken='fatal'`, and on a source without a single record.
    """
    check(config)
    path = path_of(config, tokenizer)
    if path.exists():
        _remove_damaged(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        building = pathlib.Path(tempfile.mkdtemp(prefix=f'{path.name}.', dir=path.parent))
        try:
            _build(config, tokenizer, building, progress)
            try:
                building.rename(path)
            except OSError:   # another process was first; its store is the same
                if not path.exists():
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    store = Store(path, json.loads((path / 'manifest.json').read_text()))
    if config.on_broken == 'fatal' and store.manifest['broken']:   # built when they were skipped
        raise _fatal(Broken(**store.manifest['broken'][0]))
    return store


def _fatal(broken: Broken) -> DataError:
    return DataError(f'{broken.where}: {broken.reason} (config.data.on_broken is fatal)')


def _remove_damaged(path: pathlib.Path) -> None:
    """Removes a store that is damaged: one process at a time looks, so that none removes what another has built again."""
    import fcntl
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):      # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        fault = damage(path) if path.exists() else ''
        if fault:
            _LOG.warning('%s: damaged token store (%s): built again', path, fault)
            aside = pathlib.Path(tempfile.mkdtemp(prefix=f'{path.name}.damaged.', dir=path.parent))
            path.rename(aside / path.name)      # at once: it is whole, or not there
            shutil.rmtree(aside)
    finally:
        os.close(folder)


def damage(path: pathlib.Path) -> str:
    """What is wrong with a store: '' where its manifest and each of its files is what was written."""
    try:
        manifest = json.loads((path / 'manifest.json').read_text())
        if manifest.pop('check') != _digest(manifest):
            return 'manifest.json is not as it was written'
        wrong = [name for name, known in manifest['hashes'].items() if _hash(path / name) != known]
        return f'{", ".join(wrong)}: not as it was written' if wrong else ''
    except OSError as error:
        return f'{pathlib.Path(error.filename or path).name}: {error.strerror}'
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 'manifest.json cannot be read'


def _hash(path: pathlib.Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _some(found):
    """The next records: at most 1,024 of them, and none after one that fills what is tokenized at a time."""
    room = _TOGETHER
    for item in itertools.islice(found, 1024):
        yield item
        room -= sum(map(len, item.parts())) if isinstance(item, Record) else 0
        if room < 0:
            return


def _build(config, tokenizer: Tokenizer, path: pathlib.Path, progress: bool) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    counts = {s: dict(documents=0, tokens=0, bytes=0) for s in SPLITS}
    offsets = {s: [0] for s in SPLITS}
    broken, num_broken = [], 0
    conversations, records = None, 0
    files = {(s, what): open(path / f'{s}.{what}', 'wb') for s in SPLITS for what in ('tokens', 'answered')}
    found = iter(tqdm(sources.read(config), desc='tokenizing', unit=' records', disable=not progress, leave=False))
    read, ordinal = 0, 0
    for batch in iter(lambda: list(_some(found)), []):
        read += len(batch)
        good = []
        for item in batch:
            if isinstance(item, Broken):
                if config.on_broken == 'fatal':
                    raise _fatal(item)
                num_broken += 1
                if num_broken <= _TOLD:
                    broken.append(item)
                    _LOG.warning('skipped %s', printable(' '.join(f'{item.where}: {item.reason}'.split())))
                continue
            if conversations is None:
                conversations = item.messages is not None
            if (item.messages is not None) != conversations:
                raise DataError(f'{item.where}: texts and conversations in one source; train on one or the other')
            good += pieces(item, ordinal, config)
            ordinal += 1
        records += sum(1 for item in batch if isinstance(item, Record))
        if conversations:
            encoded = [encode_messages(record.messages, tokenizer) for _, record in good]
        else:
            encoded = [([tokenizer.bos, *ids, tokenizer.eos], None)
                       for ids in tokenizer.encode_batch([record.text for _, record in good])]
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
        raise _nothing(config, records, num_broken, next(iter(broken), None))
    for split in SPLITS:
        np.asarray(offsets[split], np.int64).tofile(path / f'{split}.offsets')
    names = [f'{s}.{what}' for s in SPLITS for what in ('tokens', 'offsets', 'answered')]
    hashes = {name: _hash(path / name) for name in names}
    manifest = dict(
        format=FORMAT, dtype=np.dtype(dtype).name, conversations=bool(conversations), splits=counts,
        records=dict(read=read, kept=records, broken=num_broken),
        broken=[dataclasses.asdict(b) for b in broken], hashes=hashes, hash=_digest(hashes),
        tokenizer=tokenizer.hash, source=sources.fingerprint(config))
    manifest = json.loads(json.dumps(manifest, default=str))
    manifest['check'] = _digest(manifest)
    (path / 'manifest.json').write_text(json.dumps(manifest, indent=1))
    _LOG.info('tokenized %d records (%d broken, skipped): %d training and %d held-out tokens', read, num_broken,
                 counts['train']['tokens'], counts['validation']['tokens'])
