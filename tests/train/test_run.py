"""Whole small runs: resume, lineage, post-training, and what the loop promises."""

import functools
import json
import shutil
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from runtime import checkpoint, config_tree, metrics, models, resume, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run
from tests.train.rows import share_programs
from train import loop, setup, warm_start

pytestmark = pytest.mark.usefixtures('shared_initial_states')


def run(config, path, stop_at=0):
    config = config.copy_and_resolve_references()
    config.train.stop_at = stop_at
    e = share_programs(setup.build_experiment(config, str(path)))
    loop.train(e)
    return e


def same(a, b):
    return jax.tree.all(
        jax.tree.map(lambda x, y: np.array_equal(x, y), jax.device_get(a), jax.device_get(b))
    )


def lines(path):
    """metrics.jsonl without what depends on the clock."""
    return [
        {k: v for k, v in line.items() if k not in ('tokens_per_second', 'mfu')}
        for line in metrics.read(Run.parse(str(path)))
    ]


@pytest.fixture
def tiny_config(tiny_config):
    tiny_config.model.num_layers = 1
    return tiny_config


@pytest.fixture(scope='module')
def trained(tiny, cache, tmp_path_factory):
    """A run trained to its end, and its config, for all tests: what is changed is a copy."""
    config = tiny(cache)
    config.model.num_layers = 1
    config.sample.update(every=6, prompt='A', tokens=4)
    return config, run(config, tmp_path_factory.mktemp('trained') / 'base')


@pytest.fixture
def base_run(trained, tmp_path):
    config, e = trained
    shutil.copytree(str(e.run.path), tmp_path / 'base')
    return config.copy_and_resolve_references(), tmp_path / 'base', e


def test_stopping_and_resuming_changes_nothing(base_run, tmp_path):
    """Catches a lost optimizer or PRNG state, a data order that restarts, and metrics lines lost or
    repeated."""
    config, path, straight = base_run
    assert not same(
        straight.state['params'],
        setup.build_experiment(config, str(tmp_path / 'fresh')).state['params'],
    )  # it did learn
    run(config, tmp_path / 'parts', stop_at=3)
    with open(
        tmp_path / 'parts' / 'metrics.jsonl', 'a'
    ) as file:  # a killed run wrote a line past its checkpoint, and half a line
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    resumed = run(config, tmp_path / 'parts')
    assert same(resumed.state, straight.state)
    assert lines(tmp_path / 'parts') == lines(path)
    assert [x['step'] for x in lines(path) if 'loss' in x] == [1, 2, 3, 4, 5, 6]


def test_nothing_is_compiled_or_transferred_after_the_first_step(
    tiny_config, tmp_path, monkeypatch
):
    """Catches a step that retraces, and host values that leak into it."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: (
            compiled.append(name) if name.endswith('backend_compile_duration') else None
        )
    )
    tiny_config.eval.every, tiny_config.checkpoint.every = 0, 0
    e = setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    step, counts = e.train_step, []

    def counted(state, batch):
        assert all(isinstance(x, jax.Array) for x in batch.values())
        out = step(state, batch)
        counts.append(len(compiled))
        return out

    e.train_step = counted
    loop.train(e)
    assert len(counts) == 6 and counts[0] == counts[-1]
    with jax.transfer_guard('disallow'), pytest.raises(Exception, match='[Dd]isallowed'):
        step(
            e.state, {k: np.asarray(v) for k, v in e.training(0).items()}
        )  # the guard does see host values


def test_a_step_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
    """Catches a run that goes on from NaN, or that saves it; names step, last good checkpoint and
    batch."""
    e = setup.build_experiment(tiny_config, str(tmp_path / 'run'))
    step, spoil = e.train_step, jax.jit(lambda x: x * jax.numpy.nan)

    def spoiled(state, batch):
        bad = int(jax.device_get(state['step'])) == 4
        state, values = step(state, batch)
        return state, {**values, 'loss': spoil(values['loss'])} if bad else values

    e.train_step = spoiled
    with pytest.raises(RunError) as error:
        loop.train(e)
    assert all(
        s in str(error.value) for s in ('at step 5', 'checkpoint: 3', 'batch(4)', e.store.hash[:12])
    )
    assert run_dir.is_started(tmp_path / 'run') and checkpoint.Checkpoints(e.run).steps() == [3]


def test_the_newest_and_the_best_are_kept(tiny_config, tmp_path, monkeypatch):
    """Catches a policy that keeps the worst, or that keeps all."""
    losses = iter([5.0, 2.0, 3.0, 4.0, 6.0, 4.5])
    monkeypatch.setattr(loop, 'evaluate', lambda e, params: {'validation_nats': next(losses)})
    tiny_config.eval.every = tiny_config.checkpoint.every = 1
    tiny_config.checkpoint.update(keep_last=1, keep_best=1)
    e = run(tiny_config, tmp_path / 'run')
    assert checkpoint.Checkpoints(e.run).steps() == [2, 6]


def test_another_config_is_refused_and_harmless_fields_are_not(base_run, caplog):
    """Catches a resume that silently mixes two experiments, or that does not say that its bits will
    be others."""
    config, path, _ = base_run
    config.optimizer.lr, config.log.every = 5e-3, 2
    with pytest.raises(RunError, match=r'config.optimizer.lr: 0.01 -> 0.005$'):
        setup.build_experiment(config, str(path))
    config.optimizer.lr = 1e-2
    assert (
        int(setup.build_experiment(config, str(path)).state['step']) == 6
        and 'to rounding' not in caplog.text
    )
    lineage = json.loads((path / 'lineage.json').read_text())
    (path / 'lineage.json').write_text(json.dumps(lineage | {'cores': 99}))
    assert int(setup.build_experiment(config, str(path)).state['step']) == 6
    assert (
        f'cores differ from when the run was started (99, now {lineage["cores"]}): it goes on to '
        f'rounding, not bit for bit' in caplog.text
    )


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.model'])
def test_what_lineage_vouches_for_is_written_anew(base_run, caplog, name):
    """Catches a restart from zero over a damaged run, a damaged file that is used, and one written
    anew from another config or tokenizer."""
    config, path, _ = base_run
    file, before = path / name, (path / name).read_bytes()
    for harm in (
        file.unlink,
        lambda: file.write_bytes(before[:-9]),
        lambda: file.write_bytes(
            before.replace(b'32', b'33') if name == 'config.json' else before[::-1]
        ),
    ):
        caplog.clear()
        harm()
        assert int(setup.build_experiment(config, str(path)).state['step']) == 6
        assert file.read_bytes() == before and name in caplog.text and 'written anew' in caplog.text
    file.unlink()
    config.optimizer.lr, config.tokenizer.vocab_size = 1.0, 400

    def everything():
        return sorted(p.name for p in path.rglob('*'))

    kept = everything()
    with pytest.raises(
        RunError, match=f'{name}.*what this command gives is another one: restore {name}'
    ):
        setup.build_experiment(config, str(path))
    assert everything() == kept


def test_damaged_weights_are_passed_over(base_run, caplog):
    """Catches weights loaded without their checksum, and a damaged newest checkpoint that ends the
    run."""
    config, path, _ = base_run
    reader = checkpoint.Checkpoints(Run.parse(str(path)))
    assert reader.steps() == [3, 6]
    shards = [p for p in (path / 'checkpoints' / '6' / 'params').rglob('d/*') if p.is_file()]
    shards[0].write_bytes(b'\0' * shards[0].stat().st_size)
    assert int(setup.build_experiment(config, str(path)).state['step']) == 3
    description = path / 'checkpoints' / '6' / 'meta' / 'metadata'
    whole = description.read_text()
    for changed in (
        whole.replace('"format": 1', '"format": 9'),
        whole.replace('params/embedding', 'params/embeddinh'),
    ):
        description.write_text(changed)
        assert (
            changed != whole and int(setup.build_experiment(config, str(path)).state['step']) == 3
        )
    description.write_text(whole)
    with pytest.raises(RunError, match='no checkpoint can be read; step 6'):
        models.load(Run.parse(f'{path}@6'))


def test_checksums_see_one_bit_and_no_sharding():
    """Catches a checksum blind to order or to low bits, or one that depends on where shards lie."""
    x = jax.numpy.arange(64.0).reshape(8, 8)
    mesh = jax.make_mesh((8,), ('a',))
    spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('a')))

    def value(y):
        return tuple(map(int, checkpoint.checksums({'x': y})['x']))

    flipped = x.view(jax.numpy.uint32).at[3, 3].add(1).view(jax.numpy.float32)
    assert value(spread) == value(x)
    assert len({value(x), value(x[::-1]), value(flipped), value(x.astype(jax.numpy.bfloat16))}) == 4


def test_lineage_and_loading(base_run):
    """Catches a run that cannot be traced, and a loader that gives fresh weights."""
    config, path, e = base_run
    run = Run.parse(f'{path}@6')
    lineage = run.lineage()
    assert (
        lineage['data_hash'] == e.store.hash
        and lineage['tokenizer_hash'] == e.tokenizer.hash
        and lineage['parent'] is None
    )
    changed = config_tree.diff_configs(
        run.config(), config, lambda name: name != config_tree.ENCODINGS
    )
    assert changed == []
    _, params, tokenizer, _ = models.load(run)
    assert same(params, e.state['params']) and tokenizer.hash == e.tokenizer.hash
    sample = [m for m in metrics.read(run) if 'sample' in m]
    assert len(sample) == 1 and sample[0]['sample'].startswith('A')


@pytest.fixture
def answers_config(base_run):
    config, path, _ = base_run
    config = config.copy_and_resolve_references()
    config.data.update(packing='whole', validation=0.0)
    config.data.atlas.part = 'answers'
    config.parent = str(path)
    config.sample.every = 0
    return config


def test_posttraining_starts_from_the_parent(base_run, answers_config, tmp_path):
    """Catches post-training from random weights, and an optimizer or step carried over from the
    parent."""
    e = setup.build_experiment(answers_config, str(tmp_path / 'answers'))
    assert same(e.state['params'], base_run[2].state['params'])
    moments = [x for x in jax.tree.leaves(e.state['opt_state']) if x.ndim]
    assert int(e.state['step']) == 0 and not any(np.any(x) for x in jax.device_get(moments))
    loop.train(e)
    lineage = Run.parse(str(tmp_path / 'answers')).lineage()
    assert lineage['parent'] == {'run': str(base_run[1]), 'step': 6}
    batch = e.training(0)
    answered = batch['targets'][batch['loss_weights'] > 0]
    assert (
        e.tokenizer.end in answered
        and e.tokenizer.user not in answered
        and e.tokenizer.assistant not in answered
    )


def test_posttraining_on_what_has_texts_too(answers_config, tmp_path):
    """Catches conversations that are refused as texts for a text beside them, and a system's
    message that is lost on the way."""
    turns = [{'role': r, 'content': r} for r in ('system', 'user', 'assistant', 'user')]
    (tmp_path / 'a.jsonl').write_text(json.dumps({'text': 'none', 'messages': turns}) + '\n')
    answers_config.data.source, answers_config.data.files.paths = 'files', f'{tmp_path}/a.jsonl'
    e = setup.build_experiment(answers_config, str(tmp_path / 'answers'), conversations=True)
    document = e.store.split('train').document(0)
    assert document[:2].tolist() == [e.tokenizer.bos, e.tokenizer.system]
    assert (document == e.tokenizer.user).sum() == 1 and document[-1] == e.tokenizer.end
    assert e.config.data.files.prefer == 'conversation' and e.config.tokenizer.rules == 2


def test_a_run_keeps_the_rules_it_was_started_with():
    """Catches a run from before a default changed that the same command does not go on with, or
    goes on with under other rules."""
    run = Run.parse('tests/golden/format_1')
    config, digest = run.config(), config_tree.config_hash(run.config())
    config.tokenizer.rules, config.data.files.prefer = 2, 'conversation'
    resume.keep_own(run, config)
    assert (config.tokenizer.rules, config.data.files.prefer) == (1, 'text')
    resume.check_resumable(run, config)
    assert digest == config_tree.config_hash(config) == run.lineage()['config_hash']


MISFITS = [
    ('model.width', 64, r'config.model.width: 32 -> 64'),
    ('tokenizer.vocab_size', 500, r'config.tokenizer.vocab_size: 420 -> 500'),
    ('data.seq_len', 64, r'config.data.seq_len is 64: the parent .* has a context of 32'),
    (
        'model.positions',
        'rope_interleaved',
        r"'rope_interleaved': it pairs dimensions in the layout 'interleaved', the parent .* with "
        r"'half'.*layout='half'",
    ),
    (
        'model.positions_args.layout',
        'interleaved',
        r"config.model.positions is 'rope': it pairs dimensions in the layout 'interleaved'",
    ),
    (
        'model.positions',
        'yarn',
        r'config.model.max_len is 32: YaRN would stretch nothing, the parent .* was trained on 32 '
        r'tokens',
    ),
    ('parent', 'nowhere', r'nowhere: no such run directory'),
    ('parent', '@x', r'expected a step'),
]


def test_a_parent_that_does_not_fit_is_refused(answers_config, tmp_path):
    """Catches weights of another shape, another tokenizer's ids or another pairing of dimensions
    taken as they are, and a stretch of nothing."""
    for field, value, message in MISFITS:
        config = answers_config.copy_and_resolve_references()
        *groups, last = field.split('.')
        functools.reduce(lambda part, group: part[group], groups, config)[last] = (
            config.parent + value if value == '@x' else value
        )
        with pytest.raises(RunError, match=message):
            setup.build_experiment(config, str(tmp_path / 'answers'))
        assert not (tmp_path / 'answers').exists(), field


@pytest.mark.parametrize(
    'positions, max_len', [('none', 0), ('yarn', 64), ('t5', 0), ('rerope', 64)]
)
def test_a_phase_may_change_the_encoding(base_run, answers_config, tmp_path, positions, max_len):
    """Catches a change of encoding that is refused, that begins the other parameters anew, or that
    is not the one asked for; and one that stretches nothing, or bounds other distances, because it
    takes the length of this phase for that of training."""
    answers_config.model.update(positions=positions, max_len=max_len)
    answers_config.data.seq_len = max(max_len, 32)
    e = setup.build_experiment(answers_config, str(tmp_path / positions))
    parent_params, child_params = base_run[2].state['params'], e.state['params']
    assert all(
        np.array_equal(child_params[k], v) if not isinstance(v, dict) else same(child_params[k], v)
        for k, v in parent_params.items()
    )
    assert set(child_params) - set(parent_params) == (
        {'positions_t5'} if positions == 't5' else set()
    )
    assert e.model.config.encodings[0] is not base_run[2].model.config.encodings[
        0
    ] and e.model.config.max_len == max(max_len, 32)
    if positions == 'yarn':
        stored = models.build_model(Run.parse(str(tmp_path / positions)))[0].config.encodings[0]
        assert e.model.config.encodings[0].s == stored.s == 2 and stored.trained == 32
    if positions == 'rerope':
        assert e.model.config.encodings[0].w == 8  # a quarter of the length of training
    assert np.isfinite(loop.train(e)['loss'])


def test_the_length_of_training_is_that_of_the_lineage(monkeypatch, tmp_path):
    """Catches a stretch from the rows of the last phase, which were shorter than those that the
    parameters know."""
    held = {}

    def run(name, seq_len, parent='', **arguments):
        (tmp_path / name).mkdir()
        held[str(tmp_path / name)] = types.SimpleNamespace(
            config=lambda: ConfigDict(
                dict(data=dict(seq_len=seq_len), model=dict(positions_args=arguments))
            ),
            lineage=lambda: {
                'parent': {'run': str(tmp_path / parent), 'step': 1} if parent else None
            },
        )
        return held[str(tmp_path / name)]

    monkeypatch.setattr(warm_start.Run, 'parse', held.__getitem__)
    base, short, longer = (
        run('base', 256),
        run('short', 72, 'base'),
        run('longer', 512, 'short', length=128),
    )
    assert [
        warm_start._trained_length(r) for r in (base, short, longer, run('on', 72, 'longer'))
    ] == [256, 256, 128, 128]
    assert warm_start._trained_length(run('orphan', 72, 'gone')) == 72


def test_another_tokenizer_by_path_is_refused(answers_config, tiny_config, tmp_path):
    """Catches ids of one tokenizer fed to a model trained on another's."""
    tiny_config.tokenizer.vocab_size = 450
    other = tmp_path / 'other.model'
    other.write_bytes(setup.load_or_train_tokenizer(tiny_config).proto)
    answers_config.tokenizer.path = str(other)
    with pytest.raises(RunError, match="another tokenizer than the parent's"):
        setup.build_experiment(answers_config, str(tmp_path / 'answers'))


def test_json_of_a_run_is_data(base_run):
    """Catches a config.json that is code, or that cannot be read as it was written."""
    config, path, _ = base_run
    assert json.loads((path / 'config.json').read_text())['model']['width'] == config.model.width
    (path / 'config.json').write_text('{')
    with pytest.raises(RunError, match='config.json: damaged'):
        Run.parse(str(path)).config()
    shutil.rmtree(path)
    with pytest.raises(RunError, match='no such run directory'):
        Run.parse(str(path))
