"""The mistakes that a model's config can hold, in one line for the user."""

import difflib


class ModelError(ValueError):
    """A model that cannot be built or used as asked, in one line for the user."""


def nearest(name: str, choices) -> str:
    """The end of a message: the valid choice nearest to `name`, and all of them."""
    choices = list(choices)
    close = difflib.get_close_matches(name, choices, 1)
    return (
        f'did you mean {close[0]!r}? ' if close else ''
    ) + f'(valid: {", ".join(choices) or "none"})'
