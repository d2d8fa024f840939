"""Tokens cope with new and inflected words.

Tokenizers alone: whether any text comes back, tokens a word, and whether the stem of a verb keeps
its pieces over the conjugation. Models: whether they inflect verbs in forms that they have not
read, of verbs that they have read, have not read, and that do not exist.
"""

import hashlib
import pathlib
import random
import time
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from configs import base
from data import store, tokenizer as tokenizers
from data.atlas import pages
from data.batches import Batches
from data.paths import expanded
from evals import plots
from evals.html import table_lines
from evals.minimal_pairs import text_nats
from model.config import resolve
from model.generate import Stop, generate
from model.sampling import Sampling
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run
from studies.claims import frame, lineage, verbs
from studies.claims.frame import ClaimCell, Finding
from train import setup

VERSION = 1  # raised where the same config would give other records

KINDS = ('unigram', 'bpe', 'char')
SAMPLED = 'unigram, sampled'
PERMUTED = 'unigram, endings permuted'  # the control
_GROUPS = {
    'known': 'known verb, form not read',
    'new': 'verb not read',
    'invented': 'verb that does not exist',
}
_GREEDY = Sampling(temperature=0.0)
_ASKED = 300  # forms of each group
_LONGEST = 24  # tokens of a form


# --- What is measured -----------------------------------------------------------------------------


def cells(config) -> list[ClaimCell]:
    """Returns models of all arms and seeds, and tokenizers of all kinds and sizes."""
    listed = [
        ClaimCell(f'tokenizer {kind} {size}', 1, f'tokenizer_{kind}_{size}')
        for kind in KINDS
        for size in (config.tokens.sizes if kind != 'char' else (0,))
    ]
    for seed in range(1, config.seeds + 1):
        arms = ['unigram', 'char', PERMUTED]
        if seed <= config.more_seeds:
            arms += ['bpe', SAMPLED]
        listed += [ClaimCell(arm, seed, f'seed_{seed}') for arm in arms]
    return listed


def check(config) -> None:
    """Raises ModelError or RunError where a cell could not be measured."""
    own = config.tokens
    resolve(config.model, config.tokenizer.vocab_size, own.seq_len)
    for name in ('attested', 'texts'):
        path = pathlib.Path(expanded(own[name]))
        if own[name] and not path.exists():
            raise RunError(f'config.tokens.{name} is {own[name]!r}: is not there')
    if len(_known(config)) < 20:
        raise RunError(
            f'config.tokens.attested is {own.attested!r}: has all forms of {len(_known(config))} '
            'of the verbs here; expected 20 at least'
        )


def measure(config, group: Sequence[ClaimCell], folder: pathlib.Path) -> Iterator[dict]:
    """Yields the record of each cell of a group; runs are in `folder`."""
    for cell in group:
        began = time.perf_counter()
        if cell.arm.startswith('tokenizer '):
            _, kind, size = cell.arm.split()
            tokenizer = tokenizers.train(_texts(config), _tokenizer_config(kind, int(size)))
            record = of_tokenizer(tokenizer, _known(config))
        else:
            record = _Inflection(config, cell.seed, folder).measure(cell.arm)
        yield {**record, 'seconds': time.perf_counter() - began}


def measure_run(run: Run, probes: str = '') -> list[str]:
    """Returns lines on the tokenizer of one run, in Markdown."""
    _, _, tokenizer, _ = models.load(run)
    record = of_tokenizer(tokenizer, verbs.regular_verbs())
    return ['## Tokens', '', *_tokenizer_table({'of the run': record})]


def _known(config) -> list[verbs.Verb]:
    return verbs.regular_verbs(expanded(config.tokens.attested))


def _texts(config) -> Iterator[str]:
    """Yields what tokenizers are trained on: given files, or the web of the atlas and all forms."""
    if config.tokens.texts:
        path = pathlib.Path(expanded(config.tokens.texts))
        for file in sorted(path.rglob('*.txt')) if path.is_dir() else [path]:
            yield file.read_text(encoding='utf-8', errors='replace')
        return
    yield from (record.text for record in pages.web(base.get_config().data.atlas))
    for verb in verbs.regular_verbs():
        yield ' '.join(verb.form(cell) for cell in range(len(verbs.CELLS)))


def _tokenizer_config(kind: str, size: int) -> ConfigDict:
    config = base.get_config().tokenizer
    config.kind = kind
    if size:
        config.vocab_size = size
    return config


def of_tokenizer(tokenizer: tokenizers.Tokenizer, known: Sequence[verbs.Verb]) -> dict:
    """Returns what a tokenizer does with any text, two languages, and the stems of verbs."""
    rng = random.Random(0)
    strange = [
        ''.join(chr(rng.choice(_CODE_POINTS)) for _ in range(rng.randint(1, 20)))
        for _ in range(500)
    ]
    returned = [tokenizer.decode(tokenizer.encode(text)) == text for text in strange]
    fertility = {}
    for lang in pages.LANGS:
        texts = [q for _, of, _, q in _questions() if of == lang]
        words = sum(len(text.split()) for text in texts)
        fertility[lang] = sum(map(len, tokenizer.encode_batch(texts))) / words
    stable = [stem_stability(tokenizer, verb) for verb in known]
    made = verbs.invented_verbs(100, 0, known)
    return {
        'returned': sum(returned) / len(returned),
        'fertility': fertility,
        'stable': float(np.mean(stable)),
        'stable_invented': float(np.mean([stem_stability(tokenizer, verb) for verb in made])),
        'vocabulary': tokenizer.vocab_size,
    }


# Letters, marks, signs and planes beyond the first; no halves of pairs.
_CODE_POINTS = [
    *range(0x20, 0x2FF),
    *range(0x370, 0x3FF),
    *range(0x4E00, 0x4F00),
    *range(0x1F300, 0x1F500),
    *range(0x10330, 0x10350),
]


def _questions() -> list[tuple]:
    """Returns (country, language, relation, question): sentences in both languages."""
    world = base.get_config().data.atlas
    return [(c, lang, r, record.messages[0][1]) for c, lang, r, record in pages.pairs(world)]


def stem_stability(tokenizer: tokenizers.Tokenizer, verb: verbs.Verb) -> float:
    """Returns the share of forms whose stem is cut into the pieces that most forms have.

    A form in which a piece reaches over the end of the stem has none of them.
    """
    counts: dict[tuple[str, ...], int] = {}
    for cell in range(len(verbs.CELLS)):
        # Pieces write a space as U+2581; the word follows one, as in a text.
        pieces = [tokenizer.piece(token) for token in tokenizer.encode(' ' + verb.form(cell))]
        stem: list[str] = []
        while pieces and len(''.join(stem)) < len(verb.stem) + 1:
            stem.append(pieces.pop(0))
        if len(''.join(stem)) == len(verb.stem) + 1:
            counts[tuple(stem)] = counts.get(tuple(stem), 0) + 1
    return max(counts.values(), default=0) / len(verbs.CELLS)


class _Inflection:
    """Models that read sentences with verbs, and are asked for forms that they have not read."""

    def __init__(self, config, seed: int, folder: pathlib.Path):
        self.study = config
        self.own = config.tokens
        self.seed = seed
        self.folder = folder

    def measure(self, arm: str) -> dict:
        """Returns, for each group of forms, the share written rightly, and nats a form."""
        read, asked = self.divide(permuted=arm == PERMUTED)
        experiment = self._train(arm, read)
        rng = random.Random(f'{self.seed} asked')
        record = {}
        for group, sentences in asked.items():
            some = rng.sample(sentences, min(_ASKED, len(sentences)))
            record[group] = {
                'right': _share_right(experiment, some),
                'nats': _nats_a_form(experiment, some),
                'count': len(some),
            }
        return record

    def divide(
        self, permuted: bool
    ) -> tuple[list[tuple[str, str]], dict[str, list[tuple[str, str]]]]:
        """Returns sentences that are read, and for each group those that are asked for."""
        rng = random.Random(f'{self.seed} divide')
        every = _known(self.study)
        made = verbs.invented_verbs(self.own.invented, self.seed, every)
        if permuted:
            every, made = ([verbs.permute_endings(v, rng) for v in x] for x in (every, made))
        rng.shuffle(every)
        count = round(self.own.new * len(every))
        new, known = every[:count], every[count:]

        read = []
        asked: dict[str, list] = {group: [] for group in _GROUPS}
        cells_of_all = range(len(verbs.CELLS))
        for verb in known:
            hidden = rng.sample(cells_of_all, self.own.hidden)
            for cell in cells_of_all:
                (asked['known'] if cell in hidden else read).append(verb.sentence(cell))
        for group, of_group in (('new', new), ('invented', made)):
            asked[group] = [verb.sentence(cell) for verb in of_group for cell in cells_of_all]
        return read, asked

    def _train(self, arm: str, read: list[tuple[str, str]]) -> setup.Experiment:
        """Returns a model trained on these sentences, with a tokenizer of other text."""
        name = ''.join(c if c.isalnum() else '_' for c in arm)
        kind = arm.partition(',')[0]
        path = self.folder / 'texts' / f'{name}.jsonl'
        texts = [begin + form for begin, form in read]
        lineage.write_texts(path, texts)
        model_path = self.folder / 'texts' / f'{kind}.model'
        if not model_path.exists():
            size = self.study.tokenizer.vocab_size
            trained = tokenizers.train(_texts(self.study), _tokenizer_config(kind, size))
            model_path.write_bytes(trained.proto)

        config = base.get_config()
        config.seed = self.seed
        config.model.update(self.study.model)
        config.tokenizer.path = str(model_path)
        config.data.update(
            source='files', seq_len=self.own.seq_len, batch_size=16, packing='whole', validation=0.0
        )
        config.data.files.paths = str(path)
        config.train.steps = self.own.steps
        config.optimizer.update(lr=2e-3, warmup=self.own.steps // 20)
        config.eval.every = 0
        config.checkpoint.every = self.own.steps
        copies = self.own.copies if arm == SAMPLED else 1

        def rows(experiment: setup.Experiment) -> Batches:
            split = cut_texts(experiment.tokenizer, texts, copies)
            return Batches(split, config.data, config.seed)

        return lineage.train(config, self.folder / name, rows=rows)


def cut_texts(tokenizer: tokenizers.Tokenizer, texts: Sequence[str], copies: int) -> store.Split:
    """Returns texts as documents; of several copies each is cut in a way of its own.

    It is one of the likeliest ways, chosen by a hash of the text and the number of its copy:
    SentencePiece's own draws depend on the order of calls (Kudo 2018, arXiv 1804.10959).
    """
    documents = []
    for copy in range(copies):
        for text in texts:
            if copies == 1:
                ids = tokenizer.encode(text)
            else:
                digest = hashlib.sha256(f'{copy} {text}'.encode()).digest()
                ways = tokenizer.encode_best(text, copies)
                ids = ways[int.from_bytes(digest[:4], 'big') % len(ways)]
            documents.append(np.array([*tokenizer.begin, *ids, tokenizer.eos], np.uint32))
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in documents])])
    num_bytes = copies * sum(len(text.encode()) for text in texts)
    return store.Split(np.concatenate(documents), offsets, None, num_bytes)


def _share_right(experiment: setup.Experiment, sentences: Sequence[tuple[str, str]]) -> float:
    """Returns how many sentences are ended with exactly the right form."""
    tokenizer = experiment.tokenizer
    prompts = [[*tokenizer.begin, *tokenizer.encode(begin)] for begin, _ in sentences]
    params = experiment.state['params']
    stop = Stop((tokenizer.eos,))
    written = generate(experiment.model, params, prompts, _LONGEST, _GREEDY, stop=stop)
    right = [tokenizer.decode(ids) == form for ids, (_, form) in zip(written, sentences)]
    return sum(right) / len(right)


def _nats_a_form(experiment: setup.Experiment, sentences: Sequence[tuple[str, str]]) -> float:
    """Returns the mean nats that the form of a sentence costs after its beginning.

    It is of whole forms: tokenizers cut them into more or fewer tokens.
    """
    tokenizer = experiment.tokenizer
    begins = [[*tokenizer.begin, *tokenizer.encode(begin)] for begin, _ in sentences]
    forms = [[*tokenizer.encode(form), tokenizer.eos] for _, form in sentences]
    texts = [begin + form for begin, form in zip(begins, forms)]
    params = experiment.state['params']
    places = [len(begin) for begin in begins]
    nats = text_nats(experiment.model, params, texts, max(map(len, texts)), places)
    return float(nats.mean())


# --- What was found -------------------------------------------------------------------------------


def find(config, records: list[dict]) -> Finding:
    """Returns what the records say: new forms, against characters and permuted endings."""
    arms = frame.by_arm(records)
    of_tokenizers = {
        arm.removeprefix('tokenizer '): of_arm[0]
        for arm, of_arm in arms.items()
        if arm.startswith('tokenizer ')
    }
    models = {arm: of_arm for arm, of_arm in arms.items() if not arm.startswith('tokenizer ')}

    def right(arm: str, group: str) -> list[float]:
        return [100 * record[group]['right'] for record in models[arm]]

    found = right('unigram', 'invented')
    control = right(PERMUTED, 'invented')
    over = frame.paired(found, control)
    returned = min(record['returned'] for record in of_tokenizers.values())
    shown = over.low > 0 and returned == 1.0
    sentence = (
        f'A model with unigram pieces writes {np.mean(found):.1f} % of the forms of verbs that do '
        f'not exist as the rules have them, with endings permuted, the control, '
        f'{np.mean(control):.1f} %: {over.mean:+.1f} points ({over.low:+.1f} to {over.high:+.1f}, '
        f'{over.pairs} seeds); with characters {np.mean(right("char", "invented")):.1f} %. '
        f'{100 * returned:.1f} % of random texts come back as they were.'
    )
    lines = ['## Tokenizers', '', *_tokenizer_table(of_tokenizers)]
    header = ['model']
    for title in _GROUPS.values():
        header += [f'{title}: right, %', 'nats']
    rows = []
    for arm, of_arm in models.items():
        row = [f'{arm} ({len(of_arm)} seeds)']
        for group in _GROUPS:
            values = right(arm, group)
            row.append(frame.show_span(values))
            row.append(f'{np.mean([record[group]["nats"] for record in of_arm]):.2f}')
        rows.append(row)
    lines += ['## Models', '', *table_lines(header, rows)]
    panels = {}
    for group, title in _GROUPS.items():
        bars = {}
        for arm in models:
            bars[arm] = frame.span(right(arm, group))
        panels[title] = ('right, %', bars)
    picture = plots.score_bars(panels, {})
    return Finding(sentence, shown, lines, ('Mean, least and greatest of seeds', picture))


def _tokenizer_table(of_tokenizers: dict[str, dict]) -> list[str]:
    rows = [
        [
            name,
            record['vocabulary'],
            f'{100 * record["returned"]:.1f}',
            *(f'{record["fertility"][lang]:.2f}' for lang in pages.LANGS),
            f'{100 * record["stable"]:.1f}',
            f'{100 * record["stable_invented"]:.1f}',
        ]
        for name, record in of_tokenizers.items()
    ]
    header = ['tokenizer', 'pieces', 'random texts that come back, %']
    header += [f'tokens a word, {lang}' for lang in pages.LANGS]
    header += ['stems that keep their pieces, %', 'of invented verbs, %']
    return table_lines(header, rows)
