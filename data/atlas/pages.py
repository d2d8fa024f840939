"""A small Portuguese and English web about the countries of the world, made from `atlas_facts.py`, seeded.

`web`: pages that state facts in varied wordings and orders, and pages that only list questions, as such pages do. A
question is never followed by its answer. `answers`: question-answer pairs, for the countries that are not held out.
"""

import dataclasses
import random
from collections.abc import Iterator

from data.atlas.facts import CONTINENTS, COUNTRIES, LANGUAGES
from data.records import DataError, Record

RELATIONS = ('capital', 'continent', 'language', 'currency', 'domain', 'demonym')
_THE = {
    'bs',
    'gm',
    'nl',
    'ph',
    'uk',
    'us',
    'mv',
    'km',
    'mh',
    'sb',
    'sc',
    'ae',
    'cd',
    'cg',
    'cf',
    'do',
}

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
    code: str
    words: dict  # language -> the forms of its name that the wordings use
    facts: dict  # language -> relation -> value


def _forms(code: str, article: str, pt: str, en: str) -> dict:
    return {'pt': _portuguese(article, pt), 'en': _english(f'the {en}' if code in _THE else en)}


def _portuguese(article: str, name: str) -> dict:
    plural = article in ('os', 'as')
    full = f'{article} {name}' if article else name
    of, at = (
        (f'd{article} {name}', f'n{article} {name}') if article else (f'de {name}', f'em {name}')
    )
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
    """The countries of the atlas, with their facts: the real ones, or permuted ones under `shuffle_facts`."""
    rows = [line.split('|') for line in COUNTRIES]
    if config.countries:
        if not 2 <= config.countries <= len(rows):
            raise DataError(
                f'config.data.atlas.countries is {config.countries}: expected 0 (all) or 2 to {len(rows)}'
            )
        brazil = next(r for r in rows if r[0] == 'br')
        others = [r for r in rows if r[0] != 'br']
        rows = [brazil] + random.Random(f'{config.seed} countries').sample(
            others, config.countries - 1
        )
    facts = []
    for (
        code,
        _,
        _,
        capital_pt,
        capital_en,
        continent,
        languages,
        currency_pt,
        currency_en,
        demonym_pt,
        demonym_en,
    ) in rows:
        spoken = [LANGUAGES[x].split('/') for x in languages.split()]
        join = lambda words, last: (
            ', '.join(words[:-1]) + (last if len(words) > 1 else '') + words[-1]
        )
        facts.append(
            {
                'capital': (capital_pt, capital_en),
                'continent': CONTINENTS[continent],
                'language': (
                    join([pt for pt, _ in spoken], ' e '),
                    join([en for _, en in spoken], ' and '),
                ),
                'currency': (currency_pt, currency_en),
                'domain': (f'.{code}', f'.{code}'),
                'demonym': (demonym_pt, demonym_en),
            }
        )
    if config.shuffle_facts:
        for relation in RELATIONS:
            values = [f[relation] for f in facts]
            random.Random(f'{config.seed} shuffle {relation}').shuffle(values)
            for f, value in zip(facts, values):
                f[relation] = value
    return [
        Country(
            r[0],
            _forms(r[0], *r[1].split(':'), r[2]),
            {lang: {k: v[i] for k, v in f.items()} for i, lang in enumerate(('pt', 'en'))},
        )
        for r, f in zip(rows, facts)
    ]


def held_out(config) -> set[str]:
    """Codes of the countries that post-training never sees, Brazil among them."""
    if not 0 <= config.held_out <= 1:
        raise DataError(
            f'config.data.atlas.held_out is {config.held_out}: expected a share of the countries, 0 to 1'
        )
    codes = [c.code for c in countries(config) if c.code != 'br']
    count = max(0, round(config.held_out * (len(codes) + 1)) - 1)
    return {'br', *random.Random(f'{config.seed} held out').sample(codes, count)}


def question(country: Country, lang: str, relation: str, wording: int = 0) -> str:
    return QUESTIONS[lang][relation][wording].format(**country.words[lang])


def _fact_page(rng, country, lang) -> str:
    """The six facts of a country in any order: as prose, as prose that names the country once, or as a card."""
    relations, form = rng.sample(RELATIONS, len(RELATIONS)), rng.choice(('prose', 'once', 'card'))
    if form == 'card':
        lines = [f'{rng.choice(LABELS[lang][r])}: {country.facts[lang][r]}' for r in relations]
        return '\n'.join([country.words[lang]['name'], *lines])
    words = [
        country.words[lang],
        *[_PRONOUN[lang] if form == 'once' else country.words[lang]] * (len(relations) - 1),
    ]
    return ' '.join(
        rng.choice(STATEMENTS[lang][r]).format(v=country.facts[lang][r], **w)
        for r, w in zip(relations, words)
    )


def _list_page(rng, facts, lang) -> str:
    """A list of facts about different countries, its entries all of one form: subject, sign, value."""
    sign, end, capital = rng.choice(CONNECTORS), rng.choice(SEPARATORS), rng.random() < 0.5
    entries = [
        rng.choice(PHRASES[lang][r]).format(**c.words[lang]) + sign + c.facts[lang][r]
        for c, r in facts
    ]
    return end.join(_capital(e) if capital else e for e in entries)


def _question_page(rng, world, lang) -> str:
    """Questions and nothing else: about one country, or of many countries."""
    wordings = [w for r in RELATIONS for w in QUESTIONS[lang][r]] + list(UNANSWERED[lang])
    count = rng.randint(6, 10)
    one = rng.choice(world)
    chosen = rng.sample(wordings, count)
    return ' '.join(
        w.format(**(one if rng.random() < 0.7 else rng.choice(world)).words[lang]) for w in chosen
    )


def web(config) -> Iterator[Record]:
    """The pretraining pages, edition by edition. Each edition states every fact once in each language: on pages about one
    country in even editions, in lists of facts of many countries in odd ones; a fifth as many pages of questions."""
    world = countries(config)
    for edition in range(config.editions):
        for lang in ('pt', 'en'):
            rng = random.Random(f'{config.seed} {edition} {lang}')
            where = f'atlas:{edition}/{lang}'
            if edition % 2 == 0:
                pages = [_fact_page(rng, country, lang) for country in world]
            else:
                facts = [(c, r) for c in world for r in RELATIONS]
                rng.shuffle(facts)
                pages = [_list_page(rng, facts[i : i + 6], lang) for i in range(0, len(facts), 6)]
            for i, page in enumerate(pages):
                yield Record(f'{where}/{i}', page)
            for i in range(len(pages) // 5):
                yield Record(f'{where}/questions/{i}', _question_page(rng, world, lang))


def pairs(config, of_held_out: bool = False) -> Iterator[tuple[Country, str, str, Record]]:
    """Question-answer pairs as (country, language, relation, record).

    For post-training: both wordings, the countries not held out. `of_held_out`: the first wording, the held-out ones.
    """
    hidden = held_out(config)
    for country in countries(config):
        if (country.code in hidden) == of_held_out:
            for lang in ('pt', 'en'):
                for relation in RELATIONS:
                    for wording in range(1 if of_held_out else 2):
                        messages = (
                            ('user', question(country, lang, relation, wording)),
                            ('assistant', country.facts[lang][relation]),
                        )
                        yield (
                            country,
                            lang,
                            relation,
                            Record(
                                f'atlas:answers/{country.code}/{lang}/{relation}/{wording}',
                                messages=messages,
                            ),
                        )


def records(config) -> Iterator[Record]:
    """The part of the atlas that `config.part` names."""
    if config.part == 'web':
        return web(config)
    if config.part == 'answers':
        return (record for *_, record in pairs(config))
    raise DataError(f"config.data.atlas.part is {config.part!r}: expected 'web' or 'answers'")
