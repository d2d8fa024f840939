"""The registry of positional encodings. Adding one means adding one file and one line here."""

import dataclasses

from model.errors import ModelError, nearest
from model.positions.alibi import Alibi, LearnedAlibi, WindowedHeads
from model.positions.base import ENTERS, Dims, PositionalEncoding, Site, Spec, check_numbers
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
from model.positions.forgetting import Cable, FixedForgetting, Forgetting
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

# Patterns that have a name of their own. config.model.num_layers has to be a multiple of their length.
PATTERNS = {
    'rnope_swa': (
        'rope+window,rope+window,rope+window,none',
        'Yang et al. 2025, arXiv 2501.18795, section 4',
    ),
    'irope': (
        'rope+qk_norm+chunk,rope+qk_norm+chunk,rope+qk_norm+chunk,none+temperature',
        'Meta 2025, Llama 4, the released model',
    ),
    'smollm3': ('rope,rope,rope,none', 'Bakouch et al. 2025, SmolLM3'),
}


def build(pattern: str, arguments: dict, dims: Dims) -> tuple[PositionalEncoding, ...]:
    """A pattern and its arguments -> one encoding a layer.

    'rope'; 'rope,rope,none', repeated over the layers; 'randomized+rope', several at once in the same layer; 'irope', a pattern
    that has a name. Layers of the same
    name share one object. An argument goes to each encoding of the pattern that has it. An encoding that enters the embedding
    does so once, for all layers.
    Raises ModelError for an unknown name, an argument that none has or of another type, and a pattern that does not fit.
    """
    pattern = PATTERNS[pattern][0] if pattern in PATTERNS else pattern
    layers = [tuple(n.strip() for n in layer.split('+')) for layer in pattern.split(',')]
    names = list(dict.fromkeys(n for layer in layers for n in layer))
    unknown = [n for n in names if n not in REGISTRY]
    if unknown:
        raise ModelError(
            f'config.model.positions is {pattern!r}: no encoding {unknown[0]!r}; {nearest(unknown[0], [*REGISTRY, *PATTERNS])}'
        )
    if dims.num_layers % len(layers):
        raise ModelError(
            f'config.model.positions has {len(layers)} entries, config.model.num_layers is {dims.num_layers}: '
            f'expected a pattern whose length divides the layers'
        )
    known = {k: v for n in names for k, v in REGISTRY[n].arguments().items()}
    for key, value in arguments.items():
        if key not in known:
            raise ModelError(
                f'config.model.positions_args.{key}: {pattern} has no such parameter; {nearest(key, known)}'
            )
        if not _fits(value, known[key]):
            raise ModelError(
                f'config.model.positions_args.{key} is {value!r:.80}: expected '
                f'{type(known[key]).__name__}'
            )
        check_numbers(key, value, known[key])
    made = lambda dims: {
        n: REGISTRY[n](
            dims=dims,
            **{k: type(known[k])(v) for k, v in arguments.items() if k in REGISTRY[n].arguments()},
        )
        for n in names
    }
    dims = dataclasses.replace(dims, ids=max(e.num_ids for e in made(dims).values()))
    built = made(dims)
    for encoding in built.values():
        encoding.check()
    of_layer = {}
    for layer in dict.fromkeys(layers):
        of_layer[layer] = (
            built[layer[0]] if len(layer) == 1 else Composite(dims, tuple(built[n] for n in layer))
        )
        of_layer[layer].check_use()
    return tuple(of_layer[layers[i % len(layers)]] for i in range(dims.num_layers))


def _fits(value, default) -> bool:
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, tuple):
        return isinstance(value, (tuple, list))
    return isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
