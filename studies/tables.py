"""The report of a study in Markdown: findings, picture, claims, and tables, long ones folded."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evals.html import folded, folded_if_long, table_lines
from studies import comparison
from studies.findings import findings, plural
from studies.records import StudyRecords

PICTURE = 'picture.svg'
_MOST_LENGTHS = 6  # columns of the table of accuracy by length; the picture has them all


def markdown(config, summary: Mapping, records: StudyRecords, caption: str) -> str:
    """Returns the report: what was found, the picture with its caption, claims, tables."""
    lines = [f'# {summary["title"]}', '', ' '.join(findings(config, summary, records)), '']
    lines += [f'![{caption}]({PICTURE})', '']
    lines += _about(summary, records)
    lines += _outdated(records)
    lines += _claims(summary)
    lines += _measured_again(config, records)
    lines += _scores(config, summary)
    lines += _accuracy_by_length(config, summary, records.compared)
    lines += _perplexities(summary, records.compared)
    lines += _contexts(summary, records.compared)
    lines += _ranks(summary)
    lines += _pairs(summary)
    lines += _costs(summary)
    lines += _sweep(summary, records.swept)
    lines += _untrained(config, summary)
    return '\n'.join(lines)


def figures(*values: float, form: str = '+.3f') -> str:
    """Returns a figure, or an interval of two; a dash where there is none, for want of pairs."""
    if any(map(math.isnan, values)):
        return '–'
    return '..'.join(format(value, form) for value in values)


def _p_value(p: float) -> str:
    return '<0.001' if p < 0.001 else f'{p:.3f}'


def _difference(pair: Mapping) -> list[str]:
    """Returns the entries of a pair: mean, interval, and won : lost : all."""
    return [
        figures(pair['mean']),
        figures(pair['low'], pair['high']),
        f'{pair["wins"]} : {pair["losses"]} : {pair["pairs"]}',
    ]


def _about(summary: Mapping, records: StudyRecords) -> list[str]:
    """Returns what was run, where, and how to read the figures."""
    devices = Counter(r['device'] for r in records.compared).most_common()
    cells = ' and '.join(f'{count} cells on {device}' for device, count in devices)
    seeds = summary['seeds']
    rates = 'One learning rate for all.'
    if records.swept:
        rates = 'Learning rates were chosen on seed 0 by the loss inside the lengths of training.'
    text = (
        f'{len(summary["arms"])} encodings, {plural(len(summary["tasks"]), "task")}, '
        f'seeds {seeds[0]} to {seeds[-1]}: {cells}{_mixed_devices(records.compared)}. '
        'All figures are computed from `cells.jsonl`. Intervals are of 95 %, by a bootstrap over '
        'seeds (of differences of text also over its documents), tasks as they are, each by '
        f'itself. {rates}'
    )
    return [text, '']


def _mixed_devices(records: Sequence[dict]) -> str:
    """Returns in how many comparisons of one seed cells of several devices meet; '' if in none."""
    devices: dict[tuple, set] = {}
    for r in records:
        devices.setdefault((r['task'], r['seed']), set()).add(r['device'])
    mixed = sum(len(names) > 1 for names in devices.values())
    return f', of one task and seed on both in {mixed} of {len(devices)}' if mixed else ''


def _outdated(records: StudyRecords) -> list[str]:
    """Returns which encodings are shown as they were before they changed."""
    if not records.outdated:
        return []
    arms = ', '.join(f'`{arm}` ({commit})' for arm, commit in records.outdated.items())
    return [
        f'Shown as measured before the encoding changed, since not all of its cells have been '
        f'measured again: {arms}, with the commit that measured them '
        '(`model/positions/README.md`, Versions).',
        '',
    ]


def _measured_again(config, records: StudyRecords) -> list[str]:
    """Returns what encodings gave before their start, defaults or meaning changed, and now."""
    now = {(r['arm'], r['task'], r['seed']): r for r in records.compared}
    then = {}
    for record in records.before:
        cell = (record['arm'], record['task'], record['seed'])
        if cell in now:
            then[cell] = record
    if not then:
        return []

    rows = []
    for arm, task in sorted({cell[:2] for cell in then}):
        of_pair = [cell for cell in sorted(then) if cell[:2] == (arm, task)]
        commits = ', '.join(sorted({then[cell]['commit'] for cell in of_pair}))
        means = [
            np.mean([comparison.score(config, of[cell]) for cell in of_pair]) for of in (then, now)
        ]
        rows.append([arm, task, len(of_pair), commits, *(f'{mean:.3f}' for mean in means)])
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


def _claims(summary: Mapping) -> list[str]:
    if not summary['claims']:
        return []
    lines = [
        '## Claims',
        '',
        'As the config states them (its docstring says when they were written). A claim about '
        'several encodings is about each pair of them, and holds where all do. Of a pair count the '
        'seeds in which both have learned the task (where a claim is about success, all), and '
        'tasks with two such seeds or more, each alike. A verdict needs p < 0.05 (t-test, of '
        'success an exact sign test; corrected by Holm over all pairs below) and five pairs (of '
        'text, seeds and documents together).',
        '',
    ]
    header = ['claim', 'verdict', 'a - b', 'mean difference', 'interval']
    header += ['pairs won : lost : all', 'p (Holm)', 'tasks']
    rows: list[list] = []
    for claim in summary['claims']:
        several = len(claim['pairs']) > 1
        if several:
            rows.append([claim['text'], f'**{claim["verdict"]}**', *[''] * 6])
        for pair in claim['pairs']:
            name = f'{pair["a"]} - {pair["b"]}'
            counting = sum(of_task['pairs'] > 1 for of_task in pair['by_task'].values())
            rows.append(
                [
                    name if several else claim['text'],
                    pair['verdict'] if several else f'**{pair["verdict"]}**',
                    name,
                    *_difference(pair),
                    _p_value(pair['holm']),
                    f'{counting} of {len(claim["tasks"])}',
                ]
            )
    lines += table_lines(header, rows)
    if len(summary['tasks']) > 1:
        summary_line = 'The differences by task, with the number of pairs'
        lines += folded(summary_line, _differences_by_task(summary))
    return lines


def _differences_by_task(summary: Mapping) -> list[str]:
    """Returns a row each pair of a claim, from the claim that is about most tasks."""
    tasks = list(summary['tasks'])
    widest_last = sorted(reversed(summary['claims']), key=lambda claim: len(claim['tasks']))
    pairs = {(p['a'], p['b']): p for claim in widest_last for p in claim['pairs']}

    def entry(pair: Mapping, task: str) -> str:
        if task not in pair['by_task']:
            return '–'
        return f'{pair["by_task"][task]["mean"]:+.3f} ({pair["by_task"][task]["pairs"]})'

    rows = [
        [f'{a} - {b}', *(entry(pair, task) for task in tasks)]
        for (a, b), pair in sorted(pairs.items())
    ]
    return table_lines(['a - b', *tasks], rows)


def _scores(config, summary: Mapping) -> list[str]:
    names, tasks = list(summary['arms']), summary['tasks']
    seeds = len(summary['seeds'])
    where = 'beyond the lengths of training'
    if config.beyond:
        where = f'at lengths from {config.beyond} on'
    lines = [
        '## Scores',
        '',
        f'Accuracy {where} (text: minus the loss on fixed targets at the longest length), mean and '
        f'interval of all seeds; in brackets how many of them reached {config.trained:g} inside '
        'those lengths, where not all did.',
        '',
    ]

    def entry(scores: Mapping) -> str:
        interval = [scores['low'], scores['high']]
        if 'successes' in scores:  # an accuracy
            interval = [min(max(x, 0.0), 1.0) for x in interval]
        note = '' if scores['trained'] == seeds else f' [{scores["trained"]}/{seeds}]'
        return f'{scores["mean"]:.3f} ({figures(*interval, form=".2f")}){note}'

    rows = [[task, *(entry(of_task[arm]) for arm in names)] for task, of_task in tasks.items()]
    lines += table_lines(['task', *names], rows)

    def success(scores: Mapping) -> str:
        return f'{scores["successes"]}/{seeds} ({figures(*scores["success"], form=".2f")})'

    rows = [
        [task, *(success(of_task[arm]) for arm in names)]
        for task, of_task in tasks.items()
        if 'successes' in of_task[names[0]]
    ]
    if rows:
        lines += [f'Seeds whose score reaches {config.success:g}, with Wilson intervals:', '']
        lines += table_lines(['task', *names], rows)
    return lines


def _section(title: str, text: str, lines: Sequence[str]) -> list[str]:
    """Returns a section of tables, folded away where they are long; nothing without tables."""
    if not lines:
        return []
    return [f'## {title}', '', text, '', *folded_if_long('Show the tables', lines)]


def _accuracy_by_length(config, summary: Mapping, records: Sequence[dict]) -> list[str]:
    """Returns accuracy at the longest length of training and some longer ones, evenly spaced."""
    lines = []
    for task in summary['tasks']:
        of_task = [r for r in records if r['task'] == task and 'by_length' in r]
        if not of_task:
            continue
        lengths = sorted(map(int, of_task[0]['by_length']))
        inside = [n for n in lengths if n <= config.tasks[task].train[1]]
        beyond = [n for n in lengths if n > config.tasks[task].train[1]]
        places = np.linspace(0, len(beyond) - 1, min(_MOST_LENGTHS, len(beyond)))
        shown = [*inside[-1:], *(beyond[round(i)] for i in places)]
        rows = []
        for arm in summary['arms']:
            results = [r['by_length'] for r in of_task if r['arm'] == arm]
            means = [np.mean([result[str(n)]['exact'] for result in results]) for n in shown]
            rows.append([arm, *(f'{mean:.3f}' for mean in means)])
        lines += table_lines([f'{task} at length', *map(str, shown)], rows)
    text = 'Mean of all seeds; the first column is the longest length of training.'
    return _section('Accuracy by length', text, lines)


def _perplexities(summary: Mapping, records: Sequence[dict]) -> list[str]:
    kinds = {
        'non_overlapping': 'chunks one after the other',
        'sliding': 'sliding window',
        'fixed': 'fixed targets',
    }
    lines = []
    for task in summary['tasks']:
        of_task = [r for r in records if r['task'] == task and 'perplexity' in r]
        if not of_task:
            continue
        lengths = sorted(map(int, of_task[0]['perplexity']['fixed']))
        for kind, description in kinds.items():
            rows = []
            for arm in summary['arms']:
                results = [r['perplexity'][kind] for r in of_task if r['arm'] == arm]
                nats = [np.mean([math.log(x[str(n)]) for x in results]) for n in lengths]
                rows.append([arm, *(f'{math.exp(x):.2f}' for x in nats)])
            lines += table_lines([f'{task}, {description}', *map(str, lengths)], rows)
    text = 'The same target tokens everywhere; geometric mean of the seeds.'
    return _section('Perplexity by length', text, lines)


def _contexts(summary: Mapping, records: Sequence[dict]) -> list[str]:
    """Returns how much context texts are read with, as far as the records say."""
    lines = []
    for task in summary['tasks']:
        of_task = [r for r in records if r['task'] == task and 'effective_context' in r]
        if not of_task:
            continue
        columns = [
            (field, distance, f'{title} {distance}')
            for field, title in (('shuffled', 'shuffled beyond'), ('gap', 'gap of'))
            for distance in of_task[0].get(field, {})
        ]
        rows = []
        for arm in summary['arms']:
            of_arm = [r for r in of_task if r['arm'] == arm]
            row = [arm]
            row += [_span(of_arm, field) for field in ('effective_context', 'usable_length')]
            row += [_mean(of_arm, lambda r: r[field][distance]) for field, distance, _ in columns]
            rows.append(row)
        header = [task, 'effective context', 'usable length', *(title for *_, title in columns)]
        lines += table_lines(header, rows)
    text = (
        'Effective context: the shortest from which more gains less than 0.01 nats a token on '
        'fixed targets; usable length: the longest with a perplexity of at most 1.01 times that at '
        'the length of training (least and most of the seeds). Then nats a token that are lost at '
        'the length of training where what is further than so many tokens before the first target '
        'is shuffled, and where the ids of the targets leave so many out.'
    )
    return _section('Context', text, lines)


def _span(records: Sequence[dict], field: str) -> str:
    """Returns 'least to most' of a field that may be None, one figure where they are alike."""
    values = [r[field] for r in records if r[field] is not None]
    if not values:
        return '–'
    return ' to '.join(map(str, sorted({min(values), max(values)})))


def _mean(records: Sequence[dict], value: Callable[[dict], float | None]) -> str:
    values = [x for x in map(value, records) if x is not None]
    return figures(float(np.mean(values)) if values else math.nan)


def _ranks(summary: Mapping) -> list[str]:
    ranked = summary['ranked']
    if 'mean' not in ranked:
        text = 'No pair of task and seed was learned by all encodings: no ranks.'
        return ['## Ranks', '', text, '']
    tasks = ', '.join(f'{task} ({count})' for task, count in ranked['tasks'].items())
    text = (
        f'Over the seeds that all ranked encodings have learned, tasks alike: {tasks}. '
        'Ties share their rank.'
    )
    if math.isfinite(ranked['friedman_p']):
        text += (
            f' Friedman p = {ranked["friedman_p"]:.2g} over the tasks, '
            f'critical difference (Nemenyi, 0.05) {ranked["critical"]:.2f}.'
        )
    rows = [
        [
            ranked['arms'][i],
            f'{ranked["mean"][i]:.2f}',
            figures(ranked['low'][i], ranked['high'][i], form='.2f'),
        ]
        for i in np.argsort(ranked['mean'])
    ]
    return ['## Ranks', '', text, '', *table_lines(['encoding', 'mean rank', 'interval'], rows)]


def _pairs(summary: Mapping) -> list[str]:
    rows = [
        [
            pair['a'],
            pair['b'],
            *_difference(pair),
            _p_value(pair['p']),
            _p_value(pair['holm']),
            figures(pair['smallest'], form='.3f'),
        ]
        for pair in summary['pairs']
    ]
    header = ['a', 'b', 'difference', 'interval', 'won : lost : all', 'p', 'p (Holm)']
    text = (
        'a - b over the seeds that both have learned, as with claims, over all tasks; p of a '
        't-test, the same corrected by Holm; the smallest difference that pairs of this number and '
        'spread would have shown after the correction, with probability 0.8.'
    )
    lines = table_lines([*header, 'smallest visible'], rows)
    return ['## Paired differences', '', text, '', *folded_if_long('Show all pairs', lines)]


def _costs(summary: Mapping) -> list[str]:
    first = next(iter(summary['arms'].values()))
    device, together = first['way']
    tasks = ', '.join(first['tasks']) or 'none that all encodings ran so'
    rows = [
        [
            arm,
            costs['added'],
            figures(costs['tokens_per_second'], form=',.0f'),
            figures(costs['step_mb'], form='.0f'),
            ', '.join(f'{lr:g}' for lr in sorted(set(summary['rates'][arm].values()))),
        ]
        for arm, costs in summary['arms'].items()
    ]
    header = ['encoding', 'parameters added', 'tokens/s', 'memory of a step, MB', 'learning rates']
    text = (
        f'Cells run on {device}, {together} a program, of these tasks: {tasks}; means of their '
        'medians. Cells of different encodings ran at different times, beside others: speeds are '
        'no more than a hint.'
    )
    return ['## Cost', '', text, '', *table_lines(header, rows)]


def _sweep(summary: Mapping, swept: Sequence[dict]) -> list[str]:
    """Returns the losses that chose the learning rate of each arm."""
    if not swept:
        return []
    rates = sorted({r['lr'] for r in swept})
    tasks = sorted({r['task'] for r in swept})
    by_cell = {(r['arm'], r['task'], r['lr']): r for r in swept}

    def entry(arm: str, task: str, lr: float) -> str:
        record = by_cell[arm, task, lr]
        loss = f'{record["validation_nats"]:.4g}'
        if summary['rates'][arm][task] == lr:
            loss = f'**{loss}**'
        if record.get('beyond') is None:
            return loss
        return f'{loss} ({record["beyond"]:.2f})'

    rows = [
        [arm, *(entry(arm, task, lr) for task in tasks for lr in rates)] for arm in summary['arms']
    ]
    chosen = [summary['rates'][arm][task] for arm in summary['arms'] for task in tasks]
    at_edge = sum(lr in (rates[0], rates[-1]) for lr in chosen)
    text = (
        'Loss inside the lengths of training with each learning rate (seed 0), the least bold: it '
        f'was chosen. {at_edge} of {len(chosen)} are at an edge of the grid.'
    )
    if 'beyond' in swept[0]:
        text += ' In brackets the accuracy beyond those lengths, which had no say.'
    header = ['encoding', *(f'{task}, {lr:g}' for task in tasks for lr in rates)]
    return [text, '', *table_lines(header, rows)]


def _untrained(config, summary: Mapping) -> list[str]:
    if not any(summary['untrained'].values()):
        return []

    def entry(cell: Mapping) -> str:
        inside = 'diverged' if cell['inside'] is None else f'{cell["inside"]:.4f}'
        return f'{cell["task"]} (seed {cell["seed"]}, {inside})'

    lines = [
        f'- {arm}: {", ".join(map(entry, cells))}'
        for arm, cells in summary['untrained'].items()
        if cells
    ]
    text = (
        f'Cells that did not reach {config.trained:g} inside the lengths of training: shown, not '
        'ranked.'
    )
    return ['## Not learned', '', text, '', *folded('Show the cells', [*lines, ''])]
