"""Layers beside what they stand for, written out with numpy."""

import jax
import numpy as np
import pytest

from model.layers import multiply


@pytest.mark.parametrize('transposed', [False, True])
def test_a_product_and_its_gradients(transposed):
    """Catches a backward pass of a CPU's own that is not that of the product."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5)).astype(np.float32)
    w = rng.normal(size=(5, 7)).astype(np.float32)
    dy = rng.normal(size=(2, 3, 7)).astype(np.float32)
    stored = w.T if transposed else w

    y, gradients_of = jax.vjp(lambda x, w: multiply(x, w, (None, None), transposed), x, stored)
    dx, dw = gradients_of(dy)

    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, dy @ w.T, rtol=1e-5, atol=1e-5)
    expected_dw = np.einsum('btd,btf->df', x, dy)
    np.testing.assert_allclose(dw.T if transposed else dw, expected_dw, rtol=1e-5, atol=1e-5)

    # Several seeds of a study are one program: the same under vmap.
    mapped = jax.vmap(
        lambda x, w: jax.vjp(lambda x, w: multiply(x, w, (None, None), transposed), x, w)[1](dy)
    )
    many_dx, many_dw = mapped(np.stack([x, 2 * x]), np.stack([stored, stored]))
    np.testing.assert_allclose(many_dx[1], dx, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(many_dw[1], 2 * dw, rtol=1e-5, atol=1e-5)
