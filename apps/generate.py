"""Text from a trained model: continue prompts, ask questions, or chat.

python -m apps.generate --run=runs/atlas --prompt='A capital do Brasil'
python -m apps.generate --run=runs/answers --answer --prompt='Qual é a capital do Brasil?'
python -m apps.generate --run=runs/answers --chat --system='Answer in one word.'
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('run', '', 'Run directory, DIR or DIR@step')
    flags.DEFINE_multi_string(
        'prompt', [], 'Text to continue; give it again for more, they run as one batch'
    )
    flags.DEFINE_bool(
        'answer', False, 'Ask the prompts in the chat template instead of continuing them'
    )
    flags.DEFINE_bool(
        'chat',
        False,
        'Talk with the model: a line is a turn, an empty one ends. On a terminal arrow keys edit '
        'it and bring back earlier ones, kept in ~/.local/state/ordem/chat_history',
    )
    flags.DEFINE_string(
        'system', '', "What the model is told before --answer or --chat, as a system's message"
    )
    options.weights(
        'How matrices are kept: in the dtype they are computed with, or narrower, which takes less '
        'memory and lets accelerators decode faster',
    )
    options.whole('max_new', 128, 'New tokens at most', 1, options.MOST)
    options.number(
        'temperature', None, '0: greedy. Default: 0.8, and 0 for answers and chat', 0, 1e6
    )
    options.whole(
        'top_k',
        0,
        'Draw from the k most likely tokens; 0, or more than there are: from all',
        0,
        2**63 - 1,
    )
    options.number(
        'top_p', 1.0, 'Draw from the most likely tokens that hold this much probability', 0, 1000
    )
    options.number(
        'min_p',
        0.0,
        "Draw from tokens of at least this share of the most likely one's probability",
        0,
        1,
    )
    options.number('repetition_penalty', 1.0, 'Above 1: less of what is already there', 0, 1e6)
    options.seed('The same seed gives the same text')
    flags.DEFINE_multi_string('stop', [], 'End at this text, which is left out; may be given again')
    flags.DEFINE_bool(
        'stream', None, 'Show text as it comes. Default: for one prompt on a terminal'
    )
    cli.parse_flags()

import logging
import sys
from collections.abc import Callable, Sequence

import jax

from apps.lines import LineReader
from data.chat import SYSTEM, decode_answer, encode_prompt, stop_ids, system_note
from data.records import no_text, printable
from data.text import cut_before, line_ends
from model.generate import Conversation, Stop, generate, narrow_weights
from model.sampling import Sampling
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run

_LOG = logging.getLogger('ordem')

# Tokens between two looks at the text: while it is shown as it comes, and otherwise.
_TOKENS_PER_LOOK_SHOWN = 4
_TOKENS_PER_LOOK = 32

_LIMITS = (
    '({parameters} parameters, a context of {context} tokens. It answers in the manner of what it '
    'was trained on and knows nothing beside that: it looks nothing up, does not calculate, and '
    'says what is wrong as surely as what is right. An empty line ends.)'
)


class Writer:
    """Generates text with one model and one set of settings.

    Args:
      run: whose model it is.
      sampling: how tokens are drawn.
      max_new: tokens of a text at most.
      seed: the same one gives the same texts.
      stop: strings at which a text ends; they are left out.
      weights: how matrices are kept, one of `model.generate.WEIGHTS`.
    """

    def __init__(  # noqa: PLR0913  (each is a flag)
        self,
        run: Run,
        sampling: Sampling,
        max_new: int,
        seed: int,
        stop: Sequence[str] = (),
        weights: str = 'as_computed',
    ):
        model, params, self.tokenizer, self.config = models.load(run)
        self.parameters = sum(x.size for x in jax.tree.leaves(params))
        self.model, self.params = narrow_weights(model, params, weights)
        self.sampling = sampling
        self.max_new = max_new
        self.seed = seed
        self.stop = tuple(stop)
        self._talk: Conversation | None = None

    def write(
        self,
        prompts: list[list[int]],
        decode: Callable[[list[int]], str],
        show: Callable[[str], None] | None = None,
        conversation: Conversation | None = None,
    ) -> list[str]:
        """Returns the text that continues each prompt.

        Args:
          prompts: token ids of each.
          decode: token ids -> text.
          show: called with each new piece of the first text, which never ends inside a character or
            inside what may become a stop string.
          conversation: that the one prompt is a turn of; what was read of it is not read again.
        """
        shown = 0  # characters of the first text
        longest_stop = max((len(s) for s in self.stop), default=1)

        def watch(rows: list[list[int]]) -> bool:
            """Shows what is certain of the first text; returns whether all have come to a stop."""
            nonlocal shown
            if show is not None:
                text = cut_before(decode(rows[0]), self.stop)
                certain = max(shown, len(text.rstrip('\ufffd')) - (longest_stop - 1))
                show(text[shown:certain])
                shown = certain
            texts = map(decode, rows)
            return bool(self.stop) and all(cut_before(text, self.stop) != text for text in texts)

        end = stop_ids(self.tokenizer)
        tokens_per_look = _TOKENS_PER_LOOK if show is None else _TOKENS_PER_LOOK_SHOWN
        stop = Stop(end, watch, tokens_per_look)
        how = (self.max_new, self.sampling, self.seed, stop)
        if conversation is not None:
            rows = [conversation.generate(prompts[0], *how)]
        else:
            rows = generate(self.model, self.params, prompts, *how)
        texts = [cut_before(decode(row), self.stop) for row in rows]
        if show is not None:
            show(texts[0][shown:])
        self._warn_if_full(prompts, rows)
        return texts

    def _warn_if_full(self, prompts: list[list[int]], rows: list[list[int]]) -> None:
        """Logs it where a text ends because the context of the model does."""
        context = self.model.config.max_len
        full = [len(row) for p, row in zip(prompts, rows) if len(p) + len(row) >= context]
        if full and min(full) < self.max_new:
            _LOG.warning(
                'the context of this model, %d tokens, is full after %d new ones: --max_new is %d',
                context,
                min(full),
                self.max_new,
            )

    def continue_text(self, prompts: list[str], show=None) -> list[str]:
        """Returns what the model writes after each prompt."""
        begin = self.tokenizer.begin
        ids = [[*begin, *self.tokenizer.encode(line_ends(p))] for p in prompts]
        return self.write(ids, self.tokenizer.decode, show)

    def answer(self, conversations: list[list[tuple[str, str]]], show=None) -> list[str]:
        """Returns the model's turn after each conversation, which ends with the user's."""
        ids = [encode_prompt(c, self.tokenizer) for c in conversations]
        return self.write(ids, lambda row: decode_answer(row, self.tokenizer), show)

    def reply(self, messages: list[tuple[str, str]], show=None) -> str:
        """Returns the model's next turn of its one conversation, of which it reads what is new."""
        ids = encode_prompt(messages, self.tokenizer)
        self._talk = self._talk or Conversation(self.model, self.params)
        return self.write([ids], lambda row: decode_answer(row, self.tokenizer), show, self._talk)[
            0
        ]

    def fit_context(self, messages: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Returns the newest turns that leave room for an answer.

        The system's message, if there is one, is always among them.
        """
        room = self.model.config.max_len - min(self.max_new, self.model.config.max_len // 4)
        first = 1 if messages[0][0] == SYSTEM else 0
        while len(messages) > 1 + first:
            if len(encode_prompt(messages, self.tokenizer)) <= room:
                break
            messages = [*messages[:first], *messages[first + 2 :]]
        return messages

    def describe_limits(self) -> str:
        """Returns what a model of this size can and cannot do, in one paragraph."""
        context = self.model.config.max_len
        return _LIMITS.format(parameters=f'{self.parameters:,}', context=context)


def chat(writer: Writer, system: str = '') -> None:
    """Talks with the person at stdin until an empty line or its end.

    `system`: a message that the model has before the first turn.
    """
    messages = _system_turn(system)
    with LineReader('chat') as reader:
        if reader.is_terminal:
            print(writer.describe_limits())
        while line := reader.read().strip():
            if fault := no_text(line):
                print(
                    f'(found {fault}, expected text in UTF-8: this turn is passed over)', flush=True
                )
                continue
            fitting = writer.fit_context([*messages, ('user', line)])
            if len(fitting) <= len(messages):
                print('(the context is full: the oldest turns are forgotten)')
            answer = writer.reply(fitting, _show)
            print()
            messages = [*fitting, ('assistant', answer or ' ')]


def _system_turn(system: str) -> list[tuple[str, str]]:
    return [(SYSTEM, system)] if system else []


def _show(text: str) -> None:
    """Prints a piece of text as it comes."""
    print(printable(text), end='', flush=True)


def _check_flags() -> None:
    """Raises RunError where flags do not fit each other."""
    f = flags.FLAGS
    if bool(f.prompt) == f.chat:
        raise RunError('expected --prompt, or --chat without it')
    if any(not p.strip() for p in f.prompt):
        raise RunError('--prompt is empty: expected text')
    if f.system and not (f.answer or f.chat):
        raise RunError('--system has no effect: it needs --answer or --chat')
    if f['system'].present and not f.system.strip():
        raise RunError('--system is empty: expected text')
    if not all(f.stop):
        raise RunError('--stop is empty: expected text')


def main() -> None:
    """Continues the prompts, answers them, or chats, as the flags say."""
    f = flags.FLAGS
    _check_flags()
    answers = f.answer or f.chat
    temperature = f.temperature
    if temperature is None:
        temperature = 0.0 if answers else 0.8
    sampling = Sampling(temperature, f.top_k, f.top_p, f.min_p, f.repetition_penalty)
    sampling.check()
    writer = Writer(Run.parse(f.run), sampling, f.max_new, f.seed, f.stop, f.weights)
    if f.system and system_note(writer.tokenizer):
        print(f'warning: --system: {system_note(writer.tokenizer)}', file=sys.stderr)
    if f.chat:
        chat(writer, f.system)
        return
    stream = len(f.prompt) == 1 and (sys.stdout.isatty() if f.stream is None else f.stream)
    show = _show if stream else None
    if answers:
        texts = writer.answer([[*_system_turn(f.system), ('user', p)] for p in f.prompt], show)
    else:
        prompts = [line_ends(prompt) for prompt in f.prompt]
        if stream:
            _show(prompts[0])
        texts = [p + text for p, text in zip(prompts, writer.continue_text(f.prompt, show))]
    print('' if stream else '\n\n'.join(printable(text) for text in texts))


if __name__ == '__main__':
    cli.run(main)
