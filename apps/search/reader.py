"""The model of an index: texts become vectors, and an index knows which model made its own."""

import os

import jax
import numpy as np

from data.cache import stable_hash
from data.pairs.read import encode_texts
from model.embed import Embedder, check_pooling, trained_length
from runtime import checkpoint, models
from runtime.config_tree import config_hash
from runtime.errors import RunError
from runtime.run_dir import Run

# Of how texts are cut (chunks.py) and become vectors (model/embed.py): raised where the same run
# and settings would give others.
VERSION = 1
_NAMES = {
    'config_hash': 'config',
    'step': 'step',
    'params': 'parameters',
    'tokenizer_hash': 'tokenizer',
    'version': 'version of pooling and chunks',
}


class OtherIndexError(RunError):
    """An index of another model or settings."""


class Reader:
    """Embeds texts with the checkpoint of a run.

    made: the identity of the run and its settings, as JSON values.

    Args:
      run: whose checkpoint it is.
      pooling: '': as config.embedding says.
      size: leading dimensions of vectors that are kept; 0: all.
      index: the folder of the index, if there is one.
      then: what that index was made with.

    Raises:
      RunError, ModelError or DataError: the run is damaged, or cannot be used as asked.
      OtherIndexError: the run did not make the index.
    """

    def __init__(self, run: Run, pooling: str, size: int, index=None, then: dict | None = None):
        run = checkpoint.pin_step(run)
        model, params, self.tokenizer, config = models.load(run)
        checksums = jax.device_get(checkpoint.checksums({'params': params}))
        sums = {name: [int(n) for n in value] for name, value in checksums.items()}
        where = os.fspath(run.path)
        self.made = dict(
            run=where if '://' in where else os.path.abspath(where),
            step=run.step,
            config_hash=config_hash(config),
            params=stable_hash(sums),
            tokenizer_hash=self.tokenizer.hash,
        )
        # First, since another model may have no such pooling, or size.
        check_same(index, then or {}, self.made)
        if pooling:
            check_pooling(pooling, model.config, '--pooling')
        pooling = pooling or config.embedding.pooling
        self._embedder = Embedder(model, params, pooling, size)
        self.size = self._embedder.size
        self.longest = self._embedder.longest
        self.trained = trained_length(config)
        self.made |= dict(pooling=pooling, size=self.size, version=VERSION)

    def encode(self, texts: list[str], longest: int = 0) -> list[list[int]]:
        """Returns the token ids of each text, `longest` at most (0: the model's context)."""
        return encode_texts(texts, self.tokenizer, longest or self.longest)

    def embed(self, ids: list[list[int]]) -> np.ndarray:
        """Returns vectors of length 1 of token ids, float32 [N, size]."""
        return self._embedder(ids)


def check_same(folder, then: dict, now: dict) -> None:
    """Raises OtherIndexError where an index was made with something else than is asked for now.

    That is as far as both say it.
    """
    then = {'version': 1, **then} if 'run' in then else then  # indexes older than the field
    differ = [
        f'{_NAMES.get(name, name)} {_short(then[name])} there, {_short(now[name])} here'
        for name in then
        if name != 'run' and name in now and then[name] != now[name]
    ]
    if differ:
        of = f' (that of --run={then["run"]}@{then["step"]})' if 'run' in then else ''
        raise OtherIndexError(
            f'{folder}: was indexed with something else: {"; ".join(differ)}. Ask for the '
            f'same{of}, or index into another folder'
        )


def _short(value) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
