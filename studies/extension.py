"""What a trained model makes of longer texts under another positional encoding, without training.

A cell is one encoding and one measurement: perplexity at a length, of the same target tokens at all
lengths; loss by place, read once at the longest; passkeys at a length. The control is the model as
it is, under the name `untouched`.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from data import sources
from data.cache import stable_hash
from data.records import BadRecord, DataError
from evals import passkey, perplexity
from model import config as model_config
from model.errors import ModelError
from model.positions import REGISTRY
from model.transformer import Transformer
from runtime import checkpoint, models
from runtime.errors import RunError
from runtime.run_dir import Run
from runtime.transfer import plan_transfer, same_encoding

UNTOUCHED = 'untouched'
PERPLEXITY, PLACES, PASSKEY = 'perplexity', 'places', 'passkey'  # kinds of cells
VERSION = 1  # of what a cell measures


@dataclasses.dataclass(frozen=True)
class Extension:
    """What a study of one run measures.

    Attributes:
      run: DIR@step.
      encodings: patterns of the registry, as in config.model.positions; beside them `untouched`.
      trained: the length that the model counts as trained for, in tokens.
      lengths: that are measured, ascending.
      texts: files, as in config.data.files.paths; of their documents the windows are taken.
      windows, scored: of the perplexity (`evals/perplexity.py`).
      passkeys: lengths of texts that hide a passkey; none: there are no such texts.
      depths, trials: of the passkeys.
      places: whether loss by place is measured.
    """

    run: str
    encodings: tuple[str, ...]
    trained: int
    lengths: tuple[int, ...]
    texts: str
    windows: int
    scored: int
    passkeys: tuple[int, ...]
    depths: tuple[float, ...]
    trials: int
    places: bool = True

    @property
    def longest(self) -> int:
        return self.lengths[-1]

    @property
    def arms(self) -> tuple[str, ...]:
        """The control and the encodings."""
        return (UNTOUCHED, *self.encodings)


@dataclasses.dataclass(frozen=True)
class ExtensionCell:
    """One measurement of one encoding."""

    arm: str
    kind: str
    length: int


def cells(extension: Extension) -> list[ExtensionCell]:
    """Returns all cells, those of short lengths first."""
    measurements = [(length, PERPLEXITY) for length in extension.lengths]
    measurements += [(length, PASSKEY) for length in extension.passkeys]
    if extension.places:
        measurements.append((extension.longest, PLACES))
    return [
        ExtensionCell(arm, kind, length)
        for length, kind in sorted(measurements)
        for arm in extension.arms
    ]


def key(extension: Extension, cell: ExtensionCell, weights: str, tokens: str) -> str:
    """Returns the key of everything that determines the record of a cell, hexadecimal.

    `weights`, `tokens`: hashes of the model and of the text.
    """
    of_text = [tokens, extension.windows, extension.scored]
    of_kind = [extension.depths, extension.trials] if cell.kind == PASSKEY else of_text
    parts = [VERSION, weights, extension.trained, extension.longest, dataclasses.astuple(cell)]
    return stable_hash([*parts, of_kind])[:16]


class Subject:
    """The model of a run, under any encoding, and the text that it reads.

    Raises RunError where there is too little text.
    """

    def __init__(self, extension: Extension):
        self.extension = extension
        run = Run.parse(extension.run)
        self.model, self.params, self.tokenizer, self.config = models.load(run)
        sums = jax.device_get(checkpoint.checksums(self.params))
        self.weights = stable_hash({name: value.tolist() for name, value in sums.items()})
        try:
            documents = self._documents()
        except DataError as error:
            named = str(error).replace('config.data.files.paths', '--texts')
            raise RunError(named) from None
        self.tokens_hash = stable_hash([document.tolist() for document in documents])
        try:
            self.targets = perplexity.targets(
                documents, extension.longest, extension.windows, extension.scored
            )
        except RunError as error:
            raise RunError(f'--texts: {error}') from None

    def _documents(self) -> list[np.ndarray]:
        """Returns the tokens of each text, the begin mark first; no more than the windows need."""
        data = self.config.data.copy_and_resolve_references()
        data.source = 'files'
        data.files.paths = self.extension.texts
        begin = [*self.tokenizer.begin]
        enough = self.extension.windows * (self.extension.longest + self.extension.scored)
        documents = []
        for record in sources.read(data):
            if isinstance(record, BadRecord):
                raise RunError(f'--texts: {record.where}: {record.reason}')
            ids = begin + self.tokenizer.encode(record.text)
            documents.append(np.asarray(ids[:enough], np.int32))
        return documents

    def under(self, arm: str) -> Transformer:
        """Returns the model with another encoding, for texts up to the longest.

        Arguments that the run's own encoding has, such as RoPE's base, go to the new one.

        Raises ModelError or RunError where there is no such encoding, or it has parameters that
        the run did not learn.
        """
        if arm == UNTOUCHED:
            return Transformer(dataclasses.replace(self.model.config, attention='auto'))
        fields = self.config.model.copy_and_resolve_references()
        fields.update(
            max_len=max(self.extension.longest, self.extension.trained),
            attention='auto',
            encodings=[],
            positions=arm,
            positions_args=_shared_arguments(self.model.config.encodings[0], arm),
        )
        resolved = model_config.resolve(fields, self.tokenizer.vocab_size, self.extension.trained)
        model = Transformer(resolved)

        child = checkpoint.describe(nn.meta.unbox(models.abstract_params(model)))
        parent = checkpoint.describe(self.params)
        same = same_encoding(self.model.config.encodings, resolved.encodings)
        _, fresh, _ = plan_transfer(parent, child, same)
        if fresh:
            raise RunError(
                f'--encodings: {arm} has parameters that the run did not learn '
                f'({checkpoint.summarize_paths(fresh)}): expected one without, or a run that was '
                f'trained with it'
            )
        return model

    def measure(self, cell: ExtensionCell) -> dict[str, Any]:
        """Returns what a cell measures."""
        began = time.perf_counter()
        model = self.under(cell.arm)
        params = self.params  # those of the run's own encoding stay, and are not asked for
        if cell.kind == PERPLEXITY:
            tokens = self.extension.windows * cell.length  # no more rows than there are
            most = min(perplexity.BATCH_TOKENS, tokens)
            losses = perplexity.fixed(model, params, self.targets, [cell.length], most)
            loss = losses[cell.length]
            record: dict[str, Any] = {'nats': loss.nats.mean(1).round(6).tolist()}
        elif cell.kind == PLACES:
            length = self.extension.trained
            times = max(1, cell.length // length)
            places = perplexity.by_position(model, params, self.targets, length, times)
            record = {'places': places}
        else:
            record = {'found': self._find_passkeys(model, params, cell.length)}
        return {**record, 'seconds': round(time.perf_counter() - began, 1)}

    def _find_passkeys(self, model: Transformer, params, length: int) -> dict[str, list[bool]]:
        rows = max(1, perplexity.BATCH_TOKENS // length)
        extension = self.extension
        found = {}
        for depth in extension.depths:
            prompts = passkey.make_prompts(self.tokenizer, length, depth, extension.trials)
            found[f'{depth:g}'] = passkey.accuracy(model, params, *prompts, rows)
        return found


def _shared_arguments(encoding, pattern: str) -> dict[str, Any]:
    """Returns the arguments of the run's encoding that every part of a new one takes too."""
    names = [word.partition('(')[0] for word in pattern.replace('+', ',').split(',')]
    kinds = [REGISTRY[name] for name in names if name in REGISTRY]
    takers = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    arguments = {}
    for part in encoding.parts:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            is_given = field.name != 'dims' and value != field.default
            if is_given and any(field.name in names for names in takers):
                arguments[field.name] = value
    return arguments


def check(subject: Subject) -> None:
    """Raises RunError or ModelError where an encoding cannot be measured, before any is."""
    for arm in subject.extension.arms:
        try:
            subject.under(arm)
        except ModelError as error:
            raise RunError(f'--encodings: {arm}: {error}') from None
    lengths = subject.extension.lengths
    if list(lengths) != sorted(set(lengths)):
        raise RunError(f'--lengths: {lengths}: expected different ones, ascending')


def missing(extension: Extension, subject: Subject, records: Sequence[dict]) -> list[ExtensionCell]:
    """Returns the cells without a record."""
    done = {record['key'] for record in records}
    return [cell for cell in cells(extension) if cell_key(subject, cell) not in done]


def cell_key(subject: Subject, cell: ExtensionCell) -> str:
    return key(subject.extension, cell, subject.weights, subject.tokens_hash)


def default_lengths(trained: int) -> tuple[int, ...]:
    """Returns from half of the trained length to four times as much."""
    return tuple(trained * times // 2 for times in (1, 2, 4, 8))


def results_folder(out: str, run: str) -> pathlib.Path:
    """Returns where lines and report go."""
    return pathlib.Path(out or f'runs/extend/{pathlib.Path(run.partition("@")[0]).name}')
