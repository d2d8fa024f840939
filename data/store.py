"""The token store: text tokenized once, kept on disk under the hash of everything that determines it.

A folder with, for each split, `<split>.tokens` (uint16 or uint32), `<split>.offsets` (int64, where each document begins, and
the end), `<split>.answered` (uint8 per token, conversations only), and `manifest.json`.
"""
import dataclasses
import hashlib
import itertools
import json
import logging
import pathlib
import shutil
import tempfile

import numpy as np
from tqdm import tqdm

from data import sources
from data.chat import encode_messages
from data.records import Broken, DataError, Record
from data.tokenizer import Tokenizer

_LOG = logging.getLogger('ordem')

FORMAT = 2
SPLITS = ('train', 'validation')


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
    """The texts of the training split, for the tokenizer: held-out text has no say in the vocabulary."""
    check(config)
    records = (r for r in sources.read(config) if isinstance(r, Record))
    for ordinal, record in enumerate(records):
        for split, part in pieces(record, ordinal, config):
            if split == 'train':
                yield from part.parts()


def tokenizer_path(config) -> pathlib.Path:
    """Where the tokenizer that an experiment asks for, trained on its training text, is kept: in the cache, by hash."""
    key = _digest([config.tokenizer.to_dict(), sources.fingerprint(config.data), config.data.validation, config.data.split])[:16]
    return pathlib.Path(config.data.cache) / f'tokenizer-{key}.model'


def path_of(config, tokenizer: Tokenizer) -> pathlib.Path:
    """Where the store for this `data` config and tokenizer is kept: in the cache, by hash."""
    key = _digest([FORMAT, sources.fingerprint(config), config.validation, config.split, tokenizer.hash])[:16]
    return pathlib.Path(config.cache) / f'store-{key}'


def find(config, tokenizer: Tokenizer) -> Store | None:
    """The store in the cache, or None: nothing is built. Raises DataError where it is damaged, or where the text is not there."""
    path = path_of(config, tokenizer)
    return _open(path) if path.exists() else None


def verify(store: Store) -> None:
    """Reads all of a store. Raises DataError where it is not what was written."""
    hashes = store.manifest.get('hashes', {})
    wrong = [name for name, known in hashes.items() if _file_hash(store.path / name) != known]
    if wrong or _digest(hashes) != store.manifest.get('hash'):
        raise DataError(f'{store.path}: damaged token store (the hash of {", ".join(wrong) or "manifest.json"} does not match); remove it to build it again')


def _file_hash(path: pathlib.Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def open_or_build(config, tokenizer: Tokenizer, progress: bool = True) -> Store:
    """The store for this `data` config and tokenizer: the one in `config.cache`, or a new one built there.

    Raises DataError on a broken record under `on_broken='fatal'`, on a source without a single record, and where a store in
    the cache does not have the size that its manifest states.
    """
    check(config)
    path = path_of(config, tokenizer)
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
    store = _open(path)
    if config.on_broken == 'fatal' and store.manifest['broken']:   # built when they were skipped
        raise _fatal(Broken(**store.manifest['broken'][0]))
    return store


def _fatal(broken: Broken) -> DataError:
    return DataError(f'{broken.where}: {broken.reason} (config.data.on_broken is fatal)')


def _open(path: pathlib.Path) -> Store:
    try:
        manifest = json.loads((path / 'manifest.json').read_text())
        for name, size in manifest['sizes'].items():
            found = (path / name).stat().st_size
            if found != size:
                raise DataError(f'{path / name}: {found} bytes, its manifest says {size}; remove {path} to build it again')
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise DataError(f'{path}: damaged token store ({error}); remove it to build it again') from None
    return Store(path, manifest)


def _build(config, tokenizer: Tokenizer, path: pathlib.Path, progress: bool) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    counts = {s: dict(documents=0, tokens=0, bytes=0) for s in SPLITS}
    offsets = {s: [0] for s in SPLITS}
    broken: list[Broken] = []
    conversations, records = None, 0
    files = {(s, what): open(path / f'{s}.{what}', 'wb') for s in SPLITS for what in ('tokens', 'answered')}
    found = iter(tqdm(sources.read(config), desc='tokenizing', unit=' records', disable=not progress, leave=False))
    read, ordinal = 0, 0
    for batch in iter(lambda: list(itertools.islice(found, 1024)), []):
        read += len(batch)
        good = []
        for item in batch:
            if isinstance(item, Broken):
                if config.on_broken == 'fatal':
                    raise _fatal(item)
                broken.append(item)
                _LOG.warning('skipped %s: %s', item.where, item.reason)
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
    if not records:
        raise DataError(f'no usable record in the source {config.source!r}: {len(broken)} broken'
                        + (f', the first {broken[0].where}: {broken[0].reason}' if broken else ''))
    if not counts['train']['documents']:
        raise DataError(f'all {records} records fell into the held-out split: lower config.data.validation '
                        f"({config.validation}), or hold out the end of each document with config.data.split='tail'")
    for split in SPLITS:
        np.asarray(offsets[split], np.int64).tofile(path / f'{split}.offsets')
    names = [f'{s}.{what}' for s in SPLITS for what in ('tokens', 'offsets', 'answered')]
    hashes = {name: _file_hash(path / name) for name in names}
    manifest = dict(
        format=FORMAT, dtype=np.dtype(dtype).name, conversations=bool(conversations), splits=counts,
        records=dict(read=read, kept=records, broken=len(broken)),
        broken=[dataclasses.asdict(b) for b in broken[:100]], hashes=hashes, hash=_digest(hashes),
        sizes={name: (path / name).stat().st_size for name in names},
        tokenizer=tokenizer.hash, source=sources.fingerprint(config))
    (path / 'manifest.json').write_text(json.dumps(manifest, indent=1, ensure_ascii=False, default=str))
    _LOG.info('tokenized %d records (%d broken, skipped): %d training and %d held-out tokens', read, len(broken),
                 counts['train']['tokens'], counts['validation']['tokens'])
