"""The quickstart on a smaller world: it must answer, and it must not without post-training."""

import json
import os
import subprocess
import sys

import pytest

from studies import quickstart


def smaller(cache):
    pre, post = quickstart.configs(0, False)
    for c in (pre, post):
        c.data.update(cache=cache, seq_len=64)
        c.data.atlas.update(countries=30, editions=24)
        c.optimizer.b2 = 0.95
        c.tokenizer.vocab_size = 900
        c.model.update(width=128, num_layers=3, num_heads=4, num_kv_heads=4)
        c.log.update(progress=False, tensorboard=False)
        c.eval.every, c.checkpoint.every = 0, 1000
        c.mesh.data = 1
    pre.data.batch_size = post.data.batch_size = 8
    pre.train.steps, post.train.steps = 800, 130
    pre.optimizer.update(lr=3e-3, warmup=50)
    post.optimizer.lr = 1e-3
    return pre, post


@pytest.fixture(scope='module')
def found(cache, tmp_path_factory):
    """Returns (folder, report) of a small quickstart, in a process with optimized programs.

    Unlike other tests it trains for longer than they take to compile. The control's steps are
    those of the answers, and come from the store of compiled programs.
    """
    out = tmp_path_factory.mktemp('quickstart')
    code = (
        'import pathlib, sys; from studies import quickstart; '
        'from tests.studies.test_quickstart import smaller; '
        'quickstart.run(pathlib.Path(sys.argv[1]), *smaller(sys.argv[2]))'
    )
    subprocess.run(
        [sys.executable, '-c', code, str(out), cache],
        check=True,
        env={k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {'PYTHONPATH': os.getcwd()},
    )
    return out, json.loads((out / 'report' / 'report.json').read_text())


def answers(found):
    """Returns whether post-training makes it answer what pretraining taught, above the controls.

    This is the claim of the quickstart, on a world that is learned only in part.
    """
    right = {name: r['all'] for name, r in found['accuracy'].items()}
    return right['answers'] > 0.25 and right['answers'] > 2 * max(
        right['most frequent'], right['scratch']
    )


def test_it_answers_what_it_was_never_asked(found):
    """Catches any broken link of the lineage, from text through checkpoints to generation."""
    assert answers(found[1])
    assert found[1]['accuracy']['base']['all'] < 0.1


def test_the_base_model_asks_on(found):
    """Catches a pretraining corpus that answers its questions."""
    base = found[1]['continuations']['base']
    assert base['questions'] > 0.8 and base['answers'] < 0.1


def test_without_post_training_it_does_not_answer(found):
    """Catches a claim that the base model meets, too: the control, which must fail."""
    report = json.loads((found[0] / 'report' / 'report.json').read_text())
    skipped = {**report, 'accuracy': {**report['accuracy'], 'answers': report['accuracy']['base']}}
    assert answers(report) and not answers(skipped)


def test_the_report(found):
    """Catches a table that is not of this run, and a picture that is not drawn."""
    out, report = found
    shown = quickstart.table(report)
    assert (
        f'{100 * report["accuracy"]["answers"]["capital"]:.1f}' in shown
        and 'Qual é a capital do Brasil?' in shown
    )
    assert (out / 'report' / 'report.png').read_bytes().startswith(b'\x89PNG')
