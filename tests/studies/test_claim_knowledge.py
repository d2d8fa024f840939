"""Biographies and what is asked about them; the finding of the claim on knowledge."""

import random
import types

import pytest

from configs.claims import knowledge as config_file
from studies.claims import knowledge, people


@pytest.mark.parametrize('permuted', [False, True])
@pytest.mark.parametrize('full_names', [False, True])
def test_a_biography_states_every_fact_once(permuted, full_names):
    """Catches a fact that no sentence states, a name that is missing or too many, and an order that
    is not drawn, or drawn where it should stay."""
    orders = set()
    for person in people.make_people(20, seed=1):
        text = people.biography(person, random.Random(person.name), permuted, full_names)
        sentences = text.removesuffix('.').split('. ')
        facts = []
        for sentence in sentences:
            [fact] = [
                fact
                for fact in people.FACTS
                for template in people.TEMPLATES[fact]
                for who in (person.name, person.pronoun)
                if template.format(who=who, v=person.facts[fact]) == sentence + '.'
            ]
            facts.append(fact)
        assert sorted(facts) == sorted(people.FACTS)
        assert text.count(person.name) == (6 if full_names else 1)
        orders.add(tuple(facts))
    assert len(orders) > 10 if permuted else orders == {people.FACTS}


def test_people_are_their_own():
    """Catches two people of one name, people that depend on how many there are, and a work city
    that is not the company's."""
    many = people.make_people(200, seed=1)
    assert len({person.name for person in many}) == 200
    assert people.make_people(50, seed=1) == many[:50] != people.make_people(50, seed=2)
    places = {}
    for person in many:
        where = places.setdefault(person.facts['company'], person.facts['work city'])
        assert where == person.facts['work city']


def test_lists_of_a_folder(tmp_path):
    """Catches lists that are not read, and a last entry without an end of line that is lost."""
    for name in people.LISTS:
        (tmp_path / f'{name}.txt').write_text(f'{name} one; Oslo\n{name} two; Rome')
    names = {person.name for person in people.make_people(8, 0, str(tmp_path))}
    assert len(names) == 8 and 'first_name two; Rome' in ' '.join(names)


def test_what_a_cell_reads_and_asks(tmp_path, monkeypatch):
    """Catches an arm that reads other biographies than its own, people asked about who were taught,
    and an answer that is compared with that of another question. No model is trained here."""
    trained = []

    def train(config, directory, parent=''):
        trained.append((directory.name, parent))
        run = types.SimpleNamespace(path=directory)
        return types.SimpleNamespace(run=run, model=None, state={'params': None}, tokenizer=None)

    everyone = people.make_people(12, 1)
    known = {q: a for person in everyone[:7] for _, q, a in person.questions()}

    def answer(model, params, tokenizer, texts):
        return [known.get(text, 'unknown') for text in texts]

    monkeypatch.setattr(knowledge.lineage, 'train', train)
    monkeypatch.setattr(knowledge.answers, 'answer', answer)
    monkeypatch.setattr(knowledge, '_last_loss', lambda experiment: 1.0)
    config = config_file.get_config()
    config.seeds = 1
    config.knowledge.people = 12
    cells = knowledge.cells(config)
    records = dict(zip([c.arm for c in cells], knowledge.measure(config, cells, tmp_path)))

    # Of the six who are asked about one is known, and all who are taught.
    assert records['single']['asked'] == pytest.approx(1 / 6) and records['single']['taught'] == 1
    assert records['single']['by_fact'] == dict.fromkeys(people.FACTS, pytest.approx(1 / 6))
    assert records[knowledge.REVERSED]['asked'] == records[knowledge.REVERSED]['taught'] == 0
    for arm, (versions, *_) in knowledge.WRITTEN.items():
        slug = knowledge._slug(arm)
        assert (slug, str(tmp_path / f'read_{slug}')) in trained
        assert (
            len((tmp_path / f'texts/read_{slug}.jsonl').read_text().splitlines()) == 12 * versions
        )

    # Nothing is read of those who are asked about in the control, nor told in post-training.
    for name in ('read_five__permuted__the_asked_unread', 'single_answers'):
        text = (tmp_path / f'texts/{name}.jsonl').read_text()
        assert [person.name in text for person in everyone] == [True] * 6 + [False] * 6


@pytest.mark.parametrize('unread, single, shown', [(2, 10, True), (95, 10, False), (2, 90, False)])
def test_the_controls_can_fail(unread, single, shown):
    """Catches a claim called shown though people of whom nothing was read are known as well, or
    though one version of each biography does as much."""
    config = config_file.get_config()
    right = dict.fromkeys((*knowledge.WRITTEN, knowledge.REVERSED), 50.0)
    right |= {'single': single, knowledge.MOST: 90, knowledge.UNREAD: unread}
    records = [
        dict(arm=c.arm, seed=c.seed, asked=(right[c.arm] + c.seed) / 100, taught=1, read_loss=1)
        for c in knowledge.cells(config)
    ]
    finding = knowledge.find(config, records)
    assert finding.shown == shown and f'{single + 3:.1f} %' in finding.sentence
