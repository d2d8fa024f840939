"""Predicts how long a compiled program takes, by replaying its schedule.

An operation takes the largest of its matrix-unit and its memory time, at the peaks of a chip; a
collective takes its link time. What the schedule starts early (a collective, a copy into the chip's
own memory) goes on beside the operations that follow, and is waited for where the schedule says it
must be done: only the waiting counts. Loop bodies count as often as they run. What is left out: the
launch of operations, elementwise arithmetic outside of Pallas kernels (`vector`, by the compiler's
own estimate, is told beside), and the host. A Pallas kernel takes what its lowered body computes
and moves (`launch/aot/kernel_body.py`), its matrix and its vector operations one after the other.
"""

import collections
import dataclasses
import re

from launch.aot import hlo
from launch.aot.loop_counts import trips as trips_of
from launch.aot.topologies import Chip

_HOP = 1e-6  # seconds for a message to the next chip
_NETWORK_DELAY = 50e-6  # seconds for a message to another slice


@dataclasses.dataclass
class Moved:
    """Sums up collectives of one kind.

    How many, bytes that a device sends, seconds on the links, and seconds that nothing hides.
    """

    count: int = 0
    bytes: float = 0.0
    seconds: float = 0.0
    exposed: float = 0.0

    def add(self, other: 'Moved', times: int = 1) -> None:
        """Adds another, so many times."""
        self.count += times * other.count
        self.bytes += times * other.bytes
        self.seconds += times * other.seconds
        self.exposed += times * other.exposed


_SUMS = ('flops', 'kernel_flops', 'kernel_seconds', 'bytes', 'vector', 'unknown_kernels')


@dataclasses.dataclass
class Estimate:
    """Sums up the cost of a computation, its loops unrolled.

    Attributes:
      bounds: seconds by what they are bound by.
      vector: seconds by which the compiler's own estimate of elementwise operations is above ours.
      loops: (name, rounds, how they are known).
    """

    seconds: float = 0.0
    flops: float = 0.0
    kernel_flops: float = 0.0
    kernel_seconds: float = 0.0
    bytes: float = 0.0
    vector: float = 0.0
    bounds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    collectives: dict = dataclasses.field(default_factory=dict)
    kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unknown_kernels: int = 0
    loops: list = dataclasses.field(default_factory=list)

    def add(self, other: 'Estimate', times: int = 1) -> None:
        """Adds the work of another, not its time."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name in ('bounds', 'kernels'):
            getattr(self, name).update({k: v * times for k, v in getattr(other, name).items()})
        for kind, moved in other.collectives.items():
            self.collectives.setdefault(kind, Moved()).add(moved, times)
        self.loops += other.loops


@dataclasses.dataclass
class _Started:
    """Stands for something under way: `left` seconds on the links, or bytes of the memory."""

    name: str
    left: float
    kind: str = ''


def predict(program: hlo.Program, chip: Chip, slices: int = 1) -> Estimate:
    """Returns the cost of the whole program, run once."""
    return _Replay(program, chip, slices).run(program.entry)


class _Replay:
    """Replays the computations of a program, each once."""

    def __init__(self, program: hlo.Program, chip: Chip, slices: int):
        self.program = program
        self.chip = chip
        self.slices = slices
        self.done: dict[str, Estimate] = {}

    def run(self, computation: hlo.Computation) -> Estimate:
        """Returns the cost of a computation, run once."""
        if computation.name not in self.done:
            self.done[computation.name] = _Run(self, computation).estimate
        return self.done[computation.name]


class _Run:
    """Replays one computation.

    It has a clock, and what is under way on the links, between slices and to the memory, each a
    queue.
    """

    def __init__(self, replay: _Replay, computation: hlo.Computation):
        self.replay = replay
        self.program = replay.program
        self.chip = replay.chip
        self.computation = computation
        self.estimate = Estimate()
        self.queues = {
            'links': collections.deque(),
            'network': collections.deque(),
            'memory': collections.deque(),
        }
        for op in computation.ops:
            self.step(op)
        for queue in self.queues:
            self.wait(queue, None)

    def advance(self, seconds: float, moved: float, bound: str) -> None:
        """Lets `seconds` pass, in which an operation moves so many bytes itself."""
        self.estimate.seconds += seconds
        self.estimate.bounds[bound] += seconds
        self.serve('links', seconds)
        self.serve('network', seconds)
        self.serve('memory', max(0.0, seconds * self.chip.memory - moved))

    def serve(self, queue: str, amount: float) -> None:
        """Lets what is first in a queue go on by so much."""
        while self.queues[queue] and amount > 0:
            first = self.queues[queue][0]
            used = min(first.left, amount)
            first.left -= used
            amount -= used
            if first.left <= 0:
                self.queues[queue].popleft()

    def wait(self, queue: str, name: str | None) -> None:
        """Waits until `name` is done (None: everything).

        Those before it in the queue come first.
        """
        rate = self.chip.memory if queue == 'memory' else 1.0
        names = [started.name for started in self.queues[queue]]
        if name is not None and name not in names:
            return
        for _ in range(len(names) if name is None else names.index(name) + 1):
            first = self.queues[queue][0]
            seconds = first.left / rate
            kind = first.kind
            self.queues[queue].popleft()
            self.estimate.seconds += seconds
            self.estimate.bounds['memory' if queue == 'memory' else 'links'] += seconds
            if kind:
                self.estimate.collectives[kind].exposed += seconds

            # A queue is served by its own waiting, and the others go on.
            for other in self.queues:
                if other != queue:
                    self.serve(other, seconds * (self.chip.memory if other == 'memory' else 1.0))

    def step(self, op: hlo.Op) -> None:
        """Replays one operation."""
        kind = op.kind
        inner = None
        if kind in ('fusion', 'async-start', 'async-update', 'async-done'):
            inner = self.program.inner(op)
        part = _async_part(inner)

        # Other computations.
        if kind == 'while':
            self.loop(op)
        elif kind == 'conditional':
            branches = [self.replay.run(branch) for branch in self.branches(op)]
            self.nested(max(branches, key=lambda estimate: estimate.seconds), 1)
        elif kind == 'call':
            called = self.program.called(op, 'to_apply') or self.program.called(op)
            self.nested(self.replay.run(called), 1)

        # Collectives that start in one fusion and end in another; tpu7x: on cores of its own.
        elif part == 'AsyncCollectiveStart' or kind == 'async-start' and part:
            self.collective(inner, _collective_of(inner), started=str(self.channel(inner)))
        elif part == 'AsyncCollectiveDone' or kind == 'async-done' and part:
            self.wait('links', str(self.channel(inner)))
        elif kind == 'call-start':
            self.started(op, self.program.called(op, 'to_apply') or self.program.inner(op))
        elif kind == 'call-done':
            self.wait('links', self.source(op))

        # Between slices, and collectives that stand by themselves.
        elif kind == 'recv':
            self.between_slices(op)
        elif kind == 'recv-done':
            self.wait('network', self.source(op))
        elif kind in ('send', 'send-done', 'async-update', 'async-done'):
            pass
        elif kind.endswith('-start') and kind.removesuffix('-start') in hlo.COLLECTIVES:
            self.collective(self.computation, op, started=op.name)
        elif kind.endswith('-done') and kind.removesuffix('-done') in hlo.COLLECTIVES:
            self.wait('links', self.source(op))
        elif kind in hlo.COLLECTIVES:
            self.collective(self.computation, op)

        # Copies: of a copy the shapes are (to, from, context), of a slice (from, to, context).
        elif kind in ('copy-start', 'slice-start'):
            target = op.shapes[0 if kind == 'copy-start' else -2]
            self.estimate.bytes += target.padded
            self.queues['memory'].append(_Started(op.name, target.padded))
        elif kind in ('copy-done', 'slice-done'):
            self.wait('memory', self.source(op))

        elif kind not in hlo.FREE:
            self.compute(op, inner)

    def branches(self, op: hlo.Op) -> list[hlo.Computation]:
        """Returns the computations of which a conditional runs one."""
        listed = re.search(r'branch_computations=\{([^}]*)\}', op.rest)
        names = re.findall(r'%([\w.\-]+)', listed[1]) if listed else []
        names = names or [op.attribute('true_computation'), op.attribute('false_computation')]
        return [self.program.computations[name] for name in names]

    def compute(self, op: hlo.Op, inner) -> None:
        """Lets an operation take the larger of its matrix-unit and its memory time."""
        cycles = op.cycles / self.chip.clock  # the compiler's own estimate, in seconds

        # FLOPs, seconds of the matrix unit and bytes; a kernel has its vector unit's time beside.
        work = None
        if op.target == 'tpu_custom_call':
            work = hlo.kernel(self.program, self.computation, op)
            self.estimate.kernels[re.sub(r'[.\d]+$', '', op.name)] += 1
            self.estimate.unknown_kernels += work is None
        if work is not None:
            flops = work.flops
            matrix = work.wide_flops(self.chip.unit) / self.chip.matrix
            matrix += work.vector / self.chip.vector
            moved = hlo.kernel_bytes(self.computation, op, work)
            self.estimate.kernel_flops += flops
        else:
            flops = hlo.flops(self.program, self.computation, op)
            matrix = max(flops / self.chip.matrix, cycles) if flops else 0.0
            moved = hlo.moved(self.program, self.computation, op)

        self.estimate.flops += flops
        self.estimate.bytes += moved
        memory = moved / self.chip.memory
        seconds = max(matrix, memory)
        if work is not None:
            self.estimate.kernel_seconds += seconds
        self.estimate.vector += max(0.0, cycles - seconds)

        # A reduction that XLA fused with the slice that follows it.
        if inner is not None and _has_whole_collective(inner):
            self.collective(inner, _collective_of(inner), scattered=True)
        if seconds:
            self.advance(seconds, moved, 'matrix unit' if matrix >= memory else 'memory')

    def started(self, op: hlo.Op, inner: hlo.Computation) -> None:
        """Starts a computation that goes on beside what follows.

        Its collectives go on; other work is counted as if it were waited for.
        """
        collectives = [o for o in inner.ops if o.kind in hlo.COLLECTIVES]
        for i, collective in enumerate(collectives):
            last = i == len(collectives) - 1
            self.collective(inner, collective, started=op.name if last else f'{op.name} {i}')
        if not collectives:
            self.nested(self.replay.run(inner), 1)

    def loop(self, op: hlo.Op) -> None:
        """Counts a loop's body as often as it runs."""
        trips = trips_of(self.program, self.computation, op)
        self.estimate.loops.append((op.op_name or op.name, trips.count, trips.how))
        self.nested(self.replay.run(self.program.called(op, 'body')), trips.count)

    def nested(self, inner: Estimate, times: int) -> None:
        """Runs another computation so many times; what is under way goes on beside it."""
        self.estimate.add(inner, times)
        self.estimate.seconds += times * inner.seconds
        self.serve('links', times * (inner.seconds - inner.bounds['links']))
        self.serve('network', times * inner.seconds)
        self.serve('memory', times * max(0.0, inner.seconds * self.chip.memory - inner.bytes))

    def collective(
        self, computation: hlo.Computation, op: hlo.Op, started: str = '', scattered: bool = False
    ) -> None:
        """Puts a collective on the links; waits for it unless it is `started` under a name."""
        kind = 'reduce-scatter' if scattered else op.kind.removesuffix('-start')
        sent, seconds = link_time(computation, op, kind, self.chip)
        moved = self.estimate.collectives.setdefault(kind, Moved())
        moved.add(Moved(1, sent, seconds))
        if started:
            self.queues['links'].append(_Started(started, seconds, kind))
        else:
            self.share_links(seconds, kind)

    def share_links(self, seconds: float, kind: str) -> None:
        """Waits for a collective that halves the links with what is under way on them."""
        under_way = sum(started.left for started in self.queues['links'])
        shared = min(seconds, under_way)
        self.serve('links', shared)
        seconds += shared
        self.estimate.seconds += seconds
        self.estimate.bounds['links'] += seconds
        self.estimate.collectives[kind].exposed += seconds
        self.serve('network', seconds)
        self.serve('memory', seconds * self.chip.memory)

    def between_slices(self, op: hlo.Op) -> None:
        """Counts what goes between slices.

        XLA sends it to the host's runtime, which reduces it there.
        """
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', op.rest)
        what = transfer[1].lower().replace('_', '-') if transfer else 'transfer'
        kind = f'{what} between slices'
        size = op.shapes[0].bytes
        n = self.replay.slices
        sent = size * (2 * (n - 1) / n if 'reduce' in kind else 1)
        seconds = sent / self.chip.network + _NETWORK_DELAY
        self.estimate.collectives.setdefault(kind, Moved()).add(Moved(1, sent, seconds))
        self.queues['network'].append(_Started(op.name, seconds, kind))

    def source(self, op: hlo.Op) -> str:
        """Returns the name of what started the operation that ends here."""
        return op.operands[0]

    def channel(self, inner: hlo.Computation) -> str:
        """Returns by what the two ends of a collective know each other."""
        op = _collective_of(inner)
        return op.attribute('channel_id') or op.name


def _collective_of(inner: hlo.Computation) -> hlo.Op:
    """Returns the first collective of a fusion that has one."""
    return next(op for op in inner.ops if op.kind in hlo.COLLECTIVES)


def _async_part(inner: hlo.Computation | None) -> str:
    """Returns which end of an asynchronous collective a fusion is, or '' where it is neither."""
    if inner is None or not any(o.kind in hlo.COLLECTIVES for o in inner.ops):
        return ''
    return next((o.target for o in inner.ops if o.target.startswith('AsyncCollective')), '')


def _has_whole_collective(inner: hlo.Computation) -> bool:
    """Returns True for a fusion with a collective that is no part of an asynchronous one.

    Those go on beside the fusion's own work.
    """
    if inner.name.startswith('async_collective_fusion'):
        return False
    collectives = [op for op in inner.ops if op.kind in hlo.COLLECTIVES]
    return bool(collectives) and 'chain_id' not in collectives[0].rest


def group_size(op: hlo.Op) -> int:
    """Returns how many devices a collective is over.

    There are three ways of writing them.
    """
    mesh = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', op.rest)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        n = 1
        for axis in re.findall(r"'([^']+)'", mesh[2]):
            n *= int(sizes[axis])
        return n
    listed = re.search(r'replica_groups=\{\{([\d,]*)\}', op.rest)
    if listed:
        return listed[1].count(',') + 1
    tiled = re.search(r'replica_groups=\[(\d+),(\d+)\]', op.rest)
    return int(tiled[2]) if tiled else 1


def link_time(
    computation: hlo.Computation, op: hlo.Op, kind: str, chip: Chip
) -> tuple[float, float]:
    """Returns (bytes that a device sends, seconds) of a collective over n devices.

    Rings: a gather sends n - 1 times its part, a scatter the same, a reduction twice that. How many
    links work at once is what the compiler says of its own algorithm (colors; both directions
    unless it says one); without a word, the two directions of one axis. Where all send to all, what
    crosses the middle of the slice decides.
    """
    n = group_size(op)
    operands = [computation.by_name[name] for name in op.operands if name in computation.by_name]
    own = sum(shape.bytes for operand in operands for shape in operand.shapes)
    if kind == 'collective-permute':
        return own, own / chip.link + _HOP
    if n == 1:
        return 0.0, 0.0

    if kind == 'all-gather':
        sent = own * (n - 1)
    elif kind == 'all-reduce':
        sent = 2 * own * (n - 1) / n
    else:
        sent = own * (n - 1) / n

    if kind.endswith('all-to-all'):
        return sent, _exchange_time(own, n, chip)

    # The links at work, and the hops one after another: around a ring, or across every axis.
    colors = re.search(r'colors:([1-9]\d*)', op.rest)
    if colors:
        links = int(colors[1]) * (1 if 'UniDirection' in op.rest else 2)
        hops = 2 * (n ** (1 / chip.dims)) * chip.dims
    else:
        links = 2
        hops = n - 1
    return sent, sent / (chip.link * links) + _HOP * hops


def _exchange_time(own: float, n: int, chip: Chip) -> float:
    """Returns the seconds in which each of n devices sends an equal part of `own` to each other.

    Half of the devices send half of it to the other half, through the links that cross the middle:
    those of one plane, and twice as many where the axis is a ring (cubes of 4, and 16 x 16).
    """
    side = n ** (1 / chip.dims)
    is_ring = side >= (4 if chip.dims == 3 else 16)
    links = side ** (chip.dims - 1) * (2 if is_ring else 1)
    crossing = n / 2 * own / 2
    return crossing / (links * chip.link) + _HOP * side * chip.dims
