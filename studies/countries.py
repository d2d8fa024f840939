"""A real model asked before and after: post-trained on countries that are not Brazil.

    python -m apps.import_model --from=SmolLM2-135M-Instruct.gguf --run=runs/smollm2
    python -m studies.countries --run=runs/smollm2 --out=studies/results/countries

The questions are those of the quickstart, in Portuguese and English, about countries of which
post-training never asks. Adapters of low rank are trained on answers about the others. Controls:
the same with facts dealt to other countries, which teaches the form of an answer and nothing else;
and the answer most frequent in post-training. Started again it goes on where it was.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('run', '', 'The model to ask, DIR or DIR@step')
    options.path('out', 'runs/countries', 'Where runs, answers and report go')
    options.whole('seeds', 1, 'Post-trainings of each kind', 1, 2**10)
    options.whole('steps', 100, 'Steps of a post-training', 1, 2**24)
    options.whole('rank', 8, 'Rank of the adapters', 1, 2**12)
    options.number('lr', 5e-4, 'Learning rate of the adapters', 1e-9, 1e3)
    options.whole('countries', 0, 'How many there are; 0: all', 0, 2**10)
    cli.parse_flags()

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from configs import base
from data.atlas import pages as atlas_pages
from evals import answers as evaluation, plots, statistics
from evals.html import page, table_lines
from runtime import inherit, models
from runtime.errors import RunError
from runtime.run_dir import Run, write_atomically
from studies.claims import lineage

BEFORE, AFTER, OTHERS, FREQUENT = (
    'before',
    'after',
    "after, others' facts",
    'most frequent answer',
)
EXAMPLES = ('Qual é a capital do Brasil?', 'What is the capital of Brazil?')
_ANSWERS = 'answers.json'


def post_training(run: Run, seed: int, shuffle_facts: bool) -> ConfigDict:
    """Returns the config of a post-training of adapters on countries that are not asked about."""
    f = flags.FLAGS
    config = base.get_config()
    parent = run.config()
    inherit.inherit(config, parent)
    config.seed = seed
    length = min(128, parent.model.max_len or parent.data.seq_len)
    config.data.update(seq_len=length, batch_size=4, packing='whole', validation=0.0)
    config.data.atlas.update(part='answers', countries=f.countries, shuffle_facts=shuffle_facts)
    config.lora.rank = f.rank
    config.train.steps = f.steps
    config.optimizer.update(lr=f.lr, warmup=min(10, f.steps // 2), schedule='linear')
    config.eval.every = 0
    config.checkpoint.every = f.steps
    return config


def ask(model, params, tokenizer, asked: Sequence[dict]) -> list[str]:
    """Returns what a model answers, greedily, in its chat template."""
    return evaluation.answer(model, params, tokenizer, [q['question'] for q in asked])


def measure(run: Run, folder: pathlib.Path, seeds: int) -> dict[str, list[str]]:
    """Returns the answers by arm and seed, 'before', 'after 1' ...; those that are there are kept.

    Raises RunError where the run cannot be post-trained.
    """
    path = folder / _ANSWERS
    settings = _settings(run)
    kept = json.loads(path.read_text()) if path.exists() else {'settings': settings, 'said': {}}
    for name, value in kept['settings'].items():
        if settings[name] != value:
            raise RunError(
                f'{path}: is of --{name}={value}, here --{name}={settings[name]}: expected the '
                f'same, or another --out'
            )
    said = kept['said']
    asked = questions()

    def keep(name: str, answers: list[str]) -> None:
        said[name] = answers
        write_atomically(path, json.dumps(kept, indent=1, ensure_ascii=False))
        right = np.mean([is_right(q, a) for q, a in zip(asked, answers)])
        print(f'{name}: {100 * right:.1f} % of {len(asked)} right', flush=True)

    if BEFORE not in said:
        model, params, tokenizer, _ = models.load(run)
        keep(BEFORE, ask(model, params, tokenizer, asked))
    for seed in range(1, seeds + 1):
        for arm in (AFTER, OTHERS):
            name = f'{arm} {seed}'
            if name in said:
                continue
            config = post_training(run, seed, arm == OTHERS)
            child = folder / 'runs' / name.replace(' ', '_').replace("'", '').replace(',', '')
            lineage.train(config, child, str(run.path))
            model, params, tokenizer, _ = models.load(Run.parse(str(child)))
            keep(name, ask(model, params, tokenizer, asked))
    return said


def _settings(run: Run) -> dict:
    """Returns what all answers of a folder have in common."""
    names = ('steps', 'rank', 'lr', 'countries')
    return {'run': run.path.name, **{name: flags.FLAGS[name].value for name in names}}


def questions() -> list[dict]:
    """Returns the questions about countries that post-training leaves out."""
    atlas = base.get_config().data.atlas
    atlas.countries = flags.FLAGS.countries
    return evaluation.questions(atlas)


def is_right(question: dict, answer: str) -> bool:
    """Returns whether an answer says what is asked for, with whatever else."""
    return question['answer'].casefold() in answer.casefold()


# --- The report -----------------------------------------------------------------------------------


def shares(asked: list[dict], said: dict[str, list[str]], exact: bool) -> dict[str, list]:
    """Returns arm -> one list a seed of the right share of each country, in percent."""
    codes = sorted({q['code'] for q in asked})
    by_arm: dict[str, list] = {}
    for name, answers in said.items():
        arm = name.rstrip('0123456789').strip()
        right: dict[str, list[bool]] = {code: [] for code in codes}
        for question, answer in zip(asked, answers):
            is_exact = answer.strip() == question['answer']
            right[question['code']].append(is_exact if exact else is_right(question, answer))
        by_arm.setdefault(arm, []).append([100 * float(np.mean(right[code])) for code in codes])
    return by_arm


def write_report(run: Run, asked: list[dict], said: dict, folder: pathlib.Path) -> None:
    """Writes the page: what was found first, then the picture, tables and examples."""
    frequent = evaluation.most_frequent(_atlas())
    said = {**said, FREQUENT: [frequent[q['lang'], q['relation']] for q in asked]}
    says = shares(asked, said, exact=False)
    exact = shares(asked, said, exact=True)
    bars = {
        title: ('% of the questions', {arm: _interval(by_arm[arm]) for arm in by_arm})
        for title, by_arm in (('says the answer', says), ('says it and nothing else', exact))
    }
    colors = {AFTER: '#1f77b4', BEFORE: '#ff7f0e', OTHERS: '#2ca02c'}
    picture = plots.score_bars(bars, colors)

    gain = np.mean(says[AFTER], axis=0) - np.mean(says[BEFORE], axis=0)
    found = statistics.contrast([[gain.tolist()]])
    title = f'{run.path.name}, asked before and after'
    lines = [
        f'# {title}',
        '',
        f'Post-trained on other countries, the model says the answer to '
        f'{np.mean(says[AFTER]):.1f} % of {len(asked)} questions about {len(gain)} countries, and '
        f'{np.mean(says[BEFORE]):.1f} % before: {found.mean:+.1f} points '
        f'({found.low:+.1f} to {found.high:+.1f}, over countries). It says nothing but the answer '
        f'{np.mean(exact[AFTER]):.1f} % of the time, {np.mean(exact[BEFORE]):.1f} % before. With '
        f"others' facts in post-training it says the answer to {np.mean(says[OTHERS]):.1f} %; the "
        f'most frequent one is right for {np.mean(says[FREQUENT]):.1f} %.',
        '',
        '![Right answers, by arm](picture.svg)',
        '',
        '## By language and relation',
        '',
        *_table(asked, said),
        '## What it says',
        '',
    ]
    for text in EXAMPLES:
        place = next((i for i, q in enumerate(asked) if q['question'] == text), None)
        if place is not None:
            rows = [[name, answers[place].replace('|', ' ')] for name, answers in said.items()]
            lines += [f'**{text}**', '', *table_lines(('', 'answer'), rows)]
    report = folder / 'report'
    report.mkdir(parents=True, exist_ok=True)
    text = '\n'.join(lines)
    write_atomically(report / 'report.md', text)
    write_atomically(report / 'picture.svg', picture)
    write_atomically(report / 'index.html', page(title, text, {'picture.svg': picture}))


def _atlas() -> ConfigDict:
    atlas = base.get_config().data.atlas
    atlas.update(part='answers', countries=flags.FLAGS.countries)
    return atlas


def _interval(by_seed: list) -> list[float]:
    """Returns the mean over countries, and its interval."""
    found = statistics.contrast([[np.mean(by_seed, axis=0).tolist()]])
    return [found.mean, found.low, found.high]


def _table(asked: list[dict], said: dict[str, list[str]]) -> list[str]:
    columns = ['pt', 'en', *atlas_pages.RELATIONS]
    rows = []
    for name, answers in said.items():
        row = [name]
        for column in columns:
            right = [
                is_right(q, a)
                for q, a in zip(asked, answers)
                if column in (q['lang'], q['relation'])
            ]
            row.append(f'{100 * np.mean(right):.1f}')
        rows.append(row)
    return table_lines(('% that say the answer', *columns), rows)


def main() -> None:
    f = flags.FLAGS
    if not f.run:
        raise RunError(
            '--run is empty: expected the run of a model that answers in a chat template'
        )
    folder = pathlib.Path(f.out)
    cli.check_writable('--out', str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    run = Run.parse(f.run)
    said = measure(run, folder, f.seeds)
    write_report(run, questions(), said, folder)
    print(f'{folder}/report/index.html')


if __name__ == '__main__':
    cli.run(main, keeps=True)
