"""Random models of odd sizes, one or more of each class that others know."""

import functools
import itertools

import jax
import numpy as np
import pytest

from apps.exchange import classes, huggingface, source as sources
from configs import base
from model.config import resolve
from model.transformer import Transformer
from tests.model.parameters import draw

VOCAB, TIME = 29, 12
RNG = np.random.default_rng(5)
TOKENS = RNG.integers(1, VOCAB, (2, TIME)).astype(np.int32)
PLACES = np.tile(np.arange(TIME, dtype=np.int32), (2, 1))

LAYERNORM = dict(norm='layernorm', norm_eps=1e-5, activation='gelu')
HEADS = dict(width=18, num_heads=3, num_kv_heads=3, head_dim=6)
FACTORS = dict(short=[1.5, 2.0, 3.0, 4.5, 5.0], long=[1.5, 2.0, 3.0, 4.5, 5.0])
CASES = {  # what it shows -> class, fields of config.model
    'llama': ('llama', {}),
    'llama untied, biased': ('llama', dict(tied=False, biases='all', norm_eps=1e-5)),
    'llama linear': ('llama', dict(positions='rope_interpolated', stretch=3.0)),
    'llama ntk': ('llama', dict(positions='rope_ntk', stretch=3.0)),
    'llama dynamic': ('llama', dict(positions='rope_dynamic', stretch=3.0, length=5)),
    'llama yarn': ('llama', dict(positions='yarn', stretch=3.0, length=8, mscale=0.7)),
    'llama by parts': ('llama', dict(positions='rope_by_parts', stretch=3.0, length=8)),
    'llama longrope': ('llama', dict(positions='longrope', stretch=3.0, length=8, **FACTORS)),
    'llama 3': ('llama', dict(positions='llama3', stretch=3.0, length=8, high=2.0)),
    'llama proportional': ('llama', dict(positions='rope_proportional', fraction=0.6)),
    'llama in pairs': ('llama', dict(positions='rope_interleaved', biases='attention')),
    'mistral': ('mistral', dict(positions='rope+window', window_=5)),
    'qwen2': ('qwen2', dict(biases='qkv')),
    'qwen2 windows': ('qwen2', dict(biases='qkv', positions='rope,rope+window', window_=5)),
    'qwen3': ('qwen3', dict(qk_norm=True, biases='attention', num_layers=3)),
    'gpt2': ('gpt2', dict(HEADS, **LAYERNORM, positions='learned', biases='all')),
    'gpt_neox': (
        'gpt_neox',
        dict(
            HEADS | LAYERNORM,
            positions='rope_partial',
            fraction=0.67,
            residual='parallel',
            biases='all',
            activation='gelu_exact',
            tied=False,
        ),
    ),
    'gpt_neox one after another': (
        'gpt_neox',
        dict(HEADS | LAYERNORM, biases='feed_forward', tied=False),
    ),
    'olmo2': ('olmo2', dict(residual='post_norm', qk_norm=True, qk_norm_over='heads')),
    'smollm3': ('smollm3', dict(positions='rope,none,rope', num_layers=3)),
    'smollm3 windows': (
        'smollm3',
        dict(positions='rope,none+window,rope', num_layers=3, window_=5, biases='attention'),
    ),
    'bloom': (
        'bloom',
        dict(
            HEADS | LAYERNORM,
            positions='alibi',
            embedding_norm=True,
            biases='all',
            mlp_width=72,
        ),
    ),
    'mpt': (
        'mpt',
        dict(
            HEADS | LAYERNORM,
            positions='alibi',
            norm='layernorm_no_bias',
            activation='gelu_exact',
            mlp_width=72,
        ),
    ),
}
# Models as llama.cpp loads them, of classes whose cases above it does not.
_ONE_WIDTH = dict(num_heads=2, num_kv_heads=1, head_dim=0)
LOADED = {
    'qwen2 of one width': dict(_ONE_WIDTH, biases='qkv'),
    'qwen3 without biases': dict(qk_norm=True),
    'olmo2 untied': dict(CASES['olmo2'][1], **_ONE_WIDTH, tied=False),
    'smollm3 of four': dict(positions='rope,rope,rope,none', num_layers=4),
    'yarn': dict(positions='yarn', stretch=3.0, length=8),
}
MODEL_FIELDS = set(base.get_config().model)


def configure(trained=TIME, vocab=VOCAB, **fields):
    """Returns a model; what is no field of it is of its encoding.

    Args:
      trained: the length of training.
      vocab: tokens.
    """
    c = base.get_config().model
    sizes = dict(width=20, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=10, mlp_width=44)
    sizes['max_len'] = TIME + 4
    c.update(sizes | {name: x for name, x in fields.items() if name in MODEL_FIELDS})
    # A window of the pattern is called as that of the model.
    arguments = {name: x for name, x in fields.items() if name not in MODEL_FIELDS}
    c.positions_args = {name.removesuffix('_'): x for name, x in arguments.items()}
    return Transformer(resolve(c, vocab, trained))


def build(**fields):
    """Returns a model as `configure` does, and random parameters."""
    model = configure(**fields)
    rng = np.random.default_rng(3)

    def off_one(path, x):
        is_norm = path[-1].key == 'scale'
        return np.asarray(x + 0.3 * rng.normal(size=x.shape) if is_norm else x, x.dtype)

    return model, jax.tree_util.tree_map_with_path(off_one, draw(model))


@functools.cache
def build_case(case):
    """Returns the model of a case, its parameters and its logits."""
    model, params = build(**(LOADED[case] if case in LOADED else CASES[case][1]))
    return model, params, logits_of(model, params)


def logits_of(model, params, tokens=TOKENS, lengths=TIME):
    """Returns logits [B,TIME,V] of texts of so many tokens, a number or [B,1]."""
    places = np.tile(PLACES[0], (len(tokens), 1))
    segment_ids = (places < lengths).astype(np.int32)
    return np.asarray(model.apply({'params': params}, tokens, places, segment_ids)[0])


def write(folder, expressed, **more):
    """Writes a folder of a model without its tokenizer."""
    folder.mkdir(exist_ok=True)
    huggingface.write_json(folder / 'config.json', {**expressed.config, 'pad_token_id': 0})
    huggingface.write_weights(folder, expressed, '', **more)
    return folder


def read(source):
    architecture = classes.read_architecture(source.fields, VOCAB)
    return architecture, read_params(source, architecture)


def read_params(source, architecture):
    """Returns all parameters of a source."""
    return jax.tree.map(np.asarray, sources.defer_params(source, architecture))


def same(a, b):
    """Whether two trees hold the same bits under the same names."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


HOSTILE = [0, 1, -1, 0.5, 1e30, 10**9, 10**40, 'x', '', [], [1], {}, {'a': 1}, True, float('nan')]


def replaced(fields):
    """Yields fields in which one has a value that it should not have, in turns."""
    values = itertools.cycle(HOSTILE)
    for name, value in fields.items():
        for _ in range(2):
            yield fields | {name: next(values)}
        if isinstance(value, dict):
            yield from (fields | {name: inner} for inner in replaced(value))


def open_in_llama_cpp(path, context=64):
    """Returns the model of a file of GGUF in llama.cpp, where it computes in float32."""
    llama_cpp = pytest.importorskip('llama_cpp', reason='needs the extra `engines`')
    return llama_cpp.Llama(
        str(path),
        n_ctx=context,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        n_threads=1,
        verbose=False,
    )
