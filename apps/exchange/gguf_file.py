"""Files of GGUF, float and quantized, as if they were folders of Hugging Face.

Their fields become those of a config.json, their tensors get the names of its classes: what the
classes know serves both. Queries and keys of a Llama lie in pairs there (`tensors.to_theirs`).
"""

import dataclasses
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from apps.exchange import classes, rotations, source as sources, tensors
from apps.exchange.classes import CLASSES, ModelClass
from apps.exchange.expressed import Expressed
from apps.exchange.fields import Fields
from apps.exchange.gguf_tokenizer import from_gguf
from apps.exchange.huggingface import INSTALL
from data.tokenizer import Tokenizer
from model.config import BIASED, ModelConfig
from runtime.errors import RunError

ARCHITECTURES = {  # there -> the class
    'llama': 'llama',
    'qwen2': 'qwen2',
    'qwen3': 'qwen3',
    'gpt2': 'gpt2',
    'gptneox': 'gpt_neox',
    'olmo2': 'olmo2',
    'smollm3': 'smollm3',
    'bloom': 'bloom',
    'mpt': 'mpt',
}
PAIRS = ('llama', 'smollm3')  # dimension 2c is turned with 2c + 1 there
_SHARED_WIDTH = ('qwen2', 'olmo2')  # heads share the width of the model there
_NO_OUT_BIAS = ('qwen3', 'smollm3', 'olmo2')  # the output of attention has no bias there
_UNTIED = ('olmo2', 'gptneox')  # the output has a matrix of its own there
FACTORS = 'rope_freqs.weight'  # what frequencies are divided by; only a Llama has it
_READS = 1 << 23  # values of a header: a large vocabulary with its merges has a million
_ERRORS = (ValueError, KeyError, IndexError, OverflowError, TypeError, OSError, MemoryError)

# Field of a config.json -> field of the file, after 'ARCHITECTURE.'.
_LLAMA = {
    'hidden_size': 'embedding_length',
    'num_hidden_layers': 'block_count',
    'num_attention_heads': 'attention.head_count',
    'num_key_value_heads': 'attention.head_count_kv',
    'head_dim': 'attention.key_length',
    'intermediate_size': 'feed_forward_length',
    'max_position_embeddings': 'context_length',
    'rms_norm_eps': 'attention.layer_norm_rms_epsilon',
    'rope_theta': 'rope.freq_base',
}
_KEYS = {
    'gpt2': {
        'n_embd': 'embedding_length',
        'n_layer': 'block_count',
        'n_head': 'attention.head_count',
        'n_inner': 'feed_forward_length',
        'n_positions': 'context_length',
        'layer_norm_epsilon': 'attention.layer_norm_epsilon',
    },
    'gptneox': {
        'hidden_size': 'embedding_length',
        'num_hidden_layers': 'block_count',
        'num_attention_heads': 'attention.head_count',
        'intermediate_size': 'feed_forward_length',
        'max_position_embeddings': 'context_length',
        'layer_norm_eps': 'attention.layer_norm_epsilon',
        'rotary_emb_base': 'rope.freq_base',
        'use_parallel_residual': 'use_parallel_residual',
    },
    'bloom': {
        'hidden_size': 'embedding_length',
        'n_layer': 'block_count',
        'n_head': 'attention.head_count',
        'seq_length': 'context_length',
        'layer_norm_epsilon': 'attention.layer_norm_epsilon',
    },
    'mpt': {
        'd_model': 'embedding_length',
        'n_layers': 'block_count',
        'n_heads': 'attention.head_count',
        'max_seq_len': 'context_length',
        'layer_norm_epsilon': 'attention.layer_norm_epsilon',
    },
}


class GgufFile(sources.Source):
    """A model in a file of GGUF.

    Raises RunError where it is damaged, or of an architecture that is not known here.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.files = [path]
        with sources.blame(str(path), *_ERRORS):
            reader = _open(path)
            self.values = {name: _plain(field) for name, field in reader.fields.items()}
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        general = Fields(self.values, str(path))
        self.architecture = general.choice(
            'general.architecture', {name: name for name in ARCHITECTURES}, ''
        )
        licence = self.values.get('general.license', '')
        self.licence = licence if isinstance(licence, str) else ''
        self.pairs = self.architecture in PAIRS

        # Names of Hugging Face; what has none there keeps its own, and is refused later.
        layers = general.whole(f'{self.architecture}.block_count')
        one = CLASSES[ARCHITECTURES[self.architecture]]
        theirs = {there: name for name, there in name_tensors(one, self.architecture, layers)}
        factors = self._tensors.pop(FACTORS, None)
        self._names = {theirs.get(name, name): name for name in self._tensors}
        self.shapes = {
            name: tuple(int(size) for size in reversed(self._tensors[there].shape))
            for name, there in self._names.items()
        }
        config = to_config(
            self.architecture,
            self.values,
            self.shapes,
            [] if factors is None else np.asarray(factors.data).reshape(-1).tolist(),
        )
        self.fields = Fields(config, str(path))

    def model_class(self) -> ModelClass:
        return as_gguf(super().model_class())

    def read(self, name: str) -> np.ndarray:
        gguf = import_gguf(self.path)
        tensor = self._tensors[self._names[name]]
        with sources.blame(f'{self.path}: {name}', *_ERRORS, NotImplementedError):
            x = gguf.dequantize(tensor.data, tensor.tensor_type)
        return np.asarray(x).reshape(self.shapes[name])

    def tokenizer(self) -> Tokenizer:
        return from_gguf(self.values, str(self.path))


def _plain(field) -> Any:
    """Returns the value of a field; numbers, which have 32 bits there, as they were meant."""
    value = field.contents()
    return float(f'{value:.7g}') if isinstance(value, float) else value


def _open(path: pathlib.Path):
    """Returns a reader of a file that stays within the file, and within bounds."""
    gguf = import_gguf(path)

    class Reader(gguf.GGUFReader):
        reads = 0

        def _get(self, offset, dtype, count=1, override_order=None):
            self.reads += 1
            if self.reads > _READS:
                raise ValueError(f'more than {_READS} values in its header')
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError('it ends too early')
            return super()._get(offset, dtype, count, override_order)

    return Reader(path)


def import_gguf(where: object) -> Any:
    """Returns the package. Raises RunError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise RunError(f'{where}: {INSTALL.format("gguf")}') from None
    return gguf


# --- Tensors --------------------------------------------------------------------------------------


def as_gguf(one: ModelClass) -> ModelClass:
    """Returns a class as its tensors lie in GGUF: matrices transposed, blocks one after another."""
    return dataclasses.replace(one, transposed=True, fused='blocks' if one.fused else '')


def name_tensors(one: ModelClass, architecture: str, layers: int) -> list[tuple[str, str]]:
    """Returns (name in Hugging Face, name in GGUF) of all tensors that a class may have."""
    gguf = import_gguf(architecture)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    if not 0 < layers <= 2**10:
        raise RunError(f'{architecture}.block_count is {layers}: expected from 1 to {2**10}')
    known = gguf.get_tensor_name_map(arch, layers)
    names = []
    for theirs in dict.fromkeys(one.names.values()):
        for layer in range(layers if '{}' in theirs else 1):
            full = theirs.format(layer)
            for name in (full, full.partition('.')[2]):  # some are known without their prefix
                there = known.get_name(name, ('.weight', '.bias'))
                if there:
                    names.append((full, there))
                    break
    return names


# --- Fields ---------------------------------------------------------------------------------------


def to_config(
    architecture: str,
    values: Mapping[str, Any],
    names: Collection[str],
    factors: Sequence[float],
) -> dict[str, Any]:
    """Returns what a config.json would say of a model.

    Args:
      architecture: one of ARCHITECTURES.
      values: fields of the file.
      names: its tensors, as Hugging Face calls them.
      factors: what frequencies are divided by; empty: nothing.
    """
    keys = _KEYS.get(architecture, _LLAMA)

    def get(key: str) -> Any:
        return values.get(f'{architecture}.{key}')

    config = {ours: get(key) for ours, key in keys.items()}
    config['model_type'] = ARCHITECTURES[architecture]
    config['tie_word_embeddings'] = not {'lm_head.weight', 'embed_out.weight'} & set(names)
    if architecture == 'mpt':
        bias = get('attention.max_alibi_bias')
        config['attn_config'] = {
            'alibi': bool(bias),
            'alibi_bias_max': bias,
            'clip_qkv': get('attention.clamp_kqv') or None,
        }
    elif architecture == 'gptneox':
        config['attention_bias'] = 'gpt_neox.layers.0.attention.dense.bias' in names
        config['rotary_pct'] = _turned_share(
            get('embedding_length'), get('attention.head_count'), get('rope.dimension_count')
        )
    elif keys is _LLAMA:
        config['rope_scaling'] = _read_scaling(get, factors)
        config['mlp_bias'] = 'model.layers.0.mlp.up_proj.bias' in names or None
        if architecture != 'qwen2':
            config['attention_bias'] = 'model.layers.0.self_attn.q_proj.bias' in names
    return config


def _turned_share(width: Any, heads: Any, turned: Any) -> Any:
    """Returns the share of a head that is turned; what is no number stays, to be refused."""
    if not all(type(number) is int and number > 0 for number in (width, heads, turned)):
        return turned
    return turned / max(1, width // heads)


def _read_scaling(get, factors: Sequence[float]) -> dict[str, Any] | None:
    """Returns `rope_scaling` of a config.json."""
    if factors:
        return {
            'rope_type': 'longrope',
            'factor': 1.0,
            'short_factor': [float(factor) for factor in factors],
            'long_factor': [float(factor) for factor in factors],
        }
    kind = get('rope.scaling.type')
    if kind in (None, 'none'):
        return None
    trained = get('rope.scaling.original_context_length')
    scaling = {'rope_type': kind, 'factor': get('rope.scaling.factor')}
    return scaling | ({'original_max_position_embeddings': trained} if trained else {})


def to_values(
    config: Mapping[str, Any], cfg: ModelConfig
) -> tuple[str, dict[str, Any], list[float]]:
    """Returns an architecture, the fields of its file, and what frequencies are divided by.

    The inverse of `to_config`.

    Args:
      config: a config.json (`classes.express`).
      cfg: the model that it is of.
    Raises:
      RunError: GGUF cannot say what the model is.
    """
    architecture = _name_architecture(config['model_type'])
    keys = _KEYS.get(architecture, _LLAMA)
    own: dict[str, Any] = {key: config[ours] for ours, key in keys.items() if ours in config}
    own['feed_forward_length'] = cfg.mlp_width
    own['context_length'] = cfg.max_len
    factors: list[float] = []
    if architecture == 'mpt':
        own['attention.max_alibi_bias'] = 8.0
    rope = rotations.find(cfg.encodings[0])
    if rope is not None:
        own['rope.dimension_count'] = rope.rotary_dim
    if keys is _LLAMA:
        own['attention.value_length'] = cfg.head_dim
        scaling = config.get('rope_scaling') or {}
        kind = scaling.get('rope_type', 'none')
        if kind == 'linear' or kind == 'yarn' and rope.factor != 1:
            own['rope.scaling.type'] = kind
            own['rope.scaling.factor'] = scaling['factor']
            if kind == 'yarn':
                trained = scaling['original_max_position_embeddings']
                own['rope.scaling.original_context_length'] = trained
        elif kind != 'none' and architecture == 'llama' and (rope.frequencies() > 0).all():
            plain = rope.base ** (-np.arange(0, rope.rotary_dim, 2) / rope.rotary_dim)
            factors = (plain / rope.frequencies()).tolist()
    values = {f'{architecture}.{key}': value for key, value in own.items()}
    _check_values(architecture, values, factors, cfg)
    _check_loadable(architecture, cfg)
    return architecture, values, factors


def _name_architecture(model_type: str) -> str:
    """Returns the name that GGUF has for a class. Raises RunError where it has none."""
    for name, there in ARCHITECTURES.items():
        if there == model_type:
            return name
    raise RunError(
        f'GGUF cannot say what this model is: it has no architecture for {model_type!r}; '
        f'expected one of {", ".join(ARCHITECTURES.values())}'
    )


def _check_values(
    architecture: str, values: Mapping[str, Any], factors: Sequence[float], cfg: ModelConfig
) -> None:
    """Raises RunError where what is read from these fields is another model."""
    one = CLASSES[ARCHITECTURES[architecture]]
    leaves = sources.shapes_of(cfg)
    planned = tensors.assign(one.names, leaves)
    config = to_config(architecture, values, planned, factors)
    there = classes.read_architecture(Fields(config, f'GGUF {architecture}'), cfg.vocab_size)
    faults = classes.differences(cfg, there)
    if faults:
        raise RunError(f'GGUF cannot say what this model is: {", ".join(faults.values())}')


def _check_loadable(architecture: str, cfg: ModelConfig) -> None:
    """Raises RunError for a model that llama.cpp does not load, though its fields say it.

    Found by loading each (tests/apps/test_llama_cpp.py), llama-cpp-python 0.3.36.
    """
    fault = ''
    if architecture in _SHARED_WIDTH and cfg.num_heads * cfg.head_dim != cfg.width:
        fault = f'config.model.head_dim is {cfg.head_dim}, not {cfg.width / cfg.num_heads:g}'
    elif architecture in _NO_OUT_BIAS and 'out' in BIASED[cfg.biases]:
        fault = f'config.model.biases is {cfg.biases!r}, not none'
    elif architecture in _UNTIED and cfg.tied:
        fault = 'config.model.tied is True, not False'
    if fault:
        raise RunError(
            f'GGUF cannot say what this model is: in llama.cpp {architecture} has {fault}'
        )


# --- Writing --------------------------------------------------------------------------------------


def write_file(
    path: pathlib.Path, model: Expressed, more: Mapping[str, Any], dtype: str = 'float32'
) -> None:
    """Writes a model as a file of GGUF, tensor by tensor.

    Args:
      path: of the file.
      model: as a class has it.
      more: fields beside those of the architecture: general ones, and those of the tokenizer.
      dtype: of matrices and tables, float32, bfloat16 or float16; vectors are float32.
    Raises:
      RunError: GGUF cannot say what the model is.
    """
    gguf = import_gguf(path)
    kind = {
        'float32': gguf.GGMLQuantizationType.F32,
        'bfloat16': gguf.GGMLQuantizationType.BF16,
        'float16': gguf.GGMLQuantizationType.F16,
    }
    architecture, values, factors = to_values(model.config, model.there)
    writer = gguf.GGUFWriter(path, architecture)
    _write_values(writer, {**more, **values})

    # First what there is, from shapes alone; then one tensor after another.
    one = as_gguf(model.one)
    names = dict(name_tensors(one, architecture, model.ours.num_layers))
    kinds = {}
    for name, paths in model.plan.items():
        shape = tensors.shape_of(paths, model.leaves, one)
        kinds[name] = kind[dtype] if len(shape) > 1 else kind['float32']
        _announce(writer, names[name], shape, kinds[name])
    if factors:
        _announce(writer, FACTORS, (len(factors),), kind['float32'])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, kind_of_tensor in kinds.items():
        # Bound to no name, so that it is let go of before the next one is read.
        writer.write_tensor_data(
            gguf.quantize(
                model.tensor(name, one, architecture in PAIRS).astype(np.float32), kind_of_tensor
            )
        )
    if factors:
        writer.write_tensor_data(np.asarray(factors, np.float32))
    writer.close()


def _announce(writer, name: str, shape: tuple[int, ...], kind) -> None:
    """Writes the line of the header that a tensor has."""
    sizes = {'F32': (np.float32, 4), 'BF16': (np.uint16, 2), 'F16': (np.float16, 2)}
    dtype, size = sizes[kind.name]
    writer.add_tensor_info(name, shape, np.dtype(dtype), size * math.prod(shape), kind)


def _write_values(writer, values: Mapping[str, Any]) -> None:
    """Writes fields, each with the type that its value has."""
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
