"""The data half of an objective (`config.train.objective`): its store, its batches, its checks.

What a run learns from them, the loss, is the other half (`train/objectives.py`). Whoever needs to
know something that depends on the objective asks it here or there; nothing else in the house tests
for its name. `config` is the `data` part of an experiment, unless said otherwise.
"""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from data import batches, sources
from data.batches import Batch, Rows
from data.cached_store import CachedStore
from data.pairs import batches as pair_batches, read as read_pairs
from data.pairs.store import PairStore
from data.records import DataError
from data.store import TokenStore
from data.tokenizer import Tokenizer


class DataObjective:
    """What an objective asks of the data; each subclass is one objective."""

    store_class: type[CachedStore]
    # Each takes `config` and raises DataError where, before any text is read, it cannot be served.
    checks: tuple[Callable[[ConfigDict], object], ...]
    shuffles_validation: bool
    holds_out_text: bool  # so that bits per byte of it can be measured

    def make_batches(self, split, config: ConfigDict, seed: int, shuffle: bool = True) -> Rows:
        """Returns the batches of a split of the store. Raises DataError where it holds nothing."""
        raise NotImplementedError

    def row_tokens(self, config: ConfigDict) -> int:
        """Returns the tokens of a row of the batch, padding included."""
        raise NotImplementedError

    def row_bytes(self, config: ConfigDict) -> int:
        """Returns the bytes of a row of the batch, at least."""
        raise NotImplementedError

    def blank_batch(self, config: ConfigDict) -> Batch:
        """Returns a batch without content: its fields, shapes and dtypes."""
        raise NotImplementedError

    def stores_whole_texts(self, config: ConfigDict) -> bool:
        """Returns whether each document of the training text is whole in the store."""
        raise NotImplementedError

    def describe_rows(self, config: ConfigDict | dict) -> str:
        """Returns in a few words what a row is made of."""
        raise NotImplementedError

    def prefer_conversations(self, config: ConfigDict) -> None:
        """Sets `config` to read records that hold texts and conversations as conversations."""

    def asks_in_template(self, config: ConfigDict) -> bool:
        """Returns whether answers are learned, for which questions stand in the chat template."""
        return False

    def check_conversations(self, config: ConfigDict, manifest: dict) -> None:
        """Raises DataError where the store holds texts that no answers could be learned from."""

    def open_store(
        self, config: ConfigDict, tokenizer: Tokenizer, data_hash: str = ''
    ) -> TokenStore | PairStore:
        """Opens the store of an experiment; builds it where it is not in the cache.

        Args:
          config: of the whole experiment.
          tokenizer: of the run.
          data_hash: of the store that a run was started with, which may have been made under
            earlier rules of reading; '': whichever is made today.
        Raises:
          DataError: a text that cannot be read as asked, or one without a single record.
        """
        return self.store_class.open_or_build(
            config.data, tokenizer, config.log.progress, data_hash
        )

    def open_data(
        self, config: ConfigDict, store: TokenStore | PairStore
    ) -> tuple[Rows, Rows | None]:
        """Returns the batches of the training and the held-out split, None where that is empty.

        `config`: of the whole experiment. Raises DataError as `make_batches`.
        """
        training = self.make_batches(store.split('train'), config.data, config.seed)
        held_out = store.split('validation')
        if not len(held_out.tokens):
            return training, None
        return training, self.make_batches(
            held_out, config.data, config.seed, shuffle=self.shuffles_validation
        )


class NextToken(DataObjective):
    """Each next token of packed documents; of conversations, those of the answers only."""

    store_class = TokenStore
    checks = (batches.check, sources.fingerprint)
    shuffles_validation = False
    holds_out_text = True

    def make_batches(self, split, config, seed, shuffle=True):
        return batches.Batches(split, config, seed, shuffle)

    def row_tokens(self, config):
        return config.seq_len

    def row_bytes(self, config):
        return config.seq_len * sum(np.dtype(kind).itemsize for kind in batches.FIELDS.values())

    def blank_batch(self, config):
        shape = config.batch_size, config.seq_len
        return {name: np.zeros(shape, dtype) for name, dtype in batches.FIELDS.items()}

    def stores_whole_texts(self, config):
        return True

    def describe_rows(self, config):
        return f'packing {config["packing"]}'

    def prefer_conversations(self, config):
        if config.source == 'files':
            config.files.prefer = 'conversation'

    def asks_in_template(self, config):
        if config.source == 'atlas':
            return config.atlas.part == 'answers'
        return config.source == 'files' and config.files.prefer == 'conversation'

    def check_conversations(self, config, manifest):
        if not manifest['conversations']:
            raise DataError(
                f'config.data.source is {config.source!r}: post-training needs conversations '
                f'({{"messages"}}, or {{"question", "answer"}} or the like), found texts'
            )


class Contrastive(DataObjective):
    """Pairs of texts that belong together; all others of the batch are what they are told from."""

    store_class = PairStore
    checks = (read_pairs.check, read_pairs.fingerprint)
    # Pairs are each other's negatives: in the store's order a batch is of one text and one kind.
    shuffles_validation = True
    holds_out_text = False

    def make_batches(self, split, config, seed, shuffle=True):
        return pair_batches.PairBatches(split, config, seed, shuffle)

    def row_tokens(self, config):
        documents = 1 + config.pairs.negatives
        return pair_batches.query_len(config) + documents * config.seq_len

    def row_bytes(self, config):
        texts = 2 + config.pairs.negatives  # each has a length and a number beside its tokens
        return np.dtype(np.int32).itemsize * (self.row_tokens(config) + 2 * texts)

    def blank_batch(self, config):
        return pair_batches.blank(config, config.batch_size)

    def stores_whole_texts(self, config):
        return not read_pairs.kinds_to_make(config)  # those that are made are cut from texts

    def describe_rows(self, config):
        return f'pairs {config["pairs"]["kind"]}'


OBJECTIVES: dict[str, DataObjective] = {'tokens': NextToken(), 'contrastive': Contrastive()}


def get_objective(name: str) -> DataObjective:
    """Returns the data half of an objective. Raises DataError where none has this name."""
    if name not in OBJECTIVES:
        raise DataError(
            f'config.train.objective is {name!r}: expected one of {", ".join(OBJECTIVES)}'
        )
    return OBJECTIVES[name]
