"""Models that no class elsewhere computes: as folders with a modelling file of Ordem's own.

Their config.json has the fields of `config.model`, from which a run comes back as it was; and what
follows from them for `positions_ordem.py`, so that the file needs no formula of this house.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import numpy as np

from apps.exchange.fields import Fields
from apps.exchange.shapes import shapes_of
from model.config import ModelConfig
from model.positions import REGISTRY, PositionalEncoding
from model.positions.alibi import Alibi, WindowedHeads, slopes
from model.positions.bounded import Bounded
from model.positions.disentangled import Tupe
from model.positions.forgetting import FixedForgetting, Forgetting
from model.positions.grape import GrapeA, GrapeAp
from model.positions.rope import Rope, Xpos
from model.positions.rope_scaling import DynamicNtk, Lengthened
from model.positions.t5 import T5, bucket_bounds
from runtime.errors import RunError

FILES = tuple(  # copied beside config.json
    pathlib.Path(__file__).parent / name for name in ('modeling_ordem.py', 'positions_ordem.py')
)
_MAP = {
    'AutoConfig': 'modeling_ordem.OrdemConfig',
    'AutoModel': 'modeling_ordem.OrdemModel',
    'AutoModelForCausalLM': 'modeling_ordem.OrdemForCausalLM',
}

# Name in the registry -> class in positions_ordem.py; and why the others have none.
KINDS = {
    'none': 'NoPositions',
    'sinusoidal': 'Sinusoidal',
    'sinusoidal_concatenated': 'Sinusoidal',
    'sinusoidal_scaled': 'Sinusoidal',
    'learned': 'Learned',
    'rope': 'Rope',
    'rope_interleaved': 'Rope',
    'rope_partial': 'Rope',
    'rope_proportional': 'Rope',
    'xpos': 'Xpos',
    'rope_interpolated': 'Rope',
    'rope_ntk': 'Rope',
    'rope_dynamic': 'DynamicNtk',
    'rope_by_parts': 'Rope',
    'yarn': 'Rope',
    'llama3': 'Rope',
    'longrope': 'Rope',
    'rerope': 'Bounded',
    'rerope_leaky': 'Bounded',
    'self_extend': 'Bounded',
    'string': 'Bounded',
    'lm_infinite': 'LmInfinite',
    't5': 'T5',
    't5_unscaled': 'UnscaledT5',
    'alibi': 'Alibi',
    'alibi_learned': 'LearnedAlibi',
    'windowed_heads': 'WindowedHeads',
    'kerple_log': 'KerpleLog',
    'kerple_power': 'KerplePower',
    'fire': 'Fire',
    'sandwich': 'Sandwich',
    'shaw': 'Shaw',
    'transformer_xl': 'TransformerXl',
    'deberta': 'Deberta',
    'tupe': 'Tupe',
    'cope': 'Cope',
    'cope_unscaled': 'Cope',
    'selective': 'Selective',
    'stick_breaking': 'StickBreaking',
    'dape': 'Dape',
    'dape_v2': 'DapeV2',
    'wall': 'Wall',
    'pope': 'Pope',
    'path': 'Path',
    'grape_m': 'GrapeM',
    'grape_m_context': 'ContextualGrapeM',
    'grape_a': 'GrapeA',
    'grape_a_query': 'GrapeA',
    'grape_a_both': 'GrapeA',
    'grape_ap': 'GrapeAp',
    'forgetting': 'Forgetting',
    'forgetting_fixed': 'FixedForgetting',
    'forgetting_bias_only': 'FixedForgetting',
    'cable': 'Forgetting',
    'pose': 'NoPositions',  # it skips places in training only
    'ssmax': 'ScalableSoftmax',
    'temperature': 'Temperature',
    'head_scale': 'HeadScale',
    'window': 'Window',
    'chunk': 'Chunk',
    'qk_norm': 'QkNorm',
}
LACKING = {
    'randomized': 'its ids are drawn anew in each layer, for each text',
    'abacus': 'its ids come with the data',
    'coupling': 'its ids come with the data',
}

# Fields of config.model that say what is computed, beside encodings.
COMPUTED = (
    'width',
    'num_layers',
    'num_heads',
    'num_kv_heads',
    'head_dim',
    'mlp_width',
    'residual',
    'activation',
    'biases',
    'norm',
    'norm_eps',
    'embedding_norm',
    'qk_norm',
    'qk_norm_over',
    'causal',
    'logit_cap',
    'tied',
    'scale_embedding',
)
_FIELDS = (*COMPUTED, 'window', 'max_len')  # what config.json has under their own names
_LARGEST = 2**22


def find_refusal(cfg: ModelConfig) -> str:
    """Returns why the modelling file has not a model; '': it has."""
    if cfg.mixing != 'attention':
        return f'config.model.mixing is {cfg.mixing!r}, not attention'
    if cfg.bag:
        return 'config.model.bag is True'
    for part in cfg.parts:
        if _name(part) in LACKING:
            return f'of {part.spec.title}, {LACKING[_name(part)]}'
    return ''


def write(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the config.json of a model."""
    return {
        'auto_map': _MAP,
        'train_len': cfg.encodings[0].dims.trained,
        **{name: getattr(cfg, name) for name in _FIELDS},
        **_write_positions(cfg),
        **_derive(cfg),
    }


def read(fields: Fields) -> dict[str, Any]:
    """Returns the fields of config.model that a config.json has; and of data, the length."""
    model: dict[str, Any] = {}
    kinds = get_type_hints(ModelConfig)
    for name in _FIELDS:
        choices = get_args(kinds[name])
        if choices:
            model[name] = fields.choice(name, {choice: choice for choice in choices}, '')
        elif kinds[name] is bool:
            model[name] = fields.flag(name)
        elif kinds[name] is int:
            model[name] = fields.whole(name)
        else:
            model[name] = fields.number(name)
    arguments = fields.group('positions_args')
    model['positions'] = fields.text('positions')
    model['positions_args'] = {name: arguments.numbers(name) for name in arguments.names()}
    model['train_len'] = fields.whole('train_len')
    return model


def check(fields: Fields, cfg: ModelConfig) -> None:
    """Raises RunError where a folder's own file would read another model than `cfg`."""
    refusal = find_refusal(cfg)
    if refusal:
        raise RunError(f'{fields.where}: {refusal}')
    for part in cfg.parts:
        # Bounds of buckets are found one by one.
        if isinstance(part, T5) and part.num_buckets * part.max_distance > _LARGEST:
            raise RunError(
                f'{fields.where}: num_buckets is {part.num_buckets}, max_distance '
                f'{part.max_distance}: expected at most {_LARGEST} as their product'
            )
    for name, expected in _derive(cfg).items():
        if not _agree(fields.as_is(name), expected):
            raise RunError(f'{fields.where}: {name} are not those of positions and its arguments')


def _agree(a: Any, b: Any) -> bool:
    """Returns whether two values of JSON are the same, numbers up to their last digits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_agree(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_agree, a, b))
    return math.isclose(a, b, rel_tol=1e-6) if isinstance(a, float) else a == b


# --- Encodings ------------------------------------------------------------------------------------


def _name(part: PositionalEncoding) -> str:
    """Returns the name of an encoding in the registry."""
    return next(name for name, kind in REGISTRY.items() if kind is type(part))


def _write_positions(cfg: ModelConfig) -> dict[str, Any]:
    """Returns `positions` and `positions_args`, with every argument whatever its default is."""
    layers = ['+'.join(_text(part) for part in one.parts) for one in cfg.encodings[: cfg.period]]
    lists = {}
    for part in cfg.parts:
        lists |= {name: list(x) for name, x in _arguments(part).items() if isinstance(x, tuple)}
    return {'positions': ','.join(layers), 'positions_args': lists}


def _arguments(part: PositionalEncoding) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.arguments()}


def _text(part: PositionalEncoding) -> str:
    """Returns an encoding as `config.model.positions` has it, with its arguments."""
    own = [f'{name}={x}' for name, x in _arguments(part).items() if not isinstance(x, tuple)]
    return f'{_name(part)}({",".join(own)})' if own else _name(part)


def _derive(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the encodings for the modelling file, and which of them each layer has."""
    shapes = shapes_of(dataclasses.replace(cfg, scan_layers=False, remat='none', lora=None))
    scopes = dict(zip(cfg.parts, cfg.scopes))
    listed = []
    for encoding in cfg.distinct:
        layer = cfg.encodings.index(encoding)
        own = _below(f'layer_{layer}/attention/positions/', shapes)
        parts = []
        for part in encoding.parts:
            prefix = f'{part.name}_' if len(encoding.parts) > 1 else ''
            parts.append(
                {
                    'name': _name(part),
                    'kind': KINDS[_name(part)],
                    **{name: _plain(x) for name, x in _arguments(part).items()},
                    **{name: _plain(x) for name, x in _numbers(part).items()},
                    'scope': scopes[part].removeprefix('positions_'),
                    'shared': _below(f'{scopes[part]}/', shapes),
                    'prefix': prefix,
                    'own': _below(prefix, own),
                }
            )
        listed.append(parts)
    return {
        'encodings': listed,
        'pattern': [cfg.distinct.index(encoding) for encoding in cfg.encodings],
    }


def _below(start: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays whose paths begin so, by the rest of the path."""
    return {
        path.removeprefix(start): list(shape)
        for path, shape in shapes.items()
        if path.startswith(start)
    }


def _plain(x: Any) -> Any:
    """Returns a value as JSON has it."""
    return x.tolist() if isinstance(x, np.ndarray) else list(x) if isinstance(x, tuple) else x


def _numbers(part: PositionalEncoding) -> dict[str, Any]:
    """Returns what follows from an encoding's arguments and the sizes of the model."""
    numbers: dict[str, Any] = {}
    if isinstance(part, Rope):
        numbers |= {'frequencies': part.frequencies(), 'factor': part.factor}
    if isinstance(part, Lengthened):
        numbers['trained'] = part.trained
    if isinstance(part, DynamicNtk):
        numbers['s'] = part.s
    if isinstance(part, Bounded):
        group = getattr(part, 'group', 1)
        numbers |= {
            'w': part.w,
            'group': group,
            'slope': float(part.far_key(np.float64(group))),
            'offset': float(part.far(np.float64(0))),
            'log_n': getattr(part, 'log_n', False),
        }
    if isinstance(part, Xpos):
        numbers |= {'log_zeta': part.log_zeta(), 'middle': part.dims.num_ids // 2}
    if isinstance(part, (Alibi, GrapeA, GrapeAp)):
        numbers['slopes'] = slopes(part.dims.num_heads)
    if isinstance(part, FixedForgetting):
        numbers['slopes'] = 1 / part.times()
    if isinstance(part, Forgetting):
        numbers['sign'] = part.sign
    if isinstance(part, GrapeA):
        numbers['gates'] = part.gates
    if isinstance(part, WindowedHeads):
        numbers['windows'] = part.windows()
    if isinstance(part, T5):
        numbers['bounds'] = bucket_bounds(part.num_buckets, part.max_distance)
    if isinstance(part, Tupe):
        numbers['bounds'] = bucket_bounds(32, 128)
    return numbers
