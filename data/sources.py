"""Where text comes from: `config.data.source` is atlas, files or pydoc.

Each source yields Records, and BadRecords for what cannot be read.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import io
import json
import os
import pathlib
import pkgutil
import sys
import warnings
import zlib
from collections.abc import Iterator

from data import chat, files, safe_read, text as texts
from data.atlas import pages as atlas_pages
from data.records import BadRecord, DataError, Record, did_you_mean
from data.text import fault, line_ends

SUFFIXES = (
    '.txt',
    '.jsonl',
    '.txt.gz',
    '.jsonl.gz',
    '.txt.zst',
    '.jsonl.zst',
    '.parquet',
    '.arrow',
)
_TABLES = ('.parquet', '.arrow')  # rows are read by pyarrow
OBJECTS = ('.jsonl', '.jsonl.gz', '.jsonl.zst', *_TABLES)
_ROWS = 64  # of a table that are objects at a time
_ARROW_FILE = b'ARROW1'  # begins a file of Arrow, which a stream of it lacks
_PACKED = 512  # bytes of .zst that are unpacked at a time
_OPTIMIZE = sys.flags.optimize  # from 2 on there are no documentation strings
_UNDOCUMENTED = {  # they open windows, print poems, or are large and of no use
    'antigravity',
    'ensurepip',
    'idlelib',
    'lib2to3',
    'msilib',
    'test',
    'this',
    'tkinter',
    'turtle',
    'turtledemo',
}
_PACKAGES = (  # whose own modules are read too
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
_SHORTEST_DOCUMENT = 200  # characters; less is a name and little else
_MARK = 4  # bytes of the longest byte-order mark


def read(config) -> Iterator[Record | BadRecord]:
    """Yields all records of the source that a config names, always in the same order.

    `config`: the `data` part of an experiment. Raises DataError for a source that there is not.
    """
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
    """Returns the sorted files that a list of files, globs and directories leads to.

    Args:
      paths: with commas between them (`data/files.py`).
      suffixes: ends of names that can be read, in small letters.
      field: what names them, for messages.
    Raises:
      DataError: one of them leads to no such file.
    """
    return files.find(paths, suffixes, field)[0]


def passed_over(config, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """Returns which files of a source were passed over, and why; '' where none were."""
    if config.source != 'files':
        return ''
    return str(files.find(config.files.paths, suffixes, 'config.data.files.paths')[1])


def fingerprint(config, suffixes: tuple[str, ...] = SUFFIXES, reading: int = texts.READING) -> dict:
    """Returns what determines the records of a source, for keys of caches.

    That is its fields, and the state of the files it reads and the rules they are read by, or the
    version of what writes them, or a hash of the records.

    Args:
      config: the `data` part of an experiment.
      suffixes: ends of names of files that are read.
      reading: 1 for the fingerprint from before the rules of reading had a number.
    Raises:
      DataError: the files are not there.
    """
    fields = {}
    if config.source in config:
        fields = {'source': config.source, **config[config.source].to_dict()}

    if config.source == 'files':
        fields['files'] = []
        for path in find_files(config.files.paths, suffixes):
            state = path.stat()
            fields['files'].append((str(path), state.st_size, state.st_mtime_ns))
        if reading > 1:
            fields |= {'reading': reading, 'conversations': chat.RULES}
    elif config.source == 'atlas':
        fields['version'] = atlas_pages.VERSION
    else:
        # What modules document depends on the machine: their records themselves are hashed.
        fields['python'] = sys.version
        if reading > 1 and config.source == 'pydoc':
            _check_documented()
            fields['content'] = _pydoc_hash(config.pydoc.modules)
    return fields


def _read_files(config) -> Iterator[Record | BadRecord]:
    parse = functools.partial(_from_object, text_field=config.text_field, prefer=config.prefer)
    for path in find_files(config.paths):
        items = objects(path, parse) if is_kind(path, OBJECTS) else [_read_text(path)]
        yield from map(_with_line_ends, items)


def _with_line_ends(item: Record | BadRecord) -> Record | BadRecord:
    """Returns a record with all lines ended by LF (`data/text.py`)."""
    if isinstance(item, BadRecord) or not any('\r' in part for part in item.parts()):
        return item
    if item.messages is None:
        return dataclasses.replace(item, text=line_ends(item.text))
    messages = tuple((role, line_ends(content)) for role, content in item.messages)
    return dataclasses.replace(item, messages=messages)


def is_kind(path: pathlib.Path, suffixes: tuple[str, ...] | str) -> bool:
    """Returns whether a file's name has one of the ends, without case."""
    return path.name.lower().endswith(suffixes)


def objects(path: pathlib.Path, parse) -> Iterator:
    """Yields what `parse(where, fields)` makes of each JSON object of a file (one of OBJECTS).

    What is no object becomes a BadRecord.
    """
    if is_kind(path, _TABLES):
        return _read_table(path, parse)
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
        self._chunks = chunks
        self._left = memoryview(b'')

    def readable(self):
        return True

    def readinto(self, out):
        # The first read gives a byte-order mark as a whole: it is looked for there.
        while len(self._left) < _MARK:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._left = memoryview(bytes(self._left) + chunk)
        count = min(len(out), len(self._left))
        out[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _unpack_zst(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the content of a .zst file, frame by frame.

    zstandard's own reader takes a truncated file for a whole one. Few packed bytes are taken at a
    time: they come out at once, at most 32,768 for each, as does a window of at most 128 MiB.
    """
    import zstandard

    frame = None
    with open(path, 'rb') as file:
        while packed := file.read(_PACKED):
            while packed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(packed)
                packed = frame.unused_data if frame.eof else b''
                if frame.eof:
                    frame = None
    if frame:
        raise EOFError('the file ends inside a compressed frame')


def _unpack_errors() -> tuple:
    import zstandard

    return (OSError, EOFError, zlib.error, zstandard.ZstdError)


def _read_text(path: pathlib.Path) -> Record | BadRecord:
    """Returns a text file as one record."""
    if path.stat().st_size == 0:
        return BadRecord(str(path), 'empty file')
    try:
        with _open(path) as file:
            content = safe_read.content(texts.utf8(file), safe_read.DOCUMENT)
        if content is None:
            return BadRecord(
                str(path),
                f'more than {safe_read.size(safe_read.DOCUMENT)} of text in one file, which is one '
                'document: split it into several',
            )
        return _checked(str(path), texts.decode(content))
    except texts.NotTextError as error:
        return BadRecord(str(path), _describe(error))
    except _unpack_errors() as error:
        return BadRecord(str(path), f'cannot be read: {error}')


def _describe(error: texts.NotTextError, of: str = '') -> str:
    return f'{error} at byte {error.at}{of}' if error.at >= 0 else str(error)


def _checked(where: str, text) -> Record | BadRecord:
    reason = fault(text)
    return BadRecord(where, reason) if reason else Record(where, text)


def lines(path: pathlib.Path, parse) -> Iterator:
    """Yields what `parse(where, line)` makes of each line of a file that is not blank.

    The file may be packed. A line that cannot be read becomes a BadRecord.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(safe_read.lines(texts.utf8(file), safe_read.LINE), 1):
                where = f'{path}:{number}'
                if line is None:
                    yield BadRecord(
                        where,
                        f'a line of more than {safe_read.size(safe_read.LINE)}: split its document '
                        'into several',
                    )
                elif line.strip():
                    yield parse(where, line)
        if not number:
            yield BadRecord(str(path), 'empty file')
    except texts.NotTextError as error:
        yield BadRecord(f'{path}:{number + 1}', str(error))
    except _unpack_errors() as error:
        yield BadRecord(f'{path}:{number + 1}', f'cannot be read: {error}')


def decoded(where: str, line: bytes) -> str | BadRecord:
    """Returns a line of a file as text, without the mark it may begin with."""
    try:
        return texts.decode(line, what='line')
    except texts.NotTextError as error:
        return BadRecord(where, _describe(error, ' of the line'))


def _parse_line(where: str, line: bytes, parse):
    text = decoded(where, line)
    if isinstance(text, BadRecord):
        return text
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        return BadRecord(where, f'broken JSON: {error}')
    if not isinstance(fields, dict):
        return BadRecord(where, f'JSON {type(fields).__name__}, expected an object')
    return parse(where, fields)


def _from_object(where: str, fields: dict, text_field: str, prefer: str) -> Record | BadRecord:
    """Returns a record of the text in `text_field`, or of a conversation.

    `prefer` says which where there are both. A field that is null is absent, and so is a blank text
    beside a conversation.
    """
    text = fields.get(text_field)
    talks = chat.holds_conversation(fields)
    blank = isinstance(text, str) and not text.strip()
    if text is not None and not (talks and (blank or prefer == 'conversation')):
        return _checked(where, text)
    try:
        record = Record(where, messages=chat.parse_messages(fields))
    except DataError as error:
        if talks:
            return BadRecord(where, str(error))
        return BadRecord(
            where,
            f'no field {text_field!r} (config.data.files.text_field) and {error}'
            + did_you_mean(text_field, chat.fields(fields)),
        )
    reason = next(filter(None, map(fault, record.parts())), '')
    return BadRecord(where, reason) if reason else record


def _read_table(path: pathlib.Path, parse) -> Iterator:
    """Yields what `parse(where, fields)` makes of each row of a table (one of _TABLES)."""
    kind = path.suffix.lower()[1:]
    if path.stat().st_size == 0:
        yield BadRecord(str(path), 'empty file')
        return
    try:
        import pyarrow.parquet  # noqa: F401  (loads pyarrow too)
    except ImportError:
        raise DataError(f'{path}: {kind} needs the extra `hf`: pip install -e .[hf]') from None
    rows_of = _parquet_rows if kind == 'parquet' else _arrow_rows
    try:
        for number, row in enumerate(rows_of(path), 1):
            yield parse(f'{path}:{number}', row)
    except Exception as error:  # the reader's own exceptions are many and undocumented
        yield BadRecord(str(path), f'cannot be read as {kind}: {error}'.splitlines()[0])


def _parquet_rows(path: pathlib.Path) -> Iterator[dict]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            yield from batch.to_pylist()


def _arrow_rows(path: pathlib.Path) -> Iterator[dict]:
    """Yields the rows of a file or a stream of Arrow; `datasets` saves streams (save_to_disk)."""
    import pyarrow

    with pyarrow.memory_map(os.fspath(path)) as file:
        magic = file.read(len(_ARROW_FILE))
        file.seek(0)
        if magic == _ARROW_FILE:
            reader = pyarrow.ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(file))
        for batch in batches:
            for first in range(0, batch.num_rows, _ROWS):
                yield from batch.slice(first, _ROWS).to_pylist()


def _check_documented() -> None:
    """Raises DataError where this Python has left its documentation out."""
    if _OPTIMIZE > 1:
        raise DataError(
            "config.data.source 'pydoc' (search without PATH) has no text: Python runs with -OO "
            f'or PYTHONOPTIMIZE={_OPTIMIZE}, which leaves documentation out; expected at most 1'
        )


@functools.cache
def _pydoc_hash(modules: int) -> str:
    """Returns a hash of the documents of pydoc.

    Which modules can be imported and what they document depends on the machine, on how Python was
    built and on what is installed.
    """
    digest = hashlib.sha256()
    for record in _read_pydoc(modules):
        digest.update(json.dumps([record.where, record.text]).encode())
    return digest.hexdigest()


def _documented_modules() -> list[str]:
    """Returns the names of the modules whose documentation is read, in order."""
    names = sorted(
        name
        for name in sys.stdlib_module_names
        if not name.startswith('_') and name not in _UNDOCUMENTED
    )
    inner = []
    for package in _PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if not module.name.startswith('_'):
                inner.append(f'{package}.{module.name}')
    return names + sorted(inner)


def _read_pydoc(modules: int) -> Iterator[Record | BadRecord]:
    """Yields the documentation of each standard library module, one document a module.

    `modules`: how many are read; 0 for all.
    """
    for name in _documented_modules()[: modules or None]:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter('ignore')
                module = importlib.import_module(name)
        except Exception:  # a module of another platform is no part of this corpus
            continue
        text = document_module(name, module)
        if len(text) > _SHORTEST_DOCUMENT:
            yield Record(f'pydoc:{name}', text)


def document_module(name: str, module) -> str:
    """Returns the documentation of a module and of its public classes, methods and functions."""
    parts = [f'{name}\n\n{inspect.getdoc(module) or ""}']
    seen = set()
    for key, member in sorted(vars(module).items()):
        public = not key.startswith('_') and (inspect.isclass(member) or inspect.isroutine(member))
        if not public or id(member) in seen:
            continue
        seen.add(id(member))
        if getattr(member, '__module__', name) != name or not inspect.getdoc(member):
            continue
        parts.append(f'{name}.{key}\n{inspect.getdoc(member)}')
        if inspect.isclass(member):
            for method_name, method in sorted(vars(member).items()):
                public = not method_name.startswith('_') and inspect.isroutine(method)
                if public and inspect.getdoc(method):
                    parts.append(f'{name}.{key}.{method_name}\n{inspect.getdoc(method)}')
    return '\n\n'.join(parts)
