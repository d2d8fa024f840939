"""A study from its config to its report: cells, resuming, fairness, and the report's figures
against the raw lines."""

import copy
import json
import shutil

import numpy as np
import pytest

from configs.ablations import base
from model.errors import ModelError
from runtime.errors import RunError
from studies import ablate, cells, comparison, report, tables
from studies.records import StudyRecords, read_records, select_records
from tests.studies.small_study import made, small, small_with_sweep


@pytest.fixture
def study(study_folder, tmp_path):
    """(config, folder, summary) of a study with a sweep and a claim; the folder is a copy."""
    config = small_with_sweep()
    folder = shutil.copytree(study_folder, tmp_path / 'study')
    rates, records = select_records(config, read_records(folder))
    return config, folder, comparison.summarise(config, cells.arms(config), rates, records.compared)


def test_exactly_the_changed_cells_run_again(study, tmp_path, monkeypatch):
    """Catches lines of an encoding that begins otherwise now which count as done, lines of another
    that are measured anew, old lines that are lost or that the report is silent about, and a plan
    that counts them."""
    config, folder, _ = study
    wanted = [c for c in cells.sweep_cells(config)]
    for cell in read_records(folder):
        wanted.append(cells.Cell(*(cell[f] for f in ('arm', 'task', 'seed', 'lr'))))
    with monkeypatch.context() as before:
        before.setattr(cells, 'resolve_pattern', lambda *_, **__: [])
        old = {cells.key(config, cell): cell for cell in wanted}
    lines = [
        record | {'key': key} | ({'commit': 'b09c89d'} if record['arm'] == 't5' else {})
        for record in read_records(folder)
        for key, cell in old.items()
        if all(record[f] == getattr(cell, f) for f in ('arm', 'task', 'seed', 'lr'))
    ]
    again = tmp_path / 'again'
    again.mkdir()
    (again / 'cells.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
    assert len(lines) == 8 and '4 records there' in ablate.plan(config, lines, 1)
    measured = []

    def stand_in(config, group):
        measured.extend(group)
        keys = {cells.key(config, cell) for cell in group}
        return [r for r in read_records(folder) if r['key'] in keys]

    monkeypatch.setattr(cells, 'measure', stand_in)
    ablate.run(config, again, workers=0)
    assert len(measured) == 4 and {cell.arm for cell in measured} == {'t5'}
    now = read_records(again)
    assert len(now) == 12 and {*old} <= {r['key'] for r in now}
    assert '8 records there' in ablate.plan(config, now, 1)
    told = (again / 'report' / 'report.md').read_text()
    assert '| t5 | copy_same | 2 | b09c89d | ' in told and '| rope | copy_same | 2 |' not in told


def test_every_cell_has_a_line(study):
    """Catches cells left out, a learning rate that is not the sweep's best, and a sweep that looks
    at longer lengths."""
    config, folder, summary = study
    records = read_records(folder)
    assert len(records) == 4 + 4 and {r['seed'] for r in records} == {0, 1, 2}
    for arm in ('rope', 't5'):
        swept = {
            r['lr']: r['validation_nats'] for r in records if r['arm'] == arm and r['seed'] == 0
        }
        best = min(swept, key=swept.get)
        assert summary['rates'][arm] == {'copy_same': best} and {
            r['lr'] for r in records if r['arm'] == arm and r['seed']
        } == {best}
    inside = [v['nats'] for n, v in records[0]['by_length'].items() if int(n) <= 4]
    assert records[0]['validation_nats'] == pytest.approx(np.mean(inside))
    assert records[0]['beyond'] == pytest.approx(
        np.mean([records[0]['by_length'][n]['exact'] for n in ('6', '8')])
    )


def test_encodings_are_paired(study):
    """Catches initial parameters or data that differ between encodings of a seed, and seeds that
    share them; an unfair record is refused by name."""
    config, folder, _ = study
    records = [r for r in read_records(folder) if r['seed']]
    initial = {(r['arm'], r['seed']): (r['initial'], r['data']) for r in records}
    assert initial['rope', 1] == initial['t5', 1] and initial['rope', 2] == initial['t5', 2]
    assert (
        initial['rope', 1][0] != initial['rope', 2][0]
        and initial['rope', 1][1] != initial['rope', 2][1]
    )
    assert {r['arm']: r['added'] for r in records} == {'rope': 0, 't5': 64}
    wrong = copy.deepcopy(records)
    wrong[0]['initial'] = 'other'
    with pytest.raises(RunError, match='not a fair comparison: initial of copy_same'):
        comparison.check_fair(wrong)


def test_a_killed_study_goes_on(study, monkeypatch):
    """Catches cells that are run again, and a half-written line that stops the study or hides the
    cell."""
    config, folder, summary = study
    lines = (folder / 'cells.jsonl').read_text().splitlines()
    (folder / 'cells.jsonl').write_text('\n'.join(lines[:-1]) + '\n' + lines[-1][:50] + '\n')
    ran, measure = [], cells.measure
    monkeypatch.setattr(
        cells, 'measure', lambda config, group: ran.extend(group) or measure(config, group)
    )
    again = ablate.run(config, folder, workers=0)
    assert len(ran) == 1 and ran[0].label.startswith(json.loads(lines[-1])['arm'])
    assert again['tasks'] == summary['tasks'] and again['claims'] == summary['claims']


def test_seeds_in_one_program(study, tmp_path, monkeypatch):
    """Catches seeds that share parameters, data or what is drawn, groups of cells that do not
    belong together, and records that are not those of cells trained alone."""
    config, folder, _ = study
    wanted = [*cells.sweep_cells(config), *cells.study_cells(config, _rates(config, folder))]
    groups = cells.together(wanted, 2)
    assert sorted(map(len, groups)) == [1] * 4 + [2] * 2 and all(
        len({(c.arm, c.task, c.lr) for c in group}) == 1 for group in groups
    )

    # Of one arm, whose learning rate is chosen already: all that is left is one program.
    config.arms = dict(t5=config.arms.t5)
    config.claims = ()
    alone = {r['key']: r for r in read_records(folder) if r['arm'] == 't5'}
    lines = [json.dumps(r) + '\n' for r in alone.values() if r['seed'] == cells.SWEEP_SEED]
    again = tmp_path / 'again'
    again.mkdir()
    (again / 'cells.jsonl').write_text(''.join(lines))
    groups, measure = [], cells.measure
    monkeypatch.setattr(
        cells, 'measure', lambda config, group: groups.append(group) or measure(config, group)
    )
    monkeypatch.setattr(report, 'write', lambda *_: None)
    ablate.run(config, again, workers=0, together=2)
    assert [len(group) for group in groups] == [2]
    found = {r['key']: r for r in read_records(again)}
    assert alone.keys() == found.keys()
    assert sorted(r['together'] for r in found.values()) == [1, 1, 2, 2]
    for name, record in found.items():
        for field in ('arm', 'seed', 'initial', 'data', 'parameters'):
            assert record[field] == alone[name][field]
        assert record['curve'] == pytest.approx(alone[name]['curve'], abs=2e-4)
        assert record['validation_nats'] == pytest.approx(alone[name]['validation_nats'], rel=1e-4)


def _rates(config, folder):
    return cells.chosen_rates(config, read_records(folder))


def test_the_report_is_the_lines(study):
    """Catches figures that are not those of the records, a report that needs other files, and a
    missing claim."""
    config, folder, summary = study
    text, page = (
        (folder / 'report' / 'report.md').read_text(),
        (folder / 'report' / 'index.html').read_text(),
    )
    scores = [r['beyond'] for r in read_records(folder) if r['arm'] == 't5' and r['seed']]
    assert summary['tasks']['copy_same']['t5']['mean'] == pytest.approx(np.mean(scores))
    assert '| rope above t5 | **undecided** | rope - t5 |' in text and '| t5 | 64 |' in text
    assert (
        page.count('<svg') == 5
        and 'src=' not in page
        and 'href="http' not in page
        and 'rope above t5' in page
    )


def test_untrained_cells_are_not_ranked(study):
    """Catches a cell ranked though it never learned its task, and differences of no pairs shown as
    figures."""
    config, folder, _ = study
    strict = small()
    strict.trained, strict.claims = 1.01, config.claims
    records = [r for r in read_records(folder) if r['seed']]
    found = comparison.summarise(
        strict, cells.arms(strict), {'rope': {'copy_same': 1}, 't5': {'copy_same': 1}}, records
    )
    assert (
        found['ranked']['arms'] == []
        and 'mean' not in found['ranked']
        and len(found['untrained']['rope']) == 2
    )
    text = tables.markdown(strict, found, StudyRecords(records, []), '')
    assert (
        '| rope above t5 | **undecided** | rope - t5 | – | – | 0 : 0 : 0 | 1.000 | 0 of 1 |' in text
        and 'nan' not in text
    )


def summed(claims, arms):
    config = small()
    config.trained, config.claims = (
        0.99,
        tuple(dict(tasks=('more', 'copy_same'), **claim) for claim in claims),
    )
    config.tasks.more = base.task('copy_same', (1, 4), (2, 8, 2))
    records = made(**arms)
    found = comparison.summarise(
        config, dict.fromkeys(arms), {a: {'copy_same': 1} for a in arms}, records
    )
    return found['claims'], tables.markdown(config, found, StudyRecords(records, []), '')


def test_a_claim_is_about_each_pair():
    """Catches a claim that holds by the mean of pairs of which one is reversed, a table by task
    that leaves out claims with the tasks in another order, a task of one pair that counts or makes
    the whole undecided, and one that nobody learned counted among the tasks."""
    far = dict(copy_same=(0.9, 0.8, 0.85, 0.9, 0.8), more=(None, None, 0.5, None, None))
    low = dict(copy_same=(0.1, 0.12, 0.1, 0.09, 0.1), more=(0.1,) * 5)
    claims, text = summed(
        [
            dict(text='far and low above mid', better=('far', 'low'), worse=('mid',)),
            dict(text='far above mid', better=('far',), worse=('mid',)),
        ],
        dict(
            far=far,
            low=low,
            mid=dict(copy_same=(0.3, 0.31, 0.3, 0.28, 0.3), more=(0.3, 0.2, 0.3, 0.25, 0.3)),
        ),
    )
    assert [c['verdict'] for c in claims] == ['mixed', 'holds'] and [
        p['verdict'] for p in claims[0]['pairs']
    ] == ['holds', 'reversed']
    assert claims[1]['pairs'][0]['pairs'] == 5 and claims[1]['pairs'][0]['mean'] == pytest.approx(
        0.85 - 0.298
    )
    assert (
        '| far and low above mid | **mixed** |' in text
        and '| far - mid | +0.552 (5) | +0.200 (1) |' in text
        and '| 1 of 2 |' in text
    )


def test_a_claim_about_success():
    """Catches seeds that failed to learn left out where the claim is who succeeds."""
    arms = dict(
        a=dict(copy_same=(1.0,) * 6, more=(1.0,) * 5 + (None,)),
        b=dict(copy_same=(None,) * 6, more=(None,) * 6),
    )
    claims, _ = summed(
        [
            dict(text='score', better=('a',), worse=('b',)),
            dict(text='success', better=('a',), worse=('b',), of='success'),
        ],
        arms,
    )
    assert [(c['verdict'], c['pairs'][0]['pairs']) for c in claims] == [
        ('undecided', 0),
        ('holds', 12),
    ]


def test_names_on_the_command_line():
    """Catches a list taken for a pattern over the layers, and a pattern cut at its commas."""
    config = small()
    config.model.positions = 'rope,alibi,none'
    assert list(cells.arms(config)) == ['rope', 'alibi', 'none']
    config.model.positions = 'rope,none; alibi'
    assert [a['positions'] for a in cells.arms(config).values()] == ['rope,none', 'alibi']


def test_parameters_on_the_command_line():
    """Catches parameters that the arms of the config silently take the place of, and ones that none
    of them takes."""
    config = small()
    config.arms.t5.positions_args = dict(num_buckets=8, max_distance=16)
    config.model.positions_args.max_distance = 64
    with pytest.raises(
        RunError,
        match='config.model.positions_args has max_distance: each of config.arms has its own',
    ):
        cells.check(config)
    config.model.positions = 't5'
    assert cells.arms(config)['t5']['positions_args'] == dict(num_buckets=8, max_distance=64)


def test_costs_are_of_the_same_tasks():
    """Catches an encoding that looks fast because it ran other tasks that way, on a faster
    device."""
    config = small()
    config.tasks.more = base.task('copy_same', (1, 4), (2, 8, 2))
    records = made(a=dict(copy_same=(1.0,), more=(1.0,)), b=dict(copy_same=(1.0,), more=(1.0,)))
    for r, speed in zip(records, (100, 900, 200, 5)):
        r |= dict(tokens_per_second=speed, device='cpu' if speed == 5 else 'gpu')
    found = comparison.measure_costs(config, ['a', 'b'], records)
    assert [found[a]['tokens_per_second'] for a in 'ab'] == [100, 200] and found['a']['tasks'] == [
        'copy_same'
    ]
    assert (
        ': 3 cells on gpu and 1 cells on cpu, of one task and seed on both in 1 of 2'
        in tables.markdown(
            config,
            comparison.summarise(
                config, dict.fromkeys('ab'), {a: {'copy_same': 1} for a in 'ab'}, records
            ),
            StudyRecords(records, []),
            '',
        )
    )


def test_the_plan(study):
    """Catches a plan that counts cells already there as to do, tokens of one cell only, or a time
    from nothing."""
    config, folder, _ = study
    text = ablate.plan(config, read_records(folder), 4)
    assert (
        '2 encodings x 1 tasks x 2 seeds = 4 cells, 4 to choose learning rates, 8 records there'
        in text
        and 'for the 0 left' in text
    )
    speed = ablate.measured_speed(config, 1)
    tokens = 8 * 4 * 4 * cells.kind(config, 'copy_same').sizes(config, 'copy_same')[1]
    assert speed > 0 and f'about {tokens / 60 / 4:.1f} minutes on 4 processes' in ablate.plan(
        config, [], 4, 1.0
    )


@pytest.mark.parametrize(
    'change, error, message',
    [
        (
            lambda c: c.arms.update(typo=dict(positions='ropee')),
            ModelError,
            "arm 'typo': .*did you mean 'rope'",
        ),
        (
            lambda c: c.arms.update(ids=dict(positions='coupling')),
            RunError,
            "arm 'ids' needs 'coupling' ids",
        ),
        (
            lambda c: c.arms.update(
                rand=dict(positions='randomized+rope', positions_args=dict(range=5))
            ),
            ModelError,
            'range is 5: shorter than',
        ),
        (
            lambda c: c.sweep.update(lrs=(1e-3,), tasks=dict(copi=('copy_same',))),
            RunError,
            "config.sweep.tasks names 'copi'",
        ),
        (
            lambda c: c.sweep.update(lrs=(1e-3,)),
            RunError,
            "config.sweep.tasks gives no learning rate to 'copy_same'",
        ),
        (
            lambda c: c.update(
                claims=(dict(text='x', better=('t5',), worse=('rope',), tasks=(), of='sucess'),)
            ),
            RunError,
            "'x' is of 'sucess': expected score or",
        ),
        (lambda c: c.optimizer.update(warmup=9), RunError, 'config.optimizer.warmup is 9'),
        (
            lambda c: c.tasks.copy_same.update(task='copi'),
            Exception,
            "no task 'copi'; did you mean",
        ),
    ],
)
def test_mistakes_come_before_the_first_cell(tmp_path, change, error, message):
    """Catches a mistake found after hours: in the last arm, the data, the schedule."""
    config = small()
    config.unlock()
    with config.unlocked():
        change(config)
    with pytest.raises(error, match=message):
        ablate.run(config, tmp_path, workers=0)
    assert not (tmp_path / 'cells.jsonl').exists()
