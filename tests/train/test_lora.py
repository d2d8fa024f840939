"""Adapters in training: what moves, what is saved, and that a run with them is its parent changed.

Full tuning, the merged matrices and one device are what it is compared with.
"""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from apps import examine, merge
from model import lora
from model.config import resolve
from model.transformer import Transformer
from runtime import checkpoint, models, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run
from tests import commands
from tests.train.rows import (
    BATCH,
    TIME,
    VOCAB,
    batch_of,
    config_of,
    draw,
    shapes_of,
    share_programs,
)
from tests.train.test_run import lines, same
from train import footprint, loop, mesh as meshes, optimizer as optimizers, setup, step as steps
from train.losses import TokenLoss

pytestmark = pytest.mark.usefixtures('shared_initial_states')


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep='/')


def near(a, b):
    """Asserts that two trees are equal but for the last bits of a product that is added."""
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name, x in a.items():
        np.testing.assert_allclose(x, b[name], rtol=0, atol=1e-6, err_msg=name)


def place(text):
    return run_dir.place(str(text))


# --- The step -------------------------------------------------------------------------------------


def make(optimizer, rank=4, alpha=8.0, targets='*', sizes=(1, 1, 1, 1), accumulation=1, **fields):
    """A model with adapters (rank 0: without), its frozen state on a mesh, and its step."""
    config = config_of(num_layers=1, **fields)
    config.mesh.update(dict(zip(meshes.AXES, sizes)))
    mesh = meshes.make_mesh(config.mesh)
    plain = resolve(config.model, VOCAB, TIME)
    config.lora.update(rank=rank, alpha=alpha, targets=targets)
    model = Transformer(lora.adapt(plain, config.lora))
    names = flat(shapes_of(model))
    every = ConfigDict(dict(rank=1, alpha=1.0, targets=targets))
    moved = lora.adapt(plain, every).lora  # which matrices learn, with adapters or without
    frozen = {
        name
        for name in names
        if not lora.is_factor(name)
        and (rank or not (name.endswith('kernel') and moved.adapts(name.split('/')[:-1])))
    }
    state, shardings = steps.init_state(model, optimizer, 0, mesh, False, frozenset(frozen))
    _, held = lora.split(draw(shapes_of(model)), frozenset(frozen))
    state['frozen'] = jax.device_put(held, shardings['frozen'])
    step = steps.make_step(
        model, optimizer, TokenLoss(), mesh, shardings, steps.StepOptions(accumulation)
    )

    def take(state, number):
        return step(state, meshes.to_devices(mesh, batch_of(number), BATCH))

    return model, state, shardings, take


def with_params(state, shardings, params, is_adam=None):
    """A state with other parameters, from {path: array}; what it has none for stays.

    The given one is left as it is. `is_adam`: of `descent_or_adam`.
    """
    state = jax.device_get(state)
    taken = {} if is_adam is None else {'opt_state': state['opt_state'] | {'is_adam': is_adam}}
    for part in ('params', 'frozen'):
        leaves = {name: params.get(name, x) for name, x in flat(state[part]).items()}
        taken[part] = traverse_util.unflatten_dict(leaves, sep='/')
    return jax.device_put({**state, **taken}, shardings)


def descent_or_adam():
    """Gradient descent, or Adam where the state says so: one program serves both."""
    descent, adam = optax.sgd(0.3), optax.adam(1e-4)

    def init(params):
        return {'adam': adam.init(params), 'is_adam': jnp.zeros((), bool)}

    def update(grads, state, params):
        steps_down, _ = descent.update(grads, descent.init(params))
        adam_steps, adam_state = adam.update(grads, state['adam'])
        chosen = jax.tree.map(
            lambda x, y: jnp.where(state['is_adam'], y, x), steps_down, adam_steps
        )
        return chosen, {**state, 'adam': adam_state}

    return optax.GradientTransformation(init, update)


def test_at_full_rank_it_moves_as_full_tuning():
    """W' = W - lr s^2 A A^T G after a step of gradient descent, since B begins at 0. With as many
    columns as inputs A A^T is 1: at alpha = rank the step is that of full tuning, and small steps
    after it stay near. Adam takes each number by itself: there A is 1, not turned. Catches a scale
    that is wrong, a gradient that does not come from the whole batch, and A that is not
    orthonormal."""
    targets = 'attention/*,up,gate'  # whose inputs are 32, as the width
    _, full_state, full_shardings, take_full = make(descent_or_adam(), 0, targets=targets)
    _, first_state, shardings, take = make(descent_or_adam(), 32, 32.0, targets)
    params = flat(steps.all_params(first_state))
    before = {name: x for name, x in params.items() if not lora.is_factor(name)}

    for is_adam in (False, True):
        if is_adam:
            for name, x in params.items():
                if name.endswith('lora_a'):
                    params[name] = np.eye(32, dtype=np.float32).reshape(x.shape)
        state = with_params(first_state, shardings, params, is_adam)
        full = with_params(full_state, full_shardings, before, is_adam)
        for number in range(4):
            state, values = take(state, number)
            full, expected_values = take_full(full, number)
            found = flat(lora.merge(steps.all_params(state), 1.0))
            moved = 0
            for name, x in flat(steps.all_params(full)).items():
                change = np.abs(x - before[name]).max()
                moved += change > 0
                within = 1e-5 if number == 0 else 0.02
                np.testing.assert_allclose(found[name], x, rtol=0, atol=within * change + 2e-7)
            assert moved == 6
        assert float(values['loss']) == pytest.approx(float(expected_values['loss']), rel=1e-4)


def test_a_mesh_changes_nothing():
    """Catches factors that are summed twice or not at all over devices, a parent's matrix that
    moves, microbatches that see other weights, and a copy in float32 of what is not trained."""
    optimizer = optax.sgd(1.0)
    fields = dict(scan_layers=True)
    model, one, shardings, take = make(optimizer, **fields)
    params = draw(flat(one['params']))
    one = with_params(one, shardings, params)
    first, values = take(one, 0)
    expected = flat(first['params'])

    _, state, on_mesh, take = make(
        optimizer, sizes=(1, 2, 2, 1), accumulation=2, remat='full', **fields
    )
    state = with_params(state, on_mesh, params)
    frozen = flat(state['frozen'])
    state, mesh_values = take(state, 0)
    assert float(mesh_values['loss']) == pytest.approx(float(values['loss']), rel=2e-6)
    largest = max(np.abs(x - params[name]).max() for name, x in expected.items())
    for name, x in flat(state['params']).items():
        assert np.any(x != params[name]), name
        np.testing.assert_allclose(x, expected[name], rtol=0, atol=5e-6 * largest, err_msg=name)
    assert same(flat(state['frozen']), frozen)
    a = state['params']['layers']['layer_0']['feed_forward']['up']['lora_a']
    assert a.sharding.spec[1] == 'fsdp' and a.addressable_shards[0].data.shape == (1, 16, 4)


def test_the_optimizer_has_the_factors_alone():
    """Catches moments or a float32 copy of what is not trained, weights that do not decay, factors
    that Muon leaves to Adam or cuts the wrong way, and memory that leaves the parent out."""
    config = config_of(param_dtype='bfloat16').optimizer
    config.kind = 'muon'
    optimizer = optimizers.make_optimizer(config, 100)
    _, state, _, _ = make(optimizer, param_dtype='bfloat16', scan_layers=True)
    master = flat(state['opt_state']['master'])
    assert master.keys() == flat(state['params']).keys()
    assert all(lora.is_factor(name) and x.dtype == np.float32 for name, x in master.items())
    assert all(jax.tree.leaves(optimizers.decays(state['params'])))

    sides = flat(optimizers.matrices(state['params']))
    axes = {
        name.split('/', 2)[2]: (each.reduction_axis, each.output_axis)
        for name, each in sides.items()
    }
    assert axes['attention/query/lora_a'] == axes['feed_forward/down/lora_b'] == ((1,), (2,))
    assert axes['attention/query/lora_b'] == ((1,), (2, 3))
    assert axes['attention/out/lora_a'] == ((1, 2), (3,))

    size = footprint.state_bytes(state)
    frozen = sum(x.nbytes for x in jax.tree.leaves(state['frozen']))
    factors = sum(x.nbytes for x in jax.tree.leaves(state['params']))
    assert size['parameters'] == frozen + factors and size['optimizer'] < frozen


# --- Runs -----------------------------------------------------------------------------------------


def run(config, path, stop_at=0, conversations=False):
    config = config.copy_and_resolve_references()
    config.train.stop_at = stop_at
    e = share_programs(setup.build_experiment(config, str(path), conversations))
    loop.train(e)
    return e


@pytest.fixture
def lora_config(tiny_config, tiny_run):
    return with_adapters(tiny_config, tiny_run)


def with_adapters(config, parent):
    """An experiment that trains adapters of a run of two steps."""
    config.model.num_layers = 1
    config.lora.update(rank=2, alpha=64.0, targets='attention/*,down')
    config.parent = str(parent)
    config.eval.every = 0
    return config


@pytest.fixture(scope='module')
def base(tiny_run):
    """The parent's model and its parameters."""
    return models.load(Run.parse(str(tiny_run)))[:2]


@pytest.fixture(scope='module')
def trained(tiny, cache, tiny_run, tmp_path_factory):
    """A run that trained adapters to its end: its config, and its experiment."""
    config = with_adapters(tiny(cache), tiny_run)
    config.eval.every = 3
    config.sample.update(every=6, prompt='A', tokens=4)
    return config, run(config, tmp_path_factory.mktemp('trained') / 'lora')


@pytest.fixture
def lora_run(trained, tiny_run, tmp_path):
    """A copy of that run and of its parent, where they may be harmed."""
    config, e = trained
    config = config.copy_and_resolve_references()
    shutil.copytree(tiny_run, tmp_path / 'base')
    shutil.copytree(str(e.run.path), tmp_path / 'lora')
    lineage = json.loads((tmp_path / 'lora' / 'lineage.json').read_text())
    lineage['parent']['run'] = config.parent = str(tmp_path / 'base')
    (tmp_path / 'lora' / 'lineage.json').write_text(json.dumps(lineage))
    return config, tmp_path / 'lora', e


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
    tokens = jnp.arange(1, 17).reshape(2, 8)
    places = jnp.broadcast_to(jnp.arange(8), (2, 8))
    return model.apply({'params': params}, tokens, places, jnp.ones_like(tokens))[0]


def test_only_the_factors_change_and_are_saved(trained, base, lora_config, tiny_run, tmp_path):
    """Catches a first step that is not the parent's, a matrix of the parent that moves, checkpoints
    that hold it, and a run that goes on from other adapters, moments or keys than it stopped
    with."""
    config, e = trained
    begun = setup.build_experiment(lora_config, str(tmp_path / 'begun'))
    assert np.array_equal(logits(begun.model, begun.params), logits(*base))

    assert same(flat(e.state['frozen']), flat(base[1]))
    names = {f'layer_0/attention/{name}' for name in ('query', 'key', 'value', 'out')}
    factors = {
        f'{name}/{factor}'
        for name in (*names, 'layer_0/feed_forward/down')
        for factor in lora.FACTORS
    }
    assert flat(e.state['params']).keys() == factors
    assert all(np.any(x) for x in jax.tree.leaves(jax.device_get(e.state['params'])))

    def size(path, step):
        files = (pathlib.Path(path) / 'checkpoints' / str(step)).rglob('*')
        return sum(file.stat().st_size for file in files if file.is_file())

    reader = checkpoint.Checkpoints(e.run)
    saved = {name for name, _, fault in reader.read(6) if not fault}
    reader.close()
    assert {name for name in saved if name.startswith('params/')} == {
        f'params/{f}' for f in factors
    }
    numbers = sum(x.nbytes for x in jax.tree.leaves(e.state['params']))
    assert 3 * numbers < size(e.run.path, 6) < size(tiny_run, 2) / 3

    run(config, tmp_path / 'parts', stop_at=3)
    again = run(config, tmp_path / 'parts')
    assert same(again.state, e.state) and lines(tmp_path / 'parts') == lines(e.run.path)


def test_what_is_loaded_is_whole(lora_run, base, tmp_path):
    """Catches a loader that gives the parent's weights or the factors, a merged run that writes
    something else or needs the others, adapters that cannot be taken off again, and a child, full
    or with adapters of its own, that does not begin where they ended."""
    config, path, e = lora_run
    model, params, _, _ = models.load(Run.parse(str(path)))
    assert model.config.lora is None
    near(params, lora.merge(e.params, 32.0))
    whole_logits = logits(model, params)
    moved = np.abs(whole_logits - logits(*base)).max()
    np.testing.assert_allclose(logits(e.model, e.params), whole_logits, atol=1e-4 * moved)

    child = config.copy_and_resolve_references()
    child.parent = str(path)
    child.lora.update(rank=0, alpha=16.0, targets='*')
    full = setup.build_experiment(child, str(tmp_path / 'full'))
    near(full.state['params'], params)
    assert 'frozen' not in full.state
    child.lora.update(rank=1, targets='up')
    second = setup.build_experiment(child, str(tmp_path / 'second'))
    near(second.state['frozen'], params)
    second.state['params'] = draw(second.state['params'])
    writer = checkpoint.Checkpoints(second.run, child.checkpoint)
    writer.save(second.state, None)
    writer.close()
    near(models.load(second.run)[1], lora.merge(second.params, 16.0))

    done = commands.run_here('apps.merge', f'--run={path}', f'--out={tmp_path}/whole')
    assert done.returncode == 0 and f'whole weights of {path}' in done.stdout, done
    (tmp_path / 'lora').rename(tmp_path / 'away')
    shutil.rmtree(tmp_path / 'base')
    whole = Run.parse(str(tmp_path / 'whole'))
    loaded = models.load(whole)
    assert same(flat(loaded[1]), flat(params)) and loaded[3].lora.rank == 0
    assert whole.lineage()['parent'] == {'run': str(path), 'step': 6}
    own, before = flat(e.state['params']), flat(base[1])
    for name, x in flat(loaded[1]).items():
        module = name.rpartition('/')[0]
        if f'{module}/lora_a' in own:
            assert not np.array_equal(x, before[name]), name
            a, b = (own[f'{module}/{factor}'] for factor in lora.FACTORS)
            x = x - 32.0 * np.tensordot(a, b, 1)
        np.testing.assert_allclose(x, before[name], atol=1e-5, err_msg=name)
    with pytest.raises(RunError, match='holds whole weights'):
        merge.merge(whole, place(tmp_path / 'more'))


def test_a_parent_that_is_gone_or_changed(lora_run, tiny_run):
    """Catches adapters on other weights than they were trained on, or none, without a word: where
    the run is read, goes on, or is inspected."""
    config, path, _ = lora_run
    base = path.parent / 'base'
    run_of = Run.parse(str(path))
    assert int(setup.build_experiment(config, str(path)).state['step']) == 6

    def refused(match):
        for read in (
            lambda: models.load(run_of),
            lambda: setup.build_experiment(config, str(path)),
        ):
            with pytest.raises(RunError, match=match) as error:
                read()
            assert str(error.value).count('holds adapters alone') == 1
            assert '\n' not in str(error.value)
        damage = examine.examine(run_of).damage
        assert len(damage) == 1 and 'holds adapters alone' in damage[0], damage

    # Its weights were trained anew, to others, by the same config.
    description = base / 'checkpoints' / '2' / 'meta' / 'metadata'
    before = description.read_text()
    meta = json.loads(before)
    meta['arrays']['params/embedding'][1][0] ^= 1
    description.write_text(json.dumps(meta))
    refused('it has other weights now')
    description.write_text(before)
    shutil.rmtree(base)
    refused(f'{base}')

    # It may be somewhere else, where a run goes on.
    config.parent = str(tiny_run)
    assert int(setup.build_experiment(config, str(path)).state['step']) == 6
    lineage = json.loads((path / 'lineage.json').read_text())
    lineage['parent'] = {'run': str(path), 'step': 6}
    lineage['descent']['weights'] = checkpoint.hash_params(Run(run_of.path, 6))
    (path / 'lineage.json').write_text(json.dumps(lineage))
    with pytest.raises(RunError, match='its own ancestor'):
        models.load(run_of)


def test_a_run_goes_back_with_its_parent(trained):
    """Catches a rollback that loses what no checkpoint holds."""
    config, e = trained
    e = dataclasses.replace(e, config=config.copy_and_resolve_references())
    before = jax.device_get(e.state)
    loop._roll_back(e, 6, 'a spike')
    assert same(e.state, before)
    e.run.rollbacks_path.unlink()


def test_answers_and_pairs(lora_config, tmp_path):
    """Catches an objective that adapters do not reach, a scale of similarities or a bag that is new
    and not learned or not saved, and one that a second phase does not learn any more."""
    lora_config.data.update(packing='whole', validation=0.2)
    lora_config.data.atlas.part = 'answers'
    e = run(lora_config, tmp_path / 'answers', conversations=True)
    assert all(np.any(x) for x in jax.tree.leaves(jax.device_get(e.state['params'])))

    lora_config.data.packing = 'stream'
    lora_config.model.update(causal=False, logit_scale=True, bag=True)
    lora_config.train.objective = 'contrastive'
    lora_config.embedding.pooling = 'bag+mean'
    e = run(lora_config, tmp_path / 'search')
    own = flat(e.state['params'])
    assert all(np.any(x) for x in own.values())
    assert {name for name in own if not lora.is_factor(name)} == {
        'logit_scale',
        *(f'bag/{name}' for name in ('embedding', 'gate', 'weight')),
    }
    assert own['logit_scale'] != np.float32(np.log(20))
    assert same(flat(models.load(e.run)[1])['bag/weight'], own['bag/weight'])

    lora_config.parent = str(e.run.path)
    second = setup.build_experiment(lora_config, str(tmp_path / 'second'))
    again = flat(second.state['params'])
    assert again.keys() == own.keys() and again['logit_scale'] == own['logit_scale']


def test_what_cannot_be_is_refused(lora_config, tmp_path):
    """Catches adapters without a parent, of a matrix that is not there, or wider than one."""

    def refused(match, **fields):
        config = lora_config.copy_and_resolve_references()
        config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
        with pytest.raises(RunError, match=match):
            setup.build_experiment(config, str(tmp_path / 'run'))
        assert not (tmp_path / 'run').exists()

    refused('config.lora.rank is 2: adapters change the weights of a parent', parent='')
    refused("config.lora.targets has 'querry', which fits no matrix.*query", lora__targets='querry')
    refused('config.lora.rank is 33: expected at most 32, the inputs', lora__rank=33)
    refused('config.lora.alpha is 0.0: expected', lora__alpha=0.0)
