"""A tiny run that search is tested with, its model, and files."""

import pytest


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


@pytest.fixture(scope='session')
def reader(search_run):
    from apps.search.reader import Reader
    from runtime.run_dir import Run

    return Reader(Run.parse(str(search_run)), '', 0)


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
