"""Names of files and folders as a person writes them, and while they are written.

What `~` stands for is said here, for every field and flag.
"""

import os
import pathlib

from data.records import DataError

_LONGEST = 255  # bytes of a name


def expanded(text: str, field: str = '') -> str:
    """Returns `text` with a leading `~` or `~user` as the folder it stands for.

    Any other text is returned as it is, and so is the whole name of something that is there, such
    as `~$notes.txt`.

    Args:
      text: a path.
      field: the field or flag that holds it, if it is to be checked.
    Raises:
      DataError: `field` is given, and the user is not known here: that would make a folder named
        `~user`.
    """
    path = os.path.expanduser(text)
    user = path.partition('/')[0]
    if not field or not path.startswith('~') or os.path.lexists(user):
        return path
    raise DataError(
        f'{field} is {text!r}: no user {user[1:]!r} is known here; expected ~/ for the home '
        f'folder, or ./{user} for a folder of that name'
    )


def expanded_list(text: str) -> str:
    """Returns a list of paths with commas between them, each one as `expanded` returns it.

    A user that is not known stays as written: those who look for the files tell that there are
    none.
    """
    paths = []
    for part in text.split(','):
        path = part.lstrip()
        paths.append(expanded(path) if path.startswith('~') else part)
    return ','.join(paths)


def cache_folder() -> pathlib.Path:
    """Returns the folder of what can be made again, after the XDG convention."""
    given = os.environ.get('XDG_CACHE_HOME', '')
    cache = pathlib.Path(given) if os.path.isabs(given) else pathlib.Path('~/.cache').expanduser()
    return cache / 'ordem'


def begun(name: str) -> str:
    """Returns what a file or folder is called until it takes the name `name`.

    That is `.NAME.PID` in the same folder; of a long name its beginning, since no name has more
    than 255 bytes.
    """
    end = f'.{os.getpid()}'
    beginning = os.fsencode(name)[: _LONGEST - 1 - len(end)]
    return f'.{beginning.decode(errors="ignore")}{end}'
