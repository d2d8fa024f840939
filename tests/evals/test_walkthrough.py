"""What is told of a prompt's way through a model, against the model itself."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from data import tokenizer as tokenizers
from data.tokenizer import KINDS
from evals import walkthrough
from evals.walkthrough import Walk, describe_piece, find_turns, find_words, observe, swap_words
from model.config import resolve
from model.errors import ModelError
from model.generate import unroll_layers
from model.layers import Norm
from model.positions import ENTERS, REGISTRY
from model.transformer import Transformer, output_matrix, unembed
from runtime import models

CONTEXT = 32
PROMPT = 'The capital of Brazil is big'
TEXTS = [
    'The capital of Brazil is big. The capital of Peru is Lima.',
    'The lake of Chile is deep, and its boats are old.',
] * 20


@functools.cache
def tokenizer(kind):
    c = base.get_config().tokenizer
    sizes = {'unigram': 310, 'byte_bpe': 320}
    c.update(kind=kind, vocab_size=sizes.get(kind, 340))
    return tokenizers.train(TEXTS, c)


@functools.cache
def built(positions, vocab_size, **changes):
    """A model of two layers, and parameters that no initial value makes special."""
    c = base.get_config().model
    c.update(width=24, num_layers=2, num_heads=4, num_kv_heads=2, positions=positions, **changes)
    model = Transformer(resolve(c, vocab_size, CONTEXT))
    abstract = nn.meta.unbox(models.abstract_params(model))
    rng = np.random.default_rng(3)
    return model, jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape) * 0.4), abstract)


def followed(positions, kind='bpe', prompt=PROMPT, in_template=False, **changes):
    model, params = built(positions, tokenizer(kind).vocab_size, **changes)
    walk = Walk(model, params, tokenizer(kind), in_template)
    return walk, walk.follow(prompt)


def applied(model, params, tokens):
    """Logits, attention [L,H,T,T] and hidden states after each layer, of `model.apply`."""
    model, params = unroll_layers(model, params)
    model = model.clone(config=dataclasses.replace(model.config, attention='reference'))
    places = jnp.arange(len(tokens))[None]

    @jax.jit
    def run(params):
        return model.apply(
            {'params': params},
            jnp.asarray([tokens]),
            places,
            jnp.ones_like(places),
            mutable=['intermediates'],
            capture_intermediates=lambda module, _: type(module).__name__ == 'Block',
        )

    (logits, _), variables = run(params)
    layers = [variables['intermediates'][f'layer_{i}'] for i in range(model.config.num_layers)]
    attention = [np.asarray(layer['attention']['attention'][0][0]) for layer in layers]
    return np.asarray(logits[0]), attention, [layer['__call__'][0][0] for layer in layers]


def assert_triangles(told, expected):
    for rows, matrix in zip(told, expected, strict=True):
        for i, row in enumerate(rows):
            np.testing.assert_allclose(row, matrix[i, : i + 1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    'positions, changes',
    [
        ('learned+rope,none+forgetting', {}),
        ('alibi', dict(scan_layers=True, remat='full', dropout=0.1)),
        ('rope,cope', dict(tied=False, norm='layernorm', qk_norm=True, window=5, logit_cap=9.0)),
    ],
)
def test_numbers_are_those_of_the_model(positions, changes):
    """Catches a page whose attention, logits, guesses of layers or embeddings are not the
    model's, with scanned layers, an untied output, a window or a cap."""
    walk, facts = followed(positions, **changes)
    model, params = built(positions, tokenizer('bpe').vocab_size, **changes)
    tokens = walk.encode(PROMPT)
    logits, attention, hidden = applied(model, params, tokens)

    order = np.argsort(-logits[-1], kind='stable')
    np.testing.assert_allclose(facts['logits'], logits[-1][order], rtol=0, atol=2e-4)
    assert facts['next'][0] == walk._text(order[0])
    for told, expected in zip(facts['attention'], attention, strict=True):
        assert_triangles(told, expected)

    # The guess after each layer: that layer's output through the final norm and the output matrix.
    model, params = unroll_layers(model, params)
    assert len(facts['guesses']) == 1 + len(hidden)
    for told, x in zip(facts['guesses'][1:], hidden):
        x = Norm(model.config.norm, model.config.norm_eps).apply(
            {'params': params['final_norm']}, x
        )
        z = unembed(x, output_matrix(model.config, params), model.config.tied)[0]
        shares = np.asarray(jax.nn.softmax(z, axis=-1))
        expected = -np.sort(-shares, axis=-1)[:, : walkthrough.GUESSES]
        got = [[guess['share'] for guess in guesses] for guesses in told]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    table = np.asarray(params['embedding'], np.float64)
    vectors = table[tokens][:, : walkthrough.DIMENSIONS]
    np.testing.assert_allclose(facts['vectors'], vectors, rtol=0, atol=1e-4)

    # The nearest pieces of the table by cosine, none of them the piece itself or a mark.
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit[tokens[3]] @ unit.T
    cosines[~walk._text_pieces()] = -2
    cosines[tokens[3]] = -2
    near = np.argsort(-cosines)[: walkthrough.NEIGHBOURS]
    assert [one['text'] for one in facts['neighbours'][3]] == [walk._text(i) for i in near]
    np.testing.assert_allclose(
        [one['cosine'] for one in facts['neighbours'][3]], cosines[near], rtol=0, atol=1e-4
    )


def test_swaps_are_what_the_model_says_of_swapped_words():
    """Catches a swap whose next pieces are those of another text, and a share of probability that
    moved which is none."""
    walk, facts = followed('learned+rope,none+forgetting')
    model, params = built('learned+rope,none+forgetting', tokenizer('bpe').vocab_size)
    swapped = facts['swaps']['swapped']
    assert [one['words'] for one in swapped][:2] == [['The', 'capital'], ['capital', 'of']]
    assert swapped[1]['prompt'] == 'The of capital Brazil is big'

    def shares(prompt):
        logits = applied(model, params, walk.encode(prompt))[0][-1]
        return np.asarray(jax.nn.softmax(logits))

    before, after = shares(PROMPT), shares(swapped[1]['prompt'])
    assert swapped[1]['moved'] == pytest.approx(np.abs(before - after).sum() / 2, abs=1e-3)
    for one, expected in ((facts['swaps']['unchanged'], before), (swapped[1], after)):
        assert one['next'][0]['text'] == walk._text(expected.argmax())
        assert one['next'][0]['share'] == pytest.approx(expected.max(), abs=1e-3)


def test_what_encodings_do():
    """Catches angles, added vectors, biases or ids that are not those of the encoding, and a change
    of attention where there is none."""
    walk, facts = followed('learned+rope,none+forgetting')
    positions = facts['positions']
    params = walk.params
    length = len(facts['pieces'])
    table = np.asarray(params['positions_learned']['table'])[:length]
    [added] = positions['added']
    np.testing.assert_allclose(added['vectors'], table, rtol=0, atol=1e-4)
    first, second = positions['groups']
    assert first['layers'] == [0] and first['enters'] == ['embed', 'rotate']
    frequencies = 10000.0 ** (-np.arange(0, 6, 2) / 6)
    angles = frequencies[:, None] * np.arange(length)
    np.testing.assert_allclose(first['turns']['angles'], angles, rtol=0, atol=1e-3)
    assert second['turns'] is None and positions['ids'] == []
    assert positions['bias'][0] is None

    # Forgetting: gates of the text, whose sums never grow with the distance.
    if positions['bias'][1] is not None:
        assert all(b <= 0 for rows in positions['bias'][1] for row in rows for b in row)
    change = np.concatenate([row for rows in positions['change'][1] for row in rows])
    assert np.abs(change).max() > 0.01

    # ALiBi: a slope of each head times the distance.
    _, facts = followed('alibi', scan_layers=True, remat='full', dropout=0.1)
    for head, rows in enumerate(facts['positions']['bias'][1]):
        slope = 2.0 ** (-8 * (head + 1) / 4)
        np.testing.assert_allclose(rows[-1], -slope * np.arange(length)[::-1], rtol=0, atol=1e-3)


def test_the_end_of_a_long_prompt_is_drawn(monkeypatch):
    """Catches pictures of a long prompt that are of other tokens than its last ones."""
    monkeypatch.setattr(walkthrough, 'DRAWN', 8)
    walk, facts = followed('randomized+alibi')
    model, params = built('randomized+alibi', tokenizer('bpe').vocab_size)
    tokens = walk.encode(PROMPT)
    start = facts['start']
    assert start == len(tokens) - 8 and len(facts['pieces']) == len(tokens)
    _, attention, _ = applied(model, params, tokens)
    for told, expected in zip(facts['attention'], attention, strict=True):
        assert_triangles(told, expected[:, start:, start:])
    table = np.asarray(params['embedding'])[tokens[start:]]
    np.testing.assert_allclose(facts['vectors'], table, rtol=0, atol=1e-4)

    # Ids that are drawn: ascending, of the tokens that are shown.
    assert facts['positions']['ids']
    for one in facts['positions']['ids']:
        assert len(one['ids']) == 8 and np.all(np.diff(one['ids']) > 0)


def test_a_model_without_attention():
    """Catches a page that needs attention: guesses, swaps and added vectors are still told."""
    _, facts = followed('learned', mixing='none')
    assert facts['attention'] == [] and facts['positions']['change'] == []
    assert len(facts['guesses']) == 3 and len(facts['positions']['added']) == 1
    assert facts['positions']['groups'][0]['turns'] is None and facts['swaps']['swapped']


def test_turns_are_read_off_any_layout():
    """Catches pairs that are found for one layout alone, lengths that are not seen, and an angle of
    what is no turn."""
    theta = np.array([1.0, 0.1])
    places = np.arange(7)
    for pairs in ([(0, 2), (1, 3)], [(0, 1), (2, 3)]):
        units = np.zeros((4, 7, 4))
        for (a, b), t in zip(pairs, theta):
            units[a, :, a] = units[b, :, b] = 1.5 * np.cos(t * places)
            units[a, :, b] = 1.5 * np.sin(t * places)
            units[b, :, a] = -units[a, :, b]
        before = np.random.default_rng(0).normal(size=(7, 4))
        after = np.einsum('td,dte->te', before, units)
        turns = find_turns(dict(units=units, before=before, after=after), slice(2, 7))
        np.testing.assert_allclose(np.diff(turns['angles']), theta[:, None] * np.ones(4), atol=1e-3)
        np.testing.assert_allclose(turns['lengths'], 1.5, atol=1e-3)
    assert find_turns(dict(units=units, before=before, after=after + 1), slice(7)) is None
    mixed = np.random.default_rng(1).normal(size=units.shape)
    after = np.einsum('td,dte->te', before, mixed)
    assert find_turns(dict(units=mixed, before=before, after=after), slice(7)) is None


def _in_a_pattern(name):
    """A pattern with the encoding, beside RoPE where alone it does nothing."""
    kind = REGISTRY[name]
    if not kind.spec.wraps:
        return name
    return f'{name}+rope' if 'position_ids' in kind.enters() else f'rope+{name}'


@pytest.mark.parametrize('name', REGISTRY)
def test_any_encoding(name):
    """Catches an encoding whose way cannot be followed: a place of entry that is not passed on, or
    parameters that are not found. Ids that only tasks give are refused in one line."""
    c = base.get_config().model
    c.update(width=16, num_layers=1, num_heads=2, num_kv_heads=1, positions=_in_a_pattern(name))
    model = Transformer(resolve(c, 40, 16))

    def seen():
        return jax.eval_shape(
            functools.partial(observe.__wrapped__, model),
            nn.meta.unbox(models.abstract_params(model)),
            jax.ShapeDtypeStruct((16,), jnp.int32),
            jax.ShapeDtypeStruct((), jnp.int32),
            jax.ShapeDtypeStruct((40,), bool),
        )

    if REGISTRY[name].spec.task_ids:
        with pytest.raises(ModelError, match='needs position ids from the data'):
            seen()
        return
    found = seen()
    [layer] = found['layers']
    enters = model.config.encodings[0].enters()
    assert layer['weights'].shape == layer['bare'].shape == (2, 16, 16)
    assert (layer['bias'] is not None) == bool(enters & {'bias', 'key_bias'})
    assert (layer['turns'] is not None) == bool(enters & {'rotate', 'read'})
    assert bool(found['added']) == ('embed' in enters)
    assert found['logits'].shape == (40,) and found['guesses'].shape == (2, 16, 5)


def test_each_place_of_entry_has_words():
    """Catches a place of entry that the page has no sentence for, in either language."""
    texts = json.loads(pathlib.Path('apps/explain.json').read_text('utf-8'))
    assert texts['en'].keys() == texts['pt'].keys()
    for words in texts.values():
        assert {f'place_{place}' for place in ENTERS} <= words.keys()


@pytest.mark.parametrize('kind', KINDS)
def test_any_tokenizer(kind):
    """Catches words whose pieces are lost or told twice, and rare ones of which it is not told how
    they are spelled."""
    if kind == 'byte_bpe':
        pytest.importorskip('tokenizers', reason='a tokenizer.json needs the extra `hf`')
    made = tokenizer(kind)
    text = 'The capital of Xyzzy é 北\nBrazil.'
    tokens = [made.bos, *made.encode(text)]
    words = find_words(made, tokens)
    assert [place for word in words for place in word['pieces']] == [*range(len(tokens))]
    fates = {word['text'].strip(): word['fate'] for word in words}
    assert fates['<s>'] == 'mark' and fates['北'] == 'bytes' and fates['é'] == 'bytes'
    if kind == 'char':
        assert fates['capital'] == 'characters'
    if kind == 'bpe':
        assert fates['capital'] == 'whole'
    assert '.' in fates and 'Brazil' in fates
    pieces = [describe_piece(made, token) for token in tokens]
    letters = ''.join(piece['text'] for piece in pieces if piece['kind'] == 'byte')
    spelled = bytes.fromhex(letters).decode()
    assert {*'é北'} <= {*spelled}
    told = ''.join(piece['text'] for piece in pieces if piece['kind'] == 'text')
    assert told == ''.join(letter for letter in text if letter not in spelled)


def test_what_is_swapped():
    """Catches words that are swapped with the punctuation between them, a pair of equal words, and
    more swaps than there are rows."""
    assert [text for *_, text in swap_words("Ana's cat, Rui!")] == [
        "cat Ana's, Rui!",
        "Ana's Rui, cat!",
    ]
    assert swap_words('so so') == [] and swap_words('one') == [] and swap_words('?!') == []
    assert len(swap_words(' '.join(map(str, range(50))))) == walkthrough.ROWS - 1


def test_a_model_that_cannot_be_followed():
    """Catches a traceback in place of a line: a model that sees both ways, a prompt beyond the
    context, weights that are no numbers."""
    made = tokenizer('bpe')
    model, params = built('rope', made.vocab_size, causal=False)
    with pytest.raises(ModelError, match='sees both ways'):
        Walk(model, params, made, False).follow(PROMPT)
    model, params = built('rope', made.vocab_size)
    walk = Walk(model, params, made, False)
    with pytest.raises(
        ModelError, match=r'the prompt has 1\d\d tokens, the context of this model 32'
    ):
        walk.follow('Xy ' * 50)
    broken = jax.tree.map(lambda x: x * np.nan, params)
    with pytest.raises(ModelError, match='are no numbers'):
        Walk(model, broken, made, False).follow(PROMPT)
