"""What leaves as GGUF, run by llama.cpp: logits, greedy text, and its server.

Tier `reference`; llama.cpp is built when the extra `engines` is installed, minutes on 2 cores.
"""

import json
import pathlib
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from apps import generate as app
from apps.exchange import gguf_file
from apps.exchange.expressed import Expressed
from apps.export_model import export_gguf
from model.sampling import Sampling
from runtime.run_dir import Run
from tests.apps.exchange_cases import PLACES, TOKENS, build_case, open_in_llama_cpp
from tests.apps.test_gguf import SAID

pytestmark = pytest.mark.reference
pytest.importorskip('llama_cpp', reason='needs the extra `engines`')
openai = pytest.importorskip('openai', reason='needs the extra `engines`')

QUESTIONS = ('Qual é a capital do Brasil?', 'What is the currency of Brazil?')
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope='module')
def exported(tiny_run, tmp_path_factory):
    """Returns the file of a tiny run that has read questions in its chat template."""
    folder = tmp_path_factory.mktemp('gguf') / 'out'
    export_gguf(Run.parse(str(tiny_run)), folder)
    return folder / 'model.gguf'


@pytest.fixture(scope='module')
def writer(tiny_run):
    return app.Writer(Run.parse(str(tiny_run)), GREEDY, 16, 0)


def test_ids_and_logits(exported, writer):
    """Catches text that llama.cpp cuts otherwise, and a tensor, an angle or a norm that it reads as
    another: over a text longer than a few tokens, in Portuguese and English."""
    model = open_in_llama_cpp(exported)
    for text in QUESTIONS:
        ours = [*writer.tokenizer.begin, *writer.tokenizer.encode(text)]
        theirs = model.tokenize(text.encode(), add_bos=bool(writer.tokenizer.begin), special=False)
        assert theirs == ours
        model.reset()
        model.eval(ours)
        tokens = np.array([ours], np.int32)
        places = np.arange(len(ours), dtype=np.int32)[None]
        logits, _ = writer.model.apply({'params': writer.params}, tokens, places, places * 0 + 1)
        np.testing.assert_allclose(model.scores[: len(ours)], logits[0], atol=1e-4)


def test_a_conversation_in_its_template(exported, writer):
    """Catches a chat template, begin mark or end mark that is another one there: greedy answers are
    ours token by token, as far as the two best logits are not the same."""
    model = open_in_llama_cpp(exported)
    for question in QUESTIONS:
        answer = model.create_chat_completion(
            [{'role': 'user', 'content': question}], temperature=0.0, max_tokens=16
        )
        [ours] = writer.answer([[('user', question)]])
        assert answer['choices'][0]['message']['content'].strip() == ours.strip()


@pytest.mark.parametrize('case', SAID)
def test_each_class(case, tmp_path):
    """Catches a class whose tensors llama.cpp reads otherwise than they are written."""
    model, params, logits = build_case(case)
    path = tmp_path / 'model.gguf'
    gguf_file.write_file(path, Expressed.of(model, params), spm_fields(model.config.vocab_size))
    there = open_in_llama_cpp(path, 32)
    for row in range(len(TOKENS)):
        there.reset()
        there.eval([int(token) for token in TOKENS[row]])
        count = TOKENS.shape[1]
        assert (PLACES[row] == np.arange(count)).all()
        # GELU is a table of half precision there.
        allowed = 2e-3 if 'gelu' in model.config.activation else 1e-5
        np.testing.assert_allclose(there.scores[:count], logits[row], atol=allowed)


def spm_fields(size):
    """Returns a vocabulary of so many pieces, of which nothing is read here."""
    return {
        'tokenizer.ggml.model': 'llama',
        'tokenizer.ggml.tokens': ['<unk>', '<s>', '</s>', *(f'p{i}' for i in range(3, size))],
        'tokenizer.ggml.scores': [0.0] * size,
        'tokenizer.ggml.token_type': [2, 3, 3, *[1] * (size - 3)],
    }


@pytest.fixture(scope='module')
def server(exported, tmp_path_factory):
    """Returns the address of llama-cpp-python's own server with the exported model."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp('server') / 'log'
    command = [sys.executable, '-m', 'llama_cpp.server', '--model', str(exported)]
    command += ['--host', '127.0.0.1', '--port', str(port), '--n_ctx', '64', '--n_threads', '1']
    command += ['--flash_attn', 'false', '--type_k', '0', '--type_v', '0']
    with log.open('w') as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            wait_for(f'http://127.0.0.1:{port}/v1/models', process, log)
            yield f'http://127.0.0.1:{port}/v1'
        finally:
            process.terminate()


def wait_for(address: str, process: subprocess.Popen, log: pathlib.Path) -> None:
    """Returns once an address answers. Raises AssertionError where the process ends before."""
    while True:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address) as answer:
                assert json.load(answer)['data']
                return
        except OSError:
            continue


def test_a_client_of_openai_is_answered(server, writer):
    """Catches a model that only its own program can run: asked through the protocol that most
    programs speak, whole and in pieces, it says what it says here."""
    client = openai.OpenAI(base_url=server, api_key='none', max_retries=0)
    for question in QUESTIONS:
        messages = [{'role': 'user', 'content': question}]
        how = dict(model='any', messages=messages, temperature=0.0, max_tokens=16)
        how['extra_body'] = {'repeat_penalty': 1.0}  # 1.1 where the request says nothing
        whole = client.chat.completions.create(**how).choices[0].message.content
        pieces = client.chat.completions.create(**how, stream=True)
        streamed = ''.join(piece.choices[0].delta.content or '' for piece in pieces)
        [ours] = writer.answer([[('user', question)]])
        assert whole.strip() == ours.strip() == streamed.strip()
