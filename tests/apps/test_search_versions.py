"""Search: an index by another version of the code."""

import numpy as np
import pytest

from apps.search import chunks, files, reader as readers
from apps.search.reader import Reader
from apps.search.store import Folder
from model.embed import pool
from runtime.errors import RunError
from runtime.run_dir import Run
from tests.apps.search_index import index, opened


def test_an_index_of_another_version_is_refused(reader, mixed_notes, tmp_path, monkeypatch):
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
    index(reader, tmp_path / 'ix', mixed_notes)
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
