"""The whole way in one command: text, tokenizer, pretraining, post-training, answers.

    sh launch/env.sh python -m studies.quickstart

Trains a tokenizer and a small model on the atlas, lets it continue questions, post-trains it on
questions about other countries, asks again, and runs two controls: the most frequent answer, and
post-training from random weights. Everything in the table is computed from the runs that it leaves
in `--out`; started again it goes on where it was.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('out', 'runs/quickstart', 'Where the runs and the report go')
    options.seed('Of parameters, data order and sampling')
    flags.DEFINE_bool(
        'shuffle_facts', False, 'Control: permute the facts over the countries before pretraining'
    )
    cli.parse_flags()

import json
import pathlib
import time

from etils import epath
from ml_collections import ConfigDict

from configs import atlas as pretraining, atlas_answers as posttraining
from data.atlas import pages as atlas_pages
from evals import answers as evaluation
from runtime import metrics
from runtime.run_dir import Run, write_atomically
from train import loop, setup

ASK = ('Qual é a capital do Brasil?', 'What is the currency of Brazil?')


def configs(seed: int, shuffle_facts: bool) -> tuple[ConfigDict, ConfigDict]:
    """The two phases of the quickstart."""
    pre, post = pretraining.get_config(), posttraining.get_config()
    for c in (pre, post):
        c.seed = seed
        c.data.atlas.shuffle_facts = shuffle_facts
    return pre, post


def run(out: pathlib.Path, pre: ConfigDict, post: ConfigDict) -> dict:
    """Returns what the report shows, of both phases and the control from random weights."""
    began = time.perf_counter()
    print('1/4 pretraining: a small web about countries', flush=True)
    base = setup.build_experiment(pre, str(out / 'base'))
    loop.train(base)
    post.parent = str(out / 'base')
    print('2/4 post-training: questions about other countries', flush=True)
    answers = setup.build_experiment(post, str(out / 'answers'))
    loop.train(answers)
    print('3/4 control: the same post-training from random weights', flush=True)
    control = ConfigDict(post.to_dict())
    control.parent, control.tokenizer.path = '', str(out / 'base' / 'tokenizer.model')
    scratch = setup.build_experiment(control, str(out / 'scratch'))
    loop.train(scratch)

    print('4/4 asking', flush=True)
    found = measure({'base': base, 'answers': answers, 'scratch': scratch}, pre)
    found['minutes'] = (time.perf_counter() - began) / 60
    write_atomically(_folder(out) / 'report.json', json.dumps(found, indent=1, ensure_ascii=False))
    plot(out, found)
    return found


def _folder(out: pathlib.Path):
    report = Run(epath.Path(out)).report
    report.mkdir(parents=True, exist_ok=True)
    return report


def measure(experiments: dict, pre: ConfigDict) -> dict:
    """What each model says to the questions about the held-out countries."""
    asked = evaluation.questions(pre.data.atlas)
    texts = [q['question'] for q in asked]
    found: dict = {
        'questions': len(asked),
        'countries': len({q['code'] for q in asked}),
        'accuracy': {},
        'continuations': {},
        'samples': {},
    }
    frequent = evaluation.most_frequent(pre.data.atlas)
    found['accuracy']['most frequent'] = evaluation.accuracy(
        asked, [frequent[q['lang'], q['relation']] for q in asked]
    )
    for name, e in experiments.items():
        model, params, tokenizer = e.model, e.state['params'], e.tokenizer
        # The two examples are asked with the others: batches of one shape are compiled once.
        everything = [*ASK, *texts]
        answers = evaluation.answer(model, params, tokenizer, everything)
        samples = answers
        if name != 'scratch':
            bare = evaluation.continuations(model, params, tokenizer, everything, seed=pre.seed)
            found['continuations'][name] = evaluation.continues(asked, bare[len(ASK) :])
            samples = bare if name == 'base' else answers
        found['samples'][name] = dict(zip(ASK, samples))
        answers = answers[len(ASK) :]
        found['accuracy'][name] = evaluation.accuracy(asked, answers)
        if name == 'answers':
            found['mistakes'] = [
                [q['question'], q['answer'], said]
                for q, said in zip(asked, answers)
                if said != q['answer']
            ]
    return found


def table(found: dict) -> str:
    """The report as text."""
    names = {
        'answers': 'pretrained, then post-trained',
        'base': 'pretrained only',
        'scratch': 'post-trained from random weights',
        'most frequent': 'most frequent answer',
    }
    columns = ['all', 'pt', 'en', *atlas_pages.RELATIONS]
    rows = [f'{"exactly right, %":34}' + ''.join(f'{c:>10}' for c in columns)]
    rows += [
        f'{label:34}' + ''.join(f'{100 * found["accuracy"][name][c]:10.1f}' for c in columns)
        for name, label in names.items()
    ]
    base = found['continuations']['base']
    rows += [
        '',
        'The pretrained model, given a bare question, goes on with more questions '
        f'{base["questions"]:.0%} of the time '
        f'and gives the answer {base["answers"]:.0%} of the time.',
    ]
    for question in ASK:
        rows += [
            '',
            question,
            f'   pretrained:    {found["samples"]["base"][question].strip()[:100]!r}',
            f'   post-trained:  {found["samples"]["answers"][question]!r}',
        ]
    return '\n'.join(rows)


def plot(out: pathlib.Path, found: dict) -> None:
    """Loss of both phases, and answers before and after post-training, per relation."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 3, figsize=(15, 4.5), width_ratios=[1, 1, 1.6], layout='constrained'
    )
    for axis, phase, title in zip(axes, ('base', 'answers'), ('pretraining', 'post-training')):
        lines = [m for m in metrics.read(Run(epath.Path(out) / phase)) if 'loss' in m]
        axis.plot([m['step'] for m in lines], [m['loss'] for m in lines])
        axis.set(title=f'{title}: loss', xlabel='step', ylabel='nats per token', ylim=0)
        axis.grid(alpha=0.3)
    bars = ['answers', 'base', 'scratch', 'most frequent']
    columns = ['all', *atlas_pages.RELATIONS]
    for i, name in enumerate(bars):
        axes[2].bar(
            [x + 0.8 * i / len(bars) for x in range(len(columns))],
            [found['accuracy'][name][c] for c in columns],
            width=0.8 / len(bars),
            label=name,
        )
    axes[2].set(title='exactly right, countries never asked about in post-training', ylim=(0, 1.05))
    axes[2].set_xticks([x + 0.3 for x in range(len(columns))], columns)
    axes[2].legend(loc='upper right', bbox_to_anchor=(1, -0.1), ncols=len(bars), frameon=False)
    figure.savefig(str(_folder(out) / 'report.png'), dpi=110)
    pyplot.close(figure)


def main() -> None:
    out = pathlib.Path(flags.FLAGS.out)
    cli.check_writable('--out', str(out))
    found = run(out, *configs(flags.FLAGS.seed, flags.FLAGS.shuffle_facts))
    print('\n' + table(found))
    print(
        f'\n{found["minutes"]:.1f} minutes; {found["questions"]} questions about '
        f'{found["countries"]} countries that post-training '
        f'never saw. Picture: {out}/report/report.png\n\nNext:\n'
        f'  python -m apps.generate --run={out}/answers --chat\n'
        f'  python -m apps.generate --run={out}/base --prompt="A capital do Brasil"\n'
        f'  python -m apps.explain --run={out}/answers --prompt="Qual é a capital do Brasil?"\n'
        '  python -m train.pretrain --config=configs/atlas.py --config.model.positions=alibi '
        '--run=runs/alibi\n'
        f'  tensorboard --logdir={out}'
    )


if __name__ == '__main__':
    cli.run(main, keeps=True)
