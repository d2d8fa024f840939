"""Any text comes back exactly, in every kind of tokenizer."""

import io
import random
import re
import unicodedata
from unittest import mock

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings, strategies as st

from configs import base
from data import parts, splits, store, tokenizer as tokenizers
from data.records import DataError
from data.tokenizer import CONTROL
from runtime.run_dir import Run

KINDS = ('unigram', 'bpe', 'char')  # the others: tests/data/test_fast_tokenizer.py
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
    """Catches normalisation, a lost space or NUL, an unknown id, and text that encodes to a control
    piece."""
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


@settings(deadline=None, max_examples=100)
@given(text=TEXTS, repeats=st.integers(1, 4))
def test_a_long_text_is_cut_without_a_trace(kind, trained, text, repeats):
    """Catches tokens that depend on where a long text was cut, and a long text that is not cut."""
    text = f'{text} de um\n  a' * repeats
    whole: list[int] = []
    for number, between in enumerate(text.split('\u2581')):
        whole += (trained.encode('\u2581') if number else []) + trained._sp.encode(between)
    with mock.patch.object(parts, '_PART', 2):
        assert trained.encode(text) == whole
        cut = parts.cut(text)
        assert ''.join(cut) == text and len(cut) > 1
    assert trained.may_cut == (kind != 'unigram')


@pytest.mark.parametrize(
    'proto, pieces, may',
    [
        (dict(), ['\u2581\u2581a', '\n', '\u2581'], True),
        (dict(model_type=1), ['a'], False),
        (dict(dummy=1), ['a'], False),
        (dict(), ['a\u2581b'], False),
        (dict(), ['a\n'], False),
        (dict(), ['\n\n'], False),
    ],
)
def test_where_a_text_may_not_be_cut(proto, pieces, may):
    """Catches a cut through a piece, and one before which or after which a normalizer would act."""
    values = dict(model_type=2, dummy=0) | proto
    trainer = bytes([3 << 3, values['model_type']])
    normalizer = bytes([3 << 3, values['dummy'], 4 << 3, 0])
    model = b''.join(
        bytes([number << 3 | 2, len(part)]) + part
        for number, part in ((1, b'piece'), (2, trainer), (3, normalizer))
    )
    assert parts.may_cut(model, pieces) is may


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


ENGLISH = 'the quick brown fox jumps over the lazy dog and the white house of the king'.split()
RUSSIAN = 'быстрая коричневая лиса прыгает через ленивую собаку и белый дом короля'.split()
SAID = 'коричневая лиса и белый дом'


def drawn(words, count, seed=0):
    rng = random.Random(seed)
    return ' '.join(rng.choice(words) for _ in range(count))


@pytest.mark.parametrize('share', [0.1, 0.5, 2])
def test_uses_no_more_than_asked(share):
    """Catches a limit on the training text that does not hold, or is far from filled by what is
    used."""
    lines = [f'{i} ' + 'word ' * (i % 7) for i in range(3000)]
    size = sum(map(len, lines))
    used, total = tokenizers.sample_lines([lines[:1000], lines[1000:]], int(size * share))
    assert total == size and used == [line for line in lines if line in {*used}]
    assert min(1, share) * 0.98 <= sum(map(len, used)) / size <= min(1, share)


@pytest.mark.parametrize('sizes', [(20000,), (19000, 1000), (1,) * 20000])
def test_the_sample_is_even(sizes):
    """Catches a text that has less of a chance because of where it stands, and another sample for
    the same text."""
    lines = [f'{i:05}' for i in range(20000)]
    ends = np.cumsum(sizes)
    texts = [lines[end - size : end] for size, end in zip(sizes, ends)]
    used, _ = tokenizers.sample_lines(texts, 20000)
    tenths = np.bincount(np.asarray(used, int) // 2000, minlength=10)
    assert len(used) > 3900 and tenths.min() > 250 and tenths.max() < 550
    assert used == sorted(used) and used == tokenizers.sample_lines(texts, 20000)[0]


def test_a_small_text_beside_a_large_one_is_read():
    """Catches a second file of which nothing is left where the first takes nearly all of the
    limit."""
    large = [f'line {i}' for i in range(40000)]
    for seed in range(20):
        used, _ = tokenizers.sample_lines([large[seed:], ['small']], int(9e-1 * 10 * len(large)))
        assert used[-1] == 'small' and len(used) > 30000


@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_all_of_a_long_line_is_learned(kind):
    """Catches a long line of which only the beginning is trained on."""
    text = f'{drawn(ENGLISH, 9000)} {drawn(RUSSIAN, 9000)}'
    lengths = [
        len(tokenizers.train([sample], wanted(kind, 338)).encode(SAID))
        for sample in (text, text.replace(' и ', '\nи ').replace(' the ', '\nthe '))
    ]
    assert abs(lengths[0] - lengths[1]) <= 2 and lengths[0] < len(SAID)


@pytest.mark.parametrize('end', [' ', '\n'])
def test_what_follows_a_huge_document_is_learned(end):
    """Catches a first file that takes all of config.tokenizer.train_megabytes, in one line or in
    many."""
    config = wanted('bpe', 400)
    config.train_megabytes = 0.1
    trained = tokenizers.train(
        [drawn(ENGLISH, 60000).replace(' ', end), drawn(RUSSIAN, 9000)], config
    )
    assert len(trained.encode(SAID)) < len(SAID)  # in bytes they are twice as many


LONG = {
    'words': drawn(ENGLISH, 9000),
    'no spaces': ''.join(map(chr, range(0x4E00, 0x9F00))),
    'Thai': 'น้ำครับกำลัง' * 3000,
    'Hindi': 'क्ष्मिन्दी' * 4000,
    'flags': '🇧🇷🇵🇹' * 9000,
    'families': '👨\u200d👩\u200d👧🏽' * 5000,
    'jamo': '\u1112\u1161\u11ab' * 9000,
    'marks': 'e\u0301\u0323' * 11111,
    'spaces': ' ' * 40000,
    'one word': 'x' * 32001,
    'the limit': 'x' * 16000,
    'a word and a long one': 'a ' + 'y' * 40000,
}


@pytest.mark.parametrize('line', LONG.values(), ids=LONG)
def test_long_lines_are_cut(line):
    """Catches characters that are lost or doubled, a part that SentencePiece passes over, and a
    cut inside a character."""
    parts = list(tokenizers._cut(line))
    assert ''.join(parts) == line and all(0 < len(p.encode()) < 1 << 16 for p in parts)
    assert len(parts) <= len(line) / 1900 + 2
    for part in parts[1:]:
        assert (
            unicodedata.category(part[0])[0] != 'M' and part[0] not in '\u200d🏽\u1161\u11ab\u0e33'
        )
        assert ' ' not in line or part[0] == ' ' or ' ' not in part
    assert not line.startswith('🇧') or all(len(p) % 2 == 0 for p in parts)
    assert not any(p.endswith(('\u200d', '\u094d')) for p in parts)
    assert list(tokenizers._lines(line[:16000])) == [line[:16000]] * bool(line.strip())


@pytest.mark.parametrize('mark', ['\u2585', '\u2581', '\0', '\x1f', '\u2581\u2585'])
@pytest.mark.parametrize('kind', KINDS)
def test_characters_that_the_trainer_uses_itself(kind, mark):
    """Catches a line that is left out for such a character, an INTERNAL error, a piece that joins
    its neighbours, and a wrong round trip."""
    lines = [f'{word}{mark}{word} {mark} sparkline' for word in ENGLISH * 9]
    trained = tokenizers.train(lines, wanted(kind, 310))
    pieces = {trained.piece(i) for i in trained.encode('sparkline')}
    assert not any(piece.startswith('<0x') for piece in pieces)
    assert trained.decode(trained.encode(lines[0])) == lines[0]
    assert not any(
        mark[0] in trained.piece(i) for i in range(trained.vocab_size) if mark[0] != '\u2581'
    )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('rest', ['', '去 公园'])
def test_text_without_spaces(kind, rest):
    """Catches a space that comes back as U+2581 where the text has none, or too few for a piece:
    each answer of a chat would begin with one."""
    trained = tokenizers.train(['今天我们去公园散步天气很好' * 2000 + rest], wanted(kind, 293))
    assert trained.decode(trained.encode(' 今天 go home')) == ' 今天 go home'
    assert trained.encode(' ') == [trained._id('\u2581')]


CODE = [
    f'def {word}(x):\n    if x:\n        for y in x:\n            while y:\n'
    + ' ' * 16
    + 'return x\n'
    for word in ENGLISH * 4
]


@pytest.mark.parametrize('tab', [False, True])
@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_indentation(kind, tab):
    """Catches a token for each space or tab of indentation, and tabs that are taken for spaces."""
    code = [text.replace('    ', '\t') if tab else text for text in CODE]
    trained = tokenizers.train(code, wanted(kind, 315))
    deep = ('\t' * 4 if tab else ' ' * 16) + 'return x'
    assert len(trained.encode(deep)) <= len(trained.encode('return x')) + (2 if tab else 4)
    assert all(
        trained.decode(trained.encode(text)) == text for text in (*code[:2], ' \t  \t', deep)
    )


def test_rules_of_before():
    """Catches rules 1 that give another tokenizer than they gave, by a run that is kept, and
    rules 2 with other ids for a text without runs of white space."""
    run = Run.parse('tests/golden/format_1')
    config = run.config()
    texts = list(store.training_texts(config.data))
    before = tokenizers.train(texts, config.tokenizer)
    assert config.tokenizer.rules == 1 and before.hash == run.lineage()['tokenizer_hash']
    config.tokenizer.rules = 2
    now = tokenizers.train(texts, config.tokenizer)
    names = [[t.piece(i) for i in range(t.vocab_size)] for t in (before, now)]
    assert {(a, b) for a, b in zip(*names) if a != b} == {('<|reserved0|>', '<|system|>')}
    assert before.system == now.system and (before.names_system, now.names_system) == (False, True)


def test_the_rules_are_part_of_the_name(tiny_config):
    """Catches a tokenizer in the cache that was made under other rules and is taken for this
    one."""
    keys = [store.tokenizer_key(tiny_config)]
    tiny_config.tokenizer.rules = 1
    keys.append(store.tokenizer_key(tiny_config))
    del tiny_config.tokenizer.rules  # as they were before there was the field
    assert len({*keys, store.tokenizer_key(tiny_config)}) == 3


@pytest.mark.parametrize('split', ['documents', 'tail'])
def test_held_out_text_has_no_say(config, files, split):
    """Catches a vocabulary learnt on the validation split."""
    config.update(split=split, validation=0.25)
    documents = [f'document {i}: ' + 'palavras e palavras ' * 5 for i in range(40)]
    hidden = [splits.in_split(i, config) == 'validation' for i in range(40)]

    def train(texts):
        return tokenizers.train(store.training_texts(config), wanted('char')).hash

    def changed(text, held):
        if split == 'tail':
            return text[:-10] + 'ŧøþæ' * 2 + 'ŋđ'
        return 'ŧøþæ' if held else text

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
    """Catches a refusal whose bound is not the bound: the size it names trains, the next one does
    not."""
    with pytest.raises(DataError, match=message) as refused:
        tokenizers.train(corpus, config)
    bound = int(re.search(message, str(refused.value))[1])
    assert tokenizers.train(corpus, wanted(config.kind, bound)).vocab_size == bound
    with pytest.raises(DataError, match='config.tokenizer.vocab_size'):
        tokenizers.train(
            corpus, wanted(config.kind, bound + (1 if config.vocab_size > bound else -1))
        )


@pytest.mark.parametrize('megabytes', [32.0, 0.02])
@pytest.mark.parametrize('kind', ['unigram', 'bpe'])
def test_the_bound_of_one_long_line(kind, megabytes):
    """Catches a bound that is that of the beginning of a line, or that hides that it is a
    sample's."""
    texts = [f'{drawn(ENGLISH, 9000)} {drawn(RUSSIAN, 9000)}']
    config = wanted(kind, 60000)
    config.train_megabytes = megabytes
    with pytest.raises(DataError, match=r'the text supports at most (\d+)') as refused:
        tokenizers.train(texts, config)
    assert ('the sample of 0.02 MB that it is trained on' in str(refused.value)) == (megabytes < 1)
    bound = int(re.search(r'at most (\d+)', str(refused.value))[1])
    config.vocab_size = bound
    assert tokenizers.train(texts, config).vocab_size == bound
    config.vocab_size = bound + 1
    with pytest.raises(DataError, match=f'supports at most {bound}'):
        tokenizers.train(texts, config)


def test_mistakes(tmp_path, corpus):
    """Catches a traceback for a wrong kind, no text, and a file that is missing, no model, or
    another's model."""
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
        DataError,
        match="config.tokenizer.kind is 'word': expected one of unigram, bpe, char, byte_bpe",
    ):
        tokenizers.train(corpus, wanted('word'))
    for rules in tokenizers.RULES:
        config = wanted()
        config.rules = rules
        with pytest.raises(DataError, match='no text to train a tokenizer on'):
            tokenizers.train(['', '\n \t', '\u2585 \u2585'], config)
    config.rules = 3
    with pytest.raises(DataError, match='config.tokenizer.rules is 3: expected 2, or 1'):
        tokenizers.train(corpus, config)


def test_saved_and_loaded(trained, tmp_path):
    """Catches a file that is not the tokenizer it was written from."""
    (tmp_path / 'tokenizer.model').write_bytes(trained.proto)
    again = tokenizers.load(tmp_path / 'tokenizer.model')
    assert again.hash == trained.hash and again.encode('A capital do Brasil') == trained.encode(
        'A capital do Brasil'
    )
