"""Reading what somebody else wrote, in bounded memory.

Files, lines and JSON, none of which is ever executed.
"""

import json
import os
from collections.abc import Iterator

from data.records import DataError

# Bytes of one text file, unpacked: to tokenize it takes 20 to 50 times as much memory.
DOCUMENT = 256 << 20
LINE = 64 << 20  # bytes of one line of JSON, unpacked
JSON = 16 << 20  # bytes of a JSON file of a run directory
MODEL = 64 << 20  # bytes of a tokenizer
_CHUNK = 1 << 20
_DEPTH = 64  # of the JSON of a run directory; what reads it is recursive


def size(count: int) -> str:
    """Returns a number of bytes in words."""
    return f'{count >> 20} MiB' if count >= 1 << 20 else f'{count} bytes'


def content(file, most: int) -> bytearray | None:
    """Returns all of an open file, or None where it is longer than `most` bytes.

    Of such a file hardly more than that is read.
    """
    whole = bytearray()
    while chunk := file.read(_CHUNK):
        whole += chunk
        if len(whole) > most:
            return None
    return whole


def lines(file, most: int) -> Iterator[bytes | None]:
    """Yields the lines of an open file, with their ends (LF, CR LF or CR).

    None stands for a line that is longer than `most` bytes.
    """
    held = b''  # the begin of a line whose end was not read yet
    while row := file.readline(max(1, most + 1 - len(held))):
        rows = [row] if not held and _is_one(row) else (held + row).splitlines(True)
        held = b'' if rows[-1].endswith(b'\n') else rows.pop()

        # After a CR an LF may follow, which belongs to it.
        if held.endswith(b'\r'):
            after = file.readline(1)
            rows.append(held + after if after == b'\n' else held)
            held = b'' if after == b'\n' else after
        yield from rows
        if len(held) > most:
            yield None
            held = _after_line(file)
    yield from held.splitlines(True)


def _is_one(row: bytes) -> bool:
    """Returns whether what `readline` gave is one line or a part of one: no CR ends one before."""
    at = row.find(b'\r')
    return at < 0 or row[at:] == b'\r\n'


def _after_line(file) -> bytes:
    """Reads on, in pieces, to the end of a line; returns what was read after it."""
    while rest := file.readline(_CHUNK):
        at = rest.find(b'\r')
        if 0 <= at < len(rest) - 1:
            return rest[at + 1 + (rest[at + 1 : at + 2] == b'\n') :]
        if at >= 0:  # the piece ends there, inside of CR LF or not
            after = file.readline(1)
            return b'' if after == b'\n' else after
        if rest.endswith(b'\n'):
            break
    return b''


def file(path, most: int) -> bytearray:
    """Returns the bytes of a file.

    Args:
      path: an `etils.epath`, local or gs://.
      most: bytes that it may have.
    Raises:
      FileNotFoundError: there is nothing, or a folder.
      DataError: it is a pipe or a device, or too large.
    """
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f'{path}: missing')
    if '://' not in os.fspath(path) and not os.path.isfile(path):  # a pipe or a device has no end
        raise DataError(f'{path}: not a regular file')
    with path.open('rb') as opened:
        whole = content(opened, most)
    if whole is None:
        raise DataError(f'{path}: larger than {size(most)}, the most that is read of such a file')
    return whole


def parse(text: bytes | bytearray) -> dict:
    """Returns a JSON object.

    Raises ValueError, with the reason in one line, for whatever else the text is.
    """
    try:
        value = json.loads(text.decode('utf-8-sig'), parse_constant=_constant)
    except RecursionError:
        raise ValueError('nested too deeply') from None
    if not isinstance(value, dict):
        raise ValueError(f'JSON {type(value).__name__}, expected an object')

    # Level by level, without recursion: what reads the object later is recursive.
    level: list = [value]
    for _ in range(_DEPTH):
        inner: list = []
        for outer in level:
            if isinstance(outer, dict):
                inner += outer.values()
            elif isinstance(outer, list):
                inner += outer
        level = inner
    if level:
        raise ValueError(f'nested more than {_DEPTH} deep')
    return value


def _constant(name: str) -> float:
    if name == 'NaN':
        raise ValueError('NaN is no value')
    return float(name)  # a bound may be infinite


def objects(path, most: int = JSON) -> Iterator[dict]:
    """Yields the objects of a file of JSON lines, and passes over what is none.

    A killed run leaves half a line. Numbers may be NaN there: a loss can be.

    Args:
      path: an `etils.epath` or a `pathlib.Path`.
      most: bytes of a line.
    """
    with path.open('rb') as opened:
        for line in lines(opened, most):
            try:
                value = json.loads(line) if line else None
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value
