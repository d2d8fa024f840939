"""Search: queries of some files only (--path)."""

import pytest

from apps.search import engine as engines
from tests.apps.search_index import index, opened


@pytest.mark.parametrize('few', [0, 20_000])
def test_patterns_of_paths(reader, mixed_notes, tmp_path, monkeypatch, few):
    """Catches a filter that is applied after the best k are chosen: one by one, and by the
    graph."""
    monkeypatch.setattr(engines, '_FEW', few)
    monkeypatch.chdir(mixed_notes)
    index(reader, tmp_path / 'ix', mixed_notes)
    e = opened(tmp_path / 'ix', reader)
    every = e.search('moon', 100, 'semantic', [])
    for patterns, kept in (
        (['*.jsonl'], 'docs.jsonl'),
        (['deep/*.py'], 'deep/code.py'),
        (['./tea.md'], 'tea.md'),
        (['deep/'], 'deep/'),
        ([str(mixed_notes / 'deep/c*')], 'deep/'),
        (['../notes/tea.md'], 'tea.md'),
    ):
        expected = [h.text for h in every if h.path.startswith(str(mixed_notes / kept).rstrip('/'))]
        assert [h.text for h in e.search('moon', 100, 'semantic', patterns)] == expected, patterns
        assert {
            h.text for h in e.search('moon tea whiskers table', 100, 'lexical', patterns)
        } <= set(expected)
        assert [h.text for h in e.search('moon', 1, 'hybrid', patterns)] == [
            h.text for h in e.search('moon', 100, 'hybrid', patterns)
        ][:1]
    both = e.search('moon', 100, 'semantic', ['*.py', '*.html'])
    assert {h.path for h in both} == {
        str(mixed_notes / 'page.html'),
        str(mixed_notes / 'deep/code.py'),
    }
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
