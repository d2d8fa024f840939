"""Records, which a source yields, and reports of what could not be read."""

import dataclasses
import difflib
import re

# Controls but newline and tab, what turns the direction of text, other ends of a line, and halves
# of pairs.
_COMMANDS = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)

# What no text holds, and no name of a file either: a NUL, halves of pairs, and bytes that were no
# UTF-8, which Python keeps as such halves (PEP 383).
_NO_TEXT = re.compile('[\0\ud800-\udfff]')


class DataError(ValueError):
    """The data are wrong, or what was asked of them; one line for the user."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One document.

    Attributes:
      where: its origin, for messages.
      text: what it says, or
      messages: a conversation, ((role, content), ...).
    """

    where: str
    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None

    def parts(self) -> list[str]:
        """Returns the strings of the record, in order."""
        if self.messages is None:
            return [self.text]
        return [content for _, content in self.messages]


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that could not be read: where (file:line) and why, in one line."""

    where: str
    reason: str


def printable(text: str) -> str:
    """Returns text as a terminal may show it: what would command one is spelled out (`\\x1b`).

    For text of data, of a model, or of a file's name.
    """
    return _COMMANDS.sub(lambda match: match[0].encode('unicode_escape').decode(), text)


# That of model/errors.py lists all choices too; data and model import nothing of each other.
def did_you_mean(name: str, choices) -> str:
    """Returns the end of a message: the choice nearest to `name`, or '' where none is near."""
    close = difflib.get_close_matches(name, list(choices), 1)
    return f'; did you mean {close[0]!r}?' if close else ''


def no_text(text: str) -> str:
    """Returns what keeps a string from being text in UTF-8, or '' where nothing does.

    In words for a message: 'byte 0xe9 at character 4', a NUL, half of a surrogate pair.
    """
    match = _NO_TEXT.search(text)
    if match is None:
        return ''
    where = f'at character {match.start() + 1}'
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f'byte 0x{code - 0xDC00:02x} {where}'
    return f'a NUL {where}' if code == 0 else f'half of a surrogate pair {where}'
