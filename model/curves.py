"""A bias that is a curve of one number, the product of one of the distance and one of the query.

So is that of FIRE: a layer of ReLUs on psi(i - j) / psi(i) is straight in pieces, with a hinge for
each ReLU. In a block of a tile the number takes few values, and few hinges lie among them: the
curve is one line there, or some that meet, whatever the size of the layer. The gradient comes back
as that of the offset and the slope of each piece, and of both factors (model/tiles.py).

Dimensions: B batch, T queries = keys, H heads, K hinges, n numbers of a tile's side.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from model.diagonals import LANES, SUBLANES, make_strip, sum_strip
from model.positions.base import RatioLayer


class Curve(NamedTuple):
    """Holds a bias offset_h[p] + slope_h[p] u on piece p, u = of_distance[i - j] of_query[i].

    Attributes:
      of_distance: float32 [1,ahead+T], as the line of a bias (`tiles.attend_in_tiles`).
      of_query: float32 [B,T].
      lines: float32 [H,2,K+1], offset and slope of each piece.
      hinges: float32 [K], where the pieces meet, ascending; without a gradient, for there the
        pieces are equal.
    """

    of_distance: jax.Array
    of_query: jax.Array
    lines: jax.Array
    hinges: jax.Array


def make_curve(layer: RatioLayer, of_distance: jax.Array) -> Curve:
    """Returns the curve of a layer.

    Args:
      layer: with its denominators; its numerators count for nothing.
      of_distance: the numerator at each distance, [1,ahead+T].
    """
    w1, b1, w2 = layer.w1, layer.b1, layer.w2
    is_flat = w1 == 0
    hinges = jnp.where(is_flat, jnp.inf, -b1 / jnp.where(is_flat, 1.0, w1))
    hinges = jax.lax.stop_gradient(hinges)

    # On piece p those with rising slope are active whose hinge is passed, others whose is not.
    rank = jnp.argsort(jnp.argsort(hinges))
    passed = rank < jnp.arange(len(hinges) + 1)[:, None]
    active = jnp.where(w1 > 0, passed, ~passed)
    active = jnp.where(is_flat, b1 > 0, active)[..., None].astype(jnp.float32)
    offset = (active * (w2 * b1[:, None])).sum(1) + layer.b2
    slope = (active * (w2 * w1[:, None])).sum(1)
    return Curve(
        of_distance=of_distance,
        of_query=1 / layer.denominator,
        lines=jnp.stack([offset.T, slope.T], 1),
        hinges=jnp.sort(hinges),
    )


def shapes_of_sums(curve: Curve, pieces: int, side: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of the gradients that the backward pass adds up, all float32.

    That of the factors of queries [B,H,1,T], of those of distances in pieces [B,H,pieces,1,n], and
    of the lines, each in as many parts as there are lanes, [B,H,2,K+1,8,LANES].
    """
    batch, length = curve.of_query.shape
    heads = len(curve.lines)
    shapes = (
        (batch, heads, 1, length),
        (batch, heads, pieces, 1, side),
        (batch, *curve.lines.shape, SUBLANES, LANES),
    )
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


def gradient_of_sums(curve: Curve, sums: tuple[jax.Array, ...]) -> Curve:
    """Returns the gradient of a curve from what was added up."""
    d_query, d_distance, d_lines = sums
    return Curve(
        of_distance=d_distance.sum((0, 1)).reshape(curve.of_distance.shape),
        of_query=d_query.sum((1, 2)),
        lines=d_lines.sum((0, 4, 5)),
        hinges=jnp.zeros_like(curve.hinges),
    )


class CurveRefs(NamedTuple):
    """Holds what a kernel is given of a curve: see `inputs_and_specs`."""

    of_distance: Any  # [pieces,1,n]
    of_query: Any  # [1,n]
    lines: Any  # [2,K+1]
    hinges: Any  # [K]
    ranges: Any  # [2,B*rows*diagonals], the first and the last piece that a block meets


def inputs_and_specs(curve: Curve, side: int) -> tuple[CurveRefs, CurveRefs]:
    """Returns the arrays that a kernel is given, and which block of them a step sees."""
    pieces = curve.of_distance.reshape(1, -1, 1, side)
    arrays = CurveRefs(
        of_distance=pieces,
        of_query=curve.of_query[:, None],
        lines=curve.lines,
        hinges=curve.hinges,
        ranges=_ranges(curve, side),
    )
    in_scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    specs = CurveRefs(
        of_distance=pl.BlockSpec((None, *pieces.shape[1:]), lambda *_: (0, 0, 0, 0)),
        of_query=pl.BlockSpec((None, 1, side), lambda b, h, t, row, *_: (b, 0, row[t])),
        lines=pl.BlockSpec(
            (None, *curve.lines.shape[1:]), lambda b, h, *_: (h, 0, 0), memory_space=pltpu.SMEM
        ),
        hinges=in_scalars,
        ranges=in_scalars,
    )
    return arrays, specs


def _ranges(curve: Curve, side: int) -> jax.Array:
    """Returns the first and the last piece on each diagonal of blocks, in each row of tiles.

    int32 [2,B*rows*diagonals]; a diagonal meets two blocks of LANES distances.
    """
    batch = len(curve.of_query)
    blocks = curve.of_distance.reshape(-1, LANES)
    low = jnp.minimum(blocks.min(-1)[:-1], blocks.min(-1)[1:])
    high = jnp.maximum(blocks.max(-1)[:-1], blocks.max(-1)[1:])
    queries = curve.of_query.reshape(batch, -1, 1, side)
    products = [
        distance * query for distance in (low, high) for query in (queries.min(-1), queries.max(-1))
    ]
    extremes = jnp.stack([jnp.stack(products).min(0), jnp.stack(products).max(0)])
    return (curve.hinges < extremes[..., None]).sum(-1, dtype=jnp.int32).reshape(2, -1)


class _Block(NamedTuple):
    """Holds a block of a tile, [LANES keys, LANES queries]."""

    keys: pl.Slice
    queries: pl.Slice
    of_distance: jax.Array  # [LANES,LANES]
    of_query: jax.Array  # [1,LANES]
    first: jax.Array  # the first piece that it meets
    last: jax.Array


def _blocks(refs: CurveRefs, strip: jax.Array, row: jax.Array, piece: jax.Array) -> Iterator:
    """Yields the blocks of a tile.

    Args:
      strip: that of the factors of distances, as `tiles.make_strip` makes it.
      row: number of the row of tiles, counted over the batch.
      piece: the first of the two that the tile meets.
    """
    pieces, _, side = refs.of_distance.shape
    across = side // LANES
    diagonals = pieces * across - 1
    for key in range(0, side, LANES):
        for query in range(0, side, LANES):
            start = side - key + query
            diagonal = row * diagonals + (piece + 1) * across + (query - key) // LANES - 1
            yield _Block(
                pl.Slice(key, LANES),
                pl.Slice(query, LANES),
                strip[:, start : start + LANES],
                refs.of_query[:, pl.ds(query, LANES)],
                refs.ranges[0, diagonal],
                refs.ranges[1, diagonal],
            )


def _make_strip(refs: CurveRefs, piece: jax.Array) -> jax.Array:
    """Returns the factors of distances that a tile meets, rolled (`diagonals.make_strip`)."""
    return make_strip(refs.of_distance[piece], refs.of_distance[piece + 1])


def _draw(refs: CurveRefs, row, piece, bias, slope=None) -> None:
    """Writes the curve of a tile to `bias` [n,n], and how steep it is to `slope`."""
    strip = _make_strip(refs, piece)

    # First the line where a block begins, of all blocks; then what lies beyond hinges, of some.
    for block in _blocks(refs, strip, row, piece):
        place = (block.keys, block.queries)
        number = block.of_distance * block.of_query
        bias[place] = refs.lines[0, block.first] + refs.lines[1, block.first] * number
        if slope is not None:
            slope[place] = jnp.full(number.shape, refs.lines[1, block.first])

    for block in _blocks(refs, strip, row, piece):
        place = (block.keys, block.queries)

        def pass_hinge(k, _, block=block, place=place):
            number = block.of_distance * block.of_query
            beyond = number > refs.hinges[k]
            line = refs.lines[0, k + 1] + refs.lines[1, k + 1] * number
            bias[place] = jnp.where(beyond, line, bias[place])
            if slope is not None:
                slope[place] = jnp.where(beyond, refs.lines[1, k + 1], slope[place])
            return 0

        jax.lax.fori_loop(block.first, block.last, pass_hinge, 0)


class CurveInForward(NamedTuple):
    """Draws the curve of a tile in the forward pass."""

    refs: CurveRefs
    drawn: Any  # [n,n]

    @classmethod
    def of_refs(cls, others: list) -> 'CurveInForward':
        """Takes what belongs to the curve out of a kernel's references."""
        return cls(_take_inputs(others), others.pop())

    @staticmethod
    def scratch(side: int) -> list:
        """Returns what comes last of what the kernel needs on the chip."""
        return [pltpu.VMEM((side, side), jnp.float32)]

    def draw(self, row: jax.Array, piece: jax.Array) -> None:
        """Draws the tile; `row`: of tiles, counted over the batch."""
        _draw(self.refs, row, piece, self.drawn)


def _take_inputs(others: list) -> CurveRefs:
    """Takes the inputs out of a kernel's references, where they come first."""
    count = len(CurveRefs._fields)
    inputs = others[:count]
    del others[:count]
    return CurveRefs(*inputs)


class CurveInBackward(NamedTuple):
    """Draws the curve of a tile in the backward pass, and adds up its gradients."""

    refs: CurveRefs
    sums: list  # those of the spans before, or none
    d_of_query: Any  # [1,n], of a row that is whole
    d_distances: Any  # [pieces,1,n]
    d_lines: Any  # [2,K+1,8,LANES]
    d_factors: Any  # [rows of the span,1,n], of the queries so far
    drawn: Any  # [n,n]
    slope: Any  # [n,n]
    d_bias: Any  # [n,n], which the kernel writes

    @classmethod
    def of_refs(cls, others: list) -> 'CurveInBackward':
        """Takes what belongs to the curve out of a kernel's references.

        They are its inputs; the sums so far, 4 of the kernel and 3 of the curve, or none; as many
        outputs; what the kernel needs on the chip, 1 and 4.
        """
        inputs = _take_inputs(others)
        scratch = others[-4:]
        outputs = others[-8:-5]
        sums = others[4:7] if len(others) > 12 else []
        kept = [*(others[:4] if sums else ()), *others[-12:-8], others[-5]]
        others[:] = kept
        return cls(inputs, sums, *outputs, *scratch)

    @staticmethod
    def scratch(side: int, rows: int) -> list:
        """Returns what comes last of what the kernel needs on the chip."""
        square = pltpu.VMEM((side, side), jnp.float32)
        return [pltpu.VMEM((rows, 1, side), jnp.float32), square, square, square]

    def begin_head(self) -> None:
        """Begins the sums of a head."""
        self.d_factors[...] = jnp.zeros_like(self.d_factors)
        for i, sum_ref in enumerate((self.d_distances, self.d_lines), 1):
            sum_ref[...] = self.sums[i][...] if self.sums else jnp.zeros_like(sum_ref)

    def draw(self, row: jax.Array, piece: jax.Array) -> None:
        """Draws the tile; `row`: of tiles, counted over the batch."""
        _draw(self.refs, row, piece, self.drawn, self.slope)

    def add_gradient(self, row_of_span: jax.Array, row: jax.Array, piece: jax.Array) -> None:
        """Adds the gradients of the tile, from that of its bias."""
        by_diagonals: dict[int, jax.Array] = {}
        d_query = self.d_factors.at[row_of_span]
        for block in _blocks(self.refs, _make_strip(self.refs, piece), row, piece):
            d_block = self.d_bias[block.keys, block.queries]
            self._add_lines(block, d_block)

            # Of both factors.
            d_number = d_block * self.slope[block.keys, block.queries]
            d_query[:, block.queries] += (d_number * block.of_distance).sum(0, keepdims=True)
            diagonal = block.queries.start - block.keys.start
            d_distance = d_number * block.of_query
            by_diagonals[diagonal] = by_diagonals.get(diagonal, 0.0) + d_distance

        sum_strip(by_diagonals, self.d_distances, piece)

    def _add_lines(self, block: _Block, d_block: jax.Array) -> None:
        """Adds to the first line all of a block, and moves on what lies beyond each hinge."""
        number = block.of_distance * block.of_query
        d_slope = d_block * number
        self.d_lines[0, block.first] += _fold(d_block)
        self.d_lines[1, block.first] += _fold(d_slope)

        def pass_hinge(k, _):
            beyond = number > self.refs.hinges[k]
            for i, d in enumerate((d_block, d_slope)):
                part = _fold(jnp.where(beyond, d, 0.0))
                self.d_lines[i, k] -= part
                self.d_lines[i, k + 1] += part
            return 0

        jax.lax.fori_loop(block.first, block.last, pass_hinge, 0)

    def end_row(self, row_of_span: jax.Array) -> None:
        """Writes the gradient of the factors of queries, of a row that is whole."""
        self.d_of_query[...] = self.d_factors[row_of_span]


def _fold(x: jax.Array) -> jax.Array:
    """Returns the sums over every eighth row, [8,LANES]."""
    return x.reshape(-1, SUBLANES, LANES).sum(0)
