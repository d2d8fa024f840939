"""Which files a person means: one rule for training, mining and search.

A folder stands for all files below it, a pattern (`*`, `?`, `[...]`, `**`) for those that match.
Hidden entries are passed over, and folders of programs (`__pycache__`, `node_modules`; runs,
indexes and stores of Ordem), unless they are named. Links are followed, after what is there by itself, but for those to a folder that
they are in; each file is found once, by what it is (device and inode), whatever leads to it. The
end of a name counts without case. What is passed over is counted.
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

from data.paths import expanded
from data.records import DataError, did_you_mean

_PROGRAMS = ('__pycache__', 'node_modules')
# Files by which a folder is one that Ordem has made, and what it is then. Its texts are of others'.
_MADE = (
    (('config.json', 'lineage.json', 'tokenizer.model'), 'in runs'),
    (('manifest.json', '.lock'), 'in indexes'),
    (('manifest.json', 'train.tokens'), 'in stores'),
)
_ALL = ('**', '*')
_LONGEST = 4096  # bytes of a path
_KINDS = 5  # ends of names that are told
_COMMAS = 8  # parts of a name with commas that a message proposes


@dataclasses.dataclass
class Passed:
    """What was passed over: counts by reason, ends of names of other kinds, what cannot be read."""

    reasons: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unread: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        """'3 hidden, 2 of other kinds (.pdf 2)'; '' where there is nothing."""
        told = [f'{count} {reason}' for reason, count in sorted(self.reasons.items()) if count]
        if self.kinds:
            ends = [f'{kind or "none"} {count}' for kind, count in self.kinds.most_common(_KINDS)]
            more = ', ...' if len(self.kinds) > _KINDS else ''
            told.append(f'{self.kinds.total()} of other kinds ({", ".join(ends)}{more})')
        if self.unread:
            path, reason = self.unread[0]
            told.append(f'{len(self.unread)} that cannot be read (the first {path}: {reason})')
        return ', '.join(told)


class Walk:
    """Files that starting points lead to: `found`, {what a file is: (path, its `stat`)}, and
    `passed`. `reached`: numbers of the starting points that led to any file.

    Args:
      suffixes: ends of names that are wanted, in small letters; none: all.
      inside: a folder that is passed over.
    """

    def __init__(self, suffixes: tuple[str, ...] = (), inside: os.PathLike | None = None):
        self.found: dict = {}
        self.passed = Passed()
        self.reached: set[int] = set()
        self._suffixes = suffixes
        self._inside = None if inside is None else _place(os.fspath(inside), os.stat(inside))
        self._entered: dict = {}  # what a folder is -> (its path, patterns it was searched for)
        self._here: list[tuple] = []  # (path, patterns, starting point), the next one last
        self._links: list[tuple] = []

    def go(self, starts: list[tuple[str, tuple[str, ...]]]) -> None:
        """`starts`: (path, pattern below it in parts, or none: all of a folder, or the file)."""
        for number, (path, pattern) in sorted(enumerate(starts), key=lambda s: (s[1], s[0])):
            linked = os.path.realpath(path) != os.path.abspath(path)
            whole = {pattern} if pattern else {_ALL, ()}
            (self._links if linked else self._here).append((path, _closed(whole), number))
        self._here.reverse()
        while self._here or self._links:
            if not self._here:
                self._here, self._links = self._links[::-1], []
            self._visit(*self._here.pop())

    def _visit(self, path: str, patterns: frozenset, start: int) -> None:
        try:
            found = os.stat(path)
            if stat.S_ISDIR(found.st_mode):
                self._enter(path, found, patterns - {()}, start)
            elif () in patterns:
                self._take(path, found, start)
        except OSError as error:
            self.cannot_read(path, error)

    def cannot_read(self, path: str, error: OSError) -> None:
        """Called with what cannot be looked at."""
        self.passed.unread.append((path, error.strerror))

    def no_file(self, path: str) -> None:
        """Called with a pipe, a socket or a device."""
        self.passed.reasons['as no regular file'] += 1

    def _take(self, path: str, found: os.stat_result, start: int) -> None:
        if not stat.S_ISREG(found.st_mode):
            self.no_file(path)
            return
        if self._suffixes and not path.lower().endswith(self._suffixes):
            self.passed.kinds[os.path.splitext(path)[1].lower()] += 1
            return
        self.reached.add(start)
        known, _ = self.found.setdefault(_place(path, found), (path, found))
        self._again(known, path)

    def _again(self, known: str, path: str) -> None:
        if known != path and os.path.abspath(known) != os.path.abspath(path):
            self.passed.reasons['seen under another name'] += 1

    def _enter(self, path: str, found: os.stat_result, patterns: frozenset, start: int) -> None:
        """Looks through a folder, for those patterns that it was not searched for yet."""
        place = _place(path, found)
        if place == self._inside:
            return
        if not patterns:
            self.passed.reasons['as a folder (** is for what is in it)'] += 1
            return
        known, searched = self._entered.setdefault(place, (path, set()))
        new = patterns - searched
        searched |= new
        if not new:
            self._again(known, path)
            return
        later = []
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            after, linked = _after(entry.name, new), entry.is_symlink()
            made = _made(entry.path) if any(p[:1] == ('**',) for p in after) else ''
            if made:
                self.passed.reasons[made] += 1
                continue
            if after and linked and _is_in(entry.path):  # only by a pattern that names it
                after = _after(entry.name, {p for p in new if p[0] != '**'}) - {()}
                self.passed.reasons['as a link to a folder around it'] += not after
            if after:
                (self._links if linked else later).append((entry.path, after, start))
            elif _left_out(entry.name) and _after(entry.name, new, hidden=True):
                hidden = entry.name.startswith('.')
                self.passed.reasons['hidden' if hidden else f'named {entry.name}'] += 1
        self._here += reversed(later)


def _place(path: str, found: os.stat_result):
    """What a file is; some file systems have no numbers for it."""
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)


def _is_in(link: str) -> bool:
    """Whether a link leads to a folder that it is in itself."""
    there, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([there, here]) == there


def _made(path: str) -> str:
    """What a folder is that Ordem has made; '' for any other, and for a file."""
    for names, reason in _MADE:
        if all(os.path.isfile(os.path.join(path, name)) for name in names):
            return reason
    return ''


def _left_out(name: str) -> bool:
    return name.startswith('.') or name in _PROGRAMS


def _closed(patterns) -> frozenset:
    """Patterns with what is left of them where ** stands for no folder."""
    found = set()
    for pattern in patterns:
        found.add(pattern)
        while pattern[:1] == ('**',):
            pattern = pattern[1:]
            found.add(pattern)
    return frozenset(found)


def _after(name: str, patterns: frozenset, hidden: bool = False) -> frozenset:
    """What is left of patterns after an entry: () where it is matched as a whole. `hidden`: also
    where the entry is one that only a pattern which names it matches."""
    found = set()
    for pattern in patterns:
        first, rest = (pattern[0], pattern[1:]) if pattern else (None, ())
        if first is None:
            continue
        named = name == first or first.startswith('.')
        if _left_out(name) and not named and not hidden:
            continue
        if first == '**':
            found.add(pattern)
        elif name == first or fnmatch.fnmatchcase(name, first):
            found.add(rest)
    return _closed(found)


def split(paths: str) -> list[str]:
    """Entries with commas between them. A comma is part of a name where the whole of it is there,
    or is a pattern that matches: the longest such entry is taken."""
    parts, entries, first = paths.split(','), [], 0
    beside = functools.cache(_with_commas)
    while first < len(parts):
        last, goes_on = first + 1, _may_go_on(parts[first].lstrip(), beside)
        for end in range(first + 2, len(parts) + 1) if goes_on else ():
            joined = ','.join(parts[first:end]).strip()
            if len(joined) > _LONGEST:
                break
            if _leads_somewhere(joined):
                last = end
        entries.append(','.join(parts[first:last]).strip())
        first = last
    return [entry for entry in entries if entry]


def _may_go_on(part: str, beside) -> bool:
    """Whether a name may begin with `part` and a comma, by the names that have one `beside` it: a
    list of thousands of files is no reason to try all of its stretches."""
    head, name = os.path.split(part)
    if part.startswith('~') or glob.has_magic(head) or '[' in name:
        return True
    names = beside(head or '.')
    if names is None or glob.has_magic(name):
        return names != []
    return any(other.startswith(_alike(name) + ',') for other in names)


def _with_commas(folder: str) -> list[str] | None:
    """The names in a folder that have a comma; None where it cannot be listed."""
    try:
        return [_alike(name) for name in os.listdir(folder) if ',' in name]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError):
        return None


def _alike(name: str) -> str:
    """A name in the form in which file systems may take two for one."""
    return unicodedata.normalize('NFC', name).casefold()


def _leads_somewhere(entry: str) -> bool:
    path, pattern = start(entry)
    if not pattern:
        return os.path.exists(path)
    walk = Walk()
    walk.go([(path, pattern)])
    return bool(walk.found)


def start(entry: str) -> tuple[str, tuple[str, ...]]:
    """A file, folder or pattern -> (path, pattern below it in parts, () where it is none)."""
    path = pathlib.Path(entry if os.path.lexists(entry) else expanded(entry))
    parts = path.parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), None)
    if first is None or os.path.lexists(path):
        return str(path), ()
    pattern = parts[first:] + (('*',) if parts[-1] == '**' else ())
    return str(pathlib.Path(*parts[:first])), pattern


def find(paths: str, suffixes: tuple[str, ...], field: str) -> tuple[list[pathlib.Path], Passed]:
    """Files, folders and patterns with commas between them -> sorted files, and what was passed
    over.

    Args:
      paths: as above; `~` is a person's own folder.
      suffixes: ends of names of the files that can be read, in small letters.
      field: what names them, for messages.
    Raises:
      DataError: one of them leads to no file that can be read.
    """
    entries = split(paths)
    if not entries:
        raise DataError(
            f'{field} is empty: expected files, globs or directories separated by commas'
        )
    starts = [start(entry) for entry in entries]
    for number, (entry, (path, pattern)) in enumerate(zip(entries, starts)):
        if not pattern and os.path.isfile(path) and not path.lower().endswith(suffixes):
            raise DataError(f'{path}: unknown kind of file; expected one of {", ".join(suffixes)}')
        if not pattern and not os.path.isdir(path) and not os.path.isfile(path):
            raise _nothing(entry, path, field, entries[number:])
    walk = Walk(suffixes)
    walk.go(starts)
    for number, entry in enumerate(entries):
        if number not in walk.reached:  # by itself: another may have led to its files
            alone = Walk(suffixes)
            alone.go([starts[number]])
            if not alone.found:
                raise _none_readable(entry, starts[number], suffixes, field, alone.passed)
    return sorted(pathlib.Path(path) for path, _ in walk.found.values()), walk.passed


def _nothing(entry: str, path: str, field: str, rest: list[str] = ()) -> DataError:
    """Why there is no file, in a message that proposes one beside it, perhaps one with commas in
    its name; `rest`: the entry and those after it."""
    name, linked = os.path.basename(path), os.path.islink(path)
    try:
        os.stat(path)
        return DataError(f'{entry}: a pipe, socket or device, not a regular file ({field})')
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG) or linked:
            return DataError(f'{entry}: cannot be read ({field}): {error.strerror}')
    try:
        beside = [other for other in os.listdir(os.path.dirname(path) or '.') if other != name]
    except OSError:
        beside = []
    near = did_you_mean(name, beside)
    for count in range(2, 1 + min(len(rest), _COMMAS)):
        whole = ', '.join([name, *rest[1:count]])
        near = near or did_you_mean(whole, [o for o in beside if o.count(',') == count - 1])
    return DataError(f'{entry}: no file found ({field}){near}')


def _none_readable(entry: str, start_: tuple, suffixes, field: str, passed: Passed) -> DataError:
    path, pattern = start_
    told = f'; passed over: {passed}' if str(passed) else ''
    if not pattern:
        return DataError(
            f'{entry}: no file in this directory that can be read ({field}); expected one of '
            f'{", ".join(suffixes)}{told}'
        )
    whole = _nothing(entry, os.path.join(path, *pattern), field)
    return DataError(f'{whole}{told}')
