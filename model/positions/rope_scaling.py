"""RoPE stretched to texts longer than trained: other frequencies at the same weights."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import ModelError
from model.positions.base import Spec
from model.positions.rope import Lengthened, Rope


@dataclasses.dataclass(frozen=True)
class Scaled(Lengthened):
    """Base of the encodings that stretch RoPE.

    `stretch`: how many times longer than `length`; 0: config.model.max_len over it.
    """

    stretch: float = 0.0

    def check(self):
        super().check()
        if self.stretch and self.stretch < 1:
            raise ModelError(
                f'config.model.positions_args.stretch is {self.stretch}: expected at least 1, or 0 '
                f'for the ratio of config.model.max_len to the length of training'
            )

    @property
    def s(self) -> float:
        """How many times longer than in training."""
        return self.stretch or max(1.0, self.dims.max_len / self.trained)

    @property
    def idle(self) -> bool:
        """True where it is RoPE itself."""
        return self.s == 1


@dataclasses.dataclass(frozen=True)
class Interpolated(Scaled):
    """Position interpolation: p -> p/s."""

    spec = Spec(
        'position interpolation (PI)',
        'Chen et al. 2023, arXiv 2306.15595, equation 4',
        shift_invariant=True,
    )

    def frequencies(self):
        return super().frequencies() / self.s


@dataclasses.dataclass(frozen=True)
class Ntk(Scaled):
    """NTK-aware: base * s^(d/(d-2)); the highest frequency stays, the lowest is divided by s."""

    spec = Spec(
        'NTK-aware scaling',
        'bloc97 2023; Peng et al. 2023, arXiv 2309.00071, equation 16',
        shift_invariant=True,
    )

    def frequencies(self):
        return _ntk(self, self.s)


def _ntk(rope: Rope, s: float) -> np.ndarray:
    """Returns the frequencies of NTK-aware scaling, float64 [rotary_dim / 2]."""
    d = rope.rotary_dim
    base = rope.base * s ** (d / (d - 2))
    return base ** (-np.arange(0, d, 2) / d)


@dataclasses.dataclass(frozen=True)
class DynamicNtk(Scaled):
    """NTK-aware with s = f l/L - (f - 1) for a text of l > L tokens, f = `stretch`.

    It is RoPE itself up to L. Keys are cached as they are and rotated when read: one rotated under
    an earlier, shorter length would be wrong (`cached='rotated'` is refused). With `freeze` the
    length is declared beforehand, and rotated keys can be cached.
    """

    cached: str = 'unrotated'
    freeze: int = 0
    spec = Spec(
        'dynamic NTK',
        'emozilla 2023; Peng et al. 2023, arXiv 2309.00071, section 3.3',
        shift_invariant=False,
        differs=(
            "all keys turn anew as a text grows; the authors' cache keeps them as they "
            'first turned (LlamaDynamicScaledRotaryEmbedding.py:27-40)',
            'a shorter text after a longer one is RoPE again; theirs keeps the longest '
            '(LlamaDynamicScaledRotaryEmbedding.py:27-28)',
        ),
    )

    def check(self):
        super().check()
        if self.cached not in ('unrotated', 'rotated'):
            raise ModelError(
                f"config.model.positions_args.cached is {self.cached!r}: expected 'unrotated' or "
                f"'rotated'"
            )
        if self.cached == 'rotated' and not self.freeze:
            raise ModelError(
                "config.model.positions_args.cached is 'rotated': dynamic NTK changes its base as "
                'the text grows, and rotated keys of the cache would be wrong; expected '
                "'unrotated', or a length in positions_args.freeze"
            )

    idle = False  # it stretches as the text grows

    @property
    def s(self):
        return self.stretch or 1.0

    def rotate(self, inputs, q, k):
        if self.cached == 'unrotated':
            return q, k
        turn = self._turn(inputs.q_ids, jnp.full_like(inputs.q_ids, self.freeze))
        return self.rotated(q, *turn), self.rotated(k, *turn)

    def share(self, inputs):
        return None

    def read(self, inputs, q, k):
        if self.cached == 'rotated':
            return q, k
        # The length of the document that each key is in, and each query.
        ids = inputs.k_ids
        if self.freeze:
            k_lengths = jnp.full_like(ids, self.freeze)
        else:
            same = inputs.k_segment_ids[:, :, None] == inputs.k_segment_ids[:, None, :]
            k_lengths = jnp.where(same, ids[:, None, :], 0).max(-1) + 1
        q_lengths = jnp.where(inputs.column_of_query, k_lengths[:, None, :], 1).max(-1)
        turn_q = self._turn(inputs.q_ids, q_lengths)
        turn_k = self._turn(ids, k_lengths)
        return self.rotated(q, *turn_q), self.rotated(k, *turn_k)

    def _turn(self, positions: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns cos and sin [B,1,T,d/2] at positions in texts of these lengths, each [B,T].

        base'^(-2c/d) = base^(-2c/d) * s^(-2c/(d-2)).
        """
        d = self.rotary_dim
        stretch = self.s * lengths.astype(jnp.float32) / self.trained - (self.s - 1)
        s = jnp.maximum(1.0, stretch)[:, None, :, None]
        slower = s ** jnp.asarray(-np.arange(0, d, 2) / (d - 2), jnp.float32)
        p = positions[:, None, :, None].astype(jnp.float32)
        angle = p * jnp.asarray(self.frequencies(), jnp.float32) * slower
        return jnp.cos(angle), jnp.sin(angle)


@dataclasses.dataclass(frozen=True)
class NtkByParts(Scaled):
    """Divides low frequencies by s, keeps high ones, with a ramp between.

    Those of at least `beta_fast` turns in the trained length stay, those of at most `beta_slow` are
    divided. The ramp is linear in the number of the pair (floor and ceiling of where the two lie),
    as in the code of YaRN.
    """

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    spec = Spec(
        'NTK by parts',
        'Peng et al. 2023, arXiv 2309.00071, section 3.2',
        shift_invariant=True,
        differs=(
            "the ramp is linear in the pair's number, as in the code "
            '(LlamaYaRNScaledRotaryEmbedding.py:9-22); in the paper in turns (equation '
            '18)',
            "not the repository's by-parts, with NTK in the middle and 1.25, .75, 16, 2 "
            'turns (LlamaPartNTKScaledRotaryEmbedding.py:27-50)',
        ),
    )

    def check(self):
        super().check()
        if not self.beta_fast > self.beta_slow > 0:
            raise ModelError(
                f'config.model.positions_args.beta_fast is {self.beta_fast}: expected more than '
                f'beta_slow ({self.beta_slow}), and that above 0'
            )

    def frequencies(self):
        theta = super().frequencies()
        d = self.rotary_dim
        low = max(math.floor(self._pair_of(self.beta_fast)), 0)
        high = min(math.ceil(self._pair_of(self.beta_slow)), d - 1)
        ramp = np.clip((np.arange(d // 2) - low) / max(high - low, 0.001), 0, 1)
        return theta / self.s * ramp + theta * (1 - ramp)

    def _pair_of(self, turns: float) -> float:
        """Returns the number of the pair, not whole, that makes so many turns in training."""
        wavelength = self.trained / (turns * 2 * math.pi)
        return self.rotary_dim * math.log(wavelength) / (2 * math.log(self.base))


@dataclasses.dataclass(frozen=True)
class Yarn(NtkByParts):
    """NTK by parts, with queries and keys times m(s) = 0.1 `mscale` ln s + 1.

    Logits are so multiplied by its square. Where `mscale_all` is set m is divided by m at that.
    """

    mscale: float = 1.0
    mscale_all: float = 0.0
    spec = Spec(
        'YaRN',
        'Peng et al. 2023, arXiv 2309.00071, equations 20 to 22',
        shift_invariant=True,
        differs=(
            "the ramp is linear in the pair's number, as in the code "
            '(LlamaYaRNScaledRotaryEmbedding.py:9-22); in the paper in turns (equation '
            '18)',
        ),
    )

    @property
    def factor(self):
        m = 0.1 * self.mscale * math.log(self.s) + 1
        m_all = 0.1 * self.mscale_all * math.log(self.s) + 1 if self.mscale_all else 1.0
        return m / m_all


@dataclasses.dataclass(frozen=True)
class Llama3(Scaled):
    """Divides frequencies of wavelengths above length/`low` by s.

    Those below length/`high` stay, those between are blended.
    """

    base: float = 500000.0
    stretch: float = 8.0
    length: int = 8192
    low: float = 1.0
    high: float = 4.0
    spec = Spec(
        'Llama 3 scaling',
        'Grattafiori et al. 2024, arXiv 2407.21783; the scaling of Llama 3.1',
        shift_invariant=True,
    )

    def check(self):
        super().check()
        if not self.high > self.low:
            raise ModelError(
                f'config.model.positions_args.high is {self.high}: expected more than low '
                f'({self.low})'
            )

    def frequencies(self):
        theta = super().frequencies()
        turns = self.trained * theta / (2 * np.pi)
        smooth = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (1 - smooth) * theta / self.s + smooth * theta


@dataclasses.dataclass(frozen=True)
class LongRope(Scaled):
    """theta_c / lambda_c, with one list of factors for short texts and one for long ones.

    Short ones are up to the trained length. Which list is decided once, by config.model.max_len,
    not by the text at hand: a cache may outgrow the trained length. Queries and keys are multiplied
    by sqrt(1 + ln s / ln length). Empty lists: 1 for short texts, s^(2c/(d-2)) for long ones
    (NTK-aware); the paper searches for them.
    """

    short: tuple = ()
    long: tuple = ()
    spec = Spec(
        'LongRoPE',
        'Ding et al. 2024, arXiv 2402.13753; Phi-3',
        shift_invariant=True,
        differs=(
            'without lists the factors are NTK-aware: the search for them is not there '
            '(section 3.2; evolution/search.py)',
            'the first tokens are stretched too; the paper leaves n^ of them as they '
            'were (rope/longrope.py:117-151)',
            'config.model.max_len chooses the list, once; Phi-3 goes by the text at '
            'hand (modeling_rope_utils.py:47-79)',
        ),
    )

    def check(self):
        super().check()
        for name, factors in (('short', self.short), ('long', self.long)):
            if factors and (len(factors) != self.rotary_dim // 2 or min(factors) <= 0):
                raise ModelError(
                    f'config.model.positions_args.{name} has {len(factors)} factors: expected '
                    f'{self.rotary_dim // 2}, one a pair of dimensions, all above 0'
                )

    @property
    def idle(self):
        return super().idle and not self.short

    def frequencies(self):
        theta = super().frequencies()
        if self.dims.max_len <= self.trained:
            return theta / np.asarray(self.short or (1.0,) * (self.rotary_dim // 2))
        return theta / np.asarray(self.long) if self.long else _ntk(self, self.s)

    @property
    def factor(self):
        return math.sqrt(1 + math.log(self.s) / math.log(self.trained)) if self.s > 1 else 1.0
