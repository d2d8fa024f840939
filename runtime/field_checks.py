"""Checks of the values of a config, one field at a time, by the entries of its schema.

Each number lies in its range, each name is one of the choices, and a field that is given has what
it needs to have an effect. What two fields must be to each other is checked where they are used.
Nothing here needs JAX.
"""

import math

from model.errors import describe_underflow, did_you_mean
from runtime import schema
from runtime.config_tree import flatten
from runtime.errors import CombinedError, RunError

_BITS = 128  # of a whole number that is shown digit by digit


def find_faults(config) -> dict[str, str]:
    """Returns {field: line for the user} of each field of an experiment or a study whose value is
    out of its range or none of its choices."""
    faults = {}
    for name, value in flatten(config).items():
        entry = schema.find(name)
        if entry is None:
            continue
        for each in value if isinstance(value, tuple) else (value,):
            fault = _fault(entry, each)
            if fault:
                faults[name] = f'config.{name} is {shown(each)}: {fault}'
                break
    return faults


def check(config) -> None:
    """Raises CombinedError with each value of an experiment or a study that does not fit."""
    faults = find_faults(config)
    if faults:
        raise CombinedError(list(faults.values()))


def check_digits(config) -> None:
    """Raises RunError where a whole number of `config` has more digits than any line can show, or
    Python write: nothing else can be told of such a config."""
    for name, value in flatten(config).items():
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or number.bit_length() <= _BITS:
                continue
            entry = schema.find(name)
            fault = entry and _fault(entry, number)
            expected = fault or 'expected a number of fewer digits'
            raise RunError(f'config.{name} is {shown(number)}: {expected}')


def lacking(config, name: str) -> str:
    """Returns what a field needs in order to have an effect in `config`, or '' where it has one.

    A condition is passed over where the field that decides has itself no valid value, which is
    told elsewhere.
    """
    entry, values = schema.find(name), flatten(config)
    for condition in entry.needs if entry else ():
        if condition.holds(values):
            continue
        deciding = schema.find(condition.field)
        if not _fault(deciding, values[condition.field]):
            return condition.words
    return ''


def shown(value) -> str:
    """Returns a value as it may stand in one line: of a number that fills lines, how long it is."""
    if isinstance(value, int) and value.bit_length() > _BITS:
        return f'a number of {int(math.log10(abs(value))) + 1} digits'
    return str(value) if isinstance(value, (int, float)) else repr(value)


def _fault(entry, value) -> str:
    """Returns what was expected in place of a value of a field, or '' where it fits."""
    if entry.range is not None:
        return out_of_range(entry.range, value)
    if entry.choices and value not in (*entry.choices,):
        return did_you_mean(str(value), entry.choices)
    return ''


def out_of_range(range, value) -> str:
    """Returns what was expected in place of a number, or '' where it fits a `Range`."""
    if isinstance(value, bool) or not isinstance(value, int if range.whole else (int, float)):
        return f'expected {range}'
    above = range.low < value if range.open == 'low' else range.low <= value
    below = value < range.high if range.open == 'high' else value <= range.high
    if above and below:
        too_small = describe_underflow(value)
        return too_small.replace('0, or ', '') if range.open == 'low' else too_small
    return '' if range.zero and value == 0 else f'expected {range}'
