"""The figures of a study's report, from the raw lines alone."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from evals import statistics
from runtime.errors import RunError

Cells = Mapping[tuple[str, str, int], dict]  # (task, arm, seed) -> its record


def score(config, record: dict) -> float:
    """Returns what encodings are compared by, larger is better.

    Of a task: mean accuracy at the lengths from `config.beyond` on (0: at all beyond those of
    training). Of text: minus the loss, nats per token, on the fixed targets at the longest length.
    """
    if 'by_length' in record:
        first = config.beyond or config.tasks[record['task']].train[1] + 1
        results = record['by_length'].items()
        return float(np.mean([result['exact'] for n, result in results if int(n) >= first]))
    longest = max(record['perplexity']['fixed'], key=int)
    return -math.log(record['perplexity']['fixed'][longest])


def is_trained(config, record: dict) -> bool:
    """Returns whether the cell has learned its task inside the lengths of training."""
    inside = record.get('inside')
    return bool(record['finite']) and (inside is None or inside >= config.trained)


def check_fair(records: Sequence[dict]) -> None:
    """Raises RunError where encodings differ in more than what they are.

    For one task and seed they have the same initial parameters (their own left out), data and size.
    """
    for field in ('initial', 'data', 'parameters'):
        first_of: dict = {}
        for record in records:
            first = first_of.setdefault((record['task'], record['seed']), record)
            if first[field] != record[field]:
                raise RunError(
                    f'not a fair comparison: {field} of {record["task"]}, seed {record["seed"]} '
                    f'is {first[field]} for {first["arm"]} and {record[field]} for {record["arm"]}'
                )


def summarise(config, arms: Mapping, rates: Mapping, records: Sequence[dict]) -> dict:
    """Returns all figures of the report: the content of summary.json.

    Args:
      config: of the study.
      arms: {name: its encoding}; the names count here.
      rates: {arm: {task: learning rate}}.
      records: of the cells that are compared.
    """
    check_fair(records)
    names, tasks = list(arms), list(config.tasks)
    by_cell = {(r['task'], r['arm'], r['seed']): r for r in records}
    seeds = sorted({r['seed'] for r in records})
    study = _Study(config, by_cell, seeds)

    by_task_and_seed = sorted(records, key=lambda r: (tasks.index(r['task']), r['seed']))
    summary: dict = {
        'title': config.title,
        'seeds': seeds,
        'rates': rates,
        'untrained': {
            arm: [
                {'task': r['task'], 'seed': r['seed'], 'inside': r.get('inside')}
                for r in by_task_and_seed
                if r['arm'] == arm and not is_trained(config, r)
            ]
            for arm in names
        },
        'arms': measure_costs(config, names, records),
        'tasks': {task: {arm: study.scores(task, arm) for arm in names} for task in tasks},
        'ranked': study.ranks(names, tasks),
    }

    # All pairs of encodings are corrected together, and the pairs of all claims together.
    summary['pairs'] = _corrected(
        [study.pair(tasks, a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    )
    claims = [c for c in config.claims if all(a in arms for a in (*c['better'], *c['worse']))]
    pairs_of_claims = [
        [
            study.pair(claim['tasks'], a, b, claim.get('of', 'score'))
            for a in claim['better']
            for b in claim['worse']
        ]
        for claim in claims
    ]
    _corrected([pair for pairs in pairs_of_claims for pair in pairs])
    summary['claims'] = [
        {**dict(claim), 'verdict': _common_verdict(pairs), 'pairs': pairs}
        for claim, pairs in zip(claims, pairs_of_claims)
    ]
    return summary


def measure_costs(config, names: Sequence[str], records: Sequence[dict]) -> dict:
    """Returns speed, memory and mean score of each arm.

    Speed and memory are those of the commonest way in which cells were run, the device and the
    seeds in one program, over the tasks that all encodings ran so: the mean of the tasks' medians.
    """

    def way(record: dict) -> tuple[str, int]:
        return record['device'], record.get('together', 1)

    commonest = Counter(map(way, records)).most_common(1)[0][0]
    timed: dict[tuple, list[dict]] = {}
    for record in records:
        if way(record) == commonest:
            timed.setdefault((record['arm'], record['task']), []).append(record)
    shared = [task for task in config.tasks if all((arm, task) in timed for arm in names)]

    def mean_of(arm: str, field: str) -> float:
        if not shared:
            return math.nan
        return float(np.mean([np.median([r[field] for r in timed[arm, t]]) for t in shared]))

    costs = {}
    for arm in names:
        of_arm = [r for r in records if r['arm'] == arm]
        costs[arm] = {
            'added': max(r['added'] for r in of_arm),
            'tokens_per_second': mean_of(arm, 'tokens_per_second'),
            'step_mb': mean_of(arm, 'step_mb'),
            'way': commonest,
            'tasks': shared,
            'score': float(np.mean([score(config, r) for r in of_arm])),
        }
    return costs


@dataclasses.dataclass(frozen=True)
class _Study:
    """The compared cells of a study, and the figures that come of them."""

    config: object
    cells: Cells
    seeds: Sequence[int]

    def scores(self, task: str, arm: str) -> dict:
        """Returns the mean score of an arm on a task, its interval, and how often it succeeds."""
        records = [self.cells[task, arm, seed] for seed in self.seeds]
        scores = [score(self.config, r) for r in records]
        mean = statistics.contrast([[scores]])
        figures = {
            'mean': mean.mean,
            'low': mean.low,
            'high': mean.high,
            'seeds': scores,
            'trained': sum(is_trained(self.config, r) for r in records),
        }
        if 'by_length' in records[0]:
            successes = sum(x >= self.config.success for x in scores)
            figures |= {
                'inside': [r['inside'] for r in records],
                'successes': successes,
                'success': statistics.wilson(successes, len(records)),
            }
        return figures

    def ranks(self, names: Sequence[str], tasks: Sequence[str]) -> dict:
        """Returns mean ranks over the seeds of a task in which every encoding has learned it.

        Tasks of one such seed are left out where others have more. An encoding that never learns a
        task has no rank.
        """
        learned = {cell for cell, r in self.cells.items() if is_trained(self.config, r)}
        ranked = [a for a in names if any((t, a, s) in learned for t in tasks for s in self.seeds)]
        common = {
            t: [s for s in self.seeds if all((t, a, s) in learned for a in ranked)] for t in tasks
        }
        fewest = 2 if any(len(seeds) > 1 for seeds in common.values()) else 1
        scores = {
            t: np.array([[score(self.config, self.cells[t, a, s]) for a in ranked] for s in seeds])
            for t, seeds in common.items()
            if len(seeds) >= fewest
        }
        figures: dict = {'arms': ranked, 'tasks': {t: len(rows) for t, rows in scores.items()}}
        if not scores or len(ranked) < 2:
            return figures

        def inside(rank: float) -> float:
            return min(max(rank, 1.0), float(len(ranked)))  # nan stays nan

        means = statistics.mean_ranks(scores)
        p, critical = statistics.friedman(np.stack([rows.mean(0) for rows in scores.values()]))
        return figures | {
            'mean': [mean.mean for mean in means],
            'low': [inside(mean.low) for mean in means],
            'high': [inside(mean.high) for mean in means],
            'friedman_p': p,
            'critical': critical,
        }

    def pair(self, tasks: Sequence[str], a: str, b: str, of: str = 'score') -> dict:
        """Returns a - b over the seeds in which both have learned the task.

        With `of` = 'success' over all seeds, each score being 1 where the seed succeeds, else 0.
        """

        def measure(record: dict) -> float:
            value = score(self.config, record)
            return float(value >= self.config.success) if of == 'success' else value

        def counts(record: dict) -> bool:
            return of == 'success' or is_trained(self.config, record)

        sources = {}
        for task in tasks:
            of_seeds = [(self.cells[task, a, s], self.cells[task, b, s]) for s in self.seeds]
            both = [(x, y) for x, y in of_seeds if counts(x) and counts(y)]
            by_seed = [measure(x) - measure(y) for x, y in both]
            sources[task] = [by_seed]
            if both and 'by_document' in both[0][0]:
                sources[task].append(differences_by_document(both, float(np.mean(by_seed))))
        return {
            'a': a,
            'b': b,
            'contrast': statistics.contrast(list(sources.values()), successes=of == 'success'),
            'by_task': {
                task: {'mean': float(np.mean(by_seed)), 'pairs': len(by_seed)}
                for task, (by_seed, *_) in sources.items()
                if by_seed
            },
        }


def differences_by_document(both: Sequence[tuple[dict, dict]], mean: float) -> list[float]:
    """Returns what each document of the scored text gives to a difference, seeds together.

    Each counts by its tokens. The mean of what is returned is `mean`, the difference itself.
    """
    weights = {d: tokens for d, (_, tokens) in both[0][0]['by_document'].items()}
    each = len(weights) / sum(weights.values())
    gives = []
    for document, weight in weights.items():
        gains = [y['by_document'][document][0] - x['by_document'][document][0] for x, y in both]
        gives.append(mean + each * (float(np.mean(gains)) - weight * mean))
    return gives


def _corrected(pairs: list[dict]) -> list[dict]:
    """Completes pairs by the p that Holm corrects over all of them, and the verdict by it.

    The smallest visible effect is at the level of the first of Holm's steps.
    """
    contrasts = [pair.pop('contrast') for pair in pairs]
    corrected = statistics.holm([contrast.p for contrast in contrasts])
    for pair, contrast, holm in zip(pairs, contrasts, corrected):
        pair |= {
            **dataclasses.asdict(contrast),
            'holm': holm,
            'verdict': contrast.verdict(holm),
            'smallest': contrast.smallest(0.05 / len(pairs)),
        }
    return pairs


def _common_verdict(pairs: Sequence[dict]) -> str:
    """Returns the verdict that all pairs of a claim share, else 'mixed'."""
    verdicts = {pair['verdict'] for pair in pairs}
    return verdicts.pop() if len(verdicts) == 1 else 'mixed'
