"""Prefill and decode with a cache, the whole loop compiled.

Prompts of different lengths are padded on the right: padding has segment 0 and is never seen, and
each row counts its own positions, so a row comes out as if it were alone.

Dimensions: B batch, P prompt, S columns of the cache, V vocabulary, K key-value heads, d head size.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from model import kernels
from model.errors import ModelError
from model.sampling import Sampling, draw_tokens
from model.transformer import CacheState, Transformer


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
    """Returns parameters with all matrices in the dtype that they are computed with.

    Decoding reads every one for each token, and wants nothing wider.
    """

    def cast(path, x):
        return x.astype(model.config.dtype) if path[-1].key in ('kernel', 'embedding') else x

    return jax.tree_util.tree_map_with_path(cast, params)


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
) -> tuple[jax.Array, CacheState]:
    """Returns logits of the next token, [B,T,V], and the cache with these tokens in it."""
    outputs = model.apply({'params': params}, tokens, positions, segment_ids, cache=cache)
    return cast(tuple[jax.Array, CacheState], outputs)


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
    rows = jnp.arange(batch)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    valid = positions < lengths[:, None]

    # One pass over all prompts. The last token of each row gives the logits of its first new one.
    logits, cache = _forward(
        model,
        params,
        tokens,
        jnp.where(valid, positions, 0),
        valid.astype(jnp.int32),
        empty_cache(model, batch, columns),
    )

    # Which tokens a row holds already, for the penalty on repetitions; padding is none of them.
    seen = jnp.zeros((batch, model.config.vocab_size), bool)
    seen = seen.at[rows[:, None], tokens].max(valid)
    return {
        'cache': _swap_layout(cache),
        'logits': logits[rows, lengths - 1],
        'position': lengths,
        'done': jnp.zeros(batch, bool),
        'seen': seen,
        'drawn': jnp.int32(0),
    }


@functools.partial(jax.jit, static_argnames=('model', 'count', 'end'), donate_argnames=('state',))
def decode(
    model: Transformer,
    params,
    state: dict,
    keys: jax.Array,
    sampling: dict,
    count: int,
    end: tuple[int, ...],
) -> tuple[dict, jax.Array]:
    """Draws up to `count` tokens a row, in one compiled loop.

    The loop ends early when every row has ended.

    Args:
      state: from `prefill` or an earlier call; donated.
      keys: [B] PRNG keys; the t-th token of a row is drawn with fold_in(key, t), however the tokens
        are cut into calls.
      sampling: the fields of `Sampling`.
      end: ids of tokens that end a row.
    Returns:
      the state, and tokens [B,count] int32, -1 from the end of a row on.
    """
    batch = state['position'].shape[0]
    rows = jnp.arange(batch)
    settings = Sampling(**sampling)
    end_ids = jnp.asarray(end, jnp.int32)

    def decode_one(carry):
        i, state, out = carry

        # A key of its own for each token, by its number: chunks of any size draw the same.
        token_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state['drawn'])
        token = draw_tokens(state['logits'], token_keys, state['seen'], settings)

        # A row ends at a token of `end` or with its context. It is computed on with the others, as
        # token 0, and nothing of that is returned.
        is_full = state['position'] >= model.config.max_len
        done = state['done'] | jnp.isin(token, end_ids) | is_full
        out = out.at[:, i].set(jnp.where(done, -1, token))
        token = jnp.where(done, 0, token)

        # One token a row goes through the model: what is before it stands in the cache.
        logits, cache = _forward(
            model,
            params,
            token[:, None],
            state['position'][:, None],
            jnp.ones((batch, 1), jnp.int32),
            _swap_layout(state['cache']),
        )
        state = {
            'cache': _swap_layout(cache),
            'logits': logits[:, 0],
            'position': state['position'] + 1,
            'done': done,
            'seen': state['seen'].at[rows, token].max(~done),
            'drawn': state['drawn'] + 1,
        }
        return i + 1, state, out

    def is_going(carry):
        i, state, _ = carry
        return (i < count) & ~state['done'].all()

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
    longest = max(map(len, prompts))
    max_new = min(max_new, model.config.max_len - min(map(len, prompts)))
    # More than there are counts as all, however much it is: what is compiled holds 32 bits.
    sampling = dataclasses.replace(sampling, top_k=min(sampling.top_k, model.config.vocab_size))

    # The form that decoding wants: a cache array a layer, and weights no wider than they are used.
    model, params = unroll_layers(model, params)
    params = cast_weights(model, params)

    # Lengths are rounded up, so that few are compiled: prompts to 16, new tokens to whole chunks.
    padded = -(-longest // 16) * 16
    chunk = min(max_new, stop.every)
    num_chunks = -(-max_new // chunk)
    tokens = np.zeros((len(prompts), padded), np.int32)
    for padded_prompt, prompt in zip(tokens, prompts):
        padded_prompt[: len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)
    state = prefill(model, params, jnp.asarray(tokens), lengths, padded + num_chunks * chunk)

    # Between two chunks the host sees the text, and may end it.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(prompts)))
    settings = dataclasses.asdict(sampling)
    rows: list[list[int]] = [[] for _ in prompts]
    for _ in range(num_chunks):
        state, out = decode(model, params, state, keys, settings, chunk, tuple(stop.tokens))
        # The last chunk may hold more than was asked for; -1 is what comes after the end of a row.
        for row, new in zip(rows, jax.device_get(out)):
            row += [int(token) for token in new if token >= 0][: max_new - len(row)]
        if (stop.watch is not None and stop.watch(rows)) or bool(state['done'].all()):
            break
    return rows


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
