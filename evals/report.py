"""The report of a study: index.html, self-contained, and report.md, from the raw lines."""
import html
import json
import math
import pathlib

import numpy as np

from evals import plots, statistics
from train.errors import RunError
from train.runs import write_atomically


def score(config, record: dict) -> float:
    """What encodings are compared by, larger is better: mean accuracy at the lengths from `config.beyond` on (0: all beyond those of
    training), or, for text, minus the loss on the fixed targets at the longest length."""
    if 'by_length' in record:
        first = config.beyond or config.tasks[record['task']].train[1] + 1
        return float(np.mean([v['exact'] for n, v in record['by_length'].items() if int(n) >= first]))
    longest = max(record['perplexity']['fixed'], key=int)
    return -math.log(record['perplexity']['fixed'][longest])


def trained(config, record: dict) -> bool:
    """Whether the cell has learned its task inside the lengths of training."""
    return bool(record['finite']) and (record.get('inside') is None or record['inside'] >= config.trained)


def check_fair(records: list[dict]) -> None:
    """Raises RunError where two encodings of the same task and seed had other initial parameters (their own left out), other data,
    or another size."""
    for what in ('initial', 'data', 'parameters'):
        seen: dict = {}
        for r in records:
            first = seen.setdefault((r['task'], r['seed']), r)
            if first[what] != r[what]:
                raise RunError(f'not a fair comparison: {what} of {r["task"]}, seed {r["seed"]} is {first[what]} for {first["arm"]} and '
                               f'{r[what]} for {r["arm"]}')


def summarise(config, arms: dict, rates: dict, records: list[dict]) -> dict:
    """All figures of the report, from the records alone."""
    check_fair(records)
    names, tasks = list(arms), list(config.tasks)
    cell = {(r['task'], r['arm'], r['seed']): r for r in records}
    seeds = sorted({r['seed'] for r in records})
    values = lambda task, arm: [score(config, cell[task, arm, s]) for s in seeds if trained(config, cell[task, arm, s])]
    untrained = {arm: sorted(f'{r["task"]} (seed {r["seed"]}, {r["inside"]:.2f})' for r in records
                             if r['arm'] == arm and not trained(config, r)) for arm in names}
    found: dict = {'title': config.title, 'seeds': seeds, 'rates': rates, 'untrained': untrained, 'arms': {}, 'tasks': {}}
    for task in tasks:
        of_task = {}
        for arm in names:
            mine = [cell[task, arm, s] for s in seeds]
            scores = [score(config, r) for r in mine]
            of_task[arm] = {'mean': float(np.mean(scores)), 'interval': statistics.interval(scores), 'seeds': scores,
                            'trained': sum(trained(config, r) for r in mine)}
            if 'by_length' in mine[0]:
                wins = sum(s >= config.success for s in scores)
                of_task[arm] |= {'inside': [r['inside'] for r in mine], 'successes': wins, 'success': statistics.wilson(wins, len(mine))}
        found['tasks'][task] = of_task
    for arm in names:
        mine = [r for r in records if r['arm'] == arm]
        found['arms'][arm] = {'added': max(r['added'] for r in mine), 'tokens_per_second': float(np.median([r['tokens_per_second'] for r in mine])),
                              'step_mb': float(np.median([r['step_mb'] for r in mine])),
                              'score': float(np.mean([score(config, r) for r in mine]))}

    # Ranks: over pairs of task and seed in which every encoding has learned the task; an encoding that never does has no rank.
    ranked = [a for a in names if any(trained(config, r) for r in records if r['arm'] == a)]
    blocks = {t: [s for s in seeds if all(trained(config, cell[t, a, s]) for a in ranked)] for t in tasks}
    table = {t: np.array([[score(config, cell[t, a, s]) for a in ranked] for s in b]) for t, b in blocks.items() if b}
    found['ranked'] = {'arms': ranked, 'blocks': int(sum(len(b) for b in blocks.values()))}
    if table and len(ranked) > 1:
        mean, low, high = statistics.rank_intervals(table)
        p, critical = statistics.friedman(np.concatenate(list(table.values())))
        found['ranked'] |= {'mean': mean.tolist(), 'low': low.tolist(), 'high': high.tolist(), 'friedman_p': p, 'critical': critical}

    pairs = []
    for i, a in enumerate(names):
        for b in names[i + 1:]:
            strata = _differences(config, cell, tasks, seeds, a, b)
            every = [d for s in strata for d in s]
            pairs.append({'a': a, 'b': b, **statistics.verdict(strata), 'p': statistics.paired_p(every),
                          'smallest': statistics.smallest_effect(every)})
    for pair, adjusted in zip(pairs, statistics.holm([p['p'] for p in pairs])):
        pair['holm'] = adjusted
    found['pairs'] = pairs
    found['claims'] = [{**{k: claim[k] for k in ('text', 'better', 'worse', 'tasks')}, **statistics.verdict(
        [s for a in claim['better'] for b in claim['worse'] for s in _differences(config, cell, claim['tasks'], seeds, a, b)])}
        for claim in config.claims if all(a in arms for a in (*claim['better'], *claim['worse']))]
    found['values'] = {t: {a: values(t, a) for a in names} for t in tasks}
    return found


def _differences(config, cell, tasks, seeds, a, b) -> list[list[float]]:
    """score(a) - score(b), a list a task, over the seeds in which both have learned it."""
    return [[score(config, cell[t, a, s]) - score(config, cell[t, b, s]) for s in seeds if trained(config, cell[t, a, s]) and trained(config, cell[t, b, s])]
            for t in tasks]


def write(config, arms: dict, rates: dict, records: list[dict], swept: list[dict], folder: pathlib.Path) -> dict:
    """Writes report/index.html, report/report.md and report/summary.json. Returns the summary."""
    found = summarise(config, arms, rates, records)
    names, tasks = list(arms), list(config.tasks)
    label = 'accuracy beyond training' if all(config.tasks[t].kind == 'task' for t in tasks) else 'score (higher is better)'
    kinds = {config.tasks[t].kind for t in tasks}
    pictures = []
    if 'task' in kinds:
        pictures.append(('Accuracy against length (lengths of training shaded)', plots.by_length(config, names, records)))
    if 'text' in kinds:
        pictures.append(('Perplexity against the length of the text (same targets for all)', plots.perplexity(config, names, records)))
        pictures.append(('Loss by position', plots.by_position(config, names, records)))
    if 'mean' in found['ranked']:
        r = found['ranked']
        pictures.append(('Ranks with intervals', plots.rank_bars(r['arms'], np.array(r['mean']), r['low'], r['high'], r['critical'], r['blocks'])))
    pictures.append(('Every seed', plots.strips(tasks, names, lambda t, a: found['tasks'][t][a]['seeds'], label)))
    pictures.append(('Quality against speed', plots.quality_and_speed(names, {a: v['tokens_per_second'] for a, v in found['arms'].items()},
                                                                      {a: v['score'] for a, v in found['arms'].items()}, label)))
    if any('attention' in r for r in records):
        pictures.append(('Mean attention against distance, a line a head', plots.attention(names, records)))
    report = folder / 'report'
    report.mkdir(exist_ok=True)
    text = markdown(config, found, swept)
    write_atomically(report / 'summary.json', json.dumps(found, indent=1))
    write_atomically(report / 'report.md', text)
    write_atomically(report / 'index.html', page(found['title'], text, pictures))
    return found


def table_lines(header: list[str], rows: list[list]) -> list[str]:
    return ['| ' + ' | '.join(header) + ' |', '|' + '---|' * len(header), *('| ' + ' | '.join(map(str, r)) + ' |' for r in rows), '']


def _figures(*values: float, form: str = '+.3f') -> str:
    """A figure, or an interval; a dash where there is none, for want of pairs."""
    return '–' if any(map(math.isnan, values)) else '..'.join(format(v, form) for v in values)


def _difference(p: dict) -> list[str]:
    return [_figures(p['mean']), _figures(p['low'], p['high']), f'{p["wins"]} : {p["losses"]} : {p["pairs"]}']


def markdown(config, found: dict, swept: list[dict]) -> str:
    """The tables of the report."""
    names, tasks = list(found['arms']), list(found['tasks'])
    span = lambda pair: f'{pair[0]:.2f}..{pair[1]:.2f}'
    lines = [f'# {found["title"]}', '', f'{len(names)} encodings, {len(tasks)} tasks, seeds {found["seeds"][0]} to {found["seeds"][-1]}. '
             f'All figures are computed from `cells.jsonl`. Intervals are 95 % bootstrap intervals. '
             + ('Learning rates were chosen on seed 0 by the loss inside the lengths of training.' if swept else
                'One learning rate for all.'), '']
    if found['claims']:
        lines += ['## Claims', '', 'Written in the config before the study was run.', '']
        lines += table_lines(['claim', 'verdict', 'mean difference', 'interval', 'pairs won : lost : all', 'tasks'],
                        [[c['text'], f'**{c["verdict"]}**', *_difference(c), len(c['tasks'])] for c in found['claims']])
    where = f'at lengths from {config.beyond} on' if config.beyond else 'beyond the lengths of training'
    lines += ['## Scores', '', f'Accuracy {where} (text: minus the loss on fixed targets at the longest length), mean '
              f'and interval; in brackets how many of the seeds reached {config.trained:g} inside them, where not all did.', '']
    def entry(task, arm):
        v = found['tasks'][task][arm]
        note = '' if v['trained'] == len(found['seeds']) else f' [{v["trained"]}/{len(found["seeds"])}]'
        return f'{v["mean"]:.3f} ({span(v["interval"])}){note}'
    lines += table_lines(['task', *names], [[t, *(entry(t, a) for a in names)] for t in tasks])
    solved = [t for t in tasks if 'successes' in found['tasks'][t][names[0]]]
    if solved:
        lines += [f'Seeds whose score reaches {config.success:g}, with Wilson intervals:', '']
        lines += table_lines(['task', *names], [[t, *(f'{found["tasks"][t][a]["successes"]}/{len(found["seeds"])} '
                                                 f'({span(found["tasks"][t][a]["success"])})' for a in names)] for t in solved])
    r = found['ranked']
    if 'mean' in r:
        order = np.argsort(r['mean'])
        lines += ['## Ranks', '', f'Over {r["blocks"]} pairs of task and seed that all ranked encodings have learned; ties share their rank.'
                  + (f' Friedman p = {r["friedman_p"]:.2g}, critical difference (Nemenyi, 0.05) {r["critical"]:.2f}.'
                     if math.isfinite(r['friedman_p']) else ''), '']
        lines += table_lines(['encoding', 'mean rank', 'interval'], [[r['arms'][i], f'{r["mean"][i]:.2f}', span((r['low'][i], r['high'][i]))] for i in order])
    else:
        lines += ['## Ranks', '', 'No pair of task and seed was learned by all encodings: no ranks.', '']
    lines += ['## Paired differences', '', 'Mean of a - b over tasks and seeds that both have learned; p of a sign-flip permutation test, '
              'adjusted by Holm; the smallest difference that these seeds would have shown with probability 0.8.', '']
    lines += table_lines(['a', 'b', 'difference', 'interval', 'won : lost : all', 'p', 'p (Holm)', 'smallest visible'],
                    [[p['a'], p['b'], *_difference(p), f'{p["p"]:.3g}', f'{p["holm"]:.3g}', _figures(p['smallest'], form='.3f')]
                     for p in found['pairs']])
    lines += ['## Cost', '']
    lines += table_lines(['encoding', 'parameters added', 'tokens/s', 'memory of a step, MB', 'learning rates'],
                    [[a, v['added'], f'{v["tokens_per_second"]:,.0f}', f'{v["step_mb"]:.0f}',
                      ', '.join(f'{lr:g}' for lr in sorted(set(found['rates'][a].values())))]
                     for a, v in found['arms'].items()])
    if swept:
        lines += ['Loss inside the lengths of training with each learning rate (seed 0):', '']
        rates, of_tasks = sorted({r['lr'] for r in swept}), sorted({r['task'] for r in swept})
        loss = {(r['arm'], r['task'], r['lr']): r['validation_nats'] for r in swept}
        lines += table_lines(['encoding', *(f'{t}, {lr:g}' for t in of_tasks for lr in rates)],
                        [[a, *(f'{loss[a, t, lr]:.4f}' for t in of_tasks for lr in rates)] for a in names])
    if any(found['untrained'].values()):
        lines += ['## Not learned', '', f'Cells that did not reach {config.trained:g} inside the lengths of training: shown, not ranked.', '']
        lines += [f'- {arm}: {", ".join(cells)}' for arm, cells in found['untrained'].items() if cells] + ['']
    return '\n'.join(lines)


def page(title: str, text: str, pictures: list[tuple[str, str]]) -> str:
    """The tables and the pictures as one HTML file that needs nothing else."""
    body, table = [], False
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip('|').split('|')] if line.startswith('|') else None
        if cells and set(line) <= set('|-'):
            continue
        if cells and not table:
            body.append('<table>')
        if table and not cells:
            body.append('</table>')
        kind = 'td' if table else 'th'
        table = bool(cells)
        mark = lambda s: html.escape(s).replace('**', '')
        if cells:
            body.append('<tr>' + ''.join(f'<{kind}>{mark(c)}</{kind}>' for c in cells) + '</tr>')
        elif line.startswith('#'):
            level = len(line) - len(line.lstrip('#'))
            body.append(f'<h{level}>{mark(line.lstrip("# "))}</h{level}>')
        elif line:
            body.append(f'<p>{mark(line)}</p>')
    if table:
        body.append('</table>')
    figures = ''.join(f'<h2>{html.escape(name)}</h2><div class="picture">{svg}</div>' for name, svg in pictures)
    style = ('body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1300px;padding:0 1em;color:#222}table{border-collapse:'
             'collapse;font-size:13px;display:block;overflow-x:auto}th,td{border-bottom:1px solid #ddd;padding:3px 9px;text-align:left;'
             'white-space:nowrap}.picture svg{max-width:100%;height:auto}')
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style><body>'
            + '\n'.join(body) + figures + '</body></html>\n')
