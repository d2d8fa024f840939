"""Tiles of a matrix that has the same number along each diagonal, made and summed on a TPU's chip.

Dimensions: n numbers of a tile's side; LANES and SUBLANES those of a vector register.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

LANES = 128
SUBLANES = 8


def make_strip(before: jax.Array, after: jax.Array) -> jax.Array:
    """Returns the pieces [1,n] that a tile meets, in rows rolled on by one, [LANES,2n].

    Each LANES rows of the bias of a tile are a part of it (`rows_of_bias`).
    """
    width = 2 * before.shape[1]
    strip = jnp.broadcast_to(jnp.concatenate([before, after], 1), (SUBLANES, width))
    row = jax.lax.broadcasted_iota(jnp.int32, strip.shape, 0)
    for step in (1, 2, 4):
        strip = jnp.where((row & step) > 0, pltpu.roll(strip, step, 1), strip)
    while len(strip) < LANES:
        strip = jnp.concatenate([strip, pltpu.roll(strip, len(strip), 1)], 0)
    return strip


def rows_of_bias(strip: jax.Array, first: int, last: int) -> jax.Array:
    """Returns the bias of a tile for its keys from `first` to before `last`, [keys,n]."""
    side = strip.shape[1] // 2
    parts = [strip[:, side - row : 2 * side - row] for row in range(first, last, LANES)]
    return jnp.concatenate(parts, 0)


def add_diagonals(sums: dict[int, Any], d_bias: jax.Array, first: int) -> None:
    """Adds blocks [LANES,LANES] of the gradient of a bias to the sums of their diagonals.

    Args:
      sums: of each diagonal, by the column where it meets the first row; changed in place.
      d_bias: [keys,n], of the keys from `first` on.
    """
    for row in range(0, d_bias.shape[0], LANES):
        for column in range(0, d_bias.shape[1], LANES):
            block = d_bias[row : row + LANES, column : column + LANES]
            diagonal = column - row - first
            sums[diagonal] = sums[diagonal] + block if diagonal in sums else block


def sum_strip(sums: dict[int, Any], pieces, piece: jax.Array) -> None:
    """Adds the gradients of diagonals to those of the two pieces that a tile meets.

    Args:
      sums: by `add_diagonals`, of all keys of the tile.
      pieces: reference to those of the line, [pieces,1,n].
      piece: number of the first of the two.
    """
    nothing = jnp.zeros((LANES, LANES), jnp.float32)
    strip = jnp.concatenate([nothing, *(sums[diagonal] for diagonal in sorted(sums))], 1)
    width = strip.shape[1]
    while len(strip) > SUBLANES:
        half = len(strip) // 2
        strip = strip[:half] + pltpu.roll(strip[half:], width - half, 1)
    row = jax.lax.broadcasted_iota(jnp.int32, strip.shape, 0)
    for step in (4, 2, 1):
        strip = jnp.where((row & step) > 0, pltpu.roll(strip, width - step, 1), strip)
    both = strip.sum(0, keepdims=True)
    pieces[piece] += both[:, : width // 2]
    pieces[piece + 1] += both[:, width // 2 :]
