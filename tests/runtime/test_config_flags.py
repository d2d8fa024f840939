"""Every shipped config, and what a person's mistakes say."""

import glob
import pathlib
import runpy
import subprocess
import sys

import jax
import pytest

from model.config import resolve
from model.transformer import Transformer
from runtime import checkpoint, config_flags, models
from runtime.config_tree import flatten
from runtime.errors import RunError
from train import mesh, setup
from train.optimizer import SCHEDULES, make_optimizer, make_schedule

NAMES = sorted(n for n in glob.glob('configs/*.py') if not n.endswith(('__init__.py', 'fields.py')))
MILLIONS = {'base': 2.164, 'gpt2_124m': 124.4, 'llama_1b': 956.4, 'llama_8b': 8030.3}


@pytest.mark.parametrize('name', NAMES)
def test_shipped_configs(name):
    """Catches a config with a field of its own, one that does not build, a size that is not what
    its name says, and a docstring without its command."""
    scope = runpy.run_path(name)
    c = scope['get_config']()
    stem = pathlib.Path(name).stem
    assert f'--config={name}' in scope['__doc__']
    of_encodings = {n for n in flatten(c) if n.startswith('model.positions_args.')}
    assert set(flatten(c)) - of_encodings == set(
        flatten(runpy.run_path('configs/base.py')['get_config']())
    )
    model = Transformer(resolve(c.model, c.tokenizer.vocab_size, c.data.seq_len))
    size = sum(x.size for x in jax.tree.leaves(models.abstract_params(model)))
    if MILLIONS.get(stem):
        assert size / 1e6 == pytest.approx(MILLIONS[stem], rel=2e-3)
    make_optimizer(c.optimizer, c.train.steps)
    mesh.check_batch(
        mesh.make_mesh(c.mesh, jax.devices()[:1]), c.data.batch_size, c.train.accumulation
    )


@pytest.mark.parametrize(
    'given, message',
    [
        (
            {'model.widht': 3},
            r'config.model.widht: no such field; did you mean config.model.width\?',
        ),
        ({'model.width': 'wide'}, r"config.model.width is 'wide': expected int"),
        ({'model.tied': 1}, r'config.model.tied is 1: expected bool'),
        ({'model': 3}, r'config.model is a group of fields: expected one of .*config.model.width'),
        (
            {'data.files.paths': 'x'},
            r"config.data.files.paths='x' has no effect: it needs config.data.source='files'",
        ),
        ({'optimizer.decay': 0.5}, r"has no effect: it needs config.optimizer.schedule='wsd'"),
    ],
)
def test_mistakes_in_flags(tiny_config, given, message):
    """Catches a mistyped or ineffective field that is taken silently."""
    with pytest.raises(RunError, match=message):
        config_flags.check(tiny_config, given, flatten(tiny_config))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'model.positions': 'alibbi'}, "no encoding 'alibbi'; did you mean 'alibi'"),
        (
            {'model.positions': 'alibi', 'model.positions_args.base': 1.0},
            'config.model.positions_args.base: alibi has no such parameter',
        ),
        ({'model.activation': 'relu'}, "config.model.activation is 'relu'"),
        (
            {'model.num_kv_heads': 3},
            r'config.model.num_heads is 2: expected a multiple of num_kv_heads \(3\)',
        ),
        ({'model.max_len': 8}, 'config.model.max_len is 8: expected at least config.data.seq_len'),
        (
            {'data.batch_size': 6, 'mesh.data': -1},
            r'config.data.batch_size is 6: expected a multiple of 8 \(8 devices',
        ),
        (
            {'train.accumulation': 3},
            'config.data.batch_size is 8: expected a multiple of 3 .* for example 9',
        ),
        ({'mesh.fsdp': 3}, 'config.mesh is .* expected sizes whose product'),
        (
            {'mesh.tensor': 4, 'mesh.data': 1},
            r'config.mesh.tensor is 4: expected a divisor of config.model.num_heads \(2\), for '
            r'example 2',
        ),
        (
            {'mesh.context': 8, 'mesh.data': 1, 'data.seq_len': 36},
            r'config.mesh.context is 8: expected a divisor of config.data.seq_len \(36\)',
        ),
        (
            {'mesh.context': 2, 'mesh.data': 1, 'model.attention': 'xla'},
            "config.model.attention is 'xla': no kernel crosses",
        ),
        (
            {'mesh.fsdp': 8, 'mesh.data': 1, 'model.width': 36, 'model.num_heads': 2},
            r'config.mesh.fsdp is 8: expected a divisor of config.model.width \(36\)',
        ),
        (
            {'mesh.context': 2, 'mesh.data': 1, 'model.positions': 'selective'},
            'config.mesh.context: selective attention adds up',
        ),
        (
            {
                'model.context_attention': 'ring',
                'model.positions': 'cope',
                'mesh.context': 2,
                'mesh.data': 1,
            },
            "config.model.context_attention is 'ring': CoPE",
        ),
        (
            {'model.context_attention': 'rings'},
            "config.model.context_attention is 'rings': did you mean 'ring'",
        ),
        ({'optimizer.kind': 'moun'}, "config.optimizer.kind is 'moun': did you mean 'muon'"),
        (
            {'train.loss_chunks': 5},
            r'config.train.loss_chunks is 5: expected a divisor of the columns of a device \(32\)',
        ),
        ({'optimizer.schedule': 'cosin'}, "config.optimizer.schedule is 'cosin'"),
        (
            {'optimizer.warmup': 6},
            r'config.optimizer.warmup is 6: expected at least 0, and less than '
            r'config.train.steps \(6\)',
        ),
        ({'train.steps': 0}, 'config.train.steps is 0'),
        ({'data.source': 'atlass'}, "config.data.source is 'atlass': did you mean 'atlas'"),
        ({'data.validation': 1.5}, 'config.data.validation is 1.5: expected a share'),
        ({'data.packing': 'best'}, "config.data.packing is 'best'"),
        (
            {'tokenizer.vocab_size': 90000},
            'config.tokenizer.vocab_size is 90000: the text supports at most',
        ),
        ({'tokenizer.vocab_size': 100}, 'config.tokenizer.vocab_size is 100: .* need at least'),
        ({'tokenizer.path': 'nowhere.model'}, 'nowhere.model: no tokenizer there'),
    ],
)
def test_mistakes_in_values(tiny_config, tmp_path, changes, message):
    """Catches a value that fails late, or with a traceback; nothing is written."""
    from runtime import exit

    if changes.get('mesh.fsdp') == 3:
        tiny_config.mesh.data = -1
    for name, value in changes.items():
        *path, last = name.split('.')
        part = tiny_config
        for p in path:
            part = part[p]
        part[last] = value
    with pytest.raises((exit.DataError, exit.ModelError, RunError), match=message):
        setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'args, message',
    [
        (
            ['--run=x', '--config=configs/base.py', '--config.model.widht=3'],
            'config.model.widht: no such field; did you mean config.model.width?',
        ),
        (
            ['--run=x', '--config=configs/base.py', '--config.model.width=wide'],
            '--config.model.width=wide',
        ),
        (['--run=x', '--config=configs/bass.py'], 'configs/bass.py'),
        (['--config=configs/base.py'], '--run is empty'),
        (['--run=x', '--config=configs/base.py', '--rum=y'], "'rum'"),
    ],
)
def test_a_command_says_one_line(args, message, tmp_path):
    """Catches a traceback, or an exit code of 0, for a mistake on the command line."""
    done = subprocess.run(
        [sys.executable, '-m', 'train.pretrain', *args], capture_output=True, text=True
    )
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert not pathlib.Path('x').exists()


@pytest.mark.parametrize('name', SCHEDULES)
def test_schedules(tiny_config, name):
    """Catches a schedule without warm-up, or one that does not end where it says."""
    o = tiny_config.optimizer
    o.update(schedule=name, warmup=10, lr=1.0, final=0.1, decay=0.2)
    rate = make_schedule(o, 100)
    assert float(rate(0)) == pytest.approx(1 / 11) and float(rate(10)) == pytest.approx(1.0)
    expected = {
        'cosine': (0.55, 0.1),
        'linear': (0.55, 0.1),
        'constant': (1.0, 1.0),
        'wsd': (1.0, 0.1),
    }[name]
    assert (float(rate(55)), float(rate(100))) == pytest.approx(expected)
    assert float(rate(90)) == pytest.approx(
        {'cosine': 0.1271, 'linear': 0.2, 'constant': 1.0, 'wsd': 0.55}[name], rel=1e-3
    )


def test_only_matrices_decay():
    """Catches decay of norms, biases and positional encodings, and of stacked norms that look like
    matrices."""
    from configs import base
    from train.optimizer import decays

    c = base.get_config()
    c.model.update(scan_layers=True, norm='layernorm', positions='learned')
    model = Transformer(resolve(c.model, 64, 16))
    import flax.linen as nn

    decided = decays(nn.meta.unbox(models.abstract_params(model)))
    names = {checkpoint.path(p): v for p, v in jax.tree_util.tree_leaves_with_path(decided)}
    assert names['embedding'] and names['layers/layer_0/attention/query/kernel']
    assert not any(v for n, v in names.items() if n.endswith(('scale', 'bias')) or 'positions' in n)
