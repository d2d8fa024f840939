"""Answers from an index: chunks by meaning, by words, or by both.

Each has the passage of it that is nearest to the query.
"""

import dataclasses
import functools
import glob
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence

import numpy as np

from apps.search import FUSIONS, WEIGHT, lexical, vectors
from apps.search.chunks import passages
from apps.search.files import name_of
from apps.search.reader import OtherIndexError, Reader, check_same
from apps.search.store import Folder
from data import fusion, words as rules
from runtime.errors import RunError
from runtime.run_dir import Run

_LOG = logging.getLogger('ordem')
_AMONG = 'IN (SELECT value FROM json_each(?))'
_FEW = 20_000  # chunks of the files that are asked for, at most, that are compared one by one
_AT_LEAST = 64  # vectors that the graph is asked for: their order by float16 is a rough one
# Places of each ranking that count in a hybrid one, however many are asked for: so that all see the
# same one.
_FUSED = 1000
_PASSAGE_WORDS = 24  # of whole sentences
# Tokens that a passage is judged by: all of one length, so that they are one compilation.
_WINDOW = 48
_SPELLINGS = {'same_name': rules.same_name, 'like_name': rules.like_name}  # the stricter one first


@dataclasses.dataclass(frozen=True)
class Hit:
    """A chunk that answers a query.

    path: its file.
    record: its id, where it is a record of a file that has them.
    line, end_line: its first and last line (pages, in a PDF).
    start, end: its characters in the file or record.
    score: how well it answers.
    text: the whole chunk.
    passage: (first character, end) in `text` of what is nearest to the query.
    """

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
      folder: of the index.
      run: whose model embeds the queries; '': the one that made the index. It is loaded when first
        needed.
      weight: of meaning beside words in a hybrid ranking, from 0 to 1.
      fusion: what a hybrid ranking adds up, the 'scores' or the reciprocal 'ranks'
        (data/fusion.py).

    Raises:
      RunError: no index there, or a damaged one; or the run is not the one that made it.
    """

    def __init__(
        self, folder: Folder, run: str = '', weight: float = WEIGHT, fusion: str = FUSIONS[0]
    ):
        self.folder = folder
        self._run = run
        self._weight = weight
        self._fusion = fusion
        self._open_state()
        self._words = self._open_words()
        for name, spelled in _SPELLINGS.items():
            self._db.create_function(name, 1, spelled, deterministic=True)
        self._reader: Reader | None = None
        self._vector = functools.lru_cache(1)(self._embed_query)

    def _open_state(self) -> None:
        """Opens the newest state: again where a newer one takes its place meanwhile."""
        folder = self.folder
        while True:
            self.manifest, self._db = folder.open()
            try:
                self._lexical = self._check_whole(
                    'lexical', lambda: lexical.Lexical(folder.part(self.manifest, 'lexical'))
                )
                self._graph = self._check_whole(
                    'vectors', lambda: vectors.view(folder.part(self.manifest, 'vectors'))
                )
                return
            except RunError:
                if folder.manifest() == self.manifest:  # else a newer state took its place
                    raise

    def _open_words(self) -> lexical.Words:
        """Returns how this index cuts words.

        Raises RunError where it is by rules of a later version.
        """
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
        """Returns whether there is anything in a query that can be looked up by words."""
        return bool(self._words.query_terms(query))

    def search(self, query: str, count: int, mode: str, paths: list[str]) -> list[Hit]:
        """Returns the best chunks, best first.

        Args:
          query: the text that is looked for.
          count: chunks at most.
          mode: 'hybrid', 'semantic' or 'lexical'.
          paths: only files count that one of these names or, as a glob pattern, matches, or the
            folder of which it does: a whole name, or the end of one that begins after a '/'. Names
            are compared in NFC, and where none matches so in NFKC. Empty: all files.
        """
        ranked = self.rank(query, count, mode, paths)
        columns = self._chunks('name, record, line, end_line, start, "end", text', ranked)
        passages = self._passages(query, mode, [columns[key][-1] for key, _ in ranked])
        return [
            Hit(*columns[key][:-1], score, columns[key][-1], passage)
            for (key, score), passage in zip(ranked, passages)
        ]

    def rank(
        self, query: str, count: int, mode: str, paths: Sequence[str] = ()
    ) -> list[tuple[int, float]]:
        """Returns (id of a chunk, score), best first.

        The score is the cosine of the angle to the query, BM25, or a sum of both over the best
        1,000 of each, of which there are at most 2,000: the weighted one of scores moved to 0 .. 1,
        or that of reciprocal ranks. Arguments as of `search`.
        """
        where, names = self._where(paths)
        rankings = {'lexical': self._lexically, 'semantic': self._semantic}
        if mode != 'hybrid':
            return rankings[mode](query, count, where, names)
        both = [dict(ranking(query, _FUSED, where, names)) for ranking in rankings.values()]
        if self._fusion == 'ranks':
            return fusion.fuse([list(one) for one in both])[:count]
        scores = fusion.interpolate(*both, self._weight)
        return [(key, scores[key]) for key in fusion.order(scores)[:count]]

    def documents(self, query: str, count: int, mode: str) -> dict[str, float]:
        """Returns {document: the score of its best chunk}.

        A document is a record that has an id, or a file.
        """
        ranked = self.rank(query, count, mode)
        names = self._chunks('coalesce(record, name)', ranked)
        return {names[key][0]: score for key, score in reversed(ranked)}

    def count_lacking(self, documents: set[str]) -> int:
        """Returns how many of these documents are not indexed."""
        rows = self._rows('SELECT record FROM chunks UNION SELECT name FROM files')
        return len(documents - {name for (name,) in rows})

    @property
    def reader(self) -> Reader:
        """The model. Raises RunError where it is not the one that made the index."""
        if self._reader is None:
            made = self.manifest['made']
            try:
                run = Run.parse(self._run) if self._run else Run.at(made['run'], made['step'])
                self._reader = Reader(run, made['pooling'], made['size'], self.folder.path, made)
            except OtherIndexError:
                raise
            except RunError as error:
                if self._run:
                    raise error from None
                raise RunError(
                    f'{error}: the run that {self.folder.path} was indexed with; --run says where '
                    f'it is now, and --mode=lexical needs none'
                ) from None
            check_same(self.folder.path, made, self._reader.made)
        return self._reader

    def _embed_query(self, query: str) -> np.ndarray:
        return self.reader.embed(self.reader.encode([query], self.reader.trained))[0]

    def _check_whole(self, part: str, work: Callable):
        """Returns work(), which reads a part of the index.

        Raises RunError in place of whatever it raises where that part is damaged.
        """
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

    def _chunks(self, columns: str, ranked: list[tuple[int, float]]) -> dict[int, list]:
        """Returns {id: these columns} of ranked chunks."""
        rows = self._rows(
            f'SELECT chunks.id, {columns} FROM chunks JOIN files ON file = files.id '
            f'WHERE chunks.id {_AMONG}',
            json.dumps([key for key, _ in ranked]),
        )
        # The graph may name some that are gone, but they were passed over.
        if len(rows) < len(ranked):
            raise self.folder.damaged('lexical: it names chunks that there are not, or one twice')
        return {key: rest for key, *rest in rows}

    def _where(self, paths: Sequence[str]) -> tuple[str, list[str]]:
        """Returns the condition that a chunk's file is one of those asked for, and its values.

        Raises RunError where none is.
        """
        conditions: list[str] = []
        names: list[str] = []
        any_matches = False
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
            any_matches = any_matches or bool(matches)
            conditions.append(condition)
            names += values
        where = f'file IN (SELECT id FROM files WHERE {" OR ".join(conditions)})' if names else '1'
        if names and not any_matches:
            raise RunError(
                f'--path={" --path=".join(paths)}: matches no file that is indexed; expected a '
                f"pattern like 'docs/*.md'"
            )
        return where, names

    def _semantic(
        self, query: str, count: int, where: str, names: list[str]
    ) -> list[tuple[int, float]]:
        """Returns (id, cosine) of the chunks that are nearest by meaning, best first."""
        vector = self._vector(query)
        chosen = (
            f'SELECT chunks.id, data FROM chunks JOIN vectors ON vector = vectors.id WHERE {where}'
        )
        if names and self._rows(f'SELECT count(*) FROM chunks WHERE {where}', *names)[0][0] <= _FEW:
            rows = self._rows(chosen, *names)
        else:
            # Some vectors of the graph are gone, or of other files: it is asked for more and more
            # of them until enough are left.
            most = len(self._graph)
            asked = min(max(_AT_LEAST, 2 * count), most)
            while True:
                near = self._nearest_vectors(vector, asked)
                rows = self._rows(f'{chosen} AND vectors.id {_AMONG}', *names, json.dumps(near))
                if len(rows) >= count or asked == most:
                    break
                asked = min(4 * asked, most)

        scores = vectors.cosines([data for _, data in rows], vector)
        ranked = [(key, float(score)) for (key, _), score in zip(rows, scores)]
        return sorted(ranked, key=lambda hit: (-hit[1], hit[0]))[:count]

    def _nearest_vectors(self, vector: np.ndarray, count: int) -> list[int]:
        if not count:
            return []
        return self._check_whole('vectors', lambda: vectors.nearest(self._graph, vector, count))

    def _lexically(
        self, query: str, count: int, where: str, names: list[str]
    ) -> list[tuple[int, float]]:
        """Returns (id, BM25) of the chunks that share most words with the query, best first."""
        rows = self._rows(
            'SELECT terms.id FROM json_each(?) JOIN terms ON term = value',
            json.dumps(self._words.query_terms(query)),
        )
        terms = [key for (key,) in rows]
        allowed = None
        if names:
            rows = self._rows(f'SELECT id FROM chunks WHERE {where} ORDER BY id', *names)
            allowed = np.array(rows)[:, 0]
        return self._check_whole('lexical', lambda: self._lexical.nearest(terms, count, allowed))

    def _passages(self, query: str, mode: str, texts: list[str]) -> list[tuple[int, int]]:
        """Returns the passage of each text that is nearest to the query."""
        if mode == 'lexical':
            wanted = set(self._words.query_terms(query))
            return [self._closest_passage(text, wanted) for text in texts]

        # All windows of all texts are embedded at once.
        candidates = [passages(text, _PASSAGE_WORDS) for text in texts]
        windows = [self._windows(text, some) for text, some in zip(texts, candidates)]
        embedded = self.reader.embed([ids for some in windows for ids in some])
        places = np.cumsum([0, *map(len, windows)])
        best = []
        for some, first, last in zip(candidates, places, places[1:]):
            scores = embedded[first:last] @ self._vector(query)
            best.append(some[int(np.argmax(scores))])
        return best

    def _closest_passage(self, text: str, wanted: set[str]) -> tuple[int, int]:
        """Returns the passage of a text that shows best the terms that are wanted."""

        def closeness(passage: tuple[int, int]) -> tuple[int, int, int]:
            begin, end = passage
            return lexical.closeness(self._words(text[begin:end]), wanted)

        return max(passages(text, _PASSAGE_WORDS), key=closeness)  # the first of equal ones

    def _windows(self, text: str, candidates: list[tuple[int, int]]) -> list[list[int]]:
        """Returns the tokens that each passage is judged by.

        They are so many from its begin on, or up to the end of the text.
        """
        first, *body, last = self.reader.encode([text])[0]
        places = [
            len(body) - max(_WINDOW - 2, len(rest) - 2)
            for rest in self.reader.encode([text[begin:] for begin, _ in candidates])
        ]
        return [[first, *body[max(0, at) :][: _WINDOW - 2], last] for at in places]


def _matching(path: str, spelling: str) -> tuple[str, list[str]]:
    """Returns the condition that a file is `path`, matches it, or is in such a folder.

    With it come its values; both in a spelling of `_SPELLINGS`.
    """
    name = f'{spelling}(name)'
    spelled = _SPELLINGS[spelling]
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
