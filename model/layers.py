"""Normalisation, projections, feed-forward, dropout and the bag of tokens.

Dimensions: B batch, T time, D width, F hidden width, N texts, V vocabulary.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from model.kernels import platform, stored
from model.sharding import constrain, context_parts, own_context_part, with_axes

if TYPE_CHECKING:
    from model.config import ModelConfig

fan_in = nn.initializers.variance_scaling


class Norm(nn.Module):
    """Normalises the last axis, in float32.

    RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) or LayerNorm (Ba et al. 2016, arXiv
    1607.06450).
    """

    kind: str
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x [...,D] normalised, scaled and, with LayerNorm, shifted."""
        size = (x.shape[-1],)
        y = x.astype(jnp.float32)
        scale = self.param('scale', with_axes(nn.initializers.ones, (None,)), size)
        if self.kind == 'layernorm':
            y -= y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps) * scale
        if self.kind == 'layernorm':
            y += self.param('bias', with_axes(nn.initializers.zeros, (None,)), size)
        return y.astype(x.dtype)


class Weight(nn.Module):
    """Declares one weight, stored in the parameter dtype and used in the computation dtype.

    With a mesh it is gathered over `fsdp` here, in the computation dtype and inside the block that
    uses it: left to itself XLA gathers the wide one, or slices the matmul into a ring.
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
            with_axes(self.initializer, self.axes),
            self.shape,
            jnp.dtype(self.param_dtype),
        )
        scale: jax.Array | None = self.get_variable('params', 'kernel_scale')
        axes = (axis if axis != 'embed' else None for axis in self.axes)
        return constrain(widen(w, scale, self.dtype), *axes)


def widen(w: jax.Array, scale: jax.Array | None, dtype: Any) -> jax.Array:
    """Returns a weight in the dtype of computation.

    Args:
      scale: float32, what one in int8 is multiplied by (`generate.narrow_weights`); None: it is in
        a dtype of floats.
    """
    return w.astype(dtype) if scale is None else (w * scale).astype(dtype)


def multiply(
    x_BxTxD: jax.Array, w: jax.Array, transposed: bool = False, dtype: Any = None
) -> jax.Array:
    """Returns tokens times a matrix, [B,T,F].

    Args:
      w: [D,F], or [F,D] where `transposed`.
      dtype: of the result; None: that of its arguments.
    """
    if platform() == 'cpu' and x_BxTxD.dtype == jnp.float32:
        return _multiply_on_cpu(x_BxTxD, w, transposed)
    letters = 'BTD,FD->BTF' if transposed else 'BTD,DF->BTF'
    return jnp.einsum(letters, x_BxTxD, w, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply_on_cpu(x_BxTxD: jax.Array, w: jax.Array, transposed: bool) -> jax.Array:
    return jnp.einsum('BTD,FD->BTF' if transposed else 'BTD,DF->BTF', x_BxTxD, w)


def _multiply_forward(x_BxTxD, w, transposed):
    return _multiply_on_cpu(x_BxTxD, w, transposed), (x_BxTxD, w)


def _multiply_backward(transposed, residuals, dy_BxTxF):
    """Returns the gradients of tokens and matrix; what is transposed for them is narrow.

    Left to itself XLA:CPU transposes the gradient that comes in, and computes it anew on the way.
    """
    x_BxTxD, w = residuals
    dy_BxTxF = stored(dy_BxTxF)
    dx_BxTxD = jnp.einsum('BTF,FD->BTD' if transposed else 'BTF,DF->BTD', dy_BxTxF, w)
    x_DxN = stored(x_BxTxD.reshape(-1, x_BxTxD.shape[-1]).T)
    dw_DxF = x_DxN @ dy_BxTxF.reshape(-1, dy_BxTxF.shape[-1])
    return dx_BxTxD, stored(dw_DxF).T if transposed else dw_DxF


_multiply_on_cpu.defvjp(_multiply_forward, _multiply_backward)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202, equation 6) or GELU."""

    config: 'ModelConfig'

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Returns [B,T,D]."""
        cfg = self.config
        h_BxTxF = constrain(self._project_up(x_BxTxD, 'up'), 'batch', None, 'mlp')
        if cfg.activation == 'swiglu':
            h_BxTxF *= nn.silu(self._project_up(x_BxTxD, 'gate'))
        else:
            h_BxTxF = nn.gelu(h_BxTxF)
        h_BxTxF = stored(h_BxTxF)

        shape = (cfg.mlp_width, cfg.width)
        init = fan_in(cfg.residual_scale, 'fan_in', 'normal')
        w_FxD = cfg.weight(shape, ('mlp', 'embed'), init, 'down')()
        return multiply(h_BxTxF, w_FxD)

    def _project_up(self, x_BxTxD: jax.Array, name: str) -> jax.Array:
        """Returns [B,T,F], under the name that remat policies keep it by."""
        cfg = self.config
        init = fan_in(1.0, 'fan_in', 'normal')
        w_DxF = cfg.weight((cfg.width, cfg.mlp_width), ('embed', 'mlp'), init, name)()
        return checkpoint_name(multiply(x_BxTxD, w_DxF), name)


def dropout(
    x_BxTxD: jax.Array, rate: float, row_keys: jax.Array | None, number: int | jax.Array
) -> jax.Array:
    """Returns x with a share `rate` of its elements dropped to zero.

    The others are divided by 1 - rate. Source: Srivastava et al. 2014, Dropout. What a row loses
    depends on its key alone: it is the same however rows, columns and microbatches lie on devices.

    Args:
      row_keys: [B] PRNG keys; without them nothing is dropped.
      number: one of its own for each place of the model that drops.
    """
    if not rate or row_keys is None:
        return x_BxTxD
    shape = (x_BxTxD.shape[1] * context_parts(), x_BxTxD.shape[2])

    def draw(key):
        return jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, shape)

    stays = own_context_part(jax.vmap(draw)(row_keys), 1)
    return jnp.where(stays, x_BxTxD / (1 - rate), 0).astype(x_BxTxD.dtype)


class Bag(nn.Module):
    """Turns a text into the weighted mean of a vector of each of its tokens.

    The weight is a number of each token, which says how much it tells. So word vectors are weighted
    by smooth inverse frequency (Arora, Liang and Ma 2017, "A simple but tough-to-beat baseline for
    sentence embeddings", algorithm 1); here both are learned.
    """

    config: 'ModelConfig'

    @nn.compact
    def __call__(
        self, tokens_NxT: jax.Array, counted_NxT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the means over the tokens that are `counted`, and the gate.

        The means are [N,D] float32, 0 where no token is counted. The gate is the scalar by which
        hidden states beside them are multiplied.
        """
        cfg = self.config
        init = nn.initializers.normal(cfg.width**-0.5)
        table_VxD = self._declare('embedding', init, (cfg.vocab_size, cfg.width), 'vocab', 'embed')

        # Adam moves every number by about the learning rate a step: ten times that, so that weights
        # come to differ by as much as frequencies do. They begin at 1.
        weight_V = self._declare('weight', nn.initializers.zeros, (cfg.vocab_size,), 'vocab')
        weight_V = nn.softplus(10 * weight_V + math.log(math.e - 1))
        gate = self._declare('gate', nn.initializers.constant(0.1), ())

        # Gathered before the lookup, as in the Transformer.
        weight_NxT = constrain(weight_V, None)[tokens_NxT] * counted_NxT
        vectors_NxTxD = jnp.take(constrain(table_VxD, None, None), tokens_NxT, axis=0)
        sums_NxD = jnp.einsum('NTD,NT->ND', vectors_NxTxD, weight_NxT)
        return sums_NxD / jnp.maximum(weight_NxT.sum(1, keepdims=True), 1e-6), gate

    def _declare(self, name: str, init: Callable, shape: tuple[int, ...], *axes: str) -> jax.Array:
        """Declares a parameter; returns it in float32."""
        dtype = jnp.dtype(self.config.param_dtype)
        x = self.param(name, with_axes(init, axes), shape, dtype)
        return x.astype(jnp.float32)
