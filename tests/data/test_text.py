"""What is text, and how its lines end: the same for training, pairs and search."""

import gzip
import io
import json
import random
import sqlite3
import unicodedata
import zlib

import pytest

from apps.search import files as search_files
from data import safe_read, sources, text as texts
from data.pairs import read as read_pairs
from data.records import BadRecord, DataError, Record
from data.store import TokenStore

PLAIN = 'Eine Zeile, und noch eine.\nThe third line\n\n  and a fourth\n'
ENDS = {
    'windows': PLAIN.replace('\n', '\r\n'),
    'old mac': PLAIN.replace('\n', '\r'),
    'mixed': PLAIN.replace('\n', '\r\n', 1).replace('\n  ', '\r  '),
    'last line open': PLAIN.replace('\n', '\r\n').rstrip('\r\n') + '\r',
    'in blocks': PLAIN.replace('\n', '\r\n') * 3,
}


def searched(tmp_path, name, content, field='text'):
    """What search reads of a file: parts and broken records, or the reason why there are none."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        with open(path, 'rb') as file:
            return list(search_files.read(str(path), file, field))
    except DataError as error:
        return str(error)


@pytest.mark.parametrize('text', ENDS.values(), ids=ENDS)
def test_lines_end_alike(config, files, tmp_path, monkeypatch, text):
    """Catches CR that a model is trained on, and a search that reads other text than training does,
    or tells other lines."""
    monkeypatch.setattr(search_files, '_BLOCK', 16)
    files(a__txt=text, b__jsonl=json.dumps({'text': text}), c__txt__gz=gzip.compress(text.encode()))
    read = [record.text for record in sources.read(config)]
    wanted = text.replace('\r\n', '\n').replace('\r', '\n')
    assert read == [wanted] * 3 and '\r' not in wanted and wanted.count('\n') > 2
    parts = searched(tmp_path, 'a.txt', text)
    assert ''.join(part.text for part in parts) == wanted
    for part in parts:
        assert wanted[part.offset : part.offset + len(part.text)] == part.text
        assert part.lines[0] == 1 + wanted.count('\n', 0, part.offset)
    [row] = searched(tmp_path, 'b.jsonl', json.dumps({'text': text}))
    assert row.text == wanted and len(row.lines) == wanted.count('\n') + 1


@pytest.mark.parametrize(
    'name, content',
    [
        ('a.jsonl', '{"query": "q\\r\\nq", "positive": ["a\\rb"], "negative": "c\\r\\nd"}\n'),
        ('a.jsonl', '{"query": "q\\nq", "positive": "a\\nb", "negative": "c\\nd"}\r'),
        ('a.jsonl', '{"question": "q\\r\\nq", "answer": "a\\rb"}\r\n'),
    ],
)
def test_lines_of_pairs_and_conversations_end_alike(config, files, name, content):
    """Catches CR in pairs and in the turns of a conversation."""
    folder = files(**{name: content})
    [pair] = read_pairs.read_file(folder / name)
    assert (pair.query, pair.positives) == ('q\nq', ('a\nb',))
    assert pair.negatives in ((), ('c\nd',))
    if 'question' in content:
        [record] = sources.read(config)
        assert record.parts() == ['q\nq', 'a\nb']


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_rows_end_alike(files, end):
    """Catches a file of JSON lines or a table, as old spreadsheets write it, that is one line."""
    folder = files(
        a__tsv=f'a\tb{end}c\td{end}',
        b__jsonl=f'{{"query": "a", "positive": "b"}}{end}{{"query": "c", "positive": "d"}}{end}',
    )
    for name in ('a.tsv', 'b.jsonl'):
        pairs = list(read_pairs.read_file(folder / name))
        assert [(p.query, *p.positives) for p in pairs] == [('a', 'b'), ('c', 'd')]
        assert [p.where.rpartition(':')[2] for p in pairs] == ['1', '2']


def test_lines_are_those_of_python_in_bounded_memory(monkeypatch):
    """Catches a line that is lost, joined or doubled where a piece ends, and one that is longer
    than allowed and read whole."""
    rng = random.Random(0)
    pieces = [b'a', b'bb', b'\r', b'\n', b'\r\n', b'c' * 9]
    for _ in range(3000):
        raw = b''.join(rng.choices(pieces, k=rng.randrange(14)))
        most = rng.choice([3, 5, 8, 100])
        monkeypatch.setattr(safe_read, '_CHUNK', rng.choice([1, 2, 50]))
        lines = list(safe_read.lines(io.BytesIO(raw), most))
        whole = raw.splitlines(True)
        assert len(lines) == len(whole)
        for line, wanted in zip(lines, whole):
            assert line == wanted or line is None and len(wanted) > most


def database(tmp_path):
    with sqlite3.connect(tmp_path / 'some.db') as db:
        db.execute('CREATE TABLE words (word TEXT)')
    return (tmp_path / 'some.db').read_bytes()


WORDS = 'words of a text, line by line\n' * 20
PNG = b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0'
NONE = {  # no text, whatever its name is
    'utf-16-le': (WORDS.encode('utf-16-le'), 'UTF-16-LE without a byte-order mark'),
    'utf-16-be': (WORDS.encode('utf-16-be'), 'UTF-16-BE without a byte-order mark'),
    'utf-32-le': (WORDS.encode('utf-32-le'), 'UTF-32-LE without a byte-order mark'),
    'utf-32-be': (WORDS.encode('utf-32-be'), 'UTF-32-BE without a byte-order mark'),
    'other letters': ('слово и слово\n'.encode('utf-16-le'), 'a binary file, no text: NUL'),
    'one NUL': (WORDS.encode() + b'a\0b' + WORDS.encode(), 'a binary file, no text: NUL'),
    'NUL at the end': (WORDS.encode() + b'\0', 'a binary file, no text: NUL'),
    'zeros': (bytes(2000), 'a binary file, no text: NUL'),
    'image': (PNG, 'a binary file, no text: NUL'),
    'database': (database, 'a binary file, no text: NUL'),
    'gzip': (gzip.compress(b'x', mtime=0), 'a binary file, no text: NUL'),
    'controls': (b'\1\2\3word\4\5\6' * 50, 'a binary file, no text: control characters'),
    'pointer of LFS': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12345\n' % (b'0' * 64),
        'a pointer of Git LFS in place of the file',
    ),
    'latin-1': ('canção'.encode('latin-1'), 'invalid UTF-8'),
    'deflated': (zlib.compress(WORDS.encode())[:40].replace(b'\0', b'\xff'), ''),
}


@pytest.mark.parametrize('content, reason', NONE.values(), ids=NONE)
def test_what_is_no_text(config, files, tmp_path, content, reason):
    """Catches bytes that are no text and are trained on, or indexed."""
    content = content(tmp_path) if callable(content) else content
    files(a__txt=content)
    [broken] = sources.read(config)
    assert isinstance(broken, BadRecord) and broken.reason.startswith(reason), broken
    message = searched(tmp_path, 'a.txt', content)
    assert isinstance(message, str) and message.startswith(reason), message


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-be', 'utf-32', 'utf-32-be', 'utf-8'])
@pytest.mark.parametrize('pack', [bytes, gzip.compress])
def test_text_with_a_mark_is_read(config, files, tmp_path, encoding, pack):
    """Catches text that search reads and training refuses, for the encoding that its mark names."""
    mark = '\ufeff' * (not encoding.endswith(('16', '32')))

    def coded(text):
        return pack((mark + text).encode(encoding))

    end = '.gz' * (pack is not bytes)
    rows = '{"text": "línea"}\r\n{"text": "数据"}\r\n'
    table = 'q\ta\r\né\t数据\r\n'
    folder = files(
        **{f'a.txt{end}': coded(WORDS), f'b.jsonl{end}': coded(rows), f'c.tsv{end}': coded(table)}
    )
    records = list(sources.read(config))
    assert [r.text for r in records] == [WORDS, 'línea', '数据']
    read = [(p.query, *p.positives) for p in read_pairs.read_file(folder / f'c.tsv{end}')]
    assert read == [('q', 'a'), ('é', '数据')]


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be'])
def test_text_that_is_not_of_its_mark(config, files, encoding):
    """Catches a traceback, or text that is made up, where what follows a mark is something else."""
    coded = '\ufefftwo words'.encode(encoding) + b'\xd8'
    files(a__txt=coded, b__jsonl=coded)
    broken = list(sources.read(config))
    assert [b.reason for b in broken] == [f'invalid {encoding.upper()}'] * 2


@pytest.mark.parametrize(
    'row, where',
    [
        ({'text': 'a\0b'}, 'text'),
        ({'text': '\0'}, 'text'),
        ({'question': 'a\0', 'answer': 'b'}, 'text'),
        (
            {
                'messages': [
                    {'role': 'user', 'content': 'a'},
                    {'role': 'assistant', 'content': '\0b'},
                ]
            },
            '',
        ),
        ({'query': 'a', 'positive': 'b\0'}, 'pair'),
        ({'query': 'a\0', 'positive': 'b'}, 'pair'),
        ({'query': 'a', 'positive': 'b', 'negatives': ['c', 'd\0']}, 'pair'),
    ],
)
def test_a_string_with_nul_is_no_text(config, files, tmp_path, row, where):
    """Catches NUL that JSON spells in letters, and that is trained on."""
    folder = files(a__jsonl=json.dumps(row))
    [broken] = sources.read(config) if where != 'pair' else read_pairs.read_file(folder / 'a.jsonl')
    assert isinstance(broken, BadRecord) and 'NUL, which no text has, at character' in broken.reason
    if 'text' in row:
        [broken] = searched(tmp_path, 'a.jsonl', json.dumps(row))
        assert isinstance(broken, BadRecord) and 'NUL, which no text has' in broken.reason


@pytest.mark.parametrize(
    'one, other, alike',
    [
        ('a b', 'a  b\n', True),
        ('x\n' * 90, 'x\r\n' * 90, True),
        ('na\u00efve', 'nai\u0308ve', True),
        ('a b', 'ab', False),
        ('a b', 'a B', False),
        ('words ' * 40, ' words' * 40, True),
    ],
)
def test_texts_that_are_equal(monkeypatch, one, other, alike):
    """Catches an equal text that is another by its line ends or normal form, and blocks that
    show."""
    monkeypatch.setattr(texts, '_BLOCK', 7)
    assert (texts.identity([one]) == texts.identity([other])) is alike
    assert texts.identity(['a', 'b']) != texts.identity(['a b'])


@pytest.mark.parametrize('form', ['NFC', 'NFKC'])
def test_many_marks(form, monkeypatch):
    """Catches a letter with a megabyte of marks that takes minutes, as Python sorts them by
    insertion, and a form that is another than Python's."""
    exact = unicodedata.normalize
    given = []
    rng = random.Random(0)
    characters = 'aé\u0301\u0323\u0327\u0344\u0f73\u0f81\uff9e\u1dcd\u200d─ㅤ①'
    for weights in ([1] * len(characters), [0, 0, 9, 9, 9, 9, 1, 1, 0, 9, 0, 0, 0, 0]):
        text = 'e' + ''.join(rng.choices(characters, weights, k=999)) + ' x'
        assert texts.normal_form(form, text) == exact(form, text)
    monkeypatch.setattr(unicodedata, 'normalize', lambda *a: given.append(a[1]) or exact(*a))
    texts.normal_form(form, 'a' + '\u0301\u0323\u0327' * 200)
    classes = [unicodedata.combining(character) for character in given[-1]]
    assert len(classes) == 601 and classes == sorted(classes)


def test_what_a_store_was_read_by_is_in_its_key(config, files, tokenizer, monkeypatch):
    """Catches a store made by other rules of reading that is taken for what these make, and one
    that a run was started with which is no longer found."""
    files(a__txt='one\ntext', b__txt='another')
    config.update(split='tail')
    before = TokenStore.path_of(config, tokenizer, 1)
    path = TokenStore.path_of(config, tokenizer)
    assert before != path
    built = TokenStore.open_or_build(config, tokenizer, progress=False)
    path.rename(before)  # as one from before the rules had a number
    assert TokenStore.find(config, tokenizer) is None
    assert TokenStore.find(config, tokenizer, 'another hash') is None
    assert TokenStore.find(config, tokenizer, built.hash).path == before
    assert TokenStore.open_or_build(config, tokenizer, False, built.hash).path == before
    assert TokenStore.open_or_build(config, tokenizer, False).path == path
    monkeypatch.setattr(sources.texts, 'READING', 3)
    assert TokenStore.path_of(config, tokenizer, 3) not in (path, before)


def test_a_record_is_whole():
    """Catches a record that loses its origin where its line ends are mended."""
    record = sources._with_line_ends(Record('here', 'a\r\nb'))
    assert record == Record('here', 'a\nb') and sources._with_line_ends(record) is record
