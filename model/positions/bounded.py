"""RoPE with distances bounded or compressed beyond a window, for texts longer than trained.

Logits of distances n >= w come from queries and keys turned by other angles. Keys are cached as
they are and turned when read.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import ModelError
from model.positions.base import Spec, positive
from model.positions.rope import Lengthened, Rope
from model.positions.temperature import scaled


@dataclasses.dataclass(frozen=True)
class Bounded(Rope):
    """Distances below `w`, which is `within` where that is given, are RoPE's own."""

    within: int = 0
    by_rows = True

    def check(self):
        super().check()
        if self.within < 0:
            raise ModelError(
                f'config.model.positions_args.within is {self.within}: expected at least 0'
            )

    @property
    def w(self) -> int:
        """The first distance, in tokens, that is not RoPE's own."""
        raise NotImplementedError

    def share(self, inputs):
        return None

    def rotate(self, inputs, q, k):
        return q, k

    def read(self, inputs, q, k):
        return self.rotated(q, *self.turn(inputs.q_ids)), self.rotated(k, *self.turn(inputs.k_ids))

    def product(self, inputs):
        """Returns logits [B,H,T,S], those of far keys from the positions of `far` and `far_key`.

        Queries and keys have their own angle already, and are turned on from there.
        """
        turn_q = self.far(inputs.q_ids.astype(jnp.float32)) - inputs.q_ids
        turn_k = self.far_key(inputs.k_ids.astype(jnp.float32)) - inputs.k_ids
        q = self.rotated(inputs.q, *self.turn(turn_q)).astype(jnp.float32)
        k = self.rotated(inputs.heads_of_keys, *self.turn(turn_k)).astype(jnp.float32)
        far = jnp.einsum('bhtd,bhsd->bhts', q, k) * self.dims.head_dim**-0.5
        return jnp.where((inputs.distance < self.w)[:, None], inputs.z, far)

    def far(self, p: jax.Array) -> jax.Array:
        """Returns the position that the query at p takes towards far keys, float32."""
        raise NotImplementedError

    def far_key(self, p: jax.Array) -> jax.Array:
        """Returns the position that the key at p takes towards far queries, float32."""
        return jnp.zeros_like(p)


@dataclasses.dataclass(frozen=True)
class Rectified(Bounded, Lengthened):
    """Bounded, w a share of the length of training: `within` 0 is `within_share` of `length`."""

    within_share: float = 0.25

    def check(self):
        super().check()
        if not 0 < self.within_share <= 1:
            raise ModelError(
                f'config.model.positions_args.within_share is {self.within_share}: expected a '
                f'share of the length of training, more than 0 and at most 1'
            )
        if self.w > self.trained:
            raise ModelError(
                f'config.model.positions_args.within is {self.within}: expected at most the length '
                f'of training ({self.trained})'
            )

    @property
    def w(self) -> int:
        return self.within or max(1, int(self.trained * self.within_share))


@dataclasses.dataclass(frozen=True)
class LogScaled(Rectified):
    """Rectified, with queries that may be multiplied by max(1, log n / log L) (`log_n`).

    n is the place of the query counted from 1, L = `length`.
    """

    log_n: bool = True

    def scale(self, inputs, q):
        if not self.log_n:
            return q
        n = inputs.q_ids.astype(jnp.float32) + 1
        longest = np.log(max(self.trained, 2))
        return scaled(q, jnp.maximum(jnp.log(n) / longest, 1.0)[:, None, :, None])


_SU = 'Su 2023, Rectified Rotary Position Embeddings; bojone/rerope'
_BEFORE = {'within_share': 0.5, 'log_n': False}  # of version 1


@dataclasses.dataclass(frozen=True)
class ReRope(LogScaled):
    """n -> min(n, w).

    w and the scale of queries as in the repository's runs (rerope_patch.py, line 56; w = 1,024 of
    4,096).
    """

    spec = Spec(
        'ReRoPE',
        _SU,
        shift_invariant=False,
        version=2,
        before=_BEFORE,
        differs=(
            "w is L/4, as in the README's runs (README.md:27-29); the patch itself has "
            '512 of 4,096 (rerope_patch.py:129-130)',
        ),
    )

    def far(self, p):
        return jnp.full_like(p, self.w)


@dataclasses.dataclass(frozen=True)
class LeakyReRope(LogScaled):
    """n -> w + (n - w)/s from w on.

    w and the scale of queries as in ReRoPE (leaky_rerope_patch.py, line 61).
    """

    stretch: float = 16.0
    spec = Spec(
        'Leaky ReRoPE',
        _SU,
        shift_invariant=False,
        version=2,
        before=_BEFORE,
        differs=(
            "w is L/4, as in the README's runs of ReRoPE (README.md:27-29); the patch "
            'has 512 of 4,096 (leaky_rerope_patch.py:138-140)',
        ),
    )

    def check(self):
        super().check()
        positive('stretch', self.stretch)

    def far(self, p):
        return (p + self.w * (self.stretch - 1)) / self.stretch

    def far_key(self, p):
        return p / self.stretch


@dataclasses.dataclass(frozen=True)
class SelfExtend(LogScaled):
    """n -> floor(i/G) - floor(j/G) + w - w/G from w on.

    w/G is not rounded, as in the authors' code (self_extend_patch/Llama.py, line 134); `rounded`:
    floor(w/G), as in the paper. `log_n`: their `scale_base`, which is off in their runs, too.
    """

    group: int = 8
    log_n: bool = False
    rounded: bool = False
    spec = Spec(
        'SelfExtend',
        "Jin et al. 2024, arXiv 2401.01325, equation 4; the authors' code",
        shift_invariant=False,
        version=2,
        before={'within_share': 0.5, 'rounded': True},
        differs=(
            "w is L/4, 1,024 of Llama 2's 4,096 (self_extend_patch/Llama.py:73); the "
            'README takes 512 to 1,536 (README.md:94)',
            'w/G is not rounded, as in the code (self_extend_patch/Llama.py:134); in '
            'equation 4 it is (rounded)',
        ),
    )

    def check(self):
        super().check()
        positive('group', self.group)

    def far(self, p):
        less = self.w // self.group if self.rounded else self.w / self.group
        return p // self.group + self.w - less

    def far_key(self, p):
        return p // self.group


@dataclasses.dataclass(frozen=True)
class String(Bounded):
    """n -> n - S + W from S on, S = `within` (0: a third of config.model.max_len), W = `local`.

    The authors' code multiplies all logits by 1.143 besides, a constant that the paper does not
    have; it is left out.
    """

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
    """A query sees the w nearest tokens and the first `first` of the document.

    The latter stand at distance w for it. w is the length of training, so that nothing is lost
    inside it.
    """

    first: int = 10
    within_share: float = 1.0
    spec = Spec(
        'LM-Infinite',
        'Han et al. 2024, arXiv 2308.16137, section 3',
        shift_invariant=False,
        version=2,
        before={'within_share': 0.5},
        differs=(
            '10 first tokens; the README takes 10 to 100 and most of its runs 100 '
            '(README.md:225, 236)',
            'no tokens in between by their logits, an option there (models/llama.py:71-97)',
        ),
    )

    def far(self, p):
        return jnp.full_like(p, self.w)

    def mask(self, inputs):
        is_near = inputs.distance < self.w
        is_first = (inputs.k_positions < self.first)[:, None, :]
        return (is_near | is_first)[:, None]
