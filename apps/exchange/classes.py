"""Model classes of Hugging Face: what their fields and tensors are called, and what ours are.

An entry a class, used in both directions: `names` says which tensor holds which of our arrays,
`read` turns a config.json into fields of config.model, `write` the other way. `write` may be
blind to what a class cannot say: that shows when what it wrote is read again (`express`).
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from apps.exchange import ordem, rotations
from apps.exchange.fields import Fields
from model import config as model_config
from model.config import BIASED, ModelConfig
from model.errors import ModelError
from model.positions.rope import PartialRope
from runtime import field_checks, schema
from runtime.errors import RunError

_QKV = ('query', 'key', 'value')
_GELU = {'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_fast': 'gelu', 'gelu': 'gelu_exact'}


@dataclasses.dataclass(frozen=True)
class ModelClass:
    """One class of models, as its files describe it.

    Attributes:
      architecture: its name in config.json, 'LlamaForCausalLM'.
      model_type: the short one, 'llama'.
      names: path of our array -> name of the tensor that holds it; '{}' stands for the number of
        the layer. Several of ours may be in one tensor.
      read: a config.json -> fields of config.model.
      write: an architecture -> a config.json, as far as the class can say it.
      transposed: whether matrices lie there as [outputs, inputs].
      fused: how queries, keys and values share a tensor: '' not at all, 'blocks' one after the
        other, 'heads' those of each head one after the other.
      keeps_pairs: whether queries and keys lie there with the dimensions of a pair as here; else
        c pairs up with c + d/2.
      code: files of Python that a folder has beside the weights.
    """

    architecture: str
    model_type: str
    names: Mapping[str, str]
    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    transposed: bool = True
    fused: Literal['', 'blocks', 'heads'] = ''
    keeps_pairs: bool = False
    code: tuple[pathlib.Path, ...] = ()


def _names(
    block: str, norms: Mapping[str, str], projections: Mapping[str, str], top: Mapping[str, str]
) -> dict[str, str]:
    """Returns the names of a class: of norms and projections in each block, and of what is alone.

    `top`: names of the table, of norms outside blocks and of the output, without '.weight'.
    """
    names = {}
    for ours, theirs in norms.items():
        names[f'layer_{{}}/{ours}/scale'] = f'{block}.{{}}.{theirs}.weight'
        names[f'layer_{{}}/{ours}/bias'] = f'{block}.{{}}.{theirs}.bias'
    for ours, theirs in projections.items():
        names[f'layer_{{}}/{ours}/kernel'] = f'{block}.{{}}.{theirs}.weight'
        names[f'layer_{{}}/{ours}_bias'] = f'{block}.{{}}.{theirs}.bias'
    for ours, theirs in top.items():
        if ours.endswith('norm'):
            names[f'{ours}/scale'] = f'{theirs}.weight'
            names[f'{ours}/bias'] = f'{theirs}.bias'
        else:
            names[ours] = f'{theirs}.weight'
    return names


def _projections(qkv: Mapping[str, str], out: str, up: str, down: str, gate: str = ''):
    """Returns their names of our projections."""
    names = {f'attention/{ours}': theirs for ours, theirs in qkv.items()}
    names |= {'attention/out': out, 'feed_forward/up': up, 'feed_forward/down': down}
    return names | ({'feed_forward/gate': gate} if gate else {})


def _fused(name: str) -> dict[str, str]:
    return dict.fromkeys(_QKV, name)


# --- Llama and its kin ----------------------------------------------------------------------------

_LLAMA_PROJECTIONS = _projections(
    {name: f'self_attn.{name[0]}_proj' for name in _QKV},
    'self_attn.o_proj',
    'mlp.up_proj',
    'mlp.down_proj',
    'mlp.gate_proj',
)
_LLAMA_TOP = {
    'embedding': 'model.embed_tokens',
    'final_norm': 'model.norm',
    'output/kernel': 'lm_head',
}
_PRE_NORMS = {'attention_norm': 'input_layernorm', 'feed_forward_norm': 'post_attention_layernorm'}
_POST_NORMS = {
    'attention_norm': 'post_attention_layernorm',
    'feed_forward_norm': 'post_feedforward_layernorm',
}
_QK_NORMS = {'attention/query_norm': 'self_attn.q_norm', 'attention/key_norm': 'self_attn.k_norm'}


def _read_llama(
    fields: Fields,
    base: float = 10000.0,
    no_rope_every: int = 0,
    slides: bool = False,
    **others: Any,
) -> dict[str, Any]:
    """Returns the fields of config.model that Llama and its kin share.

    Args:
      base: of the rotation, where the file names none.
      no_rope_every: each so-manieth layer turns nothing, where the file does not say; 0: none.
      slides: whether a window, where there is one, is that of all layers.
      others: fields of config.model that the class has otherwise.
    """
    heads = fields.whole('num_attention_heads')
    num_layers = fields.whole('num_hidden_layers')
    fields.only('hidden_act', 'silu', 'swish')
    turns, windows = _read_layers(fields, num_layers, no_rope_every, slides)
    return {
        'width': fields.whole('hidden_size'),
        'num_layers': num_layers,
        'num_heads': heads,
        'num_kv_heads': fields.whole('num_key_value_heads', heads),
        'head_dim': fields.whole('head_dim', 0),
        'mlp_width': fields.whole('intermediate_size'),
        'norm_eps': fields.number('rms_norm_eps', 1e-6),
        'tied': fields.flag('tie_word_embeddings', False),
        'biases': _read_biases(fields),
        **rotations.layered(rotations.read(fields, base), turns, windows),
        **others,
    }


def _read_biases(fields: Fields, attention: bool = False, feed_forward: bool = False) -> str:
    """Returns the name of the biases that the fields ask for; arguments: where they say nothing."""
    has_attention = fields.flag('attention_bias', attention)
    has_feed_forward = fields.flag('mlp_bias', feed_forward)
    if has_attention and has_feed_forward:
        return 'all'
    if has_attention:
        return 'attention'
    return 'feed_forward' if has_feed_forward else 'none'


def _read_layers(
    fields: Fields, num_layers: int, no_rope_every: int, slides: bool
) -> tuple[list[bool], list[int]]:
    """Returns for each layer whether it turns queries and keys, and its window (0: none)."""
    _check_layers(fields, num_layers)
    usual = [not no_rope_every or (i + 1) % no_rope_every != 0 for i in range(num_layers)]
    turns = usual
    if no_rope_every:
        turns = [bool(turn) for turn in fields.list('no_rope_layers', num_layers) or usual]

    windows = [0] * num_layers
    if fields.flag('use_sliding_window', slides) and 'sliding_window' in fields:
        window = fields.whole('sliding_window')
        first = fields.whole('max_window_layers', 0 if slides else 28)
        is_windowed = [not turns[i] if no_rope_every else i >= first for i in range(num_layers)]
        kinds = fields.list('layer_types', num_layers)
        if kinds is not None:
            is_windowed = [kind == 'sliding_attention' for kind in kinds]
        windows = [window if narrow else 0 for narrow in is_windowed]
    return turns, windows


def _check_layers(fields: Fields, num_layers: int) -> None:
    """Raises RunError for more layers than config.model takes, before lists are made of them."""
    if not 1 <= num_layers <= 2**10:
        raise RunError(f'{fields.where}: {num_layers} layers: expected from 1 to {2**10}')


def _write_llama(cfg: ModelConfig) -> dict[str, Any]:
    windows = [rotations.window_of(encoding, cfg) for encoding in cfg.encodings]
    fields = {
        'hidden_size': cfg.width,
        'num_hidden_layers': cfg.num_layers,
        'num_attention_heads': cfg.num_heads,
        'num_key_value_heads': cfg.num_kv_heads,
        'head_dim': cfg.head_dim,
        'intermediate_size': cfg.mlp_width,
        'hidden_act': 'silu',
        'rms_norm_eps': cfg.norm_eps,
        'tie_word_embeddings': cfg.tied,
        'attention_bias': 'query' in BIASED[cfg.biases],
        'mlp_bias': 'up' in BIASED[cfg.biases],
        **rotations.write(cfg),
    }
    if any(windows):
        fields |= {
            'use_sliding_window': True,
            'sliding_window': max(windows),
            'max_window_layers': 0,
            'layer_types': [
                'sliding_attention' if window else 'full_attention' for window in windows
            ],
        }
    return fields


def _read_plain_llama(fields: Fields) -> dict[str, Any]:
    # Llama itself knows neither windows nor layers without a rotation.
    fields.only('use_sliding_window', False)
    return _read_llama(fields)


def _read_mistral(fields: Fields) -> dict[str, Any]:
    for name in ('attention_bias', 'mlp_bias'):
        fields.only(name, False)
    return _read_llama(fields, slides=True)


def _write_mistral(cfg: ModelConfig) -> dict[str, Any]:
    # A window, where there is one, is that of all layers; a missing one would be 4,096 tokens.
    fields = _write_llama(cfg)
    for name in ('use_sliding_window', 'max_window_layers', 'layer_types'):
        fields.pop(name, None)
    return {'sliding_window': None, **fields}


def _read_qwen2(fields: Fields) -> dict[str, Any]:
    fields.only('mlp_bias', False)
    return _read_llama(fields, biases='qkv')


def _read_qwen3(fields: Fields) -> dict[str, Any]:
    fields.only('mlp_bias', False)
    return _read_llama(fields, qk_norm=True)


def _read_olmo2(fields: Fields) -> dict[str, Any]:
    fields.only('use_sliding_window', False)
    own: dict[str, Any] = {'residual': 'post_norm', 'qk_norm': True, 'qk_norm_over': 'heads'}
    fields.only('mlp_bias', False)
    return _read_llama(fields, norm_eps=fields.number('rms_norm_eps', 1e-5), **own)


def _read_smollm3(fields: Fields) -> dict[str, Any]:
    tied = fields.flag('tie_word_embeddings', True)
    every = fields.whole('no_rope_layer_interval', 4)
    return _read_llama(fields, 2000000.0, every, tied=tied)


def _write_smollm3(cfg: ModelConfig) -> dict[str, Any]:
    turns = [int(rotations.find(encoding) is not None) for encoding in cfg.encodings]
    return {**_write_llama(cfg), 'no_rope_layers': turns, 'no_rope_layer_interval': 4}


# --- GPT-2, GPT-NeoX, BLOOM, MPT ------------------------------------------------------------------


def _read_gpt2(fields: Fields) -> dict[str, Any]:
    for name in ('scale_attn_by_inverse_layer_idx', 'add_cross_attention'):
        fields.only(name, False)
    fields.only('scale_attn_weights', True)
    width = fields.whole('n_embd')
    return {
        **_same_heads(fields.whole('n_head')),
        'width': width,
        'num_layers': fields.whole('n_layer'),
        'mlp_width': fields.whole('n_inner', 4 * width),
        'activation': fields.choice('activation_function', _GELU, 'gelu_new'),
        'biases': 'all',
        'norm': 'layernorm',
        'norm_eps': fields.number('layer_norm_epsilon', 1e-5),
        'tied': fields.flag('tie_word_embeddings', True),
        'positions': 'learned',
        'max_len': fields.whole('n_positions', 1024),
    }


def _same_heads(heads: int) -> dict[str, int]:
    """Returns the fields of heads that share the width, each with keys of its own."""
    return {'num_heads': heads, 'num_kv_heads': heads, 'head_dim': 0}


def _write_gelu(cfg: ModelConfig) -> str:
    return 'gelu' if cfg.activation == 'gelu_exact' else 'gelu_new'


def _write_gpt2(cfg: ModelConfig) -> dict[str, Any]:
    return {
        'n_embd': cfg.width,
        'n_layer': cfg.num_layers,
        'n_head': cfg.num_heads,
        'n_inner': cfg.mlp_width,
        'n_positions': cfg.max_len,
        'activation_function': _write_gelu(cfg),
        'layer_norm_epsilon': cfg.norm_eps,
        'tie_word_embeddings': cfg.tied,
    }


def _read_neox(fields: Fields) -> dict[str, Any]:
    num_layers = fields.whole('num_hidden_layers')
    _check_layers(fields, num_layers)
    is_parallel = fields.flag('use_parallel_residual', True)
    base = fields.number('rotary_emb_base', 10000.0)
    rope = fields.group('rope_parameters')
    share = rope.number('partial_rotary_factor', fields.number('rotary_pct', 0.25))
    if share == 1:
        rotation = rotations.read(fields, base)
    else:
        for group in (rope, fields.group('rope_scaling')):
            group.only('rope_type', 'default')
            group.only('type', 'default')
        arguments = {'base': rope.number('rope_theta', base), 'fraction': share}
        rotation = ('rope_partial', arguments, fields.whole('max_position_embeddings', 2048))
    return {
        **_same_heads(fields.whole('num_attention_heads')),
        'width': fields.whole('hidden_size'),
        'num_layers': num_layers,
        'mlp_width': fields.whole('intermediate_size'),
        'residual': 'parallel' if is_parallel else 'pre_norm',
        'activation': fields.choice('hidden_act', _GELU, 'gelu'),
        'biases': _read_biases(fields, attention=True, feed_forward=True),
        'norm': 'layernorm',
        'norm_eps': fields.number('layer_norm_eps', 1e-5),
        'tied': fields.flag('tie_word_embeddings', False),
        **rotations.layered(rotation, [True] * num_layers, [0] * num_layers),
    }


def _write_neox(cfg: ModelConfig) -> dict[str, Any]:
    rope = rotations.find(cfg.encodings[0])
    turned = rotations.write(cfg)
    share = 1.0
    if isinstance(rope, PartialRope):
        share = rope.fraction
        turned.pop('rope_scaling', None)
    return {
        'hidden_size': cfg.width,
        'num_hidden_layers': cfg.num_layers,
        'num_attention_heads': cfg.num_heads,
        'intermediate_size': cfg.mlp_width,
        'hidden_act': _write_gelu(cfg),
        'layer_norm_eps': cfg.norm_eps,
        'tie_word_embeddings': cfg.tied,
        'use_parallel_residual': cfg.residual == 'parallel',
        'attention_bias': 'query' in BIASED[cfg.biases],
        'rotary_pct': share,
        'rotary_emb_base': turned.pop('rope_theta', 10000.0),
        **turned,
    }


def _read_bloom(fields: Fields) -> dict[str, Any]:
    fields.only('apply_residual_connection_post_layernorm', False)
    width = fields.whole('hidden_size' if 'hidden_size' in fields else 'n_embed')
    return {
        **_same_heads(fields.whole('n_head' if 'n_head' in fields else 'num_attention_heads')),
        'width': width,
        'num_layers': fields.whole('n_layer' if 'n_layer' in fields else 'num_hidden_layers'),
        'mlp_width': 4 * width,
        'activation': 'gelu',
        'biases': 'all',
        'norm': 'layernorm',
        'norm_eps': fields.number('layer_norm_epsilon', 1e-5),
        'embedding_norm': True,
        'tied': fields.flag('tie_word_embeddings', True),
        'positions': 'alibi',
        'max_len': fields.whole('seq_length', 2048),
    }


def _write_bloom(cfg: ModelConfig) -> dict[str, Any]:
    return {
        'hidden_size': cfg.width,
        'n_layer': cfg.num_layers,
        'n_head': cfg.num_heads,
        'layer_norm_epsilon': cfg.norm_eps,
        'tie_word_embeddings': cfg.tied,
        'seq_length': cfg.max_len,
    }


def _read_mpt(fields: Fields) -> dict[str, Any]:
    attention = fields.group('attn_config')
    for name in ('clip_qkv', 'softmax_scale'):
        attention.only(name)
    for name in ('qk_ln', 'prefix_lm'):
        attention.only(name, False)
    if not attention.flag('alibi', True):
        raise RunError(f'{attention.where}: alibi is False: expected True')
    attention.only('alibi_bias_max', 8)
    attention.only('attn_type', 'multihead_attention')
    fields.only('logit_scale')
    fields.only('no_bias', True)
    fields.only('expansion_ratio', 4)
    width = fields.whole('d_model')
    return {
        **_same_heads(fields.whole('n_heads')),
        'width': width,
        'num_layers': fields.whole('n_layers'),
        'mlp_width': 4 * width,
        'activation': 'gelu_exact',
        'norm': 'layernorm_no_bias',
        'norm_eps': fields.number('layer_norm_epsilon', 1e-5),
        'tied': fields.flag('tie_word_embeddings', True),
        'positions': 'alibi',
        'max_len': fields.whole('max_seq_len', 2048),
    }


def _write_mpt(cfg: ModelConfig) -> dict[str, Any]:
    return {
        'd_model': cfg.width,
        'n_layers': cfg.num_layers,
        'n_heads': cfg.num_heads,
        'expansion_ratio': 4,
        'layer_norm_epsilon': cfg.norm_eps,
        'tie_word_embeddings': cfg.tied,
        'max_seq_len': cfg.max_len,
        'no_bias': True,
        'attn_config': {'alibi': True},
    }


# --- All of them ----------------------------------------------------------------------------------

CLASSES = {
    one.model_type: one
    for one in (
        ModelClass(
            'LlamaForCausalLM',
            'llama',
            _names('model.layers', _PRE_NORMS, _LLAMA_PROJECTIONS, _LLAMA_TOP),
            _read_plain_llama,
            _write_llama,
        ),
        ModelClass(
            'MistralForCausalLM',
            'mistral',
            _names('model.layers', _PRE_NORMS, _LLAMA_PROJECTIONS, _LLAMA_TOP),
            _read_mistral,
            _write_mistral,
        ),
        ModelClass(
            'Qwen2ForCausalLM',
            'qwen2',
            _names('model.layers', _PRE_NORMS, _LLAMA_PROJECTIONS, _LLAMA_TOP),
            _read_qwen2,
            _write_llama,
        ),
        ModelClass(
            'Qwen3ForCausalLM',
            'qwen3',
            _names('model.layers', _PRE_NORMS | _QK_NORMS, _LLAMA_PROJECTIONS, _LLAMA_TOP),
            _read_qwen3,
            _write_llama,
        ),
        ModelClass(
            'GPT2LMHeadModel',
            'gpt2',
            _names(
                'transformer.h',
                {'attention_norm': 'ln_1', 'feed_forward_norm': 'ln_2'},
                _projections(_fused('attn.c_attn'), 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj'),
                {
                    'embedding': 'transformer.wte',
                    'positions_learned/table': 'transformer.wpe',
                    'final_norm': 'transformer.ln_f',
                    'output/kernel': 'lm_head',
                },
            ),
            _read_gpt2,
            _write_gpt2,
            transposed=False,
            fused='blocks',
        ),
        ModelClass(
            'GPTNeoXForCausalLM',
            'gpt_neox',
            _names(
                'gpt_neox.layers',
                _PRE_NORMS,
                _projections(
                    _fused('attention.query_key_value'),
                    'attention.dense',
                    'mlp.dense_h_to_4h',
                    'mlp.dense_4h_to_h',
                ),
                {
                    'embedding': 'gpt_neox.embed_in',
                    'final_norm': 'gpt_neox.final_layer_norm',
                    'output/kernel': 'embed_out',
                },
            ),
            _read_neox,
            _write_neox,
            fused='heads',
        ),
        ModelClass(
            'Olmo2ForCausalLM',
            'olmo2',
            _names('model.layers', _POST_NORMS | _QK_NORMS, _LLAMA_PROJECTIONS, _LLAMA_TOP),
            _read_olmo2,
            _write_llama,
        ),
        ModelClass(
            'SmolLM3ForCausalLM',
            'smollm3',
            _names('model.layers', _PRE_NORMS, _LLAMA_PROJECTIONS, _LLAMA_TOP),
            _read_smollm3,
            _write_smollm3,
        ),
        ModelClass(
            'BloomForCausalLM',
            'bloom',
            _names(
                'transformer.h',
                _PRE_NORMS,
                _projections(
                    _fused('self_attention.query_key_value'),
                    'self_attention.dense',
                    'mlp.dense_h_to_4h',
                    'mlp.dense_4h_to_h',
                ),
                {
                    'embedding': 'transformer.word_embeddings',
                    'embedding_norm': 'transformer.word_embeddings_layernorm',
                    'final_norm': 'transformer.ln_f',
                    'output/kernel': 'lm_head',
                },
            ),
            _read_bloom,
            _write_bloom,
            fused='heads',
        ),
        ModelClass(
            'MptForCausalLM',
            'mpt',
            _names(
                'transformer.blocks',
                {'attention_norm': 'norm_1', 'feed_forward_norm': 'norm_2'},
                _projections(_fused('attn.Wqkv'), 'attn.out_proj', 'ffn.up_proj', 'ffn.down_proj'),
                {
                    'embedding': 'transformer.wte',
                    'final_norm': 'transformer.norm_f',
                    'output/kernel': 'lm_head',
                },
            ),
            _read_mpt,
            _write_mpt,
            fused='blocks',
        ),
    )
}

# What none of them is: a class of our own, that brings its code along.
_OWN_NORMS = {'attention_norm': 'attention_norm', 'feed_forward_norm': 'feed_forward_norm'}
ORDEM = ModelClass(
    'OrdemForCausalLM',
    'ordem',
    {
        **_names(
            'model.layers',
            _OWN_NORMS | _QK_NORMS,
            _LLAMA_PROJECTIONS,
            _LLAMA_TOP | {'embedding_norm': 'model.embedding_norm'},
        ),
        'layer_{}/attention/positions/*': 'model.layers.{}.self_attn.positions.*',
        'positions_*': 'model.positions.*',
    },
    ordem.read,
    ordem.write,
    keeps_pairs=True,
    code=ordem.FILES,
)


def find(fields: Fields) -> ModelClass:
    """Returns the class that a config.json names. Raises RunError for one that is not known."""
    fields.only('quantization_config')
    known = {**CLASSES, ORDEM.model_type: ORDEM}
    return known[fields.choice('model_type', {name: name for name in known}, '')]


def read(fields: Fields) -> ConfigDict:
    """Returns an experiment whose `model` part is what a config.json describes.

    Raises RunError or ModelError where a field is none, or says what no model here can be.
    """
    one = find(fields)
    config = schema.run_config_file(schema.EXPERIMENT)['get_config']()
    model = one.read(fields)
    trained = model.pop('train_len', model['max_len'])
    config.model.update(model)
    config.data.seq_len = trained
    field_checks.check(config)
    if one is ORDEM:
        ordem.check(fields, model_config.resolve(config.model, fields.whole('vocab_size'), trained))
    return config


# --- Which class has a model ----------------------------------------------------------------------

# Fields that are the same in two models that compute the same. Those of encodings are not here.
_COMPARED = (*ordem.COMPUTED, 'mixing', 'bag')


def express(cfg: ModelConfig, own: bool = True) -> tuple[ModelClass, dict[str, Any]]:
    """Returns the class that has a model, and its config.json.

    A class whose projections or norms have biases has a model without them, too: they are zeros.

    Args:
      own: whether it may be our own class, which brings its code along.
    Raises:
      RunError: no class has the model; with what the nearest one lacks.
    """
    nearest: list[str] = []
    filled = None
    for one in CLASSES.values():
        values = _write(one, cfg)
        try:
            there = read_architecture(Fields(values, one.architecture), cfg.vocab_size)
        except (RunError, ModelError):
            continue
        faults = differences(cfg, there)
        if not faults:
            return one, values
        if filled is None and _only_zeros(cfg, there, faults):
            filled = one, values
        if not nearest or len(faults) < len(nearest) - 1:
            nearest = [one.architecture, *faults.values()]
    if filled is not None:
        return filled
    message = (
        f'no class that is known elsewhere is this model; nearest is {nearest[0]}, where '
        f'{", ".join(nearest[1:])}'
    )
    if not own:
        raise RunError(message)
    refusal = ordem.find_refusal(cfg)
    if refusal:
        raise RunError(f'{message}; nor is our own: {refusal}')
    return ORDEM, _write(ORDEM, cfg)


def _write(one: ModelClass, cfg: ModelConfig) -> dict[str, Any]:
    """Returns the config.json of a model as one class has it."""
    return {
        'architectures': [one.architecture],
        'model_type': one.model_type,
        'vocab_size': cfg.vocab_size,
        **one.write(cfg),
    }


def read_architecture(fields: Fields, vocab_size: int) -> ModelConfig:
    """Returns the architecture that a config.json describes."""
    config = read(fields)
    return model_config.resolve(config.model, vocab_size, config.data.seq_len)


def _only_zeros(ours: ModelConfig, theirs: ModelConfig, faults: Mapping[str, str]) -> bool:
    """Returns whether two models differ in nothing but biases, which are 0 then."""
    fillable = {
        'biases': set(BIASED[ours.biases]) <= set(BIASED[theirs.biases]),
        'norm': (ours.norm, theirs.norm) == ('layernorm_no_bias', 'layernorm'),
    }
    return all(fillable.get(name, False) for name in faults)


def differences(ours: ModelConfig, theirs: ModelConfig) -> dict[str, str]:
    """Returns field -> what differs, in words, of all that two models do otherwise."""
    return dict(_differences(ours, theirs))


def _differences(ours: ModelConfig, theirs: ModelConfig) -> Iterator[tuple[str, str]]:
    for name in _COMPARED:
        here, there = getattr(ours, name), getattr(theirs, name)
        if name == 'qk_norm_over' and not (ours.qk_norm and theirs.qk_norm):
            continue
        if here != there:
            yield name, f'config.model.{name} is {there!r}, not {here!r}'
    if len(ours.encodings) != len(theirs.encodings):
        return
    for layer, (a, b) in enumerate(zip(ours.encodings, theirs.encodings)):
        if not rotations.same(a, b):
            yield 'positions', f'layer {layer} has {b.spec.title}, not {a.spec.title}'
            return
        window, other = (rotations.window_of(e, c) for e, c in ((a, ours), (b, theirs)))
        if window != other:
            yield 'window', f'layer {layer} has a window of {other}, not {window}'
            return
    learned = 'learned' in {encoding.name for encoding in ours.encodings}
    if learned and ours.max_len != theirs.max_len:
        yield 'max_len', f'there are {theirs.max_len} positions, not {ours.max_len}'
