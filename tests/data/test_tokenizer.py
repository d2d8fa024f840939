"""SentencePiece as Ordem trains it."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from data import atlas, store, tokenizer
from data.records import DataError


def texts():
    config = base.get_config().data.atlas
    config.update(countries=12, editions=4)
    return [r.text for r in atlas.web(config)]


def trained(kind='bpe', **changes):
    config = base.get_config().tokenizer
    config.update(kind=kind, vocab_size=500, **changes)
    return tokenizer.train(texts(), config)


@pytest.fixture(scope='module', params=tokenizer.KINDS)
def tok(request):
    return trained(request.param)


@settings(deadline=None, max_examples=150)
@given(st.text() | st.sampled_from(['\u2581x \u2581\u2581', '  a  b \n\n\tc ', '<|user|>oi<|end|>', '\0\x01', '<0x41>', '\r\n', '⁇', '<unk>', '']))
def test_any_text_comes_back(tok, text):
    """Catches normalisation, lost spaces, unknown characters, and marks in the text taken for control pieces."""
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert not {tok.pad, tok.bos, tok.eos, tok.user, tok.assistant, tok.end, 3} & set(ids)


def test_digits_are_split_and_accents_are_pieces(tok):
    """Catches numbers that share pieces, and Portuguese spelled in bytes."""
    pieces = [tok.piece(i) for i in tok.encode('em 2026 ação')]
    assert [p for p in pieces if p.strip('▁').isdigit()] == list('2026') and not any(p.startswith('<0x') for p in pieces)


@pytest.mark.parametrize('kind', tokenizer.KINDS)
def test_training_is_deterministic(kind, tok):
    """Catches a vocabulary that depends on threads or chance."""
    assert trained(kind).hash == trained(kind).hash


def test_held_out_text_has_no_say():
    """Catches a tokenizer trained on the evaluation text."""
    config = base.get_config().data
    config.atlas.update(countries=4, editions=10)
    config.validation = 0.3
    held_out = {r.text for i, r in enumerate(atlas.web(config.atlas)) if store.in_split(i, config) == 'validation'}
    training = list(store.training_texts(config))
    assert held_out and not held_out & set(training)


@pytest.mark.parametrize('changes, message', [
    (dict(vocab_size=90000), 'config.tokenizer.vocab_size is 90000: the text supports at most'),
    (dict(vocab_size=100), 'config.tokenizer.vocab_size is 100: .* need at least')])
@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_vocabularies_that_do_not_fit(kind, changes, message):
    """Catches SentencePiece's own message passed on."""
    config = base.get_config().tokenizer
    config.update(kind=kind, **changes)
    with pytest.raises(DataError, match=message):
        tokenizer.train(texts(), config)


def test_what_is_no_tokenizer_is_refused(tmp_path):
    """Catches a model of another make whose reserved ids would be wrong."""
    import io

    import sentencepiece
    (tmp_path / 'x').write_bytes(b'no model')
    with pytest.raises(DataError, match='not a SentencePiece model'):
        tokenizer.load(tmp_path / 'x')
    with pytest.raises(DataError, match='no tokenizer there'):
        tokenizer.load(tmp_path / 'y')
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts()), model_writer=model, vocab_size=300, minloglevel=3)
    with pytest.raises(DataError, match='lacks pad, user, assistant, end'):
        tokenizer.Tokenizer(model.getvalue())
