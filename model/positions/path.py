"""PaTH: a product of Householder-like reflections on the way from key to query (Yang et al. 2025, arXiv 2505.16381)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from model.positions.base import PositionalEncoding, Spec, positive

_F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Path(PositionalEncoding):
    """z_ij = q_i^T H_i H_(i-1) ... H_(j+1) k_j / sqrt(d), H_t = I - beta_t w_t w_t^T, for each key-value head.

    w_t = l2norm(silu(conv(W2 W1 x)_t)), W1 of `rank` columns, conv causal over `kernel` tokens and channel by channel; beta_t = 2
    sigmoid(b . x_t + c). The cache keeps keys as they are, and what w and beta are made from, instead of rewriting all keys at each step.
    `forget`: adds the running sum of log sigmoid(g . x_t + e) over j < t <= i, at the scale of the logits, for each query head.
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
        d, x = self.dims, inputs.x.astype(_F32)
        make = lambda name, shape, axes: inputs.param(
            name, nn.initializers.normal(0.02), shape, axes
        ).astype(_F32)
        zero = lambda name, heads: inputs.param(
            name, nn.initializers.zeros, (heads,), (None,)
        ).astype(_F32)
        low = jnp.einsum('btD,Dr->btr', x, make('w1', (d.width, self.rank), (None, None)))
        raw = jnp.einsum(
            'btr,rkd->bkdt',
            low,
            make('w2', (self.rank, d.num_kv_heads, d.head_dim), (None, 'kv_heads', None)),
        )
        beta = (
            jnp.einsum(
                'btD,Dk->bkt', x, make('beta', (d.width, d.num_kv_heads), (None, 'kv_heads'))
            )
            + zero('beta_bias', d.num_kv_heads)[:, None]
        )
        state = {'raw': raw, 'beta': 2 * jax.nn.sigmoid(beta)}
        if self.forget:
            gate = (
                jnp.einsum('btD,Dh->bht', x, make('gate', (d.width, d.num_heads), (None, 'heads')))
                + zero('gate_bias', d.num_heads)[:, None]
            )
            state['log_f'] = jax.nn.log_sigmoid(gate)
        return state

    def directions(self, inputs) -> jax.Array:
        """w [B,K,S,d], unit vectors. The token before is found by its place: in a cache there may be padding between them."""
        taps = inputs.param(
            'conv',
            nn.initializers.normal(0.02),
            (self.kernel_size, self.dims.num_kv_heads, self.dims.head_dim),
            (None, 'kv_heads', None),
        ).astype(_F32)
        same = inputs.k_segment_ids[:, :, None] == inputs.k_segment_ids[:, None, :]
        mixed = 0.0
        for back in range(self.kernel_size):
            before = (
                same & (inputs.k_positions[:, :, None] - back == inputs.k_positions[:, None, :])
            ).astype(_F32)
            mixed += (
                jnp.einsum('bst,bkdt->bksd', before, inputs.state['raw'])
                * taps[self.kernel_size - 1 - back][:, None]
            )
        w = nn.silu(mixed)
        return w * jax.lax.rsqrt(jnp.square(w).sum(-1, keepdims=True) + 1e-6)

    def product(self, inputs):
        groups = inputs.q.shape[1] // inputs.k.shape[1]
        of_heads = lambda a: jnp.repeat(a, groups, axis=1)
        q, k, w = (
            inputs.q.astype(_F32),
            inputs.heads_of_keys.astype(_F32),
            of_heads(self.directions(inputs)),
        )
        beta = of_heads(jnp.where(inputs.k_segment_ids[:, None] > 0, inputs.state['beta'], 0.0))

        def back_one(v, column):
            """v [B,H,T,d]: the query after the reflections of all later tokens; gives its product with this key."""
            k_t, w_t, beta_t, seen = column  # [B,H,d], [B,H,d], [B,H], [B,1,T]
            z = jnp.einsum('bhtd,bhd->bht', v, k_t)
            along = jnp.einsum('bhtd,bhd->bht', v, w_t) * beta_t[..., None] * seen
            return v - along[..., None] * w_t[:, :, None], z

        first = lambda a, axis: jnp.moveaxis(a, axis, 0)
        columns = (first(k, 2), first(w, 2), first(beta, 2), first(inputs.visible.astype(_F32), 3))
        _, z = jax.lax.scan(back_one, q, columns, reverse=True)
        change = jnp.moveaxis(z, 0, 3) - jnp.einsum('bhtd,bhsd->bhts', q, k)
        return inputs.z + change * self.dims.head_dim**-0.5

    def logits(self, inputs):
        if not self.forget:
            return inputs.z
        total = jnp.cumsum(
            jnp.where(inputs.k_segment_ids[:, None] > 0, inputs.state['log_f'], 0.0), -1
        )
        return (
            inputs.z
            + (inputs.at_query(total)[..., None] - total[:, :, None]) * self.dims.head_dim**-0.5
        )
