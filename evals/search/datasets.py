"""What search is measured on: queries with the documents that answer them, and pairs of sentences with a person's score.

Files in the form of SQuAD (also XQuAD, FaQuAD) and of BEIR, pairs in CSV (as of the STS benchmark), and the documentation of Python's own
library, which is everywhere.
"""

import csv
import dataclasses
import hashlib
import io
import math
import pathlib
import re

from ml_collections import ConfigDict

from data import safe_read, sources
from data.records import BadRecord, DataError
from evals.search import leaks, ranking

THIRDS = ('first third', 'middle third', 'last third')
_PYDOC = 400  # documents of the embedded set
_KINDS = {dict: 'an object', list: 'a list', str: 'a string', int: 'a whole number'}


@dataclasses.dataclass(frozen=True)
class Questions:
    """Queries and documents, {id: text} each, and which answer which; `source` says what they were read from. `places`: in which of THIRDS
    of its document a query's answer begins, where that is known. `articles`: what its document is a part of, where that is known."""

    name: str
    queries: dict[str, str]
    documents: dict[str, str]
    qrels: dict[str, dict[str, int]]
    source: dict
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    articles: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        wrong = next(
            (name for name in (*self.queries, *self.documents) if len(name.split()) != 1), None
        )
        if wrong is not None:
            raise DataError(
                f'{self.source.get("path", self.name)}: the id {wrong!r} has spaces: run files, which have columns, cannot hold it'
            )

    @property
    def clusters(self) -> dict[str, str]:
        """{query: what it has in common with others}: an article, or the document that answers it where there are not several articles."""
        return self.articles if len({*self.articles.values()}) > 1 else ranking.clusters(self.qrels)

    @property
    def asked(self) -> list[tuple[str, ...]]:
        """What a model must not have been trained on."""
        return [(text,) for text in self.queries.values()]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Sentences, `first` and `second` [N], and the `scores` [N] that people gave their likeness, larger is more alike."""

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]
    source: dict

    @property
    def asked(self) -> list[tuple[str, ...]]:
        return list(zip(self.first, self.second))


def squad(path) -> Questions:
    """A JSON file in SQuAD's form: each question's document is its paragraph. Questions that have no answer there are left out."""
    path = pathlib.Path(path)
    content = _content(path)
    try:
        found = safe_read.parse(content)
    except ValueError as error:
        raise DataError(f'{path}: broken JSON: {error}') from None

    def get(entry, name: str, kind: type, where: str):
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, kind):
            raise DataError(
                f'{path}: {where}{name} is {value!r:.40}: expected {_KINDS[kind]}; SQuAD has data[].paragraphs[] of context and qas[]'
            )
        return value

    queries, qrels, places, articles, documents = {}, {}, {}, {}, {}
    for a, article in enumerate(get(found, 'data', list, '')):
        for p, paragraph in enumerate(get(article, 'paragraphs', list, f'data[{a}].')):
            where = f'data[{a}].paragraphs[{p}].'
            context = get(paragraph, 'context', str, where)
            document = documents.setdefault(context, f'p{len(documents):05}')
            for q, asked in enumerate(get(paragraph, 'qas', list, where)):
                here = f'{where}qas[{q}].'
                query, text, answers = (
                    get(asked, name, kind, here)
                    for name, kind in (('id', str), ('question', str), ('answers', list))
                )
                if query in queries:
                    raise DataError(f'{path}: {here}id is {query!r}: another question has it too')
                if answers and not asked.get('is_impossible'):
                    queries[query], qrels[query], articles[query] = text, {document: 1}, f'a{a:05}'
                    at = get(answers[0], 'answer_start', int, f'{here}answers[0].')
                    places[query] = THIRDS[min(2, max(0, 3 * at // max(1, len(context))))]
    if not queries:
        raise DataError(f'{path}: holds no question with an answer')
    return Questions(
        path.stem,
        queries,
        {d: text for text, d in documents.items()},
        qrels,
        _source('squad', path, content),
        places,
        articles,
    )


def beir(path) -> Questions:
    """A folder in BEIR's form: corpus.jsonl, queries.jsonl and qrels/test.tsv (else qrels/dev.tsv); the queries that are judged there."""
    path = pathlib.Path(path).resolve()
    judged = next(
        (f for f in (path / 'qrels' / 'test.tsv', path / 'qrels' / 'dev.tsv') if f.is_file()),
        path / 'qrels' / 'test.tsv',
    )
    files = [path / 'corpus.jsonl', path / 'queries.jsonl', judged]
    documents, queries, qrels = (
        ranking.read_corpus(files[0]),
        ranking.read_queries(files[1]),
        ranking.read_qrels(files[2]),
    )
    for query, grades in qrels.items():
        unknown = [
            what
            for what, there in ((query, queries), *((d, documents) for d in grades))
            if what not in there
        ]
        if unknown:
            raise DataError(
                f'{judged}: judges {unknown[0]!r}, which is in neither {files[0].name} nor {files[1].name}'
            )
    qrels = {query: grades for query, grades in qrels.items() if max(grades.values()) > 0}
    if not qrels:
        raise DataError(f'{judged}: no query has a document with a grade above 0')
    digest = hashlib.sha256()
    for file in files:
        with file.open('rb') as opened:
            digest.update(hashlib.file_digest(opened, 'sha256').digest())
    source = {'form': 'beir', 'path': str(path), 'qrels': judged.name, 'sha256': digest.hexdigest()}
    return Questions(
        path.name, {query: queries[query] for query in qrels}, documents, qrels, source
    )


def pydoc(modules: int = 0, most: int = _PYDOC, trained: int = 0) -> Questions:
    """The embedded set: the first sentence of a function's or a class's documentation asks for the rest of it. It is made of this Python's
    own library (`modules`: of how many modules, 0: all), `most` of it, chosen evenly; other versions of Python have other texts. `trained`: of how
    many modules (config.data.pydoc.modules) a model has read: these are left out, and queries that stand in them."""
    read = lambda count: [
        r
        for r in sources.read(ConfigDict({'source': 'pydoc', 'pydoc': {'modules': count}}))
        if not isinstance(r, BadRecord)
    ]
    known = {record.where: record.text for record in (read(trained) if trained else ())}
    found: dict[str, tuple[str, str]] = {}
    modules_of: dict[str, str] = {}
    for record in (r for r in read(modules) if r.where not in known):
        module = record.where.removeprefix('pydoc:')
        for part in re.split(rf'\n\n(?={re.escape(module)}(?:\.\w+)+\n)', record.text)[1:]:
            name, _, text = part.partition('\n')
            cut = re.match(r'(.{20,200}?[.!?])\s+(\S.{80,})', ' '.join(text.split()))
            if cut and len(cut[1].split()) > 3:
                found.setdefault(cut[1], (name, cut[2]))
                modules_of[name] = module
    seen = leaks.occurring(found, known.values())
    alone = {
        document: query
        for query, (_, document) in sorted(found.items())
        if leaks.normal(query) not in seen
    }  # inherited documentation: one query each
    by_hash = sorted(alone.values(), key=lambda query: hashlib.sha256(query.encode()).digest())
    chosen = {query: found[query] for query in by_hash[:most]}
    digest = hashlib.sha256(repr(sorted(chosen.items())).encode()).hexdigest()
    return Questions(
        'pydoc',
        {name: query for query, (name, _) in chosen.items()},
        {name: text for name, text in chosen.values()},
        {name: {name: 1} for name, _ in chosen.values()},
        {'form': 'pydoc', 'sha256': digest},
        articles={name: modules_of[name] for name, _ in chosen.values()},
    )


def sts(path) -> Pairs:
    """A CSV file of sentence, sentence, score; a header may stand before."""
    path = pathlib.Path(path)
    content = _content(path)
    try:
        reader = csv.reader(io.StringIO(content.decode('utf-8-sig'), newline=''), strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: invalid UTF-8 at byte {error.start}') from None
    except csv.Error as error:
        raise DataError(f'{path}:{reader.line_num}: broken CSV: {error}') from None
    found = []
    for number, (line, row) in enumerate(rows):
        try:
            first, second, score = row[0], row[1], float(row[2])
        except (IndexError, ValueError):
            score = math.nan
        if math.isfinite(score) and len(row) == 3:
            found.append((first, second, score))
        elif number or len(row) != 3:
            raise DataError(
                f'{path}:{line}: found {",".join(row)!r:.60}: expected sentence, sentence and a score'
            )
    if len({score for *_, score in found}) < 2:
        raise DataError(f'{path}: expected pairs with at least two different scores')
    return Pairs(path.stem, *map(list, zip(*found)), _source('sts', path, content))


def _content(path: pathlib.Path) -> bytearray:
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    return safe_read.file(path, safe_read.DOCUMENT)


def _source(form: str, path: pathlib.Path, content: bytes) -> dict:
    return {'form': form, 'path': str(path), 'sha256': hashlib.sha256(content).hexdigest()}
