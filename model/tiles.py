"""Attention in tiles for TPUs, which adds a bias of distances inside each tile (Pallas, Mosaic).

No array [T,T] leaves the chip. All that is a function of the distance n = i - j comes as one line a
head, the bias, and where nothing is seen (causality, windows) a number so low that its weight is 0.
Where i and j count columns, a tile of that bias has the same number along each diagonal, and is
made of twice as many numbers as it has rows by rolling them. The backward pass sums along the
diagonals, which is the gradient of the line.

Queries lie in the lanes of a tile and keys in its rows, so that what there is one of for each query
(maximum, sum, segment) is a row. The running softmax is that of Dao et al. 2022, arXiv 2205.14135,
algorithm 1; the backward pass computes the weights again from what it keeps of each query.

Dimensions: B batch, T queries = keys, H heads, K key-value heads, G heads of a group, d head size,
N tiles in a row, n numbers of a tile's side.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from model import curves
from model.curves import Curve, CurveInBackward, CurveInForward
from model.diagonals import LANES, add_diagonals, make_strip, rows_of_bias, sum_strip
from model.positions.base import EncodingInputs

LOWEST = -1e30  # a logit of this size has no weight
_LARGEST = 1024  # numbers of a tile's side
_DQ_BYTES = 2 * 2**20  # of the gradient of queries that the backward pass holds on the chip
_KEYS = 512  # of a tile, that the backward pass computes with at a time
_COMPILER_PARAMS = pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary'))


@dataclasses.dataclass(frozen=True)
class TileOptions:
    """Holds what is known of attention when it is compiled.

    Attributes:
      causal: queries see nothing that lies ahead.
      window: how many tokens a query sees, its own among them; 0: all.
      logit_cap: soft cap of the products, below the bias; 0: none.
      interpret: run without a TPU, slowly.
    """

    causal: bool
    window: int
    logit_cap: float
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def attend_in_tiles(
    q_BxHxTxd: jax.Array,
    k_BxKxTxd: jax.Array,
    v_BxKxTxd: jax.Array,
    segment_ids: jax.Array,
    line: jax.Array,
    curve: Curve | None,
    options: TileOptions,
) -> jax.Array:
    """Returns what queries read from the keys of their segment, [B,H,T,d of v].

    Args:
      q_BxHxTxd: queries, scaled.
      v_BxKxTxd: values, whose d may be another than that of keys.
      segment_ids: [B,T] int32.
      line: float32 [H,ahead+T], what is added at the distances from -ahead to T - 1 of a query and
        a key (`count_ahead`), at least `LOWEST`.
      curve: a bias beside that one, or None.
    """
    return _forward(q_BxHxTxd, k_BxKxTxd, v_BxKxTxd, segment_ids, line, curve, options)[0]


def _forward_rule(q, k, v, segment_ids, line, curve, options):
    out, log_sums = _forward(q, k, v, segment_ids, line, curve, options)
    out = checkpoint_name(out, 'attention_residuals')
    log_sums = checkpoint_name(log_sums, 'attention_residuals')
    return out, (q, k, v, segment_ids, line, curve, out, log_sums)


def _backward_rule(options, residuals, g_BxHxTxd):
    q, k, v, segment_ids, line, curve, out, log_sums = residuals
    own = (out.astype(jnp.float32) * g_BxHxTxd.astype(jnp.float32)).sum(-1)[:, :, None]
    pieces = _cut(line, _side(q, v, curve))

    # Queries are taken in spans whose gradient fits on the chip; those of keys are added up.
    arrays = (q, k, v, g_BxHxTxd, segment_ids, log_sums, own, pieces, curve)
    spans = _order_spans(q, pieces, options)
    if len(spans) == 1:
        sums = _backward(arrays, None, spans[0], options)
    else:
        shapes = _shapes_of_sums(q, k, v, pieces, curve)
        nothing = tuple(jnp.zeros(shape.shape, shape.dtype) for shape in shapes)
        sums, _ = jax.lax.scan(
            lambda sums, span: (_backward(arrays, sums, span, options), None),
            nothing,
            jax.tree.map(lambda *x: np.stack(x), *spans),
        )
    dq, dk, dv, d_pieces, *of_curve = sums

    def sum_group(gradient, keys):
        """Returns the sum over the heads that share keys."""
        grouped = gradient.reshape(*keys.shape[:2], -1, *keys.shape[2:])
        return grouped.sum(2).astype(keys.dtype)

    no_ids = np.zeros(segment_ids.shape, jax.dtypes.float0)
    d_line = d_pieces.sum(0).reshape(line.shape)
    d_curve = curves.gradient_of_sums(curve, tuple(of_curve)) if curve else None
    return dq, sum_group(dk, k), sum_group(dv, v), no_ids, d_line, d_curve


attend_in_tiles.defvjp(_forward_rule, _backward_rule)


# --- The line of an encoding ----------------------------------------------------------------------


def bias_line(encoding, inputs: EncodingInputs, config, side: int) -> jax.Array:
    """Returns what is added at each distance, float32 [H,ahead+T], as `attend_in_tiles` takes it.

    Args:
      encoding: one whose bias and mask are functions of the distance (`of_distances`).
      inputs: with the parameters, in a layer.
      side: of a tile.
    """
    assert inputs.k_ids is not None
    text = _one_document(inputs)
    length = inputs.k_ids.shape[1]

    # From the distance 0 up, which is from the last key to the first.
    line = jnp.zeros((encoding.dims.num_heads, length), jnp.float32)
    bias = encoding.distance_bias(text)
    if bias is not None:
        line += bias[0, :, 0, ::-1]
    seen = encoding.mask(text)
    if seen is not None:
        line = jnp.where(seen[0, :, 0, ::-1], line, LOWEST)

    # What lies ahead is hidden, or seen as what lies behind: then nothing has a bias.
    ahead = count_ahead(length, config.causal, side)
    if config.causal:
        line = jnp.pad(line, ((0, 0), (ahead, 0)), constant_values=LOWEST)
    else:
        line = jnp.concatenate([line[:, :1], line[:, :0:-1], line], 1)
    distance = jnp.arange(-ahead, length)
    if config.window:
        line = jnp.where(abs(distance) < config.window, line, LOWEST)
    return line


def bias_curve(encoding, inputs: EncodingInputs, side: int) -> Curve | None:
    """Returns the bias of an encoding that is a curve of a ratio, or None (`ratio_layer`)."""
    text = _one_document(inputs)
    of_text = encoding.ratio_layer(text)
    if of_text is None:
        return None
    numerator = of_text.numerator[0, 0, ::-1]
    of_distance = jnp.pad(numerator, (count_ahead(len(numerator), True, side), 0), mode='edge')
    return curves.make_curve(encoding.ratio_layer(inputs), of_distance[None])


def _one_document(inputs: EncodingInputs) -> EncodingInputs:
    """Returns the inputs of the last query of a text that is one document.

    It sees a key at each distance.
    """
    assert inputs.k_ids is not None
    place = jnp.arange(inputs.k_ids.shape[1], dtype=jnp.int32)[None]
    document = jnp.ones_like(place)
    return EncodingInputs(
        param=inputs.param,
        q_ids=place[:, -1:],
        positions=place[:, -1:],
        segment_ids=document[:, -1:],
        k_ids=place,
        k_positions=place,
        k_segment_ids=document,
        shared=inputs.shared,
        consecutive=True,
    )


# --- Tiles, and the line of the bias --------------------------------------------------------------


def count_ahead(length: int, causal: bool, side: int) -> int:
    """Returns how many distances below 0 the line of the bias has."""
    return side if causal else length


def side_of_tiles(length: int, head_size: int, dtype, is_curved: bool = False) -> int:
    """Returns the largest side of a tile that divides the length and fits on the chip."""
    fits = not is_curved and jnp.dtype(dtype) == jnp.bfloat16 and head_size <= LANES
    largest = min(_LARGEST, 1024 if fits else 512)
    return next(side for side in (1024, 512, 256, LANES) if side <= largest and not length % side)


def _side(q: jax.Array, v: jax.Array, curve: Curve | None) -> int:
    return side_of_tiles(q.shape[2], max(q.shape[-1], v.shape[-1]), q.dtype, curve is not None)


def _tiles_ahead(pieces: jax.Array, options: TileOptions) -> int:
    """Returns how many pieces of the line are of distances below 0."""
    return 1 if options.causal else pieces.shape[1] // 2


def visible_tiles(rows: int, columns: int, side: int, options: TileOptions) -> np.ndarray:
    """Returns the tiles that any query sees into, by rows, int32 [tiles,2] of (row, column).

    Args:
      rows, columns: tiles of queries and of keys.
    """
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing='ij')
    apart = row - column
    seen = np.ones(apart.shape, bool)
    if options.causal:
        seen &= apart >= 0
    if options.window:
        # The nearest two tokens of the tiles are so far apart.
        seen &= (abs(apart) - 1) * side + 1 < options.window
    return np.stack([row[seen], column[seen]], 1).astype(np.int32)


def _cut(line: jax.Array, side: int) -> jax.Array:
    """Returns the line in pieces of a tile's side, [H,pieces,1,n]."""
    return line.reshape(len(line), -1, 1, side)


# --- What both passes compute in a tile -----------------------------------------------------------


def _multiply(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Returns the product of two matrices, float32; `axes`: those that are summed over."""
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _capped_products(q: jax.Array, k: jax.Array, cap: float) -> jax.Array:
    """Returns the products of a tile under the soft cap, float32 [n keys, n queries]."""
    products = _multiply(k, q, (1, 1))
    return cap * jnp.tanh(products / cap) if cap else products


def _add_bias(products, bias, q_segments, k_segments):
    """Returns the logits of a tile, the lowest where segments are not the same, [keys,n].

    Args:
      q_segments: [1,n].
      k_segments: [keys,LANES], the same in all lanes.
    """
    of_keys = jnp.tile(k_segments, (1, products.shape[1] // LANES))
    return jnp.where(of_keys == q_segments, products + bias, LOWEST)


class _Specs(NamedTuple):
    """Says which block of each array a step sees: of its row or its column of tiles, of its head.

    Those of vectors take their size. `whole_rows`: the row that is whole next.
    """

    rows: Callable[[int], pl.BlockSpec]
    whole_rows: Callable[[int], pl.BlockSpec]
    columns: Callable[[int], pl.BlockSpec]
    columns_of_head: Callable[[int], pl.BlockSpec]
    queries: pl.BlockSpec
    whole_queries: pl.BlockSpec
    q_segments: pl.BlockSpec
    k_segments: pl.BlockSpec
    pieces: pl.BlockSpec


def _block_specs(side: int, group: int, pieces: jax.Array) -> _Specs:
    """Returns the blocks of a step, whose grid is (row of the batch, head, step)."""

    def rows(size):
        return pl.BlockSpec((None, None, side, size), lambda b, h, t, row, *_: (b, h, row[t], 0))

    def whole(scalars, t):
        return _read_scalars(scalars).order.whole[t]

    def whole_rows(size):
        return pl.BlockSpec(
            (None, None, side, size), lambda b, h, t, *scalars: (b, h, whole(scalars, t), 0)
        )

    def columns(size, group=group):
        return pl.BlockSpec(
            (None, None, side, size),
            lambda b, h, t, row, column, *_: (b, jax.lax.div(h, group), column[t], 0),
        )

    return _Specs(
        rows=rows,
        whole_rows=whole_rows,
        columns=columns,
        columns_of_head=functools.partial(columns, group=1),
        queries=pl.BlockSpec((None, None, 1, side), lambda b, h, t, row, *_: (b, h, 0, row[t])),
        whole_queries=pl.BlockSpec(
            (None, None, 1, side), lambda b, h, t, *scalars: (b, h, 0, whole(scalars, t))
        ),
        q_segments=pl.BlockSpec((None, 1, side), lambda b, h, t, row, *_: (b, 0, row[t])),
        k_segments=pl.BlockSpec(
            (None, side, LANES), lambda b, h, t, row, column, *_: (b, column[t], 0)
        ),
        pieces=pl.BlockSpec((None, *pieces.shape[1:]), lambda b, h, *_: (h, 0, 0, 0)),
    )


class _Order(NamedTuple):
    """Says which tile each step computes; steps beyond `count` compute nothing."""

    row: Any  # int32 [steps]
    column: Any  # int32 [steps]
    piece: Any  # int32 [steps], the first of the two pieces of the line that the tile meets
    whole: Any  # int32 [steps], the row that is whole next, after this step or a later one
    count: Any  # int32 [1]
    first_row: Any  # int32 [1]


class _Scalars(NamedTuple):
    """Holds what is there before a step begins: the order, and which tiles are empty."""

    order: _Order
    segments: Any  # int32 [2,B*rows], the lowest and the highest in each row or column
    is_seen: Any  # int32 [H*(pieces-1)], 1 where the pieces have any distance that is seen


_SCALARS = len(_Order._fields) + 2


def _order(tiles: np.ndarray, ahead: int, steps: int) -> _Order:
    """Returns the order of some rows of tiles, by rows or by columns.

    Args:
      tiles: [n,2] of (row, column).
      ahead: pieces of the line that are of distances below 0.
      steps: how many there are to be; the last tile stands for those that compute nothing.
    """
    row, column = (np.pad(x, (0, steps - len(x)), mode='edge') for x in tiles.T)

    # Rows are whole one after another, in either order.
    last = steps - 1 - np.unique(row[::-1], return_index=True)[1]
    assert (np.diff(last) > 0).all()
    whole = row[last][np.searchsorted(last, np.arange(steps))]
    return _Order(
        row=row,
        column=column,
        piece=row - column + ahead - 1,
        whole=whole,
        count=np.asarray([len(tiles)], np.int32),
        first_row=row.min(keepdims=True),
    )


def _make_scalars(order: _Order, segment_ids: jax.Array, pieces: jax.Array) -> list[jax.Array]:
    """Returns the scalars of a kernel, one after another."""
    blocks = segment_ids.reshape(-1, pieces.shape[-1])
    segments = jnp.stack([blocks.min(-1), blocks.max(-1)])
    tops = pieces.max((2, 3))
    is_seen = jnp.maximum(tops[:, :-1], tops[:, 1:]) > LOWEST / 2
    return [*order, segments, is_seen.reshape(-1).astype(jnp.int32)]


def _read_scalars(refs) -> _Scalars:
    """Returns the scalars of a kernel or of the place of a block, from the first references."""
    return _Scalars(_Order(*refs[: _SCALARS - 2]), *refs[_SCALARS - 2 : _SCALARS])


def _is_seen(scalars: _Scalars, rows: int, pieces: int) -> jax.Array:
    """Returns True where the tile of this step may hold a query and a key that it sees."""
    batch = pl.program_id(0)
    step = pl.program_id(2)
    i = batch * rows + scalars.order.row[step]
    j = batch * rows + scalars.order.column[step]
    same = scalars.segments[0, i] <= scalars.segments[1, j]
    same &= scalars.segments[0, j] <= scalars.segments[1, i]
    is_seen = scalars.is_seen[pl.program_id(1) * (pieces - 1) + scalars.order.piece[step]] > 0
    return same & is_seen & (step < scalars.order.count[0])


def _is_first_and_last(numbers, steps: int) -> tuple[jax.Array, jax.Array]:
    """Returns True where this step is the first, and the last, of those with the same number."""
    step = pl.program_id(2)
    number = numbers[step]
    is_first = (step == 0) | (numbers[jnp.maximum(step - 1, 0)] != number)
    is_last = (step == steps - 1) | (numbers[jnp.minimum(step + 1, steps - 1)] != number)
    return is_first, is_last


def _spread(segment_ids: jax.Array) -> jax.Array:
    """Returns the segments of keys in all lanes, [B,T,LANES]."""
    return jnp.broadcast_to(segment_ids[:, :, None], (*segment_ids.shape, LANES))


# --- Forward --------------------------------------------------------------------------------------


def _forward(q, k, v, segment_ids, line, curve, options) -> tuple[jax.Array, jax.Array]:
    """Returns what is read, [B,H,T,d of v], and the logarithm of the sums of weights, [B,H,1,T]."""
    batch, heads, length, head_size = q.shape
    value_size = v.shape[3]
    side = _side(q, v, curve)
    pieces = _cut(line, side)
    tiles = visible_tiles(length // side, length // side, side, options)
    order = _order(tiles, _tiles_ahead(pieces, options), len(tiles))
    scalars = _make_scalars(order, segment_ids, pieces)
    specs = _block_specs(side, heads // k.shape[1], pieces)
    of_curve, curve_specs = curves.inputs_and_specs(curve, side) if curve else ((), ())
    run = pl.pallas_call(
        functools.partial(
            _forward_kernel,
            steps=len(tiles),
            rows=length // side,
            cap=options.logit_cap,
            is_curved=curve is not None,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, heads, len(tiles)),
            in_specs=[
                specs.rows(head_size),
                specs.columns(head_size),
                specs.columns(value_size),
                specs.q_segments,
                specs.k_segments,
                specs.pieces,
                *curve_specs,
            ],
            out_specs=[specs.rows(value_size), specs.queries],
            scratch_shapes=[
                pltpu.VMEM((1, side), jnp.float32),
                pltpu.VMEM((1, side), jnp.float32),
                pltpu.VMEM((value_size, side), jnp.float32),
                *(CurveInForward.scratch(side) if curve else ()),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, length, value_size), q.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ],
        compiler_params=_COMPILER_PARAMS,
        name='tiles_forward',
        interpret=options.interpret,
    )
    ids = (segment_ids[:, None], _spread(segment_ids))
    return run(*scalars, q, k, v, *ids, pieces, *of_curve)


def _forward_kernel(*refs, steps: int, rows: int, cap: float, is_curved: bool):
    """Reads from the keys of one tile; a row of tiles is read when its last is."""
    scalars = _read_scalars(refs)
    q, k, v, q_segments, k_segments, pieces, *others = refs[_SCALARS:]
    curve = CurveInForward.of_refs(others) if is_curved else None
    out, log_sums, top, total, read = others
    is_first, is_last = _is_first_and_last(scalars.order.row, steps)
    step = pl.program_id(2)
    piece = scalars.order.piece[step]
    batch_row = pl.program_id(0) * rows + scalars.order.row[step]

    @pl.when(is_first)
    def begin():
        top[...] = jnp.full_like(top, LOWEST)
        total[...] = jnp.zeros_like(total)
        read[...] = jnp.zeros_like(read)

    @pl.when(_is_seen(scalars, rows, len(pieces)))
    def add():
        products = _capped_products(q[...], k[...], cap)
        strip = make_strip(pieces[piece], pieces[piece + 1])
        bias = rows_of_bias(strip, 0, len(products))
        if curve:
            curve.draw(batch_row, piece)
            bias += curve.drawn[...]
        logits = _add_bias(products, bias, q_segments[...], k_segments[...])

        # The sums so far are of weights relative to the old maximum: they are brought to the new.
        new_top = jnp.maximum(top[...], logits.max(0, keepdims=True))
        weights = jnp.exp(logits - new_top)
        shrink = jnp.exp(top[...] - new_top)
        top[...] = new_top
        total[...] = total[...] * shrink + weights.sum(0, keepdims=True)
        values = v[...]
        read[...] = read[...] * shrink + _multiply(values, weights.astype(values.dtype), (0, 0))

    @pl.when(is_last)
    def end():
        out[...] = (read[...] / total[...]).T.astype(out.dtype)
        log_sums[...] = top[...] + jnp.log(total[...])


# --- Backward -------------------------------------------------------------------------------------


def _shapes_of_sums(q, k, v, pieces, curve) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of what the backward pass adds up: dq, dk, dv, and that of the pieces.

    Then those of a curve, where there is one. Heads that share keys have their own, and so have
    rows of the batch.
    """
    batch, heads = q.shape[:2]
    others = ((batch, heads, *k.shape[2:]), (batch, heads, *v.shape[2:]), (batch, *pieces.shape))
    return (
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in others),
        *(curves.shapes_of_sums(curve, *pieces.shape[1::2]) if curve else ()),
    )


def _rows_of_span(q: jax.Array, side: int) -> int:
    """Returns how many rows of tiles the backward pass takes at a time: so many have room."""
    rows = q.shape[2] // side
    while 4 * rows * side * q.shape[3] > _DQ_BYTES and not rows % 2:
        rows //= 2
    return rows


def _order_spans(q, pieces, options: TileOptions) -> list[_Order]:
    """Returns the order of each span of queries, by columns."""
    side = pieces.shape[-1]
    rows = q.shape[2] // side
    tiles = visible_tiles(rows, rows, side, options)
    tiles = tiles[np.lexsort((tiles[:, 0], tiles[:, 1]))]
    span = _rows_of_span(q, side)
    parts = [tiles[tiles[:, 0] // span == i] for i in range(rows // span)]
    steps = max(len(part) for part in parts)
    return [_order(part, _tiles_ahead(pieces, options), steps) for part in parts]


def _backward(arrays, sums, order: _Order, options: TileOptions) -> tuple[jax.Array, ...]:
    """Returns the sums with the gradients that a span of queries gives.

    Args:
      arrays: q, k, v, the gradient of what is read [B,H,T,d of v], segments, of each query the
        logarithm of the sum of its weights and the product of what it read with its gradient
        [B,H,1,T], the pieces of the line, and the curve.
      sums: of the spans before (`_shapes_of_sums`), which are overwritten; None: there is one span.
      order: the tiles of these queries, by columns.
    """
    q, k, v, g, segment_ids, log_sums, own, pieces, curve = arrays
    batch, heads, length, head_size = q.shape
    value_size = v.shape[3]
    side = pieces.shape[-1]
    steps = len(order.row)
    scalars = _make_scalars(order, segment_ids, pieces)
    specs = _block_specs(side, heads // k.shape[1], pieces)
    shapes = _shapes_of_sums(q, k, v, pieces, curve)
    out_specs = [
        specs.whole_rows(head_size),
        specs.columns_of_head(head_size),
        specs.columns_of_head(value_size),
        _of_head(shapes[3]),
    ]
    in_specs = [
        specs.rows(head_size),
        specs.columns(head_size),
        specs.columns(value_size),
        specs.rows(value_size),
        specs.q_segments,
        specs.k_segments,
        specs.queries,
        specs.queries,
        specs.pieces,
    ]
    span = _rows_of_span(q, side)
    scratch = [pltpu.VMEM((span, head_size, side), jnp.float32)]
    of_curve: tuple = ()
    if curve:
        of_curve, curve_specs = curves.inputs_and_specs(curve, side)
        in_specs += curve_specs
        out_specs += [specs.whole_queries, _of_head(shapes[5]), _of_head(shapes[6])]
        scratch += CurveInBackward.scratch(side, span)
    aliases = {}
    if sums:
        # What is written a row at a time is not read.
        first = len(scalars) + len(in_specs)
        untouched = pl.BlockSpec(memory_space=pl.ANY)
        in_specs += [untouched if i in (0, 4) else spec for i, spec in enumerate(out_specs)]
        aliases = {first + i: i for i in range(len(sums))}
    run = pl.pallas_call(
        functools.partial(
            _backward_kernel,
            steps=steps,
            rows=length // side,
            cap=options.logit_cap,
            is_curved=curve is not None,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, heads, steps),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=shapes,
        input_output_aliases=aliases,
        compiler_params=_COMPILER_PARAMS,
        name='tiles_backward',
        interpret=options.interpret,
    )
    ids = (segment_ids[:, None], _spread(segment_ids))
    return run(*scalars, q, k, v, g, *ids, log_sums, own, pieces, *of_curve, *(sums or ()))


def _of_head(shape: jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """Returns the block of an array [B,H,...] that is that of a head."""
    zeros = (0,) * (len(shape.shape) - 2)
    return pl.BlockSpec((None, None, *shape.shape[2:]), lambda b, h, *_: (b, h, *zeros))


def _parts_of_keys(side: int) -> list[pl.Slice]:
    """Returns the keys of a tile, as many at a time as the backward pass computes with."""
    size = min(side, _KEYS)
    return [pl.Slice(first, size) for first in range(0, side, size)]


def _backward_kernel(*refs, steps: int, rows: int, cap: float, is_curved: bool):
    """Adds the gradients of one tile: those of keys while its column lasts, of queries beside."""
    scalars = _read_scalars(refs)
    q, k, v, g, q_segments, k_segments, log_sums, own, pieces, *others = refs[_SCALARS:]
    curve = CurveInBackward.of_refs(others) if is_curved else None
    *sums, dq, dk, dv, d_pieces, d_queries = others
    step = pl.program_id(2)
    order = scalars.order
    piece = order.piece[step]
    row = order.row[step] - order.first_row[0]
    batch_row = pl.program_id(0) * rows + order.row[step]
    whole_row = order.whole[step] - order.first_row[0]
    is_first, _ = _is_first_and_last(order.column, steps)
    _, is_whole = _is_first_and_last(order.whole, steps)

    @pl.when(step == 0)
    def begin_head():
        d_queries[...] = jnp.zeros_like(d_queries)
        d_pieces[...] = sums[3][...] if sums else jnp.zeros_like(d_pieces)
        if curve:
            curve.begin_head()

    @pl.when(is_first)
    def begin_column():
        dk[...] = sums[1][...] if sums else jnp.zeros_like(dk)
        dv[...] = sums[2][...] if sums else jnp.zeros_like(dv)

    @pl.when(_is_seen(scalars, rows, len(pieces)))
    def add():
        strip = make_strip(pieces[piece], pieces[piece + 1])
        diagonals: dict[int, Any] = {}
        if curve:
            curve.draw(batch_row, piece)

        # A part of the keys at a time, for what is computed takes four times the room of logits.
        for keys in _parts_of_keys(len(k)):
            products = _capped_products(q[...], k[keys], cap)
            bias = rows_of_bias(strip, keys.start, keys.start + keys.size)
            if curve:
                bias += curve.drawn[keys]
            logits = _add_bias(products, bias, q_segments[...], k_segments[keys])
            weights = jnp.exp(logits - log_sums[...])

            dv[keys] += _multiply(weights.astype(g.dtype), g[...], (1, 0))
            d_logits = weights * (_multiply(v[keys], g[...], (1, 1)) - own[...])
            add_diagonals(diagonals, d_logits, keys.start)
            if curve:
                curve.d_bias[keys] = d_logits

            if cap:
                d_logits *= 1 - jnp.square(products / cap)
            dk[keys] += _multiply(d_logits.astype(g.dtype), q[...], (1, 0))
            d_queries[row] += _multiply(k[keys], d_logits.astype(g.dtype), (0, 0))

        sum_strip(diagonals, d_pieces, piece)
        if curve:
            curve.add_gradient(row, batch_row, piece)

    @pl.when(is_whole)
    def end_row():
        dq[...] = d_queries[whole_row].T.astype(dq.dtype)
        if curve:
            curve.end_row(whole_row)
