"""How the step calls a loss, and the loss of tokens; that of pairs is in train/contrastive.py.

Losses are sums over what a device sees, so that shards and microbatches add up exactly.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
from jax.sharding import Mesh

from model.kernels import platform
from model.loss import choose_chunks, loss_in_chunks, weighted_token_loss
from model.transformer import Transformer, output_matrix, unembed

Sums = dict[str, jax.Array]  # float32 scalars, 'nll' and 'weight' among them


@dataclasses.dataclass(frozen=True)
class LossContext:
    """How a loss is computed inside the step.

    mesh: of all devices. axes: those of its axes that are cut and that the step handles itself:
    what a device sees is its own part along them. accumulation: microbatches of the batch.
    row_keys: PRNG keys [b] of the rows, batch_key that of the whole batch; None: nothing is drawn.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    accumulation: int = 1
    row_keys: jax.Array | None = None
    batch_key: jax.Array | None = None


class Loss(Protocol):
    """Maps a batch to (sum to minimise, sums to report), each over this device's part of it."""

    # Whether it must see the whole batch at once; else the step gives it microbatches.
    takes_whole_batch: ClassVar[bool]

    def __call__(
        self, model: Transformer, params: Any, batch: dict, context: LossContext
    ) -> tuple[jax.Array, Sums]: ...


def model_inputs(batch: dict) -> tuple:
    """Returns what the model sees of a batch, in the order of its arguments.

    `ids` are there where the data gives position ids.
    """
    return batch['tokens'], batch['positions'], batch['segment_ids'], batch.get('ids')


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """A loss of logits, summed over tokens; the logits in chunks where they would be large.

    of_logits: (logits [b,T,V], batch) -> (sum to minimise, sums to report).
    chunks: parts of the columns whose logits are held at one time; 0: as many as memory asks for.
    """

    takes_whole_batch: ClassVar[bool] = False

    of_logits: Callable[..., tuple[jax.Array, Sums]] = weighted_token_loss
    chunks: int = 0

    def __call__(
        self, model: Transformer, params: Any, batch: dict, context: LossContext
    ) -> tuple[jax.Array, Sums]:
        hidden, _ = model.apply(
            {'params': params},
            *model_inputs(batch),
            logits=False,
            row_keys=context.row_keys,
            batch_key=context.batch_key,
        )

        # Logits are the largest array of the step: a device holds at most a few GiB of them.
        vocab_size = model.config.vocab_size
        rows, columns = batch['tokens'].shape
        cut_over = context.mesh.shape['fsdp']
        if vocab_size % context.mesh.shape['tensor'] == 0:
            cut_over *= context.mesh.shape['tensor']
        logits_bytes = 4 * rows * columns * vocab_size // cut_over
        chunks = choose_chunks(columns, logits_bytes, self.chunks, platform() == 'tpu')

        output = output_matrix(model.config, params)  # gathered once for all chunks

        def logits_of(hidden_bxTxD, output):
            return unembed(hidden_bxTxD, output, model.config.tied)

        return loss_in_chunks(self.of_logits, logits_of, hidden, output, batch, chunks)
