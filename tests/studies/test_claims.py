"""Claims: cells and records, what is asked that nobody knows, and what a page says was found."""

import json

import pytest

from configs.claims import recency as config_file
from data.atlas import facts
from runtime.errors import RunError
from studies import report
from studies.claims import __main__ as command, recency, study


def tiny_config():
    c = config_file.get_config()
    c.seeds = 1
    c.more_seeds = 1
    c.model.update(width=48, num_layers=1)
    c.tokenizer.vocab_size = 600
    c.data.atlas.update(countries=8, editions=4)
    c.recency.update(
        web_steps=12,
        answer_steps=4,
        pairs=(),
        web_after=(),
        unknown=(0.5,),
        invented=8,
    )
    return c


def test_a_claim_is_measured_and_goes_on(tmp_path, monkeypatch):
    """Catches a cell that is measured twice, one that is not there in the page, runs that are
    trained anew though they are there, and a report of a part of the cells."""
    config = tiny_config()
    finding = command.run(config, tmp_path, 0)
    lines = (tmp_path / 'cells.jsonl').read_text().splitlines()
    assert len(lines) == len(recency.cells(config)) == 5
    assert finding.sentence in (tmp_path / 'report' / 'report.md').read_text()
    for record in map(json.loads, lines):
        assert f'| {record["arm"]} |' in (tmp_path / 'report' / 'report.md').read_text()
        assert 0 <= record['accuracy']['all'] <= 1 and record['web_nats'] > 0

    # Half of the lines are lost: no run is trained again, and the records are as they were.
    (tmp_path / 'cells.jsonl').write_text('\n'.join(lines[:3]) + '\n')
    with pytest.raises(RunError, match='lacks cells'):
        report.rebuild(tmp_path)

    def no_batches(experiment, start, stop):
        assert start == stop, 'trains again'
        return iter(())

    monkeypatch.setattr(recency.lineage.loop, '_batches', no_batches)
    left = [cell for group in study.missing_groups(config, tmp_path) for cell in group]
    assert [cell.arm for cell in left] == [json.loads(line)['arm'] for line in lines[3:]]
    again = study.measure_group(config, tmp_path, [cell for cell in left if cell.arm != 'mixed'])
    before = {r['arm']: r for r in map(json.loads, lines)}
    for record in again:
        assert record['accuracy'] == before[record['arm']]['accuracy']
        assert record['web_nats'] == pytest.approx(before[record['arm']]['web_nats'], rel=1e-5)


def test_a_key_is_of_what_is_measured():
    """Catches lines that count for another size of model, and a study that begins anew with one
    seed more."""
    config = tiny_config()
    cell = recency.cells(config)[0]
    key = study.key(config, cell)
    config.seeds = 4
    config.title = 'another'
    assert study.key(config, cell) == key
    config.recency.web_steps += 1
    assert study.key(config, cell) != key


def test_what_cannot_be_known():
    """Catches a country that does exist, and one that is asked about and was told of."""
    invented = recency.invented_countries(40, seed=3)
    names = {country.words['en']['name'] for country in invented}
    assert len(names) == 40
    real = {row.split('|')[i].split(':')[-1] for row in facts.COUNTRIES for i in (1, 2)}
    assert not names & real
    assert recency.invented_countries(40, seed=3) == invented
    asked = list(recency.ask_of_facts(invented[:1]))
    assert len(asked) == 12 and all(invented[0].words['en']['name'] in q for _, q in asked)
    said = ['não sei', "I don't know", 'não sei', 'Lisboa']
    languages = [(lang, '') for lang in ('pt', 'en', 'en', 'pt')]
    assert recency._share_said(said, languages) == 0.5  # in the wrong language it is an answer


def records(config, right):
    """Returns a record of each cell; `right`: arm and seed -> share of right answers."""
    others = dict.fromkeys(
        ('web_nats', 'invents_for_nothing', 'invents_beyond_facts', 'refuses_known'), 0.5
    )
    return [
        {
            'arm': cell.arm,
            'seed': cell.seed,
            'accuracy': {'all': right(cell.arm, cell.seed)},
            'continues': {'questions': 0.5},
            **others,
        }
        for cell in recency.cells(config)
    ]


@pytest.mark.parametrize(
    'web, reversed_order, shown',
    [(0.0, 0.01, True), (0.95, 0.0, False), (0.0, 0.9, False)],
)
def test_the_controls_can_fail(web, reversed_order, shown):
    """Catches a claim that is called shown though its control answers too, or though the order of
    the phases makes no difference."""
    config = tiny_config()
    config.seeds = 5

    def right(arm, seed):
        if arm == 'web':
            return web
        return (reversed_order if arm == 'answers, web' else 0.9) + 0.01 * (seed % 3)

    finding = recency.find(config, records(config, right))
    assert finding.shown == shown
    if shown:
        assert 'answers 91.2 %' in finding.sentence and '+89.0 points' in finding.sentence
