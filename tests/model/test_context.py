"""The `context` axis, for every encoding: a text cut over four devices comes out as on one."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from model import kernels
from model.config import resolve
from model.errors import ModelError
from model.positions import REGISTRY
from model.transformer import Transformer
from tests.model.parameters import draw

BATCH, TIME, LAYERS = 2, 32, 7
NAMES = [
    n for n, e in REGISTRY.items() if not e.spec.wraps and not e.spec.task_ids and n != 'selective'
]
COMPOSITES = [
    'rope+t5',
    'alibi+kerple_log',
    'rope+fire',
    'forgetting+t5',
    'forgetting_fixed+windowed_heads',
    'ssmax+windowed_heads',
    'rerope+alibi',
]
GROUPS = [*(NAMES[i : i + LAYERS] for i in range(0, len(NAMES), LAYERS)), COMPOSITES]


def model_of(positions, **changes):
    from configs import base

    c = base.get_config().model
    c.update(
        width=32,
        num_heads=4,
        num_kv_heads=2,
        num_layers=len(positions.split(',')),
        positions=positions,
        **changes,
    )
    return Transformer(resolve(c, 50, TIME))


@pytest.mark.parametrize('names', GROUPS, ids=lambda names: names[0])
def test_a_text_cut_over_devices(names):
    """One layer of each encoding, packed documents, padding. Catches ids counted from the start of
    a part, keys of other parts unseen or seen too early, biases of all keys that are cut, a running
    sum that begins anew, and one of several biases that a ring drops."""
    model = model_of(','.join(names))
    rng = np.random.default_rng(0)
    column = np.arange(TIME)
    segments = np.stack([np.where(column < 13, 1, 2), np.where(column < 25, 1, 0)]).astype(np.int32)
    positions = np.where(segments == 2, column - 13, np.where(segments == 1, column, 0)).astype(
        np.int32
    )
    inputs = rng.integers(0, 50, (BATCH, TIME)).astype(np.int32), positions, segments
    params = draw(model)
    mesh = jax.make_mesh((4,), ('context',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def run(params, *inputs):
        return model.apply({'params': params}, *inputs)[0]

    cut = jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P(), *(P(None, 'context'),) * 3),
            out_specs=P(None, 'context'),
            check_vma=False,
        )
    )  # as in the train step
    seen = segments > 0
    np.testing.assert_allclose(
        np.asarray(cut(params, *inputs))[seen],
        np.asarray(jax.jit(run)(params, *inputs))[seen],
        atol=2e-4,
    )


def test_which_way_keys_cross():
    """Catches a ring for what needs all logits at once, keys gathered where a ring would do, and an
    encoding silently wrong."""

    def way(name, **changes):
        config = model_of(name, **changes).config
        return kernels.choose_context_path(config, config.encodings[0])[0]

    for name in ('rope', 'alibi', 't5', 'forgetting', 'chunk', 'rope+t5', 'forgetting+kerple_log'):
        assert way(name) == 'ring', name
    for name in ('cope', 'stick_breaking', 'path', 'rope_dynamic', 'rerope', 'alibi+cope'):
        assert way(name) == 'gather', name
    assert way('rope', context_attention='gather') == 'gather'
    for name in ('selective', 'rope+selective', 'selective+rope'):
        with pytest.raises(
            ModelError,
            match='config.mesh.context: .*selective attention.* adds up what earlier queries saw',
        ):
            way(name)
    with pytest.raises(
        ModelError,
        match="config.model.context_attention is 'ring': CoPE .* expected 'auto' or 'gather'",
    ):
        way('cope', context_attention='ring')
