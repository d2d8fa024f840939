"""SentencePiece: training, and a tokenizer that gives every Unicode text back exactly."""

import functools
import hashlib
import heapq
import io
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
import sentencepiece

from data import parts, safe_read
from data.records import DataError

_LOG = logging.getLogger('ordem')

_SYSTEM = '<|system|>'
_SYSTEM_BEFORE = '<|reserved0|>'  # what the same id was called under rules 1
CONTROL = (
    '<|user|>',
    '<|assistant|>',
    '<|end|>',
    _SYSTEM,
    '<|reserved1|>',
    '<|reserved2|>',
    '<|reserved3|>',
)
KINDS = ('unigram', 'bpe', 'char')
RULES = (1, 2)  # of training; each gives what it always gave
_META = '\u2581'  # SentencePiece writes a space as this; one in the text is spelled in bytes
_OWN = re.compile('[\0\x1f\u2581\u2585]+')  # what its trainer uses itself or passes over
_LONGEST = 16000  # characters of a line that is not cut: at most 64,000 bytes
_PART = 2000  # characters of the parts of a line that is cut
_SENTENCE = 1 << 16  # bytes of a line that SentencePiece passes over
_NO_TEXT = 'no text to train a tokenizer on: nothing but white space and lines with \u2585'
_GLYPH = 64  # characters that are looked at for one where a line can be cut
_REGIONAL = ''.join(map(chr, range(0x1F1E6, 0x1F200)))  # letters of flags


class Tokenizer:
    """A SentencePiece model with the pieces that Ordem reserves.

    Args:
      proto: the serialised model.
      where: its origin, for messages.

    Attributes:
      pad, bos, eos, user, assistant, end: ids.
      system: an id, or None where the model has no piece for it.
      names_system: that piece was made for system messages; where it was not, a reserved one stands
        for it, which nothing was trained on before.
      vocab_size: the number of ids.
      hash: sha256 of the model, in hex.

    Raises:
      DataError: not a SentencePiece model, or one without byte fallback or the reserved pieces.
    """

    def __init__(self, proto: bytes, where: str = 'tokenizer'):
        self.proto = proto
        self.hash = hashlib.sha256(proto).hexdigest()
        try:
            if not proto:  # of which SentencePiece would say more, elsewhere
                raise RuntimeError
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=proto)
            self.vocab_size = self._sp.vocab_size()
        except (RuntimeError, UnicodeDecodeError):  # its message may quote bytes that are no text
            self.vocab_size = 0
        if not self.vocab_size:
            raise DataError(f'{where}: not a SentencePiece model')
        self._find_marks(where)

    def _find_marks(self, where: str) -> None:
        self.pad = self._sp.pad_id()
        self.bos = self._sp.bos_id()
        self.eos = self._sp.eos_id()
        self.user, self.assistant, self.end = (self._id(piece) for piece in CONTROL[:3])
        self.system = self._id(_SYSTEM)
        self.names_system = self.system is not None
        if not self.names_system:  # made under rules 1, or by others
            self.system = self._id(_SYSTEM_BEFORE)
        meta = [self._id(f'<0x{byte:02X}>') for byte in _META.encode()]

        needed = ('pad', 'bos', 'eos', 'user', 'assistant', 'end')
        missing = [name for name in needed if getattr(self, name) in (-1, None)]
        if missing or None in meta:
            raise DataError(
                f'{where}: lacks {", ".join(missing) or "byte fallback"}; train one with Ordem, '
                f'or with control symbols {" ".join(CONTROL)}, pad, bos and eos ids, and '
                'byte_fallback'
            )
        self._meta = np.asarray(meta, np.int32)

    def _id(self, piece: str) -> int | None:
        number = self._sp.piece_to_id(piece)
        known = 0 <= number < self.vocab_size and self._sp.id_to_piece(number) == piece
        return number if known else None

    @property
    def lacks_space(self) -> bool:
        """A space is spelled in the bytes of U+2581, and comes back as that."""
        return self._id(_META) is None

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text. Marks written in the text stay text."""
        return self.encode_batch([text], 1)[0]

    def encode_best(self, text: str, count: int) -> list[list[int]]:
        """Returns the ids of the likeliest ways to cut a text, at most `count`, likeliest first.

        Only a unigram model has several.
        """
        return self._sp.nbest_encode(text, nbest_size=count, out_type=int)

    def encode_batch(self, texts: list[str], threads: int = -1) -> list[list[int]]:
        """Returns the ids of many texts, found on `threads` threads (-1: all cores)."""
        return [ids.tolist() for ids in self.encode_arrays(texts, threads)]

    def encode_arrays(self, texts: list[str], threads: int = -1) -> list[np.ndarray]:
        """Returns the ids of many texts, each int32 [tokens], found on `threads` threads.

        -1 stands for all cores. Long texts are cut where that changes nothing (`data/parts.py`).
        """
        cut_texts = [self._cut(text) for text in texts]
        flat = [part for cut_text in cut_texts for part in cut_text if part is not None]
        encoded = iter(self._sp.encode(flat, num_threads=threads, return_type='numpy'))
        rows = []
        for cut_text in cut_texts:
            arrays = [self._meta if part is None else next(encoded) for part in cut_text]
            rows.append(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
        return rows

    def _cut(self, text: str) -> list[str | None]:
        """Returns the parts of a text that are encoded by themselves; None for each U+2581."""
        cut_text: list[str | None] = []
        for between in text.split(_META):
            cut_text += parts.cut(between) if self._may_cut else [between]
            cut_text.append(None)
        return cut_text[:-1]

    @functools.cached_property
    def _may_cut(self) -> bool:
        numbers = range(self.vocab_size)
        if any(map(self._sp.is_unused, numbers)):  # what it is taken apart into depends on the text
            return False
        try:
            return parts.may_cut(self.proto, map(self._sp.id_to_piece, numbers))
        except UnicodeDecodeError:  # a piece that is no text
            return False

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids.

        Special and chat pieces vanish, broken byte sequences become U+FFFD.
        """
        return self._sp.decode([int(i) for i in ids])

    def piece(self, token: int) -> str:
        """Returns the piece of an id, as SentencePiece writes it."""
        return self._sp.id_to_piece(int(token))


def load(path, field: str = '') -> Tokenizer:
    """Returns the tokenizer in a file.

    Args:
      path: local or gs://, an `etils.epath`.
      field: the field of the config that names it, for messages.
    Raises:
      DataError: there is none.
    """
    from etils import epath

    where = f'{field} is {path}' if field else str(path)
    try:
        return Tokenizer(bytes(safe_read.file(epath.Path(path), safe_read.MODEL)), where)
    except FileNotFoundError:
        raise DataError(f'{where}: no tokenizer there; expected a SentencePiece model') from None


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

    # A second time where spaces are too rare to have a piece, as in Chinese.
    try:
        tokenizer = Tokenizer(_train_model(lines, config))
        if config.rules > 1 and tokenizer.lacks_space:
            tokenizer = Tokenizer(_train_model(lines, config, _META))
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
        control[control.index(_SYSTEM)] = _SYSTEM_BEFORE
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
