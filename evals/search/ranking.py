"""Rankings of documents for queries: files of BEIR and TREC, and measures with intervals.

A run is {query: {document: score}}, larger is better and equal scores are in the order of their
ids; judgements (qrels) are {query: {document: grade}}, a grade above 0 being relevant.
"""

import math
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Mapping

import ir_measures
import numpy as np

from data import safe_read
from data.fusion import order
from data.records import DataError
from evals import statistics
from runtime.run_dir import write_atomically

MEASURES = ('nDCG@10', 'RR@10', 'R@1', 'R@5', 'R@10')
Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]


def measure(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """Returns {measure: {query: value}} of the MEASURES.

    nDCG@10 (Järvelin and Kekäläinen 2002, gains as the grades are), reciprocal rank of the first
    relevant one of ten, and recall at 1, 5 and 10. All queries with a relevant document count, with
    0 where the run has nothing for them; no others do.
    """
    judged = {
        query: dict(grades)
        for query, grades in qrels.items()
        if any(grade > 0 for grade in grades.values())
    }
    # Places in place of scores: trec_eval would take equal ones in the contrary order of their ids.
    ranked = {
        query: {document: -float(place) for place, document in enumerate(order(run[query]))}
        for query in judged
        if run.get(query)
    }
    values: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    measures = [ir_measures.parse_measure(name) for name in MEASURES]
    for value in ir_measures.iter_calc(measures, judged, ranked):
        values[str(value.measure)][value.query_id] = value.value
    return values


def with_interval(
    values: Mapping[str, float], clusters: Mapping[str, str]
) -> tuple[float, float, float]:
    """Returns the mean of {query: value} with its 95 % bootstrap interval: mean, low, high.

    `clusters`: see `estimate`.
    """
    mean = estimate(values, clusters)
    return mean.value, *mean.interval()


def difference(
    a: Mapping[str, float], b: Mapping[str, float], clusters: Mapping[str, str]
) -> tuple[float, float, float]:
    """Returns a - b of the same queries, with the interval of a paired bootstrap.

    A query that is drawn has both its values. `clusters`: see `estimate`. Raises DataError where
    the queries are not the same.
    """
    if a.keys() != b.keys():
        raise DataError(
            f'a difference of other queries: {len(a)} and {len(b)}, of which '
            f'{len(a.keys() & b.keys())} are the same'
        )
    gain = estimate(a, clusters) - estimate(b, clusters)
    return gain.value, *gain.interval()


def estimate(values: Mapping[str, float], clusters: Mapping[str, str]) -> statistics.Estimate:
    """Returns the mean of {query: value}; whole clusters, {query: cluster}, are drawn.

    Queries of one text are alike, and drawn one by one they would count for more than they are
    (Field and Welsh 2007, "Bootstrapping clustered data", section 2.2). Clusters are in the order
    of their ids, so that two estimates of the same queries are paired.
    """
    of_cluster: dict[str, list[float]] = {}
    for query in sorted(values, key=lambda query: (clusters[query], query)):
        of_cluster.setdefault(clusters[query], []).append(values[query])
    sums = [math.fsum(members) for members in of_cluster.values()]
    sizes = [len(members) for members in of_cluster.values()]
    return statistics.mean(sums) / statistics.mean(sizes)


def clusters(qrels: Qrels) -> dict[str, str]:
    """Returns for each query the document that answers it, of several the best one.

    That is what queries of one text have in common where nothing else is known.
    """
    return {
        query: min(grades, key=lambda document: (-grades[document], document))
        for query, grades in qrels.items()
    }


def read_corpus(path) -> dict[str, str]:
    """Reads a BEIR corpus.jsonl, {"_id", "title" (or none), "text"} a line.

    Returns {id: title and text}.
    """
    return _read_texts(path, titled=True)


def read_queries(path) -> dict[str, str]:
    """Reads a BEIR queries.jsonl, {"_id", "text"} a line. Returns {id: text}."""
    return _read_texts(path, titled=False)


def _read_texts(path, titled: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, line in _lines(path):
        try:
            entry = safe_read.parse(line)
        except ValueError as error:
            raise DataError(f'{where}: broken JSON: {error}') from None
        title = entry.get('title') or '' if titled else ''
        for name, value in (
            ('_id', entry.get('_id')),
            ('text', entry.get('text')),
            ('title', title),
        ):
            if not isinstance(value, str):
                raise DataError(
                    f'{where}: {name!r} is {value!r:.40}: expected a string; '
                    'a line is {"_id": "1", "text": "..."}'
                )
        if entry['_id'] in texts:
            raise DataError(f'{where}: the id {entry["_id"]!r} is there before')
        texts[entry['_id']] = f'{title}\n{entry["text"]}' if title else entry['text']
    return _not_empty(texts, path)


def read_qrels(path) -> dict[str, dict[str, int]]:
    """Reads judgements, {query: {document: grade}}.

    BEIR's three columns (query, document, grade; with a header) or TREC's four (the second is
    passed over). Raises DataError where two lines contradict each other.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, (where, line) in enumerate(_lines(path)):
        columns = _columns(where, line)
        if number == 0 and columns == ['query-id', 'corpus-id', 'score']:
            continue
        try:
            query, document, grade = columns[0], columns[-2], int(columns[-1])
        except (IndexError, ValueError):
            grade = None
        if grade is None or len(columns) not in (3, 4):
            raise DataError(
                f'{where}: found {" ".join(columns)!r:.60}: expected query, document and a whole '
                "number, or TREC's four columns"
            )
        before = qrels.setdefault(query, {}).setdefault(document, grade)
        if before != grade:
            raise DataError(
                f'{where}: {document!r} has the grade {grade} for the query {query!r}, '
                f'and {before} before'
            )
    return _not_empty(qrels, path)


def write_qrels(path: pathlib.Path, qrels: Qrels) -> None:
    """Writes judgements in TREC's four columns, as trec_eval reads them; ids as in `write_run`."""
    lines = [
        f'{_column(query)} 0 {_column(document)} {grade}\n'
        for query in sorted(qrels)
        for document, grade in sorted(qrels[query].items())
    ]
    write_atomically(path, ''.join(lines))


def write_run(path: pathlib.Path, run: Run, tag: str) -> None:
    """Writes a TREC run file: query, Q0, document, rank from 1, score, tag.

    trec_eval goes by the score alone, which it keeps as float32: a score that is not below the one
    before it there is written one step lower, so that the file has the order that was measured.
    White space and % of ids are percent-encoded. Raises DataError for a score that is not finite.
    """
    lines = []
    tag = _column(tag)
    for query in sorted(run):
        last = np.float32(np.inf)
        for rank, document in enumerate(order(run[query]), 1):
            score = np.float32(run[query][document])
            if not np.isfinite(score):
                raise DataError(
                    f'{path}: the score of {document!r} for {query!r} is {score}: '
                    'expected a finite number'
                )
            last = min(score, np.nextafter(last, np.float32(-np.inf)))
            lines.append(f'{_column(query)} Q0 {_column(document)} {rank} {last} {tag}\n')
    write_atomically(path, ''.join(lines))


def _column(name: str) -> str:
    """Returns an id without white space, other for each other id: an empty one is '%'."""
    return re.sub(r'[\s%]', lambda match: urllib.parse.quote(match[0]), name) or '%'


def read_run(path) -> dict[str, dict[str, float]]:
    """Reads a TREC run file of six columns: {query: {document: score}}."""
    run: dict[str, dict[str, float]] = {}
    for where, line in _lines(path):
        columns = _columns(where, line)
        try:
            score = float(columns[4])
        except (IndexError, ValueError):
            score = math.nan
        if len(columns) != 6 or not math.isfinite(score):
            raise DataError(
                f'{where}: found {" ".join(columns)!r:.60}: expected six columns: '
                'query, Q0, document, rank, score and a tag'
            )
        query, document = columns[0], columns[2]
        if document in run.setdefault(query, {}):
            raise DataError(f'{where}: {document!r} is there before for the query {query!r}')
        run[query][document] = score
    return _not_empty(run, path)


def _lines(path) -> Iterator[tuple[str, bytes]]:
    """Yields 'file:line' and the line, of each that is not empty."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    with path.open('rb') as file:
        for number, line in enumerate(safe_read.lines(file, safe_read.LINE), 1):
            if line is None:
                raise DataError(
                    f'{path}:{number}: a line of more than {safe_read.size(safe_read.LINE)}'
                )
            if line.strip():
                yield f'{path}:{number}', line


def _columns(where: str, line: bytes) -> list[str]:
    try:
        text = line.decode('utf-8-sig').rstrip('\r\n')
    except UnicodeDecodeError as error:
        raise DataError(f'{where}: invalid UTF-8 at byte {error.start} of the line') from None
    return text.split('\t') if '\t' in text else text.split()


def _not_empty(content: dict, path) -> dict:
    """Returns the content of a file. Raises DataError where there is none."""
    if not content:
        raise DataError(f'{path}: holds nothing')
    return content
