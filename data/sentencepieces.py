"""A SentencePiece model as a tokenizer that gives every Unicode text back exactly."""

import functools
import hashlib
from collections.abc import Iterable

import numpy as np
import sentencepiece

from data import parts
from data.pieces import CONTROL, META, SYSTEM, Tokenizer
from data.records import DataError

SYSTEM_BEFORE = '<|reserved0|>'  # what the id of SYSTEM was called under rules 1


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with the pieces that Ordem reserves: any text comes back exactly.

    Args:
      proto: the serialised model.
      where: its origin, for messages.

    Raises:
      DataError: not a SentencePiece model, or one without byte fallback or the reserved pieces.
    """

    file_name = 'tokenizer.model'

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
        self.system = self._id(SYSTEM)
        self.names_system = self.system is not None
        if not self.names_system:  # made under rules 1, or by others
            self.system = self._id(SYSTEM_BEFORE)
        meta = [self._id(f'<0x{byte:02X}>') for byte in META.encode()]

        needed = ('pad', 'bos', 'eos', 'user', 'assistant', 'end')
        missing = [name for name in needed if getattr(self, name) in (-1, None)]
        if missing or None in meta:
            raise DataError(
                f'{where}: lacks {", ".join(missing) or "byte fallback"}; train one with Ordem, '
                f'or with control symbols {" ".join(CONTROL)}, pad, bos and eos ids, and '
                'byte_fallback'
            )
        assert self.end is not None  # as was seen
        self._meta = np.asarray(meta, np.int32)
        self.begin = (self.bos,)
        self.ends = (self.end, self.eos)

    def _id(self, piece: str) -> int | None:
        number = self._sp.piece_to_id(piece)
        known = 0 <= number < self.vocab_size and self._sp.id_to_piece(number) == piece
        return number if known else None

    @property
    def lacks_space(self) -> bool:
        """A space is spelled in the bytes of U+2581, and comes back as that."""
        return self._id(META) is None

    @functools.cached_property
    def kind(self) -> str:
        """What was trained: 'unigram', 'bpe' or 'char'."""
        return parts.kind(self.proto)

    @functools.cached_property
    def types(self) -> list[int]:
        """The type of each piece (`parts.NORMAL`, ...)."""
        return parts.types(self.proto)

    @functools.cached_property
    def pieces(self) -> list[str]:
        """All pieces in the order of their ids."""
        return [self._sp.id_to_piece(i) for i in range(self.vocab_size)]

    @functools.cached_property
    def scores(self) -> list[float]:
        """The score of each piece."""
        return [self._sp.get_score(i) for i in range(self.vocab_size)]

    def encode_best(self, text: str, count: int) -> list[list[int]]:
        """Returns the ids of the likeliest ways to cut a text, at most `count`, likeliest first.

        Only a unigram model has several.
        """
        return self._sp.nbest_encode(text, nbest_size=count, out_type=int)

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
        for between in text.split(META):
            cut_text += parts.cut(between) if self.may_cut else [between]
            cut_text.append(None)
        return cut_text[:-1]

    @functools.cached_property
    def may_cut(self) -> bool:
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
