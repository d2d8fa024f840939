"""Answers of recall, read off the prompt by other rules than those that made it."""

import collections
import re

import numpy as np
import pytest

from data.tasks import memory
from data.tasks.base import TaskBatches


def examples(task, lengths, count=40):
    for length in lengths:
        for seed in range(count):
            yield length, task.sample(np.random.default_rng([seed, length]), length)


@pytest.mark.parametrize('ignore', [0.0, 0.8, 1.0])
def test_flip_flop(ignore):
    """Catches the last bit of any kind, the first write, a read that is not asked, and another
    share of ignores."""
    kinds = collections.Counter()
    for length, example in examples(memory.FlipFlop(ignore=ignore), (2, 3, 10, 100)):
        text = ''.join(example.prompt)
        assert (
            len(text) == 2 * length
            and re.fullmatch('w[01]([wir][01])*r[01]', text)
            and not example.answer
        )
        for read in re.finditer('r', text):
            before = text[: read.start()]
            assert text[read.end()] == before[before.rindex('w') + 1]
        assert example.asked == [read.end() for read in re.finditer('r', text)]
        kinds.update(text[2:-2:2])
    total = sum(kinds.values())
    assert abs(kinds['i'] / total - ignore) < 0.03 and abs(kinds['w'] - kinds['r']) < 0.06 * total


@pytest.mark.parametrize(
    'task', [memory.SelectiveCopy(), memory.SelectiveCopy(memorised=3, words=2)]
)
def test_selective_copy(task):
    """Catches words out of order, a word that is left out, noise in the answer, and words that
    always come first."""
    first = set()
    last = set()
    for length, example in examples(task, (1, 5, 40)):
        rest = list(example.prompt)
        for word in example.answer:  # takes away from the front: what stays is noise
            while (symbol := rest.pop(0)) != word:
                assert symbol == '<noise>'
        assert (
            len(example.answer) == task.memorised and len(example.prompt) == length + task.memorised
        )
        assert {*rest} <= {'<noise>'}
        first.add(example.prompt[0] == '<noise>'), last.add(example.prompt[-1] == '<noise>')
    assert first == last == {True, False}


@pytest.mark.parametrize('task', [memory.InductionHead(), memory.InductionHead(words=2)])
def test_induction_head(task):
    """Catches the word before in place of the one after, a query that came twice, and a query at
    one place only."""
    places = set()
    for length, example in examples(task, (3, 4, 16, 60)):
        assert len(example.prompt) == length
        after = {}
        for word, following in zip(example.prompt, example.prompt[1:]):
            after.setdefault(word, []).append(following)
        assert after[example.prompt[-1]] == example.answer != [example.prompt[-1]]
        places.add((length, example.prompt.index(example.prompt[-1])))
    assert {p for n, p in places if n == 4} == {0, 1}


def test_multi_query_recall():
    """Catches a value of another key, a repeated key, one that is not asked for, all queries in the
    order of the pairs or next to one another, and places that are as likely far away as near."""
    gaps = []
    orders = 0
    for length, example in examples(memory.MultiQueryRecall(words=66), (1, 2, 9, 32)):
        pairs = example.prompt[: 2 * length]
        rest = example.prompt[2 * length :]
        assert (
            all(s[0] == 'kv'[i % 2] for i, s in enumerate(pairs))
            and len({*pairs}) == 2 * length
            and len(rest) == 6 * length
        )
        value = dict(zip(pairs[::2], pairs[1::2]))
        queries = [example.prompt[i - 1] for i in example.asked]
        assert (
            sorted(queries) == sorted(value)
            and [example.prompt[i] for i in example.asked] == [value[k] for k in queries]
            and not example.answer
        )
        orders += queries != pairs[::2]
        gaps += [(i - 1 - 2 * length) / (6 * length) for i in example.asked] if length > 2 else []
    assert orders > 80 and 0.28 < np.mean(gaps) < 0.45 and max(gaps) > 0.95
    tight = memory.MultiQueryRecall(words=64, spread=4).sample(np.random.default_rng(0), 5)
    assert tight.asked == [11, 13, 15, 17, 19]


@pytest.mark.parametrize(
    'task, length', [(memory.FlipFlop(ignore=0.3), 12), (memory.MultiQueryRecall(words=64), 6)]
)
def test_what_is_asked_has_the_loss(task, length):
    """Catches a loss on the symbol before or after, on other symbols or on an end that nobody asked
    for, and on the first example of a row only."""
    batch = TaskBatches(task, (length, length), 4, 0)(0)
    known = {i: s for s, i in task.vocabulary.items()}
    for tokens, targets, weights in zip(batch['tokens'], batch['targets'], batch['loss_weights']):
        answered = [
            (known[int(q)], known[int(a)])
            for q, a in zip(tokens[weights > 0], targets[weights > 0])
        ]
        text = [known[int(t)] for t in tokens]
        halves = [text[: text.index('<sep>')], text[text.index('<sep>') :]]
        if isinstance(task, memory.FlipFlop):
            assert {q for q, _ in answered} == {'r'} and len(answered) == text.count('r')
        else:
            assert all(
                (q, a) in zip(half, half[1:])
                for half, symbols in zip(halves, (answered[:length], answered[length:]))
                for q, a in symbols
            )
            assert len(answered) == 2 * length and all(
                q[0] == 'k' and a[0] == 'v' for q, a in answered
            )


def test_indirect_indexing():
    """Catches an offset in the wrong direction or one off, and a named character that occurs
    twice."""
    signs = set()
    furthest = 0
    for length, example in examples(memory.IndirectIndexing(), (2, 3, 20, 150)):
        text = example.prompt[:length]
        (_, named, _, sign, *digits) = example.prompt[length:]
        assert text.count(named) == 1 and digits[0] != '0'
        walk = iter(text[text.index(named) :] if sign == '+' else text[text.index(named) :: -1])
        for _ in range(int(''.join(digits)) + 1):
            expected = next(walk)
        assert example.answer == [expected]
        signs.add(sign)
        furthest = max(furthest, int(''.join(digits)))
    assert signs == {'+', '-'} and furthest > 99


@pytest.mark.parametrize('depth, digits', [(-1.0, 5), (0.0, 5), (0.5, 1), (1.0, 7)])
def test_passkey(depth, digits):
    """Catches a key that the two sentences do not share, a depth that is not kept, and filler of
    another length."""
    before = set()
    for length, example in examples(memory.Passkey(depth=depth, digits=digits), (1, 10, 200)):
        text = ' '.join(example.prompt)
        key = ' '.join(example.answer)
        assert len(example.answer) == digits
        assert text.count(f'the pass key is {key} . remember it . {key} is the pass key .') == 1
        assert text.endswith('what is the pass key ? the pass key is')
        filler, rest = text.split(f'the pass key is {key} . remember it .')
        rest = rest.removeprefix(f' {key} is the pass key .').removesuffix(
            ' what is the pass key ? the pass key is'
        )
        assert len(filler.split()) + len(rest.split()) == length
        for part in (filler, rest):
            assert (
                not part.split()
                or part.split()[:6] == 'the grass is green . the'.split()[: len(part.split())]
            )
        if depth >= 0:
            assert abs(len(filler.split()) - depth * length) <= 0.5
        before.add((length, len(filler.split())))
    if depth < 0:
        assert {p for n, p in before if n == 1} == {0, 1} and len(
            {p for n, p in before if n == 10}
        ) > 8


@pytest.mark.parametrize('variables', [1, 3, 26])
def test_counting(variables):
    """Catches counts over a set, counts of another variable, operations on what was not set, and
    other parts than 1 : 50 : 7."""
    totals = collections.Counter()
    for length, example in examples(memory.Counting(variables=variables), (1, 9, 100, 400), 30):
        text = ' '.join(example.prompt)
        program, asked = text.split(' print ')
        operations = program.replace('; ', ';|').split('|')
        assert len(operations) == length
        for name in {*re.findall(r'\b([a-z]) ', program)}:
            mine = ''.join(
                's' if o == f'{name} =0;' else '+' for o in operations if o.startswith(f'{name} ')
            )
            assert mine[0] == 's' and all(len(run) <= 10 for run in mine.split('s'))
            if name == asked:
                assert example.answer == [str(len(mine) - 1 - mine.rindex('s'))]
        assert re.search(rf'\b{asked} =0;', program)
        values = {}
        for name, what in (o.split() if ' ' in o else ('', o) for o in operations):
            if values and max(values.values()) < 10:  # where each operation can be
                totals[what] += 1
            if name:
                values[name] = values[name] + 1 if what == '++;' else 0
    share = {what: count / sum(totals.values()) for what, count in totals.items()}
    assert (
        abs(share['pass;'] - 50 / 58) < 0.02
        and abs(share['++;'] - 7 / 58) < 0.02
        and abs(share['=0;'] - 1 / 58) < 0.008
    )
