"""The systems that are measured on one set, words and models, with an estimate of each measure."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Iterable

import numpy as np

from data import fusion
from evals import statistics
from evals.search import baselines, datasets, encoders, published, ranking

_LOG = logging.getLogger('ordem')

SHARED = ('few words shared', 'some', 'most')  # thirds of the queries of a set
_DEPTH = 100  # documents of a ranking that are fused
_WRITTEN = 20  # documents of a ranking that are written
_WEIGHTS = (0.0, 0.05, *(n / 10 for n in range(1, 11)))


@dataclasses.dataclass(frozen=True)
class System:
    """A model under a name, and how texts become vectors with it.

    reads: tokens of a passage (model.embed.trained_length).
    poolings: its own first.
    sizes: leading dimensions that are measured beside all of them.
    """

    name: str
    model: object
    params: dict
    tokenizer: object
    reads: int
    poolings: tuple[str, ...] = ('mean',)
    sizes: tuple[int, ...] = ()


class Leaderboard:
    """The systems measured on one set: `estimates`, {system: {measure: Estimate}}."""

    main: str  # the measure that systems are compared by first
    asks: tuple[bool, bool]  # whether the texts of each side are questions

    def __init__(self, dataset, sides: tuple[list[str], list[str]]):
        self.dataset = dataset
        self.sides = sides
        self.estimates: dict[str, dict[str, statistics.Estimate]] = {}
        self.passages: dict[str, int] = {}
        self.language = baselines.language(sides[0] + sides[1])

    def add_system(self, system: System) -> None:
        """Measures a model.

        Its own pooling is called `name`, others `name.pooling`, sizes `@size`, and its token
        embeddings `name.static`.
        """
        sides = [encoders.passages(system.tokenizer, texts, system.reads) for texts in self.sides]
        self.passages[system.name] = len(sides[1].rows)
        for pooling in system.poolings:
            name = system.name if pooling == system.poolings[0] else f'{system.name}.{pooling}'
            vectors = [
                encoders.embedded(system.model, system.params, side, pooling) for side in sides
            ]
            self.add_vectors(name, *vectors)
            for size in system.sizes:
                self.add_vectors(f'{name}@{size}', *(side.cut(size) for side in vectors))
        static = [encoders.static(system.params, side) for side in sides]
        self.add_vectors(f'{system.name}.static', *static)

    def add_published(self, name: str, encode: published.Encode) -> None:
        """Measures an encoder that others publish: a vector for each text, however long."""
        vectors = []
        for texts, asks in zip(self.sides, self.asks):
            rows = np.asarray(encode(texts, asks), np.float32)
            vectors.append(encoders.Vectors(rows, np.arange(len(texts))))
        self.add_vectors(name, *vectors)

    def add_vectors(self, name: str, first: encoders.Vectors, second: encoders.Vectors) -> None:
        """Measures the vectors of both sides under a name."""
        raise NotImplementedError

    def log(self, name: str) -> None:
        """Logs the main measure of a system with its interval."""
        estimate = self.estimates[name][self.main]
        figures = (estimate.value, *estimate.interval())
        _LOG.info('%s: %s: %s %.4f (%.4f to %.4f)', self.dataset.name, name, self.main, *figures)

    def facts(self) -> dict:
        """Returns what results.json says of the set."""
        return {
            **self.dataset.source,
            'language': self.language,
            'passages': self.passages,
            'baseline': self.baseline,
            'main': self.main,
        }

    def compare(self, a: str, b: str) -> dict:
        """Returns {measure: {'difference', 'ratio'}}, each [value, low, high], bootstrap paired."""
        comparisons = {}
        for measure, other in self.estimates[b].items():
            one = self.estimates[a][measure]
            comparisons[measure] = {
                'difference': as_json(one - other),
                'ratio': as_json(one / other),
            }
        return comparisons


class Search(Leaderboard):
    """Rankings of the documents of a `datasets.Questions`: `runs`, {system: run}."""

    main = 'nDCG@10'
    asks = (True, False)

    def __init__(self, dataset: datasets.Questions):
        # Sorted, so that ties are in the order of ids.
        self._queries = sorted(dataset.queries)
        self._documents = sorted(dataset.documents)
        queries = [dataset.queries[q] for q in self._queries]
        documents = [dataset.documents[d] for d in self._documents]
        super().__init__(dataset, (queries, documents))
        self.runs: dict[str, ranking.Run] = {}
        self.values: dict[str, dict[str, dict[str, float]]] = {}

        # Systems without a model: BM25 of words as they are and of stems, and TF-IDF of stems.
        for name, stemmed in (('bm25', ''), ('bm25-stemmed', self.language)):
            sides = [baselines.words(texts, stemmed) for texts in self.sides]
            self.add_scores(name, baselines.bm25(*sides), 0)
        of_documents, of_queries = baselines.tfidf(sides[1], sides[0])
        self.add_scores('tfidf', baselines.cosines(of_queries, of_documents), 0)

    @property
    def baseline(self) -> str:
        """The stronger of the two BM25."""
        return max(('bm25', 'bm25-stemmed'), key=lambda name: self.estimates[name][self.main].value)

    def add_scores(self, name: str, rows: Iterable[np.ndarray], above: float = -math.inf) -> None:
        """Measures scores [documents], a row a query; those not `above` that are left out."""
        run = {}
        for query, row in zip(self._queries, rows):
            best = np.argsort(-row, kind='stable')[:_DEPTH]
            run[query] = {self._documents[i]: float(row[i]) for i in best if row[i] > above}
        self.add_run(name, run)

    def add_run(self, name: str, run: ranking.Run) -> None:
        """Measures a ranking of documents for each query."""
        self.runs[name] = run
        self.values[name] = ranking.measure(self.dataset.qrels, run)
        self.estimates[name] = {
            measure: ranking.estimate(values, self.dataset.clusters)
            for measure, values in self.values[name].items()
        }
        self.log(name)

    def add_vectors(self, name: str, first: encoders.Vectors, second: encoders.Vectors) -> None:
        self.add_scores(name, encoders.nearest(first, second))

    def add_system(self, system: System) -> None:
        """Measures a model, and as `name+bm25` its ranking fused with that of the baseline."""
        super().add_system(system)
        self._fuse(system.name)

    def add_published(self, name: str, encode: published.Encode) -> None:
        """Measures an encoder, and as `name+bm25` its ranking fused with that of the baseline."""
        super().add_published(name, encode)
        self._fuse(name)

    def _fuse(self, name: str) -> None:
        fused = {}
        for query, scores in self.runs[name].items():
            words = self.runs[self.baseline][query]
            documents = fusion.fuse([fusion.order(words), fusion.order(scores)])
            fused[query] = dict(documents[:_DEPTH])
        self.add_run(f'{name}+bm25', fused)

    def weighted(self, name: str, weight: float) -> ranking.Run:
        """Returns the scores of the baseline and, with that weight, of a system, added up."""
        words = self.runs[self.baseline]
        return {
            query: fusion.interpolate(words[query], scores, weight)
            for query, scores in self.runs[name].items()
        }

    def tune(self, name: str) -> dict[str, float]:
        """Returns {weight: the main measure of `weighted`}, for a few of them."""
        means = {}
        for weight in _WEIGHTS:
            run = self.weighted(name, weight)
            values = ranking.measure(self.dataset.qrels, run)[self.main].values()
            means[str(weight)] = math.fsum(values) / len(values)
        return means

    def facts(self) -> dict:
        return {
            **super().facts(),
            'queries': len(self._queries),
            'documents': len(self._documents),
            'clusters': len({*self.dataset.clusters.values()}),
        }

    def by_place(self) -> dict:
        """Returns `_by_group` of the third of its document that a query's answer begins in."""
        places = self.dataset.places.items()
        return self._by_group(
            {
                third: [query for query, place in places if place == third]
                for third in datasets.THIRDS
            }
        )

    def by_shared_words(self) -> dict:
        """Returns `_by_group` of thirds of the queries, by the words shared with their documents.

        What is shared is the part of a query's stems, without stop words, that stands in the
        document that answers it (of several, the one with most): meaning is needed where there is
        little. Adds to each group 'shared', [least, most].
        """
        asked, documents = (baselines.words(texts, self.language) for texts in self.sides)
        stems = dict(zip(self._documents, map(set, documents)))
        shared = {}
        for query, words in zip(self._queries, map(set, asked)):
            answers = [stems[d] for d, grade in self.dataset.qrels[query].items() if grade > 0]
            shared[query] = max(len(words & answer) / max(1, len(words)) for answer in answers)

        # Equal shares are in the order of ids, so that thirds are of one size.
        order = sorted(self._queries, key=lambda query: (shared[query], query))
        cuts = np.array_split(np.arange(len(order)), len(SHARED))
        groups = {name: [order[i] for i in cut] for name, cut in zip(SHARED, cuts)}
        results = self._by_group(groups)
        for name, of in results.items():
            shares = [shared[query] for query in groups[name]]
            of['shared'] = [min(shares), max(shares)]
        return results

    def _by_group(self, groups: dict[str, list[str]]) -> dict:
        """Returns {group: {'queries': how many, 'scores': {system: nDCG@10}}}, of none empty."""
        results = {}
        for group, asked in groups.items():
            if not asked:
                continue
            scores = {}
            for name, values in self.values.items():
                of_group = {query: values[self.main][query] for query in asked}
                scores[name] = as_json(ranking.estimate(of_group, self.dataset.clusters))
            results[group] = {'queries': len(asked), 'scores': scores}
        return results

    def write(self, folder: pathlib.Path) -> None:
        """Writes judgements and the first documents of each system's ranking as TREC files."""
        folder.mkdir(exist_ok=True)
        ranking.write_qrels(folder / 'qrels.txt', self.dataset.qrels)
        for name, run in self.runs.items():
            first = {
                query: {document: scores[document] for document in fusion.order(scores)[:_WRITTEN]}
                for query, scores in run.items()
            }
            ranking.write_run(folder / f'{name}.run', first, name)


class Similarity(Leaderboard):
    """Spearman's correlation of cosines with the scores of a `datasets.Pairs`."""

    main = 'spearman'
    asks = (True, True)
    baseline = 'tfidf'

    def __init__(self, dataset: datasets.Pairs):
        super().__init__(dataset, (dataset.first, dataset.second))
        first, second = (baselines.words(texts, self.language) for texts in self.sides)
        _, *vectors = baselines.tfidf(first + second, first, second)
        self.add_scores('tfidf', baselines.alike(*vectors))

    def add_scores(self, name: str, cosines: np.ndarray) -> None:
        """Measures a cosine for each pair, [N]."""
        self.estimates[name] = {self.main: statistics.spearman(cosines, self.dataset.scores)}
        self.log(name)

    def add_vectors(self, name: str, first: encoders.Vectors, second: encoders.Vectors) -> None:
        self.add_scores(name, encoders.alike(first, second))

    def facts(self) -> dict:
        return {**super().facts(), 'pairs': len(self.dataset.scores)}


def as_json(estimate: statistics.Estimate) -> list[float | None]:
    """Returns [value, low, high] as JSON holds it: None for what is not finite."""
    return [x if math.isfinite(x) else None for x in (estimate.value, *estimate.interval())]
