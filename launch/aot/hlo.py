"""Reads the text of a compiled, scheduled program.

It finds the computations, and what each operation computes and moves. Nothing here knows of time:
`launch/aot/cost_model.py` does. Bytes are those of the main memory (HBM), with the padding of
tiles; arrays that the compiler keeps on the chip (`S(1)` in a layout) move nothing.
"""

import dataclasses
import functools
import math
import re

import numpy as np

from launch.aot import kernel_body

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
    """Describes an array as the compiler laid it out.

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
        """Elements."""
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
        """Bytes, without padding."""
        return self.size * self.width

    @functools.cached_property
    def padded(self) -> float:
        """Bytes in memory: the fastest dimensions are rounded up to the tile's."""
        dims = list(self.dims)
        if len(self.order) == len(self.dims):
            dims = [self.dims[i] for i in reversed(self.order)]
        tile = self.tile[-len(dims) :] if dims else ()
        for i, size in enumerate(reversed(tile)):
            dims[-1 - i] = -(-dims[-1 - i] // size) * size
        return math.prod(dims) * self.width

    @property
    def moved(self) -> float:
        """Bytes that reading or writing it takes from the main memory."""
        return self.padded if self.space == 0 else 0.0


@dataclasses.dataclass
class Op:
    """Holds one operation of the text.

    Attributes:
      shapes: of the result; a tuple's leaves.
      operands: their names.
      rest: attributes, as they stand.
      inside: what is between the brackets of the operation.
    """

    name: str
    kind: str
    shapes: list[Shape]
    operands: list[str]
    rest: str
    inside: str
    root: bool

    def attribute(self, name: str) -> str:
        """Returns the value of an attribute, or '' where there is none."""
        return self._match(rf'\b{name}=%?([\w.\-]+)')

    @functools.cached_property
    def op_name(self) -> str:
        """The place in the program that was traced."""
        return self._match(r'op_name="([^"]*)"')

    @functools.cached_property
    def cycles(self) -> float:
        """The compiler's own estimate of an operation on one core, or 0 where it gives none."""
        return float(self._match(r'"estimated_cycles":"(\d+)"') or 0)

    @property
    def target(self) -> str:
        """The function that a custom call calls."""
        return self._match(r'custom_call_target="([^"]*)"')

    def _match(self, pattern: str) -> str:
        match = re.search(pattern, self.rest)
        return match[1] if match else ''


@dataclasses.dataclass
class Computation:
    """Holds the operations of one computation, in the order of its schedule."""

    name: str
    ops: list[Op]

    @functools.cached_property
    def by_name(self) -> dict[str, Op]:
        """Its operations by their names."""
        return {op.name: op for op in self.ops}

    @functools.cached_property
    def users(self) -> dict[str, list[Op]]:
        """The operations that take each operation's result."""
        users: dict[str, list[Op]] = {}
        for op in self.ops:
            for operand in dict.fromkeys(op.operands):
                users.setdefault(operand, []).append(op)
        return users

    @property
    def root(self) -> Op:
        """The operation whose result is the computation's."""
        return next((op for op in self.ops if op.root), self.ops[-1])

    @functools.cached_property
    def parameters(self) -> list[Op]:
        """Its parameters, in the order of the arguments."""
        parameters = [op for op in self.ops if op.kind == 'parameter']
        return sorted(parameters, key=lambda op: int(op.inside))

    def operand(self, op: Op, index: int) -> Op | None:
        """Returns the operation that gives an operand, or None where there is none here."""
        return self.by_name.get(op.operands[index]) if index < len(op.operands) else None


@dataclasses.dataclass
class Program:
    """Holds the computations of a program by their names."""

    computations: dict[str, Computation]
    entry: Computation

    @functools.cached_property
    def loops(self) -> dict[str, tuple[Computation, Op]]:
        """The loop that runs a computation, and where it stands, by the computation's name."""
        return {
            op.attribute('body'): (computation, op)
            for computation in self.computations.values()
            for op in computation.ops
            if op.kind == 'while'
        }

    def called(self, op: Op, attribute: str = 'calls') -> Computation | None:
        """Returns the computation that an attribute of an operation names."""
        return self.computations.get(op.attribute(attribute))

    def inner(self, op: Op) -> Computation | None:
        """Returns the computation inside a fusion or an asynchronous operation."""
        return self.called(op) or self.called(op, 'called_computation')


def shapes(text: str) -> list[Shape]:
    """Returns the arrays of a type, a tuple's leaves in order."""
    arrays = []
    for dtype, dims, layout in _SHAPE.findall(text):
        order, _, rest = layout.partition(':')
        tile = re.match(r'T\(([\d,]+)\)', rest)
        space = re.search(r'S\((\d+)\)', rest)
        arrays.append(
            Shape(
                dtype,
                dims=tuple(int(size.lstrip('<=')) for size in dims.split(',') if size),
                order=tuple(int(axis) for axis in order.split(',') if axis.isdigit()),
                tile=tuple(int(size) for size in tile[1].split(',')) if tile else (),
                space=int(space[1]) if space else 0,
            )
        )
    return arrays


def _balanced(text: str, start: int) -> int:
    """Returns the index after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == '(') - (text[i] == ')')
        if not depth:
            return i + 1
    return len(text)


def _operation(line: str) -> Op | None:
    """Returns the operation of a line `name = type kind(operands), attributes`."""
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
        name=head[2],
        kind=kind[1],
        shapes=shapes(line[start:end]),
        operands=re.findall(r'%([\w.\-]+)', inside),
        rest=line[closed:],
        inside=inside,
        root=bool(head[1]),
    )


def parse(text: str) -> Program:
    """Parses the text of `compiled.as_text()`.

    Operations whose text goes over several lines are put together first.
    """
    computations = {}
    entry = None
    current = None
    pending = ''

    def flush() -> None:
        if pending and current is not None:
            op = _operation(_COMMENT.sub('', pending))
            if op:
                current.ops.append(op)

    for line in text.splitlines():
        head = None if line.startswith(' ') else _HEAD.match(line)
        if head or line.rstrip() == '}' or _NAME.match(line):
            flush()
            pending = ''

        # A new computation, a new operation, or more of the one before.
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
        axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', op.rest)[1]
        contracted = math.prod(lhs[int(axis)] for axis in axes.split(',') if axis)
        return 2.0 * op.shapes[0].size * contracted
    if op.kind == 'convolution':
        return _convolution(computation, op)
    if op.kind == 'fusion' or op.kind.startswith('async-'):
        inner = program.inner(op)
        if inner and op.kind in ('fusion', 'async-start'):
            return sum(flops(program, inner, o) for o in inner.ops)
    return 0.0


def _convolution(computation: Computation, op: Op) -> float:
    """Returns the FLOPs of a convolution, as which TPU programs write matmuls too."""
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', op.rest)
    lhs_labels, rhs_labels, out_labels = labels.groups()
    lhs = computation.operand(op, 0).shapes[0].dims
    rhs = computation.operand(op, 1).shapes[0].dims
    out = op.shapes[0].dims
    batch = out[out_labels.index('b')]
    features = out[out_labels.index('f')]
    flops = 2.0 * batch * features * rhs[rhs_labels.index('i')]

    # Along each axis of the window, what meets an element.
    window = re.search(r'window=\{([^}]*)\}', op.rest)
    fields = dict(field.split('=', 1) for field in window[1].split()) if window else {}
    for d in range(sum(label.isdigit() for label in out_labels)):
        of_axis = {name: value.split('x')[d] for name, value in fields.items()}
        flops *= _pairs(
            size=lhs[lhs_labels.index(str(d))],
            kernel=rhs[rhs_labels.index(str(d))],
            out=out[out_labels.index(str(d))],
            low=int(of_axis.get('pad', '0_0').split('_')[0]),
            stride=int(of_axis.get('stride', 1)),
            lhs_dilate=int(of_axis.get('lhs_dilate', 1)),
            rhs_dilate=int(of_axis.get('rhs_dilate', 1)),
        )
    return flops


@functools.cache
def _pairs(
    size: int, kernel: int, out: int, low: int, stride: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """Counts pairs of an output's and a window's place that meet an element."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * rhs_dilate - low
    inside = (place >= 0) & (place <= (size - 1) * lhs_dilate)
    return int((inside & (place % lhs_dilate == 0)).sum())


def constant(
    program: Program, computation: Computation, name: str
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns (sizes, values in row order) of an array of integers; None: it is no constant.

    It is followed through copies, and out of the loops that carry it along.
    """
    op = computation.by_name.get(name)
    if op is None:
        return None
    if op.kind == 'constant':
        if '...' in op.inside:
            return None
        values = tuple(int(number) for number in re.findall(r'-?\d+', op.inside))
        return (op.shapes[0].dims, values) if len(values) == op.shapes[0].size else None
    if op.kind in ('copy', 'copy-start', 'copy-done', 'bitcast', 'reshape'):
        source = constant(program, computation, op.operands[0])
        return None if source is None else (op.shapes[0].dims, source[1])
    if op.kind == 'broadcast':
        source = constant(program, computation, op.operands[0])
        if source is None or len(source[1]) != 1:
            return None
        return op.shapes[0].dims, source[1] * op.shapes[0].size
    if op.kind != 'get-tuple-element':
        return None
    source_op = computation.by_name[op.operands[0]]
    return _constant_part(program, computation, source_op, int(op.attribute('index')))


def _constant_part(program: Program, computation: Computation, op: Op, index: int):
    """Returns a part of a tuple as `constant` does; a loop's where it carries it unchanged."""
    if op.kind == 'tuple':
        return constant(program, computation, op.operands[index])

    # What stands inside a loop is what goes into it.
    if op.kind == 'parameter' and computation.name in program.loops:
        outer, loop = program.loops[computation.name]
        return _constant_part(program, outer, loop, index)
    if op.kind != 'while':
        return None
    body = program.called(op, 'body')
    state = computation.operand(op, 0)
    if body is None or body.root.kind != 'tuple' or state is None:
        return None
    carried = body.by_name[body.root.operands[index]]
    if carried.kind != 'get-tuple-element' or carried.attribute('index') != str(index):
        return None
    return _constant_part(program, computation, state, index)


def kernel(program: Program, computation: Computation, op: Op) -> kernel_body.Work | None:
    """Returns the work of a Pallas kernel, from its lowered body; None where it has none."""
    body = re.search(r'"body":"([^"]+)"', op.rest)
    if not body:
        return None
    constants = []
    for name in op.operands:
        source = computation.by_name.get(name)
        is_whole = source is not None and source.shapes and source.shapes[0].dtype[0] in 'su'
        constants.append(constant(program, computation, name) if is_whole else None)
    try:
        return kernel_body.count(body[1], tuple(constants), len(op.shapes))
    except kernel_body.BodyError:
        return None


def kernel_bytes(computation: Computation, op: Op, work: kernel_body.Work) -> float:
    """Returns bytes that a kernel reads from and writes to the main memory."""
    sources = [computation.by_name.get(name) for name in op.operands]
    inputs = len(work.read) - len(op.shapes)
    arrays = [source.shapes[0] if source else None for source in sources[len(sources) - inputs :]]
    total = work.copied
    for shape, read, written in zip([*arrays, *op.shapes], work.read, work.written):
        if shape is None or shape.space == 0:
            total += read + written
    return total


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

    # Any other operation reads all of its operands and writes all of its result.
    inner = program.inner(op) if op.kind == 'fusion' else None
    if inner is None:
        operands = [source for source in inputs if source is not None]
        read = sum(shape.moved for source in operands for shape in source.shapes)
        return read + sum(shape.moved for shape in op.shapes)

    # A fusion reads of each operand what its operations take, and writes what they change.
    read = 0.0
    for source, parameter in zip(inputs, inner.parameters):
        whole = sum(shape.moved for shape in source.shapes) if source is not None else 0.0
        if whole:
            read += min(_read(program, inner, parameter), whole)
    leaves = _written(program, inner, inner.root, len(op.shapes))
    return read + sum(size for size, shape in zip(leaves, op.shapes) if shape.space == 0)


def _is_async(op: Op) -> bool:
    """Returns True for an end of a collective that goes on beside its fusion."""
    return op.kind == 'custom-call' and op.target.startswith('AsyncCollective')


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
        elif user.kind == 'dynamic-update-slice' and first or user.kind in COLLECTIVES:
            continue
        elif user.kind == 'tuple' and user.root or _is_async(user):
            continue
        elif user.kind == 'fusion' and program.inner(user):
            nested = program.inner(user)
            # Another name for the same array.
            if nested.root.kind in ('bitcast', 'reshape') and len(nested.parameters) == 1:
                total += _read(program, inner, user)
            else:
                for parameter, operand in zip(nested.parameters, user.operands):
                    if operand == source.name:
                        total += _read(program, nested, parameter)
        else:
            return math.inf
    return total


def _written(program: Program, inner: Computation, root: Op, count: int) -> list[float]:
    """Returns bytes written for each leaf of a fusion's result."""
    leaves = [inner.by_name[o] for o in root.operands] if root.kind == 'tuple' else [root]
    if root.kind == 'tuple' and len(leaves) != count:
        return [s.padded for s in root.shapes]
    written = []
    for leaf in leaves:
        while leaf.kind == 'bitcast' and leaf.operands[0] in inner.by_name:
            leaf = inner.by_name[leaf.operands[0]]
        if leaf.kind == 'parameter' or leaf.kind in COLLECTIVES or _is_async(leaf):
            written += [0.0] * max(1, count if len(leaves) == 1 else 1)
        elif leaf.kind == 'dynamic-update-slice':
            written.append(inner.operand(leaf, 1).shapes[0].padded)
        elif leaf.kind == 'fusion' and program.inner(leaf):
            nested = program.inner(leaf)
            written += _written(program, nested, nested.root, len(leaf.shapes))
        else:
            written += [shape.padded for shape in leaf.shapes]
    return written
