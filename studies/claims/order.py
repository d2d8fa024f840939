"""Position separates orders: who did what to whom, with each encoding, without one, and taken away.

Models are small and trained in memory. Those of `task` arms read made sentences in Portuguese and
English (data/orders.py) and answer who did something or to whom it was done; those of `text` arms
read text. Pairs that differ in the order of words alone are what both are measured on.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import base
from data import orders, sources
from data.batches import Batch, Batches
from data.paths import expanded, expanded_list
from data.records import DataError
from data.store import TokenStore
from evals import minimal_pairs, perplexity, plots
from evals.html import table_lines
from model.config import resolve
from model.transformer import Transformer
from runtime.errors import RunError
from studies.claims import frame, lineage
from studies.claims.frame import ClaimCell, Finding
from train import in_memory, setup

VERSION = 1  # raised where the same config would give other records

ENCODED = 'rope'  # the encoding of the main contrast, and of the controls whose words are scrambled
CHANCE = 0.5
_NOT_CHANCE = 0.6  # above it a control has not failed
_SCORED = 32  # tokens that are predicted behind a context that is shuffled


# --- What is measured -----------------------------------------------------------------------------


def cells(config) -> list[ClaimCell]:
    """Returns the main contrast and its controls for `seeds` seeds, others for `more_seeds`."""
    main = [f'task, {name}' for name in (ENCODED, 'none', 'bag', 'scrambled')]
    encodings = [name for name in config.order.encodings if name not in (ENCODED, 'none')]
    others = [f'task, {name}' for name in encodings]
    others += [f'text, {name}' for name in (ENCODED, 'none', 'scrambled', *encodings)]
    listed = []
    for seed in range(1, config.seeds + 1):
        arms = [*main, *(others if seed <= config.more_seeds else ())]
        listed += [ClaimCell(arm, seed, f'{arm}, seed {seed}'.replace(', ', '_')) for arm in arms]
    return listed


def check(config) -> None:
    """Raises ModelError, DataError or RunError where a cell could not be trained."""
    own = config.order
    if len(own.facts) != 2:
        raise RunError(f'config.order.facts is {own.facts}: expected two numbers, least and most')
    for facts in (tuple(own.facts), (1, max(own.tested))):
        try:
            orders.OrderBatches(facts, own.seq_len, own.batch_size, 0)
        except DataError as error:
            raise RunError(f'config.order: {error}') from None
    for name in (ENCODED, 'none', *own.encodings):
        _resolve(config, name, 64, own.seq_len)
        _resolve(config, name, 64, own.text_len)
    if own.texts:
        sources.find_files(expanded_list(own.texts), field='config.order.texts')
    if own.blimp:
        _blimp(config)


def measure(config, group: Sequence[ClaimCell], folder: pathlib.Path) -> Iterator[dict]:
    """Yields the record of each cell; nothing is kept in `folder`."""
    for cell in group:
        began = time.perf_counter()
        kind, name = cell.arm.split(', ')
        # Accelerators, too, would else cut products of float32.
        with jax.default_matmul_precision('float32'):
            record = {'task': _measure_task, 'text': _measure_text}[kind](config, name, cell.seed)
        yield {**record, 'seconds': time.perf_counter() - began}


def _resolve(config, name: str, vocab_size: int, seq_len: int, removed: bool = False):
    """Returns the architecture of an arm; `removed`: with its encoding taken away."""
    c = ConfigDict(config.model.to_dict())
    c.positions = {'bag': 'none', 'scrambled': ENCODED}.get(name, name)
    c.causal = name != 'bag'
    c.max_len = seq_len
    resolved = resolve(c, vocab_size, seq_len)
    if not removed:
        return resolved
    # What scales the embedding is no position.
    c.scale_embedding |= any(getattr(part, 'scale_tokens', False) for part in resolved.parts)
    c.positions = 'none'
    return resolve(c, vocab_size, seq_len)


# --- Made sentences -------------------------------------------------------------------------------


def _measure_task(config, name: str, seed: int) -> dict:
    """Returns what a model trained on made sentences makes of pairs, also without its encoding."""
    own = config.order
    vocab_size = len(orders.vocabulary())
    model = Transformer(_resolve(config, name, vocab_size, own.seq_len))
    facts = tuple(own.facts)
    rows = orders.OrderBatches(
        facts, own.seq_len, own.batch_size, 1000 + seed, scrambled=name == 'scrambled'
    )
    settings = lineage.in_memory_config(own.steps, own.lr)
    ((params, record),) = in_memory.run(model, settings, [rows], [seed])

    bare = Transformer(_resolve(config, name, vocab_size, own.seq_len, removed=True))
    return {
        'loss': record['loss'],
        'curve': record['curve'],
        'parameters': record['parameters'] + record['added'],
        'pairs': {str(n): _choose(config, model, params, n) for n in own.tested},
        'removed': {str(n): _choose(config, bare, params, n) for n in own.tested},
    }


def _choose(config, model: Transformer, params, facts: int) -> dict[str, float]:
    """Returns the share of right choices between the two names of a fact, by language and role.

    The texts are the same for all models; half of them ask for who did it.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([facts, *b'pairs'])))
    firsts = [orders.sample(rng, facts, orders.ROLES[i % 2]) for i in range(config.order.pairs)]
    texts = [text for first in firsts for text in (first, first.swapped())]
    known = orders.vocabulary()
    asked = [orders.encode(text.words()) for text in texts]
    right = [[*ids, known[text.answer]] for ids, text in zip(asked, texts)]
    wrong = [[*ids, known[text.other]] for ids, text in zip(asked, texts)]

    # All lengths have one shape, for one compilation.
    columns = orders.size(max(config.order.tested)) + 1
    last = [len(ids) for ids in asked]
    nats_right = minimal_pairs.text_nats(model, params, right, columns, last)
    nats_wrong = minimal_pairs.text_nats(model, params, wrong, columns, last)
    shares = {'all': minimal_pairs.preferred(nats_right, nats_wrong)}
    for part in (*orders.LANGS, *orders.ROLES):
        chosen = [part in (text.lang, text.role) for text in texts]
        shares[part] = minimal_pairs.preferred(nats_right[chosen], nats_wrong[chosen])
    return shares


# --- Text -----------------------------------------------------------------------------------------


def _text_config(config) -> ConfigDict:
    """Returns an experiment on the texts that are named, else on the documentation of Python."""
    own = config.order
    c = base.get_config()
    c.tokenizer.update(config.tokenizer)
    c.data.update(
        source='files' if own.texts else 'pydoc',
        seq_len=own.text_len,
        batch_size=own.text_batch_size,
        split='tail',
        validation=0.03,
    )
    c.data.files.paths = expanded_list(own.texts)
    return c


def _blimp(config) -> dict[str, list[tuple[str, str]]]:
    path = pathlib.Path(expanded(config.order.blimp))
    return minimal_pairs.read_blimp(path, 'config.order.blimp', config.order.blimp_pairs)


@dataclasses.dataclass(frozen=True)
class _Scrambled:
    """Batches whose tokens stand in any order, each document's among themselves: the control."""

    batches: Callable[[int], Batch]
    seed: int

    def __call__(self, step: int) -> Batch:
        batch = {name: x.copy() for name, x in self.batches(step).items()}
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step])))
        for row, segments in enumerate(batch['segment_ids']):
            # The begin mark stays. Targets follow the tokens; the last one is only a target.
            for segment in np.unique(segments[segments > 0]):
                places = np.flatnonzero(segments == segment)
                inner = places[batch['positions'][row, places] > 0]
                drawn = rng.permutation(inner)
                batch['tokens'][row, inner] = batch['tokens'][row, drawn]
                batch['targets'][row, places[:-1]] = batch['tokens'][row, places[1:]]
        return batch


def _measure_text(config, name: str, seed: int) -> dict:
    """Returns what a model trained on text makes of word order, also without its encoding."""
    own = config.order
    experiment = _text_config(config)
    tokenizer = setup.load_or_train_tokenizer(experiment)
    store = TokenStore.open_or_build(experiment.data, tokenizer, progress=False)
    rows: Callable = Batches(store.split('train'), experiment.data, 1000 + seed)
    if name == 'scrambled':
        rows = _Scrambled(rows, seed)
    model = Transformer(_resolve(config, name, tokenizer.vocab_size, own.text_len))
    settings = lineage.in_memory_config(own.text_steps, own.lr)
    ((params, record),) = in_memory.run(model, settings, [rows], [seed])

    # Held-out text: as it is, with two words swapped, and with what is far away shuffled.
    split = store.split('validation')
    documents = [np.asarray(split.document(i), np.int32) for i in range(len(split.lengths))]
    longest = own.text_len
    piece = longest // 2
    real, swapped = minimal_pairs.swap_words(documents, tokenizer, own.swaps, piece)
    chosen = perplexity.targets(documents, longest, own.windows, min(_SCORED, piece))
    sentences = _encode_blimp(config, tokenizer, piece) if own.blimp else {}

    def look(model: Transformer) -> dict:
        """Returns what a model makes of order, with the parameters that were trained."""

        def prefers(better: list, worse: list) -> float:
            nats = [
                minimal_pairs.text_nats(model, params, texts, piece) for texts in (better, worse)
            ]
            return minimal_pairs.preferred(*nats)

        shuffled = perplexity.shuffle_sensitivity(model, params, chosen, longest, own.beyond)
        return {
            'nats': perplexity.fixed(model, params, chosen, [longest])[longest].mean,
            'swaps': prefers(real, swapped),
            'shuffled': {str(k): loss.mean for k, loss in shuffled.items()},
            'blimp': {uid: prefers(good, bad) for uid, (good, bad) in sentences.items()},
        }

    bare = Transformer(_resolve(config, name, tokenizer.vocab_size, own.text_len, removed=True))
    return {
        'loss': record['loss'],
        'parameters': record['parameters'] + record['added'],
        **look(model),
        'removed': look(bare),
    }


def _encode_blimp(config, tokenizer, most: int) -> dict[str, tuple[list, list]]:
    """Returns {set: (good, bad)} as token ids; pairs with more than `most` tokens are left out."""
    encoded = {}
    for uid, pairs in _blimp(config).items():
        sides = zip(*pairs)
        good, bad = (
            [[*tokenizer.begin, *tokenizer.encode(text)] for text in side] for side in sides
        )
        kept = [i for i in range(len(good)) if max(len(good[i]), len(bad[i])) <= most]
        if kept:
            encoded[uid] = ([good[i] for i in kept], [bad[i] for i in kept])
    return encoded


# --- What was found -------------------------------------------------------------------------------


def find(config, records: list[dict]) -> Finding:
    """Returns what the records say: with an encoding, with a causal mask alone, with neither."""
    own = config.order
    arms = frame.by_arm(records)
    low, high = own.facts
    trained = [str(n) for n in own.tested if low <= n <= high]

    def chosen(arm: str, of: str = 'pairs', lengths: Sequence[str] = trained) -> list[float]:
        """Percent of right choices, a value a seed."""
        return [100 * float(np.mean([r[of][n]['all'] for n in lengths])) for r in arms[arm]]

    # The main contrast, paired by seed, and the controls, which see no order.
    encoded = chosen(f'task, {ENCODED}')
    causal = chosen('task, none')
    difference = frame.paired(encoded, causal)
    removed = chosen(f'task, {ENCODED}', 'removed')
    bag = chosen('task, bag')
    scrambled = chosen('task, scrambled')
    fails = max(*bag, *scrambled) <= 100 * _NOT_CHANCE
    shown = difference.low > 0 and fails and np.mean(removed) < np.mean(encoded)
    sentence = (
        f'Who did it and to whom it was done, in pairs that differ in order alone (chance 50 %): '
        f'{np.mean(encoded):.1f} % with RoPE, {np.mean(causal):.1f} % with no encoding, where the '
        f'causal mask alone tells order: {difference.mean:+.1f} points ({difference.low:+.1f} to '
        f'{difference.high:+.1f}, {len(encoded)} seeds). With RoPE taken away at test '
        f'{np.mean(removed):.1f} %. The controls: a reader without order {np.mean(bag):.1f} %, '
        f'words in any order {np.mean(scrambled):.1f} %.'
    )

    # One table of made sentences, one of text; then how far order matters, and BLiMP by set.
    named = [ENCODED, 'none', *(n for n in own.encodings if n not in (ENCODED, 'none'))]
    tasks = [f'task, {name}' for name in (*named, 'bag', 'scrambled')]
    texts = [f'text, {name}' for name in (*named, 'scrambled')]
    lines = ['## Made sentences', '', 'Right choices in %, by the number of facts in the text.', '']
    lines += _task_table(arms, tasks, own.tested, trained)
    lines += ['## Text', '', *_text_table(arms, texts), *_shuffle_table(arms, texts, own.beyond)]
    lines += _blimp_table(arms, texts)

    curves = {
        name: [[100 * r['pairs'][str(n)]['all'] for n in own.tested] for r in arms[f'task, {name}']]
        for name in (*named, 'bag', 'scrambled')
    }
    panels = {f'facts in the text (training: {low} to {high})': (own.tested, curves)}
    picture = plots.seed_curves(panels, 'right choices, %')
    bars = {
        title: (
            'right choices, %',
            {name: frame.interval(chosen(f'task, {name}', of)) for name in named},
        )
        for title, of in (('as trained', 'pairs'), ('encoding taken away at test', 'removed'))
    }
    colors = {name: plots.encoding_color(name) for name in named}
    more = (('Each encoding, as trained and taken away', plots.score_bars(bars, colors)),)
    caption = 'Who did it to whom; thin lines are seeds, chance is 50 %'
    return Finding(sentence, bool(shown), lines, (caption, picture), more)


def _task_table(arms, listed: Sequence[str], tested, trained: Sequence[str]) -> list[str]:
    rows = []
    for arm in listed:
        of_arm = arms[arm]
        row = [arm.removeprefix('task, '), str(len(of_arm))]
        row += [f'{np.mean([100 * r["pairs"][str(n)]["all"] for r in of_arm]):.1f}' for n in tested]
        for of in ('pairs', 'removed'):
            means = [100 * np.mean([r[of][n]['all'] for n in trained]) for r in of_arm]
            row.append(frame.show_interval(means))
        for part in (*orders.LANGS, *orders.ROLES):
            row.append(
                f'{np.mean([100 * r["pairs"][n][part] for r in of_arm for n in trained]):.1f}'
            )
        rows.append(row)
    header = ['encoding', 'seeds', *map(str, tested), 'lengths of training', 'encoding taken away']
    return table_lines([*header, *orders.LANGS, *orders.ROLES], rows)


def _text_table(arms, listed: Sequence[str]) -> list[str]:
    rows = []
    for arm in listed:
        row = [arm.removeprefix('text, '), str(len(arms[arm]))]
        for value, form in (('nats', '.3f'), ('swaps', '.1f')):
            scale = 100 if value == 'swaps' else 1
            row.append(frame.show_interval([scale * r[value] for r in arms[arm]], form))
        row.append(
            frame.show_interval([r['removed']['nats'] - r['nats'] for r in arms[arm]], '.3f')
        )
        row.append(frame.show_interval([100 * r['removed']['swaps'] for r in arms[arm]]))
        rows.append(row)
    header = ['encoding', 'seeds', 'held-out, nats a token', 'prefers words unswapped, %']
    return table_lines(
        [*header, 'taken away: nats more', 'taken away: prefers words unswapped, %'], rows
    )


def _shuffle_table(arms, listed: Sequence[str], beyond) -> list[str]:
    """Returns how many nats a token is dearer where what is further back is shuffled."""
    rows = []
    for arm in listed:
        means = [np.mean([r['shuffled'][str(k)] for r in arms[arm]]) for k in beyond]
        rows.append([arm.removeprefix('text, '), *(f'{mean:+.3f}' for mean in means)])
    header = ['shuffled beyond, nats more', *(f'{k} tokens' for k in beyond)]
    return table_lines(header, rows)


def _blimp_table(arms, listed: Sequence[str]) -> list[str]:
    sets = sorted(arms[listed[0]][0]['blimp'])
    if not sets:
        return []
    rows = []
    for uid in sets:
        means = [100 * np.mean([r['blimp'][uid] for r in arms[arm]]) for arm in listed]
        rows.append([uid, *(f'{mean:.1f}' for mean in means)])
    every = [
        frame.show_interval([100 * np.mean(list(r['blimp'].values())) for r in arms[arm]])
        for arm in listed
    ]
    rows.append(['all', *every])
    names = [arm.removeprefix('text, ') for arm in listed]
    lines = ['## BLiMP, the sets about order alone', '', 'The good sentence preferred, %.', '']
    return [*lines, *table_lines(['set', *names], rows)]
