"""The architecture, resolved and checked: what a model needs to know of an experiment's config."""

import dataclasses
from typing import Literal, get_args, get_type_hints

from model import kernels
from model.errors import ModelError, did_you_mean
from model.lora import Lora
from model.positions import Dims, PositionalEncoding, build

Floats = Literal['float32', 'bfloat16']

_QKV = ('query', 'key', 'value')
_FEED_FORWARD = ('up', 'gate', 'down')
BIASED = {  # config.model.biases -> projections
    'none': (),
    'qkv': _QKV,
    'attention': (*_QKV, 'out'),
    'feed_forward': _FEED_FORWARD,
    'all': (*_QKV, 'out', *_FEED_FORWARD),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model is made of: the fields of `configs/base.py`, where sizes that followed from
    others are filled in, `encodings`, one positional encoding for each layer, and `lora`, which
    matrices learn through factors."""

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    residual: Literal['pre_norm', 'post_norm', 'parallel']
    activation: Literal['swiglu', 'gelu', 'gelu_exact']
    biases: Literal['none', 'qkv', 'attention', 'feed_forward', 'all']
    norm: Literal['rmsnorm', 'layernorm', 'layernorm_no_bias']
    norm_eps: float
    embedding_norm: bool
    qk_norm: bool
    qk_norm_over: Literal['head', 'heads']
    mixing: Literal['attention', 'window', 'average', 'none']
    causal: bool
    window: int
    logit_cap: float
    tied: bool
    scale_embedding: bool
    logit_scale: bool
    bag: bool
    dropout: float
    max_len: int
    dtype: Floats
    param_dtype: Floats
    scan_layers: bool
    remat: Literal['none', 'full', 'attention', 'minimal']
    attention: Literal['auto', 'reference', 'blocks', 'xla', 'cudnn', 'splash', 'tiles']
    context_attention: Literal['auto', 'ring', 'gather']
    encodings: tuple[PositionalEncoding, ...]
    lora: Lora | None = None

    @property
    def residual_scale(self) -> float:
        """Returns the variance of weights that write to the residual stream.

        The 2 writes of each layer add up to 1 (GPT-2).
        """
        return 1 / (2 * self.num_layers)

    @property
    def mixing_width(self) -> int:
        """Returns the hidden size of a network over a window (`model.mixing.WindowMixing`).

        It then has the weights of attention, to the nearest whole number.
        """
        ups = 2 if self.activation == 'swiglu' else 1
        a_unit = (ups * self.window + 1) * self.width
        heads = self.num_heads, self.num_kv_heads
        return max(1, round(attention_weights(self.width, *heads, self.head_dim) / a_unit))

    @property
    def distinct(self) -> tuple[PositionalEncoding, ...]:
        """Encodings of the pattern, each once."""
        return tuple(dict.fromkeys(self.encodings))

    @property
    def parts(self) -> tuple[PositionalEncoding, ...]:
        """Parts that the encodings are made of, each once."""
        return tuple(dict.fromkeys(p for e in self.encodings for p in e.parts))

    @property
    def scopes(self) -> tuple[str, ...]:
        """Names of the scopes of `parts`, for what belongs to the whole model."""
        names = [part.name for part in self.parts]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        return tuple(
            f'positions_{name}' + (f'_{n + 1}' if n else '') for name, n in zip(names, before)
        )

    @property
    def period(self) -> int:
        """Length of the pattern of encodings that repeats over the layers."""
        e = self.encodings
        for period in range(1, len(e)):
            repeats = all(e[i] is e[i % period] for i in range(len(e)))
            if not len(e) % period and repeats:
                return period
        return len(e)

    def has_bias(self, projection: str) -> bool:
        """Returns whether a projection of attention or feed-forward, by its name, has a bias."""
        return projection in BIASED[self.biases]

    def weight(self, shape, axes, init, name):
        """Returns a layer that holds one weight (`model.layers.Weight`)."""
        from model.layers import Weight

        return Weight(shape, axes, init, self.dtype, self.param_dtype, self.lora, name=name)


_MADE = ('vocab_size', 'encodings', 'lora')  # of `ModelConfig`, not fields of a config's `model`


def resolve(config, vocab_size: int, seq_len: int) -> ModelConfig:
    """Returns the architecture that the `model` part of an experiment stands for.

    That numbers lie in their ranges is checked before, from the entries of `configs/base.py`;
    here, that values have the types of `ModelConfig` and fit each other.

    Args:
      config: the `model` part. In that of a run, `encodings` say what `positions` and
        `positions_args` meant when it was made.
      vocab_size: pieces of the tokenizer.
      seq_len: tokens of a row in training.

    Raises:
      ModelError: a value of another type, or two that do not fit each other.
    """
    names = [f.name for f in dataclasses.fields(ModelConfig) if f.name not in _MADE]
    fields = {name: config[name] for name in names}
    _check_types(fields)
    _check_heads(config)

    # Sizes that are 0 follow from others.
    max_len = config.max_len or seq_len
    if max_len < seq_len:
        raise ModelError(
            f'config.model.max_len is {max_len}: expected at least config.data.seq_len ({seq_len})'
        )
    head_dim = config.head_dim or config.width // config.num_heads
    mlp_width = config.mlp_width or _mlp_width(config, head_dim)

    dims = Dims(
        config.width,
        config.num_heads,
        config.num_kv_heads,
        head_dim,
        config.num_layers,
        max_len,
        seq_len,
    )
    meant = config.get('encodings') or ()
    encodings = build(config.positions, dict(config.positions_args), dims, meant)
    _check_mixing(config, encodings, max_len)
    kernels.check(config.attention, dict.fromkeys(encodings), dims, config.dtype, config.logit_cap)
    _check_encodings(config, encodings)
    made = dict(
        vocab_size=vocab_size,
        head_dim=head_dim,
        mlp_width=mlp_width,
        max_len=max_len,
        encodings=encodings,
    )
    return ModelConfig(**(fields | made))


def attention_weights(width: int, num_heads: int, num_kv_heads: int, head_dim: int) -> int:
    """Returns how many weights attention has in one layer."""
    return 2 * width * head_dim * (num_heads + num_kv_heads)


def _mlp_width(config, head_dim: int) -> int:
    """Returns the usual width of a feed-forward: 4 times the model's, or 8/3 for the three matrices
    of SwiGLU (Shazeer 2020), which have as many parameters then, up to a multiple of 32.

    Where nothing with weights stands in attention's place it gets those that attention would have.
    """
    width = config.width
    is_gated = config.activation == 'swiglu'
    usual = -(-8 * width // 3 // 32) * 32 if is_gated else 4 * width
    if config.mixing not in ('average', 'none'):
        return usual
    weights = attention_weights(width, config.num_heads, config.num_kv_heads, head_dim)
    return usual + round(weights / (width * (3 if is_gated else 2)) / 4) * 4


def _check_types(fields: dict) -> None:
    """Raises ModelError where a value is not of the type that `ModelConfig` says."""
    for name, kind in get_type_hints(ModelConfig).items():
        if name in _MADE:
            continue
        value, choices = fields[name], get_args(kind)
        if choices and value not in choices:
            raise ModelError(
                f'config.model.{name} is {value!r}: {did_you_mean(str(value), choices)}'
            )
        if choices:
            continue
        fits = type(value) is kind or kind is float and type(value) is int
        if not fits:
            raise ModelError(f'config.model.{name} is {value!r}: expected {kind.__name__}')


def _check_heads(config) -> None:
    """Raises ModelError where heads do not share the width, or queries do not share keys."""
    if not config.head_dim and config.width % config.num_heads:
        raise ModelError(
            f'config.model.width is {config.width}: expected a multiple of num_heads '
            f'({config.num_heads}), or set head_dim'
        )
    if config.num_heads % config.num_kv_heads:
        raise ModelError(
            f'config.model.num_heads is {config.num_heads}: expected a multiple of num_kv_heads '
            f'({config.num_kv_heads})'
        )


def _check_encodings(config, encodings: tuple[PositionalEncoding, ...]) -> None:
    """Raises ModelError where an encoding cannot be in a model with these fields."""
    parts = [part for encoding in encodings for part in encoding.parts]
    if config.scale_embedding and any(getattr(part, 'scale_tokens', False) for part in parts):
        raise ModelError(
            f'config.model.scale_embedding: {config.positions!r} scales the embedding itself; '
            f'expected False, or config.model.positions_args.scale_tokens=False'
        )
    for encoding in encodings:
        if not config.causal and not encoding.bidirectional:
            raise ModelError(
                f'config.model.causal is False: {encoding.spec.title} is defined for tokens that '
                f"see those before them; expected 'none', 'rope' or another that only rotates, or "
                f'is added to the embedding'
            )


def _check_mixing(config, encodings: tuple[PositionalEncoding, ...], max_len: int) -> None:
    """Raises ModelError where what stands in attention's place does not go with other fields."""
    if config.mixing == 'attention':
        return
    named = f'config.model.mixing is {config.mixing!r}'
    has_window = config.mixing != 'none'
    if has_window != bool(config.window):
        expected = 'at least 1, the tokens that it reads' if has_window else '0: it reads one token'
        raise ModelError(f'{named}, config.model.window {config.window}: expected {expected}')
    if config.window > max_len:
        raise ModelError(
            f'{named}, config.model.window {config.window}: expected at most {max_len}, the tokens '
            'of a text'
        )
    if not config.causal:
        raise ModelError(
            f"{named}: it reads what came before; expected config.model.causal=True, or 'attention'"
        )
    if 'query' in BIASED[config.biases]:
        raise ModelError(
            f'{named}, config.model.biases {config.biases!r}: attention is not there; expected '
            f"'none' or 'feed_forward'"
        )
    for part in dict.fromkeys(part for encoding in encodings for part in encoding.parts):
        if part.enters() - {'embed', 'position_ids'}:
            raise ModelError(
                f'{named}: {part.spec.title} enters attention, which is not there; expected '
                f"config.model.positions='none', or one that is added to the embedding"
            )
