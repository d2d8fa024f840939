"""Text of the pages made from code, in lines as wide as those of the repository."""

import textwrap

COLUMNS = 100


def fill(text: str, first: str = '', rest: str = '') -> str:
    """Returns a paragraph in lines of at most 100 columns; words are not broken.

    Args:
      first, rest: what the first line and the others begin with.
    """
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def item(text: str, indent: int = 0) -> str:
    """Returns an item of a list."""
    return fill(text, ' ' * indent + '- ', ' ' * indent + '  ')
