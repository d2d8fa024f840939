"""Embeds a text: the last hidden states of its tokens, pooled to one vector of length 1.

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

_TOKENS_A_PASS = 4096


def check_pooling(
    pooling: str, model: ModelConfig, field: str = 'config.embedding.pooling'
) -> None:
    """Raises ModelError where a pooling is unknown, or the model lacks its parameters.

    `field`: what names the pooling, for the message.
    """
    if pooling not in POOLINGS:
        raise ModelError(f'{field} is {pooling!r}: {did_you_mean(pooling, POOLINGS)}')
    if 'bag' in pooling and not model.bag:
        raise ModelError(
            f'{field} is {pooling!r}: this model has no vectors for a bag of tokens; expected '
            f"config.model.bag=True in training, or 'mean', 'last' or 'weighted'"
        )


def parse_sizes(text: str, width: int) -> list[int]:
    """Returns the numbers of config.embedding.sizes: '32,64' -> [32, 64].

    Raises ModelError where those are no numbers from 1 to the model's width.
    """
    try:
        sizes = sorted({int(word) for word in text.split(',') if word.strip()})
    except (ValueError, AttributeError):
        sizes = [0]
    if sizes and not 1 <= sizes[0] <= sizes[-1] <= width:
        raise ModelError(
            f'config.embedding.sizes is {text!r}: expected numbers from 1 to {width} '
            f'(config.model.width), separated by commas'
        )
    return sizes


def trained_length(config) -> int:
    """Returns how many tokens a model was trained to make one vector of.

    Marks are among them, and a longer text is cut. The context may be longer, but a mean over more
    tokens than in training is another quantity.
    """
    return config.data.seq_len


def pool(hidden_NxTxD: jax.Array, valid_NxT: jax.Array, pooling: str) -> jax.Array:
    """Returns one vector a text, [N,D] float32, from the hidden states of `valid` tokens.

    Where padding stands, left or right, changes nothing.

    Args:
      pooling: mean: of all tokens. last: the last one, an end mark. weighted: the i-th of n counts
        i times (Muennighoff 2022, arXiv 2202.08904, equation 2): with causal attention later tokens
        have seen more.
    """
    rank_NxT = jnp.cumsum(valid_NxT, axis=1)  # 1 at the first valid token
    weights_by_pooling = {
        'mean': valid_NxT,
        'weighted': rank_NxT * valid_NxT,
        'last': valid_NxT & (rank_NxT == rank_NxT[:, -1:]),
    }
    weights_NxT = weights_by_pooling[pooling].astype(jnp.float32)
    weights_NxT /= jnp.maximum(weights_NxT.sum(1, keepdims=True), 1)
    return jnp.einsum('NTD,NT->ND', hidden_NxTxD.astype(jnp.float32), weights_NxT)


def normalize(vectors_NxD: jax.Array) -> jax.Array:
    """Returns vectors scaled to length 1."""
    squares_Nx1 = jnp.square(vectors_NxD).sum(-1, keepdims=True)
    return vectors_NxD * jax.lax.rsqrt(jnp.maximum(squares_Nx1, 1e-12))


def embed(
    model: Transformer,
    params,
    tokens_NxT: jax.Array,
    valid_NxT: jax.Array,
    pooling: str,
    row_keys: jax.Array | None = None,
) -> jax.Array:
    """Returns the vectors of texts, one a row, [N,D] float32, not yet of length 1.

    Args:
      tokens_NxT, valid_NxT: int32 and bool; padding may stand on either side.
      pooling: mean, last, weighted: see `pool`. bag: of the tokens between the two marks alone,
        without the layers (`Bag`). bag+mean: of both, so that words that tell much are not lost
        among hidden states, which all have one length: the bag + g times the mean of hidden states
        over the root of the width, which has each of them begin with the length of a token of the
        bag.
      row_keys: see `Transformer`.
    """
    # The bag: what stands between the first valid token and the last one.
    if 'bag' in pooling:
        rank_NxT = jnp.cumsum(valid_NxT, axis=1)
        counted_NxT = (rank_NxT > 1) & (rank_NxT < rank_NxT[:, -1:])
        bag = Bag(model.config)
        bag_NxD, gate = bag.apply({'params': params['bag']}, tokens_NxT, counted_NxT)
        if pooling == 'bag':
            return bag_NxD

    # The hidden states, of a row with one document.
    segment_ids = valid_NxT.astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(segment_ids, axis=1) - 1, 0) * segment_ids
    hidden_NxTxD, _ = model.apply(
        {'params': params}, tokens_NxT, positions, segment_ids, row_keys=row_keys, logits=False
    )
    if pooling == 'bag+mean':
        mean_NxD = pool(hidden_NxTxD, valid_NxT, 'mean')
        return bag_NxD + gate * hidden_NxTxD.shape[-1] ** -0.5 * mean_NxD
    return pool(hidden_NxTxD, valid_NxT, pooling)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _embed_normalized(
    model: Transformer, params, tokens_NxT: jax.Array, lengths_N: jax.Array, pooling: str
) -> jax.Array:
    """Returns vectors of length 1 of texts that are padded on the right, [N,D] float32."""
    valid_NxT = jnp.arange(tokens_NxT.shape[1]) < lengths_N[:, None]
    # All rows have the key of row 0: a text's vector must not depend on its neighbours.
    row_keys = make_row_keys(0 * lengths_N)
    return normalize(embed(model, params, tokens_NxT, valid_NxT, pooling, row_keys))


class Embedder:
    """Embeds texts with one model.

    Args:
      model, params: as `runtime.models.load` gives them.
      pooling: one of POOLINGS.
      size: leading dimensions that are kept (Matryoshka, Kusupati et al. 2022, arXiv 2205.13147);
        0: all.
    Raises:
      ModelError: no such pooling, or a size beyond the model's width.
    """

    def __init__(self, model: Transformer, params, pooling: str = 'mean', size: int = 0):
        check_pooling(pooling, model.config)
        if not 0 <= size <= model.config.width:
            raise ModelError(
                f'a size of {size} dimensions: expected at most {model.config.width}, the width of '
                f'the model'
            )
        self.size = size or model.config.width
        self.longest = model.config.max_len
        if model.config.attention in (
            'splash',
            'tiles',
        ):  # texts have lengths that it does not take
            model = Transformer(dataclasses.replace(model.config, attention='auto'))
        self._embed = functools.partial(_embed_normalized, model, params)
        self._pooling = pooling

    def __call__(self, texts: list[list[int]]) -> np.ndarray:
        """Returns vectors of length 1, float32 [N,size].

        Texts of like length run together: neither their order nor their company changes a vector
        beyond rounding.

        Args:
          texts: token ids, 1 to `longest` of each text.
        """
        vectors = np.zeros((len(texts), self.size), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        while order:
            # As many of the shortest texts as have room in one pass.
            columns = _columns(len(texts[order[0]]))
            most = max(1, _TOKENS_A_PASS // columns)
            together = [i for i in order[:most] if len(texts[i]) <= columns]
            order = order[len(together) :]

            # The number of rows is rounded up to a power of two, so that few are compiled.
            rows = 1 << (len(together) - 1).bit_length()
            tokens = np.zeros((rows, columns), np.int32)
            lengths = np.zeros(rows, np.int32)
            for row, i in enumerate(together):
                tokens[row, : len(texts[i])] = texts[i]
                lengths[row] = len(texts[i])

            # Leading dimensions of a vector of length 1 are shorter.
            units = np.asarray(self._embed(tokens, lengths, self._pooling))
            cut = units[: len(together), : self.size]
            norms = np.linalg.norm(cut, axis=1, keepdims=True)
            vectors[together] = cut / np.maximum(norms, 1e-6)
        return vectors


def _columns(length: int) -> int:
    """Returns a length that is at least this one, of few: 16, 24, 32, 48, 64, 96, ...

    Few lengths are few compilations.
    """
    columns = 16
    while columns < length:
        is_power_of_two = columns & (columns - 1) == 0
        columns = columns * 3 // 2 if is_power_of_two else columns * 4 // 3
    return columns
