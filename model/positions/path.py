"""PaTH: a product of Householder-like reflections on the way from key to query.

Yang et al. 2025, arXiv 2505.16381.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.positions.base import PositionalEncoding, Spec, positive

_F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Path(PositionalEncoding):
    """z_ij = q_i^T H_i H_(i-1) ... H_(j+1) k_j / sqrt(d), H_t = I - beta_t w_t w_t^T.

    H is of each key-value head: w_t = l2norm(silu(conv(W2 W1 x)_t)), W1 of `rank` columns, conv
    causal over `kernel_size` tokens and channel by channel; beta_t = 2 sigmoid(b . x_t + c). The
    cache keeps keys as they are, and what w and beta are made from, instead of rewriting all keys
    at each step. `forget`: adds the running sum of log sigmoid(g . x_t + e) over j < t <= i, at the
    scale of the logits, for each query head.
    """

    rank: int = 32
    kernel_size: int = 3
    forget: bool = False
    spec = Spec(
        'PaTH',
        "Yang et al. 2025, arXiv 2505.16381, section 3; the authors' layer",
        shift_invariant=True,
        bias_form='data',
    )

    def check(self):
        positive('rank', self.rank)
        positive('kernel_size', self.kernel_size)

    def key_state(self, inputs):
        d = self.dims
        x = inputs.x.astype(_F32)
        init = nn.initializers.normal(0.02)

        # Directions before their convolution, through a bottleneck.
        w1 = inputs.float32_param('w1', init, (d.width, self.rank), (None, None))
        low = jnp.einsum('btD,Dr->btr', x, w1)
        shape = (self.rank, d.num_kv_heads, d.head_dim)
        w2 = inputs.float32_param('w2', init, shape, (None, 'kv_heads', None))
        state = {'raw': jnp.einsum('btr,rkd->bkdt', low, w2)}

        # How far each token reflects: up to 2, which is a whole reflection.
        w_beta = inputs.float32_param('beta', init, (d.width, d.num_kv_heads), (None, 'kv_heads'))
        bias = inputs.float32_param('beta_bias', nn.initializers.zeros, (d.num_kv_heads,), (None,))
        beta = jnp.einsum('btD,Dk->bkt', x, w_beta) + bias[:, None]
        state['beta'] = 2 * jax.nn.sigmoid(beta)
        if self.forget:
            w_gate = inputs.float32_param('gate', init, (d.width, d.num_heads), (None, 'heads'))
            bias = inputs.float32_param('gate_bias', nn.initializers.zeros, (d.num_heads,), (None,))
            gate = jnp.einsum('btD,Dh->bht', x, w_gate) + bias[:, None]
            state['log_f'] = jax.nn.log_sigmoid(gate)
        return state

    def directions(self, inputs) -> jax.Array:
        """Returns w, [B,K,S,d] unit vectors.

        The token before is looked up by its place: in a cache there may be padding between them.
        """
        shape = (self.kernel_size, self.dims.num_kv_heads, self.dims.head_dim)
        init = nn.initializers.normal(0.02)
        taps = inputs.float32_param('conv', init, shape, (None, 'kv_heads', None))
        same = inputs.k_segment_ids[:, :, None] == inputs.k_segment_ids[:, None, :]
        mixed = 0.0
        for back in range(self.kernel_size):
            place = inputs.k_positions[:, :, None] - back
            is_before = (same & (place == inputs.k_positions[:, None, :])).astype(_F32)
            raw = jnp.einsum('bst,bkdt->bksd', is_before, inputs.state['raw'])
            mixed += raw * taps[self.kernel_size - 1 - back][:, None]
        w = nn.silu(mixed)
        return w * jax.lax.rsqrt(jnp.square(w).sum(-1, keepdims=True) + 1e-6)

    def product(self, inputs):
        group = inputs.q.shape[1] // inputs.k.shape[1]
        q = inputs.q.astype(_F32)
        k = inputs.heads_of_keys.astype(_F32)
        w = jnp.repeat(self.directions(inputs), group, axis=1)
        beta = jnp.where(inputs.k_segment_ids[:, None] > 0, inputs.state['beta'], 0.0)
        beta = jnp.repeat(beta, group, axis=1)

        def reflect_back(v, column):
            """Passes the queries v [B,H,T,d] on through one token; returns their products with it.

            v are the queries after the reflections of all later tokens.
            """
            k_t, w_t, beta_t, seen = column  # [B,H,d], [B,H,d], [B,H], [B,1,T]
            z = jnp.einsum('bhtd,bhd->bht', v, k_t)
            along = jnp.einsum('bhtd,bhd->bht', v, w_t) * beta_t[..., None] * seen
            return v - along[..., None] * w_t[:, :, None], z

        # Key by key from the last one on, each with the time in front.
        columns = (
            jnp.moveaxis(k, 2, 0),
            jnp.moveaxis(w, 2, 0),
            jnp.moveaxis(beta, 2, 0),
            jnp.moveaxis(inputs.visible.astype(_F32), 3, 0),
        )
        _, z = jax.lax.scan(reflect_back, q, columns, reverse=True)
        change = jnp.moveaxis(z, 0, 3) - jnp.einsum('bhtd,bhsd->bhts', q, k)
        return inputs.z + change * self.dims.head_dim**-0.5

    def logits(self, inputs):
        if not self.forget:
            return inputs.z
        is_token = inputs.k_segment_ids[:, None] > 0
        total = jnp.cumsum(jnp.where(is_token, inputs.state['log_f'], 0.0), -1)
        log_fade = inputs.at_query(total)[..., None] - total[:, :, None]
        return inputs.z + log_fade * self.dims.head_dim**-0.5
