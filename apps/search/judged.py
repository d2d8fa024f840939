"""An index measured with judged queries, in the files of BEIR."""

import pathlib

from apps.search.engine import Engine
from data.progress import track
from data.records import DataError
from evals.search import ranking

_RANKED = 1000  # chunks that are ranked for a query; their documents are what is measured


def measure(engine: Engine, queries: str, qrels: str, mode: str, out: str, progress: bool) -> dict:
    """Returns how well an index answers judged queries.

    Args:
      engine: the index.
      queries: path of queries.jsonl of BEIR.
      qrels: path of the judgements.
      mode: of search.
      out: where a TREC run file is written, and the judgements beside it as `out`.qrels, ids of
        both percent-encoded (ranking.write_run); '': nowhere.
      progress: whether to show a bar.

    Returns:
      {'queries', 'lacking', measure: [mean, low, high]}: 95 % intervals over queries with a
      relevant document, those of one document together; 'lacking': judged documents that are not
      indexed.

    Raises:
      DataError: a judged query has no text, or none has a relevant document.
    """
    texts = ranking.read_queries(queries)
    judged = ranking.read_qrels(qrels)
    unknown = sorted(judged.keys() - texts.keys())
    if unknown:
        raise DataError(
            f'{qrels}: judges {len(unknown)} queries that {queries} lacks, the first {unknown[0]!r}'
        )
    measured = {query: grades for query, grades in judged.items() if max(grades.values()) > 0}
    if not measured:
        raise DataError(f'{qrels}: no document is relevant to any query: expected grades above 0')

    scores = {
        query: engine.documents(texts[query], _RANKED, mode)
        for query in track(sorted(judged), 'judged queries', show=progress)
    }
    if out:
        ranking.write_run(pathlib.Path(out), scores, f'ordem-{mode}')
        ranking.write_qrels(pathlib.Path(f'{out}.qrels'), judged)

    measures = {
        name: list(ranking.with_interval(values, ranking.clusters(measured)))
        for name, values in ranking.measure(measured, scores).items()
    }
    documents = {name for grades in judged.values() for name in grades}
    return {
        'queries': len(measured),
        'lacking': engine.count_lacking(documents),
        **measures,
    }
