"""Tokenizers: reading one from its file, and training one on text."""

import hashlib
import heapq
import io
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

import sentencepiece

from data import safe_read
from data.fast_tokenizer import FastTokenizer, train_byte_bpe
from data.pieces import CONTROL, META, SYSTEM, Tokenizer
from data.records import DataError
from data.sentencepieces import SYSTEM_BEFORE, SentencePieceTokenizer

__all__ = ['FILES', 'Tokenizer', 'load', 'parse', 'train']

_LOG = logging.getLogger('ordem')

KINDS = ('unigram', 'bpe', 'char', 'byte_bpe')
# Files of a run directory, one of which it has.
FILES = (SentencePieceTokenizer.file_name, FastTokenizer.file_name)
RULES = (1, 2)  # of training; each gives what it always gave
_OWN = re.compile('[\0\x1f\u2581\u2585]+')  # what its trainer uses itself or passes over
_LONGEST = 16000  # characters of a line that is not cut: at most 64,000 bytes
_PART = 2000  # characters of the parts of a line that is cut
_SENTENCE = 1 << 16  # bytes of a line that SentencePiece passes over
_NO_TEXT = 'no text to train a tokenizer on: nothing but white space and lines with \u2585'
_GLYPH = 64  # characters that are looked at for one where a line can be cut
_REGIONAL = ''.join(map(chr, range(0x1F1E6, 0x1F200)))  # letters of flags


def load(path, field: str = '') -> Tokenizer:
    """Returns the tokenizer in a file.

    Args:
      path: local or gs://, of a SentencePiece model, a tokenizer.json, or a folder with one.
      field: the field of the config that names it, for messages.
    Raises:
      DataError: there is none.
    """
    from etils import epath

    where = f'{field} is {path}' if field else str(path)
    path = epath.Path(path)
    if path.is_dir():
        path /= next((name for name in reversed(FILES) if (path / name).exists()), FILES[0])

    def beside(name: str) -> bytes | None:
        try:
            return bytes(safe_read.file(path.with_name(name), safe_read.JSON))
        except FileNotFoundError:
            return None

    try:
        return parse(bytes(safe_read.file(path, safe_read.MODEL)), where, beside)
    except FileNotFoundError:
        raise DataError(
            f'{where}: no tokenizer there; expected a SentencePiece model or a tokenizer.json'
        ) from None


def parse(
    proto: bytes,
    where: str = 'tokenizer',
    beside: Callable[[str], bytes | None] = lambda name: None,
) -> Tokenizer:
    """Returns the tokenizer that a file holds.

    Args:
      proto: the content of the file.
      where: its origin, for messages.
      beside: reads a file that lies beside a tokenizer.json, or gives None.
    Raises:
      DataError: it is none.
    """
    if proto.lstrip(b'\xef\xbb\xbf').startswith(b'{'):
        return FastTokenizer(proto, where, beside)
    return SentencePieceTokenizer(proto, where)


def train(texts: Iterable[str], config) -> Tokenizer:
    """Returns a tokenizer that is trained on `texts`.

    The same texts give the same model, bit for bit. Where the texts have more than
    `config.train_megabytes`, an even sample over all of them is trained on (`sample_lines`).

    Args:
      texts: of the training split.
      config: the `tokenizer` part of an experiment.
    Raises:
      DataError: the vocabulary is larger than the text supports, there is no text, or the kind or
        the rules are unknown.
    """
    if config.kind not in KINDS:
        raise DataError(
            f'config.tokenizer.kind is {config.kind!r}: expected one of {", ".join(KINDS)}'
        )
    if config.rules not in RULES:
        raise DataError(
            f'config.tokenizer.rules is {config.rules!r}: expected 2, or 1 for what was made before'
        )

    # As much of the text as is trained on.
    limit = int(config.train_megabytes * 1e6)
    left_out = False
    if config.rules == 1:
        lines = list(_first_lines(texts, limit))
    else:
        lines, size = sample_lines(map(_lines, texts), limit)
        left_out = size > limit
    if not lines:
        raise DataError(_NO_TEXT)
    if left_out:
        _LOG.info(
            'the tokenizer is trained on %g MB, an even sample of %.1f MB of text '
            '(config.tokenizer.train_megabytes)',
            config.train_megabytes,
            size / 1e6,
        )

    if config.kind == 'byte_bpe':
        return train_byte_bpe(lines, config.vocab_size)

    # A second time where spaces are too rare to have a piece, as in Chinese.
    try:
        tokenizer = SentencePieceTokenizer(_train_model(lines, config))
        if config.rules > 1 and tokenizer.lacks_space:
            tokenizer = SentencePieceTokenizer(_train_model(lines, config, META))
    except RuntimeError as error:
        raise _explain(str(error), config, left_out) from None
    return tokenizer


def _train_model(lines: list[str], config, needed: str = '') -> bytes:
    """Returns the model that SentencePiece trains.

    `needed`: characters that get a piece, however rare. Raises RuntimeError as SentencePiece does.
    """
    model = io.BytesIO()
    settings = _settings(config)
    settings['required_chars'] += needed
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **settings
    )
    return model.getvalue()


def _settings(config) -> dict:
    """Returns the options of SentencePiece's trainer, but for texts and writer."""
    control = list(CONTROL)
    if config.rules == 1:
        control[control.index(SYSTEM)] = SYSTEM_BEFORE
    settings = dict(
        model_type=config.kind,
        vocab_size=config.vocab_size,
        hard_vocab_limit=config.kind != 'char',
        use_all_vocab=config.kind == 'char',
        byte_fallback=True,
        split_digits=True,
        required_chars='0123456789',
        character_coverage=0.9999 if config.kind != 'char' else 1.0,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        control_symbols=control,
        user_defined_symbols=['\n'],
        max_sentence_length=_SENTENCE,
        minloglevel=3,
        # A constant: unigram adds up its counts in as many parts, and the sums depend on it.
        num_threads=16,
    )
    if config.rules > 1:
        settings['allow_whitespace_only_pieces'] = True
    return settings


def _explain(message: str, config, left_out: bool) -> DataError:
    """Returns what SentencePiece's message means for the user; `left_out`: some of the text was."""
    asked = f'config.tokenizer.vocab_size is {config.vocab_size}: '
    most = re.search(r'<= (\d+)', message)
    least = re.search(r'(\d+) vs (\d+)', message)
    if most and 'too high' in message:
        sample = ''
        if left_out:
            sample = (
                f'; that is the sample of {config.train_megabytes:g} MB that it is trained on '
                '(config.tokenizer.train_megabytes)'
            )
        return DataError(f'{asked}the text supports at most {most[1]}{sample}')
    if least:
        return DataError(
            f'{asked}the special pieces, the 256 bytes and the characters of the text need at '
            f'least {least[2]}'
        )
    if 'insert_id' in message:  # not even the marks have room
        return DataError(
            f'{asked}the special pieces and the 256 bytes alone are {261 + len(CONTROL)}, and the '
            'characters of the text come on top'
        )
    if '!sentences_.empty()' in message:
        return DataError(f'{_NO_TEXT}; config.tokenizer.rules=2 cuts lines there')
    return DataError(f'the tokenizer could not be trained: {message.strip().splitlines()[-1]}')


def _first_lines(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yields the lines that are trained on under rules 1: the first ones, long ones cut."""
    used = 0
    for text in texts:
        for line in text.split('\n'):
            if line.strip():
                used += len(line.encode())
                yield line.replace('\t', ' ').replace('\0', ' ')[:_LONGEST]
        if used > limit:
            return


def _lines(text: str) -> Iterator[str]:
    """Yields the lines of a text; a newline is a piece of its own.

    They are cut where characters stand that the trainer cannot take (those stay bytes), and long
    ones at spaces.
    """
    for line in text.split('\n'):
        for part in _OWN.split(line):
            if part.strip():
                yield from _cut(part) if len(part) > _LONGEST else [part]


def _cut(line: str) -> Iterator[str]:
    """Yields a line in parts of at most `_PART` characters, cut before spaces if possible."""
    begin = 0
    while len(line) - begin > _PART:
        end = line.rfind(' ', begin + 1, begin + _PART + 1)
        if end < 0:
            near = range(begin + _PART, begin + _PART - _GLYPH, -1)
            whole = (at for at in near if not _inside_glyph(line, begin, at))
            end = next(whole, begin + _PART)
        yield line[begin:end]
        begin = end
    yield line[begin:]


def _inside_glyph(line: str, begin: int, at: int) -> bool:
    """Returns whether a cut before `line[at]` parts what a reader takes for one character.

    The common cases of Unicode's grapheme clusters (UAX 29): marks, joiners, emoji with their
    modifiers, flags, and the parts of Hangul and Indic syllables. `begin`: where the part of the
    line begins that is cut.
    """
    before = line[at - 1]
    after = line[at]
    if unicodedata.category(after)[0] == 'M' or after in '\u200c\u200d\u0e33\u0eb3\uff9e\uff9f':
        return True
    if before == '\u200d' or unicodedata.combining(before) == 9:  # a joiner, a virama
        return True
    if '\U0001f3fb' <= after <= '\U0001f3ff' or '\U000e0020' <= after <= '\U000e007f':
        return True
    if '\u1160' <= after <= '\u11ff' or '\ud7b0' <= after <= '\ud7fb':
        return True
    if '\u1100' <= before <= '\u115f' and '\uac00' <= after <= '\ud7a3':
        return True
    if '\U0001f1e6' <= after <= '\U0001f1ff':  # flags are pairs of these
        head = line[begin:at]
        return (len(head) - len(head.rstrip(_REGIONAL))) % 2 == 1
    return False


def sample_lines(texts: Iterable[Iterable[str]], limit: int) -> tuple[list[str], int]:
    """Returns an even sample of the lines of texts, and the bytes of all lines.

    The sample keeps their order, and has at most `limit` bytes, or one stretch. Stretches of
    neighbouring lines are drawn by a hash of their number, so that each part of the texts has its
    chance, wherever it stands; a stretch in which a text begins has twice the chance, for what is
    small beside large texts. Of less than `limit` all is kept. No more than `limit` bytes and a
    stretch are held at a time.
    """
    heap: list[tuple[int, int, int, str]] = []  # what was drawn highest comes first
    used = 0
    total = 0
    bound = 1 << 64
    for number, (size, begins, stretch) in enumerate(_stretches(texts, min(2048, limit // 512))):
        total += size
        digest = hashlib.sha256(f'stretch {number}'.encode()).digest()[:8]
        drawn = int.from_bytes(digest, 'big') >> begins
        if drawn >= bound:
            continue
        heapq.heappush(heap, (-drawn, number, size, stretch))
        used += size

        # Too much is held: what was drawn highest goes, and whatever is drawn higher from now on.
        while used > limit and len(heap) > 1:
            highest, _, gone, _ = heapq.heappop(heap)
            bound = -highest
            used -= gone
    stretches = sorted((number, stretch) for _, number, _, stretch in heap)
    return [line for _, stretch in stretches for line in stretch.split('\n')], total


def _stretches(texts: Iterable[Iterable[str]], least: int) -> Iterator[tuple[int, bool, str]]:
    """Yields (bytes, whether a text begins there, lines) of neighbouring lines.

    A stretch has `least` bytes or more, but for the last one.
    """
    size = 0
    begins = False
    stretch: list[str] = []
    for lines in texts:
        begins = True
        for line in lines:
            size += len(line.encode())
            stretch.append(line)
            if size >= least:
                yield size, begins, '\n'.join(stretch)
                size = 0
                begins = False
                stretch = []
    if stretch:
        yield size, begins, '\n'.join(stretch)
