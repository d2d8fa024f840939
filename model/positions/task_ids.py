"""Learned embeddings of ids that the data gives: which digit of its number a token is.

Drawn offsets train ids that texts of the training lengths do not have.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec


@dataclasses.dataclass(frozen=True)
class Abacus(PositionalEncoding):
    """x + W[id + k], id the place of a digit in its number as written, from 1.

    k ~ U{0 .. `offsets`} for each document in training and 0 at test; W[0] for what is no digit.
    (The authors draw one k for the whole batch.)
    """

    rows: int = 512
    offsets: int = 99
    spec = Spec(
        'abacus',
        'McLeish et al. 2024, arXiv 2405.17399, section 3',
        shift_invariant=True,
        sees_order=False,
        task_ids='abacus',
        differs=(
            'k is drawn for each document; there for the whole batch (abacus.py:60-63)',
            'k up to 99, as in abacus.py:11; their runs have 100 (crammed-depthrecurrent.yaml:40)',
            '512 rows; 1,024 in abacus.py:11: those beyond the longest id are never read',
            'no LayerNorm of the sum of words and positions (components.py:33-51)',
        ),
    )

    def check(self):
        if not self.least <= self.offsets < self.rows:
            raise ModelError(
                f'config.model.positions_args.offsets is {self.offsets}: expected at least '
                f'{self.least} and less than rows ({self.rows})'
            )

    @property
    def least(self) -> int:
        """The least valid `offsets`."""
        return 0

    @property
    def std(self) -> float:
        """Standard deviation of the table at first, that of the words."""
        return self.dims.width**-0.5

    def embed(self, inputs, x):
        table = inputs.param(
            'table', nn.initializers.normal(self.std), (self.rows, self.dims.width), (None, None)
        )
        ids = inputs.task_ids
        if inputs.row_keys is not None and self.offsets:
            most = self.most(inputs)
            offsets = jax.vmap(_draw_offsets)(inputs.row_keys, inputs.segment_ids, most)
            ids = jnp.where(ids > 0, ids + offsets, 0)
        return x + jnp.take(table, ids, axis=0, mode='fill', fill_value=jnp.nan).astype(x.dtype)

    def most(self, inputs) -> jax.Array:
        """Returns the largest offset of each token's document, int32 [B,T]."""
        return jnp.full_like(inputs.task_ids, self.offsets)


def _draw_offsets(key: jax.Array, segments: jax.Array, most: jax.Array) -> jax.Array:
    """Draws an offset of each document of a row, at its tokens: int32 [T], 0 to `most`."""

    def draw(segment, largest):
        return jax.random.randint(jax.random.fold_in(key, segment), (), 0, largest + 1)

    return jax.vmap(draw)(segments, most)


@dataclasses.dataclass(frozen=True)
class Coupling(Abacus):
    """x + W[id + k]: tokens that belong together share an id, as digits of one significance do.

    The first id is drawn for each document in training and 1 at test. `offsets` -1, the authors'
    rule: k ~ U{0 .. m - the document's largest id}, m = `rows` - 1, so that all that fits is alike
    and no id is above m; in their code the start is U{1 .. max_position - len(answer)} where the
    answer has its units first, else one less, and their table has max_position + 1 rows
    (HanseulJo/position-coupling b9cad94, src/data/addition.py:206,
    scripts/addition/run_coupling.sh). From 0 on: k ~ U{0 .. `offsets`} for any length.
    """

    offsets: int = -1
    spec = Spec(
        'position coupling',
        'Cho et al. 2024, arXiv 2405.20671, section 3',
        shift_invariant=True,
        sees_order=False,
        task_ids='coupling',
        version=2,
        before={'offsets': 100},
        differs=(
            'the table begins at N(0, 1/D), as words do here; there both begin at N(0, '
            '1) (custom_t5_decoder_only.py:845-846)',
            'rows is 512; their runs have 151, one more than the highest id that is '
            'drawn (scripts/addition/run_coupling.sh:6, 55)',
        ),
    )

    @property
    def least(self) -> int:
        return -1

    def most(self, inputs):
        if self.offsets >= 0:
            return super().most(inputs)

        def largest_of_document(ids, segments):
            return jax.ops.segment_max(ids, segments, num_segments=len(ids) + 1)[segments]

        largest = jax.vmap(largest_of_document)(inputs.task_ids, inputs.segment_ids)
        return jnp.maximum(self.rows - 1 - largest, 0)
