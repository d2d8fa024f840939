"""Figures of speed and loss."""

import math

import jax
import pytest
from flax import linen as nn

from model.config import resolve
from model.transformer import Transformer
from runtime import metrics, models


def test_utilisation_of_an_unknown_device_is_not_invented(monkeypatch):
    """Catches a peak made up for a device that is not in the table, and one device's peak taken for
    all."""
    assert metrics.mfu(1e12) is None
    monkeypatch.setitem(metrics.PEAKS, jax.devices()[0].device_kind, 1e12)
    assert metrics.mfu(4e12) == pytest.approx(4 / jax.device_count())


@pytest.mark.parametrize('tied', [True, False])
def test_flops_are_those_of_the_matmuls(tiny_config, tied):
    """Catches an embedding lookup counted as a matmul, and attention left out; compared with XLA's
    own count of a forward pass."""
    tiny_config.model.update(tied=tied, width=64)
    model = Transformer(resolve(tiny_config.model, 512, 64))
    params = models.abstract_params(model)
    params = nn.meta.unbox(params)
    tokens = jax.ShapeDtypeStruct((4, 64), 'int32')
    cost = (
        jax.jit(lambda p, t: model.apply({'params': p}, t, t, t)[0])
        .lower(params, tokens)
        .compile()
        .cost_analysis()
    )
    forward = metrics.flops_per_token(params, model.config, 64) / 3
    # XLA also counts the masked half of attention and everything elementwise.
    masked = 2 * model.config.num_layers * 64 * model.config.width
    assert forward + masked == pytest.approx(cost['flops'] / (4 * 64), rel=0.1)


def test_bits_per_byte():
    """Catches nats taken for bits."""
    assert metrics.bits_per_byte(math.log(2), 8, 1) == pytest.approx(8)
