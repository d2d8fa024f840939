"""Where a run comes from: its parent, and what its result depends on."""

import logging
import os
import platform

from etils import epath
from ml_collections import ConfigDict

from data.cache import stable_hash
from runtime.config_tree import config_hash
from runtime.errors import RunError
from runtime.run_dir import FORMAT, HASHES, Run, split_step, to_folder
from runtime.system import available_cpus, package_versions

_LOG = logging.getLogger('ordem')
_PACKAGES = tuple('jax jaxlib flax optax orbax-checkpoint numpy sentencepiece grain'.split())


def hash_ancestry(run: Run) -> str:
    """Returns a hash of what determined a run's parameters, wherever its directory lies: its own
    hashes, and those of its parents."""
    lineage = run.lineage()
    parent = lineage.get('parent')
    own = [lineage[name] for name in HASHES]
    return stable_hash([*own, parent and [lineage.get('descent', {}).get('hash'), parent['step']]])


def describe_parent(parent: Run) -> dict:
    """Returns what a run's lineage says of its parent beside its place and step: what tells it from
    others wherever it lies, and the context it was trained for."""
    config = parent.config()
    context = config.model.max_len or config.data.seq_len
    return {'hash': hash_ancestry(parent), 'context': context}


def check_parent(run: Run, text: str) -> Run | None:
    """Returns the parent that a started run began from, at that step.

    None where the run has none, or the one that is named again is not there any more. The parent
    may have moved: it is known by hashes.

    Args:
      run: the started run.
      text: config.parent of this command; without a step it means whatever step it was.

    Raises:
      RunError: another run, or another step.
    """
    then = run.lineage().get('parent')
    if not then:
        if text:
            raise RunError(
                f'config.parent is {text}: {run.path} began without a parent; leave the field '
                f'empty, or choose another --run'
            )
        return None
    if not isinstance(then, dict) or not {'run', 'step'} <= {*then}:
        raise RunError(
            f'{run.lineage_path}: damaged (the parent is {then!r}, expected run and step)'
        )
    began = f'{run.path} began from {then["run"]}@{then["step"]}'
    if not text:
        raise RunError(f'config.parent is empty: {began}; give that, or choose another --run')

    # Of one that is gone or damaged nothing is read, where its name is the same.
    named = Run(to_folder(text))
    if not named.path.exists():
        head, step = split_step(text)
        named = Run(to_folder(head), step)
    in_place = _same_folder(named.path, then['run'])
    given = None
    try:
        given = Run.parse(text)
        same = _is_parent(run, given, then, in_place)
    except RunError:
        if not in_place:
            raise
        same = True
    if not same:
        raise RunError(
            f'config.parent is {text}: {began}, which is another run; give that one, wherever it '
            f'lies now, or choose another --run'
        )
    if named.step not in (None, then['step']):
        raise RunError(
            f'config.parent is {text}: {began}, another step; leave the step out, or choose '
            f'another --run'
        )
    return given and Run(given.path, then['step'])


def _same_folder(path: epath.Path, then: str) -> bool:
    """Returns whether a path leads to the folder that was written down."""
    return os.path.realpath(path) == os.path.realpath(to_folder(then))


def _is_parent(run: Run, given: Run, then: dict, in_place: bool) -> bool:
    """Returns whether a run is the one that `then` of a lineage speaks of.

    `in_place`: it lies where that one lay.
    """
    now = hash_ancestry(given)
    before = run.lineage().get('descent', {}).get('hash')
    if before:
        return now == before
    if in_place:  # written before hashes were
        return True
    try:
        return now == hash_ancestry(Run.at(then['run'], then['step']))
    except RunError:
        same = given.lineage()['tokenizer_hash'] == run.lineage()['tokenizer_hash']
        if same:
            _LOG.warning(
                '%s: was started before parents were known by hashes, and %s is gone: %s is taken '
                'for it',
                run.path,
                then['run'],
                given.path,
            )
        return same


def make_lineage(config: ConfigDict, store, tokenizer, parent: dict | None) -> dict:
    """Returns what a result depends on: parent, hashes, versions, and the number of processors,
    which XLA:CPU's bits depend on.

    Args:
      config: the whole experiment.
      store: the token store, for its hash.
      tokenizer: for its hash.
      parent: what lineage.json says of the parent.
    """
    versions = package_versions(*_PACKAGES)
    meaning = config.model.get('encodings')
    return dict(
        format=FORMAT,
        parent=parent,
        **({} if meaning is None else {'encodings': list(meaning)}),
        config_hash=config_hash(config),
        data_hash=store.hash,
        tokenizer_hash=tokenizer.hash,
        versions={'python': platform.python_version(), **versions},
        cores=available_cpus(),
    )


def check_lineage(run: Run, now: dict) -> None:
    """Compares a resumed run with what it was started from.

    Raises RunError where data or tokenizer differ; logs where only versions or processors do: the
    run then goes on to rounding, not bit for bit.
    """
    then = run.lineage()
    for name in ('data_hash', 'tokenizer_hash'):
        if then.get(name) != now[name]:
            raise RunError(
                f'{run.path}: {name} is {now[name][:12]}, the run was started with '
                f'{str(then.get(name))[:12]}; the text has changed'
            )
    for name in ('versions', 'cores'):
        if then.get(name) != now[name]:
            _LOG.warning(
                '%s differ from when the run was started (%s, now %s): it goes on to rounding, not '
                'bit for bit',
                name,
                then.get(name),
                now[name],
            )
