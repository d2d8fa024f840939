"""Measures, on answers made by hand."""

from configs import atlas
from evals import answers, heldout

ASKED = [
    dict(lang='pt', relation='capital', answer='Brasília'),
    dict(lang='en', relation='capital', answer='Paris'),
    dict(lang='en', relation='currency', answer='euro'),
]


def test_accuracy():
    """Catches answers taken as right by their beginning, and shares over the wrong group."""
    found = answers.accuracy(ASKED, ['Brasília', 'Paris, France', 'euro'])
    assert found == {'all': 2 / 3, 'pt': 1, 'en': 1 / 2, 'capital': 1 / 2, 'currency': 1}


def test_continuations():
    """Catches statements counted as questions because one follows later."""
    found = answers.continues(
        ASKED, [' Qual é o hino? A moeda.', ' The capital is Paris. What else?', '']
    )
    assert found == {'questions': 1 / 3, 'answers': 1 / 3}


def test_the_most_frequent_answer_is_counted_without_the_held_out_countries():
    """Catches a control that reads the answers."""
    config = atlas.get_config().data.atlas
    frequent = answers.most_frequent(config)
    assert frequent['pt', 'currency'] == 'euro' and len(frequent) == 12
    assert {q['code'] for q in answers.questions(config)} >= {'br'} and len(
        answers.questions(config)
    ) == 16 * 12


def test_xz():
    """Catches bytes counted as bits, and a continuation that pays for the text before it."""
    text = b'the quick brown fox jumps over the lazy dog ' * 50
    assert 0.2 < heldout.xz_bits_per_byte(text) < 2
    assert heldout.xz_bits_per_byte(text, text) < heldout.xz_bits_per_byte(text)
