"""Texts that belong together, for embedding models: a query, what answers it, and what only looks as if it did.

`config.data.pairs.kind` is `given` (records of pairs: JSONL, parquet, TSV, or conversations, whose first question and its answer are a pair),
or names one or more ways to make pairs of the texts of any source (data/pairs/from_text.py), with commas between them.
"""

import dataclasses
import hashlib
import inspect
import json
import pathlib
from collections.abc import Iterable, Iterator

from data import chat, paths, sources, words
from data.pairs import from_text
from data.pairs.from_text import MADE
from data.records import BadRecord, DataError, Record, did_you_mean
from data.store import Parting, in_split
from data.text import READING, line_ends, normal_form
from data.tokenizer import Tokenizer

GIVEN = 'given'
KINDS = (GIVEN, *MADE)
TABLES = ('.tsv', '.tsv.gz', '.tsv.zst')
SUFFIXES = (*sources.OBJECTS, *TABLES)
_PASSAGE = 8  # words of a passage, at least: a question is as long
_LEAST = 3  # tokens: a begin mark, one of the text, an end mark


@dataclasses.dataclass(frozen=True)
class Pair:
    """A query, the texts that answer it (at least one) and texts that do not; `where` names its origin, `split` where it is kept."""

    where: str
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    split: str = 'train'

    def parts(self) -> list[str]:
        """The strings of the pair, in order."""
        return [self.query, *self.positives, *self.negatives]


def made(config) -> list[str]:
    """The ways to make pairs that `config.pairs.kind` names, each once; none where they are given."""
    kinds = list(dict.fromkeys(kind.strip() for kind in config.pairs.kind.split(',')))
    return [] if kinds == [GIVEN] else kinds


def check(config) -> None:
    """Raises DataError where a field of `config.pairs` (`config`: the `data` part of an experiment) has no valid value."""
    wanted, kinds = config.pairs, made(config)
    unknown = next((kind for kind in kinds if kind not in MADE), None)
    if unknown is not None:
        raise DataError(
            f'config.data.pairs.kind is {wanted.kind!r}: expected {GIVEN!r} alone, or one or more of {", ".join(MADE)}'
            + did_you_mean(unknown, [kind for kind in KINDS if kind != unknown])
        )
    if wanted.negatives < 0:
        raise DataError(f'config.data.pairs.negatives is {wanted.negatives}: expected at least 0')
    if (
        wanted.query_len
        and not _LEAST <= wanted.query_len <= config.seq_len
        or config.seq_len < _LEAST
    ):
        raise DataError(
            f'config.data.pairs.query_len is {wanted.query_len}: expected from {_LEAST} to config.data.seq_len ({config.seq_len}), '
            f'or 0, which means that'
        )
    if kinds:
        if wanted.words < _PASSAGE:
            raise DataError(
                f'config.data.pairs.words is {wanted.words}: expected at least {_PASSAGE}'
            )
        if wanted.negatives:
            raise DataError(
                f'config.data.pairs.negatives is {wanted.negatives}: expected 0: pairs that are made of texts have none'
            )
        return
    if config.source == 'pydoc' or config.source == 'atlas' and config.atlas.part != 'answers':
        raise DataError(
            f"config.data.pairs.kind is 'given', and config.data.source {config.source!r} gives texts: expected files of pairs, "
            f"config.data.atlas.part='answers', or a way to make pairs: {', '.join(MADE)}"
        )
    if config.split != 'documents':
        raise DataError(
            f"config.data.split is {config.split!r}: expected 'documents': given pairs have no end that could be held out"
        )


def read(config, parting: Parting | None = None) -> Iterator[Pair | BadRecord]:
    """All pairs that `config` (the `data` part of an experiment) names, always in the same order. Raises DataError as `check` does.

    Given pairs are held out by their query: all that answers it is known where it stands, and no query is in both splits. Pairs that are
    made of a text are held out with it, or made of its head and its held-out end apart (`split='tail'`).
    """
    check(config)
    if made(config):
        yield from _made(config, parting or Parting(config))
    else:
        yield from _given(config)


def _made(config, parting: Parting) -> Iterator[Pair | BadRecord]:
    for record in sources.read(config):
        if isinstance(record, BadRecord):
            yield record
            continue
        if record.text is None:
            raise DataError(
                f'{record.where}: a conversation; config.data.pairs.kind {config.pairs.kind!r} makes pairs of texts; expected {GIVEN!r}'
            )
        for split, part in parting.pieces(record):
            for query, positive in from_text.pairs(made(config), part.text, config.pairs.words):
                yield Pair(record.where, query, (positive,), split=split)


def _given(config) -> Iterator[Pair | BadRecord]:
    if config.source == 'files':
        found = (
            item
            for path in sources.find_files(config.files.paths, SUFFIXES)
            for item in read_file(path)
        )
    else:
        found = (_from_record(record) for record in sources.read(config))
    for item in found:
        yield (
            item
            if isinstance(item, BadRecord)
            else dataclasses.replace(item, split=in_split(normal(item.query), config))
        )


def passed_over(config) -> str:
    """As `sources.passed_over`, of the files that pairs are read from."""
    return sources.passed_over(config, sources.SUFFIXES if made(config) else SUFFIXES)


def fingerprint(config, reading: int = READING) -> dict:
    """What determines the pairs, as `sources.fingerprint` says of records."""
    if not made(config):
        return {'pairs': GIVEN, **sources.fingerprint(config, SUFFIXES, reading)}
    code = hashlib.sha256(inspect.getsource(from_text).encode()).hexdigest()
    return {
        'pairs': made(config),
        'words': config.pairs.words,
        'pairs_code': code,
        'word_rules': words.RULES,
        **sources.fingerprint(config, reading=reading),
    }


def normal(text: str) -> str:
    """Texts that are equal in this form are one text: only white space, or the normal form of their
    characters (NFC), tells them apart."""
    return ' '.join(normal_form('NFC', text).split())


def read_file(path: pathlib.Path) -> Iterator[Pair | BadRecord]:
    """The pairs of a file (one of SUFFIXES).

    JSONL and parquet: {"query", "positive", "negative"}, also called "anchor", "positives", "negatives"; a string, or a list of them where there
    are several; or conversations (data/chat.py). TSV: query, positive, and negatives, if any, between tabs.
    """
    return (
        sources.lines(path, _from_line)
        if sources.is_kind(path, TABLES)
        else sources.objects(path, _from_object)
    )


def _from_line(where: str, line: bytes) -> Pair | BadRecord:
    text = sources.decoded(where, line)
    if isinstance(text, BadRecord):
        return text
    cells = text.rstrip('\r\n').split('\t')
    if len(cells) < 2:
        return BadRecord(where, 'no tab: expected a query, a tab and what answers it')
    return _checked(where, cells[0], cells[1:2], [cell for cell in cells[2:] if cell.strip()])


def _from_object(where: str, found: dict) -> Pair | BadRecord:
    query = next((name for name in ('query', 'anchor') if found.get(name) is not None), None)
    if query:
        return _checked(
            where, found[query], *(_listed(found, name) for name in ('positive', 'negative'))
        )
    try:
        return _from_record(Record(where, messages=chat.parse_messages(found)))
    except DataError as error:
        return BadRecord(
            where,
            f'no "query" and "positive", and {error}' + did_you_mean('query', chat.fields(found)),
        )


def _listed(found: dict, name: str) -> list:
    """What stands in the fields `name` and its plural, as a list."""
    values = [found[key] for key in (name, f'{name}s') if found.get(key) is not None]
    return [text for value in values for text in (value if isinstance(value, list) else [value])]


def _from_record(record: Record | BadRecord) -> Pair | BadRecord:
    return record if isinstance(record, BadRecord) else _from_messages(record)


def _from_messages(record: Record) -> Pair | BadRecord:
    question, answer = chat.first_pair(record.messages)
    return _checked(record.where, question, [answer], [])


def _checked(where: str, query, positives: list, negatives: list) -> Pair | BadRecord:
    for name, texts in (('query', [query]), ('positive', positives), ('negative', negatives)):
        for text in texts:
            fault = sources.fault(text)
            if fault:
                return BadRecord(where, f'{name}: {fault}')
    if not positives:
        return BadRecord(where, 'no "positive": expected what answers the query')
    known = {normal(text) for text in positives}
    if any(normal(text) in known for text in negatives):
        return BadRecord(where, 'the same text is a positive and a negative')
    return Pair(
        where,
        line_ends(query),
        tuple(map(line_ends, positives)),
        tuple(map(line_ends, negatives)),
    )


def write_pairs(path: pathlib.Path, found: Iterable[Pair]) -> None:
    """Writes JSONL that `read_file` reads, whole or not at all. Raises DataError where there is something already."""
    begun = path.with_name(paths.begun(path.name))
    try:
        with open(begun, 'w', encoding='utf-8') as file:
            for pair in found:
                record = dict(query=pair.query, positives=pair.positives, negatives=pair.negatives)
                file.write(
                    json.dumps(
                        {name: value for name, value in record.items() if value}, ensure_ascii=False
                    )
                    + '\n'
                )
        if path.exists():
            raise DataError(f'{path}: is there already; nothing is written over it')
        begun.rename(path)
    finally:
        begun.unlink(missing_ok=True)


def encode_texts(texts: list[str], tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """Texts -> token ids: a begin mark, the text after a space, as words are in running text (see data/chat.py), and an end mark, which
    stands there also where a text is cut to `longest` tokens in all."""
    ids = tokenizer.encode_batch([' ' + line_ends(text) for text in texts])
    return [[tokenizer.bos, *row[: longest - 2], tokenizer.eos] for row in ids]
