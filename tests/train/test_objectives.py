"""Objectives: nothing outside their two modules knows one by its name."""

import ast
import pathlib

import pytest

from data import objectives as data_objectives
from train import contrastive, losses, objectives

HOMES = {'data/objectives.py', 'train/objectives.py'}
ROOMS = ('apps', 'benchmarks', 'data', 'docs', 'evals', 'examples', 'launch', 'model')
ROOMS += ('runtime', 'studies', 'train')
NAMES = {*objectives.OBJECTIVES}
CLASSES = {
    *(type(half).__name__ for half in objectives.OBJECTIVES.values()),
    *(type(half).__name__ for half in data_objectives.OBJECTIVES.values()),
    'TokenLoss',
    'ContrastiveLoss',
}


def find_tests_for_names(code: str) -> list[str]:
    """Returns what in some code tells objectives apart by name or class."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            values = {n.value for side in sides for n in ast.walk(side) if _is_text(n)}
            if values & NAMES:
                found.append(ast.unparse(node))
        if isinstance(node, ast.match_case):
            if {n.value for n in ast.walk(node.pattern) if _is_text(n)} & NAMES:
                found.append(ast.unparse(node.pattern))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ('isinstance', 'issubclass'):
            if any(name in ast.unparse(node.args[1]) for name in CLASSES):
                found.append(ast.unparse(node))
        if isinstance(node, (ast.FunctionDef, ast.Attribute)):
            name = node.name if isinstance(node, ast.FunctionDef) else node.attr
            if name.startswith('is_') and any(word in name for word in ('contrastive', 'tokens')):
                found.append(name)
    return found


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_nothing_tests_for_the_name_of_an_objective():
    """Catches a condition that a third objective would meet wrongly in silence: what depends on the
    objective is asked of it."""
    paths = [path for room in ROOMS for path in pathlib.Path(room).rglob('*.py')]
    wrong = {
        str(path): find_tests_for_names(path.read_text())
        for path in paths
        if str(path) not in HOMES
    }
    assert not {path: found for path, found in wrong.items() if found}


@pytest.mark.parametrize(
    'code',
    [
        "x = c.train.objective == 'contrastive'",
        "if config['train']['objective'] != 'tokens': pass",
        "is_text = objective in ('tokens',)",
        "y = 1 if 'contrastive' == name else 2",
        'if isinstance(loss, contrastive.ContrastiveLoss): pass',
        'isinstance(objective, (NextToken, int))',
        'if objective.is_contrastive: pass',
        "match name:\n    case 'tokens':\n        pass",
    ],
)
def test_the_search_finds(code):
    """Catches a search that finds nothing."""
    assert find_tests_for_names(code)


def test_the_halves_belong_together():
    """Catches an objective that has only one half, or two halves of different ones."""
    assert [*objectives.OBJECTIVES] == [*data_objectives.OBJECTIVES]
    for name, objective in objectives.OBJECTIVES.items():
        other = data_objectives.get_objective(name)
        assert type(objective.data) is type(other)
        assert type(other).__name__ == type(objective).__name__


def test_an_unknown_objective_is_named_with_the_nearest():
    """Catches a name that is taken for another objective."""
    with pytest.raises(ValueError, match="did you mean 'contrastive'"):
        objectives.get_objective('contrastiv')
    with pytest.raises(ValueError, match="is 'tokenss': expected one of tokens, contrastive"):
        data_objectives.get_objective('tokenss')


def test_a_loss_says_whether_it_needs_the_whole_batch():
    """Catches a loss whose microbatches would each be compared with themselves alone."""
    assert not losses.TokenLoss.takes_whole_batch
    assert contrastive.ContrastiveLoss.takes_whole_batch
