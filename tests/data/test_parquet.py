"""Parquet through the optional extra `hf`."""

import pytest

from configs import base
from data import sources
from data.records import BadRecord, Record

parquet = pytest.importorskip('pyarrow.parquet', reason='parquet needs the extra `hf`')


def test_parquet_rows_are_records(tmp_path):
    """Catches rows lost, and a broken row that ends the reading."""
    import pyarrow

    parquet.write_table(pyarrow.table({'text': ['um', 'dois', '']}), tmp_path / 'a.parquet')
    (tmp_path / 'b.parquet').write_bytes(b'not parquet')
    config = base.get_config().data
    config.update(source='files')
    config.files.paths = str(tmp_path)
    items = list(sources.read(config))
    assert [r.text for r in items if isinstance(r, Record)] == ['um', 'dois']
    assert [
        (b.where.rsplit('/', 1)[1], b.reason[:14]) for b in items if isinstance(b, BadRecord)
    ] == [
        ('a.parquet:3', 'empty document'),
        ('b.parquet', 'cannot be read'),
    ]
