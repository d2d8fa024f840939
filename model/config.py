"""The architecture, resolved and checked: what a model needs to know of an experiment's config."""

import dataclasses
import math

from model import kernels
from model.errors import ModelError, did_you_mean
from model.positions import Dims, PositionalEncoding, build

REMAT = ('none', 'full', 'attention', 'minimal')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Fields as in `configs/base.py`; `encodings` holds one positional encoding a layer."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    activation: str
    norm: str
    qk_norm: bool
    causal: bool
    window: int
    logit_cap: float
    tied: bool
    scale_embedding: bool
    logit_scale: bool
    bag: bool
    dropout: float
    max_len: int
    dtype: str
    param_dtype: str
    scan_layers: bool
    remat: str
    attention: str
    context_attention: str
    encodings: tuple[PositionalEncoding, ...]

    @property
    def residual_scale(self) -> float:
        """Variance of the weights that write to the residual stream: 2 writes a layer add up to 1 (GPT-2)."""
        return 1 / (2 * self.num_layers)

    @property
    def distinct(self) -> tuple[PositionalEncoding, ...]:
        """The encodings of the pattern, each once."""
        return tuple(dict.fromkeys(self.encodings))

    @property
    def parts(self) -> tuple[PositionalEncoding, ...]:
        """What the encodings are made of, each once."""
        return tuple(dict.fromkeys(p for e in self.encodings for p in e.parts))

    @property
    def scopes(self) -> tuple[str, ...]:
        """The name of the scope of each of `parts` for what belongs to the whole model."""
        names = [part.name for part in self.parts]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        return tuple(
            f'positions_{name}' + (f'_{n + 1}' if n else '') for name, n in zip(names, before)
        )

    @property
    def period(self) -> int:
        """The length of the pattern of encodings that repeats over the layers."""
        e = self.encodings
        return next(
            p
            for p in range(1, len(e) + 1)
            if not len(e) % p and all(e[i] is e[i % p] for i in range(len(e)))
        )

    def weight(self, shape, axes, init, name):
        from model.layers import Weight

        return Weight(shape, axes, init, self.dtype, self.param_dtype, name=name)


def resolve(config, vocab_size: int, seq_len: int) -> ModelConfig:
    """The `model` part of an experiment -> ModelConfig, with what is 0 filled in. Of a run, its
    `encodings` say what `positions` and `positions_args` meant when it was made.

    Raises ModelError where a field has no valid value or two do not fit each other.
    """
    c = config
    for name, most in (
        ('width', 2**20),
        ('num_layers', 2**10),
        ('num_heads', 2**14),
        ('num_kv_heads', 2**14),
    ):
        if not (isinstance(c[name], int) and 1 <= c[name] <= most):
            raise ModelError(
                f'config.model.{name} is {c[name]!r}: expected a whole number from 1 to {most}'
            )
    for name in ('head_dim', 'mlp_width', 'window', 'logit_cap', 'max_len'):
        if not (isinstance(c[name], (int, float)) and 0 <= c[name] < math.inf):
            raise ModelError(f'config.model.{name} is {c[name]!r}: expected at least 0')
    for name, valid in (
        ('activation', ('swiglu', 'gelu')),
        ('norm', ('rmsnorm', 'layernorm')),
        ('remat', REMAT),
        ('context_attention', kernels.CONTEXT),
        ('dtype', ('float32', 'bfloat16')),
        ('param_dtype', ('float32', 'bfloat16')),
    ):
        if c[name] not in valid:
            raise ModelError(f'config.model.{name} is {c[name]!r}: {did_you_mean(c[name], valid)}')
    if not c.head_dim and c.width % c.num_heads:
        raise ModelError(
            f'config.model.width is {c.width}: expected a multiple of num_heads ({c.num_heads}), or set head_dim'
        )
    if c.num_heads % c.num_kv_heads:
        raise ModelError(
            f'config.model.num_heads is {c.num_heads}: expected a multiple of num_kv_heads ({c.num_kv_heads})'
        )
    if not 0 <= c.dropout < 1:
        raise ModelError(
            f'config.model.dropout is {c.dropout}: expected a share, at least 0 and less than 1'
        )
    max_len = c.max_len or seq_len
    if max_len < seq_len:
        raise ModelError(
            f'config.model.max_len is {max_len}: expected at least config.data.seq_len ({seq_len})'
        )
    head_dim = c.head_dim or c.width // c.num_heads
    mlp_width = c.mlp_width or (
        4 * c.width if c.activation == 'gelu' else -(-8 * c.width // 3 // 32) * 32
    )
    dims = Dims(c.width, c.num_heads, c.num_kv_heads, head_dim, c.num_layers, max_len, seq_len)
    recorded = c.get('encodings') or ()
    encodings = build(c.positions, dict(c.positions_args), dims, recorded)
    kernels.check(c.attention, dict.fromkeys(encodings), dims, c.dtype, c.logit_cap)
    if c.scale_embedding and any(
        getattr(part, 'scale_tokens', False) for encoding in encodings for part in encoding.parts
    ):
        raise ModelError(
            f'config.model.scale_embedding: {c.positions!r} scales the embedding itself; expected False, or '
            f'config.model.positions_args.scale_tokens=False'
        )
    for encoding in encodings if not c.causal else ():
        if not encoding.bidirectional:
            raise ModelError(
                f'config.model.causal is False: {encoding.spec.title} is defined for tokens that see those before them; expected '
                f"'none', 'rope' or another that only rotates, or is added to the embedding"
            )
    return ModelConfig(
        vocab_size=vocab_size,
        head_dim=head_dim,
        mlp_width=mlp_width,
        max_len=max_len,
        encodings=encodings,
        **{
            k: c[k]
            for k in (
                'width',
                'num_layers',
                'num_heads',
                'num_kv_heads',
                'activation',
                'norm',
                'qk_norm',
                'causal',
                'window',
                'logit_cap',
                'tied',
                'scale_embedding',
                'logit_scale',
                'bag',
                'dropout',
                'dtype',
                'param_dtype',
                'scan_layers',
                'remat',
                'attention',
                'context_attention',
            )
        },
    )
