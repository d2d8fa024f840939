"""Text and the ends of its lines: one reading of bytes for training, mining and search.

Text is UTF-8, or UTF-16 or UTF-32 with a byte-order mark; a line ends with LF, CR LF or CR, which
are all read as LF. Bytes with a NUL are no text, nor are those that are mostly control characters.
"""

import bisect
import codecs
import hashlib
import io
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from data.records import DataError

# Of the rules here, in data/files.py and in data/safe_read.py: raised where the same files would
# give other texts. It is part of the keys of stores and tokenizers and of the manifest of an index,
# in which there is none where they are older than the number.
READING = 2

# The longer ones first: they begin with the shorter.
_MARKS = {
    codecs.BOM_UTF32_LE: 'utf-32-le',
    codecs.BOM_UTF32_BE: 'utf-32-be',
    codecs.BOM_UTF16_LE: 'utf-16-le',
    codecs.BOM_UTF16_BE: 'utf-16-be',
}
_LOOKED_AT = 1 << 12  # bytes by which an encoding without a mark is told
# Controls that no text needs; it has bell, backspace, tab, line ends, form feed and escape.
_CONTROLS = bytes({*range(32)} - {7, 8, 9, 10, 11, 12, 13, 27})
_MOST = 0.1  # share of them in a text, but for a few
_FEW = 8
_BLOCK = 1 << 20  # characters that are compared at a time
_SPACE = re.compile(r'\s')
# White space as `str.split` knows it: in one byte, and other.
_TO_SPACE = bytes.maketrans(b'\t\n\v\f\r\x1c\x1d\x1e\x1f', b' ' * 9)
_OTHER_SPACES = (
    '\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a'
    '\u2028\u2029\u202f\u205f\u3000'
)
_MANY = re.compile('[^\\w\\s\0-\u02ff]{64,}')  # marks and symbols, one after the other
# How a pointer begins that Git LFS leaves in place of a file which was not fetched, and the bytes
# that it has at most (its docs/spec.md).
_POINTER = b'version https://git-lfs.github.com/spec/v'
_POINTER_SIZE = 1024


class NotTextError(DataError):
    """Bytes are no text.

    `at`: which byte says so, or -1 where it is none in particular.
    """

    def __init__(self, reason: str, at: int = -1):
        super().__init__(reason)
        self.at = at


def line_ends(text):
    """Returns a string with all lines ended by LF; anything else as it is."""
    if not isinstance(text, str) or '\r' not in text:
        return text
    return text.replace('\r\n', '\n').replace('\r', '\n')


def fault(text) -> str:
    """Returns why this is no text to train on or to index, or ''."""
    if not isinstance(text, str):
        return f'text is {type(text).__name__}, expected a string'
    if not text or text.isspace():
        return 'empty document'
    if '\0' in text:
        return f'NUL, which no text has, at character {text.index(chr(0))}'
    try:
        text.encode()
    except UnicodeEncodeError:
        return 'half of a surrogate pair, which is no character'
    return ''


def decode(raw: bytes | bytearray, first: bool = True, what: str = 'file') -> str:
    """Returns the text of bytes of UTF-8, line ends as they are.

    Args:
      raw: whole lines.
      first: they are the first ones, and may begin with a mark.
      what: is read, for the message.
    Raises:
      NotTextError: the bytes are no text, or of another encoding.
    """
    if first and len(raw) < _POINTER_SIZE and raw.startswith(_POINTER):
        raise NotTextError(
            'a pointer of Git LFS in place of the file: expected what git lfs pull fetches'
        )
    at = raw.find(b'\0')
    if at >= 0:
        encoding = _guess_encoding(raw[:_LOOKED_AT]) if first else ''
        if encoding:
            raise NotTextError(f'{encoding} without a byte-order mark: expected UTF-8, or a mark')
        raise NotTextError(f'a binary {what}, no text: NUL', at)
    if len(raw) - len(raw.translate(None, _CONTROLS)) > max(_FEW, _MOST * len(raw)):
        raise NotTextError(f'a binary {what}, no text: control characters')
    try:
        return raw.decode('utf-8-sig' if first else 'utf-8')
    except UnicodeDecodeError as error:
        raise NotTextError('invalid UTF-8', error.start) from None


def _guess_encoding(raw: bytes | bytearray) -> str:
    """Returns the encoding that NULs at regular places tell of, as in Latin letters; or ''."""
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
    """A file of another encoding, read as bytes of UTF-8, its mark too, piece by piece."""

    def __init__(self, file, encoding: str):
        self._text = io.TextIOWrapper(file, encoding, newline='\n')
        self._encoding = encoding

    def read(self, count: int) -> bytes:
        return self._encode(self._text.read, count)

    def readline(self, count: int) -> bytes:
        return self._encode(self._text.readline, count)

    def _encode(self, read: Callable[[int], str], count: int) -> bytes:
        try:
            return read(count).encode()
        except UnicodeError:
            raise NotTextError(f'invalid {self._encoding.upper()}') from None


def utf8(file):
    """Returns an open file (with `peek`) as one of UTF-8.

    That is the file itself, or where its mark says UTF-16 or UTF-32 one that recodes it, and raises
    NotTextError where it is not of that encoding.
    """
    head = file.peek(4)[:4]
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return _Recoded(file, encoding)
    return file


def normal_form(form: str, text: str) -> str:
    """Returns what `unicodedata.normalize` gives (NFC or NFKC), in linear time.

    That one sorts the marks of a letter by insertion, which takes minutes for a megabyte of them.
    """
    if unicodedata.is_normalized(form, text):  # linear, as nothing is out of order
        return text
    if not text.isascii():
        decomposed = form.replace('C', 'D')
        text = _MANY.sub(lambda match: _order_marks(decomposed, match[0]), text)
    return unicodedata.normalize(form, text)


def _order_marks(form: str, marks: str) -> str:
    """Returns marks and symbols taken apart, in the canonical order.

    Unicode Standard, section 3.11.
    """
    apart = ''.join(unicodedata.normalize(form, character) for character in marks)
    groups = itertools.groupby(apart, lambda character: unicodedata.combining(character) > 0)
    return ''.join(''.join(sorted(group, key=unicodedata.combining)) for _, group in groups)


def identity(parts: Iterable[str]) -> bytes:
    """Returns 16 bytes that are equal for equal texts.

    Texts are equal that only white space, or the normal form of their characters (NFC), tells
    apart.
    """
    digest = hashlib.sha256()
    for text in parts:
        for block in _blocks(text):
            digest.update(_spaced_by_one(block))
        digest.update(b'\0')
    return digest.digest()[:16]


def cut_before(text: str, ends: Iterable[str]) -> str:
    """Returns a text up to the first place where one of `ends` stands, or all of it."""
    for end in ends:
        text = text.partition(end)[0]
    return text


def place(text: str, size: int) -> int:
    """Returns the last place before which stand `size` of the characters that `identity` sees."""
    return bisect.bisect(range(len(text) + 1), size, key=lambda at: seen(text[:at])) - 1


def seen(text: str) -> int:
    """Returns how many characters of a text `identity` sees: not white space, in NFC."""
    return sum(len(word) for words in _seen_words(text) for word in words)


def _seen_words(text: str) -> Iterator[list[str]]:
    """Yields the words of a text in NFC, of some characters at a time."""
    return map(str.split, _blocks(text))


def _blocks(text: str) -> Iterator[str]:
    """Yields a text in NFC, some characters at a time, cut after white space."""
    begin = 0
    while begin < len(text):
        space = _SPACE.search(text, begin + _BLOCK)
        end = space.end() if space else len(text)
        yield normal_form('NFC', text[begin:end])
        begin = end


def _spaced_by_one(text: str) -> bytes:
    """Returns the words of a text in UTF-8, a space after each; no list of them is made."""
    if not text.isascii():
        for space in _OTHER_SPACES:
            text = text.replace(space, ' ')
    spaced = text.encode().translate(_TO_SPACE)
    while b'  ' in spaced:
        spaced = spaced.replace(b'  ', b' ')
    words = spaced.strip(b' ')
    return words + b' ' if words else b''
