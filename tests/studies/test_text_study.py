"""A study on text, from files to its report."""

import json
import random

import numpy as np
import pytest

from configs.ablations import base
from runtime.errors import RunError
from studies import ablate, cells, comparison
from studies.records import read_records


@pytest.fixture
def config(tmp_path, cache):
    """Sixteen texts of a small language, half of them held out."""
    rng = random.Random(0)
    for i in range(16):
        (tmp_path / f'{i}.txt').write_text(
            ' '.join(rng.choice(('casa', 'rio', 'mar', 'sol', 'lua')) for _ in range(60))
        )
    c = base.get_config()
    c.model.update(width=16, num_layers=1, num_heads=2, num_kv_heads=2)
    c.train.update(steps=4, batch_size=4)
    c.optimizer.warmup = 1
    c.arms = dict(alibi=dict(positions='alibi'), learned=dict(positions='learned'))
    c.tasks = dict(words=base.text(16, (16, 32), source='files', validation=0.5, cache=cache))
    c.tasks.words.data.files.paths = str(tmp_path)
    c.tasks.words.tokenizer.kind = 'char'
    c.tasks.words.update(scored=4, stride=2, windows=4, beyond=(0, 8))
    return c


def test_a_study_on_text(config, tmp_path):
    """Catches a protocol or length left out, encodings that read other data, and a report without
    the pictures of text or how much context counts."""
    summary = ablate.run(config, tmp_path / 'study', workers=0)
    records = read_records(tmp_path / 'study')
    assert len({r['data'] for r in records}) == len({r['initial'] for r in records}) == 1
    for r in records:
        assert {kind: sorted(map(int, x)) for kind, x in r['perplexity'].items()} == dict.fromkeys(
            ('non_overlapping', 'sliding', 'fixed'), [16, 32]
        )
        assert r['validation_nats'] == pytest.approx(
            np.log(r['perplexity']['fixed']['16']), abs=1e-3
        )
        assert (
            r['by_position']['last'][-1] == 32
            and set(r['shuffled']) == {'0', '8'}
            and r['effective_context'] in (16, 32)
        )
        assert set(r['gap']) == {'1', '4', '16'} and np.shape(r['attention']) == (1, 2, 32)
        found = summary['tasks']['words'][r['arm']]['mean']
        assert found == pytest.approx(-np.log(r['perplexity']['fixed']['32']))
    page = (tmp_path / 'study' / 'report' / 'index.html').read_text()
    assert (
        'Perplexity against the length of the text' in page
        and 'Loss by position' in page
        and 'Mean attention against distance' in page
    )
    (alibi,) = (r for r in records if r['arm'] == 'alibi')
    row = (
        f'| alibi | {alibi["effective_context"]} | {alibi["usable_length"]} | '
        f'{alibi["shuffled"]["0"]:+.3f} | {alibi["shuffled"]["8"]:+.3f} | '
        f'{alibi["gap"]["1"]:+.3f} |'
    )
    assert row in (tmp_path / 'study' / 'report' / 'report.md').read_text()
    assert '2 encodings x 1 tasks x 1 seeds = 2 cells' in ablate.plan(config, records, 1)
    assert (
        json.loads((tmp_path / 'study' / 'config.json').read_text())['tasks']['words']['train_len']
        == 16
    )


def test_a_text_that_diverges(config, tmp_path, monkeypatch):
    """Catches a study that ends at a cell without a finite loss, and begins it again each time: the
    line is kept, the report says so."""
    config.arms = dict(alibi=dict(positions='alibi'))
    config.optimizer.lr = 1e30
    monkeypatch.setattr(
        cells.field_checks, 'check', lambda config: None
    )  # which refuses such a rate
    summary = ablate.run(config, tmp_path / 'study', workers=0)
    assert (
        not read_records(tmp_path / 'study')[0]['finite']
        and summary['untrained']['alibi'][0]['inside'] is None
    )
    assert (
        '- alibi: words (seed 1, diverged)'
        in (tmp_path / 'study' / 'report' / 'report.md').read_text()
    )


def test_what_a_document_gives():
    """Catches documents that count alike whatever their tokens, and a difference the wrong way
    round: their mean is that of the scores."""
    records = [
        {'by_document': {'0': [a, 30], '1': [b, 10]}} for a, b in ((90.0, 20.0), (60.0, 30.0))
    ]
    mean = ((60 + 30) - (90 + 20)) / 40
    gives = comparison.differences_by_document([tuple(records)], mean)
    assert np.mean(gives) == pytest.approx(mean) == -0.5
    assert gives[0] - mean == pytest.approx(2 / 40 * (-30 + 30 * 0.5)) and gives[
        1
    ] - mean == pytest.approx(2 / 40 * (10 + 10 * 0.5))


@pytest.mark.parametrize(
    'change, message',
    [
        (
            dict(windows=500),
            r'the documents hold \d+ windows of 36 tokens \(longest \+ scored\): expected 500',
        ),
        (dict(train_len=24), r'config.tasks.words.test_lens lacks train_len \(24\)'),
    ],
)
def test_texts_that_do_not_suffice(config, tmp_path, change, message):
    """Catches a mistake that shows after the first cell has been trained."""
    config.tasks.words.update(change)
    with pytest.raises(RunError, match=message):
        ablate.run(config, tmp_path / 'study', workers=0)
    assert not (tmp_path / 'study' / 'cells.jsonl').exists()
