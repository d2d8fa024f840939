"""Conversations in a tokenizer's own chat template: Jinja, as Hugging Face tokenizers carry it.

The template is rendered by a process of its own (`data/template_worker.py`): it is code that
somebody else wrote, and may neither reach this process nor use up its memory or time.
"""

import contextlib
import functools
import importlib.util
import json
import pathlib
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence

from data.records import DataError, printable
from data.text import line_ends

SECONDS = 10  # of processor time, for all that is rendered of one conversation
MEGABYTES = 512
# Ordem's own (`data/chat.py`), for other programs: with it a tokenizer reads as with none.
OWN = """{{ bos_token }}
{%- for message in messages %}
{%- set text = message['content'] | replace('\\r\\n', '\\n') | replace('\\r', '\\n') %}
{%- if message['role'] == 'assistant' %}{{ '<|assistant|> ' + text + '<|end|>' }}
{%- elif message['role'] == 'system' %}{{ '<|system|> ' + text }}
{%- elif message['role'] == 'user' %}{{ '<|user|> ' + text }}
{%- else %}{{ raise_exception('a role is none of system, user and assistant') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
_WORKER = pathlib.Path(__file__).with_name('template_worker.py')
_JOINTS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # characters that no text has
_PROBE = (('user', 'a'), ('assistant', 'b'))

# text -> (its ids, where each begins and ends in it), marks being marks or text.
Encode = Callable[[str], tuple[list[int], list[tuple[int, int]]]]


class Template:
    """A chat template, and the tokens of conversations in it.

    Args:
      source: in Jinja.
      names: what the template knows besides messages: `bos_token`, `eos_token`, ...
      special: pieces that stand for no text, by id.
      encode_marks: ids of a text in which these pieces are marks.
      encode_text: ids of a text in which they are text.
    """

    def __init__(
        self,
        source: str,
        names: dict[str, str],
        special: dict[int, str],
        encode_marks: Encode,
        encode_text: Encode,
    ):
        self.source = source
        self._names = names
        self._special = special
        self._encode_marks = encode_marks
        self._encode_text = encode_text
        longest_first = sorted((text for text in special.values() if text[1:]), key=len)[::-1]
        self._marks = re.compile('|'.join(map(re.escape, longest_first)) or '(?!)')
        self._renderer = _Renderer()

    def encode_prompt(self, messages) -> list[int]:
        """Returns the ids of messages, ready to be answered.

        Those that transformers gives, but for text of marks inside of a message: it stays text.

        Raises:
          DataError: the template refuses the messages, or fails.
        """
        turns, joint = self._protect(messages)
        (text,) = self._render([(turns, True)], dated=True)
        return self._encode(text, joint)[0]

    def encode_messages(self, messages) -> tuple[list[int], list[int]]:
        """Returns token ids, and for each 1 on answers and their end marks, else 0.

        An answer begins where the prompt for it ends, and reaches to the last mark of its turn.

        Raises:
          DataError: as `encode_prompt`, or the template writes a turn otherwise once others follow.
        """
        turns, joint = self._protect(messages)
        calls = [(turns, False)]
        for number, turn in enumerate(turns):
            if turn['role'] == 'assistant':
                calls += [(turns[:number], True), (turns[: number + 1], False)]
        whole, *ends = self._render(calls)

        # Where answers begin and end: what was written before one stays as it is.
        cuts = [0]
        for text in ends:
            if not whole.startswith(text) or len(text) < cuts[-1]:
                raise DataError(
                    'the chat template writes a turn otherwise once others follow: where answers '
                    'begin and end cannot be told'
                )
            cuts.append(len(text))
        ids, spans = self._encode(whole, joint)
        if any(begin < cut < end for cut in cuts for begin, end in spans):
            ids, spans = self._encode_parts(whole, cuts, joint)
        return ids, self._find_answers(ids, spans, cuts[1:])

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """The id that ends an answer, or () where the template tells none."""
        with contextlib.suppress(DataError):
            ids, answered = self.encode_messages(_PROBE)
            last = max((i for i, counts in enumerate(answered) if counts), default=0)
            if ids[last] in self._special:
                return (ids[last],)
        return ()

    def _find_answers(self, ids, spans, cuts: Sequence[int]) -> list[int]:
        """Returns for each id 1 on answers up to the last mark of their turns, else 0."""
        answered = [0] * len(ids)
        for begin, end in zip(cuts[::2], cuts[1::2]):
            inside = [i for i, (at, _) in enumerate(spans) if begin <= at < end]
            marks = [i for i in inside if ids[i] in self._special]
            for i in inside:
                answered[i] = int(not marks or i <= marks[-1])
        return answered

    def _protect(self, messages) -> tuple[list[dict], str]:
        """Returns messages for the template in which no content holds a mark, and what parts them.

        A character that is nowhere else (the joint, '' if none is needed) parts each mark.
        """
        turns = [{'role': role, 'content': line_ends(content)} for role, content in messages]
        if not any(self._marks.search(turn['content']) for turn in turns):
            return turns, ''
        texts = [self.source, *self._names.values(), *(turn['content'] for turn in turns)]
        joint = next((c for c in _JOINTS if not any(c in text for text in texts)), '')
        if not joint:
            raise DataError('a message holds every character from U+FDD0 to U+FDEF')
        for turn in turns:
            while self._marks.search(turn['content']):
                turn['content'] = self._marks.sub(
                    lambda match: match[0][0] + joint + match[0][1:], turn['content']
                )
        return turns, joint

    def _render(self, calls, dated: bool = False) -> list[str]:
        return self._renderer.render(
            self.source,
            [
                dict(messages=turns, add_generation_prompt=asks, dated=dated, **self._names)
                for turns, asks in calls
            ],
        )

    def _encode(self, text: str, joint: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns ids, and where each begins and ends in the text; joints are left out."""
        if not joint or joint not in text:
            return self._encode_marks(text)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        done = 0
        for token, (begin, end) in [*zip(*self._encode_marks(text)), (-1, (len(text), 0))]:
            if token >= 0 and token not in self._special:
                continue
            places = [i for i in range(done, begin) if text[i] != joint]
            of_text, where = self._encode_text(''.join(text[i] for i in places))
            ids += of_text
            places.append(begin)
            spans += [(places[a], places[b]) for a, b in where]
            if token >= 0:
                ids.append(token)
                spans.append((begin, end))
            done = end
        return ids, spans

    def _encode_parts(self, text: str, cuts, joint: str):
        """Returns what `_encode` does, of parts between cuts that are encoded by themselves."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for begin, end in zip(cuts, [*cuts[1:], len(text)]):
            of_part, where = self._encode(text[begin:end], joint)
            ids += of_part
            spans += [(begin + a, begin + b) for a, b in where]
        return ids, spans


class _Renderer:
    """The process that renders, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: subprocess.Popen | None = None

    def render(self, source: str, calls: list[dict]) -> list[str]:
        """Returns one text for each call of the template, which are its variables."""
        request = json.dumps({'template': source, 'calls': calls})
        with self._lock:
            answer, status = self._ask(request)
        if answer:
            reply = json.loads(answer)
            if 'texts' in reply:
                return reply['texts']
            reason = printable(reply['error'].split('\n')[0])[:200]
        elif status == -signal.SIGXCPU:
            reason = f'needs more than {SECONDS} seconds'
        else:
            reason = f'ended its process ({status})'
        raise DataError(f'the chat template fails: {reason}')

    def _ask(self, request: str) -> tuple[str, int | None]:
        """Returns the worker's answer, or '' and its exit status."""
        worker = self._worker or self._start()
        answer = ''
        assert worker.stdin and worker.stdout
        self._worker = None  # until it has answered: an answer that nobody read would be the next
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(request + '\n')
            worker.stdin.flush()
            answer = worker.stdout.readline()
        if answer.endswith('\n'):
            self._worker = worker
            return answer, None
        return '', worker.wait()

    def _start(self) -> subprocess.Popen:
        if importlib.util.find_spec('jinja2') is None:
            raise DataError('a chat template needs the extra `hf`: pip install -e .[hf]')
        worker = subprocess.Popen(
            [sys.executable, '-P', str(_WORKER), str(SECONDS), str(MEGABYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for who asks
            text=True,
            encoding='utf-8',
        )
        weakref.finalize(self, _end, worker)
        return worker


def _end(worker: subprocess.Popen) -> None:
    """Ends a worker that nobody asks any more."""
    assert worker.stdin and worker.stdout
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    worker.stdout.close()
    worker.wait()
