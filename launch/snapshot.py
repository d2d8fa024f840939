"""Pins the code of a run: an archive of a commit, not the working tree at a later moment.

All paths are from the root of the repository.
"""

import pathlib
import subprocess

from runtime.errors import RunError


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ['git', *words], capture_output=True, text=True, errors='backslashreplace'
        )
    except FileNotFoundError:
        raise RunError(
            'git is not installed: the code that is sent is an archive of a commit'
        ) from None
    if done.returncode:
        raise RunError(f'git {" ".join(words)}: {done.stderr.strip() or "failed"}')
    return done.stdout.rstrip('\n')


def pin(commit: str = '') -> str:
    """Returns the full hash of `commit`.

    Empty means HEAD, and that nothing beside it would be left behind: RunError names what would.
    """
    if not commit:
        changed = [line[3:] for line in _git('status', '--porcelain').splitlines()]
        if changed:
            raise RunError(
                'the working tree has changes that no commit holds '
                f'({", ".join(changed[:3])}{", ..." if len(changed) > 3 else ""}): '
                f'commit them, or send the last commit without them by --commit=HEAD'
            )
    return _git('rev-parse', '--verify', '--end-of-options', f'{commit or "HEAD"}^{{commit}}')


def commands(commit: str, archive: str) -> list[list[str]]:
    """Returns the commands that write `archive`.

    The same commit gives the same bytes.
    """
    return [
        ['mkdir', '-p', str(pathlib.Path(archive).parent)],
        ['git', 'archive', '--format=tar.gz', f'--output={archive}', commit],
    ]


def unpack(commit: str, folder: str) -> list[list[str]]:
    """Returns the commands that lay the code out in `folder`.

    For clusters that share a disk with this machine, or send a folder.
    """
    archive = f'{folder}.tar.gz'
    return [
        ['mkdir', '-p', folder],
        *commands(commit, archive)[1:],
        ['tar', '-xzf', archive, '-C', folder],
    ]


def execute(commands: list[list[str]], show: bool = False) -> None:
    """Runs the commands; with `show` what they say is seen.

    Raises RunError where one fails, FileNotFoundError where it is not installed.
    """
    for words in commands:
        done = subprocess.run(words, capture_output=True, text=True, errors='backslashreplace')
        if done.returncode:
            raise RunError(f'{" ".join(words)}: {done.stderr.strip() or "failed"}')
        if show:
            print(done.stdout, end='')
