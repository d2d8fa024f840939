"""Texts in an object store, against a store in memory."""

import itertools

import fsspec
import pytest

from configs import base
from data import sources
from data.paths import cache_folder
from data.records import DataError


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store that is empty, and a cache of its own on this machine."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    memory = fsspec.filesystem('memory')
    monkeypatch.setattr(type(memory), 'store', {})
    monkeypatch.setattr(type(memory), 'pseudo_dirs', [''])
    return memory


def texts(paths):
    config = base.get_config().data
    config.source = 'files'
    config.files.paths = paths
    return [record.text for record in sources.read(config)]


def test_texts_of_a_bucket(store):
    """Catches a folder, a pattern or a file of a store that is not found, files of other kinds that
    are brought, and an order that is the store's."""
    for name, content in (('b.txt', 'dois'), ('a.txt', 'um'), ('c/d.txt', 'três'), ('e.bin', 'x')):
        store.pipe(f'/bucket/texts/{name}', content.encode())
    assert texts('memory://bucket/texts') == ['um', 'dois', 'três']
    assert texts('memory://bucket/texts/*.txt') == ['um', 'dois']
    assert texts('memory://bucket/texts/c/d.txt') == ['três']
    assert not list((cache_folder() / 'remote').rglob('*.bin'))


def test_what_changes_there_changes_here(store, monkeypatch):
    """Catches an old text that is read for ever, a removed one too, and files that are brought
    anew each time."""
    brought = []
    get_file = type(store).get_file
    monkeypatch.setattr(
        type(store),
        'get_file',
        lambda self, path, *rest, **how: brought.append(path) or get_file(self, path, *rest, **how),
    )
    store.pipe('/bucket/a.txt', b'um')
    store.pipe('/bucket/b.txt', b'dois')
    for _ in range(2):
        assert texts('memory://bucket') == ['um', 'dois']
    assert len(brought) == 2
    store.pipe('/bucket/a.txt', b'onze')
    store.rm('/bucket/b.txt')
    assert texts('memory://bucket') == ['onze'] and len(brought) == 3


@pytest.mark.parametrize(
    'url, words',
    [
        ('memory://bucket/nothing', 'no file found .config.data.files.paths.'),
        ('nowhere://bucket/a.txt', 'no store of this kind is known here'),
    ],
)
def test_what_is_not_there(store, url, words):
    """Catches a traceback for a store or a file that there is not."""
    with pytest.raises(DataError, match=words):
        texts(url)


def test_a_download_that_fails(store, monkeypatch):
    """Catches half a file that passes for a whole one."""
    store.pipe('/bucket/a.txt', b'um')
    fails = itertools.chain([True], itertools.repeat(False))
    get_file = type(store).get_file

    def get(self, path, local, **how):
        get_file(self, path, local, **how)
        if next(fails):
            raise OSError('connection lost')

    monkeypatch.setattr(type(store), 'get_file', get)
    with pytest.raises(DataError, match='a.txt cannot be brought here: OSError: connection lost'):
        texts('memory://bucket')
    assert not list((cache_folder() / 'remote').rglob('*.txt'))
    assert texts('memory://bucket') == ['um']
