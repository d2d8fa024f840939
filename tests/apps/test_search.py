"""Search: indexing, queries and measures on a tiny run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from apps.search import (
    MODES,
    chunks,
    engine as engines,
    files,
    lexical,
    reader as readers,
    show,
    update,
)
from apps.search.engine import Engine
from apps.search.reader import Reader
from apps.search.store import Folder
from data.records import DataError, Record
from model.embed import pool
from runtime.errors import RunError
from runtime.run_dir import Run


@pytest.fixture
def notes(tmp_path):
    """A folder of files, each with words that no other has."""
    folder = tmp_path / 'notes'
    (folder / 'deep').mkdir(parents=True)
    (folder / 'tea.md').write_text(
        '# Tea\n\nWarm the pot first. Pour boiling water over oolong leaves.\n\nWait for three '
        'minutes.\n'
    )
    (folder / 'deep/cats.txt').write_text(
        ''.join(
            f'Paragraph {i} of the cat book speaks of whiskers and of day {i * i}.\n\n'
            for i in range(40)
        )
    )
    (folder / 'deep/code.py').write_text(
        'def read_table(path):\n    """Reads a parquetfile."""\n    return open(path)\n'
    )
    (folder / 'page.html').write_text('<p>Harbours\n<p>The lighthouse of the harbour is old.')
    (folder / 'docs.jsonl').write_text(
        '{"_id": "d1", "title": "Moon", "text": "The moon circles the earth."}\n{"_id": "d2", '
        '"text": "Mars is red."}\n'
    )
    return folder


def index(reader, folder, *paths, remove=(), **asked):
    """Brings an index up to date; returns its summary without the folder."""
    settings = dict(chunk=100, overlap=12, text_field=None, language=None) | asked
    return (
        update.Update(Folder(str(folder)), reader, settings, False)
        .run([str(p) for p in paths], list(map(str, remove)))
        .rpartition(': ')[2]
    )


def opened(folder, reader=None):
    """The index, with a model that is loaded already."""
    found = Engine(Folder(str(folder)))
    found._reader = reader
    return found


def results(folder, reader, query='whiskers of the oolong moon', count=30):
    """What queries of all modes find, without the numbers of the rows."""
    e = opened(folder, reader)
    return {
        mode: [
            (
                hit.path,
                hit.line,
                hit.end_line,
                hit.start,
                hit.end,
                round(hit.score, 3),
                hit.text,
                hit.passage,
            )
            for hit in e.search(query, count, mode, [])
        ]
        for mode in MODES
    }


def test_meaning_is_the_order_of_all_vectors(reader, notes, tmp_path):
    """Catches a semantic order that is another than that of every chunk's vector against the
    query's, or a score that is no cosine."""
    index(reader, tmp_path / 'ix', notes)
    e = opened(tmp_path / 'ix', reader)
    texts = [text for (text,) in e._rows('SELECT text FROM chunks')]
    ids = [key for (key,) in e._rows('SELECT id FROM chunks')]
    query = 'how long must leaves wait'
    products = reader.embed(reader.encode(texts)) @ reader.embed(reader.encode([query]))[0]
    found = e.rank(query, len(ids), 'semantic')
    assert len(ids) > 12 and sorted(key for key, _ in found) == sorted(ids)
    assert np.allclose([score for _, score in found], np.sort(products)[::-1], atol=2e-3)
    product = dict(zip(ids, products))
    assert all(abs(product[key] - score) < 2e-3 for key, score in found)
    assert [key for key, _ in e.rank(query, 5, 'semantic')] == [key for key, _ in found][:5]


def test_words_find_what_meaning_does_not(reader, notes, tmp_path, monkeypatch):
    """Catches a lexical mode that embeds, words that need their exact form, an order that is not of
    BM25, words said twice that count once, a hybrid that leaves out one of both or gives both one
    weight, one that is another when more results are asked for, as `eval` does, and ranks that are
    no ranks."""
    index(reader, tmp_path / 'ix', notes, overlap=0)
    e = Engine(Folder(str(tmp_path / 'ix')), 'nowhere')
    hit = e.search('PARQUETFILE', 3, 'lexical', [])
    assert (
        [h.path for h in hit] == [str(notes / 'deep/code.py')]
        and hit[0].text.startswith('def read_table')
        and hit[0].line == 1
    )
    assert [h.path for h in e.search('reading tables', 3, 'lexical', [])] == [
        str(notes / 'deep/code.py')
    ]  # read_table
    assert e.search('zebra', 3, 'lexical', []) == []
    whiskers = e.search('whiskers 1444', 3, 'lexical', [])
    assert (
        'day 1444' in whiskers[0].text
        and whiskers[0].score > whiskers[1].score > 0
        and 'whiskers' in whiskers[1].text
    )
    e = opened(tmp_path / 'ix', reader)
    once, twice = (
        dict(e.rank('whiskers 1444', 50, 'lexical')),
        dict(e.rank('whiskers 1444 whiskers', 50, 'lexical')),
    )
    rare = max(once, key=once.get)
    assert twice[rare] == pytest.approx(once[rare] + dict(e.rank('whiskers', 50, 'lexical'))[rare])
    found = {mode: dict(e.rank('lighthouse day whiskers', 100, mode)) for mode in MODES}
    assert len(found['semantic']) == len(found['hybrid']) > len(found['lexical']) > 10
    moved = {
        mode: {
            key: (score - min(of.values())) / (max(of.values()) - min(of.values()))
            for key, score in of.items()
        }
        for mode, of in found.items()
    }
    assert found['hybrid'] == pytest.approx(
        {
            key: 0.1 * score + 0.9 * moved['lexical'].get(key, 0)
            for key, score in moved['semantic'].items()
        }
    )
    e._fusion = 'ranks'
    rank = {mode: {key: i for i, key in enumerate(found[mode], 1)} for mode in MODES}
    assert dict(e.rank('lighthouse day whiskers', 100, 'hybrid')) == pytest.approx(
        {
            key: 1 / (60 + i) + (1 / (60 + rank['lexical'][key]) if key in rank['lexical'] else 0)
            for key, i in rank['semantic'].items()
        }
    )
    assert (
        e.rank('lighthouse day whiskers', 3, 'hybrid')
        == e.rank('lighthouse day whiskers', 100, 'hybrid')[:3]
    )
    e._fusion = 'scores'
    for weight, mode in ((0.0, 'lexical'), (1.0, 'semantic')):
        e._weight = weight
        assert [
            key for key, _ in e.rank('lighthouse day whiskers', len(found[mode]), 'hybrid')
        ] == list(found[mode])
    monkeypatch.setattr(engines, '_FUSED', 6)
    assert (
        e.rank('lighthouse day whiskers', 2, 'hybrid')
        == e.rank('lighthouse day whiskers', 1000, 'hybrid')[:2]
    )


def test_an_index_of_another_version_is_refused(reader, notes, tmp_path, monkeypatch):
    """Catches vectors or chunks that another version of the code made and that are searched with
    those of this one. Where this test fails since chunks or pooling have changed, raise `VERSION`
    and write what it gives now."""
    rng = np.random.default_rng(0)
    hidden, valid = (
        rng.standard_normal((1, 6, 4)).astype(np.float32),
        np.array([[1, 1, 1, 1, 0, 0]], bool),
    )
    pooled = {
        name: (1000 * np.asarray(pool(hidden, valid, name))[0]).round().tolist()
        for name in ('mean', 'last', 'weighted')
    }
    text = 'One two three. Four five\nsix.\n\nSeven ' + 'eight nine ' * 9 + 'ten! Eleven.'
    cuts = chunks.Splitter(lambda words: [(0,)] * len(words), 15, 3).chunks(text)
    assert (readers.VERSION, cuts) == (1, [(0, 64), (48, 113), (98, 148)])
    assert pooled == {
        'mean': [-860, -314, 19, 90],
        'last': [-2325, -219, -1246, -732],
        'weighted': [-1236, -408, -361, -81],
    }
    index(reader, tmp_path / 'ix', notes)
    manifest = Folder(str(tmp_path / 'ix')).manifest()
    assert manifest['made'].pop('version') == 1
    Folder(str(tmp_path / 'ix')).write_manifest(manifest)  # as before the field was there
    assert opened(tmp_path / 'ix').reader
    monkeypatch.setattr(readers, 'VERSION', 2)
    with pytest.raises(
        RunError, match='version of pooling and chunks 1 there, 2 here.*index into another folder'
    ):
        opened(tmp_path / 'ix').reader
    with pytest.raises(RunError, match='version of pooling and chunks 1 there, 2 here'):
        index(Reader(Run.parse(reader.made['run']), '', 0), tmp_path / 'ix')


def test_hits_know_their_place(reader, notes, tmp_path, monkeypatch):
    """Catches lines and offsets of something else than the chunk, those of a paragraph for all
    chunks of it, ids of records that are lost, and a passage outside the text."""
    (notes / 'page.html').write_text('<p>' + '\n'.join(f'at{i}' for i in range(1, 300)))
    index(reader, tmp_path / 'ix', notes)
    hits = opened(tmp_path / 'ix', reader).search('the', 100, 'semantic', [])
    for hit in hits:
        if hit.path.endswith(('.txt', '.md', '.py')):
            text = open(hit.path).read()
            assert text[hit.start : hit.end] == hit.text
            assert (hit.line, hit.end_line) == (
                1 + text.count('\n', 0, hit.start),
                1 + text.count('\n', 0, hit.end),
            )
        begin, end = hit.passage
        assert 0 <= begin < end <= len(hit.text)
    assert {(h.record, h.line) for h in hits if h.path.endswith('.jsonl')} == {('d1', 1), ('d2', 2)}
    page = [h for h in hits if h.path.endswith('.html')]
    assert len(page) > 5 and all(
        (h.line, h.end_line) == tuple(int(h.text.split()[i].removeprefix('at')) for i in (0, -1))
        for h in page
    )
    assert len({(h.path, h.start, h.record) for h in hits}) == len(hits) > 12
    monkeypatch.setattr(engines, '_PASSAGE_WORDS', 10)
    lexical = opened(tmp_path / 'ix').search('day 100 cats', 1, 'lexical', [])[0]
    assert (
        'day 100.' in lexical.text[slice(*lexical.passage)]
        and len(lexical.text) > lexical.passage[1] - lexical.passage[0]
    )


def test_the_passage_is_the_nearest_window(reader, notes, tmp_path):
    """Catches a passage that does not depend on the query: the text of a window, asked for, is
    found again."""
    text = 'Alpha beta one. ' + ''.join(
        f'Sentence {i} has {chr(97 + i) * 6} {chr(98 + i) * 5} words of its own kind. '
        for i in range(12)
    )
    (notes / 'long.txt').write_text(text)
    index(reader, tmp_path / 'ix', notes, chunk=128, overlap=0)
    e = opened(tmp_path / 'ix', reader)
    hits = [
        h
        for h in e.search('x', 100, 'semantic', ['long.txt'])
        if len(reader.encode([h.text])[0]) > engines._WINDOW + 4
    ]
    assert hits
    for hit in hits:
        windows = e._windows(hit.text, spans := engines.passages(hit.text, engines._PASSAGE_WORDS))
        assert {len(w) for w in windows} == {engines._WINDOW}
        for ids, span in zip(windows, spans):
            query = reader.tokenizer.decode(ids).strip()
            if sum(w == ids for w in windows) == 1 and reader.encode([query])[0] == ids:
                assert e._passages(query, 'semantic', [hit.text]) == [span]


def test_the_passage_shows_the_words_together(reader, tmp_path):
    """Catches a passage that begins with filler, one that has the words far apart where they stand
    together elsewhere, and one that lacks one of them."""
    text = (
        'A first line of filler is here. The zebra alone stands in this one sentence. A walrus '
        'comes late. Then there is more filler to be read by you. '
        'Some of it is here too, and it goes on. Here a zebra meets a walrus today. This is what '
        'comes after them. The end is near.'
    )
    (tmp_path / 'a.txt').write_text(text)
    index(reader, tmp_path / 'ix', tmp_path / 'a.txt')
    e = opened(tmp_path / 'ix')
    for query, begin in (
        ('zebra walrus', 'Here a zebra meets'),
        ('alone zebra', 'The zebra alone'),
        ('walrus comes', 'A walrus comes'),
        ('walrus today comes', 'Here a zebra'),
        ('late', 'A walrus'),
    ):
        ((first, end),) = e._passages(query, 'lexical', [text])
        assert text[first:end].startswith(begin), query
    assert lexical.closeness('b a x x a b x'.split(), {'a', 'b', 'c'}) == (
        2,
        -2,
        0,
    ) and lexical.closeness('x a x a b'.split(), {'a', 'b'}) == (2, -2, -3)
    assert (
        lexical.closeness(['x'], {'a'})
        == (0, 0, 0)
        < lexical.closeness(['x', 'a'], {'a'})
        < lexical.closeness(['a', 'x'], {'a'})
    )


def test_only_what_changed_is_embedded(reader, notes, tmp_path, monkeypatch):
    """Catches files that are embedded again, chunks of deleted and changed files that stay, and an
    index brought up to date that answers otherwise than a new one."""
    embedded = []

    class Counting:
        made, size, longest, trained, tokenizer, encode = (
            reader.made,
            reader.size,
            reader.longest,
            128,
            reader.tokenizer,
            reader.encode,
        )

        @staticmethod
        def embed(ids):
            embedded.append(len(ids))
            return reader.embed(ids)

    first = index(Counting, tmp_path / 'ix', notes)
    assert first.startswith('5 new, 0 changed, 0 unchanged, 0 removed, 0 skipped; ') and sum(
        embedded
    ) == int(first.split()[-2])
    before = sorted(p.name for p in (tmp_path / 'ix').iterdir())
    embedded.clear()
    assert (
        index(Counting, tmp_path / 'ix').startswith(
            '0 new, 0 changed, 5 unchanged, 0 removed, 0 skipped; '
        )
        and not embedded
    )
    assert sorted(p.name for p in (tmp_path / 'ix').iterdir()) == before  # nothing was written anew
    (notes / 'page.html').unlink()
    (notes / 'tea.md').write_text('# Tee\n\nNow it is about coffee beans.\n')
    (notes / 'deep/more.py').write_text('def write_table(path):\n    return None\n')
    (notes / 'deep/code.py').touch()
    assert index(Counting, tmp_path / 'ix', notes).startswith(
        '1 new, 1 changed, 3 unchanged, 1 removed, 0 skipped; '
    )
    assert 0 < sum(embedded) <= 4
    index(reader, tmp_path / 'new', notes)
    assert results(tmp_path / 'ix', reader) == results(tmp_path / 'new', reader)
    assert len(opened(tmp_path / 'ix')._graph) > len(
        opened(tmp_path / 'new')._graph
    )  # the graph was added to, not built anew
    (notes / 'deep/cats.txt').unlink()
    index(reader, tmp_path / 'ix', notes)
    index(reader, tmp_path / 'newer', notes)
    assert results(tmp_path / 'ix', reader) == results(tmp_path / 'newer', reader)
    assert len(opened(tmp_path / 'ix')._graph) == len(
        opened(tmp_path / 'newer')._graph
    )  # most were gone: built anew


def test_copies_are_one_vector(reader, notes, tmp_path, monkeypatch):
    """Catches copies that are embedded each, or again under another name, a graph in which they
    hide everything else, and results that lack some."""
    for i in range(300):
        (notes / f'copy{i}.txt').write_text('The same license in each and every file.')
        (notes / f'own{i}.txt').write_text(f'Number {i} has {i * i} and {i**3 % 1000} of its own.')
    index(reader, tmp_path / 'ix', notes)
    e = opened(tmp_path / 'ix', reader)
    assert 300 < len(e._graph) < 400
    queries = [f'Number {i} has {i * i} and {i**3 % 1000} of its own.' for i in range(0, 300, 10)]
    assert [e.search(q, 1, 'semantic', [])[0].text for q in queries] == queries
    copies = e.search('The same license in each and every file.', 310, 'semantic', [])
    assert len(copies) == 310 and {h.path for h in copies[:300]} == {
        str(notes / f'copy{i}.txt') for i in range(300)
    }
    (notes / 'own7.txt').rename(notes / 'renamed.txt')
    with monkeypatch.context() as m:
        m.setattr(reader, 'embed', None)
        assert index(reader, tmp_path / 'ix').startswith(
            '1 new, 0 changed, 604 unchanged, 1 removed'
        )
    assert opened(tmp_path / 'ix', reader).search(
        'Number 7 has 49 and 343 of its own.', 1, 'semantic', []
    )[0].path == str(notes / 'renamed.txt')


def test_a_change_that_size_and_time_hide(reader, notes, tmp_path):
    """Catches a file that was written again within one tick of the clock, with as many bytes."""
    index(reader, tmp_path / 'ix', notes)
    (notes / 'tea.md').write_bytes((notes / 'tea.md').read_bytes().replace(b'oolong', b'sencha'))
    assert index(reader, tmp_path / 'ix', notes).startswith('0 new, 1 changed, 4 unchanged')
    assert opened(tmp_path / 'ix').search('sencha', 1, 'lexical', []) and not opened(
        tmp_path / 'ix'
    ).search('oolong', 1, 'lexical', [])


def test_paths_add_up_and_are_taken_out(reader, notes, tmp_path):
    """Catches a second PATH that throws out the first, --remove that forgets nothing, and a folder
    that is away for a while and loses its chunks."""
    index(reader, tmp_path / 'ix', notes / 'deep')
    assert index(reader, tmp_path / 'ix', notes / 'tea.md').startswith(
        '1 new, 0 changed, 0 unchanged, 0 removed'
    )
    assert index(reader, tmp_path / 'ix').startswith('0 new, 0 changed, 3 unchanged, 0 removed')
    (notes / 'deep').rename(notes / 'away')
    assert index(reader, tmp_path / 'ix').startswith(
        '0 new, 0 changed, 1 unchanged, 0 removed, 1 skipped'
    )
    assert opened(tmp_path / 'ix').search('whiskers', 1, 'lexical', [])
    assert index(reader, tmp_path / 'ix', remove=[notes / 'deep']).startswith(
        '0 new, 0 changed, 1 unchanged, 2 removed'
    )
    assert not opened(tmp_path / 'ix').search('whiskers', 1, 'lexical', [])
    assert index(reader, tmp_path / 'ix').startswith(
        '0 new, 0 changed, 1 unchanged, 0 removed, 0 skipped'
    )
    (notes / 'tea.md').unlink()
    assert index(reader, tmp_path / 'ix', notes).startswith(
        '4 new, 0 changed, 0 unchanged, 1 removed'
    )
    assert index(reader, tmp_path / 'ix', remove=[notes / 'away']).startswith(
        '0 new, 0 changed, 2 unchanged, 2 removed'
    )
    assert index(reader, tmp_path / 'ix').startswith(
        '0 new, 0 changed, 2 unchanged, 0 removed'
    )  # a part of a PATH stays out
    assert index(reader, tmp_path / 'ix', notes).startswith(
        '2 new, 0 changed, 2 unchanged, 0 removed'
    )  # until it is asked for again
    with pytest.raises(DataError, match='--remove=.*typo: nothing of it is indexed'):
        index(reader, tmp_path / 'ix', remove=[notes / 'typo'])


def test_without_a_path_python_is_indexed(reader, tmp_path, monkeypatch):
    """Catches a default that needs files, one that is written anew each time, and one that an index
    of something else gets as well."""
    records = [
        Record(f'pydoc:{name}', f'{name} is a module that {does}.\n\n{name}.first does é {does}.')
        for name, does in (('json', 'reads'), ('csv', 'writes'), ('os.path', 'joins'))
    ]
    monkeypatch.setattr(
        files.sources, 'read', lambda config: iter(records if config.source == 'pydoc' else ())
    )
    assert index(reader, tmp_path / 'ix').startswith(
        '3 new, 0 changed, 0 unchanged, 0 removed, 0 skipped'
    )
    hit = opened(tmp_path / 'ix').search('joins', 1, 'lexical', ['os.path*'])[0]
    assert (
        hit.path == f'{tmp_path}/ix/pydoc/os.path.txt'
        and open(hit.path).read()[hit.start : hit.end] == hit.text
    )
    records[1] = Record('pydoc:csv', 'csv is another module now.')
    assert index(reader, tmp_path / 'ix').startswith(
        '0 new, 1 changed, 2 unchanged, 0 removed, 0 skipped'
    )
    (tmp_path / 'one').mkdir()
    (tmp_path / 'one/a.txt').write_text('Only this.')
    assert index(reader, tmp_path / 'one/ix', tmp_path / 'one').startswith(
        '1 new,'
    )  # its own folder is passed over
    assert index(reader, tmp_path / 'one/ix').startswith('0 new, 0 changed, 1 unchanged,')


def test_an_index_may_become_empty(reader, notes, tmp_path):
    """Catches a fault where no chunk is left."""
    index(reader, tmp_path / 'ix', notes / 'tea.md')
    assert index(reader, tmp_path / 'ix', remove=[notes]).endswith('1 removed, 0 skipped; 0 chunks')
    assert index(reader, tmp_path / 'ix').endswith(
        '0 skipped; 0 chunks'
    )  # nothing is asked for: not Python's documentation either
    assert results(tmp_path / 'ix', reader) == dict.fromkeys(MODES, [])


@pytest.mark.parametrize('few', [0, 20_000])
def test_patterns_of_paths(reader, notes, tmp_path, monkeypatch, few):
    """Catches a filter that is applied after the best k are chosen: one by one, and by the
    graph."""
    monkeypatch.setattr(engines, '_FEW', few)
    monkeypatch.chdir(notes)
    index(reader, tmp_path / 'ix', notes)
    e = opened(tmp_path / 'ix', reader)
    every = e.search('moon', 100, 'semantic', [])
    for patterns, kept in (
        (['*.jsonl'], 'docs.jsonl'),
        (['deep/*.py'], 'deep/code.py'),
        (['./tea.md'], 'tea.md'),
        (['deep/'], 'deep/'),
        ([str(notes / 'deep/c*')], 'deep/'),
        (['../notes/tea.md'], 'tea.md'),
    ):
        expected = [h.text for h in every if h.path.startswith(str(notes / kept).rstrip('/'))]
        assert [h.text for h in e.search('moon', 100, 'semantic', patterns)] == expected, patterns
        assert {
            h.text for h in e.search('moon tea whiskers table', 100, 'lexical', patterns)
        } <= set(expected)
        assert [h.text for h in e.search('moon', 1, 'hybrid', patterns)] == [
            h.text for h in e.search('moon', 100, 'hybrid', patterns)
        ][:1]
    both = e.search('moon', 100, 'semantic', ['*.py', '*.html'])
    assert {h.path for h in both} == {str(notes / 'page.html'), str(notes / 'deep/code.py')}
    with pytest.raises(ValueError, match=r'--path=\*.rs: matches no file that is indexed'):
        e.search('moon', 1, 'lexical', ['*.rs'])


def test_a_path_is_a_name_or_a_pattern(reader, tmp_path, monkeypatch):
    """Catches a folder that matches with a '/' at its end only, or one whose name begins like it,
    and characters of patterns that a name cannot have."""
    here = tmp_path / 'my [old] notes'
    every = {
        'deep/a.txt',
        'deep/in/b.md',
        'deeper/c.txt',
        'odd[1]*.txt',
        'odd1x.txt',
        '[x]/d.txt',
        'x/e.txt',
    }
    for name in every:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(f'Words of {name}.')
    index(reader, tmp_path / 'ix', here)
    monkeypatch.chdir(here)
    e = opened(tmp_path / 'ix')
    deep = {'deep/a.txt', 'deep/in/b.md'}
    for path, names in (
        ('deep', deep),
        ('deep/', deep),
        (here / 'deep', deep),
        (f'{here}/deep/', deep),
        ('../my [old] notes/deep', deep),
        ('in', {'deep/in/b.md'}),
        ('odd[1]*.txt', {'odd[1]*.txt', 'odd1x.txt'}),
        (here / 'odd[1]*.txt', {'odd[1]*.txt'}),
        ('odd1x.txt', {'odd1x.txt'}),
        ('[x]', {'[x]/d.txt', 'x/e.txt'}),
        ('./[a-z]/', {'x/e.txt'}),
        ('../*/odd?x.txt', {'odd1x.txt'}),
        ('./deep*/c.txt', {'deeper/c.txt'}),
        ('.', every),
        ('/', every),
    ):
        assert {
            h.path.removeprefix(f'{here}/') for h in e.search('words', 99, 'lexical', [str(path)])
        } == names, path
    for path in ('dee', 'deep/a.txt/', 'eep/a.txt'):
        with pytest.raises(ValueError, match='matches no file that is indexed'):
            e.search('words', 1, 'lexical', [path])


def test_what_is_shown(reader, notes, tmp_path, monkeypatch):
    """Catches text that commands the terminal, colors where there is none, a passage that is not
    marked, and JSON of another form."""
    (notes / 'odd\x1b[2J.txt').write_text(
        'Lead in. Here \x1b[31mred\x07 oolonga is. Then more of it.'
    )
    index(reader, tmp_path / 'ix', notes)
    hits = opened(tmp_path / 'ix').search('oolonga', 5, 'lexical', [])
    monkeypatch.chdir(notes)
    plain, colored = show.format_hits(hits, False), show.format_hits(hits, True)
    assert plain.splitlines() == [
        f'1. odd\\x1b[2J.txt:1  {hits[0].score:.4f}',
        '   Lead in. Here \\x1b[31mred\\x07 oolonga is. Then more of it.',
    ]
    assert 'Lead in. \x1b[33mHere \\x1b[31mred\\x07 oolonga is. Then more of it.\x1b[0m' in colored
    assert show.format_hits([], False) == 'nothing found'
    long = engines.Hit(
        '/x/paper.PDF',
        None,
        3,
        4,
        0,
        0,
        1.0,
        'word ' * 100 + 'THE PASSAGE' + ' word' * 100,
        (500, 511),
    )
    assert (
        show.format_place(long) == '/x/paper.PDF:p3-4'
        and len(show.format_hits([long], False)) < 400
        and '… word' in show.format_hits([long], False)
    )
    found = json.loads(show.as_json('q', 'lexical', hits))
    assert set(found) == {'query', 'mode', 'results'} and [set(r) for r in found['results']] == [
        {'path', 'record', 'line', 'end_line', 'start', 'end', 'score', 'text', 'there', 'passage'}
    ]
    assert found['results'][0]['there'] and '(not there any more)' not in plain
    assert show.format_hits([long], False).startswith(
        '1. /x/paper.PDF:p3-4  (not there any more)  1.0'
    )
    passage = found['results'][0]['passage']
    assert (
        open(notes / 'odd\x1b[2J.txt').read()[passage['start'] : passage['end']] == passage['text']
    )


def start(*args):
    return subprocess.Popen(
        [sys.executable, '-m', 'apps.search', *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_as_a_person_uses_it(search_run, notes, tmp_path):
    """Catches a command that does not lead to what the tests above try: all commands, queries in
    words and from stdin, and mistakes in one line."""
    ix = f'--index={tmp_path / "ix"}'
    indexing = start('index', f'--run={search_run}', ix, '--chunk=100', notes)
    mistake = start('quary', ix)
    out, err = indexing.communicate()
    assert (
        (indexing.returncode, err) == (0, '')
        and out.startswith(f'{tmp_path}/ix: 5 new, ')
        and out.count('\n') == 1
    )
    asked, lines = (
        start('query', ix, '--json', '--mode=lexical', 'red', 'mars'),
        start('query', ix, '--k=1', '--fusion=ranks'),
    )
    fusions = [
        start('query', ix, *asked, 'x')
        for asked in (
            ['--fusion=rank'],
            ['--fusion=ranks', '--weight=.2'],
            ['--fusion=ranks', '--mode=lexical'],
        )
    ]
    for process, told in zip(
        fusions,
        (
            '--fusion=rank: value should be one of <scores|ranks>',
            '--weight=0.2 has no effect: it needs --fusion=scores',
            '--fusion=ranks has no effect: it needs --mode=hybrid',
        ),
    ):
        out, err = process.communicate()
        assert (process.returncode, out) == (2, '') and told in err and err.count('\n') == 1
    out, err = mistake.communicate()
    assert (
        (mistake.returncode, out) == (2, '')
        and "quary: did you mean 'query'" in err
        and err.count('\n') == 1
    )
    out, err = asked.communicate()
    found = json.loads(out)
    assert (asked.returncode, err, found['query']) == (0, '', 'red mars') and [
        hit['record'] for hit in found['results']
    ] == ['d2']
    out, err = lines.communicate('Mars is red.\n\nlighthouse of the harbour\n')
    first, second = (part.splitlines()[0] for part in out.split('1. ')[1:])
    assert (
        (lines.returncode, err) == (0, '')
        and 'docs.jsonl:2  d2  ' in first
        and 'page.html:1' in second
    )


def test_an_index_of_earlier_rules_is_read_anew(reader, tmp_path, monkeypatch, caplog):
    """Catches an index whose files were read by other rules and that stays so since they did not
    change, one that cannot be searched meanwhile, and vectors that are computed again."""
    caplog.set_level('INFO', 'ordem')
    folder, found = tmp_path / 'notes', tmp_path / 'index'
    folder.mkdir()
    (folder / 'a.txt').write_text(
        'The moon circles the earth.\r\nAnd the tea is green.\r\n', newline=''
    )
    (folder / 'b.txt').write_text('A lighthouse of the harbour.\n')
    monkeypatch.setattr(files, 'line_ends', lambda text: text.replace('\r\n', ' \n'))
    index(reader, found, folder)
    here = Folder(str(found))
    old = here.manifest()
    del old['reading']
    here.write_manifest(old)
    monkeypatch.undo()
    caplog.set_level('INFO', 'ordem')
    [hit] = opened(found, reader).search('moon tea', 1, 'lexical', [])
    assert ' \n' in hit.text
    embedded = []
    embed = reader.embed
    monkeypatch.setattr(reader, 'embed', lambda ids: embedded.append(len(ids)) or embed(ids))
    said = index(reader, found, folder)
    assert said.startswith('0 new, 0 changed, 2 unchanged, 0 removed') and sum(embedded) == 1
    assert 'its files are read anew' in caplog.text and here.manifest()['reading'] == 2
    [hit] = opened(found, reader).search('moon tea', 1, 'lexical', [])
    assert hit.text == 'The moon circles the earth.\nAnd the tea is green.'
    before = {p.name: p.stat().st_mtime_ns for p in found.iterdir()}
    caplog.clear()
    index(reader, found, folder)
    after = {p.name: p.stat().st_mtime_ns for p in found.iterdir()}
    assert {n: t for n, t in after.items() if 'manifest' not in n and n != '.lock'} == {
        n: t for n, t in before.items() if 'manifest' not in n and n != '.lock'
    }
    assert 'read anew' not in caplog.text


def test_what_search_passes_over_is_told(reader, tmp_path, caplog):
    """Catches hidden files and second names that are left out of an index without a word."""
    caplog.set_level('INFO', 'ordem')
    folder = tmp_path / 'notes'
    (folder / '.git').mkdir(parents=True)
    for name in ('a.txt', '.git/b.txt', '._a.txt'):
        (folder / name).write_text('some words of a text')
    (folder / 'again.txt').symlink_to('a.txt')
    said = index(reader, tmp_path / 'index', folder)
    assert said.startswith('1 new') and '; 1 chunks' in said
    assert 'passed over: 2 hidden, 1 seen under another name' in caplog.text
