"""Prefill and decode with a cache, the whole loop compiled.

Prompts of different lengths are padded on the right: padding has segment 0 and is never seen, and
each row counts its own positions, so a row comes out as if it were alone.

Lengths are rounded up to powers of two, so that a few compiled programs serve all: one for each
length of prompt and cache. A `Conversation` keeps what was read for its next turn.

Dimensions: B batch, P prompt, S columns of the cache, V vocabulary, K key-value heads, d head size.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from model import kernels
from model.config import ModelConfig
from model.errors import ModelError
from model.sampling import Sampling, draw_tokens
from model.transformer import CacheState, Transformer, output_matrix, unembed

WEIGHTS = ('as_computed', 'bfloat16', 'int8')  # see `narrow_weights`

# Prompts that attention would need an array [P,P] for are read so many tokens at a time.
_CHUNK = 1024

# What is new in a conversation is read so many tokens at a time, as long as that is a few times,
# into a cache of so many columns at least: most turns then need no program of their own.
_PIECE = 32
_MOST_PIECES = 4
_COLUMNS = 256
_ENDS = 4  # tokens that may end a row, where no more are given


@dataclasses.dataclass(frozen=True)
class Stop:
    """Says when a generation ends before it has as many tokens as it may have.

    Attributes:
      tokens: ids that end a row; they are left out of it.
      watch: called with what each row has so far; True ends the generation (stop strings,
        streaming).
      every: tokens between two calls of `watch`. The loop is compiled for so many.
    """

    tokens: tuple[int, ...] = ()
    watch: Callable[[list[list[int]]], bool] | None = None
    every: int = 32


def round_up(length: int) -> int:
    """Returns the power of two, 16 or more, that a length is padded to."""
    return max(16, 1 << (length - 1).bit_length())


def unroll_layers(model: Transformer, params: dict) -> tuple[Transformer, dict]:
    """Returns the same model with its layers one by one, and its parameters.

    Decoding wants them so: each layer then has its own cache array.
    """
    cfg = model.config
    if not cfg.scan_layers:
        return model, params

    # What was stacked for the scan, group by group, is taken apart.
    unrolled = {name: x for name, x in params.items() if name != 'layers'}
    for layer in range(cfg.num_layers):
        group, i = divmod(layer, cfg.period)
        stacked = params['layers'][f'layer_{i}']
        unrolled[f'layer_{layer}'] = jax.tree.map(lambda x, group=group: x[group], stacked)
    return Transformer(dataclasses.replace(cfg, scan_layers=False, remat='none')), unrolled


def cast_weights(model: Transformer, params):
    """Returns parameters with no matrix wider than the dtype that it is computed with.

    Decoding reads every one for each token.
    """
    dtype = jnp.dtype(model.config.dtype)

    def cast(path, x):
        return x.astype(dtype) if _is_matrix(path) and x.dtype.itemsize > dtype.itemsize else x

    return jax.tree_util.tree_map_with_path(cast, params)


def narrow_weights(model: Transformer, params: dict, weights: str) -> tuple[Transformer, dict]:
    """Returns a model with unrolled layers, and its parameters with matrices in a narrow dtype.

    They take less memory, and as less is read for each token, accelerators decode faster. What is
    computed with them has the dtype that it had.

    Args:
      weights: one of WEIGHTS. int8: rounded to 255 values between plus and minus the largest one of
        those that an output sums over, or of the vector of a token (symmetric, by channel).
    """
    model, params = unroll_layers(model, params)
    if weights == 'as_computed':
        return model, cast_weights(model, params)

    narrowed: dict = {}
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        parent = narrowed
        for key in path[:-1]:
            parent = parent.setdefault(key.key, {})
        name = path[-1].key
        if not _is_matrix(path):
            parent[name] = x
        elif weights == 'bfloat16':
            parent[name] = x.astype(jnp.bfloat16)
        else:
            x = x.astype(jnp.float32)
            axes = _summed_axes(path)
            scale = jnp.maximum(jnp.abs(x).max(axes, keepdims=True), 1e-12) / 127
            parent[name] = jnp.round(x / scale).astype(jnp.int8)
            parent[f'{name}_scale'] = scale
    return model, narrowed


def _is_matrix(path) -> bool:
    return path[-1].key == 'kernel' or path[0].key == 'embedding'


def _summed_axes(path) -> tuple[int, ...]:
    """Returns the axes of a matrix that share a scale in int8."""
    if path[0].key == 'embedding':
        return (1,)
    return (0, 1) if path[-2].key == 'out' else (0,)  # [H,d,D], else [D,...] or [F,D]


def empty_cache(model: Transformer, batch: int, columns: int) -> CacheState:
    """Returns a cache with room for `columns` keys, none seen yet.

    The arrays of a layer are made when it first writes.
    """
    zeros = jnp.zeros((batch, columns), jnp.int32)
    return {
        'layers': [{} for _ in range(model.config.num_layers)],
        'positions': zeros,
        'ids': zeros,
        'segment_ids': zeros,
        'column': jnp.int32(0),
    }


def _swap_layout(cache: CacheState) -> CacheState:
    """Turns keys and values [B,K,S,d] into [S,K,B,d] or back, on a TPU; elsewhere nothing.

    It is the order in which XLA lays them out inside the loop of decoding. Carried otherwise, the
    whole cache is copied on the way in and out.
    """
    if kernels.platform() != 'tpu':
        return cache
    layers = [
        {name: x.transpose(2, 1, 0, 3) if name in ('k', 'v') else x for name, x in layer.items()}
        for layer in cache['layers']
    ]
    return {**cache, 'layers': layers}


def _forward(
    model: Transformer,
    params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    cache: CacheState,
    last: jax.Array | None = None,
) -> tuple[jax.Array, CacheState]:
    """Returns logits [B,V] of what follows these tokens, and the cache with them in it.

    `last`: [B] int32, the column of each row's last token; None: there is one column.
    """
    cfg = model.config
    outputs = model.apply(
        {'params': params}, tokens, positions, segment_ids, cache=cache, logits=False
    )
    x_BxTxD, cache = cast(tuple[jax.Array, CacheState], outputs)

    # The other columns of a prompt need no logits, which are the widest array of all.
    if last is not None:
        x_BxTxD = jnp.take_along_axis(x_BxTxD, last[:, None, None], axis=1)
    return unembed(x_BxTxD, output_matrix(cfg, params), cfg.tied)[:, 0], cache


@functools.partial(jax.jit, static_argnames=('model', 'columns'))
def prefill(
    model: Transformer, params, tokens: jax.Array, lengths: jax.Array, columns: int
) -> dict:
    """Reads prompts in one forward pass; returns the state that `decode` goes on from.

    Args:
      tokens: [B,P] int32, padded on the right.
      lengths: [B] int32, tokens of each prompt.
      columns: of the cache, for the prompts and all that is to be drawn.
    """
    batch = tokens.shape[0]
    nothing = {
        'cache': empty_cache(model, batch, columns),
        'logits': jnp.zeros((batch, model.config.vocab_size)),
        'position': jnp.zeros(batch, jnp.int32),
        'seen': jnp.zeros((batch, model.config.vocab_size), bool),
    }
    return _read(model, params, nothing, tokens, lengths)


def read_prompts(
    model: Transformer, params, tokens: np.ndarray, lengths: np.ndarray, columns: int
) -> dict:
    """Returns what `prefill` does; long prompts that no kernel takes are read in chunks.

    The attention written out has an array [P,S]; in chunks it is [_CHUNK,S]. Where an encoding
    turns keys by the length of the text, a prompt in chunks would be another one.
    """
    length = tokens.shape[1]
    if length <= _CHUNK or not _wants_chunks(model.config, length):
        return prefill(model, params, tokens, lengths, columns)
    state = prefill(model, params, tokens[:, :_CHUNK], np.minimum(lengths, _CHUNK), columns)
    for start in range(_CHUNK, int(lengths.max()), _CHUNK):
        chunk_lengths = np.clip(lengths - start, 0, _CHUNK)
        chunk = tokens[:, start : start + _CHUNK]
        state = extend(model, params, state, chunk, chunk_lengths, np.int32(start))
    return state


def _wants_chunks(config: ModelConfig, length: int) -> bool:
    encodings = config.distinct
    if any('read' in encoding.enters() for encoding in encodings):
        return False
    chosen = [kernels.choose_kernel_of_prompt(config, encoding, length) for encoding in encodings]
    return 'reference' in chosen


@functools.partial(jax.jit, static_argnames=('model',), donate_argnames=('state',))
def extend(
    model: Transformer, params, state: dict, tokens: jax.Array, lengths: jax.Array, kept: jax.Array
) -> dict:
    """Reads more of a text whose beginning is in the cache; returns the state after it.

    Args:
      state: from `prefill`, `decode` or an earlier call; donated. Its `seen` is of the first `kept`
        tokens.
      tokens: [B,P] int32, what comes after the first `kept` tokens, padded on the right. The cache
        has at least kept + P columns.
      lengths: [B] int32, how many of them there are; 0 where a row has ended before.
      kept: int32, columns of the cache that hold; those behind them are forgotten.
    """
    cache = _swap_layout(state['cache'])
    is_kept = jnp.arange(cache['segment_ids'].shape[1]) < kept
    cache['segment_ids'] = jnp.where(is_kept, cache['segment_ids'], 0)
    cache['column'] = kept
    return _read(model, params, {**state, 'cache': cache}, tokens, lengths)


def _read(
    model: Transformer,
    params,
    state: dict,
    tokens: jax.Array,
    lengths: jax.Array,
) -> dict:
    """Returns the state after tokens that come behind those in the cache, in one forward pass."""
    cache = state['cache']
    batch = tokens.shape[0]
    rows = jnp.arange(batch)
    first = cache['column']
    offsets = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    valid = offsets < lengths[:, None]

    # One pass over all rows. The last token of each gives the logits of its first new one.
    logits, cache = _forward(
        model,
        params,
        tokens,
        jnp.where(valid, first + offsets, 0),
        valid.astype(jnp.int32),
        cache,
        jnp.maximum(lengths - 1, 0),
    )
    goes_on = lengths > 0

    # New tokens are written over the padding behind the longest row. What earlier queries left
    # there for later ones was of padding.
    cache['column'] = first + lengths.max()
    is_read = jnp.arange(cache['segment_ids'].shape[1]) < cache['column']
    cache['layers'] = [
        {
            name: jnp.where(is_read, x, 0) if name.startswith('carried_') else x
            for name, x in layer.items()
        }
        for layer in cache['layers']
    ]
    return {
        'cache': _swap_layout(cache),
        'logits': jnp.where(goes_on[:, None], logits, state['logits']),
        'position': jnp.where(goes_on, first + lengths, state['position']),
        'done': jnp.zeros(batch, bool),
        # Which tokens a row holds already, for the penalty on repetitions; padding is none of them.
        'seen': state['seen'].at[rows[:, None], tokens].max(valid),
        'drawn': jnp.int32(0),
    }


def end_ids(tokens: Sequence[int]) -> np.ndarray:
    """Returns the tokens that end a row, for `decode`.

    They get as many places as most need: what is compiled knows their number.
    """
    return np.array([*tokens, *[-1] * (_ENDS - len(tokens))], np.int32)


@functools.partial(jax.jit, static_argnames=('model', 'count'), donate_argnames=('state',))
def decode(
    model: Transformer,
    params,
    state: dict,
    sampling: dict,
    limit: int | jax.Array,
    count: int,
    end: jax.Array,
) -> tuple[dict, jax.Array]:
    """Draws up to `limit` tokens a row, in one compiled loop.

    The loop ends early when every row has ended.

    Args:
      state: from `prefill` or an earlier call, and in it `key`, a PRNG key: the t-th token of row i
        is drawn with fold_in(fold_in(key, i), t), however tokens are cut into calls. Donated.
      sampling: the fields of `Sampling`.
      limit: at most `count`, for which the loop is compiled.
      end: tokens that end a row, from `end_ids`.
    Returns:
      the state, and tokens [B,count] int32, -1 from the end of a row on.
    """
    batch = state['position'].shape[0]
    rows = jnp.arange(batch)
    settings = Sampling(**sampling)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(state['key'], rows)

    def decode_one(carry):
        i, state, out = carry

        # A key of its own for each token, by its number: chunks of any size draw the same.
        token_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state['drawn'])
        token = draw_tokens(state['logits'], token_keys, state['seen'], settings)

        # A row ends at a token of `end` or with its context. It is computed on with the others, as
        # padding, and nothing of that is returned.
        is_full = state['position'] >= model.config.max_len
        done = state['done'] | jnp.isin(token, end) | is_full
        out = out.at[:, i].set(jnp.where(done, -1, token))
        token = jnp.where(done, 0, token)

        # One token a row goes through the model: what is before it stands in the cache.
        logits, cache = _forward(
            model,
            params,
            token[:, None],
            state['position'][:, None],
            (~done)[:, None].astype(jnp.int32),
            _swap_layout(state['cache']),
        )
        state = {
            'cache': _swap_layout(cache),
            'logits': logits,
            'position': state['position'] + 1,
            'done': done,
            'seen': state['seen'].at[rows, token].max(~done),
            'drawn': state['drawn'] + 1,
            'key': state['key'],
        }
        return i + 1, state, out

    def is_going(carry):
        i, state, _ = carry
        return (i < limit) & ~state['done'].all()

    out = jnp.full((batch, count), -1, jnp.int32)
    _, state, out = jax.lax.while_loop(is_going, decode_one, (0, state, out))
    return state, out


def generate(
    model: Transformer,
    params,
    prompts: list[list[int]],
    max_new: int,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    stop: Stop = Stop(),
) -> list[list[int]]:
    """Continues each prompt, to a token of `stop` or to the end of the context.

    Args:
      prompts: token ids, of any lengths.
      max_new: new tokens of a row at most.
      seed: row i draws from fold_in(seed, i), so its text does not depend on the other rows.
    Returns:
      the ids of the new tokens of each row.
    Raises:
      ModelError: an empty prompt, one longer than the context, or sampling out of range.
    """
    _check(model, prompts, max_new, sampling)
    max_new = min(max_new, model.config.max_len - min(map(len, prompts)))
    model, params = _prepare(model, params)
    columns = round_up(max(map(len, prompts)) + max_new)
    state = read_prompts(model, params, *pad(prompts), columns)
    state['key'] = jax.random.key(seed)
    return _draw(model, params, state, max_new, sampling, stop)[0]


class Conversation:
    """Continues a text turn by turn, and keeps what was read of it in the cache."""

    def __init__(self, model: Transformer, params):
        self.model, self.params = _prepare(model, params)
        self._ids: list[int] = []  # the tokens whose keys and values are in the cache
        self._state: dict | None = None

    def generate(
        self,
        prompt: list[int],
        max_new: int,
        sampling: Sampling = Sampling(),
        seed: int = 0,
        stop: Stop = Stop(),
    ) -> list[int]:
        """Returns what `generate` gives for the prompt, as row 0.

        What the prompt has in common with the last one and its new tokens is not read again.
        """
        _check(self.model, [prompt], max_new, sampling)
        max_new = min(max_new, self.model.config.max_len - len(prompt))
        columns = len(prompt) + max_new
        kept = self._count_kept(prompt, columns)

        # The state is donated: if this is interrupted, nothing of it is left.
        state, self._state = self._state, None
        if state is not None and kept is not None:
            state = self._read_on(state, prompt, kept)
        else:
            columns = max(columns, min(_COLUMNS, self.model.config.max_len))
            state = read_prompts(self.model, self.params, *pad([prompt]), round_up(columns))
        state['key'] = jax.random.key(seed)
        [row], state = _draw(self.model, self.params, state, max_new, sampling, stop)
        self._ids = [*prompt, *row]
        self._state = state
        return row

    def _read_on(self, state: dict, prompt: list[int], kept: int) -> dict:
        """Returns the state after a prompt of which `kept` tokens are in the cache; donates it."""
        seen = np.zeros((1, self.model.config.vocab_size), bool)
        seen[0, prompt[:kept]] = True
        state = {**state, 'seen': jax.device_put(seen)}
        del state['key']  # as it is after a piece: another state would be another program
        piece = self._count_at_once(len(prompt) - kept)
        for start in range(kept, len(prompt), piece):
            tokens, lengths = pad([prompt[start : start + piece]], piece)
            state = extend(self.model, self.params, state, tokens, lengths, np.int32(start))
        return state

    def _count_at_once(self, count: int) -> int:
        """Returns how many tokens are read at a time where so many are new."""
        in_pieces = not any('read' in encoding.enters() for encoding in self.model.config.distinct)
        return _PIECE if in_pieces and count <= _MOST_PIECES * _PIECE else round_up(count)

    def _count_kept(self, prompt: list[int], columns: int) -> int | None:
        """Returns how many tokens of a prompt need not be read again.

        It is None where a new cache is needed, or serves as well.
        """
        if self._state is None:
            return None
        cache = self._state['cache']
        room = cache['segment_ids'].shape[1]
        if columns > room:
            return None

        # The last token of the prompt gives the logits of the next one, and is always read. What
        # is read is padded, and may not reach beyond the cache.
        pairs = zip(self._ids, prompt[:-1])
        kept = min(len(self._ids), len(prompt) - 1)
        kept = next((i for i, (old, new) in enumerate(pairs) if old != new), kept)
        piece = self._count_at_once(len(prompt) - kept)
        padded = piece * -(-(len(prompt) - kept) // piece)
        if padded > room:
            return None
        kept = min(kept, room - padded)

        # What queries left for later ones is of all of them: no query can be taken back.
        carries = any(name.startswith('carried_') for layer in cache['layers'] for name in layer)
        if carries and kept < len(self._ids):
            return None
        return kept if kept or self._count_at_once(len(prompt)) == _PIECE else None


def _prepare(model: Transformer, params) -> tuple[Transformer, dict]:
    """Returns the form that decoding wants: a cache array a layer, and weights as they are used."""
    model, params = unroll_layers(model, params)

    # What only training asks for is left out: so a run and its child share compiled programs.
    model = Transformer(dataclasses.replace(model.config, remat='none', dropout=0.0))
    return model, cast_weights(model, params)


def _draw(
    model: Transformer, params, state: dict, max_new: int, sampling: Sampling, stop: Stop
) -> tuple[list[list[int]], dict]:
    """Returns the new tokens of each row, at most `max_new`, and the state after them."""
    # More than there are counts as all, however much it is: what is compiled holds 32 bits.
    sampling = dataclasses.replace(sampling, top_k=min(sampling.top_k, model.config.vocab_size))
    settings = dataclasses.asdict(sampling)
    end = end_ids(stop.tokens)

    rows: list[list[int]] = [[] for _ in state['done']]
    drawn = 0
    while drawn < max_new:
        limit = min(stop.every, max_new - drawn)
        drawn += limit
        state, out = decode(model, params, state, settings, np.int32(limit), stop.every, end)
        new, done = jax.device_get((out, state['done']))

        # From the end of a row on its tokens are -1. The host sees the text, and may end it.
        for row, row_tokens in zip(rows, new):
            row += [int(token) for token in row_tokens if token >= 0]
        if (stop.watch is not None and stop.watch(rows)) or done.all():
            break
    return rows, state


def pad(prompts: list[list[int]], columns: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [B,P], padded on the right with 0, and the length of each prompt, [B].

    `columns`: P; 0: the longest length, rounded up.
    """
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), columns or round_up(int(lengths.max()))), np.int32)
    for padded_prompt, prompt in zip(tokens, prompts):
        padded_prompt[: len(prompt)] = prompt
    return tokens, lengths


def _check(model: Transformer, prompts: list[list[int]], max_new: int, sampling: Sampling) -> None:
    """Raises ModelError where the model cannot continue the prompts as asked."""
    sampling.check()
    if min(map(len, prompts), default=0) < 1 or max_new < 1:
        raise ModelError(
            'expected at least one prompt, a token in each, and at least one new token'
        )
    if not model.config.causal:
        raise ModelError(
            'this model sees both ways (config.model.causal is False): it embeds texts and writes '
            'none; expected a causal one'
        )
    longest = max(map(len, prompts))
    context = model.config.max_len
    if longest >= context:
        raise ModelError(
            f'the prompt has {longest} tokens, the context of this model {context}: '
            f'expected at most {context - 1}'
        )
