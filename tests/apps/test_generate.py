"""The generation app on a tiny run."""

import copy
import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from apps import generate as app, lines
from data import fast_tokenizer
from data.chat import encode_messages
from data.pairs import read as read_pairs
from model.sampling import Sampling
from runtime import models
from runtime.run_dir import Run
from tests import commands
from train import evaluate


@pytest.fixture(scope='module')
def writer(tiny_run):
    """Returns the function (stop, sampling) -> writer of the run's model, which is loaded once."""
    loaded = models.load(Run.parse(str(tiny_run)))

    def make(stop=(), **sampling):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app.models, 'load', lambda run: loaded)
            one = app.Writer(Run.parse(str(tiny_run)), Sampling(**sampling), 16, 5, stop)
        one.tokenizer = copy.copy(one.tokenizer)
        return one

    return make


PROMPTS = ['A capital', 'The currency of Brazil is']


def test_streaming_gives_the_same_text_in_pieces(writer):
    """Catches lost or repeated pieces, and half a character shown."""
    shown = []
    streamed = writer().continue_text(PROMPTS[:1], shown.append)
    assert ''.join(shown) == streamed[0] and len(shown) > 2
    both = writer().continue_text(PROMPTS)
    assert both[0] == streamed[0] and len(both) == 2


@pytest.mark.parametrize('lost', [0, 1])
def test_streaming_bytes_shows_whole_characters(writer, monkeypatch, lost):
    """Catches half a character of a byte-level piece that is shown as U+FFFD, one that is shown
    late, and what was shown not being the text of all tokens (a last character may be cut off)."""
    pytest.importorskip('tokenizers', reason='a tokenizer.json needs the extra `hf`')
    one = writer()
    one.tokenizer = fast_tokenizer.train_byte_bpe(['um dois'], 266)
    text = 'São 日本 \ufffd 👨\u200d👩 é'
    ids = one.tokenizer.encode(text)
    ids = ids[: len(ids) - lost]
    shown = []

    def generate(model, params, prompts, max_new, sampling, seed, stop):
        for count in range(len(ids) + 1):
            stop.watch([ids[:count]])
            seen = ''.join(shown)
            assert text.startswith(seen) and seen == one.tokenizer.decode(ids[:count]).rstrip(
                '\ufffd'
            )
        return [ids]

    monkeypatch.setattr(app, 'generate', generate)
    assert one.continue_text(['um'], shown.append) == [one.tokenizer.decode(ids)]
    assert ''.join(shown) == one.tokenizer.decode(ids) == text[: len(text) - lost] + '\ufffd' * lost


def test_a_text_that_ends_with_the_context_says_so(writer, monkeypatch):
    """Catches a text that is shorter than asked without a word, and a word where it is not."""
    told = []
    monkeypatch.setattr(app._LOG, 'warning', lambda text, *values: told.append(text % values))
    one = writer(repetition_penalty=5.0)
    one.tokenizer.ends = ()  # nothing else ends it
    ids = [[one.tokenizer.bos] * 20, [one.tokenizer.bos] * 33]
    generate = app.generate
    rows = []
    with monkeypatch.context() as patch:
        patch.setattr(app, 'generate', lambda *given: rows.extend(generate(*given)) or rows)
        one.write(ids, one.tokenizer.decode)
    assert told == [
        'the context of this model, 48 tokens, is full after 15 new ones: --max_new is 16'
    ]
    assert [len(row) for row in rows] == [16, 15]

    # As many as were asked for: in the middle of the context, and just up to its end.
    monkeypatch.setattr(app, 'generate', lambda *_: [rows[0], rows[0]])
    one.write([ids[0], [one.tokenizer.bos] * 32], one.tokenizer.decode)
    assert len(told) == 1


@pytest.mark.parametrize('stream', [False, True])
def test_stop_strings_are_left_out(writer, stream):
    """Catches a stop string, or a part of one, that is shown before it is recognised."""
    whole = writer().continue_text(PROMPTS)[0]
    stop = whole[7:10]
    shown = []
    one = writer(stop=(stop,))
    if stream:
        cut = one.continue_text(PROMPTS[:1], shown.append)[0]
    else:
        cut = one.continue_text(PROMPTS)[0]
    assert cut == whole[: whole.index(stop)] and (not stream or ''.join(shown) == cut)


def test_chat_keeps_the_conversation_and_forgets_the_oldest(writer, monkeypatch, capsys):
    """Catches a chat that overruns the context, and one that ends with a traceback."""
    one = writer(temperature=0.0)
    question = 'Qual é a capital'  # made so long that the context has no room for two
    while len(encode_messages([('user', question)], one.tokenizer)[0]) < 20:
        question += ' do Brasil'
    reply = one.reply
    asked = []

    def listen(messages, show):
        asked.append([text for _, text in messages])
        return reply(messages, show)

    monkeypatch.setattr(one, 'reply', listen)
    monkeypatch.setattr(sys, 'stdin', io.StringIO(f'{question}\n' * 2))
    app.chat(one)
    assert 'the oldest turns are forgotten' in capsys.readouterr().out
    assert asked == [[question], [question]]


def test_the_system_is_not_forgotten(writer, monkeypatch, capsys):
    """Catches a system's message that is dropped with the oldest turns, or that only the first
    turn has."""
    asked = []
    made = writer(temperature=0.0)
    monkeypatch.setattr(made, 'reply', lambda given, show: asked.append(given) or 'Brasília')
    monkeypatch.setattr(sys, 'stdin', io.StringIO('E a moeda?\n' * 6))
    app.chat(made, 'Be brief.')
    assert 'the oldest turns are forgotten' in capsys.readouterr().out
    assert len(asked) == 6 and all(given[0] == ('system', 'Be brief.') for given in asked)
    assert [role for role, _ in asked[-1][1:]] == ['user', 'assistant'] * (
        len(asked[-1]) // 2 - 1
    ) + ['user']


def test_a_turn_that_is_no_text_is_told(monkeypatch, capsys):
    """Catches a byte that is no UTF-8 and ends the chat, or gets into the conversation."""
    asked = []

    class Listening:
        fit_context = staticmethod(lambda messages: messages)

        @staticmethod
        def reply(messages, show):
            asked.append([text for _, text in messages])
            return 'sim'

    given = io.BytesIO('olá\n'.encode() + b'caf\xe9\na\0b\n' + 'é\n'.encode())
    stdin = io.TextIOWrapper(given, 'utf-8', errors='surrogateescape')
    monkeypatch.setattr(sys, 'stdin', stdin)
    app.chat(Listening())
    assert asked == [['olá'], ['olá', 'sim', 'é']]
    said = capsys.readouterr().out
    assert 'found byte 0xe9 at character 4, expected text in UTF-8' in said
    assert 'found a NUL at character 2' in said


def test_terminal_escapes_are_shown_harmlessly(monkeypatch, capsys):
    """Catches generated text that commands the terminal."""

    class Hostile:
        fit_context = staticmethod(lambda messages: messages)

        @staticmethod
        def reply(messages, show):
            show('a\x1b[2Jb\tç\n\x07日')
            return ''

    monkeypatch.setattr(sys, 'stdin', io.StringIO('why?\n'))
    app.chat(Hostile())
    assert capsys.readouterr().out == 'a\\x1b[2Jb\tç\n\\x07日\n'


def test_a_person_is_told_once_what_to_expect(writer, monkeypatch, capsys):
    """Catches a chat that lets a person expect what no model of this size can do, and one that
    says so to a program."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    one = writer(temperature=0.0)
    monkeypatch.setattr(one, 'reply', lambda messages, show: 'sim')
    monkeypatch.setattr(lines, 'readline', None)
    for stdin, times in ((Terminal('a\nb\n'), 1), (io.StringIO('a\nb\n'), 0)):
        monkeypatch.setattr(sys, 'stdin', stdin)
        app.chat(one)
        said = capsys.readouterr().out
        assert said.count(' parameters, a context of 48 tokens') == times
        assert said.count('> ') == 3 * times


def test_lines_of_prompts_end_as_those_of_texts(tiny_run, writer, monkeypatch):
    """Catches a CR in what a model is asked, which no text has that it was trained on."""
    one, given = writer(), []
    monkeypatch.setattr(one, 'write', lambda ids, *_: given.append(ids))
    experiment = SimpleNamespace(
        config=Run.parse(str(tiny_run)).config(), tokenizer=one.tokenizer, model=one.model
    )

    def sampled(model, params, prompts, *_, **__):
        given.append(prompts)
        return prompts

    monkeypatch.setattr(evaluate.generate, 'generate', sampled)
    for line_end in ('\n', '\r\n', '\r'):
        text = f'A capital{line_end}do Brasil'
        one.continue_text([text])
        one.answer([[('system', text), ('user', text), ('assistant', text), ('user', text)]])
        given.append(read_pairs.encode_texts([text], one.tokenizer, 99))
        experiment.config.sample.prompt = text
        evaluate.sample(experiment, {})
    assert len(given) == 12 and given[:4] == given[4:8] == given[8:]


@pytest.mark.parametrize(
    'args, message',
    [
        (['--prompt=x'], '--run is empty'),
        (['--run=nowhere', '--prompt=x'], 'nowhere: no such run directory'),
        (['--run=RUN'], 'expected --prompt, or --chat'),
        (['--run=RUN', '--prompt= '], '--prompt is empty'),
        (['--run=RUN', '--prompt=x', '--top_p=3'], 'top_p is 3.0: expected above 0'),
        (['--run=RUN', '--prompt=x', '--system=y'], '--system has no effect: it needs --answer'),
        (['--run=RUN@9', '--prompt=x'], 'has no checkpoint of step 9; it has 2'),
        (['--run=RUN', '--prompt=' + 'capital ' * 60], 'tokens, the context of this model 48'),
    ],
)
def test_mistakes(tiny_run, args, message):
    """Catches a traceback, or an exit code of 0, for a mistake."""
    done = commands.run_here('apps.generate', *(a.replace('RUN', str(tiny_run)) for a in args))
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, (
        done.stderr
    )


@pytest.mark.usefixtures('forks')
def test_a_half_written_run(tmp_path):
    """Catches weights looked for in a directory that is no run, and a process that says more than
    its mistake."""
    (tmp_path / 'checkpoints').mkdir()
    done = subprocess.run(
        [sys.executable, '-m', 'apps.generate', f'--run={tmp_path}', '--prompt=x'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and 'half-written one: it has no config.json' in done.stderr
    assert done.stderr.count('\n') == 1
