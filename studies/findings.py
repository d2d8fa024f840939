"""States what a study found, in a few sentences made from its own figures."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from studies.records import StudyRecords

_NAMED = 3  # encodings that a sentence names, best first, before the last of all


def findings(config, summary: Mapping, records: StudyRecords) -> list[str]:
    """Returns two or three sentences: who is best, which claims hold, and what is not learned."""
    sentences = []
    for kind, describe in (('task', _accuracy_sentence), ('text', _text_sentence)):
        tasks = [task for task in summary['tasks'] if config.tasks[task].kind == kind]
        if tasks:
            sentences.append(describe(config, summary, tasks))
    if summary['claims']:
        sentences.append(_claims_sentence(summary['claims']))
    untrained = sum(map(len, summary['untrained'].values()))
    if untrained:
        sentences.append(
            f'{untrained} of {len(records.compared)} cells did not learn their task inside the '
            'lengths of training: they count in these means, not in ranks or claims about scores.'
        )
    return sentences


def _ranking(names: Sequence[str], entries: Mapping[str, str], last: str) -> str:
    """Returns 'with `a` (..), then with `b` (..) and `c` (..), `last` with `z` (..)'.

    The names are sorted best first; each has its entry in brackets.
    """
    shown = [f'`{name}` ({entries[name]})' for name in names]
    text = f'with {shown[0]}'
    if shown[1:_NAMED]:
        text += f', then with {" and ".join(shown[1:_NAMED])}'
    if len(shown) > _NAMED:
        text += f', {last} with {shown[-1]}'
    return f'{text}.'


def plural(count: int, word: str) -> str:
    return f'{count} {word}{"s" * (count > 1)}'


def _accuracy_sentence(config, summary: Mapping, tasks: Sequence[str]) -> str:
    means = {
        arm: float(np.mean([summary['tasks'][task][arm]['mean'] for task in tasks]))
        for arm in summary['arms']
    }
    order = sorted(means, key=means.get, reverse=True)
    entries = {arm: f'{100 * mean:.1f} %' for arm, mean in means.items()}
    tasks_and_seeds = f'{plural(len(tasks), "task")} and {plural(len(summary["seeds"]), "seed")}'
    where = 'Beyond the lengths of training'
    if config.beyond:
        where = f'At lengths from {config.beyond} on'
    best = f'{where} most answers are wholly right (mean of {tasks_and_seeds})'
    return f'{best} {_ranking(order, entries, "fewest")}'


def _text_sentence(config, summary: Mapping, tasks: Sequence[str]) -> str:
    nats = {
        arm: -float(np.mean([summary['tasks'][task][arm]['mean'] for task in tasks]))
        for arm in summary['arms']
    }
    finite = {arm: x for arm, x in nats.items() if math.isfinite(x)}
    if not finite:
        return 'No encoding has a finite loss on the longest text.'
    order = sorted(finite, key=finite.get)
    entries = {arm: f'{math.exp(x):.1f}' for arm, x in finite.items()}
    longest = max(max(config.tasks[task].test_lens) for task in tasks)
    trained = max(config.tasks[task].train_len for task in tasks)
    best = f'On texts of {longest:,} tokens, after training on {trained:,}, perplexity is lowest'
    return f'{best} {_ranking(order, entries, "highest")}'


def _claims_sentence(claims: Sequence[Mapping]) -> str:
    """Returns how many claims hold, and names those that do not."""
    if all(claim['verdict'] == 'holds' for claim in claims):
        every = {1: 'The claim holds', 2: 'Both claims hold'}.get(
            len(claims), f'All {len(claims)} claims hold'
        )
        return f'{every}: {"; ".join(claim["text"] for claim in claims)}.'
    holding = sum(claim['verdict'] == 'holds' for claim in claims)
    text = f'Of {plural(len(claims), "claim")} {holding or "none"} {_verb(holding)}'
    ways = {
        'reversed': 'reversed',
        'mixed': 'mixed, true of some encodings only',
        'undecided': 'undecided',
    }
    for verdict, way in ways.items():
        named = [_named_claim(claim) for claim in claims if claim['verdict'] == verdict]
        if named:
            text += f'; {way}: {", ".join(named)}'
    return text + '.'


def _verb(count: int) -> str:
    return 'holds' if count < 2 else 'hold'


def _named_claim(claim: Mapping) -> str:
    """Returns the text of a claim, with its difference where it is about one pair."""
    (pair, *others) = claim['pairs']
    if others or math.isnan(pair['mean']):
        return claim['text']
    return f'{claim["text"]} ({pair["mean"]:+.3f})'
