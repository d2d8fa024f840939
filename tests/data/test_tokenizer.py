"""Any text comes back exactly, in every kind of tokenizer."""

import io
import re

import pytest
import sentencepiece
from hypothesis import given, settings, strategies as st

from configs import base
from data import store, tokenizer as tokenizers
from data.records import DataError
from data.tokenizer import CONTROL, KINDS

MARKS = (
    *CONTROL,
    '<s>',
    '</s>',
    '<pad>',
    '<unk>',
    '<0x41>',
    '\u2581',
    '\0',
    '\n',
    '\r\n',
    '\t',
    '  ',
    ' a',
    '2024',
    '٣',
    'é',
    'e\u0301',
    '\ufeff',
    '\u200d',
    '\u00a0',
    '日本',
    '🏳\ufe0f\u200d🌈',
    '\U0010ffff',
)
TEXTS = st.text() | st.lists(st.sampled_from(MARKS) | st.text(max_size=3)).map(''.join)


def wanted(kind='bpe', vocab_size=440):
    config = base.get_config().tokenizer
    config.update(kind=kind, vocab_size=vocab_size)
    return config


@pytest.fixture(scope='module')
def corpus():
    config = base.get_config().data
    config.atlas.update(countries=6, editions=4)
    return [f'{text}\nem 1999 e em 2024, since 1822' for text in store.training_texts(config)]


@pytest.fixture(scope='module', params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope='module')
def trained(kind, corpus):
    return tokenizers.train(corpus, wanted(kind))


@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
def test_any_text_round_trips(trained, text):
    """Catches normalisation, a lost space or NUL, an unknown id, and text that encodes to a control piece."""
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    pieces = {trained.piece(i) for i in ids}
    assert not pieces & {*CONTROL, '<s>', '</s>', '<pad>', '<unk>'}
    assert all(0 <= i < trained.vocab_size for i in ids)
    assert not [
        p
        for p in pieces
        if len(p) > 1 and not p.startswith('<0x') and any(c in '0123456789' for c in p)
    ]


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(TEXTS, max_size=4))
def test_a_batch_is_its_texts(trained, texts):
    """Catches pieces of one text that land in its neighbour."""
    assert trained.encode_batch(texts, 2) == [trained.encode(t) for t in texts]


def test_special_pieces(trained):
    """Catches two roles of one id, a missing byte, a chat mark that shows in decoded text."""
    special = [trained.pad, trained.bos, trained.eos, trained.user, trained.assistant, trained.end]
    assert len(set(special)) == 6 and trained.pad == 0
    assert trained.decode([*special, *trained.encode('olá'), trained.end]) == 'olá'
    assert len({trained._id(f'<0x{b:02X}>') for b in range(256)} - {None}) == 256


@pytest.mark.parametrize('kind', ['unigram', 'bpe'], scope='module')
def test_learns_from_its_text(trained, corpus):
    """Catches a vocabulary that ignores the text, or another size than was asked for."""
    assert trained.vocab_size == 440
    text = '\n'.join(corpus)
    assert len(trained.encode(text)) < 0.75 * len(text)
    assert len(trained.encode(text)) < 0.8 * len(trained.encode(text[::-1]))


def test_deterministic(kind, trained, corpus, monkeypatch):
    """Catches a model that depends on the run, or on the number of cores."""
    monkeypatch.setattr('os.cpu_count', lambda: 3)
    assert tokenizers.train(corpus, wanted(kind)).hash == trained.hash
    assert tokenizers.train(corpus[::2], wanted(kind)).hash != trained.hash


def test_reads_no_more_than_asked(kind, corpus):
    """Catches a limit on the training text that does not hold."""
    config = wanted('bpe')
    config.train_megabytes = (
        sum(len(line.encode()) for t in corpus[:30] for line in t.split('\n')) / 1e6 - 1e-6
    )
    read = []
    tokenizers.train((read.append(t) or t for t in corpus), config)
    assert len(read) == 30


@pytest.mark.parametrize('split', ['documents', 'tail'])
def test_held_out_text_has_no_say(config, files, split):
    """Catches a vocabulary learnt on the validation split."""
    config.update(split=split, validation=0.25)
    documents = [f'document {i}: ' + 'palavras e palavras ' * 5 for i in range(40)]
    hidden = [store.in_split(i, config) == 'validation' for i in range(40)]
    train = lambda texts: tokenizers.train(store.training_texts(config), wanted('char')).hash
    changed = lambda text, held: (
        text[:-10] + 'ŧøþæ' * 2 + 'ŋđ' if split == 'tail' else 'ŧøþæ' if held else text
    )
    hashes = []
    for texts in (
        documents,
        [changed(t, h) for t, h in zip(documents, hidden)],
        [t.replace('a', 'ŧ') for t in documents],
    ):
        files(**{f'{i:02}__txt': t for i, t in enumerate(texts)})
        hashes.append(train(texts))
    assert hashes[0] == hashes[1] != hashes[2]
    assert split == 'tail' or 0 < sum(hidden) < 40


@pytest.mark.parametrize(
    'config, message',
    [
        (wanted(vocab_size=100), r'config.tokenizer.vocab_size is 100: .* need at least (\d+)'),
        (wanted('unigram', 100), r'config.tokenizer.vocab_size is 100: .* need at least (\d+)'),
        (
            wanted(vocab_size=50000),
            r'config.tokenizer.vocab_size is 50000: the text supports at most (\d+)',
        ),
        (
            wanted('unigram', 50000),
            r'config.tokenizer.vocab_size is 50000: the text supports at most (\d+)',
        ),
    ],
)
def test_vocabulary_bounds(corpus, config, message):
    """Catches a refusal whose bound is not the bound: the size it names trains, the next one does not."""
    with pytest.raises(DataError, match=message) as refused:
        tokenizers.train(corpus, config)
    bound = int(re.search(message, str(refused.value))[1])
    assert tokenizers.train(corpus, wanted(config.kind, bound)).vocab_size == bound
    with pytest.raises(DataError, match='config.tokenizer.vocab_size'):
        tokenizers.train(
            corpus, wanted(config.kind, bound + (1 if config.vocab_size > bound else -1))
        )


def test_mistakes(tmp_path, corpus):
    """Catches a traceback for a wrong kind, no text, and a file that is missing, no model, or another's model."""
    foreign = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=foreign,
        vocab_size=100,
        model_type='bpe',
        minloglevel=3,
    )
    (tmp_path / 'foreign').write_bytes(foreign.getvalue())
    (tmp_path / 'text').write_text('no model at all')
    (tmp_path / 'empty').write_bytes(b'')
    for name, message in [
        ('foreign', 'lacks pad, user, assistant, end'),
        ('text', 'not a SentencePiece model'),
        ('empty', 'not a SentencePiece model'),
        ('absent', 'no tokenizer there'),
        ('', 'no tokenizer there'),
    ]:
        with pytest.raises(DataError, match=f'{tmp_path / name}: {message}'):
            tokenizers.load(tmp_path / name)
    with pytest.raises(
        DataError, match="config.tokenizer.kind is 'word': expected one of unigram, bpe, char"
    ):
        tokenizers.train(corpus, wanted('word'))
    with pytest.raises(DataError):
        tokenizers.train(['', '\n'], wanted())


def test_saved_and_loaded(trained, tmp_path):
    """Catches a file that is not the tokenizer it was written from."""
    (tmp_path / 'tokenizer.model').write_bytes(trained.proto)
    again = tokenizers.load(tmp_path / 'tokenizer.model')
    assert again.hash == trained.hash and again.encode('A capital do Brasil') == trained.encode(
        'A capital do Brasil'
    )
