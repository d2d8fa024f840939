"""Folders that are built once and kept in a cache under the hash of everything that determines them; in each, `manifest.json` states
the hashes of its files, and what could not be read of the source."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator

from data.records import BadRecord, DataError, printable

_LOG = logging.getLogger('ordem')

ON_BROKEN = ('skip', 'skip_all', 'fatal')
_TOLD = 100  # broken records that are named; all are counted


def stable_hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: pathlib.Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


class Report:
    """Of what a source yields: how many records are good and how many broken, and the first broken ones.

    Args:
      on_broken: skip | skip_all | fatal (see `settle`).
      quiet: the broken ones are not logged.
    """

    def __init__(self, on_broken: str, quiet: bool = False):
        self.kept, self.num_broken = 0, 0
        self.broken: list[BadRecord] = []
        self._on_broken, self._quiet = on_broken, quiet

    def good(self, items: Iterable) -> Iterator:
        """The items that are not broken. Raises DataError on a broken one under `on_broken='fatal'`."""
        for item in items:
            if not isinstance(item, BadRecord):
                self.kept += 1
                yield item
                continue
            if self._on_broken == 'fatal':
                raise _fatal(item)
            self.num_broken += 1
            if self.num_broken <= _TOLD:
                self.broken.append(item)
                if not self._quiet:
                    _LOG.warning(
                        'skipped %s', printable(' '.join(f'{item.where}: {item.reason}'.split()))
                    )

    def end(self, field: str = 'config.data.on_broken') -> None:
        """After the last item: what `settle` says. `field` names `on_broken`, for messages."""
        settle(self.facts(), self._on_broken, field, self._quiet)

    def facts(self) -> dict:
        """What a manifest says of it."""
        return dict(
            records=dict(read=self.kept + self.num_broken, kept=self.kept, broken=self.num_broken),
            broken=[dataclasses.asdict(b) for b in self.broken],
        )

    def nothing(self, config, what: str, advice: str = '') -> DataError:
        """Why a source has nothing to train on. `what`: a record is called; `advice`: what helps where all were held out."""
        if self.kept:
            return DataError(
                f'all {self.kept} {what}s fell into the held-out split: lower config.data.validation ({config.validation}){advice}'
            )
        return DataError(
            f'no usable {what} in the source {config.source!r}: {self.num_broken} broken'
            + (
                f', the first {self.broken[0].where}: {self.broken[0].reason}'
                if self.broken
                else ''
            )
        )


def _fatal(broken: BadRecord) -> DataError:
    return DataError(f'{broken.where}: {broken.reason} (config.data.on_broken is fatal)')


def settle(facts: dict, on_broken: str, field: str, quiet: bool = False) -> None:
    """Judges how much of a source could not be read, by `Report.facts`.

    More than a tenth is a warning, unless `quiet`. Raises DataError where it is more than half,
    unless `on_broken` is 'skip_all', and where it is anything and `on_broken` is 'fatal'.
    """
    read, lost, first = facts['records']['read'], facts['records']['broken'], facts['broken'][:1]
    if lost and on_broken == 'fatal':  # built when they were skipped
        raise _fatal(BadRecord(**first[0]))
    said = f'{lost} of {read} records could not be read and are left out'
    said += ''.join(f', the first {b["where"]}: {b["reason"]}' for b in first)
    if 2 * lost > read and on_broken == 'skip':
        raise DataError(f'{said}; mend them, or allow it with {field}=skip_all')
    if 10 * lost > read and not quiet:
        _LOG.warning('%s', printable(' '.join(said.split())))


def write_manifest(path: pathlib.Path, names: list[str], facts: dict) -> None:
    """The last file of a folder: `facts`, and the hashes of the files `names`."""
    hashes = {name: file_hash(path / name) for name in names}
    manifest = json.loads(
        json.dumps({**facts, 'hashes': hashes, 'hash': stable_hash(hashes)}, default=str)
    )
    manifest['check'] = stable_hash(manifest)
    (path / 'manifest.json').write_text(json.dumps(manifest, indent=1))


def _manifest(path: pathlib.Path) -> dict:
    return json.loads((path / 'manifest.json').read_text())


def find(path: pathlib.Path, what: str) -> dict | None:
    """The manifest of a folder, or None where it is not there: nothing is built. Raises DataError where it is damaged; `what` it is, for messages."""
    if not path.exists():
        return None
    fault = damage(path)
    if fault:
        raise DataError(
            f'{path}: damaged {what} ({fault}); the next run that needs it builds it again'
        )
    return _manifest(path)


def find_earlier(path: pathlib.Path, wanted: str) -> dict | None:
    """The manifest of a folder that was built under earlier rules, where it is there, whole, and
    the one that is `wanted` by its hash; else None."""
    if not wanted or not path.exists() or damage(path):
        return None
    manifest = _manifest(path)
    return manifest if manifest['hash'] == wanted else None


def get_or_build(
    path: pathlib.Path, build: Callable[[pathlib.Path], None], what: str, on_broken: str
) -> dict:
    """The manifest of a folder, which `build(folder)` fills where it is not there. One whose files are not what its manifest states is said
    to be damaged, and built again. Raises DataError where more is broken than `on_broken` allows.
    """
    if path.exists():
        _remove_damaged(path, what)
    known = path.exists()
    if not known:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = pathlib.Path(tempfile.mkdtemp(prefix=f'{path.name}.', dir=path.parent))
        try:
            build(building)
            try:
                building.rename(path)
            except OSError:  # another process was first; its folder is the same
                if not path.exists():
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    manifest = _manifest(path)
    settle(manifest, on_broken, 'config.data.on_broken', quiet=known)
    return manifest


def _remove_damaged(path: pathlib.Path, what: str) -> None:
    """Removes a folder that is damaged: one process at a time looks, so that none removes what another has built again."""
    import fcntl

    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        fault = damage(path) if path.exists() else ''
        if fault:
            _LOG.warning('%s: damaged %s (%s): built again', path, what, fault)
            aside = pathlib.Path(tempfile.mkdtemp(prefix=f'{path.name}.damaged.', dir=path.parent))
            path.rename(aside / path.name)  # at once: it is whole, or not there
            shutil.rmtree(aside)
    finally:
        os.close(folder)


def damage(path: pathlib.Path) -> str:
    """What is wrong with a folder: '' where its manifest and each of its files is what was written."""
    try:
        manifest = _manifest(path)
        if manifest.pop('check') != stable_hash(manifest):
            return 'manifest.json is not as it was written'
        wrong = [
            name for name, known in manifest['hashes'].items() if file_hash(path / name) != known
        ]
        return f'{", ".join(wrong)}: not as it was written' if wrong else ''
    except OSError as error:
        return f'{pathlib.Path(error.filename or path).name}: {error.strerror}'
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 'manifest.json cannot be read'
