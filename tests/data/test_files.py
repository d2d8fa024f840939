"""Which files a person means is one rule, whoever asks."""

import os

import pytest

from apps.search import files as search_files
from data import files, sources
from data.records import DataError

SEEN = ['a.txt', 'b.TXT', 'c.jsonl.GZ', 'deep/d.txt', 'linked/e.txt']


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """notes/ with what people's folders have besides their texts; the working folder is around
    it."""
    monkeypatch.chdir(tmp_path)
    for name in (
        'notes/a.txt',
        'notes/b.TXT',
        'notes/c.jsonl.GZ',
        'notes/deep/d.txt',
        'notes/.git/config.txt',
        'notes/.ipynb_checkpoints/a.txt',
        'notes/._a.txt',
        'notes/deep/.hidden.jsonl',
        'notes/node_modules/x/licence.txt',
        'notes/deep/__pycache__/y.txt',
        'elsewhere/e.txt',
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    for link, to in (
        ('notes/linked', '../elsewhere'),
        ('notes/linked2', '../elsewhere'),
        ('notes/again.txt', 'a.txt'),
        ('notes/deep/up', '..'),
        ('notes/deep/loop', 'loop'),
        ('notes/gone.txt', 'nowhere'),
    ):
        (tmp_path / link).symlink_to(to)
    os.link(tmp_path / 'notes/a.txt', tmp_path / 'notes/hard.txt')
    return tmp_path / 'notes'


def found(names):
    return [str(path) for path in sources.find_files(names)]


@pytest.mark.parametrize('paths', ['notes', 'notes/', './notes', 'notes/**', '**'])
def test_a_folder_is_what_its_pattern_and_search_find(notes, paths):
    """Catches hidden files that are read, links and suffixes in capitals that are not, and a rule
    that differs between a folder, a pattern and the search."""
    outside = ['elsewhere/e.txt'] * (paths == '**')  # which is there by itself then
    wanted = [n for n in SEEN if not outside or n != 'linked/e.txt']
    assert found(paths) == sorted([*outside, *(f'notes/{name}' for name in wanted)])
    walk = search_files.Walk([str(notes)], notes.parent / 'elsewhere/..')
    assert sorted(os.path.relpath(name, notes) for name in walk.files) == sorted(SEEN)


@pytest.mark.parametrize(
    'names, reason',
    [
        (('config.json', 'lineage.json', 'tokenizer.model'), '1 in runs'),
        (('manifest.json', '.lock'), '1 in indexes'),
        (('manifest.json', 'train.tokens'), '1 in stores'),
    ],
)
def test_what_was_made_of_texts_is_none(notes, names, reason):
    """Catches metrics of a run that are trained on, and an index that is indexed by another."""
    before = found('notes')
    folder = notes / 'deep' / 'made'
    folder.mkdir()
    for name in (*names, 'metrics.jsonl', 'words.txt'):
        (folder / name).write_text('{}')
    paths, passed = files.find('notes', sources.SUFFIXES, 'F')
    assert [str(path) for path in paths] == before and reason in str(passed)
    walk = search_files.Walk([str(notes)], notes.parent / 'elsewhere/..')
    assert not [name for name in walk.files if '/made/' in name]
    assert found('notes/deep/made') == [  # which is named
        'notes/deep/made/metrics.jsonl',
        'notes/deep/made/words.txt',
    ]


def test_what_is_passed_over_is_counted(notes):
    """Catches files that are left out without a word."""
    for name in ('x.pdf', 'y.PDF', 'z'):
        (notes / name).write_text('x')
    os.mkfifo(notes / 'pipe.txt')
    _, passed = files.find('notes', sources.SUFFIXES, 'F')
    message = str(passed)
    assert message.startswith('1 as a link to a folder around it, 1 as no regular file, 4 hidden, ')
    assert '1 named __pycache__, 1 named node_modules, 3 seen under another name' in message
    assert '3 of other kinds (.pdf 2, none 1)' in message
    assert '2 that cannot be read (the first notes/gone.txt: No such file' in message


@pytest.mark.parametrize(
    'paths',
    [
        'notes,alias',
        'alias,notes',
        'alias/a.txt,notes',
        'notes,notes/a.txt,notes/./a.txt',
        'hard.txt,notes',
        'notes/*,notes/deep,notes/linked',
        'two,one,notes',
    ],
)
def test_a_file_is_read_once(notes, paths):
    """Catches a file that is read under each of its names: links to it or its folder, links to
    links, hard links; and a name that depends on the order."""
    here = notes.parent
    (here / 'alias').symlink_to('notes')
    (here / 'one').symlink_to('alias')
    (here / 'two').symlink_to(here / 'one')
    os.link(here / 'notes/a.txt', here / 'hard.txt')
    first = 'hard.txt' if 'hard' in paths else 'notes/a.txt'
    rest = [f'notes/{name}' for name in SEEN[1:]]
    assert found(paths) == sorted([first, *rest])


@pytest.mark.parametrize(
    'paths, wanted',
    [
        ('notes/.git', ['notes/.git/config.txt']),
        ('notes/._a.txt', ['notes/._a.txt']),
        ('notes/.*', ['notes/._a.txt']),
        ('notes/**/.ipynb*/*.txt', ['notes/.ipynb_checkpoints/a.txt']),
        ('notes/*/__pycache__/*', ['notes/deep/__pycache__/y.txt']),
        ('notes/deep/.hidden.jsonl', ['notes/deep/.hidden.jsonl']),
        ('**/linked/*.txt', ['notes/linked/e.txt']),
    ],
)
def test_what_is_named_is_read(notes, paths, wanted):
    """Catches a hidden file or folder that is passed over though a person names it, and a link that
    `**` does not go through where the pattern goes on."""
    assert found(paths) == wanted


COMMAS = ['a,b.txt', 'x, y.txt', ',.txt', 'f,g/h.txt', 'p,q,r.txt', '1,000 days/a.txt', 'c.txt']


@pytest.mark.parametrize(
    'paths, wanted',
    [
        ('a,b.txt', ['a,b.txt']),
        ('a,b.txt,c.txt', ['a,b.txt', 'c.txt']),
        ('c.txt, x, y.txt ,p,q,r.txt', ['c.txt', 'p,q,r.txt', 'x, y.txt']),
        (',.txt', [',.txt']),
        ('f,g', ['f,g/h.txt']),
        ('f,g/*.txt,c.txt', ['c.txt', 'f,g/h.txt']),
        ('1,000 days,a,*.txt', ['1,000 days/a.txt', 'a,b.txt']),
        ('c.txt,', ['c.txt']),
    ],
)
def test_a_comma_in_a_name(tmp_path, monkeypatch, paths, wanted):
    """Catches a file that is told as not there since its name has a comma."""
    monkeypatch.chdir(tmp_path)
    for name in COMMAS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert found(paths) == wanted


def test_a_long_list_is_not_tried_in_all_its_stretches(tmp_path, monkeypatch):
    """Catches a list of thousands of files that takes minutes, as each stretch of it may be one
    name with commas."""
    tried = []
    leads_somewhere = files._leads_somewhere
    monkeypatch.setattr(files, '_leads_somewhere', lambda e: tried.append(e) or leads_somewhere(e))
    monkeypatch.chdir(tmp_path)
    names = [f'{i}.txt' for i in range(60)]
    for name in (*names, '7.txt, 8', '[x, y]'):
        (tmp_path / name).write_text(name)
    assert files.split(','.join([*names, '*.md', 'gone/a.txt'])) == [*names, '*.md', 'gone/a.txt']
    assert len(tried) <= 2 * 60
    assert files.split('[x, y],7.txt, 8,[0-9,a].txt')[:2] == ['[x, y]', '7.txt, 8']


@pytest.mark.parametrize(
    'paths, message',
    [
        ('notes/*.pdf', r"\*.pdf: no file found \(config.data.files.paths\); did you mean 'x.pdf'"),
        ('notes/*.pdf', r'; passed over: 1 of other kinds \(.pdf 1\)'),
        ('only', r'only: no file in this directory that can be read .*; passed over: 1 hidden'),
        ('notes/a.txt,gone,b.txt', r'^gone: no file found'),
        ('notes/one, tow, 3.txt,notes/a.txt', r'/one: no .*; did you mean .one, two, 3.txt.\?'),
        ('~$notes.txt', r'~\$notes.txt: no file found'),
        ('x' * 300 + '.txt', r'xxx.txt: no file found'),
        ('notes/deep/loop', r'loop: cannot be read .*: Too many levels'),
        ('notes/gone.txt', r'gone.txt: cannot be read .*: No such file'),
        ('pipe.txt', r'pipe.txt: a pipe, socket or device'),
    ],
)
def test_what_leads_to_nothing_is_said(notes, paths, message):
    """Catches a traceback, and a folder whose files are all passed over without a reason."""
    (notes / 'x.pdf').write_text('x')
    (notes / 'one, two, 3.txt').write_text('x')
    (notes.parent / 'only').mkdir()
    os.mkfifo(notes.parent / 'pipe.txt')
    (notes.parent / 'only/.a.txt').write_text('x')
    with pytest.raises(DataError, match=message):
        found(paths)


@pytest.mark.parametrize('suffix', ['.JSONL', '.Tsv', '.jsonl.GZ', '.TXT.gz', '.txt.ZST'])
def test_an_end_of_a_name_counts_without_case(config, tmp_path, suffix):
    """Catches a file that is found by its suffix and then read as one of another kind."""
    import gzip

    import zstandard

    from data.pairs import read as read_pairs

    lower = suffix.lower()
    folder = tmp_path / 'files'
    row = 'a\tb\n' if 'tsv' in lower else '{"text": "a", "query": "a", "positive": "b"}\n'
    pack = {'.gz': gzip.compress, '.zst': zstandard.compress}.get(lower[-4:].lstrip('lt'), bytes)
    pack = gzip.compress if lower.endswith('gz') else pack
    folder.mkdir()
    (folder / f'x{suffix}').write_bytes(pack(row.encode()))
    config.source = 'files'
    config.files.paths = str(folder)
    if 'tsv' not in lower:
        [record] = sources.read(config)
        assert record.text == ('a' if 'jsonl' in lower else row)
    if 'txt' not in lower:
        [pair] = read_pairs.read_file(folder / f'x{suffix}')
        assert pair.query == 'a' and pair.positives == ('b',)
