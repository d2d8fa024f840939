"""Compares the cost model of compiled programs with figures worked out by hand.

FLOPs, bytes, trip counts, and what a schedule hides.
"""

import jax
import jax.numpy as jnp
import pytest

from launch.aot import cost_model, hlo, loop_counts
from launch.aot.topologies import CHIPS

V5E = CHIPS['v5e']
MATMUL = 2 * 1024 * 2048 * 4096 / V5E.matrix  # seconds on the matrix unit of the matmul below
# Seconds for a gather of [1024,1024] bf16 parts over 8 devices: two links, 7 hops.
GATHER = 7 * 2**20 * 2 / (2 * V5E.link) + 7e-6

HEAD = """HloModule m, is_scheduled=true

"""
LOOP = (
    HEAD
    + """%body (s: (s32[], bf16[1024,2048])) -> (s32[], bf16[1024,2048]) {
  %s = (s32[]{:T(128)}, bf16[1024,2048]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = bf16[1024,2048]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%s), index=1
  %w = bf16[2048,4096]{1,0:T(8,128)(2,1)S(1)} constant({...})
  %one = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %one)
  %y = bf16[1024,4096]{1,0:T(8,128)(2,1)S(1)} dot(%x, %w), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
  ROOT %out = (s32[]{:T(128)}, bf16[1024,2048]{1,0:T(8,128)(2,1)}) tuple(%next, %x)
}

%condition (s: (s32[], bf16[1024,2048])) -> pred[] {
  %s = (s32[]{:T(128)}, bf16[1024,2048]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %end = s32[]{:T(128)} constant(15)
  CONDITION
}

ENTRY %main (x: bf16[1024,2048]) -> (s32[], bf16[1024,2048]) {
  %x = bf16[1024,2048]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(1)
  %state = (s32[]{:T(128)}, bf16[1024,2048]{1,0:T(8,128)(2,1)}) tuple(%zero, %x)
  ROOT %loop = (s32[]{:T(128)}, bf16[1024,2048]{1,0:T(8,128)(2,1)}) while(%state), \
condition=%condition, body=%body
}
"""
)
ENDS = 'ROOT %more = pred[]{:T(512)} compare(%i, %end), direction=LT'
EARLY = """%more = pred[]{:T(512)} compare(%end, %i), direction=GT
  %other = pred[]{:T(512)} constant(true)
  ROOT %both = pred[]{:T(512)} and(%more, %other)"""
BLIND = 'ROOT %more = pred[]{:T(512)} custom-call(%i), custom_call_target="ask"'


@pytest.mark.parametrize(
    'condition, count, how',
    [(ENDS, 7, 'inferred'), (EARLY, 7, 'inferred, at most'), (BLIND, 1, 'unknown')],
)
def test_a_loop_counts_as_often_as_it_runs(condition, count, how):
    """Catches a body counted once, and a start or a step taken for 0 and 1.

    Also the comparison's sides mistaken, and a count that is a guess and does not say so. From 1 to
    15 by 2 is seven rounds.
    """
    program = hlo.parse(LOOP.replace('CONDITION', condition))
    estimate = cost_model.predict(program, V5E)
    assert estimate.loops == [('loop', count, how)]
    assert estimate.flops == count * 2 * 1024 * 2048 * 4096
    assert estimate.seconds == pytest.approx(count * MATMUL)


def test_a_really_compiled_loop():
    """Catches a reader that knows the hand-written text alone.

    Here it is 12 rounds of [64,32] x [32,32], by the compiler of this machine.
    """

    def run(x, w):
        return jax.lax.fori_loop(0, 12, lambda i, x: jnp.tanh(x @ w), x)

    text = jax.jit(run).lower(jnp.ones((64, 32)), jnp.ones((32, 32))).compile().as_text()
    estimate = cost_model.predict(hlo.parse(text), V5E)
    assert estimate.flops == 12 * 2 * 64 * 32 * 32
    assert [rounds for _, rounds, _ in estimate.loops] == [12]


ASYNC = (
    HEAD
    + """ENTRY %main (a: bf16[1024,1024], x: bf16[1024,2048], w: bf16[2048,4096]) \
-> bf16[8192,1024] {
  %a = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %x = bf16[1024,2048]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %w = bf16[2048,4096]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %start = (bf16[1024,1024]{1,0}, bf16[8192,1024]{1,0}) all-gather-start(%a), channel_id=1, \
replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  BETWEEN
  ROOT %done = bf16[8192,1024]{1,0:T(8,128)(2,1)} all-gather-done(%start)
}
"""
)
DOT = (
    '%y{0} = bf16[1024,4096]{{1,0:T(8,128)(2,1)S(1)}} dot(%x, %w), lhs_contracting_dims={{1}}, '
    'rhs_contracting_dims={{0}}'
)


@pytest.mark.parametrize('dots', [0, 1, 3])
def test_what_a_schedule_hides(dots):
    """Catches times that are always added, or always the larger one.

    Also a wait that is counted although the gather was done before. A gather beside no, one and
    three matmuls.
    """
    between = '\n  '.join(DOT.format(i) for i in range(dots))
    estimate = cost_model.predict(hlo.parse(ASYNC.replace('BETWEEN', between)), V5E)
    gather = estimate.collectives['all-gather']
    assert gather.count == 1 and gather.bytes == 7 * 2**20 * 2
    assert gather.seconds == pytest.approx(GATHER)
    assert gather.exposed == pytest.approx(max(0.0, GATHER - dots * MATMUL))
    assert estimate.seconds == pytest.approx(max(GATHER, dots * MATMUL))


FUSED = (
    HEAD
    + """%first (p: bf16[1024,1024]) -> (bf16[1024,1024], bf16[8192,1024], u32[]) {
  %p = bf16[1024,1024]{1,0} parameter(0)
  %g = bf16[8192,1024]{1,0} all-gather(%p), channel_id=5, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[1024,1024]{1,0}, bf16[8192,1024]{1,0}, u32[]{:S(2)}) custom-call(%g), \
custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (q: bf16[1024,1024], x: bf16[1024,2048], w: bf16[2048,4096]) \
-> (bf16[1024,4096], bf16[8192,1024]) {
  %q = bf16[1024,1024]{1,0} parameter(0)
  %x = bf16[1024,2048]{1,0:S(1)} parameter(1)
  %w = bf16[2048,4096]{1,0:S(1)} parameter(2)
  %y = bf16[1024,4096]{1,0:S(1)} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %g = bf16[8192,1024]{1,0} all-gather(%q), channel_id=5, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %t = (bf16[1024,4096]{1,0:S(1)}, bf16[8192,1024]{1,0}) tuple(%y, %g)
}

%last (r: bf16[1024,1024], s: bf16[8192,1024]) -> bf16[8192,1024] {
  %r = bf16[1024,1024]{1,0} parameter(0)
  %s = bf16[8192,1024]{1,0} parameter(1)
  %g = bf16[8192,1024]{1,0} all-gather(%r), channel_id=5, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %d = bf16[8192,1024]{1,0} custom-call(%r, %s, %g), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[1024,1024], x: bf16[1024,2048], w: bf16[2048,4096]) -> bf16[8192,1024] {
  %a = bf16[1024,1024]{1,0} parameter(0)
  %x = bf16[1024,2048]{1,0:S(1)} parameter(1)
  %w = bf16[2048,4096]{1,0:S(1)} parameter(2)
  %start = (bf16[1024,1024]{1,0}, bf16[8192,1024]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, \
calls=%first
  %part = bf16[1024,1024]{1,0} get-tuple-element(%start), index=0
  %work = (bf16[1024,4096]{1,0:S(1)}, bf16[8192,1024]{1,0}) fusion(%part, %x, %w), kind=kOutput, \
calls=%async_collective_fusion.1
  %all = bf16[8192,1024]{1,0} get-tuple-element(%work), index=1
  ROOT %done = bf16[8192,1024]{1,0} fusion(%part, %all), kind=kCustom, calls=%last
}
"""
)


def test_a_collective_in_three_fusions_is_one():
    """Catches a gather counted once for each fusion it is written in.

    Also its arrays counted as the matmul's, and a group of the wrong axis. It is the form in which
    TPU programs gather beside a matmul.
    """
    estimate = cost_model.predict(hlo.parse(FUSED), V5E)
    gather = estimate.collectives['all-gather']
    assert (gather.count, gather.bytes) == (1, 7 * 2**20 * 2)
    assert gather.exposed == pytest.approx(max(0, GATHER - MATMUL))
    assert estimate.flops == 2 * 1024 * 2048 * 4096 and estimate.bytes == 0


CALLED = (
    HEAD
    + """%away (p: f32[512,512]) -> f32[512,512] {
  %p = f32[512,512]{1,0} parameter(0)
  ROOT %r = f32[512,512]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (a: f32[512,512]) -> f32[512,512] {
  %a = f32[512,512]{1,0} parameter(0)
  %s = ((f32[512,512]{1,0}), f32[512,512]{1,0}, u32[]{:S(2)}) call-start(%a), ATTRIBUTE=%away
  ROOT %d = f32[512,512]{1,0} call-done(%s)
}
"""
)


@pytest.mark.parametrize('attribute', ['to_apply', 'calls'])
def test_a_collective_that_is_called(attribute):
    """Catches a reduction overlooked because it lies in a computation of its own, as on tpu7x."""
    estimate = cost_model.predict(hlo.parse(CALLED.replace('ATTRIBUTE', attribute)), V5E)
    reduction = estimate.collectives['all-reduce']
    assert reduction.bytes == 2**20 and estimate.seconds == reduction.exposed > 0


@pytest.mark.parametrize(
    'kind, groups, n, factor',
    [
        ('all-reduce', '{{0,1,2,3},{4,5,6,7}}', 4, 2 * 3 / 4),
        ('all-gather', '[2,8]<=[16]', 8, 7),
        ('reduce-scatter', "mesh['x'=4,'y'=4] {'x','y'}", 16, 15 / 16),
        ('all-to-all', '[4,4]<=[4,4]T(1,0)', 4, 3 / 4),
        ('all-reduce', '{{0},{1}}', 1, 0),
    ],
)
def test_bytes_that_a_collective_sends(kind, groups, n, factor):
    """Catches a reduction counted once, and a gather by its result.

    Also a way of writing groups unread. Figures are of 1 MB on each device, by hand.
    """
    text = (
        HEAD
        + f"""ENTRY %main (a: f32[512,512]) -> f32[512,512] {{
  %a = f32[512,512]{{1,0}} parameter(0)
  ROOT %c = f32[512,512]{{1,0}} {kind}(%a), channel_id=1, replica_groups={groups}, dimensions={{0}}
}}
"""
    )
    program = hlo.parse(text)
    assert cost_model.group_size(program.entry.root) == n
    sent = cost_model.predict(program, V5E).collectives[kind]
    assert sent.bytes == factor * 2**20 and sent.exposed == sent.seconds


def test_a_small_collective_does_not_wait_for_a_large_one():
    """Catches a sum of one number that waits for all that is under way on the links.

    They share the links: a sum as long as half of the gather takes twice its time, and the gather
    is done as much earlier.
    """
    reduction = """%small = f32[512,512]{1,0} all-reduce(%f), channel_id=2, \
replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add"""
    text = ASYNC.replace('BETWEEN', reduction).replace(
        '  %start =', '  %f = f32[512,512]{1,0} constant({...})\n  %start ='
    )
    estimate = cost_model.predict(hlo.parse(text), V5E)
    small = estimate.collectives['all-reduce']
    gather = estimate.collectives['all-gather']
    assert small.seconds < gather.seconds
    assert small.exposed == pytest.approx(2 * small.seconds)
    assert estimate.seconds == pytest.approx(small.seconds + gather.seconds)


def test_all_to_all_is_bound_by_the_middle_of_the_slice():
    """Catches an exchange of all with all at the speed of a ring between neighbours.

    On 4 x 4 chips eight send eight sixteenths of their 1 MB over the four links of the middle.
    """
    text = (
        HEAD
        + """ENTRY %main (a: f32[512,512]) -> f32[512,512] {
  %a = f32[512,512]{1,0} parameter(0)
  ROOT %c = f32[512,512]{1,0} all-to-all(%a), channel_id=1, replica_groups=[1,16]<=[16], \
dimensions={0}
}
"""
    )
    exchange = cost_model.predict(hlo.parse(text), V5E).collectives['all-to-all']
    crossing = 8 * 2**20 * 8 / 16
    assert exchange.seconds == pytest.approx(crossing / (4 * V5E.link), rel=0.5)
    assert exchange.seconds > crossing / (4 * V5E.link)


SLICED = (
    HEAD
    + """%inner (p: f32[16,1024,1024], i: s32[]) -> f32[1024,1024] {
  %p = f32[16,1024,1024]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %part = f32[1,1024,1024]{2,1,0:T(8,128)} dynamic-slice(%p, %i, %z, %z), \
dynamic_slice_sizes={1,1024,1024}
  %flat = f32[1024,1024]{1,0:T(8,128)} bitcast(%part)
  ROOT %n = f32[1024,1024]{1,0:T(8,128)} negate(%flat)
}

%place (p: f32[16,1024,1024], u: f32[1,1024,1024], i: s32[]) -> f32[16,1024,1024] {
  %p = f32[16,1024,1024]{2,1,0:T(8,128)} parameter(0)
  %u = f32[1,1024,1024]{2,1,0:T(8,128)} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %n = f32[16,1024,1024]{2,1,0:T(8,128)} dynamic-update-slice(%p, %u, %i, %z, %z)
}

ENTRY %main (p: f32[16,1024,1024], i: s32[], u: f32[1,1024,1024], v: f32[1000,100]) \
-> f32[16,1024,1024] {
  %p = f32[16,1024,1024]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:S(4)} parameter(1)
  %u = f32[1,1024,1024]{2,1,0:T(8,128)} parameter(2)
  %v = f32[1000,100]{1,0:T(8,128)} parameter(3)
  %a = f32[1024,1024]{1,0:T(8,128)} fusion(%p, %i), kind=kLoop, calls=%inner
  %b = f32[1000,100]{1,0:T(8,128)S(1)} copy(%v)
  ROOT %c = f32[16,1024,1024]{2,1,0:T(8,128)} fusion(%p, %u, %i), kind=kLoop, calls=%place
}
"""
)


def test_bytes_moved():
    """Catches a stack read or written whole where one layer is.

    Also what stays on the chip counted, and the padding of tiles forgotten.
    """
    program = hlo.parse(SLICED)
    moved = {o.name: hlo.moved(program, program.entry, o) for o in program.entry.ops}
    assert moved['a'] == 2 * 2**22 and moved['c'] == 2 * 2**22 and moved['b'] == 1000 * 128 * 4


def test_a_convolution_counts_what_meets_the_array():
    """Catches four times the FLOPs.

    TPU programs write matmuls as convolutions with windows that mostly lie outside.
    """
    text = (
        HEAD
        + """ENTRY %main (l: bf16[2048,16,128,1], r: bf16[4,2048,2048,1]) -> bf16[16,128,4,2048] {
  %l = bf16[2048,16,128,1]{0,2,1,3} parameter(0)
  %r = bf16[4,2048,2048,1]{1,2,3,0} parameter(1)
  ROOT %c = bf16[16,128,4,2048]{1,3,0,2} convolution(%l, %r), \
window={size=4x1 pad=3_3x0_0 rhs_reversal=1x0}, dim_labels=f1b0_0oi1->1b0f
}
"""
    )
    program = hlo.parse(text)
    assert hlo.flops(program, program.entry, program.entry.root) == 2 * 4 * 2048 * 2048 * 16 * 128


def test_trips_said_by_the_compiler_are_taken():
    """Catches an inference that overrules what is known."""
    text = LOOP.replace('CONDITION', ENDS).replace(
        'body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    )
    program = hlo.parse(text)
    trips = loop_counts.trips(program, program.entry, program.entry.root)
    assert trips == loop_counts.Trips(5, 'known')
