"""Refusals of the system to open, make or write, as a user's mistake in one line."""

import errno
import os
import pathlib
import re
import tempfile
import traceback
from collections.abc import Iterable

from data import paths
from data.records import did_you_mean
from runtime.errors import DiskFullError, RunError

# No room, or a disk that fails: the same command may go on later.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_USABLE = 'a place that this user may read and write'
_EXPECTED = {
    errno.ENOENT: 'one that is there',
    errno.ENAMETOOLONG: 'at most 255 bytes in a name and 4,095 in all',
    errno.ELOOP: 'a link that leads to a file or folder, not to itself',
    errno.ENOTDIR: 'a folder',
    errno.EISDIR: 'a file',
    errno.EROFS: 'a place that can be written',
    errno.EEXIST: 'a name that is free',
    errno.ENOTEMPTY: 'a name that is free',
    errno.EMFILE: 'a higher limit of open files (ulimit -n)',
    errno.EINVAL: 'a name that this file system allows',
    errno.EILSEQ: 'a name that this file system allows',
}
# What no command can do anything with: a name that is only not there may be meant to be made.
_NEVER = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EILSEQ)
_SHOWN = 60  # characters of a name in a message
_WORD = 200  # characters of a word in a message: longer ones are no words


def explain(error: BaseException, given: Iterable[tuple[str, str]]) -> RunError | None:
    """Returns the user's mistake behind a refusal of the system, None where `error` is none.

    A refusal is what Python raises of a file (OSError with its name), one of no room, or what a
    library written in C++ says of either in words ('[OS error 36: ...').

    Args:
      error: what was raised.
      given: (flag or field, its value) for all that was asked, of which the one is named that the
        refused path comes from.
    """
    if _has_no_device(error):
        return RunError(
            f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")}: this machine has no such device '
            f'that JAX can use here ({" ".join(str(error).split())[:200] or "none was found"}); '
            f'expected one that it has, or the variable unset'
        )
    if isinstance(error, RuntimeError) and 'determine home directory' in str(error):  # pathlib's
        return RunError('a path begins with ~ and no user of this system: expected ~/ or ./~')
    refusal = _as_system_error(error)
    if refusal is None or refusal.errno is None:
        return None
    where = _name_source(os.fsdecode(refusal.filename), given) if refusal.filename else ''
    what = refusal.strerror or os.strerror(refusal.errno)
    if refusal.errno in _NO_ROOM:
        return DiskFullError(
            f'{where or "the disk"}: {what}; the same command goes on when there is room'
        )
    if not where:
        return None
    if refusal.errno == errno.ENOTDIR:
        what = f'{_shorten_name(_find_file_above(os.fsdecode(refusal.filename)))} is a file'
    near = _suggest_name(os.fsdecode(refusal.filename)) if refusal.errno == errno.ENOENT else ''
    return RunError(f'{where}: {what}; expected {_EXPECTED.get(refusal.errno, _USABLE)}{near}')


def _has_no_device(error: BaseException) -> bool:
    """Returns whether JAX was asked for devices of a kind that it does not find."""
    at = traceback.extract_tb(error.__traceback__)
    return (
        isinstance(error, (RuntimeError, AssertionError))
        and bool(os.environ.get('JAX_PLATFORMS'))
        and bool(at)
        and pathlib.PurePath(at[-1].filename).parts[-3:] == ('jax', '_src', 'xla_bridge.py')
    )


def _refusal(error: OSError, name: str, path: str) -> Exception:
    """Returns the mistake behind a refusal of the path that the flag or field `name` holds."""
    return explain(error, [(name, path)]) or error


def check(name: str, path: str) -> None:
    """Raises RunError where the system would refuse a path whatever is done with it.

    `name`: the flag or field that holds it.
    """
    path = path.strip()
    if not path or '://' in path:
        return
    try:
        os.stat(paths.expanded(path))
    except OSError as error:
        if error.errno in _NEVER:
            raise _refusal(error, name, path) from None


def check_writable(name: str, path: str) -> None:
    """Raises RunError where nothing can be made in a path: before work whose result goes there.

    It makes and removes a folder in the path, or in the nearest folder above it that is there.
    """
    if '://' in path:
        return
    above = os.path.abspath(path)
    while not os.path.isdir(above) and os.path.dirname(above) != above:
        above = os.path.dirname(above)
    try:
        os.rmdir(tempfile.mkdtemp(prefix='.', dir=above))
    except OSError as error:
        # Not even the folder that is there takes a name: that is no name to look for.
        number = errno.EROFS if error.errno == errno.ENOENT else error.errno
        raise _refusal(OSError(number, error.strerror, path), name, path) from None


def shorten(line: str) -> str:
    """Returns a message without the middle of those names that are too long to be read."""
    return re.sub(rf'\S{{{_WORD},}}', lambda match: _shorten_name(match[0]), line)


def _as_system_error(error: BaseException) -> OSError | None:
    """Returns the refusal of the system that an error stands for, None where it stands for none."""
    if isinstance(error, OSError):
        if isinstance(error.filename, (str, bytes, os.PathLike)):
            return error
        return OSError(error.errno, error.strerror) if error.errno else None
    if isinstance(error, RuntimeError) and str(error).startswith('Symlink loop from '):  # pathlib's
        path = str(error).partition("'")[2].rstrip("'")
        return OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    refusal = re.search(r'\[OS error (\d+): (?:E[A-Z]+ )?([^\]]*)\]', str(error))
    if refusal is None:
        return None
    number, reason = int(refusal[1]), refusal[2]
    quoted = re.search(r'"(/[^"]*)"', str(error)[: refusal.start()])
    return OSError(number, reason, quoted[1]) if quoted else OSError(number, reason)


def _name_source(path: str, given: Iterable[tuple[str, str]]) -> str:
    """Returns the path, and before it the flag or field whose value it is or lies under.

    Of several such the one with the longest value is named.
    """
    best = ''
    named = ''
    for name, value in given:
        for part in (value, *re.split('[,=]', value)):
            for root in (part.strip(), part.strip().rpartition('@')[0]):
                full = _full(root)
                above = f'{root}/'.startswith(f'{path}/')  # of a folder and those it lies in
                if root and len(full) > len(best) and (above or _belongs_to(_full(path), full)):
                    best = full
                    named = f'{name}={_shorten_name(value)}'
    if not named:
        return _shorten_name(path)
    return named if best == _full(path) else f'{named}: {_shorten_name(path)}'


def _belongs_to(path: str, root: str) -> bool:
    """Returns whether it is the root, under it, or made beside it to take its place."""
    folder, name = os.path.split(root)
    begun = os.path.join(folder, paths.begun(name))
    return f'{path}/'.startswith((f'{root}/', f'{begun}/'))


def _full(path: str) -> str:
    return os.path.abspath(paths.expanded(path)).rstrip('/')


def _shorten_name(path: str) -> str:
    """Returns a name in one line: its tabs and ends of lines spelled out, a long one cut."""
    path = re.sub(r'[\n\r\t]', lambda match: repr(match[0])[1:-1], path)
    return path if len(path) <= _SHOWN else f'{path[: _SHOWN // 2]}…{path[-_SHOWN // 3 :]}'


def _find_file_above(path: str) -> str:
    """Returns what is no folder on the way to `path`, or the path."""
    above = path
    while not os.path.lexists(above) and os.path.dirname(above) not in ('', above):
        above = os.path.dirname(above)
    return above


def _suggest_name(path: str) -> str:
    """Returns the nearest name in the same folder, as the end of a message, or ''."""
    try:
        beside = os.listdir(os.path.dirname(path) or '.')
    except OSError:
        return ''
    name = os.path.basename(path)
    return did_you_mean(name, [other for other in beside if other != name])
