"""Measures indexing beside tokenizing alone, and search in vectors beside exact search.

    python -m benchmarks.search --what=indexing --megabytes=100 > indexing.json
    python -m benchmarks.search --what=vectors --vectors=1000000 > vectors.json

indexing: a corpus that is drawn (words of Zipf's law, a seed) or --paths is indexed once, with
--run or else a model of two layers and width 64 that is made for it, untrained: the time does not
depend on what it knows. Before and after, its sentences are tokenized, on all cores: `ratio` is the
rate of indexing over that. The parts of the time are given, since that of the model is its own
affair.

vectors: like embeddings, not embeddings: chunks of documents of topics, in 48 directions of falling
strength with some noise around and a common mean (with --run: embeddings by that run of spans of
Python's documentation). Graph and exact search (numpy: a product with the float32 matrix,
argpartition) take turns at each query. What opening reads is looked at in a process of its own, the
file dropped from the page cache.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    flags.DEFINE_enum('what', 'vectors', ['indexing', 'vectors'], 'What is measured')
    options.path(
        'run',
        '',
        'Run directory whose model embeds; default: one that is made (indexing), '
        'drawn vectors (vectors)',
    )
    options.number('megabytes', 100.0, 'indexing: text that is drawn', 0.1, 2**20)
    options.paths('paths', 'indexing: text to index in place of a drawn one')
    options.whole('vectors', 1_000_000, 'vectors: how many', 1000, options.MOST)
    options.whole('size', 256, 'vectors: dimensions', 2, options.COUNT)
    options.whole('queries', 1000, 'vectors: queries, each to both', 1, options.COUNT)
    options.path(
        'out', 'runs/benchmarks', 'On which disk: a folder of its own there, which is removed'
    )
    cli.parse_flags()

import functools
import json
import multiprocessing
import os
import pathlib
import re
import statistics
import tempfile
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from apps.search import lexical, update, vectors
from apps.search.reader import Reader
from apps.search.store import Folder
from configs import pydoc
from data import sources
from runtime.run_dir import Run
from runtime.system import available_cpus
from train import loop, setup

_FILE = 50_000  # characters of a drawn file
_SENTENCES = 20_000  # that are tokenized at a time
_RANK = 48  # directions in which drawn vectors differ most


def draw_text(folder: pathlib.Path, megabytes: float) -> None:
    """Writes files of sentences and paragraphs of made-up words.

    There are half a million words, as frequent as Zipf's law says.
    """
    rng = np.random.default_rng(0)
    syllables = np.array(
        [a + b for a in 'bcdfghjklmnprstvz' for b in 'aeiou'] + ['an', 'er', 'is', 'on']
    )
    rows = syllables[rng.integers(0, len(syllables), (500_000, 5))]
    counts = rng.integers(1, 6, 500_000)
    words = np.array([''.join(row[:n]) for row, n in zip(rows, counts)])
    weights = 1 / (np.arange(len(words)) + 2.7)
    edges = np.cumsum(weights / weights.sum())
    for number in range(int(megabytes * 1e6 / _FILE)):
        places = np.searchsorted(edges, rng.random(_FILE // 4))
        drawn = iter(words[np.minimum(places, len(words) - 1)])
        text: list[str] = []
        left = _FILE
        while left > 0:
            sentence = ' '.join(next(drawn) for _ in range(rng.integers(5, 25))).capitalize()
            sentence += '.\n\n' if rng.random() < 0.2 else '. '
            text.append(sentence)
            left -= len(sentence)
        (folder / f'{number:05}.txt').write_text(''.join(text), 'utf-8')


def small_run(folder: pathlib.Path) -> str:
    """Trains one step, with a tokenizer of 4,096 pieces of the drawn text, where there is one.

    Returns the run's folder.
    """
    c = pydoc.get_config()
    if (folder / 'text').exists():
        c.data.source = 'files'
        c.data.files.paths = f'{folder}/text/000[0-4]?.txt'
    c.model.update(width=64, num_layers=2, num_heads=2, num_kv_heads=2)
    c.data.update(batch_size=4, cache=str(folder / 'cache'))
    c.train.steps = 1
    c.optimizer.warmup = 0
    c.eval.every = 0
    c.sample.every = 0
    c.log.update(tensorboard=False, progress=False)
    loop.train(setup.build_experiment(c, str(folder / 'run')))
    return str(folder / 'run')


def clocks() -> np.ndarray:
    """Returns seconds of the wall, and of all cores."""
    return np.array([time.perf_counter(), time.process_time()])


def tokenizing(paths: list[str], tokenizer) -> tuple[int, np.ndarray]:
    """Returns bytes of all files, and seconds to tokenize their sentences."""
    size = 0
    seconds = np.zeros(2)
    sentences: list[str] = []
    files = sorted(
        p
        for path in map(pathlib.Path, paths)
        for p in (path.rglob('*') if path.is_dir() else [path])
        if p.is_file()
    )
    for path in [*files, None]:
        if path is not None:
            text = path.read_text('utf-8', errors='replace')
            size += path.stat().st_size
            sentences += re.split(r'(?<=[.!?])\s+|\n+', text)
        if sentences and (path is None or len(sentences) > _SENTENCES):
            began = clocks()
            tokenizer.encode_batch(sentences)
            seconds = seconds + clocks() - began
            sentences = []
    return size, seconds


def indexing(folder: pathlib.Path, run: str, paths: list[str], megabytes: float) -> dict:
    """Returns rates in MB/s of text, and seconds of the parts of indexing."""
    if not paths:
        (folder / 'text').mkdir()
        draw_text(folder / 'text', megabytes)
        paths = [str(folder / 'text')]
    reader = Reader(Run.parse(run or small_run(folder)), '', 0)
    reader.embed(reader.encode(['compiled ' * n for n in range(1, 250, 10)], 256))
    parts: dict[str, float] = {}

    def time_calls(target, name, part):
        function = getattr(target, name)

        @functools.wraps(function)
        def call(*args):
            began = time.perf_counter()
            try:
                return function(*args)
            finally:
                parts[part] = parts.get(part, 0) + time.perf_counter() - began

        setattr(target, name, call)

    size, before = tokenizing(paths, reader.tokenizer)
    for target, name, part in (
        (update.Update, '_read', 'reading_and_cutting'),
        (reader, 'encode', 'tokenizing'),
        (reader, 'embed', 'model'),
        (lexical, 'build', 'words'),
        (vectors, 'add', 'graph'),
        (Folder, 'publish', 'publishing'),
    ):
        time_calls(target, name, part)
    began = clocks()
    message = update.Update(Folder(str(folder / 'index')), reader, {}, False).run(paths, [])
    seconds = clocks() - began
    _, after = tokenizing(paths, reader.tokenizer)
    parts['rest'] = seconds[0] - sum(parts.values())
    rate = size / seconds / 1e6
    alone = size / ((before + after) / 2) / 1e6
    bytes_of = {p.name: p.stat().st_size for p in (folder / 'index').rglob('*') if p.is_file()}
    return dict(
        said=message.rpartition(': ')[2],
        megabytes=size / 1e6,
        indexing_mb_per_second=rate[0],
        tokenizing_mb_per_second=alone[0],
        ratio=rate[0] / alone[0],
        ratio_of_processor_time=rate[1] / alone[1],
        ratio_without_the_model=size / (seconds[0] - parts['model']) / 1e6 / alone[0],
        seconds=seconds[0],
        seconds_of_parts=parts,
        seconds_of_tokenizing_alone=[before[0], after[0]],
        processor_seconds=dict(indexing=seconds[1], tokenizing=[before[1], after[1]]),
        width=reader.size,
        chunk=reader.trained,
        device=jax.devices()[0].device_kind,
        cores=available_cpus(),
        index_bytes=bytes_of,
    )


def draw_vectors(count: int, size: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors of length 1, float32 [count, size] and [queries, size].

    A query is of a document that is there, and further from it than its chunks.
    """
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    # Documents around topics, in few directions of falling strength.
    strength = np.arange(1, _RANK + 1, dtype=np.float32)[:, None] ** -0.5
    directions = normal(_RANK, size) * strength / size**0.5
    mean = normal(size) / size**0.5
    many = max(1, count // 20)
    topics = normal(5000, _RANK)
    documents = topics[rng.integers(0, 5000, many)] + 0.7 * normal(many, _RANK)

    def chunks(which: np.ndarray, spread: float) -> np.ndarray:
        places = (documents[which] + spread * normal(len(which), _RANK)) @ directions
        rows = mean + places + 0.2 * normal(len(which), size) / size**0.5
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    parts = []
    for i in range(0, count, 100_000):
        which = np.arange(i, min(i + 100_000, count)) % len(documents)
        parts.append(chunks(which, 0.5))
    return np.concatenate(parts), chunks(rng.integers(0, len(documents), queries), 0.8)


def embed_spans(run: str, count: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same, of spans of some 100 characters of Python's documentation.

    Each is begun at another place of it; queries are spans of 40.
    """
    reader = Reader(Run.parse(run), '', 0)
    rng = np.random.default_rng(0)
    config = ConfigDict(dict(source='pydoc', pydoc=dict(modules=0)))
    text = '\n\n'.join(record.text for record in sources.read(config))

    def embed(places: np.ndarray, length: int) -> np.ndarray:
        parts = []
        for j in range(0, len(places), 2000):
            spans = [text[i : i + length] for i in places[j : j + 2000]]
            parts.append(reader.embed(reader.encode(spans)))
        return np.concatenate(parts)

    known = embed(np.linspace(0, len(text) - 100, count).astype(int), 100)
    return known, embed(rng.integers(0, len(text) - 40, queries), 40)


def probe(path: str, queries: str, out) -> None:
    """Puts into `out` what opening and 1,000 queries do to a fresh process."""
    asked = np.load(queries, allow_pickle=False)

    def drop():
        with open(path) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def now():
        io = dict(line.split(': ') for line in open('/proc/self/io').read().splitlines())
        memory = dict(line.split(':') for line in open('/proc/self/status').read().splitlines())
        read = [int(io[name]) / 2**20 for name in ('rchar', 'read_bytes')]
        resident = [int(memory[name].split()[0]) / 1024 for name in ('RssAnon', 'RssFile')]
        return np.array([*read, *resident])

    names = ('read_by_calls', 'read_from_disk', 'memory_of_its_own', 'memory_mapped_of_files')
    drop()
    before = now()
    began = time.perf_counter()
    index = vectors.view(path)
    seconds = time.perf_counter() - began
    opened = now()
    index.search(asked[0], 10)
    first = time.perf_counter() - began - seconds
    for query in asked[1:1001]:
        index.search(query, 10, threads=1)
    searched = now()
    del index
    drop()
    began = time.perf_counter()
    with open(path, 'rb') as file:
        while file.read(1 << 20):
            pass
    whole = time.perf_counter() - began
    out.put(
        dict(
            file_mib=os.path.getsize(path) / 2**20,
            opening_seconds=seconds,
            first_query_seconds=first,
            reading_the_file_through_seconds=whole,
            opening_over_reading_through=seconds / whole,
            mib_after_opening=dict(zip(names, (opened - before).tolist())),
            mib_after_1000_queries=dict(zip(names, (searched - before).tolist())),
        )
    )


def compare(index, known: np.ndarray, asked: np.ndarray) -> tuple[float, dict[str, list[float]]]:
    """Returns recall at 10 of a graph beside exact search, and seconds of each query to both.

    The two take turns.
    """
    seconds: dict[str, list[float]] = dict(graph=[], exact=[])
    hits = 0
    for query in asked:
        began = time.perf_counter()
        near = index.search(query, 10, threads=1).keys
        middle = time.perf_counter()
        scores = known @ query
        best = np.argpartition(scores, -10)[-10:]
        best = best[np.argsort(-scores[best])]
        seconds['graph'].append(middle - began)
        seconds['exact'].append(time.perf_counter() - middle)
        hits += len(set(near.tolist()) & set(best.tolist()))
    return hits / 10 / len(asked), seconds


def graph(folder: pathlib.Path, run: str, count: int, size: int, queries: int) -> dict:
    """Returns recall at 10, seconds of a query, and what opening reads."""
    known, asked = embed_spans(run, count, queries) if run else draw_vectors(count, size, queries)
    index = vectors.make(known.shape[1])
    began = time.perf_counter()
    for i in range(0, count, 5000):
        keys = np.arange(i, min(i + 5000, count))
        vectors.add(index, keys, known[i : i + 5000].astype(np.float16))
    building = time.perf_counter() - began
    path = str(folder / 'graph')
    vectors.save(index, path)
    np.save(folder / 'queries.npy', asked, allow_pickle=False)
    index = vectors.view(path)
    recall, seconds = compare(index, known, asked)
    del index  # what is mapped somewhere stays in the page cache
    context = multiprocessing.get_context('spawn')
    answers = context.Queue()
    process = context.Process(target=probe, args=(path, str(folder / 'queries.npy'), answers))
    process.start()
    opening = answers.get(timeout=600)
    process.join()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return dict(
        vectors=count,
        size=known.shape[1],
        kind=f'embeddings by {run}' if run else 'drawn',
        queries=len(asked),
        settings=vectors.FORM | vectors.SETTINGS,
        recall_at_10=recall,
        graph_seconds=median['graph'],
        exact_seconds=median['exact'],
        times_faster=median['exact'] / median['graph'],
        building_seconds=building,
        opening=opening,
        cores=available_cpus(),
        raw={name: [round(x, 6) for x in values] for name, values in seconds.items()},
    )


def main() -> None:
    f = flags.FLAGS
    pathlib.Path(f.out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=f.out) as name:
        folder = pathlib.Path(name).resolve()
        if f.what == 'indexing':
            figures = indexing(folder, f.run, f.paths, f.megabytes)
        else:
            figures = graph(folder, f.run, f.vectors, f.size, f.queries)
    print(json.dumps({'what': f.what, **figures}, indent=1))


if __name__ == '__main__':
    cli.run(main)
