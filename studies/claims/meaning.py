"""Embeddings hold meaning: what the vectors of names say of what the names stand for.

On the atlas (data/atlas): whether countries of one continent, currency or language lie together,
and whether one offset leads from a capital to its country (Mikolov et al. 2013, arXiv 1310.4546),
in the table of embeddings and in each layer, as training goes on. Of a run on any English text:
correlation with what people say of pairs of words.
"""

import collections
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from configs import atlas
from data.atlas import pages
from data.text import line_ends
from evals import hidden, plots
from evals.html import table_lines
from evals.search.encoders import untrained
from evals.statistics import spearman
from model.config import resolve
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run
from studies.claims import frame, lineage
from studies.claims.frame import ClaimCell, Finding

VERSION = 1  # raised where the same config would give other records

ATLAS = 'atlas'
SHUFFLED = 'atlas, facts permuted'  # the control: the web itself states other continents

LABELS = ('continent', 'currency', 'language')
_FEWEST = 3  # countries of a label that counts
_PERMUTATIONS = 200


def cells(config) -> list[ClaimCell]:
    """Returns both arms for `seeds` seeds."""
    seeds = range(1, config.seeds + 1)
    return [ClaimCell(arm, s, f'seed_{s}') for s in seeds for arm in (ATLAS, SHUFFLED)]


def check(config) -> None:
    """Raises ModelError where a cell could not be trained."""
    resolve(config.model, config.tokenizer.vocab_size, atlas.get_config().data.seq_len)
    list(pages.countries(config.data.atlas))


def measure(config, group: Sequence[ClaimCell], folder: pathlib.Path) -> Iterator[dict]:
    """Yields the record of each cell of one seed; its runs are in `folder`."""
    own = config.meaning
    for cell in group:
        began = time.perf_counter()
        experiment = lineage.of_quickstart(atlas.get_config(), config, cell.seed, own.steps)
        experiment.data.atlas.shuffle_facts = cell.arm == SHUFFLED
        experiment.checkpoint.update(every=own.steps // own.looks, keep_last=own.looks)
        name = 'permuted' if cell.arm == SHUFFLED else 'atlas'
        run = lineage.train(experiment, folder / name).run

        # The run as it began, and at each look: steps grow by the same factor.
        looks = sorted({max(1, own.looks >> i) for i in range(own.looks.bit_length())})
        growth = {}
        for look in looks:
            step = look * (own.steps // own.looks)
            model, params, tokenizer, _ = models.load(Run.parse(f'{run.path}@{step}'))
            growth[str(step)] = of_atlas(model, params, tokenizer, config.data.atlas)
        first = of_atlas(model, untrained(model, cell.seed), tokenizer, config.data.atlas)
        yield {
            'growth': {'0': first, **growth},
            'frequency': of_frequency(config.data.atlas, experiment.data.atlas),
            'seconds': time.perf_counter() - began,
        }


def measure_run(run: Run, probes: str = '') -> list[str]:
    """Returns lines on what the vectors of one run hold, in Markdown.

    Args:
      probes: folder of `*_en.txt`, pairs of words with how alike people find them; '': none.
    Raises:
      RunError: a run that is of neither the atlas nor measured with probes.
    """
    model, params, tokenizer, config = models.load(run)
    lines = []
    if config.data.source == 'atlas':
        found = of_atlas(model, params, tokenizer, config.data.atlas)
        lines += ['## Countries', '', *_by_layer([{'growth': {'0': found}}], '0')]
    if probes:
        rows = [
            [path.stem, str(count), f'{table.value:+.3f}', f'{layers.value:+.3f}']
            for path in sorted(pathlib.Path(probes).glob('*_en.txt'))
            for count, table, layers in [of_words(model, params, tokenizer, path)]
        ]
        lines += ['## Pairs of words: rank correlation with people', '']
        lines += table_lines(['pairs', 'count', 'table', 'last layer'], rows)
    if not lines:
        raise RunError(
            f'{run.path}: was trained on {config.data.source!r}; expected a run on the atlas, or '
            '--probes=DIR with pairs of words'
        )
    return lines


# --- Vectors of names, and what they hold ---------------------------------------------------------


def name_vectors(model, params, tokenizer, names: Sequence[str]) -> np.ndarray:
    """Returns vectors of names, [L+1,N,D]: the mean of their pieces in the table, then each layer.

    A layer's vector is that of the last piece, the name being all that was read.
    """
    ids = [tokenizer.encode(' ' + line_ends(name)) for name in names]
    table_VxD = np.asarray(params['embedding'], np.float32)
    of_table = np.stack([table_VxD[pieces].mean(0) for pieces in ids])
    rows = [[*tokenizer.begin, *pieces] for pieces in ids]
    of_layers = hidden.hidden_states(model, params, rows, [len(row) - 1 for row in rows])
    return np.concatenate([of_table[None], of_layers])


def of_atlas(model, params, tokenizer, world: ConfigDict) -> dict:
    """Returns, for the table and each layer, what vectors of countries and capitals hold.

    Labels are those of the world as it is, also where the web states others. Each figure has its
    chance beside it, that of permuted labels or capitals.
    """
    countries = pages.countries(world)
    names = [country.words['pt']['name'] for country in countries]
    capitals = [country.facts['pt']['capital'] for country in countries]
    vectors = name_vectors(model, params, tokenizer, [*names, *capitals])
    of_layers = []
    for of_layer in vectors:
        of_names, of_capitals = of_layer[: len(names)], of_layer[len(names) :]
        measured = {}
        for label in LABELS:
            values = [country.facts['pt'][label] for country in countries]
            measured[label] = separation(cosine_distances(of_names), values)
        measured['capital'] = follow_offset(of_capitals, of_names)
        of_layers.append(measured)
    return {'layers': of_layers}


def of_frequency(world: ConfigDict, read: ConfigDict) -> dict:
    """Returns the same of a vector that is nothing but how often a name is read, the control."""
    countries = pages.countries(world)
    text = '\n'.join(record.text for record in pages.web(read))
    counts = [np.log1p(text.count(country.words['pt']['name'])) for country in countries]
    distances = np.abs(np.subtract.outer(counts, counts))
    values = {label: [c.facts['pt'][label] for c in countries] for label in LABELS}
    return {label: separation(distances, values[label]) for label in LABELS}


def of_words(model, params, tokenizer, path: pathlib.Path):
    """Returns pairs of words, and how their cosines go with what people say: table, last layer."""
    pairs = [line.split('\t') for line in path.read_text(encoding='utf-8').splitlines()]
    words = sorted({word for first, second, _ in pairs for word in (first, second)})
    vectors = name_vectors(model, params, tokenizer, words)
    place = {word: i for i, word in enumerate(words)}
    people = [float(score) for *_, score in pairs]
    correlations = []
    for of_layer in (vectors[0], vectors[-1]):
        likeness = 1 - cosine_distances(of_layer)
        ours = [likeness[place[first], place[second]] for first, second, _ in pairs]
        correlations.append(spearman(ours, people))
    return len(pairs), *correlations


def cosine_distances(vectors_NxD: np.ndarray) -> np.ndarray:
    """Returns 1 - cosine of all pairs, [N,N], around the mean of all vectors."""
    centred = vectors_NxD - vectors_NxD.mean(0)
    units = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    return 1 - units @ units.T


def separation(distances_NxN: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """Returns how well things of one label lie together.

    Those count whose label at least three have. silhouette: mean of (b - a) / max(a, b), a the mean
    distance to others of the label and b that to the nearest other label (Rousseeuw 1987). nearest:
    share whose nearest one has the same label; chance: that share with labels permuted.
    """
    counts = collections.Counter(labels)
    kept = [i for i, label in enumerate(labels) if counts[label] >= _FEWEST]
    named = np.array([labels[i] for i in kept])
    distances = distances_NxN[np.ix_(kept, kept)].astype(float)
    if len(set(named)) < 2:
        return dict(count=len(kept), silhouette=0.0, nearest=0.0, chance=0.0)

    others = ~np.eye(len(kept), dtype=bool)
    silhouettes = []
    for i in range(len(kept)):
        means = {label: distances[i, (named == label) & others[i]].mean() for label in set(named)}
        own = means.pop(named[i])
        nearest_other = min(means.values())
        silhouettes.append((nearest_other - own) / max(own, nearest_other, 1e-9))

    nearest = np.where(others, distances, np.inf).argmin(1)
    rng = np.random.default_rng(0)
    chance = []
    for _ in range(_PERMUTATIONS):
        permuted = rng.permutation(named)
        chance.append((permuted[nearest] == permuted).mean())
    return dict(
        count=len(kept),
        silhouette=float(np.mean(silhouettes)),
        nearest=float((named[nearest] == named).mean()),
        chance=float(np.mean(chance)),
    )


def follow_offset(from_NxD: np.ndarray, to_NxD: np.ndarray) -> dict[str, float]:
    """Returns how often the mean offset of all other pairs leads from one to its own other.

    chance: the same with pairs permuted, which have a mean offset too.
    """

    def share(sources: np.ndarray) -> float:
        offsets = to_NxD - sources
        mean_of_others = (offsets.sum(0) - offsets) / (len(offsets) - 1)
        guesses = _units(sources + mean_of_others - to_NxD.mean(0))
        found = (guesses @ _units(to_NxD - to_NxD.mean(0)).T).argmax(1)
        return float((found == np.arange(len(found))).mean())

    rng = np.random.default_rng(0)
    permuted = [share(from_NxD[rng.permutation(len(from_NxD))]) for _ in range(20)]
    return dict(nearest=share(from_NxD), chance=float(np.mean(permuted)))


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


# --- What was found -------------------------------------------------------------------------------


def find(config, records: list[dict]) -> Finding:
    """Returns what the records say: continents in the last layer, and controls beside them."""
    arms = frame.by_arm(records)
    last = str(config.meaning.looks * (config.meaning.steps // config.meaning.looks))

    def nearest(record: dict, step: str, label: str = 'continent', layer: int = -1) -> float:
        return 100 * record['growth'][step]['layers'][layer][label]['nearest']

    trained = [nearest(record, last) for record in arms[ATLAS]]
    first = [nearest(record, '0') for record in arms[ATLAS]]
    permuted = [nearest(record, last) for record in arms[SHUFFLED]]
    frequency = [100 * record['frequency']['continent']['nearest'] for record in arms[ATLAS]]
    control = [max(pair) for pair in zip(first, permuted)]
    over = frame.paired(trained, control)
    shown = over.low > 0 and max(permuted) < min(trained) and max(frequency) < min(trained)
    sentence = (
        f'Of {np.mean(trained):.1f} % of countries the nearest one in the last layer lies on the '
        f'same continent; before training of {np.mean(first):.1f} %, where the web stated permuted '
        f'continents of {np.mean(permuted):.1f} %, by frequency alone of '
        f'{np.mean(frequency):.1f} %: {over.mean:+.1f} points over the better of the first two '
        f'({over.low:+.1f} to {over.high:+.1f}, {over.pairs} seeds).'
    )
    lines = ['## Table and layers, after training', '', *_by_layer(arms[ATLAS], last)]
    lines += ['## The same where facts are permuted', '', *_by_layer(arms[SHUFFLED], last)]
    steps = list(arms[ATLAS][0]['growth'])
    layers = len(arms[ATLAS][0]['growth'][last]['layers'])
    panels = {}
    values = {}
    for layer, title in ((0, 'table'), (layers - 1, 'last layer')):
        names = [f'{title} {step}' for step in steps]
        panels[f'{title}: steps of training'] = ([int(step) for step in steps], names)
        for name, step in zip(names, steps):
            values[name] = [nearest(record, step, layer=layer) for record in arms[ATLAS]]
    picture = plots.dose_curves(panels, values, 'nearest country on the same continent, %')
    return Finding(sentence, shown, lines, ('Growth of meaning; a point a seed', picture))


def _by_layer(records: Sequence[dict], step: str) -> list[str]:
    """Returns a table of the means over records, a row a layer."""
    layers = [record['growth'][step]['layers'] for record in records]
    rows = []
    for number in range(len(layers[0])):
        row = [f'layer {number}' if number else 'table']
        for label in (*LABELS, 'capital'):
            found = [of_record[number][label] for of_record in layers]
            share = 100 * np.mean([x['nearest'] for x in found])
            chance = 100 * np.mean([x['chance'] for x in found])
            text = f'{share:.1f} ({chance:.1f})'
            if label in LABELS:
                text += f', {np.mean([x["silhouette"] for x in found]):+.2f}'
            row.append(text)
        rows.append(row)
    header = ['', *(f'{label}: nearest, % (chance), silhouette' for label in LABELS)]
    return table_lines([*header, 'capital to country, % (chance)'], rows)
