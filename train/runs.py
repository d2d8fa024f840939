"""The run directory: one folder is one run.

config.json (resolved), lineage.json (where it comes from), tokenizer.model, checkpoints/<step>, metrics.jsonl, events, report/.
"""
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform

from etils import epath
from ml_collections import ConfigDict

from data import tokenizer as tokenizers
from train.errors import RunError

_LOG = logging.getLogger('ordem')

FORMAT = 1
# Fields that a resumed run may change: they say what is watched and kept, not what is computed.
HARMLESS = ('log.', 'eval.', 'sample.', 'checkpoint.', 'data.cache', 'data.prefetch', 'train.stop_at', 'mesh.', 'parent')


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, and the step that was asked for (None: the newest)."""
    path: epath.Path
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> 'Run':
        """'DIR' or 'DIR@step'. Raises RunError where the step is no number or the directory is missing."""
        if not text:
            raise RunError('--run is empty: expected a run directory')
        head, at, step = text.rpartition('@')
        if at and not step.isdigit():
            raise RunError(f'{text}: after @ expected a step, found {step!r}')
        run = cls(epath.Path(head if at else text).expanduser(), int(step) if at else None)
        if not run.path.exists():
            raise RunError(f'{run.path}: no such run directory')
        if not run.config_path.exists():
            raise RunError(f'{run.path}: not a run directory, or a half-written one: it has no config.json')
        return run

    config_path = property(lambda self: self.path / 'config.json')
    tokenizer_path = property(lambda self: self.path / 'tokenizer.model')
    checkpoints = property(lambda self: self.path / 'checkpoints')
    report = property(lambda self: self.path / 'report')

    def config(self) -> ConfigDict:
        return ConfigDict(_read_json(self.config_path))

    def lineage(self) -> dict:
        return _read_json(self.path / 'lineage.json')

    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.load(self.tokenizer_path)


def _read_json(path: epath.Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f'{path}: missing; the run directory is half-written') from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f'{path}: damaged ({error})') from None
    if not isinstance(found, dict):
        raise RunError(f'{path}: damaged (expected a JSON object)')
    return found


def write_atomically(path: epath.Path, data: bytes | str) -> None:
    """A reader, or a crash, finds the old file or the new one, never half of it."""
    temporary = path.parent / f'.{path.name}.{os.getpid()}'
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    temporary.replace(path)


def flat(config, prefix: str = '') -> dict:
    """A nested config -> {'a.b': value}."""
    found = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            found.update(flat(value, f'{prefix}{key}.'))
        else:
            found[prefix + key] = tuple(value) if isinstance(value, list) else value
    return found


def differences(old, new, ignore: tuple[str, ...] = ()) -> list[str]:
    """'config.a.b: old -> new' for each field that differs, those that begin with an entry of `ignore` left out."""
    a, b = flat(old), flat(new)
    return [f'config.{k}: {a.get(k, "absent")!r} -> {b.get(k, "absent")!r}' for k in sorted({*a, *b})
            if a.get(k, '\0') != b.get(k, '\0') and not any(k == i or (i.endswith('.') and k.startswith(i)) for i in ignore)]


def config_hash(config) -> str:
    """Of the fields that determine the result."""
    kept = {k: v for k, v in flat(config).items() if not any(k.startswith(h) for h in HARMLESS)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def is_started(path) -> bool:
    """Whether the directory holds checkpoints: then starting it means resuming it."""
    checkpoints = epath.Path(path) / 'checkpoints'
    return checkpoints.exists() and any(p.name.isdigit() for p in checkpoints.iterdir())


def check_resumable(run: Run, config) -> None:
    """Raises RunError where a started run lacks a file, or `config` would change its result; names each field."""
    if not run.config_path.exists() or not run.tokenizer_path.exists():
        missing = 'config.json' if not run.config_path.exists() else 'tokenizer.model'
        raise RunError(f'{run.path}: has checkpoints but no {missing}: half-written; restore that file or choose another --run')
    changed = differences(run.config(), config, HARMLESS)
    if changed:
        raise RunError(f'{run.path}: was started with another config and would not give its result; choose another --run or '
                       f'undo {"; ".join(changed)}')


def create(run: Run, config, tokenizer, lineage: dict) -> None:
    """Writes the files of a run that has no checkpoint yet. config.json comes last: with it the directory is a run."""
    run.path.mkdir(parents=True, exist_ok=True)
    write_atomically(run.tokenizer_path, tokenizer.proto)
    write_atomically(run.path / 'lineage.json', json.dumps(lineage, indent=1))
    write_atomically(run.config_path, json.dumps(config.to_dict(), indent=1))


def lineage(config, store, tokenizer, parent: dict | None) -> dict:
    """What a result depends on: parent, hashes, versions, and the cores, which XLA:CPU's bits depend on."""
    versions = {p: importlib.metadata.version(p) for p in ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy',
                                                           'sentencepiece', 'grain')}
    return dict(format=FORMAT, parent=parent, config_hash=config_hash(config), data_hash=store.hash, tokenizer_hash=tokenizer.hash,
                versions={'python': platform.python_version(), **versions}, cores=len(os.sched_getaffinity(0))
                if hasattr(os, 'sched_getaffinity') else os.cpu_count())


def check_lineage(run: Run, now: dict) -> None:
    """Compares a resumed run with what it was started from. Raises RunError where data or tokenizer differ; logs where only
    versions or cores do: the run then goes on to rounding, not bit for bit."""
    then = run.lineage()
    for what in ('data_hash', 'tokenizer_hash'):
        if then.get(what) != now[what]:
            raise RunError(f'{run.path}: {what} is {now[what][:12]}, the run was started with {str(then.get(what))[:12]}; '
                           f'the text has changed')
    for what in ('versions', 'cores'):
        if then.get(what) != now[what]:
            _LOG.warning('%s differ from when the run was started (%s, now %s): it goes on to rounding, not bit for bit',
                            what, then.get(what), now[what])
