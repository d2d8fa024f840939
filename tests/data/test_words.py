"""Words: one normal form in all scripts, and ASCII text as ever."""

import pathlib
import random
import re
import string
import subprocess
import sys
import unicodedata

import pytest

from data import words

NFC, NFD = (lambda text, form=form: unicodedata.normalize(form, text) for form in ('NFC', 'NFD'))
ONE = {  # texts that have the same words
    'decomposed': (NFD('The naïve café'), NFC('the NAÏVE Café')),
    'ligatures': ('The ﬁnancial ofﬁce ﬀ', 'the financial office ff'),
    'full width': ('Ｐｙｔｈｏｎ ３．１１', 'python 3.11'),
    'half-width kana': ('ﾃﾞｰﾀﾍﾞｰｽ', 'データベース'),
    'jamo': (NFD('한국어 공부'), '한국어 공부'),
    'soft hyphens': ('in\u00adside ma\u00adchine', 'inside machine'),
    'zero width': ('foo\u200bbar \ufeffword\u2060s', 'foobar words'),
    'joiners': ('می\u200cخواهم क्\u200dष', 'میخواهم क्ष'),
    'sharp s': ('Straße', 'STRASSE'),
    'final sigma': ('λόγος', 'ΛΌΓΟΣ'),
    'dotted i': ('İSTANBUL', 'istanbul'),
    'dotless i': ('ısparta', 'ISPARTA'),
    'superscripts': ('x² H₂O', 'x2 h2o'),
    'vietnamese': (NFD('Tiếng Việt'), 'tiếng việt'),
    'harakat': ('كِتَابٌ', 'كتاب'),
    'tatweel': ('كتـــاب', 'كتاب'),
    'forms of Arabic': ('ﻣﺮﺣﺒﺎ ﻻ', 'مرحبا لا'),
    'niqqud': ('שָׁלוֹם', 'שלום'),
    'ordinals': ('1º 2ª', '1o 2a'),
    'radicals': ('⽇本', '日本'),
    'fonts of mathematics': ('𝐇𝐞𝐥𝐥𝐨', 'hello'),
    'digraphs': ('ǅ Ĳssel', 'dž ijssel'),
}
CUT = {  # and what their words are
    'हिन्दी में लिखा': ['हिन्दी', 'में', 'लिखा'],
    'বাংলা ভাষা': ['বাংলা', 'ভাষা'],
    'தமிழ் மொழி': ['தமிழ்', 'மொழி'],
    'x̂ and ŷ': ['x̂', 'and', 'ŷ'],
    'Python™ costs ½cup №5': ['python', 'tm', 'costs', '1', '2', 'cup', 'no', '5'],
    '1½ ①first 5㎏': ['1', '1', '2', '1', 'first', '5kg'],
    'a 👩\u200d👩\u200d👧 1️⃣ b': ['a', '1', 'b'],
    '今天 2024年': ['今', '天', '2024', '年'],
    '¿Qué? «don’t»': ['qué', 'don', 't'],
    '\u0301 ... — \u200b': [],
}


@pytest.mark.parametrize('name', ONE)
def test_one_form(name):
    """Catches a spelling of a word that is another word."""
    one, other = ONE[name]
    assert words.words(one) == words.words(other) != []
    assert words.terms(one) == words.terms(other) and words.asked(one) == words.asked(other)
    assert words.normal(one) == words.normal(other)


@pytest.mark.parametrize('text', CUT)
def test_words_end_where_they_end(text):
    """Catches a word that falls into pieces at its marks, or swallows the sign beside it."""
    assert words.words(text) == CUT[text]
    assert words.words(NFD(text)) == [words.normal(word) for word in CUT[text]]


def test_neighbours_of_scripts_without_spaces():
    """Catches a word of Han, Kana or Thai that is not found inside a text, a letter in common that
    is, and a lone letter that finds nothing."""
    text = words.terms('iPhone今天我们去公园散步')
    assert words.asked('公园') == ['公园'] and {'iphone', '公园', '园', '今天'} <= {*text}
    assert words.asked('园') == ['园'] and words.asked('我们去') == ['我们', '们去']
    assert not {*words.asked('公安 花园')} & {*text}
    assert words.asked('我 公园 a') == ['我', '公园', 'a']
    thai = words.terms('วันนี้เราไปเดินเล่นที่สวน')
    assert {*words.asked('เดินเล่น')} <= {*thai} and not {*words.asked('รถไฟ')} & {*thai}
    assert {*words.asked('ﾃﾞｰﾀ')} <= {*words.terms('新しいデータの設計')}
    assert {*words.asked('မြန်မာ')} <= {*words.terms('ကျွန်တော်မြန်မာစာ')}


def test_ascii_is_cut_as_ever():
    """Catches another word of plain text, of which kept results of search are measured."""
    rng = random.Random(0)
    every = ''.join(map(chr, range(128)))
    texts = [''.join(rng.choices(every, k=3000)) for _ in range(40)]
    texts += [''.join(rng.choices(string.ascii_letters + '_ \n09-', k=3000)) for _ in range(40)]
    texts += [
        pathlib.Path(random.__file__).read_text('ascii', errors='ignore'),
        'read_csv parseHtml C++ __init__',
    ]
    for text in texts:
        for joined, pattern in ((False, r'[^\W_]+'), (True, r'\w+')):
            expected = re.findall(pattern, text.lower())
            for cut in (words.words, words.terms, words.asked):
                assert cut(text, joined) == expected
                if text.strip():  # beside a letter that is none of ASCII too
                    assert cut(f'{text} é', joined)[:-1] == expected
        assert words.pieces(text) == text.split()
        assert [text[a:b] for a, b in words.places(text)] == text.split()


def test_the_form_is_one():
    """Catches a form that has another form, or one that differs by how a text came apart."""
    for code in range(0x20000):
        form = words.normal(chr(code))
        assert words.normal(form) == form, hex(code)
    rng = random.Random(0)
    marks = [chr(code) for code in range(0x300, 0x20000) if unicodedata.combining(chr(code))]
    letters = [chr(code) for code in range(0x80, 0x3000) if chr(code).isalpha()] + [*'aIiİ\u0307']
    for _ in range(3000):
        text = ''.join(rng.choice(rng.choice([letters, marks])) for _ in range(4))
        form = words.normal(text)
        assert words.normal(form) == form, ascii(text)
        assert words.words(NFD(text)) == words.words(NFC(text)) == words.words(text), ascii(text)


def test_turkish_keeps_its_letters():
    """Catches a capital I that is an i in Turkish: kapı and KAPI are one word."""
    assert words.terms('KAPI Irmak İzmir', turkish=True) == ['kapı', 'ırmak', 'izmir']


def test_names():
    """Catches names that differ by their form, and signs of patterns or folders that were none."""
    assert words.same_name(NFD('Résumé.txt')) == NFC('Résumé.txt') != words.same_name('résumé.txt')
    assert words.same_name('ﬁnance') != 'finance' == words.like_name('ﬁnance')
    assert words.like_name('ＡＢ\u00adＣ.txt') == 'ABC.txt'
    typed = '什么？／＊［x］'
    assert words.like_name(typed) == typed


def test_pieces_are_the_text():
    """Catches a character of a text that is lost, and Chinese that counts as one word."""
    text = '今天，我们去「公园」散步。 And then\nhome! ｶﾞ'
    cut = words.pieces(text)
    assert ''.join(cut) == ''.join(text.split())
    assert cut[:3] == ['今', '天，', '我'] and cut[-4:-1] == ['then', 'home!', 'ｶ']
    assert [text[a:b] for a, b in words.places(text)] == cut


def test_plain_text_needs_no_table():
    """Catches the table of marks made where all is ASCII: that takes longer than a command."""
    code = (
        "from data import words; words.terms('plain_text'); "
        'print(words._patterns.cache_info().misses)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '0'
