"""The atlas keeps its promises: what is held out stays held out, facts are right, the control
destroys them."""

import collections
import json
import pathlib
import re

import pytest

from configs import base
from data.atlas import pages as atlas_pages
from data.records import DataError

REFERENCE = pathlib.Path('../shared/data/qa/countries.json')
DIFFERENT = {  # where the atlas says something else than the reference, and why
    ('sz', 'capital'): 'Mbabane',  # seat of the government; Lobamba is that of king and parliament
    ('us', 'capital'): 'Washington, D.C.',  # the comma
    ('ag', 'demonym'): 'Antiguan',
    ('ba', 'demonym'): 'Bosnian',
    ('kn', 'demonym'): 'Kittitian',  # the first of two
    ('cv', 'demonym'): 'Cape Verdean',
    ('mv', 'demonym'): 'Maldivian',
    ('st', 'demonym'): 'São Toméan',  # spelling
    ('dj', 'demonym'): 'Djiboutian',  # the reference gives the name of the country
    ('gw', 'demonym'): 'Bissau-Guinean',
    ('vc', 'demonym'): 'Vincentian',
}  # the usual word


def make(**changes):
    config = base.get_config().data.atlas
    config.update(editions=6, **changes)
    return config


def document(record):
    return '\n'.join(record.parts())


@pytest.fixture(scope='module')
def config():
    return make()


@pytest.fixture(scope='module')
def world(config):
    return {country.code: country for country in atlas_pages.countries(config)}


@pytest.fixture(scope='module')
def web(config):
    return [document(r) for r in atlas_pages.records(config)]


@pytest.fixture(scope='module')
def answers():
    return [document(r) for r in atlas_pages.records(make(part='answers'))]


@pytest.fixture(scope='module')
def asked(world):
    """Every question that the atlas can ask."""
    wordings = [
        (lang, w)
        for lang in ('pt', 'en')
        for w in [
            *(w for both in atlas_pages.QUESTIONS[lang].values() for w in both),
            *atlas_pages.UNANSWERED[lang],
        ]
    ]
    return {w.format(**country.words[lang]) for country in world.values() for lang, w in wordings}


def facts(countries):
    """(question, answer) of each fact, in both languages and wordings."""
    return [
        (atlas_pages.question(c, lang, r, wording), c.facts[lang][r])
        for c in countries
        for lang in ('pt', 'en')
        for r in atlas_pages.RELATIONS
        for wording in (0, 1)
    ]


def sentences(text):
    return re.split(r'(?<=\?)\s+', text.strip())


def answered(documents, known, asked):
    """(how often one of the questions is asked, which of them a document answers after asking,
    outside of other questions)."""
    count = 0
    leaked = []
    for text in documents:
        for question, answer in known if '?' in text else ():
            if question in text:
                count += 1
                rest = ' '.join(s for s in sentences(text.split(question, 1)[1]) if s not in asked)
                if re.search(rf'(?<!\w){re.escape(answer)}(?!\w)', rest, re.IGNORECASE):
                    leaked.append(question)
    return count, leaked


def test_held_out_questions_are_never_answered(config, world, web, answers, asked):
    """Catches a leak: any document that asks about a held-out country and then says the answer."""
    hidden = atlas_pages.held_out(config)
    count, leaked = answered(web + answers, facts(world[code] for code in hidden), asked)
    assert count > 100 and not leaked


def test_taught_questions_are_answered(config, world, answers, asked):
    """Catches a leak detector that sees nothing, and pairs with another country's answer or in one
    wording only."""
    taught = facts(c for code, c in world.items() if code not in atlas_pages.held_out(config))
    assert sorted(answered(answers, taught, asked)[1]) == sorted(q for q, _ in taught)
    assert sorted(answers) == sorted(f'{q}\n{a}' for q, a in taught)


def test_pages_ask_or_tell(web, asked):
    """Catches a page of questions that states anything, and a page of facts that asks."""
    pages = [set(sentences(page)) for page in web if '?' in page]
    assert all(page <= asked for page in pages)
    assert 0.1 < len(pages) / len(web) < 0.25


def test_web_states_every_fact_in_each_edition(config, world):
    """Catches an edition that leaves out or repeats facts: domains, which occur once a fact, are
    counted."""
    occurrences = collections.Counter()
    for record in atlas_pages.records(config):
        edition = re.match(r'atlas:(\d+/\w\w)/\d', record.where)
        if edition:
            occurrences.update(
                (edition[1], d) for d in re.findall(r'(?<![\w.])\.[a-z]{2}(?!\w)', record.text)
            )
    assert occurrences == {
        (f'{e}/{lang}', f'.{code}'): 1 for e in range(6) for lang in ('pt', 'en') for code in world
    }


def test_pairs_split_at_held_out(config, world):
    """Catches pairs of a held-out country in post-training, and evaluation pairs of a taught
    one."""
    hidden = atlas_pages.held_out(config)
    assert 'br' in hidden and len(hidden) == round(0.2 * len(world))
    taught, evaluated = (
        [c.code for c, *_ in atlas_pages.pairs(config, of)] for of in (False, True)
    )
    assert set(taught) == set(world) - hidden and set(evaluated) == hidden
    assert len(taught) == 24 * len(set(taught)) and len(evaluated) == 12 * len(hidden)


@pytest.mark.parametrize('part', ['web', 'answers'])
def test_deterministic(part):
    """Catches unseeded randomness, and a seed without effect."""
    first, again, other = (
        list(atlas_pages.records(make(part=part, countries=20, seed=seed))) for seed in (3, 3, 4)
    )
    assert first == again and first != other
    assert len({r.where for r in first}) == len(first)


def test_shuffled_facts(world, web):
    """Catches a control that leaves facts in place, invents values, mixes languages, or states the
    true ones on the pages."""
    control = make(shuffle_facts=True)
    shuffled = {c.code: c for c in atlas_pages.countries(control)}

    def both(countries, r):
        return [(c.facts['pt'][r], c.facts['en'][r]) for c in countries.values()]

    for r in atlas_pages.RELATIONS:
        assert sorted(both(shuffled, r)) == sorted(both(world, r))
    moved = [
        both(shuffled, r)[i] != both(world, r)[i]
        for r in ('capital', 'domain')
        for i in range(len(world))
    ]
    assert sum(moved) > 0.95 * len(moved)
    brazil = [
        re.escape(atlas_pages._capital(s.format(v='@', **world['br'].words['en']))).replace(
            '@', r'(\.\w\w)'
        )
        for s in atlas_pages.STATEMENTS['en']['domain']
    ]

    def stated(pages):
        return {m for page in pages for s in brazil for m in re.findall(s, page)}

    assert stated(web) == {'.br'}
    assert (
        stated(document(r) for r in atlas_pages.records(control))
        == {shuffled['br'].facts['en']['domain']}
        != {'.br'}
    )


@pytest.mark.parametrize('count', [2, 5, 193])
def test_some_countries(count):
    """Catches a small atlas without Brazil, or of another size."""
    codes = [c.code for c in atlas_pages.countries(make(countries=count))]
    assert len(set(codes)) == len(codes) == count and 'br' in codes


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(countries=1), 'config.data.atlas.countries is 1'),
        (dict(countries=-3), 'config.data.atlas.countries is -3'),
        (dict(countries=194), 'config.data.atlas.countries is 194: expected 0 .all. or 2 to 193'),
        (dict(part='pages'), "config.data.atlas.part is 'pages'"),
        (dict(part='answers', held_out=1.5), 'config.data.atlas.held_out is 1.5'),
        (dict(part='answers', held_out=-0.5), 'config.data.atlas.held_out is -0.5'),
    ],
)
def test_mistakes(changes, message):
    """Catches a field out of range that is taken silently, or with a traceback of its own."""
    with pytest.raises(DataError, match=message):
        list(atlas_pages.records(make(**changes)))


def test_words_are_complete(web, answers):
    """Catches a form left unfilled, a doubled preposition, a missing article, an empty value."""
    wrong = re.compile(
        r'[{}]|  |\bde o\b|\bem o\b|\ba o\b|: ?$|\bthe the\b'
        r'|\bcapital of (Netherlands|United|Gambia)'
    )
    assert not [page for page in web + answers if wrong.search(page)]


@pytest.mark.skipif(not REFERENCE.exists(), reason=f'{REFERENCE} is absent')
def test_facts_are_right(world):
    """Catches a wrong capital, continent, demonym, domain or missing country, against a public
    table."""
    known = {row['cca2'].lower(): row for row in json.loads(REFERENCE.read_text())}
    known['uk'] = known.pop('gb')

    def americas(row):
        return 'South America' if row['subregion'] == 'South America' else 'North America'

    differs = {}
    for code, country in world.items():
        row = known[code]
        stated = country.facts['en']
        expected = {
            'capital': row['capital'],
            'demonym': list(row['demonyms']['eng'].values()),
            'domain': row['tld'],
            'continent': [americas(row) if row['region'] == 'Americas' else row['region']],
        }
        differs |= {
            (code, r): stated[r] for r, values in expected.items() if stated[r] not in values
        }
    assert differs == DIFFERENT
    members = {code for code, row in known.items() if row['unMember']}
    assert set(world) == members - {'va'}  # an observer, which the reference counts as a member
