"""Short texts of who did what to whom, in pairs that differ in the order of their words alone.

    Ana viu Rui . Eva ouviu Leo . Quem viu ?      -> Ana
    Rui viu Ana . Eva ouviu Leo . Quem viu ?      -> Rui

A text states facts, each of other people and with a verb of its own, and asks who did or suffered
one of them, in Portuguese or in English. A pair has the same words, so that whoever does not see
their order answers one of its texts rightly, and the other one not. As everywhere in `data/`,
`batch(step)` is a pure function of the seed and the step.
"""

import dataclasses
import functools

import numpy as np

from data.batches import FIELDS, Batch
from data.records import DataError

BOS = 1  # 0 is padding
_SPECIAL = ('<pad>', '<bos>')

LANGS = ('pt', 'en')
ROLES = ('agent', 'patient')
NAMES = tuple(
    'Ana Rui Eva Leo Ivo Lia Bia Tom Max Ema Gil Zoe Davi Nina Caio Rosa Hugo Iris Joel Vera Luca '
    'Clara Pedro Alice Bruno Diana Felix Helena Igor Julia Karen Laura Marta Nuno Oscar Paula Rita '
    'Sara Tiago Vitor'.split()
)
VERBS = {  # what somebody did, and what somebody else was then
    'pt': (
        'viu visto,ouviu ouvido,chamou chamado,seguiu seguido,ajudou ajudado,abraçou abraçado,'
        'empurrou empurrado,venceu vencido,acusou acusado,elogiou elogiado,visitou visitado,'
        'encontrou encontrado,enganou enganado,curou curado,puxou puxado,beijou beijado'
    ),
    'en': (
        'saw seen,heard heard,called called,followed followed,helped helped,hugged hugged,'
        'pushed pushed,beat beaten,accused accused,praised praised,visited visited,met met,'
        'fooled fooled,cured cured,pulled pulled,kissed kissed'
    ),
}
_ASKED = {'pt': ('Quem', 'foi'), 'en': ('Who', 'was')}
MOST = len(VERBS['pt'].split(','))  # facts of a text


@functools.cache
def _verbs(lang: str) -> tuple[tuple[str, str], ...]:
    pairs = [verb.split() for verb in VERBS[lang].split(',')]
    return tuple((active, passive) for active, passive in pairs)


@functools.cache
def vocabulary() -> dict[str, int]:
    """Returns the token id of each word."""
    words = [*_SPECIAL, '.', '?', *NAMES]
    for lang in LANGS:
        words += _ASKED[lang]
        words += [word for verb in _verbs(lang) for word in verb]
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


@dataclasses.dataclass(frozen=True)
class OrderText:
    """A text and its right answer.

    Attributes:
      facts: (who, verb, whom) of each.
      asked: number of the fact that is asked about.
      role: whether who did it is asked, or to whom it was done.
    """

    lang: str
    facts: tuple[tuple[str, str, str], ...]
    asked: int
    role: str
    passive: str

    @property
    def answer(self) -> str:
        who, _, whom = self.facts[self.asked]
        return who if self.role == 'agent' else whom

    @property
    def other(self) -> str:
        """The name that answers the other text of the pair."""
        who, _, whom = self.facts[self.asked]
        return whom if self.role == 'agent' else who

    def words(self) -> list[str]:
        """Returns the words of the text, the question at the end."""
        words = [word for fact in self.facts for word in (*fact, '.')]
        who, was = _ASKED[self.lang]
        if self.role == 'agent':
            return [*words, who, self.facts[self.asked][1], '?']
        return [*words, who, was, self.passive, '?']

    def swapped(self) -> 'OrderText':
        """Returns the other text of the pair: in the fact that is asked about names change places.

        The words are the same, and the answer is the other name.
        """
        who, verb, whom = self.facts[self.asked]
        facts = [*self.facts]
        facts[self.asked] = (whom, verb, who)
        return dataclasses.replace(self, facts=tuple(facts))


def sample(rng: np.random.Generator, facts: int, role: str = '') -> OrderText:
    """Returns a text of so many facts; `role`: what is asked, '': either."""
    lang = LANGS[rng.integers(len(LANGS))]
    names = rng.permutation(NAMES)[: 2 * facts]
    verbs = [_verbs(lang)[i] for i in rng.permutation(MOST)[:facts]]
    asked = int(rng.integers(facts))
    stated = [
        (str(who), verb[0], str(whom)) for who, verb, whom in zip(names[::2], verbs, names[1::2])
    ]
    role = role or ROLES[rng.integers(len(ROLES))]
    return OrderText(lang, tuple(stated), asked, role, verbs[asked][1])


def size(facts: int) -> int:
    """Returns the most tokens that a text of so many facts has."""
    return 1 + 4 * facts + 4


def encode(words: list[str]) -> list[int]:
    """Returns the ids of a text, begun by its mark."""
    known = vocabulary()
    return [BOS, *(known[word] for word in words)]


class OrderBatches:
    """Batches of texts, several in a row, each a document; the loss is on the answers alone.

    An answer is only a target and is read nowhere, so that a model that sees both ways can be
    trained on the same batches.

    Args:
      facts: (least, most) of a text.
      seq_len: tokens of a row.
      batch_size: rows.
      seed: of the texts.
      scrambled: control: the words of each fact stand in any order.
    Raises:
      DataError: facts out of order or more than there are verbs, or a row too short for a text.
    """

    def __init__(
        self,
        facts: tuple[int, int],
        seq_len: int,
        batch_size: int,
        seed: int,
        scrambled: bool = False,
    ):
        low, high = facts
        if not 1 <= low <= high <= MOST:
            raise DataError(f'facts are {low} to {high}: expected at least 1, at most {MOST}')
        if size(high) > seq_len:
            raise DataError(
                f'rows have {seq_len} tokens: expected at least {size(high)}, for {high} facts'
            )
        self.facts = facts
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.scrambled = scrambled

    def __call__(self, step: int) -> Batch:
        """Returns the batch of a step."""
        shape = (self.batch_size, self.seq_len)
        batch = {name: np.zeros(shape, dtype) for name, dtype in FIELDS.items()}
        for row in range(self.batch_size):
            seeds = np.random.SeedSequence([self.seed, step, row])
            self._fill(batch, row, np.random.Generator(np.random.Philox(seeds)))
        return batch

    def _fill(self, batch: Batch, row: int, rng: np.random.Generator) -> None:
        """Writes as many texts into a row as it has room for."""
        at = 0
        segment = 0
        while True:
            text = sample(rng, int(rng.integers(self.facts[0], self.facts[1] + 1)))
            words = text.words()
            if self.scrambled:
                words = scramble(words, rng)
            tokens = encode(words)
            end = at + len(tokens)
            if end > self.seq_len:
                return
            segment += 1
            batch['tokens'][row, at:end] = tokens
            batch['targets'][row, end - 1] = vocabulary()[text.answer]
            batch['loss_weights'][row, end - 1] = 1
            batch['segment_ids'][row, at:end] = segment
            batch['positions'][row, at:end] = np.arange(end - at)
            at = end


def scramble(words: list[str], rng: np.random.Generator) -> list[str]:
    """Returns the words with those of each fact in any order."""
    words = list(words)
    start = 0
    for end, word in enumerate(words):
        if word == '.':
            words[start:end] = rng.permutation(words[start:end]).tolist()
            start = end + 1
    return words
