"""A model that is asked before and after a post-training of adapters, and its controls."""

import json
import types

import pytest
from absl import flags

from runtime.errors import RunError
from runtime.run_dir import Run
from studies import countries

SETTINGS = dict(run='', out='', seeds=1, steps=2, rank=2, lr=1e-3, countries=6)


@pytest.fixture
def given(tiny_run, tmp_path, monkeypatch):
    """Returns the function that sets flags of the command; at first they are of a tiny study."""
    values = flags.FlagValues()
    for name, value in SETTINGS.items():
        kind = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
        kind[type(value)](name, value, '', flag_values=values)
    values(['countries', f'--run={tiny_run}', f'--out={tmp_path / "out"}'])
    monkeypatch.setattr(countries, 'flags', types.SimpleNamespace(FLAGS=values))
    return lambda name, value: setattr(values, name, value)


def test_a_model_is_asked_before_and_after(given, tmp_path, monkeypatch, capsys):
    """Catches a post-training on the countries that are asked about, or of more than adapters, a
    control with the same facts, answers that are asked for again, and those of other settings that
    pass for these."""
    countries.main()
    out = tmp_path / 'out'
    said = json.loads((out / 'answers.json').read_text())['said']
    asked = countries.questions()
    assert set(said) == {'before', 'after 1', "after, others' facts 1"}
    assert all(len(answers) == len(asked) for answers in said.values())
    page = (out / 'report' / 'index.html').read_text()
    assert f'of {len(asked)} questions' in page and 'most frequent' in page

    # What was trained, and on what.
    configs = {}
    for folder in sorted((out / 'runs').glob('after*')):
        config = configs[folder.name] = Run.parse(str(folder)).config()
        assert config.lora.rank == 2 and config.train.steps == 2
    assert [c.data.atlas.shuffle_facts for c in configs.values()] == [False, True]
    assert 'br' in {q['code'] for q in asked}

    # Started again it asks nothing; other settings are refused.
    monkeypatch.setattr(countries, 'ask', lambda *_: pytest.fail('asked again'))
    countries.main()
    given('steps', 3)
    with pytest.raises(RunError, match='is of --steps=2, here --steps=3: expected the same'):
        countries.main()
    given('run', '')
    with pytest.raises(RunError, match='--run is empty'):
        countries.main()
    assert capsys.readouterr().out.count('% of') == 3


def test_what_counts_as_right():
    """Catches an answer that is right but for its company, and one that is another country's."""
    question = dict(answer='Brasília')
    assert countries.is_right(question, 'A capital do Brasil é Brasília.')
    assert not countries.is_right(question, 'Rio de Janeiro')
    asked = [dict(answer='a', code='br', lang='pt', relation='capital')] * 2
    said = {'before': ['x a', 'b'], 'after 1': ['a', 'a'], 'after 2': ['a', 'b']}
    assert countries.shares(asked, said, exact=False) == {
        'before': [[50.0]],
        'after': [[100.0], [50.0]],
    }
    assert countries.shares(asked, said, exact=True)['before'] == [[0.0]]
