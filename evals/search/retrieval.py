"""Retrieval and similarity of runs, beside what they must beat.

    python -m evals.search.retrieval --out=runs/search_scores
    python -m evals.search.retrieval --squad=xquad_en.json --sts=stsb_en.csv \
        --runs=base=runs/base,search=runs/search --out=runs/search_scores

They must beat words (BM25, TF-IDF), token embeddings alone, and the untrained model. The first
command measures the baselines on a set made of Python's documentation. --out gets results.json,
report.md, picture.svg, index.html, and for each set its judgements and a TREC run file a system.
"""

from absl import flags

from evals.search import set_flags
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    set_flags.define_flags()
    flags.DEFINE_list('runs', [], 'Runs to measure, NAME=DIR or NAME=DIR@step, separated by commas')
    flags.DEFINE_list(
        'published',
        [],
        'Encoders that others publish to measure beside the runs: minilm, e5, or NAME=FOLDER of '
        'sentence-transformers, separated by commas (needs the extra encoders)',
    )
    flags.DEFINE_list('poolings', [], "Poolings to measure beside the one in each run's config")
    flags.DEFINE_string(
        'against', '', 'The run that the others are compared with. Default: the first of --runs'
    )
    flags.DEFINE_string(
        'tune',
        '',
        'The set of questions on which the weight of each run beside BM25 is chosen, for the '
        'others; empty: no weights',
    )
    options.path('cache', 'runs/.cache', 'Where the token stores of the runs are kept')
    flags.DEFINE_bool(
        'allow_leaks',
        False,
        'Go on where a run was trained on text of the sets; results and report say so',
    )
    options.path('out', '', 'Folder for the results')
    cli.parse_flags()

import dataclasses
import json
import logging
import pathlib
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence

import jax

from data import paths
from evals.search import datasets, encoders, leaks, published, report as search_report
from evals.search.report import WORDS
from evals.search.systems import Leaderboard, Search, Similarity, System, as_json
from model import embed
from model.errors import did_you_mean
from runtime import checkpoint, models
from runtime.errors import RunError
from runtime.run_dir import Run
from runtime.system import package_versions

_LOG = logging.getLogger('ordem')

_PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'numpy',
    'scipy',
    'sentencepiece',
    'bm25s',
    'PyStemmer',
    'ir-measures',
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sets and runs to measure, and how.

    sets: `datasets.Questions` and `datasets.Pairs`.
    runs: {name: run}.
    command: that made the results.
    cache: where the token stores of the runs are.
    poolings: measured beside the one in each run's config.
    published: {name: its folder, or None}, of `published.check`.
    against: the run that the others are compared with; '': the first.
    tune: the set on which the weight of each run beside BM25 is chosen; '': no weights.
    allow_leaks: go on where a run has seen a question.
    """

    sets: Sequence
    runs: Mapping[str, Run]
    command: str
    cache: str
    poolings: Sequence[str] = ()
    published: Mapping[str, pathlib.Path | None] = dataclasses.field(default_factory=dict)
    against: str = ''
    tune: str = ''
    allow_leaks: bool = False


def load(name: str, run: Run, poolings: Sequence[str]) -> tuple[System, dict]:
    """Returns a run as a system, and what results say of it.

    Raises ModelError where its config's embedding cannot be.
    """
    model, params, tokenizer, config = models.load(run)
    pooling = config.embedding.pooling
    sizes = embed.parse_sizes(config.embedding.sizes, model.config.width)
    embed.check_pooling(pooling, model.config)
    system = System(
        name,
        model,
        params,
        tokenizer,
        embed.trained_length(config),
        tuple(dict.fromkeys([pooling, *poolings])),
        tuple(size for size in sizes if size < model.config.width),
    )
    lineage = run.lineage()
    return system, {
        'path': str(run.path),
        'step': run.step,
        'seed': config.seed,
        'positions': config.model.positions,
        'pooling': pooling,
        'sizes': list(system.sizes),
        'reads': system.reads,
        'max_len': model.config.max_len,
        'parameters': sum(x.size for x in jax.tree.leaves(params)),
        **{key: lineage[key] for key in ('config_hash', 'data_hash', 'tokenizer_hash')},
        'parent': lineage.get('parent'),
    }


def measure(plan: Plan, results: dict) -> list[Leaderboard]:
    """Measures everything, and returns a leaderboard for each set.

    Adds to `results` (results.json) 'sets', 'runs', 'published', 'weights', 'scores',
    'comparisons', 'places', 'shared_words'.
    """
    leaderboards = [
        Search(dataset) if isinstance(dataset, datasets.Questions) else Similarity(dataset)
        for dataset in plan.sets
    ]
    searches = {board.dataset.name: board for board in leaderboards if isinstance(board, Search)}
    results['runs'] = {}
    results['weights'] = {}
    fresh: dict[tuple, str] = {}  # architecture -> the name of its untrained model
    for name, run in plan.runs.items():
        system, facts = load(name, run, plan.poolings)
        systems = [system]

        # The same architecture before training is measured once, whatever runs have it.
        text = (system.tokenizer.hash, system.reads)
        architecture = (system.model.config, *text, system.poolings[0])
        if architecture not in fresh:
            fresh[architecture] = f'{name}.untrained'
            systems.append(_untrained(system, fresh[architecture], facts['seed']))
        results['runs'][name] = {**facts, 'untrained': fresh[architecture]}
        for board in leaderboards:
            for one in systems:
                board.add_system(one)

    results['published'] = {}
    for name, folder in plan.published.items():
        results['published'][name] = published.versions(name)
        encode = published.load(name, folder)
        for board in leaderboards:
            board.add_published(name, encode)

    # A weight that is chosen on one set is measured on the others only.
    for name in (*plan.runs, *plan.published) if plan.tune else ():
        tried = searches[plan.tune].tune(name)
        weight = float(max(tried, key=tried.get))
        results['weights'][name] = {'weight': weight, 'tried': tried}
        for board in searches.values():
            if board.dataset.name != plan.tune:
                board.add_run(f'{name}~bm25', board.weighted(name, weight))

    results['sets'] = {board.dataset.name: board.facts() for board in leaderboards}
    results['places'] = {name: board.by_place() for name, board in searches.items()}
    results['shared_words'] = {name: board.by_shared_words() for name, board in searches.items()}
    results['scores'] = {
        board.dataset.name: {
            system: {measure: as_json(estimate) for measure, estimate in estimates.items()}
            for system, estimates in board.estimates.items()
        }
        for board in leaderboards
    }
    results['comparisons'] = {
        board.dataset.name: _compare(board, results) for board in leaderboards
    }
    return leaderboards


def _untrained(system: System, name: str, seed: int) -> System:
    """Returns the same system with the parameters that training begins with."""
    return dataclasses.replace(
        system,
        name=name,
        params=encoders.untrained(system.model, seed),
        poolings=system.poolings[:1],
        sizes=(),
    )


def _compare(board: Leaderboard, results: Mapping) -> list[dict]:
    """Returns each run against words, its embeddings alone, before training, and other systems."""
    published_names = list(results['published'])
    pairs = []
    for name in (*results['runs'], *published_names):
        pairs += [(a, board.baseline) for a in (f'{name}~bm25', f'{name}+bm25', name)]
        facts = results['runs'].get(name)
        if facts:
            others = (f'{name}.static', facts['untrained'], results['against'], *published_names)
            pairs += [(name, other) for other in others]
    return [
        {'a': a, 'b': b, **board.compare(a, b)} for a, b in pairs if a in board.estimates and a != b
    ]


def _parse_runs(entries: Sequence[str]) -> dict[str, Run]:
    """Returns the runs of --runs by their names. Raises RunError where one is no NAME=DIR."""
    runs: dict[str, Run] = {}
    for entry in entries:
        name, equals, path = entry.partition('=')
        if not equals or not re.fullmatch(r'[A-Za-z0-9_-]+', name):
            raise RunError(
                f'--runs: found {entry!r}: expected NAME=DIR or NAME=DIR@step, the name of '
                'letters, digits, _ and -'
            )
        if name in runs or name in WORDS:
            raise RunError(
                f'--runs: two systems are called {name!r}: expected other names for the runs'
            )
        runs[name] = checkpoint.pin_step(Run.parse(paths.expanded(path, '--runs')))
    return runs


def read_sets(f) -> list:
    """Returns the sets that the flags `f` name. Raises RunError where two have one name."""
    readers = ((f.squad, datasets.squad), (f.beir, datasets.beir), (f.sts, datasets.sts))
    sets = [read(path) for files, read in readers for path in files]
    if f.pydoc or not sets:
        sets.append(datasets.pydoc())
    names = [dataset.name for dataset in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise RunError(
            f'two sets are called {twice!r}, after their files: expected different names'
        )
    return sets


def new_folder(path: str) -> pathlib.Path:
    """Returns the folder of --out. Raises RunError where something would be overwritten."""
    if not path:
        raise RunError('--out is empty: expected a folder for the results')
    out = pathlib.Path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        state = 'not empty' if out.is_dir() else 'not a folder'
        raise RunError(f'--out={out}: {state}; nothing is overwritten: expected a new folder')
    cli.check_writable('--out', path)
    return out


def report(plan: Plan, out: pathlib.Path) -> dict:
    """Looks for leaks, measures everything and writes `out`; returns what results.json holds.

    Raises RunError where a run has seen a question.
    """
    results = {
        'command': plan.command,
        'versions': {'python': platform.python_version(), **package_versions(*_PACKAGES)},
        'against': plan.against or next(iter(plan.runs), None),
        'tune': plan.tune,
        'leaks': {name: leaks.check(run, plan.cache, plan.sets) for name, run in plan.runs.items()},
    }
    for name, entries in results['leaks'].items():
        for entry in entries:
            if not entry['checked']:
                _LOG.warning(
                    '%s: whether %s was trained on these sets is not checked: %s',
                    name,
                    entry['run'],
                    entry['why'],
                )
    if not plan.allow_leaks:
        leaks.refuse(results['leaks'])
    leaderboards = measure(plan, results)

    # Written beside and moved at the end: what a kill leaves is in nobody's way.
    making = out.absolute().with_name(paths.begun(out.absolute().name))
    making.mkdir(parents=True)
    try:
        for board in leaderboards:
            if isinstance(board, Search):
                board.write(making / board.dataset.name)
        search_report.write(results, making)
        text = json.dumps(results, indent=1, allow_nan=False)
        (making / search_report.RESULTS).write_text(text)
        making.replace(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return results


def main() -> None:
    f = flags.FLAGS
    out = new_folder(f.out)
    for pooling in f.poolings:
        if pooling not in embed.POOLINGS:
            hint = did_you_mean(pooling, embed.POOLINGS)
            raise RunError(f'--poolings: found {pooling!r}: {hint}')
    runs = _parse_runs(f.runs)
    for name, run in runs.items() if f.poolings else ():
        model = models.build_model(run)[0].config
        for pooling in f.poolings:
            embed.check_pooling(pooling, model, f'--poolings, for the run {name},')
    if f.against and f.against not in runs:
        hint = did_you_mean(f.against, list(runs))
        raise RunError(f'--against={f.against}: {hint}, a name in --runs')
    sets = read_sets(f)
    asked = [dataset.name for dataset in sets if isinstance(dataset, datasets.Questions)]
    if f.tune and (f.tune not in asked or len(asked) < 2):
        raise RunError(
            f'--tune={f.tune}: expected the name of one of at least two sets of questions; there '
            f'{"is" if len(asked) == 1 else "are"} {", ".join(asked) or "none"}'
        )
    command = shlex.join(['python', '-m', 'evals.search.retrieval', *sys.argv[1:]])
    plan = Plan(
        sets,
        runs,
        command,
        f.cache,
        poolings=f.poolings,
        published=published.check(f.published, [*WORDS, *runs]),
        against=f.against,
        tune=f.tune,
        allow_leaks=f.allow_leaks,
    )
    report(plan, out)
    print(f'{out}/results.json, report.md, index.html')


if __name__ == '__main__':
    cli.run(main)
