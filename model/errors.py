"""The mistakes that a model's config can hold, in one line for the user."""

import difflib

LEAST = 1e-37  # float32 takes what is nearer to 0 for 0, or soon after


class ModelError(ValueError):
    """A model that cannot be built or used as asked, in one line for the user."""


def describe_underflow(value: float) -> str:
    """Returns what was expected in place of a number that is not 0, and that float32 takes for 0; ''
    of any other."""
    return '' if not 0 < abs(value) < LEAST else 'expected 0, or a number of at least 1e-37 in size'


def did_you_mean(name: str, choices) -> str:
    """The end of a message: the valid choice nearest to `name`, and all of them."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, 1)
    return (
        f'did you mean {close[0]!r}? ' if close else ''
    ) + f'(valid: {", ".join(choices) or "none"})'
