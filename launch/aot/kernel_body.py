"""Counts what a Pallas kernel for TPUs computes and moves, from its lowered body.

A kernel is a custom call whose body is a program of its own, run once for each point of a grid
(Mosaic: MLIR bytecode in the call's configuration). Its scalars are computed here for all points of
the grid at once, with the arrays of scalars that it was given, so that branches and loops count as
often as they are taken: a tile that a mask skips costs nothing. What its author declares as cost is
not looked at.
"""

import base64
import collections
import dataclasses
import functools
import math
import re
from typing import Any

import numpy as np

# Vector operations for an element, where it is not one. Functions go through a unit of their own
# beside the four slots of arithmetic: what counts is the arithmetic around it. Set by hand.
_OPERATIONS = {
    'arith.divf': 5,
    'math.cos': 40,
    'math.erf': 20,
    'math.exp': 2,
    'math.log': 2,
    'math.log1p': 5,
    'math.powf': 8,
    'math.rsqrt': 2,
    'math.sin': 40,
    'math.sqrt': 4,
    'math.tanh': 2,
    'tpu.dynamic_gather': 4,
    'tpu.reciprocal': 2,
}
# Names for what lies in registers or in the chip's memory already, or is a matter of addresses.
_FREE = {
    'arith.constant',
    'tpu.concatenate',
    'tpu.load',
    'tpu.store',
    'tpu.strided_load',
    'tpu.strided_store',
    'tpu.vector_load',
    'tpu.vector_store',
    'vector.bitcast',
    'vector.extract',
    'vector.extract_strided_slice',
    'vector.load',
    'vector.shape_cast',
    'vector.store',
    'tpu.bitcast',
}
_LOOPS_AT_MOST = 4096  # rounds of a loop that are looked at one by one
_PASSES_FLOAT32 = 6  # bf16 products of which an exact one in float32 is made


class BodyError(ValueError):
    """Tells of a body that cannot be read."""


@dataclasses.dataclass
class Work:
    """Sums up what a kernel does on one device.

    Attributes:
      products: matrix products by (rows, contracted, columns, passes), passes being how often the
        matrix unit goes through one.
      vector: elementwise operations, one for an element of a vector.
      read, written: bytes for each of the kernel's arrays, those of scalars left out.
      copied: bytes of what the body copies itself.
      at_most: True where a branch depends on data: then all of them are counted.
    """

    products: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    vector: float = 0.0
    read: list[float] = dataclasses.field(default_factory=list)
    written: list[float] = dataclasses.field(default_factory=list)
    copied: float = 0.0
    at_most: bool = False

    @property
    def flops(self) -> float:
        """FLOPs of matrix products, 2 a multiply-add."""
        return sum(2.0 * m * k * n * count for (m, k, n, _), count in self.products.items())

    def wide_flops(self, unit: int) -> float:
        """Returns the FLOPs that keep a matrix unit of `unit` x `unit` as busy.

        What is contracted and the columns fill it in whole parts.
        """

        def padded(size):
            return -(-size // unit) * unit

        return sum(
            2.0 * m * padded(k) * padded(n) * passes * count
            for (m, k, n, passes), count in self.products.items()
        )


@functools.lru_cache(maxsize=64)
def count(body: str, constants: tuple = (), results: int = 0) -> Work:
    """Returns the work of a kernel.

    Args:
      body: in base 64, as the custom call holds it.
      constants: for each array that it is given, (shape, values in row order), or None where its
        values are not known; they count where they are scalars that steer it.
      results: of the kernel; the last of its windows are theirs.
    Raises:
      BodyError: a body that is none.
    """
    module = _parse(body)  # its operations live as long as it does
    functions = _functions(module)
    grids = [f for f in functions.values() if 'iteration_bounds' in f.attributes]
    main = grids[0] if grids else functions.get('main') or next(iter(functions.values()))

    # All points of the grid, the last axis fastest: coordinates [points] of each axis.
    bounds = [1]
    if grids:
        bounds = [int(size) for size in main.attributes['iteration_bounds']]
    axes = len(bounds) if grids else 0
    points = math.prod(bounds)
    coordinates = [axis.reshape(-1) for axis in np.indices(bounds, dtype=np.int64)][:axes]

    # The body's first arguments are those coordinates, then come the arrays of scalars.
    number = re.match(r'\d+', _text(main, 'scalar_prefetch'))
    arrays: list = [None] * int(number[0] if number else 0)
    for i, constant in enumerate(constants[: len(arrays)]):
        if constant is not None:
            sizes, values = constant
            arrays[i] = np.asarray(values).reshape(sizes)
    work = Work()
    run = _Run(work, points, functions)
    block = main.regions[0].blocks[0]
    run.enter(block, [*coordinates, *arrays])
    run.execute(block, np.ones(points, bool))
    _count_windows(work, main, functions, coordinates, arrays, results)
    return work


def _parse(body: str):
    """Returns a kernel's MLIR module."""
    from jax._src.lib import tpu
    from jaxlib.mlir import ir

    context = ir.Context()
    context.allow_unregistered_dialects = True
    tpu.register_dialect(context)
    context.load_all_available_dialects()
    try:
        with context:
            return ir.Module.parse(base64.b64decode(body))
    except Exception as error:  # MLIR's and base 64's own kinds
        raise BodyError(f'a kernel whose body cannot be read: {error}') from error


def _functions(module) -> dict[str, Any]:
    """Returns the functions of a kernel by their names."""
    functions = {}
    for operation in module.body.operations:
        if _kind(operation) == 'func.func':
            functions[_text(operation, 'sym_name').strip('"')] = operation.operation
    if not functions:
        raise BodyError('a kernel without a function')
    return functions


def _kind(operation) -> str:
    """Returns an operation's name, as before it was made stable for keeping."""
    return operation.operation.name.removeprefix('stable_mosaic.')


def _text(operation, name: str) -> str:
    """Returns an attribute as text, or '' where there is none."""
    attributes = operation.operation.attributes
    return str(attributes[name]) if name in attributes else ''


@functools.cache
def _parsed_type(text: str) -> tuple[str, tuple[int, ...], str]:
    """Returns (vector, memref or scalar; its sizes; its element type)."""
    found = re.match(r'(vector|memref)<((?:\d+x)*)([^,<>]+(?:<[^>]*>)?)', text)
    if not found:
        return 'scalar', (), text
    return found[1], tuple(int(size) for size in found[2].split('x') if size), found[3]


def _type(value) -> tuple[str, tuple[int, ...], str]:
    return _parsed_type(str(value.type))


def _itemsize(element: str) -> float:
    """Returns bytes of an element."""
    bits = re.search(r'(\d+)', element)
    return max(int(bits[1]), 8 if element == 'i1' else 1) / 8 if bits else 4.0


# --- Branches, loops and costs --------------------------------------------------------------------


class _Run:
    """Runs the scalars of a kernel for all points of its grid, and adds up what the rest costs.

    A scalar's value is an array of one number a point, or None where it depends on data.
    """

    def __init__(self, work: Work, points: int, functions: dict[str, Any]):
        self.work = work
        self.points = points
        self.functions = functions
        self.values: dict[Any, Any] = {}

    def enter(self, block, given: list) -> None:
        """Gives the arguments of a block their values."""
        for argument, value in zip(block.arguments, given):
            self.values[argument] = value

    def value(self, operand):
        """Returns the value of a scalar, or of an array of scalars; None: not known."""
        return self.values.get(operand)

    def execute(self, block, active: np.ndarray) -> list:
        """Runs a block at the points that are `active`; returns what it yields."""
        times = int(active.sum())
        for operation in block.operations:
            kind = _kind(operation)
            if kind in ('scf.yield', 'func.return', 'tpu.yield', 'scf.condition'):
                return [self.value(operand) for operand in operation.operation.operands]
            if not times:
                continue
            if kind == 'scf.if':
                self.branch(operation.operation, active)
            elif kind == 'scf.for':
                self.loop(operation.operation, active)
            elif kind == 'scf.while':
                self.loop_while(operation.operation, active)
            elif kind == 'func.call':
                name = _text(operation, 'callee').strip('@"')
                called = self.functions[name].regions[0].blocks[0]
                given = [self.value(operand) for operand in operation.operation.operands]
                self.enter(called, given)
                self.set_results(operation.operation, self.execute(called, active))
            elif len(operation.operation.regions) and kind not in _REDUCTIONS:
                for region in operation.operation.regions:
                    for inner in region.blocks:
                        self.execute(inner, active)
            else:
                self.step(operation.operation, kind, times)
        return []

    def set_results(self, operation, values: list) -> None:
        """Gives an operation's results their values; those that none has are not known."""
        for result, value in zip(operation.results, values):
            self.values[result] = value

    def branch(self, operation, active: np.ndarray) -> None:
        """Runs both sides of a branch, each where it is taken."""
        condition = self.value(operation.operands[0])
        sides = [region.blocks[0] for region in operation.regions if len(region.blocks)]
        if condition is None:
            self.work.at_most = True
            for side in sides:
                self.execute(side, active)
            self.set_results(operation, [None] * len(operation.results))
            return
        taken = np.broadcast_to(condition, (self.points,)).astype(bool)
        yields = [self.execute(sides[0], active & taken)]
        yields.append(self.execute(sides[1], active & ~taken) if len(sides) > 1 else [])
        for i, result in enumerate(operation.results):
            both = [y[i] if i < len(y) else None for y in yields]
            known = all(value is not None for value in both)
            self.values[result] = np.where(taken, *both) if known else None

    def loop(self, operation, active: np.ndarray) -> None:
        """Runs a counted loop, each point as often as its bounds say."""
        block = operation.regions[0].blocks[0]
        low, high, step = (self.value(operand) for operand in operation.operands[:3])
        carried = [self.value(operand) for operand in operation.operands[3:]]
        if low is None or high is None or step is None:
            self.work.at_most = True
            self.enter(block, [None] * len(block.arguments))
            self.execute(block, active)
            self.set_results(operation, [None] * len(operation.results))
            return
        rounds = np.broadcast_to(np.maximum(0, -(-(high - low) // step)), (self.points,))
        most = int(rounds[active].max()) if active.any() else 0
        if most > _LOOPS_AT_MOST:
            raise BodyError(f'a loop of {most} rounds in a kernel')
        for i in range(most):
            self.enter(block, [low + i * step, *carried])
            carried = self.execute(block, active & (i < rounds)) or carried
        self.set_results(operation, carried)

    def loop_while(self, operation, active: np.ndarray) -> None:
        """Runs a loop with a condition; one that depends on data counts once."""
        before, after = (region.blocks[0] for region in operation.regions)
        carried = [self.value(operand) for operand in operation.operands]
        for _ in range(_LOOPS_AT_MOST):
            self.enter(before, carried)
            condition, *carried = self.execute(before, active)
            self.enter(after, carried)
            if condition is None:
                self.work.at_most = True
                self.execute(after, active)
                carried = [None] * len(carried)
                break
            active = active & np.broadcast_to(condition, (self.points,)).astype(bool)
            if not active.any():
                break
            carried = self.execute(after, active)
        self.set_results(operation, carried)

    def step(self, operation, kind: str, times: int) -> None:
        """Computes a scalar, or adds the cost of anything else, taken `times` times."""
        if kind in ('tpu.matmul', 'vector.contract'):
            self.multiply(operation, times)
            return
        if kind.startswith('tpu.enqueue_dma') or kind == 'tpu.enqueue_indirect_dma':
            self.copy(operation, times)
            return
        results = [_type(result) for result in operation.results]
        if any(family == 'vector' for family, _, _ in results):
            self.work.vector += times * _vector_operations(operation, kind, results[0][1])
            return
        if len(results) == 1 and results[0][0] == 'scalar':
            self.values[operation.results[0]] = self.scalar(operation, kind)

    def multiply(self, operation, times: int) -> None:
        """Adds a matrix product."""
        left, right = (_type(operand) for operand in operation.operands[:2])
        out = _type(operation.results[0])[1]
        numbers = re.findall(r'\[([\d, ]*)\]', _text(operation, 'dimension_numbers'))
        axes = [int(axis) for axis in numbers[0].split(',') if axis.strip()] if numbers else []
        if not numbers:
            axes = [0 if 'true' in _text(operation, 'transpose_lhs') else len(left[1]) - 1]
        contracted = math.prod(left[1][axis] for axis in axes)
        columns = out[-1]
        rows = math.prod(out) // columns
        exact = left[2] == right[2] == 'f32' and 'fp32' in _text(operation, 'precision')
        passes = _PASSES_FLOAT32 if exact else 1
        self.work.products[rows, contracted, columns, passes] += times

    def copy(self, operation, times: int) -> None:
        """Adds a copy between the main memory and the chip's that the body starts itself."""
        arrays = [_type(operand) for operand in operation.operands]
        sizes = [
            math.prod(sizes) * _itemsize(element)
            for family, sizes, element in arrays
            if family == 'memref' and 'semaphore' not in element
        ]
        self.work.copied += times * min(sizes, default=0.0)

    def scalar(self, operation, kind: str):
        """Returns a scalar's value at each point, or None."""
        if kind == 'arith.constant':
            number = re.match(r'(-?\d+|true|false)\b', _text(operation, 'value'))
            is_float = 'f' in str(operation.results[0].type)
            if not number or is_float:
                return None
            return np.int64({'true': 1, 'false': 0}.get(number[1]) or _whole(number[1]))
        given = [self.value(operand) for operand in operation.operands]
        if kind == 'memref.load':
            return self.load(given)
        if any(value is None for value in given):
            return None
        if kind == 'arith.cmpi':
            predicate = int(re.match(r'\d+', _text(operation, 'predicate'))[0])
            return _COMPARISONS[predicate](*given).astype(np.int64)
        function = _SCALARS.get(kind)
        return function(*given) if function else None

    def load(self, given: list):
        """Returns what lies in an array of scalars at each point's own place."""
        array, *places = given
        if array is None or any(place is None for place in places):
            return None
        inside = [np.clip(place, 0, size - 1) for place, size in zip(places, array.shape)]
        return array[tuple(inside)].astype(np.int64)


_REDUCTIONS = ('tpu.reduce', 'vector.reduction')
_COMPARISONS = (
    np.equal,
    np.not_equal,
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
)


def _whole(text: str) -> int:
    return 0 if text in ('true', 'false') else int(text)


def _toward_zero(a, b):
    """Returns a quotient cut off towards zero; of no meaning where b is 0."""
    b = np.where(np.equal(b, 0), 1, b)
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _same(a):
    return a


_SCALARS = {
    'arith.addi': np.add,
    'arith.subi': np.subtract,
    'arith.muli': np.multiply,
    'arith.divsi': _toward_zero,
    'arith.divui': _toward_zero,
    'arith.remsi': lambda a, b: a - b * _toward_zero(a, b),
    'arith.remui': lambda a, b: a - b * _toward_zero(a, b),
    'arith.floordivsi': lambda a, b: a // np.where(np.equal(b, 0), 1, b),
    'arith.ceildivsi': lambda a, b: -(-a // np.where(np.equal(b, 0), 1, b)),
    'arith.minsi': np.minimum,
    'arith.minui': np.minimum,
    'arith.maxsi': np.maximum,
    'arith.maxui': np.maximum,
    'arith.andi': np.bitwise_and,
    'arith.ori': np.bitwise_or,
    'arith.xori': np.bitwise_xor,
    'arith.shli': np.left_shift,
    'arith.shrsi': np.right_shift,
    'arith.shrui': np.right_shift,
    'arith.select': np.where,
    'arith.extsi': _same,
    'arith.extui': _same,
    'arith.trunci': _same,
    'arith.index_cast': _same,
    'tpu.assume_multiple': _same,
}


def _vector_operations(operation, kind: str, sizes: tuple[int, ...]) -> float:
    """Returns vector operations of what makes a vector of these sizes."""
    if kind in _FREE:
        return 0.0
    if kind == 'vector.broadcast':
        # Along lanes it is an operation; of a scalar and along rows a matter of addresses.
        source = _type(operation.operands[0])[1]
        is_along_lanes = bool(source) and source[-1] != sizes[-1]
        return float(math.prod(sizes)) if is_along_lanes else 0.0
    operands = [_type(operand)[1] for operand in operation.operands]
    widest = max([math.prod(sizes), *(math.prod(each) for each in operands)])
    return float(widest * _OPERATIONS.get(kind, 1))


# --- What it moves --------------------------------------------------------------------------------


def _count_windows(
    work: Work,
    main,
    functions: dict[str, Any],
    coordinates: list[np.ndarray],
    arrays: list,
    results: int,
) -> None:
    """Adds the bytes of each array's blocks: one is moved where another follows it.

    Along the grid a block stays on the chip as long as its place in the array is the same.
    """
    if 'window_params' not in main.attributes:
        return
    windows = [str(window) for window in main.attributes['window_params']]
    first = len(coordinates) + len(arrays)
    arguments = list(main.regions[0].blocks[0].arguments)[first:]
    for i, (window, argument) in enumerate(zip(windows, arguments)):
        name = re.search(r'transform_indices = @([\w$.]+)', window)
        sizes = re.search(r'window_bounds = array<i64: ([\d, ]+)>', window)
        moved = 0.0
        if name and sizes:
            _, _, element = _type(argument)
            block_bytes = math.prod(int(n) for n in sizes[1].split(',')) * _itemsize(element)
            places = _places(functions[name[1]], functions, coordinates, arrays)
            moved = block_bytes * _moves(places)
        is_result = i >= len(windows) - results
        work.read.append(0.0 if is_result else moved)
        work.written.append(moved if is_result else 0.0)


def _places(function, functions, coordinates: list, arrays: list) -> list:
    """Returns the place of an array's block, one number a point for each of its axes."""
    points = len(coordinates[0]) if coordinates else 1
    run = _Run(Work(), points, functions)
    block = function.regions[0].blocks[0]
    run.enter(block, [*coordinates, *arrays])
    places = run.execute(block, np.ones(points, bool))
    every = np.arange(points)  # not known: another block at each point
    return [np.broadcast_to(every if p is None else p, (points,)) for p in places]


def _moves(places: list[np.ndarray]) -> int:
    """Counts the points at which a block is another than at the point before."""
    if not places:
        return 1
    changes = np.zeros(len(places[0]), bool)
    changes[0] = True
    for place in places:
        changes[1:] |= place[1:] != place[:-1]
    return int(changes.sum())
