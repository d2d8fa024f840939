"""Measures and files of rankings, against figures computed by hand and against trec_eval."""

import math

import numpy as np
import pytest
import pytrec_eval

from data import fusion
from data.records import DataError
from evals.search import ranking


def test_measures_by_hand():
    """Catches gains of 2^grade - 1, discounts from the wrong place, recall as a hit rate, and a
    query without results that is left out."""
    qrels = {
        'graded': {'a': 2, 'b': 1, 'z': 0},
        'second': {'b': 1},
        'lost': {'a': 1},
        'far': {'k': 1},
        'none': {'a': 0},
    }
    run = {
        'graded': {'z': 9.0, 'b': 8.0, 'a': 7.0},
        'second': {'a': 2.0, 'b': 1.0},
        'far': {c: -ord(c) for c in 'abcdefghijk'},
        'other': {'a': 1.0},
    }
    found = ranking.measure(qrels, run)
    assert list(found) == list(ranking.MEASURES) and all(
        v.keys() == {'graded', 'second', 'lost', 'far'} for v in found.values()
    )
    ideal = 2 + 1 / math.log2(3)
    assert found['nDCG@10'] == pytest.approx(
        {
            'graded': (1 / math.log2(3) + 2 / math.log2(4)) / ideal,
            'second': 1 / math.log2(3),
            'lost': 0,
            'far': 0,
        }
    )
    assert found['RR@10'] == pytest.approx(
        {'graded': 1 / 2, 'second': 1 / 2, 'lost': 0, 'far': 0}
    )  # the 11th is beyond
    assert (
        found['R@1'] == {'graded': 0, 'second': 0, 'lost': 0, 'far': 0}
        and found['R@5']['graded'] == found['R@10']['second'] == 1
    )
    assert ranking.measure({'q': {'a': 1, 'b': 1}}, {'q': {'a': 1.0}})['R@5'] == {'q': 0.5}


def test_equal_scores_are_in_the_order_of_their_ids():
    """Catches measures that take ties as trec_eval does, from the last id, while the files and the
    app take them from the first."""
    run = {'q': {'b': 1.0, 'a': 1.0, 'c': 1.0}}
    assert fusion.order(run['q']) == ['a', 'b', 'c']
    assert [ranking.measure({'q': {d: 1}}, run)['RR@10']['q'] for d in 'abc'] == pytest.approx(
        [1, 1 / 2, 1 / 3]
    )


def test_trec_eval_measures_the_same_from_the_file(tmp_path):
    """Catches a file whose ties, or scores that differ beyond float32 only, trec_eval would order
    otherwise than was measured."""
    rng = np.random.default_rng(0)
    qrels = {
        f'q{i}': {f'd{j}': int(rng.integers(1, 3)) for j in rng.choice(30, 4, replace=False)}
        for i in range(20)
    }
    run = {
        q: {f'd{j}': float(rng.integers(4)) + 1e-12 * float(rng.random()) for j in range(30)}
        for q in qrels
    }
    path = tmp_path / 'x.run'
    ranking.write_run(path, run, 'tag')
    again = ranking.read_run(path)
    assert [fusion.order(again[q]) for q in run] == [fusion.order(run[q]) for q in run]
    ours = ranking.measure(qrels, run)
    with path.open() as file:
        theirs = pytrec_eval.RelevanceEvaluator(qrels, {'ndcg_cut.10', 'recall.5'}).evaluate(
            pytrec_eval.parse_run(file)
        )
    assert {q: v['ndcg_cut_10'] for q, v in theirs.items()} == pytest.approx(ours['nDCG@10'])
    assert {q: v['recall_5'] for q, v in theirs.items()} == pytest.approx(ours['R@5'])
    # The control: with the scores as they are it orders ties otherwise.
    raw = pytrec_eval.RelevanceEvaluator(qrels, {'ndcg_cut.10'}).evaluate(
        {q: {d: float(np.float32(s)) for d, s in r.items()} for q, r in run.items()}
    )
    assert {q: v['ndcg_cut_10'] for q, v in raw.items()} != pytest.approx(ours['nDCG@10'])
    first = path.read_text().splitlines()[0].split()
    assert (
        len(first) == 6
        and first[0] == 'q0'
        and first[1] == 'Q0'
        and first[3] == '1'
        and first[5] == 'tag'
    )


def test_ids_with_spaces_keep_their_columns(tmp_path):
    """Catches ids that shift the columns of a run or of its judgements, two that become one, and
    ones that differ in the two files."""
    names = ['a b', 'a%20b', 'a\u00a0b', 'a\tb\n', '', 'é/c.txt']
    run = {'q 1': {name: float(-i) for i, name in enumerate(names)}}
    qrels = {'q 1': {name: i for i, name in enumerate(names)}}
    ranking.write_run(tmp_path / 'x.run', run, 'my run')
    ranking.write_qrels(tmp_path / 'x.qrels', qrels)
    rows = [line.split() for line in (tmp_path / 'x.run').read_text().splitlines()]
    assert [row[0] for row in rows] == ['q%201'] * 6 and [row[2] for row in rows] == [
        'a%20b',
        'a%2520b',
        'a%C2%A0b',
        'a%09b%0A',
        '%',
        'é/c.txt',
    ]
    with open(tmp_path / 'x.run') as found, open(tmp_path / 'x.qrels') as judged:
        theirs = pytrec_eval.RelevanceEvaluator(
            pytrec_eval.parse_qrel(judged), {'ndcg_cut.10'}
        ).evaluate(pytrec_eval.parse_run(found))
    assert theirs['q%201']['ndcg_cut_10'] == pytest.approx(
        ranking.measure(qrels, run)['nDCG@10']['q 1']
    )


def test_intervals_are_of_queries_and_pairs():
    """Catches an interval of all values pooled: paired differences that are all alike have no
    spread, whatever the spread of each."""
    rng = np.random.default_rng(1)
    a = {f'q{i}': float(v) for i, v in enumerate(rng.random(200))}
    alone = {q: q for q in a}
    mean, low, high = ranking.with_interval(a, alone)
    assert (
        low < mean < high
        and mean == pytest.approx(np.mean(list(a.values())))
        and 0.06 < high - low < 0.1
    )  # 2 * 1.96 * 0.29 / sqrt(200)
    assert ranking.difference({q: v + 0.1 for q, v in a.items()}, a, alone) == pytest.approx(
        (0.1, 0.1, 0.1)
    )
    other = {q: a[p] for q, p in zip(a, reversed(a))}
    mean, low, high = ranking.difference(other, a, alone)
    assert mean == pytest.approx(0) and high - low > 0.08
    with pytest.raises(DataError, match='of which 199'):
        ranking.difference(a, {q: v for q, v in a.items() if q != 'q0'}, alone)


def test_queries_of_one_text_are_drawn_together():
    """Catches queries that are drawn one by one: ten copies of each know no more than one. And a
    mean of the means of clusters of other sizes."""
    rng = np.random.default_rng(2)
    one = {f'c{i}': float(v) for i, v in enumerate(rng.random(40))}
    ten = {f'{c}q{j}': v for c, v in one.items() for j in range(10)}
    found = ranking.estimate(ten, {q: q.partition('q')[0] for q in ten})
    expected = ranking.estimate(one, {c: c for c in one})
    assert found.value == pytest.approx(expected.value) and found.interval() == pytest.approx(
        expected.interval()
    )
    low, high = ranking.estimate(ten, {q: q for q in ten}).interval()
    assert high - low < 0.5 * np.subtract(*expected.interval()[::-1])
    assert ranking.estimate(
        {'a': 0.0, 'b': 1.0, 'c': 1.0}, {'a': 'x', 'b': 'y', 'c': 'y'}
    ).value == pytest.approx(2 / 3)
    assert ranking.clusters({'q': {'b': 1, 'a': 1, 'z': 0}, 'r': {'b': 2, 'a': 1}}) == {
        'q': 'a',
        'r': 'b',
    }


def test_files_of_beir_and_trec(tmp_path):
    """Catches a title that is lost or put before queries, a header read as a judgement, and columns
    taken from the wrong end."""

    def write(name, text):
        (tmp_path / name).write_text(text, encoding='utf-8')
        return tmp_path / name

    corpus = write(
        'corpus.jsonl',
        '{"_id": "1", "title": "Lua", "text": "a lua gira"}\n\n'
        '{"_id": "2", "title": "", "text": "sol"}\n{"_id": "3", "text": "mar"}\n',
    )
    assert ranking.read_corpus(corpus) == {'1': 'Lua\na lua gira', '2': 'sol', '3': 'mar'}
    assert ranking.read_queries(
        write('queries.jsonl', '{"_id": "q", "text": "o quê?", "title": "x", "metadata": {}}\n')
    ) == {'q': 'o quê?'}
    want = {'q1': {'d 1': 2, 'd2': 0}, 'q2': {'d2': 1}}
    assert (
        ranking.read_qrels(
            write('test.tsv', 'query-id\tcorpus-id\tscore\nq1\td 1\t2\nq1\td2\t0\nq2\td2\t1\n')
        )
        == want
    )
    assert ranking.read_qrels(write('qrels.txt', 'q1 0 d1 2\nq1 0 d2 0\nq2 0 d2 1\n')) == {
        'q1': {'d1': 2, 'd2': 0},
        'q2': {'d2': 1},
    }


@pytest.mark.parametrize(
    'read, text, told',
    [
        (ranking.read_queries, '{"_id": "1", "text": "a"}\n{"_id": "2", "text"', ':2: broken JSON'),
        (ranking.read_queries, '{"_id": 1, "text": "a"}', ":1: '_id' is 1: expected a string"),
        (ranking.read_corpus, '{"_id": "1", "title": 3, "text": "a"}', ":1: 'title' is 3"),
        (
            ranking.read_corpus,
            '{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}',
            ":2: the id '1' is there before",
        ),
        (ranking.read_corpus, '[1]', ':1: broken JSON: JSON list, expected an object'),
        (ranking.read_corpus, '\n', 'holds nothing'),
        (ranking.read_qrels, 'q\td\t1\nq\td\thigh\n', ":2: found 'q d high'"),
        (
            ranking.read_qrels,
            'q\td\t1\nq\td\t1\nq\td\t0\n',
            ":3: 'd' has the grade 0 for the query 'q', and 1 before",
        ),
        (
            ranking.read_qrels,
            'q 1\n',
            ":1: found 'q 1': expected query, document and a whole number",
        ),
        (ranking.read_qrels, b'q\t\xff\t1\n', ':1: invalid UTF-8 at byte 2'),
        (
            ranking.read_run,
            'q Q0 d 1 0.5 tag\nq Q0 d 1 x tag\n',
            ":2: found 'q Q0 d 1 x tag': expected six columns",
        ),
        (ranking.read_run, 'q Q0 d 1 nan tag\n', ':1: found'),
        (ranking.read_run, 'q Q0 d 1 0.5 tag\nq Q0 d 2 0.4 tag\n', ":2: 'd' is there before"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path, read, text, told):
    """Catches a traceback, a line that is passed over in silence, and a message without file and
    line."""
    path = tmp_path / 'bad'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        read(path)
    assert (
        str(path) in str(error.value) and told in str(error.value) and '\n' not in str(error.value)
    )


def test_a_run_that_cannot_be_written_leaves_the_old_file(tmp_path):
    """Catches scores that are no numbers, and a file lost to them."""
    path = tmp_path / 'x.run'
    ranking.write_run(path, {'q': {'d': 1.0}}, 'tag')
    with pytest.raises(DataError, match='finite'):
        ranking.write_run(path, {'q': {'a': math.nan}}, 'tag')
    assert path.read_text() == 'q Q0 d 1 1.0 tag\n'
    with pytest.raises(DataError, match='no such file'):
        ranking.read_run(tmp_path / 'absent')
