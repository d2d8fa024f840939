"""Made-up people, their biographies, and questions about them.

After the bioS data of Allen-Zhu and Li 2023, "Physics of Language Models: Part 3.1, Knowledge
Storage and Extraction" (arXiv 2309.14316, section 2): a name, and six facts drawn by themselves, a
sentence each.
"""

import dataclasses
import pathlib
import random
from collections.abc import Iterator

from data.atlas.facts import COUNTRIES

FACTS = ('birthday', 'city', 'university', 'field', 'company', 'work city')

# Which file of a folder of lists holds what; `company` gives the company and where it is.
LISTS = ('first_name', 'middle_name', 'last_name', 'city', 'university', 'field', 'company')

_MONTHS = (
    *('January', 'February', 'March', 'April', 'May', 'June', 'July', 'August', 'September'),
    *('October', 'November', 'December'),
)
_FIELDS = (
    *('Accounting', 'Architecture', 'Astronomy', 'Biology', 'Botany', 'Chemistry', 'Dance'),
    *('Economics', 'Engineering', 'Finance', 'Forestry', 'Geography', 'Geology', 'History', 'Law'),
    *('Linguistics', 'Logic', 'Management', 'Mathematics', 'Medicine', 'Music', 'Nursing'),
    *('Painting', 'Philosophy', 'Physics', 'Poetry', 'Psychology', 'Sculpture', 'Sociology'),
    *('Statistics', 'Theology', 'Zoology'),
)
_SYLLABLES = ('ba', 'de', 'fi', 'go', 'ku', 'la', 'me', 'ni', 'po', 'ru', 'sa', 'te', 'vi', 'zo')
_ENDS = dict(first_name=('n', 'ra', 'l'), middle_name=('s', 'ta'), last_name=('man', 'ton', 'ski'))

TEMPLATES = {
    'birthday': (
        '{who} was born on {v}.',
        '{who} has a birthday that is on {v}.',
        '{who} came into this world on {v}.',
        '{who} first saw the light of day on {v}.',
        '{who} celebrates a day of birth that is {v}.',
        '{who} entered life on {v}.',
    ),
    'city': (
        '{who} grew up in {v}.',
        '{who} spent the early years in {v}.',
        '{who} calls {v} the place of birth.',
        '{who} is a native of {v}.',
        '{who} was raised by a family in {v}.',
        '{who} has roots in {v}.',
    ),
    'university': (
        '{who} graduated from {v}.',
        '{who} received a degree at {v}.',
        '{who} was taught by professors at {v}.',
        '{who} completed an education at {v}.',
        '{who} attended lectures at {v}.',
        '{who} is an alumnus of {v}.',
    ),
    'field': (
        '{who} studied {v}.',
        '{who} chose {v} as a subject.',
        '{who} holds a degree in {v}.',
        '{who} specialised in {v}.',
        '{who} pursued studies in {v}.',
        '{who} wrote a thesis in {v}.',
    ),
    'company': (
        '{who} works for {v}.',
        '{who} has a position at {v}.',
        '{who} is employed by {v}.',
        '{who} joined the staff of {v}.',
        '{who} earns a living at {v}.',
        '{who} made a career at {v}.',
    ),
    'work city': (
        '{who} has an office in {v}.',
        '{who} goes to work in {v}.',
        '{who} does business in {v}.',
        '{who} is stationed in {v}.',
        '{who} was hired to work in {v}.',
        '{who} holds a job in {v}.',
    ),
}
QUESTIONS = {
    'birthday': 'What is the birth date of {who}?',
    'city': 'What is the birth city of {who}?',
    'university': 'Which university did {who} attend?',
    'field': 'What did {who} study?',
    'company': 'Which company employs {who}?',
    'work city': 'Where does {who} work?',
}
REVERSED = 'Who was born on {birthday} and grew up in {city}?'


@dataclasses.dataclass(frozen=True)
class Person:
    """A name and a value of each of FACTS."""

    name: str
    pronoun: str
    facts: dict[str, str]

    def questions(self) -> Iterator[tuple[str, str, str]]:
        """Yields (fact, question, answer)."""
        for fact in FACTS:
            yield fact, QUESTIONS[fact].format(who=self.name), self.facts[fact]


def make_people(count: int, seed: int, folder: str = '') -> list[Person]:
    """Returns so many people with names of their own.

    Args:
      folder: holds `city.txt` and the other lists of LISTS, one entry a line; '': names, companies
        and universities are made up.
    """
    rng = random.Random(f'{seed} people')
    lists = _read_lists(pathlib.Path(folder)) if folder else _make_lists()
    people: dict[str, Person] = {}
    while len(people) < count:
        name = ' '.join(rng.choice(lists[part]) for part in LISTS[:3])
        company, work_city = rng.choice(lists['company']).split('; ')
        day = f'{rng.choice(_MONTHS)} {rng.randint(1, 28)}, {rng.randint(1900, 2099)}'
        values = (
            day,
            rng.choice(lists['city']),
            rng.choice(lists['university']),
            rng.choice(lists['field']),
            company,
            work_city,
        )
        pronoun = rng.choice(('He', 'She'))
        people.setdefault(name, Person(name, pronoun, dict(zip(FACTS, values))))
    return list(people.values())


def _read_lists(folder: pathlib.Path) -> dict[str, list[str]]:
    return {
        name: (folder / f'{name}.txt').read_text(encoding='utf-8').splitlines() for name in LISTS
    }


def _make_lists() -> dict[str, list[str]]:
    """Returns lists that need no file: names of syllables, capitals of the world as cities."""
    rng = random.Random('lists')
    cities = [row.split('|')[4] for row in COUNTRIES]

    def words(count: int, ends: tuple[str, ...]) -> list[str]:
        made: set[str] = set()
        while len(made) < count:
            syllables = ''.join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 2)))
            made.add((rng.choice(_SYLLABLES) + syllables + rng.choice(ends)).capitalize())
        return sorted(made)

    lists = {name: words(200, ends) for name, ends in _ENDS.items()}
    companies = words(100, ('co', 'tec', 'lux'))
    return lists | {
        'city': cities,
        'university': [f'University of {city}' for city in cities],
        'field': list(_FIELDS),
        'company': [f'{name}; {rng.choice(cities)}' for name in companies],
    }


def biography(person: Person, rng: random.Random, permuted: bool, full_names: bool) -> str:
    """Returns six sentences about a person, each in a wording that is drawn.

    Args:
      permuted: whether their order is drawn.
      full_names: whether each names the person; else only the first does.
    """
    facts = rng.sample(FACTS, len(FACTS)) if permuted else FACTS
    sentences = []
    for number, fact in enumerate(facts):
        who = person.name if full_names or not number else person.pronoun
        template = rng.choice(TEMPLATES[fact])
        sentences.append(template.format(who=who, v=person.facts[fact]))
    return ' '.join(sentences)
