"""Checks the commands that documents tell a person to run."""

import pathlib
import re
import runpy
import shlex

import pytest

from runtime.config_tree import flatten
from tests import commands

DOCUMENTS = ['README.md', 'CONTRIBUTING.md', *sorted(map(str, pathlib.Path('docs').rglob('*.md')))]
ANYWHERE = {'config', 'coordinator', 'num_processes', 'process_id'}


def _commands() -> list[tuple[str, str]]:
    """Returns (document, command) of each `python -m ROOM.MODULE ...` in a block of shell code."""
    stated = []
    for document in DOCUMENTS:
        blocks = re.findall(r'```sh\n(.*?)```', pathlib.Path(document).read_text(), re.S)
        for line in '\n'.join(blocks).replace('\\\n', ' ').splitlines():
            stated += [
                (document, command)
                for command in re.split(r' -- (?=python)|; ', line.split('#')[0])
                if re.search(r'python -m (?!pytest|pip|llama_cpp)\w+\.', command)
            ]
    return stated


def _check(command: str) -> None:
    """Raises AssertionError for a module, flag, config or field that is not there."""
    words = shlex.split(command.split(' -- ')[0])
    module, *arguments = words[words.index('-m') + 1 :]

    # The module, and the config that it is given.
    if module in commands.OTHERS:
        return
    assert module in commands.list_commands() or module.startswith('tests.'), f'no command {module}'
    if module.startswith('tests.'):
        return
    flags = commands.read_definitions(module)[1]
    config = next((w.split('=')[1] for w in arguments if w.startswith('--config=')), '')
    assert not config or '$' in config or 'NAME' in config or pathlib.Path(config).is_file(), config

    # Its flags, and fields of the config.
    for word in arguments:
        name = word.split('=')[0].removeprefix('--')
        if not word.startswith('--'):
            continue
        if name.startswith('config.'):
            fields = flatten(runpy.run_path(config or 'configs/base.py')['get_config']())
            field = name.removeprefix('config.')
            known = field in fields or field.startswith(('model.positions_args', 'tasks'))
            assert known, f'no field {field} in {config}'
        else:
            assert {name, name.removeprefix('no')} & {*flags, *ANYWHERE}, f'no flag {name}'


@pytest.mark.parametrize('document, command', _commands(), ids=lambda text: text[:60])
def test_commands_in_documents(document, command):
    """Catches a document whose command has a module, flag, config or field no more."""
    _check(command)


@pytest.mark.parametrize(
    'command',
    [
        'python -m train.pretrian --config=configs/base.py',
        'python -m train.pretrain --cofig=configs/base.py',
        'python -m train.pretrain --config=configs/bass.py',
        'python -m train.pretrain --config=configs/base.py --config.model.positoins=rope',
    ],
)
def test_the_check_finds_what_is_wrong(command):
    """Catches a check of documents that lets everything pass."""
    with pytest.raises(AssertionError):
        _check(command)
