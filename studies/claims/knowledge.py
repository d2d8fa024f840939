"""Knowledge that can be extracted: facts that are stored, and those that a question finds.

Allen-Zhu and Li 2023, arXiv 2309.14316: a model reads biographies of all people and is then taught
to answer questions about half of them. Whether it answers those about the other half depends on how
often each biography was written anew. Asked the other way round it does not (the reversal curse,
Berglund et al. 2023, arXiv 2309.12288).
"""

import itertools
import pathlib
import random
import time
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from configs import base
from data.paths import expanded
from data.records import Record
from evals import answers, plots
from evals.html import table_lines
from model.config import resolve
from runtime import metrics
from runtime.errors import RunError
from studies.claims import frame, lineage, people
from studies.claims.frame import ClaimCell, Finding
from train import setup

VERSION = 1  # raised where the same config would give other records

# How biographies are written: versions of each, whether the order of their sentences is drawn, and
# whether each sentence has the full name. The paper finds each of them to be extracted better than
# the single one, and five permuted best.
WRITTEN = {
    'single': (1, False, False),
    'single, full names': (1, False, True),
    'single, permuted': (1, True, False),
    'five': (5, False, False),
    'five, permuted': (5, True, False),
}
MOST = 'five, permuted'
UNREAD = 'five, permuted; the asked unread'  # the control
REVERSED = 'five, permuted; asked in reverse'


def cells(config) -> list[ClaimCell]:
    """Returns each way of writing, the control and the reversal, for `seeds` seeds."""
    arms = (*WRITTEN, UNREAD, REVERSED)
    seeds = range(1, config.seeds + 1)
    return [ClaimCell(arm, seed, f'seed_{seed}') for seed, arm in itertools.product(seeds, arms)]


def check(config) -> None:
    """Raises ModelError or RunError where a cell could not be trained."""
    own = config.knowledge
    resolve(config.model, config.tokenizer.vocab_size, own.seq_len)
    folder = pathlib.Path(expanded(own.lists))
    for name in people.LISTS if own.lists else ():
        if not (folder / f'{name}.txt').is_file():
            raise RunError(
                f'config.knowledge.lists is {own.lists!r}: {folder / name}.txt is not there; '
                "expected a folder with such lists, or '' for made ones"
            )


def measure(config, group: Sequence[ClaimCell], folder: pathlib.Path) -> Iterator[dict]:
    """Yields the record of each cell of one seed; its runs are in `folder`."""
    runs = _Runs(config, group[0].seed, folder)
    for cell in group:
        began = time.perf_counter()
        record = runs.measure(cell.arm)
        yield {**record, 'seconds': time.perf_counter() - began}


class _Runs:
    """The runs of one seed: people, of whom half are asked about in post-training."""

    def __init__(self, config, seed: int, folder: pathlib.Path):
        self.study = config
        self.own = config.knowledge
        self.seed = seed
        self.folder = folder
        everyone = people.make_people(self.own.people, seed, expanded(self.own.lists))
        half = len(everyone) // 2
        self.taught = everyone[:half]
        self.asked = everyone[half:]

    def _config(self, steps: int) -> ConfigDict:
        own = self.own
        config = base.get_config()
        config.seed = self.seed
        config.model.update(self.study.model)
        config.tokenizer.update(self.study.tokenizer)
        config.data.update(
            source='files',
            seq_len=own.seq_len,
            batch_size=own.batch_size,
            packing='whole',
            validation=0.0,
        )
        config.train.steps = steps
        config.eval.every = 0
        config.checkpoint.every = steps
        return config

    def _read(self, arm: str) -> setup.Experiment:
        """Returns the run that has read biographies as the arm has them written."""
        versions, permuted, full_names = WRITTEN.get(arm, WRITTEN[MOST])
        known = self.taught if arm == UNREAD else [*self.taught, *self.asked]
        rng = random.Random(f'{self.seed} biographies')
        texts = [
            people.biography(person, rng, permuted, full_names)
            for person in known
            for _ in range(versions)
        ]
        rng.shuffle(texts)
        name = 'read_' + _slug(arm if arm in WRITTEN or arm == UNREAD else MOST)
        path = self.folder / 'texts' / f'{name}.jsonl'
        lineage.write_texts(path, texts)
        config = self._config(self.own.read_steps)
        config.data.files.paths = str(path)
        config.optimizer.update(lr=self.own.read_lr, warmup=self.own.read_steps // 20)
        return lineage.train(config, self.folder / name)

    def measure(self, arm: str) -> dict:
        """Returns the shares that are answered rightly, of people taught and of others."""
        read = self._read(arm)
        name = _slug(arm)
        pairs = [_pair(q, a) for person in self.taught for _, q, a in _ask(person, arm)]
        path = self.folder / 'texts' / f'{name}_answers.jsonl'
        lineage.write_conversations(path, pairs)
        config = self._config(self.own.answer_steps)
        config.data.files.paths = str(path)
        config.data.files.prefer = 'conversation'
        config.optimizer.update(lr=self.own.answer_lr, warmup=self.own.answer_steps // 10)
        config.model.dropout = 0.1
        taught = lineage.train(config, self.folder / name, str(read.run.path))
        record = {'read_loss': _last_loss(read)}
        for who, known in (('taught', self.taught), ('asked', self.asked)):
            questions = [item for person in known for item in _ask(person, arm)]
            texts = [question for _, question, _ in questions]
            said = answers.answer(taught.model, taught.state['params'], taught.tokenizer, texts)
            right = [text == answer for text, (*_, answer) in zip(said, questions)]
            record[who] = sum(right) / len(right)
            if who == 'asked':
                record['by_fact'] = {
                    fact: float(np.mean([r for r, (f, *_) in zip(right, questions) if f == fact]))
                    for fact in {fact for fact, *_ in questions}
                }
        return record


def _last_loss(experiment: setup.Experiment) -> float:
    """Returns nats a token of the last steps of a run, as its metrics say."""
    losses = [line['loss'] for line in metrics.read(experiment.run) if 'loss' in line]
    return float(np.mean(losses[-5:]))


def _ask(person: people.Person, arm: str) -> Iterator[tuple[str, str, str]]:
    """Yields (fact, question, answer) about a person, in reverse where the arm says so."""
    if arm != REVERSED:
        yield from person.questions()
        return
    facts = person.facts
    question = people.REVERSED.format(birthday=facts['birthday'], city=facts['city'])
    yield 'name', question, person.name


def _pair(question: str, answer: str) -> Record:
    return Record('people', messages=(('user', question), ('assistant', answer)))


def _slug(arm: str) -> str:
    return ''.join(c if c.isalnum() else '_' for c in arm)


def find(config, records: list[dict]) -> Finding:
    """Returns what the records say: the order of the ways of writing, and both controls."""
    arms = frame.by_arm(records)
    right = {arm: [100 * record['asked'] for record in of_arm] for arm, of_arm in arms.items()}
    whole = frame.paired(right[MOST], right['single'])
    unread = max(right[UNREAD])
    shown = whole.low > 0 and unread < min(right[MOST])
    sentence = (
        f'Of questions about people whose biographies were read and who were not asked about in '
        f'post-training {np.mean(right[MOST]):.1f} % are answered where each biography was written '
        f'five times in any order, {np.mean(right["single"]):.1f} % where it was written once: '
        f'{whole.mean:+.1f} points ({whole.low:+.1f} to {whole.high:+.1f}, {whole.pairs} seeds). '
        f'People of whom nothing was read, the control: at most {unread:.1f} %; asked in reverse, '
        f'for the name: {np.mean(right[REVERSED]):.1f} %.'
    )

    rows = []
    for arm, of_arm in sorted(arms.items(), key=lambda item: np.mean(right[item[0]])):
        taught = 100 * np.mean([record['taught'] for record in of_arm])
        loss = np.mean([record['read_loss'] for record in of_arm])
        shown_span = frame.show_span(right[arm])
        rows.append([arm, str(len(of_arm)), shown_span, f'{taught:.1f}', f'{loss:.2f}'])
    lines = ['## Each way of writing', '']
    columns = ['biographies', 'seeds', 'right, %', 'of people taught, %', 'reading, nats']
    lines += table_lines(columns, rows)
    lines += ['## The published order: single least, five permuted most', '']
    between = [arm for arm in WRITTEN if arm not in ('single', MOST)]
    pairs = [('single', arm) for arm in between] + [(arm, MOST) for arm in between]
    rows = []
    for less, more in pairs:
        c = frame.paired(right[more], right[less])
        rows.append([less, more, f'{c.mean:+.1f}', f'{c.low:+.1f} to {c.high:+.1f}'])
    lines += table_lines(['less', 'more', 'points', 'interval'], rows)
    bars = {arm: frame.span(right[arm]) for arm in (*WRITTEN, UNREAD, REVERSED)}
    picture = plots.score_bars({'People not asked about in training': ('right, %', bars)}, {})
    return Finding(sentence, shown, lines, ('Mean, least and greatest of seeds', picture))
