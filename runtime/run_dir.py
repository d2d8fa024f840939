"""The run directory: one folder is one run.

config.json (resolved), lineage.json (where it comes from), tokenizer.model or tokenizer.json,
checkpoints/<step>, metrics.jsonl, events, report/; and where there was cause, rollbacks.json and
damaged/<step>.
"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from etils import epath
from ml_collections import ConfigDict

from data import paths, safe_read, tokenizer as tokenizers
from data.cache import stable_hash
from data.records import DataError, did_you_mean
from runtime.config_tree import add_younger, config_hash, expand_paths
from runtime.encoding_meaning import check_meaning, meaning_or_none
from runtime.errors import DiskFullError, RunError
from runtime.system import exclusive_lock

FORMAT = 1  # of the directory; another one is refused (BUILD_NOTES, contract 3)
HASHES = ('config_hash', 'data_hash', 'tokenizer_hash')  # that lineage.json must have


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, and the step that was asked for (None: the newest)."""

    path: epath.Path
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> 'Run':
        """Returns the run that 'DIR' or 'DIR@step' names.

        What is there under its whole name is a directory, whatever its name; else digits after the
        last @ of the last part are a step. Raises RunError where there is no run, or what follows @
        is no step.
        """
        if not text:
            raise RunError('--run is empty: expected a run directory')
        head, step = split_step(text)
        with _reached(text):
            whole = to_folder(text)
            run = cls(whole) if step is None or whole.exists() else cls(to_folder(head), step)
            exists = run.path.exists()
        if not exists:
            raise RunError(_no_such_run(run.path))
        return run._checked()

    @classmethod
    def at(cls, path: str, step: int | None) -> 'Run':
        """Returns the run in a directory that was written down with its step.

        No part of `path` is taken for a step. Raises RunError as `parse`.
        """
        with _reached(path):
            run = cls(to_folder(path), step)
            exists = run.path.exists()
        if not exists:
            raise RunError(_no_such_run(run.path))
        return run._checked()

    def _checked(self) -> 'Run':
        if not self.config_path.exists():
            raise RunError(
                f'{self.path}: not a run directory, or a half-written one: it has no config.json'
            )
        return self

    @property
    def config_path(self) -> epath.Path:
        return self.path / 'config.json'

    @property
    def lineage_path(self) -> epath.Path:
        return self.path / 'lineage.json'

    @property
    def tokenizer_path(self) -> epath.Path:
        present = [self.path / name for name in tokenizers.FILES]
        return next((path for path in present if path.exists()), present[0])

    @property
    def rollbacks_path(self) -> epath.Path:
        return self.path / 'rollbacks.json'

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / 'checkpoints'

    @property
    def damaged(self) -> epath.Path:
        """Where checkpoints lie that were passed over."""
        return self.path / 'damaged'

    @property
    def report(self) -> epath.Path:
        return self.path / 'report'

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that are there, whole or not, in order."""
        if not self.checkpoints.exists():
            return []
        names = [path.name for path in self.checkpoints.iterdir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def config(self) -> ConfigDict:
        """Returns the config that the run was started with.

        Fields that came later have the value that was meant before. Raises RunError where the file
        is damaged.
        """
        try:
            config = ConfigDict(read_json(self.config_path))
            add_younger(config)
        except RunError:
            raise
        except (ValueError, AttributeError) as error:  # names that no field can have
            raise RunError(f'{self.config_path}: damaged ({error})') from None
        if 'encodings' not in config.model:
            config.model.encodings = meaning_or_none(config, first=True)
        check_meaning(self.config_path, config.model.encodings, self.lineage().get('encodings'))
        self._check(self.config_path, 'config_hash', config_hash(config))
        return expand_paths(config)

    def lineage(self) -> dict:
        """Returns what lineage.json says of where the run comes from.

        Raises RunError where the directory has a format that this version does not read.
        """
        path = self.lineage_path
        lineage = read_json(path)
        version = lineage.get('format')
        if version != FORMAT:
            raise RunError(
                f'{self.path}: a run directory of format {version}; this version reads {FORMAT}'
            )
        absent = [name for name in HASHES if name not in lineage]
        if absent:
            raise RunError(f'{path}: damaged (it lacks {", ".join(absent)})')
        if not isinstance(lineage.get('descent', {}), dict):
            raise RunError(f'{path}: damaged (the descent is no object)')
        return lineage

    def rollbacks(self) -> list[dict]:
        """Returns where training went back: [{'step', 'batches'}], with the number of batches that
        were passed over from that step on. Raises RunError where the file is damaged."""
        if not self.rollbacks_path.exists():
            return []
        content = read_json(self.rollbacks_path)
        rollbacks: list[dict] = content.get('rollbacks', [])
        if content.get('check') != stable_hash(rollbacks):
            raise RunError(f'{self.rollbacks_path}: damaged: not as it was written')
        return rollbacks

    def write_rollbacks(self, rollbacks: list[dict]) -> None:
        """Writes what `rollbacks` reads."""
        content = {'rollbacks': rollbacks, 'check': stable_hash(rollbacks)}
        write_atomically(self.rollbacks_path, json.dumps(content))

    def tokenizer(self) -> tokenizers.Tokenizer:
        """Returns the run's tokenizer. Raises RunError where it is damaged, DataError where it is
        missing or no tokenizer."""
        tokenizer = tokenizers.load(self.tokenizer_path)
        self._check(self.tokenizer_path, 'tokenizer_hash', tokenizer.hash)
        return tokenizer

    def _check(self, path: epath.Path, name: str, now: str) -> None:
        """Raises RunError where the hash of a file is not the one that lineage.json has."""
        then = self.lineage()[name]
        if then != now:
            raise RunError(
                f'{path}: damaged, or of another run: {name} is {now[:12]}, lineage.json says '
                f'{str(then)[:12]}; restore that file'
            )


@contextlib.contextmanager
def _reached(text: str) -> Iterator[None]:
    """Raises RunError for gs:// without its extra, or a kind of store that nobody knows."""
    try:
        yield
    except (ImportError, KeyError) as error:
        raise RunError(
            f'{text}: expected a run directory, on a disk or gs:// '
            f'({type(error).__name__}: {error})'
        ) from None


def to_folder(text: str) -> epath.Path:
    """Returns a path with `~` expanded. Raises RunError for a user that is not known here."""
    try:
        return epath.Path(paths.expanded(text, '--run'))
    except DataError as error:
        raise RunError(str(error)) from None


def split_step(text: str) -> tuple[str, int | None]:
    """Returns ('DIR', 12) for 'DIR@12', and (text, None) for what does not end in @ and digits."""
    head, at, step = text.rstrip('/').rpartition('@')
    digits = step.isascii() and step.isdecimal() and len(step) < 19
    if not (at and os.path.basename(head) and digits):
        return text, None
    return head, int(step)


def _no_such_run(path: epath.Path) -> str:
    """Returns what to say where no run is, with the nearest of those beside it."""
    head, at, step = os.fspath(path).rpartition('@')
    if at and '/' not in step and (epath.Path(head) / 'config.json').exists():
        return f'{path}: after @ expected a step, found {step!r}'
    beside = []
    if path.parent.is_dir():
        beside = [p.name for p in path.parent.iterdir() if (p / 'config.json').exists()]
    return f'{path}: no such run directory{did_you_mean(path.name, beside)}'


def place(directory: str) -> Run:
    """Returns the run that --run names for training, there or not.

    The whole text is its directory. Raises RunError where that is a file, or where everyone else
    would read it as a step of another run.
    """
    if not directory:
        raise RunError('--run is empty: expected the directory of the run')
    head, step = split_step(directory)
    with _reached(directory):
        run = Run(to_folder(directory))
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f'{run.path}: a file; expected the directory of the run')
        other = None if step is None or run.path.exists() else Run(to_folder(head))
        hides = other is not None and other.config_path.exists()
    if hides:
        raise RunError(
            f'--run is {directory}: that is step {step} of the run {head}, which is read and not '
            f'trained; expected another directory (and --config.parent={directory} to begin with '
            f'what is learned there)'
        )
    return run


def read_json(path: epath.Path, missing: str = 'the run directory is half-written') -> dict:
    """Returns the object in a JSON file of a run, or of another model's folder.

    Raises RunError where it is missing, of which `missing` says what it means, or damaged.
    """
    try:
        return safe_read.parse(safe_read.file(path, safe_read.JSON))
    except FileNotFoundError:
        raise RunError(f'{path}: missing; {missing}') from None
    except DataError as error:
        raise RunError(str(error)) from None
    except ValueError as error:
        raise RunError(f'{path}: damaged ({error})') from None


def write_atomically(path: epath.Path, data: bytes | str) -> None:
    """Writes a file so that a reader, or a crash, finds the old one or the new, never half."""
    temporary = path.parent / paths.begun(path.name)
    temporary.unlink(missing_ok=True)  # it may be a link, left by whoever made the directory
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    temporary.replace(path)


def batch_of(rollbacks: list[dict], step: int) -> int:
    """Returns the number of the batch that `step` (from 0) trains on: the step itself, as long as
    nothing was passed over (`Run.rollbacks`)."""
    return step + sum(r['batches'] for r in rollbacks if r['step'] <= step)


def is_started(path) -> bool:
    """Returns whether the directory holds checkpoints: starting it then means resuming it."""
    return bool(Run(epath.Path(path)).steps())


def to_json(config: ConfigDict) -> str:
    """Returns a config as config.json has it."""
    return json.dumps(config.to_dict(), indent=1)


def create(run: Run, config, tokenizer, lineage: dict) -> None:
    """Writes the files of a run that has no checkpoint yet.

    config.json comes last: with it the directory is a run. Raises RunError where another process
    trains there.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with in_use(run):
        run.rollbacks_path.unlink(missing_ok=True)
        for name in tokenizers.FILES:
            if name != tokenizer.file_name:  # of an earlier start
                (run.path / name).unlink(missing_ok=True)
        write_atomically(run.path / tokenizer.file_name, tokenizer.proto)
        write_atomically(run.lineage_path, json.dumps(lineage, indent=1))
        write_atomically(run.config_path, to_json(config))


@contextlib.contextmanager
def in_use(run: Run) -> Iterator[None]:
    """Keeps other processes from training in the directory while it is open.

    Raises RunError where one does already. A bucket has no locks.
    """
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
                f'{path}: a link to {path.resolve()}, outside the run directory, where nothing is '
                f'written; put what it leads to in its place'
            )


@contextlib.contextmanager
def room_in(run: Run) -> Iterator[None]:
    """Raises DiskFullError in place of whatever a full disk makes the writers of checkpoints and
    metrics raise."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        steps = run.steps()
        newest = f'of step {steps[-1]}' if steps else 'none'
        free = ''
        if '://' not in os.fspath(run.path):
            megabytes = shutil.disk_usage(pathlib.Path(run.path)).free / 2**20
            free = f' ({megabytes:.0f} MiB free)'
        raise DiskFullError(
            f'{run.path}: the disk is full{free}; the newest whole checkpoint is {newest}. '
            f'Make room: the same command then goes on from there'
        ) from None


def _is_full(error: BaseException | None) -> bool:
    """Returns whether a full disk or a used-up quota is behind an exception.

    tensorstore says it in words only.
    """
    sentences = ('No space left on device', 'Disk quota exceeded', 'File too large')
    while error is not None:
        if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(sentence in str(error) for sentence in sentences):
            return True
        error = error.__cause__ or error.__context__
    return False
