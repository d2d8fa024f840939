"""The contrastive objective against a direct computation: each text alone, each pair looked at in a
loop."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from model.config import resolve
from model.embed import POOLINGS, embed
from model.layers import Bag
from model.transformer import Transformer
from runtime.errors import RunError
from tests.train.rows import agree, config_of, draw, put_state, shapes_of, shardings_of
from train import contrastive, mesh as meshes, step as steps

B, G, T, Q, VOCAB = 8, 3, 8, 6, 64
LOSS = contrastive.ContrastiveLoss('mean', 0.1, (32,))


def batch_of(seed: int = 0, negatives: int = G - 1) -> dict:
    """Pairs among 20 texts, so that some are there twice: as another's negative, as the same
    positive, as a query that is a document too."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, VOCAB, rng.choice((4, Q))) for _ in range(20)]
    ids = rng.integers(0, 20, (B, 1 + G))
    ids[:2, 1] = ids[0, 1]  # one document answers two queries
    ids[3, 2], ids[4, 2] = (
        ids[0, 1],
        ids[4, 0],
    )  # a negative that is another's positive; one that is the query itself
    ids[5, 0] = ids[6, 0]  # one query with two documents
    ids[7, 3] = -1  # a negative that is absent
    ids[:, 2 + negatives :] = -1
    belong = {q: {*ids[ids[:, 0] == q, 1]} for q in ids[:, 0]}
    belong[ids[2, 0]].add(ids[4, 1])  # known from elsewhere in the data
    known = np.array([sorted(belong[q]) + [-1] * (4 - len(belong[q])) for q in ids[:, 0]])
    made = dict(
        queries=np.zeros((B, Q)),
        documents=np.zeros((B, G, T)),
        lengths=np.zeros((B, 1 + G)),
        text_ids=ids,
        known=known,
    )
    for i in range(B):
        for g, n in enumerate(ids[i]):
            if n >= 0:
                row = made['queries'][i] if g == 0 else made['documents'][i, g - 1]
                row[: len(texts[n])], made['lengths'][i, g] = texts[n], len(texts[n])
    return {k: v.astype(np.int32) for k, v in made.items()}


def by_hand(bag, tokens, hidden_mean):
    """`bag`: parameters. Without the marks at both ends."""
    weights = jnp.log(1 + (jnp.e - 1) * jnp.exp(10 * bag['weight'][tokens[1:-1]]))
    return weights @ bag['embedding'][tokens[1:-1]] / weights.sum() + bag[
        'gate'
    ] * hidden_mean / jnp.sqrt(len(hidden_mean))


def direct(model, params, batch, pooling, temperature, sizes):
    """The mean loss, with one forward pass a text, without padding, masks or arrays of pairs."""

    @functools.partial(jax.vmap, in_axes=(None, 0))
    def of_one_length(params, tokens):
        n = len(tokens)
        hidden, _ = model.apply(
            {'params': params},
            tokens[None],
            jnp.arange(n)[None],
            jnp.ones((1, n), jnp.int32),
            logits=False,
        )
        if pooling == 'bag+mean':
            return by_hand(params['bag'], tokens, hidden[0].mean(0))
        return {'mean': hidden[0].mean(0), 'last': hidden[0, -1]}[pooling]

    texts = [(i, g) for i in range(B) for g in range(1 + G) if batch['lengths'][i, g]]
    tokens = {
        (i, g): (batch['queries'][i] if g == 0 else batch['documents'][i, g - 1])[
            : batch['lengths'][i, g]
        ]
        for i, g in texts
    }
    texts.sort(key=lambda text: len(tokens[text]))
    vectors = []
    for _, alike in itertools.groupby(texts, key=lambda text: len(tokens[text])):
        vectors.append(of_one_length(params, np.stack([tokens[text] for text in alike])))
    vectors = jnp.concatenate(vectors)  # as `texts`
    ids, known, asked = (
        batch['text_ids'],
        batch['known'],
        [],
    )  # (a text, the one that belongs to it, the others)
    for i in range(B):
        found = {}
        for j in range(B):
            for g in range(1, 1 + G):
                n = ids[j, g]
                if n >= 0 and n != ids[i, 0] and n not in known[i]:
                    found.setdefault(n, (j, g))
        asked.append(((i, 0), (i, 1), found.values()))
        found = {}
        for j in range(B):
            if ids[i, 1] not in known[j] and ids[j, 0] != ids[i, 1]:
                found.setdefault(ids[j, 0], (j, 0))
        asked.append(((i, 1), (i, 0), found.values()))
    one, own = (np.array([texts.index(row[k]) for row in asked]) for k in (0, 1))
    seen = np.array(
        [[text == positive or text in others for text in texts] for _, positive, others in asked]
    )
    total = 0.0
    for size in sizes:
        short = vectors[:, :size]
        short /= jnp.sqrt(jnp.square(short).sum(1, keepdims=True))
        of_pair = short @ short.T / temperature
        total += (
            jax.nn.logsumexp(jnp.where(seen, of_pair[one], -jnp.inf), axis=1) - of_pair[one, own]
        ).sum()
    return total / (2 * B * len(sizes))


def small(**model):
    return config_of(num_layers=1, **model)


@functools.cache
def built(model: str, loss, accumulation: int, sizes: tuple):
    config = small(**json.loads(model))
    config.mesh.update(**{'data': 1, 'fsdp': 1, 'tensor': 1, 'context': 1, **dict(sizes)})
    mesh = meshes.make_mesh(config.mesh)
    model, optimizer = Transformer(resolve(config.model, VOCAB, T)), optax.sgd(1.0)
    shardings = shardings_of(model, optimizer, mesh)
    return (
        mesh,
        model,
        lambda params: put_state(optimizer, params, shardings),
        steps.make_step(model, optimizer, loss, mesh, shardings, steps.StepOptions(accumulation)),
    )


def first_step(batch, loss, accumulation=1, mesh={}, initial={}, **model):
    """As tests/train/rows.first_step: loss and gradient of the first step; what is compiled serves
    all batches. `initial`: parameters that are not drawn."""
    mesh, model, put, step = built(json.dumps(model), loss, accumulation, tuple(mesh.items()))
    before = draw(shapes_of(model)) | initial
    state, values = step(put(before), meshes.to_devices(mesh, batch, B))
    return (
        (float(values['loss']), jax.tree.map(np.subtract, before, jax.device_get(state['params']))),
        model,
        before,
    )


@pytest.mark.parametrize(
    'pooling, sizes, causal',
    [('mean', (32,), False), ('last', (8, 32), True), ('bag+mean', (16, 32), True)],
)
def test_loss_and_gradient_are_the_direct_ones(pooling, sizes, causal):
    """Catches negatives that are duplicates, known or absent, a text counted twice, padding in a
    pool, one direction only, sizes not normalised, and a gradient that stops at the gathering or at
    the chunks."""
    batch, loss = batch_of(), contrastive.ContrastiveLoss(pooling, 0.1, sizes)
    more = dict(causal=causal) | ({'bag': True} if 'bag' in pooling else {})
    found, model, params = first_step(batch, loss, **more)

    def of(params):
        return direct(model, params, batch, pooling, 0.1, sizes)

    expected = jax.jit(jax.value_and_grad(of))(params)
    agree(found, (float(expected[0]), jax.device_get(expected[1])))
    ways = [(2, {'data': 2, 'fsdp': 2, 'tensor': 2})]
    if pooling == 'mean':
        ways += [(4, {}), (1, {'data': 8})]
    for accumulation, mesh in ways:
        agree(first_step(batch, loss, accumulation, mesh, **more)[0], found)
    if 'bag' in pooling:
        assert abs(found[1]['bag']['gate']) > 1e-4
        assert np.count_nonzero(found[1]['bag']['weight']) > 20


def test_duplicates_are_no_negatives():
    """A control: ids that hide the duplicates change the loss, so that the comparison above does
    depend on them."""
    batch = batch_of()
    found = first_step(batch, LOSS, causal=False)[0][0]
    blind = {
        **batch,
        'text_ids': np.arange(B * (1 + G), dtype=np.int32).reshape(B, -1),
        'known': np.full((B, 4), -1, np.int32),
    }
    assert abs(first_step(blind, LOSS, causal=False)[0][0] - found) > 0.01


def test_order_does_not_matter():
    """Catches a loss that depends on where a pair stands in the batch. Twice the same text is
    embedded twice, and which of the two stands for it as a negative changes nothing beyond
    rounding."""
    batch, order = batch_of(), np.random.default_rng(1).permutation(B)
    agree(
        first_step({k: v[order] for k, v in batch.items()}, LOSS, causal=False)[0],
        first_step(batch, LOSS, causal=False)[0],
    )


@pytest.mark.parametrize('causal', [True, False])
def test_pooling_ignores_padding(causal):
    """Catches padding that is pooled, seen, or counted as a position, on either side."""
    model = Transformer(resolve(small(causal=causal, bag=True).model, VOCAB, T))
    tokens = np.random.default_rng(0).integers(1, VOCAB, (1, 5))
    params = draw(shapes_of(model))

    @jax.jit
    def vectors(tokens, valid):
        return {pooling: embed(model, params, tokens, valid, pooling) for pooling in POOLINGS}

    def padded(x, fill):
        return np.concatenate(
            [np.pad(x, ((0, 0), (left, 7 - left)), constant_values=fill) for left in (0, 4, 7)]
        )

    alone = vectors(tokens, np.ones((1, 5), bool))
    beside = vectors(padded(tokens, 9), padded(np.ones((1, 5), bool), False))
    for pooling, expected in alone.items():
        for vector in beside[pooling]:
            np.testing.assert_allclose(vector, expected[0], rtol=2e-5, atol=2e-6, err_msg=pooling)


def test_a_bag_is_of_the_tokens_between_the_marks():
    """Catches weights that are not looked at, marks that count, and a text of marks alone that is
    no number."""
    model = Transformer(resolve(small(bag=True).model, VOCAB, T))
    words = np.array([[1, 7, 9, 7, 2]])
    fresh = nn.meta.unbox(Bag(model.config).init(jax.random.key(0), words, words > 0))['params']
    table = np.asarray(fresh['embedding'], np.float64)

    def vector(bag, tokens=words):
        return embed(model, {'bag': bag}, tokens, np.ones(tokens.shape, bool), 'bag')[0]

    np.testing.assert_allclose(vector(fresh), (2 * table[7] + table[9]) / 3, rtol=1e-5)
    turned = {**fresh, 'weight': jnp.zeros(VOCAB).at[9].set(0.3).at[1].set(9.0)}
    np.testing.assert_allclose(
        vector(turned),
        by_hand({**turned, 'embedding': table, 'gate': 0.0}, words[0], table[0]),
        rtol=1e-5,
    )
    assert abs(vector(turned) - vector(fresh)).max() > 0.05 and not np.any(
        vector(turned, np.array([[1, 2]]))
    )


def test_a_learned_scale_is_learned():
    """Catches a scale outside the parameters, or without a gradient: with one, the first step is
    that of temperature 1/20 and moves it."""
    batch, token = batch_of(), jnp.ones((1, 1), jnp.int32)
    model = Transformer(resolve(small(logit_scale=True).model, VOCAB, T))

    @jax.jit
    def initial_scale(key):
        return model.init(key, token, token * 0, token, token)['params']['logit_scale']

    initial = {'logit_scale': jax.device_get(initial_scale(jax.random.key(0)))}
    found = first_step(
        batch, contrastive.ContrastiveLoss('mean', 7.0, (32,)), initial=initial, logit_scale=True
    )[0]
    fixed = first_step(batch, contrastive.ContrastiveLoss('mean', 0.05, (32,)))[0]
    assert found[0] == pytest.approx(fixed[0], rel=1e-6)
    assert initial['logit_scale'] == pytest.approx(np.log(20))
    assert abs(found[1].pop('logit_scale')) > 1e-4


def test_dropout_makes_two_of_one_text():
    """SimCSE: a text is its own positive, and dropout alone makes the two differ. Catches random
    keys shared between a query and its document."""
    batch = batch_of(negatives=0)
    batch['documents'][:, 0, :Q], batch['lengths'][:, 1], batch['text_ids'][:, 1] = (
        batch['queries'],
        batch['lengths'][:, 0],
        batch['text_ids'][:, 0],
    )
    batch['known'][:, 0] = batch['text_ids'][:, 0]
    loss = contrastive.ContrastiveLoss('mean', 0.05, (32,))
    with_dropout = first_step(batch, loss, dropout=0.1)[0][0]
    without = first_step(batch, loss)[0][0]
    assert with_dropout > 1.05 * without


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('pooling', 'men', "config.embedding.pooling is 'men': did you mean 'mean'"),
        ('temperature', 0.0, 'temperature is 0.0: expected more than 0'),
        ('pooling', 'bag+mean', 'expected config.model.bag=True'),
        ('sizes', '8,64', 'expected numbers from 1 to 32'),
        ('sizes', 'a', 'expected numbers from 1 to 32'),
    ],
)
def test_wrong_fields(field, value, message):
    """Catches a field that is not looked at before training."""
    config = small()
    config.embedding[field] = value
    with pytest.raises((RunError, ValueError), match='config.embedding') as error:
        contrastive.make_loss(config.embedding, resolve(config.model, VOCAB, T))
    assert message in str(error.value)
    with pytest.raises(
        RunError,
        match='config.model.bag is True: it has no effect with config.embedding.pooling=.mean',
    ):
        contrastive.make_loss(small().embedding, resolve(small(bag=True).model, VOCAB, T))
