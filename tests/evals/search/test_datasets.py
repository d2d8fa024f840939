"""The sets that search is measured on, from files made by hand."""

import json
import pathlib

import pytest

from data.records import DataError
from evals.search import datasets

SHARED = pathlib.Path('../shared/data')


def squad(paragraphs) -> str:
    """[(context, [(id, question, where its answer begins)])] -> SQuAD's JSON, of one article."""
    return json.dumps(
        {
            'data': [
                {
                    'title': 't',
                    'paragraphs': [
                        {
                            'context': context,
                            'qas': [
                                {
                                    'id': i,
                                    'question': q,
                                    'answers': [{'text': 'x', 'answer_start': at}]
                                    if at is not None
                                    else [],
                                }
                                for i, q, at in asked
                            ],
                        }
                        for context, asked in paragraphs
                    ],
                }
            ]
        }
    )


def test_squad(tmp_path):
    """Catches a paragraph that is two documents because it stands twice, questions of one article
    that are told to be of several, questions without an answer, and thirds of characters counted
    from elsewhere."""
    path = tmp_path / 'dev.json'
    path.write_text(
        squad(
            [
                ('a' * 30, [('q1', 'um?', 0), ('q2', 'dois?', 10)]),
                ('b' * 30, [('q3', 'três?', 29), ('none', 'nada?', None)]),
                ('a' * 30, [('q4', 'quatro?', 9)]),
            ]
        )
    )
    found = datasets.squad(path)
    assert found.name == 'dev' and found.documents == {'p00000': 'a' * 30, 'p00001': 'b' * 30}
    assert found.queries == {'q1': 'um?', 'q2': 'dois?', 'q3': 'três?', 'q4': 'quatro?'}
    assert found.qrels == {
        'q1': {'p00000': 1},
        'q2': {'p00000': 1},
        'q3': {'p00001': 1},
        'q4': {'p00000': 1},
    }
    assert found.places == {
        'q1': 'first third',
        'q2': 'middle third',
        'q3': 'last third',
        'q4': 'first third',
    }
    assert found.clusters == {
        'q1': 'p00000',
        'q2': 'p00000',
        'q3': 'p00001',
        'q4': 'p00000',
    }  # one article: its paragraphs
    assert found.source['form'] == 'squad' and len(found.source['sha256']) == 64
    impossible = json.loads(squad([('c', [('q', 'um?', 0), ('r', 'dois?', 0)])]))
    impossible['data'][0]['paragraphs'][0]['qas'][0]['is_impossible'] = True
    path.write_text(json.dumps(impossible))
    assert list(datasets.squad(path).queries) == ['r']
    two = [
        json.loads(squad([(c, [(f'{c}{i}', 'um?', 0)]) for c in some]))['data'][0]
        for i, some in enumerate(('ab', 'c'))
    ]
    path.write_text(json.dumps({'data': two}))
    assert datasets.squad(path).clusters == {'a0': 'a00000', 'b0': 'a00000', 'c1': 'a00001'}


def beir(folder, qrels='query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t0\n', name='test'):
    (folder / 'qrels').mkdir(parents=True)
    (folder / 'corpus.jsonl').write_text(
        '{"_id": "d1", "title": "Lua", "text": "gira"}\n{"_id": "d2", "title": "", "text": "sol"}\n'
    )
    (folder / 'queries.jsonl').write_text(
        '{"_id": "q1", "text": "o que gira?"}\n{"_id": "q2", "text": "o quê?"}\n'
        '{"_id": "q3", "text": "quem?"}\n'
    )
    (folder / 'qrels' / f'{name}.tsv').write_text(qrels)
    return folder


def test_beir(tmp_path):
    """Catches queries that nobody has judged, which would count as 0, and judgements of documents
    that are not there."""
    found = datasets.beir(beir(tmp_path / 'moon'))
    assert (found.name, found.queries, found.qrels) == (
        'moon',
        {'q1': 'o que gira?'},
        {'q1': {'d1': 1}},
    )
    assert (
        found.documents == {'d1': 'Lua\ngira', 'd2': 'sol'} and found.source['qrels'] == 'test.tsv'
    )
    assert datasets.beir(beir(tmp_path / 'b', name='dev')).source['qrels'] == 'dev.tsv'
    for name, qrels, told in (
        ('c', 'q1\td9\t1\n', "judges 'd9'"),
        ('d', 'q9\td1\t1\n', "judges 'q9'"),
        ('e', 'q1\td1\t0\n', 'no query has a document'),
        ('f', 'q1 d1 x\n', 'test.tsv:1: found'),
    ):
        with pytest.raises(DataError, match=told):
            datasets.beir(beir(tmp_path / name, qrels))
    with pytest.raises(DataError, match='corpus.jsonl: no such file'):
        datasets.beir(tmp_path / 'absent')
    (tmp_path / 'b' / 'corpus.jsonl').write_text(
        '{"_id": "d1", "text": "gira"}\n{"_id": "a b", "text": "sol"}\n'
    )
    with pytest.raises(DataError, match="the id 'a b' has spaces"):
        datasets.beir(tmp_path / 'b')


def test_sts(tmp_path):
    """Catches a header read as a pair, commas inside quotes, and scores that are no numbers passed
    over in silence."""
    path = tmp_path / 'pairs.csv'
    path.write_text('sentence1,sentence2,score\n"A, b","c ""d""",4.5\ne,f,0\n')
    found = datasets.sts(path)
    assert (found.first, found.second, found.scores) == (['A, b', 'e'], ['c "d"', 'f'], [4.5, 0.0])
    assert found.asked == [('A, b', 'c "d"'), ('e', 'f')]


@pytest.mark.parametrize(
    'read, text, told',
    [
        (
            datasets.sts,
            'a,b,1\nc,d\n',
            ":2: found 'c,d': expected sentence, sentence and a score",
        ),
        (datasets.sts, 'a,b,1\nc,d,nan\n', ":2: found 'c,d,nan'"),
        (datasets.sts, 'a,b\n', ":1: found 'a,b'"),
        (datasets.sts, 'a,b,1\nc,"d,2\n', ':2: broken CSV'),
        (datasets.sts, 'a,b,1\nc,d,1\n', 'expected pairs with at least two different scores'),
        (datasets.sts, '', 'expected pairs with at least two different scores'),
        (datasets.sts, b'a,\xff,1\n', 'invalid UTF-8 at byte 2'),
        (datasets.squad, '{"data": ', 'broken JSON'),
        (datasets.squad, '{}', 'data is None: expected a list; SQuAD has'),
        (
            datasets.squad,
            '{"data": [{"paragraphs": [{"context": 1}]}]}',
            'data[0].paragraphs[0].context is 1: expected a string',
        ),
        (datasets.squad, '{"data": [[]]}', 'data[0].paragraphs is None: expected a list'),
        (
            datasets.squad,
            squad([('c', [('q', 'um?', 0), ('q', 'dois?', 0)])]),
            "data[0].paragraphs[0].qas[1].id is 'q': another question has it too",
        ),
        (datasets.squad, squad([('c', [('q 1', 'um?', 0)])]), "the id 'q 1' has spaces"),
        (
            datasets.squad,
            squad([('c', [('q', 'um?', None)])]),
            'holds no question with an answer',
        ),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, read, text, told):
    """Catches a traceback, and a message without the file."""
    path = tmp_path / 'bad'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        read(path)
    assert (
        str(path) in str(error.value) and told in str(error.value) and '\n' not in str(error.value)
    )


def test_the_embedded_set():
    """Catches a set that changes from call to call, is too small for an interval, or answers a
    query by the text that holds it."""
    found = datasets.pydoc()
    assert len(found.queries) == len(found.documents) == 400 and found == datasets.pydoc()
    assert (
        all(found.qrels[q] == {q: 1} for q in found.queries)
        and len(set(found.documents.values())) == 400
    )
    assert not any(found.queries[q] in found.documents[q] for q in found.queries)
    assert len(datasets.pydoc(modules=40).queries) < 400
    assert 20 < len({*found.clusters.values()}) < 300 and all(
        q.startswith(f'{module}.') for q, module in found.clusters.items()
    )


def test_a_model_that_read_a_part_is_asked_about_the_rest():
    """Catches a query of a module that was read, or of another whose text stands in one."""
    read = [
        r.text
        for r in datasets.sources.read(
            datasets.ConfigDict({'source': 'pydoc', 'pydoc': {'modules': 30}})
        )
    ]
    rest, whole = (
        datasets.pydoc(modules=60, trained=30),
        datasets.pydoc(modules=60, most=10**6),
    )
    occurring = datasets.leaks.occurring
    assert (
        len(rest.queries) > 50
        and not occurring(rest.queries.values(), read)
        and occurring(whole.queries.values(), read)
    )


@pytest.mark.skipif(
    not SHARED.exists(), reason='the public data sets are not beside the repository'
)
def test_public_sets():
    """Catches a form that the published files do not have."""
    for name, queries, documents in (
        ('search/xquad_en', 1190, 240),
        ('qa/faquad_dev', 63, 38),
        ('qa/faquad_train', 837, 211),
    ):
        found = datasets.squad(SHARED / f'{name}.json')
        assert (len(found.queries), len(found.documents)) == (queries, documents)
    assert [
        len(datasets.sts(SHARED / f'search/stsb_{n}.csv').scores)
        for n in ('en_train', 'pt_dev', 'pt_train')
    ] == [5749, 1500, 5749]
