"""Post-training for search as whole small runs: what it takes over, how it goes on, what it
refuses, what it learns."""

import jax
import numpy as np
import pytest

from apps.search.reader import Reader
from model.embed import embed, normalize
from model.errors import ModelError
from model.generate import generate
from runtime import field_checks, models
from runtime.errors import RunError
from runtime.run_dir import Run
from tests.faults.lives import cut_back
from tests.train.test_run import lines, same
from train import loop, setup
from train.evaluate import evaluate


@pytest.fixture(scope='module')
def parent(tiny, cache, tmp_path_factory):
    path = tmp_path_factory.mktemp('parent') / 'base'
    config = tiny(cache)
    config.model.num_layers, config.eval.every = 1, 0
    loop.train(setup.build_experiment(config, str(path)))
    return str(path)


@pytest.fixture
def search_config(tiny_config, parent):
    """Questions about countries and their answers as pairs; attention both ways, a learned scale, a
    bag of tokens, dropout, cached chunks on two devices."""
    c = tiny_config
    c.parent = parent
    c.data.atlas.part, c.data.validation, c.data.pairs.query_len = 'answers', 0.2, 24
    c.model.update(num_layers=1, causal=False, logit_scale=True, bag=True, dropout=0.1)
    c.train.update(objective='contrastive', accumulation=2)
    c.embedding.update(pooling='bag+mean', sizes='8')
    c.mesh.data = 2
    return c


def test_it_goes_on_as_if_it_had_not_stopped(search_config, tmp_path):
    """Catches a scale or a bag that is not saved or not learned, an index that pools otherwise,
    random keys or pairs that restart, and a second phase that forgets its parent. Then a third
    phase leaves the scale and the bag behind, and writes text again."""

    def run(path):
        return loop.train(
            setup.build_experiment(search_config.copy_and_resolve_references(), str(path))
        )

    straight = run(tmp_path / 'straight')
    assert straight['validation_accuracy'] >= 0
    cut_back(tmp_path / 'straight', tmp_path / 'parts', 3)
    run(tmp_path / 'parts')
    assert lines(tmp_path / 'parts') == lines(tmp_path / 'straight')
    found, whole = (models.load(Run.parse(str(tmp_path / name))) for name in ('parts', 'straight'))
    assert same(found[1], whole[1]) and found[1]['logit_scale'] != np.float32(np.log(20))
    with pytest.raises(ModelError, match='embeds texts and writes none'):
        generate(*found[:2], [[1]], 1)
    moved = jax.tree.map(lambda x: float(np.abs(x).max()), found[1]['bag'])
    assert moved['weight'] > 1e-3 and abs(moved['gate'] - 0.1) > 1e-4
    reader, ids = Reader(Run.parse(str(tmp_path / 'parts')), '', 0), [[1, 7, 9, 2]]
    assert reader.made['pooling'] == 'bag+mean'
    compiled = jax.jit(embed, static_argnums=(0, 4))
    vectors = compiled(*found[:2], np.array(ids), np.ones((1, 4), bool), 'bag+mean')
    np.testing.assert_allclose(reader.embed(ids)[0], normalize(vectors)[0], atol=1e-5)
    search_config.model.update(causal=True, logit_scale=False, bag=False)
    search_config.update(parent=str(tmp_path / 'parts'))
    (
        search_config.train.objective,
        search_config.embedding.sizes,
        search_config.embedding.pooling,
    ) = 'tokens', '', 'mean'
    e = setup.build_experiment(search_config, str(tmp_path / 'writes'), conversations=True)
    assert set(found[1]) - set(e.state['params']) == {'logit_scale', 'bag'}
    assert same(
        {k: v for k, v in found[1].items() if k not in ('logit_scale', 'bag')}, e.state['params']
    )


def test_it_learns_what_belongs_together(search_config, tmp_path):
    """Catches an objective that does not reach the parameters, or vectors of something else than
    the text: the answer must be found among those held out far more often than by the parent. And
    held-out pairs that are compared with their neighbours in the store alone."""
    search_config.train.steps, search_config.model.dropout, search_config.data.pairs.query_len = (
        60,
        0.0,
        0,
    )  # whole questions: some begin alike
    search_config.embedding.pooling, search_config.model.bag = (
        'weighted',
        False,
    )  # those of a bag are new: more steps
    search_config.eval.every, search_config.checkpoint.every = 60, 60
    e = setup.build_experiment(search_config, str(tmp_path / 'search'))
    before = evaluate(e, e.state['params'])['validation_accuracy']
    held_out = next(iter(e.validation.once()))['text_ids'][:, 0].tolist()
    assert (
        held_out != sorted(held_out)
        and next(iter(e.validation.once()))['text_ids'][:, 0].tolist() == held_out
    )
    after = loop.train(e)['validation_accuracy']
    assert after > 0.3 and after > 2 * before


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'train.objective': 'contrastiv'},
            "config.train.objective is 'contrastiv': did you mean 'contrastive'",
        ),
        (
            {'train.objective': 'tokens'},
            'config.model.causal is False: the next token would be seen',
        ),
        ({'mesh.context': 2, 'mesh.data': 1}, 'config.mesh.context is 2: expected 1'),
        ({'sample.every': 2}, 'config.sample.every: a model that sees both ways'),
        ({'model.positions': 'alibi'}, 'ALiBi is defined for tokens that see those before them'),
        (
            {'embedding.sizes': '8,99'},
            "config.embedding.sizes is '8,99': expected numbers from 1 to 32",
        ),
        ({'data.pairs.kind': 'givn'}, "config.data.pairs.kind is 'givn'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    search_config, tmp_path, changes, message
):
    """Catches a wrong field that is found in the middle of a run, or not at all."""
    search_config.update_from_flattened_dict(changes)
    with pytest.raises((RunError, ModelError, ValueError)) as error:
        setup.build_experiment(search_config, str(tmp_path / 'search'))
    assert message in str(error.value) and not (tmp_path / 'search').exists()


def test_fields_of_another_objective_have_no_effect():
    """Catches a field that is accepted and not looked at."""
    from configs import base

    c = base.get_config()
    assert field_checks.lacking(c, 'embedding.pooling') == "config.train.objective='contrastive'"
    assert field_checks.lacking(c, 'data.pairs.kind') == "config.train.objective='contrastive'"
    c.train.objective = 'contrastive'
    assert field_checks.lacking(c, 'data.packing') == "config.train.objective='tokens'"
    c.model.logit_scale = True
    assert (
        field_checks.lacking(c, 'embedding.temperature')
        == 'no config.model.logit_scale, which learns it'
    )
    assert not field_checks.lacking(c, 'embedding.pooling')
