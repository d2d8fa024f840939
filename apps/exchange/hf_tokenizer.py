"""Tokenizers for folders of Hugging Face: any run's as a fast tokenizer, with its chat template."""

import json
import re
from collections.abc import Mapping

from data.fast_tokenizer import (
    CONFIG,
    FastTokenizer,
    added,
    adding,
    adding_before,
    bpe_file,
    splitting,
)
from data.parts import CONTROL, NORMAL, UNKNOWN
from data.pieces import META, SYSTEM, Tokenizer
from data.sentencepieces import SentencePieceTokenizer
from data.template import OWN

# Where BPE may cut a text, since no piece lies on both sides (`data/parts.py`).
_WORDS = r' *[^ \n]+| +|\n'


def files(tokenizer: Tokenizer, max_len: int, embeds: bool = False) -> dict[str, bytes]:
    """Returns the files of a folder of Hugging Face that are of a tokenizer, by name.

    They are read by transformers and by all that reads such folders, and back by Ordem.

    Args:
      embeds: whether a text is whole, and gets the mark at its end, too; names of marks in it are
        text then.
    """
    fast = as_fast(tokenizer)
    config = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'bos_token': fast.pieces[fast.bos],
        'eos_token': fast.pieces[fast.eos],
        'pad_token': fast.pieces[fast.pad],
        'clean_up_tokenization_spaces': False,
        'model_max_length': max_len,
    }
    template = chat_template(tokenizer)
    if template:
        config['chat_template'] = template
    proto = fast.proto
    if embeds:
        config['split_special_tokens'] = True
        around = adding({fast.pieces[i]: i for i in fast.begin}, {fast.pieces[fast.eos]: fast.eos})
        proto = json.dumps({**fast.content, 'post_processor': around}).encode()
    return {
        FastTokenizer.file_name: proto,
        CONFIG: (json.dumps(config, indent=1, ensure_ascii=False) + '\n').encode(),
    }


def chat_template(tokenizer: Tokenizer) -> str:
    """Returns the chat template of a tokenizer in Jinja: its own, Ordem's, or ''."""
    if tokenizer.template:
        return tokenizer.template.source
    if tokenizer.user is None or tokenizer.assistant is None or tokenizer.end is None:
        return ''
    if tokenizer.names_system or tokenizer.system is None:
        return OWN
    return OWN.replace(SYSTEM, tokenizer.piece(tokenizer.system))


def as_fast(tokenizer: Tokenizer) -> FastTokenizer:
    """Returns a tokenizer as a tokenizer.json with the same ids.

    A space is a space in its pieces, not U+2581, which is then spelled in bytes as Ordem spells it.
    """
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer
    assert isinstance(tokenizer, SentencePieceTokenizer)
    pieces = [piece.replace(META, ' ') for piece in tokenizer.pieces]
    marks = [i for i, kind in enumerate(tokenizer.types) if kind in (UNKNOWN, CONTROL)]
    if tokenizer.kind == 'unigram':
        content = _unigram(tokenizer, pieces, marks)
    else:
        content = _merging(tokenizer, pieces)
    bos = pieces[tokenizer.bos]
    content['added_tokens'] = [added(i, pieces[i], special=True) for i in marks]
    content['post_processor'] = adding_before(bos, tokenizer.bos)
    content['decoder'] = {
        'type': 'Sequence',
        'decoders': [{'type': 'ByteFallback'}, {'type': 'Fuse'}],
    }
    content['model']['byte_fallback'] = True
    content['model']['ordem'] = {
        'bos': bos,
        'eos': pieces[tokenizer.eos],
        'pad': pieces[tokenizer.pad],
        'begin': [bos],
        'ends': [pieces[i] for i in tokenizer.ends],
    }
    return FastTokenizer(json.dumps(content).encode())


def _merging(tokenizer: SentencePieceTokenizer, pieces: list[str]) -> dict:
    """Returns a tokenizer.json that merges as SentencePiece's BPE does, or not at all (char)."""
    normal = {
        piece: score
        for piece, score, kind in zip(pieces, tokenizer.scores, tokenizer.types)
        if kind == NORMAL
    }
    splits = [splitting(_WORDS)] if tokenizer.may_cut else []
    vocab = {piece: i for i, piece in enumerate(pieces)}
    content = bpe_file(vocab, merges_by_score(normal), splits)
    content['model']['unk_token'] = pieces[tokenizer.types.index(UNKNOWN)]
    return content


def _unigram(tokenizer: SentencePieceTokenizer, pieces: list[str], marks: list[int]) -> dict:
    """Returns a tokenizer.json of a unigram model.

    Its model would find marks and bytes by their names (`<0x41>`), which are no pieces of a text
    for SentencePiece: texts are cut inside of such a name, where no piece lies on both sides.
    """
    normal = [piece for piece, kind in zip(pieces, tokenizer.types) if kind == NORMAL]
    pairs = {piece[i : i + 2] for piece in normal for i in range(len(piece) - 1)}
    inside = ['(?<=<)(?=0x[0-9A-F]{2}>)']  # digits are pieces of their own
    for mark in (pieces[i] for i in marks):
        places = range(1, len(mark))
        place = next((i for i in places if mark[i - 1 : i + 1] not in pairs), 1)
        inside.append(f'(?<={re.escape(mark[:place])})(?={re.escape(mark[place:])})')
    content = bpe_file({}, [], [splitting('\n'), splitting('|'.join(inside))])
    content['model'] = {
        'type': 'Unigram',
        'unk_id': tokenizer.types.index(UNKNOWN),
        'vocab': [list(pair) for pair in zip(pieces, tokenizer.scores)],
    }
    return content


def merges_by_score(scores: Mapping[str, float]) -> list[list[str]]:
    """Returns the pairs of pieces that make a piece, those of the best score first."""
    merges: list[tuple[float, int, list[str]]] = []
    for piece, score in scores.items():
        for i in range(1, len(piece)):
            left = piece[:i]
            right = piece[i:]
            if left in scores and right in scores:
                merges.append((-score, len(merges), [left, right]))
    return [pair for *_, pair in sorted(merges)]
