"""Reports that answer first: made again from what is kept, and what they open with."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest
from ml_collections import ConfigDict

from evals import plots
from evals.html import folded_if_long, page, table_lines
from model.errors import ModelError
from model.positions import REGISTRY
from runtime.errors import RunError
from studies import cells, comparison, records, report, tables
from studies.findings import findings
from studies.records import StudyRecords, read_records, select_records
from tests.studies.small_study import made, small, small_with_sweep

RESULTS = pathlib.Path('studies/results')
STUDIES = sorted(path.parent.name for path in RESULTS.glob('*/cells.jsonl'))


@pytest.mark.parametrize('name', STUDIES)
def test_a_kept_report_is_of_the_kept_lines(name, monkeypatch, tmp_path):
    """Catches kept figures that are not those of the kept lines, and lines that were added without
    `python -m studies.report`."""
    monkeypatch.setattr(report, '_pictures', lambda *_: [(_caption(name), '<svg></svg>')])
    for file in ('config.json', 'cells.jsonl'):
        (tmp_path / file).write_bytes((RESULTS / name / file).read_bytes())
    report.rebuild(tmp_path)
    again, kept = tmp_path / 'report', RESULTS / name / 'report'
    assert (again / 'report.md').read_text() == (kept / 'report.md').read_text()
    numbers = json.loads((again / 'summary.json').read_text())
    assert _flat(numbers) == pytest.approx(_flat(json.loads((kept / 'summary.json').read_text())))
    assert (kept / 'picture.svg').read_text().startswith('<svg')


def _caption(name):
    text = (RESULTS / name / 'report' / 'report.md').read_text()
    return re.search(r'!\[(.*)\]\(picture\.svg\)', text)[1]


def _flat(value, path=''):
    """Every number of nested lists and objects, by where it stands."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        return {path: value} if isinstance(value, float) else {}
    return {k: v for name, part in parts for k, v in _flat(part, f'{path}/{name}').items()}


def test_the_picture_of_the_documentation_is_the_study():
    """Catches a front page that shows another picture than its caption says, or an older study."""
    picture = (RESULTS / 'quick' / 'report' / 'picture.svg').read_text()
    assert pathlib.Path('docs/img/accuracy.svg').read_text() == picture


def test_pages_are_not_kept():
    """Catches pages that can be rebuilt among the files of the repository."""
    command = ['git', 'ls-files', str(RESULTS)]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('not a git repository')
    assert 'cells.jsonl' in listed.stdout and '.html' not in listed.stdout


def test_old_and_new_lines_never_mix():
    """Catches an arm that is shown by some lines from before its encoding changed and some from
    after, and a study that is not whole."""
    config = small()
    lines = made(rope=dict(copy_same=(0.5, 0.6)), t5=dict(copy_same=(0.1, 0.2)))
    for record in lines:
        cell = cells.Cell(record['arm'], record['task'], record['seed'], config.optimizer.lr)
        record |= {'key': cells.key(config, cell), 'lr': cell.lr, 'validation_nats': 1.0}
    whole = select_records(config, lines)[1]
    assert whole.compared == [lines[0], lines[2], lines[1], lines[3]] and not whole.outdated

    before = [r | {'key': f'old{r["seed"]}', 'commit': 'b09c89d'} for r in lines[2:]]
    again = select_records(config, [*lines, *before])[1]
    assert again.compared == whole.compared and again.before == before
    rates, partly = select_records(config, [*lines[:3], *before])
    assert partly.outdated == {'t5': 'b09c89d'} and not partly.before
    assert [r['key'] for r in partly.compared if r['arm'] == 't5'] == ['old1', 'old2']
    assert rates['t5'] == {'copy_same': config.optimizer.lr}
    with pytest.raises(RunError, match='lacks rope / copy_same / seed 1 .* 1 other cells'):
        select_records(config, lines[1:])


def test_the_first_sentences_are_the_figures():
    """Catches a report that opens with another winner, other figures or fewer claims than it has,
    or is silent about what was not learned."""
    config = small()
    config.trained = 0.99
    texts = ('rope above t5', 't5 above rope', 'rope above none')
    pairs = (('rope', 't5'), ('t5', 'rope'), ('rope', 'none'))
    config.claims = tuple(
        dict(text=text, better=(a,), worse=(b,), tasks=('copy_same',))
        for text, (a, b) in zip(texts, pairs)
    )
    arms = dict(
        t5=dict(copy_same=(0.1, 0.2, 0.15, 0.2, 0.1)),
        rope=dict(copy_same=(0.8, 0.9, 0.8, 0.9, 0.8)),
        alibi=dict(copy_same=(0.5,) * 5),
        none=dict(copy_same=(None,) * 5),
    )
    lines = made(**arms)
    rates = {arm: {'copy_same': 1} for arm in arms}
    summary = comparison.summarise(config, dict.fromkeys(arms), rates, lines)
    best, claims, untrained = findings(config, summary, StudyRecords(lines, []))
    assert 'with `rope` (84.0 %), then with `alibi` (50.0 %) and `t5` (15.0 %)' in best
    assert 'fewest with `none` (0.0 %)' in best and '1 task and 5 seeds' in best
    assert 'Of 3 claims 1 holds; reversed: t5 above rope (-0.690)' in claims
    assert 'undecided: rope above none.' in claims and untrained.startswith('5 of 20 cells')
    text = tables.markdown(config, summary, StudyRecords(lines, []), 'the caption')
    places = [text.index(part) for part in (best, claims, '![the caption]', '## Claims')]
    assert places == sorted(places) and places[0] < 60


def test_an_encoding_has_one_color():
    """Catches a color that depends on the study, two arms that look alike, and encodings that are
    compared most often in one color."""
    first = plots.arm_styles(dict(a=dict(positions='t5'), rope=dict(positions='rope')))
    args = dict(positions='t5', positions_args=dict(max_distance=20))
    second = plots.arm_styles(dict(t5_20=args, t5=dict(positions='t5')))
    assert first['a'].color == second['t5'].color == second['t5_20'].color
    assert [style.dash for style in second.values()] == ['--', '-']
    assert list(second) == ['t5_20', 't5']
    assert len(set(plots._COLORS.values())) == len(plots._COLORS)
    for name in REGISTRY:
        assert re.fullmatch('#[0-9a-f]{6}', plots.encoding_color(name))


def test_a_page_is_whole():
    """Catches tags that are left open, text taken for HTML, pictures that share ids, and a long
    table that is not folded away."""
    svg = '<svg><defs><clipPath id="c"></clipPath></defs><g clip-path="url(#c)"></g></svg>'
    rows = [[f'row {i}', '**bold**'] for i in range(20)]
    lines = ['# A <title>', '', 'Some `code` & text.', '', '- one', '- two', '', '![Below](x.svg)']
    lines += ['', *folded_if_long('Many rows', table_lines(['a', 'b'], rows))]
    lines += folded_if_long('Few rows', table_lines(['c'], [['d']]))
    text = page('T', '\n'.join(lines), {'x.svg': svg}, [('Another', svg)])
    assert 'A &lt;title&gt;' in text and '<code>code</code> &amp; text' in text
    assert text.count('<details>') == 1 and '<summary>Many rows</summary>' in text
    assert text.count('<b>bold</b>') == 20 and '<li>two</li>' in text
    assert text.index('<figcaption>Below') < text.index('<details>') < text.index('Another')
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len({*ids}) == 2 and {*re.findall(r'url\(#([^)]+)', text)} == {*ids}
    for tag in ('table', 'tr', 'td', 'th', 'ul', 'li', 'p', 'figure', 'details', 'h1', 'h2'):
        opened = re.findall(rf'<{tag}[ >]', text)
        assert len(opened) == text.count(f'</{tag}>') > 0


def test_names_of_results(tmp_path):
    """Catches a name that is none of the results, and one that is left out."""
    (tmp_path / 'some').mkdir()
    (tmp_path / 'some' / records.FILE).write_text('')
    (tmp_path / 'other').mkdir()
    assert report.find_results(tmp_path, []) == [tmp_path / 'some']
    with pytest.raises((RunError, ModelError), match="'sone' is not in .*did you mean 'some'"):
        report.find_results(tmp_path, ['sone'])
    with pytest.raises(RunError, match='expected config.json and cells.jsonl of a study'):
        report.rebuild(tmp_path / 'other')


def test_a_report_made_again(study_folder, tmp_path):
    """Catches a report that is another when it is made again."""
    folder = shutil.copytree(study_folder, tmp_path / 'study')
    first = {p.name: p.read_text() for p in (folder / 'report').iterdir()}
    assert len(first) == 4
    loaded = ConfigDict(json.loads((folder / 'config.json').read_text()))
    assert json.loads(loaded.to_json()) == json.loads(small_with_sweep().to_json())
    wanted = [*cells.sweep_cells(loaded), *cells.study_cells(loaded, _rates(loaded))]
    assert len(read_records(folder)) == len(wanted)
    shutil.rmtree(folder / 'report')
    report.rebuild(folder)
    assert {p.name: p.read_text() for p in (folder / 'report').iterdir()} == first


def _rates(config):
    return {arm: dict.fromkeys(config.tasks, 1.0) for arm in cells.arms(config)}
