"""Parameters in bfloat16: small steps add up in a float32 copy that goes where the state goes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model.config import resolve
from model.transformer import Transformer
from runtime import checkpoint, master, models, run_dir
from runtime.run_dir import Run
from tests.train.rows import BATCH, TIME, VOCAB, batch_of, config_of, share_programs
from train import footprint, loop, mesh as meshes, optimizer as optimizers, setup, step as steps
from train.losses import TokenLoss

STEPS = 1000
pytestmark = pytest.mark.usefixtures('shared_initial_states')


def flat(tree):
    return {checkpoint.path(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def same(a, b):
    a, b = flat(jax.device_get(a)), flat(jax.device_get(b))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def rounded(state):
    """The float32 copy of a state, each array as the parameter's type (norms are float32)."""
    wide = state['opt_state']['master']
    return jax.tree.map(lambda x, of: x.astype(of.dtype), wide, state['params'])


def pytree(dtype):
    """Parameters of each kind that the optimizer treats apart, of values that bfloat16 has."""

    def draw(seed, shape):
        return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.bfloat16)

    tree = {
        'embedding': draw(0, (6, 4)),
        'layer_0': {'feed_forward': {'up': {'kernel': draw(1, (4, 8))}}},
        'final_norm': {'scale': draw(2, (4,))},
    }
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def trained(kind, dtype):
    """The parameters after 1,000 steps at 1e-5 along gradients that depend on the step alone, and
    what they were at first."""
    config = config_of().optimizer
    config.update(kind=kind, lr=1e-5, warmup=0, schedule='constant', weight_decay=0.1)
    optimizer, params = optimizers.make_optimizer(config, STEPS), pytree(dtype)

    def step(carried, key):
        params, state = carried
        keys = jax.random.split(key, len(jax.tree.leaves(params)))
        keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
        grads = jax.tree.map(lambda x, k: 1 + jax.random.normal(k, x.shape), params, keys)
        return optimizers.update(optimizer, grads, state, params), None

    begin = (params, optimizers.init(optimizer, params))
    keys = jax.random.split(jax.random.key(3), STEPS)
    (last, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))(begin)
    return params, last


@pytest.mark.parametrize('kind', ['adamw', 'muon'])
def test_small_steps_add_up(kind):
    """Catches steps of 1e-5 that are rounded away: after 1,000 of them the parameters are those of
    float32, rounded."""
    before, params = trained(kind, jnp.bfloat16)
    _, expected = trained(kind, jnp.float32)
    for name, x in flat(params).items():
        wide = np.asarray(flat(expected)[name])
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(x, np.float32), wide, rtol=2**-8, atol=1e-6)
    moved = [np.ravel(x != flat(before)[name]) for name, x in flat(params).items()]
    assert np.mean(np.concatenate(moved)) > 0.3


def test_float32_has_no_copy():
    """Catches a state, and so a checkpoint and the memory it takes, that is another one for
    parameters in float32."""
    optimizer = optimizers.make_optimizer(config_of().optimizer, 100)
    params = pytree(jnp.float32)
    bare = optimizer.init(params)
    assert jax.tree.structure(optimizers.init(optimizer, params)) == jax.tree.structure(bare)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = optimizer.update(grads, bare, params)
    assert same(
        optimizers.update(optimizer, grads, bare, params),
        (optax.apply_updates(params, updates), state),
    )
    assert master.add_master({'params': params, 'opt_state': bare}, {})['opt_state'] is bare


def on_a_mesh(**more):
    config = config_of(param_dtype='bfloat16', **more)
    config.optimizer.update(lr=1e-5, warmup=0)
    config.mesh.update(data=2, fsdp=2, tensor=2, context=1)
    mesh = meshes.make_mesh(config.mesh)
    model = Transformer(resolve(config.model, VOCAB, TIME))
    optimizer = optimizers.make_optimizer(config.optimizer, 100)
    state, shardings = steps.init_state(model, optimizer, 0, mesh)
    step = steps.make_step(model, optimizer, TokenLoss(), mesh, shardings)
    return state, step, lambda i: meshes.to_devices(mesh, batch_of(i), BATCH)


def test_the_copy_lies_as_its_parameters():
    """Catches a copy that every device holds whole, one that the memory of the state does not
    count, a buffer that copy and parameter share (grape_m keeps one in float32), and a step in
    which the copy stays."""
    state, step, batch = on_a_mesh(scan_layers=True, positions='grape_m')
    master_arrays = flat(state['opt_state']['master'])
    assert {x.dtype.name for x in master_arrays.values()} == {'float32'}
    for name, x in flat(state['params']).items():
        assert master_arrays[name].sharding == x.sharding
    held = footprint.state_bytes(state)['optimizer']
    assert held >= 3 * footprint.bytes_per_device(state['opt_state']['master'])
    before, first = jax.device_get((flat(state['params']), master_arrays))
    for i in range(2):
        state, _ = step(state, batch(i))
    after, moved = jax.device_get((flat(state['params']), flat(state['opt_state']['master'])))
    for name, x in after.items():
        assert np.array_equal(moved[name].astype(x.dtype), x), name
        assert not np.array_equal(moved[name], first[name]), name
    stayed = [np.ravel(x == before[name]) for name, x in after.items()]
    assert np.mean(np.concatenate(stayed)) > 0.8  # the copy alone has seen such small steps


def prepared(config, path):
    return share_programs(setup.build_experiment(config, str(path)))


@pytest.fixture(scope='module')
def whole(tiny, cache, tmp_path_factory):
    """A run with parameters in bfloat16, trained to its end, and its config."""
    config = tiny(cache)
    config.model.update(param_dtype='bfloat16', num_layers=1)
    config.data.prefetch = 0
    e = prepared(config, tmp_path_factory.mktemp('runs') / 'whole')
    loop.train(e)
    return config, e


def test_a_resumed_run_is_the_same(whole, tmp_path):
    """Catches a copy that is rounded when a run is saved, and one that begins anew."""
    config, e = whole
    config = config.copy_and_resolve_references()
    config.train.stop_at = 3
    loop.train(prepared(config, tmp_path))
    config.train.stop_at = 0
    again = prepared(config, tmp_path)
    assert int(again.state['step']) == 3
    assert not same(again.state['opt_state']['master'], master.widen(again.state['params']))
    loop.train(again)
    assert same(again.state, e.state) and same(rounded(e.state), e.state['params'])


def test_a_run_from_before_goes_on(whole, tmp_path, caplog):
    """Catches a run saved without a copy that cannot be read, or goes on without a word from
    something else than its parameters; and one of another type of parameters that is taken."""
    config, e = whole
    run_dir.create(Run(run_dir.epath.Path(tmp_path)), config, e.tokenizer, e.run.lineage())
    older = master.drop_master(e.state) | {'step': jnp.int32(3)}
    writer = checkpoint.Checkpoints(Run(run_dir.epath.Path(tmp_path)), config.checkpoint)
    writer.save(older, None)
    writer.close()
    assert same(models.load(Run.parse(str(tmp_path)))[1], e.state['params'])
    resumed = prepared(config, tmp_path)
    assert 'step 3 was saved without a float32 copy of its parameters' in caplog.text
    assert same(resumed.state['opt_state']['master'], master.widen(e.state['params']))
    assert same(resumed.state['opt_state']['inner'], e.state['opt_state']['inner'])
    assert (
        resumed.state['opt_state']['master']['embedding'].sharding
        == e.shardings['opt_state']['master']['embedding']
    )
    loop.train(resumed)
    assert int(resumed.state['step']) == config.train.steps


def test_a_child_begins_from_its_parent(whole, tmp_path):
    """Catches a copy of the fresh parameters, which would take the parent's place at the first
    step."""
    config, e = whole
    config = config.copy_and_resolve_references()
    config.parent = f'{e.run.path}@6'
    child = prepared(config, tmp_path / 'child')
    assert same(child.state['params'], e.state['params'])
    assert same(child.state['opt_state']['master'], master.widen(e.state['params']))
