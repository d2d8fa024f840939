"""A tiny run that search is tested with, its model, and files."""

import numpy as np
import pytest

from tests.shapes import embed_in_few_shapes


@pytest.fixture(scope='session')
def search_run(tiny, tmp_path_factory):
    """The folder of a run of one step: its vectors tell texts apart, and mean nothing."""
    from train import loop, setup

    folder = tmp_path_factory.mktemp('search')
    config = tiny(str(folder / 'cache'))
    config.data.update(seq_len=128, batch_size=2)
    config.model.num_layers = 1
    config.train.steps, config.optimizer.warmup = 1, 0
    config.eval.every = 0
    loop.train(setup.build_experiment(config, str(folder / 'run')))
    return folder / 'run'


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch):
    """Embeds in few shapes, so that little is compiled."""
    embed_in_few_shapes(monkeypatch, 4, 128)


@pytest.fixture(scope='session')
def reader(search_run):
    from apps.search.reader import Reader
    from runtime.run_dir import Run

    reader = Reader(Run.parse(str(search_run)), '', 0)
    reader._embedder = remember(reader._embedder)
    return reader


def remember(embed):
    """Returns `embed` of token ids, which computes each text once: many tests index the same."""
    vectors = {}

    def embed_new(ids):
        new = [text for text in dict.fromkeys(map(tuple, ids)) if text not in vectors]
        vectors.update(zip(new, embed([list(text) for text in new])))
        return np.stack([vectors[tuple(text)] for text in ids]) if ids else embed(ids)

    return embed_new


@pytest.fixture
def notes(tmp_path):
    """A folder of six texts."""
    folder = tmp_path / 'notes'
    folder.mkdir()
    for i in range(6):
        (folder / f'{i}.txt').write_text(
            ''.join(
                f'Line {j} of file {i} is about {"abcdef"[i] * 5} and number {i * j}.\n'
                for j in range(12)
            )
        )
    return folder


@pytest.fixture
def mixed_notes(tmp_path):
    """A folder of files, each with words that no other has."""
    folder = tmp_path / 'notes'
    (folder / 'deep').mkdir(parents=True)
    (folder / 'tea.md').write_text(
        '# Tea\n\nWarm the pot first. Pour boiling water over oolong leaves.\n\nWait for three '
        'minutes.\n'
    )
    (folder / 'deep/cats.txt').write_text(
        ''.join(
            f'Paragraph {i} of the cat book speaks of whiskers and of day {i * i}.\n\n'
            for i in range(40)
        )
    )
    (folder / 'deep/code.py').write_text(
        'def read_table(path):\n    """Reads a parquetfile."""\n    return open(path)\n'
    )
    (folder / 'page.html').write_text('<p>Harbours\n<p>The lighthouse of the harbour is old.')
    (folder / 'docs.jsonl').write_text(
        '{"_id": "d1", "title": "Moon", "text": "The moon circles the earth."}\n{"_id": "d2", '
        '"text": "Mars is red."}\n'
    )
    return folder
