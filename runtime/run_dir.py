"""The run directory: one folder is one run.

config.json (resolved), lineage.json (where it comes from), tokenizer.model, checkpoints/<step>, metrics.jsonl, events, report/; and where there was
cause, rollbacks.json and damaged/<step>.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import os
import pathlib
import platform
import re
import shlex
import shutil
from collections.abc import Callable

from etils import epath
from ml_collections import ConfigDict

from data import paths, safe_read, tokenizer as tokenizers
from data.cache import stable_hash
from data.records import DataError, did_you_mean
from model.errors import ModelError
from runtime import schema
from runtime.errors import DiskFullError, RunError
from runtime.system import exclusive_lock, package_versions

_LOG = logging.getLogger('ordem')

FORMAT = 1  # of the directory; another one is refused (BUILD_NOTES, contract 3)
REVISION = 1  # of the schema: every run directory has the fields up to this one
ENCODINGS = 'model.encodings'  # what a run keeps of the meaning of its encodings


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, and the step that was asked for (None: the newest)."""

    path: epath.Path
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> 'Run':
        """'DIR' or 'DIR@step' -> the run. What is there under its whole name is a directory,
        whatever its name; else digits after the last @ of the last part are a step. Raises RunError
        where there is no run, or what follows @ is no step."""
        if not text:
            raise RunError('--run is empty: expected a run directory')
        head, step = _split(text)
        with _reached(text):
            whole = _folder(text)
            run = cls(whole) if step is None or whole.exists() else cls(_folder(head), step)
            there = run.path.exists()
        if not there:
            raise RunError(_no_such_run(run.path))
        return run._checked()

    @classmethod
    def at(cls, path: str, step: int | None) -> 'Run':
        """The run in a directory that was written down with its step: no part of `path` is taken
        for one. Raises RunError as `parse`."""
        with _reached(path):
            run = cls(_folder(path), step)
            there = run.path.exists()
        if not there:
            raise RunError(_no_such_run(run.path))
        return run._checked()

    def _checked(self) -> 'Run':
        if not self.config_path.exists():
            raise RunError(
                f'{self.path}: not a run directory, or a half-written one: it has no config.json'
            )
        return self

    config_path = property(lambda self: self.path / 'config.json')
    tokenizer_path = property(lambda self: self.path / 'tokenizer.model')
    checkpoints = property(lambda self: self.path / 'checkpoints')
    report = property(lambda self: self.path / 'report')
    damaged = property(lambda self: self.path / 'damaged')  # checkpoints that were passed over
    rollbacks_path = property(lambda self: self.path / 'rollbacks.json')

    def steps(self) -> list[int]:
        """Of the checkpoints that are there, whole or not."""
        return (
            sorted(int(p.name) for p in self.checkpoints.iterdir() if p.name.isdecimal())
            if self.checkpoints.exists()
            else []
        )

    def config(self) -> ConfigDict:
        """As the run was started; fields that came later have the value that was meant before. Raises RunError where it is damaged."""
        try:
            found = ConfigDict(_read_json(self.config_path))
        except (ValueError, AttributeError) as error:  # names that no field can have
            raise (
                error
                if isinstance(error, RunError)
                else RunError(f'{self.config_path}: damaged ({error})')
            ) from None
        self._add_younger(found)
        if 'encodings' not in found.model:
            found.model.encodings = _meaning_or_none(found, first=True)
        _check_meaning(self.config_path, found.model.encodings, self.lineage().get('encodings'))
        self._check(self.config_path, 'config_hash', config_hash(found))
        return at_home(found)

    def _add_younger(self, config: ConfigDict) -> None:
        """Adds the fields that came after the run was made, with the value that was meant then."""
        older_groups = {
            name.rpartition('.')[0] for name in schema.names(lambda entry: entry.since <= REVISION)
        }
        for name, value in schema.younger(REVISION).items():
            *groups, field = name.split('.')
            there = config
            for depth, group in enumerate(groups, 1):
                if group not in there and '.'.join(groups[:depth]) not in older_groups:
                    there[group] = ConfigDict()
                if not isinstance(there.get(group), ConfigDict):
                    raise RunError(
                        f'{self.config_path}: damaged (expected a group of fields {group!r})'
                    )
                there = there[group]
            if field not in there:
                there[field] = value

    def lineage(self) -> dict:
        """Raises RunError where the directory has a format that this version does not read."""
        found = _read_json(self.path / 'lineage.json')
        if found.get('format') != FORMAT:
            raise RunError(
                f'{self.path}: a run directory of format {found.get("format")}; this version reads {FORMAT}'
            )
        lacking = [
            name for name in ('config_hash', 'data_hash', 'tokenizer_hash') if name not in found
        ]
        if lacking:
            raise RunError(f'{self.path / "lineage.json"}: damaged (it lacks {", ".join(lacking)})')
        if not isinstance(found.get('descent', {}), dict):
            raise RunError(f'{self.path / "lineage.json"}: damaged (the descent is no object)')
        return found

    def rollbacks(self) -> list[dict]:
        """Where training went back: [{'step', 'batches'}], batches passed over from that step on. Raises RunError where the file is damaged."""
        if not self.rollbacks_path.exists():
            return []
        read = _read_json(self.rollbacks_path)
        found = read.get('rollbacks')
        if read.get('check') != stable_hash(found):
            raise RunError(f'{self.rollbacks_path}: damaged: not as it was written')
        return found

    def write_rollbacks(self, found: list[dict]) -> None:
        write_atomically(
            self.rollbacks_path, json.dumps({'rollbacks': found, 'check': stable_hash(found)})
        )

    def tokenizer(self) -> tokenizers.Tokenizer:
        """Raises RunError where it is damaged, DataError where it is missing or no tokenizer."""
        found = tokenizers.load(self.tokenizer_path)
        self._check(self.tokenizer_path, 'tokenizer_hash', found.hash)
        return found

    def _check(self, path, name: str, now: str) -> None:
        then = self.lineage()[name]
        if then != now:
            raise RunError(
                f'{path}: damaged, or of another run: {name} is {now[:12]}, lineage.json says {str(then)[:12]}; restore that file'
            )


@contextlib.contextmanager
def _reached(text: str):
    """Raises RunError for gs:// without its extra, or a kind of store that nobody knows."""
    try:
        yield
    except (ImportError, KeyError) as error:
        raise RunError(
            f'{text}: expected a run directory, on a disk or gs:// '
            f'({type(error).__name__}: {error})'
        ) from None


def _folder(text: str) -> epath.Path:
    try:
        return epath.Path(paths.expanded(text, '--run'))
    except DataError as error:
        raise RunError(str(error)) from None


def _split(text: str) -> tuple[str, int | None]:
    """'DIR@12' -> ('DIR', 12); (text, None) where its last part does not end in @ and digits."""
    head, at, step = text.rstrip('/').rpartition('@')
    digits = step.isascii() and step.isdecimal() and len(step) < 19
    if not (at and os.path.basename(head) and digits):
        return text, None
    return head, int(step)


def _no_such_run(path: epath.Path) -> str:
    head, at, step = os.fspath(path).rpartition('@')
    if at and '/' not in step and (epath.Path(head) / 'config.json').exists():
        return f'{path}: after @ expected a step, found {step!r}'
    beside = (
        [p.name for p in path.parent.iterdir() if (p / 'config.json').exists()]
        if path.parent.is_dir()
        else []
    )
    return f'{path}: no such run directory{did_you_mean(path.name, beside)}'


def place(directory: str) -> Run:
    """The run that --run names for training, there or not: the whole text is its directory. Raises
    RunError where that is a file, or where everyone else would read it as a step of another run."""
    if not directory:
        raise RunError('--run is empty: expected the directory of the run')
    head, step = _split(directory)
    with _reached(directory):
        run = Run(_folder(directory))
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f'{run.path}: a file; expected the directory of the run')
        other = None if step is None or run.path.exists() else Run(_folder(head))
        hides = other is not None and other.config_path.exists()
    if hides:
        raise RunError(
            f'--run is {directory}: that is step {step} of the run {head}, which is read and not '
            f'trained; expected another directory (and --config.parent={directory} to begin with '
            f'what is learned there)'
        )
    return run


def _check_meaning(path, found, kept) -> None:
    """Raises RunError where a config's `encodings` are none, or others than lineage.json keeps
    (None: it is from before they were kept)."""
    if kept is not None and found != kept:
        raise RunError(
            f'{path}: damaged, or of another run: model.encodings are not those of lineage.json; '
            f'restore that file'
        )
    for one in found if isinstance(found, list) else [None]:
        fields = isinstance(one, dict) and (one.get('name'), one.get('version'))
        if not fields or not (isinstance(fields[0], str) and isinstance(fields[1], int)):
            raise RunError(f'{path}: damaged (model.encodings)')
        if not isinstance(one.get('arguments'), dict):
            raise RunError(f'{path}: damaged (model.encodings)')


def _read_json(path: epath.Path) -> dict:
    try:
        return safe_read.parse(safe_read.file(path, safe_read.JSON))
    except FileNotFoundError:
        raise RunError(f'{path}: missing; the run directory is half-written') from None
    except DataError as error:
        raise RunError(str(error)) from None
    except ValueError as error:
        raise RunError(f'{path}: damaged ({error})') from None


def write_atomically(path: epath.Path, data: bytes | str) -> None:
    """A reader, or a crash, finds the old file or the new one, never half of it."""
    temporary = path.parent / paths.begun(path.name)
    temporary.unlink(missing_ok=True)  # it may be a link, left by whoever made the directory
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


def at_home(config, strict: bool = False):
    """Expands `~` in each path of an experiment or a study, in place, and returns it. Raises
    RunError, where it is `strict`, for a user that is not known here."""
    for name, value in flat(config).items():
        if not isinstance(value, str) or '~' not in value:
            continue
        kind = schema.path_kind(name)
        try:
            if kind == 'one':
                found = paths.expanded(value, f'config.{name}' if strict else '')
            elif kind == 'several':
                found = paths.expanded_list(value)
            else:
                continue
        except DataError as error:
            raise RunError(str(error)) from None
        *groups, field = name.split('.')
        functools.reduce(lambda at, group: at[group], groups, config)[field] = found
    return config


def _as_given(config) -> ConfigDict:
    """A copy with `~` for the home folder, as the fields of a run may have been written before they
    were expanded."""
    made, home = config.copy_and_resolve_references(), os.path.expanduser('~') + '/'
    for name in schema.names(lambda entry: entry.path):
        *groups, field = name.split('.')
        at = functools.reduce(lambda at, group: at[group], groups, made)
        at[field] = ','.join(
            re.sub(f'^{re.escape(home)}', '~/', part) for part in at[field].split(',')
        )
    return made


def diff_configs(old, new, counts: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Returns 'config.a.b: old -> new' for each field that differs.

    Args:
      old: a config.
      new: another one.
      counts: whether a difference in the field of this name, 'a.b', is one.
    """
    before, now = flat(old), flat(new)
    return [
        f'config.{name}: {before.get(name, "absent")!r} -> {now.get(name, "absent")!r}'
        for name in sorted({*before, *now})
        if before.get(name, '\0') != now.get(name, '\0') and counts(name)
    ]


def config_hash(config) -> str:
    """Returns the hash of the fields that determine the result, hexadecimal; of what the encodings
    mean, that of those whose version is above 1."""
    younger = schema.younger(REVISION)
    counted = {
        name: value
        for name, value in flat(config).items()
        if not schema.may_change_on_resume(name) and younger.get(name, '\0') != value
    }
    changed = [one for one in counted.pop(ENCODINGS, ()) if one['version'] > 1]
    return stable_hash(counted | ({ENCODINGS: changed} if changed else {}))


def meaning(config, first: bool = False) -> list[dict]:
    """Returns what the encodings of an experiment mean (`model.positions.resolved`), as JSON keeps
    it; `first`: what they meant before versions were kept. Raises ModelError where they name none."""
    from model.positions import resolve_pattern

    c = config.model
    return json.loads(json.dumps(resolve_pattern(c.positions, dict(c.positions_args), first)))


def _meaning_or_none(config, first: bool = False) -> list[dict]:
    """Returns `meaning`; empty where the encodings name none, which is told where the model is
    made."""
    try:
        return meaning(config, first)
    except (ModelError, AttributeError, TypeError, ValueError):
        return []


def same_meaning(a, b) -> bool:
    """Whether the `model` parts of two configs, with their `encodings`, compute the same from the
    same parameters: versions also tell how parameters begin."""

    def of(model):
        layers, members = model.positions, []
        for one in model.encodings:
            if 'layers' in one['arguments']:
                layers = one['arguments']['layers']
            else:
                members.append((one['name'], one['arguments']))
        return layers, members

    return of(a) == of(b)


def flags_of(meant: list[dict], now: list[dict]) -> list[str]:
    """Returns the flags that have encodings mean what is `meant` where they mean `now`."""
    arguments, found = {one['name']: one['arguments'] for one in now}, {}
    for one in meant:
        others = arguments.get(one['name'], one['arguments'])
        changed = {k: v for k, v in one['arguments'].items() if others.get(k) != v}
        if 'layers' in changed:
            return [f'--config.model.positions={shlex.quote(changed["layers"])}']
        for key, value in changed.items():
            found[f'--config.model.positions_args.{key}={shlex.quote(str(value))}'] = None
    return [*found]


def batch_of(rollbacks: list[dict], step: int) -> int:
    """The number of the batch that `step` (from 0) trains on: the step itself, as long as nothing was passed over (`Run.rollbacks`)."""
    return step + sum(r['batches'] for r in rollbacks if r['step'] <= step)


def is_started(path) -> bool:
    """Whether the directory holds checkpoints: then starting it means resuming it."""
    return bool(Run(epath.Path(path)).steps())


def mend(run: Run, config, tokenizer, alone: bool = True) -> None:
    """Writes config.json and tokenizer.model of a started run anew where they are missing or damaged: `config`, and what `tokenizer`() gives.

    Raises RunError where lineage.json tells that those are others, or another process trains there. `alone`: False for those of a group that
    look together, after its first.
    """
    with in_use(run) if alone else contextlib.nullcontext():
        _mend(run, config, tokenizer)


def _mend(run: Run, config, tokenizer) -> None:
    # What the encodings meant when the run was started holds for as long as it goes on.
    config.model.encodings = run.lineage().get('encodings', _meaning_or_none(config, first=True))

    def renew(path, read, what, now) -> None:
        try:
            read()
        except (RunError, DataError) as error:
            found, content = now()
            if found != run.lineage().get(what):
                raise RunError(
                    f'{error}; what this command gives is another one: restore {path.name}, or choose another --run'
                ) from None
            write_atomically(path, content)
            _LOG.warning(
                '%s; written anew from this command: its hash is the one in lineage.json', error
            )

    def trained():
        made = tokenizer()
        return made.hash, made.proto

    def stated():
        then = run.lineage().get('config_hash')
        same = (c for c in (config, _as_given(config)) if config_hash(c) == then)
        found = next(same, config)
        return config_hash(found), _as_json(found)

    renew(run.config_path, run.config, 'config_hash', stated)
    renew(run.tokenizer_path, run.tokenizer, 'tokenizer_hash', trained)


def keep_own(run: Run, config) -> None:
    """Gives `config` the fields that a started run keeps, whatever this command says of them."""
    with contextlib.suppress(RunError):  # a config.json that is damaged is told elsewhere
        started = flat(run.config())
        for name in schema.names(lambda entry: entry.resume == 'kept'):
            if name in started:
                config.update_from_flattened_dict({name: started[name]})


def check_resumable(run: Run, config) -> None:
    """Raises RunError where `config` would change the result of a started run; names each field."""
    then = run.config()
    now = ConfigDict(dict(positions=config.model.positions, encodings=_meaning_or_none(config)))
    same = same_meaning(then.model, now)

    def counts(name: str) -> bool:
        if same and name.startswith('model.positions'):  # whatever was given for it
            return False
        return name != ENCODINGS and not schema.may_change_on_resume(name)

    changed = diff_configs(then, config, counts)
    if not changed and not same:
        _LOG.info(
            '%s: goes on with its encoding as it was started, which has other defaults now: %s',
            run.path,
            ' '.join(flags_of(then.model.encodings, now.encodings)),
        )
    if changed:
        raise RunError(
            f'{run.path}: was started with another config and would not give its result; choose another --run or '
            f'undo {"; ".join(changed)}'
        )


def _as_json(config) -> str:
    return json.dumps(config.to_dict(), indent=1)


def create(run: Run, config, tokenizer, lineage: dict) -> None:
    """Writes the files of a run that has no checkpoint yet. config.json comes last: with it the directory is a run. Raises RunError where
    another process trains there."""
    run.path.mkdir(parents=True, exist_ok=True)
    with in_use(run):
        run.rollbacks_path.unlink(missing_ok=True)
        write_atomically(run.tokenizer_path, tokenizer.proto)
        write_atomically(run.path / 'lineage.json', json.dumps(lineage, indent=1))
        write_atomically(run.config_path, _as_json(config))


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def identity(run: Run) -> str:
    """Returns a hash of what determined a run's parameters, wherever its directory lies: its own
    hashes, and those of its parents."""
    found = run.lineage()
    before = found.get('parent')
    own = [found[name] for name in ('config_hash', 'data_hash', 'tokenizer_hash')]
    return stable_hash([*own, before and [found.get('descent', {}).get('hash'), before['step']]])


def descent(parent: Run) -> dict:
    """Returns what a run's lineage says of its parent beside its place and step: what tells it from
    others wherever it lies, and the context it was trained for."""
    config = parent.config()
    return {'hash': identity(parent), 'context': config.model.max_len or config.data.seq_len}


def check_parent(run: Run, text: str) -> Run | None:
    """Compares `text`, config.parent of this command, with what a started run began from: by
    hashes, since a parent may have moved.

    Returns the parent at the step that the run began from, or None where the run has none, or the
    one that is named again is not there any more. Raises RunError for another run or another step;
    RUN without a step means whatever step it was."""
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
            f'{run.path / "lineage.json"}: damaged (the parent is {then!r}, expected run and step)'
        )
    began = f'{run.path} began from {then["run"]}@{then["step"]}'
    if not text:
        raise RunError(f'config.parent is empty: {began}; give that, or choose another --run')
    given, known = None, Run(_folder(text))
    known = known if known.path.exists() else Run(_folder(_split(text)[0]), _split(text)[1])
    there = _same_folder(known.path, then['run'])
    try:
        given = Run.parse(text)
        same = _is_parent(run, given, then, there)
    except RunError:
        if not there:  # of one that is gone or damaged nothing is read, where its name is the same
            raise
        same = True
    if not same:
        raise RunError(
            f'config.parent is {text}: {began}, which is another run; give that one, wherever it '
            f'lies now, or choose another --run'
        )
    if known.step not in (None, then['step']):
        raise RunError(
            f'config.parent is {text}: {began}, another step; leave the step out, or choose '
            f'another --run'
        )
    return given and Run(given.path, then['step'])


def _same_folder(path: epath.Path, then: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(_folder(then))


def _is_parent(run: Run, given: Run, then: dict, there: bool) -> bool:
    """Whether a run is the one that `then` of a lineage speaks of; `there`: it lies where that one
    lay."""
    now = identity(given)
    known = run.lineage().get('descent', {}).get('hash')
    if known:
        return now == known
    if there:  # written before hashes were
        return True
    try:
        return now == identity(Run.at(then['run'], then['step']))
    except RunError:
        same = given.lineage()['tokenizer_hash'] == run.lineage()['tokenizer_hash']
        if same:
            _LOG.warning(
                '%s: was started before parents were known by hashes, and %s is gone: %s is taken '
                'for it',
                *(run.path, then['run'], given.path),
            )
        return same


def lineage(config, store, tokenizer, parent: dict | None) -> dict:
    """What a result depends on: parent, hashes, versions, and the cores, which XLA:CPU's bits depend on."""
    versions = package_versions(
        'jax',
        'jaxlib',
        'flax',
        'optax',
        'orbax-checkpoint',
        'numpy',
        'sentencepiece',
        'grain',
    )
    meant = config.model.get('encodings')
    return dict(
        format=FORMAT,
        parent=parent,
        **({} if meant is None else {'encodings': list(meant)}),
        config_hash=config_hash(config),
        data_hash=store.hash,
        tokenizer_hash=tokenizer.hash,
        versions={'python': platform.python_version(), **versions},
        cores=cores(),
    )


def check_lineage(run: Run, now: dict) -> None:
    """Compares a resumed run with what it was started from. Raises RunError where data or tokenizer differ; logs where only
    versions or cores do: the run then goes on to rounding, not bit for bit."""
    then = run.lineage()
    for what in ('data_hash', 'tokenizer_hash'):
        if then.get(what) != now[what]:
            raise RunError(
                f'{run.path}: {what} is {now[what][:12]}, the run was started with {str(then.get(what))[:12]}; '
                f'the text has changed'
            )
    for what in ('versions', 'cores'):
        if then.get(what) != now[what]:
            _LOG.warning(
                '%s differ from when the run was started (%s, now %s): it goes on to rounding, not bit for bit',
                what,
                then.get(what),
                now[what],
            )


@contextlib.contextmanager
def in_use(run: Run):
    """While it is open no other process trains in the directory. Raises RunError where one does (local disks; a bucket has no locks)."""
    if '://' in os.fspath(run.path):
        yield
        return
    _check_links(run)
    message = (
        f'{run.path}: another process trains in this directory; wait for it, or choose another '
        f'--run'
    )
    with exclusive_lock(run.path / '.lock', message):
        yield


def _check_links(run: Run) -> None:
    """Raises RunError where what is written in the directory would be written elsewhere."""
    here = pathlib.Path(run.path).resolve()
    for path in (*here.iterdir(), *(here / 'checkpoints').glob('*')):
        if path.is_symlink() and not path.resolve().is_relative_to(here):
            raise RunError(
                f'{path}: a link to {path.resolve()}, outside the run directory, where nothing is written; put what it leads to '
                f'in its place'
            )


@contextlib.contextmanager
def room_in(run: Run):
    """Raises DiskFullError in place of whatever a full disk makes the writers of checkpoints and metrics raise."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        whole = run.steps()
        free = (
            ''
            if '://' in os.fspath(run.path)
            else f' ({shutil.disk_usage(pathlib.Path(run.path)).free / 2**20:.0f} MiB free)'
        )
        raise DiskFullError(
            f'{run.path}: the disk is full{free}; the newest whole checkpoint is {f"of step {whole[-1]}" if whole else "none"}. '
            f'Make room: the same command then goes on from there'
        ) from None


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk or a used-up quota is behind an exception; tensorstore says it in words only."""
    while error is not None:
        if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(
            words in str(error)
            for words in ('No space left on device', 'Disk quota exceeded', 'File too large')
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
