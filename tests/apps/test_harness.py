"""A run behind the Language Model Evaluation Harness."""

import json
import subprocess
import sys

import pytest

from evals.likelihood import log_likelihoods
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run

QUESTIONS = [
    dict(text='A capital do Brasil é', choices=[' Lisboa', ' Brasília', ' Luanda'], right=1),
    dict(text='A moeda do Japão é', choices=[' o real', ' o euro', ' o iene'], right=2),
]
TASKS = {
    'capitals': dict(
        output_type='multiple_choice',
        doc_to_text='{{text}}',
        doc_to_choice='{{choices}}',
        doc_to_target='{{right}}',
        metric_list=[dict(metric='acc')],
    ),
    'whole_texts': dict(
        output_type='loglikelihood_rolling',
        doc_to_text='',
        doc_to_target='{{text}}',
        metric_list=[dict(metric='word_perplexity')],
    ),
    'writing': dict(
        output_type='generate_until',
        doc_to_text='{{text}}',
        doc_to_target=' nada',
        generation_kwargs=dict(until=['\n'], max_gen_toks=6),
        metric_list=[dict(metric='exact_match')],
    ),
}


def _harness(*arguments):
    done = subprocess.run(
        [sys.executable, '-m', 'apps.lm_eval', *arguments], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_it_says_what_it_needs(monkeypatch):
    """Catches a traceback where the harness is not installed."""
    from apps import lm_eval

    monkeypatch.setattr(lm_eval.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(RunError, match='needs the package lm-eval: pip install'):
        lm_eval.main()


def test_local_tasks(tiny_run, tmp_path):
    """Catches numbers that are not the model's, in each of the three kinds of tasks."""
    pytest.importorskip('lm_eval', reason='needs the extra `harness`')
    yaml = pytest.importorskip('yaml')
    (tmp_path / 'questions.jsonl').write_text(''.join(json.dumps(q) + '\n' for q in QUESTIONS))
    for name, task in TASKS.items():
        data = dict(data_files=dict(test=str(tmp_path / 'questions.jsonl')))
        task = dict(task=name, dataset_path='json', dataset_kwargs=data, test_split='test', **task)
        (tmp_path / f'{name}.yaml').write_text(yaml.safe_dump(task))
    code, _, said = _harness(
        *('--model', 'ordem', '--model_args', f'run={tiny_run},max_gen_toks=6'),
        *('--tasks', ','.join(TASKS), '--include_path', str(tmp_path)),
        *('--output_path', str(tmp_path / 'out'), '--log_samples'),
    )
    assert code == 0, said[-2000:]
    [results] = (tmp_path / 'out').rglob('results_*.json')
    numbers = json.loads(results.read_text())['results']

    # The same from the model itself.
    model, params, tokenizer, _ = models.load(Run.parse(str(tiny_run)))

    def score(context, continuation):
        whole = [tokenizer.bos, *tokenizer.encode(context + continuation)]
        before = [tokenizer.bos, *tokenizer.encode(context)]
        return log_likelihoods(model, params, [(before, whole[len(before) :])])[0][0]

    right = []
    for question in QUESTIONS:
        scores = [score(question['text'], choice) for choice in question['choices']]
        right.append(scores.index(max(scores)) == question['right'])
    assert numbers['capitals']['acc,none'] == sum(right) / len(right)
    assert numbers['whole_texts']['word_perplexity,none'] > 1
    assert 'exact_match,none' in numbers['writing']


def test_a_mistake_is_one_line(tmp_path):
    """Catches a traceback for a run that is not there, and an argument that is dropped."""
    pytest.importorskip('lm_eval', reason='needs the extra `harness`')
    from apps.harness import OrdemModel

    for arguments, words in (
        (dict(run=f'{tmp_path}/none'), 'none'),
        (dict(rum='x'), 'rum: expected run, batch_tokens, max_gen_toks'),
        (dict(batch_tokens=5), 'no run: expected run=DIR'),
    ):
        with pytest.raises(RunError, match=words):
            OrdemModel(**arguments)
    flags = ('--model', 'ordem', '--model_args', 'batch_tokens=5', '--tasks', 'arc_easy')
    code, _, said = _harness(*flags)
    last = said.strip().splitlines()[-1]
    assert code == 2 and last.startswith('error: '), said[-1000:]
