"""Data sets of search: queries with the documents that answer them, and pairs of sentences.

Files in the form of SQuAD (also XQuAD, FaQuAD) and of BEIR, pairs with a person's score in CSV (as
of the STS benchmark), and the documentation of Python's own library, which is everywhere.
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
    """Queries and documents, {id: text} each, and which answer which.

    qrels: {query: {document: grade}}.
    source: says what they were read from.
    places: in which of THIRDS of its document a query's answer begins, where that is known.
    articles: what a query's document is a part of, where that is known.
    """

    name: str
    queries: dict[str, str]
    documents: dict[str, str]
    qrels: dict[str, dict[str, int]]
    source: dict
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    articles: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in (*self.queries, *self.documents):
            if len(name.split()) != 1:
                raise DataError(
                    f'{self.source.get("path", self.name)}: the id {name!r} has spaces: '
                    'run files, which have columns, cannot hold it'
                )

    @property
    def clusters(self) -> dict[str, str]:
        """{query: what it has in common with others}.

        That is an article, or where there are not several articles the document that answers it.
        """
        if len({*self.articles.values()}) > 1:
            return self.articles
        return ranking.clusters(self.qrels)

    @property
    def asked(self) -> list[tuple[str, ...]]:
        """The texts that a model must not have been trained on."""
        return [(text,) for text in self.queries.values()]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Sentences, `first` and `second` [N], and the `scores` [N] that people gave their likeness.

    Larger is more alike.
    """

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]
    source: dict

    @property
    def asked(self) -> list[tuple[str, ...]]:
        return list(zip(self.first, self.second))


def squad(path) -> Questions:
    """Reads a JSON file in SQuAD's form: each question's document is its paragraph.

    Questions that have no answer there are left out. Raises DataError for a file of another form.
    """
    path = pathlib.Path(path)
    content = _content(path)
    try:
        root = safe_read.parse(content)
    except ValueError as error:
        raise DataError(f'{path}: broken JSON: {error}') from None

    def get(entry, name: str, kind: type, where: str):
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, kind):
            raise DataError(
                f'{path}: {where}{name} is {value!r:.40}: expected {_KINDS[kind]}; '
                'SQuAD has data[].paragraphs[] of context and qas[]'
            )
        return value

    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    places: dict[str, str] = {}
    articles: dict[str, str] = {}
    documents: dict[str, str] = {}  # text -> id: equal paragraphs are one document
    for a, article in enumerate(get(root, 'data', list, '')):
        for p, paragraph in enumerate(get(article, 'paragraphs', list, f'data[{a}].')):
            where = f'data[{a}].paragraphs[{p}].'
            context = get(paragraph, 'context', str, where)
            document = documents.setdefault(context, f'p{len(documents):05}')
            for q, asked in enumerate(get(paragraph, 'qas', list, where)):
                here = f'{where}qas[{q}].'
                query = get(asked, 'id', str, here)
                text = get(asked, 'question', str, here)
                answers = get(asked, 'answers', list, here)
                if query in queries:
                    raise DataError(f'{path}: {here}id is {query!r}: another question has it too')
                if not answers or asked.get('is_impossible'):
                    continue
                queries[query] = text
                qrels[query] = {document: 1}
                articles[query] = f'a{a:05}'
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
    """Reads a folder in BEIR's form: corpus.jsonl, queries.jsonl and qrels/test.tsv (else dev.tsv).

    Queries that are not judged there are left out. Raises DataError for files of another form.
    """
    path = pathlib.Path(path).resolve()
    test = path / 'qrels' / 'test.tsv'
    dev = path / 'qrels' / 'dev.tsv'
    judged = dev if dev.is_file() and not test.is_file() else test
    files = [path / 'corpus.jsonl', path / 'queries.jsonl', judged]
    documents = ranking.read_corpus(files[0])
    queries = ranking.read_queries(files[1])
    qrels = ranking.read_qrels(files[2])

    for query, grades in qrels.items():
        unknown = [query] if query not in queries else []
        unknown += [document for document in grades if document not in documents]
        if unknown:
            raise DataError(
                f'{judged}: judges {unknown[0]!r}, which is in neither {files[0].name} nor '
                f'{files[1].name}'
            )
    qrels = {query: grades for query, grades in qrels.items() if max(grades.values()) > 0}
    if not qrels:
        raise DataError(f'{judged}: no query has a document with a grade above 0')
    digest = hashlib.sha256()
    for file in files:
        with file.open('rb') as opened:
            digest.update(hashlib.file_digest(opened, 'sha256').digest())
    source = {'form': 'beir', 'path': str(path), 'qrels': judged.name, 'sha256': digest.hexdigest()}
    asked = {query: queries[query] for query in qrels}
    return Questions(path.name, asked, documents, qrels, source)


def pydoc(modules: int = 0, most: int = _PYDOC, trained: int = 0) -> Questions:
    """Returns the embedded set, made of the documentation of this Python's own library.

    The first sentence of a function's or a class's documentation asks for the rest of it. Other
    versions of Python have other texts.

    Args:
      modules: how many modules it is made of, 0: all.
      most: how many documents are taken, chosen evenly.
      trained: how many modules (config.data.pydoc.modules) a model has read; these are left out,
        and queries that stand in them.
    """
    known = {record.where: record.text for record in (_read_pydoc(trained) if trained else ())}
    entries: dict[str, tuple[str, str]] = {}  # query -> name and text of its document
    modules_of: dict[str, str] = {}
    for record in _read_pydoc(modules):
        if record.where in known:
            continue
        module = record.where.removeprefix('pydoc:')
        for part in re.split(rf'\n\n(?={re.escape(module)}(?:\.\w+)+\n)', record.text)[1:]:
            name, _, text = part.partition('\n')
            cut = re.match(r'(.{20,200}?[.!?])\s+(\S.{80,})', ' '.join(text.split()))
            if cut and len(cut[1].split()) > 3:
                entries.setdefault(cut[1], (name, cut[2]))
                modules_of[name] = module

    # Inherited documentation stands in several places: a document has one query.
    seen = leaks.occurring(entries, known.values())
    query_of = {
        document: query
        for query, (_, document) in sorted(entries.items())
        if leaks.normal(query) not in seen
    }
    by_hash = sorted(query_of.values(), key=lambda query: hashlib.sha256(query.encode()).digest())
    chosen = {query: entries[query] for query in by_hash[:most]}
    digest = hashlib.sha256(repr(sorted(chosen.items())).encode()).hexdigest()
    return Questions(
        'pydoc',
        {name: query for query, (name, _) in chosen.items()},
        {name: text for name, text in chosen.values()},
        {name: {name: 1} for name, _ in chosen.values()},
        {'form': 'pydoc', 'sha256': digest},
        articles={name: modules_of[name] for name, _ in chosen.values()},
    )


def _read_pydoc(modules: int) -> list:
    """Returns the records of Python's documentation; `modules`: of how many modules, 0: all."""
    config = ConfigDict({'source': 'pydoc', 'pydoc': {'modules': modules}})
    return [record for record in sources.read(config) if not isinstance(record, BadRecord)]


def sts(path) -> Pairs:
    """Reads a CSV file of sentence, sentence, score; a header may stand before.

    Raises DataError for a file of another form.
    """
    path = pathlib.Path(path)
    content = _content(path)
    try:
        reader = csv.reader(io.StringIO(content.decode('utf-8-sig'), newline=''), strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise DataError(f'{path}: invalid UTF-8 at byte {error.start}') from None
    except csv.Error as error:
        raise DataError(f'{path}:{reader.line_num}: broken CSV: {error}') from None
    pairs = []
    for number, (line, row) in enumerate(rows):
        try:
            first, second, score = row[0], row[1], float(row[2])
        except (IndexError, ValueError):
            score = math.nan
        if math.isfinite(score) and len(row) == 3:
            pairs.append((first, second, score))
        elif number or len(row) != 3:
            raise DataError(
                f'{path}:{line}: found {",".join(row)!r:.60}: '
                'expected sentence, sentence and a score'
            )
    if len({score for *_, score in pairs}) < 2:
        raise DataError(f'{path}: expected pairs with at least two different scores')
    return Pairs(path.stem, *map(list, zip(*pairs)), _source('sts', path, content))


def _content(path: pathlib.Path) -> bytearray:
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    return safe_read.file(path, safe_read.DOCUMENT)


def _source(form: str, path: pathlib.Path, content: bytes) -> dict:
    return {'form': form, 'path': str(path), 'sha256': hashlib.sha256(content).hexdigest()}
