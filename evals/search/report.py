"""The report of evals/search/retrieval.py: report.md, and index.html, self-contained, from what results.json holds."""

import pathlib

from evals import plots
from evals.html import page, table_lines
from evals.search.ranking import MEASURES
from runtime.run_dir import write_atomically


def write(found: dict, folder: pathlib.Path) -> None:
    """Writes both. `found`: the content of results.json."""
    text = markdown(found)
    panels = {
        name: (
            facts['main'],
            {
                system: [x or 0 for x in scores[facts['main']]]
                for system, scores in found['scores'][name].items()
            },
        )
        for name, facts in found['sets'].items()
    }
    write_atomically(folder / 'report.md', text)
    write_atomically(
        folder / 'index.html',
        page('Search', text, [('Scores with intervals', plots.score_bars(panels))]),
    )


def _span(value, sign: str = '') -> str:
    """[value, low, high] -> 0.123 (0.100..0.150)."""
    if None in value:
        return 'undefined'
    return '{:{s}.3f} ({:{s}.3f}..{:{s}.3f})'.format(*value, s=sign)


def markdown(found: dict) -> str:
    """The tables of the report."""
    lines = [
        '# Search',
        '',
        f'All figures are those of results.json, made by: {found["command"]}',
        '',
        'Intervals are 95 % bootstrap intervals over articles (documents, where a set has no articles) with their queries, or over pairs of '
        'sentences, those of differences and ratios paired; nothing is corrected for the number of comparisons.',
        '',
    ]
    lines += _overview(found) + _leaks(found) if found['runs'] else []
    for name, facts in found['sets'].items():
        lines += [f'## {name}', '', _about(facts), '']
        measures = MEASURES if 'queries' in facts else (facts['main'],)
        lines += table_lines(
            ['system', *measures],
            [
                [system, *(_span(scores[m]) for m in measures)]
                for system, scores in found['scores'][name].items()
            ],
        )
        if found['comparisons'][name]:
            main = facts['main']
            lines += [f'Differences and ratios of {main}:', '']
            lines += table_lines(
                ['a', 'b', 'a - b', 'a / b'],
                [
                    [c['a'], c['b'], _span(c[main]['difference'], '+'), _span(c[main]['ratio'])]
                    for c in found['comparisons'][name]
                ],
            )
        places = found['places'].get(name)
        shown = [
            system for system in found['scores'][name] if '.' not in system and '@' not in system
        ]
        if places:
            lines += [f'{facts["main"]} by where the answer begins in its document:', '']
            lines += table_lines(
                ['system', *(f'{place} ({of["queries"]})' for place, of in places.items())],
                [
                    [system, *(_span(of['scores'][system]) for of in places.values())]
                    for system in shown
                ],
            )
    lines += _systems(found)
    return '\n'.join(lines)


def _overview(found: dict) -> list[str]:
    """The baseline and the runs in the order given, on all sets."""
    entry = lambda name, system: (
        _span(found['scores'][name][system][found['sets'][name]['main']])
        if system in found['scores'][name]
        else ''
    )
    systems = [
        name + end
        for end in ('', '+bm25', '~bm25')
        for name in found['runs']
        if any(name + end in of for of in found['scores'].values())
    ]
    untrained = list(dict.fromkeys(run['untrained'] for run in found['runs'].values()))
    header = ['system', *(f'{name} ({facts["main"]})' for name, facts in found['sets'].items())]
    rows = [
        ['baseline', *(entry(name, facts['baseline']) for name, facts in found['sets'].items())],
        *(
            [system, *(entry(name, system) for name in found['sets'])]
            for system in (*untrained, *systems)
        ),
    ]
    return ['## Overview', ''] + table_lines(header, rows)


def _about(facts: dict) -> str:
    told = f'{facts.get("path", "made of the documentation of this Python")}, sha256 {facts["sha256"][:12]}, words taken for {facts["language"]}. '
    if 'pairs' not in facts:
        chance = min(1, 10 / facts['documents'])
        told += (
            f'{facts["queries"]} queries of {facts["clusters"]} articles or documents, {facts["documents"]} documents; one relevant document of a random order has R@10 = {chance:.3f}. The '
            f'baseline is {facts["baseline"]}, of the two BM25 the one with more nDCG@10 on these very queries, which favours it. '
        )
    else:
        told += f'{facts["pairs"]} pairs; the baseline is {facts["baseline"]}. '
    count = facts.get('documents', facts.get('pairs'))
    longer = {name: passages for name, passages in facts['passages'].items() if passages > count}
    what = (
        'Documents longer than a model was trained to read are several passages, of which the best counts'
        if 'queries' in facts
        else (
            'Of sentences longer than a model was trained to read the beginning counts; passages of the second ones'
        )
    )
    return (
        told + (f'{what}: {", ".join(f"{n} {p}" for n, p in longer.items())}.' if longer else '')
    ).rstrip()


def _leaks(found: dict) -> list[str]:
    """What the search for the sets in the training text of each run and of its parents has found."""
    rows = []
    for name, entries in found['leaks'].items():
        for entry in entries:
            where = f'{entry["run"]}@{entry["step"]}'
            if not entry['checked']:
                rows.append([name, where, '', f'**not checked**: {entry["why"]}', '', ''])
            rows += [
                [
                    name,
                    where,
                    of,
                    'questions **seen**' if c['seen'] else 'none seen',
                    f'{c["seen"]} of {c["asked"]}',
                    f'{c["documents_seen"]} of {c["documents"]}' if c['documents'] else '',
                ]
                for of, c in entry.get('sets', {}).items()
            ]
    lines = [
        '## Leaks',
        '',
        'Whether questions (pairs: both sentences) stand word for word in the training text of a run or of a run it comes from, '
        'whatever case, spacing and punctuation; and how many of the documents do, which is no fault.',
        '',
    ]
    return lines + table_lines(
        ['run', 'trained as', 'set', 'outcome', 'questions seen', 'documents seen'], rows
    )


def _systems(found: dict) -> list[str]:
    lines = [
        '## Systems',
        '',
        "bm25: words as they are; bm25-stemmed: without stop words, stemmed (Snowball); tfidf: cosines of such words. A run's "
        'name: cosines of its vectors with its own pooling; .mean, .bag and others: another pooling; @n: the first n dimensions; .static: the mean '
        'of its token embeddings; +bm25: reciprocal rank fusion (k = 60) with the baseline; ~bm25: scores of both added up, with a weight chosen '
        'on another set; .untrained: its architecture before training.',
        '',
    ]
    if found['runs']:
        lines += table_lines(
            [
                'run',
                'directory',
                'positions',
                'parameters',
                'pooling',
                'reads',
                'config',
                'text',
                'tokenizer',
                'untrained',
            ],
            [
                [
                    name,
                    f'{r["path"]}@{r["step"]}',
                    r['positions'],
                    f'{r["parameters"]:,}',
                    r['pooling'],
                    r['reads'],
                    r['config_hash'][:12],
                    r['data_hash'][:12],
                    r['tokenizer_hash'][:12],
                    r['untrained'],
                ]
                for name, r in found['runs'].items()
            ],
        )
    if found['weights']:
        lines += [
            f'Weights chosen on {found["tune"]} (nDCG@10 there), for the other sets; 0 is the baseline alone, 1 the run alone:',
            '',
        ]
        tried = list(next(iter(found['weights'].values()))['tried'])
        lines += table_lines(
            ['run', 'weight', *tried],
            [
                [name, w['weight'], *(f'{w["tried"][t]:.3f}' for t in tried)]
                for name, w in found['weights'].items()
            ],
        )
    return lines + ['Versions: ' + ', '.join(f'{k} {v}' for k, v in found['versions'].items()), '']
