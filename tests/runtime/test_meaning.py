"""What the encodings of a run mean stays what it was when the run was started."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from model import config as model_config
from model.errors import ModelError
from model.positions import PATTERNS, REGISTRY, Dims, build, resolve_pattern
from model.transformer import Transformer
from runtime import checkpoint, config_tree, metrics, models, resume, schema
from runtime.errors import RunError
from runtime.run_dir import Run
from train import loop, setup, warm_start
from train.evaluate import evaluate

BEFORE = pathlib.Path('tests/golden/encodings')
CASES = sorted(path.stem for path in BEFORE.glob('*.json'))


def _given():
    spec = importlib.util.spec_from_file_location('given', BEFORE / 'given.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """name -> a run directory without weights, as it was written before meanings were kept."""

    def write(name):
        kept = json.loads((BEFORE / f'{name}.json').read_text())
        folder = tmp_path / name
        folder.mkdir()
        for file in ('config', 'lineage'):
            (folder / f'{file}.json').write_text(json.dumps(kept[file]))
        return Run.parse(str(folder)), kept

    return write


@pytest.mark.parametrize('name', CASES)
def test_an_old_run_gives_its_logits(old_run, name):
    """Catches a run from before that is read with today's defaults and computes other logits
    without a word, and a hash of its config that is another now."""
    run, kept = old_run(name)
    config = run.config()
    assert config_tree.config_hash(config) == kept['lineage']['config_hash']
    given = _given()

    def model(c):
        return Transformer(model_config.resolve(c.model, kept['vocab_size'], 16))

    found = given.logits(model(config))
    for what, expected in kept['logits'].items():
        np.testing.assert_allclose(found[what], expected, rtol=2e-4, atol=2e-4)
    # Today's meaning is another one, but for those that only begin otherwise.
    config.model.encodings = []
    same = all(
        np.allclose(x, kept['logits'][what], atol=1e-3)
        for what, x in given.logits(model(config)).items()
        if name != 'forgetting_fixed'
    )
    assert same == (name in ('t5', 'learned', 'fire', 'forgetting_fixed'))


@pytest.fixture
def rerope(tmp_path):
    """A copy of a run of ReRoPE from before, stopped at step 2 of 4, and the config of its
    command."""
    shutil.copytree(BEFORE / 'rerope', tmp_path / 'run')
    config = ConfigDict(json.loads((BEFORE / 'rerope' / 'config.json').read_text()))
    config.data.cache, config.mesh.data = str(tmp_path / 'cache'), 1
    for name, value in schema.younger(config_tree.REVISION).items():
        *groups, field = name.split('.')
        there = config
        for group in groups:
            if group not in there:
                there[group] = ConfigDict()
            there = there[group]
        if field not in there:
            there[field] = value
    return config, tmp_path / 'run'


def test_an_old_run_goes_on(rerope, caplog):
    """Catches a run from before that is refused by the command that started it, or that goes on
    with what its encoding means today: the loss of its last evaluation is then another."""
    config, path = rerope
    caplog.set_level('INFO', 'ordem')
    e = setup.build_experiment(config, str(path))
    assert int(e.state['step']) == 2 and e.model.config.encodings[0].w == 8
    assert 'positions_args.log_n=False' in caplog.text
    known = [m['validation_nats'] for m in metrics.read(e.run) if 'validation_nats' in m]
    found = evaluate(e, e.state['params'])['validation_nats']
    assert found == pytest.approx(known[-1], rel=1e-5)
    config.train.stop_at = 0
    assert loop.train(e)['step'] == 4


def test_flags_that_say_the_same(rerope):
    """Catches flags that name what an old run meant, and are refused; and others that are taken."""
    config, path = rerope
    config.model.positions_args = dict(within_share=0.5, log_n=False)
    resume.mend(Run.parse(str(path)), config, lambda: None)
    resume.check_resumable(Run.parse(str(path)), config)
    config.model.positions_args = dict(within_share=0.5)
    with pytest.raises(RunError, match=r"config\.model\.positions_args\.within_share: 'absent'"):
        resume.check_resumable(Run.parse(str(path)), config)


def test_a_phase_after_an_old_run_is_told(rerope, caplog):
    """Catches a phase whose encoding means something else than its parent's, by the same fields,
    without a word; with the flags that keep it there is none."""
    config, path = rerope
    config.parent = str(path)
    warm_start.check_parent(Run.parse(str(path)), config)
    flags = (
        '--config.model.positions_args.within_share=0.5 --config.model.positions_args.log_n=False'
    )
    assert flags in caplog.text and 'rerope meant something else' in caplog.text
    caplog.clear()
    config.model.positions_args = dict(within_share=0.5, log_n=False, length=16)
    warm_start.check_parent(Run.parse(str(path)), config)
    assert 'meant something else' not in caplog.text


def test_a_run_keeps_its_meaning(rerope, tmp_path):
    """Catches a config.json or lineage.json without arguments and version, and one whose meaning
    was changed by hand."""
    config, _ = rerope
    config.model.positions = 'rope(base=500)+window'
    config.model.positions_args = dict(window=5)
    config.optimizer.warmup = 0
    e = setup.build_experiment(config, str(tmp_path / 'new'))
    expected = [
        dict(name='rope(base=500)', version=1, arguments=dict(base=500.0, layout='half')),
        dict(name='window', version=1, arguments=dict(window=5)),
    ]
    written = json.loads((tmp_path / 'new' / 'config.json').read_text())
    assert written['model']['encodings'] == e.run.lineage()['encodings'] == expected
    assert e.run.config().model.encodings == expected
    written['model']['encodings'][0]['arguments']['base'] = 10.0
    (tmp_path / 'new' / 'config.json').write_text(json.dumps(written))
    with pytest.raises(RunError, match='model.encodings are not those of lineage.json'):
        e.run.config()
    for broken in (3, [3], [{}], [dict(name='rope', version='1', arguments={})]):
        lineage = json.loads((tmp_path / 'new' / 'lineage.json').read_text())
        for file, found in (('lineage', lineage), ('config', written)):
            (found if file == 'lineage' else found['model'])['encodings'] = broken
            (tmp_path / 'new' / f'{file}.json').write_text(json.dumps(found))
        with pytest.raises(RunError, match=r'config\.json: damaged'):
            e.run.config()


def test_what_was_kept_counts():
    """Catches a run that is read with the defaults of today where it says what it was made with."""
    dims = Dims(16, 2, 1, 8, 4, 64, 16)
    kept = resolve_pattern('irope', {}, first=True)
    assert [one['name'] for one in kept] == [
        'irope',
        'rope',
        'qk_norm',
        'chunk',
        'none',
        'temperature',
    ]
    assert build('irope', {}, dims, kept)[0].parts[0].base == 10000
    assert build('irope', {}, dims)[0].parts[0].base == 500000
    assert build('irope', {}, dims)[0].parts[0].layout == 'interleaved'
    assert {e.base for e in build('smollm3', {}, dims)[:3]} == {2000000}
    assert build('smollm3', {'base': 7.0}, dims)[0].base == 7
    for name, kind in REGISTRY.items():
        before, now = (resolve_pattern(name, {}, first)[0] for first in (True, False))
        assert set(kind.spec.before) <= set(kind.arguments())
        assert before['version'] == 1 and now['version'] == kind.spec.version
        assert (kind.spec.version > 1) or before == now
        assert now['arguments'] == kind.arguments()
    assert all(pattern.version > 1 or not pattern.before for pattern in PATTERNS.values())


@pytest.mark.parametrize(
    'pattern, message',
    [
        ('rope(base=1e3', r"'rope\(base=1e3': expected NAME or NAME\(ARGUMENT=VALUE,...\)"),
        ('rope(1000)', 'expected NAME or NAME'),
        ('rope(base=big)', "base is 'big', expected float"),
        ('rope(bass=1)', "no argument 'bass'; did you mean 'base'"),
        ('longrope(long=1)', 'expected it in config.model.positions_args'),
        ('t5+t5(num_buckets=8)', 'puts T5 bias into one layer twice'),
    ],
)
def test_parentheses_that_cannot_be(pattern, message):
    """Catches arguments of a layer that are passed over, or end in a traceback."""
    with pytest.raises(ModelError, match=message):
        build(pattern, {}, Dims(16, 2, 1, 8, 2, 64, 16))


def test_layers_of_one_kind_may_differ():
    """Catches layers that share a table, or an argument, which they were given apart."""
    dims = Dims(16, 2, 1, 8, 4, 64, 16)
    a, b, *_ = build('rope(base=1e4)+window(window=8),rope(base=1e6)', {}, dims)
    assert (a.parts[0].base, a.parts[1].window, b.base) == (1e4, 8, 1e6)
    config = json.loads((BEFORE / 't5.json').read_text())['config']['model']
    younger = schema.younger(config_tree.REVISION).items()
    config = ConfigDict(
        config | {name[6:]: value for name, value in younger if name.startswith('model.')}
    )
    config.update(
        num_layers=2, positions='t5(num_buckets=8,max_distance=9),t5(num_buckets=6,max_distance=9)'
    )
    model = Transformer(model_config.resolve(config, 20, 16))
    shapes = checkpoint.describe(nn.meta.unbox(models.abstract_params(model)))
    assert [k for k in shapes if 't5' in k] == ['positions_t5/table', 'positions_t5_2/table']
