"""Counts how often the loops of a compiled program run.

From what the compiler says, or what the loop's condition and counter tell.
"""

import dataclasses
import re

from launch.aot.hlo import Computation, Op, Program


@dataclasses.dataclass(frozen=True)
class Trips:
    """Holds how often a loop runs.

    `how`: known (the compiler says it), inferred (from the condition; `at most` where it can end
    before), unknown.
    """

    count: int
    how: str


def trips(program: Program, computation: Computation, op: Op) -> Trips:
    """Returns how often the loop `op` of a computation runs."""
    known = re.search(r'known_trip_count[^\d]*(\d+)', op.rest)
    if known:
        return Trips(int(known[1]), 'known')

    # The condition compares a counter with a bound; the entry gives its first value, the body its
    # step.
    condition = program.called(op, 'condition')
    body = program.called(op, 'body')
    test, early = _comparison(program, condition, condition.root, {})
    if test is None:
        return Trips(1, 'unknown')
    index, bound, direction = test
    first = _entry_value(computation, op, index)
    step = _step(body, index)
    if first is None or not step:
        return Trips(1, 'unknown')

    # How far the counter has to go, in the direction in which the condition lets it.
    reach = {
        'LT': bound - first,
        'LE': bound - first + 1,
        'GT': first - bound,
        'GE': first - bound + 1,
        'NE': abs(bound - first),
    }.get(direction)
    away = step < 0 and direction in ('LT', 'LE') or step > 0 and direction in ('GT', 'GE')
    if reach is None or away:
        return Trips(1, 'unknown')
    return Trips(max(0, -(-reach // abs(step))), 'inferred, at most' if early else 'inferred')


_COPIES = ('copy', 'bitcast', 'copy-done', 'copy-start')
_TURNED = {'LT': 'GT', 'GT': 'LT', 'LE': 'GE', 'GE': 'LE', 'NE': 'NE', 'EQ': 'EQ'}


def _comparison(program, inner: Computation, op: Op, given: dict):
    """Returns what ends a loop: (comparison or None, whether something else can end it).

    The comparison is (index of the loop's state, bound, direction).
    """
    if op.kind == 'fusion':
        nested = program.inner(op)
        bound = {
            parameter.name: (inner, inner.by_name[operand], given)
            for parameter, operand in zip(nested.parameters, op.operands)
        }
        return _comparison(program, nested, nested.root, bound)
    if op.kind == 'and':
        tests = [_comparison(program, inner, inner.by_name[o], given)[0] for o in op.operands]
        return next((test for test in tests if test), None), True
    if op.kind in ('bitcast', 'copy', 'convert'):
        return _comparison(program, inner, inner.by_name[op.operands[0]], given)
    if op.kind != 'compare':
        return None, False

    # The counter on one side, the bound on the other; turned where the bound comes first.
    sides = [_resolved(inner, inner.by_name[o], given) for o in op.operands]
    direction = re.search(r'direction=(\w+)', op.rest)[1]
    if sides[0] is None or sides[1] is None:
        return None, False
    (left, left_value), (right, right_value) = sides
    if (left, right) == ('index', 'constant'):
        return (left_value, right_value, direction), False
    if (left, right) == ('constant', 'index'):
        return (right_value, left_value, _TURNED[direction]), False
    return None, False


def _resolved(inner: Computation, op: Op, given: dict):
    """Returns ('constant', value), ('index', place in the loop's state), or None."""
    while op.kind in ('bitcast', 'copy', 'convert') and op.operands:
        op = inner.by_name[op.operands[0]]
    if op.kind == 'parameter' and op.name in given:
        outer, argument, further = given[op.name]
        return _resolved(outer, argument, further)
    if op.kind == 'constant':
        return ('constant', int(op.inside)) if re.fullmatch(r'-?\d+', op.inside) else None
    if op.kind == 'get-tuple-element':
        return 'index', int(op.attribute('index'))
    return None


def _entry_value(computation: Computation, op: Op, index: int) -> int | None:
    """Returns the constant with which a part of the loop's state begins, or None."""
    state = computation.operand(op, 0)
    if state is None or state.kind != 'tuple':
        return None
    value = computation.operand(state, index)
    while value is not None and value.kind in (*_COPIES, 'convert'):
        value = computation.operand(value, 0)
    if value is None or value.kind != 'constant' or not re.fullmatch(r'-?\d+', value.inside):
        return None
    return int(value.inside)


def _step(body: Computation, index: int) -> int | None:
    """Returns what a round of the loop adds to its counter."""
    value = body.operand(body.root, index) if body.root.kind == 'tuple' else None
    while value is not None and value.kind in _COPIES:
        value = body.operand(value, 0)
    if value is None or value.kind not in ('add', 'subtract'):
        return None
    sides = [_resolved(body, body.by_name[o], {}) for o in value.operands]
    constant = next((side[1] for side in sides if side and side[0] == 'constant'), None)
    if constant is None or ('index', index) not in sides:
        return None
    return constant if value.kind == 'add' else -constant
