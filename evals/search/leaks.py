"""Has a model been trained on what it is examined in?

Searches the training text of a run, and of the runs it comes from: in their token stores, or, where
pairs were made of texts, of which a store of pairs holds stretches only, in the texts themselves.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator

from data import store, words
from data.objectives import get_objective
from data.records import DataError
from model.errors import ModelError
from runtime.errors import RunError
from runtime.run_dir import Run

_WORDS = 5  # of a text that are looked for first
_TOKENS = 1 << 18  # of a document that are read at a time (of a text: characters)
_OVERLAP = 1 << 14  # of those, read a second time: what is looked for has at most so many
_EXAMPLES = 3


def normal(text: str) -> str:
    """Returns the words of a text (data/words.py), whatever its case, spacing and punctuation.

    In scripts without spaces each letter is a word.
    """
    return ' '.join(words.words(text, joined=True))


def occurring(texts: Iterable[str], documents: Iterable[str]) -> set[str]:
    """Returns the texts that stand, whole words after whole words, in a document.

    They are returned in their `normal` form. The documents are passed over once.
    """

    wanted: dict[int, dict] = collections.defaultdict(lambda: collections.defaultdict(list))
    for text in {normal(text) for text in texts} - {''}:
        start = tuple(text.split(' ')[:_WORDS])
        wanted[len(start)][start].append(text)
    seen: set[str] = set()
    for document in documents:
        words_there = normal(document).split()
        for count, by_start in wanted.items():
            starts = by_start.keys() & set(zip(*(words_there[i:] for i in range(count))))
            if starts:
                whole = f' {" ".join(words_there)} '
                candidates = [text for start in starts for text in by_start[start]]
                seen.update(text for text in candidates if f' {text} ' in whole)
    return seen


def check(run: Run, cache: str, sets: list) -> list[dict]:
    """Returns what a run and its parents were trained on of the sets, the youngest first.

    An entry is {'run', 'step', 'checked', 'why' not, 'documents', and 'sets': {name: {'asked',
    'seen', 'examples', 'documents', 'documents_seen'}}}. A pair is seen where both its sentences
    are.

    Args:
      run: the youngest.
      cache: where their token stores are looked for; none is built.
      sets: `datasets.Questions` and `datasets.Pairs`.
    """
    texts = [text for dataset in sets for asked in dataset.asked for text in asked]
    texts += [text for dataset in sets for text in _documents(dataset)]
    entries: list[dict] = []
    known: set[str] = set()
    while run is not None and str(run.path) not in known:
        known.add(str(run.path))
        entry = {'run': str(run.path), 'step': run.step, 'checked': False}
        parent = None
        entries.append(entry)
        try:
            parent = run.lineage().get('parent')
            documents, count = _trained_on(run, cache), itertools.count()
            parts = (part for document, _ in zip(documents, count) for part in document)
            seen = occurring(texts, parts)
            entry |= {
                'checked': True,
                'documents': next(count),
                'sets': {dataset.name: _count_seen(dataset, seen) for dataset in sets},
            }
        except (DataError, ModelError, RunError, OSError) as error:
            entry['why'] = ' '.join(str(error).split())
        try:
            run = Run.at(parent['run'], parent['step']) if parent else None
        except (RunError, KeyError, TypeError) as error:
            why = ' '.join(str(error).split())
            entries.append({'run': str(parent), 'step': None, 'checked': False, 'why': why})
            run = None
    return entries


def refuse(entries_of: dict[str, list[dict]]) -> None:
    """Raises RunError where a run, {name: what `check` returned}, has seen a question."""
    for name, entries in entries_of.items():
        for entry in entries:
            for of, counts in entry.get('sets', {}).items():
                if counts['seen']:
                    raise RunError(
                        f'{counts["seen"]} of the {counts["asked"]} questions of {of} stand in the '
                        f'training text of {entry["run"]} (--runs={name}), for example '
                        f'{counts["examples"][0]!r:.90}; expected none, or --allow_leaks to go on '
                        'and tell it'
                    )


def _documents(dataset) -> Iterable[str]:
    return getattr(dataset, 'documents', {}).values()


def _count_seen(dataset, seen: set[str]) -> dict:
    """Returns how many questions and documents of a set are among the texts that were seen."""
    asked = [parts for parts in dataset.asked if all(normal(part) in seen for part in parts)]
    documents = list(_documents(dataset))
    return {
        'asked': len(dataset.asked),
        'seen': len(asked),
        'examples': [' | '.join(parts) for parts in asked[:_EXAMPLES]],
        'documents': len(documents),
        'documents_seen': sum(normal(text) in seen for text in documents),
    }


def _trained_on(run: Run, cache: str) -> Iterator[Iterator[str]]:
    """Returns each document of a run's training split, in parts that overlap.

    Raises RunError or DataError where its store, or the texts that pairs were made of, are not
    there as they were.
    """
    config, tokenizer = run.config(), run.tokenizer()
    config.data.cache = cache
    objective = get_objective(config.train.objective)
    data = objective.store_class.find(config.data, tokenizer, run.lineage()['data_hash'])
    if data is None:
        raise RunError(f'its token store is not in {cache}')
    if data.hash != run.lineage()['data_hash']:
        raise RunError(f'the token store in {cache} has other text than the run was trained on')
    if not objective.stores_whole_texts(config.data):
        # The store was found by what its texts were: they are those.
        return (_parts(text, 0, len(text)) for text in store.training_texts(config.data))
    split = data.split('train')
    return (
        map(tokenizer.decode, _parts(split.tokens, *ends))
        for ends in zip(split.offsets[:-1], split.offsets[1:])
    )


def _parts(whole, first: int, last: int) -> Iterator:
    """Yields whole[first:last] in parts that overlap."""
    for start in range(first, max(first + 1, last - _OVERLAP), _TOKENS - _OVERLAP):
        yield whole[start : min(last, start + _TOKENS)]
