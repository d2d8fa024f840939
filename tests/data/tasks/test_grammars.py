"""Commands interpreted once more, by rewriting their text."""

import re

import numpy as np
import pytest

from data.records import DataError
from data.tasks import grammars


def actions(command):
    """SCAN by rewriting: from the whole command down to single verbs."""
    for word, order in (('and', (0, 1)), ('after', (1, 0))):
        if f' {word} ' in command:
            halves = command.split(f' {word} ')
            return [a for i in order for a in actions(halves[i])]
    *phrase, last = command.split()
    if last in ('twice', 'thrice'):
        return actions(' '.join(phrase)) * {'twice': 2, 'thrice': 3}[last]
    if last not in ('left', 'right'):
        return [f'I_{last.upper()}']
    verb = phrase[0]
    turn = [f'I_TURN_{last.upper()}']
    doing = [] if verb == 'turn' else [f'I_{verb.upper()}']
    return {'around': (turn + doing) * 4, 'opposite': turn + turn + doing}.get(
        phrase[-1], turn + doing
    )


def test_scan_has_all_commands_and_their_actions():
    """Catches a grammar with too many or too few commands, `after` in the order of `and`, and
    `around` that acts once."""
    pairs = [
        (' '.join(words), list(answer))
        for group in grammars._commands().values()
        for words, answer in group
    ]
    assert len({command for command, _ in pairs}) == len(pairs) == 20910
    for command, answer in pairs:
        assert answer == actions(command), command


@pytest.mark.parametrize(
    'command, answer',
    [  # of the published commands
        ('jump left', 'LEFT JUMP'),
        ('jump around right', 'RIGHT JUMP RIGHT JUMP RIGHT JUMP RIGHT JUMP'),
        ('turn left twice', 'LEFT LEFT'),
        ('jump thrice', 'JUMP JUMP JUMP'),
        ('turn opposite right', 'RIGHT RIGHT'),
        ('jump opposite left and walk thrice', 'LEFT LEFT JUMP WALK WALK WALK'),
        (
            'jump opposite left after walk around left',
            'LEFT WALK LEFT WALK LEFT WALK LEFT WALK LEFT LEFT JUMP',
        ),
    ],
)
def test_scan_examples(command, answer):
    """Catches a meaning of which generator and test agree, but not the published data."""
    wanted = tuple(f'I_TURN_{a}' if a in ('LEFT', 'RIGHT') else f'I_{a}' for a in answer.split())
    assert (tuple(command.split()), wanted) in grammars._commands()[len(wanted)]


def test_scan_lengths():
    """Catches lengths that are not those of the answer, and rounding up or not at all where no
    command has a length."""
    task = grammars.Scan()
    without = {23, 29, 31, 34, 35, 37, 38, 39, 41, 42, 43, 44, 45, 46, 47}
    for length in range(1, 49):
        exact = length
        while exact in without:
            exact -= 1
        for seed in range(10):
            example = task.sample(np.random.default_rng(seed), length)
            assert len(example.answer) == exact
            assert example.answer == actions(' '.join(example.prompt))
        assert task.size(length) == task.size(exact) > exact
    with pytest.raises(DataError, match='49'):
        task.size(49)


STRING = r'((?:[A-Z]\d+ )*[A-Z]\d+)'
RULES = [  # each rewrites the innermost function, whose arguments are strings
    (rf'copy {STRING}', lambda a: a),
    (rf'reverse {STRING}', lambda a: [*reversed(a)]),
    (rf'shift {STRING}', lambda a: [*a[1:], a[0]]),
    (rf'echo {STRING}', lambda a: [*a, a[-1]]),
    (rf'swap_first_last {STRING}', lambda a: [a[-1], *a[1:-1], a[0]]),
    (rf'repeat {STRING}', lambda a: [*a, *a]),
    (rf'append {STRING} , {STRING}', lambda a, b: [*a, *b]),
    (rf'prepend {STRING} , {STRING}', lambda a, b: [*b, *a]),
    (rf'remove_first {STRING} , {STRING}', lambda a, b: b),
    (rf'remove_second {STRING} , {STRING}', lambda a, b: a),
]


def edited(text):
    while ' ' in text and re.match('[a-z]', text):
        for pattern, rule in RULES:
            match = re.search(pattern, text)
            if match:
                text = (
                    text[: match.start()]
                    + ' '.join(rule(*(g.split() for g in match.groups())))
                    + text[match.end() :]
                )
                break
        else:
            raise AssertionError(f'nothing to rewrite in {text}')
    return text.split()


@pytest.mark.parametrize(
    'text, answer',
    [  # after published examples, of the paper and of its test set
        ('repeat A1 B1 C1', 'A1 B1 C1 A1 B1 C1'),
        ('echo remove_first D1 K1 , E1 F1', 'E1 F1 F1'),
        ('append swap_first_last F1 G1 H1 , repeat I1 J1', 'H1 G1 F1 I1 J1 I1 J1'),
        ('prepend copy F7 K3 , P16 Z7', 'P16 Z7 F7 K3'),
        ('swap_first_last shift reverse copy M2 H16 K3 Z20', 'Z20 H16 M2 K3'),
        ('remove_second K3 F20 , reverse E19 Y4', 'K3 F20'),
    ],
)
def test_pcfg_examples(text, answer):
    """Catches a meaning of which generator and test agree, but not the published data."""
    assert edited(text) == answer.split()


@pytest.mark.parametrize('task', [grammars.Pcfg(), grammars.Pcfg(letters=3, longest=12)])
def test_pcfg(task):
    """Catches a function that edits wrongly, a number of functions that is not the length, and
    strings of 1 or 6 letters."""
    seen = set()
    for length in (1, 2, 5, 8, 14):
        for seed in range(60):
            example = task.sample(np.random.default_rng([seed, length]), length)
            text = ' '.join(example.prompt)
            functions = re.findall('[a-z_]+', text)
            assert len(functions) == length and len(example.answer) <= task.longest
            assert all(2 <= len(s.split()) <= 5 for s in re.findall(STRING, text))
            assert example.answer == edited(text)
            seen |= {*functions}
    assert len(seen) == 10
