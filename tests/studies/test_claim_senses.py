"""The probe on vectors whose senses are known, words in sentences, heads left out, the finding."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs.claims import senses as config_file
from runtime.errors import RunError
from studies.claims import senses

RNG = np.random.default_rng(0)
WORDS = [f'w{i % 12}' for i in range(360)]
VERB = RNG.random(360) < 0.3


def test_a_probe_tells_what_words_share_and_nothing_else():
    """Catches a probe that is tested on words it was trained on, and one whose chance is not a half
    where senses are not alike in number."""
    noise = RNG.normal(size=(360, 16))
    direction = RNG.normal(size=16)
    shared = noise + 4 * np.outer(VERB, direction)
    assert senses.probe(shared, WORDS, VERB, 0) > 0.95

    # Each word has a direction of its own: known ones are told apart, others are not.
    own = RNG.normal(size=(12, 16))
    of_word = np.array([own[int(word[1:])] for word in WORDS])
    alone = 0.3 * noise + 4 * of_word * VERB[:, None]
    assert 0.3 < senses.probe(alone, WORDS, VERB, 0) < 0.75
    assert 0.4 < senses.probe(noise, WORDS, VERB, 0) < 0.6


class Spaces:
    """A tokenizer whose pieces are words with the space before them."""

    begin = (0,)

    def __init__(self):
        self.pieces = {}

    def encode(self, text):
        words = [piece for piece in text.replace(' ', '\0 ').split('\0') if piece]
        return [self.pieces.setdefault(word, len(self.pieces) + 1) for word in words]


def test_the_vector_is_that_of_the_word():
    """Catches the place of the word before or after, and signs that hide a word."""
    tokenizer = Spaces()
    found = [
        senses.Sentence('jogo', 'NOUN', 'O jogo foi bom'),
        senses.Sentence('jogo', 'VERB', 'Eu jogo'),
        senses.Sentence('jogo', 'NOUN', 'Um jogo, sim'),  # one piece with the comma: left out
        senses.Sentence('jogo', 'NOUN', 'nada aqui'),
    ]
    rows, places, kept = senses._find_words(tokenizer, found)
    assert kept == found[:2]
    pieces = {number: piece for piece, number in tokenizer.pieces.items()}
    assert [pieces[row[place]].strip() for row, place in zip(rows, places)] == ['jogo', 'jogo']


def test_heads_are_left_out():
    """Catches a head of another layer, and parameters of the model that are changed too."""
    params = {
        f'layer_{i}': {'attention': {'out': {'kernel': jnp.ones((4, 2, 3))}}} for i in range(2)
    }
    changed = senses.without_heads(params, [(1, 2)])
    sums = [
        np.asarray(changed[f'layer_{i}']['attention']['out']['kernel']).sum((1, 2)) for i in (0, 1)
    ]
    assert sums[0].tolist() == [6] * 4 and sums[1].tolist() == [6, 6, 0, 6]
    assert np.asarray(params['layer_1']['attention']['out']['kernel']).sum() == 24


def test_sentences_of_a_file(tmp_path):
    """Catches words of one sense, other parts of speech, and a file that is none told badly."""
    config = config_file.get_config()
    path = tmp_path / 'corpus.jsonl'
    lines = [
        dict(word=w, pos=pos, sentence=f'{w} {pos}', more=1)
        for w in 'abcdefg'
        for pos in ('NOUN', 'VERB', 'ADP')
        if (w, pos) != ('g', 'VERB')
    ]
    path.write_text('\n'.join(map(json.dumps, lines)))
    config.senses.sentences = str(path)
    found = senses.read_sentences(config)
    assert {s.word for s in found} == set('abcdef') and {s.sense for s in found} == {'NOUN', 'VERB'}
    path.write_text('{"word": "a"}')
    with pytest.raises(RunError, match="config.senses.sentences is .*: 'pos'; expected a file"):
        senses.check(config)


@pytest.mark.parametrize(
    'cut, none, permuted, shown',
    [
        (0.5, 0.5, 0.5, True),
        (0.9, 0.5, 0.5, False),
        (0.5, 0.9, 0.5, False),
        (0.5, 0.5, 0.95, False),
    ],
)
def test_the_controls_can_fail(cut, none, permuted, shown):
    """Catches a claim called shown though the model without attention, attention cut, or permuted
    senses do as well."""
    config = config_file.get_config()
    records = []
    for cell in senses.cells(config):
        more = 0.001 * cell.seed
        whole = 0.9 if cell.arm == senses.ATTENTION else none
        layers = dict(whole=whole, cut=cut, labels_permuted=permuted)
        record = {how: [0.5, value + more] for how, value in layers.items()}
        induction = dict(nats=1.0, nats_without_best=2.0 + more, nats_without_others=1.1)
        induction |= dict(scores=[[0.1, 0.8]], map=[[1.0]])
        records.append(dict(arm=cell.arm, seed=cell.seed, induction=induction, **record))
    finding = senses.find(config, records)
    assert finding.shown == shown and 'in layer 1' in finding.sentence
    assert any('+1.00' in line for line in finding.lines)
