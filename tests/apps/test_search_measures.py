"""Search: measured with judged queries."""

import json

import numpy as np
import pytest

from apps.search import judged
from tests.apps.search_index import index, opened


def test_measures_are_those_of_the_hand(reader, tmp_path):
    """Catches a document scored by another chunk than its best, a measure over other queries or a
    count of them, a run file that trec_eval reads otherwise, and a measure of nothing."""
    (tmp_path / 'corpus.jsonl').write_text(
        '\n'.join(
            json.dumps(d)
            for d in (
                {'_id': 'a', 'title': '', 'text': 'apple apple apple'},
                {'_id': 'b', 'title': '', 'text': 'apple ' + 'filler ' * 400},
                {'_id': 'c', 'title': 'pear', 'text': 'pear and an apple pie'},
            )
        )
    )
    (tmp_path / 'queries.jsonl').write_text(
        '{"_id": "q1", "text": "apple"}\n{"_id": "q2", "text": "pear"}\n{"_id": "q3", "text": '
        '"unasked"}\n{"_id": "q4", "text": "zebra"}\n'
    )
    (tmp_path / 'qrels.tsv').write_text(
        'query-id\tcorpus-id\tscore\nq1\tb\t1\nq1\tz\t1\nq2\tc\t2\nq4\tc\t0\nq2\tc\t2\n'
    )
    index(reader, tmp_path / 'ix', tmp_path / 'corpus.jsonl')
    args = (
        str(tmp_path / 'queries.jsonl'),
        str(tmp_path / 'qrels.tsv'),
        'lexical',
        str(tmp_path / 'run.trec'),
        False,
    )
    e = opened(tmp_path / 'ix')
    order = list(e.documents('apple', 1000, 'lexical'))[::-1]
    assert order[0] == 'a' and sorted(order) == ['a', 'b', 'c']
    place = order.index('b') + 1
    found = judged.measure(e, *args)
    ndcg = (1 / np.log2(place + 1)) / (
        1 + 1 / np.log2(3)
    )  # of two relevant ones, one is not indexed
    assert found['queries'] == 2 and found['lacking'] == 1
    assert found['nDCG@10'][0] == pytest.approx((ndcg + 1) / 2) and found['RR@10'][
        0
    ] == pytest.approx((1 / place + 1) / 2)
    assert (
        found['R@10'][0] == pytest.approx((1 / 2 + 1) / 2)
        and found['R@10'][1] <= found['R@10'][0] <= found['R@10'][2]
    )
    rows = [line.split() for line in (tmp_path / 'run.trec').read_text().splitlines()]
    assert [row[:4] for row in rows] == [
        ['q1', 'Q0', name, str(i)] for i, name in enumerate(order, 1)
    ] + [['q2', 'Q0', 'c', '1']]
    assert [float(row[4]) for row in rows[:3]] == sorted(
        (float(row[4]) for row in rows[:3]), reverse=True
    ) and rows[0][5] == 'ordem-lexical'
    (tmp_path / 'qrels.tsv').write_text('q1\tb\t0\n')
    with pytest.raises(ValueError, match='qrels.tsv: no document is relevant to any query'):
        judged.measure(e, *args)
    (tmp_path / 'qrels.tsv').write_text('q9\tb\t1\n')
    with pytest.raises(
        ValueError, match="judges 1 queries that .*queries.jsonl lacks, the first 'q9'"
    ):
        judged.measure(e, *args)


def test_a_run_of_files_with_spaces(reader, tmp_path):
    """Catches an evaluation that is lost after ranking since a path has a space, and judgements
    that name other documents than the run."""
    (tmp_path / 'my notes').mkdir()
    (tmp_path / 'my notes/a b.txt').write_text('apple')
    name = str(tmp_path / 'my notes/a b.txt')
    (tmp_path / 'queries.jsonl').write_text('{"_id": "q 1", "text": "apple"}\n')
    (tmp_path / 'qrels.tsv').write_text(f'query-id\tcorpus-id\tscore\nq 1\t{name}\t1\n')
    index(reader, tmp_path / 'ix', tmp_path / 'my notes')
    found = judged.measure(
        opened(tmp_path / 'ix'),
        str(tmp_path / 'queries.jsonl'),
        str(tmp_path / 'qrels.tsv'),
        'lexical',
        str(tmp_path / 'run'),
        False,
    )
    assert found['nDCG@10'] == [1, 1, 1]
    run, qrels = (path.read_text().split() for path in (tmp_path / 'run', tmp_path / 'run.qrels'))
    assert (run[0], run[2]) == (qrels[0], qrels[2]) == ('q%201', name.replace(' ', '%20')) and (
        len(run),
        len(qrels),
    ) == (6, 4)
