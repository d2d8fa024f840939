"""Position ids that are drawn: randomized positions and PoSE.

Each changes the ids of another encoding ('randomized+rope').
"""

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
    """Draws n ids for a document of n tokens, from 0 to `range` - 1.

    Without replacement, and in ascending order. `draw` 'published', as the authors' code does: one
    draw serves the whole batch in training, and what an encoding beside it does decides what is
    drawn. For embeddings: ids, once. For rotations (`rotate` or `read`): ids, anew in each layer.
    For all others, which are functions of distances (ALiBi, T5, FIRE, relative encodings): in each
    layer n - 1 *distances* drawn from 1 to `range` - 1; two tokens k places apart are at the k-th
    of them, whichever they are, 0 at 0. Packed documents share the draw out among their columns;
    texts of a contrastive objective draw for themselves. 'once': ids, for each document by itself;
    queries, keys and all layers share them.

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
                f'config.model.positions_args.draw is {self.draw!r}: '
                f'{did_you_mean(self.draw, _DRAWS)}'
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
        apart = self.bends_distances(beside)

        # Ids of all keys: those that were drawn once for the model, and those of this layer.
        keys = None
        layer_keys = None
        if inputs.draw_keys is not None:
            keys = inputs.draw_keys if inputs.batch_key is None else inputs.batch_key[None]
            layer_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
            layer_keys = jax.vmap(jax.random.fold_in, (0, None))(layer_keys, layer)
        k_positions = inputs.k_positions
        k_segment_ids = inputs.k_segment_ids
        once_k = self._ids(k_positions, k_segment_ids, keys)
        here_k = self._ids(k_positions, k_segment_ids, layer_keys, layer, apart)

        # And of queries, which are among the keys of the same call where anything is drawn.
        if keys is None:
            once_q = self._ids(inputs.positions, inputs.segment_ids, None)
            here_q = self._ids(inputs.positions, inputs.segment_ids, None, layer, apart)
        else:
            once_q = own_context_part(once_k, 1)
            here_q = own_context_part(here_k, 1)

        # Ids may have been moved after they were drawn: these are moved by as much.
        moved_q = inputs.q_ids - once_q
        moved_k = inputs.k_ids - once_k
        new = dataclasses.replace(inputs, q_ids=here_q + moved_q, k_ids=here_k + moved_k)
        if not apart:
            return new

        # Distances are looked up from where the document begins in what was drawn.
        if keys is None:
            table = self._table(layer, apart)[None]
            start = 0
        else:
            table = here_k
            start = own_context_part(_starts(k_segment_ids), 1)[:, :, None]

        def distances(inputs):
            """Returns what was drawn for each difference of places, int32 [B,T,S]."""
            places = inputs.positions[:, :, None] - inputs.k_positions[:, None, :]
            index = jnp.minimum(start + abs(places), table.shape[1] - 1)
            rows = jnp.broadcast_to(table, (len(index), table.shape[1]))
            drawn = jnp.take_along_axis(rows, index.reshape(len(index), -1), axis=1)
            signed = drawn.reshape(index.shape) * jnp.sign(places)
            return signed + moved_q[:, :, None] - moved_k[:, None, :]

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
        length = segments.shape[1]

        def draw(key):
            """Without replacement, in any order; -1 where a longer row has none left."""
            ids = jax.random.permutation(key, self.range - apart)[:length] + apart
            return jnp.pad(ids, (0, length - ids.shape[0]), constant_values=-1)

        def sort_in_documents(ids, segments):
            first = _first(segments)
            ids = jnp.where(first & apart, 0, ids)
            document = jnp.cumsum(first) - 1
            return ids[jnp.lexsort((ids, document))].astype(jnp.int32)

        drawn = jnp.broadcast_to(jax.vmap(draw)(keys), segments.shape)
        return jax.vmap(sort_in_documents)(drawn, segments)

    def _table(self, layer, apart):
        """Returns the ids of places where nothing is drawn, int32 [max_len]."""

        def make_table(seed):
            rng = np.random.default_rng(seed)
            places = self.dims.max_len
            if apart:
                distances = 1 + rng.choice(self.range - 1, places - 1, replace=False)
                return np.concatenate([[0], np.sort(distances)])
            return np.sort(rng.choice(self.range, places, replace=False))

        if layer is None:
            return jnp.asarray(make_table(0), jnp.int32)
        if isinstance(layer, int):
            return jnp.asarray(make_table(1 + layer), jnp.int32)
        # Of a scanned layer the number is traced: it picks from the tables of all.
        tables = np.stack([make_table(1 + i) for i in builtins.range(self.dims.num_layers)])
        return jnp.asarray(tables, jnp.int32)[layer]


def _first(segments: jax.Array) -> jax.Array:
    """Returns where a document, or padding, begins in segments [T], bool [T]."""
    begins = segments[1:] != segments[:-1]
    return jnp.concatenate([jnp.ones(1, bool), begins])


def _starts(segments: jax.Array) -> jax.Array:
    """Returns the column where the document of each token begins, int32 [B,T]."""
    columns = jnp.arange(segments.shape[1], dtype=jnp.int32)
    begins = jnp.where(jax.vmap(_first)(segments), columns, 0)
    return jax.lax.cummax(begins, axis=1)


@dataclasses.dataclass(frozen=True)
class Pose(PositionalEncoding):
    """Cuts the ids of a document in two, and moves the second part ahead.

    In training the cut is drawn from the first half of the document, the distance from 0 to
    `target` - n: ids cover the target length while texts stay short. Otherwise ids are as they
    were. (The authors also take the second part from elsewhere in the text.)
    """

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
                f'config.model.positions_args.target is {self.target}: expected at least the '
                f'length of training ({self.dims.trained})'
            )

    @property
    def num_ids(self):
        return max(self.target, self.dims.max_len)

    def position_ids(self, inputs):
        if inputs.row_keys is None:
            return inputs.q_ids
        target = self.target or self.dims.max_len

        def skip_in_row(key, positions, segments):
            def draw(number):
                """Returns a uniform number of each document, at each of its tokens."""
                number_key = jax.random.fold_in(key, number)
                return jax.vmap(lambda s: jax.random.uniform(jax.random.fold_in(number_key, s)))(
                    segments
                )

            # Tokens of the document, at each of them.
            n = jax.vmap(lambda s: jnp.where(segments == s, positions, 0).max())(segments) + 1
            cut = 1 + (draw(0) * ((n + 1) // 2)).astype(jnp.int32)
            skip = (draw(1) * jnp.maximum(target - n + 1, 1)).astype(jnp.int32)
            return jnp.where(positions >= cut, positions + skip, positions)

        return jax.vmap(skip_in_row)(inputs.row_keys, inputs.q_ids, inputs.segment_ids)
