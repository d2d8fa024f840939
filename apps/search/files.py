"""Files as a person has them: found once each, and read in bounded memory as parts of text that know their lines."""

import codecs
import dataclasses
import difflib
import errno
import hashlib
import html.parser
import io
import itertools
import logging
import os
import pathlib
import re
import stat
import time
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from data import bounded, sources
from data.records import Broken, DataError
from model.errors import nearest

_PASSED_OVER = ('__pycache__', 'node_modules')  # and what is hidden
_BLOCK = 1 << 20  # bytes of text read at a time
_LINE = 4 << 20  # bytes of one line
_WHOLE = 64 << 20  # bytes of a file that is parsed as a whole: HTML, PDF
# The longer ones first: they begin with the shorter.
_MARKS = {
    codecs.BOM_UTF32_LE: 'utf-32-le',
    codecs.BOM_UTF32_BE: 'utf-32-be',
    codecs.BOM_UTF16_LE: 'utf-16-le',
    codecs.BOM_UTF16_BE: 'utf-16-be',
}
_CHARSET = re.compile(rb'<meta\s[^>]*?charset\s*=\s*["\']?\s*([\w.:-]+)', re.IGNORECASE)
_SETTLED = (
    2 * 10**9
)  # ns: what was written later than that before it was looked at may be written again within one tick of its clock


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a document. `lines[i]` is the line of the file in which the i-th line of `text` stands (a page, in a PDF), or where there are `begins`
    what begins with character `begins[i]` of it; `offset` is the character of the whole document with which `text` begins; `record` is the id of a
    JSON record, which has its own lines and offsets."""

    text: str
    lines: Sequence[int]
    offset: int = 0
    record: str | None = None
    begins: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class File:
    """`name`: what the index knows it by; `size` in bytes and `mtime` in ns, by which an unchanged one is known (0: only by its content)."""

    name: str
    size: int
    mtime: int
    path: str

    def open(self):
        """A pipe that has come in its place is not waited for. Raises DataError or OSError."""
        file = os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), 'rb')
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise DataError('not a regular file any more')
        return file


def digest(file) -> str:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
    file.seek(0)
    return found


def name_of(path: str) -> str:
    """A path as the index knows it: absolute, bytes that are no UTF-8 spelled out."""
    return os.fsencode(os.path.abspath(path)).decode(errors='backslashreplace')


def leads_nowhere(error: OSError) -> bool:
    """Whether there is no file by that name, by links neither, rather than one that cannot be read just now."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def exists(path: str) -> bool:
    """Whether a path leads to something, be it closed."""
    try:
        os.stat(path)
    except OSError as error:
        return not leads_nowhere(error)
    return True


def is_under(name: str, roots: list[str]) -> bool:
    return any(name == root or name.startswith(root.rstrip('/') + '/') for root in roots)


def write_pydoc(folder: pathlib.Path) -> None:
    """Python's own documentation, a text file a module: what there is to index on any machine."""
    folder.mkdir(exist_ok=True)
    for record in sources.read(ConfigDict(dict(source='pydoc', pydoc=dict(modules=0)))):
        path = folder / f'{record.where.removeprefix("pydoc:")}.txt'
        if not path.exists() or path.read_text('utf-8') != record.text:
            path.write_text(record.text, 'utf-8')


class Walk:
    """All files under PATHs, each once, whatever links lead to it: `files` {name: File}, `broken`, what is no file or cannot be looked at, and
    `unread`, names of those that are there, of which and of what is in them nothing is known now. Links are followed after what is there by itself.
    Hidden entries are passed over."""

    def __init__(self, roots: list[str], inside: os.PathLike):
        """`inside`: the folder of the index, which is passed over. Raises DataError where there is no such PATH."""
        self.files: dict[str, File] = {}
        self.broken: list[Broken] = []
        self.unread: list[str] = []
        self._now = time.time_ns()
        self._seen = {(os.stat(inside).st_dev, os.stat(inside).st_ino)}
        for path in roots:
            if not exists(path):
                close = difflib.get_close_matches(os.path.basename(path), _beside(path), 1)
                raise DataError(
                    f'{path}: no such file or folder'
                    + (f'; did you mean {close[0]!r}?' if close else '')
                )
        paths = roots[::-1]
        while paths:
            paths = self._visit(paths)

    def _visit(self, paths: list[str]) -> list[str]:
        """Goes through files and folders; returns the links in them."""
        links: list[str] = []
        while paths:
            path = paths.pop()
            try:
                found = os.stat(path)
                place = found.st_dev, found.st_ino
                if found.st_ino and place in self._seen:
                    continue
                self._seen.add(place)
                if stat.S_ISDIR(found.st_mode):
                    for entry in sorted(os.scandir(path), key=lambda e: e.name, reverse=True):
                        if not entry.name.startswith('.') and entry.name not in _PASSED_OVER:
                            (links if entry.is_symlink() else paths).append(entry.path)
                elif stat.S_ISREG(found.st_mode):
                    mtime = found.st_mtime_ns if found.st_mtime_ns < self._now - _SETTLED else 0
                    self.files[name_of(path)] = File(name_of(path), found.st_size, mtime, path)
                else:
                    self.broken.append(Broken(path, 'a pipe, socket or device, not a regular file'))
            except OSError as error:
                self.broken.append(Broken(path, f'cannot be read: {error.strerror}'))
                self.unread += [name_of(path)] * (not leads_nowhere(error))
        return links


def _beside(path: str) -> list[str]:
    folder = os.path.dirname(os.path.abspath(path))
    return (
        [name for name in os.listdir(folder) if os.path.exists(os.path.join(folder, name))]
        if os.access(folder, os.R_OK | os.X_OK)
        else []
    )


def read(name: str, file, text_field: str) -> Iterator[Part | Broken]:
    """The parts of an open file by the end of its name, and records of it that are broken. Raises DataError where the file is."""
    kind = pathlib.PurePath(name).suffix.lower()
    file = file if kind == '.pdf' else _utf8(file)
    if kind in ('.jsonl', '.ndjson'):
        yield from _jsonl(name, file, text_field)
    elif kind in ('.html', '.htm', '.xhtml'):
        yield _html(_whole(file))
    elif kind == '.pdf':
        yield from _pdf(_whole(file))
    else:
        yield from _text(file)


class _Recoded:
    """Text of another encoding, read as bytes of UTF-8, its mark too, some characters at a time."""

    def __init__(self, file, encoding: str):
        self._text, self._encoding = io.TextIOWrapper(file, encoding, newline='\n'), encoding

    def read(self, count: int) -> bytes:
        return self._bytes(self._text.read, count)

    def readline(self, count: int) -> bytes:
        return self._bytes(self._text.readline, count)

    def _bytes(self, work, count: int) -> bytes:
        try:
            return work(count).encode()
        except UnicodeDecodeError:
            raise DataError(f'invalid {self._encoding.upper()}') from None


def _utf8(file):
    """The file, or where a byte-order mark says that it is UTF-16 or UTF-32 what is in it."""
    first = file.read(4)
    file.seek(0)
    return next(
        (_Recoded(file, encoding) for mark, encoding in _MARKS.items() if first.startswith(mark)),
        file,
    )


def _whole(file) -> bytes:
    found = bounded.content(file, _WHOLE)
    if found is None:
        raise DataError(f'larger than {bounded.size(_WHOLE)}, the most that is read of such a file')
    return bytes(found)


def _decoded(raw: bytes, line: int) -> str:
    if b'\0' in raw:
        raise DataError('a binary file')
    try:
        text = raw.decode('utf-8-sig' if line == 1 else 'utf-8')
    except UnicodeDecodeError as error:
        raise DataError(f'invalid UTF-8 in line {line + raw.count(10, 0, error.start)}') from None
    return text.replace('\r\n', ' \n').replace('\r', '\n')  # the same number of characters


def _text(file) -> Iterator[Part]:
    line, offset = 1, 0
    while raw := file.read(_BLOCK):
        rest = b'' if raw.endswith(b'\n') else file.readline(_LINE + 1)
        if b'\0' not in raw and len(rest) > _LINE:
            raise DataError(f'line {line + raw.count(10)} has more than {bounded.size(_LINE)}')
        text = _decoded(raw + rest, line)
        count = text.count('\n')
        yield Part(text, range(line, line + count + 1), offset)
        line, offset = line + count, offset + len(text)


def _jsonl(name: str, file, field: str) -> Iterator[Part | Broken]:
    for number, raw in enumerate(bounded.lines(file, _LINE), 1):
        where = f'{name}:{number}'
        if raw is None:
            yield Broken(where, f'a line of more than {bounded.size(_LINE)}')
        elif raw.strip():
            try:
                found = bounded.parse(raw)
                text, key = found.get(field), found.get('_id')
                if not isinstance(text, str):
                    raise ValueError(
                        f'{field!r} is {text!r:.40}, expected text'
                        + ('' if field in found else f'; {nearest(field, list(found)[:9])}')
                    )
                if isinstance(found.get('title'), str):
                    text = f'{found["title"]}\n{text}'
                text.encode(), str(key).encode()
            except ValueError as error:  # half of a surrogate pair among them
                yield Broken(where, f'broken record: {error}')
            else:
                yield Part(
                    text.replace('\0', ' '),
                    [number] * (text.count('\n') + 1),
                    0,
                    key if key is None else str(key),
                )


class _Page(html.parser.HTMLParser):
    """Collects what a reader sees: `found`, (line of the file, text) of pieces that make the whole text."""

    HIDDEN = ('script', 'style', 'template', 'noscript', 'svg')
    FLOWING = (
        'a',
        'abbr',
        'b',
        'cite',
        'code',
        'del',
        'dfn',
        'em',
        'font',
        'i',
        'ins',
        'kbd',
        'label',
        'mark',
        'q',
        's',
        'samp',
        'small',
        'span',
        'strong',
        'sub',
        'sup',
        'time',
        'tt',
        'u',
        'var',
        'wbr',
    )  # do not end a line

    def __init__(self):
        super().__init__()
        self.found: list[tuple[int, str]] = []
        self._now: list[tuple[int, str]] = []  # of the paragraph, as they are in the file
        self._at = self._hidden = self._kept = 0

    def _end(self) -> None:
        """Of a paragraph, which an empty line follows; of a line where they are kept."""
        now, self._now = self._now, []
        if self._kept:
            self.found.append(
                (
                    next((line for line, text in now if text.strip()), self._at),
                    ''.join(text for _, text in now).rstrip() + '\n',
                )
            )
            return
        space, before = '', len(self.found)
        for line, text in now:
            space = ' ' * (len(self.found) > before and (bool(space) or text[:1].isspace()))
            if words := text.split():
                self.found.append((line, space + ' '.join(words)))
                space = ' ' * text[-1].isspace()
        if len(self.found) > before:
            self.found.append((self._at, '\n\n'))

    def _tag(self, tag: str, change: int) -> None:
        if tag in self.HIDDEN:
            self._hidden = max(0, self._hidden + change)
        elif tag not in self.FLOWING:
            self._end()
            if tag == 'pre':
                self._kept = max(0, self._kept + change)
                self.found.append((self._at, '\n'))

    def handle_starttag(self, tag, attrs):
        self._tag(tag, 1)

    def handle_endtag(self, tag):
        self._tag(tag, -1)

    def handle_data(self, data):
        for i, row in enumerate(data.split('\n') if self._kept or not self._hidden else ()):
            if i and self._kept:
                self._end()
            elif i:
                self._now.append((self._at, '\n'))
            self._at = self.getpos()[0] + i
            self._now.append((self._at, row))


def _declared(raw: bytes) -> bytes:
    """A page as UTF-8, where it declares another encoding that it is of; the declaration stands in the first 1,024 bytes (WHATWG HTML, 4.2.5.4)."""
    found = _CHARSET.search(raw[:1024])
    try:
        name = (
            codecs.lookup(found[1].decode()).name
            if found and not raw.startswith(codecs.BOM_UTF8)
            else 'utf-8'
        )
        return (
            raw if name.startswith('utf') else raw.decode(name).encode()
        )  # it was read as ASCII: UTF-16 it cannot be
    except (LookupError, ValueError):  # no encoding of text, or not that of this one
        return raw


def _html(raw: bytes) -> Part:
    page = _Page()
    try:
        page.feed(_decoded(_declared(raw), 1))
        page.close()
        page._end()
    except (AssertionError, RecursionError) as error:
        raise DataError(f'broken HTML: {error}') from None
    lines, texts = zip(*page.found) if page.found else ((), ())
    return Part(''.join(texts)[:-1], lines, begins=[0, *itertools.accumulate(map(len, texts))][:-1])


def _pdf(raw: bytes) -> Iterator[Part]:
    import pypdf  # slow to import, and rarely needed

    logging.getLogger('pypdf').setLevel(logging.CRITICAL)
    offset = 0
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        for number, page in enumerate(reader.pages, 1):
            text = page.extract_text().encode(errors='replace').decode().replace('\0', ' ')
            yield Part(text, [number] * (text.count('\n') + 1), offset)
            offset += len(text)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise DataError(
            f'broken PDF: {" ".join(str(error).split()) or type(error).__name__}'
        ) from None
