"""Commands of a grammar, and what they mean."""

import dataclasses
import functools
import itertools
import string

from data.records import DataError
from data.tasks.base import Example, Task

_VERBS = {verb: (f'I_{verb.upper()}',) for verb in ('walk', 'look', 'run', 'jump')}
_TURNS = {side: (f'I_TURN_{side.upper()}',) for side in ('left', 'right')}


def _phrases():
    """Yields all phrases of one verb with their actions, once, twice and thrice."""
    verbs = {(verb,): actions for verb, actions in _VERBS.items()}
    turned = [*_VERBS.items(), ('turn', ())]
    for (verb, actions), (side, turn) in itertools.product(turned, _TURNS.items()):
        verbs[verb, side] = turn + actions
        verbs[verb, 'opposite', side] = 2 * turn + actions
        verbs[verb, 'around', side] = 4 * (turn + actions)
    for words, actions in verbs.items():
        yield words, actions
        yield (*words, 'twice'), 2 * actions
        yield (*words, 'thrice'), 3 * actions


@functools.cache
def _commands() -> dict[int, list[tuple[tuple[str, ...], tuple[str, ...]]]]:
    """Returns all 20,910 commands with their actions, by the number of actions."""
    phrases = list(_phrases())
    commands = list(phrases)
    for (words_a, actions_a), (words_b, actions_b) in itertools.product(phrases, phrases):
        commands.append(((*words_a, 'and', *words_b), actions_a + actions_b))
        commands.append(((*words_a, 'after', *words_b), actions_b + actions_a))
    groups: dict[int, list] = {}
    for words, actions in commands:
        groups.setdefault(len(actions), []).append((words, actions))
    return groups


@dataclasses.dataclass(frozen=True)
class Scan(Task):
    """SCAN: `jump opposite left after walk twice` -> I_WALK I_WALK I_TURN_LEFT I_TURN_LEFT I_JUMP.

    All commands of a length are equally likely. A length that no command has is rounded down to the
    next that some command has.
    """

    source = (
        'Lake and Baroni 2018, arXiv 1711.00350; the same commands and actions as tasks.txt of '
        'brendenlake/SCAN'
    )
    length = 'actions of the answer, 48 at most'

    @property
    def symbols(self):
        words = ('turn', 'left', 'right', 'opposite', 'around', 'twice', 'thrice', 'and', 'after')
        actions = itertools.chain(*_VERBS.values(), *_TURNS.values())
        return (*_VERBS, *words, *actions)

    def size(self, length):
        return max(len(words) + len(actions) for words, actions in self._commands_of(length))

    def sample(self, rng, length):
        commands = self._commands_of(length)
        words, actions = commands[rng.integers(len(commands))]
        return Example(list(words), list(actions))

    def _commands_of(self, length: int) -> list:
        groups = _commands()
        if length > max(groups):
            raise DataError(
                f'no command of SCAN has more than {max(groups)} actions: found length {length}'
            )
        return groups[max(n for n in groups if n <= length)]


_UNARY = {
    'copy': lambda s: s,
    'reverse': lambda s: s[::-1],
    'shift': lambda s: s[1:] + s[:1],
    'echo': lambda s: s + s[-1:],
    'swap_first_last': lambda s: s[-1:] + s[1:-1] + s[:1],
    'repeat': lambda s: s + s,
}
_BINARY = {
    'append': lambda s, t: s + t,
    'prepend': lambda s, t: t + s,
    'remove_first': lambda s, t: t,
    'remove_second': lambda s, t: s,
}


@dataclasses.dataclass(frozen=True)
class Pcfg(Task):
    """PCFG SET: string edit functions in prefix notation.

    `append reverse F7 G2 H9 , repeat I1 J3` -> H9 G2 F7 I1 J3 I1 J3. The ten functions are equally
    likely, a binary one shares the functions below it between its arguments uniformly, and a string
    has 2 to 5 letters. (The published data have the functions alike, but trees of the depths and
    lengths of English sentences.) `letters`: how many, A1 B1 .. Z20. `longest`: examples with more
    symbols in the answer are drawn again.
    """

    letters: int = 520
    longest: int = 100
    source = (
        'Hupkes et al. 2020, arXiv 1908.08351; tasks/default.py and generate.py of '
        'MathijsMul/pcfg-set'
    )
    length = 'functions in the prompt'

    def check(self):
        if self.letters < 2:
            raise DataError(f'task_args.letters is {self.letters}: expected 2 or more')
        if self.longest < 10:
            raise DataError(
                f'task_args.longest is {self.longest}: expected 10 or more, twice the longest '
                'string'
            )

    @property
    def symbols(self):
        return (*(self._letter(i) for i in range(self.letters)), *_UNARY, *_BINARY, ',')

    def size(self, length):
        """Returns a bound, reached at length 1.

        Binary functions alone make the longest prompt, `repeat` alone the longest answer.
        """
        return 7 * length + 5 + min(self.longest, 5 * 2**length)

    def sample(self, rng, length):
        while True:
            prompt, answer = self._expression(rng, length)
            if len(answer) <= self.longest:
                return Example(prompt, answer)

    def _expression(self, rng, functions: int) -> tuple[list[str], list[str]]:
        if not functions:
            letters = [self._letter(i) for i in rng.integers(self.letters, size=rng.integers(2, 6))]
            return letters, letters
        name = list({**_UNARY, **_BINARY})[rng.integers(10)]
        if name in _UNARY:
            prompt, value = self._expression(rng, functions - 1)
            return [name, *prompt], _UNARY[name](value)
        left = int(rng.integers(functions))
        first, first_value = self._expression(rng, left)
        second, second_value = self._expression(rng, functions - 1 - left)
        return [name, *first, ',', *second], _BINARY[name](first_value, second_value)

    def _letter(self, i: int) -> str:
        return f'{string.ascii_uppercase[i % 26]}{i // 26 + 1}'
