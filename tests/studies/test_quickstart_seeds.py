"""Ten seeds of the quickstart: what is kept of them, and what the README promises."""

import json
import pathlib

import pytest

from studies import quickstart, quickstart_seeds

KEPT = pathlib.Path('studies/results/quickstart/seeds.jsonl')


def line(seed=0, share=1.0, brazilian='real', **others):
    right = dict(zip(quickstart.ASK, ('Brasília', f'Brazilian {brazilian}')))
    shares = {'all': share, 'pt': share, 'en': share}
    return {
        'seed': seed,
        'config': quickstart_seeds.hash_configs(),
        'accuracy': {'answers': shares},
        'examples': right,
        'minutes': 6.0,
        'peak_megabytes': 2000,
        **others,
    }


def test_a_promise_that_is_broken_is_told():
    """Catches a seed that answers too little, or an example wrong, and passes."""
    shortfalls = quickstart_seeds.find_shortfalls
    assert shortfalls([line(), line(1, share=0.98)]) == []
    assert shortfalls([line(3, share=0.97)]) == ['seed 3: 97.0% right of all, below 98%']
    low = line(4)
    low['accuracy']['answers'] = {'all': 0.98, 'pt': 0.95, 'en': 1.0}
    assert shortfalls([low]) == ['seed 4: 95.0% right of pt, below 96%']
    assert shortfalls([line(5, brazilian='euro')]) == [
        "seed 5: What is the currency of Brazil? gets 'Brazilian euro', not 'Brazilian real'"
    ]


def test_lines_of_other_configs_do_not_count(tmp_path, monkeypatch):
    """Catches results of a config that has changed since, taken for those of today's."""
    results = tmp_path / 'seeds.jsonl'
    assert quickstart_seeds.read_lines(results) == []
    results.write_text(json.dumps(line(1)) + '\n' + json.dumps(line(2, config='before')) + '\n')
    assert [kept['seed'] for kept in quickstart_seeds.read_lines(results)] == [1]

    changed = quickstart.configs(0, False)
    changed[0].optimizer.lr *= 2
    monkeypatch.setattr(quickstart_seeds.quickstart, 'configs', lambda *_: changed)
    assert quickstart_seeds.read_lines(results) == []


def test_half_of_the_seeds_round_as_other_machines_do():
    """Catches ten seeds that all round alike."""
    flags = [quickstart_seeds.get_xla_flags(seed) for seed in range(10)]
    assert flags.count('') == flags.count('--xla_cpu_max_isa=AVX2') == 5


def test_the_table_names_the_worst():
    """Catches a worst seed that is hidden by a mean."""
    table = quickstart_seeds.format_table([line(0), line(1, share=0.98)])
    worst, mean = table.splitlines()[-2:]
    assert worst.split() == ['worst', '98.0', '98.0', '98.0']
    assert mean.split() == ['mean', '99.0', '99.0', '99.0']


@pytest.mark.skipif(not KEPT.exists(), reason='no seeds are kept')
def test_the_kept_seeds_hold_what_is_promised():
    """Catches a quickstart that was changed without running its ten seeds again."""
    lines = quickstart_seeds.read_lines(KEPT)
    assert sorted(kept['seed'] for kept in lines) == list(range(10))
    assert quickstart_seeds.find_shortfalls(lines) == []
