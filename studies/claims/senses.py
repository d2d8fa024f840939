"""Attention separates senses by context: what a layer holds of a word that is spelled as another.

Portuguese nouns that are spelled as a form of a verb ("o jogo", "eu jogo"): a linear probe reads
from the vector of the word itself which of the two it is, for words that the probe was not trained
on. Beside it induction heads (Olsson et al. 2022, arXiv 2209.11895), which go on with what came
after the same word before: found by where they look, and what is lost without them.

Dimensions: L layers, H heads, N sentences, D width.
"""

import dataclasses
import json
import pathlib
import random
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from data.paths import expanded
from evals import plots
from evals.hidden import hidden_states
from evals.html import table_lines
from model.config import resolve
from runtime.errors import RunError
from studies.claims import frame, lineage
from studies.claims.frame import ClaimCell, Finding
from train import setup

VERSION = 1  # raised where the same config would give other records

ATTENTION = 'attention'
NONE = 'trained without attention'  # the control

_MADE_WORDS = (
    'acerto acordo almoço apelo aperto aposto apoio canto cerro choro começo conserto controlo '
    'desespero emprego encontro ensino erro esforço gasto gosto governo grito jogo namoro olho '
    'passo peso rolo salto seco sopro sonho toco trabalho troco uso voto'
).split()
_MADE = {
    'NOUN': (
        'O {w} foi bom.',
        'Ontem vimos o {w} de perto.',
        'Depois do {w} veio a chuva.',
        'Ela falou do {w} da vizinha.',
        'Este {w} não tem fim.',
        'Sem um {w} assim ninguém vive.',
    ),
    'VERB': (
        'Eu {w} todos os dias.',
        'Hoje eu não {w} mais.',
        'Quando eu {w} em casa fico feliz.',
        'Sempre que eu {w} chove.',
        'Agora eu {w} com os amigos.',
        'Amanhã eu {w} outra vez.',
    ),
}
_SPLITS = 10  # of the words into those that train the probe and those that test it
_ECHO = 8  # words of a sequence that is said twice


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence with a word that has two senses: 'NOUN' or 'VERB'."""

    word: str
    sense: str
    text: str


# --- What is measured -----------------------------------------------------------------------------


def cells(config) -> list[ClaimCell]:
    """Returns both arms for `seeds` seeds."""
    seeds = range(1, config.seeds + 1)
    return [ClaimCell(arm, seed, f'seed_{seed}') for seed in seeds for arm in (ATTENTION, NONE)]


def check(config) -> None:
    """Raises ModelError or RunError where a cell could not be trained."""
    resolve(config.model, config.tokenizer.vocab_size, config.senses.seq_len)
    words = {sentence.word for sentence in read_sentences(config)}
    if len(words) < 6:
        raise RunError(
            f'config.senses.sentences is {config.senses.sentences!r}: has {len(words)} words with '
            'both senses; expected lines with "word", "pos" (NOUN or VERB) and "sentence" of at '
            'least 6'
        )


def read_sentences(config) -> list[Sentence]:
    """Returns sentences with words that stand in both senses, of a file or made.

    Raises RunError where the file cannot be read.
    """
    if not config.senses.sentences:
        return [
            Sentence(word, sense, template.format(w=word))
            for word in _MADE_WORDS
            for sense, templates in _MADE.items()
            for template in templates
        ]
    path = pathlib.Path(expanded(config.senses.sentences))
    try:
        lines = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        every = [Sentence(line['word'], line['pos'], line['sentence']) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f'config.senses.sentences is {config.senses.sentences!r}: {error}; expected a file of '
            'JSON lines with "word", "pos" and "sentence"'
        ) from None
    senses: dict[str, set[str]] = {}
    for sentence in every:
        senses.setdefault(sentence.word, set()).add(sentence.sense)
    both = {word for word, of_word in senses.items() if {'NOUN', 'VERB'} <= of_word}
    return [s for s in every if s.word in both and s.sense in ('NOUN', 'VERB')]


def measure(config, group: Sequence[ClaimCell], folder: pathlib.Path) -> Iterator[dict]:
    """Yields the record of each cell of one seed; its runs are in `folder`."""
    for cell in group:
        began = time.perf_counter()
        rng = random.Random(f'{cell.seed} sentences')
        sentences = read_sentences(config)
        rng.shuffle(sentences)
        held_out = round(config.senses.held_out * len(sentences))
        asked, read = sentences[:held_out], sentences[held_out:]
        experiment = _train(config, cell, folder, read)
        record = probe_layers(experiment, asked, cell.seed)
        if cell.arm == ATTENTION:
            record['induction'] = find_induction(experiment, _echo_words(sentences), cell.seed)
        yield {**record, 'seconds': time.perf_counter() - began}


def _train(config, cell: ClaimCell, folder: pathlib.Path, read: Sequence[Sentence]):
    """Returns a model that has read the sentences, and sequences of words said twice."""
    own = config.senses
    rng = random.Random(f'{cell.seed} echo')
    words = _echo_words(read)
    texts = [sentence.text for sentence in read]
    for _ in range(round(own.echoes * len(texts))):
        sequence = ' '.join(rng.sample(words, _ECHO))
        texts.append(f'{sequence} {sequence}')
    rng.shuffle(texts)
    path = folder / 'texts' / 'read.jsonl'
    lineage.write_texts(path, texts)

    c = base.get_config()
    c.seed = cell.seed
    c.model.update(config.model)
    if cell.arm == NONE:
        c.model.update(mixing='none', positions='none')
    c.tokenizer.update(config.tokenizer)
    c.data.update(source='files', seq_len=own.seq_len, batch_size=16, validation=0.0)
    c.data.files.paths = str(path)
    c.train.steps = own.steps
    c.optimizer.update(lr=2e-3, warmup=own.steps // 20)
    c.eval.every = 0
    c.checkpoint.every = own.steps
    name = 'none' if cell.arm == NONE else 'attention'
    return lineage.train(c, folder / name)


def _echo_words(sentences: Sequence[Sentence]) -> list[str]:
    return sorted({word for s in sentences for word in s.text.split() if word.isalpha()})[:400]


# --- Senses ---------------------------------------------------------------------------------------


def probe_layers(
    experiment: setup.Experiment, sentences: Sequence[Sentence], seed: int
) -> dict[str, list[float]]:
    """Returns the accuracy of probes on the table and on each layer, for words they were not told.

    whole: of the model as it is. cut: where each token sees itself alone, though the model was
    trained to see others. labels_permuted: of probes that are told permuted senses.
    """
    model, params = experiment.model, experiment.state['params']
    rows, places, kept = _find_words(experiment.tokenizer, sentences)
    words = [sentence.word for sentence in kept]
    senses = np.array([sentence.sense == 'VERB' for sentence in kept])
    table_VxD = np.asarray(params['embedding'], np.float32)
    of_table = table_VxD[[row[place] for row, place in zip(rows, places)]]

    # A model without attention has nothing that could be cut.
    whole = (of_table, *hidden_states(model, params, rows, places))
    cut = whole
    if model.config.mixing == 'attention':
        alone = model.clone(config=dataclasses.replace(model.config, window=1))
        cut = (of_table, *hidden_states(alone, params, rows, places))
    permuted = np.random.default_rng(seed).permutation(senses)
    return {
        'whole': [probe(x, words, senses, seed) for x in whole],
        'cut': [probe(x, words, senses, seed) for x in cut],
        'labels_permuted': [probe(x, words, permuted, seed) for x in whole],
    }


def _find_words(tokenizer, sentences: Sequence[Sentence]):
    """Returns token ids of sentences, the place of the last piece of the word, and the sentences.

    One in which the word is no piece of its own, or does not stand, is left out.
    """
    rows, places, kept = [], [], []
    for sentence in sentences:
        words = sentence.text.split(' ')
        bare = [word.strip('.,;:!?"»«()').lower() for word in words]
        if sentence.word not in bare:
            continue
        number = bare.index(sentence.word)
        until = ' '.join([*words[:number], words[number][: _end(words[number])]])
        ids = tokenizer.encode(sentence.text)
        begin = tokenizer.encode(until)
        if ids[: len(begin)] != begin:
            continue
        rows.append([*tokenizer.begin, *ids])
        places.append(len(tokenizer.begin) + len(begin) - 1)
        kept.append(sentence)
    return rows, places, kept


def _end(word: str) -> int:
    """Returns where a word ends, before signs that follow it."""
    return len(word.rstrip('.,;:!?"»)'))


def probe(vectors_NxD: np.ndarray, words: Sequence[str], senses_N: np.ndarray, seed: int) -> float:
    """Returns the accuracy of a linear probe on words that it was not trained on.

    It is ridge regression on both senses alike, a mean over splits of the words.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(words))
    word_N = np.array([names.index(word) for word in words])
    target_N = np.where(senses_N, 1.0, -1.0)
    accuracies = []
    for _ in range(_SPLITS):
        told = rng.permutation(len(names))[: 2 * len(names) // 3]
        is_told = np.isin(word_N, told)
        if len(set(senses_N[is_told])) < 2 or is_told.all():
            continue
        mean = vectors_NxD[is_told].mean(0)
        spread = vectors_NxD[is_told].std(0) + 1e-6
        x = (vectors_NxD - mean) / spread
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        weight = _balance(senses_N[is_told])
        gram = (x[is_told] * weight[:, None]).T @ x[is_told] + len(mean) * np.eye(x.shape[1])
        solution = np.linalg.solve(gram, (x[is_told] * weight[:, None]).T @ target_N[is_told])
        said = x[~is_told] @ solution > 0

        # Of each sense alike, so that 50 % is what a probe gets that knows nothing.
        shares = [
            (said == senses_N[~is_told])[senses_N[~is_told] == sense].mean()
            for sense in (False, True)
            if (senses_N[~is_told] == sense).any()
        ]
        accuracies.append(np.mean(shares))
    return float(np.mean(accuracies))


def _balance(senses: np.ndarray) -> np.ndarray:
    """Returns a weight of each example, so that both senses weigh alike."""
    share = senses.mean()
    return np.where(senses, 0.5 / max(share, 1e-9), 0.5 / max(1 - share, 1e-9))


# --- Induction heads ------------------------------------------------------------------------------


def find_induction(experiment: setup.Experiment, words: list[str], seed: int) -> dict:
    """Returns where heads look in what is said twice, and the loss of it without the best two.

    A head's score is its mean attention, in the second saying, to the token after the same one of
    the first. Beside the loss without the best heads stands that without two others.
    """
    model, params = experiment.model, experiment.state['params']
    tokenizer = experiment.tokenizer
    rng = random.Random(f'{seed} induction')
    single = [word for word in words if len(tokenizer.encode(' ' + word)) == 1]
    if len(single) < 2 * _ECHO:
        return {'words': len(single)}
    rows = []
    for _ in range(64):
        ids = [tokenizer.encode(' ' + word)[0] for word in rng.sample(single, _ECHO)]
        rows.append([*tokenizer.begin, *ids, *ids])
    tokens = np.array(rows, np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    reads = model.clone(config=dataclasses.replace(model.config, attention='reference'))

    @jax.jit
    def run(params):
        (logits, _), variables = reads.apply(
            {'params': params}, tokens, positions, jnp.ones_like(tokens), mutable=['intermediates']
        )
        shares = jax.nn.log_softmax(logits[:, _ECHO + 1 : -1])
        nats = -jnp.take_along_axis(shares, tokens[:, _ECHO + 2 :, None], -1).mean()
        weights = [
            variables['intermediates'][f'layer_{i}']['attention']['attention'][0]
            for i in range(model.config.num_layers)
        ]
        return nats, jnp.stack(weights)

    nats, weights_LxBxHxTxS = run(params)
    weights = np.asarray(weights_LxBxHxTxS)

    # From the second saying's t-th word to the word after it in the first one.
    queries = np.arange(_ECHO + 1, 2 * _ECHO)
    scores_LxH = weights[:, :, :, queries, queries - _ECHO + 1].mean((1, 3))
    order = np.argsort(scores_LxH, axis=None)[::-1]
    heads = [divmod(int(i), scores_LxH.shape[1]) for i in order]
    others = []
    for _ in range(5):
        chosen = rng.sample(heads[2:], 2)
        others.append(float(run(without_heads(params, chosen))[0]))
    best_layer, best_head = heads[0]
    return {
        'words': len(single),
        'scores': scores_LxH.tolist(),
        'nats': float(nats),
        'nats_without_best': float(run(without_heads(params, heads[:2]))[0]),
        'nats_without_others': float(np.mean(others)),
        'map': np.round(weights[best_layer, 0, best_head], 3).tolist(),
    }


def without_heads(params: dict, heads: Sequence[tuple[int, int]]) -> dict:
    """Returns parameters with which these heads, (layer, head), write nothing."""
    changed = jax.tree.map(lambda x: x, params)
    for layer, head in heads:
        out = changed[f'layer_{layer}']['attention']['out']
        out['kernel'] = out['kernel'].at[head].set(0)
    return changed


# --- What was found -------------------------------------------------------------------------------


def find(config, records: list[dict]) -> Finding:
    """Returns what the records say of the best layer: whole, cut and without attention."""
    arms = frame.by_arm(records)

    def accuracy(arm: str, how: str, layer: int) -> list[float]:
        return [100 * record[how][layer] for record in arms[arm]]

    layers = len(arms[ATTENTION][0]['whole'])
    means = [np.mean(accuracy(ATTENTION, 'whole', layer)) for layer in range(layers)]
    best = int(np.argmax(means))
    whole = accuracy(ATTENTION, 'whole', best)
    cut = accuracy(ATTENTION, 'cut', best)
    none = accuracy(NONE, 'whole', best)
    control = [max(pair) for pair in zip(cut, none)]
    over = frame.paired(whole, control)
    permuted = max(accuracy(ATTENTION, 'labels_permuted', best))
    shown = over.low > 0 and permuted < min(whole)
    sentence = (
        f'From the vector of a word in layer {best} a probe tells noun from verb in '
        f'{np.mean(whole):.1f} % of sentences with words it was not trained on; with attention to '
        f'others cut in {np.mean(cut):.1f} %, in a model without attention in '
        f'{np.mean(none):.1f} %: {over.mean:+.1f} points over the better of these '
        f'({over.low:+.1f} to {over.high:+.1f}, {over.pairs} seeds; chance 50 %).'
    )
    columns = {
        'attention': (ATTENTION, 'whole'),
        'attention cut': (ATTENTION, 'cut'),
        'without attention': (NONE, 'whole'),
        'senses permuted': (ATTENTION, 'labels_permuted'),
    }
    rows = []
    for layer in range(layers):
        row = [f'layer {layer}' if layer else 'table']
        for arm, how in columns.values():
            values = accuracy(arm, how, layer)
            row.append(frame.show_span(values))
        rows.append(row)
    lines = ['## Senses told by a linear probe, %', '', *table_lines(['', *columns], rows)]
    induction = [record['induction'] for record in arms[ATTENTION] if 'nats' in record['induction']]
    more: tuple = ()
    if induction:
        lines += _induction_lines(induction)
        picture_of_head = plots.heat_map(induction[0]['map'])
        more = (('Attention of the head that scores most, in one text', picture_of_head),)
    panels = {}
    values = {}
    for how in ('attention', 'attention cut', 'without attention'):
        names = [f'{how}, layer {layer}' for layer in range(layers)]
        panels[f'{how}: layer'] = (list(range(layers)), names)
        values |= {name: accuracy(*columns[how], i) for i, name in enumerate(names)}
    picture = plots.dose_curves(panels, values, 'senses told rightly, %')
    return Finding(sentence, shown, lines, ('Senses by layer; a point a seed', picture), more)


def _induction_lines(found: Sequence[dict]) -> list[str]:
    """Returns what is lost without the heads that look at what came next before."""
    whole = [f['nats'] for f in found]
    best = frame.paired([f['nats_without_best'] for f in found], whole)
    others = frame.paired([f['nats_without_others'] for f in found], whole)
    top = [max(max(of_layer) for of_layer in f['scores']) for f in found]
    rows = [
        ['the two that score most', f'{best.mean:+.2f}', f'{best.low:+.2f} to {best.high:+.2f}'],
        ['two others', f'{others.mean:+.2f}', f'{others.low:+.2f} to {others.high:+.2f}'],
    ]
    return [
        '## Induction heads',
        '',
        f'In words said twice the best head looks at what came next with {np.mean(top):.2f} of its '
        f'attention (least {min(top):.2f} of {len(top)} seeds).',
        '',
        *table_lines(['heads left out', 'nats more in the second saying', 'interval'], rows),
    ]
