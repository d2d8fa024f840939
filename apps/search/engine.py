"""Answers from an index: chunks by meaning, by words, or by both, each with the passage of it that is nearest to the query."""

import dataclasses
import functools
import glob
import json
import logging
import os
import sqlite3

import numpy as np

from apps.search import FUSIONS, WEIGHT, lexical, vectors
from apps.search.chunks import passages
from apps.search.files import name_of
from apps.search.reader import Other, Reader, check_same
from apps.search.store import Folder
from data import fusion, words as rules
from runtime.errors import RunError
from runtime.run_dir import Run

_LOG = logging.getLogger('ordem')
_AMONG = 'IN (SELECT value FROM json_each(?))'
_FEW = 20_000  # chunks of the files that are asked for, at most, that are compared one by one
_AT_LEAST = 64  # vectors that the graph is asked for: their order by float16 is a rough one
_FUSED = 1000  # places of each ranking that count in a hybrid one, however many are asked for: so that all see the same one
_PASSAGE = 24  # words of a passage, of whole sentences
_WINDOW = 48  # tokens that it is judged by: all of one length, so that they are one compilation
_SPELLINGS = {'same_name': rules.same_name, 'like_name': rules.like_name}  # the stricter one first


@dataclasses.dataclass(frozen=True)
class Hit:
    """A chunk: of the file `path`, of lines `line` to `end_line` (pages, in a PDF) and characters `start` to `end`; `record`: its id or None.
    `passage`: (first character, end) in `text`."""

    path: str
    record: str | None
    line: int
    end_line: int
    start: int
    end: int
    score: float
    text: str
    passage: tuple[int, int]


class Engine:
    """An index opened to search in, memory-mapped.

    Args:
      run: whose model embeds the queries; '': the one that made the index. It is loaded when first needed.
      weight: of meaning beside words in a hybrid ranking, from 0 to 1.
      fusion: what a hybrid ranking adds up, the 'scores' or the reciprocal 'ranks' (data/fusion.py).
    Raises:
      RunError: no index there, or a damaged one; or the run is not the one that made it.
    """

    def __init__(
        self, folder: Folder, run: str = '', weight: float = WEIGHT, fusion: str = FUSIONS[0]
    ):
        self.folder, self._run, self._weight, self._fusion = folder, run, weight, fusion
        while True:
            self.manifest, self._db = folder.open()
            try:
                self._lexical = self._whole(
                    'lexical', lambda: lexical.Lexical(folder.part(self.manifest, 'lexical'))
                )
                self._graph = self._whole(
                    'vectors', lambda: vectors.view(folder.part(self.manifest, 'vectors'))
                )
                break
            except RunError:
                if (
                    folder.manifest() == self.manifest
                ):  # else a newer state has just taken its place
                    raise
        self._words = self._terms()
        for name, spelled in _SPELLINGS.items():
            self._db.create_function(name, 1, spelled, deterministic=True)
        self._reader: Reader | None = None
        self._vector = functools.lru_cache(1)(
            lambda query: self.reader.embed(self.reader.encode([query], self.reader.trained))[0]
        )

    def _terms(self) -> lexical.Words:
        """How this index cuts words. Raises RunError where it is by rules of a later version."""
        number = self.manifest.get('words', 1)
        if number not in range(1, rules.RULES + 1):
            raise RunError(
                f'{self.folder.path}: its words are cut by rules {number}, this version knows '
                f'1 to {rules.RULES}; search with the version that indexed it'
            )
        if number < rules.RULES:
            _LOG.warning(
                '%s: its words are cut by rules %d, those of now are %d: accents that stand apart, '
                'ligatures, and words of Chinese, Japanese, Thai or Hindi may not be found; '
                'python -m apps.search index --index=%s cuts them again, and embeds nothing anew',
                self.folder.path,
                number,
                rules.RULES,
                self.folder.path,
            )
        return lexical.Words(self.manifest['settings']['language'], number)

    def has_words(self, query: str) -> bool:
        """Whether there is anything in a query that can be looked up by words."""
        return bool(self._words.asked(query))

    def search(self, query: str, count: int, mode: str, paths: list[str]) -> list[Hit]:
        """The best chunks, best first; of files that one of `paths` names or, as a glob pattern, matches, or the folder of which it does: a whole name,
        or the end of one that begins after a '/'. Names are compared in NFC, and where none
        matches so in NFKC."""
        found = self.rank(query, count, mode, paths)
        wanted = self._chunks('name, record, line, end_line, start, "end", text', found)
        passages = self._passages(query, mode, [wanted[key][-1] for key, _ in found])
        return [
            Hit(*wanted[key][:-1], score, wanted[key][-1], passage)
            for (key, score), passage in zip(found, passages)
        ]

    def rank(
        self, query: str, count: int, mode: str, paths: list[str] = ()
    ) -> list[tuple[int, float]]:
        """(id of a chunk, score), best first: the cosine of the angle to the query, BM25, or a sum of both over the best 1,000 of each, of which there are
        at most 2,000: the weighted one of scores moved to 0 .. 1, or that of reciprocal ranks."""
        where, names = self._where(paths)
        found = {'lexical': self._lexically, 'semantic': self._semantic}
        if mode != 'hybrid':
            return found[mode](query, count, where, names)
        both = [dict(one(query, _FUSED, where, names)) for one in found.values()]
        if self._fusion == 'ranks':
            return fusion.fuse([list(one) for one in both])[:count]
        scores = fusion.interpolate(*both, self._weight)
        return [(key, scores[key]) for key in fusion.order(scores)[:count]]

    def documents(self, query: str, count: int, mode: str) -> dict[str, float]:
        """{document: the score of its best chunk}; a document is a record that has an id, or a file."""
        found = self.rank(query, count, mode)
        names = self._chunks('coalesce(record, name)', found)
        return {names[key][0]: score for key, score in reversed(found)}

    def lacking(self, documents: set[str]) -> int:
        """How many of these documents are not indexed."""
        return len(
            documents
            - {
                name
                for (name,) in self._rows('SELECT record FROM chunks UNION SELECT name FROM files')
            }
        )

    @property
    def reader(self) -> Reader:
        """Raises RunError where the model is not the one that made the index."""
        if self._reader is None:
            made = self.manifest['made']
            try:
                self._reader = Reader(
                    Run.parse(self._run) if self._run else Run.at(made['run'], made['step']),
                    made['pooling'],
                    made['size'],
                    self.folder.path,
                    made,
                )
            except Other:
                raise
            except RunError as error:
                raise (
                    error
                    if self._run
                    else RunError(
                        f'{error}: the run that {self.folder.path} was indexed with; --run says where it is now, and '
                        f'--mode=lexical needs none'
                    )
                ) from None
            check_same(self.folder.path, made, self._reader.made)
        return self._reader

    def _whole(self, part: str, work):
        """Does something with a part of the index; raises RunError in place of whatever it raises where it is damaged."""
        try:
            return work()
        except (
            RuntimeError,
            ValueError,
            OSError,
            LookupError,
            TypeError,
            MemoryError,
            OverflowError,
        ) as error:
            raise self.folder.damaged(f'{part}: {" ".join(str(error).split())}') from None

    def _rows(self, sql: str, *values) -> list[tuple]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self.folder.damaged(f'chunks: {error}') from None

    def _chunks(self, columns: str, found: list[tuple[int, float]]) -> dict[int, list]:
        """{id: these columns} of ranked chunks."""
        rows = {
            key: rest
            for key, *rest in self._rows(
                f'SELECT chunks.id, {columns} FROM chunks JOIN files ON file = files.id WHERE chunks.id {_AMONG}',
                json.dumps([key for key, _ in found]),
            )
        }
        if len(rows) < len(
            found
        ):  # the graph may name some that are gone, and they are passed over
            raise self.folder.damaged('lexical: it names chunks that there are not, or one twice')
        return rows

    def _where(self, paths: list[str]) -> tuple[str, list[str]]:
        """The condition that a chunk's file is one of those asked for, and its values. Raises RunError where none is."""
        conditions, names, found = [], [], False
        for path in paths:
            for spelling in _SPELLINGS:
                condition, values = _matching(path, spelling)
                matches = self._rows(
                    f'SELECT 1 FROM chunks WHERE file IN (SELECT id FROM files WHERE {condition}) '
                    'LIMIT 1',
                    *values,
                )
                if matches:
                    break
            found = found or bool(matches)
            conditions.append(condition)
            names += values
        where = f'file IN (SELECT id FROM files WHERE {" OR ".join(conditions)})' if names else '1'
        if names and not found:
            raise RunError(
                f"--path={' --path='.join(paths)}: matches no file that is indexed; expected a pattern like 'docs/*.md'"
            )
        return where, names

    def _semantic(
        self, query: str, count: int, where: str, names: list[str]
    ) -> list[tuple[int, float]]:
        """From the graph, where some are gone or of other files, more and more until there are `count`; from few all of them."""
        vector, most = self._vector(query), len(self._graph)
        chosen = (
            f'SELECT chunks.id, data FROM chunks JOIN vectors ON vector = vectors.id WHERE {where}'
        )
        asked = min(max(_AT_LEAST, 2 * count), most)
        if names and self._rows(f'SELECT count(*) FROM chunks WHERE {where}', *names)[0][0] <= _FEW:
            found = self._rows(chosen, *names)
        else:
            while True:
                near = (
                    self._whole('vectors', lambda: vectors.nearest(self._graph, vector, asked))
                    if asked
                    else []
                )
                found = self._rows(f'{chosen} AND vectors.id {_AMONG}', *names, json.dumps(near))
                if len(found) >= count or asked == most:
                    break
                asked = min(4 * asked, most)
        scores = vectors.cosines([data for _, data in found], vector)
        return sorted(
            ((key, float(score)) for (key, _), score in zip(found, scores)),
            key=lambda one: (-one[1], one[0]),
        )[:count]

    def _lexically(
        self, query: str, count: int, where: str, names: list[str]
    ) -> list[tuple[int, float]]:
        terms = [
            key
            for (key,) in self._rows(
                'SELECT terms.id FROM json_each(?) JOIN terms ON term = value',
                json.dumps(self._words.asked(query)),
            )
        ]
        allowed = (
            np.array(self._rows(f'SELECT id FROM chunks WHERE {where} ORDER BY id', *names))[:, 0]
            if names
            else None
        )
        return self._whole('lexical', lambda: self._lexical.nearest(terms, count, allowed))

    def _passages(self, query: str, mode: str, texts: list[str]) -> list[tuple[int, int]]:
        """The passage of each text that is nearest to the query."""
        found = [passages(text, _PASSAGE) for text in texts]
        if mode == 'lexical':
            wanted = set(self._words.asked(query))
            scores = [
                [lexical.closeness(self._words(text[begin:end]), wanted) for begin, end in some]
                for text, some in zip(texts, found)
            ]
            return [some[score.index(max(score))] for some, score in zip(found, scores)]
        windows = [self._windows(text, some) for text, some in zip(texts, found)]
        embedded = self.reader.embed([ids for some in windows for ids in some])
        places = np.cumsum([0, *map(len, windows)])
        scores = [
            embedded[first:last] @ self._vector(query) for first, last in zip(places, places[1:])
        ]
        return [some[int(np.argmax(score))] for some, score in zip(found, scores)]

    def _windows(self, text: str, found: list[tuple[int, int]]) -> list[list[int]]:
        """What each passage is judged by: so many tokens from its begin on, or up to the end of the text."""
        first, *body, last = self.reader.encode([text])[0]
        places = [
            len(body) - max(_WINDOW - 2, len(rest) - 2)
            for rest in self.reader.encode([text[begin:] for begin, _ in found])
        ]
        return [[first, *body[max(0, at) :][: _WINDOW - 2], last] for at in places]


def _matching(path: str, spelling: str) -> tuple[str, list[str]]:
    """The condition that the name of a file is `path`, matches it, or is in such a folder, and its
    values; both in a spelling of `_SPELLINGS`."""
    name, spelled = f'{spelling}(name)', _SPELLINGS[spelling]
    if not path.endswith('/'):
        name += " || '/'"  # with it a file is like a folder
    end = spelled(os.path.normpath(path))
    here = glob.escape(spelled(os.getcwd()))
    values = [
        name_of(os.path.join(here, spelled(path))).rstrip('/') + '/*',
        f'*/{end}/*',
        spelled(name_of(path)).rstrip('/') + '/',
        f'/{end}/',
    ]
    return f'{name} GLOB ? OR {name} GLOB ? OR instr({name}, ?) = 1 OR instr({name}, ?)', values
