"""Search by meaning from the first token to the report, for one positional encoding or several.

    python -m studies.retrieval_lineage --out=runs/retrieval
    python -m studies.retrieval_lineage --out=runs/retrieval --positions=rope,alibi,none \\
        --texts=TEXTS --answers=QUESTIONS.jsonl --squad=xquad_en.json

For each encoding: reads (configs/search_base.py), learns to answer (configs/search_answers.py),
learns to search (configs/search.py), and with --collection once more on those texts, without any
question. Then all phases are measured beside words and the untrained model
(evals/search/retrieval.py). Started again it goes on where it was; encodings trained by other
commands with the same --out are measured too where --positions names them. --train_only: measures
nothing.
"""

from absl import flags

from evals.search import set_flags
from runtime import cli, options, schema

if __name__ == '__main__':  # above the imports that take seconds
    options.path('out', 'runs/retrieval', 'Where the runs and the report go')
    flags.DEFINE_list('positions', ['rope'], 'Positional encodings, separated by commas')
    options.path(
        'texts',
        '',
        'What is read and searched in training: files, globs and directories. Default: '
        "Python's documentation",
        many=True,
    )
    options.path('answers', '', 'Questions with answers. Default: those of the atlas', many=True)
    options.path(
        'collection',
        '',
        'Texts that will be searched, to be learned from without questions',
        many=True,
    )
    flags.DEFINE_enum(
        'pooling',
        None,
        list(schema.find('embedding.pooling').choices),
        'How search makes a vector of a text. Default: as configs/search.py says',
    )
    options.seed('Of parameters and data order')
    flags.DEFINE_bool('train_only', False, 'Measure nothing')
    flags.DEFINE_bool(
        'allow_leaks',
        False,
        'Go on where a phase was trained on text of the sets; results and report say so',
    )
    set_flags.define_flags()
    cli.parse_flags()

import dataclasses
import pathlib
import shlex
import sys

from ml_collections import ConfigDict

from configs import search, search_answers, search_base
from evals.search import datasets, retrieval
from runtime.errors import RunError
from runtime.run_dir import Run
from train import loop, setup

# Modules of Python's documentation that are read where no other texts are given; the rest is
# measured on.
MODULES = 150
PHASES = ('base', 'answers', 'search', 'collection')
PHASES_ON_PAIRS = ('search', 'collection')


@dataclasses.dataclass(frozen=True)
class Texts:
    """Paths of the texts that are read; '' stands for what the configs say.

    texts: read and searched in training.
    answers: questions with their answers.
    collection: texts that will be searched, learned from without questions; '': no such phase.
    """

    texts: str = ''
    answers: str = ''
    collection: str = ''


def experiments(
    positions: str, texts: Texts, seed: int, pooling: str = ''
) -> dict[str, ConfigDict]:
    """Returns the phases of one encoding, in order.

    Args:
      positions: the encoding.
      texts: what is read.
      seed: of parameters and data order.
      pooling: of search; '': as configs/search.py says.
    """
    phases = {
        'base': search_base.get_config(),
        'answers': search_answers.get_config(),
        'search': search.get_config(),
    }
    files = {'base': texts.texts, 'answers': texts.answers, 'search': texts.texts}
    if texts.collection:
        collection = search.get_config()
        collection.data.validation = 0.0
        collection.eval.every = 0
        collection.train.steps = 60
        collection.optimizer.warmup = 6
        phases['collection'] = collection
        files['collection'] = texts.collection
    for phase, config in phases.items():
        config.seed = seed
        config.model.positions = positions
        config.data.pydoc.modules = MODULES
        if files[phase]:
            config.data.source = 'files'
            config.data.files.paths = files[phase]
        if pooling and phase in PHASES_ON_PAIRS:
            config.embedding.pooling = pooling
            config.model.bag = 'bag' in pooling
    return phases


def train(out: pathlib.Path, name: str, phases: dict[str, ConfigDict]) -> None:
    """Trains what is not trained yet, each phase from the one before it."""
    parent = ''
    for phase, config in phases.items():
        folder = out / f'{name}-{phase}'
        config.parent = parent
        config.data.cache = str(out / 'cache')
        print(f'{name}: {phase}', flush=True)
        experiment = setup.build_experiment(config, str(folder))
        loop.report(experiment, loop.train(experiment))
        parent = str(folder)


def main() -> None:
    f = flags.FLAGS
    names = f.positions
    if not f.out:
        raise RunError('--out is empty: expected a folder')
    if not names or len(set(names)) != len(names):
        raise RunError(f'--positions={",".join(names)}: expected encodings, each once')
    if len(names) > 1 and f.pooling == 'bag':
        raise RunError(
            '--pooling=bag: no encoding enters a bag of tokens: '
            f'--positions={",".join(names)} would be alike; expected bag+mean or another'
        )
    out = pathlib.Path(f.out)
    texts = Texts(f.texts, f.answers, f.collection)
    phases = {name: experiments(name, texts, f.seed, f.pooling) for name in names}
    cli.check_writable('--out', str(out))

    # Folder and sets are looked at before hours of training.
    report = None if f.train_only else retrieval.new_folder(str(out / 'report'))
    if f.squad or f.beir or f.sts or f.pydoc or f.texts:
        sets = retrieval.read_sets(f)
    else:
        sets = [datasets.pydoc(trained=MODULES)]

    for name in names:
        train(out, name, phases[name])
    if report:
        labels = [f'{name}-{phase}' for name in names for phase in phases[name]]
        plan = retrieval.Plan(
            sets,
            runs={label: Run.parse(str(out / label)) for label in labels},
            command=shlex.join(['python', '-m', 'studies.retrieval_lineage', *sys.argv[1:]]),
            cache=str(out / 'cache'),
            allow_leaks=f.allow_leaks,
        )
        retrieval.report(plan, report)
        print(f'{report}/report.md, index.html, results.json')


if __name__ == '__main__':
    cli.run(main, keeps=True)
