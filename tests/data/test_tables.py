"""Parquet and Arrow through the optional extra `hf`."""

import pytest

from configs import base
from data import sources
from data.records import BadRecord, Record

parquet = pytest.importorskip('pyarrow.parquet', reason='tables need the extra `hf`')
pyarrow = pytest.importorskip('pyarrow', reason='tables need the extra `hf`')


def write(path, table):
    """Writes a table in the kind that the name says; 'stream' is what `datasets` saves."""
    if path.suffix == '.parquet':
        parquet.write_table(table, path)
        return
    make = pyarrow.ipc.new_stream if 'stream' in path.name else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), 'wb') as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.mark.parametrize('name', ['a.parquet', 'a_stream.arrow', 'a_file.arrow'])
def test_rows_are_records(tmp_path, name):
    """Catches rows lost, also between batches, and a broken table that ends the reading."""
    write(tmp_path / name, pyarrow.table({'text': ['um', 'dois', '', 'quatro', 'cinco']}))
    kind = name.rpartition('.')[2]
    (tmp_path / f'b.{kind}').write_bytes(b'not a table')
    cut = (tmp_path / name).read_bytes()
    (tmp_path / f'c_{name}').write_bytes(cut[: len(cut) // 2])
    config = base.get_config().data
    config.update(source='files')
    config.files.paths = str(tmp_path)
    items = list(sources.read(config))
    broken = [(b.where.rsplit('/', 1)[1], b.reason[:14]) for b in items if isinstance(b, BadRecord)]
    whole = [r.text for r in items if isinstance(r, Record) and 'c_' not in r.where]
    assert whole == ['um', 'dois', 'quatro', 'cinco']
    assert broken[:2] == [(f'{name}:3', 'empty document'), (f'b.{kind}', 'cannot be read')]
    assert broken[-1] == (f'c_{name}', 'cannot be read')


def test_a_folder_that_datasets_saved(tmp_path):
    """Catches a dataset of the Hugging Face library that is read in another order, or not."""
    datasets = pytest.importorskip('datasets', reason='needs the package datasets')
    texts = [f'documento {i}' for i in range(10)]
    datasets.Dataset.from_dict({'text': texts}).save_to_disk(tmp_path / 'set', num_shards=3)
    config = base.get_config().data
    config.update(source='files')
    config.files.paths = str(tmp_path / 'set')
    assert [record.text for record in sources.read(config)] == texts
