"""What a model of another house is read from, and how it becomes our arrays.

A source may be damaged or hostile: sizes are compared before anything of that size is made.
"""

import abc
import contextlib
import functools
import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np
from flax import traverse_util

from apps.exchange import classes, tensors
from apps.exchange.fields import Fields
from apps.exchange.shapes import abstract_arrays, shapes_of
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from runtime.deferred import Deferred
from runtime.errors import RunError

_OF_PIECES = ('embedding', 'output/kernel')  # a row for each piece of the tokenizer
_FLOATS = ('float64', 'float32', 'float16', 'bfloat16')


class Source(abc.ABC):
    """A model as somebody else wrote it.

    Attributes:
      path: where it lies.
      fields: its config.json, or what says the same.
      shapes: name -> shape of each tensor, named as in Hugging Face's classes.
      files: what is read, for the hashes of the lineage.
      licence: as the source names it, or ''.
      pairs: whether queries and keys lie with the two dimensions of a pair beside each other.
    """

    path: pathlib.Path
    fields: Fields
    shapes: dict[str, tuple[int, ...]]
    files: list[pathlib.Path]
    licence: str = ''
    pairs: bool = False

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """Returns a tensor, of floats."""

    @abc.abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer that comes with the model."""

    def model_class(self) -> classes.ModelClass:
        """Returns the class of the model, with its tensors as they lie here."""
        return classes.find(self.fields)


def hash_files(files: list[pathlib.Path]) -> dict[str, str]:
    """Returns name -> sha256 of files, in hexadecimal."""
    hashes = {}
    for path in files:
        with path.open('rb') as file:
            hashes[path.name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return hashes


def defer_params(source: Source, cfg: ModelConfig) -> dict:
    """Returns the parameters of a model, nested, each read from its tensor when it is asked for.

    A table with rows beyond those of `cfg.vocab_size`, which no token has, loses them.
    Raises RunError where tensors are missing, too many, or of another shape.
    """
    arrays = _Arrays(source, cfg)
    leaves = {
        path: Deferred(x.shape, x.dtype, functools.partial(arrays.read, path))
        for path, x in abstract_arrays(cfg).items()
    }
    return traverse_util.unflatten_dict(leaves, sep='/')


class _Arrays:
    """Reads our arrays from tensors of a source, of which it holds one layer's at most.

    Args and errors as of `defer_params`.
    """

    def __init__(self, source: Source, cfg: ModelConfig):
        self.source = source
        self.cfg = cfg
        self.one = source.model_class()
        self.leaves = shapes_of(cfg)
        planned = tensors.assign(self.one.names, self.leaves)
        check(source, self.one, planned, self.leaves)
        self.planned = {path: (name, paths) for name, paths in planned.items() for path in paths}
        self.waiting: dict[str, np.ndarray] = {}  # came with another array, from the same tensor

    def read(self, path: str) -> np.ndarray:
        """Returns one array. Those that are read in the order of the tree are read once."""
        if path not in self.waiting:
            self.waiting |= self._read_tensor(*self.planned[path])
        x = self.waiting.pop(path)
        return x.astype(abstract_arrays(self.cfg)[path].dtype, copy=False)

    def _read_tensor(self, name: str, paths: list[str]) -> dict[str, np.ndarray]:
        """Returns path -> array of what a tensor holds."""
        x = self.source.read(name)
        if x.dtype.name not in _FLOATS:
            where = self.source.fields.where
            raise RunError(f'{where}: {name} is of {x.dtype.name}: expected floats')
        expected = tensors.shape_of(paths, self.leaves, self.one)
        if x.shape != expected:  # rows that no token has
            x = x[tuple(slice(size) for size in expected)]
        return tensors.to_ours(x, paths, self.leaves, self.one, self.cfg, self.source.pairs)


def check(
    source: Source,
    one: classes.ModelClass,
    planned: dict[str, list[str]],
    leaves: dict[str, tuple[int, ...]],
) -> None:
    """Raises RunError where a source has not the tensors that a model is made of."""
    where = source.fields.where
    missing = [name for name in planned if name not in source.shapes]
    if missing:
        raise RunError(f'{where}: tensors are missing: {_list(missing)}')

    # What is there beside: buffers of old files, and the output of a model that ties it.
    known = set(planned) | {one.names['output/kernel']}
    more = [name for name in source.shapes if name not in known and not _is_buffer(name)]
    if more:
        raise RunError(f'{where}: tensors that {one.architecture} has not: {_list(more)}')
    for name, paths in planned.items():
        expected = tensors.shape_of(paths, leaves, one)
        found = source.shapes[name]
        if paths[0] in _OF_PIECES and len(found) == 2:
            found = (min(found[0], expected[0]), found[1])
        if found != expected:
            raise RunError(
                f'{where}: {name} is {list(source.shapes[name])}: expected {list(expected)}'
            )


def _is_buffer(name: str) -> bool:
    """Returns whether a tensor is computed and not learned, as old files have some."""
    return name.endswith(('.inv_freq', '.attn.bias', '.masked_bias', '.attention.bias'))


def _list(names: list[str]) -> str:
    rest = f' and {len(names) - 4} more' if len(names) > 4 else ''
    return f'{", ".join(f"{name:.80}" for name in names[:4])}{rest}'


@contextlib.contextmanager
def blame(where: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Raises RunError in place of what a library raises for a damaged file."""
    try:
        yield
    except RunError:
        raise
    except kinds as error:
        line = next(iter(str(error).strip().splitlines()), '')
        raise RunError(f'{where}: damaged ({type(error).__name__}: {line:.120})') from None
