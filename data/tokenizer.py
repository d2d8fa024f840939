"""SentencePiece: training, and a tokenizer that gives every Unicode text back exactly."""

import hashlib
import heapq
import io
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator

import sentencepiece

from data import safe_read
from data.records import DataError

_LOG = logging.getLogger('ordem')

_SYSTEM, _SYSTEM_BEFORE = '<|system|>', '<|reserved0|>'  # one id; what it was called under rules 1
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
_META = '\u2581'  # SentencePiece writes a space as this; a real one in the text is spelled in bytes instead
_OWN = re.compile(
    '[\0\x1f\u2581\u2585]+'
)  # what SentencePiece's trainer uses itself or passes over
_LONGEST = 16000  # characters of a line that is not cut: at most 64,000 bytes
_PART = 2000  # characters of the parts of a line that is cut
_SENTENCE = 1 << 16  # bytes of a line that SentencePiece passes over
_NO_TEXT = 'no text to train a tokenizer on: nothing but white space and lines with \u2585'
_GLYPH = 64  # characters that are looked at for one where a line can be cut
_REGIONAL = ''.join(map(chr, range(0x1F1E6, 0x1F200)))  # letters of flags


class Tokenizer:
    """A SentencePiece model with the pieces that Ordem reserves.

    `pad`, `bos`, `eos`, `user`, `assistant`, `end` are ids; so is `system`, or None where the model
    has no piece for it. `names_system`: that piece was made for system messages; where it was not,
    a reserved one stands for it, which nothing was trained on before.

    Args:
      proto: the serialised model.
      where: its origin, for messages.
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
        self.pad, self.bos, self.eos = self._sp.pad_id(), self._sp.bos_id(), self._sp.eos_id()
        self.user, self.assistant, self.end = (self._id(p) for p in CONTROL[:3])
        self.system, self.names_system = self._id(_SYSTEM), self._id(_SYSTEM) is not None
        if not self.names_system:  # made under rules 1, or by others
            self.system = self._id(_SYSTEM_BEFORE)
        self._meta = [self._id(f'<0x{byte:02X}>') for byte in _META.encode()]
        missing = [
            name
            for name in ('pad', 'bos', 'eos', 'user', 'assistant', 'end')
            if getattr(self, name) in (-1, None)
        ]
        if missing or None in self._meta:
            raise DataError(
                f'{where}: lacks {", ".join(missing) or "byte fallback"}; train one with Ordem, '
                f'or with control symbols {" ".join(CONTROL)}, pad, bos and eos ids, and byte_fallback'
            )

    def _id(self, piece: str) -> int | None:
        found = self._sp.piece_to_id(piece)
        return (
            found if 0 <= found < self.vocab_size and self._sp.id_to_piece(found) == piece else None
        )

    @property
    def lacks_space(self) -> bool:
        """Whether a space is spelled in the bytes of U+2581, and comes back as that."""
        return self._id(_META) is None

    def encode(self, text: str) -> list[int]:
        """Text -> ids. Marks written in the text stay text."""
        return self.encode_batch([text], 1)[0]

    def encode_batch(self, texts: list[str], threads: int = -1) -> list[list[int]]:
        """The same for many texts, on `threads` threads (-1: all cores)."""
        parts = [text.split(_META) for text in texts]
        ids = iter(self._sp.encode([p for split in parts for p in split], num_threads=threads))
        encoded = []
        for split in parts:
            joined = list(next(ids))
            for _ in split[1:]:
                joined += self._meta + list(next(ids))
            encoded.append(joined)
        return encoded

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; special and chat pieces vanish, broken byte sequences become U+FFFD."""
        return self._sp.decode([int(i) for i in ids])

    def piece(self, token: int) -> str:
        return self._sp.id_to_piece(int(token))


def load(path, field: str = '') -> Tokenizer:
    """The tokenizer in a file (local or gs://, an `etils.epath`), which a field of the config may have named. Raises DataError where there is none."""
    from etils import epath

    where = f'{field} is {path}' if field else str(path)
    try:
        return Tokenizer(bytes(safe_read.file(epath.Path(path), safe_read.MODEL)), where)
    except FileNotFoundError:
        raise DataError(f'{where}: no tokenizer there; expected a SentencePiece model') from None


def train(texts: Iterable[str], config) -> Tokenizer:
    """Trains on `texts` what `config` (the `tokenizer` part) asks for.

    The same texts give the same model, bit for bit. Where the texts have more than
    `config.train_megabytes`, an even sample over all of them is trained on (`sampled`).

    Raises DataError where the vocabulary is larger than the text supports, there is no text, or the
    kind or the rules are unknown.
    """
    # What is asked for is known.
    if config.kind not in KINDS:
        raise DataError(
            f'config.tokenizer.kind is {config.kind!r}: expected one of {", ".join(KINDS)}'
        )
    if config.rules not in RULES:
        raise DataError(
            f'config.tokenizer.rules is {config.rules!r}: expected 2, or 1 for what was made before'
        )

    # The text, within its limit.
    limit = int(config.train_megabytes * 1e6)
    if config.rules == 1:
        lines, left_out = list(_lines_before(texts, limit)), False
    else:
        lines, size = sampled(map(_lines, texts), limit)
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

    # Training; once more where spaces are too rare to have a piece, as in Chinese.
    try:
        found = Tokenizer(_trained(lines, config))
        if config.rules > 1 and found.lacks_space:
            found = Tokenizer(_trained(lines, config, _META))
    except RuntimeError as error:
        raise _refused(str(error), config, left_out) from None
    return found


def _trained(lines: list[str], config, needed: str = '') -> bytes:
    """The model that SentencePiece trains; `needed`: characters that get a piece, however rare.

    Raises RuntimeError as SentencePiece does."""
    model, settings = io.BytesIO(), _settings(config)
    settings['required_chars'] += needed
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **settings
    )
    return model.getvalue()


def _settings(config) -> dict:
    """What SentencePiece's trainer is told, texts and writer aside."""
    now = dict(allow_whitespace_only_pieces=True) if config.rules > 1 else {}
    names = {_SYSTEM: _SYSTEM_BEFORE} if config.rules == 1 else {}
    return dict(
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
        control_symbols=[names.get(piece, piece) for piece in CONTROL],
        user_defined_symbols=['\n'],
        max_sentence_length=_SENTENCE,
        minloglevel=3,
        # A constant: unigram adds up its counts in as many parts, and the sums depend on it.
        num_threads=16,
        **now,
    )


def _refused(said: str, config, left_out: bool) -> DataError:
    """What SentencePiece's message means for the user; `left_out`: some of the text was."""
    asked = f'config.tokenizer.vocab_size is {config.vocab_size}: '
    most, least = re.search(r'<= (\d+)', said), re.search(r'(\d+) vs (\d+)', said)
    if most and 'too high' in said:
        sample = (
            f'; that is the sample of {config.train_megabytes:g} MB that it is trained on '
            '(config.tokenizer.train_megabytes)'
        )
        return DataError(f'{asked}the text supports at most {most[1]}{sample if left_out else ""}')
    if least:
        return DataError(
            f'{asked}the special pieces, the 256 bytes and the characters of the text need at '
            f'least {least[2]}'
        )
    if 'insert_id' in said:  # not even the marks have room
        return DataError(
            f'{asked}the special pieces and the 256 bytes alone are {261 + len(CONTROL)}, and the '
            'characters of the text come on top'
        )
    if '!sentences_.empty()' in said:
        return DataError(f'{_NO_TEXT}; config.tokenizer.rules=2 cuts lines there')
    return DataError(f'the tokenizer could not be trained: {said.strip().splitlines()[-1]}')


def _lines_before(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The lines that are trained on under rules 1: the first ones, of long ones the beginning."""
    used = 0
    for text in texts:
        for line in text.split('\n'):
            if line.strip():
                used += len(line.encode())
                yield line.replace('\t', ' ').replace('\0', ' ')[:_LONGEST]
        if used > limit:
            return


def _lines(text: str) -> Iterator[str]:
    """The lines of a text: a newline is a piece of its own.

    They are cut where characters stand that the trainer cannot take (those stay bytes), and long
    ones at spaces.
    """
    for line in text.split('\n'):
        for part in _OWN.split(line):
            if part.strip():
                yield from _cut(part) if len(part) > _LONGEST else [part]


def _cut(line: str) -> Iterator[str]:
    """A line in parts of at most `_PART` characters, cut before spaces where there are any."""
    begin = 0
    while len(line) - begin > _PART:
        end = line.rfind(' ', begin + 1, begin + _PART + 1)
        if end < 0:
            near = range(begin + _PART, begin + _PART - _GLYPH, -1)
            whole = (at for at in near if not _inside(line, begin, at))
            end = next(whole, begin + _PART)
        yield line[begin:end]
        begin = end
    yield line[begin:]


def _inside(line: str, begin: int, at: int) -> bool:
    """Whether a cut before `line[at]` parts what a reader takes for one character.

    `begin`: where the part of the line begins that is cut.

    The common cases of Unicode's grapheme clusters (UAX 29): marks, joiners, emoji with their
    modifiers, flags, and the parts of Hangul and Indic syllables.
    """
    before, after = line[at - 1], line[at]
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


def sampled(texts: Iterable[Iterable[str]], limit: int) -> tuple[list[str], int]:
    """An even sample of the lines of texts, in their order: at most `limit` bytes, or one stretch.

    Stretches of neighbouring lines are drawn by a hash of their number, so that each part of the
    texts has its chance, wherever it stands; a stretch in which a text begins has twice the chance,
    for what is small beside large texts. Of less than `limit` all is kept. No more than `limit`
    bytes and a stretch are held at a time.

    Returns the lines, and the bytes of all lines that were read.
    """
    kept: list[tuple[int, int, int, str]] = []  # a heap: what was drawn highest comes first
    used, total, bound = 0, 0, 1 << 64
    for number, (size, begins, stretch) in enumerate(_stretches(texts, min(2048, limit // 512))):
        total += size
        drawn = hashlib.sha256(f'stretch {number}'.encode()).digest()[:8]
        place = int.from_bytes(drawn, 'big') >> begins
        if place >= bound:
            continue
        heapq.heappush(kept, (-place, number, size, stretch))
        used += size
        while used > limit and len(kept) > 1:
            highest, _, gone, _ = heapq.heappop(kept)
            bound, used = -highest, used - gone
    stretches = {number: stretch for _, number, _, stretch in kept}
    return [line for n in sorted(stretches) for line in stretches[n].split('\n')], total


def _stretches(texts: Iterable[Iterable[str]], least: int) -> Iterator[tuple[int, bool, str]]:
    """Neighbouring lines of at least so many bytes: (bytes, whether a text begins there, lines)."""
    size, begins, some = 0, False, []
    for lines in texts:
        begins = True
        for line in lines:
            size += len(line.encode())
            some.append(line)
            if size >= least:
                yield size, begins, '\n'.join(some)
                size, begins, some = 0, False, []
    if some:
        yield size, begins, '\n'.join(some)
