"""Folders of Hugging Face: config.json, weights in safetensors, the tokenizer, a model card."""

import contextlib
import json
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from apps.exchange import source as sources
from apps.exchange.classes import find
from apps.exchange.expressed import Expressed
from apps.exchange.fields import Fields
from data import tokenizer as tokenizers
from data.fast_tokenizer import FastTokenizer
from data.records import DataError
from data.sentencepieces import SentencePieceTokenizer
from data.tokenizer import Tokenizer
from runtime.errors import RunError
from runtime.run_dir import read_json

INSTALL = "needs the package `{}`: pip install 'ordem[hf]'"
_INDEX = 'model.safetensors.index.json'
_OUTPUTS = ('lm_head.weight', 'embed_out.weight')
_PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.pkl')
_SHARD = 1 << 30  # bytes of a file of weights, which are held together
_CARD = 1 << 16  # bytes of a model card that are looked at
_LICENCE = re.compile(r'^license: *["\']?([\w.-]+)["\']? *$', re.MULTILINE)


class Folder(sources.Source):
    """A model in a folder.

    Args:
      path: of the folder.
    Raises:
      RunError: a file that is missing, damaged, or no file of weights that may be read.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.fields = Fields(_read_json(path / 'config.json'), str(path / 'config.json'))
        names = find(self.fields).names
        prefix = names['embedding'].partition('.')[0] + '.'
        self._files: dict[str, tuple[pathlib.Path, str]] = {}  # tensor -> file, name there
        self.shapes = {}
        weights = _find_weights(path)
        for file in weights:
            for name, shape in self._read_header(file):
                # Some files leave out the name of the model's body, or name its output otherwise.
                full = name if name.startswith(prefix) else prefix + name
                if name in _OUTPUTS:
                    full = names['output/kernel']
                if full in self._files:
                    raise RunError(f'{file}: the tensor {name:.80} is there twice')
                self._files[full] = file, name
                self.shapes[full] = shape
        self.files = [path / 'config.json', *weights]
        self.licence = _read_licence(path / 'README.md')

    def _read_header(self, file: pathlib.Path):
        """Yields name and shape of each tensor of a file."""
        with _open(file) as opened:
            for name in list(opened.keys()):
                yield name, tuple(opened.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        # Opened anew each time: pages of a file that stays open count as memory of the process.
        file, inner = self._files[name]
        with _open(file) as opened:
            dtype = opened.get_slice(inner).get_dtype()
            if dtype not in ('F64', 'F32', 'F16', 'BF16'):
                raise RunError(f'{file}: {name} is of {dtype}: expected F64, F32, F16 or BF16')
            return opened.get_tensor(inner)

    def tokenizer(self) -> Tokenizer:
        # A model of SentencePiece is taken where it is one of ours.
        model = epath.Path(self.path / SentencePieceTokenizer.file_name)
        if model.exists():
            try:
                return tokenizers.load(model)
            except DataError:
                if not (self.path / FastTokenizer.file_name).exists():
                    raise
        return tokenizers.load(epath.Path(self.path))


@contextlib.contextmanager
def _open(file: pathlib.Path) -> Iterator[Any]:
    """Opens a file of safetensors. Raises RunError where it is damaged, or cannot be read."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise RunError(f'{file}: {INSTALL.format("safetensors")}') from None
    with sources.blame(str(file), SafetensorError, OSError), safe_open(file, 'np') as opened:
        yield opened


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    return read_json(epath.Path(path), 'expected a folder of Hugging Face')


def _find_weights(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of weights in a folder: those of its index, or the one there is."""
    index = path / _INDEX
    if not index.exists():
        files = sorted(path.glob('*.safetensors'))
        pickles = sorted(file.name for kind in _PICKLES for file in path.glob(kind))
        if not files and pickles:
            raise RunError(
                f'{path / pickles[0]}: a pickle, which can run code, is not read; expected weights '
                f'in safetensors'
            )
        if len(files) != 1:
            found = f'{len(files)} files of safetensors and no {_INDEX}'
            raise RunError(f'{path}: {found}; expected one, or an index')
        return files
    placed = _read_json(index).get('weight_map')
    if not isinstance(placed, dict) or not placed:
        raise RunError(f'{index}: damaged (weight_map: expected tensors and their files)')
    names = dict.fromkeys(placed.values())
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r'[\w.-]+\.safetensors', name):
            raise RunError(
                f'{index}: the file {name!r:.60}: expected the name of a file of safetensors in '
                f'this folder'
            )
        if not (path / name).is_file():
            raise RunError(f'{path / name}: missing; {_INDEX} names it')
    return [path / name for name in names]


def _read_licence(card: pathlib.Path) -> str:
    """Returns the licence that a model card names, or ''."""
    with contextlib.suppress(OSError):
        with card.open('rb') as file:
            head = file.read(_CARD).decode(errors='replace')
        if head.startswith('---'):
            found = _LICENCE.search(head.split('\n---', 1)[0])
            return found[1] if found else ''
    return ''


# --- Writing --------------------------------------------------------------------------------------


def write_weights(folder: pathlib.Path, model: Expressed, dtype: str, most: int = _SHARD) -> None:
    """Writes the weights of a model in files of about `most` bytes, with an index of several.

    `dtype`: of all tensors, by its name; '': as they are.
    """
    # Which tensors are in which file, from their sizes alone.
    files: list[list[str]] = [[]]
    used = 0
    total = 0
    width = np.dtype(dtype or model.arrays['embedding'].dtype).itemsize
    for name, paths in model.plan.items():
        size = sum(width * math.prod(model.leaves[path]) for path in paths)
        if files[-1] and used + size > most:
            files.append([])
            used = 0
        files[-1].append(name)
        used += size

    placed = {}
    for number, names in enumerate(files, 1):
        file = 'model.safetensors'
        if len(files) > 1:
            file = f'model-{number:05}-of-{len(files):05}.safetensors'
        total += _write_file(folder / file, names, model, dtype)
        placed |= dict.fromkeys(names, file)
    if len(files) > 1:
        index = {'metadata': {'total_size': total}, 'weight_map': placed}
        write_json(folder / _INDEX, index)


def _write_file(path: pathlib.Path, names: Sequence[str], model: Expressed, dtype: str) -> int:
    """Writes one file of weights; returns the bytes of its tensors."""
    from safetensors.numpy import save_file

    tensors = {}
    for name in names:
        x = model.tensor(name)
        tensors[name] = x.astype(dtype) if dtype else x
    save_file(tensors, path, metadata={'format': 'pt'})
    path.chmod(0o644)  # the package lets nobody else read it
    return sum(x.nbytes for x in tensors.values())


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes a file of JSON as the others of such a folder are."""
    path.write_text(json.dumps(values, indent=2) + '\n')
