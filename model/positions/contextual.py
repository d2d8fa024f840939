"""Logits changed by the logits themselves: CoPE, selective attention, DAPE, and stick-breaking in place of the softmax.

They need the whole [T,S] array of logits: the reference path of attention only.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.errors import ModelError, nearest
from model.positions.base import PositionalEncoding, Spec, positive, uniform_of
from model.positions.toeplitz import KerpleLog

_REMAINDERS = ('none', 'value', 'bias')  # of stick-breaking


@dataclasses.dataclass(frozen=True)
class Cope(PositionalEncoding):
    """Contextual positions: p_ij = sum over j <= t <= i of sigmoid(z_it), at most `places` - 1; z_ij + q_i . e[p_ij], between two whole
    places by linear interpolation. e [places, d] of each layer, shared by its heads, zero at first.

    `scaled`: the added term has the 1/sqrt(d) of the logits, as in the authors' code by default; without, as in the paper's listing.
    """

    places: int = 64
    scaled: bool = True
    spec = Spec(
        'CoPE',
        'Golovneva et al. 2024, arXiv 2405.18719, equations 3 to 5',
        shift_invariant=True,
        bias_form='data',
        differs=(
            '64 places, as in the paper; the code has one more than its block by '
            'default (context_position.py:69-73)',
        ),
    )

    def check(self):
        positive('places', self.places)

    def logits(self, site):
        table = site.param(
            'table', nn.initializers.zeros, (self.places, self.dims.head_dim), (None, None)
        ).astype(jnp.float32)
        gates = jnp.where(site.visible, jax.nn.sigmoid(site.z), 0.0)
        place = jnp.minimum(jax.lax.cumsum(gates, axis=3, reverse=True), self.places - 1.0)
        products = jnp.einsum('bhtd,rd->bhtr', site.q.astype(jnp.float32), table) * (
            self.dims.head_dim**-0.5 if self.scaled else 1.0
        )
        below = jnp.floor(place)
        at = lambda p: jnp.take_along_axis(products, p.astype(jnp.int32), axis=-1)
        share = place - below
        return site.z + at(jnp.ceil(place)) * share + at(below) * (1 - share)


@dataclasses.dataclass(frozen=True)
class UnscaledCope(Cope):
    """As in the paper's listing."""

    scaled: bool = False
    spec = Spec(
        'CoPE, unscaled term',
        'Golovneva et al. 2024, arXiv 2405.18719, appendix listing',
        shift_invariant=True,
        bias_form='data',
        differs=(
            '64 places, as in the paper; the code has one more than its block by '
            'default (context_position.py:69-73)',
        ),
    )


@dataclasses.dataclass(frozen=True)
class Selective(PositionalEncoding):
    """Tokens mask others for later queries: z_ij - sum over l < i of S_lj, S_lj = relu(z_lj) of the first head, 0 for j = l and for the
    first token of the document."""

    spec = Spec(
        'selective attention',
        'Leviathan et al. 2024, arXiv 2410.02703, section 3',
        shift_invariant=True,
        bias_form='data',
        differs=(
            'the cache keeps what is masked: no pruning, nor a loss for it (the section '
            '"Context pruning")',
        ),
    )

    def _said(self, site):
        """S [B,T,S]."""
        same = site.k_segment_ids[:, :, None] == site.k_segment_ids[:, None, :]
        first = site.k_places == jnp.where(
            same, site.k_places[:, None, :], jnp.iinfo(jnp.int32).max
        ).min(-1)
        others = site.visible[:, 0] & ~site.column_of_query & ~first[:, None, :]
        return jnp.where(others, jax.nn.relu(site.z[:, 0]), 0.0)

    def logits(self, site):
        said = self._said(site)
        before = jnp.cumsum(said, axis=1) - said
        if 'said' in site.carried:
            before += site.carried['said'][:, None]
        # Of other documents nothing is seen; of this one everything said so far counts.
        return site.z - before[:, None]

    def carry(self, site):
        return {'said': self._said(site).sum(1) + site.carried.get('said', 0.0)}


@dataclasses.dataclass(frozen=True)
class StickBreaking(PositionalEncoding):
    """A_ij = sigmoid(z_ij) times the product over j < l < i of 1 - sigmoid(z_il), j < i: the nearest takes its part of the stick
    first.

    `remainder`: what becomes of the rest of the stick, 1 - sum over j of A_ij. 'none': nothing, so
    that a document's first token reads nothing; 'value': the token's own value has it as its
    weight, as in the tests of the authors' kernels; 'bias': it multiplies a vector of each head
    that is added, [H,d], learned in each layer and 0 at first, as in the authors' models
    (dolomite-engine, stickbreaking_attention.py, lines 79 and 109).
    """

    remainder: str = 'none'
    spec = Spec(
        'stick-breaking',
        'Tan et al. 2025, arXiv 2410.17980, equation 2',
        shift_invariant=True,
        differs=(
            "the authors' models add the remainder times a vector of each head "
            '(stickbreaking_attention.py:79, 109; remainder=bias)',
            'no norm of each head after it: it is none of positions '
            '(stickbreaking_attention.py:80, 113)',
        ),
    )

    def check(self):
        if self.remainder not in _REMAINDERS:
            raise ModelError(
                f'config.model.positions_args.remainder is {self.remainder!r}: '
                f'{nearest(self.remainder, _REMAINDERS)}'
            )

    def softmax(self, site, logits, mask):
        own = site.column_of_query[:, None]
        mask = mask & ~own
        kept = jnp.where(mask, jax.nn.log_sigmoid(-logits), 0.0)
        after = jax.lax.cumsum(kept, axis=3, reverse=True) - kept
        weights = jnp.where(mask, jnp.exp(jax.nn.log_sigmoid(logits) + after), 0.0)
        if self.remainder == 'value':
            weights += jnp.where(own, jnp.exp(kept.sum(-1, keepdims=True)), 0.0)
        return weights

    def value(self, site, weights):
        if self.remainder != 'bias':
            return None
        shape = (self.dims.num_heads, self.dims.head_dim)
        bias = site.param('head_bias', nn.initializers.zeros, shape, ('heads', None))
        left = 1 - weights.sum(-1, keepdims=True)
        return left * bias.astype(jnp.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class Dape(PositionalEncoding):
    """z + b + f([z, b]): b the bias of KERPLE (logarithmic), f across the heads at each pair of query and key, one hidden layer with
    leaky ReLU, in each layer, its weights and biases U(+-1/sqrt(fan_in)) at first."""

    hidden: int = 32
    slope: float = 0.01
    spec = Spec(
        'DAPE (around KERPLE)',
        'Zheng et al. 2024, arXiv 2405.14722, equation 4',
        shift_invariant=True,
        bias_form='data',
        version=2,
    )

    def check(self):
        positive('hidden', self.hidden)

    def _both(self, site):
        kerple = KerpleLog(self.dims)
        b = kerple.bias(
            dataclasses.replace(site, shared=kerple.share(site))
        )  # of this layer, as in the authors' code
        return b, jnp.concatenate([site.z, jnp.broadcast_to(b, site.z.shape)], axis=1)

    def logits(self, site):
        b, both = self._both(site)
        heads = self.dims.num_heads
        make = lambda name, init, shape: site.param(name, init, shape, (None,) * len(shape)).astype(
            jnp.float32
        )
        inner, outer = uniform_of(2 * heads), uniform_of(self.hidden)
        w1, b1 = make('w1', inner, (2 * heads, self.hidden)), make('b1', inner, (self.hidden,))
        w2, b2 = make('w2', outer, (self.hidden, heads)), make('b2', outer, (heads,))
        hidden = jax.nn.leaky_relu(
            jnp.einsum('bhts,hr->brts', both, w1) + b1[:, None, None], self.slope
        )
        return site.z + b + jnp.einsum('brts,rh->bhts', hidden, w2) + b2[:, None, None]


@dataclasses.dataclass(frozen=True)
class DapeV2(Dape):
    """f looks at the `taps` nearest keys too: two convolutions along the keys in place of the two matrices. What the query does not
    see is 0 for both, so that a row is the same inside a longer text."""

    taps: int = 3
    spec = Spec(
        'DAPE v2 (around KERPLE)',
        'Zheng et al. 2024, arXiv 2410.04798, section 3',
        shift_invariant=True,
        bias_form='data',
        version=2,
        differs=(
            'what the query does not see is 0 before both convolutions, there before '
            'the first: weights differ by up to .41 (positional_embeddings.py:1113)',
            'so a key beyond the query has no hidden units, and a row is the same '
            'inside a longer text (positional_embeddings.py:1048-1053)',
        ),
    )

    def check(self):
        super().check()
        if self.taps < 1 or not self.taps % 2:
            raise ModelError(
                f'config.model.positions_args.taps is {self.taps}: expected an odd number'
            )

    def logits(self, site):
        b, both = self._both(site)
        same = site.k_segment_ids[:, :, None] == site.k_segment_ids[:, None, :]
        ahead = (
            site.k_places[:, :, None] - site.k_places[:, None, :]
        )  # neighbours by place: a cache has gaps

        def convolved(x, name, width):
            init = uniform_of(self.taps * x.shape[1])
            taps = site.param(
                f'{name}_taps', init, (self.taps, x.shape[1], width), (None,) * 3
            ).astype(jnp.float32)
            offset = site.param(f'{name}_offset', init, (width,), (None,)).astype(jnp.float32)
            seen, out = jnp.where(site.visible, x, 0.0), offset[:, None, None]
            for i in range(self.taps):
                near = (same & (ahead == i - self.taps // 2)).astype(
                    jnp.float32
                )  # [B, neighbour, key]
                out = out + jnp.einsum('bcts,bsu,cw->bwtu', seen, near, taps[i])
            return out

        hidden = jax.nn.leaky_relu(convolved(both, 'inner', self.hidden), self.slope)
        return site.z + b + convolved(hidden, 'outer', self.dims.num_heads)


@dataclasses.dataclass(frozen=True)
class Wall(PositionalEncoding):
    """z_ij = sum over c of q_ic k_jc times the product over j < l <= i of g_lc, / sqrt(d), g_l = sigmoid(W x_l + b) for each query head
    and channel, b = 8 at first: what is far fades to a logit of 0, channel by channel."""

    initial: float = 8.0
    spec = Spec(
        'wall attention',
        'Tilde Research 2025; flash-linear-attention, layers/wall_attn',
        shift_invariant=True,
        bias_form='data',
    )

    def key_state(self, site):
        d = self.dims
        w = site.param(
            'gate',
            nn.initializers.normal(0.02),
            (d.width, d.num_heads, d.head_dim),
            (None, 'heads', None),
        ).astype(jnp.float32)
        b = site.param(
            'gate_bias',
            nn.initializers.constant(self.initial),
            (d.num_heads, d.head_dim),
            ('heads', None),
        ).astype(jnp.float32)
        return {
            'log_g': jax.nn.log_sigmoid(
                jnp.einsum('btD,Dhd->bhdt', site.x.astype(jnp.float32), w) + b[..., None]
            )
        }

    def product(self, site):
        total = jnp.cumsum(
            jnp.where(site.k_segment_ids[:, None, None] > 0, site.state['log_g'], 0.0), axis=-1
        )  # [B,H,d,S]
        own = jnp.swapaxes(site.at_query(total), 2, 3)  # [B,H,T,d]
        fade = jnp.exp(
            jnp.minimum(own[:, :, :, None] - jnp.swapaxes(total, 2, 3)[:, :, None], 0.0)
        )  # [B,H,T,S,d]
        q, k = site.q.astype(jnp.float32), site.heads_of_keys.astype(jnp.float32)
        return (
            site.z
            + jnp.einsum('bhtd,bhsd,bhtsd->bhts', q, k, fade - 1.0) * self.dims.head_dim**-0.5
        )
