"""Which files a person means: one rule for training, mining and search.

A folder stands for all files below it, a pattern (`*`, `?`, `[...]`, `**`) for those that match.
Hidden entries are passed over, and folders of programs (`__pycache__`, `node_modules`; runs,
indexes and stores of Ordem), unless they are named. Links are followed, after what is there by
itself, but for those to a folder that they are in; each file is listed once, by what it is (device
and inode), whatever leads to it. The end of a name counts without case. What is passed over is
counted.
"""

import collections
import dataclasses
import errno
import fnmatch
import functools
import glob
import os
import pathlib
import stat
import unicodedata
from collections.abc import Callable, Sequence

from data import remote
from data.paths import expanded
from data.records import DataError, did_you_mean

_PROGRAMS = ('__pycache__', 'node_modules')
# Files by which a folder is one that Ordem has made, and what it is then. Its texts are of others'.
_OWN_FOLDERS = (
    (('config.json', 'lineage.json', 'tokenizer.model'), 'in runs'),
    (('config.json', 'lineage.json', 'tokenizer.json'), 'in runs'),
    (('manifest.json', '.lock'), 'in indexes'),
    (('manifest.json', 'train.tokens'), 'in stores'),
)
_ALL = ('**', '*')
_LONGEST = 4096  # bytes of a path
_KINDS = 5  # ends of names that are told
_COMMAS = 8  # parts of a name with commas that a message proposes


@dataclasses.dataclass
class Passed:
    """Counts what was passed over.

    Attributes:
      reasons: counts by reason.
      kinds: counts by the end of the name, of files of other kinds.
      unread: (path, reason) of what cannot be read.
    """

    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unread: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        """Returns '3 hidden, 2 of other kinds (.pdf 2)'; '' where there is nothing."""
        parts = [f'{count} {reason}' for reason, count in sorted(self.reasons.items()) if count]
        if self.kinds:
            ends = [f'{kind or "none"} {count}' for kind, count in self.kinds.most_common(_KINDS)]
            more = ', ...' if len(self.kinds) > _KINDS else ''
            parts.append(f'{self.kinds.total()} of other kinds ({", ".join(ends)}{more})')
        if self.unread:
            path, reason = self.unread[0]
            parts.append(f'{len(self.unread)} that cannot be read (the first {path}: {reason})')
        return ', '.join(parts)


class Walk:
    """Lists the files that starting points lead to.

    Args:
      suffixes: ends of names that are wanted, in small letters; none: all.
      inside: a folder that is passed over.

    Attributes:
      entries: what a file is -> (path, its bytes, the time it was changed in nanoseconds). All of
        its `stat` would take most of the memory where there are many files.
      passed: what was passed over.
      reached: numbers of the starting points that led to any file.
    """

    def __init__(self, suffixes: tuple[str, ...] = (), inside: os.PathLike | None = None):
        self.entries: dict = {}
        self.passed = Passed()
        self.reached: set[int] = set()
        self._suffixes = suffixes
        self._inside = None
        if inside is not None:
            self._inside = _identity(os.fspath(inside), os.stat(inside))
        self._entered: dict = {}  # what a folder is -> (its path, patterns it was searched for)
        self._here: list[tuple] = []  # (path, patterns, starting point), the next one last
        self._links: list[tuple] = []  # the same, for later

    def go(self, starts: list[tuple[str, tuple[str, ...]]]) -> None:
        """Walks from the starting points.

        `starts`: (path, pattern below it in parts); without a pattern all of a folder, or the file.
        """
        by_path = sorted(enumerate(starts), key=lambda numbered: numbered[1])
        for number, (path, pattern) in by_path:
            linked = os.path.realpath(path) != os.path.abspath(path)
            patterns = _closed({pattern} if pattern else {_ALL, ()})
            (self._links if linked else self._here).append((path, patterns, number))
        self._here.reverse()

        # Links come after all that is there by itself: a file is listed under its own name.
        while self._here or self._links:
            if not self._here:
                self._here = self._links[::-1]
                self._links = []
            self._visit(*self._here.pop())

    def _visit(self, path: str, patterns: frozenset, start: int) -> None:
        try:
            state = os.stat(path)
            if stat.S_ISDIR(state.st_mode):
                self._enter(path, state, patterns - {()}, start)
            elif () in patterns:
                self._take(path, state, start)
        except OSError as error:
            self.cannot_read(path, error)

    def cannot_read(self, path: str, error: OSError) -> None:
        """Notes what cannot be looked at; subclasses may do other things."""
        self.passed.unread.append((path, error.strerror))

    def no_file(self, path: str) -> None:
        """Notes a pipe, a socket or a device; subclasses may do other things."""
        self.passed.reasons['as no regular file'] += 1

    def _take(self, path: str, state: os.stat_result, start: int) -> None:
        if not stat.S_ISREG(state.st_mode):
            self.no_file(path)
            return
        if self._suffixes and not path.lower().endswith(self._suffixes):
            self.passed.kinds[os.path.splitext(path)[1].lower()] += 1
            return
        self.reached.add(start)
        entry = (path, state.st_size, state.st_mtime_ns)
        known = self.entries.setdefault(_identity(path, state), entry)
        self._note_again(known[0], path)

    def _note_again(self, known: str, path: str) -> None:
        if known != path and os.path.abspath(known) != os.path.abspath(path):
            self.passed.reasons['seen under another name'] += 1

    def _enter(self, path: str, state: os.stat_result, patterns: frozenset, start: int) -> None:
        """Looks through a folder, for those patterns that it was not searched for yet."""
        identity = _identity(path, state)
        if identity == self._inside:
            return
        if not patterns:
            self.passed.reasons['as a folder (** is for what is in it)'] += 1
            return
        known, searched = self._entered.setdefault(identity, (path, set()))
        new = patterns - searched
        searched |= new
        if not new:
            self._note_again(known, path)
            return
        later: list[tuple] = []
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            rest = self._rest_of(entry, new)
            if rest:
                (self._links if entry.is_symlink() else later).append((entry.path, rest, start))
        self._here += reversed(later)

    def _rest_of(self, entry: os.DirEntry, patterns: frozenset) -> frozenset:
        """Returns what is left of patterns after an entry; counts why one is passed over."""
        rest = _after(entry.name, patterns)
        own = ''
        if any(pattern[:1] == ('**',) for pattern in rest):
            own = _own_folder(entry.path)
        if own:
            self.passed.reasons[own] += 1
            return frozenset()

        # A link to a folder around it is followed only by a pattern that names it.
        if rest and entry.is_symlink() and _is_in(entry.path):
            naming = frozenset(pattern for pattern in patterns if pattern[0] != '**')
            rest = _after(entry.name, naming) - {()}
            self.passed.reasons['as a link to a folder around it'] += not rest
        if not rest and _left_out(entry.name) and _after(entry.name, patterns, hidden=True):
            hidden = entry.name.startswith('.')
            self.passed.reasons['hidden' if hidden else f'named {entry.name}'] += 1
        return rest


def _identity(path: str, state: os.stat_result):
    """Returns what a file is; some file systems have no numbers for it."""
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(path)


def _is_in(link: str) -> bool:
    """Returns whether a link leads to a folder that it is in itself."""
    target = os.path.realpath(link)
    folder = os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, folder]) == target


def _own_folder(path: str) -> str:
    """Returns what a folder is that Ordem has made, or '' for anything else."""
    for names, reason in _OWN_FOLDERS:
        if all(os.path.isfile(os.path.join(path, name)) for name in names):
            return reason
    return ''


def _left_out(name: str) -> bool:
    return name.startswith('.') or name in _PROGRAMS


def _closed(patterns) -> frozenset:
    """Returns patterns with what is left of them where ** stands for no folder."""
    closed = set()
    for pattern in patterns:
        closed.add(pattern)
        while pattern[:1] == ('**',):
            pattern = pattern[1:]
            closed.add(pattern)
    return frozenset(closed)


def _after(name: str, patterns: frozenset, hidden: bool = False) -> frozenset:
    """Returns what is left of patterns after an entry; () is one that is matched.

    `hidden`: also where the entry is one that only a pattern which names it matches.
    """
    rest = set()
    for pattern in patterns:
        if not pattern:
            continue
        first = pattern[0]
        named = name == first or first.startswith('.')
        if _left_out(name) and not named and not hidden:
            continue
        if first == '**':
            rest.add(pattern)
        elif name == first or fnmatch.fnmatchcase(name, first):
            rest.add(pattern[1:])
    return _closed(rest)


def split(paths: str) -> list[str]:
    """Returns the entries of a list with commas between them.

    A comma is part of a name where the whole of it is there, or is a pattern that matches: the
    longest such entry is taken.
    """
    parts = paths.split(',')
    beside = functools.cache(_names_with_commas)
    entries = []
    first = 0
    while first < len(parts):
        stop = first + 1
        if _may_go_on(parts[first].lstrip(), beside):
            for end in range(first + 2, len(parts) + 1):
                joined = ','.join(parts[first:end]).strip()
                if len(joined) > _LONGEST:
                    break
                if _leads_somewhere(joined):
                    stop = end
        entries.append(','.join(parts[first:stop]).strip())
        first = stop
    return [entry for entry in entries if entry]


def _may_go_on(part: str, beside: Callable[[str], list[str] | None]) -> bool:
    """Returns whether a name may begin with `part` and a comma, by the names `beside` it.

    A list of thousands of files is no reason to try all of its stretches.
    """
    head, name = os.path.split(part)
    if part.startswith('~') or glob.has_magic(head) or '[' in name:
        return True
    names = beside(head or '.')
    if names is None or glob.has_magic(name):
        return names != []
    return any(other.startswith(_alike(name) + ',') for other in names)


def _names_with_commas(folder: str) -> list[str] | None:
    """Returns the names in a folder that have a comma; None where it cannot be listed."""
    try:
        return [_alike(name) for name in os.listdir(folder) if ',' in name]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError):
        return None


def _alike(name: str) -> str:
    """Returns a name in the form in which file systems may take two for one."""
    return unicodedata.normalize('NFC', name).casefold()


def _leads_somewhere(entry: str) -> bool:
    path, pattern = start_of(entry)
    if not pattern:
        return os.path.exists(path)
    walk = Walk()
    walk.go([(path, pattern)])
    return bool(walk.entries)


def start_of(entry: str) -> tuple[str, tuple[str, ...]]:
    """Returns (path, pattern below it in parts) of an entry; () where it is no pattern."""
    path = pathlib.Path(entry if os.path.lexists(entry) else expanded(entry))
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), None)
    if first is None or os.path.lexists(path):
        return str(path), ()
    pattern = parts[first:]
    if parts[-1] == '**':
        pattern += ('*',)
    return str(pathlib.Path(*parts[:first])), pattern


def find(paths: str, suffixes: tuple[str, ...], field: str) -> tuple[list[pathlib.Path], Passed]:
    """Returns the sorted files that a list leads to, and what was passed over.

    Args:
      paths: files, folders and patterns with commas between them; `~` is a person's own folder.
        Those of object stores are brought here first (`data/remote.py`).
      suffixes: ends of names of the files that can be read, in small letters.
      field: what names them, for messages.
    Raises:
      DataError: one of them leads to no file that can be read.
    """
    entries = [
        remote.bring(entry, suffixes, field) if remote.is_url(entry) else entry
        for entry in split(paths)
    ]
    if not entries:
        raise DataError(
            f'{field} is empty: expected files, globs or directories separated by commas'
        )
    starts = [start_of(entry) for entry in entries]

    # Entries that name one file or folder: it must be there, and of a kind that can be read.
    for number, (entry, (path, pattern)) in enumerate(zip(entries, starts)):
        if not pattern and os.path.isfile(path) and not path.lower().endswith(suffixes):
            raise DataError(f'{path}: unknown kind of file; expected one of {", ".join(suffixes)}')
        if not pattern and not os.path.isdir(path) and not os.path.isfile(path):
            raise _no_file_error(entry, path, field, entries[number:])

    walk = Walk(suffixes)
    walk.go(starts)
    for number, entry in enumerate(entries):
        if number not in walk.reached:  # by itself: another may have led to its files
            alone = Walk(suffixes)
            alone.go([starts[number]])
            if not alone.entries:
                raise _none_readable(entry, starts[number], suffixes, field, alone.passed)

    # In the order of paths, part by part; paths that are compared themselves keep their parts.
    found = [pathlib.Path(path) for path, _, _ in walk.entries.values()]
    return sorted(found, key=lambda path: str(path).replace(os.sep, '\0')), walk.passed


def _no_file_error(entry: str, path: str, field: str, rest: Sequence[str] = ()) -> DataError:
    """Returns the error that says why there is no file, and proposes one beside it.

    `rest`: the entry and those after it, for a name with commas.
    """
    name = os.path.basename(path)
    try:
        os.stat(path)
        return DataError(f'{entry}: a pipe, socket or device, not a regular file ({field})')
    except OSError as error:
        absent = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
        if not absent or os.path.islink(path):
            return DataError(f'{entry}: cannot be read ({field}): {error.strerror}')
    try:
        beside = [other for other in os.listdir(os.path.dirname(path) or '.') if other != name]
    except OSError:
        beside = []
    near = did_you_mean(name, beside)
    for count in range(2, 1 + min(len(rest), _COMMAS)):
        whole = ', '.join([name, *rest[1:count]])
        with_commas = [other for other in beside if other.count(',') == count - 1]
        near = near or did_you_mean(whole, with_commas)
    return DataError(f'{entry}: no file found ({field}){near}')


def _none_readable(entry: str, start: tuple, suffixes, field: str, passed: Passed) -> DataError:
    path, pattern = start
    note = f'; passed over: {passed}' if str(passed) else ''
    if not pattern:
        return DataError(
            f'{entry}: no file in this directory that can be read ({field}); expected one of '
            f'{", ".join(suffixes)}{note}'
        )
    error = _no_file_error(entry, os.path.join(path, *pattern), field)
    return DataError(f'{error}{note}')
