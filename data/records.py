"""What a source yields: records, and reports of what could not be read."""

import dataclasses
import difflib
import re

# Controls but newline and tab, what turns the direction of text, other ends of a line, and halves of pairs.
_COMMANDS = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)


# What no text holds, and no name of a file either: a NUL, halves of pairs, and bytes that were no
# UTF-8, which Python keeps as such halves (PEP 383).
_NO_TEXT = re.compile('[\0\ud800-\udfff]')


class DataError(ValueError):
    """A mistake in the data or in what was asked of it, in one line for the user."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One document: `text`, or a conversation as `messages` ((role, content), ...). `where` names its origin."""

    where: str
    text: str | None = None
    messages: tuple[tuple[str, str], ...] | None = None

    def parts(self) -> list[str]:
        """The strings of the record, in order."""
        return [self.text] if self.messages is None else [content for _, content in self.messages]


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that could not be read: where (file:line) and why, in one line."""

    where: str
    reason: str


def printable(text: str) -> str:
    """Text of data, of a model or of a file's name as a person may see it: what would command a terminal is spelled out (`\\x1b`)."""
    return _COMMANDS.sub(lambda found: found[0].encode('unicode_escape').decode(), text)


def did_you_mean(name: str, choices) -> str:
    """The end of a message: the choice nearest to `name`, if any is near."""
    close = difflib.get_close_matches(name, list(choices), 1)
    return f'; did you mean {close[0]!r}?' if close else ''


def no_text(text: str) -> str:
    """What keeps a string from being text in UTF-8, in words for a message: 'byte 0xe9 at character
    4', a NUL, half of a surrogate pair; '' where nothing does."""
    found = _NO_TEXT.search(text)
    if found is None:
        return ''
    at, code = f'at character {found.start() + 1}', ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f'byte 0x{code - 0xDC00:02x} {at}'
    return f'a NUL {at}' if code == 0 else f'half of a surrogate pair {at}'
