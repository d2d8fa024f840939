"""Texts that belong together, for embedding models.

A pair is a query, what answers it, and what only looks as if it did. `config.data.pairs.kind` is
`given` (records of pairs: JSONL, parquet, TSV, or conversations, whose first question and its
answer are a pair), or names one or more ways to make pairs of the texts of any source
(data/pairs/from_text.py), with commas between them.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator

from data import chat, paths, sources, words
from data.pairs import from_text
from data.pairs.from_text import MAKERS
from data.records import BadRecord, DataError, Record, did_you_mean
from data.splits import Splitter, in_split
from data.text import READING, line_ends, normal_form
from data.tokenizer import Tokenizer

GIVEN = 'given'
KINDS = (GIVEN, *MAKERS)
TABLES = ('.tsv', '.tsv.gz', '.tsv.zst')
SUFFIXES = (*sources.OBJECTS, *TABLES)
_FEWEST_WORDS = 8  # of a passage: a question is as long
_FEWEST_TOKENS = 3  # of a row: a begin mark, one of the text, an end mark


@dataclasses.dataclass(frozen=True)
class Pair:
    """A query, the texts that answer it and texts that do not.

    Attributes:
      where: its origin, for messages.
      query: the text that asks.
      positives: what answers it, at least one.
      negatives: what does not.
      split: 'train' or 'validation'.
    """

    where: str
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    split: str = 'train'

    def parts(self) -> list[str]:
        """Returns the strings of the pair, in order."""
        return [self.query, *self.positives, *self.negatives]


def kinds_to_make(config) -> list[str]:
    """Returns the ways to make pairs that `config.pairs.kind` names; [] where pairs are given."""
    kinds = list(dict.fromkeys(kind.strip() for kind in config.pairs.kind.split(',')))
    return [] if kinds == [GIVEN] else kinds


def check(config) -> None:
    """Raises DataError where a field of `config.pairs` has no valid value.

    `config`: the `data` part of an experiment.
    """
    kinds = kinds_to_make(config)
    unknown = next((kind for kind in kinds if kind not in MAKERS), None)
    if unknown is not None:
        raise DataError(
            f'config.data.pairs.kind is {config.pairs.kind!r}: expected {GIVEN!r} alone, or one or '
            f'more of {", ".join(MAKERS)}'
            + did_you_mean(unknown, [kind for kind in KINDS if kind != unknown])
        )
    if config.pairs.negatives < 0:
        raise DataError(
            f'config.data.pairs.negatives is {config.pairs.negatives}: expected at least 0'
        )
    query_len = config.pairs.query_len
    fits = not query_len or _FEWEST_TOKENS <= query_len <= config.seq_len
    if not fits or config.seq_len < _FEWEST_TOKENS:
        raise DataError(
            f'config.data.pairs.query_len is {query_len}: expected from {_FEWEST_TOKENS} to '
            f'config.data.seq_len ({config.seq_len}), or 0, which means that'
        )
    if kinds:
        _check_made(config)
    else:
        _check_given(config)


def _check_made(config) -> None:
    if config.pairs.words < _FEWEST_WORDS:
        raise DataError(
            f'config.data.pairs.words is {config.pairs.words}: expected at least {_FEWEST_WORDS}'
        )
    if config.pairs.negatives:
        raise DataError(
            f'config.data.pairs.negatives is {config.pairs.negatives}: expected 0: pairs that are '
            'made of texts have none'
        )


def _check_given(config) -> None:
    texts_alone = config.source == 'atlas' and config.atlas.part != 'answers'
    if config.source == 'pydoc' or texts_alone:
        raise DataError(
            f"config.data.pairs.kind is 'given', and config.data.source {config.source!r} gives "
            "texts: expected files of pairs, config.data.atlas.part='answers', or a way to make "
            f'pairs: {", ".join(MAKERS)}'
        )
    if config.split != 'documents':
        raise DataError(
            f"config.data.split is {config.split!r}: expected 'documents': given pairs have no end "
            'that could be held out'
        )


def read(config, splitter: Splitter | None = None) -> Iterator[Pair | BadRecord]:
    """Yields all pairs that a config names, always in the same order.

    Given pairs are held out by their query: all that answers it is known where it stands, and no
    query is in both splits. Pairs that are made of a text are held out with it, or made of its head
    and its held-out end apart (`split='tail'`).

    Args:
      config: the `data` part of an experiment.
      splitter: says where texts go, and counts equal ones; a new one by default.
    Raises:
      DataError: as `check`.
    """
    check(config)
    if kinds_to_make(config):
        yield from _make(config, splitter or Splitter(config))
        return
    for item in _read_given(config):
        if isinstance(item, BadRecord):
            yield item
        else:
            yield dataclasses.replace(item, split=in_split(normal(item.query), config))


def _make(config, splitter: Splitter) -> Iterator[Pair | BadRecord]:
    kinds = kinds_to_make(config)
    for record in sources.read(config):
        if isinstance(record, BadRecord):
            yield record
            continue
        if record.text is None:
            raise DataError(
                f'{record.where}: a conversation; config.data.pairs.kind {config.pairs.kind!r} '
                f'makes pairs of texts; expected {GIVEN!r}'
            )
        for split, piece in splitter.pieces(record):
            for query, positive in from_text.make_pairs(kinds, piece.text, config.pairs.words):
                yield Pair(record.where, query, (positive,), split=split)


def _read_given(config) -> Iterator[Pair | BadRecord]:
    if config.source != 'files':
        yield from map(_from_record, sources.read(config))
        return
    for path in sources.find_files(config.files.paths, SUFFIXES):
        yield from read_file(path)


def passed_over(config) -> str:
    """Returns what was passed over of the files that pairs are read from, as `sources` does."""
    suffixes = sources.SUFFIXES if kinds_to_make(config) else SUFFIXES
    return sources.passed_over(config, suffixes)


def fingerprint(config, reading: int = READING) -> dict:
    """Returns what determines the pairs, as `sources.fingerprint` does for records."""
    kinds = kinds_to_make(config)
    if not kinds:
        return {'pairs': GIVEN, **sources.fingerprint(config, SUFFIXES, reading)}
    return {
        'pairs': kinds,
        'words': config.pairs.words,
        'pair_rules': from_text.RULES,
        'word_rules': words.RULES,
        **sources.fingerprint(config, reading=reading),
    }


def normal(text: str) -> str:
    """Returns the form in which equal texts are one text: NFC, and single spaces."""
    return ' '.join(normal_form('NFC', text).split())


def read_file(path: pathlib.Path) -> Iterator[Pair | BadRecord]:
    """Yields the pairs of a file (one of SUFFIXES).

    JSONL, parquet and Arrow: {"query", "positive", "negative"}, also called "anchor", "positives",
    "negatives"; a string, or a list of them where there are several; or conversations
    (data/chat.py). TSV: query, positive, and negatives, if any, between tabs.
    """
    if sources.is_kind(path, TABLES):
        return sources.lines(path, _from_line)
    return sources.objects(path, _from_object)


def _from_line(where: str, line: bytes) -> Pair | BadRecord:
    text = sources.decoded(where, line)
    if isinstance(text, BadRecord):
        return text
    cells = text.rstrip('\r\n').split('\t')
    if len(cells) < 2:
        return BadRecord(where, 'no tab: expected a query, a tab and what answers it')
    negatives = [cell for cell in cells[2:] if cell.strip()]
    return _checked(where, cells[0], [cells[1]], negatives)


def _from_object(where: str, fields: dict) -> Pair | BadRecord:
    query = next((name for name in ('query', 'anchor') if fields.get(name) is not None), None)
    if query:
        positives = _listed(fields, 'positive')
        negatives = _listed(fields, 'negative')
        return _checked(where, fields[query], positives, negatives)
    try:
        return _from_record(Record(where, messages=chat.parse_messages(fields)))
    except DataError as error:
        near = did_you_mean('query', chat.fields(fields))
        return BadRecord(where, f'no "query" and "positive", and {error}{near}')


def _listed(fields: dict, name: str) -> list:
    """Returns the values of the fields `name` and its plural, as one list."""
    texts = []
    for key in (name, f'{name}s'):
        value = fields.get(key)
        if isinstance(value, list):
            texts += value
        elif value is not None:
            texts.append(value)
    return texts


def _from_record(record: Record | BadRecord) -> Pair | BadRecord:
    if isinstance(record, BadRecord):
        return record
    question, answer = chat.first_pair(record.messages)
    return _checked(record.where, question, [answer], [])


def _checked(where: str, query, positives: list, negatives: list) -> Pair | BadRecord:
    """Returns a pair of what a record holds, or why it is none."""
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


def write_pairs(path: pathlib.Path, pairs: Iterable[Pair]) -> None:
    """Writes JSONL that `read_file` reads, whole or not at all.

    Raises DataError where there is something already.
    """
    unfinished = path.with_name(paths.begun(path.name))
    try:
        with open(unfinished, 'w', encoding='utf-8') as file:
            for pair in pairs:
                fields = dict(query=pair.query, positives=pair.positives, negatives=pair.negatives)
                present = {name: value for name, value in fields.items() if value}
                file.write(json.dumps(present, ensure_ascii=False) + '\n')
        if path.exists():
            raise DataError(f'{path}: is there already; nothing is written over it')
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def encode_texts(texts: list[str], tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """Returns the token ids of each text: a begin mark, the text, an end mark.

    The text is encoded after a space, as words are in running text (data/chat.py). The end mark is
    there also where a text is cut to `longest` tokens in all.
    """
    rows = tokenizer.encode_batch([' ' + line_ends(text) for text in texts])
    room = longest - len(tokenizer.begin) - 1
    return [[*tokenizer.begin, *ids[:room], tokenizer.eos] for ids in rows]
