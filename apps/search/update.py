"""Indexing: an index is brought up to the files that PATHs lead to now.

Three steps, each of which goes on where it was interrupted: changed files are read and cut into chunks, a transaction each; chunks without
a vector are embedded, those of a file in a transaction; what is searched is built from them, the graph of the vectors with a copy now and then,
and takes the place of the older state at once.
"""

import bisect
import contextlib
import hashlib
import itertools
import logging
import os
import pathlib
import re
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from apps.search import files, lexical, vectors
from apps.search.chunks import Splitter
from apps.search.reader import Reader, check_same
from apps.search.store import FORMAT, Folder, fresh
from data import words as rules
from data.paths import expanded
from data.progress import track
from data.records import BadRecord, DataError, printable
from data.text import READING
from runtime.errors import RunError, StoppedBySignalError

_LOG = logging.getLogger('ordem')
_TOGETHER = 1_000  # chunks that are embedded at a time, at most: all of a file, for no more than one to be lost
_ADDED = 5_000  # vectors that are put into the graph at a time
_SAVED = 100_000  # after which it is saved
_KEPT = 'what is indexed of it is kept'
_TOLD = 100  # files and records passed over that are named; all are counted


@contextlib.contextmanager
def stoppable(what) -> Iterator[Callable[[], None]]:
    """Gives a function that raises StoppedBySignalError after SIGINT or SIGTERM; a second one ends the process."""
    numbers: list[int] = []

    def note(number, _):
        numbers.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    def check():
        if numbers:
            raise StoppedBySignalError(
                f'{what}: stopped by {signal.Signals(numbers[0]).name}; what was read and embedded is kept, and the same command goes on '
                f'from there',
                numbers[0],
            )

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Update:
    """One update of an index.

    Args:
      reader: the model.
      asked: 'chunk' and 'overlap' in tokens, 'text_field' of JSON records, 'language' of stems; None: as before, or the default.
      progress: whether to show it.
    """

    def __init__(self, folder: Folder, reader: Reader, asked: dict, progress: bool):
        self._folder, self._reader, self._asked = folder, reader, asked
        self._progress = progress
        self._counts = dict(new=0, changed=0, unchanged=0, removed=0, skipped=0)
        self._good: list[str] = []  # names of what is in the index
        self._skipped: list[str] = []
        self.refused: list[str] = []  # paths that were asked for, all of which was skipped

    def run(self, paths: list[str], remove: list[str]) -> str:
        """Indexes what is under `paths`; where none is given what was indexed before, and else Python's documentation. Takes out what is under
        `remove`. Returns a line that says what was done.

        Raises RunError where the index is of another model or settings, in use, or damaged; DataError where a path leads nowhere; StoppedBySignalError.
        """
        try:
            with self._folder.in_use(), stoppable(self._folder.path) as self._check_stop:
                return self._update(paths, remove)
        except (sqlite3.Error, OSError) as error:
            raise self._folder.unwritable(error) from None

    def _update(self, paths: list[str], remove: list[str]) -> str:
        folder = self._folder
        pydoc = str(folder.path.resolve() / 'pydoc')
        manifest = folder.manifest() or dict(
            format=FORMAT,
            generation=0,
            roots=[] if paths else [pydoc],
            excluded=[],
            files={},
            last=0,
            reading=READING,
            made=self._reader.made,
            settings={},
        )
        check_same(folder.path, manifest['made'], self._reader.made)
        self._settings = self._resolved(manifest['settings'])
        check_same(folder.path, manifest['settings'], self._settings)
        self._words = lexical.Words(self._settings['language'])
        roots = [os.path.abspath(expanded(p)) for p in paths] or manifest['roots']
        self._manifest = manifest | dict(made=self._reader.made, settings=self._settings)
        folder.clean(manifest)
        if pydoc in roots:
            folder.write_manifest(
                self._manifest
            )  # before what would make the folder one of something else
            files.write_pydoc(folder.path / 'pydoc')
        away = [] if paths else [r for r in roots if not files.exists(r)]
        walk = files.Walk([r for r in roots if r not in away], folder.path)
        if str(walk.passed):
            _LOG.info('passed over: %s', printable(str(walk.passed)))
        walk.broken += [
            BadRecord(r, f'is not there; {_KEPT} (--remove takes it out)') for r in away
        ]
        names = {r: files.name_of(r) for r in sorted({*manifest['roots'], *roots})}
        removed = [files.name_of(expanded(p)) for p in remove]
        known = folder.names(manifest) if remove else []
        known = [*names.values(), *walk.files, *known]
        removed = [_spelled(name, known) for name in removed]
        for path, name in zip(remove, removed):
            if not any(files.is_under(other, [name]) for other in known):
                raise DataError(f'--remove={path}: nothing of it is indexed')
        asked = (
            [names[r] for r in roots] if paths else []
        )  # what is asked for again is no longer left out
        excluded = [
            e
            for e in {*manifest['excluded'], *removed}
            if e in removed
            or not any(files.is_under(a, [e]) or files.is_under(e, [a]) for a in asked)
        ]
        kept = [r for r, name in names.items() if not files.is_under(name, removed)]
        self._manifest |= dict(roots=kept, excluded=sorted(excluded))
        folder.write_manifest(self._manifest)
        total = self._run(walk, [names[r] for r in roots if r not in away], excluded)
        self.refused = [path for path, root in zip(paths, roots) if self._nothing_of(names[root])]
        counts = ', '.join(f'{count:,} {name}' for name, count in self._counts.items())
        return f'{folder.path}: {counts}; {total:,} chunks' + (
            f'; words cut again, by rules {rules.RULES}' if self._recut else ''
        )

    def _nothing_of(self, root: str) -> bool:
        """Whether what is under a root was skipped, all of it."""
        skipped = any(files.is_under(name, [root]) for name in self._skipped)
        return skipped and not any(files.is_under(name, [root]) for name in self._good)

    def _each(self, found: Iterable, what: str, total: int) -> Iterator:
        """All of it with progress shown, unless a signal ends it."""
        for one in track(found, what, total, show=self._progress):
            self._check_stop()
            yield one

    def _resolved(self, before: dict) -> dict:
        chosen = {
            'text_field': 'text',
            'language': 'english',
            **before,
            **{name: value for name, value in self._asked.items() if value is not None},
        }
        if self._reader.longest < 32:
            raise RunError(
                f'{self._reader.made["run"]}: its model reads {self._reader.longest} tokens: expected one of at least 32'
            )
        chunk = chosen.setdefault('chunk', min(256, self._reader.trained))
        if not 32 <= chunk <= self._reader.longest:
            raise RunError(
                f'--chunk is {chunk}: expected 32 to {self._reader.longest}, the context of the model'
            )
        if not 0 <= chosen.setdefault('overlap', chunk // 8) <= chunk // 2:
            raise RunError(
                f'--overlap is {chosen["overlap"]}: expected 0 to {chunk // 2}, half of --chunk'
            )
        return chosen

    def _run(self, walk: files.Walk, roots: list[str], excluded: list[str]) -> int:
        """Returns the number of chunks."""
        self._recut = bool(self._manifest['files']) and self._by() != rules.RULES
        self._db, touched, damage = None, [], self._folder.damage(self._manifest, through=True)
        if damage.startswith('chunks'):
            raise self._folder.damaged(damage)
        anew = self._manifest.get('reading', 1) != READING
        if anew:
            _LOG.info('%s: was read by earlier rules: its files are read anew', self._folder.path)
        db = (
            self._writing()
            if damage
            or anew
            or self._recut
            or self._folder.next(self._manifest, 'chunks').exists()
            or not self._manifest['files']
            else self._folder.read(self._manifest)
        )
        try:
            known = {
                name: rest
                for name, *rest in db.execute(
                    'SELECT name, id, size, mtime, hash, fault FROM files'
                )
            }
            held = [name for name, (*_, fault) in known.items() if not fault]
            for broken in walk.broken:
                name = files.name_of(broken.where)
                kept = name in walk.unread and any(files.is_under(other, [name]) for other in held)
                self._skip(BadRecord(broken.where, f'{broken.reason}; {_KEPT}') if kept else broken)
            for name in known:
                gone = (
                    name not in walk.files
                    and files.is_under(name, roots)
                    and not files.is_under(name, walk.unread)
                )
                if gone or files.is_under(name, excluded):
                    with self._writing():
                        self._forget(known[name][0])
                    self._counts['removed'] += 1
            splitter = Splitter(
                lambda words: self._reader.tokenizer.encode_batch(words, 1),
                self._settings['chunk'],
                self._settings['overlap'],
            )
            for name, file in self._each(walk.files.items(), 'reading', len(walk.files)):
                if not files.is_under(name, excluded):
                    touched += self._read(file, known.get(name), splitter, anew)
            if self._db is None:
                return db.execute('SELECT count(*) FROM chunks').fetchone()[0]
            with self._db:
                self._db.executemany('UPDATE files SET size = ?, mtime = ? WHERE id = ?', touched)
            self._embed()
            return self._publish(bool(damage))
        finally:
            db.close()
            if self._db is not None:
                self._db.close()

    def _writing(self) -> sqlite3.Connection:
        """The database of the next state, which is made when there is something to write."""
        self._db = self._db or self._folder.work(self._manifest)
        return self._db

    def _read(
        self, file: files.File, known: list | None, splitter: Splitter, anew: bool
    ) -> list[tuple]:
        """Brings one file up to date, `anew` where it was read by other rules. Returns its (size,
        time, key) where only they have changed."""
        key, size, mtime, hash_, fault = known or (None, None, 0, '', '')
        touched, kind = [], 'unchanged'
        try:
            if anew or not mtime or (size, mtime) != (file.size, file.mtime):
                with file.open() as opened:
                    now = files.digest(opened)
                    if now == hash_ and not anew:
                        touched = [(file.size, file.mtime, key)]
                    else:
                        if now != hash_:
                            kind = 'changed' if known else 'new'
                        fault = self._store(file, now, opened, key, splitter)
        except (OSError, DataError) as error:
            fault = f'cannot be read: {getattr(error, "strerror", error)}' + f'; {_KEPT}' * (
                known is not None and not fault
            )
        if fault:
            self._skip(BadRecord(file.name, fault))
        else:
            self._counts[kind] += 1
            self._good.append(file.name)
        return touched

    def _store(
        self, file: files.File, hash_: str, opened, key: int | None, splitter: Splitter
    ) -> str:
        """Replaces a file and its chunks. Returns why it has none, or ''."""
        fault = ''
        with self._writing() as db:
            self._forget(key)
            key = db.execute(
                'INSERT INTO files (name, size, mtime, hash, fault) VALUES (?, ?, ?, ?, ?)',
                (file.name, file.size, file.mtime, hash_, ''),
            ).lastrowid
            try:
                for part in files.read(file.name, opened, self._settings['text_field']):
                    self._check_stop()
                    if isinstance(part, BadRecord):
                        self._skip(part)
                    for row in () if isinstance(part, BadRecord) else _cut(part, splitter):
                        same = hashlib.sha256(row[-1].encode()).digest()[:16]
                        db.execute('INSERT OR IGNORE INTO vectors (hash) VALUES (?)', (same,))
                        db.execute(
                            'INSERT INTO chunks (file, record, line, end_line, start, "end", text, vector) '
                            'SELECT ?, ?, ?, ?, ?, ?, ?, id FROM vectors WHERE hash = ?',
                            (key, *row, same),
                        )
                if not db.execute('SELECT 1 FROM chunks WHERE file = ?', (key,)).fetchone():
                    raise DataError('no text in it' if file.size else 'an empty file')
            except DataError as error:
                fault = str(error)
                db.execute('DELETE FROM chunks WHERE file = ?', (key,))
                db.execute('UPDATE files SET fault = ? WHERE id = ?', (fault, key))
        return fault

    def _forget(self, key: int | None) -> None:
        self._db.execute('DELETE FROM chunks WHERE file = ?', (key,))
        self._db.execute('DELETE FROM files WHERE id = ?', (key,))

    def _skip(self, broken: BadRecord) -> None:
        self._counts['skipped'] += 1
        kept = broken.reason.endswith(_KEPT)
        (self._good if kept else self._skipped).append(files.name_of(broken.where))
        if self._counts['skipped'] <= _TOLD:
            _LOG.warning('skipped %s', ' '.join(f'{broken.where}: {broken.reason}'.split()))
        elif self._counts['skipped'] == _TOLD + 1:
            _LOG.warning('more than %d are skipped: the rest is only counted', _TOLD)

    def _embed(self) -> None:
        """Gives each text a vector; those that no chunk has any more lose theirs."""
        with self._db:
            self._db.execute('DELETE FROM vectors WHERE id NOT IN (SELECT vector FROM chunks)')
        total = self._db.execute('SELECT count(*) FROM vectors WHERE data IS NULL').fetchone()[0]

        def embedded():
            last = 0
            while found := self._db.execute(
                'SELECT vectors.id, text, min(file) FROM vectors JOIN chunks ON vector = vectors.id WHERE data IS NULL AND vectors.id > ? '
                'GROUP BY vectors.id ORDER BY vectors.id LIMIT ?',
                (last, _TOGETHER),
            ).fetchall():
                last = found[-1][0]
                for _, rows in itertools.groupby(found, lambda row: row[-1]):
                    keys, texts, _ = zip(*rows)
                    made = self._reader.embed(
                        self._reader.encode(texts, self._settings['chunk'])
                    ).astype(np.float16)
                    with self._db:
                        self._db.executemany(
                            'UPDATE vectors SET data = ? WHERE id = ?',
                            ((v.tobytes(), key) for key, v in zip(keys, made)),
                        )
                    yield from keys

        for _ in self._each(embedded(), 'embedding', total):
            pass

    def _publish(self, damage: bool) -> int:
        """Builds what is searched, and makes it the newest state. What the last state or an interrupted process has of it is taken, that of the
        last state only without `damage`. Returns the number of chunks."""
        ids = self._ids('chunks')
        parts = [self._lexical(ids, damage), self._vectors(damage)]
        self._check_stop()
        self._manifest['reading'] = READING
        self._manifest['last'] = self._db.execute(
            'SELECT coalesce(max(id), 0) FROM vectors'
        ).fetchone()[0]  # not before: it is that of the last state
        self._manifest['words'] = rules.RULES  # neither
        self._folder.publish(self._manifest, self._db, parts)
        return len(ids)

    def _ids(self, table: str) -> np.ndarray:
        return np.fromiter(
            (key for (key,) in self._db.execute(f'SELECT id FROM {table} ORDER BY id')), np.int64
        )

    def _by(self) -> int:
        """The number of the rules by which the words of the last state are cut."""
        return self._manifest.get('words', 1)

    def _lexical(self, ids: np.ndarray, damage: bool) -> pathlib.Path:
        """The words of chunks with these ids."""
        folder, manifest = self._folder, self._manifest
        of, now = (
            self._db.execute('PRAGMA user_version').fetchone()[0],
            manifest['generation'] + 1,
        )  # `of`: the generation whose terms the database has
        found, made = folder.path / f'lexical-{of}', folder.next(manifest, 'lexical')
        kept = folder.kept(manifest, 'lexical') if of == now else None
        usable = of and (
            kept and kept.get('words', 1) == rules.RULES
            if of == now
            else manifest['files'] and not damage and not self._recut
        )
        if usable and np.array_equal(ids, np.load(found / 'ids.npy', allow_pickle=False)):
            return found

        def set_terms(terms, generation):
            with self._db:
                self._db.execute('DELETE FROM terms')
                self._db.executemany('INSERT INTO terms VALUES (?, ?)', sorted(terms.items()))
                self._db.execute(f'PRAGMA user_version = {generation}')

        set_terms({}, 0)  # while files of an interrupted process are replaced
        texts = self._each(
            self._db.execute('SELECT text FROM chunks ORDER BY id'), 'words', len(ids)
        )
        set_terms(lexical.build((text for (text,) in texts), ids, self._words, fresh(made)), now)
        folder.keep(manifest, 'lexical', made, words=rules.RULES)
        return made

    def _vectors(self, damage: bool) -> pathlib.Path:
        """The graph of all vectors: with those that are lacking, or a new one where too many of its vectors are gone."""
        folder, manifest, ids = self._folder, self._manifest, self._ids('vectors')
        known = []
        if begun := folder.kept(manifest, 'vectors'):
            known.append((folder.path / next(iter(begun['files'])), begun['last']))
        if manifest['files'] and not damage:
            known.append((folder.part(manifest, 'vectors'), manifest['last']))
        graph, live, made = vectors.make(self._reader.size), 0, folder.next(manifest, 'vectors')
        for path, last in known:
            count, held = len(vectors.view(path)), int((ids <= last).sum())
            if count - held <= vectors.STALE * count:
                if (
                    held == len(ids) and path.suffix == made.suffix
                ):  # nothing is lacking, and it was saved as a whole
                    return path
                graph, live = vectors.load(path), held
                break
        self._add(graph, ids[live:])
        self._save(graph, made, int(ids[-1]) if len(ids) else 0)
        return made

    def _add(self, graph, new: np.ndarray) -> None:
        cursor = (
            self._db.execute(
                'SELECT id, data FROM vectors WHERE id >= ? ORDER BY id', (int(new[0]),)
            )
            if len(new)
            else None
        )
        saved = len(graph)
        for found in self._each(
            iter(lambda: cursor.fetchmany(_ADDED), []) if cursor else (),
            'graph',
            -(-len(new) // _ADDED),
        ):
            vectors.add(
                graph,
                np.array([key for key, _ in found]),
                vectors.unpacked([data for _, data in found], self._reader.size),
            )
            if len(graph) - saved >= _SAVED:
                saved, last = len(graph), found[-1][0]
                self._save(
                    graph,
                    self._folder.next(self._manifest, 'vectors').with_suffix(f'.{last}'),
                    last,
                )

    def _save(self, graph, path: pathlib.Path, last: int) -> None:
        """A graph of the vectors up to this id, in place of what was saved of it before."""
        vectors.save(graph, path)
        self._folder.keep(self._manifest, 'vectors', path, last=last)
        for older in path.parent.glob(f'{path.stem}.*'):
            if older != path:
                fresh(older)


def _spelled(name: str, known: list[str]) -> str:
    """The name of a file or folder as it is `known`, which may be in another normal form."""
    if any(files.is_under(other, [name]) for other in known):
        return name
    heads = {'/'.join(other.split('/')[: name.count('/') + 1]) for other in known}
    same = rules.same_name(name)
    return min((head for head in heads if rules.same_name(head) == same), default=name)


def _cut(part: files.Part, splitter: Splitter) -> Iterator[tuple]:
    """(record, first line, last line, first character, end, text) of each chunk."""
    begins = part.begins or [0, *(newline.end() for newline in re.finditer('\n', part.text))]
    for begin, end in splitter.chunks(part.text):
        line, last = (part.lines[bisect.bisect_right(begins, at) - 1] for at in (begin, end - 1))
        yield part.record, line, last, part.offset + begin, part.offset + end, part.text[begin:end]
