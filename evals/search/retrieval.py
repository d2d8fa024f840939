"""Retrieval and similarity of runs, beside what they must beat: words (BM25, TF-IDF), token embeddings alone, the untrained model.

    python -m evals.search.retrieval --out=runs/search_scores
    python -m evals.search.retrieval --squad=xquad_en.json --sts=stsb_en.csv --runs=base=runs/base,search=runs/search --out=runs/search_scores

The first measures the baselines on a set made of Python's documentation. --out gets results.json, report.md, index.html, and for each set
its judgements and a TREC run file a system.
"""

import dataclasses
import json
import logging
import pathlib
import platform
import re
import shlex
import shutil
import sys

import jax
from absl import flags

from data import paths
from evals.search import datasets, encoders, leaks, report as retrieval_report
from evals.search.systems import Search, Similarity, Subject, told
from model import embed
from model.errors import did_you_mean
from runtime import checkpoint, cli, options
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


def load(name: str, run: Run, poolings: list[str]) -> tuple[Subject, dict]:
    """A run as a subject, and what results say of it. Raises ModelError where its config's embedding cannot be."""
    model, params, tokenizer, config = checkpoint.load(run)
    pooling, sizes = (
        config.embedding.pooling,
        embed.parse_sizes(config.embedding.sizes, model.config.width),
    )
    embed.check_pooling(pooling, model.config)
    subject = Subject(
        name,
        model,
        params,
        tokenizer,
        embed.trained_length(config),
        tuple(dict.fromkeys([pooling, *poolings])),
        tuple(s for s in sizes if s < model.config.width),
    )
    lineage = run.lineage()
    return subject, {
        'path': str(run.path),
        'step': run.step,
        'seed': config.seed,
        'positions': config.model.positions,
        'pooling': pooling,
        'sizes': list(subject.sizes),
        'reads': subject.reads,
        'max_len': model.config.max_len,
        'parameters': sum(x.size for x in jax.tree.leaves(params)),
        **{key: lineage[key] for key in ('config_hash', 'data_hash', 'tokenizer_hash')},
        'parent': lineage.get('parent'),
    }


def measure(
    sets: list, runs: dict[str, Run], poolings: list[str], against: str, tune: str, found: dict
) -> list[Search | Similarity]:
    """Measures everything; adds to `found` (results.json) 'sets', 'runs', 'weights', 'scores', 'comparisons' and 'places'."""
    boards = [(Search if isinstance(one, datasets.Questions) else Similarity)(one) for one in sets]
    searches, fresh = {board.one.name: board for board in boards if isinstance(board, Search)}, {}
    found['runs'], found['weights'] = {}, {}
    for name, run in runs.items():
        subject, facts = load(name, run, poolings)
        architecture = (
            subject.model.config,
            subject.tokenizer.hash,
            subject.reads,
            subject.poolings[0],
        )
        subjects = [subject]
        if architecture not in fresh:
            fresh[architecture] = f'{name}.untrained'
            subjects.append(
                dataclasses.replace(
                    subject,
                    name=fresh[architecture],
                    params=encoders.untrained(subject.model, facts['seed']),
                    poolings=subject.poolings[:1],
                    sizes=(),
                )
            )
        found['runs'][name] = {**facts, 'untrained': fresh[architecture]}
        for board in boards:
            for one in subjects:
                board.subject(one)
        if tune:
            tried = searches[tune].tuned(name)
            found['weights'][name] = {'weight': float(max(tried, key=tried.get)), 'tried': tried}
            for board in searches.values():
                if board.one.name != tune:
                    board.ranked(
                        f'{name}~bm25', board.weighted(name, found['weights'][name]['weight'])
                    )
    found |= {
        'sets': {b.one.name: b.facts() for b in boards},
        'places': {name: board.by_place() for name, board in searches.items()},
        'scores': {
            b.one.name: {
                system: {m: told(e) for m, e in of.items()} for system, of in b.estimates.items()
            }
            for b in boards
        },
        'comparisons': {},
    }
    for board in boards:
        wanted = [
            (a, b)
            for name in runs
            for a, b in (
                *((a, board.baseline) for a in (f'{name}~bm25', f'{name}+bm25', name)),
                *((name, b) for b in (f'{name}.static', found['runs'][name]['untrained'], against)),
            )
        ]
        found['comparisons'][board.one.name] = [
            {'a': a, 'b': b, **board.compare(a, b)}
            for a, b in wanted
            if a in board.estimates and a != b
        ]
    return boards


def _runs(given: list[str]) -> dict[str, Run]:
    found = {}
    for entry in given:
        name, equals, path = entry.partition('=')
        if not equals or not re.fullmatch(r'[A-Za-z0-9_-]+', name):
            raise RunError(
                f'--runs: found {entry!r}: expected NAME=DIR or NAME=DIR@step, the name of letters, digits, _ and -'
            )
        if name in found or name in ('bm25', 'bm25-stemmed', 'tfidf'):
            raise RunError(
                f'--runs: two systems are called {name!r}: expected other names for the runs'
            )
        found[name] = checkpoint.pinned(Run.parse(paths.expanded(path, '--runs')))
    return found


def sets_of(f) -> list:
    """The sets that the flags name."""
    found = [
        read(path)
        for paths, read in (
            (f.squad, datasets.squad),
            (f.beir, datasets.beir),
            (f.sts, datasets.sts),
        )
        for path in paths
    ]
    found += [datasets.pydoc()] if f.pydoc or not found else []
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise RunError(
            f'two sets are called {twice!r}, after their files: expected different names'
        )
    return found


def new_folder(path: str) -> pathlib.Path:
    """The folder of --out. Raises RunError where something would be overwritten."""
    if not path:
        raise RunError('--out is empty: expected a folder for the results')
    out = pathlib.Path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f'--out={out}: {"not empty" if out.is_dir() else "not a folder"}; nothing is overwritten: expected a new folder'
        )
    cli.check_writable('--out', path)
    return out


def report(
    sets: list,
    runs: dict[str, Run],
    out: pathlib.Path,
    cache: str,
    command: str,
    poolings: list[str] = (),
    against: str = '',
    tune: str = '',
    allow_leaks: bool = False,
) -> dict:
    """Looks for leaks, measures everything and writes --out; returns what results.json holds. Raises RunError where a run has seen a question."""
    found = {
        'command': command,
        'versions': {
            'python': platform.python_version(),
            **package_versions(*_PACKAGES),
        },
        'against': against or next(iter(runs), None),
        'tune': tune,
        'leaks': {name: leaks.check(run, cache, sets) for name, run in runs.items()},
    }
    for name, entries in found['leaks'].items():
        for entry in entries:
            if not entry['checked']:
                _LOG.warning(
                    '%s: whether %s was trained on these sets is not checked: %s',
                    name,
                    entry['run'],
                    entry['why'],
                )
    if not allow_leaks:
        leaks.refuse(found['leaks'])
    boards = measure(sets, runs, poolings, found['against'], tune, found)
    # What a kill leaves is in nobody's way.
    making = out.absolute().with_name(paths.begun(out.absolute().name))
    making.mkdir(parents=True)
    try:
        for board in boards:
            if isinstance(board, Search):
                board.write(making / board.one.name)
        retrieval_report.write(found, making)
        (making / 'results.json').write_text(json.dumps(found, indent=1, allow_nan=False))
        making.replace(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return found


def main() -> None:
    f = flags.FLAGS
    out = new_folder(f.out)
    for pooling in f.poolings:
        if pooling not in embed.POOLINGS:
            raise RunError(
                f'--poolings: found {pooling!r}: {did_you_mean(pooling, embed.POOLINGS)}'
            )
    runs = _runs(f.runs)
    for name, run in runs.items() if f.poolings else ():
        model = checkpoint.model_of(run)[0].config
        for pooling in f.poolings:
            embed.check_pooling(pooling, model, f'--poolings, for the run {name},')
    if f.against and f.against not in runs:
        raise RunError(
            f'--against={f.against}: {did_you_mean(f.against, list(runs))}, a name in --runs'
        )
    sets = sets_of(f)
    asked = [one.name for one in sets if isinstance(one, datasets.Questions)]
    if f.tune and (f.tune not in asked or len(asked) < 2):
        raise RunError(
            f'--tune={f.tune}: expected the name of one of at least two sets of questions; there {"is" if len(asked) == 1 else "are"} '
            f'{", ".join(asked) or "none"}'
        )
    report(
        sets,
        runs,
        out,
        f.cache,
        shlex.join(['python', '-m', 'evals.search.retrieval', *sys.argv[1:]]),
        f.poolings,
        f.against,
        f.tune,
        f.allow_leaks,
    )
    print(f'{out}/results.json, report.md, index.html')


def define_sets() -> None:
    options.paths(
        'squad', "Questions and paragraphs: a JSON file in SQuAD's form; may be given again"
    )
    options.paths('beir', "Queries and documents: a folder in BEIR's form; may be given again")
    options.paths(
        'sts', 'Pairs of sentences: a CSV file of sentence, sentence, score; may be given again'
    )
    flags.DEFINE_bool(
        'pydoc',
        False,
        "Also the set made of Python's documentation; it is taken where no other is given",
    )


if __name__ == '__main__':
    define_sets()
    flags.DEFINE_list('runs', [], 'Runs to measure, NAME=DIR or NAME=DIR@step, separated by commas')
    flags.DEFINE_list('poolings', [], "Poolings to measure beside the one in each run's config")
    flags.DEFINE_string(
        'against', '', 'The run that the others are compared with. Default: the first of --runs'
    )
    flags.DEFINE_string(
        'tune',
        '',
        'The set of questions on which the weight of each run beside BM25 is chosen, for the others; empty: no weights',
    )
    options.path('cache', 'runs/.cache', 'Where the token stores of the runs are kept')
    flags.DEFINE_bool(
        'allow_leaks',
        False,
        'Go on where a run was trained on text of the sets; results and report say so',
    )
    options.path('out', '', 'Folder for the results')
    cli.run(main)
