"""The report of a study: index.html, self-contained, and report.md, from the raw lines."""

import dataclasses
import json
import math
import pathlib
from collections import Counter

import numpy as np

from evals import plots
from evals.html import page, table_lines
from runtime.run_dir import write_atomically
from studies import comparison

_MOST_LENGTHS = 6  # columns of the table of accuracy by length; the picture has them all


@dataclasses.dataclass(frozen=True)
class Lines:
    """The raw lines of a study: of the cells that are compared, of those that chose the learning
    rates, and of cells whose encoding has changed since, each with the `commit` that made it."""

    records: list[dict]
    swept: list[dict]
    before: list[dict] = dataclasses.field(default_factory=list)


def write(config, arms: dict, rates: dict, lines: Lines, folder: pathlib.Path) -> dict:
    """Writes report/index.html, report/report.md and report/summary.json. Returns the summary."""
    records = lines.records
    found = comparison.summarise(config, arms, rates, records)
    names, tasks = list(arms), list(config.tasks)
    label = (
        'accuracy beyond training'
        if all(config.tasks[t].kind == 'task' for t in tasks)
        else 'score (higher is better)'
    )
    kinds = {config.tasks[t].kind for t in tasks}
    pictures = []
    if 'task' in kinds:
        pictures.append(
            (
                'Accuracy against length (lengths of training shaded)',
                plots.by_length(config, names, records),
            )
        )
    if 'text' in kinds:
        pictures.append(
            (
                'Perplexity against the length of the text (same targets for all)',
                plots.perplexity(config, names, records),
            )
        )
        pictures.append(('Loss by position', plots.by_position(config, names, records)))
    if 'mean' in found['ranked']:
        r = found['ranked']
        pictures.append(
            (
                'Ranks with intervals',
                plots.rank_bars(
                    r['arms'],
                    np.array(r['mean']),
                    r['low'],
                    r['high'],
                    r['critical'],
                    len(r['tasks']),
                ),
            )
        )
    pictures.append(
        (
            'Every seed',
            plots.strips(tasks, names, lambda t, a: found['tasks'][t][a]['seeds'], label),
        )
    )
    pictures.append(
        (
            'Quality against speed',
            plots.quality_and_speed(
                names,
                {a: v['tokens_per_second'] for a, v in found['arms'].items()},
                {a: v['score'] for a, v in found['arms'].items()},
                label,
            ),
        )
    )
    if any('attention' in r for r in records):
        pictures.append(
            (
                'Mean attention against distance, a line a head',
                plots.attention(tasks, names, records),
            )
        )
    report = folder / 'report'
    report.mkdir(exist_ok=True)
    text = markdown(config, found, lines)
    numbers = json.loads(json.dumps(found), parse_constant=lambda _: None)  # JSON has no nan
    write_atomically(report / 'summary.json', json.dumps(numbers, indent=1))
    write_atomically(report / 'report.md', text)
    write_atomically(report / 'index.html', page(found['title'], text, pictures))
    return found


def _figures(*values: float, form: str = '+.3f') -> str:
    """A figure, or an interval; a dash where there is none, for want of pairs."""
    return '–' if any(map(math.isnan, values)) else '..'.join(format(v, form) for v in values)


def _p(p: float) -> str:
    return '<0.001' if p < 0.001 else f'{p:.3f}'


def _difference(p: dict) -> list[str]:
    return [
        _figures(p['mean']),
        _figures(p['low'], p['high']),
        f'{p["wins"]} : {p["losses"]} : {p["pairs"]}',
    ]


def markdown(config, found: dict, of: Lines) -> str:
    """The tables of the report."""
    records, swept = of.records, of.swept
    devices = Counter(r['device'] for r in records).most_common()
    lines = [
        f'# {found["title"]}',
        '',
        f'{len(found["arms"])} encodings, {len(found["tasks"])} tasks, seeds {found["seeds"][0]} to {found["seeds"][-1]}: '
        f'{" and ".join(f"{count} cells on {device}" for device, count in devices)}{_unlike(records)}. '
        f'All figures are computed from `cells.jsonl`. Intervals are of 95 %, by a bootstrap over seeds (of differences of text also over its '
        f'documents), tasks as they are, each by itself. '
        + (
            'Learning rates were chosen on seed 0 by the loss inside the lengths of training.'
            if swept
            else 'One learning rate for all.'
        ),
        '',
    ]
    lines += (
        _claims(found)
        + _changed(config, of)
        + _scores(config, found)
        + _by_length(config, found, records)
        + _perplexities(config, found, records)
    )
    lines += _contexts(found, records)
    lines += (
        _ranks(found)
        + _pairs(found)
        + _costs(found)
        + _sweep(found, swept)
        + _untrained(config, found)
    )
    return '\n'.join(lines)


def _changed(config, of: Lines) -> list[str]:
    """What the cells of an encoding gave before its start, defaults or meaning changed, and now."""
    now = {(r['arm'], r['task'], r['seed']): r for r in of.records}
    then = {cell: r for r in of.before if (cell := (r['arm'], r['task'], r['seed'])) in now}
    if not then:
        return []
    rows = []
    for arm, task in sorted({cell[:2] for cell in then}):
        seeds = sorted(seed for a, t, seed in then if (a, t) == (arm, task))
        means = [
            np.mean([comparison.score(config, which[arm, task, seed]) for seed in seeds])
            for which in (then, now)
        ]
        commits = ', '.join(sorted({then[arm, task, seed]['commit'] for seed in seeds}))
        rows.append([arm, task, len(seeds), commits, *(f'{mean:.3f}' for mean in means)])
    return [
        '## Measured again',
        '',
        'These encodings begin, or mean, something else since the commit that is named '
        '(`model/positions/README.md`, Versions): their cells were measured again, and all '
        'figures of this page are of the new ones. The lines from before are kept in '
        '`cells.jsonl`, with their commit. Mean scores, then and now:',
        '',
        *table_lines(['encoding', 'task', 'seeds', 'commit', 'then', 'now'], rows),
    ]


def _unlike(records: list[dict]) -> str:
    """Of a study on several devices, how many comparisons of one seed have cells of more than one."""
    devices: dict[tuple, set] = {}
    for r in records:
        devices.setdefault((r['task'], r['seed']), set()).add(r['device'])
    mixed = sum(len(d) > 1 for d in devices.values())
    return f', of one task and seed on both in {mixed} of {len(devices)}' if mixed else ''


def _claims(found: dict) -> list[str]:
    if not found['claims']:
        return []
    lines = [
        '## Claims',
        '',
        'As the config states them (its docstring says when they were written). A claim about several encodings is about each pair of them, and holds where all '
        'do. Of a pair count the seeds in which both have learned the task (where a claim is about success, all), and tasks with two such seeds or '
        'more, each alike. A verdict needs p < 0.05 (t-test, of success an exact sign test; corrected by Holm over all pairs below) and five pairs (of text, seeds and documents together).',
        '',
    ]
    several = lambda claim: len(claim['pairs']) > 1
    tasks = lambda claim, pair: (
        f'{sum(t["pairs"] > 1 for t in pair["by_task"].values())} of {len(claim["tasks"])}'
    )
    rows = []
    for claim in found['claims']:
        rows += [[claim['text'], f'**{claim["verdict"]}**', *[''] * 6]] if several(claim) else []
        rows += [
            [
                f'{pair["a"]} - {pair["b"]}' if several(claim) else claim['text'],
                pair['verdict'] if several(claim) else f'**{pair["verdict"]}**',
                f'{pair["a"]} - {pair["b"]}',
                *_difference(pair),
                _p(pair['holm']),
                tasks(claim, pair),
            ]
            for pair in claim['pairs']
        ]
    lines += table_lines(
        [
            'claim',
            'verdict',
            'a - b',
            'mean difference',
            'interval',
            'pairs won : lost : all',
            'p (Holm)',
            'tasks',
        ],
        rows,
    )
    names = list(found['tasks'])
    if len(names) > 1:
        widest_last = sorted(reversed(found['claims']), key=lambda claim: len(claim['tasks']))
        pairs = {(p['a'], p['b']): p for claim in widest_last for p in claim['pairs']}
        entry = lambda p, t: (
            f'{p["by_task"][t]["mean"]:+.3f} ({p["by_task"][t]["pairs"]})'
            if t in p['by_task']
            else '–'
        )
        lines += ['The differences by task, with the number of pairs:', '']
        lines += table_lines(
            ['a - b', *names],
            [[f'{a} - {b}', *(entry(p, t) for t in names)] for (a, b), p in sorted(pairs.items())],
        )
    return lines


def _scores(config, found: dict) -> list[str]:
    names, tasks, seeds = list(found['arms']), found['tasks'], len(found['seeds'])
    where = (
        f'at lengths from {config.beyond} on' if config.beyond else 'beyond the lengths of training'
    )
    lines = [
        '## Scores',
        '',
        f'Accuracy {where} (text: minus the loss on fixed targets at the longest length), mean and interval of all seeds; in '
        f'brackets how many of them reached {config.trained:g} inside those lengths, where not all did.',
        '',
    ]

    def entry(v):
        interval = [min(max(x, 0.0), 1.0) if 'successes' in v else x for x in (v['low'], v['high'])]
        note = '' if v['trained'] == seeds else f' [{v["trained"]}/{seeds}]'
        return f'{v["mean"]:.3f} ({_figures(*interval, form=".2f")}){note}'

    lines += table_lines(
        ['task', *names], [[t, *(entry(of_task[a]) for a in names)] for t, of_task in tasks.items()]
    )
    solved = {t: of_task for t, of_task in tasks.items() if 'successes' in of_task[names[0]]}
    if solved:
        lines += [f'Seeds whose score reaches {config.success:g}, with Wilson intervals:', '']
        lines += table_lines(
            ['task', *names],
            [
                [
                    t,
                    *(
                        f'{of_task[a]["successes"]}/{seeds} ({_figures(*of_task[a]["success"], form=".2f")})'
                        for a in names
                    ),
                ]
                for t, of_task in solved.items()
            ],
        )
    return lines


def _by_length(config, found: dict, records: list[dict]) -> list[str]:
    """Of each task the longest length of training and some longer ones, evenly spaced."""
    lines = []
    for task in found['tasks']:
        mine = [r for r in records if r['task'] == task and 'by_length' in r]
        lengths = sorted(map(int, mine[0]['by_length'])) if mine else []
        beyond = [n for n in lengths if n > config.tasks[task].train[1]]
        shown = [
            *[n for n in lengths if n not in beyond][-1:],
            *[
                beyond[round(i)]
                for i in np.linspace(0, len(beyond) - 1, min(_MOST_LENGTHS, len(beyond)))
            ],
        ]
        mean = lambda arm, n: float(
            np.mean([r['by_length'][str(n)]['exact'] for r in mine if r['arm'] == arm])
        )
        if mine:
            lines += table_lines(
                [f'{task} at length', *map(str, shown)],
                [[arm, *(f'{mean(arm, n):.3f}' for n in shown)] for arm in found['arms']],
            )
    return (
        [
            '## Accuracy by length',
            '',
            'Mean of all seeds; the first column is the longest length of training.',
            '',
            *lines,
        ]
        if lines
        else []
    )


def _perplexities(config, found: dict, records: list[dict]) -> list[str]:
    lines = []
    for task in found['tasks']:
        mine = [
            r['perplexity'] | {'arm': r['arm']}
            for r in records
            if r['task'] == task and 'perplexity' in r
        ]
        if not mine:
            continue
        lengths = sorted(map(int, mine[0]['fixed']))
        mean = lambda arm, kind, n: math.exp(
            np.mean([math.log(p[kind][str(n)]) for p in mine if p['arm'] == arm])
        )
        for kind, what in (
            ('non_overlapping', 'chunks one after the other'),
            ('sliding', 'sliding window'),
            ('fixed', 'fixed targets'),
        ):
            lines += table_lines(
                [f'{task}, {what}', *map(str, lengths)],
                [[arm, *(f'{mean(arm, kind, n):.2f}' for n in lengths)] for arm in found['arms']],
            )
    return (
        [
            '## Perplexity by length',
            '',
            'The same target tokens everywhere; geometric mean of the seeds.',
            '',
            *lines,
        ]
        if lines
        else []
    )


def _contexts(found: dict, records: list[dict]) -> list[str]:
    """How much context texts are read with, of what the lines have."""
    lines = []
    for task in found['tasks']:
        mine = [r for r in records if r['task'] == task and 'effective_context' in r]
        of = lambda arm, value: [
            x for x in (value(r) for r in mine if r['arm'] == arm) if x is not None
        ]
        columns = [
            (f'{what} {n}', lambda r, field=field, n=n: r[field][n])
            for field, what in (('shuffled', 'shuffled beyond'), ('gap', 'gap of'))
            for n in (mine[0].get(field, {}) if mine else {})
        ]
        entry = lambda values: _figures(float(np.mean(values)) if values else math.nan)
        rows = [
            [
                arm,
                *(
                    ' to '.join(map(str, sorted({min(v), max(v)}))) if v else '–'
                    for v in (
                        of(arm, lambda r: r['effective_context']),
                        of(arm, lambda r: r['usable_length']),
                    )
                ),
                *(entry(of(arm, value)) for _, value in columns),
            ]
            for arm in found['arms']
        ]
        if mine:
            lines += table_lines(
                [task, 'effective context', 'usable length', *(title for title, _ in columns)], rows
            )
    return (
        [
            '## Context',
            '',
            'Effective context: the shortest from which more gains less than 0.01 nats a token on fixed targets; usable length: the longest '
            'with a perplexity of at most 1.01 times that at the length of training (least and most of the seeds). Then nats a token that are lost at the length of '
            'training where what is further than so many tokens before the first target is shuffled, and where the ids of the targets leave so many out.',
            '',
            *lines,
        ]
        if lines
        else []
    )


def _ranks(found: dict) -> list[str]:
    r = found['ranked']
    if 'mean' not in r:
        return [
            '## Ranks',
            '',
            'No pair of task and seed was learned by all encodings: no ranks.',
            '',
        ]
    text = (
        f'Over the seeds that all ranked encodings have learned, tasks alike: {", ".join(f"{t} ({n})" for t, n in r["tasks"].items())}. Ties share their rank.'
        + (
            f' Friedman p = {r["friedman_p"]:.2g} over the tasks, critical difference (Nemenyi, 0.05) {r["critical"]:.2f}.'
            if math.isfinite(r['friedman_p'])
            else ''
        )
    )
    rows = [
        [r['arms'][i], f'{r["mean"][i]:.2f}', _figures(r['low'][i], r['high'][i], form='.2f')]
        for i in np.argsort(r['mean'])
    ]
    return ['## Ranks', '', text, '', *table_lines(['encoding', 'mean rank', 'interval'], rows)]


def _pairs(found: dict) -> list[str]:
    rows = [
        [
            p['a'],
            p['b'],
            *_difference(p),
            _p(p['p']),
            _p(p['holm']),
            _figures(p['smallest'], form='.3f'),
        ]
        for p in found['pairs']
    ]
    return [
        '## Paired differences',
        '',
        'a - b over the seeds that both have learned, as with claims, over all tasks; p of a t-test, the same corrected by Holm; '
        'the smallest difference that pairs of this number and spread would have shown after the correction, with probability 0.8.',
        '',
        *table_lines(
            [
                'a',
                'b',
                'difference',
                'interval',
                'won : lost : all',
                'p',
                'p (Holm)',
                'smallest visible',
            ],
            rows,
        ),
    ]


def _costs(found: dict) -> list[str]:
    first = next(iter(found['arms'].values()))
    (device, together), tasks = (
        first['way'],
        ', '.join(first['tasks']) or 'none that all encodings ran so',
    )
    rows = [
        [
            a,
            v['added'],
            _figures(v['tokens_per_second'], form=',.0f'),
            _figures(v['step_mb'], form='.0f'),
            ', '.join(f'{lr:g}' for lr in sorted(set(found['rates'][a].values()))),
        ]
        for a, v in found['arms'].items()
    ]
    return [
        '## Cost',
        '',
        f'Cells run on {device}, {together} a program, of these tasks: {tasks}; means of their medians. Cells of different encodings ran at different times, beside others: '
        f'speeds are no more than a hint.',
        '',
        *table_lines(
            ['encoding', 'parameters added', 'tokens/s', 'memory of a step, MB', 'learning rates'],
            rows,
        ),
    ]


def _sweep(found: dict, swept: list[dict]) -> list[str]:
    if not swept:
        return []
    rates, tasks = sorted({r['lr'] for r in swept}), sorted({r['task'] for r in swept})
    of = {(r['arm'], r['task'], r['lr']): r for r in swept}

    def entry(arm, task, lr):
        r, chosen = of[arm, task, lr], found['rates'][arm][task] == lr
        beyond = f' ({r["beyond"]:.2f})' if r.get('beyond') is not None else ''
        return (
            f'**{r["validation_nats"]:.4g}**{beyond}'
            if chosen
            else f'{r["validation_nats"]:.4g}{beyond}'
        )

    rows = [[arm, *(entry(arm, t, lr) for t in tasks for lr in rates)] for arm in found['arms']]
    edge = sum(
        found['rates'][arm][t] in (rates[0], rates[-1]) for arm in found['arms'] for t in tasks
    )
    return [
        f'Loss inside the lengths of training with each learning rate (seed 0), the least bold: it was chosen. {edge} of {len(tasks) * len(rows)} are at an edge '
        f'of the grid.'
        + (
            ' In brackets the accuracy beyond those lengths, which had no say.'
            if 'beyond' in swept[0]
            else ''
        ),
        '',
        *table_lines(['encoding', *(f'{t}, {lr:g}' for t in tasks for lr in rates)], rows),
    ]


def _untrained(config, found: dict) -> list[str]:
    if not any(found['untrained'].values()):
        return []
    named = lambda c: (
        f'{c["task"]} (seed {c["seed"]}, '
        + ('diverged)' if c['inside'] is None else f'{c["inside"]:.4f})')
    )
    return [
        '## Not learned',
        '',
        f'Cells that did not reach {config.trained:g} inside the lengths of training: shown, not ranked.',
        '',
        *(
            f'- {arm}: {", ".join(map(named, cells))}'
            for arm, cells in found['untrained'].items()
            if cells
        ),
        '',
    ]
