"""Verb forms, how tokenizers cut them, what is read and what is asked; the finding of the claim."""

import pathlib
import random

import pytest

from configs.claims import tokens as config_file
from studies.claims import tokens, verbs

ATTESTED = pathlib.Path('../shared/data/probes/portuguese_conjugations.txt')


def test_forms_are_those_of_a_grammar():
    """Catches an ending of another person, tense or conjugation (forms from a school grammar)."""
    forms = {
        ('cantar', 'ontem'): 'cantei cantaste cantou cantamos cantastes cantaram',
        ('cantar', 'amanhã'): 'cantarei cantarás cantará cantaremos cantareis cantarão',
        ('comer', 'hoje'): 'como comes come comemos comeis comem',
        ('comer', 'antes'): 'comia comias comia comíamos comíeis comiam',
        ('partir', 'hoje'): 'parto partes parte partimos partis partem',
        ('partir', 'ontem'): 'parti partiste partiu partimos partistes partiram',
    }
    for (infinitive, time), wanted in forms.items():
        verb = verbs.conjugate(infinitive)
        found = [verb.form(i) for i, cell in enumerate(verbs.CELLS) if cell[0] == time]
        assert ' '.join(found) == wanted
    assert verbs.conjugate('comer').sentence(0) == ('comer: hoje eu', ' como.')


@pytest.mark.skipif(not ATTESTED.exists(), reason='needs ../shared/data/probes')
def test_every_form_is_attested():
    """Catches a verb that is not regular, or not in its spelling."""
    assert verbs.regular_verbs(str(ATTESTED)) == verbs.regular_verbs()


def test_invented_verbs_and_permuted_endings():
    """Catches a verb that exists, and a control whose endings are still at their place or lost."""
    known = verbs.regular_verbs()
    made = verbs.invented_verbs(40, 1, known)
    assert len({verb.stem for verb in made}) == 40
    assert not {verb.infinitive for verb in made} & {verb.infinitive for verb in known}
    permuted = verbs.permute_endings(known[0], random.Random(0))
    assert sorted(permuted.endings) == sorted(known[0].endings) != permuted.endings


class Cutter:
    """A tokenizer whose pieces are given: of '▁' and the word."""

    begin, eos = (0,), 1

    def __init__(self, cut):
        self.cut = cut
        self.pieces = {}

    def encode(self, text):
        pieces = self.cut(text.replace(' ', '▁'))
        return [self.pieces.setdefault(piece, len(self.pieces) + 2) for piece in pieces]

    def encode_best(self, text, count):
        return [[i, *self.encode(text)] for i in range(count)]

    def piece(self, token):
        return {number: piece for piece, number in self.pieces.items()}[token]


def test_stability_of_a_stem():
    """Catches a piece over the stem's end that counts, and the pieces of an ending that do."""
    verb = verbs.conjugate('cantar')
    at_stem = Cutter(lambda word: ['▁ca', 'nt', *word[5:]])
    assert tokens.stem_stability(at_stem, verb) == 1
    assert tokens.stem_stability(Cutter(lambda word: [word[:3], word[3:]]), verb) == 0
    # Forms with á or í are cut otherwise: 1 in 4 of imperfect and future together.
    accented = Cutter(lambda word: list(word) if 'á' in word else [word[:5], word[5:]])
    others = [cell for cell in range(24) if 'á' not in verb.form(cell)]
    assert tokens.stem_stability(accented, verb) == len(others) / 24


def test_what_is_asked_was_not_read():
    """Catches a form that is asked for and was read, a verb held out that was read, and a control
    that is given other sentences."""
    study = tokens._Inflection(config_file.get_config(), 1, pathlib.Path('unused'))
    for permuted in (False, True):
        read, asked = study.divide(permuted)
        assert len(read) > 2000 and all(len(asked[group]) > 300 for group in tokens._GROUPS)
        assert not set(read) & set(asked['known'])
        read_verbs = {begin.split(':')[0] for begin, _ in read}
        for group in ('new', 'invented'):
            assert not read_verbs & {begin.split(':')[0] for begin, _ in asked[group]}
    rule = {begin: form for begin, form in study.divide(False)[0]}
    other = {begin: form for begin, form in read}
    assert sum(rule[begin] == other[begin] for begin in rule.keys() & other.keys()) < len(rule) / 3


def test_copies_are_cut_in_ways_of_their_own():
    """Catches copies that are all cut alike, cuts that depend on the order of texts, and a document
    that does not begin where offsets say."""
    cutter = Cutter(list)
    split = tokens.cut_texts(cutter, ['ab', 'c'], 8)
    ways = {split.document(i)[1] for i in range(0, 16, 2)}
    assert len(ways) > 2 and len(split.lengths) == 16
    again = tokens.cut_texts(cutter, ['c', 'ab'], 8)
    assert [again.document(2 * i + 1)[1] for i in range(8)] == [
        split.document(2 * i)[1] for i in range(8)
    ]
    plain = tokens.cut_texts(cutter, ['ab', 'c'], 1)
    assert plain.document(1).tolist() == [0, *cutter.encode('c'), 1]


@pytest.mark.parametrize(
    'permuted, returned, shown', [(0.1, 1.0, True), (0.9, 1.0, False), (0.1, 0.99, False)]
)
def test_the_controls_can_fail(permuted, returned, shown):
    """Catches a claim called shown though permuted endings are written as well, or some text does
    not come back."""
    config = config_file.get_config()
    records = []
    for cell in tokens.cells(config):
        record = dict(arm=cell.arm, seed=cell.seed)
        if cell.arm.startswith('tokenizer'):
            fertility = dict(pt=2.0, en=2.0)
            record |= dict(returned=returned, fertility=fertility, vocabulary=600)
            record |= dict(stable=0.9, stable_invented=0.9)
        else:
            share = permuted if cell.arm == tokens.PERMUTED else 0.9
            right = share + 0.01 * cell.seed
            record |= {g: dict(right=right, nats=1.0, count=9) for g in tokens._GROUPS}
        records.append(record)
    finding = tokens.find(config, records)
    assert finding.shown == shown and '93.0 %' in finding.sentence
