"""The contrastive objective against a direct computation: each text alone, each pair looked at in a loop."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model.config import resolve
from model.embed import POOLINGS, embed
from model.transformer import Transformer
from tests.train.rows import agree, config_of
from train import contrastive, mesh as meshes, step as steps
from train.errors import RunError

B, G, T, Q, VOCAB = 8, 3, 8, 6, 64


def batch_of(seed: int = 0, negatives: int = G - 1) -> dict:
    """Pairs among 20 texts, so that some are there twice: as another's negative, as the same positive, as a query that is a document too."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, VOCAB, rng.integers(3, Q + 1)) for _ in range(20)]
    ids = rng.integers(0, 20, (B, 1 + G))
    ids[:2, 1] = ids[0, 1]                       # one document answers two queries
    ids[3, 2], ids[4, 2] = ids[0, 1], ids[4, 0]  # a negative that is another's positive; one that is the query itself
    ids[5, 0] = ids[6, 0]                        # one query with two documents
    ids[7, 3] = -1                               # a negative that is absent
    ids[:, 2 + negatives:] = -1
    belong = {q: {*ids[ids[:, 0] == q, 1]} for q in ids[:, 0]}
    belong[ids[2, 0]].add(ids[4, 1])             # known from elsewhere in the data
    known = np.array([sorted(belong[q]) + [-1] * (4 - len(belong[q])) for q in ids[:, 0]])
    made = dict(queries=np.zeros((B, Q)), documents=np.zeros((B, G, T)), lengths=np.zeros((B, 1 + G)), text_ids=ids, known=known)
    for i in range(B):
        for g, n in enumerate(ids[i]):
            if n >= 0:
                row = made['queries'][i] if g == 0 else made['documents'][i, g - 1]
                row[:len(texts[n])], made['lengths'][i, g] = texts[n], len(texts[n])
    return {k: v.astype(np.int32) for k, v in made.items()}


def direct(model, params, batch, pooling, temperature, sizes):
    """The mean loss, with one forward pass a text, without padding, masks or arrays of pairs."""
    @jax.jit
    def vector(params, tokens):
        n = len(tokens)
        hidden, _ = model.apply({'params': params}, tokens[None], jnp.arange(n)[None], jnp.ones((1, n), jnp.int32), logits=False)
        return {'mean': hidden[0].mean(0), 'last': hidden[0, -1],
                'weighted': sum((k + 1) * hidden[0, k] for k in range(n)) / (n * (n + 1) / 2)}[pooling]

    texts = [(i, g) for i in range(B) for g in range(1 + G) if batch['lengths'][i, g]]
    vectors = [vector(params, (batch['queries'][i] if g == 0 else batch['documents'][i, g - 1])[:batch['lengths'][i, g]]) for i, g in texts]
    ids, known, total = batch['text_ids'], batch['known'], 0.0
    for size in sizes:
        short = jnp.stack([v[:size] / jnp.sqrt(v[:size] @ v[:size]) for v in vectors])
        of_pair = short @ short.T / temperature
        similarities = lambda a, others: of_pair[texts.index(a), np.array([texts.index(b) for b in others])]
        for i in range(B):
            own, found = (i, 1), {}
            for j in range(B):
                for g in range(1, 1 + G):
                    n = ids[j, g]
                    if n >= 0 and n != ids[i, 0] and n not in known[i]:
                        found.setdefault(n, (j, g))
            logits = similarities((i, 0), (own, *found.values()))
            total += jax.nn.logsumexp(logits) - logits[0]
            found = {}
            for j in range(B):
                if ids[i, 1] not in known[j] and ids[j, 0] != ids[i, 1]:
                    found.setdefault(ids[j, 0], (j, 0))
            logits = similarities(own, ((i, 0), *found.values()))
            total += jax.nn.logsumexp(logits) - logits[0]
    return total / (2 * B * len(sizes))


def small(**model):
    config = config_of(**model)
    config.model.num_layers = 1
    return config


def first_step(config, batch, loss, accumulation=1, **sizes):
    """As tests/train/rows.first_step: loss and gradient of the first step."""
    config.mesh.update(**{'data': 1, 'fsdp': 1, 'tensor': 1, 'context': 1, **sizes})
    mesh = meshes.make_mesh(config.mesh)
    model, optimizer = Transformer(resolve(config.model, VOCAB, T)), optax.sgd(1.0)
    state, shardings = steps.init_state(model, optimizer, 0, mesh)
    before = jax.device_get(state['params'])
    step = steps.make_step(model, optimizer, loss, mesh, shardings, accumulation)
    state, values = step(state, meshes.to_devices(mesh, batch, B))
    return (float(values['loss']), jax.tree.map(np.subtract, before, jax.device_get(state['params']))), model, before


@pytest.mark.parametrize('pooling, sizes, causal', [('mean', (32,), False), ('last', (8, 32), True), ('weighted', (16, 32), True)])
def test_loss_and_gradient_are_the_direct_ones(pooling, sizes, causal):
    """Catches negatives that are duplicates, known or absent, a text counted twice, padding in a pool, one direction only, sizes not
    normalised, and a gradient that stops at the gathering or at the chunks."""
    config, batch, loss = small(causal=causal), batch_of(), contrastive.Contrastive(pooling, 0.1, sizes)
    found, model, params = first_step(config, batch, loss)
    of = lambda params: direct(model, params, batch, pooling, 0.1, sizes)
    expected = jax.value_and_grad(of)(params)
    agree(found, (float(expected[0]), jax.device_get(expected[1])))
    for accumulation, mesh in ((4, {}), (1, {'data': 8}), (2, {'data': 2, 'fsdp': 2, 'tensor': 2}))[::1 if pooling == 'mean' else 2]:
        agree(first_step(config, batch, loss, accumulation, **mesh)[0], found)


def test_duplicates_are_no_negatives():
    """A control: ids that hide the duplicates change the loss, so that the comparison above does depend on them."""
    config, batch, loss = small(), batch_of(), contrastive.Contrastive('mean', 0.1, (32,))
    found = first_step(config, batch, loss)[0][0]
    blind = {**batch, 'text_ids': np.arange(B * (1 + G), dtype=np.int32).reshape(B, -1), 'known': np.full((B, 4), -1, np.int32)}
    assert abs(first_step(config, blind, loss)[0][0] - found) > 0.01


def test_order_does_not_matter():
    """Catches a loss that depends on where a pair stands in the batch. Twice the same text is embedded twice, and which of the two stands for
    it as a negative changes nothing beyond rounding."""
    config, batch, loss = small(), batch_of(), contrastive.Contrastive('mean', 0.1, (32,))
    order = np.random.default_rng(1).permutation(B)
    agree(first_step(config, {k: v[order] for k, v in batch.items()}, loss)[0], first_step(config, batch, loss)[0])


@pytest.mark.parametrize('pooling', POOLINGS)
@pytest.mark.parametrize('causal', [True, False])
def test_pooling_ignores_padding(pooling, causal):
    """Catches padding that is pooled, seen, or counted as a position, on either side."""
    model = Transformer(resolve(small(causal=causal).model, VOCAB, T))
    tokens = np.random.default_rng(0).integers(1, VOCAB, (1, 5))
    ones = jnp.ones((1, 1), jnp.int32)
    params = model.init(jax.random.key(0), ones, ones * 0, ones, ones)['params']
    alone = embed(model, params, tokens, np.ones((1, 5), bool), pooling)
    for left in (0, 4, 7):
        padded = np.pad(tokens, ((0, 0), (left, 7 - left)), constant_values=9)
        valid = np.pad(np.ones((1, 5), bool), ((0, 0), (left, 7 - left)))
        np.testing.assert_allclose(embed(model, params, padded, valid, pooling), alone, rtol=2e-5, atol=2e-6)


def test_a_learned_scale_is_learned():
    """Catches a scale outside the parameters, or without a gradient: with one, the first step is that of temperature 1/20 and moves it."""
    config, batch = small(logit_scale=True), batch_of()
    found, _, params = first_step(config, batch, contrastive.Contrastive('mean', 7.0, (32,)))
    fixed = first_step(small(), batch, contrastive.Contrastive('mean', 0.05, (32,)))[0]
    assert found[0] == pytest.approx(fixed[0], rel=1e-6)
    assert params['logit_scale'] == pytest.approx(np.log(20)) and abs(found[1].pop('logit_scale')) > 1e-4


def test_dropout_makes_two_of_one_text():
    """SimCSE: a text is its own positive, and dropout alone makes the two differ. Catches random keys shared between a query and its document."""
    config, batch = small(dropout=0.1), batch_of(negatives=0)
    batch['documents'][:, 0, :Q], batch['lengths'][:, 1], batch['text_ids'][:, 1] = batch['queries'], batch['lengths'][:, 0], batch['text_ids'][:, 0]
    batch['known'][:, 0] = batch['text_ids'][:, 0]
    with_dropout = first_step(config, batch, contrastive.Contrastive('mean', 0.05, (32,)))[0][0]
    without = first_step(small(), batch, contrastive.Contrastive('mean', 0.05, (32,)))[0][0]
    assert with_dropout > 1.05 * without


@pytest.mark.parametrize('field, value, message', [
    ('pooling', 'men', "config.embedding.pooling is 'men': did you mean 'mean'"), ('temperature', 0.0, 'temperature is 0.0: expected more than 0'),
    ('sizes', '8,64', 'expected numbers from 1 to 32'), ('sizes', 'a', 'expected numbers from 1 to 32')])
def test_wrong_fields(field, value, message):
    """Catches a field that is not looked at before training."""
    config = small()
    config.embedding[field] = value
    with pytest.raises((RunError, ValueError), match='config.embedding') as error:
        contrastive.make(config.embedding, 32)
    assert message in str(error.value)
