"""Position ids that are drawn: randomized positions and PoSE. Each changes the ids of another encoding ('randomized+rope')."""

import builtins
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import ModelError, did_you_mean
from model.positions.base import PositionalEncoding, Spec
from model.sharding import own_context_part

_DRAWS = ('published', 'once')
_TURNS = frozenset({'rotate', 'read'})
_PAIRS = frozenset({'product', 'bias', 'logits', 'mask', 'value'})  # may be of distances


@dataclasses.dataclass(frozen=True)
class Randomized(PositionalEncoding):
    """A document of n tokens gets n ids drawn without replacement from 0 to `range` - 1, in
    ascending order.

    `draw` 'published', as the authors' code does: one draw serves the whole batch in training, and
    what an encoding beside it does decides what is drawn. For embeddings: ids, once. For rotations
    (`rotate` or `read`): ids, anew in each layer. For all others, which are functions of distances
    (ALiBi, T5, FIRE, relative encodings): in each layer n - 1 *distances* drawn from 1 to
    `range` - 1; two tokens k places apart are at the k-th of them, whichever they are, 0 at 0.
    Packed documents share the draw out among their columns; texts of a contrastive objective draw
    for themselves.
    'once': ids, for each document by itself; queries, keys and all layers share them.

    Drawn in training, and at test wherever the caller gives keys, then for each row by itself (the
    authors do; `at_test=False`: only in training, as Li et al. do around FIRE). Without keys, as in
    decoding, the ids are those of one table, of each layer where layers draw, for
    config.model.max_len tokens; a place beyond has none.
    Source: google-deepmind/randomized_positional_encodings, models/positional_encodings.py, lines
    268-300, 470-520 and 589-651; models/transformer.py, lines 201-220.
    """

    range: int = 2048
    at_test: bool = True
    draw: str = 'published'
    spec = Spec(
        'randomized positions',
        "Ruoss et al. 2023, arXiv 2305.16843, section 3; the authors' code",
        shift_invariant=False,
        wraps=True,
        version=2,
        before={'draw': 'once'},
        differs=(
            'at test each row has a draw of its own; there one serves the batch, and a '
            "row's company counts (positional_encodings.py:217-226)",
            'T5, FIRE and their kin get distances as ALiBi does; the authors ran it '
            'with neither (positional_encodings.py:131-143)',
            'distances to earlier tokens alone, as a decoder has; theirs look both ways '
            '(positional_encodings.py:613-651; transformer.py:177-180)',
            'decoding reads the ids of one table: there is none in the code '
            '(positional_encodings.py:196-226)',
        ),
    )

    def check(self):
        if self.range < self.dims.max_len:
            raise ModelError(
                f'config.model.positions_args.range is {self.range}: shorter than the longest text '
                f'(config.model.max_len is {self.dims.max_len}); expected at least that'
            )
        if self.draw not in _DRAWS:
            raise ModelError(
                f'config.model.positions_args.draw is {self.draw!r}: {did_you_mean(self.draw, _DRAWS)}'
            )

    @property
    def drawn_at_test(self):
        return self.at_test

    @property
    def num_ids(self):
        return self.range

    def position_ids(self, inputs):
        if inputs.row_keys is None and not self.at_test:
            return inputs.q_ids
        keys = inputs.row_keys
        if inputs.batch_key is not None and self.draw == 'published':
            keys = inputs.batch_key[None]
        return self._ids(inputs.q_ids, inputs.segment_ids, keys)

    def bends_distances(self, beside):
        return self.draw == 'published' and bool(beside & _PAIRS) and not beside & _TURNS

    def redraw(self, inputs, layer, beside):
        if self.draw == 'once' or not beside & (_PAIRS | _TURNS):
            return inputs
        if inputs.row_keys is None and not self.at_test:
            return inputs
        # What was drawn once for the model, and what this layer draws, of all keys and of queries.
        apart, whole = self.bends_distances(beside), (inputs.k_positions, inputs.k_segment_ids)
        keys = of_layer = None
        if inputs.draw_keys is not None:
            keys = inputs.draw_keys if inputs.batch_key is None else inputs.batch_key[None]
            of_layer = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 1), layer))(
                keys
            )
        once, here = self._ids(*whole, keys), self._ids(*whole, of_layer, layer, apart)
        if keys is None:
            own = inputs.positions, inputs.segment_ids
            once_q, here_q = self._ids(*own, None), self._ids(*own, None, layer, apart)
        else:
            once_q, here_q = own_context_part(once, 1), own_context_part(here, 1)
        # What moved the ids after they were drawn moves these, too.
        moved_q, moved_k = inputs.q_ids - once_q, inputs.k_ids - once
        new = dataclasses.replace(inputs, q_ids=here_q + moved_q, k_ids=here + moved_k)
        if not apart:
            return new
        if keys is None:
            table, start = self._table(layer, apart)[None], 0
        else:
            table, start = here, own_context_part(_starts(inputs.k_segment_ids), 1)[:, :, None]

        def distances(inputs):
            """The distance that was drawn for the difference of places, int32 [B,T,S]."""
            places = inputs.positions[:, :, None] - inputs.k_positions[:, None, :]
            index = jnp.minimum(start + abs(places), table.shape[1] - 1)
            rows = jnp.broadcast_to(table, (len(index), table.shape[1]))
            found = jnp.take_along_axis(rows, index.reshape(len(index), -1), axis=1)
            found = found.reshape(index.shape) * jnp.sign(places)
            return found + moved_q[:, :, None] - moved_k[:, None, :]

        return dataclasses.replace(new, distances=distances)

    def _ids(self, places, segments, keys, layer=None, apart=False):
        """Returns ids of tokens at `places` of documents, int32 [B,T].

        Args:
          places, segments: [B,T] int32.
          keys: [B] PRNG keys, or [1] of the whole batch; None: the ids of a table.
          layer: that draws them; None: the model.
          apart: they are distances from a document's first token, which is at 0.
        """
        if keys is None:
            table = self._table(layer, apart)
            return jnp.take(table, places, mode='fill', fill_value=-1)
        length, most = segments.shape[1], self.range - apart

        def drawn(key):
            found = jax.random.permutation(key, most)[:length] + apart
            none_left = (0, length - found.shape[0])  # for a longer row
            return jnp.pad(found, none_left, constant_values=-1)

        def row(drawn, segments):
            first = _first(segments)
            drawn = jnp.where(first & apart, 0, drawn)
            block = jnp.cumsum(first) - 1
            return drawn[jnp.lexsort((drawn, block))].astype(jnp.int32)

        found = jnp.broadcast_to(jax.vmap(drawn)(keys), segments.shape)
        return jax.vmap(row)(found, segments)

    def _table(self, layer, apart):
        """Returns the ids of places where nothing is drawn, int32 [max_len]."""

        def of(number):
            rng, most = np.random.default_rng(number), self.dims.max_len
            if apart:
                found = 1 + rng.choice(self.range - 1, most - 1, replace=False)
                return np.concatenate([[0], np.sort(found)])
            return np.sort(rng.choice(self.range, most, replace=False))

        if layer is None:
            return jnp.asarray(of(0), jnp.int32)
        if isinstance(layer, int):
            return jnp.asarray(of(1 + layer), jnp.int32)
        tables = np.stack([of(1 + number) for number in builtins.range(self.dims.num_layers)])
        return jnp.asarray(tables, jnp.int32)[layer]


def _first(segments: jax.Array) -> jax.Array:
    """segments [T] -> where a document, or padding, begins, bool [T]."""
    begins = segments[1:] != segments[:-1]
    return jnp.concatenate([jnp.ones(1, bool), begins])


def _starts(segments: jax.Array) -> jax.Array:
    """segments [B,T] -> the column where the document of each token begins, int32 [B,T]."""
    columns = jnp.arange(segments.shape[1], dtype=jnp.int32)
    begins = jnp.where(jax.vmap(_first)(segments), columns, 0)
    return jax.lax.cummax(begins, axis=1)


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

    def position_ids(self, inputs):
        if inputs.row_keys is None:
            return inputs.q_ids
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

        return jax.vmap(row)(inputs.row_keys, inputs.q_ids, inputs.segment_ids)
