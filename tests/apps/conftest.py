"""A tiny run that search is tested with."""
import pytest


@pytest.fixture(scope='session')
def search_run(tiny, tmp_path_factory):
    """The folder of a run of one step: its vectors tell texts apart, and mean nothing."""
    from train import loop
    folder = tmp_path_factory.mktemp('search')
    config = tiny(str(folder / 'cache'))
    config.data.update(seq_len=128, batch_size=2)
    config.model.num_layers = 1
    config.train.steps, config.optimizer.warmup = 1, 0
    config.eval.every = 0
    loop.train(loop.prepare(config, str(folder / 'run')))
    return folder / 'run'
