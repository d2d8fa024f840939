"""Search in your own files by meaning, by words, or by both.

    python -m apps.search index --run=runs/atlas --index=runs/index notes/ papers/
    python -m apps.search query --index=runs/index "how are texts cut into chunks"
    python -m apps.search eval --index=runs/index --queries=queries.jsonl \\
        --qrels=qrels/test.tsv --out=run.trec

index: text, Markdown, source code, HTML, JSON lines (a record each, its id in `_id`) and PDF;
without PATH Python's own documentation, or what the index already holds. Run it again after
changes: only changed files are embedded. A further PATH is added, --remove takes one out.
query: without words it reads queries from stdin, one a line.
"""

from absl import flags

from apps.search import FUSIONS, MODES, WEIGHT
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('index', '', 'Folder of the index')
    options.path('run', '', 'Run directory, DIR or DIR@step. Default: the one that made the index')
    flags.DEFINE_bool(
        'progress', True, 'Show progress: a bar on a terminal, elsewhere a line now and then'
    )
    options.whole(
        'chunk',
        None,
        'index: tokens of a chunk at most. Default: 256, or what the run was trained with',
        32,
        2**24,
    )
    options.whole(
        'overlap',
        None,
        'index: tokens that a chunk shares with the one before. Default: an eighth of a chunk',
        0,
        2**24,
    )
    flags.DEFINE_string(
        'pooling',
        None,
        'index: mean, last, weighted, bag or bag+mean. Default: as the run was trained',
    )
    options.whole(
        'size',
        None,
        'index: leading dimensions of vectors that are kept. Default: all',
        1,
        2**20,
    )
    flags.DEFINE_string(
        'text_field', None, 'index: which field of a JSON record holds the text. Default: text'
    )
    flags.DEFINE_string(
        'language',
        None,
        'index: whose endings of words do not count (Snowball), or none. Default: english',
    )
    options.paths('remove', 'index: take out this file or folder; may be given again', there=False)
    flags.DEFINE_enum('mode', 'hybrid', MODES, 'query, eval: by meaning, by words (BM25), or both')
    options.number(
        'weight',
        WEIGHT,
        'query, eval: of meaning in --mode=hybrid; words have the rest of 1. Try some with eval',
        0,
        1,
    )
    flags.DEFINE_enum(
        'fusion',
        'scores',
        FUSIONS,
        'query, eval: what --mode=hybrid adds up, weighted scores or reciprocal ranks',
    )
    options.whole(
        'k',
        10,
        'query: results; in --mode=hybrid of the best 1,000 by meaning and by words',
        1,
        options.COUNT,
    )
    flags.DEFINE_bool('json', False, 'query, eval: one JSON object a line')
    options.paths(
        'path',
        "query: only files that match, or are in this folder, like 'docs/*.md' or docs; may be "
        'given again',
        many=True,
        there=False,
    )
    options.path('queries', '', 'eval: queries.jsonl of BEIR, {"_id", "text"} a line')
    options.path('qrels', '', 'eval: judgements of BEIR or TREC')
    options.path(
        'out',
        '',
        'eval: write a TREC run file here, and the judgements beside it as OUT.qrels; spaces of '
        'ids become %20',
    )
    cli.parse_flags()

import json
import logging
import os
import sys

from apps.lines import LineReader
from apps.search.store import Folder
from data.records import no_text, printable
from model.errors import did_you_mean
from runtime.errors import RunError
from runtime.run_dir import Run

_LOG = logging.getLogger('ordem')
COMMANDS = ('index', 'query', 'eval')


def index(folder: Folder, paths: list[str], progress: bool) -> None:
    """Brings the index up to date with what is under `paths`, and says what was done."""
    from apps.search.reader import Reader
    from apps.search.update import Update

    for path in paths:
        cli.check_path('PATH', path)
    cli.check_writable('--index', str(folder.path))
    f = flags.FLAGS
    made = (folder.manifest() or {}).get('made', {})
    run = Run.at(made['run'], made['step']) if made and not f.run else Run.parse(f.run)
    reader = Reader(
        run, f.pooling or made.get('pooling', ''), f.size or made.get('size', 0), folder.path, made
    )
    settings = {name: f[name].value for name in ('chunk', 'overlap', 'text_field', 'language')}
    update = Update(folder, reader, settings, progress)
    print(printable(update.run(paths, f.remove)))
    if update.refused:
        raise RunError(f'{update.refused[0]}: nothing of it could be indexed; the warnings say why')


def _engine(folder: Folder):
    from apps.search.engine import Engine

    f = flags.FLAGS
    return Engine(folder, f.run, f.weight, f.fusion)


def query(folder: Folder, words: list[str]) -> None:
    """Prints what answers the query in `words`, or each of those on stdin, one a line."""
    f = flags.FLAGS
    if words:
        text = ' '.join(words)
        if fault := no_text(text):
            raise RunError(f'the query: found {fault}, expected text in UTF-8')
        if not text.strip():
            raise RunError('the query is empty: expected words')
        engine = _engine(folder)
        if fault := _find_no_words(engine, text.strip(), f.mode):
            raise RunError(fault)
        _print_hits(text.strip(), engine.search(text.strip(), f.k, f.mode, f.path))
        return

    # Of several queries, one with a fault does not end the others.
    engine = _engine(folder)
    with LineReader('search') as reader:
        for line in iter(reader.read, ''):
            text = line.strip()
            if fault := no_text(line):
                message = f'the query: found {fault}, expected text in UTF-8'
                print(message, file=sys.stderr, flush=True)
            elif text and (fault := _find_no_words(engine, text, f.mode)):
                _LOG.warning('%s', printable(fault))
                _print_hits(text, [])
            elif text:
                _print_hits(text, engine.search(text, f.k, f.mode, f.path))


def _find_no_words(engine, text: str, mode: str) -> str:
    """Returns why a query cannot be looked up by words where it has to be, or ''."""
    if mode == 'semantic' or engine.has_words(text):
        return ''
    return f'the query {text!r:.90} has no word: expected letters or digits, or --mode=semantic'


def _print_hits(text: str, hits: list) -> None:
    from apps.search import show

    f = flags.FLAGS
    if f.json:
        print(show.as_json(text, f.mode, hits), flush=True)
    else:
        print(show.format_hits(hits, sys.stdout.isatty()), flush=True)


def evaluate(folder: Folder, progress: bool) -> None:
    """Measures the index with judged queries, and prints the measures."""
    from apps.search import judged

    f = flags.FLAGS
    if not (f.queries and f.qrels):
        raise RunError('eval expects --queries and --qrels')
    if f.out:
        _check_out(f.out)
    measures = judged.measure(_engine(folder), f.queries, f.qrels, f.mode, f.out, progress)
    if f.json:
        print(json.dumps(measures))
        return
    queries = measures.pop('queries')
    lacking = measures.pop('lacking')
    print(f'{queries} queries, {f.mode}; judged documents that are not indexed: {lacking}')
    for name, (mean, low, high) in measures.items():
        print(f'{name:8}{mean:.4f}  [{low:.4f}, {high:.4f}]')


def _check_out(out: str) -> None:
    """Raises RunError where the files of --out are there already, or cannot be written."""
    for path in (out, f'{out}.qrels'):
        cli.check_path('--out', path)
        if os.path.exists(path):
            which = '' if path == out else f'{path} '
            raise RunError(f'--out={out}: {which}is there already; nothing is written over it')
    if not os.path.isdir(os.path.dirname(out) or '.'):
        raise RunError(f'--out={out}: {os.path.dirname(out)} is no directory')
    cli.check_writable('--out', out)


def main(words: list[str]) -> None:
    f = flags.FLAGS
    command, *words = words or ['']
    if command not in COMMANDS:
        raise RunError(
            f'{command or "no command"}: {did_you_mean(command, COMMANDS)}; '
            f'python -m apps.search --help'
        )
    folder = Folder(f.index)
    if words and command == 'eval':
        raise RunError(f'{words[0]}: eval expects only flags')
    for name in ('weight', 'fusion'):
        if f[name].present and f.mode != 'hybrid':
            raise RunError(f'--{name}={f[name].value} has no effect: it needs --mode=hybrid')
    if f['weight'].present and f.fusion != 'scores':
        raise RunError(f'--weight={f.weight} has no effect: it needs --fusion=scores')
    if command == 'index':
        index(folder, words, f.progress)
    elif command == 'query':
        query(folder, words)
    else:
        evaluate(folder, f.progress)


if __name__ == '__main__':
    cli.run(main, words=True)
