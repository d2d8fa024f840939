"""A small Portuguese and English web about the countries of the world, seeded.

`web`: pages that state the facts of `data/atlas/facts.py` in varied wordings and orders, and pages
that only list questions, as such pages do. A question is never followed by its answer. `answers`:
question-answer pairs, for the countries that are not held out.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator

from data.atlas.facts import CONTINENTS, COUNTRIES, LANGUAGES
from data.records import DataError, Record

RELATIONS = ('capital', 'continent', 'language', 'currency', 'domain', 'demonym')
LANGS = ('pt', 'en')

# Of this file and of the facts: raised where the same config would give other texts. Part of the
# keys of stores and tokenizers.
VERSION = 1

# Countries whose English name has an article.
_THE = frozenset('ae bs cd cf cg do gm km mh mv nl ph sb sc uk us'.split())

STATEMENTS = {
    'pt': {
        'capital': (
            'A capital {do} é {v}.',
            '{v} é a capital {do}.',
            '{O} {tem} como capital {v}.',
            'A cidade de {v} é a capital {do}.',
            'Quem visita a capital {do} chega a {v}.',
            '{No}, a capital é {v}.',
            'O nome da capital {do} é {v}.',
        ),
        'continent': (
            '{O} {fica} na {v}.',
            'O continente {do} é a {v}.',
            'Na {v} {fica} {o}.',
            'No mapa, {o} {esta} na {v}.',
            'O território {do} está na {v}.',
            'Quem vai {ao} viaja para a {v}.',
        ),
        'language': (
            'O idioma oficial {do} é: {v}.',
            '{No} fala-se {v}.',
            'Fala-se {v} {no}.',
            'O idioma falado {no} é: {v}.',
            'Os jornais {do} saem em {v}.',
            'As leis {do} são escritas em {v}.',
        ),
        'currency': (
            'A moeda {do} é: {v}.',
            'A moeda {do} chama-se {v}.',
            '{No} paga-se em {v}.',
            'O nome da moeda {do} é {v}.',
            'Os preços {do} são dados em {v}.',
            'Chama-se {v} a moeda {do}.',
        ),
        'domain': (
            'O domínio de internet {do} é {v}.',
            'Os endereços {do} na internet terminam em {v}.',
            'Na internet, {o} {usa} {v}.',
            'O final {v} é o domínio de internet {do}.',
            'Os sites {do} usam {v}.',
        ),
        'demonym': (
            'O gentílico {do} é {v}.',
            'Quem nasce {no} é {v}.',
            'Um cidadão {do} é chamado de {v}.',
            'Chama-se {v} quem nasce {no}.',
            'O povo {do} é o povo {v}.',
        ),
    },
    'en': {
        'capital': (
            'The capital of {c} is {v}.',
            '{v} is the capital of {c}.',
            'The city of {v} is the capital of {c}.',
            'Whoever visits the capital of {c} comes to {v}.',
            'In {c}, the capital is {v}.',
            'The name of the capital of {c} is {v}.',
        ),
        'continent': (
            '{C} lies in {v}.',
            'The continent of {c} is {v}.',
            'On the map, {c} is found in {v}.',
            'The territory of {c} is in {v}.',
            'Whoever goes to {c} travels to {v}.',
            'In {v} lies {c}.',
        ),
        'language': (
            'The official language of {c} is: {v}.',
            'In {c} people speak {v}.',
            'People speak {v} in {c}.',
            'The newspapers of {c} are printed in {v}.',
            'The laws of {c} are written in {v}.',
        ),
        'currency': (
            'The currency of {c} is the {v}.',
            'In {c} people pay with the {v}.',
            'The prices of {c} are given in the {v}.',
            'The name of the currency of {c} is the {v}.',
            'The {v} is the currency of {c}.',
        ),
        'domain': (
            'The internet domain of {c} is {v}.',
            'The internet addresses of {c} end in {v}.',
            'The ending {v} is the internet domain of {c}.',
            'On the internet, {c} uses {v}.',
            'The websites of {c} use {v}.',
        ),
        'demonym': (
            'The demonym of {c} is {v}.',
            'Whoever is born in {c} is called {v}.',
            'A citizen of {c} is called {v}.',
            'The word {v} is the demonym of {c}.',
            'The people of {c} are the {v} people.',
        ),
    },
}

QUESTIONS = {  # the first wording of each is the one that `evals/` asks
    'pt': {
        'capital': ('Qual é a capital {do}?', 'Como se chama a capital {do}?'),
        'continent': ('Em que continente {fica} {o}?', 'Qual é o continente {do}?'),
        'language': ('Qual é o idioma oficial {do}?', 'Que idioma se fala {no}?'),
        'currency': ('Qual é a moeda {do}?', 'Como se chama a moeda {do}?'),
        'domain': (
            'Qual é o domínio de internet {do}?',
            'Como terminam os endereços {do} na internet?',
        ),
        'demonym': ('Qual é o gentílico {do}?', 'Como se chama quem nasce {no}?'),
    },
    'en': {
        'capital': ('What is the capital of {c}?', 'What is the name of the capital of {c}?'),
        'continent': ('On which continent is {c}?', 'What is the continent of {c}?'),
        'language': (
            'What is the official language of {c}?',
            'Which language do people speak in {c}?',
        ),
        'currency': ('What is the currency of {c}?', 'What do people pay with in {c}?'),
        'domain': (
            'What is the internet domain of {c}?',
            'How do the internet addresses of {c} end?',
        ),
        'demonym': ('What is the demonym of {c}?', 'What is a citizen of {c} called?'),
    },
}

LABELS = {  # of the lines of a card
    'pt': {
        'capital': ('Capital', 'Nome da capital'),
        'continent': ('Continente', 'Localização'),
        'language': ('Idioma oficial', 'Idioma', 'Fala-se'),
        'currency': ('Moeda', 'Nome da moeda'),
        'domain': ('Domínio de internet', 'Na internet'),
        'demonym': ('Gentílico', 'Quem nasce lá'),
    },
    'en': {
        'capital': ('Capital', 'Name of the capital'),
        'continent': ('Continent', 'Location'),
        'language': ('Official language', 'Language', 'People speak'),
        'currency': ('Currency', 'Name of the currency'),
        'domain': ('Internet domain', 'On the internet'),
        'demonym': ('Demonym', 'A citizen is called'),
    },
}

PHRASES = {  # a fact's subject, as the entries of a list name it
    'pt': {
        'capital': ('a capital {do}', 'o nome da capital {do}', 'a cidade capital {do}'),
        'continent': (
            'o continente {do}',
            'o continente em que {fica} {o}',
            'o lugar {do} no mapa',
        ),
        'language': ('o idioma oficial {do}', 'o idioma que se fala {no}', 'a língua {do}'),
        'currency': ('a moeda {do}', 'o nome da moeda {do}', 'o dinheiro {do}'),
        'domain': (
            'o domínio de internet {do}',
            'o final dos endereços {do} na internet',
            'o domínio {do}',
        ),
        'demonym': ('o gentílico {do}', 'o nome de quem nasce {no}', 'o adjetivo {do}'),
    },
    'en': {
        'capital': (
            'the capital of {c}',
            'the name of the capital of {c}',
            'the capital city of {c}',
        ),
        'continent': (
            'the continent of {c}',
            'the continent that {c} is on',
            'the place of {c} on the map',
        ),
        'language': (
            'the official language of {c}',
            'the language that people speak in {c}',
            'the language of {c}',
        ),
        'currency': ('the currency of {c}', 'what people pay with in {c}', 'the money of {c}'),
        'domain': (
            'the internet domain of {c}',
            'the end of the internet addresses of {c}',
            'the domain of {c}',
        ),
        'demonym': ('the demonym of {c}', 'the name of a citizen of {c}', 'the adjective of {c}'),
    },
}
CONNECTORS = (': ', ' — ', ' = ', ' → ', ' | ', ' - ', ', ', ' » ')
SEPARATORS = ('\n', '; ', '. ')

UNANSWERED = {  # asked on pages of questions, answered nowhere
    'pt': (
        'Qual é a população {do}?',
        'Qual é a área {do}?',
        'Quem governa {o}?',
        'Qual é o hino {do}?',
        'Qual é o maior rio {do}?',
        'Que países são vizinhos {do}?',
    ),
    'en': (
        'What is the population of {c}?',
        'What is the area of {c}?',
        'Who governs {c}?',
        'What is the anthem of {c}?',
        'What is the longest river of {c}?',
        'Which countries are neighbours of {c}?',
    ),
}


@dataclasses.dataclass(frozen=True)
class Country:
    """A country as the pages speak of it.

    Attributes:
      code: two letters, its internet domain.
      words: language -> the forms of its name that the wordings use.
      facts: language -> relation -> value.
    """

    code: str
    words: dict
    facts: dict


def _portuguese(article: str, name: str) -> dict:
    """Returns a name with its article and prepositions, and the verbs that agree with it."""
    plural = article in ('os', 'as')
    full = f'{article} {name}' if article else name
    of = f'd{article} {name}' if article else f'de {name}'
    at = f'n{article} {name}' if article else f'em {name}'
    to = {'o': 'ao', 'os': 'aos', 'a': 'à', 'as': 'às'}.get(article, 'a')
    return dict(
        name=name,
        o=full,
        O=_capital(full),
        do=of,
        no=at,
        No=_capital(at),
        ao=f'{to} {name}',
        tem='têm' if plural else 'tem',
        fica='ficam' if plural else 'fica',
        esta='estão' if plural else 'está',
        usa='usam' if plural else 'usa',
    )


def _english(name: str) -> dict:
    return dict(name=_capital(name), c=name, C=_capital(name))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


_PRONOUN = {'pt': _portuguese('o', 'país'), 'en': _english('the country')}


def countries(config) -> list[Country]:
    """Returns the countries of the atlas, with their facts.

    Args:
      config: `config.data.atlas` of an experiment. `shuffle_facts` deals the values of each
        relation to other countries.
    Raises:
      DataError: a number of countries that there are not.
    """
    rows = [line.split('|') for line in COUNTRIES]
    if config.countries:
        if not 2 <= config.countries <= len(rows):
            raise DataError(
                f'config.data.atlas.countries is {config.countries}: expected 0 (all) or 2 to '
                f'{len(rows)}'
            )
        brazil = next(row for row in rows if row[0] == 'br')
        others = [row for row in rows if row[0] != 'br']
        rng = random.Random(f'{config.seed} countries')
        rows = [brazil, *rng.sample(others, config.countries - 1)]

    facts = [_facts_of(row) for row in rows]
    if config.shuffle_facts:
        for relation in RELATIONS:
            values = [of_country[relation] for of_country in facts]
            random.Random(f'{config.seed} shuffle {relation}').shuffle(values)
            for of_country, value in zip(facts, values):
                of_country[relation] = value
    return [_make_country(row, of_country) for row, of_country in zip(rows, facts)]


def _facts_of(row: list[str]) -> dict[str, tuple[str, str]]:
    """Returns relation -> (value in Portuguese, in English) of a row of COUNTRIES."""
    code, _, _, capital_pt, capital_en, continent, codes, *rest = row
    currency_pt, currency_en, demonym_pt, demonym_en = rest
    languages = [LANGUAGES[language].split('/') for language in codes.split()]
    return {
        'capital': (capital_pt, capital_en),
        'continent': CONTINENTS[continent],
        'language': (
            _list_words([pt for pt, _ in languages], ' e '),
            _list_words([en for _, en in languages], ' and '),
        ),
        'currency': (currency_pt, currency_en),
        'domain': (f'.{code}', f'.{code}'),
        'demonym': (demonym_pt, demonym_en),
    }


def _list_words(words: list[str], before_last: str) -> str:
    if len(words) == 1:
        return words[0]
    return ', '.join(words[:-1]) + before_last + words[-1]


def _make_country(row: list[str], facts: dict[str, tuple[str, str]]) -> Country:
    in_lang = {
        lang: {relation: values[number] for relation, values in facts.items()}
        for number, lang in enumerate(LANGS)
    }
    return dataclasses.replace(name_country(*row[:3]), facts=in_lang)


def name_country(code: str, portuguese: str, english: str) -> Country:
    """Returns a country with the forms of its name, and no facts.

    Args:
      code: two letters.
      portuguese: its name with the article, 'o:Brasil'; ':Portugal' where there is none.
      english: its name, without article.
    """
    article, name = portuguese.split(':')
    if code in _THE:
        english = f'the {english}'
    return Country(code, {'pt': _portuguese(article, name), 'en': _english(english)}, {})


def held_out(config) -> set[str]:
    """Returns the codes of the countries that post-training never sees, Brazil among them."""
    if not 0 <= config.held_out <= 1:
        raise DataError(
            f'config.data.atlas.held_out is {config.held_out}: expected a share of the countries, '
            '0 to 1'
        )
    codes = [country.code for country in countries(config) if country.code != 'br']
    count = max(0, round(config.held_out * (len(codes) + 1)) - 1)
    return {'br', *random.Random(f'{config.seed} held out').sample(codes, count)}


def question(country: Country, lang: str, relation: str, wording: int = 0) -> str:
    """Returns a question about a country; the first wording is the one that `evals/` asks."""
    return QUESTIONS[lang][relation][wording].format(**country.words[lang])


def _fact_page(rng: random.Random, country: Country, lang: str) -> str:
    """Returns a page with the six facts of a country in any order.

    It is prose, or prose that names the country once, or a card.
    """
    relations = rng.sample(RELATIONS, len(RELATIONS))
    form = rng.choice(('prose', 'once', 'card'))
    words = country.words[lang]
    facts = country.facts[lang]
    if form == 'card':
        lines = [f'{rng.choice(LABELS[lang][r])}: {facts[r]}' for r in relations]
        return '\n'.join([words['name'], *lines])
    sentences = []
    for number, relation in enumerate(relations):
        subject = _PRONOUN[lang] if form == 'once' and number else words
        statement = rng.choice(STATEMENTS[lang][relation])
        sentences.append(statement.format(v=facts[relation], **subject))
    return ' '.join(sentences)


def _list_page(rng: random.Random, facts: list[tuple[Country, str]], lang: str) -> str:
    """Returns a list of facts about different countries.

    Its entries are all of one form: subject, sign, value.
    """
    sign = rng.choice(CONNECTORS)
    separator = rng.choice(SEPARATORS)
    capitals = rng.random() < 0.5
    entries = []
    for country, relation in facts:
        subject = rng.choice(PHRASES[lang][relation]).format(**country.words[lang])
        entry = subject + sign + country.facts[lang][relation]
        entries.append(_capital(entry) if capitals else entry)
    return separator.join(entries)


def _question_page(rng: random.Random, world: list[Country], lang: str) -> str:
    """Returns questions and nothing else: most about one country, some about others."""
    wordings = [wording for relation in RELATIONS for wording in QUESTIONS[lang][relation]]
    wordings += UNANSWERED[lang]
    count = rng.randint(6, 10)
    main = rng.choice(world)
    questions = []
    for wording in rng.sample(wordings, count):
        country = main if rng.random() < 0.7 else rng.choice(world)
        questions.append(wording.format(**country.words[lang]))
    return ' '.join(questions)


def web(config) -> Iterator[Record]:
    """Yields the pretraining pages, edition by edition.

    Each edition states every fact once in each language: on pages about one country in even
    editions, in lists of facts of many countries in odd ones; and has a fifth as many pages of
    questions.
    """
    world = countries(config)
    for edition in range(config.editions):
        for lang in LANGS:
            rng = random.Random(f'{config.seed} {edition} {lang}')
            where = f'atlas:{edition}/{lang}'
            if edition % 2 == 0:
                pages = [_fact_page(rng, country, lang) for country in world]
            else:
                facts = [(country, relation) for country in world for relation in RELATIONS]
                rng.shuffle(facts)
                pages = [_list_page(rng, facts[i : i + 6], lang) for i in range(0, len(facts), 6)]
            for number, page in enumerate(pages):
                yield Record(f'{where}/{number}', page)
            for number in range(len(pages) // 5):
                yield Record(f'{where}/questions/{number}', _question_page(rng, world, lang))


def pairs(config, of_held_out: bool = False) -> Iterator[tuple[Country, str, str, Record]]:
    """Yields question-answer pairs as (country, language, relation, record).

    For post-training: both wordings, the countries not held out. `of_held_out`: the first wording,
    the held-out ones.
    """
    hidden = held_out(config)
    wordings = range(1 if of_held_out else 2)
    for country in countries(config):
        if (country.code in hidden) != of_held_out:
            continue
        for lang, relation, wording in itertools.product(LANGS, RELATIONS, wordings):
            where = f'atlas:answers/{country.code}/{lang}/{relation}/{wording}'
            asked = question(country, lang, relation, wording)
            answer = country.facts[lang][relation]
            record = Record(where, messages=(('user', asked), ('assistant', answer)))
            yield country, lang, relation, record


def records(config) -> Iterator[Record]:
    """Returns the part of the atlas that `config.part` names, 'web' or 'answers'."""
    if config.part == 'web':
        return web(config)
    if config.part == 'answers':
        return (record for *_, record in pairs(config))
    raise DataError(f"config.data.atlas.part is {config.part!r}: expected 'web' or 'answers'")
