"""Flags of the commands: numbers with both ends of their range, and paths with `~`.

A command defines numbers and paths with these and no others: `tests/runtime/test_numbers.py` and
`tests/runtime/test_home.py` look at all commands. Nothing here needs JAX.
"""

import math
import re

from absl import flags

from data import paths as names
from model.errors import describe_underflow

flags.disclaim_key_flags()  # `--help` shows flags with the command that asked for them

MOST = 2**31 - 1  # of whole numbers that JAX and the libraries below take
COUNT = 2**20  # of things that one command makes, holds or waits for


class _Number(flags.FloatParser):
    """A number between two ends, both included; neither infinite nor nan."""

    def convert(self, argument):
        value = super().convert(argument)
        if not math.isfinite(value):
            raise ValueError(f'{argument} is not {self.syntactic_help}')
        underflow = describe_underflow(value)
        if underflow and not self.is_outside_bounds(value):
            raise ValueError(underflow)
        return value


class Path(flags.ArgumentParser):
    """Parses a path, and expands `~` in it.

    Args:
      name: of the flag.
      many: paths separated by commas.
      there: it is to be opened or made, rather than compared with names that are kept somewhere.
      empty: '' may stand for none; else it is refused, since the system reads it as the folder one
        is in.
    """

    def __init__(self, name: str, many: bool = False, there: bool = True, empty: bool = True):
        self._name = name
        self.many = many
        self.there = there
        self._empty = empty

    def parse(self, argument):
        if not self._empty and not argument.strip():
            raise ValueError('expected a path, found nothing')
        if self.many:
            return names.expanded_list(argument)
        return names.expanded(argument, f'--{self._name}')


def whole(name, default, text: str, low: int, high: int, values=flags.FLAGS) -> None:
    """Defines a flag for a whole number from `low` to `high`, both included; `text` is its help."""
    flags.DEFINE_integer(name, default, text, lower_bound=low, upper_bound=high, flag_values=values)


def seed(text: str, values=flags.FLAGS) -> None:
    """Defines --seed, from 0 to 2^31 - 1."""
    whole('seed', 0, text, 0, MOST, values)


def workers() -> None:
    """Defines --workers, the processes of a study."""
    text = 'Processes; -1: one a core on CPU; 0: all cells in this process'
    whole('workers', -1, text, -1, 2**12)


def weights(text: str) -> None:
    """Defines --weights, one of `model.generate.WEIGHTS`."""
    flags.DEFINE_enum('weights', 'as_computed', ['as_computed', 'bfloat16', 'int8'], text)


def number(name, default, text: str, low: float, high: float, values=flags.FLAGS) -> None:
    """Defines a flag for a number from `low` to `high`, both included."""
    low, high = (int(end) if end == int(end) else end for end in (low, high))
    flags.DEFINE(_Number(low, high), name, default, text, values, flags.ArgumentSerializer())


def path(name: str, default: str, text: str, values=flags.FLAGS, many: bool = False) -> None:
    """Defines a flag for a path, of which `~` is expanded. `many`: for paths separated by
    commas."""
    flags.DEFINE(Path(name, many), name, default, text, values, flags.ArgumentSerializer())


def paths(name: str, text: str, values=flags.FLAGS, many: bool = False, there: bool = True) -> None:
    """Defines a flag for a path that may be given again: a list of paths, of which `~` is expanded.
    `many`: for patterns, too. `there`: as in `Path`."""
    parser = Path(name, many, there, empty=False)
    flags.DEFINE_multi(parser, flags.ArgumentSerializer(), name, [], text, values)


def _whole(found: re.Match) -> str:
    """Returns what was expected in place of what is no whole number.

    With that number where another spelling of one was given: 1e6, 32.0.
    """
    try:
        value = float(found[1])
        near = f', such as {int(value)}' if value.is_integer() and abs(value) < 2**63 else ''
    except ValueError:
        near = ''
    return f'expected a whole number{near}'


# What Python says of a value that does not fit a flag -> what was expected.
_EXPECTED = (
    (r"invalid literal for int\(\) with base \d+: '?(.*?)'?$", _whole),
    (
        r'Exceeds the limit .* for integer string conversion.*',
        'expected a whole number of fewer digits',
    ),
    (r'could not convert string to float: .*', 'expected a number'),
    (r"\('Non-boolean argument to boolean flag', .*\)", 'expected true or false'),
    (r'\S+ is not number >= (\S+)', r'expected at least \1'),
    (r'\S+ is not a positive integer', 'expected at least 1'),
    (r'\S+ is not a non-negative integer', 'expected at least 0'),
    (
        r'\S+ is not an integer in the range \[(\S+), (\S+)\]',
        r'expected a whole number from \1 to \2',
    ),
    (r'\S+ is not a number in the range \[(\S+), (\S+)\]', r'expected a number from \1 to \2'),
    (r'(\d{20})\d{80,}', r'\1...'),
    (r"^(--(\S+?)=.*?): --\2 is '.*?': ", r'\1: '),
)


def plain(message: str) -> str:
    """Returns what absl and Python say of a value that does not fit a flag as one line for a
    user."""
    message = re.sub(r'^flag --(\S+?)=(.*?): ', r'--\1=\2: ', ' '.join(message.split()))
    message = re.sub(r'^(--\S+?)=.*?: (\1 is )', r'\2', message)  # what says itself which it is
    for found, expected in _EXPECTED:
        message = re.sub(found, expected, message)
    return message.replace('Unknown command line flag', 'unknown flag')
