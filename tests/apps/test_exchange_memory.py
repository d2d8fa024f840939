"""Models larger than memory: of the arrays that come in, or go out, one is held at a time."""

import json
import shutil
import weakref

import jax
import numpy as np
import pytest

from apps.exchange import huggingface
from apps.exchange.expressed import Expressed
from apps.export_model import export_folder, export_gguf
from apps.import_model import import_run, open_source
from runtime import checkpoint, models, run_dir
from runtime.deferred import Deferred
from runtime.errors import RunError
from runtime.run_dir import Run
from tests.apps.exchange_cases import build, same, write


@pytest.fixture
def held(monkeypatch):
    """Counts bytes of deferred arrays: all that were read, and the most that were there at once."""
    count = dict(now=0, most=0, read=0)
    read = Deferred.__array__

    def let_go(size):
        count['now'] -= size

    def counted(deferred, *args, **kwargs):
        array = np.array(read(deferred, *args, **kwargs))
        count['now'] += array.nbytes
        count['read'] += array.nbytes
        count['most'] = max(count['most'], count['now'])
        weakref.finalize(array, let_go, array.nbytes)
        return array

    monkeypatch.setattr(Deferred, '__array__', counted)
    return count


@pytest.fixture(autouse=True)
def no_model_is_small(monkeypatch):
    """Has all models read array by array."""
    monkeypatch.setattr(models, '_SMALL', 0)


@pytest.fixture(scope='module')
def whole(tiny_run, tmp_path_factory):
    """Returns a folder of a model of five layers in many files, its parameters, and its run."""
    tokenizer = Run.parse(str(tiny_run)).tokenizer()
    model, params = build(vocab=tokenizer.vocab_size, num_layers=5)
    folder = write(
        tmp_path_factory.mktemp('whole') / 'model', Expressed.of(model, params), most=9000
    )
    (folder / tokenizer.file_name).write_bytes(tokenizer.proto)
    run = run_dir.place(str(folder.parent / 'run'))
    import_run(open_source(folder), run)
    return folder, params, Run.parse(str(run.path))


def sizes(params):
    """Returns the bytes of the largest array, and of all."""
    bytes_of = [x.nbytes for x in jax.tree.leaves(params)]
    return max(bytes_of), sum(bytes_of)


def test_a_model_comes_in_array_by_array(whole, held, tmp_path):
    """Catches arrays that are held while others are read or saved, and arrays that are read more
    than once for their checksums and once to be saved. What is saved is loaded as any other."""
    folder, params, _ = whole
    run = run_dir.place(str(tmp_path / 'run'))
    import_run(open_source(folder), run)
    largest, total = sizes(params)
    assert held['most'] <= 2 * largest < total / 2  # one may be about to go
    assert held['read'] == 2 * total
    same(models.load(Run.parse(str(run.path)))[1], params)
    reader = checkpoint.Checkpoints(run)
    assert [fault for _, _, fault in reader.read(0)] == [''] * (len(jax.tree.leaves(params)) + 1)


def test_a_model_goes_out_array_by_array(whole, held, tmp_path):
    """Catches a run that is held whole while it is written."""
    folder, params, run = whole
    largest, total = sizes(params)
    model, deferred, _, _ = models.defer(run)
    expressed = Expressed.of(model, deferred)
    huggingface.write_weights(tmp_path, expressed, '', most=9000)
    assert held['most'] <= 9000 + largest and held['read'] == total
    again = open_source(folder)
    index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
    assert set(index['weight_map']) == set(again.shapes)
    held.update(most=0)
    export_gguf(run, tmp_path / 'gguf')
    assert held['most'] <= 2 * largest and held['read'] == 2 * total


@pytest.mark.parametrize('export', [export_folder, export_gguf])
def test_a_damaged_array_does_not_go_out(export, whole, tmp_path):
    """Catches weights that are written although they are not those that were saved, and half a
    folder that is left of them."""
    run = Run.parse(str(shutil.copytree(whole[2].path, tmp_path / 'run')))
    path = run.checkpoints / '0' / 'meta' / 'metadata'
    meta = json.loads(path.read_text())
    meta['arrays']['params/layer_3/attention/out/kernel'][1][0] ^= 1
    path.write_text(json.dumps(meta))
    with pytest.raises(
        RunError, match='run@0: the checksum of params/layer_3/attention/out/kernel'
    ):
        export(run, tmp_path / 'model')
    assert [path.name for path in tmp_path.iterdir()] == ['run']


@pytest.mark.parametrize('shape', [(5, 4), (7,), (2, 3, 2), (1, 9), (3,), ()])
def test_checksums_of_parts(shape, monkeypatch):
    """Catches a checksum of a large array, read in parts, that is not the one of its whole."""
    x = np.random.default_rng(0).normal(size=shape).astype('bfloat16')
    monkeypatch.setattr(checkpoint, '_PART', 4)
    deferred = Deferred(shape, x.dtype, lambda: x)
    for name, whole in checkpoint.checksums({'x': jax.numpy.asarray(x)}).items():
        np.testing.assert_array_equal(checkpoint.checksums({'x': deferred})[name], whole)
