"""The examples run as they stand: `python -m pytest -m slow`."""

import json
import os
import pathlib
import subprocess

import pytest

pytestmark = pytest.mark.slow
EXAMPLES = pathlib.Path('examples').resolve()


@pytest.mark.parametrize('name', sorted(path.name for path in EXAMPLES.glob('*.ipynb')))
def test_notebooks(name, tmp_path, monkeypatch):
    """Catches a notebook whose code the house has outgrown, and one that was kept with outputs."""
    nbclient = pytest.importorskip('nbclient', reason='the extra `examples` is not installed')
    nbformat = pytest.importorskip('nbformat', reason='the extra `examples` is not installed')
    kept = json.loads((EXAMPLES / name).read_text())
    assert not any(cell.get('outputs') for cell in kept['cells']), 'clear the outputs'

    monkeypatch.setenv('XLA_FLAGS', '')  # one device, as a person has it
    monkeypatch.setenv('EXAMPLE_STEPS', '60')
    monkeypatch.setenv('EXAMPLE_RUN', str(tmp_path / 'run'))
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={'metadata': {'path': '.'}})
    client.execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get('outputs', [])
        if 'image/png' in output.get('data', {})
    ]
    assert len(pictures) == 1


def test_the_life_of_a_model(tmp_path):
    """Catches a step of the script that fails, or a model that does not end up answering."""
    small = [
        '--config.train.steps=60',
        '--config.optimizer.warmup=20',
        '--config.data.atlas.countries=20',
        '--config.eval.every=0',
    ]
    done = subprocess.run(
        ['sh', EXAMPLES / 'life_of_a_model.sh', tmp_path / 'life', *small],
        capture_output=True,
        text=True,
        env={**os.environ, 'XLA_FLAGS': ''},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'life' / 'answers' / 'lineage.json').is_file()
    assert 'docs/runs.md' in done.stdout or 'runs.md' in done.stdout
