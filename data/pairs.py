"""Texts as an embedding model reads them, queries and documents alike."""
from data.tokenizer import Tokenizer


def encode_texts(texts: list[str], tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """Texts -> token ids: a begin mark, the text after a space, as words are in running text (see data/chat.py), and an end mark, which
    stands there also where a text is cut to `longest` tokens in all."""
    ids = tokenizer.encode_batch([' ' + text for text in texts])
    return [[tokenizer.bos, *row[:longest - 2], tokenizer.eos] for row in ids]
