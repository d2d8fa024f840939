"""Tokenizers of GGUF files: the lists that a file has, into a tokenizer and out of one.

Metadata are a dict of plain values by their names in the file (`tokenizer.ggml.tokens`, ...), as
`gguf.GGUFReader` gives them (`{name: field.contents()}`). What they mean is what llama.cpp does.
"""

import json
from collections.abc import Mapping
from typing import Any

from apps.exchange.hf_tokenizer import chat_template, merges_by_score
from data.fast_tokenizer import (
    LETTERS,
    TURN_ENDS,
    FastTokenizer,
    added,
    adding_before,
    bpe_file,
    splitting,
)
from data.parts import CONTROL, NORMAL, UNKNOWN, UNUSED, USER
from data.pieces import Tokenizer
from data.records import DataError
from data.sentencepieces import SentencePieceTokenizer

_KEY = 'tokenizer.ggml.'
TEMPLATE = 'tokenizer.chat_template'

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_BLOOM = r' ?[^(\s|.,!?…。，、।۔،)]+'
_DIGITS = {'type': 'Digits', 'individual_digits': True}
_GPT2 = {**LETTERS, 'use_regex': True}

# How a text is cut into words before it is cut into pieces, by the name that GGUF has for it.
_SPLITS: dict[str, list[dict]] = {
    'gpt-2': [_GPT2],
    'smollm': [_DIGITS, _GPT2],
    'qwen2': [splitting(_WORDS.replace('{%s}', '')), LETTERS],
    'llama-bpe': [splitting(_WORDS % '1,3'), LETTERS],
    'bloom': [splitting(_BLOOM), LETTERS],
}
_SAME = {
    'gpt-2': ('mpt', 'olmo', 'phi-2', 'gpt-neox'),
    'smollm': ('starcoder', 'refact', 'codeshell', 'command-r'),
    'llama-bpe': ('llama3', 'dbrx', 'smaug-bpe', 'llama-v3'),
    'bloom': ('poro-chat', 'gpt3-finnish'),
}
_NAMES = {**{name: name for name in _SPLITS}, **{n: k for k, all_ in _SAME.items() for n in all_}}


def from_gguf(metadata: Mapping[str, Any], where: str = 'tokenizer') -> FastTokenizer:
    """Returns the tokenizer of a GGUF file: byte-level BPE, or pieces of SentencePiece's BPE.

    Args:
      metadata: of the file.
      where: its origin, for messages.
    Raises:
      DataError: there is none, or one that cannot be read.
    """
    tokens = _get(metadata, 'tokens', list, where)
    types = metadata.get(f'{_KEY}token_type', [NORMAL] * len(tokens))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise DataError(
            f'{where}: {_KEY}tokens has {len(tokens)} pieces, {len(set(tokens))} of them unlike, '
            f'and {len(types)} types: expected as many of each'
        )
    model = _get(metadata, 'model', str, where)
    if model == 'gpt2':
        content = _byte_level(metadata, tokens, where)
    elif model == 'llama':
        content = _with_scores(metadata, tokens, types, where)
    else:
        raise DataError(f"{where}: {_KEY}model is {model!r}: expected 'gpt2' or 'llama'")
    content['added_tokens'] = [
        added(number, piece, special=kind != USER)
        for number, (piece, kind) in enumerate(zip(tokens, types))
        if kind in (UNKNOWN, CONTROL, USER)
    ]
    settings = _settings(metadata, tokens, model, where)
    content['model']['ordem'] = settings
    if settings['begin']:  # other programs put it there by this
        content['post_processor'] = adding_before(settings['bos'], tokens.index(settings['bos']))
    return FastTokenizer(json.dumps(content).encode(), where)


def _get(metadata: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value = metadata.get(_KEY + name)
    if not isinstance(value, kind):
        state = 'is missing' if value is None else f'is a {type(value).__name__}'
        raise DataError(f'{where}: {_KEY}{name} {state}: expected a {kind.__name__}')
    return value


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], where: str) -> dict:
    pre = metadata.get(f'{_KEY}pre', 'gpt-2')
    if pre not in _NAMES:
        raise DataError(f'{where}: {_KEY}pre is {pre!r}: expected one of {", ".join(_NAMES)}')
    name = _NAMES[pre]
    merges = _get(metadata, 'merges', list, where)
    content = bpe_file({piece: i for i, piece in enumerate(tokens)}, merges, _SPLITS[name])
    content['model']['ignore_merges'] = name == 'llama-bpe'
    return content


def _with_scores(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], where: str
) -> dict:
    """Returns a tokenizer.json that merges as SentencePiece's BPE does, the best score first."""
    scores = _get(metadata, 'scores', list, where)
    if len(scores) != len(tokens):
        raise DataError(f'{where}: {len(scores)} scores and {len(tokens)} pieces')
    unknown = metadata.get(f'{_KEY}unknown_token_id', 0)
    content = bpe_file({piece: i for i, piece in enumerate(tokens)}, [], [])
    content['model'] |= {
        'merges': merges_by_score(
            {p: s for p, s, kind in zip(tokens, scores, types) if kind == NORMAL}
        ),
        'unk_token': tokens[unknown] if 0 <= unknown < len(tokens) else None,
        'byte_fallback': True,
        'fuse_unk': True,
    }
    space = '\u2581'
    spaces = [{'type': 'Replace', 'pattern': {'String': ' '}, 'content': space}]
    back = [
        {'type': 'Replace', 'pattern': {'String': space}, 'content': ' '},
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
    ]
    if metadata.get(f'{_KEY}add_space_prefix', True):
        spaces.insert(0, {'type': 'Prepend', 'prepend': space})
        back.append({'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0})
    content['normalizer'] = {'type': 'Sequence', 'normalizers': spaces}
    content['pre_tokenizer'] = None
    content['decoder'] = {'type': 'Sequence', 'decoders': back}
    return content


def _settings(metadata: Mapping[str, Any], tokens: list[str], model: str, where: str) -> dict:
    """Returns what a run's tokenizer.json says of marks and template."""

    def mark(name: str) -> str | None:
        number = metadata.get(f'{_KEY}{name}_token_id')
        if number is None:
            return None
        if type(number) is not int or not 0 <= number < len(tokens):
            raise DataError(
                f'{where}: {_KEY}{name}_token_id is {number!r}: expected a whole number from 0 to '
                f'{len(tokens) - 1}'
            )
        return tokens[number]

    marks = {'bos': mark('bos'), 'eos': mark('eos'), 'pad': mark('padding')}
    settings: dict[str, Any] = {name: piece for name, piece in marks.items() if piece is not None}
    if 'eos' not in settings:
        raise DataError(f'{where}: {_KEY}eos_token_id is missing: expected the end of a text')
    usual = model == 'llama' or _NAMES.get(metadata.get(f'{_KEY}pre', '')) == 'llama-bpe'
    adds = metadata.get(f'{_KEY}add_bos_token', usual)
    settings['begin'] = [settings['bos']] if adds and 'bos' in settings else []
    turn_ends = [mark('eot'), *(piece for piece in TURN_ENDS if piece in tokens)]
    settings['ends'] = list(dict.fromkeys([settings['eos'], *filter(None, turn_ends)]))
    if isinstance(metadata.get(TEMPLATE), str):
        settings['template'] = metadata[TEMPLATE]
    return settings


# --- Out of a run ---------------------------------------------------------------------------------


def to_gguf(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the metadata of a GGUF file for a tokenizer.

    Raises DataError where GGUF cannot express it.
    """
    if isinstance(tokenizer, FastTokenizer):
        lists = _from_fast(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        lists = _from_sentencepiece(tokenizer)
    else:
        raise DataError(f'a {type(tokenizer).__name__} has no form in GGUF')
    lists |= {
        'bos_token_id': tokenizer.bos,
        'eos_token_id': tokenizer.eos,
        'padding_token_id': tokenizer.pad,
        'add_bos_token': bool(tokenizer.begin),
        'add_eos_token': False,
        'add_space_prefix': False,
    }
    if tokenizer.end is not None:
        lists['eot_token_id'] = tokenizer.end
    metadata = {_KEY + name: value for name, value in lists.items()}
    source = chat_template(tokenizer)
    return metadata | ({TEMPLATE: source} if source else {})


def _from_fast(tokenizer: FastTokenizer) -> dict[str, Any]:
    content = tokenizer.content
    model = content['model']
    normalizer = (content.get('normalizer') or {}).get('type')
    if not tokenizer.has_byte_letters or model.get('type', 'BPE') != 'BPE':
        raise DataError('a tokenizer.json that is no byte-level BPE has no form in GGUF')
    if normalizer not in (None, 'NFC'):
        raise DataError(f'a tokenizer.json with the normalizer {normalizer} has no form in GGUF')
    splits = _plain(content.get('pre_tokenizer'))
    name = next((name for name, known in _SPLITS.items() if _plain(known) == splits), None)
    if name is None:
        raise DataError(
            f'the way in which the tokenizer.json cuts words has no name in GGUF: expected that of '
            f'{", ".join(_SPLITS)}'
        )
    kinds = {entry['id']: USER for entry in content.get('added_tokens', [])}
    kinds |= dict.fromkeys(tokenizer.special, CONTROL)
    unused = range(len(tokenizer.pieces), tokenizer.vocab_size)
    merges = [pair if isinstance(pair, str) else ' '.join(pair) for pair in model['merges']]
    return {
        'model': 'gpt2',
        'pre': name,
        'tokens': [*tokenizer.pieces, *(f'[PAD{i}]' for i in unused)],
        'token_type': [
            *(kinds.get(i, NORMAL) for i in range(len(tokenizer.pieces))),
            *(UNUSED for _ in unused),
        ],
        'merges': merges,
    }


def _plain(part) -> list[dict]:
    """Returns the steps that cut a text into words, without what does not change the words."""
    if isinstance(part, dict) and part.get('type') == 'Sequence':
        part = part.get('pretokenizers')
    steps = part if isinstance(part, list) else [part]
    if any(not isinstance(step, dict) for step in steps):
        return []
    defaults = {'ByteLevel': {'use_regex': True, 'add_prefix_space': True}}
    return [{**defaults.get(step.get('type'), {}), **step, 'trim_offsets': None} for step in steps]


def _from_sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    if tokenizer.kind == 'unigram':
        raise DataError(
            'unigram pieces that fall back to bytes have no form in GGUF: expected '
            "config.tokenizer.kind 'bpe', 'char' or 'byte_bpe'"
        )
    return {
        'model': 'llama',
        'pre': 'default',
        'tokens': tokenizer.pieces,
        'scores': tokenizer.scores,
        'token_type': tokenizer.types,
        'unknown_token_id': tokenizer.types.index(UNKNOWN),
    }
