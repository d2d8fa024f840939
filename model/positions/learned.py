"""Learned absolute position embeddings (GPT-2: Radford et al. 2019)."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from model.positions.base import PositionalEncoding, Spec


@dataclasses.dataclass(frozen=True)
class Learned(PositionalEncoding):
    """x + W[p], W [max_len, D] ~ N(0, std^2).

    Where ids are drawn W has a row for each that may be (Ruoss et al. 2023). An id beyond has no
    row: NaN, never a clamped neighbour's.
    """

    std: float = 0.01
    spec = Spec(
        'learned',
        'Radford et al. 2019 (GPT-2)',
        shift_invariant=False,
        limited=True,
        version=2,
        before={'std': 0.02},
        differs=(
            'words begin at N(0, 1/D) in this model, not N(0, .02^2): positions weigh '
            'less beside them than in GPT-2 (model.py:152-155)',
            'Kazemnejad et al. begin at N(0, 1), as their words do '
            '(custom_t5_decoder_only.py:683-685)',
        ),
    )

    def embed(self, inputs, x):
        table = inputs.param(
            'table',
            nn.initializers.normal(self.std),
            (self.dims.num_ids, self.dims.width),
            (None, None),
        )
        rows = jnp.take(table, inputs.q_ids, axis=0, mode='fill', fill_value=jnp.nan)
        return x + rows.astype(x.dtype)
