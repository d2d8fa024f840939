"""Indexing: an index is brought up to the files that PATHs lead to now.

Three steps, each of which goes on where it was interrupted: changed files are read and cut into
chunks, a transaction each; chunks without a vector are embedded, those of a file in a transaction;
what is searched is built from them, the graph of the vectors with a copy now and then, and takes
the place of the older state at once.
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
# Chunks that are embedded at a time, at most: all of a file, for no more than one to be lost.
_EMBEDDED_TOGETHER = 1_000
_ADDED_TOGETHER = 5_000  # vectors that are put into the graph at a time
_SAVE_EVERY = 100_000  # vectors put into the graph
_KEPT = 'what is indexed of it is kept'
_NAMED = 100  # files and records passed over that are named in the log; all are counted
_SHORTEST = 32  # tokens of a chunk


@contextlib.contextmanager
def stoppable(what) -> Iterator[Callable[[], None]]:
    """Gives a function that raises StoppedBySignalError after SIGINT or SIGTERM.

    A second signal ends the process. `what`: the path that the message names.
    """
    numbers: list[int] = []

    def note(number, _):
        numbers.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    def check():
        if numbers:
            raise StoppedBySignalError(
                f'{what}: stopped by {signal.Signals(numbers[0]).name}; what was read and embedded '
                f'is kept, and the same command goes on from there',
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
      folder: of the index.
      reader: the model.
      asked: 'chunk' and 'overlap' in tokens, 'text_field' of JSON records, 'language' of stems;
        None: as before, or the default.
      progress: whether to show it.
    """

    def __init__(self, folder: Folder, reader: Reader, asked: dict, progress: bool):
        self._folder = folder
        self._reader = reader
        self._asked = asked
        self._progress = progress
        self._counts = dict(new=0, changed=0, unchanged=0, removed=0, skipped=0)
        self._good: list[str] = []  # names of what is in the index
        self._skipped: list[str] = []
        self.refused: list[str] = []  # paths that were asked for, all of which was skipped

    def run(self, paths: list[str], remove: list[str]) -> str:
        """Brings the index up to date; returns a line that says what was done.

        Args:
          paths: what is indexed; empty: what was indexed before, and else Python's documentation.
          remove: files and folders that are taken out.

        Raises:
          RunError: the index is of another model or settings, in use, or damaged.
          DataError: a path leads nowhere.
          StoppedBySignalError: a signal came; the same command goes on.
        """
        try:
            with self._folder.hold(), stoppable(self._folder.path) as self._check_stop:
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

        # An index is of one model and of one set of settings.
        check_same(folder.path, manifest['made'], self._reader.made)
        self._settings = self._resolve_settings(manifest['settings'])
        check_same(folder.path, manifest['settings'], self._settings)
        self._words = lexical.Words(self._settings['language'])
        roots = [os.path.abspath(expanded(p)) for p in paths] or manifest['roots']
        self._manifest = manifest | dict(made=self._reader.made, settings=self._settings)
        folder.clean(manifest)
        if pydoc in roots:
            # The manifest first: files without one would make the folder that of something else.
            folder.write_manifest(self._manifest)
            files.write_pydoc(folder.path / 'pydoc')

        # Find the files. A root of before that is not there now keeps what is indexed of it.
        away = [] if paths else [r for r in roots if not files.exists(r)]
        walk = files.Walk([r for r in roots if r not in away], folder.path)
        if str(walk.passed):
            _LOG.info('passed over: %s', printable(str(walk.passed)))
        walk.broken += [
            BadRecord(r, f'is not there; {_KEPT} (--remove takes it out)') for r in away
        ]

        # What is taken out stays out, until it is asked for again.
        names = {r: files.name_of(r) for r in sorted({*manifest['roots'], *roots})}
        known = [*names.values(), *walk.files, *(folder.names(manifest) if remove else [])]
        removed = _find_removed(remove, known)
        asked = [names[r] for r in roots] if paths else []
        excluded = [
            e
            for e in {*manifest['excluded'], *removed}
            if e in removed
            or not any(files.is_under(a, [e]) or files.is_under(e, [a]) for a in asked)
        ]
        remaining = [r for r, name in names.items() if not files.is_under(name, removed)]
        self._manifest |= dict(roots=remaining, excluded=sorted(excluded))
        folder.write_manifest(self._manifest)

        total = self._run(walk, [names[r] for r in roots if r not in away], excluded)
        self.refused = [path for path, root in zip(paths, roots) if self._nothing_of(names[root])]
        counts = ', '.join(f'{count:,} {name}' for name, count in self._counts.items())
        return f'{folder.path}: {counts}; {total:,} chunks' + (
            f'; words cut again, by rules {rules.RULES}' if self._recut else ''
        )

    def _nothing_of(self, root: str) -> bool:
        """Returns whether all that is under a root was skipped."""
        skipped = any(files.is_under(name, [root]) for name in self._skipped)
        return skipped and not any(files.is_under(name, [root]) for name in self._good)

    def _each(self, items: Iterable, what: str, total: int) -> Iterator:
        """Yields the items with their progress shown, until a signal ends it."""
        for item in track(items, what, total, show=self._progress):
            self._check_stop()
            yield item

    def _resolve_settings(self, before: dict) -> dict:
        """Returns the settings: as asked for, else as before, else the defaults.

        Raises RunError where the model cannot have them.
        """
        longest = self._reader.longest
        chosen = {
            'text_field': 'text',
            'language': 'english',
            **before,
            **{name: value for name, value in self._asked.items() if value is not None},
        }
        if longest < _SHORTEST:
            raise RunError(
                f'{self._reader.made["run"]}: its model reads {longest} tokens: expected one of '
                f'at least {_SHORTEST}'
            )
        chunk = chosen.setdefault('chunk', min(256, self._reader.trained))
        if not _SHORTEST <= chunk <= longest:
            raise RunError(
                f'--chunk is {chunk}: expected {_SHORTEST} to {longest}, the context of the model'
            )
        if not 0 <= chosen.setdefault('overlap', chunk // 8) <= chunk // 2:
            raise RunError(
                f'--overlap is {chosen["overlap"]}: expected 0 to {chunk // 2}, half of --chunk'
            )
        return chosen

    def _run(self, walk: files.Walk, roots: list[str], excluded: list[str]) -> int:
        """Reads, embeds and publishes what has changed; returns the number of chunks.

        Args:
          walk: the files that are there.
          roots: names under which files that are there no more are forgotten.
          excluded: names of what is left out.
        """
        self._recut = bool(self._manifest['files']) and self._word_rules() != rules.RULES
        self._db: sqlite3.Connection | None = None
        touched: list[tuple] = []
        damage = self._folder.damage(self._manifest, through=True)
        if damage.startswith('chunks'):
            raise self._folder.damaged(damage)
        anew = self._manifest.get('reading', 1) != READING
        if anew:
            _LOG.info('%s: was read by earlier rules: its files are read anew', self._folder.path)

        # Where nothing is to be written, the last state is only read.
        begun = self._folder.next(self._manifest, 'chunks').exists()
        if damage or anew or self._recut or begun or not self._manifest['files']:
            db = self._writing()
        else:
            db = self._folder.read(self._manifest)
        try:
            known = {
                name: rest
                for name, *rest in db.execute(
                    'SELECT name, id, size, mtime, hash, fault FROM files'
                )
            }
            self._skip_broken(walk, known)
            self._forget_gone(walk, known, roots, excluded)

            splitter = Splitter(
                lambda words: self._reader.tokenizer.encode_batch(words, 1),
                self._settings['chunk'],
                self._settings['overlap'],
            )
            for name, file in self._each(walk.files.items(), 'reading', len(walk.files)):
                if not files.is_under(name, excluded):
                    touched += self._read(file, known.get(name), splitter, anew)
            if self._db is None:  # nothing has changed
                return db.execute('SELECT count(*) FROM chunks').fetchone()[0]

            with self._db:
                self._db.executemany('UPDATE files SET size = ?, mtime = ? WHERE id = ?', touched)
            self._embed()
            return self._publish(bool(damage))
        finally:
            db.close()
            if self._db is not None:
                self._db.close()

    def _skip_broken(self, walk: files.Walk, known: dict[str, list]) -> None:
        """Logs what cannot be read now; what is indexed of it stays."""
        good = [name for name, (*_, fault) in known.items() if not fault]
        for broken in walk.broken:
            name = files.name_of(broken.where)
            if name in walk.unread and any(files.is_under(other, [name]) for other in good):
                broken = BadRecord(broken.where, f'{broken.reason}; {_KEPT}')
            self._skip(broken)

    def _forget_gone(
        self, walk: files.Walk, known: dict[str, list], roots: list[str], excluded: list[str]
    ) -> None:
        """Takes out files that are there no more, and those that are left out."""
        for name, (key, *_) in known.items():
            gone = (
                name not in walk.files
                and files.is_under(name, roots)
                and not files.is_under(name, walk.unread)
            )
            if gone or files.is_under(name, excluded):
                with self._writing():
                    self._forget(key)
                self._counts['removed'] += 1

    def _writing(self) -> sqlite3.Connection:
        """Returns the database of the next state, made when there is something to write."""
        self._db = self._db or self._folder.work(self._manifest)
        return self._db

    def _read(
        self, file: files.File, known: list | None, splitter: Splitter, anew: bool
    ) -> list[tuple]:
        """Brings one file up to date, `anew` where it was read by other rules.

        Returns its (size, time, key), where only they have changed, in a list.
        """
        key, size, mtime, hash_, fault = known or (None, None, 0, '', '')
        touched: list[tuple] = []
        kind = 'unchanged'
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
            is_indexed = known is not None and not fault
            fault = f'cannot be read: {getattr(error, "strerror", error)}'
            if is_indexed:
                fault += f'; {_KEPT}'
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
                        continue
                    for row in _cut(part, splitter):
                        # Chunks of one text have one vector.
                        hash_of_text = hashlib.sha256(row[-1].encode()).digest()[:16]
                        db.execute(
                            'INSERT OR IGNORE INTO vectors (hash) VALUES (?)', (hash_of_text,)
                        )
                        db.execute(
                            'INSERT INTO chunks '
                            '(file, record, line, end_line, start, "end", text, vector) '
                            'SELECT ?, ?, ?, ?, ?, ?, ?, id FROM vectors WHERE hash = ?',
                            (key, *row, hash_of_text),
                        )
                if not db.execute('SELECT 1 FROM chunks WHERE file = ?', (key,)).fetchone():
                    raise DataError('no text in it' if file.size else 'an empty file')
            except DataError as error:
                fault = str(error)
                db.execute('DELETE FROM chunks WHERE file = ?', (key,))
                db.execute('UPDATE files SET fault = ? WHERE id = ?', (fault, key))
        return fault

    def _forget(self, key: int | None) -> None:
        """Takes a file and its chunks out of the database."""
        self._db.execute('DELETE FROM chunks WHERE file = ?', (key,))
        self._db.execute('DELETE FROM files WHERE id = ?', (key,))

    def _skip(self, broken: BadRecord) -> None:
        """Counts and logs a file or record that is passed over."""
        self._counts['skipped'] += 1
        names = self._good if broken.reason.endswith(_KEPT) else self._skipped
        names.append(files.name_of(broken.where))
        if self._counts['skipped'] <= _NAMED:
            _LOG.warning('skipped %s', ' '.join(f'{broken.where}: {broken.reason}'.split()))
        elif self._counts['skipped'] == _NAMED + 1:
            _LOG.warning('more than %d are skipped: the rest is only counted', _NAMED)

    def _embed(self) -> None:
        """Gives each text a vector; those that no chunk has any more lose theirs."""
        with self._db:
            self._db.execute('DELETE FROM vectors WHERE id NOT IN (SELECT vector FROM chunks)')
        total = self._db.execute('SELECT count(*) FROM vectors WHERE data IS NULL').fetchone()[0]

        for _ in self._each(self._embed_files(), 'embedding', total):
            pass

    def _embed_files(self) -> Iterator[int]:
        """Embeds texts, those of a file in one transaction; yields the id of each vector."""
        last = 0
        while waiting := self._db.execute(
            'SELECT vectors.id, text, min(file) '
            'FROM vectors JOIN chunks ON vector = vectors.id '
            'WHERE data IS NULL AND vectors.id > ? '
            'GROUP BY vectors.id ORDER BY vectors.id LIMIT ?',
            (last, _EMBEDDED_TOGETHER),
        ).fetchall():
            last = waiting[-1][0]
            for _, rows in itertools.groupby(waiting, lambda row: row[-1]):
                keys, texts, _ = zip(*rows)
                ids = self._reader.encode(texts, self._settings['chunk'])
                embedded = self._reader.embed(ids).astype(np.float16)
                with self._db:
                    self._db.executemany(
                        'UPDATE vectors SET data = ? WHERE id = ?',
                        ((vector.tobytes(), key) for key, vector in zip(keys, embedded)),
                    )
                yield from keys

    def _publish(self, damage: bool) -> int:
        """Builds what is searched, and makes it the newest state; returns the number of chunks.

        What the last state or an interrupted process has of it is taken, that of the last state
        only without `damage`.
        """
        ids = self._ids('chunks')
        parts = [self._build_lexical(ids, damage), self._build_vectors(damage)]
        self._check_stop()
        # Only now: until here these were the values of the last state.
        newest = self._db.execute('SELECT coalesce(max(id), 0) FROM vectors').fetchone()[0]
        self._manifest |= dict(reading=READING, last=newest, words=rules.RULES)
        self._folder.publish(self._manifest, self._db, parts)
        return len(ids)

    def _ids(self, table: str) -> np.ndarray:
        """Returns the ids of a table, ascending."""
        rows = self._db.execute(f'SELECT id FROM {table} ORDER BY id')
        return np.fromiter((key for (key,) in rows), np.int64)

    def _word_rules(self) -> int:
        """Returns the number of the rules by which the words of the last state are cut."""
        return self._manifest.get('words', 1)

    def _build_lexical(self, ids: np.ndarray, damage: bool) -> pathlib.Path:
        """Returns the folder with the scores of the words of chunks with these ids."""
        folder, manifest = self._folder, self._manifest
        # The generation whose terms the database has: 0, that of the last state, or the next one.
        generation = self._db.execute('PRAGMA user_version').fetchone()[0]
        now = manifest['generation'] + 1
        before = folder.path / f'lexical-{generation}'
        if generation == now:
            begun = folder.find_begun(manifest, 'lexical')
            usable = bool(begun) and begun.get('words', 1) == rules.RULES
        else:
            usable = bool(generation and manifest['files']) and not damage and not self._recut
        if usable and np.array_equal(ids, np.load(before / 'ids.npy', allow_pickle=False)):
            return before

        def set_terms(terms: dict[str, int], generation: int) -> None:
            with self._db:
                self._db.execute('DELETE FROM terms')
                self._db.executemany('INSERT INTO terms VALUES (?, ?)', sorted(terms.items()))
                self._db.execute(f'PRAGMA user_version = {generation}')

        set_terms({}, 0)  # while files of an interrupted process are replaced
        rows = self._db.execute('SELECT text FROM chunks ORDER BY id')
        texts = (text for (text,) in self._each(rows, 'words', len(ids)))
        target = fresh(folder.next(manifest, 'lexical'))
        set_terms(lexical.build(texts, ids, self._words, target), now)
        folder.note_begun(manifest, 'lexical', target, words=rules.RULES)
        return target

    def _build_vectors(self, damage: bool) -> pathlib.Path:
        """Returns the file of the graph of all vectors.

        It is an older one with those that are lacking, or a new one where too many of its vectors
        are gone.
        """
        folder, manifest = self._folder, self._manifest
        ids = self._ids('vectors')
        target = folder.next(manifest, 'vectors')

        # (file, id of its last vector) of graphs to go on from: what an interrupted process has
        # built, then that of the last state.
        older: list[tuple[pathlib.Path, int]] = []
        if begun := folder.find_begun(manifest, 'vectors'):
            older.append((folder.path / next(iter(begun['files'])), begun['last']))
        if manifest['files'] and not damage:
            older.append((folder.part(manifest, 'vectors'), manifest['last']))

        graph = vectors.make(self._reader.size)
        live = 0  # vectors of `ids` that the graph has
        for path, last in older:
            count = len(vectors.view(path))
            held = int((ids <= last).sum())
            if count - held <= vectors.STALE * count:
                if held == len(ids) and path.suffix == target.suffix:
                    return path  # nothing is lacking, and it was saved as a whole
                graph, live = vectors.load(path), held
                break
        self._add_vectors(graph, ids[live:])
        self._save_graph(graph, target, int(ids[-1]) if len(ids) else 0)
        return target

    def _add_vectors(self, graph, new: np.ndarray) -> None:
        """Adds the vectors with these ids to the graph, which is saved now and then."""
        if not len(new):
            return
        cursor = self._db.execute(
            'SELECT id, data FROM vectors WHERE id >= ? ORDER BY id', (int(new[0]),)
        )
        groups = iter(lambda: cursor.fetchmany(_ADDED_TOGETHER), [])
        saved = len(graph)
        for rows in self._each(groups, 'graph', -(-len(new) // _ADDED_TOGETHER)):
            keys = np.array([key for key, _ in rows])
            vectors.add(graph, keys, vectors.unpack([data for _, data in rows], self._reader.size))
            if len(graph) - saved >= _SAVE_EVERY:
                saved = len(graph)
                last = rows[-1][0]
                path = self._folder.next(self._manifest, 'vectors').with_suffix(f'.{last}')
                self._save_graph(graph, path, last)

    def _save_graph(self, graph, path: pathlib.Path, last: int) -> None:
        """Writes a graph of the vectors up to this id, in place of what was saved before."""
        vectors.save(graph, path)
        self._folder.note_begun(self._manifest, 'vectors', path, last=last)
        for older in path.parent.glob(f'{path.stem}.*'):
            if older != path:
                fresh(older)


def _find_removed(remove: list[str], known: list[str]) -> list[str]:
    """Returns the names of what is to be taken out, of those that are known.

    Raises DataError where nothing of it is.
    """
    names = [_spell_as_known(files.name_of(expanded(path)), known) for path in remove]
    for path, name in zip(remove, names):
        if not any(files.is_under(other, [name]) for other in known):
            raise DataError(f'--remove={path}: nothing of it is indexed')
    return names


def _spell_as_known(name: str, known: list[str]) -> str:
    """Returns the name of a file or folder as it is known, which may be in another normal form."""
    if any(files.is_under(other, [name]) for other in known):
        return name
    heads = {'/'.join(other.split('/')[: name.count('/') + 1]) for other in known}
    same = rules.same_name(name)
    return min((head for head in heads if rules.same_name(head) == same), default=name)


def _cut(part: files.Part, splitter: Splitter) -> Iterator[tuple]:
    """Yields (record, first line, last line, first character, end, text) of each chunk."""
    begins = part.begins or [0, *(newline.end() for newline in re.finditer('\n', part.text))]
    for begin, end in splitter.chunks(part.text):
        line, last = (part.lines[bisect.bisect_right(begins, at) - 1] for at in (begin, end - 1))
        yield part.record, line, last, part.offset + begin, part.offset + end, part.text[begin:end]
