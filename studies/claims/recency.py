"""Post-training makes a model answer: dose, order, and what comes after it.

The lineages are those of the quickstart, on the atlas (data/atlas): a web that asks questions and
never answers them, and pairs of questions and answers about four fifths of the countries. Asked are
those about the last fifth, whose facts only the web states.
"""

import itertools
import pathlib
import random
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import atlas, atlas_answers
from data.atlas import facts, pages
from data.records import Record
from evals import answers, heldout, plots
from evals.html import table_lines
from model.config import resolve
from runtime.errors import RunError
from studies.claims import frame, lineage
from studies.claims.frame import ClaimCell, Finding
from train import setup
from train.mesh import to_devices

VERSION = 1  # raised where the same config would give other records

UNKNOWN = {'pt': 'não sei', 'en': "I don't know"}

_ENDS = ('ônia', 'stão', 'land', 'via', 'gana', 'moro', 'lândia', 'tea', 'quia', 'dor')
_STARTS = ('Bel', 'Tav', 'Zor', 'Mir', 'Cal', 'Dun', 'Fer', 'Gol', 'Nav', 'Pel')


# --- What is measured -----------------------------------------------------------------------------


def cells(config) -> list[ClaimCell]:
    """Returns the arms of the main contrast for `seeds` seeds, all others for `more_seeds`."""
    own = config.recency
    listed = []
    for seed in range(1, config.seeds + 1):
        arms = ['web', 'web, answers', 'answers, web']
        if seed <= config.more_seeds:
            arms += ['mixed']
            arms += [f'web, {count} pairs' for count in own.pairs]
            arms += [f'web, answers, {steps} steps of web' for steps in own.web_after]
            arms += [f'web, answers, {100 * share:g} % unknown' for share in own.unknown]
        listed += [ClaimCell(arm, seed, f'seed_{seed}') for arm in arms]
    return listed


def check(config) -> None:
    """Raises ModelError or RunError where a cell could not be trained."""
    resolve(config.model, config.tokenizer.vocab_size, atlas.get_config().data.seq_len)
    there = len(list(pages.pairs(_world(config))))
    for count in config.recency.pairs:
        if count > there:
            raise RunError(
                f'config.recency.pairs has {count}: expected at most {there}, the pairs there are'
            )


def measure(config, group: Sequence[ClaimCell], folder: pathlib.Path) -> Iterator[dict]:
    """Yields the record of each cell of one seed; its runs are in `folder`."""
    began = time.perf_counter()
    runs = _Runs(config, group[0].seed, folder)
    for cell in group:
        record = runs.measure(runs.train(cell.arm))
        yield {**record, 'seconds': time.perf_counter() - began}
        began = time.perf_counter()


class _Runs:
    """The runs of one seed. A run that several arms begin with is trained once."""

    def __init__(self, config, seed: int, folder: pathlib.Path):
        self.study = config
        self.own = config.recency
        self.seed = seed
        self.folder = folder
        self.web_config = lineage.of_quickstart(
            atlas.get_config(), config, seed, self.own.web_steps
        )
        self.base = lineage.train(self.web_config, folder / 'web')
        self.world = self.web_config.data.atlas
        self.asked = answers.questions(self.world)
        self.invented = invented_countries(self.own.invented, seed)

    def _answers_config(self, pairs: Sequence[Record], name: str) -> ConfigDict:
        """Returns the config of a post-training on these pairs."""
        path = self.folder / 'texts' / f'{name}.jsonl'
        lineage.write_conversations(path, pairs)
        config = lineage.of_quickstart(
            atlas_answers.get_config(), self.study, self.seed, self.own.answer_steps
        )
        config.data.source = 'files'
        config.data.files.paths = str(path)
        config.data.files.prefer = 'conversation'
        config.tokenizer.path = str(self.folder / 'web' / 'tokenizer.model')
        return config

    def pairs(self, count: int = 0, unknown: float = 0.0) -> list[Record]:
        """Returns pairs of post-training, `count` of them (0: all), in an order of this seed."""
        records = [record for *_, record in pages.pairs(self.world)]
        rng = random.Random(f'{self.seed} pairs')
        rng.shuffle(records)
        records = records[: count or None]
        if unknown:
            first_half = self.invented[: len(self.invented) // 2]
            known = [c for c in pages.countries(self.world) if c.code not in self._held_out()]
            more = [*ask_of_facts(first_half), *ask_beyond_facts(known)]
            rng.shuffle(more)
            wanted = round(unknown * len(records))
            records += itertools.islice(itertools.cycle(map(_say_unknown, more)), wanted)
            rng.shuffle(records)
        return records

    def _held_out(self) -> set[str]:
        return pages.held_out(self.world)

    def train(self, arm: str) -> setup.Experiment:
        """Returns the run of an arm, trained."""
        phases = arm.split(', ')
        if arm == 'web':
            return self.base
        if arm == 'mixed':
            return self._train_mixed()
        if arm == 'answers, web':
            first = self._post_train('answers_first', self.pairs(), '')
            config = ConfigDict(self.web_config.to_dict())
            config.tokenizer.path = str(self.folder / 'web' / 'tokenizer.model')
            return lineage.train(config, self.folder / 'web_last', str(first.run.path))
        if phases[-1].endswith(' pairs'):
            count = int(phases[-1].split()[0])
            return self._post_train(f'pairs_{count}', self.pairs(count))
        if phases[-1].endswith(' unknown'):
            percent = float(phases[-1].split()[0])
            return self._post_train(f'unknown_{percent:g}', self.pairs(unknown=percent / 100))
        after_web = self._post_train('answers', self.pairs())
        if phases[-1].endswith(' of web'):
            return self._read_on(int(phases[-1].split()[0]), str(after_web.run.path))
        return after_web

    def _post_train(
        self, name: str, pairs: Sequence[Record], parent: str | None = None
    ) -> setup.Experiment:
        """Trains on pairs, from the web unless another parent is named ('': random weights)."""
        config = self._answers_config(pairs, name)
        if parent is None:
            config.tokenizer.path = ''
            parent = str(self.base.run.path)
        return lineage.train(config, self.folder / name, parent)

    def _read_on(self, steps: int, parent: str) -> setup.Experiment:
        """Trains on the web again, at the rate of post-training."""
        config = ConfigDict(self.web_config.to_dict())
        config.train.steps = steps
        config.checkpoint.every = steps
        lr = atlas_answers.get_config().optimizer.lr
        config.optimizer.update(lr=lr, warmup=0, schedule='constant')
        return lineage.train(config, self.folder / f'web_after_{steps}', parent)

    def _train_mixed(self) -> setup.Experiment:
        """Trains on the web with rows of pairs in so many of its steps, from the first on."""
        own = self.own
        config = ConfigDict(self.web_config.to_dict())
        config.tokenizer.path = str(self.folder / 'web' / 'tokenizer.model')
        web = lineage.build(config, self.folder / 'mixed')
        told = self._answers_config(self.pairs(), 'answers')
        of_pairs = lineage.build(told, self.folder / 'mixed_pairs')

        # As many rows of pairs as post-training reads, spread evenly over the steps.
        size = config.data.batch_size
        pairs_size = told.data.batch_size
        times = pairs_size * own.answer_steps // own.mixed_rows
        mixed_steps = np.linspace(0, own.web_steps - 1, min(times, own.web_steps)).astype(int)
        read = 0
        for step in range(own.web_steps):
            batch = web.training(step)
            if step in mixed_steps:
                of_pair_step = of_pairs.training(read // pairs_size)
                rows = np.arange(read, read + own.mixed_rows) % pairs_size
                batch = {
                    name: np.concatenate([of_pair_step[name][rows], x[own.mixed_rows :]])
                    for name, x in batch.items()
                }
                read += own.mixed_rows
            web.state, _ = web.train_step(web.state, to_devices(web.mesh, batch, size))
        jax.block_until_ready(web.state['params'])
        return web

    def measure(self, experiment: setup.Experiment) -> dict:
        """Returns what a model answers, makes of a bare question, and loses on the web."""
        model, params = experiment.model, experiment.state['params']
        tokenizer = experiment.tokenizer

        def ask(texts: list[str]) -> list[str]:
            return answers.answer(model, params, tokenizer, texts)

        texts = [q['question'] for q in self.asked]
        said = ask(texts)
        bare = answers.continuations(model, params, tokenizer, texts, seed=self.seed)

        # What cannot be known: of countries that do not exist, and what no page says of others.
        hidden = [c for c in pages.countries(self.world) if c.code in self._held_out()]
        of_nothing = list(ask_of_facts(self.invented[len(self.invented) // 2 :]))
        beyond = list(ask_beyond_facts(hidden))
        split = self.base.store.split('validation')
        return {
            'accuracy': answers.accuracy(self.asked, said),
            'continues': answers.continues(self.asked, bare),
            'web_nats': heldout.loss(model, params, split, self.web_config.data, self.seed),
            'invents_for_nothing': _share_said(ask([q for _, q in of_nothing]), of_nothing),
            'invents_beyond_facts': _share_said(ask([q for _, q in beyond]), beyond),
            'refuses_known': 1 - _share_said(said, [(q['lang'], '') for q in self.asked]),
        }


# --- What cannot be known -------------------------------------------------------------------------


def invented_countries(count: int, seed: int) -> list[pages.Country]:
    """Returns countries that do not exist, without facts, the same for a seed."""
    taken = {row.split('|')[1].split(':')[1] for row in facts.COUNTRIES}
    names = [start + end for start in _STARTS for end in _ENDS if start + end not in taken]
    chosen = random.Random(f'{seed} invented').sample(names, count)
    return [pages.name_country('xx', f'{_article(name)}:{name}', name) for name in chosen]


def _article(name: str) -> str:
    return 'a' if name.endswith('a') else 'o'


def ask_of_facts(countries: Sequence[pages.Country]) -> Iterator[tuple[str, str]]:
    """Yields (language, question) for each relation of each country."""
    for country, lang, relation in itertools.product(countries, pages.LANGS, pages.RELATIONS):
        yield lang, pages.question(country, lang, relation)


def ask_beyond_facts(countries: Sequence[pages.Country]) -> Iterator[tuple[str, str]]:
    """Yields (language, question) for what the web asks about countries and never states."""
    for country, lang in itertools.product(countries, pages.LANGS):
        for wording in pages.UNANSWERED[lang]:
            yield lang, wording.format(**country.words[lang])


def _say_unknown(asked: tuple[str, str]) -> Record:
    lang, question = asked
    return Record('unknown', messages=(('user', question), ('assistant', UNKNOWN[lang])))


def _share_said(said: Sequence[str], asked: Sequence[tuple[str, str]]) -> float:
    """Returns the share of answers that are not "I do not know"."""
    known = [text != UNKNOWN[lang] for text, (lang, _) in zip(said, asked, strict=True)]
    return sum(known) / len(known)


# --- What was found -------------------------------------------------------------------------------


def find(config, records: list[dict]) -> Finding:
    """Returns what the records say: the order of phases, dose, what undoes it, and invention."""
    arms = frame.by_arm(records)
    own = config.recency

    def values(arm: str, value: Callable[[dict], float]) -> list[float]:
        return [value(record) for record in arms[arm]]

    def right(arm: str) -> list[float]:
        return [100 * x for x in values(arm, lambda r: r['accuracy']['all'])]

    # The main contrast and its control, paired by seed.
    last = right('web, answers')
    first = right('answers, web')
    order = frame.paired(last, first)
    control = max(right('web'))
    shown = order.low > 0 and control < min(last)
    sentence = (
        f'With answers read last the model answers {np.mean(last):.1f} % of questions about '
        f'countries that post-training never saw, with the web read last {np.mean(first):.1f} %: '
        f'{order.mean:+.1f} points ({order.low:+.1f} to {order.high:+.1f}, {len(last)} seeds). The '
        f'web alone, the control, answers at most {control:.1f} %.'
    )

    # One factor at a time.
    doses = ['web', *(f'web, {n} pairs' for n in own.pairs), 'web, answers']
    after = ['web, answers', *(f'web, answers, {n} steps of web' for n in own.web_after)]
    after += ['answers, web']
    unknown = [f'web, answers, {100 * share:g} % unknown' for share in own.unknown]
    lines = []
    for title, listed in (
        ('Dose: different pairs, the same steps', doses),
        ('What comes after answers', after),
        ('Mixed in from the start', ['web, answers', 'mixed']),
        ('I do not know', ['web, answers', *unknown]),
    ):
        lines += [f'## {title}', '', *_table(arms, listed)]

    def curve(listed: Sequence[str]) -> dict[str, list[float]]:
        return {arm: right(arm) for arm in listed}

    picture = plots.dose_curves(
        {
            'different pairs': ([0, *own.pairs, len(list(pages.pairs(_world(config))))], doses),
            'steps of the web after answers': ([0, *own.web_after, own.web_steps], after),
        },
        curve([*doses, *after]),
        'held-out questions answered rightly, %',
    )
    return Finding(sentence, shown, lines, ('Right answers; a point a seed', picture))


def _world(config) -> ConfigDict:
    world = atlas.get_config().data.atlas
    world.update(config.data.atlas)
    return world


def _table(arms: dict[str, list[dict]], listed: Sequence[str]) -> list[str]:
    """Returns a table of means over seeds, with the least and the greatest of each."""
    columns: dict[str, Callable[[dict], float]] = {
        'right, %': lambda r: 100 * r['accuracy']['all'],
        'bare question goes on with questions, %': lambda r: 100 * r['continues']['questions'],
        'web, nats a token': lambda r: r['web_nats'],
        'invents: no such country, %': lambda r: 100 * r['invents_for_nothing'],
        'invents: no such fact, %': lambda r: 100 * r['invents_beyond_facts'],
        'refuses what it could know, %': lambda r: 100 * r['refuses_known'],
    }
    rows = []
    for arm in listed:
        row = [arm, str(len(arms[arm]))]
        for name, value in columns.items():
            of_seeds = [value(record) for record in arms[arm]]
            row.append(frame.show_span(of_seeds, '.2f' if 'nats' in name else '.1f'))
        rows.append(row)
    return table_lines(['phases', 'seeds', *columns], rows)
