"""Logits in which queries or keys meet embeddings of positions: Shaw, Transformer-XL, DeBERTa, TUPE.

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


def _table(
    inputs, name: str, rows: int, width: int, std: float = 0.02, axes=(None, None)
) -> jax.Array:
    return inputs.param(name, nn.initializers.normal(std), (rows, width), axes).astype(jnp.float32)


def _looked_up(products: jax.Array, index: jax.Array) -> jax.Array:
    """products [B,H,T,R] of queries with each row of a table, index [B or 1,T,S] of rows -> [B,H,T,S]."""
    index = jnp.broadcast_to(index[:, None], (*products.shape[:3], index.shape[-1]))
    return jnp.take_along_axis(products, index, axis=-1)


@dataclasses.dataclass(frozen=True)
class Shaw(PositionalEncoding):
    """z_ij = q_i.(k_j + aK_n)/sqrt(d), out_i = sum_j A_ij (v_j + aV_n), n = min(i - j, `clip`); tables of each layer, shared by its
    heads. Of the paper's 2K + 1 rows a decoder uses K + 1."""

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
        bound = (
            6 / (2 * self.clip + 1 + self.dims.head_dim)
        ) ** 0.5  # fan_avg of the paper's 2K + 1 rows
        init = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
        return inputs.param(name, init, (self.clip + 1, self.dims.head_dim), (None, None)).astype(
            jnp.float32
        )

    def logits(self, inputs):
        products = (
            jnp.einsum('bhtd,rd->bhtr', inputs.q.astype(jnp.float32), self._rows(inputs, 'keys'))
            * self.dims.head_dim**-0.5
        )
        return inputs.z + _looked_up(products, self._row(inputs))

    def value(self, inputs, weights):
        near = jax.nn.one_hot(
            self._row(inputs), self.clip + 1, dtype=jnp.float32
        )  # [B or 1,T,S,K+1]
        near = jnp.broadcast_to(near, (weights.shape[0], *near.shape[1:]))
        return jnp.einsum('bhts,btsr,rd->bhtd', weights, near, self._rows(inputs, 'values'))


@dataclasses.dataclass(frozen=True)
class TransformerXl(PositionalEncoding):
    """z_ij = ((q_i + u).k_j + (q_i + v).W_r r_n)/sqrt(d), r_n = [sin; cos] of width D; u, v shared by all layers, W_r of each layer."""

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
                f'config.model.width is {self.dims.width}: Transformer-XL positions need an even width'
            )

    def share(self, inputs):
        shape = (self.dims.num_heads, self.dims.head_dim)
        return tuple(_table(inputs, name, *shape, axes=('heads', None)) for name in 'uv')

    def logits(self, inputs):
        d, (u, v) = self.dims, inputs.shared
        w_r = inputs.param(
            'w_r',
            nn.initializers.normal(0.02),
            (d.width, d.num_heads, d.head_dim),
            (None, 'heads', None),
        )
        r = jnp.einsum(
            'btsD,Dhd->bhtsd',
            sinusoids(inputs.reach, d.width, interleaved=False),
            w_r.astype(jnp.float32),
        )
        q = inputs.q.astype(jnp.float32)
        content = jnp.einsum('hd,bhsd->bhs', u, inputs.heads_of_keys.astype(jnp.float32))[
            :, :, None
        ]
        r = jnp.broadcast_to(r, (q.shape[0], *r.shape[1:]))
        return (
            inputs.z
            + (content + jnp.einsum('bhtd,bhtsd->bhts', q + v[:, None], r)) * d.head_dim**-0.5
        )


@dataclasses.dataclass(frozen=True)
class Deberta(PositionalEncoding):
    """z_ij = (q_i.k_j + q_i.K_r[n] + k_j.Q_r[n])/sqrt(3d), n = min(i - j, span - 1): content to position and position to content.
    K_r = W_k P, Q_r = W_q P + b in each layer, P [2 span, D] shared by all; a decoder uses the half of P that looks back."""

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
        project = lambda name: jnp.einsum(
            'rD,Dhd->hrd',
            inputs.shared,
            inputs.param(
                name,
                nn.initializers.normal(0.02),
                (d.width, d.num_heads, d.head_dim),
                (None, 'heads', None),
            ).astype(jnp.float32),
        )
        offset = inputs.param(
            'query_bias', nn.initializers.zeros, (d.num_heads, d.head_dim), ('heads', None)
        ).astype(jnp.float32)
        row = jnp.clip(inputs.distance, 0, self.span - 1)
        of_queries = jnp.einsum(
            'bhtd,hrd->bhtr', inputs.q.astype(jnp.float32), project('keys')
        )  # q has 1/sqrt(3) already
        of_keys = (
            jnp.einsum(
                'bhsd,hrd->bhsr',
                inputs.heads_of_keys.astype(jnp.float32),
                project('queries') + offset[:, None],
            )
            * 3**-0.5
        )
        to_content = jnp.swapaxes(_looked_up(of_keys, jnp.swapaxes(row, 1, 2)), 2, 3)
        return inputs.z + (_looked_up(of_queries, row) + to_content) * d.head_dim**-0.5


@dataclasses.dataclass(frozen=True)
class Tupe(PositionalEncoding):
    """z_ij = (q_i.k_j + (U_q p_i).(U_k p_j))/sqrt(2d) + t[bucket(i - j)]: words and positions untied, their product shared by all
    layers; t is T5's causal bias (TUPE-R; `relative=False`: TUPE-A). p is normalised, U_q and U_k have offsets, as in the authors' code;
    its untying of the [CLS] token has no place in a decoder. No position is added to the words."""

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
        one, zero = (
            (
                lambda name, init=init: inputs.param(name, init, (d.width,), (None,)).astype(
                    jnp.float32
                )
            )
            for init in (nn.initializers.ones, nn.initializers.zeros)
        )
        p = nn.standardize(
            _table(inputs, 'table', d.num_ids, d.width), axis=-1, epsilon=1e-5
        ) * one('norm_scale') + zero('norm_offset')

        def project(name):
            u = inputs.param(
                name,
                nn.initializers.normal(0.02),
                (d.width, d.num_heads, d.head_dim),
                (None, 'heads', None),
            )
            offset = inputs.param(
                f'{name}_offset', nn.initializers.zeros, (d.num_heads, d.head_dim), ('heads', None)
            )
            return (
                jnp.einsum('rD,Dhd->hrd', p, u.astype(jnp.float32))
                + offset.astype(jnp.float32)[:, None]
            )

        products = (
            jnp.einsum('hrd,hsd->hrs', project('queries'), project('keys'))
            * (2 * d.head_dim) ** -0.5
        )
        return products, _table(
            inputs, 'relative', 32, d.num_heads, axes=(None, 'heads')
        ) if self.relative else None

    def scale(self, inputs, q):
        return q * 2**-0.5

    def bias(self, inputs):
        products, table = inputs.shared
        rows = jnp.take(
            products, inputs.q_ids, axis=1, mode='fill', fill_value=jnp.nan
        )  # [H,B,T,R]
        columns = jnp.broadcast_to(
            inputs.k_ids[None, :, None], (*rows.shape[:3], inputs.k_ids.shape[1])
        )
        both = jnp.moveaxis(
            jnp.take_along_axis(rows, columns, axis=-1, mode='fill', fill_value=jnp.nan), 0, 1
        )
        return both if table is None else both + bucketed(table, inputs.distance)
