"""SentencePiece: training, and a tokenizer that gives every Unicode text back exactly."""

import hashlib
import io
import re
from collections.abc import Iterable

import sentencepiece

from data import bounded
from data.records import DataError

CONTROL = (
    '<|user|>',
    '<|assistant|>',
    '<|end|>',
    '<|reserved0|>',
    '<|reserved1|>',
    '<|reserved2|>',
    '<|reserved3|>',
)
KINDS = ('unigram', 'bpe', 'char')
_META = '\u2581'  # SentencePiece writes a space as this; a real one in the text is spelled in bytes instead


class Tokenizer:
    """A SentencePiece model with the pieces that Ordem reserves.

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
        return Tokenizer(bytes(bounded.file(epath.Path(path), bounded.MODEL)), where)
    except FileNotFoundError:
        raise DataError(f'{where}: no tokenizer there; expected a SentencePiece model') from None


def train(texts: Iterable[str], config) -> Tokenizer:
    """Trains on `texts` what `config` (the `tokenizer` part) asks for; the same texts give the same model, bit for bit.

    Raises DataError where the vocabulary is larger than the text supports, or the kind is unknown.
    """
    if config.kind not in KINDS:
        raise DataError(
            f'config.tokenizer.kind is {config.kind!r}: expected one of {", ".join(KINDS)}'
        )
    model, limit = io.BytesIO(), int(config.train_megabytes * 1e6)
    raised: list[DataError] = []  # SentencePiece makes a RuntimeError of what its texts raise

    def told():
        try:
            yield from texts
        except DataError as error:
            raised.append(error)

    def sample():
        used = 0
        for text in told():
            for line in text.split('\n'):  # a newline is a piece of its own
                if line.strip():
                    used += len(line.encode())
                    yield line.replace('\t', ' ').replace('\0', ' ')[:16000]
            if used > limit:
                return

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample(),
            model_writer=model,
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
            control_symbols=list(CONTROL),
            user_defined_symbols=['\n'],
            max_sentence_length=1 << 16,
            minloglevel=3,
            num_threads=16,
        )  # a constant: unigram adds up its counts in as many parts, and the sums depend on it
    except RuntimeError as error:
        if raised:
            raise raised[0] from None
        text = str(error)
        most = re.search(r'<= (\d+)', text)
        if most and 'too high' in text:
            raise DataError(
                f'config.tokenizer.vocab_size is {config.vocab_size}: the text supports at most {most[1]}'
            ) from None
        least = re.search(r'(\d+) vs (\d+)', text)
        if least:
            raise DataError(
                f'config.tokenizer.vocab_size is {config.vocab_size}: the special pieces, the 256 bytes and the '
                f'characters of the text need at least {least[2]}'
            ) from None
        raise DataError(
            f'the tokenizer could not be trained: {text.strip().splitlines()[-1]}'
        ) from None
    if raised:
        raise raised[0]
    return Tokenizer(model.getvalue())
