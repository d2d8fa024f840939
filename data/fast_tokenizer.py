"""A `tokenizer.json` as a tokenizer, through the package `tokenizers`; byte-level BPE trained here.

A run keeps one file, which any program reads that reads such files. What lies beside it in a folder
of Hugging Face (`tokenizer_config.json`, `chat_template.jinja`, ...) is kept inside of it, in
`model.ordem`: {"bos", "eos", "pad": pieces, "begin", "ends": lists of pieces, "template": Jinja,
"vocab_size": ids, of which the last may have no piece}.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data import safe_read
from data.pieces import CONTROL, META, SYSTEM, Tokenizer
from data.records import DataError, printable
from data.template import OWN, Template

CONFIG = 'tokenizer_config.json'
BESIDE = (CONFIG, 'special_tokens_map.json', 'generation_config.json', 'chat_template.jinja')
MARKS = ('<pad>', '<s>', '</s>')  # of what is trained here: padding, begin, end
_SECTION = 'ordem'
_TEMPLATE = 1 << 20  # characters of a chat template
_MOST_IDS = 1 << 24
_MOST_PARTS = 1 << 22  # of the JSON: several times those of the largest vocabularies
_MODELS = ('BPE', 'Unigram')
_FAILS = 'the tokenizer.json of this model fails on a text'

# Pieces by which a file alone tells what begins and ends a text, and a turn.
_BEGINS = ('<s>', '<bos>', '<|begin_of_text|>', '<|startoftext|>', '<|endoftext|>')
_ENDS = ('</s>', '<eos>', '<|end_of_text|>', '<|endoftext|>', '<|im_end|>')
TURN_ENDS = ('<|end|>', '<|im_end|>', '<|eot_id|>', '<|eot|>', '<end_of_turn>', '<|endoftext|>')

# Bytes as letters, without cutting words.
LETTERS = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': False,
}
# Words with the character before them, digits one by one, other characters with the space before
# them and the line ends after them, white space: the splitting of Qwen 2, 'qwen2' in GGUF.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class FastTokenizer(Tokenizer):
    """A tokenizer.json.

    Args:
      proto: the file.
      where: its origin, for messages.
      beside: reads one of the files `BESIDE`, or gives None.

    Raises:
      DataError: it is none, or one that Ordem cannot use, or `tokenizers` is not installed.
    """

    file_name = 'tokenizer.json'
    content: dict  # of the file
    pieces: list[str]
    special: dict[int, str]  # those that stand for no text, by id

    def __init__(
        self,
        proto: bytes,
        where: str = 'tokenizer',
        beside: Callable[[str], bytes | None] = lambda name: None,
    ):
        try:
            content = _parse(proto)
            self.pieces, self.special = _read_pieces(content)
            settings = content['model'].get(_SECTION)
            if settings is None:
                settings = _settle(content, self.pieces, beside)
                content['model'][_SECTION] = settings
                proto = json.dumps(content).encode()
            _check_settings(settings, self.pieces)
            self._text = _build(content)
        except ValueError as error:
            raise DataError(f'{where}: {printable(str(error))}') from None
        self.proto = proto
        self.hash = hashlib.sha256(proto).hexdigest()
        self._text.encode_special_tokens = True
        self.content = content
        self._find_marks(settings)

    def _find_marks(self, settings: dict) -> None:
        ids = {piece: number for number, piece in enumerate(self.pieces)}
        self.vocab_size = settings.get('vocab_size', len(ids))
        self.eos = ids[settings['eos']]
        self.bos = ids[settings.get('bos', settings['eos'])]
        self.pad = ids[settings.get('pad', settings['eos'])]
        self.begin = tuple(ids[piece] for piece in settings.get('begin', []))
        self.ends = tuple(ids[piece] for piece in settings.get('ends', []))

        marks = [ids[piece] if ids.get(piece) in self.special else None for piece in CONTROL]
        self.user, self.assistant, self.end = marks[:3]
        self.system = marks[CONTROL.index(SYSTEM)]
        self.names_system = self.system is not None
        if settings.get('template', OWN) != OWN:
            names = {f'{n}_token': settings[n] for n in ('bos', 'eos', 'pad') if n in settings}
            self.template = Template(
                settings['template'],
                names,
                self.special,
                lambda text: _ids_and_spans(self._marked, text),
                lambda text: _ids_and_spans(self._text, text),
            )

    @functools.cached_property
    def _marked(self) -> Any:
        """The same, in which text of marks stands for them."""
        return _build(self.content)

    def encode_arrays(self, texts: list[str], threads: int = -1) -> list[np.ndarray]:
        with _told(_FAILS):
            if threads == 1:
                encoded = [self._text.encode(text, add_special_tokens=False) for text in texts]
            else:
                encoded = self._text.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(one.ids, np.int32) for one in encoded]

    def encode_best(self, text: str, count: int) -> list[list[int]]:
        return [self.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        with _told(_FAILS):
            return self._text.decode([int(i) for i in ids], skip_special_tokens=True)

    def piece(self, token: int) -> str:
        if token >= len(self.pieces):
            return f'<unused {token}>'
        piece = self.pieces[int(token)]
        if int(token) in self.special or not self.has_byte_letters:
            return piece.replace(' ', META)
        raw = bytes(_BYTES[letter] for letter in piece if letter in _BYTES)
        try:
            return raw.decode().replace(' ', META)
        except UnicodeDecodeError:
            return ''.join(f'<0x{byte:02X}>' for byte in raw)

    @functools.cached_property
    def has_byte_letters(self) -> bool:
        """Whether pieces are written in the letters of bytes, as GPT-2's are."""
        return 'ByteLevel' in _types(self.content.get('decoder'))

    def with_settings(self, **changes) -> 'FastTokenizer':
        """Returns the tokenizer with other settings (`model.ordem`), None taking one away."""
        content = {**self.content, 'model': {**self.content['model']}}
        settings = {**content['model'][_SECTION], **changes}
        content['model'][_SECTION] = {k: v for k, v in settings.items() if v is not None}
        return FastTokenizer(json.dumps(content).encode())


# --- Reading --------------------------------------------------------------------------------------


def _package() -> Any:
    """Returns the package `tokenizers`. Raises DataError where it is not installed."""
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')  # or it warns when a process forks
    try:
        import tokenizers
    except ImportError:
        raise DataError('a tokenizer.json needs the extra `hf`: pip install -e .[hf]') from None
    return tokenizers


def _parse(proto: bytes) -> dict:
    if proto.count(b',') > _MOST_PARTS:  # each takes many times its size in the file
        raise ValueError(f'it has more than {_MOST_PARTS:,} parts: expected pieces and merges')
    try:
        return safe_read.parse(proto)
    except ValueError as error:
        raise ValueError(f'not a tokenizer.json ({error})') from None


def _build(content: dict) -> Any:
    """Returns what the package makes of a file, without what would add to a text or cut it."""
    tokenizers = _package()
    text = json.dumps({**content, 'truncation': None, 'padding': None, 'post_processor': None})
    with _told(f'not a tokenizer.json that tokenizers {tokenizers.__version__} reads'):
        return tokenizers.Tokenizer.from_str(text)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Raises DataError, in one line, for whatever the package raises."""
    try:
        yield
    except Exception as error:  # the package has no narrower one
        reason = str(error)
    except BaseException as error:  # what Rust calls a panic is no Exception
        if type(error).__name__ != 'PanicException':
            raise
        reason = str(error)
    else:
        return
    first = reason.split('\n')[0][:200]
    raise DataError(f'{what}: {printable(first)}')


def _ids_and_spans(built: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    with _told(_FAILS):
        encoding = built.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def _expect(value, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) and kind is int:
        words = {dict: 'an object', list: 'a list', str: 'a string', int: 'a whole number'}
        raise ValueError(f'{name} is {_short(value)}: expected {words[kind]}')
    return value


def _short(value) -> str:
    """Returns a value for a message; no more of a large one than its kind."""
    if isinstance(value, (dict, list)):
        return f'a {type(value).__name__} of {len(value)}'
    whole = repr(value[:40] if isinstance(value, str) else value)
    return whole if len(whole) <= 50 else f'{whole[:49]}…'


def _read_pieces(content: dict) -> tuple[list[str], dict[int, str]]:
    """Returns all pieces in the order of their ids, and those that stand for no text, by id.

    Raises ValueError where ids are not 0, 1, 2, ..., each with one piece.
    """
    model = _expect(content.get('model'), dict, 'model')
    kind = model.get('type', 'BPE' if 'merges' in model else None)  # old files have none
    if kind not in _MODELS:
        raise ValueError(f'model.type is {_short(kind)}: expected {" or ".join(_MODELS)}')
    model['type'] = kind
    by_id: dict[int, str] = {}
    ids: dict[str, int] = {}

    def add(piece, number, name: str) -> None:
        _expect(piece, str, f'a piece of {name}')
        _expect(number, int, f'the id of {_short(piece)} in {name}')
        if by_id.setdefault(number, piece) != piece or ids.setdefault(piece, number) != number:
            raise ValueError(
                f'{name}: {_short(piece)} has the id {number}, and so has {_short(by_id[number])}'
                if by_id[number] != piece
                else f'{name}: {_short(piece)} has the ids {ids[piece]} and {number}'
            )

    if kind == 'BPE':
        for piece, number in _expect(model.get('vocab'), dict, 'model.vocab').items():
            add(piece, number, 'model.vocab')
        _expect(model.get('merges'), list, 'model.merges')
        if model.get('continuing_subword_prefix'):  # by a wrong one the package ends
            raise ValueError('model.continuing_subword_prefix is set: expected none')
    else:
        for number, entry in enumerate(_expect(model.get('vocab'), list, 'model.vocab')):
            if not isinstance(entry, list) or len(entry) != 2:
                raise ValueError(
                    f'model.vocab[{number}] is {_short(entry)}: expected [piece, score]'
                )
            add(entry[0], number, 'model.vocab')
        unknown = _expect(model.get('unk_id'), int, 'model.unk_id')
        if unknown not in by_id:
            raise ValueError(f'model.unk_id is {unknown}: expected the id of a piece')
    special = {}
    for entry in _expect(content.get('added_tokens', []), list, 'added_tokens'):
        _expect(entry, dict, 'one of added_tokens')
        add(entry.get('content'), entry.get('id'), 'added_tokens')
        if entry.get('special') is True:
            special[entry['id']] = entry['content']

    missing = next((number for number in range(len(by_id)) if number not in by_id), None)
    if missing is not None or not by_id:
        raise ValueError(
            f'it has {len(by_id)} pieces and none with the id {missing or 0}: expected the ids '
            f'from 0 to {max(len(by_id) - 1, 0)}'
        )
    return [by_id[number] for number in range(len(by_id))], special


def _types(part) -> set[str]:
    """Returns the types of a decoder or post-processor, and of those inside of it."""
    if isinstance(part, list):
        return set().union(*map(_types, part))
    if not isinstance(part, dict):
        return set()
    inner = [part.get(name) for name in ('decoders', 'processors', 'normalizers', 'pretokenizers')]
    return {str(part.get('type')), *_types(inner)}


# --- What lies beside a file ----------------------------------------------------------------------


def _settle(content: dict, pieces: list[str], beside: Callable[[str], bytes | None]) -> dict:
    """Returns the settings of a file that has none, from the files beside it and its pieces."""

    def read(name: str) -> dict:
        raw = beside(name)
        try:
            return safe_read.parse(raw) if raw else {}
        except ValueError as error:
            raise ValueError(f'{name} beside it: {error}') from None

    config, more, generation = (read(name) for name in BESIDE[:3])
    settings: dict[str, Any] = {}
    for name, usual in (('bos', _BEGINS), ('eos', _ENDS), ('pad', ('<pad>', '<|pad|>'))):
        field = f'{name}_token'
        stated = config.get(field) or more.get(field)
        if isinstance(stated, dict):
            stated = stated.get('content')
        if stated is None and (name == 'eos' or not config and not more):
            stated = next((piece for piece in usual if piece in pieces), None)
        if stated is not None:
            settings[name] = _expect(stated, str, field)
    if 'eos' not in settings:
        raise ValueError(
            f'no end of a text is known: expected eos_token in {CONFIG} beside it, or one of the '
            f'pieces {", ".join(_ENDS)}'
        )

    # What stands before a text: as the folder says, or as the package would add it.
    adds = config.get('add_bos_token')
    if isinstance(adds, bool):
        settings['begin'] = [settings['bos']] * adds if 'bos' in settings else []
    else:
        settings['begin'] = _added_before(content, pieces)

    ends = generation.get('eos_token_id')
    ends = ends if isinstance(ends, list) else [ends]
    stated_ends = [pieces[i] for i in ends if type(i) is int and 0 <= i < len(pieces)]
    usual_ends = [piece for piece in TURN_ENDS if piece in pieces]
    settings['ends'] = list(dict.fromkeys([settings['eos'], *stated_ends, *usual_ends]))

    template = _find_template(config, beside('chat_template.jinja'))
    if template:
        settings['template'] = template
    return settings


def _added_before(content: dict, pieces: list[str]) -> list[str]:
    """Returns the pieces that the post-processor of a file puts before a text."""
    if not content.get('post_processor'):
        return []
    whole = {**content, 'truncation': None, 'padding': None}
    tokenizers = _package()
    with _told('not a tokenizer.json with a post-processor'):
        built = tokenizers.Tokenizer.from_str(json.dumps(whole))
        bare = built.encode('a', add_special_tokens=False).ids
        ids = built.encode('a').ids
    count = next((i for i in range(len(ids)) if ids[i : i + len(bare)] == bare), 0)
    return [pieces[i] for i in ids[:count]]


def _find_template(config: dict, file: bytes | None) -> str:
    """Returns the chat template of a folder, or ''."""
    if file is not None:
        template: Any = bytes(file).decode()
    else:
        template = config.get('chat_template') or ''
    if isinstance(template, list):  # several, by name
        named = {t.get('name'): t.get('template') for t in template if isinstance(t, dict)}
        template = named.get('default') or ''
    if len(_expect(template, str, 'the chat template')) > _TEMPLATE:
        raise ValueError(
            f'the chat template has {len(template)} characters: expected at most {_TEMPLATE}'
        )
    return template


def _check_settings(settings, pieces: list[str]) -> None:
    """Raises ValueError where the settings of a file are none."""
    known = set(pieces)
    name = f'model.{_SECTION}'
    _expect(settings, dict, name)
    stated = [settings.get('eos'), *(settings[n] for n in ('bos', 'pad') if n in settings)]
    for field in ('begin', 'ends'):
        stated += _expect(settings.get(field, []), list, f'{name}.{field}')
    for piece in stated:
        if not isinstance(piece, str) or piece not in known:
            raise ValueError(f'{_short(piece)} is a mark of the text, and no piece')
    if len(_expect(settings.get('template', ''), str, f'{name}.template')) > _TEMPLATE:
        raise ValueError(f'{name}.template is larger than {_TEMPLATE} characters')
    size = _expect(settings.get('vocab_size', len(pieces)), int, f'{name}.vocab_size')
    if not len(pieces) <= size <= _MOST_IDS:
        raise ValueError(
            f'{name}.vocab_size is {size}: expected {len(pieces)}, its pieces, to {_MOST_IDS}'
        )


# --- Training -------------------------------------------------------------------------------------


def train_byte_bpe(lines: Iterable[str], vocab_size: int) -> FastTokenizer:
    """Returns byte-level BPE that is trained on lines: GPT-2's, with digits one by one.

    Any text comes back. The same lines give the same file, bit for bit.

    Args:
      lines: texts without line ends, each of which is read with one.
      vocab_size: marks, 256 bytes and merges together.

    Raises:
      DataError: the text supports fewer pieces, or the marks and bytes are more.
    """
    tokenizers = _package()
    marks = [*MARKS, *CONTROL]
    asked = f'config.tokenizer.vocab_size is {vocab_size}'
    least = len(marks) + 256
    if vocab_size < least:
        raise DataError(f'{asked}: the marks and the 256 bytes need at least {least}')
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORDS), 'isolated')
    letters = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, letters])
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=marks,
        initial_alphabet=sorted(_BYTES),
        show_progress=False,
    )
    made.train_from_iterator((f'{line}\n' for line in lines), trainer)
    size = made.get_vocab_size()
    if size < vocab_size:
        raise DataError(f'{asked}: the text supports at most {size}')
    content = json.loads(made.to_str())
    pad, bos, eos = MARKS
    content['post_processor'] = adding_before(bos, marks.index(bos))
    content['model'][_SECTION] = dict(
        bos=bos, eos=eos, pad=pad, begin=[bos], ends=[CONTROL[2], eos]
    )
    return FastTokenizer(json.dumps(content).encode())


def bpe_file(vocab: dict[str, int], merges: list, splits: list[dict]) -> dict:
    """Returns a tokenizer.json of BPE over the letters of bytes, words being cut by `splits`."""
    return {
        'version': '1.0',
        'added_tokens': [],
        'normalizer': None,
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': splits},
        'post_processor': None,
        'decoder': {**LETTERS, 'use_regex': True},
        'model': {'type': 'BPE', 'vocab': vocab, 'merges': merges},
    }


def splitting(pattern: str) -> dict:
    """Returns the part of a tokenizer.json that cuts a text into what matches a pattern."""
    return {
        'type': 'Split',
        'pattern': {'Regex': pattern},
        'behavior': 'Isolated',
        'invert': False,
    }


def added(number: int, piece: str, special: bool) -> dict:
    """Returns a piece of a tokenizer.json that is found in a text before all others."""
    flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    return {'id': number, 'content': piece, **flags, 'special': special}


def adding_before(piece: str, number: int) -> dict:
    """Returns the post-processor of a tokenizer.json that puts a piece before a text."""
    return adding({piece: number}, {})


def adding(before: Mapping[str, int], after: Mapping[str, int]) -> dict:
    """Returns the post-processor that puts pieces before and after a text; both are piece -> id."""

    def part(kind: str, name: str) -> dict:
        return {kind: {'id': name, 'type_id': 0}}

    def around(text: str) -> list[dict]:
        first = [part('SpecialToken', piece) for piece in before]
        return [*first, part('Sequence', text), *(part('SpecialToken', piece) for piece in after)]

    return {
        'type': 'TemplateProcessing',
        'single': around('A'),
        'pair': [*around('A'), *around('B')],
        'special_tokens': {
            piece: {'id': piece, 'ids': [number], 'tokens': [piece]}
            for piece, number in {**before, **after}.items()
        },
    }


def _byte_letters() -> dict[str, int]:
    """Returns the letters by which byte-level pieces are written, and their bytes (GPT-2)."""
    letters = {}
    beyond = 256
    for byte in range(256):
        shown = chr(byte)
        if re.fullmatch(r'[!-~¡-¬®-ÿ]', shown) is None:
            shown = chr(beyond)
            beyond += 1
        letters[shown] = byte
    return letters


_BYTES = _byte_letters()
