"""The one interface of tokenizers, whatever file they are read from."""

import abc
from collections.abc import Iterable

import numpy as np

from data.template import Template

# Marks of a conversation, and room for others: pieces that no text encodes to.
SYSTEM = '<|system|>'
CONTROL = (
    '<|user|>',
    '<|assistant|>',
    '<|end|>',
    SYSTEM,
    '<|reserved1|>',
    '<|reserved2|>',
    '<|reserved3|>',
)
META = '\u2581'  # how pieces write a space


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Attributes:
      file_name: the file of a run directory that keeps it.
      proto: the content of that file.
      hash: sha256 of it, in hex.
      vocab_size: the number of ids.
      pad, bos, eos: ids; the end mark stands for one that the tokenizer lacks.
      begin: ids that stand before a text: that of `bos`, or none.
      ends: ids that end a generated text.
      user, assistant, end: ids of the marks of Ordem's own chat template, or None.
      system: that of system messages, or None.
      names_system: that piece was made for system messages; where it was not, a reserved one stands
        for it, which nothing was trained on before.
      template: the tokenizer's own chat template, which comes before the marks, or None.
    """

    file_name: str
    proto: bytes
    hash: str
    vocab_size: int
    pad: int
    bos: int
    eos: int
    begin: tuple[int, ...]
    ends: tuple[int, ...]
    user: int | None
    assistant: int | None
    end: int | None
    system: int | None
    names_system: bool
    template: Template | None = None

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text. Marks written in the text stay text."""
        return self.encode_batch([text], 1)[0]

    def encode_batch(self, texts: list[str], threads: int = -1) -> list[list[int]]:
        """Returns the ids of many texts, found on `threads` threads (-1: all cores)."""
        return [ids.tolist() for ids in self.encode_arrays(texts, threads)]

    @abc.abstractmethod
    def encode_arrays(self, texts: list[str], threads: int = -1) -> list[np.ndarray]:
        """Returns the ids of many texts, each int32 [tokens], found on `threads` threads.

        -1 stands for all cores.
        """

    @abc.abstractmethod
    def encode_best(self, text: str, count: int) -> list[list[int]]:
        """Returns the ids of the likeliest ways to cut a text, at most `count`, likeliest first.

        Only a unigram model has several.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids.

        Special and chat pieces vanish, broken byte sequences become U+FFFD.
        """

    @abc.abstractmethod
    def piece(self, token: int) -> str:
        """Returns the piece of an id: its text, with U+2581 for each space.

        Bytes that are no text by themselves are written `<0xE2>`.
        """
