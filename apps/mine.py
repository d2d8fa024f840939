"""Hard negatives for pairs: documents of other queries that look as if they answered a query.

They are found by a model's vectors or by words.

    python -m apps.mine --run=runs/embedder --pairs=pairs.jsonl --out=mined.jsonl
    python -m apps.mine --by=words --pairs=pairs.tsv --out=mined.jsonl

What is written are pairs like those that are read, one line a query; train on them with
--config.data.pairs.negatives=4.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('run', '', 'Run directory, DIR or DIR@step, of the model that embeds')
    options.path(
        'pairs',
        '',
        'Files of pairs (.jsonl, .tsv, .parquet, also packed), globs and directories, separated '
        'by commas',
        many=True,
    )
    options.path('out', '', 'The file of pairs to write, .jsonl')
    flags.DEFINE_string('by', 'vectors', 'vectors: of a model; words: BM25, without a model')
    flags.DEFINE_string(
        'on_broken',
        'skip',
        'Pairs that cannot be read: skip (told; up to half of all), skip_all, or fatal',
    )
    options.whole('count', 4, 'New negatives of each query, at most', 0, 2**12)
    options.number(
        'margin',
        0.95,
        "A negative scores less than this share of the positive's score; vectors only",
        0,
        1000,
    )
    cli.parse_flags()

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from data import files
from data.cache import ON_BROKEN, Report
from data.pairs import hard_negatives, read as read_pairs
from data.pairs.read import Pair
from data.records import printable
from model.embed import Embedder
from model.errors import did_you_mean
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run

WAYS = ('vectors', 'words')
# A way to mine: (queries, documents, positives, barred) -> new negatives of each query; the last
# two, and what is returned, are numbers of documents.
Mine = Callable[[list[str], list[str], list[list[int]], list[list[int]]], Sequence[Sequence[int]]]


@dataclasses.dataclass
class Query:
    """A query, and numbers of documents: those that answer it, those that are known not to."""

    where: str
    text: str
    positives: dict[int, None]
    negatives: dict[int, None]


class Collection:
    """Pairs by query, and their documents, each once (`pairs.normal`)."""

    def __init__(self, pairs: Iterable[Pair]):
        self.documents: list[str] = []
        self.queries: dict[str, Query] = {}
        self._ids: dict[str, int] = {}
        for pair in pairs:
            query = self.queries.setdefault(
                read_pairs.normal(pair.query), Query(pair.where, pair.query, {}, {})
            )
            query.positives.update(dict.fromkeys(map(self._id, pair.positives)))
            query.negatives.update(dict.fromkeys(map(self._id, pair.negatives)))

    def _id(self, text: str) -> int:
        """Returns the number of a document, a new one where it is new."""
        number = self._ids.setdefault(read_pairs.normal(text), len(self.documents))
        if number == len(self.documents):
            self.documents.append(text)
        return number

    def add_negatives(self, mine: Mine) -> list[Pair]:
        """Returns one pair a query, with the negatives that it had and those that `mine` finds."""
        queries = list(self.queries.values())
        # No negative that is known, and not the query itself where it is a document too.
        barred = [[*query.negatives] for query in queries]
        for ids, key in zip(barred, self.queries):
            if key in self._ids:
                ids.append(self._ids[key])
        new_negatives = mine(
            [query.text for query in queries],
            self.documents,
            [list(query.positives) for query in queries],
            barred,
        )
        pairs = []
        for query, new in zip(queries, new_negatives):
            negatives = [i for i in (*query.negatives, *new) if i not in query.positives]
            pairs.append(
                Pair(
                    query.where,
                    query.text,
                    self._texts(query.positives),
                    self._texts(negatives),
                )
            )
        return pairs

    def _texts(self, ids: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.documents[i] for i in ids)


def by_run(run: Run, count: int, margin: float) -> Mine:
    """Returns a way to mine: by the vectors of a run's model, pooled as it was trained."""
    model, params, tokenizer, config = models.load(run)
    embedder = Embedder(model, params, config.embedding.pooling)

    def embed(texts: Sequence[str]) -> np.ndarray:
        return embedder(read_pairs.encode_texts(texts, tokenizer, embedder.longest))

    def mine(queries, documents, positives, barred):
        return hard_negatives.by_vectors(
            embed(queries), embed(documents), positives, barred, count, margin
        )

    return mine


def by_words(count: int) -> Mine:
    """Returns a way to mine: by BM25."""
    return lambda *given: hard_negatives.by_words(*given, count)


def _check_flags() -> None:
    """Raises RunError where flags are out of their range, or --out cannot be written."""
    f = flags.FLAGS
    if f.by not in WAYS:
        raise RunError(f'--by={f.by}: {did_you_mean(f.by, WAYS)}')
    for name in ('run', 'margin'):
        if f.by == 'words' and f[name].present:
            raise RunError(f'--{name}={f[name].value} has no effect: it needs --by=vectors')
    if f.on_broken not in ON_BROKEN:
        raise RunError(f'--on_broken={f.on_broken}: {did_you_mean(f.on_broken, ON_BROKEN)}')
    if f.count < 1:
        raise RunError(f'--count is {f.count}: expected at least 1')
    if not 0 < f.margin <= 1:
        raise RunError(f'--margin is {f.margin}: expected more than 0, at most 1')
    out = pathlib.Path(f.out)
    if out.suffix != '.jsonl':
        raise RunError(f'--out={f.out}: expected the name of a file to write, ending in .jsonl')
    if out.exists():
        raise RunError(f'--out={f.out}: is there already; nothing is written over it')
    if not out.parent.is_dir():
        raise RunError(f'--out={f.out}: {out.parent} is no directory')
    cli.check_writable('--out', str(out))


def main() -> None:
    """Reads the pairs, finds negatives of each query, and writes the pairs with them."""
    _check_flags()
    f = flags.FLAGS
    out = pathlib.Path(f.out)
    report = Report(f.on_broken)
    paths, passed = files.find(f.pairs, read_pairs.SUFFIXES, '--pairs')
    records = (record for path in paths for record in read_pairs.read_file(path))
    collection = Collection(report.good(records))
    if not collection.queries:
        raise RunError(f'--pairs={f.pairs}: no usable pair; {report.num_broken} broken')
    report.end('--on_broken')
    if f.by == 'vectors':
        mine = by_run(Run.parse(f.run), f.count, f.margin)
    else:
        mine = by_words(f.count)
    pairs = collection.add_negatives(mine)
    read_pairs.write_pairs(out, pairs)

    before = sum(len(query.negatives) for query in collection.queries.values())
    now = sum(len(pair.negatives) for pair in pairs)
    rest = f'; passed over: {passed}' if str(passed) else ''
    print(
        printable(
            f'{out}: {len(pairs)} queries with {now} negatives (before: {before}) of '
            f'{len(collection.documents)} documents; {report.num_broken} broken pairs left '
            f'out{rest}'
        )
    )


if __name__ == '__main__':
    cli.run(main)
