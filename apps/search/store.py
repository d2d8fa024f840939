"""The folder of an index.

What a query reads is written once and named in manifest.json; a newer state is other files, and a
newer manifest.

manifest.json      what the index was made with, PATHs, and each file below with its size, time and
                   hash; under 'begun' those of the next state
chunks-G.db        SQLite: files, chunks, vectors (float16, one for all chunks of one text) and
                   terms; indexing works on that of generation G + 1
vectors-G.usearch  a graph over the vectors (vectors.py); vectors-G.N of those up to number N, while
                   it is built
lexical-G/         BM25 (lexical.py)

A process that reads holds the files open, and keeps its state when they are removed.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import sqlite3

from data import safe_read
from data.cache import stable_hash
from data.paths import expanded
from runtime.errors import DiskFullError, RunError
from runtime.run_dir import write_atomically
from runtime.system import exclusive_lock

FORMAT = 1
_OWN = ('.lock', '.manifest.json.')  # what is there before the manifest
PARTS = {'chunks': '.db', 'vectors': '.usearch', 'lexical': ''}
_SCHEMA = """
CREATE TABLE files (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, size INTEGER, mtime INTEGER,
                    hash TEXT, fault TEXT NOT NULL);
CREATE TABLE chunks (id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL, record TEXT,
                     line INTEGER, end_line INTEGER, start INTEGER, "end" INTEGER,
                     text TEXT NOT NULL, vector INTEGER NOT NULL);
CREATE TABLE vectors (id INTEGER PRIMARY KEY AUTOINCREMENT, hash BLOB UNIQUE NOT NULL, data BLOB);
CREATE TABLE terms (term TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX chunks_of_file ON chunks (file);
CREATE INDEX chunks_of_vector ON chunks (vector);
"""


class Folder:
    """An index on the disk. Raises RunError where the folder holds something else."""

    def __init__(self, path: str):
        if not path:
            raise RunError('--index is empty: expected the folder of an index')
        self.path = pathlib.Path(expanded(path))
        self._manifest = self.path / 'manifest.json'
        if self.path.exists() and not self._manifest.exists():
            is_folder = self.path.is_dir()
            if not is_folder or any(not p.name.startswith(_OWN) for p in self.path.iterdir()):
                raise RunError(f'{self.path}: expected an index or an empty folder, found neither')

    def manifest(self) -> dict | None:
        """Returns what manifest.json holds, None where nothing was indexed here.

        Raises RunError where it is damaged, or of a format that this version does not read.
        """
        try:
            manifest = safe_read.parse(safe_read.file(self._manifest, safe_read.JSON))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunError(
                f'{self._manifest}: damaged ({error}); remove {self.path} and index again'
            ) from None
        if manifest.get('format') != FORMAT:
            raise RunError(
                f'{self.path}: an index of format {manifest.get("format")}, this version reads '
                f'{FORMAT}; index into another folder'
            )
        if manifest.pop('check', '') != stable_hash(manifest):
            raise RunError(
                f'{self._manifest}: damaged (not as it was written); remove {self.path} and index '
                f'again'
            )
        if 'excluded' not in manifest:
            raise RunError(f'{self.path}: expected an index, found the manifest of something else')
        return manifest

    def write_manifest(self, manifest: dict) -> None:
        """Writes manifest.json: it outlives a loss of power from now on."""
        content = {**manifest, 'check': stable_hash(manifest)}
        write_atomically(self._manifest, json.dumps(content, indent=1))
        _sync(self._manifest)
        _sync(self.path)

    def part(self, manifest: dict, part: str) -> pathlib.Path:
        """Returns where one of PARTS is.

        Where a state has none yet, that is where that of the next one is to be.
        """
        names = [name.partition('/')[0] for name in manifest['files'] if name.startswith(part)]
        return self.path / names[0] if names else self.next(manifest, part)

    def next(self, manifest: dict, part: str) -> pathlib.Path:
        """Returns where a part of the next state is to be."""
        return self.path / f'{part}-{manifest["generation"] + 1}{PARTS[part]}'

    @contextlib.contextmanager
    def hold(self):
        """Lets no other process index here while it is open. Raises RunError where one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        message = (
            f'{self.path}: another process indexes into this folder; wait for it, or choose '
            f'another --index'
        )
        with exclusive_lock(self.path / '.lock', message):
            yield

    def work(self, manifest: dict) -> sqlite3.Connection:
        """Returns the database of the next state.

        It is as an interrupted process left it, or a copy of the newest one.
        """
        path = self.next(manifest, 'chunks')
        unfinished = fresh(self.path / '.making')
        if not path.exists():
            try:
                if manifest.pop('begun', None):  # its numbers are those of a database that is gone
                    self.write_manifest(manifest)
                if manifest['files']:
                    shutil.copyfile(self.part(manifest, 'chunks'), unfinished)
                else:
                    with contextlib.closing(sqlite3.connect(unfinished)) as db:
                        db.executescript(_SCHEMA)
                for log in self.path.glob(f'{path.name}-*'):
                    log.unlink()
                _sync(unfinished)
                unfinished.rename(path)
            except OSError as error:  # not of the file that is read meanwhile
                raise self.unwritable(error) from None
        db = sqlite3.connect(path)
        db.execute('PRAGMA journal_mode = WAL')
        # What is committed outlives a loss of power, as what is built by its numbers does.
        db.execute('PRAGMA synchronous = FULL')
        return db

    def publish(self, manifest: dict, db: sqlite3.Connection, parts: list[pathlib.Path]) -> None:
        """Makes `db` and the other `parts` the newest state; older ones are removed."""
        db.execute('PRAGMA journal_mode = DELETE')
        db.close()
        manifest = {
            **manifest,
            'generation': manifest['generation'] + 1,
            'files': self.describe_written([self.next(manifest, 'chunks'), *parts]),
        }
        manifest.pop('begun', None)
        self.write_manifest(manifest)
        self.clean(manifest)

    def clean(self, manifest: dict) -> None:
        """Removes what is neither of this state nor of the next one."""
        current = {name.partition('/')[0] for name in manifest['files']}
        for part in PARTS:
            following = self.next(manifest, part).stem
            for path in self.path.glob(f'{part}-*'):
                if path.name not in current and not path.name.startswith(following):
                    fresh(path)
        for path in self.path.glob(f'{_OWN[-1]}*'):
            path.unlink()

    def note_begun(self, manifest: dict, part: str, path: pathlib.Path, **numbers) -> None:
        """Notes what is built of a part of the next state.

        It is for who goes on where this process is interrupted.
        """
        manifest['begun'] = {
            **manifest.get('begun', {}),
            part: dict(files=self.describe_written([path]), **numbers),
        }
        self.write_manifest(manifest)

    def find_begun(self, manifest: dict, part: str) -> dict | None:
        """Returns what `note_begun` noted, None where it is not there as it was."""
        begun = manifest.get('begun', {}).get(part)
        return None if not begun or self.damage(begun, through=True) else begun

    def describe_written(self, parts: list[pathlib.Path]) -> dict[str, list]:
        """Returns {name: [size, time, hash]} of files and of those in folders.

        From now on they outlive a loss of power.
        """
        paths = [p for part in parts for p in (sorted(part.iterdir()) if part.is_dir() else [part])]
        for path in (*paths, *(part for part in parts if part.is_dir()), self.path):
            _sync(path)
        return {
            str(p.relative_to(self.path)): [p.stat().st_size, p.stat().st_mtime_ns, _digest(p)]
            for p in paths
        }

    def open(self) -> tuple[dict, sqlite3.Connection]:
        """Returns (manifest, database) of the newest state, to read.

        Nothing is locked, nothing read through. Raises RunError where there is none.
        """
        while True:
            manifest = self.manifest()
            if manifest is None or not manifest['files']:
                state = 'its first indexing did not end, or goes on'
                if manifest is None:
                    state = 'nothing is indexed here'
                raise RunError(
                    f'{self.path}: {state}; python -m apps.search index --index={self.path} '
                    f'--run=RUN PATH... does it'
                )
            try:
                if damage := self.damage(manifest):
                    raise self.damaged(damage)
                return manifest, self.read(manifest)
            except RunError:
                if self.manifest() == manifest:  # else a newer state has just taken its place
                    raise

    def read(self, manifest: dict) -> sqlite3.Connection:
        """Returns the database of a state. Raises RunError where it is damaged."""
        path = self.part(manifest, 'chunks')
        try:
            db = sqlite3.connect(f'{path.resolve().as_uri()}?mode=ro&immutable=1', uri=True)
            db.execute('SELECT 1 FROM files').fetchone()
        except sqlite3.Error as error:
            raise self.damaged(f'{path.name}: {error}') from None
        return db

    def names(self, manifest: dict) -> list[str]:
        """Returns the names of the files of a state. Raises RunError where it is damaged."""
        if not manifest['files']:
            return []
        with contextlib.closing(self.read(manifest)) as db:
            try:
                return [name for (name,) in db.execute('SELECT name FROM files')]
            except sqlite3.Error as error:
                raise self.damaged(f'chunks: {error}') from None

    def damage(self, manifest: dict, through: bool = False) -> str:
        """Returns what is wrong with the files of a state, '' where each is what was written.

        A file with the time that it had then is read `through` only where that is asked for; one
        with another, as after a copy, is.
        """
        for name, (size, mtime, digest) in manifest['files'].items():
            path = self.path / name
            if not path.is_file():
                return f'{name} is missing'
            if path.stat().st_size != size:
                return f'{name} has {path.stat().st_size} bytes, expected {size}'
            if (through or path.stat().st_mtime_ns != mtime) and _digest(path) != digest:
                return f'{name} is not as it was written'
        return ''

    def unwritable(self, error: Exception) -> RunError:
        """Returns the error of a folder that cannot be written: its disk may be full."""
        number = getattr(error, 'errno', None)
        is_full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        # SQLite's words; the second is of its journal.
        is_full = is_full or any(
            words in str(error) for words in ('disk is full', 'disk I/O error')
        )
        return (DiskFullError if is_full else RunError)(
            f'{self.path}: cannot be written: {error}; the same command goes on when it can; if it '
            f'never does, remove {self.path} and index again'
        )

    def damaged(self, what: str) -> RunError:
        """Returns the error of an index that is damaged, with what mends it."""
        mend = 'the command that indexed it mends it'
        if what.startswith('chunks'):
            mend = f'remove {self.path} and index again'
        return RunError(f'{self.path}: a damaged index: {what}; {mend}')


def fresh(path: pathlib.Path) -> pathlib.Path:
    """Returns the path, with nothing there any more."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def _sync(path: pathlib.Path) -> None:
    """Brings what was written of a file, or of the names in a folder, onto the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _digest(path: pathlib.Path) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
