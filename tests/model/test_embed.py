"""Texts of many lengths, embedded in few shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from model import embed
from model.config import resolve
from model.transformer import Transformer

VOCAB = 19
LONGEST = 64


def test_lengths_are_few_and_long_enough():
    """Catches a text that is cut, and a length for each text."""
    lengths = [embed._columns(length) for length in range(1, 1025)]
    assert sorted(set(lengths)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert all(length <= columns for length, columns in enumerate(lengths, 1))
    # Of what is computed at most half is padding, but for the shortest.
    assert all(columns < 1.5 * max(length, 16) for length, columns in enumerate(lengths, 1))


def test_company_does_not_change_a_vector(monkeypatch):
    """Catches texts that are mixed up, lost where a pass is full, or that see their padding."""
    c = base.get_config().model
    c.update(width=16, num_layers=1, num_heads=2, num_kv_heads=1, mlp_width=16, max_len=LONGEST)
    model = Transformer(resolve(c, VOCAB, LONGEST))
    one = jnp.ones((1, 2), jnp.int32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), one, one * 0, one)['params'])
    embedder = embed.Embedder(model, params)

    monkeypatch.setattr(embed, '_TOKENS_A_PASS', 4 * 16)  # four of the shortest, two of the longer
    rng = np.random.default_rng(0)
    texts = [list(rng.integers(1, VOCAB, n)) for n in (20, 3, 16, 9, 24, 1, 12, 17)]
    together = embedder(texts)
    alone = np.concatenate([embedder([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(embedder(texts[::-1]), together[::-1], atol=1e-5)
    gaps = [np.abs(a - b).max() for i, a in enumerate(alone) for b in alone[:i]]
    assert min(gaps) > 1e-2  # the control: texts mixed up would be seen
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)
