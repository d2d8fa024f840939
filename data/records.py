"""What a source yields: records, and reports of what could not be read."""
import dataclasses


class DataError(ValueError):
    """A mistake in the data or in what was asked of it, in one line for the user."""


def printable(text: str) -> str:
    """Text that commands no terminal: control characters other than newline and tab, and others that cannot be seen, as '\\x1b'."""
    return ''.join(c if c in '\n\t' or c.isprintable() or c == '\u00a0' else c.encode('unicode_escape').decode() for c in text)


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
class Broken:
    """A record that could not be read: where (file:line) and why, in one line."""
    where: str
    reason: str
