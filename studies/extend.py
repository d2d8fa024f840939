"""Any encoding in a trained model, without training: how far beyond its length does it read?

    python -m studies.extend --run=runs/smollm2 --texts='books/*.txt' --trained=2048 \\
        --encodings=rope_interpolated,rope_ntk,yarn,self_extend,none \\
        --expect='yarn<rope_interpolated@8192'

Measures perplexity of the same tokens at each length, loss by place, and passkeys. The model as it
is, `untouched`, is the control. Each cell becomes a line of `cells.jsonl` in `--out`; started again
after it was killed the study goes on. With the last cell it writes the page `report/index.html`.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('run', '', 'Run to be measured, DIR or DIR@step')
    flags.DEFINE_string(
        'encodings', '', 'Encodings to put into it, with commas: yarn(stretch=4),none'
    )
    options.path('texts', '', 'Files of long texts, globs and directories', many=True)
    options.path('out', '', 'Where lines and report go; default: runs/extend/RUN')
    options.whole('trained', 0, 'Length it counts as trained for; 0: its own', 0, 2**24)
    flags.DEFINE_list('lengths', [], 'Lengths to measure; default: half to four times --trained')
    options.whole('windows', 16, 'Windows of text whose last tokens are predicted', 1, 2**20)
    options.whole('scored', 256, 'Tokens of a window that are predicted', 1, 2**20)
    flags.DEFINE_list('depths', ['0.1', '0.5', '0.9'], 'Where passkeys are hidden, from 0 to 1')
    options.whole('trials', 5, 'Passkeys at each length and depth', 1, 2**20)
    flags.DEFINE_list('passkeys', [], "Lengths of texts with passkeys; default: --lengths; 'none'")
    flags.DEFINE_bool('places', True, 'Measure loss by place, at the longest length')
    flags.DEFINE_list('expect', [], "Orderings of nats stated beforehand, 'A<B@LENGTH'")
    cli.parse_flags()

import dataclasses
import json
import pathlib
import re

import numpy as np

from evals import plots, statistics
from evals.html import page, table_lines
from model.errors import did_you_mean
from runtime.errors import RunError
from runtime.run_dir import Run, write_atomically
from studies import extension
from studies.extension import PASSKEY, PERPLEXITY, PLACES, UNTOUCHED, Extension, Subject
from studies.records import FILE, read_records


@dataclasses.dataclass(frozen=True)
class Expectation:
    """An ordering that was stated beforehand: at `length` tokens `lower` has fewer nats."""

    lower: str
    higher: str
    length: int


def parse_expectations(texts: list[str], study: Extension) -> list[Expectation]:
    """Returns the orderings of `--expect`; raises RunError for what the study does not measure."""
    expectations = []
    for text in texts:
        match = re.fullmatch(r'(.+)<(.+)@(\d+)', text)
        if not match:
            raise RunError(f'--expect={text}: expected A<B@LENGTH')
        stated = Expectation(match[1].strip(), match[2].strip(), int(match[3]))
        for arm in (stated.lower, stated.higher):
            if arm not in study.arms:
                raise RunError(f'--expect={text}: {arm!r}: {did_you_mean(arm, study.arms)}')
        if stated.length not in study.lengths:
            raise RunError(f'--expect={text}: expected one of the lengths {study.lengths}')
        expectations.append(stated)
    return expectations


def run(study: Extension, stated: list[Expectation], folder: pathlib.Path) -> None:
    """Measures the cells that have no record, and writes the report."""
    folder.mkdir(parents=True, exist_ok=True)
    subject = Subject(study)
    extension.check(subject)
    settings = dataclasses.asdict(study) | {'expect': [dataclasses.astuple(s) for s in stated]}
    write_atomically(folder / 'settings.json', json.dumps(settings, indent=1))
    for cell in extension.missing(study, subject, read_records(folder)):
        record = {
            'key': extension.cell_key(subject, cell),
            **dataclasses.asdict(cell),
            **subject.measure(cell),
        }
        with open(folder / FILE, 'a') as file:
            file.write(json.dumps(record) + '\n')
        print(f'{cell.arm} / {cell.kind} {cell.length}: {record["seconds"]:.0f} s', flush=True)
    by_key = {record['key']: record for record in read_records(folder)}
    records = [by_key[extension.cell_key(subject, cell)] for cell in extension.cells(study)]
    write_report(study, stated, records, folder)


# --- The report -----------------------------------------------------------------------------------


def write_report(
    study: Extension, stated: list[Expectation], records: list[dict], folder: pathlib.Path
) -> None:
    """Writes the page of a study: what was found first, then pictures and tables."""
    nats = {(r['arm'], r['length']): r['nats'] for r in records if r['kind'] == PERPLEXITY}
    name = pathlib.Path(study.run.partition('@')[0]).name
    title = f'{name} under other encodings, without training'
    pictures = {'nats.svg': _draw_nats(study, nats, records)}
    lines = [f'# {title}', '', _summary(study, nats), '']
    lines += ['![Loss against the tokens read, and by place](nats.svg)', '']
    lines += _expectation_lines(stated, nats)
    lines += _perplexity_lines(study, nats)
    found = {(r['arm'], r['length']): r['found'] for r in records if r['kind'] == PASSKEY}
    if found:
        pictures['passkeys.svg'] = _draw_passkeys(study, found)
        lines += ['![Passkeys found](passkeys.svg)', '', *_passkey_lines(study, found)]
    lines += [
        '## What was measured',
        '',
        f'The last {study.scored} tokens of {study.windows} windows of text, the same at all '
        f'lengths, each read in one chunk that ends before the last of them. The model counts as '
        f'trained for {study.trained} tokens; encodings that stretch do so for {study.longest}. '
        f'Intervals are over windows.',
        '',
    ]
    text = '\n'.join(lines)
    report = folder / 'report'
    report.mkdir(exist_ok=True)
    write_atomically(report / 'report.md', text)
    for file, picture in pictures.items():
        write_atomically(report / file, picture)
    write_atomically(report / 'index.html', page(title, text, pictures))


def _summary(study: Extension, nats: dict) -> str:
    """Returns what was found, in two sentences made of the figures."""
    own = float(np.mean(nats[UNTOUCHED, _nearest(study)]))
    at_longest = {arm: float(np.mean(nats[arm, study.longest])) for arm in study.arms}
    best = min(at_longest, key=lambda arm: at_longest[arm])
    return (
        f'At {study.longest} tokens, {study.longest / study.trained:g} times the length it counts '
        f'as trained for, the model as it is has {at_longest[UNTOUCHED]:.3f} nats a token; at '
        f'{_nearest(study)} it had {own:.3f}. **{best}** has the fewest, {at_longest[best]:.3f}.'
    )


def _nearest(study: Extension) -> int:
    """Returns the length measured that is nearest to the trained one."""
    return min(study.lengths, key=lambda length: abs(length - study.trained))


def _expectation_lines(stated: list[Expectation], nats: dict) -> list[str]:
    if not stated:
        return []
    rows = []
    for s in stated:
        differences = np.subtract(nats[s.higher, s.length], nats[s.lower, s.length])
        found = statistics.contrast([[differences.tolist()]])
        rows.append(
            [
                f'{s.lower} below {s.higher} at {s.length}',
                f'{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})',
                found.verdict(found.p),
            ]
        )
    header = ('stated beforehand', 'nats that it is lower by', 'verdict')
    return ['## Orderings stated beforehand', '', *table_lines(header, rows)]


def _perplexity_lines(study: Extension, nats: dict) -> list[str]:
    rows = []
    for arm in study.arms:
        row = [arm]
        for length in study.lengths:
            mean = float(np.mean(nats[arm, length]))
            row.append(f'{np.exp(mean):.2f}' if np.isfinite(mean) else '-')
        rows.append(row)
    header = ('encoding', *(f'{length} tokens' for length in study.lengths))
    return ['## Perplexity', '', *table_lines(header, rows)]


def _passkey_lines(study: Extension, found: dict) -> list[str]:
    rows = []
    for arm in study.arms:
        shares = [found[arm, length].values() for length in study.passkeys]
        rows.append(
            [arm, *(' / '.join(f'{100 * np.mean(x):.0f}' for x in each) for each in shares)]
        )
    depths = ' / '.join(f'{depth:g}' for depth in study.depths)
    header = ('encoding', *(f'{length} tokens' for length in study.passkeys))
    about = (
        f'Percent found where it is hidden at {depths} of the text, {study.trials} numbers each.'
    )
    return ['## Passkeys', '', about, '', *table_lines(header, rows)]


def _draw_nats(study: Extension, nats: dict, records: list[dict]) -> str:
    by_length = {
        arm: [[float(np.mean(nats[arm, length])) for length in study.lengths]] for arm in study.arms
    }
    panels = {'tokens read': (study.lengths, by_length)}
    places = {r['arm']: r['places'] for r in records if r['kind'] == PLACES}
    if places:
        by_place = {arm: [places[arm]['nats']] for arm in study.arms}
        panels['place in the text'] = (places[UNTOUCHED]['places'], by_place)
    return plots.seed_curves(panels, 'nats a token')


def _draw_passkeys(study: Extension, found: dict) -> str:
    shares = {}
    for arm in study.arms:
        each = [float(np.mean([*found[arm, length].values()])) for length in study.passkeys]
        shares[arm] = [each]
    return plots.seed_curves({'tokens': (study.passkeys, shares)}, 'share of passkeys found')


# --- The command ----------------------------------------------------------------------------------


def _numbers(flag: str, texts: list[str], kind, low: float, high: float) -> tuple:
    """Returns the numbers of a flag. Raises RunError for what is none, or out of range."""
    try:
        numbers = tuple(kind(text) for text in texts)
    except ValueError:
        raise RunError(f'--{flag}={",".join(texts)}: expected numbers, with commas') from None
    if any(not low <= number <= high for number in numbers):
        raise RunError(f'--{flag}={",".join(texts)}: expected numbers from {low} to {high}')
    return numbers


def _passkey_lengths(texts: list[str], lengths: tuple[int, ...]) -> tuple[int, ...]:
    if texts == ['none']:
        return ()
    return _numbers('passkeys', texts, int, 2, 2**24) or lengths


def main() -> None:
    f = flags.FLAGS
    for flag in ('run', 'texts', 'encodings'):
        if not f[flag].value:
            raise RunError(f'--{flag} is empty: expected {_EXPECTED[flag]}')
    config = Run.parse(f.run).config()
    trained = f.trained or config.data.seq_len
    lengths = _numbers('lengths', f.lengths, int, 2, 2**24) or extension.default_lengths(trained)
    study = Extension(
        run=f.run,
        encodings=tuple(re.split(r', *(?![^()]*\))', f.encodings)),
        trained=trained,
        lengths=lengths,
        texts=f.texts,
        windows=f.windows,
        scored=f.scored,
        passkeys=_passkey_lengths(f.passkeys, lengths),
        depths=_numbers('depths', f.depths, float, 0, 1),
        trials=f.trials,
        places=f.places,
    )
    folder = extension.results_folder(f.out, f.run)
    cli.check_writable('--out', str(folder))
    run(study, parse_expectations(f.expect, study), folder)
    print(f'{folder}/report/index.html')


_EXPECTED = {
    'run': 'a run directory, DIR or DIR@step',
    'texts': 'files of long texts',
    'encodings': 'names of the registry, with commas',
}


if __name__ == '__main__':
    cli.run(main, keeps=True)
