"""Does the input keep up with the train step, and how long does it take to plan rows?

    python -m benchmarks.input_pipeline --rounds=5
    python -m benchmarks.input_pipeline --documents=3000000 --rounds=1
    python -m benchmarks.input_pipeline --quick

Contenders, seconds for a million tokens: `train step`, the jitted step of the quickstart's
pretraining (configs/atlas.py) on one batch that lies on the device; `stream` and `whole`, batches
alone as a run gets them, prepared in the background, with documents cut at row ends or kept whole.
Then the seconds in which rows of whole documents are planned, for so many drawn lengths.
"""

from absl import flags

from benchmarks import turns
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.whole('rounds', 5, 'Turns that count', 1, options.COUNT)
    options.whole('steps', 20, 'Train steps a turn', 1, options.COUNT)
    options.whole('batches', 500, 'Batches a turn', 1, options.COUNT)
    options.whole('documents', 1_000_000, 'Documents that are planned', 1, options.COUNT)
    options.path('out', '', 'A JSON line of each turn is appended to this file')
    options.path('serve', '', 'For itself: a cache of tokenizer and store, to be a contender')
    flags.DEFINE_string('contender', '', 'For itself: which one')
    flags.DEFINE_bool('quick', False, 'The same work on few batches, in a few seconds')
    cli.parse_flags()

import json
import sys
import tempfile
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import atlas
from data import batches
from data.store import Split, TokenStore
from model.config import resolve
from model.transformer import Transformer
from train import mesh as meshes, setup, step as steps
from train.losses import TokenLoss
from train.optimizer import make_optimizer

TRAIN_STEP, PACKINGS = 'train step', ('stream', 'whole')  # contenders
_ROW, _SPREAD, _MIDDLE = 1024, 1.0, 300.0  # of planned rows and documents, in tokens


def compare(steps_a_turn: int, batches_a_turn: int, rounds: int, quick: bool) -> list[dict]:
    """Returns a measurement of each contender and round: seconds for a million tokens."""
    with tempfile.TemporaryDirectory() as cache:
        _open(cache, quick)  # the store is built once
        command = [sys.executable, '-m', 'benchmarks.input_pipeline', f'--serve={cache}']
        command += [f'--steps={steps_a_turn}', f'--batches={batches_a_turn}']
        command += ['--quick'] if quick else []
        commands = {name: [*command, f'--contender={name}'] for name in (TRAIN_STEP, *PACKINGS)}
        return turns.take_turns(commands, rounds)


def _open(cache: str, quick: bool) -> tuple[ConfigDict, int, Split]:
    """Returns the quickstart's config, its vocabulary, and the documents it trains on."""
    config = atlas.get_config()
    config.data.cache = cache
    if quick:
        config.data.atlas.update(editions=2, countries=6)
        config.tokenizer.vocab_size = 440
    tokenizer = setup.load_or_train_tokenizer(config)
    store = TokenStore.open_or_build(config.data, tokenizer, progress=False)
    return config, tokenizer.vocab_size, store.split('train')


def serve(cache: str, contender: str, steps_a_turn: int, batches_a_turn: int, quick: bool) -> None:
    """Does the work of one of the contenders a turn."""
    config, vocabulary, split = _open(cache, quick)
    row_tokens = config.data.batch_size * config.data.seq_len
    if contender == TRAIN_STEP:
        count = steps_a_turn
        work_once = _prepare_steps(config, vocabulary, split, count)
    else:
        count = batches_a_turn
        config.data.packing = contender
        rows = batches.Batches(split, config.data, config.seed)

        def work_once():
            for _ in batches.prefetched(rows, 0, count, config.data.prefetch):
                pass

    def work():
        began = time.perf_counter()
        work_once()
        seconds = time.perf_counter() - began
        return dict(seconds=seconds / (count * row_tokens) * 1e6)

    turns.serve(work)


def _prepare_steps(config: ConfigDict, vocabulary: int, split: Split, count: int):
    """Returns a function that takes `count` compiled steps of the quickstart's model."""
    mesh = meshes.make_mesh(ConfigDict(dict(data=1, fsdp=1, tensor=1, context=1)))
    model = Transformer(resolve(config.model, vocabulary, config.data.seq_len))
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    state, shardings = steps.init_state(model, optimizer, config.seed, mesh)
    step = steps.make_step(model, optimizer, TokenLoss(), mesh, shardings)
    batch = batches.Batches(split, config.data, config.seed)(0)
    on_device = meshes.to_devices(mesh, batch, config.data.batch_size)

    def take_steps():
        nonlocal state
        for _ in range(count):
            state, metrics = step(state, on_device)
        jax.block_until_ready(metrics)

    return take_steps


def plan(documents: int) -> dict:
    """Returns how long it takes to plan rows for so many documents, and how full they become."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(_MIDDLE), _SPREAD, documents).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths.clip(2, _ROW))])
    split = Split(np.zeros(0, np.uint16), offsets, None, 0)
    began = time.perf_counter()
    used = time.process_time()
    rows = batches.Whole(split, _ROW, seed=0, shuffle=True)
    return dict(
        name='plan',
        documents=documents,
        seconds=time.perf_counter() - began,
        processor_seconds=time.process_time() - used,
        rows=rows.num_rows,
        filled=float(offsets[-1] / rows.num_rows / _ROW),
    )


def main() -> None:
    f = flags.FLAGS
    if f.serve:
        return serve(f.serve, f.contender, f.steps, f.batches, f.quick)
    sizes = dict(steps_a_turn=f.steps, batches_a_turn=f.batches, rounds=f.rounds, quick=f.quick)
    documents = f.documents
    if f.quick:
        sizes |= dict(steps_a_turn=1, batches_a_turn=8, rounds=1)
        documents = 10_000
    lines = compare(**sizes)
    planned = plan(documents)
    if f.out:
        turns.keep(f.out, [*lines, planned])
    print(turns.table(lines, TRAIN_STEP))
    print(json.dumps(planned))


if __name__ == '__main__':
    cli.run(main)
