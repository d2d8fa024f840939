"""Position ids that are drawn: randomized positions and PoSE. Each changes the ids of another encoding ('randomized+rope')."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec


@dataclasses.dataclass(frozen=True)
class Randomized(PositionalEncoding):
    """A document of n tokens gets n ids drawn without replacement from 0 to `range` - 1, in ascending order; queries and keys, and
    all layers, share the draw.

    Drawn in training, and at test wherever the caller gives keys (the authors do; `at_test=False`: only in training, as Li et al. do
    around FIRE). Without keys, as in decoding, the ids are those of one table for config.model.max_len tokens; a place beyond has none.
    """

    range: int = 2048
    at_test: bool = True
    spec = Spec(
        'randomized positions',
        'Ruoss et al. 2023, arXiv 2305.16843, section 3',
        shift_invariant=False,
        wraps=True,
    )

    def check(self):
        if self.range < self.dims.max_len:
            raise ModelError(
                f'config.model.positions_args.range is {self.range}: shorter than the longest text '
                f'(config.model.max_len is {self.dims.max_len}); expected at least that'
            )

    @property
    def drawn_at_test(self):
        return self.at_test

    @property
    def num_ids(self):
        return self.range

    def position_ids(self, site):
        if site.row_keys is None:
            if not self.at_test:
                return site.q_positions
            table = np.sort(
                np.random.default_rng(0).choice(self.range, self.dims.max_len, replace=False)
            )
            return jnp.take(
                jnp.asarray(table, jnp.int32), site.q_positions, mode='fill', fill_value=-1
            )

        def row(key, segments):
            drawn = jax.random.permutation(key, self.range)[: segments.shape[0]]
            drawn = jnp.pad(
                drawn, (0, segments.shape[0] - drawn.shape[0]), constant_values=-1
            )  # none are left for a longer row
            block = jnp.cumsum(
                jnp.concatenate(
                    [jnp.zeros(1, jnp.int32), (segments[1:] != segments[:-1]).astype(jnp.int32)]
                )
            )
            return drawn[jnp.lexsort((drawn, block))].astype(jnp.int32)

        return jax.vmap(row)(site.row_keys, site.segment_ids)


@dataclasses.dataclass(frozen=True)
class Pose(PositionalEncoding):
    """In training the ids of a document are cut in two, at a place drawn from its first half, and the second part moves ahead by a
    distance drawn from 0 to `target` - n: ids cover the target length while texts stay short. Otherwise ids are as they were. (The
    authors also take the second part from elsewhere in the text.)"""

    target: int = 0
    spec = Spec(
        'PoSE',
        'Zhu et al. 2024, arXiv 2309.10400, section 3.2',
        shift_invariant=True,
        wraps=True,
        differs=(
            'the second part follows the first in the text; there it comes from '
            'elsewhere in it (train_pose.py:168-172)',
            'frequencies stay; their runs stretch RoPE besides (train_pose.py:218-221; '
            'beside yarn and its kin)',
        ),
    )

    def check(self):
        if self.target and self.target < self.dims.trained:
            raise ModelError(
                f'config.model.positions_args.target is {self.target}: expected at least the length of training '
                f'({self.dims.trained})'
            )

    @property
    def num_ids(self):
        return max(self.target, self.dims.max_len)

    def position_ids(self, site):
        if site.row_keys is None:
            return site.q_positions
        target = self.target or self.dims.max_len

        def row(key, positions, segments):
            last = (
                jax.vmap(lambda s: jnp.where(segments == s, positions, 0).max())(segments) + 1
            )  # n, at each of its tokens
            draw = lambda what: jax.vmap(
                lambda s: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, what), s))
            )(segments)
            cut = 1 + (draw(0) * ((last + 1) // 2)).astype(jnp.int32)
            skip = (draw(1) * jnp.maximum(target - last + 1, 1)).astype(jnp.int32)
            return jnp.where(positions >= cut, positions + skip, positions)

        return jax.vmap(row)(site.row_keys, site.q_positions, site.segment_ids)
