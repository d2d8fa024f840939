"""Where text comes from: `config.data.source` is atlas, files or pydoc. Each yields Records, and BadRecords for what cannot be read."""

import dataclasses
import functools
import hashlib
import inspect
import io
import json
import pathlib
import pkgutil
import sys
import zlib
from collections.abc import Iterator

from data import chat, files, safe_read, text as texts
from data.atlas import facts as atlas_facts, pages as atlas_pages
from data.records import BadRecord, DataError, Record, did_you_mean
from data.text import fault, line_ends

SUFFIXES = ('.txt', '.jsonl', '.txt.gz', '.jsonl.gz', '.txt.zst', '.jsonl.zst', '.parquet')
OBJECTS = ('.jsonl', '.jsonl.gz', '.jsonl.zst', '.parquet')
_PACKED = 512  # bytes of .zst that are unpacked at a time
_OPTIMIZE = sys.flags.optimize  # from 2 on there are no documentation strings
_MARK = 4  # bytes of the longest byte-order mark


def read(config) -> Iterator[Record | BadRecord]:
    """All records of the source that `config` (the `data` part of an experiment) names, always in the same order."""
    if config.source == 'atlas':
        return atlas_pages.records(config.atlas)
    if config.source == 'files':
        return _read_files(config.files)
    if config.source == 'pydoc':
        _check_documented()
        return _read_pydoc(config.pydoc.modules)
    raise DataError(
        f'config.data.source is {config.source!r}: expected one of atlas, files, pydoc'
        + did_you_mean(config.source, ('atlas', 'files', 'pydoc'))
    )


def find_files(
    paths: str, suffixes: tuple[str, ...] = SUFFIXES, field: str = 'config.data.files.paths'
) -> list[pathlib.Path]:
    """Files, globs and directories with commas between them -> sorted files (`data/files.py`).

    `suffixes`: ends of names that can be read, in small letters; `field`: what names them. Raises
    DataError where one of them leads to no such file.
    """
    return files.find(paths, suffixes, field)[0]


def passed_over(config, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """What of the files that `config` names was passed over, and why; '' where nothing was."""
    if config.source != 'files':
        return ''
    return str(files.find(config.files.paths, suffixes, 'config.data.files.paths')[1])


def fingerprint(config, suffixes: tuple[str, ...] = SUFFIXES, reading: int = texts.READING) -> dict:
    """What determines the records of a source: its fields, the state of the files it reads and
    under which rules, or its content. `reading`: 1 for what said so before there was a number."""
    found = (
        {'source': config.source, **config[config.source].to_dict()}
        if config.source in config
        else {}
    )
    if config.source == 'files':
        states = ((p, p.stat()) for p in find_files(config.files.paths, suffixes))
        found['files'] = [(str(p), of.st_size, of.st_mtime_ns) for p, of in states]
        if reading > 1:
            found |= {'reading': reading, 'conversations': chat.RULES}
    elif config.source == 'atlas':
        found['code'] = hashlib.sha256(
            (inspect.getsource(atlas_pages) + inspect.getsource(atlas_facts)).encode()
        ).hexdigest()
    else:
        found['python'] = sys.version
        if reading > 1 and config.source == 'pydoc':
            _check_documented()
            found['content'] = _pydoc_hash(config.pydoc.modules)
    return found


def _read_files(config) -> Iterator[Record | BadRecord]:
    parse = functools.partial(_from_object, field=config.text_field, prefer=config.prefer)
    for path in find_files(config.paths):
        found = objects(path, parse) if is_kind(path, OBJECTS) else [_read_text(path)]
        yield from map(_with_line_ends, found)


def _with_line_ends(item: Record | BadRecord) -> Record | BadRecord:
    """A record whose lines all end alike (`data/text.py`)."""
    if isinstance(item, BadRecord) or not any('\r' in part for part in item.parts()):
        return item
    if item.messages is None:
        return dataclasses.replace(item, text=line_ends(item.text))
    messages = tuple((role, line_ends(content)) for role, content in item.messages)
    return dataclasses.replace(item, messages=messages)


def is_kind(path: pathlib.Path, suffixes: tuple[str, ...] | str) -> bool:
    """Whether a name ends so, without case."""
    return path.name.lower().endswith(suffixes)


def objects(path: pathlib.Path, parse) -> Iterator:
    """What `parse(where, object)` makes of each JSON object of a file (one of OBJECTS); what is none is a BadRecord."""
    if is_kind(path, '.parquet'):
        return _read_parquet(path, parse)
    return lines(path, functools.partial(_parse_line, parse=parse))


def _open(path: pathlib.Path) -> io.BufferedIOBase:
    if is_kind(path, '.gz'):
        import gzip

        return gzip.open(path, 'rb')
    if is_kind(path, '.zst'):
        return io.BufferedReader(_Chunks(_unpack_zst(path)))
    return open(path, 'rb')


class _Chunks(io.RawIOBase):
    """A file of the chunks that an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._left = chunks, memoryview(b'')

    def readable(self):
        return True

    def readinto(self, out):
        while len(self._left) < _MARK:  # which is looked for in what comes first
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._left = memoryview(bytes(self._left) + chunk)
        count = min(len(out), len(self._left))
        out[:count], self._left = self._left[:count], self._left[count:]
        return count


def _unpack_zst(path: pathlib.Path) -> Iterator[bytes]:
    """Frame by frame: zstandard's own reader takes a truncated file for a whole one. By few bytes: they come out at once, at most
    32,768 for each, as does a window of at most 128 MiB."""
    import zstandard

    frame = None
    with open(path, 'rb') as file:
        while packed := file.read(_PACKED):
            while packed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(packed)
                frame, packed = (None, frame.unused_data) if frame.eof else (frame, b'')
    if frame:
        raise EOFError('the file ends inside a compressed frame')


def _unpack_errors() -> tuple:
    import zstandard

    return (OSError, EOFError, zlib.error, zstandard.ZstdError)


def _read_text(path) -> Record | BadRecord:
    if path.stat().st_size == 0:
        return BadRecord(str(path), 'empty file')
    try:
        with _open(path) as file:
            found = safe_read.content(texts.utf8(file), safe_read.DOCUMENT)
        if found is None:
            return BadRecord(
                str(path),
                f'more than {safe_read.size(safe_read.DOCUMENT)} of text in one file, which is one document: split it into several',
            )
        return _checked(str(path), texts.decode(found))
    except texts.NotTextError as error:
        return BadRecord(str(path), _why(error))
    except _unpack_errors() as error:
        return BadRecord(str(path), f'cannot be read: {error}')


def _why(error: texts.NotTextError, of: str = '') -> str:
    return f'{error} at byte {error.at}{of}' if error.at >= 0 else str(error)


def _checked(where: str, text) -> Record | BadRecord:
    reason = fault(text)
    return BadRecord(where, reason) if reason else Record(where, text)


def lines(path: pathlib.Path, parse) -> Iterator:
    """What `parse(where, line)` makes of each line of a file, packed or not, that is not blank; one that cannot be read is a BadRecord."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(safe_read.lines(texts.utf8(file), safe_read.LINE), 1):
                if line is None:
                    yield BadRecord(
                        f'{path}:{number}',
                        f'a line of more than {safe_read.size(safe_read.LINE)}: split its document into several',
                    )
                elif line.strip():
                    yield parse(f'{path}:{number}', line)
        if not number:
            yield BadRecord(str(path), 'empty file')
    except texts.NotTextError as error:
        yield BadRecord(f'{path}:{number + 1}', str(error))
    except _unpack_errors() as error:
        yield BadRecord(f'{path}:{number + 1}', f'cannot be read: {error}')


def decoded(where: str, line: bytes) -> str | BadRecord:
    """A line of a file, which may begin with a mark."""
    try:
        return texts.decode(line, what='line')
    except texts.NotTextError as error:
        return BadRecord(where, _why(error, ' of the line'))


def _parse_line(where: str, line: bytes, parse):
    text = decoded(where, line)
    if isinstance(text, BadRecord):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        return BadRecord(where, f'broken JSON: {error}')
    if not isinstance(found, dict):
        return BadRecord(where, f'JSON {type(found).__name__}, expected an object')
    return parse(where, found)


def _from_object(where: str, found: dict, field: str, prefer: str) -> Record | BadRecord:
    """A record of the text in `field`, or of a conversation; `prefer` says which where it has both.

    A field that is null is absent, and so is a blank text beside a conversation.
    """
    text, asks = found.get(field), chat.holds_conversation(found)
    blank = isinstance(text, str) and not text.strip()
    if text is not None and not (asks and (blank or prefer == 'conversation')):
        return _checked(where, text)
    try:
        record = Record(where, messages=chat.parse_messages(found))
    except DataError as error:
        lacks = '' if asks else f'no field {field!r} (config.data.files.text_field) and '
        return BadRecord(
            where,
            f'{lacks}{error}' + ('' if asks else did_you_mean(field, chat.fields(found))),
        )
    reason = next(filter(None, map(fault, record.parts())), '')
    return BadRecord(where, reason) if reason else record


def _read_parquet(path, parse) -> Iterator:
    if path.stat().st_size == 0:
        yield BadRecord(str(path), 'empty file')
        return
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f'{path}: parquet needs the extra `hf`: pip install -e .[hf]') from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(64) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield parse(f'{path}:{number}', row)
    except Exception as error:  # the reader's own exceptions are many and undocumented
        yield BadRecord(str(path), f'cannot be read as parquet: {error}'.splitlines()[0])


def _check_documented() -> None:
    """Raises DataError where this Python has left its documentation out."""
    if _OPTIMIZE > 1:
        raise DataError(
            "config.data.source 'pydoc' (search without PATH) has no text: Python runs with -OO "
            f'or PYTHONOPTIMIZE={_OPTIMIZE}, which leaves documentation out; expected at most 1'
        )


@functools.cache
def _pydoc_hash(modules: int) -> str:
    """Of the documents: which modules can be imported and what they document depends on the
    machine, on how Python was built and on what is installed."""
    found = hashlib.sha256()
    for record in _read_pydoc(modules):
        found.update(json.dumps([record.where, record.text]).encode())
    return found.hexdigest()


def _read_pydoc(modules: int) -> Iterator[Record | BadRecord]:
    """The documentation of each standard library module and its public members, one document a module."""
    import contextlib
    import importlib
    import warnings

    skip = {
        'antigravity',
        'this',
        'idlelib',
        'test',
        'tkinter',
        'turtle',
        'turtledemo',
        'lib2to3',
        'msilib',
        'ensurepip',
    }
    names = sorted(n for n in sys.stdlib_module_names if not n.startswith('_') and n not in skip)
    names += sorted(
        f'{n}.{m.name}'
        for n in (
            'asyncio',
            'collections',
            'concurrent',
            'email',
            'http',
            'importlib',
            'json',
            'logging',
            'multiprocessing',
            'unittest',
            'urllib',
            'xml',
        )
        for m in pkgutil.iter_modules(importlib.import_module(n).__path__)
        if not m.name.startswith('_')
    )
    for name in names[: modules or None]:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter('ignore')
                module = importlib.import_module(name)
        except (
            Exception
        ):  # modules of other platforms do not import here; they are no part of this corpus
            continue
        text = _document(name, module)
        if len(text) > 200:
            yield Record(f'pydoc:{name}', text)


def _document(name: str, module) -> str:
    found, seen = [f'{name}\n\n{inspect.getdoc(module) or ""}'], set()
    for key, member in sorted(vars(module).items()):
        if (
            key.startswith('_')
            or not (inspect.isclass(member) or inspect.isroutine(member))
            or id(member) in seen
        ):
            continue
        seen.add(id(member))
        if getattr(member, '__module__', name) == name and inspect.getdoc(member):
            found.append(f'{name}.{key}\n{inspect.getdoc(member)}')
            if inspect.isclass(member):
                found += [
                    f'{name}.{key}.{k}\n{inspect.getdoc(m)}'
                    for k, m in sorted(vars(member).items())
                    if not k.startswith('_') and inspect.isroutine(m) and inspect.getdoc(m)
                ]
    return '\n\n'.join(found)
