"""Text from a trained model: continue prompts, ask questions, or chat.

python -m apps.generate --run=runs/atlas --prompt='A capital do Brasil'
python -m apps.generate --run=runs/answers --answer --prompt='Qual é a capital do Brasil?'
python -m apps.generate --run=runs/answers --chat --system='Answer in one word.'
"""

import logging
import sys

from absl import flags

from data.chat import SYSTEM, decode_answer, encode_messages, encode_prompt, system_note
from data.records import no_text, printable
from data.text import line_ends
from model.generate import generate
from model.sampling import Sampling
from runtime import checkpoint, cli, options
from runtime.errors import RunError
from runtime.run_dir import Run

_LOG = logging.getLogger('ordem')

_EVERY = 4  # tokens between two looks while streaming


def define_flags() -> None:
    options.path('run', '', 'Run directory, DIR or DIR@step')
    flags.DEFINE_multi_string(
        'prompt', [], 'Text to continue; give it again for more, they run as one batch'
    )
    flags.DEFINE_bool(
        'answer', False, 'Ask the prompts in the chat template instead of continuing them'
    )
    flags.DEFINE_bool('chat', False, 'Talk with the model: a line is a turn, an empty one ends')
    flags.DEFINE_string(
        'system', '', "What the model is told before --answer or --chat, as a system's message"
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


class Writer:
    """Generates with one model and one set of settings."""

    def __init__(
        self, run: Run, sampling: Sampling, max_new: int, seed: int, stop: tuple[str, ...] = ()
    ):
        self.model, self.params, self.tokenizer, self.config = checkpoint.load(run)
        self.sampling, self.max_new, self.seed, self.stop = sampling, max_new, seed, tuple(stop)

    def write(self, prompts: list[list[int]], decode, show=None) -> list[str]:
        """Continues each prompt. `show`: called with each new piece of the first row's text, which never ends inside a
        character or inside what may become a stop string."""
        shown = 0

        def watch(rows):
            nonlocal shown
            if show is not None:
                text = self._cut(decode(rows[0]))
                safe = max(
                    shown,
                    len(text.rstrip('\ufffd')) - max((len(s) - 1 for s in self.stop), default=0),
                )
                show(text[shown:safe])
                shown = safe
            return bool(self.stop) and all(self._cut(text) != text for text in map(decode, rows))

        end = (self.tokenizer.end, self.tokenizer.eos)
        rows = generate(
            self.model,
            self.params,
            prompts,
            self.max_new,
            self.sampling,
            self.seed,
            end,
            watch,
            _EVERY if show is not None else 32,
        )
        texts = [self._cut(decode(row)) for row in rows]
        if show is not None:
            show(texts[0][shown:])
        self._tell_if_full(prompts, rows)
        return texts

    def _tell_if_full(self, prompts: list[list[int]], rows: list[list[int]]) -> None:
        """Says so where a text ends because the context of the model does."""
        context = self.model.config.max_len
        full = [len(row) for p, row in zip(prompts, rows) if len(p) + len(row) >= context]
        if full and min(full) < self.max_new:
            _LOG.warning(
                'the context of this model, %d tokens, is full after %d new ones: --max_new is %d',
                context,
                min(full),
                self.max_new,
            )

    def _cut(self, text: str) -> str:
        """The text up to the first stop string."""
        return text[: min((text.find(s) for s in self.stop if s in text), default=len(text))]

    def continue_text(self, prompts: list[str], show=None) -> list[str]:
        """Prompts -> what the model writes after each."""
        ids = [[self.tokenizer.bos, *self.tokenizer.encode(line_ends(p))] for p in prompts]
        return self.write(ids, self.tokenizer.decode, show)

    def answer(self, conversations: list[list[tuple[str, str]]], show=None) -> list[str]:
        """Conversations that end with the user's turn -> the model's turn."""
        ids = [encode_prompt(c, self.tokenizer) for c in conversations]
        return self.write(ids, lambda row: decode_answer(row, self.tokenizer), show)

    def fitting(self, messages: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The system's message, if there is one, and the newest turns that leave room for an
        answer."""
        room = self.model.config.max_len - min(self.max_new, self.model.config.max_len // 4)
        first = messages[0][0] == SYSTEM
        while (
            len(messages) > 1 + first and len(encode_messages(messages, self.tokenizer)[0]) > room
        ):
            messages = [*messages[:first], *messages[first + 2 :]]
        return messages


def chat(writer: Writer, system: str = '') -> None:
    terminal, messages = sys.stdin.isatty(), _told(system)
    while True:
        if terminal:
            print('> ', end='', flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        if why := no_text(line):
            print(f'(found {why}, expected text in UTF-8: this turn is passed over)', flush=True)
            continue
        kept = writer.fitting([*messages, ('user', line)])
        if len(kept) <= len(messages):
            print('(the context is full: the oldest turns are forgotten)')
        said = writer.answer([kept], lambda text: print(printable(text), end='', flush=True))[0]
        print()
        messages = [*kept, ('assistant', said or ' ')]


def _told(system: str) -> list[tuple[str, str]]:
    return [(SYSTEM, system)] if system else []


def main() -> None:
    f = flags.FLAGS
    talks = f.answer or f.chat
    if bool(f.prompt) == f.chat:
        raise RunError('expected --prompt, or --chat without it')
    if any(not p.strip() for p in f.prompt):
        raise RunError('--prompt is empty: expected text')
    if f.system and not talks:
        raise RunError('--system has no effect: it needs --answer or --chat')
    if f['system'].present and not f.system.strip():
        raise RunError('--system is empty: expected text')
    if not all(f.stop):
        raise RunError('--stop is empty: expected text')
    temperature = f.temperature if f.temperature is not None else (0.0 if talks else 0.8)
    sampling = Sampling(temperature, f.top_k, f.top_p, f.min_p, f.repetition_penalty)
    sampling.check()
    writer = Writer(Run.parse(f.run), sampling, f.max_new, f.seed, f.stop)
    if f.system and system_note(writer.tokenizer):
        print(f'warning: --system: {system_note(writer.tokenizer)}', file=sys.stderr)
    if f.chat:
        chat(writer, f.system)
        return
    stream = len(f.prompt) == 1 and (sys.stdout.isatty() if f.stream is None else f.stream)
    show = (lambda text: print(printable(text), end='', flush=True)) if stream else None
    if stream and not talks:
        print(printable(line_ends(f.prompt[0])), end='', flush=True)
    texts = (
        writer.answer([[*_told(f.system), ('user', p)] for p in f.prompt], show)
        if talks
        else writer.continue_text(f.prompt, show)
    )
    if stream:
        print()
        return
    shown = [text if talks else line_ends(p) + text for p, text in zip(f.prompt, texts)]
    print('\n\n'.join(printable(text) for text in shown))


if __name__ == '__main__':
    define_flags()
    cli.run(main)
