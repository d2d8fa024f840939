"""Hard negatives for pairs: to each query, documents of other queries that look as if they answered it, by a model's vectors or by words.

    python -m apps.mine --run=runs/embedder --pairs=pairs.jsonl --out=mined.jsonl
    python -m apps.mine --by=words --pairs=pairs.tsv --out=mined.jsonl

What is written are pairs like those that are read, one line a query; train on them with --config.data.pairs.negatives=4.
"""

import dataclasses
import pathlib
from collections.abc import Iterable

from absl import flags

from data import files
from data.cache import ON_BROKEN, Report
from data.pairs import hard_negatives, read as read_pairs
from data.pairs.read import Pair
from data.records import printable
from model.embed import Embedder
from model.errors import did_you_mean
from runtime import checkpoint, cli, options
from runtime.errors import RunError
from runtime.run_dir import Run

WAYS = ('vectors', 'words')


@dataclasses.dataclass
class Asked:
    """A query, and numbers of documents: those that answer it, those that are known not to."""

    where: str
    query: str
    positives: dict[int, None]
    negatives: dict[int, None]


class Collection:
    """Pairs by query, and their documents, each once (`pairs.normal`)."""

    def __init__(self, found: Iterable[Pair]):
        self.documents: list[str] = []
        self.asked: dict[str, Asked] = {}
        self._ids: dict[str, int] = {}
        for pair in found:
            asked = self.asked.setdefault(
                read_pairs.normal(pair.query), Asked(pair.where, pair.query, {}, {})
            )
            asked.positives.update(dict.fromkeys(map(self._id, pair.positives)))
            asked.negatives.update(dict.fromkeys(map(self._id, pair.negatives)))

    def _id(self, text: str) -> int:
        number = self._ids.setdefault(read_pairs.normal(text), len(self.documents))
        if number == len(self.documents):
            self.documents.append(text)
        return number

    def mined(self, mine) -> list[Pair]:
        """One pair a query, with the negatives that it had, and those that `mine(queries, documents, positives, barred)` finds, as ids."""
        queries = list(self.asked.values())
        barred = [
            [*asked.negatives, *([self._ids[key]] if key in self._ids else [])]
            for key, asked in self.asked.items()
        ]
        found = mine(
            [asked.query for asked in queries],
            self.documents,
            [list(asked.positives) for asked in queries],
            barred,
        )
        text = lambda ids: tuple(self.documents[i] for i in ids)
        return [
            Pair(
                asked.where,
                asked.query,
                text(asked.positives),
                text(i for i in (*asked.negatives, *more) if i not in asked.positives),
            )
            for asked, more in zip(queries, found)
        ]


def by_run(run: Run, count: int, margin: float):
    """A way to mine: the vectors of a run's model, pooled as it was trained."""
    model, params, tokenizer, config = checkpoint.load(run)
    embedder = Embedder(model, params, config.embedding.pooling)
    vectors = lambda texts: embedder(read_pairs.encode_texts(texts, tokenizer, embedder.longest))
    return lambda queries, texts, positives, barred: hard_negatives.by_vectors(
        vectors(queries), vectors(texts), positives, barred, count, margin
    )


def define_flags(values=flags.FLAGS) -> None:
    options.path('run', '', 'Run directory, DIR or DIR@step, of the model that embeds', values)
    options.path(
        'pairs',
        '',
        'Files of pairs (.jsonl, .tsv, .parquet, also packed), globs and directories, separated '
        'by commas',
        values,
        many=True,
    )
    options.path('out', '', 'The file of pairs to write, .jsonl', values)
    flags.DEFINE_string(
        'by', 'vectors', 'vectors: of a model; words: BM25, without a model', values
    )
    flags.DEFINE_string(
        'on_broken',
        'skip',
        'Pairs that cannot be read: skip (told; up to half of all), skip_all, or fatal',
        values,
    )
    options.whole('count', 4, 'New negatives of each query, at most', 0, 2**12, values)
    options.number(
        'margin',
        0.95,
        "A negative scores less than this share of the positive's score; vectors only",
        0,
        1000,
        values,
    )


def main() -> None:
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
    if out.exists() or not out.parent.is_dir():
        raise RunError(
            f'--out={f.out}: '
            + (
                'is there already; nothing is written over it'
                if out.exists()
                else f'{out.parent} is no directory'
            )
        )
    cli.check_writable('--out', str(out))
    report = Report(f.on_broken)
    paths, passed = files.find(f.pairs, read_pairs.SUFFIXES, '--pairs')
    found = Collection(report.good(item for path in paths for item in read_pairs.read_file(path)))
    if not found.asked:
        raise RunError(f'--pairs={f.pairs}: no usable pair; {report.num_broken} broken')
    report.end('--on_broken')
    mine = (
        by_run(Run.parse(f.run), f.count, f.margin)
        if f.by == 'vectors'
        else lambda *given: hard_negatives.by_words(*given, f.count)
    )
    mined = found.mined(mine)
    read_pairs.write_pairs(out, mined)
    before, now = (
        sum(len(asked.negatives) for asked in found.asked.values()),
        sum(len(pair.negatives) for pair in mined),
    )
    print(
        printable(
            f'{out}: {len(mined)} queries with {now} negatives (before: {before}) of {len(found.documents)} documents; '
            f'{report.num_broken} broken pairs left out'
            + (f'; passed over: {passed}' if str(passed) else '')
        )
    )


if __name__ == '__main__':
    define_flags()
    cli.run(main)
