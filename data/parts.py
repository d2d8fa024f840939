"""Where a long text may be cut so that its parts have the tokens of the whole.

That is possible where a model merges neighbours (BPE) or takes each character by itself, and no
piece lies on both sides of a cut. It is not for unigram models: SentencePiece adds up the scores of
a path in float32 from the beginning of a text, and what is far from there is rounded otherwise.
"""

import re
from collections.abc import Iterable, Iterator

_PART = 1000  # characters of a part at least: short ones are also merged faster

# Before the end of a line, and before spaces.
_PLACE = re.compile('(?<=[^ ]) |\n')
_ACROSS = re.compile('[^\u2581]\u2581|.\n|\n.| ', re.DOTALL)  # of a piece that lies on both sides

# Numbers of fields in SentencePiece's sentencepiece_model.proto, and of model types there.
_TRAINER, _NORMALIZER = 2, 3
_MODEL_TYPE, _SPACE_IS_SUFFIX = 3, 24
_CHARACTERS_MAP, _DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5
_UNIGRAM, _BPE, _WORD, _CHAR = 1, 2, 3, 4
_PIECE, _TYPE = 1, 3
_KINDS = {_UNIGRAM: 'unigram', _BPE: 'bpe', _WORD: 'word', _CHAR: 'char'}
# Types of pieces, the same in SentencePiece's models and in GGUF.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)


def cut(text: str) -> list[str]:
    """Returns the parts of a text, in order; each begins with a space, a line end, or the text."""
    if len(text) <= 2 * _PART:
        return [text]
    places = [0]
    while place := _PLACE.search(text, places[-1] + _PART):
        places.append(place.start())
    return [text[begin:end] for begin, end in zip(places, [*places[1:], len(text)])]


def may_cut(proto: bytes, pieces: Iterable[str]) -> bool:
    """Returns whether the tokens of `cut`'s parts are those of the whole, whatever the text.

    Args:
      proto: a serialised SentencePiece model.
      pieces: all of its pieces.
    """
    message = dict(_fields(proto))
    trainer = dict(_fields(message.get(_TRAINER, b'')))
    normalizer = dict(_fields(message.get(_NORMALIZER, b'')))
    merges = trainer.get(_MODEL_TYPE) in (_BPE, _CHAR) and not trainer.get(_SPACE_IS_SUFFIX, 0)

    # What a normalizer does at the beginning of a text it would do in each part.
    takes_text_as_it_is = (
        not normalizer.get(_CHARACTERS_MAP, b'')
        and not normalizer.get(_DUMMY_PREFIX, 1)
        and not normalizer.get(_REMOVE_SPACES, 1)
        and bool(normalizer.get(_ESCAPE_SPACES, 1))
    )
    return merges and takes_text_as_it_is and not any(map(_ACROSS.search, pieces))


def kind(proto: bytes) -> str:
    """Returns what a serialised SentencePiece model is: 'unigram', 'bpe', 'word' or 'char'."""
    trainer = dict(_fields(dict(_fields(proto)).get(_TRAINER, b'')))
    return _KINDS.get(trainer.get(_MODEL_TYPE, _UNIGRAM), '')


def types(proto: bytes) -> list[int]:
    """Returns the type of each piece of a serialised SentencePiece model."""
    pieces = [value for number, value in _fields(proto) if number == _PIECE]
    return [dict(_fields(piece)).get(_TYPE, NORMAL) for piece in pieces]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields (number, value) of the fields of a protobuf message; nested ones are bytes."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            size, at = _read_varint(message, at)
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Returns the number that begins at a byte, and where the next thing begins."""
    value = 0
    shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at
