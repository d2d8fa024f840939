"""What each layer of a model makes of a text.

Dimensions: L layers, N texts, T tokens, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.generate import unroll_layers
from model.transformer import Block, Transformer

_TEXTS_A_PASS = 64


def hidden_states(
    model: Transformer, params, rows: list[list[int]], places: list[int]
) -> np.ndarray:
    """Returns what each layer writes at one token of each text, [L,N,D] float32.

    Args:
      rows: token ids of each text.
      places: the token of each.
    """
    model, params = unroll_layers(model, params)
    model = model.clone(config=dataclasses.replace(model.config, attention='reference'))
    longest = max(map(len, rows))

    @jax.jit
    def read(params, tokens_NxT, lengths_N, places_N):
        valid_NxT = jnp.arange(longest) < lengths_N[:, None]
        positions_NxT = jnp.broadcast_to(jnp.arange(longest), tokens_NxT.shape) * valid_NxT
        _, variables = model.apply(
            {'params': params},
            tokens_NxT,
            positions_NxT,
            valid_NxT.astype(jnp.int32),
            logits=False,
            mutable=['intermediates'],
            capture_intermediates=lambda module, _: isinstance(module, Block),
        )
        written = [
            variables['intermediates'][f'layer_{i}']['__call__'][0][0]
            for i in range(model.config.num_layers)
        ]
        texts = jnp.arange(len(places_N))
        return jnp.stack([x_NxTxD[texts, places_N] for x_NxTxD in written])

    of_layers = []
    for start in range(0, len(rows), _TEXTS_A_PASS):
        some = rows[start : start + _TEXTS_A_PASS]
        tokens = np.zeros((_TEXTS_A_PASS, longest), np.int32)
        lengths = np.ones(_TEXTS_A_PASS, np.int32)
        at = np.zeros(_TEXTS_A_PASS, np.int32)
        for i, row in enumerate(some):
            tokens[i, : len(row)] = row
            lengths[i] = len(row)
            at[i] = places[start + i]
        of_layers.append(np.asarray(read(params, tokens, lengths, at))[:, : len(some)])
    return np.concatenate(of_layers, axis=1).astype(np.float32)
