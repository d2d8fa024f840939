"""The standard streams as all commands have them.

Any character can be shown, none is closed, and a reader who has gone ends no work that is worth
keeping.
"""

import codecs
import errno
import io
import os
import sys

# Exit code of what ends because nobody reads it, as a shell tells SIGPIPE: 128 and 13.
GONE = 141


class Raw(io.FileIO):
    """The descriptor of an output stream, without which a program can go on.

    keeps: whether a stream that cannot be written raises nothing, not even once.
    error: what kept the stream from being written, None as long as it is whole. Whatever is written
      after that is dropped.
    """

    def __init__(self, descriptor: int, keeps: bool):
        super().__init__(descriptor, 'w', closefd=False)
        self.keeps = keeps
        self.error: OSError | None = None

    def write(self, data) -> int:
        """Returns how many bytes were written, or dropped.

        Raises OSError the first time that the system refuses to write, unless it `keeps` on.
        """
        size = memoryview(data).nbytes
        if self.error is not None:
            return size
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            if self.keeps:
                return size
            raise


def settle(keeps: bool = False) -> None:
    """Makes stdin, stdout and stderr fit to be used, whatever the program was started with.

    A closed one leads nowhere, so that no file that is opened later takes its number. Output whose
    encoding lacks a character spells it out (`\\u20ac`). Input that is not in its encoding is kept
    as surrogates, for `data.records.no_text` to tell of. Nobody reading stderr ends nothing; nobody
    reading stdout ends the program (`finish`), unless it `keeps` on for what it makes beside that.
    Done again it only changes `keeps`.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdin = sys.stdin or open(os.devnull, encoding='utf-8')
    sys.stdout = _wrap_output(sys.stdout, keeps)
    sys.stderr = _wrap_output(sys.stderr, True)
    if type(sys.stdin) is io.TextIOWrapper:
        ascii_only = codecs.lookup(sys.stdin.encoding).name == 'ascii'  # which is UTF-8 too
        sys.stdin.reconfigure(encoding='utf-8' if ascii_only else None, errors='surrogateescape')


def _wrap_output(stream, keeps: bool):
    """Returns the stream with a `Raw` below it.

    One that is not the system's (a test's, a notebook's) is returned as it is.
    """
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
    new = Raw(raw.fileno(), keeps)
    return io.TextIOWrapper(
        new if stream.buffer is raw else io.BufferedWriter(new),
        stream.encoding,
        'backslashreplace',
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream):
    """Returns what is below a stream's buffer."""
    buffer = getattr(stream, 'buffer', None)
    return getattr(buffer, 'raw', buffer)


def stdout_error() -> OSError | None:
    """Returns what kept stdout from being written, None where nothing did."""
    return getattr(_raw(sys.stdout), 'error', None)


def finish(code: int) -> tuple[int, str]:
    """Writes out what is buffered; returns the exit code, and a message or ''.

    `code` is that of what ran. Of a reader who has gone nothing is said. Where there was no room
    the code is that of a full disk, unless the program failed by itself.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # ValueError: somebody has closed it
            pass
    error = stdout_error()
    if error is None:
        return code, ''
    if error.errno == errno.EPIPE:
        return code or (0 if _raw(sys.stdout).keeps else GONE), ''
    return code or os.EX_IOERR, f'stdout: {error.strerror}; what was printed is not all there'
