"""The figures of a study's report, from the raw lines alone."""

import dataclasses
import math
from collections import Counter

import numpy as np

from evals import statistics
from runtime.errors import RunError


def score(config, record: dict) -> float:
    """What encodings are compared by, larger is better: mean accuracy at the lengths from `config.beyond` on (0: all beyond those of
    training), or, for text, minus the loss on the fixed targets at the longest length."""
    if 'by_length' in record:
        first = config.beyond or config.tasks[record['task']].train[1] + 1
        return float(
            np.mean([v['exact'] for n, v in record['by_length'].items() if int(n) >= first])
        )
    longest = max(record['perplexity']['fixed'], key=int)
    return -math.log(record['perplexity']['fixed'][longest])


def trained(config, record: dict) -> bool:
    """Whether the cell has learned its task inside the lengths of training."""
    return bool(record['finite']) and (
        record.get('inside') is None or record['inside'] >= config.trained
    )


def check_fair(records: list[dict]) -> None:
    """Raises RunError where two encodings of the same task and seed had other initial parameters (their own left out), other data,
    or another size."""
    for what in ('initial', 'data', 'parameters'):
        seen: dict = {}
        for r in records:
            first = seen.setdefault((r['task'], r['seed']), r)
            if first[what] != r[what]:
                raise RunError(
                    f'not a fair comparison: {what} of {r["task"]}, seed {r["seed"]} is {first[what]} for {first["arm"]} and '
                    f'{r[what]} for {r["arm"]}'
                )


def summarise(config, arms: dict, rates: dict, records: list[dict]) -> dict:
    """All figures of the report."""
    check_fair(records)
    names, tasks = list(arms), list(config.tasks)
    cell = {(r['task'], r['arm'], r['seed']): r for r in records}
    seeds = sorted({r['seed'] for r in records})
    untrained = {
        arm: [
            {'task': r['task'], 'seed': r['seed'], 'inside': r.get('inside')}
            for r in sorted(records, key=lambda r: (tasks.index(r['task']), r['seed']))
            if r['arm'] == arm and not trained(config, r)
        ]
        for arm in names
    }
    found: dict = {
        'title': config.title,
        'seeds': seeds,
        'rates': rates,
        'untrained': untrained,
        'arms': _costs(config, names, records),
        'tasks': {},
    }
    for task in tasks:
        of_task = {}
        for arm in names:
            mine = [cell[task, arm, s] for s in seeds]
            scores = [score(config, r) for r in mine]
            of = statistics.contrast([[scores]])
            of_task[arm] = {
                'mean': of.mean,
                'low': of.low,
                'high': of.high,
                'seeds': scores,
                'trained': sum(trained(config, r) for r in mine),
            }
            if 'by_length' in mine[0]:
                wins = sum(s >= config.success for s in scores)
                of_task[arm] |= {
                    'inside': [r['inside'] for r in mine],
                    'successes': wins,
                    'success': statistics.wilson(wins, len(mine)),
                }
        found['tasks'][task] = of_task
    found['ranked'] = _ranks(config, names, cell, tasks, seeds)
    found['pairs'] = _corrected(
        [
            _pair(config, cell, tasks, seeds, a, b)
            for i, a in enumerate(names)
            for b in names[i + 1 :]
        ]
    )

    asked = [c for c in config.claims if all(a in arms for a in (*c['better'], *c['worse']))]
    of_claims = [
        [
            _pair(config, cell, c['tasks'], seeds, a, b, c.get('of', 'score'))
            for a in c['better']
            for b in c['worse']
        ]
        for c in asked
    ]
    _corrected([p for pairs in of_claims for p in pairs])
    found['claims'] = [
        {**dict(claim), 'verdict': _together([p['verdict'] for p in pairs]), 'pairs': pairs}
        for claim, pairs in zip(asked, of_claims)
    ]
    return found


def _costs(config, names, records) -> dict:
    """Speed and memory are those of the commonest way in which cells were run, the device and the seeds in one program, over the tasks that all
    encodings ran so: the mean of the tasks' medians."""
    way = lambda r: (r['device'], r.get('together', 1))
    commonest = Counter(map(way, records)).most_common(1)[0][0]
    timed = lambda arm, task: [
        r for r in records if (r['arm'], r['task'], way(r)) == (arm, task, commonest)
    ]
    shared = [task for task in config.tasks if all(timed(arm, task) for arm in names)]
    found = {}
    for arm in names:
        mine = [r for r in records if r['arm'] == arm]
        mean = lambda what: (
            float(np.mean([np.median([r[what] for r in timed(arm, task)]) for task in shared]))
            if shared
            else math.nan
        )
        found[arm] = {
            'added': max(r['added'] for r in mine),
            'tokens_per_second': mean('tokens_per_second'),
            'step_mb': mean('step_mb'),
            'way': commonest,
            'tasks': shared,
            'score': float(np.mean([score(config, r) for r in mine])),
        }
    return found


def _ranks(config, names, cell, tasks, seeds) -> dict:
    """Over the seeds of a task in which every encoding has learned it, tasks of one such seed left out; an encoding that never learns one has
    no rank."""
    ranked = [a for a in names if any(trained(config, cell[t, a, s]) for t in tasks for s in seeds)]
    common = {
        t: [s for s in seeds if all(trained(config, cell[t, a, s]) for a in ranked)] for t in tasks
    }
    fewest = 2 if any(len(s) > 1 for s in common.values()) else 1
    table = {
        t: np.array([[score(config, cell[t, a, s]) for a in ranked] for s in of_task])
        for t, of_task in common.items()
        if len(of_task) >= fewest
    }
    found = {'arms': ranked, 'tasks': {t: len(scores) for t, scores in table.items()}}
    if not table or len(ranked) < 2:
        return found
    ranks = statistics.mean_ranks(table)
    clip = lambda x: min(max(x, 1.0), float(len(ranked)))  # nan stays nan
    p, critical = statistics.friedman(np.stack([scores.mean(0) for scores in table.values()]))
    return found | {
        'mean': [r.mean for r in ranks],
        'low': [clip(r.low) for r in ranks],
        'high': [clip(r.high) for r in ranks],
        'friedman_p': p,
        'critical': critical,
    }


def _pair(config, cell, tasks, seeds, a, b, of: str = 'score') -> dict:
    """a - b over the seeds in which both have learned the task; `of` = 'success': over all seeds, whether a seed succeeds."""
    success = of == 'success'
    measure = lambda r: float(score(config, r) >= config.success) if success else score(config, r)
    sources = {}
    for t in tasks:
        both = [
            (cell[t, a, s], cell[t, b, s])
            for s in seeds
            if success or trained(config, cell[t, a, s]) and trained(config, cell[t, b, s])
        ]
        by_seed = [measure(x) - measure(y) for x, y in both]
        sources[t] = (
            [by_seed, _by_document(both, float(np.mean(by_seed)))]
            if both and 'by_document' in both[0][0]
            else [by_seed]
        )
    found = statistics.contrast(list(sources.values()), successes=success)
    return {
        'a': a,
        'b': b,
        'contrast': found,
        'by_task': {
            t: {'mean': float(np.mean(x[0])), 'pairs': len(x[0])}
            for t, x in sources.items()
            if x[0]
        },
    }


def _by_document(both: list[tuple[dict, dict]], mean: float) -> list[float]:
    """What each document of the scored text gives to the difference, seeds together, by its tokens: their mean is `mean`."""
    weights = {d: tokens for d, (_, tokens) in both[0][0]['by_document'].items()}
    each = len(weights) / sum(weights.values())
    lost = lambda r, d: r['by_document'][d][0]
    return [
        mean + each * (float(np.mean([lost(y, d) - lost(x, d) for x, y in both])) - w * mean)
        for d, w in weights.items()
    ]


def _corrected(pairs: list[dict]) -> list[dict]:
    """With the p of all of them corrected by Holm, the verdict by it, and the smallest effect at the level of the first of his steps."""
    contrasts = [pair.pop('contrast') for pair in pairs]
    for pair, c, holm in zip(pairs, contrasts, statistics.holm([c.p for c in contrasts])):
        pair |= {
            **dataclasses.asdict(c),
            'holm': holm,
            'verdict': c.decided(holm),
            'smallest': c.smallest(0.05 / len(pairs)),
        }
    return pairs


def _together(verdicts: list[str]) -> str:
    """Of a claim about several pairs: what is true of all of them, else 'mixed'."""
    return verdicts[0] if len(set(verdicts)) == 1 else 'mixed'
