"""RoPE whose distances are bounded or compressed beyond a window, for longer texts at the same weights.

Logits of distances n >= w come from queries and keys turned by other angles. Keys are cached as they are and turned when read.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model.errors import ModelError
from model.positions.base import Spec, positive
from model.positions.rope import Lengthened, Rope


@dataclasses.dataclass(frozen=True)
class Bounded(Rope):
    """Distances below `w`, which is `within` where that is given, are RoPE's own."""

    within: int = 0

    def check(self):
        super().check()
        if self.within < 0:
            raise ModelError(
                f'config.model.positions_args.within is {self.within}: expected at least 0'
            )

    @property
    def w(self) -> int:
        raise NotImplementedError

    def share(self, site):
        return None

    def rotate(self, site, q, k):
        return q, k

    def read(self, site, q, k):
        return self.rotated(q, *self.turn(site.q_positions)), self.rotated(
            k, *self.turn(site.k_positions)
        )

    def product(self, site):
        """Queries and keys have their own angle already: what is added turns them on to where the far ones stand."""
        of_query, of_key = (
            self.far(site.q_positions.astype(jnp.float32)),
            self.far_key(site.k_positions.astype(jnp.float32)),
        )
        q = self.rotated(site.q, *self.turn(of_query - site.q_positions)).astype(jnp.float32)
        k = self.rotated(site.heads_of_keys, *self.turn(of_key - site.k_positions)).astype(
            jnp.float32
        )
        far = jnp.einsum('bhtd,bhsd->bhts', q, k) * self.dims.head_dim**-0.5
        return jnp.where((site.distance < self.w)[:, None], site.z, far)

    def far(self, p: jax.Array) -> jax.Array:
        """The position that the query at p takes towards far keys, float32."""
        raise NotImplementedError

    def far_key(self, p: jax.Array) -> jax.Array:
        return jnp.zeros_like(p)


@dataclasses.dataclass(frozen=True)
class Rectified(Bounded, Lengthened):
    """`within`: 0: half of `length`."""

    def check(self):
        super().check()
        if self.w > self.trained:
            raise ModelError(
                f'config.model.positions_args.within is {self.within}: expected at most the length of training ({self.trained})'
            )

    @property
    def w(self) -> int:
        return self.within or max(1, self.trained // 2)


@dataclasses.dataclass(frozen=True)
class ReRope(Rectified):
    """n -> min(n, w)."""

    spec = Spec('ReRoPE', 'Su 2023, Rectified Rotary Position Embeddings', shift_invariant=True)

    def far(self, p):
        return jnp.full_like(p, self.w)


@dataclasses.dataclass(frozen=True)
class LeakyReRope(Rectified):
    """n -> w + (n - w)/s from w on."""

    stretch: float = 16.0
    spec = Spec(
        'Leaky ReRoPE', 'Su 2023, Rectified Rotary Position Embeddings', shift_invariant=True
    )

    def check(self):
        super().check()
        positive('stretch', self.stretch)

    def far(self, p):
        return (p + self.w * (self.stretch - 1)) / self.stretch

    def far_key(self, p):
        return p / self.stretch


@dataclasses.dataclass(frozen=True)
class SelfExtend(Rectified):
    """n -> floor(i/G) - floor(j/G) + w - floor(w/G) from w on."""

    group: int = 8
    spec = Spec(
        'SelfExtend', 'Jin et al. 2024, arXiv 2401.01325, equation 4', shift_invariant=False
    )

    def check(self):
        super().check()
        positive('group', self.group)

    def far(self, p):
        return p // self.group + self.w - self.w // self.group

    def far_key(self, p):
        return p // self.group


@dataclasses.dataclass(frozen=True)
class String(Bounded):
    """n -> n - S + W from S on, S = `within` (0: a third of config.model.max_len), W = `local`. (The authors' code multiplies all logits
    by 1.143 besides, a constant that the paper does not have; it is left out.)"""

    local: int = 128
    spec = Spec(
        'STRING',
        'An et al. 2024, arXiv 2410.18745, section 4',
        shift_invariant=True,
        differs=(
            'logits are not multiplied by (.1 ln 2 + 1)^2 = 1.143: only in the code '
            '(string_for_llama.py:308-309), not in section 4',
            'S is L/3; the scripts have int(.33 L) (README.md:28)',
            'the key at n = S counts once, as in decoding; the prefill counts it twice '
            '(string_for_llama.py:330-350)',
        ),
    )

    @property
    def w(self):
        return self.within or max(1, self.dims.max_len // 3)

    def check(self):
        super().check()
        positive('local', self.local)

    def far(self, p):
        return p - self.w + min(self.local, self.w)

    def far_key(self, p):
        return p


@dataclasses.dataclass(frozen=True)
class LmInfinite(Rectified):
    """A query sees the w nearest tokens and the first `first` of the document; those stand at distance w for it."""

    first: int = 10
    spec = Spec(
        'LM-Infinite', 'Han et al. 2024, arXiv 2308.16137, section 3', shift_invariant=False
    )

    def far(self, p):
        return jnp.full_like(p, self.w)

    def mask(self, site):
        return ((site.distance < self.w) | (site.k_places < self.first)[:, None, :])[:, None]
