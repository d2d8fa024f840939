"""An index measured with judged queries, in the files of BEIR."""

import pathlib

from apps.search.engine import Engine
from data.progress import track
from data.records import DataError
from evals.search import ranking

_DEEP = 1000  # chunks that are ranked for a query; their documents are what is measured


def measure(engine: Engine, queries: str, qrels: str, mode: str, out: str, progress: bool) -> dict:
    """{'queries', 'lacking', measure: [mean, low, high]}: 95 % intervals over queries with a relevant document, those of one document together;
    `lacking`: judged documents that are not indexed. Writes a TREC run file to `out`, where given, and the judgements beside it, `out`.qrels, ids of both
    percent-encoded (ranking.write_run). Raises DataError where a judged query has no text, or none has a relevant document."""
    texts, judged = ranking.read_queries(queries), ranking.read_qrels(qrels)
    unknown = sorted(judged.keys() - texts.keys())
    if unknown:
        raise DataError(
            f'{qrels}: judges {len(unknown)} queries that {queries} lacks, the first {unknown[0]!r}'
        )
    measured = {query: grades for query, grades in judged.items() if max(grades.values()) > 0}
    if not measured:
        raise DataError(f'{qrels}: no document is relevant to any query: expected grades above 0')
    found = {
        query: engine.documents(texts[query], _DEEP, mode)
        for query in track(sorted(judged), 'judged queries', show=progress)
    }
    if out:
        ranking.write_run(pathlib.Path(out), found, f'ordem-{mode}')
        ranking.write_qrels(pathlib.Path(f'{out}.qrels'), judged)
    measures = {
        name: list(ranking.with_interval(values, ranking.clusters(measured)))
        for name, values in ranking.measure(measured, found).items()
    }
    return {
        'queries': len(measured),
        'lacking': engine.lacking({name for grades in judged.values() for name in grades}),
        **measures,
    }
