"""The registry of positional encodings. Adding one means adding one file and one line here."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from model.errors import ModelError, did_you_mean
from model.positions.alibi import Alibi, LearnedAlibi, WindowedHeads
from model.positions.base import (
    ENTERS,
    Dims,
    EncodingInputs,
    PositionalEncoding,
    Spec,
    check_numbers,
)
from model.positions.bounded import LeakyReRope, LmInfinite, ReRope, SelfExtend, String
from model.positions.composite import Composite
from model.positions.contextual import (
    Cope,
    Dape,
    DapeV2,
    Selective,
    StickBreaking,
    UnscaledCope,
    Wall,
)
from model.positions.disentangled import Deberta, Shaw, TransformerXl, Tupe
from model.positions.drawn import Pose, Randomized
from model.positions.forgetting import BiasOnlyForgetting, Cable, FixedForgetting, Forgetting
from model.positions.grape import BothGrapeA, ContextualGrapeM, GrapeA, GrapeAp, GrapeM, QueryGrapeA
from model.positions.learned import Learned
from model.positions.masks import Chunk, QkNorm, Window
from model.positions.none import NoPositions
from model.positions.path import Path
from model.positions.pope import Pope
from model.positions.rope import InterleavedRope, PartialRope, ProportionalRope, Rope, Xpos
from model.positions.rope_scaling import (
    DynamicNtk,
    Interpolated,
    Llama3,
    LongRope,
    Ntk,
    NtkByParts,
    Yarn,
)
from model.positions.sinusoidal import ConcatenatedSinusoidal, ScaledSinusoidal, Sinusoidal
from model.positions.t5 import T5, UnscaledT5
from model.positions.task_ids import Abacus, Coupling
from model.positions.temperature import HeadScale, ScalableSoftmax, Temperature
from model.positions.toeplitz import Fire, KerpleLog, KerplePower, Sandwich

REGISTRY: dict[str, type[PositionalEncoding]] = {
    'none': NoPositions,
    'sinusoidal': Sinusoidal,
    'sinusoidal_concatenated': ConcatenatedSinusoidal,
    'sinusoidal_scaled': ScaledSinusoidal,
    'learned': Learned,
    'rope': Rope,
    'rope_interleaved': InterleavedRope,
    'rope_partial': PartialRope,
    'rope_proportional': ProportionalRope,
    'xpos': Xpos,
    'rope_interpolated': Interpolated,
    'rope_ntk': Ntk,
    'rope_dynamic': DynamicNtk,
    'rope_by_parts': NtkByParts,
    'yarn': Yarn,
    'llama3': Llama3,
    'longrope': LongRope,
    'rerope': ReRope,
    'rerope_leaky': LeakyReRope,
    'self_extend': SelfExtend,
    'string': String,
    'lm_infinite': LmInfinite,
    't5': T5,
    't5_unscaled': UnscaledT5,
    'alibi': Alibi,
    'alibi_learned': LearnedAlibi,
    'windowed_heads': WindowedHeads,
    'kerple_log': KerpleLog,
    'kerple_power': KerplePower,
    'fire': Fire,
    'sandwich': Sandwich,
    'shaw': Shaw,
    'transformer_xl': TransformerXl,
    'deberta': Deberta,
    'tupe': Tupe,
    'cope': Cope,
    'cope_unscaled': UnscaledCope,
    'selective': Selective,
    'stick_breaking': StickBreaking,
    'dape': Dape,
    'dape_v2': DapeV2,
    'wall': Wall,
    'pope': Pope,
    'path': Path,
    'grape_m': GrapeM,
    'grape_m_context': ContextualGrapeM,
    'grape_a': GrapeA,
    'grape_a_query': QueryGrapeA,
    'grape_a_both': BothGrapeA,
    'grape_ap': GrapeAp,
    'forgetting': Forgetting,
    'forgetting_fixed': FixedForgetting,
    'forgetting_bias_only': BiasOnlyForgetting,
    'cable': Cable,
    'randomized': Randomized,
    'pose': Pose,
    'abacus': Abacus,
    'coupling': Coupling,
    'ssmax': ScalableSoftmax,
    'temperature': Temperature,
    'head_scale': HeadScale,
    'window': Window,
    'chunk': Chunk,
    'qk_norm': QkNorm,
}


class Pattern(NamedTuple):
    """Describes a pattern over the layers that has a name of its own."""

    layers: str
    source: str
    version: int = 1  # as of a Spec
    before: str = ''  # its layers in version 1, where those were others
    differs: tuple[str, ...] = ()  # as of a Spec


# config.model.num_layers has to be a multiple of their length.
_LLAMA_4 = 'rope(base=500000.0,layout=interleaved)+qk_norm+chunk'
PATTERNS = {
    'rnope_swa': Pattern(
        'rope+window,rope+window,rope+window,none',
        'Yang et al. 2025, arXiv 2501.18795, section 4',
        differs=(
            "dimension c pairs up with c + d/2; the authors' Command models pair 2c with 2c + 1 "
            '(modeling_cohere2.py:142-147; layout)',
        ),
    ),
    'irope': Pattern(
        f'{_LLAMA_4},{_LLAMA_4},{_LLAMA_4},none+temperature',
        'Meta 2025, Llama 4, the released model',
        version=2,
        before='rope+qk_norm+chunk,rope+qk_norm+chunk,rope+qk_norm+chunk,none+temperature',
        differs=(
            'RoPE is not stretched, which a released model may ask for '
            '(llama4/args.py:73-75, 100-107)',
            'norm of queries and keys, as in Scout; Maverick has none (modeling_llama4.py:355)',
        ),
    ),
    'smollm3': Pattern(
        'rope(base=2000000.0),rope(base=2000000.0),rope(base=2000000.0),none',
        'Bakouch et al. 2025, SmolLM3',
        version=2,
        before='rope,rope,rope,none',
    ),
}


def build(
    pattern: str, arguments: dict, dims: Dims, recorded: Sequence[dict] = ()
) -> tuple[PositionalEncoding, ...]:
    """Returns the encodings that a pattern and its arguments mean, one a layer.

    'rope'; 'rope,rope,none', repeated over the layers; 'randomized+rope', several at once in the
    same layer; 'rope(base=1e6)', with arguments of its own; 'irope', a pattern that has a name.
    Layers of the same text share one object. An argument goes to each encoding of the pattern that
    has it, and counts for more than what stands in parentheses. An encoding that enters the
    embedding does so once, for all layers. `recorded`: what a run says that they meant when it was
    made (`resolved`); empty: what they mean now.
    Raises ModelError for an unknown name, an argument that none has or of another type, a pattern
    that does not fit, and position ids that two layers would change differently.
    """
    layers, members = _read(pattern, arguments, recorded)
    if dims.num_layers % len(layers):
        raise ModelError(
            f'config.model.positions has {len(layers)} entries, config.model.num_layers is '
            f'{dims.num_layers}: expected a pattern whose length divides the layers'
        )

    # Built twice: how many ids there are is known when all encodings are, and tables have a row
    # each.
    dims = dataclasses.replace(
        dims, ids=max(encoding.num_ids for encoding in _instances(members, dims).values())
    )
    instances = _instances(members, dims)
    for encoding in instances.values():
        encoding.check()
    _check_ids(members)

    # Layers of the same text share one object, by which the model knows that they are alike.
    by_layer: dict[tuple[str, ...], PositionalEncoding] = {}
    for layer in dict.fromkeys(layers):
        parts = tuple(instances[text] for text in layer)
        by_layer[layer] = parts[0] if len(parts) == 1 else Composite(dims, parts)
        by_layer[layer].check_use()
    return tuple(by_layer[layers[i % len(layers)]] for i in range(dims.num_layers))


_Members = dict[str, tuple[type[PositionalEncoding], dict]]  # text -> class, all its arguments


def _instances(members: _Members, dims: Dims) -> dict[str, PositionalEncoding]:
    """Returns the encodings that the texts of a pattern mean."""
    return {text: kind(dims=dims, **own) for text, (kind, own) in members.items()}


def _check_ids(members: _Members) -> None:
    """Raises ModelError where a class that changes position ids has different arguments.

    Ids are the whole model's, and each of its members would change those of the other.
    """
    first: dict[type[PositionalEncoding], tuple[str, dict]] = {}
    for text, (kind, own) in members.items():
        if 'position_ids' not in kind.enters():
            continue
        other, other_arguments = first.setdefault(kind, (text, own))
        if own != other_arguments:
            raise ModelError(
                f'config.model.positions has {other!r} and {text!r}: position ids are the same for '
                f'all layers; expected one of them, with the same arguments in each layer'
            )


def resolve_pattern(pattern: str, arguments: dict, first: bool = False) -> list[dict]:
    """Returns what a pattern and its arguments mean, as runs record it.

    `build` takes it as `recorded`.

    Args:
      first: as version 1 of each encoding meant it, for what was made before versions were kept.
    Returns:
      For each encoding of the pattern, and for a pattern that has a name,
      {'name': str, 'version': int, 'arguments': {name: value}}, all arguments with their values.
    Raises:
      ModelError: as `build`.
    """
    _, members = _read(pattern, arguments, first=first)
    records = []
    if pattern in PATTERNS:
        version = 1 if first else PATTERNS[pattern].version
        layers = {'layers': _layers_of(pattern, (), first)}
        records.append({'name': pattern, 'version': version, 'arguments': layers})
    for text, (kind, own) in members.items():
        version = 1 if first else kind.spec.version
        records.append({'name': text, 'version': version, 'arguments': own})
    return records


def _layers_of(pattern: str, recorded: Sequence[dict], first: bool = False) -> str:
    """Returns the layers of a pattern, which may be a name."""
    if pattern not in PATTERNS:
        return pattern
    for record in recorded:
        if record['name'] == pattern:
            return record['arguments']['layers']
    if first and PATTERNS[pattern].before:
        return PATTERNS[pattern].before
    return PATTERNS[pattern].layers


def _read(
    pattern: str, arguments: dict, recorded: Sequence[dict] = (), first: bool = False
) -> tuple[list[tuple[str, ...]], _Members]:
    """Returns the texts of the encodings in each layer, and what each text means.

    Raises ModelError as `build`.
    """
    # The texts, each with its name and what stands in parentheses.
    whole = _layers_of(pattern, recorded, first)
    layers = [tuple(_split(layer, '+')) for layer in _split(whole, ',')]
    for name in (text.partition('(')[0].strip() for layer in layers for text in layer):
        if name not in REGISTRY:
            raise ModelError(
                f'config.model.positions is {pattern!r}: no encoding {name!r}; '
                f'{did_you_mean(name, [*REGISTRY, *PATTERNS])}'
            )
    texts = {text: _parsed(text) for layer in layers for text in layer}

    # What is given for all of them.
    known: dict = {}
    for name, _ in texts.values():
        known |= REGISTRY[name].arguments()
    for key, value in arguments.items():
        if key not in known:
            raise ModelError(
                f'config.model.positions_args.{key}: {pattern} has no such parameter; '
                f'{did_you_mean(key, known)}'
            )
        if not _fits(value, known[key]):
            raise ModelError(
                f'config.model.positions_args.{key} is {value!r:.80}: expected '
                f'{type(known[key]).__name__}'
            )
        check_numbers(key, value, known[key])

    # Defaults, then those of version 1 or of the text, then those that are given; or those of the
    # run.
    of_run = {record['name']: record['arguments'] for record in recorded}
    members: _Members = {}
    for text, (name, in_parentheses) in texts.items():
        kind = REGISTRY[name]
        defaults = kind.arguments()
        own = dict(kind.spec.before) if first else {}
        own |= _typed(text, in_parentheses, defaults)
        own |= {key: value for key, value in arguments.items() if key in defaults}
        own = of_run.get(text, own)
        typed = {key: type(defaults[key])(own[key]) for key in own if key in defaults}
        members[text] = kind, defaults | typed
    return layers, members


def _split(text: str, mark: str) -> list[str]:
    """Returns the parts of a pattern between marks that stand outside of parentheses."""
    parts = ['']
    depth = 0
    for letter in text:
        depth += (letter == '(') - (letter == ')')
        if letter == mark and not depth:
            parts.append('')
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _parsed(text: str) -> tuple[str, dict[str, str]]:
    """Splits 'rope(base=1e6)' into ('rope', {'base': '1e6'}).

    Raises ModelError for another form.
    """
    name, opened, rest = text.partition('(')
    pairs = [pair.split('=') for pair in rest.removesuffix(')').split(',')] if opened else []
    if opened and not rest.endswith(')') or any(len(pair) != 2 for pair in pairs):
        raise ModelError(
            f'config.model.positions has {text!r}: expected NAME or NAME(ARGUMENT=VALUE,...), '
            f'such as rope(base=1000000.0)'
        )
    return name.strip(), {key.strip(): value.strip() for key, value in pairs}


def _typed(text: str, own: dict[str, str], defaults: dict) -> dict:
    """Returns what stands in the parentheses of `text`, of the types of the defaults.

    Raises ModelError for an argument that the encoding has not, or of another type.
    """
    typed: dict = {}
    for key, value in own.items():
        if key not in defaults:
            raise ModelError(
                f'config.model.positions has {text!r}: no argument {key!r}; '
                f'{did_you_mean(key, defaults)}'
            )
        kind = type(defaults[key])
        try:
            if kind is bool:
                typed[key] = {'True': True, 'False': False}[value]
            elif kind in (int, float, str):
                typed[key] = kind(value)
                check_numbers(key, typed[key], defaults[key])
            else:
                raise ValueError
        except (KeyError, ValueError):
            raise ModelError(
                f'config.model.positions has {text!r}: {key} is {value!r}, expected '
                + (kind.__name__ if kind is not tuple else 'it in config.model.positions_args')
            ) from None
    return typed


def _fits(value, default) -> bool:
    """Returns True where a value has the type of a default (an int passes for a float)."""
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, tuple):
        return isinstance(value, (tuple, list))
    return isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
