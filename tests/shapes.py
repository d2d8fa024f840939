"""Embeds texts in few shapes, for tests whose subject is not how rows are laid out."""

from model import embed


def embed_in_few_shapes(patch, rows: int, columns: int) -> None:
    """Embeds so many texts at a time, all of one length: a few programs are compiled, not thirty.

    `patch`: a MonkeyPatch. Layouts as they are: tests/model/test_embed.py.
    """
    patch.setattr(embed, '_columns', lambda length: max(length, columns))
    patch.setattr(embed, '_TOKENS_A_PASS', rows * columns)
