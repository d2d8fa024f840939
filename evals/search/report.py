"""The report of evals/search/retrieval.py, from what results.json holds.

`report.md`, its `picture.svg`, and `index.html`, a page that needs nothing else.
"""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from evals import plots
from evals.html import folded, folded_if_long, page, table_lines
from evals.search.ranking import MEASURES
from runtime.run_dir import write_atomically

RESULTS = 'results.json'
_PICTURE = 'picture.svg'
WORDS = ('bm25', 'bm25-stemmed', 'tfidf')  # systems that need no model

# Groups of systems in the order of the tables; the last two are folded away.
_WORDS_ALONE = 'Words alone'
_VECTORS = 'Vectors of a trained run'
_PUBLISHED = 'Encoders that others publish'
_FUSED = 'Vectors and words, ranks fused'
_WEIGHTED = 'Vectors and words, scores weighted'
_UNTRAINED = 'Control: the run before training'
_STATIC = 'Control: token embeddings alone, no attention'
_OTHER_VECTORS = 'Other vectors of a run: another pooling, or the first dimensions only'
_MAIN_GROUPS = (_WORDS_ALONE, _VECTORS, _PUBLISHED, _FUSED, _WEIGHTED)
_CONTROLS = (_UNTRAINED, _STATIC, _OTHER_VECTORS)

# Where the commands of kept results are now: {module then: module now}.
_MOVED = {'evals.retrieval': 'evals.search.retrieval'}


def write(results: Mapping, folder: pathlib.Path) -> None:
    """Writes the report into `folder`; `results`: the content of results.json."""
    caption, picture = 'Scores with intervals (controls are in the tables)', _picture(results)
    text = markdown(results, caption)
    write_atomically(folder / 'report.md', text)
    write_atomically(folder / _PICTURE, picture)
    write_atomically(folder / 'index.html', page('Search', text, {_PICTURE: picture}))


def rebuild(folder: pathlib.Path) -> None:
    """Writes the report of a folder again, from its results.json."""
    write(json.loads((folder / RESULTS).read_text()), folder)


def group_of(system: str, results: Mapping) -> str:
    """Returns the name of a system's group, in words that a reader understands."""
    if system in WORDS:
        return _WORDS_ALONE
    if system in results['runs']:
        return _VECTORS
    if system in results.get('published', ()):
        return _PUBLISHED
    if '.untrained' in system:
        return _UNTRAINED
    if system.endswith('.static'):
        return _STATIC
    if system.endswith('+bm25'):
        return _FUSED
    if system.endswith('~bm25'):
        return _WEIGHTED
    return _OTHER_VECTORS


def _grouped(
    systems: Iterable[str], results: Mapping, groups: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yields those of the groups that have systems, each with its systems in their order."""
    for group in groups:
        members = [system for system in systems if group_of(system, results) == group]
        if members:
            yield group, members


def _picture(results: Mapping) -> str:
    """Draws the main groups' scores, a panel a set, each run in the color of its encoding."""
    runs = results['runs']
    panels, colors = {}, {}
    for name, facts in results['sets'].items():
        scores = results['scores'][name]
        systems = [s for _, of in _grouped(scores, results, _MAIN_GROUPS) for s in of]
        bars = {s: [x or 0 for x in scores[s][facts['main']]] for s in systems}
        panels[name] = (facts['main'], bars)
        for system in systems:
            run = system.removesuffix('+bm25').removesuffix('~bm25')
            if run in runs:
                colors[system] = plots.encoding_color(runs[run]['positions'])
    return plots.score_bars(panels, colors)


def _span(value: Sequence[float | None], sign: str = '') -> str:
    """Returns [value, low, high] as '0.123 (0.100..0.150)'."""
    if None in value:
        return 'undefined'
    return '{:{s}.3f} ({:{s}.3f}..{:{s}.3f})'.format(*value, s=sign)


def markdown(results: Mapping, caption: str) -> str:
    """Returns the report: what was found, the picture with its caption, and tables."""
    lines = ['# Search', '', ' '.join(_findings(results)), '', f'![{caption}]({_PICTURE})', '']
    lines += [
        'Intervals are 95 % bootstrap intervals over articles (documents, where a set has no '
        'articles) with their queries, or over pairs of sentences, those of differences and ratios '
        'paired; nothing is corrected for the number of comparisons.',
        '',
    ]
    if results['runs']:
        lines += _overview(results) + _leaks(results)
    for name in results['sets']:
        lines += _set(results, name)
    lines += _systems(results)
    return '\n'.join(lines)


def _command(command: str) -> str:
    """Returns the command that made the results, with its module's name of today."""
    for then, now in _MOVED.items():
        command = command.replace(f'python -m {then} ', f'python -m {now} ')
    return command


def _findings(results: Mapping) -> list[str]:
    """Returns two or three sentences: words against runs on each set, and leaks."""
    sentences = []
    for name, facts in results['sets'].items():
        scores, main = results['scores'][name], facts['main']
        values = {s: of[main][0] for s, of in scores.items() if of[main][0] is not None}
        baseline = facts['baseline']
        text = f'On {name} words alone (`{baseline}`) reach {main} {_span(scores[baseline][main])}'
        groups = dict(_grouped(values, results, _MAIN_GROUPS[1:]))
        for group, members in groups.items():
            best = max(members, key=values.get)
            way = {
                _VECTORS: 'the best run',
                _PUBLISHED: 'the best published encoder',
                _FUSED: 'fused with words the best',
                _WEIGHTED: 'with weighted scores the best',
            }[group]
            text += f', {way} `{best}` {values[best]:.3f}'
        sentences.append(f'{text}.')
    # More sets than three sentences can tell are in the overview.
    return [*sentences[:2], *([_leaks_sentence(results)] if results['runs'] else [])]


def _overview(results: Mapping) -> list[str]:
    """Returns the baseline and the runs in the order given, on all sets, in groups."""
    sets, runs = results['sets'], results['runs']

    def entry(name: str, system: str) -> str:
        scores = results['scores'][name]
        return _span(scores[system][sets[name]['main']]) if system in scores else ''

    measured = {system for scores in results['scores'].values() for system in scores}
    untrained = list(dict.fromkeys(run['untrained'] for run in runs.values()))
    names = [*runs, *results.get('published', ())]
    candidates = [name + end for end in ('', '+bm25', '~bm25') for name in names]
    systems = [system for system in (*untrained, *candidates) if system in measured]

    rows = [_group_row(_WORDS_ALONE, len(sets))]
    rows.append(['baseline', *(entry(name, facts['baseline']) for name, facts in sets.items())])
    for group, members in _grouped(systems, results, (_UNTRAINED, *_MAIN_GROUPS[1:])):
        rows.append(_group_row(group, len(sets)))
        rows += [[system, *(entry(name, system) for name in sets)] for system in members]
    header = ['system', *(f'{name} ({facts["main"]})' for name, facts in sets.items())]
    return ['## Overview', '', *table_lines(header, rows)]


def _group_row(group: str, columns: int) -> list[str]:
    """Returns the row of a table that is the heading of a group."""
    return [f'**{group}**', *[''] * columns]


def _set(results: Mapping, name: str) -> list[str]:
    """Returns the section of a set: systems in groups, differences, and places."""
    facts, scores = results['sets'][name], results['scores'][name]
    main = facts['main']
    measures = MEASURES if 'queries' in facts else (main,)

    def rows_of(groups: Sequence[str]) -> list[list[str]]:
        rows = []
        for group, members in _grouped(scores, results, groups):
            rows.append(_group_row(group, len(measures)))
            rows += [[system, *(_span(scores[system][m]) for m in measures)] for system in members]
        return rows

    lines = [f'## {name}', '', _about(facts), '']
    lines += table_lines(['system', *measures], rows_of(_MAIN_GROUPS))
    controls = rows_of(_CONTROLS)
    if controls:
        table = table_lines(['system', *measures], controls)
        lines += folded('Controls, other poolings and sizes', table)

    comparisons = results['comparisons'][name]
    if comparisons:
        rows = [
            [c['a'], c['b'], _span(c[main]['difference'], '+'), _span(c[main]['ratio'])]
            for c in comparisons
        ]
        table = table_lines(['a', 'b', 'a - b', 'a / b'], rows)
        lines += folded_if_long(f'Differences and ratios of {main}', table)

    shown = [s for _, of in _grouped(scores, results, _MAIN_GROUPS) for s in of]
    by_place = results['places'].get(name, {})
    by_words = results.get('shared_words', {}).get(name, {})
    for summary, groups in (
        (f'{main} by where the answer begins in its document', by_place),
        (f'{main} by how many of its words a query shares with its document', by_words),
    ):
        if groups:
            header = ['system', *(_group_header(group, of) for group, of in groups.items())]
            rows = [[s, *(_span(of['scores'][s]) for of in groups.values())] for s in shown]
            lines += folded_if_long(summary, table_lines(header, rows))
    return lines


def _group_header(group: str, of: Mapping) -> str:
    """Returns a group with its queries counted, and the shares of words that it spans."""
    if 'shared' not in of:
        return f'{group} ({of["queries"]})'
    least, most = of['shared']
    return f'{group}: {least:.0%} to {most:.0%} ({of["queries"]})'


def _about(facts: Mapping) -> str:
    """Returns what a set was read from, its size and its baseline."""
    path = facts.get('path', 'made of the documentation of this Python')
    text = f'{path}, sha256 {facts["sha256"][:12]}, words taken for {facts["language"]}. '
    if 'queries' in facts:
        chance = min(1, 10 / facts['documents'])
        text += (
            f'{facts["queries"]} queries of {facts["clusters"]} articles or documents, '
            f'{facts["documents"]} documents; one relevant document of a random order has '
            f'R@10 = {chance:.3f}. The baseline is {facts["baseline"]}, of the two BM25 the one '
            'with more nDCG@10 on these very queries, which favours it. '
        )
        count = facts['documents']
        split = (
            'Documents longer than a model was trained to read are several passages, of which the '
            'best counts'
        )
    else:
        text += f'{facts["pairs"]} pairs; the baseline is {facts["baseline"]}. '
        count = facts['pairs']
        split = (
            'Of sentences longer than a model was trained to read the beginning counts; passages '
            'of the second ones'
        )
    longer = {name: passages for name, passages in facts['passages'].items() if passages > count}
    if longer:
        text += f'{split}: {", ".join(f"{name} {passages}" for name, passages in longer.items())}.'
    return text.rstrip()


def _leak_counts(results: Mapping) -> Iterator[tuple[str, Mapping, str, Mapping]]:
    """Yields run, what it or a parent was trained as, set, and the counts of what was searched."""
    for name, entries in results['leaks'].items():
        for entry in entries:
            for of, counts in entry.get('sets', {}).items():
                yield name, entry, of, counts


def _leaks_sentence(results: Mapping) -> str:
    """Returns in one sentence whether any run has seen a question."""
    counts = [counts for *_, counts in _leak_counts(results)]
    seen = sum(of['seen'] > 0 for of in counts)
    unchecked = sum(not e['checked'] for entries in results['leaks'].values() for e in entries)
    if seen:
        return f'Questions were **seen** in training in {seen} of {len(counts)} searches (Leaks).'
    if unchecked:
        return f'Whether questions were seen in training is **not checked** in {unchecked} cases.'
    return 'No run has seen a question of these sets in training.'


def _leaks(results: Mapping) -> list[str]:
    """Returns what the search for the sets in the training text of each run has found.

    Where no question was seen that is one line; else a table of those that were.
    """
    rows, searches, documents = [], 0, {}
    for name, entries in results['leaks'].items():
        for entry in entries:
            if not entry['checked']:
                where = f'{entry["run"]}@{entry["step"]}'
                rows.append([name, where, '', f'**not checked**: {entry["why"]}', '', ''])
    for name, entry, of, counts in _leak_counts(results):
        searches += 1
        with_documents = f'{counts["documents_seen"]} of {counts["documents"]}'
        if counts['documents_seen']:
            documents.setdefault(f'{with_documents} documents of {of}', []).append(name)
        if counts['seen']:
            rows.append(
                [
                    name,
                    f'{entry["run"]}@{entry["step"]}',
                    of,
                    'questions **seen**',
                    f'{counts["seen"]} of {counts["asked"]}',
                    with_documents if counts['documents'] else '',
                ]
            )

    clean = searches - sum('seen' in row[3] for row in rows)
    lines = ['## Leaks', '']
    if clean:
        text = (
            f'None seen in {clean} of {searches} searches: no question (of pairs: not both '
            'sentences) stands word for word, whatever case, spacing and punctuation, in the '
            'training text of a run or of a run it comes from.'
        )
        lines += [text, '']
    if documents:
        which = [f'{what} ({", ".join(dict.fromkeys(names))})' for what, names in documents.items()]
        lines += [f'Documents that were read in training, which is no fault: {"; ".join(which)}.']
        lines += ['']
    if rows:
        header = ['run', 'trained as', 'set', 'outcome', 'questions seen', 'documents seen']
        lines += table_lines(header, rows)
    return lines


def _systems(results: Mapping) -> list[str]:
    """Returns what the systems are, the runs, the weights, and the versions."""
    lines = [
        '## Systems',
        '',
        f'All figures are those of results.json, made by: `{_command(results["command"])}`',
        '',
        'bm25: words as they are; bm25-stemmed: without stop words, stemmed (Snowball); tfidf: '
        "cosines of such words. A run's name: cosines of its vectors with its own pooling; .mean, "
        '.bag and others: another pooling; @n: the first n dimensions; .static: the mean of its '
        'token embeddings; +bm25: reciprocal rank fusion (k = 60) with the baseline; ~bm25: scores '
        'of both added up, with a weight chosen on another set; .untrained: its architecture '
        'before training.',
        '',
    ]
    for name, packages in results.get('published', {}).items():
        releases = ', '.join(f'{package} {release}' for package, release in packages.items())
        lines.append(
            f'{name}: as published ({releases}); whether it has read these sets is not known.'
        )
        lines.append('')
    if results['runs']:
        lines += folded_if_long('Show the runs', _runs(results['runs']))
    if results['weights']:
        text = (
            f'Weights chosen on {results["tune"]} (nDCG@10 there), for the other sets; 0 is the '
            'baseline alone, 1 the run alone:'
        )
        tried = list(next(iter(results['weights'].values()))['tried'])
        rows = [
            [name, of['weight'], *(f'{of["tried"][weight]:.3f}' for weight in tried)]
            for name, of in results['weights'].items()
        ]
        lines += [text, '', *table_lines(['run', 'weight', *tried], rows)]
    versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
    return [*lines, f'Versions: {versions}', '']


def _runs(runs: Mapping) -> list[str]:
    header = ['run', 'directory', 'positions', 'parameters', 'pooling', 'reads']
    header += ['config', 'text', 'tokenizer', 'untrained']
    rows = [
        [
            name,
            f'{run["path"]}@{run["step"]}',
            run['positions'],
            f'{run["parameters"]:,}',
            run['pooling'],
            run['reads'],
            *(run[field][:12] for field in ('config_hash', 'data_hash', 'tokenizer_hash')),
            run['untrained'],
        ]
        for name, run in runs.items()
    ]
    return table_lines(header, rows)
