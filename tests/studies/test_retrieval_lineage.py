"""All phases of search, small, and their report."""

import dataclasses
import json
import pathlib
import types

import pytest

from evals.search import datasets, retrieval
from runtime.errors import RunError
from runtime.run_dir import Run
from studies import retrieval_lineage
from tests.shapes import embed_in_few_shapes


@pytest.fixture
def few_shapes(monkeypatch):
    """Embeds in few shapes, so that little is compiled."""
    embed_in_few_shapes(monkeypatch, 8, 32)


@pytest.fixture
def phases(tmp_path):
    (tmp_path / 'mine.txt').write_text(
        '\n\n'.join(
            f'The river {word} flows to the sea of {word}. It has a bridge. '
            f'Nobody knows its {word} source.'
            for word in ('Lena', 'Douro', 'Negro', 'Sena', 'Ebro', 'Nilo', 'Reno', 'Volga')
        )
    )
    found = retrieval_lineage.experiments(
        'rope', retrieval_lineage.Texts(collection=str(tmp_path / 'mine.txt')), 0
    )
    for c in found.values():
        c.data.pydoc.modules = 8
        c.data.atlas.update(countries=6, editions=2)
        c.data.update(seq_len=32, batch_size=8)
        c.data.pairs.update(query_len=12, words=16)
        c.tokenizer.update(vocab_size=600)
        c.model.update(width=32, num_layers=1, num_heads=2, num_kv_heads=2, max_len=32)
        c.train.steps, c.optimizer.warmup, c.eval.every, c.checkpoint.every, c.mesh.data = (
            2,
            1,
            0,
            2,
            1,
        )
        c.log.update(progress=False, tensorboard=False)
    return found


def test_each_phase_begins_from_the_one_before_and_all_are_measured(phases, few_shapes, tmp_path):
    """Catches a phase without its parent, a second start that trains again, and a report that
    leaves a phase out or calls a run that has seen the questions clean."""
    out = tmp_path / 'out'
    retrieval_lineage.train(out, 'rope', phases)
    runs = {phase: Run.parse(str(out / f'rope-{phase}')) for phase in retrieval_lineage.PHASES}
    parents = {
        phase: (run.lineage()['parent'] or {'run': ''})['run'] for phase, run in runs.items()
    }
    assert [pathlib.Path(parents[phase]).name for phase in retrieval_lineage.PHASES] == [
        '',
        'rope-base',
        'rope-answers',
        'rope-search',
    ]
    before = {phase: (run.path / 'metrics.jsonl').read_text() for phase, run in runs.items()}
    retrieval_lineage.train(out, 'rope', phases)
    assert before == {
        phase: (run.path / 'metrics.jsonl').read_text() for phase, run in runs.items()
    }
    questions = {
        'What is the sea of the Lena?': 'It flows to the sea of Lena.',
        'Who built the bridge of Ebro?': 'Nobody.',
    }
    data = [
        {
            'paragraphs': [
                {
                    'context': text,
                    'qas': [
                        {
                            'question': asked,
                            'id': str(i),
                            'answers': [{'text': text[:2], 'answer_start': 0}],
                        }
                    ],
                }
            ]
        }
        for i, (asked, text) in enumerate(questions.items())
    ]
    (tmp_path / 'small.json').write_text(json.dumps({'data': data}))
    sets = [datasets.squad(str(tmp_path / 'small.json'))]
    plan = retrieval.Plan(sets, runs, 'this test', str(out / 'cache'))
    found = retrieval.report(plan, out / 'report')
    assert set(found['scores']['small']) >= {
        *retrieval_lineage.PHASES,
        'base.untrained',
        'base.static',
        'search+bm25',
        'bm25',
    }
    assert (
        all(entry['checked'] for entry in found['leaks']['collection'])
        and len(found['leaks']['collection']) == 4
    )
    (tmp_path / 'seen.json').write_text(
        json.dumps(
            {
                'data': [
                    {
                        **data[0],
                        'paragraphs': [
                            {
                                **data[0]['paragraphs'][0],
                                'qas': [
                                    {
                                        **data[0]['paragraphs'][0]['qas'][0],
                                        'question': 'Nobody knows its Lena source',
                                    }
                                ],
                            }
                        ],
                    }
                ]
            }
        )
    )
    seen = [datasets.squad(str(tmp_path / 'seen.json'))]
    with pytest.raises(RunError, match='1 of the 1 questions of seen stand in the training text'):
        retrieval.report(dataclasses.replace(plan, sets=seen), out / 'other')


def test_texts_and_answers_are_the_ones_given():
    """Catches a flag that is not looked at."""
    found = retrieval_lineage.experiments('alibi', retrieval_lineage.Texts('T', 'A'), 3)
    assert {phase: (c.data.source, c.data.files.paths) for phase, c in found.items()} == {
        'base': ('files', 'T'),
        'answers': ('files', 'A'),
        'search': ('files', 'T'),
    }
    assert {(c.model.positions, c.seed) for c in found.values()} == {('alibi', 3)}
    pooled = {
        pooling: retrieval_lineage.experiments(
            'alibi', retrieval_lineage.Texts('T', 'A', 'C'), 3, pooling
        )
        for pooling in ('', 'bag', 'mean')
    }
    assert {
        pooling: {(c.embedding.pooling, c.model.bag) for c in found.values()}
        for pooling, found in pooled.items()
    } == {
        '': {('mean', False), ('bag+mean', True)},
        'bag': {('mean', False), ('bag', True)},
        'mean': {('mean', False)},
    }


def test_encodings_are_compared_by_what_they_enter(monkeypatch, tmp_path):
    """Catches a comparison of encodings by vectors that none of them has a part in."""
    given = types.SimpleNamespace(
        out=str(tmp_path / 'out'), positions=['rope', 'none'], pooling='bag'
    )
    monkeypatch.setattr(retrieval_lineage, 'flags', types.SimpleNamespace(FLAGS=given))
    with pytest.raises(
        RunError, match='--pooling=bag: no encoding enters a bag of tokens: --positions=rope,none'
    ):
        retrieval_lineage.main()
