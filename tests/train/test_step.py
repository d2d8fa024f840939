"""The train step on meshes of eight forced CPU devices, against one device and against a slow
reference."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import loss as losses
from model.config import resolve
from model.transformer import Transformer
from tests.train import rows
from tests.train.rows import BATCH, TIME, VOCAB, batch_of
from train import mesh as meshes, step as steps
from train.losses import TokenLoss
from train.optimizer import make_optimizer


def build(config, accumulation=1, devices=8, **mesh_sizes):
    config.mesh.update(data=-1, **mesh_sizes)
    mesh = meshes.make_mesh(config.mesh, jax.devices()[:devices])
    model = Transformer(resolve(config.model, VOCAB, TIME))
    optimizer = make_optimizer(config.optimizer, 10)
    state, shardings = steps.init_state(model, optimizer, 0, mesh)
    loss = functools.partial(losses.weighted_token_loss, z_loss=1e-3)
    step = steps.make_step(
        model, optimizer, TokenLoss(loss), mesh, shardings, steps.StepOptions(accumulation)
    )
    return mesh, model, state, step


def losses_of(built, count=3):
    mesh, _, state, step = built
    measured = []
    for i in range(count):
        state, values = step(state, meshes.to_devices(mesh, batch_of(i), BATCH))
        measured.append(
            [float(values['loss']), float(values['grad_norm']), float(values['weight'])]
        )
    return np.array(measured), jax.device_get(state['params'])


@pytest.fixture(scope='module')
def one_device():
    from configs import base

    c = base.get_config()
    c.model.update(width=32, num_layers=2, num_heads=2, num_kv_heads=1)
    c.optimizer.warmup = 2
    return c, *losses_of(build(c, devices=1))


@pytest.mark.parametrize(
    'fsdp, accumulation, scan',
    [(1, 1, False), (1, 2, True), (2, 2, False), (8, 1, True), (4, 4, True)],
)
def test_any_mesh_gives_the_losses_of_one_device(one_device, fsdp, accumulation, scan):
    """Catches gradients averaged per shard, weights not summed over microbatches, and randomness
    that depends on the mesh."""
    config, expected, params = one_device
    config = config.copy_and_resolve_references()
    if (
        scan
    ):  # the same layers in a loop begin from other draws: compare with one device of their own
        config.model.scan_layers = True
        expected, params = losses_of(build(config, devices=1))
    devices = 4 if accumulation == 4 else 8
    measured, found_params = losses_of(build(config, accumulation, devices, fsdp=fsdp))
    np.testing.assert_allclose(measured, expected, rtol=2e-5)
    # Adam divides by the root of tiny moments, so parameters feel rounding more than losses do: a
    # thousandth of the rate.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), found_params, params)


@pytest.mark.parametrize('accumulation', [1, 2])
def test_one_reduction_over_data(one_device, accumulation):
    """Catches a reduction in every microbatch, and one for each parameter."""
    mesh, _, state, step = build(one_device[0].copy_and_resolve_references(), accumulation)
    text = step.lower(state, meshes.to_devices(mesh, batch_of(0), BATCH)).compile().as_text()
    assert len(re.findall(r' all-reduce(?:-start)?\(', text)) == 1
    assert not re.search(r' (reduce-scatter|all-gather|all-to-all|collective-permute)\(', text)


def test_no_device_holds_a_whole_gradient_between_microbatches(one_device):
    """Catches gradients that are gathered, or reduced whole, and kept so while the microbatches are
    added up."""
    mesh, _, state, step = build(one_device[0].copy_and_resolve_references(), 2, fsdp=8)
    text = step.lower(state, meshes.to_devices(mesh, batch_of(0), BATCH)).compile().as_text()
    carried = ' '.join(re.findall(r'= \(([^)]*)\) while\(', text))
    assert (
        'f32[4,96]' in carried and 'f32[32,96]' not in carried
    )  # of the weights [32,96] of the feed-forward


@pytest.mark.parametrize('data, fsdp', [(1, 4), (2, 2)])
def test_a_kernel_on_a_mesh(one_device, monkeypatch, data, fsdp):
    """Splash, interpreted, inside the step. Catches a kernel that sees other devices' rows,
    document ids that are not cut with the rows, and a gradient lost at the edge of a shard_map,
    alone or inside another."""
    for module in (rows, sys.modules[__name__]):
        monkeypatch.setattr(module, 'TIME', 128)
    config = one_device[0].copy_and_resolve_references()
    config.model.update(num_layers=1, remat='minimal')
    measured = {}
    for attention, devices, sizes in (('reference', 1, {}), ('splash', 4, {'fsdp': fsdp})):
        config.model.attention = attention
        measured[attention], _ = losses_of(
            build(config.copy_and_resolve_references(), devices=devices, **sizes), count=2
        )
    np.testing.assert_allclose(measured['splash'], measured['reference'], rtol=1e-4)


def test_fsdp_shards_parameters_and_moments(one_device):
    """Catches a state that is replicated although fsdp is asked for."""
    _, _, state, _ = build(one_device[0].copy_and_resolve_references(), fsdp=8)
    whole = [x for x in jax.tree.leaves((state['params'], state['opt_state'])) if x.ndim > 1]
    assert whole and all(x.addressable_shards[0].data.size * 8 == x.size for x in whole)


def test_loss_and_gradient_equal_a_direct_computation(one_device):
    """Catches a wrong weighting, a missing z-loss, and a clipped or scaled gradient norm."""
    config = one_device[0].copy_and_resolve_references()
    mesh, model, state, step = build(config, devices=1)
    batch = batch_of(0)

    def direct(params):
        logits = model.apply(
            {'params': params}, batch['tokens'], batch['positions'], batch['segment_ids']
        )[0]
        log_probs = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_probs, batch['targets'][..., None], -1)[..., 0]
        z = jax.nn.logsumexp(logits, -1)
        w = batch['loss_weights']
        return ((nll + 1e-3 * z**2) * w).sum() / w.sum(), (nll * w).sum() / w.sum()

    (_, nll), grads = jax.value_and_grad(direct, has_aux=True)(state['params'])
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    _, values = step(state, meshes.to_devices(mesh, batch, BATCH))
    np.testing.assert_allclose([values['loss'], values['grad_norm']], [nll, norm], rtol=1e-5)


def test_golden_first_step(one_device):
    """Catches any change of initial values, batch or arithmetic. XLA:CPU's last bits differ by
    cores and version: 1e-4."""
    _, measured, _ = one_device
    np.testing.assert_allclose(measured[0], GOLDEN, rtol=1e-4)


GOLDEN = [
    4.567951,
    2.119245,
    194.0,
]  # loss, gradient norm, weight of the first step of `one_device`
