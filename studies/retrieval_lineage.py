"""Search by meaning from the first token to the report, for one positional encoding or several.

    python -m studies.retrieval_lineage --out=runs/retrieval
    python -m studies.retrieval_lineage --out=runs/retrieval --positions=rope,alibi,none --texts=TEXTS --answers=QUESTIONS.jsonl --squad=xquad_en.json

For each encoding: reads (configs/search_base.py), learns to answer (configs/search_answers.py), learns to search (configs/search.py), and
with --collection once more on those texts, without any question. Then all phases are measured beside words and the untrained model
(evals/search/retrieval.py). Started again it goes on where it was; encodings trained by other commands with the same --out are measured too where
--positions names them. --train_only: measures nothing.
"""

import pathlib
import shlex
import sys

from absl import flags
from ml_collections import ConfigDict

from configs import search, search_answers, search_base
from evals.search import retrieval
from model.embed import POOLINGS
from runtime import cli, options
from runtime.errors import RunError
from runtime.run_dir import Run
from train import loop, posttrain

MODULES = 150  # of Python's documentation that are read where no other texts are given; the rest is what is measured on
PHASES = ('base', 'answers', 'search', 'collection')


def experiments(
    positions: str, texts: str, answers: str, collection: str, seed: int, pooling: str = ''
) -> dict[str, ConfigDict]:
    """The phases of one encoding, in order. `pooling`: of search; '': as configs/search.py says."""
    found = {
        'base': search_base.get_config(),
        'answers': search_answers.get_config(),
        'search': search.get_config(),
    }
    read = {'base': texts, 'answers': answers, 'search': texts}
    if collection:
        found['collection'], read['collection'] = search.get_config(), collection
        found['collection'].data.validation, found['collection'].eval.every = 0.0, 0
        found['collection'].train.steps, found['collection'].optimizer.warmup = 60, 6
    for phase, config in found.items():
        config.seed, config.model.positions = seed, positions
        config.data.pydoc.modules = MODULES
        if read[phase]:
            config.data.source, config.data.files.paths = 'files', read[phase]
        if pooling and config.train.objective == 'contrastive':
            config.embedding.pooling, config.model.bag = pooling, 'bag' in pooling
    return found


def train(out: pathlib.Path, name: str, phases: dict[str, ConfigDict]) -> None:
    """Trains what is not trained yet, each phase from the one before it."""
    parent = ''
    for phase, config in phases.items():
        folder = out / f'{name}-{phase}'
        config.parent, config.data.cache = parent, str(out / 'cache')
        print(f'{name}: {phase}', flush=True)
        experiment = (posttrain if parent else loop).prepare(config, str(folder))
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
            f'--pooling=bag: no encoding enters a bag of tokens: --positions={",".join(names)} would be alike; expected bag+mean or another'
        )
    out, phases = (
        pathlib.Path(f.out),
        {n: experiments(n, f.texts, f.answers, f.collection, f.seed, f.pooling) for n in names},
    )
    cli.check_writable('--out', str(out))
    report = None if f.train_only else retrieval.new_folder(str(out / 'report'))
    given = f.squad or f.beir or f.sts or f.pydoc
    sets = (
        retrieval.sets_of(f) if given or f.texts else [retrieval.search_sets.pydoc(trained=MODULES)]
    )
    for name in names:
        train(out, name, phases[name])
    if report:
        runs = {
            f'{name}-{phase}': Run.parse(str(out / f'{name}-{phase}'))
            for name in names
            for phase in phases[name]
        }
        retrieval.report(
            sets,
            runs,
            report,
            str(out / 'cache'),
            shlex.join(['python', '-m', 'studies.retrieval_lineage', *sys.argv[1:]]),
            allow_leaks=f.allow_leaks,
        )
        print(f'{report}/report.md, index.html, results.json')


if __name__ == '__main__':
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
        POOLINGS,
        'How search makes a vector of a text. Default: as configs/search.py says',
    )
    options.seed('Of parameters and data order')
    flags.DEFINE_bool('train_only', False, 'Measure nothing')
    flags.DEFINE_bool(
        'allow_leaks',
        False,
        'Go on where a phase was trained on text of the sets; results and report say so',
    )
    retrieval.define_sets()
    cli.run(main, keeps=True)
