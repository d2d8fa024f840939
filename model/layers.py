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

from model.errors import ModelError
from model.kernels import platform, stored
from model.lora import FACTORS, Adapted, Lora, name_in_layer
from model.sharding import (
    constrain,
    context_parts,
    exchanges_gradients,
    gather_weight,
    own_context_part,
    with_axes,
    without_fsdp,
)

if TYPE_CHECKING:
    from model.config import ModelConfig

fan_in = nn.initializers.variance_scaling


class Norm(nn.Module):
    """Normalises the last axis, in float32.

    RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) or LayerNorm (Ba et al. 2016, arXiv
    1607.06450), with its bias or without.
    """

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x [...,D] normalised, scaled and, with LayerNorm, shifted."""
        size = (x.shape[-1],)
        y = x.astype(jnp.float32)
        scale = self.param('scale', with_axes(nn.initializers.ones, (None,)), size)
        if self.kind != 'rmsnorm':
            y -= y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps) * scale
        if self.kind == 'layernorm':
            y += self.param('bias', with_axes(nn.initializers.zeros, (None,)), size)
        return y.astype(x.dtype)


class Weight(nn.Module):
    """Declares one weight, stored in the parameter dtype and used in the computation dtype.

    With a mesh it is gathered over `fsdp` here, in the computation dtype and inside the block that
    uses it: left to itself XLA gathers the wide one, or slices the matmul into a ring.

    `lora`: which weights have two factors beside them (model/lora.py).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    initializer: Callable
    dtype: str
    param_dtype: str
    lora: Lora | None = None

    @nn.compact
    def __call__(self) -> jax.Array | Adapted:
        w = self._declare('kernel', self.initializer, self.shape, self.axes)
        scale: jax.Array | None = self.get_variable('params', 'kernel_scale')
        w = gather_weight(widen(w, scale, self.dtype), self.axes)
        if self.lora is None or not self.lora.adapts(self.path):
            return w
        return Adapted(w, *self._factors(self.lora))

    def _factors(self, lora: Lora) -> tuple[jax.Array, jax.Array]:
        """Returns A [inputs...,R] and B [R,outputs...], the scale in B."""
        # A weight that reads from the residual stream has its width first, one that writes, last.
        count = 1 if self.axes[0] == 'embed' else len(self.axes) - 1
        inputs = math.prod(self.shape[:count])
        if lora.rank > inputs:
            raise ModelError(
                f'config.lora.rank is {lora.rank}: expected at most {inputs}, the inputs of '
                f'{name_in_layer(self.path)}'
            )
        a_axes = (*self.axes[:count], None)
        b_axes = (None, *self.axes[count:])
        a_shape = (*self.shape[:count], lora.rank)
        b_shape = (lora.rank, *self.shape[count:])
        a = self._declare(FACTORS[0], _orthonormal, a_shape, a_axes)
        b = self._declare(FACTORS[1], nn.initializers.zeros, b_shape, b_axes)
        a = gather_weight(widen(a, None, self.dtype), a_axes)
        return a, gather_weight(widen(b, jnp.float32(lora.scale), self.dtype), b_axes)

    def _declare(self, name: str, init: Callable, shape: tuple, axes: tuple) -> jax.Array:
        return self.param(name, with_axes(init, axes), shape, jnp.dtype(self.param_dtype))


def _orthonormal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns random columns, on the last axis, of length 1 and at right angles."""
    return nn.initializers.orthogonal()(key, shape, jnp.float32).astype(dtype)


def declare_bias(
    module: Any, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> jax.Array:
    """Declares the bias of a projection; returns it in the dtype of computation.

    Args:
      module: of the model, with its `config`.
      name: of the projection; the bias stands beside it as `name_bias`.
      axes: logical names of the dimensions of `shape`.
    """
    cfg = module.config
    init = with_axes(nn.initializers.zeros, axes)
    b = module.param(f'{name}_bias', init, shape, jnp.dtype(cfg.param_dtype))
    return b.astype(cfg.dtype)


def activate(activation: str, up_BxTxF: jax.Array, project_gate: Callable) -> jax.Array:
    """Returns the hidden layer of a feed-forward network, [B,T,F].

    Args:
      activation: config.model.activation.
      project_gate: () -> [B,T,F], for an activation that has a gate.
    """
    if activation == 'swiglu':
        return up_BxTxF * nn.silu(project_gate())
    return nn.gelu(up_BxTxF, approximate=activation == 'gelu')


def widen(w: jax.Array, scale: jax.Array | None, dtype: Any) -> jax.Array:
    """Returns a weight in the dtype of computation.

    Args:
      scale: float32, what one in int8 is multiplied by (`generate.narrow_weights`); None: it is in
        a dtype of floats.
    """
    return w.astype(dtype) if scale is None else (w * scale).astype(dtype)


def multiply(
    x_BxTxD: jax.Array,
    w: jax.Array | Adapted,
    axes: tuple[str | None, ...],
    transposed: bool = False,
    dtype: Any = None,
) -> jax.Array:
    """Returns tokens times a matrix, [B,T,F].

    Args:
      w: [D,F], or [F,D] where `transposed`.
      axes: logical names of its dimensions as it is stored.
      dtype: of the result; None: that of its arguments.
    """
    letters = 'BTD,FD->BTF' if transposed else 'BTD,DF->BTF'
    is_array = not isinstance(w, Adapted)
    if is_array and platform() == 'cpu' and x_BxTxD.dtype == jnp.float32:
        return _multiply_on_cpu(x_BxTxD, w, transposed)
    return contract(letters, x_BxTxD, w, axes, dtype)


def contract(
    letters: str,
    x: jax.Array,
    w: jax.Array | Adapted,
    axes: tuple[str | None, ...],
    dtype: Any = None,
) -> jax.Array:
    """Returns `jnp.einsum` of tokens and a weight, as cut devices should compute its gradient.

    Args:
      letters: as of einsum; those of tokens begin with the batch.
      w: from `gather_weight`.
      axes: logical names of its dimensions as it is stored.
      dtype: of the result; None: that of its arguments.
    """
    if isinstance(w, Adapted):
        return _contract_adapted(letters, x, w.w, w.a, w.b, dtype)
    if exchange_parts(x.shape[0]) == 1:
        return jnp.einsum(letters, x, w, preferred_element_type=dtype)
    return _contract_and_exchange(letters, x, w, axes, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def _contract_adapted(letters, x, w, a, b, dtype):
    """Returns tokens times a weight that has the product of its factors added.

    Its gradient is taken for the factors alone, through R numbers a token; that of the whole
    matrix, a third of the work of a step, is never made.
    """
    return jnp.einsum(letters, x, w + jnp.tensordot(a, b, 1), preferred_element_type=dtype)


def _adapted_forward(letters, x, w, a, b, dtype):
    return _contract_adapted(letters, x, w, a, b, dtype), (x, w, a, b)


def _adapted_backward(letters, dtype, residuals, dy):
    """Returns the gradients of tokens and factors; 0 for the weight, which is not trained."""
    x, w, a, b = residuals
    dy = dy.astype(w.dtype)
    given, made = letters.split('->')
    tokens, weight = given.split(',')
    dx = jnp.einsum(f'{made},{weight}->{tokens}', dy, w + jnp.tensordot(a, b, 1))

    # What is turned over for the sums over tokens is the thin array of the two.
    inputs = weight[: a.ndim - 1]
    outputs = weight[a.ndim - 1 :]
    thin = ''.join(letter for letter in tokens if letter not in inputs) + 'R'
    sums = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    h = jnp.einsum(f'{tokens},{inputs}R->{thin}', x, a)
    dh = jnp.einsum(f'{made},R{outputs}->{thin}', dy, b)
    da = jnp.moveaxis(sums(f'{thin},{tokens}->R{inputs}', dh, x), 0, -1)
    db = sums(f'{thin},{made}->R{outputs}', h, dy)
    return dx.astype(x.dtype), jnp.zeros_like(w), da.astype(a.dtype), db.astype(b.dtype)


_contract_adapted.defvjp(_adapted_forward, _adapted_backward)


def exchange_parts(batch: int) -> int:
    """Returns into how many parts a gradient is made, one for each device along `fsdp`.

    1: it is left to XLA. On a TPU XLA sums it whole on all devices while nothing else runs, since
    it has no sum that it cuts at once over links of two axes. That devices exchange parts, and
    each sums its own, needs one message to each, which goes on beside what follows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not exchanges_gradients() or 'fsdp' in mesh.manual_axes:
        return 1
    parts = mesh.shape.get('fsdp', 1)
    return parts if batch % parts == 0 else 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _contract_and_exchange(letters, x, w, axes, dtype):
    return jnp.einsum(letters, x, w, preferred_element_type=dtype)


def _contract_forward(letters, x, w, axes, dtype):
    return _contract_and_exchange(letters, x, w, axes, dtype), (x, w)


def _contract_backward(letters, axes, dtype, residuals, dy):
    """Returns the gradients of tokens and weight; the weight's is summed in float32."""
    x, w = residuals
    dy = dy.astype(w.dtype)
    given, made = letters.split('->')
    tokens, weight = given.split(',')
    dx = jnp.einsum(f'{made},{weight}->{tokens}', dy, w)

    # Each device's own sum, cut into the parts of all devices; then its part of all sums.
    parts = exchange_parts(x.shape[0])

    def by_device(y):
        return y.reshape(parts, y.shape[0] // parts, *y.shape[1:])

    sums = jnp.einsum(f'n{tokens},n{made}->n{weight}', by_device(x), by_device(dy))
    sums = constrain(sums, 'batch', *without_fsdp(axes))
    sums = constrain(sums, None, *axes)
    return dx.astype(x.dtype), sums.astype(jnp.float32).sum(0).astype(w.dtype)


_contract_and_exchange.defvjp(_contract_forward, _contract_backward)


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
    """SwiGLU (Shazeer 2020, arXiv 2002.05202, equation 6) or GELU (arXiv 1606.08415)."""

    config: 'ModelConfig'

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        """Returns [B,T,D]."""
        cfg = self.config
        h_BxTxF = constrain(self._project_up(x_BxTxD, 'up'), 'batch', None, 'mlp')
        h_BxTxF = activate(cfg.activation, h_BxTxF, lambda: self._project_up(x_BxTxD, 'gate'))
        h_BxTxF = stored(h_BxTxF)

        shape = (cfg.mlp_width, cfg.width)
        init = fan_in(cfg.residual_scale, 'fan_in', 'normal')
        axes = ('mlp', 'embed')
        y_BxTxD = multiply(h_BxTxF, cfg.weight(shape, axes, init, 'down')(), axes)
        if cfg.has_bias('down'):
            y_BxTxD += declare_bias(self, 'down', (cfg.width,), (None,))
        return y_BxTxD

    def _project_up(self, x_BxTxD: jax.Array, name: str) -> jax.Array:
        """Returns [B,T,F], under the name that remat policies keep it by."""
        cfg = self.config
        init = fan_in(1.0, 'fan_in', 'normal')
        axes = ('embed', 'mlp')
        w_DxF = cfg.weight((cfg.width, cfg.mlp_width), axes, init, name)()
        y_BxTxF = multiply(x_BxTxD, w_DxF, axes)
        if cfg.has_bias(name):
            y_BxTxF += declare_bias(self, name, (cfg.mlp_width,), ('mlp',))
        return checkpoint_name(y_BxTxF, name)


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
