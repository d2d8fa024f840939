"""Search: what is broken, interrupted, in use or of another model, each in one line, and nothing
lost."""

import contextlib
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from apps.search import MODES, files, update
from apps.search.engine import Engine
from apps.search.reader import Reader
from apps.search.store import Folder
from runtime.errors import RunError, StoppedBySignalError
from runtime.run_dir import Run


def index(reader, folder, *paths, remove=(), **asked):
    return (
        update.Update(Folder(str(folder)), reader, asked, False)
        .run([str(p) for p in paths], list(map(str, remove)))
        .rpartition(': ')[2]
    )


def results(folder, reader, query='about number 12 and aaaaa'):
    e = Engine(Folder(str(folder)))
    e._reader = reader
    return {
        mode: [
            (hit.path, hit.start, round(hit.score, 3), hit.text)
            for hit in e.search(query, 99, mode, [])
        ]
        for mode in MODES
    }


@pytest.fixture
def log():
    """What the product says, a message each."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger('ordem').addHandler(handler)
    yield said
    logging.getLogger('ordem').removeHandler(handler)


def test_what_cannot_be_read_is_named_and_the_rest_indexed(
    reader, notes, tmp_path, log, monkeypatch
):
    """Catches a bad file that ends indexing, one that is passed over in silence, one whose old text
    is still found, and a warning that is not repeated."""
    index(reader, tmp_path / 'ix', notes)
    (notes / '1.txt').write_bytes(b'caf\xe9')
    (notes / '2.txt').write_bytes(b'\0\1\2')
    (notes / 'empty.md').touch()
    (notes / 'blank.md').write_text(' \n \n')
    (notes / 'bad.pdf').write_bytes(b'%PDF-1.7 nothing')
    with open(notes / 'line.log', 'wb') as file:
        file.write(b'a' * 6_000_000)
        file.truncate(1 << 30)
    os.utime(notes / 'line.log', (10**9, 10**9))  # read through once only
    (notes / 'other.txt').write_bytes(b'x' * 9_000_000)
    os.mkfifo(notes / 'pipe')
    (notes / 'loop').symlink_to('loop')
    (notes / 'rows.jsonl').write_text('{"text": "good record"}\n{"text": 1}\n')
    (notes / '3.txt').write_text('closed')
    opened = files.File.open

    def closed(self):
        if self.name.endswith('3.txt'):
            raise PermissionError(13, 'Permission denied', self.name)
        return opened(self)

    monkeypatch.setattr(files.File, 'open', closed)
    said = index(reader, tmp_path / 'ix')
    assert said.startswith('1 new, 0 changed, 3 unchanged, 0 removed, 11 skipped; ')
    told = {line.removeprefix(f'skipped {notes}/').partition(': ')[0]: line for line in log}
    assert len(log) == len(told) == 11
    reasons = {
        '1.txt': 'invalid UTF-8 in line 1',
        '2.txt': 'a binary file',
        'empty.md': 'an empty file',
        'blank.md': 'no text in it',
        'bad.pdf': 'broken PDF',
        'line.log': 'line 1 has more than 4 MiB',
        'other.txt': 'line 1 has more than 4 MiB',
        'pipe': 'a pipe, socket',
        'loop': 'symbolic link',
        'rows.jsonl:2': 'broken record',
        '3.txt': 'cannot be read: Permission denied',
    }
    for name, reason in reasons.items():
        assert reason in told[name] and told[name].count('\n') == 0
    paths = {os.path.basename(path) for path, *_ in results(tmp_path / 'ix', reader)['semantic']}
    assert paths == {
        '0.txt',
        '3.txt',
        '4.txt',
        '5.txt',
        'rows.jsonl',
    }  # of 3.txt what was indexed before
    log.clear()
    assert (
        index(reader, tmp_path / 'ix').startswith(
            '0 new, 0 changed, 4 unchanged, 0 removed, 10 skipped; '
        )
        and len(log) == 10
    )


def test_a_path_of_which_nothing_can_be_indexed(reader, notes, tmp_path, log, monkeypatch):
    """Catches a path that was asked for, gave nothing, and ends as if all were well."""
    monkeypatch.chdir(notes)
    (notes / '~$notes.txt').write_bytes(b'\x05\0\0')
    (notes / 'empty').mkdir()
    wanted = ['0.txt', '~$notes.txt', '/dev/null', 'empty']
    asked = update.Update(Folder(str(tmp_path / 'ix')), reader, {}, False)
    assert asked.run(wanted, []).rpartition(': ')[2].startswith('1 new, 0 changed')
    assert asked.refused == ['~$notes.txt', '/dev/null'] and len(log) == 2
    again = update.Update(Folder(str(tmp_path / 'ix')), reader, {}, False)
    again.run(['.'], [])
    assert again.refused == []
    (notes / '0.txt').write_bytes(b'\0')
    gone = update.Update(Folder(str(tmp_path / 'ix')), reader, {}, False)
    gone.run(['0.txt'], [])
    assert gone.refused == ['0.txt']


def found(folder):
    """The names of the files that have chunks."""
    return {
        os.path.basename(path)
        for (path,) in Engine(Folder(str(folder)))._rows(
            'SELECT name FROM files WHERE id IN (SELECT file FROM chunks)'
        )
    }


def test_what_leads_nowhere_is_gone_and_what_is_closed_is_kept(
    reader, notes, tmp_path, log, monkeypatch
):
    """Catches text that is found though links to it lead nowhere, text that is lost since its file
    cannot be read just now, and a warning that does not say that it is kept."""
    (tmp_path / 'out').mkdir()
    for name in 'xyz':
        (tmp_path / f'out/{name}.txt').write_text(f'Outside is {name}.\n')
        (notes / f'{name}.txt').symlink_to(tmp_path / f'out/{name}.txt')
    index(reader, tmp_path / 'ix', notes)
    every = {f'{name}.txt' for name in '012345xyz'}
    assert found(tmp_path / 'ix') == every
    (tmp_path / 'out/x.txt').unlink()
    for name, to in (('0.txt', 'nowhere'), ('1.txt', '1.txt')):
        (notes / name).unlink()
        (notes / name).symlink_to(to)
    stat, opened = os.stat, files.File.open

    def closed(path, *args, **kw):
        if str(path).endswith('y.txt'):
            raise PermissionError(13, 'Permission denied', path)
        return stat(path, *args, **kw)

    def broken(self):
        if self.name.endswith('z.txt'):
            raise OSError(5, 'Input/output error', self.name)
        return opened(self)

    (tmp_path / 'out/z.txt').write_text('Now it is another.')
    with monkeypatch.context() as m:
        m.setattr(files.os, 'stat', closed)
        m.setattr(files.File, 'open', broken)
        assert '3 removed, 5 skipped' in index(reader, tmp_path / 'ix')
    assert found(tmp_path / 'ix') == every - {'x.txt', '0.txt', '1.txt'}
    told = {line.removeprefix(f'skipped {notes}/').partition(': ')[0]: line for line in log}
    assert {
        name for name, line in told.items() if line.endswith('; what is indexed of it is kept')
    } == {'y.txt', 'z.txt'} and len(told) == 5
    (tmp_path / 'out/y.txt').unlink()
    assert index(reader, tmp_path / 'ix', remove=[notes / 'y.txt']).split(', ')[3] == '1 removed'
    assert found(tmp_path / 'ix') == every - {'x.txt', 'y.txt', '0.txt', '1.txt'}


def test_many_warnings_are_counted(reader, notes, tmp_path, log, monkeypatch):
    """Catches a folder of pictures that fills the terminal."""
    monkeypatch.setattr(update, '_NAMED', 3)
    for i in range(9):
        (notes / f'{i}.png').write_bytes(b'\0')
    assert '9 skipped' in index(reader, tmp_path / 'ix', notes)
    assert len(log) == 4 and 'more than 3 are skipped' in log[-1]


class Killed(BaseException):
    """As SIGKILL does, nothing that is written for an orderly end runs after it."""


@pytest.mark.parametrize(
    'where, read, embedded, words, added',
    [
        ('reading', 2, 4, 1, 20),
        ('embedding', 0, 3, 1, 20),
        ('words', 0, 0, 1, 20),
        ('graph', 0, 0, 0, 16),
        ('publishing', 0, 0, 0, 0),
    ],
)
def test_killed_anywhere_it_goes_on(
    reader, notes, tmp_path, monkeypatch, where, read, embedded, words, added
):
    """Catches work that is lost or done twice, a state that is half the old and half the new, and
    one that differs from that of a new index."""
    index(reader, tmp_path / 'ix', notes)
    before = results(tmp_path / 'ix', reader)
    (notes / '0.txt').unlink()
    for i in (1, 7, 8, 9):
        (notes / f'{i}.txt').write_text(
            f'New text {i} about {"xyzuvwabcd"[i] * 4} and number {i}.\n'
        )
    monkeypatch.setattr(update, '_ADDED_TOGETHER', 2)
    monkeypatch.setattr(update, '_SAVE_EVERY', 2)
    places = {
        'reading': (files, 'read', 3),
        'embedding': (reader, 'embed', 2),
        'words': (update.lexical, 'build', 1),
        'graph': (update.vectors, 'add', 3),
        'publishing': (Folder, 'publish', 1),
    }
    target, name, count = places[where]
    works, calls = getattr(target, name), []

    def kills(*args):
        calls.append(1)
        if len(calls) == count:
            raise Killed
        return works(*args)

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(target, name, kills)
        index(reader, tmp_path / 'ix', notes)
    assert results(tmp_path / 'ix', reader) == before
    done = {'read': 0, 'encode': 0, 'build': 0, 'add': 0}

    def counts(target, name, of):
        works = getattr(target, name)

        def call(*args):
            done[name] += of(args)
            return works(*args)

        monkeypatch.setattr(target, name, call)

    counts(files, 'read', lambda args: 1)
    counts(reader, 'encode', lambda args: len(args[0]))
    counts(update.lexical, 'build', lambda args: 1)
    counts(update.vectors, 'add', lambda args: len(args[1]))
    index(reader, tmp_path / 'ix', notes)
    assert done == {'read': read, 'encode': embedded, 'build': words, 'add': added}
    index(reader, tmp_path / 'new', notes)
    assert results(tmp_path / 'ix', reader) == results(tmp_path / 'new', reader) != before
    assert sorted(p.name.partition('-')[0] for p in (tmp_path / 'ix').iterdir()) == [
        '.lock',
        'chunks',
        'lexical',
        'manifest.json',
        'vectors',
    ]


def test_killed_and_then_undone(reader, notes, tmp_path, monkeypatch):
    """Catches terms of a state that never came to be beside the words of the one that is: their
    numbers are of other texts."""
    index(reader, tmp_path / 'ix', notes)
    before = results(tmp_path / 'ix', reader, 'wholly unheard of')
    (notes / '9.txt').write_text('A wholly unheard of text about nothing else.\n')
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(update.vectors, 'add', lambda *_: (_ for _ in ()).throw(Killed))
        index(reader, tmp_path / 'ix')
    (notes / '9.txt').unlink()
    index(reader, tmp_path / 'ix')
    assert results(tmp_path / 'ix', reader, 'wholly unheard of') == before


def test_kill_and_signals(search_run, notes, tmp_path):
    """Catches embeddings of more than the file in work that a kill loses, a signal that ends in a
    traceback or another code, or loses any, and a second indexer or a query that meets a
    half-written state."""
    for i in range(10, 60):
        (notes / f'{i}.txt').write_text(
            ''.join(f'Text {i} line {j} is of numbers {i * j}.\n' for j in range(i % 3 * 40 + 1))
        )
    code = (
        'import os, runpy, sys\nfrom apps.search import reader\n'
        'embed, calls = reader.Reader.embed, []\n'
        'def held(self, ids):\n'
        '    calls.append(1)\n'
        '    if len(calls) == int(os.environ["FILES"]):\n        print("embedding", '
        'flush=True)\n        sys.stdin.readline()\n'
        '    return embed(self, ids)\n'
        'reader.Reader.embed = held\nrunpy.run_module("apps.search", run_name="__main__")\n'
    )
    args = ['index', f'--run={search_run}', f'--index={tmp_path / "ix"}', str(notes)]

    def start(files):
        """A process that waits before it embeds that many."""
        process = subprocess.Popen(
            [sys.executable, '-c', code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'FILES': str(files)},
        )
        assert process.stdout.readline() == 'embedding\n'
        return process

    def embedded():
        """For each file the share of its chunks that have a vector."""
        with contextlib.closing(sqlite3.connect(tmp_path / 'ix/chunks-1.db')) as db:
            return [
                share
                for (share,) in db.execute(
                    'SELECT avg(data IS NOT NULL) FROM chunks JOIN vectors ON vector = '
                    'vectors.id GROUP BY file ORDER BY file'
                )
            ]

    process = start(20)
    other = Folder(str(tmp_path / 'ix'))
    with pytest.raises(RunError, match='another process indexes into this folder'), other.hold():
        pass
    with pytest.raises(RunError, match='its first indexing did not end, or goes on'):
        Engine(other)
    process.kill()
    process.communicate()
    assert embedded() == [1] * 19 + [0] * 37
    process = start(10)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate('go on\n')
    assert process.returncode == 143
    assert (
        err
        == f'{tmp_path}/ix: stopped by SIGTERM; what was read and embedded is kept, and the same '
        f'command goes on from there\n'
    )
    assert embedded() == [1] * 29 + [0] * 27


def test_a_signal_ends_it_between_files(reader, notes, tmp_path, monkeypatch):
    """Catches a signal that is not looked at while files are read, and handlers that stay."""
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def read(*args, read=files.read):
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return read(*args)

    monkeypatch.setattr(files, 'read', read)
    with pytest.raises(StoppedBySignalError, match='stopped by SIGINT') as stopped:
        index(reader, tmp_path / 'ix', notes)
    assert stopped.value.code == 130 and signal.getsignal(signal.SIGINT) is before
    assert index(reader, tmp_path / 'ix', notes).startswith('4 new, 0 changed, 2 unchanged')


def test_an_open_index_keeps_its_state(reader, notes, tmp_path):
    """Catches a query that mixes two states while another process publishes a newer one, and files
    of older states that stay."""
    index(reader, tmp_path / 'ix', notes)
    e = Engine(Folder(str(tmp_path / 'ix')))
    e._reader = reader

    def look():
        return [
            (h.path, h.text, h.score)
            for mode in MODES
            for h in e.search('about number', 99, mode, [])
        ]

    before = look()
    shutil.rmtree(notes)
    notes.mkdir()
    (notes / 'only.txt').write_text('Something else about a number.')
    index(reader, tmp_path / 'ix', notes)
    assert look() == before
    assert {
        os.path.basename(path) for path, *_ in results(tmp_path / 'ix', reader)['semantic']
    } == {'only.txt'}


def test_a_newer_state_in_the_middle_of_opening(reader, notes, tmp_path, monkeypatch):
    """Catches an index called damaged where its files were just replaced."""
    index(reader, tmp_path / 'ix', notes)
    (notes / '0.txt').unlink()
    damage, done = Folder.damage, []

    def late(self, manifest, **how):
        if not done:
            done.append(1)
            index(reader, tmp_path / 'ix', notes)
        return damage(self, manifest, **how)

    monkeypatch.setattr(Folder, 'damage', late)
    assert Engine(Folder(str(tmp_path / 'ix'))).manifest['generation'] == 2


def test_another_model_is_refused(reader, search_run, notes, tmp_path):
    """Catches vectors of two models, poolings, sizes or ways of cutting in one index, and a message
    that does not say which, or speaks of a pooling or size that nobody asked for."""
    index(reader, tmp_path / 'ix', notes)
    run = Run.parse(str(search_run))
    for other, message in (
        (Reader(run, 'last', 0), 'pooling mean there, last here'),
        (Reader(run, '', 8), 'size 32 there, 8 here'),
    ):
        with pytest.raises(
            RunError,
            match=f'was indexed with something else: {message}. Ask for the same .that of '
            f'--run={search_run}@1',
        ):
            index(other, tmp_path / 'ix', notes)
    for asked, message in (
        (dict(chunk=64), 'chunk 128 there, 64 here'),
        (dict(language='portuguese'), 'language english there, portuguese here'),
    ):
        with pytest.raises(RunError, match=message):
            index(reader, tmp_path / 'ix', notes, **asked)
    for name, now in (
        ('step', 9),
        ('config_hash', 'f' * 64),
        ('params', 'e' * 64),
        ('tokenizer_hash', 'd' * 64),
    ):
        folder = Folder(str(shutil.copytree(tmp_path / 'ix', tmp_path / name)))
        manifest = folder.manifest()
        manifest['made'][name] = now
        folder.write_manifest(manifest)
        with pytest.raises(
            RunError,
            match='parameters eeeeeeeeeeee there'
            if name == 'params'
            else f'{name.removesuffix("_hash")} {str(now)[:12]} there',
        ):
            Engine(folder, str(search_run)).search('x', 1, 'semantic', [])
    assert Engine(Folder(str(tmp_path / 'ix')), str(search_run)).search('about', 1, 'semantic', [])
    folder = Folder(str(tmp_path / 'params'))
    folder.write_manifest(
        folder.manifest() | dict(made=folder.manifest()['made'] | dict(pooling='bag+mean', size=64))
    )  # what this model has not
    for run in ('', str(search_run)):
        with pytest.raises(
            RunError,
            match='parameters eeeeeeeeeeee there, [0-9a-f]{12} here. Ask for the same .*, or '
            'index into another folder$',
        ):
            Engine(folder, run).search('x', 1, 'semantic', [])
    moved = Engine(folder := Folder(str(tmp_path / 'ix')))
    moved.manifest['made']['run'] = str(tmp_path / 'moved')
    with pytest.raises(
        RunError,
        match=f'moved: no such run directory.*: the run that {folder.path} was indexed with; '
        f'--run says where it is now',
    ):
        moved.search('x', 1, 'hybrid', [])
    assert moved.search('number', 1, 'lexical', [])


@pytest.mark.parametrize(
    'asked, message',
    [
        (dict(chunk=9), '--chunk is 9: expected 32 to 128'),
        (dict(chunk=999), '--chunk is 999: expected 32 to 128'),
        (dict(chunk=40, overlap=21), '--overlap is 21: expected 0 to 20'),
        (dict(language='portugese'), "--language is 'portugese': did you mean 'portuguese'"),
    ],
)
def test_settings_that_cannot_be(reader, notes, tmp_path, asked, message):
    """Catches settings that are found wrong after everything was embedded, and an index that they
    leave behind."""
    with pytest.raises(RunError, match=message):
        index(reader, tmp_path / 'ix', notes, **asked)
    assert [p.name for p in (tmp_path / 'ix').iterdir()] == ['.lock']
    assert index(reader, tmp_path / 'ix', notes).startswith('6 new')


def test_a_folder_of_something_else_is_left_alone(reader, notes, tmp_path):
    """Catches an index that is written among a person's own files."""
    with pytest.raises(RunError, match='expected an index or an empty folder'):
        index(reader, notes, notes)
    with pytest.raises(RunError, match='expected an index or an empty folder'):
        Folder(str(notes / '0.txt'))
    assert len(list(notes.iterdir())) == 6


def counted(name: str) -> int:
    """A number of /proc/self/io."""
    return int(next(line.split()[1] for line in open('/proc/self/io') if line.startswith(name)))


def resident(path) -> int:
    """Bytes of a file that this process has mapped and touched."""
    blocks = open('/proc/self/smaps').read().split('VmFlags')
    return sum(
        1024 * int(block.split('Rss:')[1].split()[0]) for block in blocks if str(path) in block
    )


@pytest.mark.skipif(
    not os.path.exists('/proc/self/smaps'), reason='only Linux tells what of a file is in memory'
)
def test_opening_does_not_read_the_index_through(reader, notes, tmp_path):
    """Catches a database, scores or vectors that are loaded on opening. The links of the graph are
    looked at, not the vectors."""
    big = np.random.default_rng(0).standard_normal((1500, 512)).astype(np.float16)
    graph = update.vectors.make(512)
    update.vectors.add(graph, np.arange(len(big)), big)
    graph.save(tmp_path / 'graph')
    mapped = update.vectors.view(tmp_path / 'graph')
    assert 0 < resident(tmp_path / 'graph') < (tmp_path / 'graph').stat().st_size / 3
    mapped.search(big[::3].astype(np.float32), 10)
    assert (
        resident(tmp_path / 'graph') > (tmp_path / 'graph').stat().st_size / 2
    )  # the control: this is how it would look
    for i in range(20):
        (notes / f'long{i}.txt').write_text(''.join(f'{i} {j} {i * j} ' for j in range(300)))
    index(reader, tmp_path / 'ix', notes)
    before = counted('rchar')
    e = Engine(Folder(str(tmp_path / 'ix')))
    assert (
        counted('rchar') - before
        < sum(p.stat().st_size for p in (tmp_path / 'ix').rglob('*') if p.is_file()) / 5
    )
    assert all(
        isinstance(x, np.memmap)
        for x in (
            e._lexical.ids,
            e._lexical.scores.scores['data'],
            e._lexical.scores.scores['indices'],
        )
    )
