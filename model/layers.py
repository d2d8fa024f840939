"""Normalisation, projections and feed-forward. Dimensions: B batch, T time, D width, F hidden width, H heads, d head size."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.sharding import constrain, context_parts, own_context_part

if TYPE_CHECKING:
    from model.config import ModelConfig

fan_in = nn.initializers.variance_scaling


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last axis, in float32."""

    kind: str
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        scale = self.param(
            'scale', nn.with_partitioning(nn.initializers.ones, (None,)), (x.shape[-1],)
        )
        if self.kind == 'layernorm':
            wide -= wide.mean(-1, keepdims=True)
        out = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps) * scale
        if self.kind == 'layernorm':
            out += self.param(
                'bias', nn.with_partitioning(nn.initializers.zeros, (None,)), (x.shape[-1],)
            )
        return out.astype(x.dtype)


class Weight(nn.Module):
    """One weight, kept in the parameter dtype and used in the computation dtype.

    With a mesh it is gathered over `fsdp` here, in the computation dtype and inside the block that uses it: left to itself
    XLA gathers the wide one, or slices the matmul into a ring.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    initializer: Callable
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self) -> jax.Array:
        w = self.param(
            'kernel',
            nn.with_partitioning(self.initializer, self.axes),
            self.shape,
            jnp.dtype(self.param_dtype),
        )
        return constrain(w.astype(self.dtype), *(a if a != 'embed' else None for a in self.axes))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202, equation 6) or GELU."""

    config: 'ModelConfig'

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        c = self.config
        inward = lambda name: c.weight(
            (c.width, c.mlp_width), ('embed', 'mlp'), fan_in(1.0, 'fan_in', 'normal'), name
        )()
        project = lambda name: checkpoint_name(
            jnp.einsum('btd,df->btf', x_BxTxD, inward(name)), name
        )
        h_BxTxF = constrain(project('up'), 'batch', None, 'mlp')
        if c.activation == 'swiglu':
            h_BxTxF *= nn.silu(project('gate'))
        else:
            h_BxTxF = nn.gelu(h_BxTxF)
        down = c.weight(
            (c.mlp_width, c.width),
            ('mlp', 'embed'),
            fan_in(c.residual_scale, 'fan_in', 'normal'),
            'down',
        )()
        return jnp.einsum('btf,fd->btd', h_BxTxF, down)


def dropout(x_BxTxD: jax.Array, rate: float, row_keys: jax.Array | None, place) -> jax.Array:
    """Dropout (Srivastava et al. 2014): zeros in a share `rate` of the elements, the others divided by 1 - rate; without keys nothing.

    `row_keys`: [B] PRNG keys; `place`: a number of its own for each place of the model. What a row loses depends on its key alone: it is
    the same however rows, columns and microbatches lie on devices.
    """
    if not rate or row_keys is None:
        return x_BxTxD
    shape = (x_BxTxD.shape[1] * context_parts(), x_BxTxD.shape[2])
    keep = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, shape)
    )(row_keys)
    return jnp.where(own_context_part(keep, 1), x_BxTxD / (1 - rate), 0).astype(x_BxTxD.dtype)


class Bag(nn.Module):
    """A text as a bag of its tokens: the mean of a vector of each, weighted by a number of each, which says how much a token tells. So word vectors
    are weighted by smooth inverse frequency (Arora, Liang and Ma 2017, "A simple but tough-to-beat baseline for sentence embeddings", algorithm 1);
    here both are learned."""

    config: 'ModelConfig'

    @nn.compact
    def __call__(
        self, tokens_NxT: jax.Array, counted_NxT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The means over the tokens that are `counted`, [N,D] float32, 0 where none is; and g, by which hidden states beside them are multiplied, a
        scalar."""
        c = self.config
        make = lambda name, init, shape, *axes: self.param(
            name, nn.with_partitioning(init, axes), shape, jnp.dtype(c.param_dtype)
        ).astype(jnp.float32)
        table_VxD = make(
            'embedding',
            nn.initializers.normal(c.width**-0.5),
            (c.vocab_size, c.width),
            'vocab',
            'embed',
        )
        # Adam moves every number by about the learning rate a step: ten times that, so that weights come to differ by as much as frequencies do.
        weight_V = nn.softplus(
            10 * make('weight', nn.initializers.zeros, (c.vocab_size,), 'vocab')
            + math.log(math.e - 1)
        )  # begun at 1
        gate = make('gate', nn.initializers.constant(0.1), ())
        # Gathered before the lookup, as in the Transformer.
        weight_NxT = constrain(weight_V, None)[tokens_NxT] * counted_NxT
        vectors_NxTxD = jnp.take(constrain(table_VxD, None, None), tokens_NxT, axis=0)
        return jnp.einsum('ntd,nt->nd', vectors_NxTxD, weight_NxT) / jnp.maximum(
            weight_NxT.sum(1, keepdims=True), 1e-6
        ), gate
