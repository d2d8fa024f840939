"""The registry of algorithmic tasks.

A name is a task, or a task with some of its parameters set, as the papers name it.
"""

from data.records import DataError, did_you_mean
from data.tasks.addition import Addition
from data.tasks.arithmetic import Lego, Parity, Polynomial, Summation
from data.tasks.base import Example, Task, TaskBatches
from data.tasks.chomsky import (
    BinaryAddition,
    BinaryMultiplication,
    BucketSort,
    ComputeSqrt,
    CycleNavigation,
    DuplicateString,
    EvenPairs,
    MissingDuplicateString,
    ModularArithmetic,
    ModularArithmeticBrackets,
    OddsFirst,
    ParityCheck,
    ReverseString,
    SolveEquation,
    StackManipulation,
)
from data.tasks.grammars import Pcfg, Scan
from data.tasks.memory import (
    Counting,
    FlipFlop,
    IndirectIndexing,
    InductionHead,
    MultiQueryRecall,
    Passkey,
    SelectiveCopy,
)
from data.tasks.sequences import Copy, Reverse, Sort

REGISTRY: dict[str, tuple[type[Task], dict]] = {
    'copy': (Copy, {}),
    'copy_twice': (Copy, dict(twice=True)),
    'copy_same': (Copy, dict(kind='same')),
    'copy_same_twice': (Copy, dict(kind='same', twice=True)),
    'copy_replaced': (Copy, dict(kind='replaced')),
    'reverse': (Reverse, {}),
    'reverse_twice': (Reverse, dict(then='reversed')),
    'reverse_copy': (Reverse, dict(then='copied')),
    'sort': (Sort, {}),
    'sort_digits': (Sort, dict(digits=True)),
    'addition': (Addition, {}),
    'addition_reversed': (Addition, dict(form='reversed', lengths='coupling')),
    'addition_all_reversed': (Addition, dict(form='all_reversed')),
    'addition_scratchpad': (Addition, dict(form='scratchpad')),
    'addition_hints': (Addition, dict(form='reversed', hints=True, lengths='coupling')),
    'summation': (Summation, {}),
    'polynomial': (Polynomial, {}),
    'parity': (Parity, {}),
    'lego': (Lego, {}),
    'lego_permuted': (Lego, dict(permuted=True)),
    'scan': (Scan, {}),
    'pcfg': (Pcfg, {}),
    'flip_flop': (FlipFlop, {}),
    'selective_copy': (SelectiveCopy, {}),
    'induction_head': (InductionHead, {}),
    'multi_query_recall': (MultiQueryRecall, {}),
    'indirect_indexing': (IndirectIndexing, {}),
    'passkey': (Passkey, {}),
    'counting': (Counting, {}),
    'even_pairs': (EvenPairs, {}),
    'modular_arithmetic': (ModularArithmetic, {}),
    'parity_check': (ParityCheck, {}),
    'cycle_navigation': (CycleNavigation, {}),
    'stack_manipulation': (StackManipulation, {}),
    'reverse_string': (ReverseString, {}),
    'modular_arithmetic_brackets': (ModularArithmeticBrackets, {}),
    'solve_equation': (SolveEquation, {}),
    'duplicate_string': (DuplicateString, {}),
    'missing_duplicate_string': (MissingDuplicateString, {}),
    'odds_first': (OddsFirst, {}),
    'binary_addition': (BinaryAddition, {}),
    'binary_multiplication': (BinaryMultiplication, {}),
    'compute_sqrt': (ComputeSqrt, {}),
    'bucket_sort': (BucketSort, {}),
}


def build(name: str, arguments: dict | None = None) -> Task:
    """Returns the task of a name, with the parameters that are given.

    Raises DataError for an unknown task or parameter, and for a value of another type; names the
    nearest valid one.
    """
    if name not in REGISTRY:
        near = did_you_mean(name, REGISTRY)
        raise DataError(f'no task {name!r}{near} (valid: {", ".join(REGISTRY)})')
    kind, preset = REGISTRY[name]
    known = kind.arguments()
    for key, value in (arguments or {}).items():
        if key not in known or type(value) is not type(known[key]):
            if key in known:
                expected = type(known[key]).__name__
            else:
                expected = f'one of {", ".join(known) or "none"}'
            raise DataError(f'task_args.{key}={value!r} of {name}: expected {expected}')
        _check_number(name, key, value, known[key])
    task = kind(**{**preset, **(arguments or {})})
    task.check()
    return task


def stated(name: str, arguments: dict) -> dict:
    """Returns the arguments as the name of a kept result states them.

    Those are the given ones, and whatever a younger parameter is by default now; without those that
    are what they were when there was no such parameter. So neither an old result nor a new one
    passes for the other.
    """
    kind, preset = REGISTRY[name]
    task = kind(**{**preset, **arguments})
    fields = {key: value for key, value in arguments.items() if key not in task.before}
    for key, value_before in task.before.items():
        value = getattr(task, key)
        if value != value_before:
            fields[key] = value
    return fields


_MOST = 2**20  # words, letters, digits of a task: a vocabulary is made of them


def _check_number(name: str, key: str, value, default) -> None:
    """Raises DataError where a parameter is a number that no task can have.

    0 is a number that one can have only where it is the default.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low = min(default, 1) if isinstance(value, int) else -_MOST
    if not low <= value <= _MOST:
        shown = value if abs(value) < 10**30 else 'a number of many digits'
        raise DataError(
            f'task_args.{key}={shown} of {name}: expected a number from {low} to {_MOST}'
        )
