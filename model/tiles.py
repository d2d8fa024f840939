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

from model.positions.base import EncodingInputs

LOWEST = -1e30  # a logit of this size has no weight
LANES = 128
_SUBLANES = 8
_LARGEST = 1024  # numbers of a tile's side
_DQ_BYTES = 4 * 2**20  # of the gradient of queries that the backward pass holds on the chip
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_in_tiles(
    q_BxHxTxd: jax.Array,
    k_BxKxTxd: jax.Array,
    v_BxKxTxd: jax.Array,
    segment_ids: jax.Array,
    line: jax.Array,
    options: TileOptions,
) -> jax.Array:
    """Returns what queries read from the keys of their segment, [B,H,T,d of v].

    Args:
      q_BxHxTxd: queries, scaled.
      v_BxKxTxd: values, whose d may be another than that of keys.
      segment_ids: [B,T] int32.
      line: float32 [H,ahead+T], what is added at the distances from -ahead to T - 1 of a query and
        a key (`count_ahead`), at least `LOWEST`.
    """
    return _forward(q_BxHxTxd, k_BxKxTxd, v_BxKxTxd, segment_ids, line, options)[0]


def _forward_rule(q, k, v, segment_ids, line, options):
    out, log_sums = _forward(q, k, v, segment_ids, line, options)
    out = checkpoint_name(out, 'attention_residuals')
    log_sums = checkpoint_name(log_sums, 'attention_residuals')
    return out, (q, k, v, segment_ids, line, out, log_sums)


def _backward_rule(options, residuals, g_BxHxTxd):
    q, k, v, segment_ids, line, out, log_sums = residuals
    own = (out.astype(jnp.float32) * g_BxHxTxd.astype(jnp.float32)).sum(-1)[:, :, None]
    strips, sum_strips = jax.vjp(lambda x: _cut_strips(x, _side(q, v)), line)

    # Queries are taken in spans whose gradient fits on the chip; those of keys are added up.
    arrays = (q, k, v, g_BxHxTxd)
    span = _span(q, v)
    d_queries = []
    d_others = []
    for start in range(0, q.shape[2], span):
        rows = slice(start, start + span)
        dq, *others = _backward(arrays, segment_ids, (log_sums, own), strips, rows, options)
        d_queries.append(dq)
        d_others.append(others)
    dk, dv, d_strips = (functools.reduce(jnp.add, parts) for parts in zip(*d_others))

    def sum_group(gradient, keys):
        """Returns the sum over the heads that share keys."""
        grouped = gradient.reshape(*keys.shape[:2], -1, *keys.shape[2:])
        return grouped.sum(2).astype(keys.dtype)

    dq = jnp.concatenate(d_queries, 2).astype(q.dtype)
    no_ids = np.zeros(segment_ids.shape, jax.dtypes.float0)
    return dq, sum_group(dk, k), sum_group(dv, v), no_ids, *sum_strips(d_strips)


attend_in_tiles.defvjp(_forward_rule, _backward_rule)


# --- The line of an encoding ----------------------------------------------------------------------


def bias_line(encoding, inputs: EncodingInputs, config, side: int) -> jax.Array:
    """Returns what is added at each distance, float32 [H,ahead+T], as `attend_in_tiles` takes it.

    It is what the encoding gives the last query of a text that is one document: that one sees a key
    at each distance.

    Args:
      encoding: one whose bias and mask are functions of the distance (`of_distances`).
      inputs: with the parameters, in a layer.
      side: of a tile.
    """
    assert inputs.k_ids is not None
    length = inputs.k_ids.shape[1]
    place = jnp.arange(length, dtype=jnp.int32)[None]
    document = jnp.ones_like(place)
    text = EncodingInputs(
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


# --- Tiles, and the line of the bias --------------------------------------------------------------


def count_ahead(length: int, causal: bool, side: int) -> int:
    """Returns how many distances below 0 the line of the bias has."""
    return side if causal else length


def side_of_tiles(length: int, head_size: int, dtype) -> int:
    """Returns the largest side of a tile that divides the length and fits on the chip."""
    fits = jnp.dtype(dtype) == jnp.bfloat16 and head_size <= LANES
    largest = min(_LARGEST, 1024 if fits else 512)
    return next(side for side in (1024, 512, 256, LANES) if side <= largest and not length % side)


def _side(q: jax.Array, v: jax.Array) -> int:
    return side_of_tiles(q.shape[2], max(q.shape[-1], v.shape[-1]), q.dtype)


def _tiles_ahead(strips: jax.Array, options: TileOptions) -> int:
    """Returns how many strips are of distances below 0."""
    return 1 if options.causal else strips.shape[1] // 2


def _span(q: jax.Array, v: jax.Array) -> int:
    """Returns how many queries the backward pass takes at a time: tiles that divide the length."""
    span = q.shape[2]
    while 4 * span * q.shape[3] > _DQ_BYTES and not span // 2 % _side(q, v):
        span //= 2
    return span


def visible_tiles(
    rows: int, columns: int, first_row: int, side: int, options: TileOptions
) -> np.ndarray:
    """Returns the tiles that any query sees into, by rows, int32 [tiles,2] of (row, column).

    Args:
      rows, columns: tiles of queries and of keys.
      first_row: number of the first row of tiles, whose number here is 0.
    """
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing='ij')
    apart = row + first_row - column
    seen = np.ones(apart.shape, bool)
    if options.causal:
        seen &= apart >= 0
    if options.window:
        # The nearest two tokens of the tiles are so far apart.
        seen &= (abs(apart) - 1) * side + 1 < options.window
    return np.stack([row[seen], column[seen]], 1).astype(np.int32)


def _cut_strips(line: jax.Array, side: int) -> jax.Array:
    """Returns the line in strips of 8 rows, each row rolled on by one, float32 [H,parts,8,n]."""
    heads, length = line.shape
    padded = jnp.pad(line, ((0, 0), (_SUBLANES - 1, 0)))
    rows = [padded[:, _SUBLANES - 1 - s :][:, :length] for s in range(_SUBLANES)]
    strips = jnp.stack(rows, 1).reshape(heads, _SUBLANES, length // side, side)
    return jnp.swapaxes(strips, 1, 2)


def _make_bias(before: jax.Array, after: jax.Array) -> jax.Array:
    """Returns the bias of a tile, [n keys, n queries], from the strips that its diagonals meet."""
    side = before.shape[1]
    strip = jnp.concatenate([before, after], 1)
    while len(strip) < LANES:
        strip = jnp.concatenate([strip, pltpu.roll(strip, len(strip), 1)], 0)
    return jnp.concatenate(
        [strip[:, side - row : 2 * side - row] for row in range(0, side, LANES)], 0
    )


def _sum_bias(d_bias: jax.Array) -> jax.Array:
    """Returns the gradient of the two strips, [8,2n], of that of a tile; undoes `_make_bias`."""
    side = len(d_bias)
    blocks = [jnp.zeros((LANES, LANES), jnp.float32)]
    for first in range(LANES - side, side, LANES):
        starts = [row for row in range(0, side, LANES) if 0 <= row + first < side]
        parts = [d_bias[row : row + LANES, row + first :][:, :LANES] for row in starts]
        blocks.append(functools.reduce(jnp.add, parts))
    strip = jnp.concatenate(blocks, 1)
    while len(strip) > _SUBLANES:
        half = len(strip) // 2
        strip = strip[:half] + pltpu.roll(strip[half:], 2 * side - half, 1)
    return strip


# --- What both passes compute in a tile -----------------------------------------------------------


def _multiply(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Returns the product of two matrices, float32; `axes`: those that are summed over."""
    dims = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _capped_products(q: jax.Array, k: jax.Array, cap: float) -> jax.Array:
    """Returns the products of a tile under the soft cap, float32 [n keys, n queries]."""
    products = _multiply(k, q, (1, 1))
    return cap * jnp.tanh(products / cap) if cap else products


def _add_bias(products, strips, part, q_segments, k_segments):
    """Returns the logits of a tile: with the bias, and the lowest where segments are not the same.

    Args:
      strips: reference to those of the head, [parts,8,n].
      part: number of the first of the two that the tile meets.
      q_segments: [1,n].
      k_segments: [n,LANES], the same in all lanes.
    """
    logits = products + _make_bias(strips[part], strips[part + 1])
    of_keys = jnp.tile(k_segments, (1, products.shape[1] // LANES))
    return jnp.where(of_keys == q_segments, logits, LOWEST)


class _Specs(NamedTuple):
    """Says which block of each array a step sees: of its row or its column of tiles, of its head.

    `rows` and `columns` take the size of a vector.
    """

    rows: Callable[[int], pl.BlockSpec]
    columns: Callable[[int], pl.BlockSpec]
    columns_of_head: Callable[[int], pl.BlockSpec]
    queries: pl.BlockSpec
    q_segments: pl.BlockSpec
    k_segments: pl.BlockSpec
    strips: pl.BlockSpec


def _block_specs(side: int, group: int, strips: jax.Array) -> _Specs:
    """Returns the blocks of a step, whose grid is (row of the batch, head, step)."""

    def rows(size):
        return pl.BlockSpec((None, None, side, size), lambda b, h, t, row, *_: (b, h, row[t], 0))

    def columns(size, group=group):
        return pl.BlockSpec(
            (None, None, side, size),
            lambda b, h, t, row, column, *_: (b, jax.lax.div(h, group), column[t], 0),
        )

    return _Specs(
        rows=rows,
        columns=columns,
        columns_of_head=functools.partial(columns, group=1),
        queries=pl.BlockSpec((None, None, 1, side), lambda b, h, t, row, *_: (b, h, 0, row[t])),
        q_segments=pl.BlockSpec((None, 1, side), lambda b, h, t, row, *_: (b, 0, row[t])),
        k_segments=pl.BlockSpec(
            (None, side, LANES), lambda b, h, t, row, column, *_: (b, column[t], 0)
        ),
        strips=pl.BlockSpec((None, *strips.shape[1:]), lambda b, h, *_: (h, 0, 0, 0)),
    )


class _Scalars(NamedTuple):
    """Holds what each step computes, and which tiles are empty; there before the step begins."""

    row: Any  # int32 [steps]
    column: Any  # int32 [steps]
    part: Any  # int32 [steps], the first of the two strips that the tile meets
    q_segments: Any  # int32 [2,B*rows], the lowest and highest of each row of tiles
    k_segments: Any  # int32 [2,B*columns]
    is_seen: Any  # int32 [H*(parts-1)], 1 where the strips have any distance that is seen


def _make_scalars(tiles, part, q_segments, k_segments, strips) -> _Scalars:
    """Returns the scalars of the steps that take the tiles one after another."""
    side = strips.shape[-1]

    def extremes(segments):
        blocks = segments.reshape(-1, side)
        return jnp.stack([blocks.min(-1), blocks.max(-1)])

    tops = strips.max((2, 3))
    is_seen = jnp.maximum(tops[:, :-1], tops[:, 1:]) > LOWEST / 2
    return _Scalars(
        row=np.ascontiguousarray(tiles[:, 0]),
        column=np.ascontiguousarray(tiles[:, 1]),
        part=part,
        q_segments=extremes(q_segments),
        k_segments=extremes(k_segments),
        is_seen=is_seen.reshape(-1).astype(jnp.int32),
    )


def _is_seen(scalars: _Scalars, rows: int, columns: int, parts: int) -> jax.Array:
    """Returns True where the tile of this step may hold a query and a key that it sees."""
    batch = pl.program_id(0)
    step = pl.program_id(2)
    i = batch * rows + scalars.row[step]
    j = batch * columns + scalars.column[step]
    same = scalars.q_segments[0, i] <= scalars.k_segments[1, j]
    same &= scalars.k_segments[0, j] <= scalars.q_segments[1, i]
    return same & (scalars.is_seen[pl.program_id(1) * (parts - 1) + scalars.part[step]] > 0)


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


def _forward(q, k, v, segment_ids, line, options) -> tuple[jax.Array, jax.Array]:
    """Returns what is read, [B,H,T,d of v], and the logarithm of the sums of weights, [B,H,1,T]."""
    batch, heads, length, head_size = q.shape
    value_size = v.shape[3]
    side = _side(q, v)
    strips = _cut_strips(line, side)
    tiles = visible_tiles(length // side, length // side, 0, side, options)
    part = tiles[:, 0] - tiles[:, 1] + _tiles_ahead(strips, options) - 1
    scalars = _make_scalars(tiles, part, segment_ids, segment_ids, strips)
    specs = _block_specs(side, heads // k.shape[1], strips)
    run = pl.pallas_call(
        functools.partial(
            _forward_kernel, steps=len(tiles), rows=length // side, cap=options.logit_cap
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
                specs.strips,
            ],
            out_specs=[specs.rows(value_size), specs.queries],
            scratch_shapes=[
                pltpu.VMEM((1, side), jnp.float32),
                pltpu.VMEM((1, side), jnp.float32),
                pltpu.VMEM((value_size, side), jnp.float32),
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
    return run(*scalars, q, k, v, segment_ids[:, None], _spread(segment_ids), strips)


def _forward_kernel(*refs, steps: int, rows: int, cap: float):
    """Reads from the keys of one tile; a row of tiles is read when its last is."""
    scalars = _Scalars(*refs[: len(_Scalars._fields)])
    q, k, v, q_segments, k_segments, strips, out, log_sums, top, total, read = refs[len(scalars) :]
    is_first, is_last = _is_first_and_last(scalars.row, steps)
    part = scalars.part[pl.program_id(2)]

    @pl.when(is_first)
    def begin():
        top[...] = jnp.full_like(top, LOWEST)
        total[...] = jnp.zeros_like(total)
        read[...] = jnp.zeros_like(read)

    @pl.when(_is_seen(scalars, rows, rows, len(strips)))
    def add():
        products = _capped_products(q[...], k[...], cap)
        logits = _add_bias(products, strips, part, q_segments[...], k_segments[...])

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


def _backward(arrays, segment_ids, of_queries, strips, rows: slice, options: TileOptions):
    """Returns the gradients that a span of queries gives.

    Args:
      arrays: q, k, v, and the gradient of what is read.
      of_queries: logarithm of the sums of weights, and the product of what is read with its
        gradient, [B,H,1,T].
      rows: the queries.
    Returns:
      dq [B,H,t,d], dk and dv [B,H,T,d], and that of the strips [H,parts,8,n], all float32.
    """
    q, k, v, g = arrays
    batch, heads, _, head_size = q.shape
    value_size = v.shape[3]
    side = strips.shape[-1]
    group = heads // k.shape[1]

    # The tiles of these queries, and the keys from the first to the last that they see.
    first_row = rows.start // side
    span = rows.stop // side - first_row
    tiles = visible_tiles(span, k.shape[2] // side, first_row, side, options)
    tiles = tiles[np.lexsort((tiles[:, 0], tiles[:, 1]))]
    part = tiles[:, 0] + first_row - tiles[:, 1] + _tiles_ahead(strips, options) - 1
    first_column = tiles[:, 1].min()
    columns = tiles[:, 1].max() + 1 - first_column
    tiles = tiles - np.asarray([0, first_column], np.int32)
    seen = slice(first_column * side, (first_column + columns) * side)

    q, g = (x[:, :, rows] for x in (q, g))
    k, v = (x[:, :, seen] for x in (k, v))
    q_segments = segment_ids[:, rows]
    k_segments = segment_ids[:, seen]
    scalars = _make_scalars(tiles, part, q_segments, k_segments, strips)
    specs = _block_specs(side, group, strips)
    d_queries = (batch, heads, span, head_size, side)
    d_strips = (batch, *strips.shape)
    run = pl.pallas_call(
        functools.partial(
            _backward_kernel,
            steps=len(tiles),
            rows=span,
            columns=columns,
            cap=options.logit_cap,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, heads, len(tiles)),
            in_specs=[
                specs.rows(head_size),
                specs.columns(head_size),
                specs.columns(value_size),
                specs.rows(value_size),
                specs.q_segments,
                specs.k_segments,
                specs.queries,
                specs.queries,
                specs.strips,
            ],
            out_specs=[
                pl.BlockSpec((None, None, *d_queries[2:]), lambda b, h, *_: (b, h, 0, 0, 0)),
                specs.columns_of_head(head_size),
                specs.columns_of_head(value_size),
                pl.BlockSpec((None, None, *d_strips[2:]), lambda b, h, *_: (b, h, 0, 0, 0)),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32)
            for shape in (
                d_queries,
                (batch, heads, *k.shape[2:]),
                (batch, heads, *v.shape[2:]),
                d_strips,
            )
        ],
        compiler_params=_COMPILER_PARAMS,
        name='tiles_backward',
        interpret=options.interpret,
    )
    of_queries = (x[..., rows] for x in of_queries)
    dq, dk, dv, d_strips = run(
        *scalars, q, k, v, g, q_segments[:, None], _spread(k_segments), *of_queries, strips
    )
    dq = jnp.swapaxes(dq, 3, 4).reshape(q.shape)
    around = ((0, 0), (0, 0), (seen.start, segment_ids.shape[1] - seen.stop), (0, 0))
    return dq, jnp.pad(dk, around), jnp.pad(dv, around), d_strips.sum(0)


def _backward_kernel(*refs, steps: int, rows: int, columns: int, cap: float):
    """Adds the gradients of one tile; those of its keys are whole when its column is."""
    scalars = _Scalars(*refs[: len(_Scalars._fields)])
    refs = refs[len(scalars) :]
    q, k, v, g, q_segments, k_segments, log_sums, own, strips, dq, dk, dv, d_strips = refs
    step = pl.program_id(2)
    row = scalars.row[step]
    part = scalars.part[step]
    is_first, _ = _is_first_and_last(scalars.column, steps)

    @pl.when(step == 0)
    def begin_head():
        dq[...] = jnp.zeros_like(dq)
        d_strips[...] = jnp.zeros_like(d_strips)

    @pl.when(is_first)
    def begin_column():
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    @pl.when(_is_seen(scalars, rows, columns, len(strips)))
    def add():
        products = _capped_products(q[...], k[...], cap)
        logits = _add_bias(products, strips, part, q_segments[...], k_segments[...])
        weights = jnp.exp(logits - log_sums[...])

        d_read = g[...]
        dv[...] += _multiply(weights.astype(d_read.dtype), d_read, (1, 0))
        d_logits = weights * (_multiply(v[...], d_read, (1, 1)) - own[...])
        before, after = jnp.split(_sum_bias(d_logits), 2, 1)
        d_strips[part] += before
        d_strips[part + 1] += after

        if cap:
            d_logits *= 1 - jnp.square(products / cap)
        d_products = d_logits.astype(d_read.dtype)
        dk[...] += _multiply(d_products, q[...], (1, 0))
        dq[row] += _multiply(k[...], d_products, (0, 0))
