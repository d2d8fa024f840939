"""Logits changed by the logits themselves: CoPE, selective attention, DAPE, stick-breaking, wall.

They need the whole [T,S] array of logits: the reference path of attention only, but for wall, whose
queries are each by itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.errors import ModelError, did_you_mean
from model.positions.base import PositionalEncoding, Spec, positive, uniform_of
from model.positions.toeplitz import KerpleLog

_REMAINDERS = ('none', 'value', 'bias')  # of stick-breaking


@dataclasses.dataclass(frozen=True)
class Cope(PositionalEncoding):
    """Contextual positions: z_ij + q_i . e[p_ij], p_ij = sum over j <= t <= i of sigmoid(z_it).

    p is at most `places` - 1, and between two whole places e is interpolated linearly. e [places,
    d] of each layer, shared by its heads, zero at first. `scaled`: the added term has the 1/sqrt(d)
    of the logits, as in the authors' code by default; without, as in the paper's listing.
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

    def logits(self, inputs):
        shape = (self.places, self.dims.head_dim)
        table = inputs.float32_param('table', nn.initializers.zeros, shape, (None, None))
        gates = jnp.where(inputs.visible, jax.nn.sigmoid(inputs.z), 0.0)
        place = jnp.minimum(jax.lax.cumsum(gates, axis=3, reverse=True), self.places - 1.0)

        # Products with all rows of the table, of which each key picks the two around its place.
        products = jnp.einsum('bhtd,rd->bhtr', inputs.q.astype(jnp.float32), table)
        products = products * (self.dims.head_dim**-0.5 if self.scaled else 1.0)
        below = jnp.floor(place)
        share = place - below
        at_below = jnp.take_along_axis(products, below.astype(jnp.int32), axis=-1)
        at_above = jnp.take_along_axis(products, jnp.ceil(place).astype(jnp.int32), axis=-1)
        return inputs.z + at_above * share + at_below * (1 - share)


@dataclasses.dataclass(frozen=True)
class UnscaledCope(Cope):
    """CoPE as in the paper's listing, without a scale of the added term."""

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
    """Tokens mask others for later queries: z_ij - sum over l < i of S_lj.

    S_lj = relu(z_lj) of the first head, 0 for j = l and for the first token of the document.
    """

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

    def _masking(self, inputs):
        """Returns S, [B,T,S] float32."""
        same = inputs.k_segment_ids[:, :, None] == inputs.k_segment_ids[:, None, :]
        places = jnp.where(same, inputs.k_positions[:, None, :], jnp.iinfo(jnp.int32).max)
        is_first = inputs.k_positions == places.min(-1)
        is_masked = inputs.visible[:, 0] & ~inputs.column_of_query & ~is_first[:, None, :]
        return jnp.where(is_masked, jax.nn.relu(inputs.z[:, 0]), 0.0)

    def logits(self, inputs):
        masking = self._masking(inputs)
        before = jnp.cumsum(masking, axis=1) - masking
        if 'said' in inputs.carried:
            before += inputs.carried['said'][:, None]
        # Of other documents nothing is seen; of this one everything said so far counts.
        return inputs.z - before[:, None]

    def carry(self, inputs):
        return {'said': self._masking(inputs).sum(1) + inputs.carried.get('said', 0.0)}


@dataclasses.dataclass(frozen=True)
class StickBreaking(PositionalEncoding):
    """A_ij = sigmoid(z_ij) times the product over j < l < i of 1 - sigmoid(z_il), j < i.

    The nearest key takes its part of the stick first. `remainder`: what becomes of the rest of the
    stick, 1 - sum over j of A_ij. 'none': nothing, so that a document's first token reads nothing;
    'value': the token's own value has it as its weight, as in the tests of the authors' kernels;
    'bias': it multiplies a vector of each head that is added, [H,d], learned in each layer and 0 at
    first, as in the authors' models (dolomite-engine, stickbreaking_attention.py, lines 79 and
    109).
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
                f'{did_you_mean(self.remainder, _REMAINDERS)}'
            )

    def softmax(self, inputs, logits, mask):
        own = inputs.column_of_query[:, None]
        mask = mask & ~own
        left = jnp.where(mask, jax.nn.log_sigmoid(-logits), 0.0)
        after = jax.lax.cumsum(left, axis=3, reverse=True) - left
        weights = jnp.where(mask, jnp.exp(jax.nn.log_sigmoid(logits) + after), 0.0)
        if self.remainder == 'value':
            weights += jnp.where(own, jnp.exp(left.sum(-1, keepdims=True)), 0.0)
        return weights

    def value(self, inputs, weights):
        if self.remainder != 'bias':
            return None
        shape = (self.dims.num_heads, self.dims.head_dim)
        bias = inputs.float32_param('head_bias', nn.initializers.zeros, shape, ('heads', None))
        left = 1 - weights.sum(-1, keepdims=True)
        return left * bias[:, None]


@dataclasses.dataclass(frozen=True)
class Dape(PositionalEncoding):
    """z + b + f([z, b]): b the bias of KERPLE (logarithmic), f across the heads at each pair.

    f has one hidden layer with leaky ReLU, in each layer of the model, its weights and biases
    U(+-1/sqrt(fan_in)) at first.
    """

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

    def _both(self, inputs):
        """Returns b, and [z, b] along the heads, [B,2H,T,S]."""
        # Its parameters are of this layer, as in the authors' code.
        kerple = KerpleLog(self.dims)
        b = kerple.bias(dataclasses.replace(inputs, shared=kerple.share(inputs)))
        return b, jnp.concatenate([inputs.z, jnp.broadcast_to(b, inputs.z.shape)], axis=1)

    def logits(self, inputs):
        b, both = self._both(inputs)
        heads = self.dims.num_heads
        inner = uniform_of(2 * heads)
        outer = uniform_of(self.hidden)
        w1 = inputs.float32_param('w1', inner, (2 * heads, self.hidden), (None, None))
        b1 = inputs.float32_param('b1', inner, (self.hidden,), (None,))
        w2 = inputs.float32_param('w2', outer, (self.hidden, heads), (None, None))
        b2 = inputs.float32_param('b2', outer, (heads,), (None,))
        hidden = jnp.einsum('bhts,hr->brts', both, w1) + b1[:, None, None]
        hidden = jax.nn.leaky_relu(hidden, self.slope)
        return inputs.z + b + jnp.einsum('brts,rh->bhts', hidden, w2) + b2[:, None, None]


@dataclasses.dataclass(frozen=True)
class DapeV2(Dape):
    """DAPE whose f looks at the `taps` nearest keys too.

    Two convolutions along the keys stand in place of the two matrices. What the query does not see
    is 0 for both, so that a row is the same inside a longer text.
    """

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

    def logits(self, inputs):
        b, both = self._both(inputs)
        same = inputs.k_segment_ids[:, :, None] == inputs.k_segment_ids[:, None, :]
        # Neighbours are so by place: between their columns in a cache there may be padding.
        ahead = inputs.k_positions[:, :, None] - inputs.k_positions[:, None, :]

        def convolve(x, name, width):
            """x [B,C,T,S] -> [B,width,T,S]."""
            init = uniform_of(self.taps * x.shape[1])
            shape = (self.taps, x.shape[1], width)
            taps = inputs.float32_param(f'{name}_taps', init, shape, (None, None, None))
            offset = inputs.float32_param(f'{name}_offset', init, (width,), (None,))
            seen = jnp.where(inputs.visible, x, 0.0)
            out = offset[:, None, None]
            for i in range(self.taps):
                near_BxSxS = (same & (ahead == i - self.taps // 2)).astype(jnp.float32)
                out = out + jnp.einsum('bcts,bsu,cw->bwtu', seen, near_BxSxS, taps[i])
            return out

        hidden = jax.nn.leaky_relu(convolve(both, 'inner', self.hidden), self.slope)
        return inputs.z + b + convolve(hidden, 'outer', self.dims.num_heads)


@dataclasses.dataclass(frozen=True)
class Wall(PositionalEncoding):
    """z_ij = sum over c of q_ic k_jc times the product over j < l <= i of g_lc, / sqrt(d).

    g_l = sigmoid(W x_l + b) for each query head and channel, b = 8 at first: what is far fades to a
    logit of 0, channel by channel.
    """

    initial: float = 8.0
    by_rows = True
    spec = Spec(
        'wall attention',
        'Tilde Research 2025; flash-linear-attention, layers/wall_attn',
        shift_invariant=True,
        bias_form='data',
    )

    def key_state(self, inputs):
        d = self.dims
        w = inputs.float32_param(
            'gate',
            nn.initializers.normal(0.02),
            (d.width, d.num_heads, d.head_dim),
            (None, 'heads', None),
        )
        b = inputs.float32_param(
            'gate_bias',
            nn.initializers.constant(self.initial),
            (d.num_heads, d.head_dim),
            ('heads', None),
        )
        gate_BxHxdxT = jnp.einsum('btD,Dhd->bhdt', inputs.x.astype(jnp.float32), w) + b[..., None]
        return {'log_g': jax.nn.log_sigmoid(gate_BxHxdxT)}

    def product(self, inputs):
        # Running sums of log g over the keys, of which a pair takes the difference; padding is 1.
        is_token = inputs.k_segment_ids[:, None, None] > 0
        total_BxHxdxS = jnp.cumsum(jnp.where(is_token, inputs.state['log_g'], 0.0), axis=-1)
        own_BxHxTxd = jnp.swapaxes(inputs.at_query(total_BxHxdxS), 2, 3)
        total_BxHxSxd = jnp.swapaxes(total_BxHxdxS, 2, 3)
        log_fade = own_BxHxTxd[:, :, :, None] - total_BxHxSxd[:, :, None]
        fade_BxHxTxSxd = jnp.exp(jnp.minimum(log_fade, 0.0))

        # z is there already: what is added is what the fade changes of it.
        q = inputs.q.astype(jnp.float32)
        k = inputs.heads_of_keys.astype(jnp.float32)
        change = jnp.einsum('bhtd,bhsd,bhtsd->bhts', q, k, fade_BxHxTxSxd - 1.0)
        return inputs.z + change * self.dims.head_dim**-0.5
