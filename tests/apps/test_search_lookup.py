"""Search: the two ways to look something up, each by itself."""

import pathlib
import re

import numpy as np
import Stemmer

from apps.search import lexical, vectors


def test_equal_scores_at_the_cut(tmp_path):
    """Catches chunks that are chosen by chance among equal ones: the first are taken, also among
    those that are allowed."""
    ids = np.arange(101, 152)
    terms = lexical.build(
        ['same words here'] * 50 + ['x y z'], ids, lexical.Words('none'), tmp_path / 'l'
    )
    scores = lexical.Lexical(tmp_path / 'l')
    assert [key for key, _ in scores.nearest([terms['words']], 3, None)] == [101, 102, 103]
    assert [key for key, _ in scores.nearest([terms['words']], 2, ids[7:])] == [108, 109] and len(
        scores.nearest([terms['words']], 99, None)
    ) == 50


def test_vectors_near_many_that_are_gone(tmp_path):
    """Catches a graph that does not find what was added, to a loaded one too, and one that differs
    after it was mapped."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 16))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    graph = vectors.make(16)
    vectors.add(graph, np.arange(1000), x[:1000])
    graph.save(tmp_path / 'g')
    graph = vectors.load(tmp_path / 'g')
    vectors.add(graph, np.arange(1000, 1500), x[1000:])
    graph.save(tmp_path / 'g')
    found = vectors.view(tmp_path / 'g').search(x[::50].astype(np.float32), 10).keys
    exact = np.argsort(-(x[::50].astype(np.float32) @ x.astype(np.float32).T), axis=1)[:, :10]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact)]) > 0.98


def test_vectors_that_are_all_alike():
    """Catches rounding to float16 that is taken for nearness, where all vectors have cosines of
    0.99, as those of language models may."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(32) + 0.1 * rng.standard_normal((2000, 32)) * 2.0 ** -np.arange(
        0, 8, 0.25
    )
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    graph = vectors.make(32)
    vectors.add(graph, np.arange(len(x)), x.astype(np.float16))
    exact = np.argsort(-(x[::50] @ x.T), axis=1)[:, :10]
    near = graph.search(x[::50], 64).keys
    data = [v.tobytes() for v in x.astype(np.float16)]
    best = [
        keys[np.argsort(-vectors.cosines([data[int(key)] for key in keys], query))][:10]
        for keys, query in zip(near, x[::50])
    ]
    assert (x[::50] @ x.T).mean() > 0.98
    assert (
        np.mean([len(set(a.tolist()) & set(b.tolist())) / 10 for a, b in zip(best, exact)]) > 0.97
    )


def test_terms_are_stems_as_ever():
    """Catches other terms of plain text than the stems of its words in lower case."""
    text = re.sub(r'[^\x00-\x7f]', '', pathlib.Path(lexical.__file__).read_text())
    for language in ('none', 'english', 'portuguese', 'german', 'arabic', 'hindi', 'greek'):
        stem = str if language == 'none' else Stemmer.Stemmer(language).stemWord
        expected = [stem(word) for word in re.findall(r'[^\W_]+', text.lower())]
        words = lexical.Words(language)
        assert (
            words(text) == words.query_terms(text) == expected == lexical.Words(language, 1)(text)
        )


def test_endings_of_turkish():
    """Catches a dotless I that is a dotted one where endings are cut by the vowels before them."""
    words = lexical.Words('turkish')
    assert words('KAPI') == words.query_terms('kapı') == ['kap']
    assert words('İZMİRDE') == words.query_terms('İzmir') == ['izmir']
