"""What a source yields: records, and reports of what could not be read."""
import dataclasses


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
class Broken:
    """A record that could not be read: where (file:line) and why, in one line."""
    where: str
    reason: str
