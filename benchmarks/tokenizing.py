"""How fast does text become a token store, beside SentencePiece's own batch encoder?

    python -m benchmarks.tokenizing --text=BOOKS.jsonl.gz --kind=bpe --rounds=5
    python -m benchmarks.tokenizing --files=one --out=benchmarks/results/tokenizing.jsonl
    python -m benchmarks.tokenizing --quick

Contenders, of the same text and model: Ordem, which reads files, looks for equal documents,
tokenizes and writes the store; `sentencepiece`, `encode(texts, num_threads=...)` of texts that are
in memory already, whose tokens must be the same; `lines`, the same of all lines, which are more to
do in parallel (a unigram model rounds otherwise there, so tokens may differ).
"""

from absl import flags

from benchmarks import turns
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('text', '', 'Files of text (config.data.files.paths); none: made text', many=True)
    flags.DEFINE_enum('files', 'many', ['many', 'one'], 'A file for each document, or one for all')
    flags.DEFINE_enum('kind', 'unigram', ['unigram', 'bpe', 'char'], 'config.tokenizer.kind')
    options.whole('megabytes', 26, 'Text that is taken at most', 1, options.COUNT)
    options.whole('threads', 2, 'Threads of the batch encoder', 1, options.COUNT)
    options.whole('rounds', 5, 'Turns that count', 1, options.COUNT)
    options.path('out', '', 'A JSON line of each turn is appended to this file')
    options.path('serve', '', 'For itself: a folder of text and model, to be a contender')
    flags.DEFINE_string('contender', turns.ORDEM, 'For itself: which one')
    flags.DEFINE_bool('quick', False, 'The same work on little text, in a few seconds')
    cli.parse_flags()

import hashlib
import pathlib
import sys
import tempfile
import time

import numpy as np
import sentencepiece

from configs import base
from data import sources, tokenizer as tokenizers
from data.store import TokenStore
from runtime.errors import RunError

SENTENCEPIECE, LINES = 'sentencepiece', 'lines'  # contenders
_MODEL = 'tokenizer.model'
_TRAINED_ON = 2.0  # megabytes, for the model


def compare(
    text: str, files: str, kind: str, megabytes: float, threads: int, rounds: int
) -> list[dict]:
    """Returns a measurement of each contender and round: seconds, and megabytes a second.

    Args:
      text: as `config.data.files.paths`, '' for made text.
      files: 'many' or 'one'.
      kind: of the tokenizer.
      megabytes: of text, at most.
      threads: of SentencePiece's batch encoder; Ordem takes the cores that there are.
      rounds: turns of each contender.
    Raises:
      RunError: the store has other tokens than SentencePiece gives.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _write_texts(folder, text, files, megabytes * 1e6)
        config = base.get_config().tokenizer
        config.update(kind=kind, vocab_size=8192, train_megabytes=min(_TRAINED_ON, megabytes))
        if not text:
            config.vocab_size = 2048  # made text has few words
        model = tokenizers.train(_read_texts(folder), config)
        (folder / _MODEL).write_bytes(model.proto)

        command = [sys.executable, '-m', 'benchmarks.tokenizing', f'--serve={folder}']
        commands = {
            contender: [*command, f'--threads={threads}', f'--contender={contender}']
            for contender in (turns.ORDEM, SENTENCEPIECE, LINES)
        }
        lines = turns.take_turns(commands, rounds)

    tokens = {line['name']: line.pop('hash') for line in lines}
    if tokens[turns.ORDEM] != tokens[SENTENCEPIECE]:
        raise RunError('not the same work: the store has other tokens than SentencePiece gives')
    return lines


def _write_texts(folder: pathlib.Path, text: str, files: str, most: float) -> None:
    """Writes texts/*.txt, documents of at most `most` bytes in all but for the last one."""
    config = base.get_config().data
    if text:
        config.update(source='files', files=dict(paths=text))
    documents = []
    size = 0
    for record in sources.read(config):
        document = getattr(record, 'text', None)
        if document:
            documents.append(document)
            size += len(document.encode())
        if size >= most:
            break
    if files == 'one':
        documents = ['\n\n'.join(documents)]
    (folder / 'texts').mkdir()
    for number, document in enumerate(documents):
        (folder / 'texts' / f'{number:06}.txt').write_text(document)


def _read_texts(folder: pathlib.Path) -> list[str]:
    return [path.read_text() for path in sorted((folder / 'texts').iterdir())]


def serve(folder: pathlib.Path, contender: str, threads: int) -> None:
    """Tokenizes all of the text a turn, as one of the contenders."""
    texts = _read_texts(folder)
    size = sum(len(text.encode()) for text in texts)
    if contender == turns.ORDEM:
        measure = _build_store(folder)
    else:
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / _MODEL))
        if contender == LINES:
            texts = [line for text in texts for line in text.split('\n')]

        def measure():
            began = time.perf_counter()
            rows = model.encode(texts, num_threads=threads)
            return time.perf_counter() - began, rows

    def work():
        seconds, rows = measure()
        return dict(seconds=seconds, megabytes_per_second=size / 1e6 / seconds, hash=_hash(rows))

    turns.serve(work, megabytes=size / 1e6, documents=len(texts))


def _build_store(folder: pathlib.Path):
    """Returns a function that builds the store anew: -> (seconds, tokens of each document)."""
    tokenizer = tokenizers.load(folder / _MODEL)
    config = base.get_config().data

    # So little is held out that it is nothing, but equal documents are looked for as always.
    config.update(source='files', files=dict(paths=str(folder / 'texts')), validation=1e-12)

    def measure():
        with tempfile.TemporaryDirectory(dir=folder) as config.cache:
            began = time.perf_counter()
            store = TokenStore.open_or_build(config, tokenizer, progress=False)
            seconds = time.perf_counter() - began
            split = store.split('train')
            rows = [split.document(number)[1:-1] for number in range(len(split.lengths))]
        return seconds, rows

    return measure


def _hash(rows) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray(row, np.uint32).tobytes())
    return digest.hexdigest()


def main() -> None:
    f = flags.FLAGS
    if f.serve:
        return serve(pathlib.Path(f.serve), f.contender, f.threads)
    sizes = dict(text=f.text, files=f.files, kind=f.kind, megabytes=f.megabytes, threads=f.threads)
    rounds = f.rounds
    if f.quick:
        sizes |= dict(megabytes=0.2)
        rounds = 1
    lines = compare(**sizes, rounds=rounds)
    if f.out:
        sizes['text'] = ', '.join(pathlib.Path(path).name for path in f.text.split(','))
        turns.keep(f.out, lines, **sizes)
    print(turns.table(lines, SENTENCEPIECE))


if __name__ == '__main__':
    cli.run(main)
