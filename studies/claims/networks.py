"""Attention against networks alone: the same text, tokens and weights, without attention.

In each layer attention gives its place to a feed-forward network over a window of the last
tokens, to the mean of that window, or to nothing; where no weights stand there they go to the
feed-forward (`config.model.mixing`). Measured are the loss on held-out pages of the atlas, what is
answered about its countries after post-training, as in the quickstart, and the recall of pairs that
a text stated earlier (MQAR, data/tasks/memory.py).
"""

import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from configs import atlas, atlas_answers
from data.records import DataError
from data.tasks import TaskBatches, build
from evals import answers, heldout, lengths, plots
from evals.html import table_lines
from model.config import ModelConfig, resolve
from model.transformer import Transformer
from runtime.errors import RunError
from runtime.metrics import flops_per_token
from studies.claims import frame, lineage
from studies.claims.frame import ClaimCell, Finding
from train import in_memory, setup

VERSION = 1  # raised where the same config would give other records

WHOLE = 'attention'
NETWORKS = ('window', 'average', 'none')
BLIND = 'attention, window 1'  # the control: a token that attends to itself alone
_PARAMETERS = 0.03  # share by which arms may differ from attention
_COMPUTE = 0.1


# --- What is measured -----------------------------------------------------------------------------


def cells(config) -> list[ClaimCell]:
    """Returns attention, networks and control for `seeds` seeds, others for `more_seeds`."""
    listed = []
    for seed in range(1, config.seeds + 1):
        arms = [WHOLE, *NETWORKS, BLIND]
        if seed <= config.more_seeds:
            arms.append(_within(config))
        listed += [ClaimCell(arm, seed, f'{arm}, seed {seed}'.replace(', ', '_')) for arm in arms]
    return listed


def _within(config) -> str:
    """Returns the name of attention that reaches no further than the networks."""
    return f'attention, window {config.networks.window}'


def check(config) -> None:
    """Raises ModelError, DataError or RunError where a cell could not be trained, or arms differ in
    weights or compute."""
    seq_len = atlas.get_config().data.seq_len
    recall = _recall_batches(config, 0)
    sizes = {
        'the atlas': (_fields, config.tokenizer.vocab_size, seq_len),
        'recall': (_recall_fields, len(recall.task.vocabulary), recall.seq_len),
    }
    for where, (fields, vocab_size, length) in sizes.items():
        parameters, compute = _counts(resolve(fields(config, WHOLE), vocab_size, length), length)
        for arm in (*NETWORKS, BLIND, _within(config)):
            of_arm = _counts(resolve(fields(config, arm), vocab_size, length), length)
            for what, number, whole, most in (
                ('parameters', of_arm[0], parameters, _PARAMETERS),
                ('FLOPs a token', of_arm[1], compute, _COMPUTE),
            ):
                if abs(number / whole - 1) > most:
                    raise RunError(
                        f'config.model: {arm!r} has {number:.3g} {what} for {where}, attention '
                        f'{whole:.3g}: expected at most {100 * most:g} % more or less'
                    )


def _fields(config, arm: str) -> ConfigDict:
    """Returns the `model` part of an arm."""
    fields = ConfigDict(config.model.to_dict())
    mixing, _, window = arm.partition(', window ')
    fields.mixing = mixing
    if mixing == WHOLE:
        fields.window = int(window or 0)
    else:
        fields.positions = 'none'
        fields.window = 0 if mixing == 'none' else config.networks.window
    return fields


def _recall_fields(config, arm: str) -> ConfigDict:
    """Returns the `model` part of an arm for texts of pairs, which need a small model only."""
    own = config.networks
    fields = _fields(config, arm)
    fields.update(
        width=own.recall_width,
        num_layers=own.recall_layers,
        num_heads=own.recall_heads,
        num_kv_heads=own.recall_heads,
        head_dim=0,
        mlp_width=0,
    )
    return fields


def _counts(architecture: ModelConfig, seq_len: int) -> tuple[int, float]:
    """Returns the parameters of a model, and its FLOPs of a token, forward and backward."""
    row = jax.ShapeDtypeStruct((1, seq_len), np.int32)
    shapes = jax.eval_shape(Transformer(architecture).init, jax.random.key(0), row, row, row)
    params = nn.meta.unbox(shapes['params'])
    size = sum(x.size for x in jax.tree.leaves(params))
    return size, flops_per_token(params, architecture, seq_len)


def measure(config, group: Sequence[ClaimCell], folder: pathlib.Path) -> Iterator[dict]:
    """Yields the record of each cell; its runs are in `folder`."""
    for cell in group:
        began = time.perf_counter()
        record = _measure_atlas(config, cell, folder) | _measure_recall(config, cell)
        yield {**record, 'seconds': time.perf_counter() - began}


def _of_arm(config, cell: ClaimCell, experiment: ConfigDict, steps: int) -> ConfigDict:
    """Returns a phase of the quickstart with the model of an arm."""
    study = ConfigDict(config.to_dict())
    study.model = _fields(config, cell.arm)
    return lineage.of_quickstart(experiment, study, cell.seed, steps)


def _measure_atlas(config, cell: ClaimCell, folder: pathlib.Path) -> dict:
    """Returns the loss on held-out pages, and what is answered after post-training."""
    own = config.networks
    web_config = _of_arm(config, cell, atlas.get_config(), own.web_steps)
    web = lineage.train(web_config, folder / 'web')
    answers_config = _of_arm(config, cell, atlas_answers.get_config(), own.answer_steps)
    taught = lineage.train(answers_config, folder / 'answers', str(web.run.path))

    asked = answers.questions(web_config.data.atlas)
    questions = [question['question'] for question in asked]
    said = answers.answer(taught.model, taught.state['params'], taught.tokenizer, questions)
    size, compute = _counts(web.model.config, web_config.data.seq_len)
    return {
        'parameters': size,
        'flops': compute,
        'web_nats': _held_out(web, web_config, cell.seed),
        'accuracy': answers.accuracy(asked, said),
    }


def _held_out(web: setup.Experiment, config: ConfigDict, seed: int) -> float:
    split = web.store.split('validation')
    return heldout.loss(web.model, web.state['params'], split, config.data, seed)


def _recall_batches(config, seed: int) -> TaskBatches:
    """Returns texts of pairs, each of whose keys comes once more with its value."""
    own = config.networks
    try:
        task = build('multi_query_recall', dict(words=own.recall_words, spread=6, keys='all'))
        low, high = own.recall_pairs
        return TaskBatches(task, (low, high), own.recall_batch_size, 1000 + seed)
    except (DataError, ValueError) as error:
        raise RunError(f'config.networks: {error}') from None


def _measure_recall(config, cell: ClaimCell) -> dict:
    """Returns the share of values that are recalled, by the number of pairs in the text."""
    own = config.networks
    rows = _recall_batches(config, cell.seed)
    vocab_size = len(rows.task.vocabulary)
    model = Transformer(resolve(_recall_fields(config, cell.arm), vocab_size, rows.seq_len))
    settings = lineage.in_memory_config(own.recall_steps, own.recall_lr)
    with jax.default_matmul_precision('float32'):
        ((params, record),) = in_memory.run(model, settings, [rows], [cell.seed])
        tested = range(rows.low, rows.high + 1)
        by_length = lengths.accuracy(model, params, rows, tested, own.recall_rows)
    return {
        'recall': {str(n): of_length['token'] for n, of_length in by_length.items()},
        'recall_curve': record['curve'],
    }


# --- What was found -------------------------------------------------------------------------------


def find(config, records: list[dict]) -> Finding:
    """Returns what the records say: attention against the best of the networks, and the control."""
    arms = frame.by_arm(records)
    values = {
        'web, nats a token': lambda r: r['web_nats'],
        'right answers about the atlas, %': lambda r: 100 * r['accuracy']['all'],
        'recalled from the text, %': lambda r: 100 * float(np.mean(list(r['recall'].values()))),
    }
    nats, right, recalled = values.values()

    def of(arm: str, value: Callable[[dict], float]) -> list[float]:
        return [value(record) for record in arms[arm]]

    def gain(arm: str, value: Callable[[dict], float]):
        """Returns attention less another arm, paired by seed."""
        return frame.paired(of(WHOLE, value), of(arm, value))

    # Attention must be better than each network in all three; cut to itself it must be as bad as
    # nothing, the control.
    better = all(gain(arm, nats).high < 0 for arm in NETWORKS)
    better &= all(gain(arm, v).low > 0 for arm in NETWORKS for v in (right, recalled))
    fallen = np.mean(of(BLIND, nats)) - np.mean(of('none', nats))
    distance = np.mean(of('none', nats)) - np.mean(of(WHOLE, nats))
    fails = abs(fallen) <= 0.1 * abs(distance)
    fails &= np.mean(of(BLIND, recalled)) - np.mean(of('none', recalled)) < 5

    best = min(NETWORKS, key=lambda arm: np.mean(of(arm, nats)))
    loss = gain(best, nats)
    sentence = (
        f'With as many weights the best network without attention ({best}) costs '
        f'{-loss.mean:+.3f} nats a token ({-loss.high:+.3f} to {-loss.low:+.3f}, {loss.pairs} '
        f'seeds) on held-out pages, answers {np.mean(of(best, right)):.1f} % of questions about '
        f'the atlas where attention answers {np.mean(of(WHOLE, right)):.1f} %, and recalls '
        f'{np.mean(of(best, recalled)):.1f} % of what its text stated earlier, attention '
        f'{np.mean(of(WHOLE, recalled)):.1f} %. Attention that sees one token, the control, is '
        f'{fallen:+.3f} nats from nothing.'
    )

    listed = [WHOLE, *NETWORKS, BLIND, _within(config)]
    lines = ['## Loss, knowledge and recall', '', *_table(arms, listed, values)]
    lines += ['## Recall by the pairs in the text', '', *_recall_table(arms, listed)]
    lines += ['## Sizes', '', *_sizes(arms, listed)]
    panels = {
        title: (title, {arm: frame.interval(of(arm, value)) for arm in listed})
        for title, value in values.items()
    }
    colors = {arm: plots.encoding_color(arm.partition(',')[0]) for arm in listed}
    picture = plots.score_bars(panels, colors)
    caption = 'Attention, and networks with as many weights in its place'
    return Finding(sentence, bool(better and fails), lines, (caption, picture))


def _table(arms, listed: Sequence[str], values: dict) -> list[str]:
    rows = []
    for arm in listed:
        row = [arm, str(len(arms[arm]))]
        for name, value in values.items():
            of_seeds = [value(record) for record in arms[arm]]
            row.append(frame.show_interval(of_seeds, '.3f' if 'nats' in name else '.1f'))
        rows.append(row)
    return table_lines(['in the place of attention', 'seeds', *values], rows)


def _recall_table(arms, listed: Sequence[str]) -> list[str]:
    counted = list(arms[WHOLE][0]['recall'])
    rows = []
    for arm in listed:
        means = [100 * np.mean([r['recall'][n] for r in arms[arm]]) for n in counted]
        rows.append([arm, *(f'{mean:.1f}' for mean in means)])
    return table_lines(['recalled, %', *(f'{n} pairs' for n in counted)], rows)


def _sizes(arms, listed: Sequence[str]) -> list[str]:
    """Returns parameters and compute of each arm, beside those of attention.

    A window makes attention no cheaper here: its products are counted as those of the whole text.
    """
    whole = arms[WHOLE][0]
    rows = []
    for arm in listed:
        record = arms[arm][0]
        parameters = 100 * (record['parameters'] / whole['parameters'] - 1)
        compute = 100 * (record['flops'] / whole['flops'] - 1)
        millions = record['flops'] / 1e6
        row = [arm, f'{record["parameters"]:,}', f'{parameters:+.1f} %']
        rows.append([*row, f'{millions:.2f}', f'{compute:+.1f} %'])
    header = ['in the place of attention', 'parameters', 'more than attention']
    return table_lines([*header, 'MFLOPs a token', 'more than attention'], rows)
