"""What search costs: that the measurements measure it."""

import numpy as np
import pytest

from benchmarks import search


def test_a_graph_is_measured_beside_exact_search(tmp_path):
    """Catches a recall that is not counted, vectors that are no vectors, a time of something else,
    and an opening that reads the file."""
    found = search.graph(tmp_path, '', 3000, 64, 40)
    assert (
        0.95 <= found['recall_at_10'] <= 1
        and found['vectors'] == 3000
        and len(found['raw']['graph']) == len(found['raw']['exact']) == 40
    )
    assert found['times_faster'] == pytest.approx(found['exact_seconds'] / found['graph_seconds'])
    opening = found['opening']
    assert (
        opening['mib_after_opening']['read_by_calls']
        < 0.1
        < opening['file_mib']
        < opening['mib_after_1000_queries']['memory_mapped_of_files'] * 1.2
    )
    known, asked = search.draw_vectors(3000, 64, 40)
    assert known.dtype == asked.dtype == np.float32 and np.allclose(
        np.linalg.norm(known, axis=1), 1, atol=1e-5
    )
    nearest = np.sort(asked @ known.T, axis=1)
    assert (
        nearest[:, -10:].mean(1) > nearest.mean(1) + 0.2
    ).all()  # there is something near to find


def test_a_graph_that_finds_nothing_has_no_recall():
    """The control: catches a recall that is always 1, or compared with itself."""
    known, asked = search.draw_vectors(2000, 32, 20)

    class Wrong:
        @staticmethod
        def search(query, count, threads):
            return type('Found', (), dict(keys=np.argsort(known @ query)[:count]))  # the farthest

    assert search.compare(Wrong, known, asked)[0] == 0


def test_drawn_text_is_of_the_size_and_the_same_again(tmp_path):
    """Catches text that another machine does not draw, and less of it than is said."""
    for name in 'ab':
        (tmp_path / name).mkdir()
        search.draw_text(tmp_path / name, 0.2)
    texts = [b''.join(p.read_bytes() for p in sorted((tmp_path / name).iterdir())) for name in 'ab']
    assert (
        texts[0] == texts[1]
        and 200_000 <= len(texts[0]) < 205_000
        and texts[0].count(b'.\n\n') > 100
    )
