"""The systems that are measured on one set, words and models, with an estimate of each measure."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Iterable

import numpy as np

from data import fusion
from evals import statistics
from evals.search import baselines, datasets, encoders, ranking

_LOG = logging.getLogger('ordem')

_DEPTH = 100  # documents of a ranking: what is fused,
_KEPT = 20  # and what is written
_WEIGHTS = (0.0, 0.05, *(n / 10 for n in range(1, 11)))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model under a name. `reads`: tokens of a passage (model.embed.reads). `poolings`: its own first. `sizes`: leading dimensions that are measured
    beside all of them."""

    name: str
    model: object
    params: dict
    tokenizer: object
    reads: int
    poolings: tuple[str, ...] = ('mean',)
    sizes: tuple[int, ...] = ()


class Board:
    """The systems measured on one set: `estimates`, {system: {measure: Estimate}}."""

    main: str  # the measure that systems are compared by first

    def __init__(self, one, sides: tuple[list[str], list[str]]):
        self.one, self.sides, self.estimates, self.passages = one, sides, {}, {}
        self.language = baselines.language(sides[0] + sides[1])

    def subject(self, subject: Subject) -> None:
        """Measures a model: its own pooling as `name`, others as `name.pooling`, sizes as `@size`, token embeddings as `name.static`."""
        sides = [encoders.passages(subject.tokenizer, texts, subject.reads) for texts in self.sides]
        self.passages[subject.name] = len(sides[1].rows)
        for pooling in subject.poolings:
            name = subject.name if pooling == subject.poolings[0] else f'{subject.name}.{pooling}'
            found = [
                encoders.embedded(subject.model, subject.params, side, pooling) for side in sides
            ]
            self.vectors(name, *found)
            for size in subject.sizes:
                self.vectors(f'{name}@{size}', *(side.cut(size) for side in found))
        self.vectors(
            f'{subject.name}.static', *(encoders.static(subject.params, side) for side in sides)
        )

    def vectors(self, name: str, first: encoders.Vectors, second: encoders.Vectors) -> None:
        raise NotImplementedError

    def log(self, name: str) -> None:
        value = self.estimates[name][self.main]
        _LOG.info(
            '%s: %s: %s %.4f (%.4f to %.4f)',
            self.one.name,
            name,
            self.main,
            value.value,
            *value.interval(),
        )

    def facts(self) -> dict:
        return {
            **self.one.source,
            'language': self.language,
            'passages': self.passages,
            'baseline': self.baseline,
            'main': self.main,
        }

    def compare(self, a: str, b: str) -> dict:
        """{measure: {'difference', 'ratio'}}, each [value, low, high] of a paired bootstrap."""
        pairs = {
            name: (self.estimates[a][name], self.estimates[b][name]) for name in self.estimates[b]
        }
        return {
            name: {'difference': told(x - y), 'ratio': told(x / y)}
            for name, (x, y) in pairs.items()
        }


class Search(Board):
    """Rankings of the documents of a `search_sets.Questions`: `runs`, {system: run}."""

    main = 'nDCG@10'

    def __init__(self, one: datasets.Questions):
        self._queries, self._documents = (
            sorted(one.queries),
            sorted(one.documents),
        )  # so that ties are in the order of ids
        super().__init__(
            one,
            ([one.queries[q] for q in self._queries], [one.documents[d] for d in self._documents]),
        )
        self.runs, self.values = {}, {}
        for name, stemmed in (('bm25', ''), ('bm25-stemmed', self.language)):
            queries, documents = (baselines.words(texts, stemmed) for texts in self.sides)
            self.scored(name, baselines.bm25(queries, documents), 0)
        found, asked = baselines.tfidf(documents, queries)
        self.scored('tfidf', baselines.cosines(asked, found), 0)

    @property
    def baseline(self) -> str:
        """The stronger of the two BM25."""
        return max(('bm25', 'bm25-stemmed'), key=lambda name: self.estimates[name][self.main].value)

    def scored(self, name: str, rows: Iterable[np.ndarray], above: float = -math.inf) -> None:
        """Scores [documents], a row a query; none that are not `above` that."""
        run = {}
        for query, row in zip(self._queries, rows):
            best = np.argsort(-row, kind='stable')[:_DEPTH]
            run[query] = {self._documents[i]: float(row[i]) for i in best if row[i] > above}
        self.ranked(name, run)

    def ranked(self, name: str, run) -> None:
        self.runs[name], self.values[name] = run, ranking.measure(self.one.qrels, run)
        self.estimates[name] = {
            measure: ranking.estimate(values, self.one.clusters)
            for measure, values in self.values[name].items()
        }
        self.log(name)

    def vectors(self, name, first, second) -> None:
        self.scored(name, encoders.nearest(first, second))

    def subject(self, subject: Subject) -> None:
        """Also `name+bm25`, its ranking fused with that of the baseline."""
        super().subject(subject)
        words, own = self.runs[self.baseline], self.runs[subject.name]
        self.ranked(
            f'{subject.name}+bm25',
            {
                query: dict(
                    fusion.fuse([fusion.order(run[query]) for run in (words, own)])[:_DEPTH]
                )
                for query in own
            },
        )

    def weighted(self, name: str, weight: float) -> ranking.Run:
        """The scores of the baseline and, with that weight, of a system, added up."""
        words = self.runs[self.baseline]
        return {
            query: fusion.interpolate(words[query], scores, weight)
            for query, scores in self.runs[name].items()
        }

    def tuned(self, name: str) -> dict[str, float]:
        """{weight: the main measure of `weighted`}, for a few of them."""
        of = lambda weight: ranking.measure(self.one.qrels, self.weighted(name, weight))[
            self.main
        ].values()
        return {str(w): math.fsum(values) / len(values) for w in _WEIGHTS for values in [of(w)]}

    def facts(self) -> dict:
        return {
            **super().facts(),
            'queries': len(self._queries),
            'documents': len(self._documents),
            'clusters': len({*self.one.clusters.values()}),
        }

    def by_place(self) -> dict:
        """{third of the document: {system: nDCG@10}} of the queries whose answer begins there."""
        places = {
            place: [q for q, p in self.one.places.items() if p == place]
            for place in datasets.THIRDS
        }
        of = lambda values, asked: told(
            ranking.estimate({q: values[q] for q in asked}, self.one.clusters)
        )
        return {
            place: {
                'queries': len(asked),
                'scores': {
                    name: of(values[self.main], asked) for name, values in self.values.items()
                },
            }
            for place, asked in places.items()
            if asked
        }

    def write(self, folder: pathlib.Path) -> None:
        folder.mkdir(exist_ok=True)
        ranking.write_qrels(folder / 'qrels.txt', self.one.qrels)
        for name, run in self.runs.items():
            ranking.write_run(
                folder / f'{name}.run',
                {
                    q: {d: scores[d] for d in fusion.order(scores)[:_KEPT]}
                    for q, scores in run.items()
                },
                name,
            )


class Similarity(Board):
    """Spearman's correlation of cosines with the scores of a `search_sets.Pairs`."""

    main, baseline = 'spearman', 'tfidf'

    def __init__(self, one: datasets.Pairs):
        super().__init__(one, (one.first, one.second))
        first, second = (baselines.words(texts, self.language) for texts in self.sides)
        self.scored('tfidf', baselines.alike(*baselines.tfidf(first + second, first, second)[1:]))

    def scored(self, name: str, cosines: np.ndarray) -> None:
        self.estimates[name] = {self.main: statistics.spearman(cosines, self.one.scores)}
        self.log(name)

    def vectors(self, name, first, second) -> None:
        self.scored(name, encoders.alike(first, second))

    def facts(self) -> dict:
        return {**super().facts(), 'pairs': len(self.one.scores)}


def told(estimate: statistics.Estimate) -> list[float | None]:
    """[value, low, high] as JSON holds it: None for what is not finite."""
    return [x if math.isfinite(x) else None for x in (estimate.value, *estimate.interval())]
