"""Logits in which words meet embeddings of positions: Shaw, Transformer-XL, DeBERTa, TUPE.

z is what attention computed, q.k/sqrt(d); each adds its own terms, at the scale of its paper.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.errors import ModelError
from model.positions.base import PositionalEncoding, Spec, positive
from model.positions.sinusoidal import sinusoids
from model.positions.t5 import bucketed


def _table(inputs, name: str, rows: int, width: int, axes=(None, None)) -> jax.Array:
    """Declares a table [rows, width] ~ N(0, .02^2); returns it in float32."""
    return inputs.float32_param(name, nn.initializers.normal(0.02), (rows, width), axes)


def _projection(inputs, dims, name: str) -> jax.Array:
    """Declares a projection from the width to heads, float32 [D,H,d]."""
    shape = (dims.width, dims.num_heads, dims.head_dim)
    return inputs.float32_param(name, nn.initializers.normal(0.02), shape, (None, 'heads', None))


def _looked_up(products: jax.Array, index: jax.Array) -> jax.Array:
    """Picks for each pair the product with its row of a table, [B,H,T,S].

    Args:
      products: [B,H,T,R], of queries with each row.
      index: [B or 1,T,S] int32, rows.
    """
    index = jnp.broadcast_to(index[:, None], (*products.shape[:3], index.shape[-1]))
    return jnp.take_along_axis(products, index, axis=-1)


@dataclasses.dataclass(frozen=True)
class Shaw(PositionalEncoding):
    """z_ij = q_i.(k_j + aK_n)/sqrt(d), out_i = sum_j A_ij (v_j + aV_n), n = min(i - j, `clip`).

    Tables of each layer, shared by its heads. Of the paper's 2K + 1 rows a decoder uses K + 1.
    """

    clip: int = 16
    spec = Spec(
        'Shaw relative positions',
        'Shaw et al. 2018, arXiv 1803.02155, equations 3 and 4',
        shift_invariant=True,
        bias_form='data',
        differs=(
            'tables of each layer for all heads, as in tensor2tensor '
            "(common_attention.py:1691-1702); the paper's base model: of each head "
            '(section 4.1)',
            'a decoder uses K + 1 of the 2K + 1 rows (equation 4); they begin as all of '
            'them would (optimize.py:395-397)',
            "K = 16, as the paper's base model; tensor2tensor's has 20 (transformer.py:2489)",
        ),
    )

    def check(self):
        positive('clip', self.clip)

    def _row(self, inputs):
        return jnp.clip(inputs.distance, 0, self.clip)

    def _rows(self, inputs, name):
        # Glorot uniform (fan_avg) of the paper's 2K + 1 rows.
        bound = (6 / (2 * self.clip + 1 + self.dims.head_dim)) ** 0.5

        def init(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        shape = (self.clip + 1, self.dims.head_dim)
        return inputs.float32_param(name, init, shape, (None, None))

    def logits(self, inputs):
        rows = self._rows(inputs, 'keys')
        products = jnp.einsum('bhtd,rd->bhtr', inputs.q.astype(jnp.float32), rows)
        products = products * self.dims.head_dim**-0.5
        return inputs.z + _looked_up(products, self._row(inputs))

    def value(self, inputs, weights):
        near = jax.nn.one_hot(self._row(inputs), self.clip + 1, dtype=jnp.float32)  # [..,T,S,K+1]
        near = jnp.broadcast_to(near, (weights.shape[0], *near.shape[1:]))
        return jnp.einsum('bhts,btsr,rd->bhtd', weights, near, self._rows(inputs, 'values'))


@dataclasses.dataclass(frozen=True)
class TransformerXl(PositionalEncoding):
    """z_ij = ((q_i + u).k_j + (q_i + v).W_r r_n)/sqrt(d), r_n = [sin; cos] of width D.

    u and v are shared by all layers, W_r is of each layer.
    """

    spec = Spec(
        'Transformer-XL',
        'Dai et al. 2019, arXiv 1901.02860, section 3.3',
        shift_invariant=True,
        bias_form='data',
        differs=(
            'no memory of earlier segments (mem_transformer.py:218-245)',
            'distances are not clamped at evaluation (at 400 there: run_wt103_base.sh:36)',
        ),
    )

    def check(self):
        if self.dims.width % 2:
            raise ModelError(
                f'config.model.width is {self.dims.width}: Transformer-XL positions need an even '
                f'width'
            )

    def share(self, inputs):
        shape = (self.dims.num_heads, self.dims.head_dim)
        return tuple(_table(inputs, name, *shape, axes=('heads', None)) for name in 'uv')

    def logits(self, inputs):
        d = self.dims
        u, v = inputs.shared
        w_r = _projection(inputs, d, 'w_r')
        r = sinusoids(inputs.reach, d.width, interleaved=False)
        r = jnp.einsum('btsD,Dhd->bhtsd', r, w_r)
        q = inputs.q.astype(jnp.float32)
        k = inputs.heads_of_keys.astype(jnp.float32)
        content = jnp.einsum('hd,bhsd->bhs', u, k)[:, :, None]
        r = jnp.broadcast_to(r, (q.shape[0], *r.shape[1:]))
        position = jnp.einsum('bhtd,bhtsd->bhts', q + v[:, None], r)
        return inputs.z + (content + position) * d.head_dim**-0.5


@dataclasses.dataclass(frozen=True)
class Deberta(PositionalEncoding):
    """z_ij = (q_i.k_j + q_i.K_r[n] + k_j.Q_r[n])/sqrt(3d), n = min(i - j, span - 1).

    Content to position and position to content. K_r = W_k P, Q_r = W_q P + b in each layer,
    P [2 span, D] shared by all; a decoder uses the half of P that looks back.
    """

    span: int = 512
    spec = Spec(
        'DeBERTa disentangled',
        "He et al. 2021, arXiv 2006.03654, equation 4, indexed as in the authors' code",
        shift_invariant=True,
        bias_form='data',
        differs=(
            'no logarithmic buckets, shared projections or norm of P, which are of '
            'version 3 (deberta_base.json:10-12)',
            'a decoder uses the half of P that looks back (disentangled_attention.py:126)',
            'no absolute positions before the last layers (section 3.2; '
            'masked_language_model.py:60-72)',
            'K_r has no bias: it would be the same for all keys of a row '
            '(disentangled_attention.py:57)',
        ),
    )

    def check(self):
        positive('span', self.span)

    def share(self, inputs):
        return _table(inputs, 'table', self.span, self.dims.width)

    def scale(self, inputs, q):
        return q * 3**-0.5  # the scale counts the terms

    def logits(self, inputs):
        d = self.dims
        shape = (d.num_heads, d.head_dim)
        offset = inputs.float32_param('query_bias', nn.initializers.zeros, shape, ('heads', None))
        row = jnp.clip(inputs.distance, 0, self.span - 1)

        # q has 1/sqrt(3) already, k has not.
        k_r = jnp.einsum('rD,Dhd->hrd', inputs.shared, _projection(inputs, d, 'keys'))
        of_queries = jnp.einsum('bhtd,hrd->bhtr', inputs.q.astype(jnp.float32), k_r)
        q_r = jnp.einsum('rD,Dhd->hrd', inputs.shared, _projection(inputs, d, 'queries'))
        k = inputs.heads_of_keys.astype(jnp.float32)
        of_keys = jnp.einsum('bhsd,hrd->bhsr', k, q_r + offset[:, None]) * 3**-0.5
        to_content = jnp.swapaxes(_looked_up(of_keys, jnp.swapaxes(row, 1, 2)), 2, 3)
        return inputs.z + (_looked_up(of_queries, row) + to_content) * d.head_dim**-0.5


@dataclasses.dataclass(frozen=True)
class Tupe(PositionalEncoding):
    """z_ij = (q_i.k_j + (U_q p_i).(U_k p_j))/sqrt(2d) + t[bucket(i - j)].

    Words and positions are untied, their product is shared by all layers; t is T5's causal bias
    (TUPE-R; `relative=False`: TUPE-A). p is normalised, U_q and U_k have offsets, as in the
    authors' code; its untying of the [CLS] token has no place in a decoder. No position is added to
    the words.
    """

    relative: bool = True
    spec = Spec(
        'TUPE',
        'Ke et al. 2021, arXiv 2006.15595, equations 6 to 8',
        shift_invariant=False,
        limited=True,
        bias_form='other',
        differs=(
            'no [CLS] apart from the rest: a decoder has none '
            '(transformer_sentence_encoder.py:181-184, 232-240)',
            'buckets look back only, 32 of them; there half look ahead '
            '(transformer_sentence_encoder.py:44-66)',
        ),
    )

    def share(self, inputs):
        d = self.dims
        p = _table(inputs, 'table', d.num_ids, d.width)
        scale = inputs.float32_param('norm_scale', nn.initializers.ones, (d.width,), (None,))
        offset = inputs.float32_param('norm_offset', nn.initializers.zeros, (d.width,), (None,))
        p = nn.standardize(p, axis=-1, epsilon=1e-5) * scale + offset

        def project(name):
            u = _projection(inputs, d, name)
            shape = (d.num_heads, d.head_dim)
            zeros = nn.initializers.zeros
            offset = inputs.float32_param(f'{name}_offset', zeros, shape, ('heads', None))
            return jnp.einsum('rD,Dhd->hrd', p, u) + offset[:, None]

        products = jnp.einsum('hrd,hsd->hrs', project('queries'), project('keys'))
        products = products * (2 * d.head_dim) ** -0.5
        if not self.relative:
            return products, None
        return products, _table(inputs, 'relative', 32, d.num_heads, axes=(None, 'heads'))

    def scale(self, inputs, q):
        return q * 2**-0.5

    def bias(self, inputs):
        products, table = inputs.shared
        nan = jnp.nan  # for an id that has no row
        rows_HxBxTxR = jnp.take(products, inputs.q_ids, axis=1, mode='fill', fill_value=nan)
        shape = (*rows_HxBxTxR.shape[:3], inputs.k_ids.shape[1])
        columns = jnp.broadcast_to(inputs.k_ids[None, :, None], shape)
        bias = jnp.take_along_axis(rows_HxBxTxR, columns, axis=-1, mode='fill', fill_value=nan)
        bias = jnp.moveaxis(bias, 0, 1)
        return bias if table is None else bias + bucketed(table, inputs.distance)
