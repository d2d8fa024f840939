"""Files of object stores (gs://, s3:// and whatever fsspec knows), brought to this machine.

What a URL leads to lies in `~/.cache/ordem/remote`, a folder for each URL, and is read from there
like any other file. A file is brought again where its size or version in the store has changed, and
goes where it is gone there.
"""

import hashlib
import json
import os
import pathlib

from data.paths import begun, cache_folder
from data.records import DataError

_INDEX = '.ordem.json'  # {name: [size, version]} of the files that are here
_MAGIC = '*?['
_VERSIONS = ('etag', 'ETag', 'md5Hash', 'generation', 'mtime', 'updated', 'LastModified', 'created')


def is_url(entry: str) -> bool:
    """Returns whether an entry of a list of paths is of an object store."""
    return '://' in entry


def bring(url: str, suffixes: tuple[str, ...], field: str) -> str:
    """Returns the folder of this machine that holds the files of a URL.

    Args:
      url: a file, a folder, or a pattern.
      suffixes: ends of names of files that are wanted, in small letters.
      field: what names it, for messages.
    Raises:
      DataError: the package for this kind of store is not installed, the store does not answer, or
        nothing there can be read.
    """
    try:
        import fsspec

        store, path = fsspec.core.url_to_fs(url)
        files = _list(store, path, suffixes)
    except (ImportError, ValueError) as error:
        raise DataError(f'{url}: no store of this kind is known here ({field}): {error}') from None
    except Exception as error:  # whatever the store's own package raises
        words = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise DataError(f'{url}: cannot be read ({field}): {words}') from None
    if not files:
        raise DataError(
            f'{url}: no file found ({field}); expected one that ends in {", ".join(suffixes)}'
        )

    folder = cache_folder() / 'remote' / hashlib.sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    index = _read_index(folder)
    for name in set(index) - {*files}:
        (folder / name).unlink(missing_ok=True)
        del index[name]
    try:
        for name, (remote, state) in files.items():
            if index.get(name) != state or not (folder / name).is_file():
                _download(store, remote, folder / name, url)
                index[name] = state
    finally:  # what is here stays known where a later file fails
        (folder / _INDEX).write_text(json.dumps(index))
    return str(folder)


def _list(store, path: str, suffixes: tuple[str, ...]) -> dict[str, tuple[str, list]]:
    """Returns {name under the URL: (path in the store, [size, version])} of what is wanted."""
    if any(character in path for character in _MAGIC):
        found = store.glob(path, detail=True)
        root = path[: min(path.index(c) for c in _MAGIC if c in path)].rpartition('/')[0]
    else:
        found = store.find(path, detail=True)
        root = path if store.isdir(path) else path.rpartition('/')[0]
    files = {}
    for remote, info in sorted(found.items()):
        name = remote.removeprefix(root).strip('/')
        is_safe = '..' not in pathlib.PurePosixPath(name).parts
        if info['type'] == 'file' and name.lower().endswith(suffixes) and is_safe:
            version = next((str(info[key]) for key in _VERSIONS if info.get(key)), '')
            files[name] = (remote, [info['size'], version])
    return files


def _download(store, remote: str, local: pathlib.Path, url: str) -> None:
    """Brings one file; where that fails nothing of it is left."""
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(begun(local.name))
    try:
        store.get_file(remote, str(part))
        os.replace(part, local)
    except Exception as error:
        words = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise DataError(f'{url}: {remote} cannot be brought here: {words}') from None
    finally:
        part.unlink(missing_ok=True)


def _read_index(folder: pathlib.Path) -> dict[str, list]:
    """Returns what is here; {} where the index is not there or damaged: all is brought again."""
    try:
        index = json.loads((folder / _INDEX).read_text())
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
