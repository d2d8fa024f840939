"""Files as a person has them: found once each, and read in bounded memory as parts of text that know their lines."""

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
_LINE = 4 << 20  # bytes of one line
_WHOLE = 64 << 20  # bytes of a file that is parsed as a whole: HTML, PDF
_ENDS = re.compile(rb'\r\n?|\n')  # of lines
_CHARSET = re.compile(rb'<meta\s[^>]*?charset\s*=\s*["\']?\s*([\w.:-]+)', re.IGNORECASE)
_SETTLED = (
    2 * 10**9
)  # ns: what was written later than that before it was looked at may be written again within one tick of its clock


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a document. `lines[i]` is the line of the file in which the i-th line of `text`
    stands (a page, in a PDF), or where there are `begins` what begins with character `begins[i]` of
    it; `offset` is the character of the whole document with which `text` begins, where each line
    ends with one character (as Python's text files are read); `record` is the id of a JSON record,
    which has its own lines and offsets."""

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


class Walk(walks.Walk):
    """All files under PATHs, each once, whatever links lead to it (`data/files.py`): `files` {name:
    File}, `broken`, what is no file or cannot be looked at, `unread`, names of those that are
    there, of which and of what is in them nothing is known now, and `passed`, what was passed
    over."""

    def __init__(self, roots: list[str], inside: os.PathLike):
        """`inside`: the folder of the index, which is passed over. Raises DataError where there is no such PATH."""
        super().__init__(inside=inside)
        self.broken: list[BadRecord] = []
        self.unread: list[str] = []
        now = time.time_ns()
        for path in roots:
            if not exists(path):
                near = records.did_you_mean(os.path.basename(path), _beside(path))
                raise DataError(f'{path}: no such file or folder{near}')
        self.go([(path, ()) for path in roots])
        self.files: dict[str, File] = {}
        for path, found in self.found.values():
            mtime = found.st_mtime_ns if found.st_mtime_ns < now - _SETTLED else 0
            self.files[name_of(path)] = File(name_of(path), found.st_size, mtime, path)

    def no_file(self, path: str) -> None:
        self.broken.append(BadRecord(path, 'a pipe, socket or device, not a regular file'))

    def cannot_read(self, path: str, error: OSError) -> None:
        self.broken.append(BadRecord(path, f'cannot be read: {error.strerror}'))
        self.unread += [name_of(path)] * (not leads_nowhere(error))


def _beside(path: str) -> list[str]:
    folder = os.path.dirname(os.path.abspath(path))
    return (
        [name for name in os.listdir(folder) if os.path.exists(os.path.join(folder, name))]
        if os.access(folder, os.R_OK | os.X_OK)
        else []
    )


def read(name: str, file, text_field: str) -> Iterator[Part | BadRecord]:
    """The parts of an open file by the end of its name, and records of it that are broken. Raises DataError where the file is."""
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
    found = safe_read.content(file, _WHOLE)
    if found is None:
        raise DataError(
            f'larger than {safe_read.size(_WHOLE)}, the most that is read of such a file'
        )
    return bytes(found)


def _decoded(raw: bytes, line: int = 1) -> str:
    """Whole lines, the first of which is that `line` of a file, as text whose lines end alike.
    Raises DataError where they are none."""
    try:
        return line_ends(texts.decode(raw, first=line == 1))
    except texts.NotTextError as error:
        at = line + len(_ENDS.findall(raw, 0, error.at))
        raise DataError(f'{error} in line {at}' if error.at >= 0 else str(error)) from None


def _text(file) -> Iterator[Part]:
    line, offset, held = 1, 0, b''
    while raw := held + file.read(_BLOCK):
        rest, held = b'' if raw.endswith(b'\n') else file.readline(_LINE + 1), b''
        if len(rest) > _LINE:
            # There is no LF in it: it ends with the last CR, which is not the half of CR LF.
            end = rest.rfind(b'\r', 0, len(rest) - 1) + 1
            if not end and b'\0' not in raw + rest:
                number = line + len(_ENDS.findall(raw))
                raise DataError(f'line {number} has more than {safe_read.size(_LINE)}')
            rest, held = (rest[:end], rest[end:]) if end else (rest, b'')
        part = _part(raw + rest, line, offset)
        yield part
        line, offset = part.lines[-1], offset + len(part.text)


def _part(raw: bytes, line: int, offset: int) -> Part:
    text = _decoded(raw, line)
    return Part(text, range(line, line + text.count('\n') + 1), offset)


def _jsonl(name: str, file, field: str) -> Iterator[Part | BadRecord]:
    for number, raw in enumerate(safe_read.lines(file, _LINE), 1):
        where = f'{name}:{number}'
        if raw is None:
            yield BadRecord(where, f'a line of more than {safe_read.size(_LINE)}')
        elif raw.strip():
            try:
                texts.decode(raw, what='line')  # which says more of what is none
                found = safe_read.parse(raw)
                text, key = found.get(field), found.get('_id')
                if not isinstance(text, str):
                    raise ValueError(
                        f'{field!r} is {text!r:.40}, expected text'
                        + ('' if field in found else f'; {did_you_mean(field, list(found)[:9])}')
                    )
                if isinstance(found.get('title'), str):
                    text = f'{found["title"]}\n{text}'
                text.encode(), str(key).encode()
                if '\0' in text:
                    raise ValueError(texts.fault(text))
                text = line_ends(text)
            except ValueError as error:  # half of a surrogate pair among them
                yield BadRecord(where, f'broken record: {error}')
            else:
                yield Part(
                    text,
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
        page.feed(_decoded(_declared(raw)))
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
