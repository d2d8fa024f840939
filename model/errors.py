"""Errors of a model's config, and the parts of messages that many places share."""

import difflib
from collections.abc import Iterable

LEAST = 1e-37  # float32 takes what is nearer to 0 for 0, or soon after


class ModelError(ValueError):
    """Tells the user in one line why a model cannot be built or used."""


def describe_underflow(value: float) -> str:
    """Returns what was expected in place of a number that float32 takes for 0.

    It is '' for any other number, and for 0 itself.
    """
    return '' if not 0 < abs(value) < LEAST else 'expected 0, or a number of at least 1e-37 in size'


# That of data/records.py lists no choices; data and model import nothing of each other.
def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns the end of a message: the valid choice nearest to `name`, and all choices."""
    choices = list(choices)
    matches = difflib.get_close_matches(name, choices, 1)
    hint = f'did you mean {matches[0]!r}? ' if matches else ''
    return f'{hint}(valid: {", ".join(choices) or "none"})'
