"""Prefill and decode with a cache, the whole loop compiled.

Prompts of different lengths are padded on the right: padding has segment 0 and is never seen, and each row counts its own
positions, so a row comes out as if it were alone.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from model import kernels
from model.errors import ModelError
from model.sampling import Sampling, draw_tokens
from model.transformer import CacheState, Transformer

_CHUNK = 32  # tokens between two looks at the text: for stop strings, streaming, and an end before max_new


def unroll_layers(model: Transformer, params: dict) -> tuple[Transformer, dict]:
    """The same model with its layers one by one, as decoding wants them: each has its own cache array."""
    c = model.config
    if not c.scan_layers:
        return model, params
    rest = {k: v for k, v in params.items() if k != 'layers'}
    for group in range(c.num_layers // c.period):
        for i in range(c.period):
            rest[f'layer_{group * c.period + i}'] = jax.tree.map(
                lambda x: x[group], params['layers'][f'layer_{i}']
            )
    return Transformer(dataclasses.replace(c, scan_layers=False, remat='none')), rest


def cast_weights(model: Transformer, params):
    """Weights in the type that they are used in: decoding reads every one for each token, and wants nothing wider."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (
            x.astype(model.config.dtype) if path[-1].key in ('kernel', 'embedding') else x
        ),
        params,
    )


def empty_cache(model: Transformer, batch: int, columns: int) -> CacheState:
    """A cache with room for `columns` keys, none seen yet. The arrays of a layer are made when it first writes."""
    zeros = jnp.zeros((batch, columns), jnp.int32)
    return {
        'layers': [{} for _ in range(model.config.num_layers)],
        'positions': zeros,
        'ids': zeros,
        'segment_ids': zeros,
        'column': jnp.int32(0),
    }


def _turned(cache: CacheState) -> CacheState:
    """Keys and values [B,K,S,d] as decoding on a TPU wants them between its steps, [S,K,B,d], and back; elsewhere as they are.

    It is the order in which XLA lays them out inside the loop. Carried otherwise, the whole cache is copied on the way in and out.
    """
    if kernels.platform() != 'tpu':
        return cache
    turn = lambda name, x: x.transpose(2, 1, 0, 3) if name in ('k', 'v') else x
    return {
        **cache,
        'layers': [{n: turn(n, x) for n, x in layer.items()} for layer in cache['layers']],
    }


@functools.partial(jax.jit, static_argnames=('model', 'columns'))
def prefill(
    model: Transformer, params, tokens: jax.Array, lengths: jax.Array, columns: int
) -> dict:
    """Prompts [B,P], of `lengths` [B], padded on the right -> the state that `decode` goes on from."""
    place = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    valid = place < lengths[:, None]
    logits, cache = model.apply(
        {'params': params},
        tokens,
        jnp.where(valid, place, 0),
        valid.astype(jnp.int32),
        cache=empty_cache(model, tokens.shape[0], columns),
    )
    rows = jnp.arange(tokens.shape[0])
    seen = (
        jnp.zeros((tokens.shape[0], model.config.vocab_size), bool)
        .at[rows[:, None], tokens]
        .max(valid)
    )
    return {
        'cache': _turned(cache),
        'logits': logits[rows, lengths - 1],
        'position': lengths,
        'done': jnp.zeros(tokens.shape[0], bool),
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
):
    """Draws up to `count` tokens a row, all in one compiled loop that ends early when every row has.

    Returns the state and tokens [B,count], -1 from the end of a row on. `keys` [B]: the t-th token of a row is drawn with
    fold_in(key, t), however the tokens are cut into calls.
    """
    batch = state['position'].shape[0]
    settings = Sampling(**sampling)

    def one(carry):
        i, state, out = carry
        token = draw_tokens(
            state['logits'],
            jax.vmap(jax.random.fold_in, (0, None))(keys, state['drawn']),
            state['seen'],
            settings,
        )
        ended = (
            state['done']
            | jnp.isin(token, jnp.asarray(end, jnp.int32))
            | (state['position'] >= model.config.max_len)
        )
        out = out.at[:, i].set(jnp.where(ended, -1, token))
        token = jnp.where(ended, 0, token)
        logits, cache = model.apply(
            {'params': params},
            token[:, None],
            state['position'][:, None],
            jnp.ones((batch, 1), jnp.int32),
            cache=_turned(state['cache']),
        )
        return (
            i + 1,
            {
                'cache': _turned(cache),
                'logits': logits[:, 0],
                'position': state['position'] + 1,
                'done': ended,
                'seen': state['seen'].at[jnp.arange(batch), token].max(~ended),
                'drawn': state['drawn'] + 1,
            },
            out,
        )

    going = lambda carry: (carry[0] < count) & ~carry[1]['done'].all()
    _, state, out = jax.lax.while_loop(
        going, one, (0, state, jnp.full((batch, count), -1, jnp.int32))
    )
    return state, out


def generate(
    model: Transformer,
    params,
    prompts: list[list[int]],
    max_new: int,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    end: tuple[int, ...] = (),
    watch: Callable[[list[list[int]]], bool] | None = None,
    every: int = _CHUNK,
) -> list[list[int]]:
    """Continues each prompt by at most `max_new` tokens, to the first of `end` (left out), or to the end of the context.

    Args:
      prompts: token ids, of any lengths.
      seed: row i draws from fold_in(seed, i), so its text does not depend on the other rows.
      watch: called every `every` tokens with what each row has so far; True ends the generation (stop strings, streaming).
    Raises:
      ModelError: an empty prompt, one longer than the context, or sampling out of range.
    """
    sampling.check()
    if min(map(len, prompts), default=0) < 1 or max_new < 1:
        raise ModelError(
            'expected at least one prompt, a token in each, and at least one new token'
        )
    if not model.config.causal:
        raise ModelError(
            'this model sees both ways (config.model.causal is False): it embeds texts and writes none; expected a causal one'
        )
    longest, context = max(map(len, prompts)), model.config.max_len
    if longest >= context:
        raise ModelError(
            f'the prompt has {longest} tokens, the context of this model {context}: expected at most {context - 1}'
        )
    max_new = min(max_new, context - min(map(len, prompts)))
    # More than there are counts as all, however much it is: what is compiled holds 32 bits.
    sampling = dataclasses.replace(sampling, top_k=min(sampling.top_k, model.config.vocab_size))
    model, params = unroll_layers(model, params)
    params = cast_weights(model, params)
    padded = -(-longest // 16) * 16  # few lengths, few compilations
    chunk = min(max_new, every)
    tokens = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = prompt
    lengths = jnp.asarray([len(p) for p in prompts], jnp.int32)
    state = prefill(
        model, params, jnp.asarray(tokens), lengths, padded + -(-max_new // chunk) * chunk
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(prompts)))
    rows: list[list[int]] = [[] for _ in prompts]
    for _ in range(-(-max_new // chunk)):
        state, out = decode(
            model, params, state, keys, dataclasses.asdict(sampling), chunk, tuple(end)
        )
        for row, new in zip(rows, jax.device_get(out)):
            row += [int(t) for t in new if t >= 0][: max_new - len(row)]
        if (watch is not None and watch(rows)) or bool(state['done'].all()):
            break
    return rows
