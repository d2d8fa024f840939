"""Reads the text of a compiled, scheduled program.

Its computations, and what each operation computes and moves. Nothing here knows of time:
`launch/aot/cost_model.py` does. Bytes are those of the main memory (HBM), with the padding of
tiles; arrays that the compiler keeps on the chip (`S(1)` in a layout) move nothing.
"""

import dataclasses
import functools
import math
import re

import numpy as np

_BITS = {'pred': 8, 'token': 0, 'opaque': 0, 's4': 4, 'u4': 4, 's2': 2, 'u2': 2}
_COMMENT = re.compile(r'/\*.*?\*/')
_SHAPE = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_NAME = re.compile(r'^\s+(ROOT )?%([\w.\-]+) = ')
COLLECTIVES = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
    'ragged-all-to-all',
    'collective-broadcast',
)
FREE = {
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'after-all',
    'partition-id',
    'replica-id',
    'opt-barrier',
    'domain',
    'add-dependency',
    'iota',
}
_FREE_CALLS = {
    'AssumeGatherIndicesInBound',
    'AllocateBuffer',
    'ConcatBitcast',
    'SliceId',
    'Sharding',
    'ZeroCrop',
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array as the compiler laid it out.

    Attributes:
      order: dimensions, the fastest first.
      space: 0 is the main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def width(self) -> float:
        """Bytes of an element."""
        bits = _BITS.get(self.dtype)
        if bits is None:  # as its name says: f32, bf16, f8e4m3fn
            bits = int(re.sub(r'\D.*$', '', self.dtype.lstrip('bfcsuel')) or 8)
        return bits / 8

    @property
    def bytes(self) -> float:
        """Without padding."""
        return self.size * self.width

    @functools.cached_property
    def padded(self) -> float:
        """Bytes in memory: the fastest dimensions are rounded up to the tile's."""
        dims = list(self.dims)
        if len(self.order) == len(self.dims):
            dims = [self.dims[i] for i in reversed(self.order)]
        for i, t in enumerate(reversed(self.tile[-len(dims) :] if dims else ())):
            dims[-1 - i] = -(-dims[-1 - i] // t) * t
        return math.prod(dims) * self.width

    @property
    def moved(self) -> float:
        """Bytes that reading or writing it takes from the main memory."""
        return self.padded if self.space == 0 else 0.0


@dataclasses.dataclass
class Op:
    name: str
    kind: str
    shapes: list[Shape]  # of the result; a tuple's leaves
    operands: list[str]
    rest: str  # attributes, as they stand
    inside: str  # between the brackets of the operation
    root: bool

    def attribute(self, name: str) -> str:
        found = re.search(rf'\b{name}=%?([\w.\-]+)', self.rest)
        return found[1] if found else ''

    @functools.cached_property
    def op_name(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ''

    @functools.cached_property
    def cycles(self) -> float:
        """The compiler's own estimate of an operation on one core, or 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return float(found[1]) if found else 0.0

    @property
    def target(self) -> str:
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if found else ''


@dataclasses.dataclass
class Computation:
    name: str
    ops: list[Op]

    @functools.cached_property
    def by_name(self) -> dict[str, Op]:
        return {op.name: op for op in self.ops}

    @functools.cached_property
    def users(self) -> dict[str, list[Op]]:
        found: dict[str, list[Op]] = {}
        for op in self.ops:
            for operand in dict.fromkeys(op.operands):
                found.setdefault(operand, []).append(op)
        return found

    @property
    def root(self) -> Op:
        return next((op for op in self.ops if op.root), self.ops[-1])

    @functools.cached_property
    def parameters(self) -> list[Op]:
        return sorted(
            (op for op in self.ops if op.kind == 'parameter'), key=lambda op: int(op.inside)
        )

    def operand(self, op: Op, index: int) -> Op | None:
        return self.by_name.get(op.operands[index]) if index < len(op.operands) else None


@dataclasses.dataclass
class Program:
    computations: dict[str, Computation]
    entry: Computation

    def called(self, op: Op, attribute: str = 'calls') -> Computation | None:
        return self.computations.get(op.attribute(attribute))

    def inner(self, op: Op) -> Computation | None:
        """Returns the computation inside a fusion or an asynchronous operation."""
        return self.called(op) or self.called(op, 'called_computation')


def shapes(text: str) -> list[Shape]:
    """Returns the arrays of a type, a tuple's leaves in order."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        order, _, rest = layout.partition(':')
        tile = re.match(r'T\(([\d,]+)\)', rest)
        space = re.search(r'S\((\d+)\)', rest)
        found.append(
            Shape(
                dtype,
                tuple(int(d.lstrip('<=')) for d in dims.split(',') if d),
                tuple(int(i) for i in order.split(',') if i.isdigit()),
                tuple(int(t) for t in tile[1].split(',')) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return found


def _balanced(text: str, start: int) -> int:
    """Returns the index after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == '(') - (text[i] == ')')
        if not depth:
            return i + 1
    return len(text)


def _operation(line: str) -> Op | None:
    head = _NAME.match(line)
    if not head:
        return None
    start = head.end()
    end = _balanced(line, start) if line[start] == '(' else line.index(' ', start)
    kind = re.match(r'\s*([\w\-]+)\(', line[end:])
    if not kind:
        return None
    opened = end + kind.end() - 1
    closed = _balanced(line, opened)
    inside = line[opened + 1 : closed - 1]
    return Op(
        head[2],
        kind[1],
        shapes(line[start:end]),
        re.findall(r'%([\w.\-]+)', inside),
        line[closed:],
        inside,
        bool(head[1]),
    )


def parse(text: str) -> Program:
    """Parses the text of `compiled.as_text()`.

    Operations whose text goes over several lines are put together first.
    """
    computations = {}
    entry = None
    current = None
    pending = ''

    def flush():
        if pending and current is not None:
            op = _operation(_COMMENT.sub('', pending))
            if op:
                current.ops.append(op)

    for line in text.splitlines():
        head = None if line.startswith(' ') else _HEAD.match(line)
        if head or line.startswith('}') or _NAME.match(line):
            flush()
            pending = ''
        if head:
            current = Computation(head[2], [])
            computations[current.name] = current
            entry = current if head[1] else entry
        elif _NAME.match(line):
            pending = line
        elif pending:
            pending += ' ' + line
    if entry is None:
        raise ValueError('no ENTRY computation: this is not the text of a compiled program')
    return Program(computations, entry)


# What an operation computes.


def flops(program: Program, computation: Computation, op: Op) -> float:
    """Returns the FLOPs of matrix multiplications, 2 a multiply-add.

    Inside fusions too, loops not counted. Windows beyond an array's edge count nothing.
    """
    if op.kind == 'dot':
        lhs = computation.operand(op, 0).shapes[0].dims
        contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', op.rest)[1]
        return 2.0 * op.shapes[0].size * math.prod(lhs[int(i)] for i in contracted.split(',') if i)
    if op.kind == 'convolution':
        return _convolution(computation, op)
    if op.kind == 'fusion' or op.kind.startswith('async-'):
        inner = program.inner(op)
        if inner and op.kind in ('fusion', 'async-start'):
            return sum(flops(program, inner, o) for o in inner.ops)
    return 0.0


def _convolution(computation: Computation, op: Op) -> float:
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', op.rest)
    window = re.search(r'window=\{([^}]*)\}', op.rest)
    fields = dict(f.split('=', 1) for f in window[1].split()) if window else {}
    lhs = computation.operand(op, 0).shapes[0].dims
    rhs = computation.operand(op, 1).shapes[0].dims
    out = op.shapes[0].dims
    result = 2.0 * out[labels[3].index('b')] * out[labels[3].index('f')] * rhs[labels[2].index('i')]
    for d in range(sum(c.isdigit() for c in labels[3])):
        of_axis = {name: value.split('x')[d] for name, value in fields.items()}
        low = int(of_axis.get('pad', '0_0').split('_')[0])
        result *= _pairs(
            lhs[labels[1].index(str(d))],
            rhs[labels[2].index(str(d))],
            out[labels[3].index(str(d))],
            low,
            int(of_axis.get('stride', 1)),
            int(of_axis.get('lhs_dilate', 1)),
            int(of_axis.get('rhs_dilate', 1)),
        )
    return result


@functools.cache
def _pairs(
    size: int, kernel: int, out: int, low: int, stride: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """Counts pairs of an output's and a window's place that meet an element."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * rhs_dilate - low
    return int(
        ((place >= 0) & (place <= (size - 1) * lhs_dilate) & (place % lhs_dilate == 0)).sum()
    )


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The work of a Pallas kernel.

    `logits`: elements of attention's square that it visits; 0 where it is no attention kernel.
    """

    flops: float
    wide_flops: float  # with head sizes rounded up to 128, as the matrix unit does
    logits: float
    known: bool


def kernel(computation: Computation, op: Op) -> Kernel:
    """Returns the work of a Pallas kernel.

    That of splash attention from its blocks (text: kernel_metadata), that of others from the cost
    estimate that their author gave.
    """
    given = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', op.rest)
    blocks = dict(re.findall(r'(block_\w+)\\+": (\d+)', op.rest))
    if 'splash' not in op.name + op.op_name or not blocks:
        found = float(given[1]) if given else 0.0
        return Kernel(found, found, 0.0, bool(given))
    operands = [computation.by_name[o].shapes[0] for o in op.operands]
    q, _, v = [s for s in operands if s.dtype in ('bf16', 'f32') and len(s.dims) >= 3][:3]
    grid = next((s for s in operands if s.dtype in ('s8', 's32', 's16')), None)
    part = ''
    if 'dkv' in op.name + op.op_name:
        part = '_dkv'
    elif '_dq' in op.name + op.op_name:
        part = '_dq'
    rows = int(blocks[f'block_q{part}'])
    columns = int(blocks[f'block_kv{part}'])

    # The blocks that it visits: fewer where there is a window.
    time = q.dims[-2]
    width = grid.dims[-1] if grid is not None and not part else time // columns
    visited = sum(min(-(-(i + 1) * rows // columns), width) for i in range(time // rows))
    logits = math.prod(q.dims[:-2]) * visited * rows * columns

    # Products with vectors of the size of queries, and with those of the size of values. The fused
    # backward has a part of dq for each block.
    also_dq = any(s.dims[-2:] == q.dims[-2:] and len(s.dims) > len(q.dims) for s in op.shapes)
    count = {'': (1, 1), '_dkv': (3, 2) if also_dq else (2, 2), '_dq': (2, 1)}[part]
    d, e = q.dims[-1], v.dims[-1]
    work = 2.0 * logits * (count[0] * d + count[1] * e)
    wide_d, wide_e = -(-d // 128) * 128, -(-e // 128) * 128
    wide_work = 2.0 * logits * (count[0] * wide_d + count[1] * wide_e)
    return Kernel(work, wide_work, logits, True)


# What an operation moves.


def moved(program: Program, computation: Computation, op: Op) -> float:
    """Returns bytes read from and written to the main memory.

    A slice taken or put in place inside a fusion moves the slice alone.
    """
    if op.kind in FREE or op.kind == 'custom-call' and op.target in _FREE_CALLS:
        return 0.0
    inputs = [computation.by_name.get(o) for o in op.operands]
    if op.kind in ('dynamic-slice', 'slice', 'gather'):
        return 2 * op.shapes[0].moved
    if op.kind == 'dynamic-update-slice':
        return 2 * inputs[1].shapes[0].moved
    inner = program.inner(op) if op.kind == 'fusion' else None
    if inner is None:
        return sum(s.moved for i in inputs if i is not None for s in i.shapes) + sum(
            s.moved for s in op.shapes
        )
    read = 0.0
    for source, parameter in zip(inputs, inner.parameters):
        if source is not None and source.shapes and sum(s.moved for s in source.shapes):
            read += min(_read(program, inner, parameter), sum(s.moved for s in source.shapes))
    return read + sum(
        w
        for w, s in zip(_written(program, inner, inner.root, len(op.shapes)), op.shapes)
        if s.space == 0
    )


def _read(program: Program, inner: Computation, source: Op) -> float:
    """Returns bytes of `source` that the computation reads; infinite: all of it.

    `source` is a parameter, or an alias of one.
    """
    total = 0.0 if source.name != inner.root.name else math.inf
    for user in inner.users.get(source.name, []):
        first = user.operands[0] == source.name
        if user.kind in ('bitcast', 'reshape'):
            total += _read(program, inner, user)
        elif user.kind in ('dynamic-slice', 'slice', 'gather') and first:
            total += user.shapes[0].padded
        elif (
            user.kind == 'dynamic-update-slice'
            and first
            or user.kind in COLLECTIVES
            or user.kind == 'tuple'
            and user.root
        ):
            total += 0.0
        elif user.kind == 'custom-call' and user.target.startswith('AsyncCollective'):
            total += 0.0
        elif user.kind == 'fusion' and program.inner(user):
            nested = program.inner(user)
            # Another name for the same array.
            if nested.root.kind in ('bitcast', 'reshape') and len(nested.parameters) == 1:
                total += _read(program, inner, user)
            else:
                total += sum(
                    _read(program, nested, nested.parameters[i])
                    for i, o in enumerate(user.operands)
                    if o == source.name
                )
        else:
            return math.inf
    return total


def _written(program: Program, inner: Computation, root: Op, count: int) -> list[float]:
    """Returns bytes written for each leaf of a fusion's result."""
    leaves = [inner.by_name[o] for o in root.operands] if root.kind == 'tuple' else [root]
    if root.kind == 'tuple' and len(leaves) != count:
        return [s.padded for s in root.shapes]
    found = []
    for leaf in leaves:
        while leaf.kind == 'bitcast' and leaf.operands[0] in inner.by_name:
            leaf = inner.by_name[leaf.operands[0]]
        if (
            leaf.kind == 'parameter'
            or leaf.kind in COLLECTIVES
            or leaf.kind == 'custom-call'
            and leaf.target.startswith('AsyncCollective')
        ):
            found += [0.0] * max(1, count if len(leaves) == 1 else 1)
        elif leaf.kind == 'dynamic-update-slice':
            found.append(inner.operand(leaf, 1).shapes[0].padded)
        elif leaf.kind == 'fusion' and program.inner(leaf):
            nested = program.inner(leaf)
            found += _written(program, nested, nested.root, len(leaf.shapes))
        else:
            found += [s.padded for s in leaf.shapes]
    return found
