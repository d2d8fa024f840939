"""Flags of the doors: whole numbers and others with both ends of their range, and paths with `~`.
Nothing here needs JAX.

A door defines numbers and paths with these and no others: `tests/train/test_numbers.py` and
`tests/train/test_home.py` look at all doors."""

import math

from absl import flags

from data import paths as names

MOST = 2**31 - 1  # of whole numbers that JAX and the libraries below take
COUNT = 2**20  # of things that one command makes, holds or waits for


class _Number(flags.FloatParser):
    """A number between two ends, both included; neither infinite nor nan."""

    def convert(self, argument):
        found = super().convert(argument)
        if not math.isfinite(found):
            raise ValueError(f'{argument} is not {self.syntactic_help}')
        return found


class Path(flags.ArgumentParser):
    """A path, `~` in it expanded. `many`: paths separated by commas. `there`: whether it is to be
    opened or made, rather than compared with names that are kept somewhere."""

    def __init__(self, name: str, many: bool = False, there: bool = True):
        self._name, self.many, self.there = name, many, there

    def parse(self, argument):
        if self.many:
            return names.expanded_list(argument)
        return names.expanded(argument, f'--{self._name}')


def whole(name, default, text: str, low: int, high: int, values=flags.FLAGS) -> None:
    """Defines a flag for a whole number from `low` to `high`, both included; `text` is its help."""
    flags.DEFINE_integer(name, default, text, lower_bound=low, upper_bound=high, flag_values=values)


def seed(text: str, values=flags.FLAGS) -> None:
    """Defines --seed, from 0 to 2^31 - 1."""
    whole('seed', 0, text, 0, MOST, values)


def number(name, default, text: str, low: float, high: float, values=flags.FLAGS) -> None:
    """Defines a flag for a number from `low` to `high`, both included."""
    flags.DEFINE(_Number(low, high), name, default, text, values, flags.ArgumentSerializer())


def path(name: str, default: str, text: str, values=flags.FLAGS, many: bool = False) -> None:
    """Defines a flag for a path, of which `~` is expanded. `many`: for paths separated by
    commas."""
    flags.DEFINE(Path(name, many), name, default, text, values, flags.ArgumentSerializer())


def paths(name: str, text: str, values=flags.FLAGS, many: bool = False, there: bool = True) -> None:
    """Defines a flag for a path that may be given again: a list of paths, of which `~` is expanded.
    `many`: for patterns, too. `there`: as in `Path`."""
    flags.DEFINE_multi(Path(name, many, there), flags.ArgumentSerializer(), name, [], text, values)
