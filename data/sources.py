"""Where text comes from: `config.data.source` is atlas, files or pydoc. Each yields Records and Broken reports."""

import difflib
import functools
import hashlib
import inspect
import io
import itertools
import json
import pathlib
import pkgutil
import re
import sys
import zlib
from collections.abc import Iterator

from data import atlas, atlas_facts, bounded
from data.chat import parse_messages
from data.paths import expanded
from data.records import Broken, DataError, Record

SUFFIXES = ('.txt', '.jsonl', '.txt.gz', '.jsonl.gz', '.txt.zst', '.jsonl.zst', '.parquet')
OBJECTS = ('.jsonl', '.jsonl.gz', '.jsonl.zst', '.parquet')
_PACKED = 512  # bytes of .zst that are unpacked at a time
_SURROGATE = re.compile(
    '[\ud800-\udfff]'
)  # JSON can spell half of a pair, which no encoding can write


def read(config) -> Iterator[Record | Broken]:
    """All records of the source that `config` (the `data` part of an experiment) names, always in the same order."""
    if config.source == 'atlas':
        return atlas.records(config.atlas)
    if config.source == 'files':
        return _read_files(config.files)
    if config.source == 'pydoc':
        return _read_pydoc(config.pydoc)
    raise DataError(
        f'config.data.source is {config.source!r}: expected one of atlas, files, pydoc'
        + nearest(config.source, ('atlas', 'files', 'pydoc'))
    )


def fingerprint(config, suffixes: tuple[str, ...] = SUFFIXES) -> dict:
    """What determines the records of a source: its fields and the state of the files it reads."""
    found = (
        {'source': config.source, **config[config.source].to_dict()}
        if config.source in config
        else {}
    )
    if config.source == 'files':
        found['files'] = [
            (str(p), p.stat().st_size, p.stat().st_mtime_ns)
            for p in find_files(config.files.paths, suffixes)
        ]
    elif config.source == 'atlas':
        found['code'] = hashlib.sha256(
            (inspect.getsource(atlas) + inspect.getsource(atlas_facts)).encode()
        ).hexdigest()
    else:
        found['python'] = sys.version
    return found


def find_files(
    paths: str, suffixes: tuple[str, ...] = SUFFIXES, field: str = 'config.data.files.paths'
) -> list[pathlib.Path]:
    """Files, globs and directories (searched through, known suffixes only), separated by commas -> sorted files. `field`: what names them."""
    files: list[pathlib.Path] = []
    if not paths.strip():
        raise DataError(
            f'{field} is empty: expected files, globs or directories separated by commas'
        )
    for entry in (p.strip() for p in paths.split(',') if p.strip()):
        path = pathlib.Path(expanded(entry))
        if path.is_dir():
            found = [p for p in path.rglob('*') if p.is_file() and p.name.endswith(suffixes)]
            if not found:
                raise DataError(
                    f'{entry}: no file in this directory that can be read ({field}); expected one of {", ".join(suffixes)}'
                )
        elif path.is_file():
            if not path.name.endswith(suffixes):
                raise DataError(
                    f'{path}: unknown kind of file; expected one of {", ".join(suffixes)}'
                )
            found = [path]
        else:
            found = [p for p in _matching(path) if p.is_file() and p.name.endswith(suffixes)]
        if not found:
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(f'{entry}: no file found ({field})' + nearest(path.name, beside))
        files += found
    return sorted(set(files))


def _matching(pattern: pathlib.Path) -> Iterator[pathlib.Path]:
    """What a glob names, without hidden files. ** does not follow links to folders, as `glob.glob` does: of two that lead to where they
    are it would make paths without end."""
    import glob

    if '**' not in pattern.parts:
        return map(pathlib.Path, glob.glob(str(pattern)))
    first = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    rest = [*pattern.parts[first:], *['*'] * (pattern.name == '**')]
    found = pathlib.Path(*pattern.parts[:first]).glob('/'.join(rest))
    return (
        p
        for p in found
        if not any(part.startswith('.') for part in p.parts[first:] if part not in rest)
    )


def nearest(name: str, choices) -> str:
    """The end of a message: the choice nearest to `name`, if any is near."""
    close = difflib.get_close_matches(name, list(choices), 1)
    return f'; did you mean {close[0]!r}?' if close else ''


def _read_files(config) -> Iterator[Record | Broken]:
    parse = functools.partial(_from_object, field=config.text_field)
    for path in find_files(config.paths):
        yield from objects(path, parse) if path.name.endswith(OBJECTS) else [_read_text(path)]


def objects(path: pathlib.Path, parse) -> Iterator:
    """What `parse(where, object)` makes of each JSON object of a file (one of OBJECTS); what is none is Broken."""
    if path.name.endswith('.parquet'):
        return _read_parquet(path, parse)
    return lines(path, functools.partial(_parse_line, parse=parse))


def _open(path: pathlib.Path) -> io.BufferedIOBase:
    if path.suffix == '.gz':
        import gzip

        return gzip.open(path, 'rb')
    if path.suffix == '.zst':
        return io.BufferedReader(_Chunks(_unpack_zst(path)))
    return open(path, 'rb')


class _Chunks(io.RawIOBase):
    """A file of the chunks that an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._left = chunks, memoryview(b'')

    def readable(self):
        return True

    def readinto(self, out):
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
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


def _read_text(path) -> Record | Broken:
    if path.stat().st_size == 0:
        return Broken(str(path), 'empty file')
    try:
        with _open(path) as file:
            found = bounded.content(file, bounded.DOCUMENT)
        if found is None:
            return Broken(
                str(path),
                f'more than {bounded.size(bounded.DOCUMENT)} of text in one file, which is one document: split it into several',
            )
        return _checked(str(path), found.decode('utf-8-sig'))
    except UnicodeDecodeError as error:
        return Broken(str(path), f'invalid UTF-8 at byte {error.start}')
    except _unpack_errors() as error:
        return Broken(str(path), f'cannot be read: {error}')


def _checked(where: str, text) -> Record | Broken:
    reason = fault(text)
    return Broken(where, reason) if reason else Record(where, text)


def fault(text) -> str:
    """Why this is no text to train on; '' where it is one."""
    if not isinstance(text, str):
        return f'text is {type(text).__name__}, expected a string'
    if not text or text.isspace():
        return 'empty document'
    return 'half of a surrogate pair, which is no character' if _SURROGATE.search(text) else ''


def lines(path: pathlib.Path, parse) -> Iterator:
    """What `parse(where, line)` makes of each line of a file, packed or not, that is not blank; one that cannot be read is Broken."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(bounded.lines(file, bounded.LINE), 1):
                if line is None:
                    yield Broken(
                        f'{path}:{number}',
                        f'a line of more than {bounded.size(bounded.LINE)}: split its document into several',
                    )
                elif line.strip():
                    yield parse(f'{path}:{number}', line)
        if not number:
            yield Broken(str(path), 'empty file')
    except _unpack_errors() as error:
        yield Broken(f'{path}:{number + 1}', f'cannot be read: {error}')


def _parse_line(where: str, line: bytes, parse):
    try:
        found = json.loads(line.decode('utf-8-sig'))
    except UnicodeDecodeError as error:
        return Broken(where, f'invalid UTF-8 at byte {error.start} of the line')
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        return Broken(where, f'broken JSON: {error}')
    if not isinstance(found, dict):
        return Broken(where, f'JSON {type(found).__name__}, expected an object')
    return parse(where, found)


def _from_object(where: str, found: dict, field: str) -> Record | Broken:
    if field in found:
        return _checked(where, found[field])
    try:
        record = Record(where, messages=parse_messages(found))
    except DataError as error:
        return Broken(
            where, f'no field {field!r} and {error}' + nearest(field, itertools.islice(found, 100))
        )
    reason = next(filter(None, map(fault, record.parts())), '')
    return Broken(where, reason) if reason else record


def _read_parquet(path, parse) -> Iterator:
    if path.stat().st_size == 0:
        yield Broken(str(path), 'empty file')
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
        yield Broken(str(path), f'cannot be read as parquet: {error}'.splitlines()[0])


def _read_pydoc(config) -> Iterator[Record | Broken]:
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
    for name in names[: config.modules or None]:
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
