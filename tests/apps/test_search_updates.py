"""Search: an index is brought up to date."""

import pytest

from apps.search import MODES, files
from data.records import DataError, Record
from tests.apps.search_index import index, opened, results


def test_only_what_changed_is_embedded(reader, mixed_notes, tmp_path, monkeypatch):
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

    first = index(Counting, tmp_path / 'ix', mixed_notes)
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
    (mixed_notes / 'page.html').unlink()
    (mixed_notes / 'tea.md').write_text('# Tee\n\nNow it is about coffee beans.\n')
    (mixed_notes / 'deep/more.py').write_text('def write_table(path):\n    return None\n')
    (mixed_notes / 'deep/code.py').touch()
    assert index(Counting, tmp_path / 'ix', mixed_notes).startswith(
        '1 new, 1 changed, 3 unchanged, 1 removed, 0 skipped; '
    )
    assert 0 < sum(embedded) <= 4
    index(reader, tmp_path / 'new', mixed_notes)
    assert results(tmp_path / 'ix', reader) == results(tmp_path / 'new', reader)
    assert len(opened(tmp_path / 'ix')._graph) > len(
        opened(tmp_path / 'new')._graph
    )  # the graph was added to, not built anew
    (mixed_notes / 'deep/cats.txt').unlink()
    index(reader, tmp_path / 'ix', mixed_notes)
    index(reader, tmp_path / 'newer', mixed_notes)
    assert results(tmp_path / 'ix', reader) == results(tmp_path / 'newer', reader)
    assert len(opened(tmp_path / 'ix')._graph) == len(
        opened(tmp_path / 'newer')._graph
    )  # most were gone: built anew


def test_copies_are_one_vector(reader, mixed_notes, tmp_path, monkeypatch):
    """Catches copies that are embedded each, or again under another name, a graph in which they
    hide everything else, and results that lack some."""
    for i in range(300):
        (mixed_notes / f'copy{i}.txt').write_text('The same license in each and every file.')
        (mixed_notes / f'own{i}.txt').write_text(
            f'Number {i} has {i * i} and {i**3 % 1000} of its own.'
        )
    index(reader, tmp_path / 'ix', mixed_notes)
    e = opened(tmp_path / 'ix', reader)
    assert 300 < len(e._graph) < 400
    queries = [f'Number {i} has {i * i} and {i**3 % 1000} of its own.' for i in range(0, 300, 10)]
    assert [e.search(q, 1, 'semantic', [])[0].text for q in queries] == queries
    copies = e.search('The same license in each and every file.', 310, 'semantic', [])
    assert len(copies) == 310 and {h.path for h in copies[:300]} == {
        str(mixed_notes / f'copy{i}.txt') for i in range(300)
    }
    (mixed_notes / 'own7.txt').rename(mixed_notes / 'renamed.txt')
    with monkeypatch.context() as m:
        m.setattr(reader, 'embed', None)
        assert index(reader, tmp_path / 'ix').startswith(
            '1 new, 0 changed, 604 unchanged, 1 removed'
        )
    assert opened(tmp_path / 'ix', reader).search(
        'Number 7 has 49 and 343 of its own.', 1, 'semantic', []
    )[0].path == str(mixed_notes / 'renamed.txt')


def test_a_change_that_size_and_time_hide(reader, mixed_notes, tmp_path):
    """Catches a file that was written again within one tick of the clock, with as many bytes."""
    index(reader, tmp_path / 'ix', mixed_notes)
    (mixed_notes / 'tea.md').write_bytes(
        (mixed_notes / 'tea.md').read_bytes().replace(b'oolong', b'sencha')
    )
    assert index(reader, tmp_path / 'ix', mixed_notes).startswith('0 new, 1 changed, 4 unchanged')
    assert opened(tmp_path / 'ix').search('sencha', 1, 'lexical', []) and not opened(
        tmp_path / 'ix'
    ).search('oolong', 1, 'lexical', [])


def test_paths_add_up_and_are_taken_out(reader, mixed_notes, tmp_path):
    """Catches a second PATH that throws out the first, --remove that forgets nothing, and a folder
    that is away for a while and loses its chunks."""
    index(reader, tmp_path / 'ix', mixed_notes / 'deep')
    assert index(reader, tmp_path / 'ix', mixed_notes / 'tea.md').startswith(
        '1 new, 0 changed, 0 unchanged, 0 removed'
    )
    assert index(reader, tmp_path / 'ix').startswith('0 new, 0 changed, 3 unchanged, 0 removed')
    (mixed_notes / 'deep').rename(mixed_notes / 'away')
    assert index(reader, tmp_path / 'ix').startswith(
        '0 new, 0 changed, 1 unchanged, 0 removed, 1 skipped'
    )
    assert opened(tmp_path / 'ix').search('whiskers', 1, 'lexical', [])
    assert index(reader, tmp_path / 'ix', remove=[mixed_notes / 'deep']).startswith(
        '0 new, 0 changed, 1 unchanged, 2 removed'
    )
    assert not opened(tmp_path / 'ix').search('whiskers', 1, 'lexical', [])
    assert index(reader, tmp_path / 'ix').startswith(
        '0 new, 0 changed, 1 unchanged, 0 removed, 0 skipped'
    )
    (mixed_notes / 'tea.md').unlink()
    assert index(reader, tmp_path / 'ix', mixed_notes).startswith(
        '4 new, 0 changed, 0 unchanged, 1 removed'
    )
    assert index(reader, tmp_path / 'ix', remove=[mixed_notes / 'away']).startswith(
        '0 new, 0 changed, 2 unchanged, 2 removed'
    )
    assert index(reader, tmp_path / 'ix').startswith(
        '0 new, 0 changed, 2 unchanged, 0 removed'
    )  # a part of a PATH stays out
    assert index(reader, tmp_path / 'ix', mixed_notes).startswith(
        '2 new, 0 changed, 2 unchanged, 0 removed'
    )  # until it is asked for again
    with pytest.raises(DataError, match='--remove=.*typo: nothing of it is indexed'):
        index(reader, tmp_path / 'ix', remove=[mixed_notes / 'typo'])


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


def test_an_index_may_become_empty(reader, mixed_notes, tmp_path):
    """Catches a fault where no chunk is left."""
    index(reader, tmp_path / 'ix', mixed_notes / 'tea.md')
    assert index(reader, tmp_path / 'ix', remove=[mixed_notes]).endswith(
        '1 removed, 0 skipped; 0 chunks'
    )
    assert index(reader, tmp_path / 'ix').endswith(
        '0 skipped; 0 chunks'
    )  # nothing is asked for: not Python's documentation either
    assert results(tmp_path / 'ix', reader) == dict.fromkeys(MODES, [])


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
