"""A text becomes one vector: the last hidden states of its tokens, pooled, of length 1.

Dimensions: N texts, T tokens, D width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig
from model.errors import ModelError, did_you_mean
from model.layers import Bag
from model.transformer import Transformer, make_row_keys

POOLINGS = ('mean', 'last', 'weighted', 'bag', 'bag+mean')

_TOGETHER = 4096  # tokens of one forward pass


def check_pooling(
    pooling: str, model: ModelConfig, field: str = 'config.embedding.pooling'
) -> None:
    """Raises ModelError where `pooling` names none, or one for which the model has no parameters; `field`: what names it."""
    if pooling not in POOLINGS:
        raise ModelError(f'{field} is {pooling!r}: {did_you_mean(pooling, POOLINGS)}')
    if 'bag' in pooling and not model.bag:
        raise ModelError(
            f'{field} is {pooling!r}: this model has no vectors for a bag of tokens; expected config.model.bag=True in training, or '
            f"'mean', 'last' or 'weighted'"
        )


def parse_sizes(text: str, width: int) -> list[int]:
    """'32,64' of config.embedding.sizes -> [32, 64]. Raises ModelError where those are no numbers from 1 to the model's width."""
    try:
        found = sorted({int(word) for word in text.split(',') if word.strip()})
    except (ValueError, AttributeError):
        found = [0]
    if found and not 1 <= found[0] <= found[-1] <= width:
        raise ModelError(
            f'config.embedding.sizes is {text!r}: expected numbers from 1 to {width} (config.model.width), separated by commas'
        )
    return found


def trained_length(config) -> int:
    """Tokens of a text, its marks among them, of which an experiment's model was trained to make one vector: a longer text is cut. Its context may be
    longer, but a mean over more tokens than in training is another quantity."""
    return config.data.seq_len


def pool(hidden_NxTxD: jax.Array, valid_NxT: jax.Array, pooling: str) -> jax.Array:
    """Hidden states of the tokens that are `valid` -> [N,D] float32. Where padding stands, left or right, changes nothing.

    mean: of all tokens. last: the last one, an end mark. weighted: the i-th of n counts i times (Muennighoff 2022, arXiv 2202.08904,
    equation 2): with causal attention later tokens have seen more.
    """
    place_NxT = jnp.cumsum(valid_NxT, axis=1)  # 1 at the first valid token
    weights_NxT = {
        'mean': valid_NxT,
        'weighted': place_NxT * valid_NxT,
        'last': valid_NxT & (place_NxT == place_NxT[:, -1:]),
    }[pooling].astype(jnp.float32)
    weights_NxT /= jnp.maximum(weights_NxT.sum(1, keepdims=True), 1)
    return jnp.einsum('ntd,nt->nd', hidden_NxTxD.astype(jnp.float32), weights_NxT)


def normalize(vectors_NxD: jax.Array) -> jax.Array:
    """Scaled to length 1."""
    return vectors_NxD * jax.lax.rsqrt(
        jnp.maximum(jnp.square(vectors_NxD).sum(-1, keepdims=True), 1e-12)
    )


def embed(
    model: Transformer,
    params,
    tokens_NxT: jax.Array,
    valid_NxT: jax.Array,
    pooling: str,
    row_keys: jax.Array | None = None,
) -> jax.Array:
    """Texts, one a row, padded on either side -> their vectors [N,D] float32, not yet of length 1. `row_keys`: see Transformer.

    mean, last, weighted: see `pool`. bag: of the tokens between the two marks alone, without the layers (`Bag`). bag+mean: of both, so that words
    that tell much are not lost among hidden states, which all have one length: the bag + g times the mean of hidden states over the root of the width,
    which has each of them begin with the length of a token of the bag.
    """
    if 'bag' in pooling:
        place_NxT = jnp.cumsum(valid_NxT, axis=1)
        bag_NxD, gate = Bag(model.config).apply(
            {'params': params['bag']}, tokens_NxT, (place_NxT > 1) & (place_NxT < place_NxT[:, -1:])
        )
        if pooling == 'bag':
            return bag_NxD
    segments = valid_NxT.astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0) * segments
    hidden, _ = model.apply(
        {'params': params}, tokens_NxT, positions, segments, row_keys=row_keys, logits=False
    )
    if pooling == 'bag+mean':
        return bag_NxD + gate * hidden.shape[-1] ** -0.5 * pool(hidden, valid_NxT, 'mean')
    return pool(hidden, valid_NxT, pooling)


_units = jax.jit(
    lambda model, params, tokens, lengths, pooling: normalize(
        embed(
            model,
            params,
            tokens,
            jnp.arange(tokens.shape[1]) < lengths[:, None],
            pooling,
            make_row_keys(0 * lengths),
        )
    ),
    static_argnums=(0, 4),
)


class Embedder:
    """Embeds texts with one model.

    Args:
      model, params: as `runtime.checkpoint.load` gives them.
      pooling: one of POOLINGS.
      size: leading dimensions that are kept (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147); 0: all.
    Raises:
      ModelError: no such pooling, or a size beyond the model's width.
    """

    def __init__(self, model: Transformer, params, pooling: str = 'mean', size: int = 0):
        check_pooling(pooling, model.config)
        if not 0 <= size <= model.config.width:
            raise ModelError(
                f'a size of {size} dimensions: expected at most {model.config.width}, the width of the model'
            )
        self.size = size or model.config.width
        self.longest = model.config.max_len
        if model.config.attention == 'splash':  # texts have lengths that it does not take
            model = Transformer(dataclasses.replace(model.config, attention='auto'))
        self._units = functools.partial(_units, model, params)
        self._pooling = pooling

    def __call__(self, texts: list[list[int]]) -> np.ndarray:
        """Token ids of each text, 1 to `longest` of them -> vectors of length 1, float32 [N,size]. Texts of like length run together:
        neither their order nor their company changes a vector beyond rounding."""
        out = np.zeros((len(texts), self.size), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        while order:
            columns = _columns(len(texts[order[0]]))
            rows = max(1, _TOGETHER // columns)
            now = [i for i in order[:rows] if len(texts[i]) <= columns]
            order = order[len(now) :]
            tokens, lengths = (
                np.zeros((1 << (len(now) - 1).bit_length(), columns), np.int32),
                np.zeros(1 << (len(now) - 1).bit_length(), np.int32),
            )
            for row, i in enumerate(now):
                tokens[row, : len(texts[i])], lengths[row] = texts[i], len(texts[i])
            found = np.asarray(self._units(tokens, lengths, self._pooling))[: len(now), : self.size]
            out[now] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6)
        return out


def _columns(length: int) -> int:
    """Few lengths, few compilations: 16, 24, 32, 48, 64, 96, ..."""
    columns = 16
    while columns < length:
        columns = columns * 3 // 2 if columns & (columns - 1) == 0 else columns * 4 // 3
    return columns
