"""RoPE and its kin as fields of a config.json, and as encodings of the registry.

Which layers turn and which see a window only is a matter of the pattern over the layers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from apps.exchange.fields import Fields
from model.config import ModelConfig
from model.positions import PositionalEncoding
from model.positions.masks import Window
from model.positions.none import NoPositions
from model.positions.rope import InterleavedRope, ProportionalRope, Rope
from model.positions.rope_scaling import DynamicNtk, Interpolated, Llama3, Ntk, NtkByParts
from runtime.errors import RunError

_LARGEST = 10  # factor of queries and keys: a stretch by 10^9 has 3


# --- From a config.json ---------------------------------------------------------------------------


def read(fields: Fields, base: float = 10000.0) -> tuple[str, dict[str, Any], int]:
    """Returns the name of a rotation in the registry, its arguments, and the context.

    Args:
      fields: of the config.json; the rotation stands in `rope_scaling` or `rope_parameters`.
      base: where there is no `rope_theta`.
    """
    rope = fields.group('rope_scaling' if 'rope_scaling' in fields else 'rope_parameters')
    kind_field = 'rope_type' if 'rope_type' in rope else 'type'
    kind = rope.choice(kind_field, {name: name for name in _READERS}, 'default')
    context = fields.whole('max_position_embeddings', 2048)
    trained = rope.whole('original_max_position_embeddings', context)
    trained = fields.whole('original_max_position_embeddings', trained)
    if kind != 'proportional':
        rope.only('partial_rotary_factor', 1, 1.0)
    if kind in ('yarn', 'longrope') and trained < 2:
        raise RunError(f'{rope.where}: the length of training is {trained}: expected 2 or more')
    name, arguments, context = _READERS[kind](rope, context, trained)
    base = rope.number('rope_theta', fields.number('rope_theta', base))
    return name, {'base': base, **arguments}, context


def _default(rope: Fields, context: int, trained: int) -> tuple[str, dict, int]:
    return 'rope', {}, context


def _linear(rope: Fields, context: int, trained: int) -> tuple[str, dict, int]:
    return 'rope_interpolated', {'stretch': rope.number('factor'), 'length': context}, context


def _dynamic(rope: Fields, context: int, trained: int) -> tuple[str, dict, int]:
    # Their `max_position_embeddings` is the length of training here.
    stretch = rope.number('factor')
    longest = max(context, int(context * stretch))
    return 'rope_dynamic', {'stretch': stretch, 'length': context}, longest


def _yarn(rope: Fields, context: int, trained: int) -> tuple[str, dict, int]:
    rope.only('truncate', True)
    stretch = rope.number('factor', max(1.0, context / trained))
    arguments = {
        'stretch': stretch,
        'length': trained,
        'beta_fast': rope.number('beta_fast', 32.0),
        'beta_slow': rope.number('beta_slow', 1.0),
    }
    if 'attention_factor' in rope:
        # The one of our arguments that makes queries and keys as large.
        excess = _attention_factor(rope) - 1
        slope = 0.1 * math.log(stretch) if stretch > 1 else 0.0
        if excess and not slope:
            raise RunError(f'{rope.where}: attention_factor needs a factor above 1')
        if abs(excess - slope) > 1e-12:
            arguments['mscale'] = excess / slope
    elif 'mscale' in rope and 'mscale_all_dim' in rope:
        arguments['mscale'] = rope.number('mscale')
        arguments['mscale_all'] = rope.number('mscale_all_dim')
    return 'yarn', arguments, max(context, int(trained * stretch))


def _longrope(rope: Fields, context: int, trained: int) -> tuple[str, dict, int]:
    stretch = rope.number('factor', max(1.0, context / trained))
    if 'attention_factor' in rope:
        # As large as that makes them: sqrt(1 + ln s / ln length).
        stretch = math.exp((_attention_factor(rope) ** 2 - 1) * math.log(trained))
    arguments = {
        'stretch': stretch,
        'length': trained,
        'short': rope.numbers('short_factor'),
        'long': rope.numbers('long_factor'),
    }
    return 'longrope', arguments, context


def _attention_factor(rope: Fields) -> float:
    """Returns by how much queries and keys are larger."""
    factor = rope.number('attention_factor')
    if not 0 < factor <= _LARGEST:
        raise RunError(
            f'{rope.where}: attention_factor is {factor}: expected more than 0, at most {_LARGEST}'
        )
    return factor


def _llama3(rope: Fields, context: int, trained: int) -> tuple[str, dict, int]:
    arguments = {
        'stretch': rope.number('factor'),
        'length': trained,
        'low': rope.number('low_freq_factor'),
        'high': rope.number('high_freq_factor'),
    }
    return 'llama3', arguments, context


def _proportional(rope: Fields, context: int, trained: int) -> tuple[str, dict, int]:
    rope.only('factor', 1, 1.0)
    return 'rope_proportional', {'fraction': rope.number('partial_rotary_factor', 1.0)}, context


_READERS: dict[str, Callable[[Fields, int, int], tuple[str, dict, int]]] = {
    'default': _default,
    'linear': _linear,
    'dynamic': _dynamic,
    'yarn': _yarn,
    'longrope': _longrope,
    'llama3': _llama3,
    'proportional': _proportional,
}


def layered(
    rotation: tuple[str, dict[str, Any], int], turns: Sequence[bool], windows: Sequence[int]
) -> dict[str, Any]:
    """Returns the fields of config.model that say where tokens are and what they see.

    Args:
      rotation: from `read`.
      turns: for each layer, whether queries and keys are turned there.
      windows: for each layer, how many tokens see each other; 0: all.
    """
    name, arguments, context = rotation
    layers = []
    for turned, window in zip(turns, windows):
        text = name if turned else 'none'
        layers.append(f'{text}+window' if window else text)
    given = dict(arguments) if any(turns) else {}
    if any(windows):
        given['window'] = max(windows)
    return {'positions': _shorten(layers), 'positions_args': given, 'max_len': context}


def _shorten(layers: list[str]) -> str:
    """Returns the shortest pattern that gives these layers."""
    for period in range(1, len(layers)):
        if not len(layers) % period and layers == layers[:period] * (len(layers) // period):
            return ','.join(layers[:period])
    return ','.join(layers)


# --- Into a config.json ---------------------------------------------------------------------------


def find(encoding: PositionalEncoding) -> Rope | None:
    """Returns the part of an encoding that turns queries and keys, or None."""
    return next((part for part in encoding.parts if isinstance(part, Rope)), None)


def window_of(encoding: PositionalEncoding, config: ModelConfig) -> int:
    """Returns how many tokens see each other in a layer with this encoding; 0: all."""
    windows = [part.window for part in encoding.parts if isinstance(part, Window)]
    return min([*windows, *([config.window] if config.window else [])], default=0)


def write(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields that say how the layers of a model turn queries and keys.

    They are those of the first layer that does; others show when the fields are read again.
    """
    ropes = (find(encoding) for encoding in config.encodings)
    rope = next((rope for rope in ropes if rope is not None), None)
    fields: dict[str, Any] = {'max_position_embeddings': config.max_len}
    if rope is None:
        return fields
    fields['rope_theta'] = float(rope.base)
    if isinstance(rope, DynamicNtk):
        fields['max_position_embeddings'] = rope.trained
        fields['rope_scaling'] = {'rope_type': 'dynamic', 'factor': float(rope.s)}
    elif isinstance(rope, ProportionalRope):
        fields['rope_scaling'] = {
            'rope_type': 'proportional',
            'partial_rotary_factor': float(rope.fraction),
        }
    elif isinstance(rope, Ntk):
        d = rope.rotary_dim
        fields['rope_theta'] = float(rope.base * rope.s ** (d / (d - 2)))
    elif is_plain(rope) and type(rope) not in (Rope, InterleavedRope):
        fields['rope_scaling'] = _write_stretched(rope)
    return fields


def _write_stretched(rope: Any) -> dict[str, Any]:
    """Returns `rope_scaling` of a rotation with other frequencies than RoPE's."""
    if isinstance(rope, Interpolated):
        return {'rope_type': 'linear', 'factor': float(rope.s)}
    if isinstance(rope, NtkByParts):
        return {
            'rope_type': 'yarn',
            'factor': float(rope.s),
            'attention_factor': float(rope.factor),
            'beta_fast': float(rope.beta_fast),
            'beta_slow': float(rope.beta_slow),
            'original_max_position_embeddings': rope.trained,
        }
    if isinstance(rope, Llama3):
        return {
            'rope_type': 'llama3',
            'factor': float(rope.s),
            'low_freq_factor': float(rope.low),
            'high_freq_factor': float(rope.high),
            'original_max_position_embeddings': rope.trained,
        }

    # Any frequencies at all. Ours are the same for short and long texts, so both lists are.
    plain = rope.base ** (-np.arange(0, rope.rotary_dim, 2) / rope.rotary_dim)
    factors = (plain / rope.frequencies()).tolist()
    return {
        'rope_type': 'longrope',
        'factor': float(getattr(rope, 's', 1.0)),
        'attention_factor': float(rope.factor),
        'short_factor': factors,
        'long_factor': factors,
        'original_max_position_embeddings': getattr(rope, 'trained', rope.dims.max_len),
    }


# --- Two that mean the same -----------------------------------------------------------------------


def is_plain(encoding: PositionalEncoding) -> bool:
    """Returns whether an encoding is a rotation by fixed frequencies and nothing else."""
    kind = type(encoding)
    return (
        isinstance(encoding, Rope)
        and encoding.enters() == {'rotate'}
        and kind.rotate is Rope.rotate
        and kind.share is Rope.share
        and kind.turn is Rope.turn
    )


def same(a: PositionalEncoding, b: PositionalEncoding) -> bool:
    """Returns whether two encodings do the same to a model with one pairing of dimensions.

    Windows are left out (`window_of`), and so is the pairing, which is a matter of the weights.
    """
    ours, theirs = (
        [part for part in encoding.parts if not isinstance(part, (Window, NoPositions))]
        for encoding in (a, b)
    )
    return len(ours) == len(theirs) and all(map(_same_part, ours, theirs))


def _same_part(a: Any, b: Any) -> bool:
    if isinstance(a, DynamicNtk) and isinstance(b, DynamicNtk):
        ours, theirs = ((r.base, r.trained, r.s, r.freeze, r.cached) for r in (a, b))
        return ours == theirs
    if is_plain(a) and is_plain(b):
        ours, theirs = ([*rope.frequencies(), rope.factor] for rope in (a, b))
        return len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=1e-6, atol=0)
    if type(a) is not type(b):
        return False
    arguments = a.arguments()
    return all(getattr(a, name) == getattr(b, name) for name in arguments)
