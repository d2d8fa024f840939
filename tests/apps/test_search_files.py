"""Search: how files are found, read and cut, without a model."""

import bisect
import json
import os
import random

import pytest
from ml_collections import ConfigDict

from apps.search import files
from apps.search.chunks import Splitter, passages
from data import tokenizer as tokenizers
from data.records import BadRecord, DataError


def read(tmp_path, name, content, field='text'):
    """All parts of a file with this content."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with open(path, 'rb') as file:
        return list(files.read(str(path), file, field))


def line(part, text):
    """The line of the file in which some text of a part of HTML begins."""
    return part.lines[bisect.bisect_right(part.begins, part.text.index(text)) - 1]


def test_each_file_is_found_once(tmp_path, monkeypatch):
    """Catches links that are followed twice or for ever, hidden files, a pipe that is waited for,
    and a fault that ends the walk."""
    (tmp_path / 'docs/deep').mkdir(parents=True)
    (tmp_path / 'docs/closed').mkdir()
    (tmp_path / 'other').mkdir()
    (tmp_path / 'index').mkdir()
    for name in (
        'docs/a.txt',
        'docs/deep/b.txt',
        'docs/.hidden',
        'docs/closed/c.txt',
        'other/d.txt',
        'index/chunks.db',
    ):
        (tmp_path / name).write_text('x')
    os.mkfifo(tmp_path / 'docs/pipe')
    for link, to in (
        ('docs/deep/up', '..'),
        ('docs/again.txt', 'a.txt'),
        ('docs/loop', 'loop'),
        ('docs/gone', 'nowhere'),
        ('docs/other', '../other'),
        ('docs/other2', '../other'),
        ('docs/index', '../index'),
    ):
        (tmp_path / link).symlink_to(to)
    listed = os.scandir

    def scandir(path):
        if path.endswith('closed'):
            raise PermissionError(13, 'Permission denied', path)
        return listed(path)

    monkeypatch.setattr(files.os, 'scandir', scandir)
    walk = files.Walk([str(tmp_path / 'docs'), str(tmp_path / 'docs/a.txt')], tmp_path / 'index')
    assert [os.path.relpath(name, tmp_path) for name in sorted(walk.files)] == [
        'docs/a.txt',
        'docs/deep/b.txt',
        'docs/other/d.txt',
    ]
    told = {os.path.relpath(b.where, tmp_path): b.reason for b in walk.broken}
    assert told.pop('docs/pipe') == 'a pipe, socket or device, not a regular file'
    assert set(told) == {'docs/loop', 'docs/gone', 'docs/closed'} and all(
        reason.startswith('cannot be read: ') for reason in told.values()
    )
    assert files.is_under(str(tmp_path / 'docs/closed/c.txt'), walk.unread)


def test_a_path_that_is_not_there_is_named(tmp_path):
    """Catches a mistyped PATH that indexes nothing without a word, a link that leads nowhere and is
    proposed in its own place, and a fault in place of one line."""
    (tmp_path / 'notes').mkdir()
    with pytest.raises(DataError, match="note: no such file or folder; did you mean 'notes'"):
        files.Walk([str(tmp_path / 'note')], tmp_path)
    (tmp_path / 'gone').symlink_to('nowhere')
    with pytest.raises(DataError, match='gone: no such file or folder$'):
        files.Walk([str(tmp_path / 'gone')], tmp_path)
    with pytest.raises(DataError, match='b: no such file or folder$'):
        files.Walk([str(tmp_path / 'a/b')], tmp_path)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    """Catches an open that hangs where a file was exchanged after it was found."""
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(DataError, match='not a regular file'):
        files.File('pipe', 1, 1, str(tmp_path / 'pipe')).open()


def test_text_is_read_in_blocks_that_know_their_place(tmp_path, monkeypatch):
    """Catches characters lost between blocks, offsets in bytes, and lines counted from the block's
    begin."""
    text = ''.join(f'línea {i}\n' + '\n' * (i % 5 == 0) for i in range(300)) + 'end'
    monkeypatch.setattr(files, '_BLOCK', 100)
    parts = read(tmp_path, 'a.txt', '\ufeff' + text)
    assert len(parts) > 10 and ''.join(p.text for p in parts) == text
    for part in parts:
        assert text[part.offset : part.offset + len(part.text)] == part.text
        assert (
            part.lines[0] == 1 + text.count('\n', 0, part.offset)
            and len(part.lines) == part.text.count('\n') + 1
        )
    assert read(tmp_path, 'b.txt', 'a\r\nb\rc')[0].text == 'a\nb\nc'


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-be', 'utf-32', 'utf-32-be'])
def test_text_with_a_mark_of_its_encoding(tmp_path, monkeypatch, encoding):
    """Catches UTF-16 and UTF-32 taken for binary, read whole, or cut inside a character, and places
    that are of bytes or count the mark."""
    monkeypatch.setattr(files, '_BLOCK', 100)
    monkeypatch.setattr(files, '_MAX_LINE', 300)
    text = (
        ''.join(f'línea {i} \U0001f600\u2028数据\r\n' + '\n' * (i % 5 == 0) for i in range(300))
        + 'end'
    )
    mark = '\ufeff' * encoding.endswith('be')
    parts = read(tmp_path, 'a.txt', (mark + text).encode(encoding))
    assert len(parts) > 10 and max(len(p.text) for p in parts) < 150
    expected = read(tmp_path, 'b.txt', text)
    assert (
        ''.join(p.text for p in parts)
        == ''.join(p.text for p in expected)
        == (text := text.replace('\r\n', '\n'))
    )
    for part in parts:
        assert text[part.offset : part.offset + len(part.text)] == part.text
        assert (
            part.lines[0] == 1 + text.count('\n', 0, part.offset)
            and len(part.lines) == part.text.count('\n') + 1
        )
    row = '{"_id": "é", "text": "数据"}\n'
    rows = read(tmp_path, 'a.jsonl', (mark + row + row).encode(encoding))
    assert [(p.text, p.record, p.lines[0]) for p in rows] == [('数据', 'é', 1), ('数据', 'é', 2)]
    assert (
        read(tmp_path, 'a.html', (mark + '<meta charset="latin-1"><p>数据').encode(encoding))[
            0
        ].text.strip()
        == '数据'
    )
    with pytest.raises(DataError, match=f'^invalid {encoding[:6].upper()}-[BL]E$'):
        read(tmp_path, 'c.txt', (mark + 'odd').encode(encoding) + b'x')
    with pytest.raises(DataError, match='line 2 has more than 300 bytes'):
        read(tmp_path, 'd.txt', (mark + 'a\n' + 'y' * 500).encode(encoding))


def test_html_declares_its_encoding(tmp_path):
    """Catches pages of another encoding that are refused, read as Latin-1 whatever they say, or
    refused since they say what is no encoding of text."""
    for head, encoding in (
        ('<meta charset="shift_jis">', 'shift_jis'),
        ('<META http-equiv=Content-Type content="text/html; charset=EUC-JP">', 'euc-jp'),
        ("<html><meta name=x><meta charset='iso-2022-jp' />", 'iso-2022-jp'),
        ('<meta charset=utf-8>', 'utf-8'),
        ('', 'utf-8'),
        *((f'<meta charset={name}>', 'utf-8') for name in ('utf-16', 'hex', 'never', 'ascii')),
    ):
        (part,) = read(tmp_path, 'a.html', (head + '\n<p>日本\n<p>次').encode(encoding))
        assert (part.text.split(), line(part, '日本'), line(part, '次')) == (
            ['日本', '次'],
            2,
            3,
        ), head
    assert (
        'café' in read(tmp_path, 'a.htm', '<meta charset="latin-1">café'.encode('latin-1'))[0].text
    )
    with pytest.raises(DataError, match='invalid UTF-8 in line 1'):
        read(tmp_path, 'a.html', b'<meta charset=ascii>caf\xe9')


@pytest.mark.parametrize(
    'name, content, reason',
    [
        ('a.txt', 'good\ncafé\n'.encode('latin-1'), 'invalid UTF-8 in line 2'),
        ('a.md', b'ab\0cd' + b'x' * 5000, 'a binary file'),
        ('a.py', b'x = 1\n' + b'y' * 5000, 'line 2 has more than 1000 bytes'),
        ('a.html', b'<p>' + b'a ' * 3000, 'larger than 2000 bytes'),
        ('a.pdf', b'%PDF-1.4 nothing', 'broken PDF: '),
        ('a.pdf', b'', 'broken PDF: '),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, monkeypatch, name, content, reason):
    """Catches a traceback, and a long line or a large file that is read whole."""
    for limit, count in (('_BLOCK', 100), ('_MAX_LINE', 1000), ('_MAX_WHOLE', 2000)):
        monkeypatch.setattr(files, limit, count)
    with pytest.raises(DataError, match=reason):
        read(tmp_path, name, content)


def test_html_is_what_a_reader_sees(tmp_path):
    """Catches scripts and markup in the text, words that inline tags break, and lines of the text
    in place of the file's."""
    (part,) = read(
        tmp_path,
        'a.html',
        '<title>Tea</title>\n<style>p {x}</style><script>\nsecret()\n</script>\n'
        '<p>How to\n  make <b>gr</b>een&nbsp;tea &amp; more\n<li>One<li>Two\n<pre>boil '
        '<i>w</i>\n\n  wait</pre>after',
    )
    assert (
        part.text
        == 'Tea\n\nHow to make green tea & more\n\nOne\n\nTwo\n\n\nboil w\n\n  wait\n\nafter\n'
    )
    assert {
        row: line(part, row)
        for row in ('Tea', 'How', 'make', 'een tea', 'One', 'Two', 'boil w', '  wait', 'after')
    } == {
        'Tea': 1,
        'How': 5,
        'make': 6,
        'een tea': 6,
        'One': 7,
        'Two': 7,
        'boil w': 8,
        '  wait': 10,
        'after': 10,
    }


def test_a_paragraph_of_html_knows_its_lines(tmp_path):
    """Catches one line for a whole paragraph, words that run together or are cut where a line or a
    tag ends, and lines that tags have which are lost."""
    source = (
        '<p>\n'
        + ''.join(f'  w{i}\t<b\n>x{i}</b\n>y{i} ' + '\n' * (i % 3) for i in range(300))
        + 'end'
    )
    (part,) = read(tmp_path, 'a.html', source)
    assert part.text == ' '.join(f'w{i} x{i}y{i}' for i in range(300)) + ' end\n'
    for i in range(300):
        for there, here in ((f'w{i}\t', f'w{i} '), (f'x{i}<', f'x{i}y'), (f'y{i} ', f'y{i} ')):
            assert line(part, here) == 1 + source.count('\n', 0, source.index(there))


def test_records_of_json_lines(tmp_path, monkeypatch):
    """Catches a broken record that ends the file, a title or an id that is lost, and a line that is
    read whole."""
    monkeypatch.setattr(files, '_MAX_LINE', 300)
    rows = [
        json.dumps({'_id': 'a', 'title': 'T', 'text': 'one\ntwo'}),
        '{"text": 3}',
        'x',
        '',
        '{"body": "b"}',
        '{"text": "\\ud800"}',
        json.dumps({'text': 'y' * 400}),
        json.dumps({'_id': 7, 'text': 'last'}),
    ]
    found = read(tmp_path, 'a.jsonl', '\n'.join(rows))
    parts = [p for p in found if not isinstance(p, BadRecord)]
    assert [(p.text, list(p.lines), p.record) for p in parts] == [
        ('T\none\ntwo', [1, 1, 1], 'a'),
        ('last', [8], '7'),
    ]
    told = {int(b.where.rpartition(':')[2]): b.reason for b in found if isinstance(b, BadRecord)}
    assert (
        set(told) == {2, 3, 5, 6, 7}
        and "'text' is None, expected text" in told[5]
        and 'surrogates not allowed' in told[6]
        and '300 bytes' in told[7]
    )
    assert read(tmp_path, 'b.jsonl', '{"body": "b"}', 'body')[0].text == 'b'


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page."""
    kids = ' '.join(f'{4 + 2 * i} 0 R' for i in range(len(pages)))
    objects = [
        '<</Type/Catalog/Pages 2 0 R>>',
        f'<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>',
        '<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>',
    ]
    for i, text in enumerate(pages):
        drawn = f'BT /F 12 Tf 50 700 Td ({text}) Tj ET'
        objects += [
            f'<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Resources<</Font<</F 3 0 '
            f'R>>>>/Contents {5 + 2 * i} 0 R>>',
            f'<</Length {len(drawn)}>>stream\n{drawn}\nendstream',
        ]
    out, places = b'%PDF-1.4\n', []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f'{number} 0 obj{body}endobj\n'.encode()
    table = ''.join(f'{place:010} 00000 n \n' for place in places)
    end = (
        f'xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer<</Size '
        f'{len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(out)}\n%%EOF'
    )
    return out + end.encode()


def test_pages_of_a_pdf(tmp_path):
    """Catches text without its page, and a damaged page that ends in a traceback."""
    whole = pdf('First page', 'Second page')
    found = [(p.text.strip(), p.lines[0], p.offset) for p in read(tmp_path, 'a.pdf', whole)]
    assert found == [('First page', 1, 0), ('Second page', 2, len('First page'))]
    rng = random.Random(0)
    for _ in range(40):
        harmed = bytearray(whole)
        for _ in range(20):
            harmed[rng.randrange(len(harmed))] = rng.randrange(256)
        try:
            read(tmp_path, 'b.pdf', bytes(harmed[: rng.randrange(len(harmed))]))
        except DataError as error:
            assert str(error).startswith('broken PDF: ')


WORDS = (
    'alpha be gamma-ray delta. epsilon, zeta! eta theta iota: kappa lambda é 数据 '
    'https://example.org/x?y=1 naïve "mu." nu'
).split()


def texts():
    rng = random.Random(0)
    for _ in range(30):
        yield ''.join(
            rng.choice(WORDS) + rng.choice([' ', ' ', ' ', '  ', '\n', '\n\n', '\n    '])
            for _ in range(rng.randrange(1, 400))
        )
    yield 'word'
    yield ' \n\n '
    yield 'x' * 3000
    yield '数据。' * 300
    yield ' ' * 5000 + 'far' + '\n' * 5000


@pytest.fixture(scope='module', params=['bpe', 'unigram'])
def tokenizer(request):
    words = ' '.join(WORDS * 40 + [f'{a}{b}' for a in WORDS for b in WORDS])
    return tokenizers.train(
        [words],
        ConfigDict(
            dict(
                kind=request.param,
                vocab_size=420 if request.param == 'bpe' else 335,
                train_megabytes=1.0,
                rules=2,
            )
        ),
    )


@pytest.mark.parametrize('most, overlap', [(32, 0), (48, 12), (120, 60)])
def test_chunks_hold_the_whole_text_in_whole_words(tokenizer, most, overlap):
    """Catches text that no chunk has, chunks that the model would read cut, cut words, and an
    overlap that is more than was asked for."""

    def count(text):
        return len(tokenizer.encode(' ' + text)) + 2

    splitter = Splitter(tokenizer.encode_batch, most, overlap)
    for text in texts():
        found = splitter.chunks(text)
        covered = set()
        for begin, end in found:
            covered |= set(range(begin, end))
            assert count(text[begin:end]) <= most and text[begin:end] == text[begin:end].strip()
            if not any(len(word) > 24 for word in text.split()) and '。' not in text:
                assert (begin == 0 or text[begin - 1].isspace()) and (
                    end == len(text) or text[end].isspace()
                )
        assert not ''.join(c for i, c in enumerate(text) if i not in covered).strip()
        assert bool(found) == bool(text.strip())
        for (begin, end), (after, _) in zip(found, found[1:]):
            assert begin < after <= len(text) and count(text[after:end]) <= overlap + 3
        if overlap and len(found) > 3 and max(map(len, text.split())) < 25:
            assert (
                sum(after < end for (_, end), (after, _) in zip(found, found[1:])) > len(found) // 3
            )


def test_chunks_end_with_paragraphs_else_sentences(tokenizer):
    """Catches cuts at any word where a paragraph or a sentence ends nearby."""
    splitter = Splitter(lambda words: [(0,)] * len(words), 23)  # a token a word: 20 words
    paragraph = 'one two three four five six. seven eight nine ten eleven twelve'
    three = '\n\n'.join([paragraph] * 3)
    assert [three[a:b] for a, b in splitter.chunks(three)] == [paragraph] * 3
    line = 'a b c d e f g h i j k l. m n o p q r s t u v w x y z'
    first, second = splitter.chunks(line)
    assert line[slice(*first)].endswith('l.') and line[slice(*second)].startswith('m ')
    plain = line.replace('.', '')
    assert plain[slice(*splitter.chunks(plain)[0])].endswith('t')


def test_passages_are_sentences():
    """Catches passages that cut sentences, and one alone for a text of many."""
    text = 'Cats purr. Dogs bark at night. ' + 'word ' * 30 + 'end. Last one'
    assert [text[a:b] for a, b in passages(text, 7)] == [
        'Cats purr. Dogs bark at night.',
        'Dogs bark at night.',
        'word ' * 30 + 'end.',
        'Last one',
    ]


def test_lines_of_any_end_have_their_numbers(tmp_path, monkeypatch):
    """Catches lines that are counted by LF alone, a file of CR that is one line too long to read,
    and CR LF that is two lines where a block ends in it."""
    monkeypatch.setattr(files, '_BLOCK', 50)
    monkeypatch.setattr(files, '_MAX_LINE', 120)
    text = ''.join(f'line {i} of the text\n' for i in range(1, 200)) + 'end'
    for end in ('\n', '\r\n', '\r'):
        parts = read(tmp_path, 'a.txt', text.replace('\n', end))
        assert len(parts) > 5 and ''.join(p.text for p in parts) == text
        for part in parts:
            rows = part.text.split('\n')
            assert len(part.lines) == len(rows) and text[part.offset :].startswith(part.text)
            for number, row in zip(part.lines, rows):
                assert not row or row == 'end' or row == f'line {number} of the text'
        with pytest.raises(DataError, match='^invalid UTF-8 in line 200$'):
            read(tmp_path, 'b.txt', text.replace('\n', end).encode() + b'\xff')
        (page,) = read(tmp_path, 'a.html', f'<p>one{end}two{end}<p>three')
        assert page.text.strip() == 'one two\n\nthree' and line(page, 'three') == 3
    with pytest.raises(DataError, match='line 3 has more than 120 bytes'):
        read(tmp_path, 'c.txt', 'a\r\nb\r\n' + 'y' * 300)
