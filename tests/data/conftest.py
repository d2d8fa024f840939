"""A small `data` config with a cache of its own, and a small tokenizer."""

import pytest

from configs import base
from data import store, tokenizer as tokenizers


def small_config(cache='unused'):
    config = base.get_config().data
    config.update(seq_len=16, batch_size=4, cache=str(cache))
    config.atlas.update(countries=6, editions=4)
    return config


@pytest.fixture
def config(tmp_path):
    return small_config(tmp_path / 'cache')


@pytest.fixture
def files(config, tmp_path):
    """Writes files, and makes them the source of `config`."""

    def write(**contents):
        for name, content in contents.items():
            path = tmp_path / 'files' / name.replace('__', '.')
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        config.source = 'files'
        config.files.paths = str(tmp_path / 'files')
        return tmp_path / 'files'

    return write


@pytest.fixture(scope='session')
def tokenizer():
    settings = base.get_config().tokenizer
    settings.kind = 'char'
    return tokenizers.train(store.training_texts(small_config()), settings)
