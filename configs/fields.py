"""Entries of a config: everything that is true of a field, as data. Imports nothing of the house.

    dropout=field(0.0, 'share that training leaves out', Range(0, 1, open='high'), since=2)

is such an entry. `configs/base.py` is made of them, and so are the checks of values, what resuming
and post-training may change, how older run directories are read, and the page docs/config.md
(`runtime/schema.py` reads the entries). A new field is one entry there and whatever uses it.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

INT32 = 2**31 - 1  # the largest whole number that JAX and the libraries below take
MANY = 2**20  # things that one command makes, holds or waits for

# Whether the command that resumes a run may give another value than the one it began with.
#   fixed: it may not, since the result would be another
#   free: it may; the field says what is watched and kept, not what is computed
#   kept: it may, and is not heard: the run keeps the value that it began with
Resume = Literal['fixed', 'free', 'kept']

# Whether a run that begins with the parameters of another, its parent, may have another value.
#   free: it may
#   inherited: it may, and has the parent's where a command does not give it
#   same: it must have the parent's, and has it where a command does not give it
#   taken: it gets the parent's, whatever is given
Child = Literal['free', 'inherited', 'same', 'taken']


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a field may hold: from `low` to `high`, both included unless one is `open`.

    Attributes:
      low: the least value.
      high: the greatest value. Every range has one, so that an absurd number is refused at once.
      whole: only whole numbers fit.
      open: the end that is itself outside.
      zero: what 0 means, where it means something else than a very small number. It then fits,
        even where it lies below `low`.
      noun: what to call the number in messages; '': a number, or a whole number.
      words: the whole range in other words, for messages.
    """

    low: float
    high: float
    whole: bool = False
    open: Literal['', 'low', 'high'] = ''
    zero: str = ''
    noun: str = ''
    words: str = ''

    def __str__(self) -> str:
        if self.words:
            return self.words
        noun = self.noun or ('a whole number' if self.whole else 'a number')
        low, high = (
            f'{end:g}' if isinstance(end, float) else f'{end}' for end in (self.low, self.high)
        )
        if self.open == 'low':
            span = f'{noun} above {low}, at most {high}'
        elif self.open == 'high':
            span = f'{noun} of at least {low}, and less than {high}'
        else:
            span = f'{noun} from {low} to {high}'
        if not self.zero:
            return span
        return f'{span}{", or 0" if self.low > 0 else ""} (0: {self.zero})'


def count(low: int = 0, high: int = INT32, zero: str = '') -> Range:
    """Returns the range of a whole number."""
    return Range(low, high, whole=True, zero=zero)


SEED = count()
SHARE = Range(0, 1, noun='a share')
EVERY = count(zero='never')  # steps from one time to the next
TOKENS = 2**24  # of a text: more are in no model


@dataclasses.dataclass(frozen=True)
class Condition:
    """A value that another field must have for a field to do anything; see `when` and `unless`."""

    field: str
    value: Any
    negated: bool
    words: str  # after 'it needs'

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Returns whether it does, in a flat config {'a.b': value}; so it does in one without the
        deciding field, such as a study."""
        if self.field not in config:
            return True
        return (config[self.field] == self.value) != self.negated


def when(field: str, value: Any, words: str = '') -> tuple[Condition, ...]:
    """Returns the condition that another field has a value; `words`: said in its place."""
    return (Condition(field, value, False, words or f'config.{field}={value!r}'),)


def unless(field: str, value: Any, words: str) -> tuple[Condition, ...]:
    """Returns the condition that another field has any other value, in `words` for a user."""
    return (Condition(field, value, True, words),)


_UNSET: Any = object()  # a field then has what its group shares


@dataclasses.dataclass(frozen=True)
class Shared:
    """What the fields of a group have in common, as in `Field`."""

    needs: tuple[Condition, ...] = ()
    since: int = 0
    resume: Resume = 'fixed'
    child: Child = 'free'


@dataclasses.dataclass(frozen=True)
class Field:
    """Everything that is true of one field.

    Attributes:
      default: its value in `get_config()`; its type is the field's type.
      meaning: what it says, for people.
      range: the numbers that fit, each of them where the field holds several.
      choices: the names that fit, each with what it means ('' where the name says it).
      needs: what must hold of other fields, or this one has no effect, which is an error where it
        was given on the command line.
      since: the revision of the schema that brought it (`REVISIONS` in configs/base.py).
      before: what was meant where the field was not there yet.
      resume: whether going on with a run may change it.
      child: whether a run that begins with another's parameters may change it.
      path: whether it holds a path, or several with commas between them.
      each: the groups of fields of which each value under this field is one, for a field whose
        names a person chooses, like the tasks of a study.
    """

    default: Any
    meaning: str
    range: Range | None = None
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: tuple[Condition, ...] = ()
    since: int = _UNSET
    before: Any = None
    resume: Resume = _UNSET
    child: Child = _UNSET
    path: Literal['', 'one', 'several'] = ''
    each: tuple['Group', ...] = ()

    def inherit(self, shared: Shared) -> 'Field':
        """Returns the entry with what its group shares, where it says nothing else."""
        given = {name: getattr(self, name) for name in ('since', 'resume', 'child')}
        common = {name: getattr(shared, name) for name, v in given.items() if v is _UNSET}
        return dataclasses.replace(self, needs=shared.needs + self.needs, **common)


def field(default, meaning, range=None, *, choices=(), before=_UNSET, **others) -> Field:
    """Returns the entry of a field; arguments as the attributes of `Field`.

    `choices` may be names alone. `before` is the default where it is not given.
    """
    if not isinstance(choices, Mapping):
        choices = dict.fromkeys(choices, '')
    if before is _UNSET:
        before = default
    return Field(default, meaning, range, choices, before=before, **others)


@dataclasses.dataclass(frozen=True)
class Group:
    """Fields, and groups of them, that stand under one name.

    Attributes:
      meaning: what they are about, as a sentence.
      shared: what holds of all of them that say nothing else.
      members: a field or a group for each name.
    """

    meaning: str
    shared: Shared
    members: Mapping[str, 'Field | Group']

    def defaults(self) -> dict[str, Any]:
        """Returns the default of each field, nested as the groups are."""
        values = {}
        for name, member in self.members.items():
            if isinstance(member, Group):
                values[name] = member.defaults()
            else:
                values[name] = copy.deepcopy(member.default)
        return values

    def entries(self, prefix: str = '') -> Iterator[tuple[str, Field]]:
        """Yields the name of each field, 'a.b', and its entry, in their order."""
        for name, member in self.members.items():
            if isinstance(member, Group):
                yield from member.entries(f'{prefix}{name}.')
            else:
                yield prefix + name, member.inherit(self.shared)

    def find(self, name: str) -> Field | None:
        """Returns the entry of the field 'a.b', or None where there is none. Below a field whose
        names a person chooses it is that field's, or that of the group that knows the name."""
        first, _, rest = name.partition('.')
        member = self.members.get(first)
        if isinstance(member, Group):
            return member.find(rest)
        if member is None or not rest:
            return member and member.inherit(self.shared)
        if not isinstance(member.default, dict):
            return None
        _, _, inner = rest.partition('.')
        known = (group.find(inner) for group in member.each)
        return next((entry for entry in known if entry), member.inherit(self.shared))

    def shared_at(self, name: str) -> Shared:
        """Returns what the fields of the innermost group around the name 'a.b' share."""
        first, _, rest = name.partition('.')
        member = self.members.get(first)
        return member.shared_at(rest) if isinstance(member, Group) else self.shared


def group(meaning: str, shared: Shared | None = None, /, **members: Field | Group) -> Group:
    """Returns a group of fields; arguments as the attributes of `Group`."""
    return Group(meaning, shared or Shared(), members)
