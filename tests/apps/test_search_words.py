"""Search: words and names in any script and form, and indexes by older rules."""

import contextlib
import functools
import io
import json
import sys
import types
import unicodedata

import pytest

from apps.search import __main__ as command, lexical, update
from apps.search.engine import Engine
from apps.search.store import Folder
from data import words
from runtime.errors import RunError

NFC, NFD = (lambda text, form=form: unicodedata.normalize(form, text) for form in ('NFC', 'NFD'))
TEXTS = {
    'naive': NFD('The naïve café'),
    'office': 'The ﬁnancial ofﬁce',
    'park': '今天我们去公园散步',
    'hindi': 'हिन्दी में लिखा हुआ पाठ',
    'arabic': 'قرأتُ كِتَابًا جميلًا',
    'hebrew': 'שָׁלוֹם עולם',
    'viet': NFD('Tiếng Việt là ngôn ngữ'),
    'thai': 'วันนี้เราไปเดินเล่นที่สวน',
    'kana': 'ﾃﾞｰﾀﾍﾞｰｽの設計',
    'soft': 'An in\u00adside job by the \u200bsea',
    'turkish': 'İstanbul ve ISPARTA',
    'german': 'Die STRASSE',
    'wide': 'ＰＹＴＨＯＮ ３１１',
    'korean': NFD('한국어 공부'),
    'square': 'The area is x²',
    'code': 'def read_csv(parseHtml): return C++',
    'other': 'Something unrelated to all that is asked, and longer than it.',
}
FIND = {
    'naïve': 'naive',
    NFD('NAÏVE'): 'naive',
    'financial': 'office',
    'oﬃce': 'office',
    '公园': 'park',
    '园': 'park',
    '我们散步': 'park',
    'हिन्दी': 'hindi',
    'كِتَابًا': 'arabic',
    'كتابا': 'arabic',
    'שלום': 'hebrew',
    'tiếng': 'viet',
    'สวน': 'thai',
    'データベース': 'kana',
    'inside': 'soft',
    'sea': 'soft',
    'istanbul': 'turkish',
    'ısparta': 'turkish',
    'straße': 'german',
    'python': 'wide',
    '한국어': 'korean',
    'x2': 'square',
    'csv': 'code',
    'parsehtml': 'code',
}
NOWHERE = ('ह', 'द', 'naive', 'finan', '公安', '花园', 'รถไฟ', 'ع', 'csvs_reader2')


def index(reader, folder, *paths, remove=()):
    """Brings an index up to date; returns its summary without the folder."""
    settings = dict(chunk=100, overlap=12, text_field=None, language=None)
    found = update.Update(Folder(str(folder)), reader, settings, False).run(
        [str(p) for p in paths], list(map(str, remove))
    )
    return found.rpartition(': ')[2]


def opened(folder, reader=None):
    found = Engine(Folder(str(folder)))
    found._reader = reader
    return found


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / 'texts'
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f'{name}.txt').write_text(text + '\n', 'utf-8')
    return folder


@pytest.fixture
def older(reader, texts, tmp_path, monkeypatch):
    """An index of the texts as it was made before there was a number of rules."""
    with monkeypatch.context() as then:
        then.setattr(update.lexical, 'Words', functools.partial(lexical.Words, number=1))
        index(reader, tmp_path / 'ix', texts)
    folder = Folder(str(tmp_path / 'ix'))
    manifest = folder.manifest()
    assert manifest.pop('words') == words.RULES
    folder.write_manifest(manifest)
    return tmp_path / 'ix'


def test_words_are_found_in_any_form(reader, texts, tmp_path):
    """Catches words that their own text does not have in another form or script, an unrelated text
    before theirs, and pieces of words that match."""
    index(reader, tmp_path / 'ix', texts)
    e = opened(tmp_path / 'ix', reader)
    names = {key: texts / f'{key}.txt' for key in TEXTS}
    for mode in ('lexical', 'hybrid'):
        found = {query: e.rank(query, 1, mode) for query in FIND}
        paths = {
            query: e._chunks('name', some)[some[0][0]][0] if some else None
            for query, some in found.items()
        }
        assert paths == {query: str(names[name]) for query, name in FIND.items()}
    assert {query: e.rank(query, 1, 'lexical') for query in NOWHERE} == dict.fromkeys(NOWHERE, [])
    hit = e.search('公园', 1, 'lexical', [])[0]
    assert TEXTS['park'] in hit.text and hit.text[slice(*hit.passage)] == TEXTS['park']


def test_names_are_found_in_any_form(reader, tmp_path, monkeypatch):
    """Catches a file, a folder or a pattern that is not found by its name in another form, a name
    that is taken for another one that is there, and case that is lost."""
    folder = tmp_path / NFD('dossiê')
    deep = folder / NFD('Résumé')
    deep.mkdir(parents=True)
    some = ('naïve.txt', 'ﬁnance.txt', '１.txt', '1.txt', '什么？.txt', 'Ångström.md', 'a／b.txt')
    for name in some:
        (deep / NFD(name)).write_text('zebra')
    (folder / 'plain.txt').write_text('zebra')
    index(reader, tmp_path / 'ix', folder)
    e = opened(tmp_path / 'ix')

    def found(path):
        return {h.path.rpartition('/')[2] for h in e.search('zebra', 99, 'lexical', [path])}

    inside = {NFD(name) for name in some}
    monkeypatch.chdir(folder)
    for path, expected in {
        'naïve.txt': {NFD('naïve.txt')},
        NFD('naïve.txt'): {NFD('naïve.txt')},
        'na?ve.txt': {NFD('naïve.txt')},
        'na[ïi]ve.*': {NFD('naïve.txt')},
        'finance.txt': {'ﬁnance.txt'},
        '*inance.txt': {'ﬁnance.txt'},
        '1.txt': {'1.txt'},
        '１.txt': {'１.txt'},
        '什么？.txt': {'什么？.txt'},
        '\u212bngstr\u00f6m.md': {NFD('Ångström.md')},
        'Résumé': inside,
        'Résumé/': inside,
        'R?sum?/*': inside,
        f'../{NFC("dossiê")}/Résumé': inside,
        NFC(str(deep)): inside,
        NFC(f'{deep}/*.md'): {NFD('Ångström.md')},
        'dossiê': inside | {'plain.txt'},
    }.items():
        assert found(path) == expected, path
    for path in ('résumé', 'naive.txt', 'b.txt', 'a/*'):
        with pytest.raises(RunError, match='matches no file that is indexed'):
            found(path)
    assert '7 removed' in index(reader, tmp_path / 'ix', remove=[folder / NFC('Résumé')])
    assert '0 new' in index(reader, tmp_path / 'ix')
    assert opened(tmp_path / 'ix').search('zebra', 9, 'lexical', [])[0].path.endswith('plain.txt')


def test_an_older_index_is_read_as_it_was_made(older, caplog):
    """Catches an index that is queried by rules that did not make it, or without a word of that."""
    e = opened(older)
    assert [h.path.rpartition('/')[2] for h in e.search('STRASSE', 9, 'lexical', [])] == [
        'german.txt'
    ]
    assert e.search('straße', 9, 'lexical', []) == []
    assert e.search(NFD('café'), 9, 'lexical', []) != []  # as pieces, as ever
    assert 'words are cut by rules 1' in caplog.text and f'index --index={older}' in caplog.text
    manifest = Folder(str(older)).manifest()
    Folder(str(older)).write_manifest({**manifest, 'words': words.RULES + 1})
    with pytest.raises(RunError, match=f'by rules {words.RULES + 1}, this version knows 1 to'):
        Engine(Folder(str(older)))


def test_an_older_index_is_cut_again_and_not_embedded(reader, older, monkeypatch, caplog):
    """Catches words that stay as they were when nothing else changed, texts that are embedded
    again, and words taken up from an update that this version found interrupted."""
    ways = Engine(Folder(str(older))).manifest['files']
    with (
        monkeypatch.context() as then
    ):  # the older version, stopped when it has cut the words of a new file
        then.setattr(update.lexical, 'Words', functools.partial(lexical.Words, number=1))
        then.setattr(update.rules, 'RULES', 1)
        then.setattr(
            update.Update, '_build_vectors', lambda *_: (_ for _ in ()).throw(KeyError('stop'))
        )
        with pytest.raises(KeyError):
            (older.parent / 'texts/new.txt').write_text(NFD('Água nova'))
            index(reader, older)
    folder = Folder(str(older))
    manifest = folder.manifest()
    assert manifest['begun']['lexical'].pop('words') == 1 and 'words' not in manifest
    folder.write_manifest(manifest)
    monkeypatch.setattr(type(reader), 'embed', lambda *_: pytest.fail('embedded again'))
    assert index(reader, older).endswith(f'18 chunks; words cut again, by rules {words.RULES}')
    caplog.clear()
    e = opened(older)
    for query, name in {'naïve': 'naive', '公园': 'park', 'água': 'new'}.items():
        assert e.search(query, 9, 'lexical', [])[0].path.endswith(f'{name}.txt')
    assert e.manifest['words'] == words.RULES and not caplog.text
    assert e.manifest['files'].keys().isdisjoint(ways)
    assert index(reader, older).endswith('18 chunks')  # once


def asked(monkeypatch, folder, *given, lines=''):
    """What `query` prints, with a model that is not asked."""
    values = dict(run='', k=3, mode='lexical', weight=0.1, fusion='scores', json=True, path=[])
    monkeypatch.setattr(command.flags, 'FLAGS', types.SimpleNamespace(**values))
    monkeypatch.setattr(sys, 'stdin', io.StringIO(lines))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        command.query(Folder(str(folder)), list(given))
    return [json.loads(line) for line in said.getvalue().splitlines()]


def test_a_query_without_words(reader, texts, tmp_path, monkeypatch, caplog):
    """Catches a query of signs alone that is told as if nothing was found, and one among others
    that ends them all."""
    index(reader, tmp_path / 'ix', texts)
    for given in ('???', '— …', '\u200b\u00ad', '👩\u200d👧'):
        with pytest.raises(RunError, match='has no word: expected letters or digits'):
            asked(monkeypatch, tmp_path / 'ix', given)
    found = asked(monkeypatch, tmp_path / 'ix', lines='???\nnaïve\n')
    assert [len(one['results']) for one in found] == [0, 1]
    assert "the query '???' has no word" in caplog.text
