"""Search: in what order an index answers."""

import numpy as np
import pytest

from apps.search import MODES, engine as engines
from apps.search.engine import Engine
from apps.search.store import Folder
from tests.apps.search_index import index, opened


def test_meaning_is_the_order_of_all_vectors(reader, mixed_notes, tmp_path):
    """Catches a semantic order that is another than that of every chunk's vector against the
    query's, or a score that is no cosine."""
    index(reader, tmp_path / 'ix', mixed_notes)
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


def test_words_find_what_meaning_does_not(reader, mixed_notes, tmp_path, monkeypatch):
    """Catches a lexical mode that embeds, words that need their exact form, an order that is not of
    BM25, words said twice that count once, a hybrid that leaves out one of both or gives both one
    weight, one that is another when more results are asked for, as `eval` does, and ranks that are
    no ranks."""
    index(reader, tmp_path / 'ix', mixed_notes, overlap=0)
    e = Engine(Folder(str(tmp_path / 'ix')), 'nowhere')
    hit = e.search('PARQUETFILE', 3, 'lexical', [])
    assert (
        [h.path for h in hit] == [str(mixed_notes / 'deep/code.py')]
        and hit[0].text.startswith('def read_table')
        and hit[0].line == 1
    )
    assert [h.path for h in e.search('reading tables', 3, 'lexical', [])] == [
        str(mixed_notes / 'deep/code.py')
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
