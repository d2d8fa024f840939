"""Files as a person has them.

Each is found once, and read in bounded memory as parts of text that know their lines.
"""

import codecs
import dataclasses
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

from data import files as walks, records, safe_read, sources, text as texts
from data.records import BadRecord, DataError
from data.text import line_ends
from model.errors import did_you_mean

_BLOCK = 1 << 20  # bytes of text read at a time
_MAX_LINE = 4 << 20  # bytes of one line
_MAX_WHOLE = 64 << 20  # bytes of a file that is parsed as a whole: HTML, PDF
_LINE_ENDS = re.compile(rb'\r\n?|\n')
_CHARSET = re.compile(rb'<meta\s[^>]*?charset\s*=\s*["\']?\s*([\w.:-]+)', re.IGNORECASE)
# Nanoseconds: what was written later than that before it was looked at may be written again within
# one tick of its clock.
_SETTLED = 2 * 10**9


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a document.

    text: its text; each line ends with one character, as Python's text files are read.
    lines: lines[i] is the line of the file (a page, in a PDF) in which the i-th line of `text`
      stands, or where there are `begins` what begins with character begins[i] of it.
    offset: the character of the whole document with which `text` begins.
    record: the id of a JSON record, which has its own lines and offsets.
    """

    text: str
    lines: Sequence[int]
    offset: int = 0
    record: str | None = None
    begins: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class File:
    """A file that is indexed.

    name: what the index knows it by.
    size, mtime: bytes and nanoseconds, by which an unchanged one is known; an mtime of 0: only by
      its content.
    path: where it is.
    """

    name: str
    size: int
    mtime: int
    path: str

    def open(self):
        """Opens it to read bytes. Raises DataError or OSError.

        A pipe that has come in its place is not waited for.
        """
        file = os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), 'rb')
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise DataError('not a regular file any more')
        return file


def digest(file) -> str:
    """Returns the sha256 of an open file, which is at its begin again then."""
    value = hashlib.file_digest(file, 'sha256').hexdigest()
    file.seek(0)
    return value


def name_of(path: str) -> str:
    """Returns a path as the index knows it.

    It is absolute, with bytes that are no UTF-8 spelled out.
    """
    return os.fsencode(os.path.abspath(path)).decode(errors='backslashreplace')


def leads_nowhere(error: OSError) -> bool:
    """Returns whether there is no file by that name, nor by links.

    Else there is one that cannot be read just now.
    """
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def exists(path: str) -> bool:
    """Returns whether a path leads to something, be it closed."""
    try:
        os.stat(path)
    except OSError as error:
        return not leads_nowhere(error)
    return True


def is_under(name: str, roots: list[str]) -> bool:
    """Returns whether a name is one of the roots or lies under one."""
    return any(name == root or name.startswith(root.rstrip('/') + '/') for root in roots)


def write_pydoc(folder: pathlib.Path) -> None:
    """Writes Python's own documentation, a text file a module.

    That is what there is to index on any machine.
    """
    folder.mkdir(exist_ok=True)
    for record in sources.read(ConfigDict(dict(source='pydoc', pydoc=dict(modules=0)))):
        path = folder / f'{record.where.removeprefix("pydoc:")}.txt'
        if not path.exists() or path.read_text('utf-8') != record.text:
            path.write_text(record.text, 'utf-8')


class Walk(walks.Walk):
    """All files under PATHs, each once, whatever links lead to it (`data/files.py`).

    files: {name: File}.
    broken: what is no file or cannot be looked at.
    unread: names of those that are there, of which and of what is in them nothing is known now.
    passed: what was passed over.

    Args:
      roots: the PATHs.
      inside: the folder of the index, which is passed over.

    Raises:
      DataError: there is no such PATH.
    """

    def __init__(self, roots: list[str], inside: os.PathLike):
        super().__init__(inside=inside)
        self.broken: list[BadRecord] = []
        self.unread: list[str] = []
        now = time.time_ns()
        for path in roots:
            if not exists(path):
                near = records.did_you_mean(os.path.basename(path), _names_beside(path))
                raise DataError(f'{path}: no such file or folder{near}')
        self.go([(path, ()) for path in roots])
        self.files: dict[str, File] = {}
        for path, size, changed in self.entries.values():
            mtime = changed if changed < now - _SETTLED else 0
            self.files[name_of(path)] = File(name_of(path), size, mtime, path)

    def no_file(self, path: str) -> None:
        """Notes what is no regular file."""
        self.broken.append(BadRecord(path, 'a pipe, socket or device, not a regular file'))

    def cannot_read(self, path: str, error: OSError) -> None:
        """Notes what the system refuses to read."""
        self.broken.append(BadRecord(path, f'cannot be read: {error.strerror}'))
        if not leads_nowhere(error):
            self.unread.append(name_of(path))


def _names_beside(path: str) -> list[str]:
    """Returns the names in the folder of a path, as far as it can be read."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.access(folder, os.R_OK | os.X_OK):
        return []
    return [name for name in os.listdir(folder) if os.path.exists(os.path.join(folder, name))]


def read(name: str, file, text_field: str) -> Iterator[Part | BadRecord]:
    """Yields the parts of an open file, and records of it that are broken.

    Args:
      name: by its end it is read as text, JSON lines, HTML or PDF.
      file: open, in bytes.
      text_field: of a JSON record, that holds the text.

    Raises:
      DataError: the whole file is broken.
    """
    kind = pathlib.PurePath(name).suffix.lower()
    file = file if kind == '.pdf' else texts.utf8(file)
    if kind in ('.jsonl', '.ndjson'):
        yield from _jsonl(name, file, text_field)
    elif kind in ('.html', '.htm', '.xhtml'):
        yield _html(_whole(file))
    elif kind == '.pdf':
        yield from _pdf(_whole(file))
    else:
        yield from _text(file)


def _whole(file) -> bytes:
    """Returns all bytes of a file. Raises DataError where it is too large for that."""
    content = safe_read.content(file, _MAX_WHOLE)
    if content is None:
        raise DataError(
            f'larger than {safe_read.size(_MAX_WHOLE)}, the most that is read of such a file'
        )
    return bytes(content)


def _decode(raw: bytes, line: int = 1) -> str:
    """Returns whole lines as text whose lines end alike. Raises DataError where they are none.

    `line`: the number of the first of them in its file.
    """
    try:
        return line_ends(texts.decode(raw, first=line == 1))
    except texts.NotTextError as error:
        at = line + len(_LINE_ENDS.findall(raw, 0, error.at))
        raise DataError(f'{error} in line {at}' if error.at >= 0 else str(error)) from None


def _text(file) -> Iterator[Part]:
    """Yields the parts of a text: blocks of whole lines."""
    line = 1
    offset = 0
    held = b''  # read already, and part of the next block
    while raw := held + file.read(_BLOCK):
        rest = b'' if raw.endswith(b'\n') else file.readline(_MAX_LINE + 1)
        held = b''
        if len(rest) > _MAX_LINE:
            # There is no LF in it: it ends with the last CR, which is not the half of CR LF.
            end = rest.rfind(b'\r', 0, len(rest) - 1) + 1
            if not end and b'\0' not in raw + rest:
                number = line + len(_LINE_ENDS.findall(raw))
                raise DataError(f'line {number} has more than {safe_read.size(_MAX_LINE)}')
            if end:
                rest, held = rest[:end], rest[end:]
        part = _part(raw + rest, line, offset)
        yield part
        line = part.lines[-1]
        offset += len(part.text)


def _part(raw: bytes, line: int, offset: int) -> Part:
    text = _decode(raw, line)
    return Part(text, range(line, line + text.count('\n') + 1), offset)


def _jsonl(name: str, file, field: str) -> Iterator[Part | BadRecord]:
    for number, raw in enumerate(safe_read.lines(file, _MAX_LINE), 1):
        where = f'{name}:{number}'
        if raw is None:
            yield BadRecord(where, f'a line of more than {safe_read.size(_MAX_LINE)}')
        elif raw.strip():
            try:
                text, key = _read_record(raw, field)
            except ValueError as error:  # half of a surrogate pair among them
                yield BadRecord(where, f'broken record: {error}')
            else:
                yield Part(text, [number] * (text.count('\n') + 1), 0, key)


def _read_record(raw: bytes, field: str) -> tuple[str, str | None]:
    """Returns text and id of a JSON record in a line. Raises ValueError where it is broken."""
    texts.decode(raw, what='line')  # which says more of what is none
    record = safe_read.parse(raw)
    text = record.get(field)
    key = record.get('_id')
    if not isinstance(text, str):
        near = '' if field in record else f'; {did_you_mean(field, list(record)[:9])}'
        raise ValueError(f'{field!r} is {text!r:.40}, expected text{near}')
    if isinstance(record.get('title'), str):
        text = f'{record["title"]}\n{text}'

    # Half of a surrogate pair cannot be encoded.
    text.encode()
    str(key).encode()
    if '\0' in text:
        raise ValueError(texts.fault(text))
    return line_ends(text), key if key is None else str(key)


class _Page(html.parser.HTMLParser):
    """Collects what a reader sees.

    pieces: (line of the file, text) of pieces that make the whole text.
    """

    HIDDEN = ('script', 'style', 'template', 'noscript', 'svg')
    # These do not end a line.
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
    )

    def __init__(self):
        super().__init__()
        self.pieces: list[tuple[int, str]] = []
        # Pieces of the paragraph that has begun, as they are in the file.
        self._paragraph: list[tuple[int, str]] = []
        self._line = 0  # of the file, of the last text
        self._hidden = 0  # hidden tags that are open
        self._preformatted = 0  # <pre> that are open: there lines are kept as they are

    def finish(self) -> None:
        """Ends a paragraph, which an empty line follows, or a line where they are kept."""
        pieces = self._paragraph
        self._paragraph = []
        if self._preformatted:
            first = next((line for line, text in pieces if text.strip()), self._line)
            self.pieces.append((first, ''.join(text for _, text in pieces).rstrip() + '\n'))
            return

        # Space between words is one character, wherever tags stand between them.
        before = len(self.pieces)
        ends_in_space = False
        for line, text in pieces:
            has_text = len(self.pieces) > before
            space = ' ' if has_text and (ends_in_space or text[:1].isspace()) else ''
            ends_in_space = bool(space)
            if words := text.split():
                self.pieces.append((line, space + ' '.join(words)))
                ends_in_space = text[-1].isspace()
        if len(self.pieces) > before:
            self.pieces.append((self._line, '\n\n'))

    def _change(self, tag: str, change: int) -> None:
        """Takes note of a tag that opens (1) or closes (-1)."""
        if tag in self.HIDDEN:
            self._hidden = max(0, self._hidden + change)
        elif tag not in self.FLOWING:
            self.finish()
            if tag == 'pre':
                self._preformatted = max(0, self._preformatted + change)
                self.pieces.append((self._line, '\n'))

    def handle_starttag(self, tag, attrs):
        """Takes note of a tag that opens."""
        self._change(tag, 1)

    def handle_endtag(self, tag):
        """Takes note of a tag that closes."""
        self._change(tag, -1)

    def handle_data(self, data):
        """Takes note of text between tags."""
        if self._hidden and not self._preformatted:
            return
        for i, row in enumerate(data.split('\n')):
            if i and self._preformatted:
                self.finish()
            elif i:
                self._paragraph.append((self._line, '\n'))
            self._line = self.getpos()[0] + i
            self._paragraph.append((self._line, row))


def _as_utf8(raw: bytes) -> bytes:
    """Returns a page as UTF-8, where it declares another encoding that it is of.

    The declaration stands in the first 1,024 bytes (WHATWG HTML, 4.2.5.4).
    """
    declaration = _CHARSET.search(raw[:1024])
    if declaration is None or raw.startswith(codecs.BOM_UTF8):
        return raw
    try:
        name = codecs.lookup(declaration[1].decode()).name
        # The declaration was read as ASCII: of UTF-16 it cannot be.
        return raw if name.startswith('utf') else raw.decode(name).encode()
    except (LookupError, ValueError):  # no encoding of text, or not that of this one
        return raw


def _html(raw: bytes) -> Part:
    page = _Page()
    try:
        page.feed(_decode(_as_utf8(raw)))
        page.close()
        page.finish()
    except (AssertionError, RecursionError) as error:
        raise DataError(f'broken HTML: {error}') from None
    lines, texts = zip(*page.pieces) if page.pieces else ((), ())
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
