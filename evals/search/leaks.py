"""Has a model been trained on what it is examined in? Searches the training text of a run, and of the runs it comes from: in their token stores, or,
where pairs were made of texts, of which a store of pairs holds stretches only, in the texts themselves."""

import collections
import itertools
from collections.abc import Iterable, Iterator

from data import objectives, store, words
from data.pairs import read as read_pairs
from data.records import DataError
from model.errors import ModelError
from runtime.errors import RunError
from runtime.run_dir import Run

_WORDS = 5  # of a text that are looked for first
_TOKENS = 1 << 18  # of a document that are read at a time (of a text: characters),
_AGAIN = 1 << 14  # and of those how many a second time: what is looked for has at most so many
_TOLD = 3


def normal(text: str) -> str:
    """Texts of the same words (data/words.py) are one text, whatever their case, spacing and
    punctuation. In scripts without spaces each letter is a word."""
    return ' '.join(words.words(text, joined=True))


def occurring(texts: Iterable[str], documents: Iterable[str]) -> set[str]:
    """Which of the texts stand, whole words after whole words, in a document; in their `normal` form. One pass over the documents."""
    wanted: dict[int, dict] = collections.defaultdict(lambda: collections.defaultdict(list))
    for text in {normal(text) for text in texts} - {''}:
        start = tuple(text.split(' ')[:_WORDS])
        wanted[len(start)][start].append(text)
    found: set[str] = set()
    for document in documents:
        held = normal(document).split()
        for count, by_start in wanted.items():
            starts = by_start.keys() & set(zip(*(held[i:] for i in range(count))))
            if starts:
                whole = f' {" ".join(held)} '
                found |= {
                    text for start in starts for text in by_start[start] if f' {text} ' in whole
                }
    return found


def check(run: Run, cache: str, sets: list) -> list[dict]:
    """A run and its parents, the youngest first: {'run', 'step', 'checked', 'why' not, 'documents', and 'sets': {name: {'asked', 'seen',
    'examples', 'documents', 'documents_seen'}}}.

    `cache`: where their token stores are looked for; none is built. `sets`: of search_sets; a pair is seen where both its sentences are.
    """
    texts = [text for one in sets for asked in one.asked for text in asked] + [
        text for one in sets for text in _documents(one)
    ]
    found, known = [], set()
    while run is not None and str(run.path) not in known:
        known.add(str(run.path))
        entry, parent = {'run': str(run.path), 'step': run.step, 'checked': False}, None
        found.append(entry)
        try:
            parent = run.lineage().get('parent')
            documents, count = _trained_on(run, cache), itertools.count()
            seen = occurring(
                texts, (part for document, _ in zip(documents, count) for part in document)
            )
            entry |= {
                'checked': True,
                'documents': next(count),
                'sets': {one.name: _counts(one, seen) for one in sets},
            }
        except (DataError, ModelError, RunError, OSError) as error:
            entry['why'] = ' '.join(str(error).split())
        try:
            run = Run.at(parent['run'], parent['step']) if parent else None
        except (RunError, KeyError, TypeError) as error:
            found.append(
                {
                    'run': str(parent),
                    'step': None,
                    'checked': False,
                    'why': ' '.join(str(error).split()),
                }
            )
            run = None
    return found


def refuse(found: dict[str, list[dict]]) -> None:
    """Raises RunError where a run, {name: what `check` told}, has seen a question."""
    for name, entries in found.items():
        for entry in entries:
            for of, counts in entry.get('sets', {}).items():
                if counts['seen']:
                    raise RunError(
                        f'{counts["seen"]} of the {counts["asked"]} questions of {of} stand in the training text of {entry["run"]} '
                        f'(--runs={name}), for example {counts["examples"][0]!r:.90}; expected none, or --allow_leaks to go on and tell it'
                    )


def _documents(one) -> Iterable[str]:
    return getattr(one, 'documents', {}).values()


def _counts(one, seen: set[str]) -> dict:
    asked = [parts for parts in one.asked if all(normal(part) in seen for part in parts)]
    documents = list(_documents(one))
    return {
        'asked': len(one.asked),
        'seen': len(asked),
        'examples': [' | '.join(parts) for parts in asked[:_TOLD]],
        'documents': len(documents),
        'documents_seen': sum(normal(text) in seen for text in documents),
    }


def _trained_on(run: Run, cache: str) -> Iterator[Iterator[str]]:
    """Each document of a run's training split, in parts. Raises where its store, or the texts that pairs were made of, are not there as they were."""
    config, tokenizer = run.config(), run.tokenizer()
    config.data.cache = cache
    data = objectives.of(config.train.objective)[0].find(
        config.data, tokenizer, run.lineage()['data_hash']
    )
    if data is None:
        raise RunError(f'its token store is not in {cache}')
    if data.hash != run.lineage()['data_hash']:
        raise RunError(f'the token store in {cache} has other text than the run was trained on')
    if config.train.objective == 'contrastive' and read_pairs.kinds_to_make(
        config.data
    ):  # the store was found by what its texts were: they are those
        return (_parts(text, 0, len(text)) for text in store.training_texts(config.data))
    split = data.split('train')
    return (
        map(tokenizer.decode, _parts(split.tokens, *ends))
        for ends in zip(split.offsets[:-1], split.offsets[1:])
    )


def _parts(whole, first: int, last: int) -> Iterator:
    """whole[first:last] in parts that overlap."""
    return (
        whole[start : min(last, start + _TOKENS)]
        for start in range(first, max(first + 1, last - _AGAIN), _TOKENS - _AGAIN)
    )
