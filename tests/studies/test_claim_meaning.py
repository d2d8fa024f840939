"""What vectors hold: measures on vectors whose meaning is known, and the finding of the claim."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import base
from configs.claims import meaning as config_file
from evals.hidden import hidden_states
from model.config import resolve
from model.transformer import Transformer
from studies.claims import meaning

RNG = np.random.default_rng(0)


def test_separation_of_known_clusters():
    """Catches a thing that is its own neighbour, a label of two that counts, distances the wrong
    way round, and a chance that is not that of permuted labels."""
    labels = ['a'] * 10 + ['b'] * 10 + ['lonely'] * 2
    centres = dict(a=[9.0, 0, 0], b=[0, 9.0, 0], lonely=[0, 0, 9.0])
    vectors = np.array([centres[x] for x in labels]) + 0.1 * RNG.normal(size=(22, 3))
    found = meaning.separation(meaning.cosine_distances(vectors), labels)
    assert found['count'] == 20 and found['nearest'] == 1 and found['silhouette'] > 0.9
    assert 0.35 < found['chance'] < 0.6

    noise = RNG.normal(size=(22, 3))
    found = meaning.separation(meaning.cosine_distances(noise), labels)
    assert found['nearest'] < 0.9 and abs(found['silhouette']) < 0.2


def test_an_offset_is_followed():
    """Catches an offset with the wrong sign, one that the pair itself enters, and a chance that is
    not low."""
    countries = RNG.normal(size=(30, 8))
    capitals = countries + RNG.normal(size=8) + 0.05 * RNG.normal(size=(30, 8))
    found = meaning.follow_offset(capitals, countries)
    assert found['nearest'] == 1 and found['chance'] < 0.2
    assert meaning.follow_offset(RNG.normal(size=(30, 8)), countries)['nearest'] < 0.3


@pytest.mark.parametrize('scanned', [False, True])
def test_hidden_states_are_those_of_the_forward_pass(scanned):
    """Catches the state of another token, of padding, of another layer, or of layers out of
    order."""
    c = base.get_config().model
    c.update(width=16, num_layers=3, num_heads=2, num_kv_heads=2, scan_layers=scanned)
    model = Transformer(resolve(c, 40, 12))
    one = jnp.ones((1, 1), jnp.int32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), one, one * 0, one)['params'])
    rows = [[1, 5, 9, 2], [1, 7], [1, 3, 3, 8, 30, 4]]
    places = [3, 1, 2]
    states = hidden_states(model, params, rows, places)
    assert states.shape == (3, 3, 16)
    tokens = np.array([row + [0] * (6 - len(row)) for row in rows], np.int32)
    positions = np.tile(np.arange(6, dtype=np.int32), (3, 1))
    apply = jax.jit(functools.partial(model.apply, logits=False))
    last, _ = apply({'params': params}, tokens, positions, (tokens > 0).astype(np.int32))
    norm = states[-1] / np.sqrt(np.mean(states[-1] ** 2, axis=-1, keepdims=True) + 1e-6)
    wanted = np.asarray(last)[range(3), places]
    np.testing.assert_allclose(norm * params['final_norm']['scale'], wanted, atol=1e-4)


def record(arm, seed, trained, first, frequency):
    def layers(share):
        labels = {x: dict(nearest=share, chance=0.2, silhouette=0.0) for x in meaning.LABELS}
        return {'layers': [{**labels, 'capital': dict(nearest=0.5, chance=0.1)}] * 2}

    growth = {'0': layers(first), '2400': layers(trained)}
    return dict(arm=arm, seed=seed, growth=growth, frequency={'continent': dict(nearest=frequency)})


@pytest.mark.parametrize(
    'trained, first, permuted, frequency, shown',
    [
        (0.9, 0.4, 0.4, 0.3, True),
        (0.9, 0.9, 0.4, 0.3, False),
        (0.9, 0.4, 0.9, 0.3, False),
        (0.9, 0.4, 0.4, 0.95, False),
    ],
)
def test_the_controls_can_fail(trained, first, permuted, frequency, shown):
    """Catches a claim called shown though the untrained model, permuted facts or frequency alone do
    as much."""
    config = config_file.get_config()
    records = []
    for seed in range(1, 6):
        more = 0.01 * seed
        records.append(record(meaning.ATLAS, seed, trained + more, first + more, frequency))
        records.append(record(meaning.SHUFFLED, seed, permuted + more, first, frequency))
    finding = meaning.find(config, records)
    assert finding.shown == shown and f'Of {100 * trained + 3:.1f} %' in finding.sentence
