"""The plan of what a run takes from its parent: nothing is dropped or made anew without a word."""

import jax
import pytest
from flax import linen as nn

from model import config as model_config
from model.transformer import Transformer
from runtime import checkpoint, models, transfer
from runtime.errors import RunError
from train import step
from train.mesh import make_mesh
from train.optimizer import make_optimizer


@pytest.fixture
def tree(tiny_config):
    """Fields of `model` -> its parameters as `describe` tells them, and the encodings of its
    layers."""

    def of(**fields):
        config = tiny_config.copy_and_resolve_references().model
        config.update(fields)
        shape = model_config.resolve(config, 64, 32)
        return checkpoint.describe(
            nn.meta.unbox(models.abstract_params(Transformer(shape)))
        ), shape.encodings

    return of


TABLES = {f'layer_{i}/attention/positions/table' for i in (0, 1)}


@pytest.mark.parametrize(
    'parent, child, new, dropped',
    [
        ('rope', 'none', set(), set()),
        ('rope+learned', 'none', set(), {'positions_learned/table'}),
        ('none', 'learned', {'positions_learned/table'}, set()),
        ('learned', 't5', {'positions_t5/table'}, {'positions_learned/table'}),
        ('rope', 'cope', TABLES, set()),
        ('rope+cope', 'xpos+cope', set(), set()),
        ('rope,cope', 'none', set(), {'layer_1/attention/positions/table'}),
        ('cope', 'cope_unscaled', TABLES, TABLES),
    ],
)
def test_a_change_of_encoding(tree, parent, child, new, dropped):
    """Catches a table that is kept, dropped or made anew against the plan."""
    (parent_arrays, old), (child_arrays, encodings) = tree(positions=parent), tree(positions=child)
    same = transfer.same_encoding(old, encodings)
    reused, fresh, gone = transfer.plan_transfer(parent_arrays, child_arrays, same)
    assert (set(fresh), set(gone)) == (new, dropped)
    assert set(reused) == set(child_arrays) - new and {*reused, *gone} == set(parent_arrays)


def test_a_bag_of_tokens(tree):
    """Catches a bag that a second phase of search begins anew, and one that the first is refused
    for."""
    (without, encodings), (with_bag, _) = tree(), tree(bag=True)
    bag = {f'bag/{name}' for name in ('embedding', 'gate', 'weight')}

    def changes(parent_arrays, child_arrays):
        same = transfer.same_encoding(encodings, encodings)
        _, fresh, dropped = transfer.plan_transfer(parent_arrays, child_arrays, same)
        return set(fresh), set(dropped)

    assert changes(with_bag, with_bag) == (set(), set())
    assert changes(without, with_bag) == (bag, set())
    assert changes(with_bag, without) == (set(), bag)


@pytest.mark.parametrize(
    'parent, child, wrong',
    [
        (dict(tied=False), {}, r'output/kernel is float32\[32,64\] there, absent here'),
        ({}, dict(tied=False), 'output/kernel is absent there'),
        (
            dict(num_layers=3),
            {},
            r'layer_2/attention/key/kernel is float32\[32,2,16\] there, absent here;.* and 5 more',
        ),
        ({}, dict(width=64), r'embedding is float32\[64,32\] there, float32\[64,64\] here'),
        (
            {},
            dict(param_dtype='bfloat16'),
            r'embedding is float32\[64,32\] there, bfloat16\[64,32\] here',
        ),
        (
            dict(positions='learned'),
            dict(positions='learned', max_len=64),
            r'positions_learned/table is float32\[32,32\] there, float32\[64,32\] here',
        ),
    ],
)
def test_all_else_is_an_error(tree, parent, child, wrong):
    """Catches an array of the parent that is dropped in silence, and one that is cast or cut to
    fit."""
    with pytest.raises(RunError, match=wrong) as error:
        transfer.plan_transfer(tree(**parent)[0], tree(**child)[0])
    assert '\n' not in str(error.value)


def test_names_are_few():
    """Catches a line for each of a hundred layers, and a name that is left out."""
    paths = [f'layer_{i}/attention/positions/bias' for i in range(100)]
    assert (
        checkpoint.summarize_paths([*paths, 'layer_3/x', 'y'])
        == 'layer_*/attention/positions/bias (100 times), layer_3/x, y'
    )
    assert checkpoint.summarize_paths(list('abcdef')) == 'a, b, c, d and 2 more'


def test_what_is_taken_over_is_not_drawn(tiny_config):
    """Catches draws that are compiled only to be replaced, and others that change with them."""
    tiny_config.model.num_layers = 1
    model = Transformer(model_config.resolve(tiny_config.model, 64, 32))
    optimizer = make_optimizer(tiny_config.optimizer, 10)
    given = frozenset({'embedding', 'layer_0/attention/query/kernel'})
    mesh = make_mesh(tiny_config.mesh)
    states = [step.init_state(model, optimizer, 7, mesh, given=names)[0] for names in ((), given)]
    whole, rest = (jax.tree_util.tree_leaves_with_path(state['params']) for state in states)
    for (keys, x), (_, y) in zip(whole, rest, strict=True):
        is_given = checkpoint.path(keys) in given
        assert not y.any() if is_given else (x == y).all(), checkpoint.path(keys)
