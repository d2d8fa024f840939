"""The base of the store of documents and of the store of pairs.

A store is a folder of arrays that a tokenizer makes of a source. It is kept in `config.data.cache`
under the hash of everything that determines it, so that it is built once.
"""

import dataclasses
import pathlib
from typing import ClassVar, Self

import numpy as np

from data import cache
from data.records import DataError
from data.text import READING
from data.tokenizer import Tokenizer

_DTYPES = ('uint16', 'uint32')


@dataclasses.dataclass(frozen=True)
class CachedStore:
    """A folder of arrays, made of a source by a tokenizer.

    Subclasses say what they are called, what their key holds, what must hold of the config, and how
    they are built.

    Attributes:
      path: the folder.
      manifest: what `manifest.json` says of it.
    """

    path: pathlib.Path
    manifest: dict

    NOUN: ClassVar[str]  # in messages
    PREFIX: ClassVar[str]  # of the folder's name

    @classmethod
    def key(cls, config, tokenizer: Tokenizer, reading: int) -> list:
        """Returns everything that determines the content, as JSON can hold it."""
        raise NotImplementedError

    @classmethod
    def check(cls, config) -> None:
        """Raises DataError where a field of `config` (the `data` part) has no valid value."""
        raise NotImplementedError

    @classmethod
    def build(cls, config, tokenizer: Tokenizer, folder: pathlib.Path, progress: bool) -> None:
        """Fills a new folder, its manifest last."""
        raise NotImplementedError

    @classmethod
    def path_of(cls, config, tokenizer: Tokenizer, reading: int = READING) -> pathlib.Path:
        """Returns where the store for this config and tokenizer is kept.

        `reading`: 1 for where it was before the rules of reading and splitting had numbers.
        """
        key = cache.stable_hash(cls.key(config, tokenizer, reading))[:16]
        return pathlib.Path(config.cache) / f'{cls.PREFIX}-{key}'

    @classmethod
    def find(cls, config, tokenizer: Tokenizer, wanted: str = '') -> Self | None:
        """Returns the store in the cache, or None where it is not there; builds nothing.

        Args:
          config: the `data` part of an experiment.
          tokenizer: the tokenizer of the run.
          wanted: the store's hash, where a run states it: a store that was made under earlier rules
            is found by that.
        Raises:
          DataError: the store is damaged, or the text is not there.
        """
        # The path first: it raises where the text is not there, whatever the cache holds.
        path = cls.path_of(config, tokenizer)
        earlier = cls._find_earlier(config, tokenizer, wanted)
        if earlier:
            return earlier
        manifest = cache.find(path, cls.NOUN)
        return cls(path, manifest) if manifest else None

    @classmethod
    def open_or_build(
        cls, config, tokenizer: Tokenizer, progress: bool = True, wanted: str = ''
    ) -> Self:
        """Returns the store in the cache, or a new one that is built there.

        A store whose files are not what its manifest states is logged as damaged and built again.

        Args:
          config: the `data` part of an experiment.
          tokenizer: the tokenizer of the run.
          progress: show a bar while it is built.
          wanted: as `find` takes it.
        Raises:
          DataError: a field has no valid value, a record is broken under `on_broken='fatal'`, or
            the source has nothing to train on.
        """
        cls.check(config)
        path = cls.path_of(config, tokenizer)

        # A resumed run keeps the store that it began with, though today's rules would make another.
        store = cls._find_earlier(config, tokenizer, wanted)
        if store is None:
            manifest = cache.get_or_build(
                path,
                lambda folder: cls.build(config, tokenizer, folder, progress),
                cls.NOUN,
                config.on_broken,
            )
            store = cls(path, manifest)
        store.check_content(config, tokenizer)
        return store

    @classmethod
    def _find_earlier(cls, config, tokenizer: Tokenizer, wanted: str) -> Self | None:
        path = cls.path_of(config, tokenizer, reading=1)
        manifest = cache.find_earlier(path, wanted)
        return cls(path, manifest) if manifest else None

    def check_content(self, config, tokenizer: Tokenizer) -> None:
        """Warns of what a run should know of an opened store, or raises DataError."""

    @property
    def hash(self) -> str:
        """The hash of all arrays: the identity of the data in a run's lineage."""
        return self.manifest['hash']

    @property
    def token_dtype(self) -> np.dtype:
        """The dtype of tokens. Raises DataError where the manifest names none that is allowed."""
        name = self.manifest['dtype']
        if name not in _DTYPES:  # of type object, a file's bytes would be taken for addresses
            raise DataError(
                f'{self.path}: damaged {self.NOUN} (tokens of type {name!r}); '
                'remove it to build it again'
            )
        return np.dtype(name)

    def read_array(self, name: str, dtype) -> np.ndarray:
        """Returns the file `name` of the store as an array [N] in memory."""
        return np.fromfile(self.path / name, dtype)

    def map_array(self, name: str, dtype) -> np.ndarray:
        """Returns the file `name` of the store as an array [N], memory-mapped, read-only."""
        if not (self.path / name).stat().st_size:  # which cannot be mapped
            return np.zeros(0, dtype)
        return np.memmap(self.path / name, dtype, 'r')


def smallest_token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Returns uint16 where it holds all ids of a tokenizer, else uint32."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
