"""What text is, and how its lines end: one reading of bytes for training, mining and search.

Text is UTF-8, or UTF-16 or UTF-32 with a byte-order mark; a line ends with LF, CR LF or CR, which
are all read as LF. Bytes with a NUL are no text, nor are those that are mostly control characters.
"""

import bisect
import codecs
import functools
import hashlib
import io
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator

from data.records import DataError

# Of the rules here, in data/files.py and in data/safe_read.py: raised where the same files would give
# other texts. It is part of the keys of stores and tokenizers and of the manifest of an index, in
# which there is none where they are older than the number.
READING = 2

# The longer ones first: they begin with the shorter.
_MARKS = {
    codecs.BOM_UTF32_LE: 'utf-32-le',
    codecs.BOM_UTF32_BE: 'utf-32-be',
    codecs.BOM_UTF16_LE: 'utf-16-le',
    codecs.BOM_UTF16_BE: 'utf-16-be',
}
_SURROGATE = re.compile(
    '[\ud800-\udfff]'
)  # JSON can spell half of a pair, which no encoding can write
_LOOKED_AT = 1 << 12  # bytes by which an encoding without a mark is told
# Controls that no text needs; it has bell, backspace, tab, line ends, form feed and escape.
_CONTROLS = bytes({*range(32)} - {7, 8, 9, 10, 11, 12, 13, 27})
_MOST = 0.1  # share of them in a text, but for a few
_FEW = 8
_BLOCK = 1 << 20  # characters that are compared at a time
_SPACE = re.compile(r'\s')
_MANY = re.compile('[^\\w\\s\0-\u02ff]{64,}')  # marks and symbols, one after the other
# How a pointer begins that Git LFS leaves in place of a file which was not fetched, and the bytes
# that it has at most (its docs/spec.md).
_POINTER, _POINTER_SIZE = b'version https://git-lfs.github.com/spec/v', 1024


class NotTextError(DataError):
    """Bytes that are no text: why, and `at` which byte, or -1 where it is none in particular."""

    def __init__(self, reason: str, at: int = -1):
        super().__init__(reason)
        self.at = at


def line_ends(text):
    """A string with each CR LF and each CR as LF; anything else as it is."""
    if not isinstance(text, str) or '\r' not in text:
        return text
    return text.replace('\r\n', '\n').replace('\r', '\n')


def fault(text) -> str:
    """Why this is no text to train on or to index; '' where it is one."""
    if not isinstance(text, str):
        return f'text is {type(text).__name__}, expected a string'
    if not text or text.isspace():
        return 'empty document'
    if '\0' in text:
        return f'NUL, which no text has, at character {text.index(chr(0))}'
    return 'half of a surrogate pair, which is no character' if _SURROGATE.search(text) else ''


def decode(raw: bytes | bytearray, first: bool = True, what: str = 'file') -> str:
    """Bytes of UTF-8 -> text, line ends as they are.

    Args:
      raw: whole lines.
      first: they are the first ones, and may begin with a mark.
      what: they are, for the message.
    Raises:
      NotTextError: they are none.
    """
    if first and len(raw) < _POINTER_SIZE and raw.startswith(_POINTER):
        raise NotTextError(
            'a pointer of Git LFS in place of the file: expected what git lfs pull fetches'
        )
    at = raw.find(b'\0')
    if at >= 0:
        encoding = _unmarked(raw[:_LOOKED_AT]) if first else ''
        raise NotTextError(
            f'{encoding} without a byte-order mark: expected UTF-8, or a mark'
            if encoding
            else f'a binary {what}, no text: NUL',
            -1 if encoding else at,
        )
    if len(raw) - len(raw.translate(None, _CONTROLS)) > max(_FEW, _MOST * len(raw)):
        raise NotTextError(f'a binary {what}, no text: control characters')
    try:
        return raw.decode('utf-8-sig' if first else 'utf-8')
    except UnicodeDecodeError as error:
        raise NotTextError('invalid UTF-8', error.start) from None


def _unmarked(raw: bytes | bytearray) -> str:
    """The encoding that NULs at regular places tell of, as in mostly Latin letters; or ''."""
    if len(raw) < 8:
        return ''
    zeros = [raw[i::4].count(0) / len(raw[i::4]) > 0.5 for i in range(4)]
    if zeros == [False, True, True, True]:
        return 'UTF-32-LE'
    if zeros == [True, True, True, False]:
        return 'UTF-32-BE'
    if zeros == [False, True, False, True]:
        return 'UTF-16-LE'
    return 'UTF-16-BE' if zeros == [True, False, True, False] else ''


class _Recoded:
    """Text of another encoding, read as bytes of UTF-8, its mark too, some characters at a time."""

    def __init__(self, file, encoding: str):
        self._text = io.TextIOWrapper(file, encoding, newline='\n')
        self._encoding = encoding

    def read(self, count: int) -> bytes:
        return self._bytes(self._text.read, count)

    def readline(self, count: int) -> bytes:
        return self._bytes(self._text.readline, count)

    def _bytes(self, work, count: int) -> bytes:
        try:
            return work(count).encode()
        except UnicodeError:
            raise NotTextError(f'invalid {self._encoding.upper()}') from None


def utf8(file):
    """An open file (with `peek`) as one of UTF-8: itself, or where its mark says that it is UTF-16
    or UTF-32 what is in it. That one raises NotTextError where it is not."""
    head = file.peek(4)[:4]
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return _Recoded(file, encoding)
    return file


def normal_form(form: str, text: str) -> str:
    """What `unicodedata.normalize` gives (NFC or NFKC), in linear time: that sorts the marks of a
    letter by insertion, which takes minutes for a megabyte of them."""
    if not text.isascii():
        text = _MANY.sub(functools.partial(_ordered, form.replace('C', 'D')), text)
    return unicodedata.normalize(form, text)


def _ordered(form: str, found: re.Match) -> str:
    """Marks and symbols, taken apart, in the canonical order (Unicode Standard, section 3.11)."""
    apart = ''.join(unicodedata.normalize(form, character) for character in found[0])
    groups = itertools.groupby(apart, lambda character: unicodedata.combining(character) > 0)
    return ''.join(''.join(sorted(some, key=unicodedata.combining)) for _, some in groups)


def identity(parts: Iterable[str]) -> bytes:
    """16 bytes that are equal for equal texts: those that only white space, or the normal form of
    their characters (NFC), tells apart are equal."""
    found = hashlib.sha256()
    for text in parts:
        for words in _seen(text):
            found.update(''.join(f'{word} ' for word in words).encode())
        found.update(b'\0')
    return found.digest()[:16]


def place(text: str, size: int) -> int:
    """The last character before which stand `size` of those that `identity` sees, or the end."""
    return bisect.bisect(range(len(text) + 1), size, key=lambda at: seen(text[:at])) - 1


def seen(text: str) -> int:
    """How many characters of a text `identity` sees: not white space, in NFC."""
    return sum(len(word) for words in _seen(text) for word in words)


def _seen(text: str) -> Iterator[list[str]]:
    """The words of a text in NFC, of some characters at a time."""
    begin = 0
    while begin < len(text):
        space = _SPACE.search(text, begin + _BLOCK)
        end = space.end() if space else len(text)
        yield normal_form('NFC', text[begin:end]).split()
        begin = end
