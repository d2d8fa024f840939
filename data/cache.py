"""Folders that are built once and kept under the hash of what determines them.

In each, `manifest.json` states the hashes of its files and what could not be read of the source.
"""

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
_MOST_NAMED = 100  # broken records that a manifest names; all are counted


def stable_hash(value) -> str:
    """Returns the sha256, in hex, of a value written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(path: pathlib.Path) -> str:
    """Returns the sha256 of a file, in hex."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


class Report:
    """Counts the good and the broken records of a source, and keeps the first broken ones.

    Args:
      on_broken: skip | skip_all | fatal (see `settle`).
      quiet: do not log the broken ones.
    """

    def __init__(self, on_broken: str, quiet: bool = False):
        self.kept = 0
        self.num_broken = 0
        self.broken: list[BadRecord] = []
        self._on_broken = on_broken
        self._quiet = quiet

    def good(self, items: Iterable) -> Iterator:
        """Yields the items that are no BadRecord, and counts both kinds.

        Raises DataError on a broken one under `on_broken='fatal'`.
        """
        for item in items:
            if not isinstance(item, BadRecord):
                self.kept += 1
                yield item
                continue
            if self._on_broken == 'fatal':
                raise _fatal(item)
            self.num_broken += 1
            if self.num_broken <= _MOST_NAMED:
                self.broken.append(item)
                if not self._quiet:
                    message = ' '.join(f'{item.where}: {item.reason}'.split())
                    _LOG.warning('skipped %s', printable(message))

    def end(self, field: str = 'config.data.on_broken') -> None:
        """Judges the whole source, as `settle` does, after its last item.

        `field` names `on_broken` in messages.
        """
        settle(self.facts(), self._on_broken, field, self._quiet)

    def facts(self) -> dict:
        """Returns the counts and the first broken records, as a manifest holds them."""
        return dict(
            records=dict(read=self.kept + self.num_broken, kept=self.kept, broken=self.num_broken),
            broken=[dataclasses.asdict(record) for record in self.broken],
        )

    def no_records_error(self, config, noun: str, advice: str = '') -> DataError:
        """Returns the error that says why a source has nothing to train on.

        Args:
          config: the `data` part of an experiment.
          noun: what a record is called.
          advice: what helps where all records were held out.
        """
        if self.kept:
            return DataError(
                f'all {self.kept} {noun}s fell into the held-out split: lower '
                f'config.data.validation ({config.validation}){advice}'
            )
        message = f'no usable {noun} in the source {config.source!r}: {self.num_broken} broken'
        if self.broken:
            message += f', the first {self.broken[0].where}: {self.broken[0].reason}'
        return DataError(message)


def _fatal(broken: BadRecord) -> DataError:
    return DataError(f'{broken.where}: {broken.reason} (config.data.on_broken is fatal)')


def settle(facts: dict, on_broken: str, field: str, quiet: bool = False) -> None:
    """Judges how much of a source could not be read, by `Report.facts`.

    More than a tenth is a warning, unless `quiet`. Raises DataError where it is more than half,
    unless `on_broken` is 'skip_all', and where it is anything and `on_broken` is 'fatal'.
    """
    num_read = facts['records']['read']
    num_broken = facts['records']['broken']
    first = facts['broken'][:1]

    # A folder may have been built by a run that skipped them.
    if num_broken and on_broken == 'fatal':
        raise _fatal(BadRecord(**first[0]))

    message = f'{num_broken} of {num_read} records could not be read and are left out'
    if first:
        message += f', the first {first[0]["where"]}: {first[0]["reason"]}'
    if 2 * num_broken > num_read and on_broken == 'skip':
        raise DataError(f'{message}; mend them, or allow it with {field}=skip_all')
    if 10 * num_broken > num_read and not quiet:
        _LOG.warning('%s', printable(' '.join(message.split())))


def write_manifest(folder: pathlib.Path, names: list[str], facts: dict) -> None:
    """Writes the last file of a folder: `facts`, and the hashes of the files `names`."""
    hashes = {name: file_hash(folder / name) for name in names}
    manifest = {**facts, 'hashes': hashes, 'hash': stable_hash(hashes)}

    # Hashed as it will be read: numbers of numpy and paths have become plain JSON.
    manifest = json.loads(json.dumps(manifest, default=str))
    manifest['check'] = stable_hash(manifest)
    (folder / 'manifest.json').write_text(json.dumps(manifest, indent=1))


def _read_manifest(folder: pathlib.Path) -> dict:
    return json.loads((folder / 'manifest.json').read_text())


def find(folder: pathlib.Path, noun: str) -> dict | None:
    """Returns the manifest of a folder, or None where it is not there; builds nothing.

    Raises DataError where the folder is damaged; `noun` says there what it is.
    """
    if not folder.exists():
        return None
    damage = find_damage(folder)
    if damage:
        raise DataError(
            f'{folder}: damaged {noun} ({damage}); the next run that needs it builds it again'
        )
    return _read_manifest(folder)


def find_earlier(folder: pathlib.Path, wanted: str) -> dict | None:
    """Returns the manifest of a folder that earlier rules named, or None.

    It must be whole, and have the hash that is `wanted`.
    """
    if not wanted or not folder.exists() or find_damage(folder):
        return None
    manifest = _read_manifest(folder)
    return manifest if manifest['hash'] == wanted else None


def get_or_build(
    folder: pathlib.Path, build: Callable[[pathlib.Path], None], noun: str, on_broken: str
) -> dict:
    """Returns the manifest of a folder, which `build(folder)` fills where it is not there.

    A folder whose files are not what its manifest states is logged as damaged and built again.
    Raises DataError where more is broken than `on_broken` allows.
    """
    if folder.exists():
        _remove_damaged(folder, noun)
    existed = folder.exists()

    # Built under another name and renamed at once: nobody sees half of a folder.
    if not existed:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = pathlib.Path(tempfile.mkdtemp(prefix=f'{folder.name}.', dir=folder.parent))
        try:
            build(building)
            try:
                building.rename(folder)
            except OSError:  # another process was first; its folder is the same
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)

    manifest = _read_manifest(folder)
    settle(manifest, on_broken, 'config.data.on_broken', quiet=existed)
    return manifest


def _remove_damaged(folder: pathlib.Path, noun: str) -> None:
    """Removes a folder if it is damaged.

    One process at a time looks, so that none removes what another has built again.
    """
    import fcntl

    lock = os.open(folder.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        damage = find_damage(folder) if folder.exists() else ''
        if damage:
            _LOG.warning('%s: damaged %s (%s): built again', folder, noun, damage)

            # Renamed first: under its own name it is whole, or not there.
            prefix = f'{folder.name}.damaged.'
            aside = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
            folder.rename(aside / folder.name)
            shutil.rmtree(aside)
    finally:
        os.close(lock)


def find_damage(folder: pathlib.Path) -> str:
    """Returns what is wrong with a folder, or '' where it is as it was written."""
    try:
        manifest = _read_manifest(folder)
        if manifest.pop('check') != stable_hash(manifest):
            return 'manifest.json is not as it was written'
        wrong = [
            name for name, known in manifest['hashes'].items() if file_hash(folder / name) != known
        ]
        return f'{", ".join(wrong)}: not as it was written' if wrong else ''
    except OSError as error:
        return f'{pathlib.Path(error.filename or folder).name}: {error.strerror}'
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 'manifest.json cannot be read'
