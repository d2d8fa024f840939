"""The generation app on a tiny run."""

import io
import subprocess
import sys

import pytest

from apps import generate as app, lines
from data.pairs import read as read_pairs
from model.sampling import Sampling
from runtime.run_dir import Run
from train import evaluate, loop, setup


@pytest.fixture(scope='module')
def run(cache, tmp_path_factory):
    from configs import base

    c = base.get_config()
    c.data.update(seq_len=48, batch_size=8, cache=cache)
    c.data.atlas.update(countries=6, editions=4)
    c.tokenizer.update(kind='bpe', vocab_size=420)
    c.model.update(width=32, num_layers=1, num_heads=2, num_kv_heads=2)
    c.train.steps = 2
    c.optimizer.warmup = 1
    c.log.update(tensorboard=False, progress=False)
    c.eval.every = 0
    c.mesh.data = 1
    path = tmp_path_factory.mktemp('generate') / 'run'
    loop.train(setup.build_experiment(c, str(path)))
    return path


def writer(run, stop=(), **sampling):
    return app.Writer(Run.parse(str(run)), Sampling(**sampling), 16, 5, stop)


def test_streaming_gives_the_same_text_in_pieces(run):
    """Catches lost or repeated pieces, and half a character shown."""
    shown = []
    streamed = writer(run).continue_text(['A capital'], shown.append)
    assert (
        streamed == writer(run).continue_text(['A capital'])
        and ''.join(shown) == streamed[0]
        and len(shown) > 2
    )
    both = writer(run).continue_text(['A capital', 'The currency of Brazil is'])
    assert both[0] == streamed[0] and len(both) == 2


def test_a_text_that_ends_with_the_context_says_so(run, monkeypatch):
    """Catches a text that is shorter than asked without a word, and a word where it is not."""
    told = []
    monkeypatch.setattr(app._LOG, 'warning', lambda text, *values: told.append(text % values))
    one = writer(run, repetition_penalty=5.0)
    one.tokenizer.end = one.tokenizer.eos = one.tokenizer.pad  # nothing else ends it
    ids = [[one.tokenizer.bos] * 20, [one.tokenizer.bos] * 33]
    one.write(ids[:1], one.tokenizer.decode)
    assert not told
    one.write(ids, one.tokenizer.decode)
    assert told == [
        'the context of this model, 48 tokens, is full after 15 new ones: --max_new is 16'
    ]


@pytest.mark.parametrize('stream', [False, True])
def test_stop_strings_are_left_out(run, stream):
    """Catches a stop string, or a part of one, that is shown before it is recognised."""
    whole = writer(run).continue_text(['A capital'])[0]
    stop = whole[7:10]
    shown = []
    cut = writer(run, stop=(stop,)).continue_text(['A capital'], shown.append if stream else None)[
        0
    ]
    assert cut == whole[: whole.index(stop)] and (not stream or ''.join(shown) == cut)


def test_chat_keeps_the_conversation_and_forgets_the_oldest(run, monkeypatch, capsys):
    """Catches a chat that overruns the context, and one that ends with a traceback."""
    monkeypatch.setattr(
        sys,
        'stdin',
        io.StringIO('Qual é a capital do Brasil?\nE a moeda do Brasil?\nE o domínio?\n'),
    )
    app.chat(writer(run, temperature=0.0))
    assert 'the oldest turns are forgotten' in capsys.readouterr().out


def test_the_system_is_not_forgotten(run, monkeypatch, capsys):
    """Catches a system's message that is dropped with the oldest turns, or that only the first
    turn has."""
    asked = []
    made = writer(run, temperature=0.0)
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


def test_a_person_is_told_once_what_to_expect(run, monkeypatch, capsys):
    """Catches a chat that lets a person expect what no model of this size can do, and one that
    says so to a program."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    one = writer(run, temperature=0.0)
    monkeypatch.setattr(one, 'reply', lambda messages, show: 'sim')
    monkeypatch.setattr(lines, 'readline', None)
    for stdin, times in ((Terminal('a\nb\n'), 1), (io.StringIO('a\nb\n'), 0)):
        monkeypatch.setattr(sys, 'stdin', stdin)
        app.chat(one)
        said = capsys.readouterr().out
        assert said.count(' parameters, a context of 48 tokens') == times
        assert said.count('> ') == 3 * times


@pytest.mark.parametrize('end', ['\r\n', '\r'])
def test_lines_of_prompts_end_as_those_of_texts(run, monkeypatch, end):
    """Catches a CR in what a model is asked, which no text has that it was trained on."""
    one, given = writer(run), []
    monkeypatch.setattr(one, 'write', lambda ids, *_: given.append(ids))
    experiment = setup.build_experiment(Run.parse(str(run)).config(), str(run))

    def sampled(model, params, prompts, *_, **__):
        given.append(prompts)
        return prompts

    monkeypatch.setattr(evaluate.generate, 'generate', sampled)
    for line_end in ('\n', end):
        text = f'A capital{line_end}do Brasil'
        one.continue_text([text])
        one.answer([[('system', text), ('user', text), ('assistant', text), ('user', text)]])
        given.append(read_pairs.encode_texts([text], one.tokenizer, 99))
        experiment.config.sample.prompt = text
        evaluate.sample(experiment, {})
    assert len(given) == 8 and given[:4] == given[4:]


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
def test_mistakes(run, args, message):
    """Catches a traceback, or an exit code of 0, for a mistake."""
    done = subprocess.run(
        [sys.executable, '-m', 'apps.generate', *(a.replace('RUN', str(run)) for a in args)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, (
        done.stderr
    )


def test_a_half_written_run(run, tmp_path):
    """Catches weights looked for in a directory that is no run."""
    (tmp_path / 'checkpoints').mkdir()
    done = subprocess.run(
        [sys.executable, '-m', 'apps.generate', f'--run={tmp_path}', '--prompt=x'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and 'half-written one: it has no config.json' in done.stderr
