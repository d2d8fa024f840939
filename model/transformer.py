"""The decoder: embedding + positions -> blocks (attention, feed-forward) -> norm -> logits.

Dimensions: B batch, T time, S keys, D width, V vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.attention import Attention, Cache, Parameters, TokenLayout
from model.config import ModelConfig
from model.errors import ModelError
from model.kernels import stored
from model.layers import Bag, FeedForward, Norm, dropout, fan_in, multiply, widen
from model.mixing import WindowMixing
from model.positions import EncodingInputs, PositionalEncoding
from model.sharding import (
    constrain,
    context_parts,
    gather_context,
    gather_weight,
    own_context_part,
    with_axes,
)

# {'layers': [Cache of each layer], 'positions', 'ids', 'segment_ids': [B,S], 'column': scalar}
CacheState = dict[str, Any]

_TABLE_AXES = ('vocab', 'embed')
_OUTPUT_AXES = ('embed', 'vocab')


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) (pre-norm).

    `config.residual` may put the norms behind the two, or the two beside each other;
    `config.mixing` something else in attention's place, or nothing.
    """

    config: ModelConfig
    encoding: PositionalEncoding

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        layout: TokenLayout,
        shared: Any,
        layer: int | jax.Array,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns the residual stream after one layer, [B,T,D], and its cache (see `Attention`)."""
        cfg = self.config
        before_BxTxD = x_BxTxD

        # Each dropout of the model has a number of its own: 0 is the embedding's.
        if cfg.mixing != 'none':
            if cfg.mixing == 'attention':
                y_BxTxD = self._norm(x_BxTxD, 'attention_norm', 'before')
                attention = Attention(cfg, self.encoding, name='attention')
                y_BxTxD, cache = attention(y_BxTxD, layout, shared, cache, layer)
                y_BxTxD = self._norm(y_BxTxD, 'attention_norm', 'after')
            else:
                y_BxTxD = self._norm(x_BxTxD, 'mixing_norm', 'before')
                y_BxTxD, cache = WindowMixing(cfg, name='mixing')(y_BxTxD, layout, cache)
                y_BxTxD = self._norm(y_BxTxD, 'mixing_norm', 'after')
            y_BxTxD = dropout(y_BxTxD, cfg.dropout, layout.row_keys, 2 * layer + 1)
            x_BxTxD = constrain(x_BxTxD + y_BxTxD, 'batch', None, None)

        # Beside attention it reads what attention read; else what attention has written to.
        read_BxTxD = before_BxTxD if cfg.residual == 'parallel' else x_BxTxD
        y_BxTxD = self._norm(read_BxTxD, 'feed_forward_norm', 'before')
        y_BxTxD = FeedForward(cfg, name='feed_forward')(y_BxTxD)
        y_BxTxD = self._norm(y_BxTxD, 'feed_forward_norm', 'after')
        y_BxTxD = dropout(y_BxTxD, cfg.dropout, layout.row_keys, 2 * layer + 2)
        return constrain(x_BxTxD + y_BxTxD, 'batch', None, None), cache

    def _norm(self, x_BxTxD: jax.Array, name: str, place: str) -> jax.Array:
        """Returns x normalised, where that is the place of the norm of this name."""
        cfg = self.config
        if place != ('after' if cfg.residual == 'post_norm' else 'before'):
            return x_BxTxD
        return Norm(cfg.norm, cfg.norm_eps, name=name)(x_BxTxD)


class Group(nn.Module):
    """The layers of one period of the pattern of encodings: compiled once and looped over."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, layout: TokenLayout, shared: list, group: jax.Array
    ) -> tuple[jax.Array, None]:
        """Returns the residual stream after the layers of a group, and nothing for `nn.scan`.

        Args:
          shared: for each of `ModelConfig.distinct`, what its layers share.
          group: number of the group, counted from 0.
        """
        cfg = self.config
        block = _block(cfg)
        for i in range(cfg.period):
            encoding = cfg.encodings[i]
            x_BxTxD, _ = block(cfg, encoding, name=f'layer_{i}')(
                x_BxTxD, layout, shared[cfg.distinct.index(encoding)], group * cfg.period + i
            )
        return x_BxTxD, None


# What the backward pass finds stored, by names of `checkpoint_name`; the rest is computed again.
_POLICIES = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'attention': jax.checkpoint_policies.save_only_these_names(
        'attention_residuals', 'attention_out'
    ),
    'minimal': jax.checkpoint_policies.save_only_these_names(
        'attention_residuals', 'attention_out', 'query', 'key', 'value', 'up', 'gate'
    ),
}


def _block(config: ModelConfig) -> type[Block]:
    """Returns Block under the remat policy, which says what of it the forward pass stores.

    none: everything. full: only its input. attention: also what attention gave, inside a kernel and
    after its projection. minimal: also queries, keys, values and the projections of the hidden
    layer, so that only elementwise parts are computed again, and attention itself where it is not
    a kernel's.
    """
    if config.remat == 'none':
        return Block
    return nn.remat(Block, policy=_POLICIES[config.remat], prevent_cse=not config.scan_layers)


class Transformer(nn.Module):
    """A decoder, or an encoder where `config.causal` is False.

    Attributes:
      training: with it `row_keys` are for all that is random; without, as in any evaluation, only
        for ids that an encoding draws at test, too.
    """

    config: ModelConfig
    training: bool = False

    @nn.compact
    def __call__(  # noqa: PLR0913  (the signature of a flax module is its batch)
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        ids: jax.Array | None = None,
        *,
        row_keys: jax.Array | None = None,
        batch_key: jax.Array | None = None,
        cache: CacheState | None = None,
        logits: bool = True,
    ) -> tuple[jax.Array, CacheState | None]:
        """Returns logits of the next token.

        Args:
          tokens, positions, segment_ids: [B,T] int32; positions restart in each segment, segment 0
            is padding.
          ids: [B,T] int32, position ids that the data gives, for encodings that ask for them.
          row_keys: [B] PRNG keys, for dropout and what encodings draw (see `training`); None:
            nothing is random.
          batch_key: a PRNG key, for what is drawn once for the whole batch; None: for each row.
          cache: from `empty_cache`; then the tokens come after those it holds (unrolled layers
            only).
          logits: False: stop before them, for `unembed`.
        Returns:
          logits [B,T,V] float32, or the hidden states that they are made of, [B,T,D]; and the cache
          with the new tokens in it.
        Raises:
          ModelError: position ids that the data does not give, or a cache with scanned layers.
        """
        cfg = self.config
        keys = (row_keys, batch_key)
        layout, cache = self._lay_out(positions, segment_ids, ids, keys, cache)

        # 1. Tokens to vectors. Gathered before the lookup: a gather from a table sharded over two
        #    automatic axes aborts XLA.
        table_VxD = self.param(
            'embedding',
            with_axes(nn.initializers.normal(cfg.width**-0.5), _TABLE_AXES),
            (cfg.vocab_size, cfg.width),
            jnp.dtype(cfg.param_dtype),
        )
        scale_Vx1: jax.Array | None = self.get_variable('params', 'embedding_scale')
        x_BxTxD = look_up(table_VxD, scale_Vx1, tokens, cfg.dtype)
        if cfg.scale_embedding:  # Vaswani et al. 2017, arXiv 1706.03762, section 3.4
            x_BxTxD = x_BxTxD * jnp.asarray(cfg.width**0.5, x_BxTxD.dtype)
        if cfg.embedding_norm:
            x_BxTxD = Norm(cfg.norm, cfg.norm_eps, name='embedding_norm')(x_BxTxD)

        # 2. Positions, where an encoding adds them to the embedding or has something that all
        #    layers share.
        x_BxTxD, shared = self._embed_positions(x_BxTxD, layout)
        x_BxTxD = dropout(x_BxTxD, cfg.dropout, layout.row_keys, 0)
        x_BxTxD = constrain(x_BxTxD, 'batch', None, None)

        # 3. The layers: scanned, which compiles one period of the pattern, or one after another.
        if cfg.scan_layers:
            if cache is not None:
                raise ModelError(
                    'a cache needs unrolled layers: use `unroll_layers` (model/generate.py)'
                )
            x_BxTxD = self._scan_layers(x_BxTxD, layout, shared)
        else:
            block = _block(cfg)
            for i, encoding in enumerate(cfg.encodings):
                old = None if cache is None else cache['layers'][i]
                x_BxTxD, new = block(cfg, encoding, name=f'layer_{i}')(
                    x_BxTxD, layout, shared[cfg.distinct.index(encoding)], i, old
                )
                if cache is not None:
                    cache['layers'][i] = new
        x_BxTxD = Norm(cfg.norm, cfg.norm_eps, name='final_norm')(x_BxTxD)

        # 4. Parameters that belong to the model, though the loss and model/embed.py apply them.
        if cfg.logit_scale:  # the logarithm (Radford et al. 2021, arXiv 2103.00020, section 2.5)
            initial_scale = nn.initializers.constant(math.log(20))
            self.param('logit_scale', initial_scale, (), jnp.dtype(cfg.param_dtype))
        if cfg.bag and self.is_initializing():
            Bag(cfg, name='bag')(tokens, segment_ids > 0)

        # 5. Logits, unless the caller makes them itself, as the loss does in chunks (`unembed`).
        if cfg.tied:
            output = gather_weight(widen(table_VxD, scale_Vx1, cfg.dtype), _TABLE_AXES)
        else:
            shape = (cfg.width, cfg.vocab_size)
            init = fan_in(1.0, 'fan_in', 'normal')
            output = cfg.weight(shape, _OUTPUT_AXES, init, 'output')()
        if not logits:
            return x_BxTxD, cache
        return unembed(x_BxTxD, output, cfg.tied), cache

    def _embed_positions(self, x_BxTxD: jax.Array, layout: TokenLayout) -> tuple[jax.Array, list]:
        """Returns the embeddings with positions in them, and what layers share, by encoding."""
        cfg = self.config

        # A token without an id (beyond config.model.max_len, or what ids are drawn from) must not
        # pass for one that has it: its outputs are no numbers. In training the lengths are checked.
        if not self.training and any('position_ids' in part.enters() for part in cfg.parts):
            lacks_id = (layout.ids < 0) & (layout.segment_ids > 0)
            x_BxTxD = jnp.where(lacks_id[..., None], jnp.nan, x_BxTxD)

        # Each part once, though it may stand in many layers, with parameters in a scope of its own.
        shared_by_part = {}
        for part, scope in zip(cfg.parts, cfg.scopes):
            inputs = layout.encoding_inputs(Parameters(cfg.param_dtype, name=scope))
            x_BxTxD = part.embed(inputs, x_BxTxD)
            shared_by_part[part] = stored(part.share(inputs))
        return x_BxTxD, [encoding.collect_shared(shared_by_part) for encoding in cfg.distinct]

    def _scan_layers(self, x_BxTxD: jax.Array, layout: TokenLayout, shared: list) -> jax.Array:
        """Returns the residual stream after all layers, in a loop over groups of one period."""
        cfg = self.config
        groups = cfg.num_layers // cfg.period
        layers = nn.scan(
            Group,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            length=groups,
            in_axes=(nn.broadcast, nn.broadcast, 0),
            metadata_params={nn.PARTITION_NAME: None},
        )
        x_BxTxD, _ = layers(cfg, name='layers')(x_BxTxD, layout, shared, jnp.arange(groups))
        return x_BxTxD

    def _lay_out(
        self,
        positions: jax.Array,
        segment_ids: jax.Array,
        task_ids: jax.Array | None,
        keys: tuple[jax.Array | None, jax.Array | None],
        cache: CacheState | None,
    ) -> tuple[TokenLayout, CacheState | None]:
        """Returns the layout of the tokens, and the cache with them entered; `keys`: row, batch."""
        cfg = self.config
        row_keys, batch_key = keys if self.training else (None, None)
        draws_at_test = any(part.drawn_at_test for part in cfg.parts)
        draw_keys = keys[0] if self.training or draws_at_test else None

        # Each device has its part of the context, and every part needs the ids of all keys.
        k_positions = gather_context(positions, 1)
        k_segment_ids = gather_context(segment_ids, 1)
        k_task_ids = None if task_ids is None else gather_context(task_ids, 1)
        k_ids = self._position_ids(k_positions, k_segment_ids, k_task_ids, draw_keys, batch_key)
        ids = own_context_part(k_ids, 1)

        # Where ids count up with the columns, distances are the same for all rows, which saves an
        # array [B,T,S]. With a cache the keys are those of all its columns, unless it was empty.
        changes_ids = any('position_ids' in part.enters() for part in cfg.parts)
        has_earlier = cache is not None and bool(cache['layers'][0])
        consecutive = not has_earlier and context_parts() == 1 and not changes_ids
        column = None
        columns = 0
        if cache is not None:
            column = cache['column']
            columns = cache['segment_ids'].shape[1]
            cache = _enter(cache, positions, ids, segment_ids)
        if cache is not None and has_earlier:
            k_positions = cache['positions']
            k_segment_ids = cache['segment_ids']
            k_ids = cache['ids']

        layout = TokenLayout(
            positions=positions,
            segment_ids=segment_ids,
            ids=ids,
            k_positions=k_positions,
            k_segment_ids=k_segment_ids,
            k_ids=k_ids,
            row_keys=row_keys,
            task_ids=task_ids,
            consecutive=consecutive,
            draw_keys=draw_keys,
            batch_key=batch_key,
            column=column,
            columns=columns,
        )
        return layout, cache

    def _position_ids(
        self,
        positions: jax.Array,
        segment_ids: jax.Array,
        task_ids: jax.Array | None,
        row_keys: jax.Array | None,
        batch_key: jax.Array | None,
    ) -> jax.Array:
        """Returns the ids that encodings see: each part changes those of the parts before it."""
        ids = positions
        for part in self.config.parts:
            if part.spec.task_ids and task_ids is None:
                raise ModelError(
                    f'{part.spec.title} needs position ids from the data ({part.spec.task_ids!r}): '
                    f'this data gives none'
                )
            inputs = EncodingInputs(
                param=None,
                q_ids=ids,
                positions=positions,
                segment_ids=segment_ids,
                row_keys=row_keys if self.training or part.drawn_at_test else None,
                task_ids=task_ids,
                batch_key=batch_key,
            )
            ids = part.position_ids(inputs)
        return ids


def _enter(
    cache: CacheState, positions: jax.Array, ids: jax.Array, segment_ids: jax.Array
) -> CacheState:
    """Returns the cache with new tokens in its next columns; layers add their keys themselves."""
    column = cache['column']
    updated: CacheState = {'layers': list(cache['layers'])}
    for name, x in (('positions', positions), ('ids', ids), ('segment_ids', segment_ids)):
        new = x.astype(cache[name].dtype)
        updated[name] = jax.lax.dynamic_update_slice_in_dim(cache[name], new, column, 1)
    updated['column'] = column + positions.shape[1]
    return updated


def make_row_keys(rows: jax.Array, seed: int | jax.Array = 0) -> jax.Array:
    """Returns PRNG keys [B] for the rows of an evaluation, from their numbers [B].

    What a row draws does so not depend on the batch that it is in.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed, impl='threefry2x32'), rows)


def look_up(table_VxD: jax.Array, scale_Vx1: jax.Array | None, tokens: jax.Array, dtype):
    """Returns the vectors of tokens [B,T], [B,T,D]; of a table in int8 only these are widened."""
    if scale_Vx1 is None:
        table_VxD = gather_weight(table_VxD.astype(dtype), _TABLE_AXES, whole=True)
        return jnp.take(table_VxD, tokens, axis=0)
    rows_BxTxD = jnp.take(constrain(table_VxD, None, None), tokens, axis=0)
    return widen(rows_BxTxD, jnp.take(scale_Vx1, tokens, axis=0), dtype)


def output_matrix(config: ModelConfig, params) -> jax.Array:
    """Returns the matrix of the logits, in the dtype of computation and gathered over `fsdp`."""
    if config.tied:
        table_VxD = widen(params['embedding'], params.get('embedding_scale'), config.dtype)
        return gather_weight(table_VxD, _TABLE_AXES)
    weight = params['output']
    output_DxV = widen(weight['kernel'], weight.get('kernel_scale'), config.dtype)
    return gather_weight(output_DxV, _OUTPUT_AXES)


def unembed(x_BxTxD: jax.Array, output: jax.Array, tied: bool) -> jax.Array:
    """Returns logits [B,T,V] float32 of what `Transformer` gives with `logits=False`.

    Args:
      x_BxTxD: hidden states of any part of the tokens.
      output: from `output_matrix`, [V,D] where `tied`, else [D,V].
    """
    return multiply(x_BxTxD, output, _TABLE_AXES if tied else _OUTPUT_AXES, tied, jnp.float32)
