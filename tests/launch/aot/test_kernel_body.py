"""Compares the counted work of Pallas kernels with figures worked out by hand.

The kernels are lowered for a TPU, which needs none.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
    splash_attention_mask as masks,
)

from launch.aot import cost_model, hlo, kernel_body
from launch.aot.topologies import CHIPS

BLOCK = 128
BLOCKS = 4


def lowered_bodies(function, *shapes) -> list[str]:
    """Returns the bodies of the kernels that a function calls, in the order of the text."""
    traced = jax.jit(function).trace(*shapes)
    text = traced.lower(lowering_platforms=('tpu',)).as_text()
    return re.findall(r'body\\22: \\22([A-Za-z0-9+/=]+)', text)


def declared(flops: int) -> pl.CostEstimate:
    return pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=0)


def lower_triangle(x, y):
    """Multiplies blocks of rows by blocks of columns, those right of the diagonal left out."""

    def kernel(x_ref, y_ref, out_ref):
        i = pl.program_id(0)
        j = pl.program_id(1)

        @pl.when(j <= i)
        def _():
            product = jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)
            out_ref[...] = product + product

    size = BLOCK * BLOCKS
    return pl.pallas_call(
        kernel,
        grid=(BLOCKS, BLOCKS),
        in_specs=[
            pl.BlockSpec((BLOCK, 256), lambda i, j: (i, 0)),
            pl.BlockSpec((256, BLOCK), lambda i, j: (0, jnp.minimum(i, j))),
        ],
        out_specs=pl.BlockSpec((BLOCK, BLOCK), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((size, size), jnp.float32),
        cost_estimate=declared(10**15),
    )(x, y)


TRIANGLE_SHAPES = (
    jax.ShapeDtypeStruct((BLOCK * BLOCKS, 256), jnp.bfloat16),
    jax.ShapeDtypeStruct((256, BLOCK * BLOCKS), jnp.bfloat16),
)
TILES = BLOCKS * (BLOCKS + 1) // 2


def test_tiles_that_are_skipped_cost_nothing():
    """Catches a whole square counted where a branch leaves half of it out.

    Also a block moved anew at each point though its place is the same, and the product's own
    additions taken for elementwise ones.
    """
    (body,) = lowered_bodies(lower_triangle, *TRIANGLE_SHAPES)
    work = kernel_body.count(body, (), 1)
    assert work.products == {(BLOCK, 256, BLOCK, 1): TILES}
    assert work.flops == TILES * 2 * BLOCK * 256 * BLOCK
    assert work.vector == TILES * BLOCK * BLOCK
    assert not work.at_most

    # Rows of x come once each; of y's columns another one at each step up to the diagonal. A row
    # begins at the first one again, where the very first row has stayed.
    block_bytes = BLOCK * 256 * 2
    y_moves = TILES - 1
    assert work.read == [BLOCKS * block_bytes, y_moves * block_bytes, 0]
    assert work.written == [0, 0, BLOCKS * BLOCKS * BLOCK * BLOCK * 4]


def test_the_matrix_unit_is_filled_in_whole_parts():
    """Catches a head of 128 that costs a matrix unit of 256 columns no more than its FLOPs."""
    work = kernel_body.Work()
    work.products[512, 64, 512, 1] += 1
    assert work.wide_flops(128) == 2 * work.flops
    assert work.wide_flops(256) == 4 * work.flops


def summed_by_rows(counts, x):
    """Adds up exponentials of the rows that an array of scalars says for each block."""

    def kernel(counts_ref, x_ref, out_ref):
        def add(i, carry):
            return carry + jnp.exp(x_ref[pl.ds(i * 8, 8), :])

        rows = counts_ref[pl.program_id(0)]
        out_ref[...] = jax.lax.fori_loop(0, rows, add, jnp.zeros((8, 128), jnp.float32))

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(3,),
            in_specs=[pl.BlockSpec((64, 128), lambda i, counts: (i, 0))],
            out_specs=pl.BlockSpec((8, 128), lambda i, counts: (i, 0)),
        ),
        out_shape=jax.ShapeDtypeStruct((24, 128), jnp.float32),
    )(counts, x)


def test_loops_run_as_often_as_scalars_say():
    """Catches a loop's body counted once, or the same for all points of the grid.

    Also a count that is a guess and does not say so: without the scalars, or with them.
    """
    shapes = (
        jax.ShapeDtypeStruct((3,), jnp.int32),
        jax.ShapeDtypeStruct((192, 128), jnp.float32),
    )
    (body,) = lowered_bodies(summed_by_rows, *shapes)
    exponentials = 8 * 128 * (kernel_body._OPERATIONS['math.exp'] + 1)
    known = kernel_body.count(body, (((3,), (5, 0, 2)), None), 1)
    assert known.vector == 7 * exponentials and not known.at_most
    assert kernel_body.count(body, (None, None), 1).at_most


def lower_splash(mask: masks.Mask, length: int):
    """Returns splash attention of two heads in blocks of 128, and the shapes of its arguments."""
    sizes = splash.BlockSizes(
        block_q=128,
        block_kv=128,
        block_kv_compute=128,
        block_q_dkv=128,
        block_kv_dkv=128,
        block_kv_dkv_compute=128,
        use_fused_bwd_kernel=True,
    )
    run = splash.make_splash_mqa_single_device(masks.MultiHeadMask([mask] * 2), block_sizes=sizes)
    q = jax.ShapeDtypeStruct((2, length, 128), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct((length, 128), jnp.bfloat16)
    return run, (q, kv, kv)


def count_splash(body: str, mask_info) -> kernel_body.Work:
    """Returns the work of one of its kernels, steered by the arrays that it is itself given."""
    steering = (mask_info.data_next, mask_info.block_mask)
    constants = tuple((x.shape, tuple(x.reshape(-1).tolist())) for x in steering)
    return kernel_body.count(body, constants)


def test_causal_splash_visits_half_of_the_square():
    """Catches a square counted whole, and causal FLOPs that tiles do not have.

    The tiles on and below the diagonal are (n + 1) / 2n of the square: for each of their elements
    two products forward, and five backward, where attention's weights are computed again.
    """
    blocks = 4
    length = 128 * blocks
    run, shapes = lower_splash(masks.CausalMask((length, length)), length)

    def loss(q, k, v):
        return run(q, k, v).astype(jnp.float32).sum()

    forward_body, backward_body = lowered_bodies(jax.grad(loss, (0, 1, 2)), *shapes)
    forward = count_splash(forward_body, run.fwd_mask_info)
    backward = count_splash(backward_body, run.dkv_mask_info)

    causal = 2 * length * length / 2  # elements that queries of two heads see
    visited = causal * (blocks + 1) / blocks
    assert forward.flops == 2 * 2 * 128 * visited
    assert backward.flops == 5 * 2 * 128 * visited
    assert not forward.at_most and not backward.at_most

    # An element takes a mask, a maximum, an exponential and a sum at least.
    assert 5 * visited < forward.vector < 40 * visited


def test_a_window_costs_its_tiles():
    """Catches a window that costs as much as all before it: two tiles a row, one at first."""
    run, shapes = lower_splash(masks.LocalMask((512, 512), (127, 0), 0), 512)
    (body,) = lowered_bodies(run, *shapes)
    work = count_splash(body, run.fwd_mask_info)
    assert work.flops == 2 * 2 * 128 * (2 * 128 * 128 * 7)


CALL = """HloModule m, is_scheduled=true

ENTRY %main (x: bf16[512,256], y: bf16[256,512]) -> f32[512,512] {{
  %x = bf16[512,256]{{1,0:T(8,128)(2,1)}} parameter(0)
  %y = bf16[256,512]{{1,0:T(8,128)(2,1){space}}} parameter(1)
  ROOT %kernel.1 = f32[512,512]{{1,0:T(8,128)}} custom-call(%x, %y), \
custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"none"
}}}}, backend_config={{"custom_call_config":{{"body":"{body}","cost_estimate":{{"flops":"9"}}}}}}
}}
"""


@pytest.mark.parametrize('space', ['', 'S(1)'])
def test_a_kernel_takes_the_time_of_its_body(space):
    """Catches a kernel that takes what its author declares, and one over two lines cut short.

    Also an array that lies on the chip already counted as moved.
    """
    (body,) = lowered_bodies(lower_triangle, *TRIANGLE_SHAPES)
    chip = CHIPS['v5e']
    estimate = cost_model.predict(hlo.parse(CALL.format(space=space, body=body)), chip)
    work = kernel_body.count(body, (None, None), 1)
    moved = work.read[0] + work.written[2] + (0 if space else work.read[1])
    matrix = work.flops / chip.matrix + work.vector / chip.vector
    assert estimate.flops == estimate.kernel_flops == work.flops
    assert estimate.bytes == moved
    assert estimate.seconds == estimate.kernel_seconds == max(matrix, moved / chip.memory)
    assert estimate.unknown_kernels == 0 and estimate.kernels == {'kernel': 1}


def test_a_kernel_without_a_body_is_said_to_be_unknown():
    """Catches a kernel that costs nothing and nobody is told."""
    text = CALL.format(space='', body='AAAA')
    estimate = cost_model.predict(hlo.parse(text), CHIPS['v5e'])
    assert estimate.unknown_kernels == 1 and estimate.kernel_flops == 0
    assert estimate.seconds > 0


CARRIED = """HloModule m, is_scheduled=true

%body (s: (s32[], s32[2,2])) -> (s32[], s32[2,2]) {
  %s = (s32[], s32[2,2]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %table = s32[2,2]{1,0} get-tuple-element(%s), index=1
  %near = s32[2,2]{1,0:S(1)} copy(%table)
  ROOT %out = (s32[], s32[2,2]{1,0}) tuple(%i, CARRIED)
}

%condition (s: (s32[], s32[2,2])) -> pred[] {
  %s = (s32[], s32[2,2]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main () -> (s32[], s32[2,2]) {
  %zero = s32[] constant(0)
  %c = s32[2,2]{1,0} constant({ { 1, 2 }, { 3, 4 } })
  %state = (s32[], s32[2,2]{1,0}) tuple(%zero, %c)
  ROOT %loop = (s32[], s32[2,2]{1,0}) while(%state), condition=%condition, body=%body
}
"""


def test_constants_are_followed_into_loops():
    """Catches scalars that steer a kernel lost in a loop, and a changing state taken for one."""
    for carried, expected in (('%table', ((2, 2), (1, 2, 3, 4))), ('%near', None)):
        program = hlo.parse(CARRIED.replace('CARRIED', carried))
        body = program.computations['body']
        assert hlo.constant(program, body, 'near') == expected
