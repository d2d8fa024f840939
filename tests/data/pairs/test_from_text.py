"""Pairs made of texts: what belongs together, and nothing drawn that is not drawn again."""

import re
import subprocess
import sys
import unicodedata

import pytest

from data.pairs import read as read_pairs
from data.pairs.from_text import (
    MAKERS,
    cloze,
    crops,
    lines_of,
    make_pairs,
    passages,
    question,
    same,
    sentences,
    spans,
    title,
)
from data.pairs.store import PairStore

DOCUMENT = """A viagem de inverno

O Sr. Bento chegou às 7.30 da manhã. Trazia uma mala (vazia!) e um livro. "Que frio!" disse ele.
Ninguém respondeu.

A casa do moinho
Era uma casa pequena, com 2 janelas. Quem morava ali? Um velho que J. Silva conhecia bem. \
Ele vivia só.
"""
WRAPPED = """The first line of this text is wrapped where it is long enough to be
so, and here it ends.
A short line
- an item of a list which is as long as a wrapped line would be, or so
- another item"""


def ends(text):
    return [s.text for s in sentences(lines_of(text))]


def test_sentences():
    """Catches a sentence that ends at an abbreviation, a number or a quotation, and a line that
    does not end one."""
    assert ends(DOCUMENT) == [
        'A viagem de inverno',
        'O Sr. Bento chegou às 7.30 da manhã.',
        'Trazia uma mala (vazia!) e um livro.',
        '"Que frio!" disse ele.',
        'Ninguém respondeu.',
        'A casa do moinho',
        'Era uma casa pequena, com 2 janelas.',
        'Quem morava ali?',
        'Um velho que J. Silva conhecia bem.',
        'Ele vivia só.',
    ]
    assert ends(WRAPPED) == [' '.join(WRAPPED.split('\n')[:2]), *WRAPPED.split('\n')[2:]]
    assert (
        ends('1. One is first. 2. Two is next! … and on? (So.) "Yes." No')
        == ['1. One is first.', '2. Two is next!', '… and on?', '(So.)', '"Yes."', 'No']
        and ends(' \n\n ') == []
    )


@pytest.mark.parametrize('words', [8, 12, 20, 1000])
def test_passages_hold_the_text(words):
    """Catches a sentence lost, doubled or cut, a passage that is too long, and one that goes on
    past its paragraph when it is half full."""
    whole = sentences(lines_of(DOCUMENT))
    groups = passages(whole, words)
    assert [s for p in groups for s in p] == [s for s in whole if any(s in p for p in groups)]
    assert {s.text for s in whole} - {s.text for p in groups for s in p} <= {
        s.text for s in whole if s.num_words < 3
    }
    assert all(sum(s.num_words for s in p) <= words or len(p) == 1 for p in groups)
    assert words < 1000 or len(groups) == 1

    short = sentences(['One two three.', '', 'Four five six.', 'Seven.'])

    def shape(words):
        return [len(passage) for passage in passages(short, words)]

    assert shape(6) == [1, 2] and shape(8) == [3]


def test_crops_are_of_one_passage():
    """Catches crops that are always the same, that leave the passage, or of which the short one is
    long; and a passage of three words."""
    text = '\n\n'.join(
        f'Passage {n} has ' + ' '.join(f'w{n}x{i}' for i in range(30)) + '.' for n in range(40)
    )
    pairs = list(crops(text, 40))
    places = [
        (whole.split().index(short.split()[0]) if short.split()[0] in whole.split() else -1)
        for short, whole in pairs
    ]
    assert len(pairs) == 40 and len(set(places)) > 8 and -1 in places
    for n, (short, whole) in enumerate(pairs):
        words = [f'Passage {n} has', *(f'w{n}x{i}' for i in range(30))]
        assert all(
            part in f'Passage {n} has ' + ' '.join(words[1:]) + '.' for part in (short, whole)
        )
        assert 3 <= len(short.split()) <= 16 and 17 <= len(whole.split()) <= 33
    assert (
        list(crops('One two three.', 8)) == [('One two three.', 'One two three.')]
        or len(list(crops('One two three.', 8))[0][1].split()) == 2
    )


def test_a_passage_gives_one_pair():
    """Catches two pairs of one passage, each the other's near copy and negative, and a passage that
    gives none."""

    def said(n, letter):
        return ' '.join(f'P{n}{letter}{i}' for i in range(6))

    text = '\n\n'.join(f'{said(n, "a")}. {said(n, "b")}.' for n in range(60))
    pairs = list(make_pairs(['crops', 'spans', 'cloze'], text, 14))
    inside = [
        re.search(r'P(\d+)', ' '.join(pair))[1]
        for pair in pairs
        if pair not in set(spans(text, 14))
    ]
    assert len(inside) > 50 and max(inside.count(n) for n in inside) == 1
    kinds = [pair in set(cloze(text, 14)) for pair in pairs if pair not in set(spans(text, 14))]
    assert 10 < sum(kinds) < 50


def test_spans_are_neighbours():
    """Catches a passage beside itself or a far one, and a short text of which no pair is made."""
    text = ' '.join(f'Sentence {i} is here.' for i in range(12))
    assert list(spans(text, 8)) == [
        (
            f'Sentence {i} is here. Sentence {i + 1} is here.',
            f'Sentence {i + 2} is here. Sentence {i + 3} is here.',
        )
        for i in (0, 4, 8)
    ]
    [(first, second)] = spans(text, 500)
    assert f'{first} {second}' == text and abs(len(first) - len(second)) < 10
    assert list(spans('Only one sentence here.', 8)) == []


def test_titles():
    """Catches a sentence, a statement or a wrapped line taken for a heading, and a passage that
    runs into the next one."""
    assert list(title(DOCUMENT, 64)) == [
        (
            'A viagem de inverno',
            'O Sr. Bento chegou às 7.30 da manhã. Trazia uma mala (vazia!) e um livro. '
            '"Que frio!" disse ele.\nNinguém respondeu.',
        ),
        (
            'A casa do moinho',
            'Era uma casa pequena, com 2 janelas. Quem morava ali? '
            'Um velho que J. Silva conhecia bem. Ele vivia só.',
        ),
    ]
    assert list(title(DOCUMENT, 8))[1] == (
        'A casa do moinho',
        'Era uma casa pequena, com 2 janelas.',
    )
    assert list(title('# One: a title\nThe text of it is here.\n## 2\n\nThe text of two.', 64)) == [
        ('One: a title', 'The text of it is here.'),
        ('2', 'The text of two.'),
    ]
    for none in (
        'A sentence.\nThe text of it is here.',
        'Capital: Lima\nThe text of it is here.',
        'A heading\n\nAnother one\n\n',
        'The first words\nof a longer sentence.',
        'One two three four five six seven eight nine\nThe text of it.',
        'A heading',
        '###\nThe text of it is here.',
    ):
        assert list(title(none, 64)) == [], none


def test_questions():
    """Catches a question answered by another, by less than there is, or by nothing."""
    assert list(question(DOCUMENT, 64)) == [
        ('Quem morava ali?', 'Um velho que J. Silva conhecia bem. Ele vivia só.')
    ]
    asked = (
        'What is the capital of Peru? What is its domain? It is pe with a dot. Why is it? '
        '(Who is it?) It is who it is. What is last?'
    )
    assert list(question(asked, 64)) == [
        ('What is its domain?', 'It is pe with a dot.'),
        ('(Who is it?)', 'It is who it is.'),
    ]
    assert list(question('Is it long? ' + 'This is one sentence. ' * 9, 8)) == [
        ('Is it long?', 'This is one sentence. This is one sentence.')
    ]


def test_cloze_takes_the_sentence_out():
    """Catches a sentence of another passage, one that always or never stays, and always the first
    one taken."""
    texts = [
        ' '.join(f'Passage {i} says {word} about it.' for word in ('one', 'two', 'three', 'four'))
        for i in range(1000)
    ]
    triples = [(text, query, rest) for text in texts for query, rest in cloze(text, 64)]
    assert len(triples) == 1000
    stays = sum(query in rest for _, query, rest in triples)
    assert 60 < stays < 140
    assert all(
        rest == (text if query in rest else ' '.join(text.replace(query, '').split()))
        and query in text
        for text, query, rest in triples
    )
    taken = [re.search('one|two|three|four', query)[0] for _, query, _ in triples]
    assert all(180 < taken.count(word) < 320 for word in ('one', 'two', 'three', 'four'))
    assert list(cloze('One sentence alone.', 64)) == list(cloze('It is so. Yes.', 64)) == []


def test_same_is_the_passage_itself():
    """Catches a passage left out, or beside another."""
    pairs = list(same(DOCUMENT, 20))
    assert (
        len(pairs) > 2
        and all(a == b for a, b in pairs)
        and ' '.join(' '.join(a for a, _ in pairs).split()) == ' '.join(DOCUMENT.split())
    )


def test_texts_without_words_end():
    """Catches a traceback, or hours, on texts that are no prose."""
    for text in (
        '',
        '\n' * 9,
        '?',
        '?\n' * 50,
        '. ' * 5000,
        '#',
        'a' * 100_000,
        '.' * 100_000,
        '."' * 50_000,
        'a.' * 50_000,
        ('b ' * 30 + '\n') * 300,
        '"' * 20_000 + ' ' * 20_000,
        '— ' * 9000 + 'A.',
    ):
        for make in MAKERS.values():
            assert all(q.strip() and p.strip() for q, p in make(text, 8))


@pytest.fixture
def made(config, files):
    files(
        **{f'{i:02}__txt': DOCUMENT.replace('Bento', f'Bento {i}') for i in range(30)},
        broken__txt=b'\xff',
    )
    config.update(validation=0.3)
    config.pairs.update(kind='cloze, title', words=20)
    return config


def read(config):
    return [p for p in read_pairs.read(config) if isinstance(p, read_pairs.Pair)]


def test_pairs_are_held_out_with_their_text(made, tokenizer):
    """Catches pairs of one text in both splits, a kind that is left out, and a broken text that is
    not counted."""
    pairs = read(made)
    sides = {}
    for pair in pairs:
        sides.setdefault(pair.where, set()).add(pair.split)
    assert (
        len(sides) == 30
        and all(len(side) == 1 for side in sides.values())
        and set.union(*sides.values()) == {'train', 'validation'}
    )
    made.pairs.kind = 'title'
    assert {p.query for p in read(made)} == {'A viagem de inverno', 'A casa do moinho'} and len(
        read(made)
    ) == 60 < len(pairs)
    built = PairStore.open_or_build(made, tokenizer, progress=False)
    assert built.manifest['records'] == dict(read=61, kept=60, broken=1)
    held = sum(side == {'validation'} for side in sides.values())
    assert (
        built.manifest['splits']['validation']['examples'] == held + 1
    )  # the second passage is the same in all


def test_ends_are_held_out(made):
    """Catches pairs that reach from the head of a text into its held-out end."""
    made.update(split='tail', validation=0.4)
    made.pairs.update(kind='same', words=8)
    text = DOCUMENT.replace('Bento', 'Bento 0')
    joined = {
        split: ' '.join(
            ' '.join(
                p.query for p in read(made)[:12] if p.where.endswith('00.txt') and p.split == split
            ).split()
        )
        for split in ('train', 'validation')
    }
    head = text[: int(len(text) * 0.6)]
    tail = text[int(len(text) * 0.6) :]
    assert (
        joined['train']
        and ' '.join(head.split()).startswith(joined['train'])
        and joined['validation'] in ' '.join(tail.split())
    )


@pytest.mark.parametrize('change', ['kind', 'words', 'validation'])
def test_another_store(made, tokenizer, change):
    """Catches pairs of another kind taken from the cache, and a store for each way to make batches
    of it."""

    def key():
        return PairStore.path_of(made, tokenizer)

    first = key()
    if change == 'validation':
        made.validation = 0.5
    else:
        made.pairs[change] = {'kind': 'same', 'words': 30}[change]
    second = key()
    assert first != second
    made.pairs.negatives = 0
    made.pairs.query_len = 9  # of batches, not of the store
    assert key() == second


@pytest.mark.parametrize('text', ['e\n。。b', '。D b', '”— !x..。”b'])
def test_signs_without_words(text):
    """Catches a passage that has fewer words than its sentences, of which no stretch can be cut."""
    for words in (8, 16):
        for make in MAKERS.values():
            assert all(query and positive for query, positive in make(text, words))


def test_another_process_makes_the_same_pairs():
    """Catches Python's own hash, which is another in each process."""
    text = ' '.join(f'Sentence {i} is here.' for i in range(40))
    code = (
        'from data.pairs.from_text import *; '
        f'print([list(make({text!r}, 16)) for make in MAKERS.values()])'
    )
    output = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
        env={'PYTHONHASHSEED': '7'},
    ).stdout
    assert output.strip() == str([list(make(text, 16)) for make in MAKERS.values()])


CHINESE = """今天我们去公园散步。天气很好，阳光明媚。「你好吗？」他问。我们都笑了！

公园里的花
花开得很漂亮。有红的，有白的，还有黄的。孩子们在草地上跑来跑去。
"""


def test_sentences_of_other_scripts():
    """Catches sentences that do not end at their own signs, at a letter after a mark taken for an
    initial, or at all; spaces put into what has none; and an initial whose accent stands apart."""
    whole = sentences(lines_of(CHINESE.partition('\n')[0]))
    assert [s.text for s in whole] == [
        '今天我们去公园散步。',
        '天气很好，阳光明媚。',
        '「你好吗？」',
        '他问。',
        '我们都笑了！',
    ]
    assert [s.num_words for s in whole] == [9, 8, 3, 2, 5] and whole[2].asks
    assert ''.join(s.before + s.text for s in whole).strip() == CHINESE.partition('\n')[0]
    assert ends('राम घर गया। वह सिर. दर्द था। क्या तुम आओगे? हाँ!') == [
        'राम घर गया।',
        'वह सिर.',
        'दर्द था।',
        'क्या तुम आओगे?',
        'हाँ!',
    ]
    assert ends('ذهب الولد. هل عاد؟ نعم۔ انتهى') == ['ذهب الولد.', 'هل عاد؟', 'نعم۔', 'انتهى']
    for form in ('NFC', 'NFD'):
        text = unicodedata.normalize(form, 'Foi É. Sousa quem fez. Ótimo.')
        assert ends(text) == [text.rpartition(' ')[0], text.rpartition(' ')[2]]


@pytest.mark.parametrize('kind', MAKERS)
def test_pairs_of_scripts_without_spaces(kind):
    """Catches a text without spaces that is one word, of which no pair is made, and stretches of it
    that stand nowhere in it or are all of it."""
    pairs = list(MAKERS[kind](CHINESE, 30))
    flat = ''.join(CHINESE.split())
    assert pairs and all(''.join(query.split()) in flat for query, _ in pairs)
    if kind == 'crops':
        assert all(3 <= len(query) < len(text) for query, text in pairs)
    if kind == 'title':
        assert [query for query, _ in pairs] == ['公园里的花']


def test_pairs_do_not_hang_on_the_form_of_a_text():
    """Catches another pair drawn of the same passage, whose accents stand apart or which has soft
    hyphens, and long words of many marks that are not one word."""
    text = ' '.join(f'Ação número {i} não é à toa, não. Lá vêm três.' for i in range(40))
    apart = unicodedata.normalize('NFD', text.replace('número', 'nú\u00admero'))

    def form(some):
        return unicodedata.normalize('NFC', some.replace('\u00ad', ''))

    for kinds in (['crops'], ['cloze', 'same']):
        assert [(form(q), form(p)) for q, p in make_pairs(kinds, apart, 20)] == list(
            make_pairs(kinds, text, 20)
        )


def test_what_looks_alike_is_one_text(config, files, tokenizer):
    """Catches a passage that is its own negative, since its accents stand apart in another file;
    and a store of other rules under the same key."""
    text = 'O café é bom e não é caro aqui. A maçã está lá fora na árvore.'
    files(a__txt=text, b__txt=unicodedata.normalize('NFD', text))
    config.update(validation=0.0)
    config.pairs.update(kind='cloze', words=40)
    first = PairStore.path_of(config, tokenizer)
    split = PairStore.open_or_build(config, tokenizer, progress=False).split('train')
    assert len(split.pairs) == 1 and len(split.offsets) == 3
    with pytest.MonkeyPatch.context() as later:
        later.setattr(read_pairs.words, 'RULES', 3)
        assert PairStore.path_of(config, tokenizer) != first
