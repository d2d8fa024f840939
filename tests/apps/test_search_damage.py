"""Search: an index that is damaged, or cannot be written: one line, and nothing lost."""

import errno
import json
import os
import shutil
import sqlite3
import types
from unittest import mock

import numpy as np
import pytest

from apps.search import show, store, update
from apps.search.engine import Engine
from apps.search.store import Folder
from runtime.errors import RunError
from tests.apps.test_search_faults import index, results


def interrupt(*_, **__):
    raise KeyboardInterrupt


def names(folder):
    return sorted(json.loads((folder / 'manifest.json').read_text())['files'])


@pytest.mark.parametrize('harm', ['flip', 'cut', 'empty', 'gone', 'garbage'])
def test_damage_is_told_and_mended(reader, notes, tmp_path, harm, monkeypatch):
    """Catches a file of the index that is not checked, a traceback, and vectors that are lost
    though the database has them."""
    index(reader, tmp_path / 'whole', notes)
    good = results(tmp_path / 'whole', reader)
    for name in [*names(tmp_path / 'whole'), 'manifest.json']:
        ix = shutil.copytree(tmp_path / 'whole', tmp_path / 'ix')
        content = bytearray((ix / name).read_bytes())
        content[len(content) // 2] ^= 255
        (ix / name).unlink()
        if harm != 'gone':
            (ix / name).write_bytes(
                {
                    'flip': content,
                    'cut': content[:-1],
                    'empty': b'',
                    'garbage': os.urandom(len(content)),
                }[harm]
            )
        mends = not name.startswith(('chunks', 'manifest'))
        if name == 'manifest.json' and harm == 'gone':
            with pytest.raises(
                RunError, match='expected an index or an empty folder, found neither'
            ):
                Folder(str(ix))
        else:
            with pytest.raises(
                RunError,
                match='manifest.json: damaged'
                if name == 'manifest.json'
                else f'a damaged index: {name}',
            ) as told:
                Engine(Folder(str(ix)))
            assert '\n' not in str(told.value) and (
                'mends it' if mends else f'remove {ix} and index again'
            ) in str(told.value)
            if mends:
                with monkeypatch.context() as m:
                    m.setattr(reader, 'embed', None)  # nothing is embedded again
                    assert index(reader, ix).startswith('0 new, 0 changed, 6 unchanged')
                assert results(ix, reader) == good
            else:
                with pytest.raises(RunError, match=name):
                    index(reader, ix)
        shutil.rmtree(ix)


def test_damage_that_size_and_time_hide(reader, notes, tmp_path):
    """Catches a crash in place of a line where bytes have changed under the same time: SQLite's and
    the graph's own complaints are taken; and a line that says that indexing mends it where it does
    not."""
    index(reader, tmp_path / 'ix', notes)
    good, rng = results(tmp_path / 'ix', reader), np.random.default_rng(0)
    told = set()
    for name in names(tmp_path / 'ix'):
        path = tmp_path / 'ix' / name
        content, found = path.read_bytes(), path.stat()
        body = len(content[128:]) * name.endswith(
            '.npy'
        )  # behind the head of an array; a graph may take the process with it
        for harmed in (
            b'\0' * 64 + content[64:],
            *(
                content[: len(content) - body] + harm
                for harm in (bytes(body), b'\xff' * body, rng.bytes(body))
            ),
        ):
            path.write_bytes(harmed)
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
            try:
                results(tmp_path / 'ix', reader)
            except RunError as error:
                assert 'a damaged index' in str(error) and '\n' not in str(error)
                told.add(name)
        path.write_bytes(content)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert {'lexical-1/ids.npy', 'lexical-1/indices.csc.index.npy'} <= told
    path = tmp_path / 'ix/lexical-1/ids.npy'
    found = path.stat()
    path.write_bytes(path.read_bytes()[:128] + bytes(found.st_size - 128))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(
        RunError, match='a damaged index: lexical: .*the command that indexed it mends it'
    ):
        Engine(Folder(str(tmp_path / 'ix'))).documents('about number', 9, 'lexical')
    index(reader, tmp_path / 'ix')
    assert results(tmp_path / 'ix', reader) == good


def test_what_is_named_is_on_the_disk(reader, notes, tmp_path, monkeypatch):
    """Catches a manifest that is written before what it names has reached the disk: a loss of power
    would leave it alone."""
    synced, sync, write = set(), os.fsync, Folder.write_manifest

    def fsync(number):
        synced.add(os.fstat(number).st_ino)
        sync(number)

    def write_manifest(self, manifest):
        assert {(self.path / name).stat().st_ino for name in manifest['files']} <= synced and (
            not manifest['files'] or self.path.stat().st_ino in synced
        )
        write(self, manifest)

    monkeypatch.setattr(os, 'fsync', fsync)
    monkeypatch.setattr(Folder, 'write_manifest', write_manifest)
    index(reader, tmp_path / 'ix', notes)
    assert len(names(tmp_path / 'ix')) > 4


def test_a_work_in_progress_that_is_damaged(reader, notes, tmp_path, monkeypatch):
    """Catches a traceback, and a newest state that goes with the work on the next."""
    index(reader, tmp_path / 'ix', notes)
    good = results(tmp_path / 'ix', reader)
    (notes / '0.txt').unlink()
    (tmp_path / 'ix/chunks-2.db').write_bytes(b'SQLite format 3\0' + b'x' * 9000)
    with pytest.raises(RunError, match='cannot be written: .*remove'):
        index(reader, tmp_path / 'ix', notes)
    assert results(tmp_path / 'ix', reader) == good


@pytest.mark.parametrize(
    'target, name',
    [
        (store, 'write_atomically'),
        (shutil, 'copyfile'),
        (update.vectors.Index, 'save'),
        (np, 'save'),
    ],
)
@pytest.mark.parametrize('change', ['removed', 'changed'])
def test_a_full_disk(reader, notes, tmp_path, monkeypatch, target, name, change):
    """Catches a traceback, a state that is published without one of its files, and a file that is
    passed over as one that cannot be read."""
    index(reader, tmp_path / 'ix', notes)
    good = results(tmp_path / 'ix', reader)
    for i in range(2):  # so many that the graph is a new one
        (notes / f'{i}.txt').unlink() if change == 'removed' else (notes / f'{i}.txt').write_text(
            f'Now it is about something else, {i}.'
        )

    def full(*_, **__):
        raise (
            RuntimeError('No space left on device')
            if name == 'save' and target is not np
            else OSError(28, 'No space left on device')
        )

    with (
        monkeypatch.context() as m,
        pytest.raises(
            RunError, match='cannot be written: .*No space left on device.*goes on when it can'
        ),
    ):
        m.setattr(target, name, full)
        index(reader, tmp_path / 'ix', notes)
    assert results(tmp_path / 'ix', reader) == good
    index(reader, tmp_path / 'ix', notes)
    index(reader, tmp_path / 'new', notes)
    assert good != results(tmp_path / 'ix', reader) == results(tmp_path / 'new', reader)


@pytest.mark.parametrize('harm', ['flip', 'gone', 'database'])
def test_a_graph_that_is_begun(reader, notes, tmp_path, harm, monkeypatch):
    """Catches a saved part of a graph that is taken up though it was damaged, or though the numbers
    of its vectors are now those of others."""
    for name in ('_ADDED_TOGETHER', '_SAVE_EVERY'):
        monkeypatch.setattr(update, name, 4)
    added, works = [], update.vectors.add

    def add(graph, ids, found):
        if len(added) == 3:
            raise KeyboardInterrupt
        works(graph, ids, found)
        added.append(len(ids))

    monkeypatch.setattr(update.vectors, 'add', add)
    with pytest.raises(KeyboardInterrupt):
        index(reader, tmp_path / 'ix', notes)
    (begun,) = (tmp_path / 'ix').glob('vectors-*')
    assert (
        json.loads((tmp_path / 'ix/manifest.json').read_text())['begun']['vectors']['last'] == 12
        and begun.name == 'vectors-1.12'
    )
    if harm == 'database':
        (tmp_path / 'ix/chunks-1.db').unlink()
        (notes / '0.txt').unlink()
        with (
            monkeypatch.context() as m,
            pytest.raises(KeyboardInterrupt),
        ):  # nor does it take it up later
            m.setattr(reader, 'embed', interrupt)
            index(reader, tmp_path / 'ix')
    elif harm == 'gone':
        begun.unlink()
    else:
        content = bytearray(begun.read_bytes())
        content[len(content) // 2] ^= 255
        begun.write_bytes(content)
    count = len(list(notes.iterdir())) * 4
    added[:] = [0] * 4
    index(reader, tmp_path / 'ix')
    index(reader, tmp_path / 'new', notes)
    assert sum(added) == 2 * count and results(tmp_path / 'ix', reader) == results(
        tmp_path / 'new', reader
    )


@pytest.mark.parametrize('harm', ['killed', 'cut short', 'gone'])
def test_words_that_are_begun(reader, notes, tmp_path, harm, monkeypatch):
    """Catches words that are taken up with the terms of another interrupted process, half written,
    or without one of their files."""
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(update.vectors, 'add', interrupt)
        index(reader, tmp_path / 'ix', notes)
    if harm == 'gone':
        (tmp_path / 'ix/lexical-1/indices.csc.index.npy').unlink()
    else:
        (notes / '8.txt').write_text('Aardvarks have nothing to do with numbers.')
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            build = update.lexical.build
            m.setattr(
                *(
                    (update.lexical.bm25s.BM25, 'index', interrupt)
                    if harm == 'cut short'
                    else (update.lexical, 'build', lambda *args: interrupt(build(*args)))
                )
            )
            index(reader, tmp_path / 'ix')
    index(reader, tmp_path / 'ix')
    index(reader, tmp_path / 'new', notes)
    for query in ('aardvarks', 'about number 12'):
        assert results(tmp_path / 'ix', reader, query) == results(tmp_path / 'new', reader, query)


def test_what_an_interrupted_process_leaves(reader, notes, tmp_path, monkeypatch):
    """Catches files of older states that stay for good, and a folder that is refused since its
    first manifest was not written to its end."""
    (tmp_path / 'ix').mkdir()
    (tmp_path / 'ix/.manifest.json.123').write_text('{')
    index(reader, tmp_path / 'ix', notes)
    (notes / '6.txt').write_text('Something new.')
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(
            store,
            'fresh',
            lambda path, fresh=store.fresh: fresh(path) if path.name == '.making' else interrupt(),
        )
        index(reader, tmp_path / 'ix', notes)
    assert (tmp_path / 'ix/chunks-1.db').exists() and (tmp_path / 'ix/chunks-2.db').exists()
    assert index(reader, tmp_path / 'ix').startswith('0 new, 0 changed, 7 unchanged')
    assert sorted(p.name.partition('.')[0] for p in (tmp_path / 'ix').iterdir()) == [
        '',
        'chunks-2',
        'lexical-2',
        'manifest',
        'vectors-2',
    ]


def test_a_graph_of_files_that_are_gone_again(reader, notes, tmp_path, monkeypatch):
    """Catches the older graph taken for one that has what was embedded since: an interrupted
    process noted it, and its own graph is of no use any more."""
    index(reader, tmp_path / 'ix', notes)
    for i in range(6, 20):
        (notes / f'{i}.txt').write_text(f'A new text, the one of number {i}.')
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Folder, 'publish', interrupt)
        index(reader, tmp_path / 'ix')
    for i in range(7, 20):
        (notes / f'{i}.txt').unlink()
    index(reader, tmp_path / 'ix')
    index(reader, tmp_path / 'new', notes)
    assert results(tmp_path / 'ix', reader) == results(tmp_path / 'new', reader)


def test_a_disk_without_room_is_worth_another_try(tmp_path):
    """Catches a full disk under an index that is told as a mistake of the user."""
    folder = Folder(str(tmp_path / 'index'))
    for said in ('database or disk is full', 'disk I/O error'):
        assert folder.unwritable(sqlite3.OperationalError(said)).code == os.EX_IOERR
    assert folder.unwritable(OSError(errno.EIO, 'x')).code == os.EX_IOERR
    readonly = sqlite3.OperationalError('attempt to write a readonly database')
    assert folder.unwritable(readonly).code == 2


def test_a_hit_is_named_in_one_line():
    """Catches the name of a file with an end of a line in it, which makes two lines of a hit."""
    hit = types.SimpleNamespace(record=None, score=1.0)
    with (
        mock.patch.object(show, 'format_place', lambda hit: 'a\n2. b.txt:1'),
        mock.patch.object(show, 'is_there', lambda hit: True),
        mock.patch.object(show, '_mark_snippet', lambda hit: 'words'),
    ):
        assert show.format_hits([hit], False) == '1. a\\n2. b.txt:1  1.0000\n   words'
