"""Checks the table of encodings in the documentation, and the encoding that it adds."""

import json
import runpy
import sys

import jax
import numpy as np

from docs.generate import encodings
from model import positions
from model.config import resolve
from model.loss import weighted_token_loss
from model.positions import PATTERNS, REGISTRY
from model.transformer import Transformer
from train import loop, setup
from train.losses import model_inputs


def test_the_table_is_the_registry():
    """Catches a table that was not generated anew, and a name that is missing.

    Also fewer encodings than were promised.
    """
    table = encodings.table()
    assert encodings.TABLE.read_text() == table, 'run: python -m docs.generate.encodings'
    assert all(f'| `{name}` |' in table for name in (*REGISTRY, *PATTERNS))
    assert len(REGISTRY) >= 45


def test_specs_are_exported():
    """Catches a spec that is no JSON, and one that says nothing of cache, kernel or source."""
    names = ('rope', 'alibi', 'forgetting', 'selective', 'kerple_log', 'abacus')
    rows = json.loads(json.dumps([encodings.row(name) for name in names]))
    assert [r['cache'] for r in rows[:4]] == [
        'rotated keys',
        'keys',
        'keys, a state of each key',
        'keys, a sum over queries',
    ]
    assert [r['kernel'] for r in rows] == ['any', 'any', 'any', 'reference', 'bias', 'any']
    assert rows[5]['data'] == 'abacus ids' and all(r['source'] and r['enters'] for r in rows)


def test_adding_an_encoding(tmp_path, monkeypatch, tiny_config):
    """Catches an example that does not run, one of more than 40 lines, and a closed registry.

    The documentation's example, as one file and one line of the registry, trains and changes the
    loss.
    """
    file = tmp_path / 'root_encoding.py'
    file.write_text(encodings.EXAMPLE)
    code = [line for line in encodings.EXAMPLE.strip().splitlines() if line.strip()]
    assert len(code) < 40
    # Where dataclasses look for its module.
    monkeypatch.setitem(sys.modules, 'root_encoding', type(sys)('root_encoding'))
    module = runpy.run_path(str(file), run_name='root_encoding')
    monkeypatch.setitem(positions.REGISTRY, 'root', module['Root'])
    tiny_config.model.update(positions='root', num_layers=1)
    tiny_config.train.steps = 3
    tiny_config.eval.every = 0
    tiny_config.checkpoint.every = 0
    experiment = setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    assert np.isfinite(loop.train(experiment)['loss'])

    # The same parameters with the encoding and without it.
    losses = {}
    batch = experiment.training(0)
    for name in ('root', 'none'):
        tiny_config.model.positions = name
        dims = experiment.tokenizer.vocab_size, tiny_config.data.seq_len
        model = Transformer(resolve(tiny_config.model, *dims))
        variables = {'params': experiment.state['params']}
        logits, _ = jax.jit(model.apply)(variables, *model_inputs(batch))
        losses[name] = float(weighted_token_loss(logits, batch)[1]['nll'])
    assert losses['root'] != losses['none']
