"""Names of files and folders as a person writes them: what `~` stands for, in one place for every
field and flag; and what a file is called while it is written."""

import os

from data.records import DataError

_LONGEST = 255  # bytes of a name


def expanded(text: str, field: str = '') -> str:
    """Returns `text` with a leading `~` or `~user` as the folder it stands for; any other text is
    returned as it is.

    `field`: the field or flag that holds it. Where it is given, raises DataError for a user that is
    not known here, which would make a folder named `~user`. What is there under its whole name,
    such as `~$notes.txt`, keeps its name."""
    found = os.path.expanduser(text)
    if not field or not found.startswith('~') or os.path.lexists(found.partition('/')[0]):
        return found
    user = found.partition('/')[0]
    raise DataError(
        f'{field} is {text!r}: no user {user[1:]!r} is known here; expected ~/ for the home '
        f'folder, or ./{user} for a folder of that name'
    )


def expanded_list(text: str) -> str:
    """Returns the same of each path in a list of paths that commas separate. A user that is not
    known stays as written: those who look for the files tell that there are none."""
    parts = text.split(',')
    return ','.join(expanded(part.lstrip()) if part.lstrip()[:1] == '~' else part for part in parts)


def begun(name: str) -> str:
    """Returns the name of a file or folder that is being written, until it takes the name `name` in
    the same folder: `.NAME.PID`, of a long name its beginning, since no name has more than 255
    bytes."""
    end = f'.{os.getpid()}'
    kept = os.fsencode(name)[: _LONGEST - 1 - len(end)]
    return f'.{kept.decode(errors="ignore")}{end}'
