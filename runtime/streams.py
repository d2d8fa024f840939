"""The standard streams as all commands have them: any character can be shown, none is closed,
and a reader who has gone ends no work that is worth keeping.
"""

import codecs
import errno
import io
import os
import sys

GONE = 141  # exit code of what ends because nobody reads it, as a shell tells SIGPIPE: 128 and 13


class Raw(io.FileIO):
    """The descriptor of an output stream, without which a program can go on.

    lost: what kept the stream from being written, None as long as it is whole. Whatever is written
      after that is dropped.
    """

    def __init__(self, descriptor: int, keeps: bool):
        """`keeps`: whether a stream that cannot be written raises nothing, not even once."""
        super().__init__(descriptor, 'w', closefd=False)
        self.keeps, self.lost = keeps, None

    def write(self, data) -> int | None:
        """Raises OSError the first time that the system refuses to write, unless `keeps`."""
        size = memoryview(data).nbytes
        if self.lost is not None:
            return size
        try:
            return super().write(data)
        except OSError as error:
            self.lost = error
            if self.keeps:
                return size
            raise


def settle(keeps: bool = False) -> None:
    """Makes stdin, stdout and stderr fit to be used, whatever the program was started with.

    A closed one leads nowhere, so that no file that is opened later takes its number. Output whose
    encoding lacks a character spells it out (`\\u20ac`). Input that is not in its encoding is kept
    as surrogates, for `data.records.no_text` to tell of. Nobody reading stderr ends nothing; nobody
    reading stdout ends the program (`ended`), unless it `keeps` on for what it makes beside that.
    Done again it only changes `keeps`.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdin = sys.stdin or open(os.devnull, encoding='utf-8')
    sys.stdout = _out(sys.stdout, keeps)
    sys.stderr = _out(sys.stderr, True)
    if type(sys.stdin) is io.TextIOWrapper:
        ascii_only = codecs.lookup(sys.stdin.encoding).name == 'ascii'  # which is UTF-8 too
        sys.stdin.reconfigure(encoding='utf-8' if ascii_only else None, errors='surrogateescape')


def _out(stream, keeps: bool):
    """The stream with a `Raw` below it; one that is not the system's (a test's, a notebook's) as
    it is."""
    if stream is None:
        return open(os.devnull, 'w', encoding='utf-8')
    if type(stream) is not io.TextIOWrapper:
        return stream
    raw = _raw(stream)
    if isinstance(raw, Raw):
        raw.keeps = keeps
        return stream
    if type(raw) is not io.FileIO:
        return stream
    try:
        stream.flush()
    except OSError:
        pass  # what was printed before this cannot be told
    mine = Raw(raw.fileno(), keeps)
    return io.TextIOWrapper(
        mine if stream.buffer is raw else io.BufferedWriter(mine),
        stream.encoding,
        'backslashreplace',
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream):
    buffer = getattr(stream, 'buffer', None)
    return getattr(buffer, 'raw', buffer)


def lost() -> OSError | None:
    """What kept stdout from being written, if anything did."""
    return getattr(_raw(sys.stdout), 'lost', None)


def ended(code: int) -> tuple[int, str]:
    """Writes out what is buffered. `code`: the exit code of what ran -> the one that it has in
    view of what became of its output, and what is to be told of that, or ''.

    Of a reader who has gone nothing is told. Where there was no room the code is that of a full
    disk, unless the program failed by itself.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # ValueError: somebody has closed it
            pass
    error = lost()
    if error is None:
        return code, ''
    if error.errno == errno.EPIPE:
        return code or (0 if _raw(sys.stdout).keeps else GONE), ''
    return code or os.EX_IOERR, f'stdout: {error.strerror}; what was printed is not all there'
