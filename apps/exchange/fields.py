"""Reads the fields of a config.json that others wrote; what is none is told in one line."""

import math
from collections.abc import Mapping
from typing import Any

from runtime.errors import RunError

_MOST = 2**31 - 1  # of a whole number


class Fields:
    """The fields of a config.json. One that is null counts as one that is not there.

    Args:
      values: of the fields, by name.
      where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.where = where
        self._values = {name: value for name, value in values.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def whole(self, name: str, default: int | None = None) -> int:
        """Returns a whole number, 0 or more; without a default the field must be there."""
        value = self._values.get(name, default)
        if type(value) is not int or not 0 <= value <= _MOST:
            raise self._error(name, f'a whole number from 0 to {_MOST}')
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a finite number; without a default the field must be there."""
        value = self._values.get(name, default)
        if not _is_number(value):
            raise self._error(name, 'a number')
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns a list of finite numbers."""
        value = self._values.get(name)
        if not isinstance(value, list) or not all(map(_is_number, value)):
            raise self._error(name, 'a list of numbers')
        return tuple(float(number) for number in value)

    def text(self, name: str) -> str:
        """Returns a text, which must be there."""
        value = self._values.get(name)
        if not isinstance(value, str):
            raise self._error(name, 'a text')
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Returns a truth value; without a default the field must be there."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise self._error(name, 'true or false')
        return value

    def choice(self, name: str, meanings: Mapping[str, str], default: str) -> str:
        """Returns what the name in a field means; `default`: the name where there is none."""
        value = self._values.get(name, default)
        if not isinstance(value, str) or value not in meanings:
            raise self._error(name, f'one of {", ".join(meanings)}')
        return meanings[value]

    def only(self, name: str, *expected: Any) -> None:
        """Raises RunError where a field is there and has none of the values expected."""
        if name in self and self._values[name] not in expected:
            raise self._error(name, ' or '.join(map(repr, expected)) or 'no such field')

    def list(self, name: str, length: int) -> list | None:
        """Returns a list of at least `length` members, None where there is no such field."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length:
            raise self._error(name, f'a list of {length}')
        return value[:length]

    def group(self, name: str) -> 'Fields':
        """Returns the fields of a group, none where there is no such group."""
        value = self._values.get(name, {})
        if not isinstance(value, dict):
            raise self._error(name, 'a group of fields')
        return Fields(value, f'{self.where}: {name}')

    def as_is(self, name: str) -> Any:
        """Returns a field whatever it is, None where it is not there."""
        return self._values.get(name)

    def names(self) -> tuple[str, ...]:
        """Returns the names of the fields that are there."""
        return tuple(self._values)

    def _error(self, name: str, expected: str) -> RunError:
        if name not in self:
            return RunError(f'{self.where}: {name} is missing: expected {expected}')
        return RunError(f'{self.where}: {name} is {self._values[name]!r:.60}: expected {expected}')


def _is_number(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e30 and math.isfinite(value)
