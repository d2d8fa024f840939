"""The decoder: embed + positions -> blocks (attention with positions, feed-forward) -> norm -> logits.

Dimensions: B batch, T time, S keys, D width, V vocabulary.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.attention import Attention, Cache, Parameters, TokenLayout
from model.config import ModelConfig
from model.errors import ModelError
from model.layers import Bag, FeedForward, Norm, dropout, fan_in
from model.positions import EncodingInputs, PositionalEncoding
from model.sharding import constrain, context_parts, gather_context, own_context_part

CacheState = dict  # {'layers': [Cache of each layer], 'positions', 'ids', 'segment_ids': [B,S], 'column': scalar}


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) (pre-norm)."""

    config: ModelConfig
    encoding: PositionalEncoding

    @nn.compact
    def __call__(self, x_BxTxD, layout: TokenLayout, shared, layer, cache: Cache | None = None):
        c, drop = (
            self.config,
            lambda x, i: dropout(x, self.config.dropout, layout.row_keys, 2 * layer + i),
        )
        y, cache = Attention(c, self.encoding, name='attention')(
            Norm(c.norm, name='attention_norm')(x_BxTxD), layout, shared, cache, layer
        )
        x_BxTxD = constrain(x_BxTxD + drop(y, 1), 'batch', None, None)
        y = FeedForward(c, name='feed_forward')(Norm(c.norm, name='feed_forward_norm')(x_BxTxD))
        return constrain(x_BxTxD + drop(y, 2), 'batch', None, None), cache


class Group(nn.Module):
    """The layers of one period of the pattern of encodings: what is compiled once and looped over."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BxTxD, layout: TokenLayout, shared, group):
        c = self.config
        for i in range(c.period):
            x_BxTxD, _ = _block(c)(c, c.encodings[i], name=f'layer_{i}')(
                x_BxTxD, layout, shared[c.distinct.index(c.encodings[i])], group * c.period + i
            )
        return x_BxTxD, None


def _block(config: ModelConfig):
    """Block under the remat policy: what of it is kept for the backward pass and what is computed again.

    none: everything is kept. full: only its input. attention: also what attention gave, inside a kernel and after its projection.
    minimal: also queries, keys, values and the hidden layer's projections, so that only elementwise parts are computed again, and
    attention itself where it is not a kernel's.
    """
    if config.remat == 'none':
        return Block
    return nn.remat(Block, policy=_POLICIES[config.remat], prevent_cse=not config.scan_layers)


_POLICIES = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'attention': jax.checkpoint_policies.save_only_these_names(
        'attention_residuals', 'attention_out'
    ),
    'minimal': jax.checkpoint_policies.save_only_these_names(
        'attention_residuals', 'attention_out', 'query', 'key', 'value', 'up', 'gate'
    ),
}


class Transformer(nn.Module):
    """`training`: whether `row_keys` are for all that is random; else, as in any evaluation, only for ids that an encoding draws at test, too."""

    config: ModelConfig
    training: bool = False

    @nn.compact
    def __call__(
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
        """Logits of the next token.

        Args:
          tokens, positions, segment_ids: [B,T] int32; positions restart in each segment, segment 0 is padding.
          ids: [B,T] int32, position ids that the data gives, for encodings that ask for them.
          row_keys: [B] PRNG keys, for dropout and what encodings draw (see `training`); None: nothing is random.
          batch_key: a PRNG key, for what is drawn once for the whole batch; None: for each row.
          cache: from `empty_cache`; then the tokens come after those it holds (unrolled layers only).
          logits: False: stop before them, for `unembed`.
        Returns:
          logits [B,T,V] float32, or what they are made of [B,T,D]; and the cache with the new tokens in it.
        """
        c = self.config
        keys = row_keys, batch_key
        layout, cache = self._placed(tokens, positions, segment_ids, ids, keys, cache)
        table_VxD = self.param(
            'embedding',
            nn.with_partitioning(nn.initializers.normal(c.width**-0.5), ('vocab', 'embed')),
            (c.vocab_size, c.width),
            jnp.dtype(c.param_dtype),
        ).astype(c.dtype)
        # Gathered before the lookup: a gather from a table sharded over two automatic axes aborts XLA.
        x_BxTxD = jnp.take(constrain(table_VxD, None, None), tokens, axis=0)
        if c.scale_embedding:  # Vaswani et al. 2017, arXiv 1706.03762, section 3.4
            x_BxTxD = x_BxTxD * jnp.asarray(c.width**0.5, x_BxTxD.dtype)
        if not self.training and any('position_ids' in part.enters() for part in c.parts):
            lacks_id = (layout.ids < 0) & (
                layout.segment_ids > 0
            )  # beyond config.model.max_len or what ids are drawn from
            x_BxTxD = jnp.where(lacks_id[..., None], jnp.nan, x_BxTxD)
        of_part = {}
        for part, scope in zip(c.parts, c.scopes):
            inputs = layout.encoding_inputs(Parameters(c.param_dtype, name=scope))
            x_BxTxD = part.embed(inputs, x_BxTxD)
            of_part[part] = part.share(inputs)
        shared = [encoding.collect_shared(of_part) for encoding in c.distinct]
        x_BxTxD = constrain(dropout(x_BxTxD, c.dropout, layout.row_keys, 0), 'batch', None, None)
        if c.scan_layers:
            if cache is not None:
                raise ModelError(
                    'a cache needs unrolled layers: use `unrolled` (model/generate.py)'
                )
            layers = nn.scan(
                Group,
                variable_axes={'params': 0},
                split_rngs={'params': True},
                length=c.num_layers // c.period,
                in_axes=(nn.broadcast, nn.broadcast, 0),
                metadata_params={nn.PARTITION_NAME: None},
            )
            x_BxTxD, _ = layers(c, name='layers')(
                x_BxTxD, layout, shared, jnp.arange(c.num_layers // c.period)
            )
        else:
            for i, encoding in enumerate(c.encodings):
                old = None if cache is None else cache['layers'][i]
                x_BxTxD, new = _block(c)(c, encoding, name=f'layer_{i}')(
                    x_BxTxD, layout, shared[c.distinct.index(encoding)], i, old
                )
                if cache is not None:
                    cache['layers'][i] = new
        x_BxTxD = Norm(c.norm, name='final_norm')(x_BxTxD)
        if c.logit_scale:  # what similarities of embeddings are multiplied by, its logarithm (Radford et al. 2021, arXiv 2103.00020)
            self.param(
                'logit_scale', nn.initializers.constant(math.log(20)), (), jnp.dtype(c.param_dtype)
            )
        if c.bag and self.is_initializing():  # model/embed.py applies it
            Bag(c, name='bag')(tokens, segment_ids > 0)
        if c.tied:
            output = constrain(table_VxD, 'vocab', None)
        else:
            output = c.weight(
                (c.width, c.vocab_size),
                ('embed', 'vocab'),
                fan_in(1.0, 'fan_in', 'normal'),
                'output',
            )()
        return (unembed(x_BxTxD, output, c.tied) if logits else x_BxTxD), cache

    def _placed(self, tokens, positions, segment_ids, task_ids, keys, cache):
        """Where the tokens stand, the ids that the encodings see, and the cache with those entered."""
        c, (row_keys, batch_key) = self.config, keys
        drawing = self.training or any(e.drawn_at_test for e in c.parts)
        draw_keys = row_keys if drawing else None
        here = (
            positions,
            segment_ids,
            task_ids,
        )  # of this device's part of the context; below: of the whole
        positions, segment_ids, task_ids = (x if x is None else gather_context(x, 1) for x in here)
        ids = positions
        for e in c.parts:
            if e.spec.task_ids and task_ids is None:
                raise ModelError(
                    f'{e.spec.title} needs position ids from the data ({e.spec.task_ids!r}): this data gives none'
                )
            ids = e.position_ids(
                EncodingInputs(
                    None,
                    ids,
                    positions,
                    segment_ids,
                    row_keys if self.training or e.drawn_at_test else None,
                    task_ids,
                    batch_key=batch_key if self.training else None,
                )
            )
        batch_key = batch_key if self.training else None
        row_keys = row_keys if self.training else None
        if cache is None:
            consecutive = context_parts() == 1 and not any(
                'position_ids' in e.enters() for e in c.parts
            )
            return TokenLayout(
                here[0],
                here[1],
                own_context_part(ids, 1),
                positions,
                segment_ids,
                ids,
                row_keys,
                here[2],
                consecutive,
                draw_keys,
                batch_key,
            ), None
        column = cache['column']
        put = lambda name, new: jax.lax.dynamic_update_slice_in_dim(
            cache[name].astype(new.dtype), new, column, 1
        )
        cache = dict(
            layers=list(cache['layers']),
            positions=put('positions', positions),
            ids=put('ids', ids),
            segment_ids=put('segment_ids', segment_ids),
            column=column + tokens.shape[1],
        )
        return TokenLayout(
            positions,
            segment_ids,
            ids,
            cache['positions'],
            cache['segment_ids'],
            cache['ids'],
            row_keys,
            task_ids,
            draw_keys=draw_keys,
            batch_key=batch_key,
            column=column,
        ), cache


def make_row_keys(rows: jax.Array, seed: int | jax.Array = 0) -> jax.Array:
    """PRNG keys of an evaluation, by the numbers of its rows [B]: what a row draws does not depend on the batch that it is in."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed, impl='threefry2x32'), rows)


def output_matrix(config: ModelConfig, params) -> jax.Array:
    """The matrix of the logits, in the computation's type and gathered over `fsdp`."""
    if config.tied:
        return constrain(params['embedding'].astype(config.dtype), 'vocab', None)
    return constrain(params['output']['kernel'].astype(config.dtype), None, 'vocab')


def unembed(x_BxTxD: jax.Array, output: jax.Array, tied: bool) -> jax.Array:
    """What `Transformer` gives with `logits=False` -> logits [B,T,V] float32; any part of the tokens."""
    return jnp.einsum(
        'btd,vd->btv' if tied else 'btd,dv->btv',
        x_BxTxD,
        output,
        preferred_element_type=jnp.float32,
    )
