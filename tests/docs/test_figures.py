"""Checks documents made from code, and figures that stand in several documents."""

import json
import pathlib
import re

import pytest

from docs.generate import places, results
from model.positions import PATTERNS, REGISTRY

DOCUMENTS = [
    *map(pathlib.Path, ('README.md', 'BUILD_NOTES.md', 'CONTRIBUTING.md')),
    *sorted(pathlib.Path('docs').rglob('*.md')),
]
FIGURES = [figure for figure in results.figures() if 'pattern' in figure]


def _stated(pattern: str) -> list[tuple[str, str]]:
    """Returns (document, what stands where the pattern's group is) of every match."""
    return [
        (str(path), match[1])
        for path in DOCUMENTS
        for match in re.finditer(pattern, path.read_text())
    ]


@pytest.mark.parametrize('figure', FIGURES, ids=lambda figure: figure['claim'][:30])
def test_figures_agree(figure):
    """Catches a document that states another figure than docs/figures.toml, or that none does."""
    stated = _stated(figure['pattern'])
    assert stated, 'no document states it: does the pattern still match?'
    assert {value for _, value in stated} == {figure['value']}, stated


def test_figures_are_those_of_the_code():
    """Catches a figure that was true of an older registry, table or log."""
    values = {figure['pattern']: figure['value'] for figure in FIGURES}
    encodings, mistakes, harmed = (values[figure['pattern']] for figure in FIGURES[:3])
    assert encodings == str(len(REGISTRY)) and len(PATTERNS) == 3
    table = pathlib.Path('tests/faults/BAD_INPUTS.md').read_text()
    assert f'\n{mistakes} cases.\n' in table
    log = pathlib.Path('tests/faults/results/faults.jsonl').read_text().splitlines()
    assert harmed == str(len(log)) and not any(json.loads(line)['wrong'] for line in log)


@pytest.mark.parametrize('made', [results, places], ids=['results', 'places'])
def test_pages_made_from_code(made):
    """Catches a page or picture that was not made again."""
    path, content = {
        results: lambda: (results.PAGE, results.page()),
        places: lambda: (places.PICTURE, places.draw()),
    }[made]()
    assert path.read_text() == content, f'run: python -m {made.__name__}'
