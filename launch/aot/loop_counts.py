"""Counts how often the loops of a compiled program run.

From what the compiler says, or what the loop's condition and counter tell.
"""

import dataclasses
import re

from launch.aot.hlo import Computation, Op, Program


@dataclasses.dataclass(frozen=True)
class Trips:
    """How often a loop runs. `how`: known (the compiler says it), inferred (from the condition; `at
    most` where it can end before), unknown."""

    count: int
    how: str


def trips(program: Program, computation: Computation, op: Op) -> Trips:
    known = re.search(r'known_trip_count[^\d]*(\d+)', op.rest)
    if known:
        return Trips(int(known[1]), 'known')
    condition, body = program.called(op, 'condition'), program.called(op, 'body')
    test, early = _comparison(program, condition, condition.root, {})
    if test is None:
        return Trips(1, 'unknown')
    index, bound, direction = test
    first = _entry_value(computation, op, index)
    step = _step(body, index)
    if first is None or not step:
        return Trips(1, 'unknown')
    reach = {
        'LT': bound - first,
        'LE': bound - first + 1,
        'GT': first - bound,
        'GE': first - bound + 1,
        'NE': abs(bound - first),
    }.get(direction)
    if (
        reach is None
        or (direction in ('LT', 'LE'))
        and step < 0
        or (direction in ('GT', 'GE'))
        and step > 0
    ):
        return Trips(1, 'unknown')
    return Trips(max(0, -(-reach // abs(step))), 'inferred, at most' if early else 'inferred')


_TURNED = {'LT': 'GT', 'GT': 'LT', 'LE': 'GE', 'GE': 'LE', 'NE': 'NE', 'EQ': 'EQ'}


def _comparison(program, inner: Computation, op: Op, given: dict):
    """Returns what ends a loop: (comparison or None, whether something else can end it).

    The comparison is (index of the loop's state, bound, direction).
    """
    if op.kind == 'fusion':
        nested = program.inner(op)
        bound = {p.name: inner.by_name[o] for p, o in zip(nested.parameters, op.operands)}
        return _comparison(
            program, nested, nested.root, {n: (inner, o, given) for n, o in bound.items()}
        )
    if op.kind == 'and':
        found = [_comparison(program, inner, inner.by_name[o], given)[0] for o in op.operands]
        return next((f for f in found if f), None), True
    if op.kind in ('bitcast', 'copy', 'convert'):
        return _comparison(program, inner, inner.by_name[op.operands[0]], given)
    if op.kind != 'compare':
        return None, False
    sides = [_resolved(inner, inner.by_name[o], given) for o in op.operands]
    direction = re.search(r'direction=(\w+)', op.rest)[1]
    if sides[0] and sides[1] and sides[0][0] == 'index' and sides[1][0] == 'constant':
        return (sides[0][1], sides[1][1], direction), False
    if sides[0] and sides[1] and sides[1][0] == 'index' and sides[0][0] == 'constant':
        return (sides[1][1], sides[0][1], _TURNED[direction]), False
    return None, False


def _resolved(inner: Computation, op: Op, given: dict):
    """Returns ('constant', value), ('index', place in the loop's state), or None."""
    while op.kind in ('bitcast', 'copy', 'convert') and op.operands:
        op = inner.by_name[op.operands[0]]
    if op.kind == 'parameter' and op.name in given:
        outer, there, further = given[op.name]
        return _resolved(outer, there, further)
    if op.kind == 'constant':
        return ('constant', int(op.inside)) if re.fullmatch(r'-?\d+', op.inside) else None
    if op.kind == 'get-tuple-element':
        return 'index', int(op.attribute('index'))
    return None


def _entry_value(computation: Computation, op: Op, index: int) -> int | None:
    state = computation.operand(op, 0)
    value = (
        computation.operand(state, index) if state is not None and state.kind == 'tuple' else None
    )
    while value is not None and value.kind in (
        'copy',
        'bitcast',
        'convert',
        'copy-done',
        'copy-start',
    ):
        value = computation.operand(value, 0)
    return (
        int(value.inside)
        if value is not None and value.kind == 'constant' and re.fullmatch(r'-?\d+', value.inside)
        else None
    )


def _step(body: Computation, index: int) -> int | None:
    """Returns what a round of the loop adds to its counter."""
    value = body.operand(body.root, index) if body.root.kind == 'tuple' else None
    while value is not None and value.kind in ('copy', 'bitcast', 'copy-done', 'copy-start'):
        value = body.operand(value, 0)
    if value is None or value.kind not in ('add', 'subtract'):
        return None
    sides = [_resolved(body, body.by_name[o], {}) for o in value.operands]
    constant = next((s[1] for s in sides if s and s[0] == 'constant'), None)
    if constant is None or ('index', index) not in sides:
        return None
    return constant if value.kind == 'add' else -constant
