"""All commands of the product (`python -m room.command`), and the flags that each of them
defines."""

import contextlib
import functools
import io
import logging
import pathlib
import runpy
import subprocess
import sys
import warnings
from unittest import mock

import grain  # noqa: F401  (defines flags of its own, once)
from absl import app, flags, logging as absl_logging

from runtime import cli, exit

ROOMS = (
    *('apps', 'benchmarks', 'configs', 'data', 'docs', 'evals', 'launch', 'model', 'runtime'),
    *('studies', 'train'),
)
# Commands whose flags are those of another program, which they begin.
OTHERS = {'apps.lm_eval'}


@contextlib.contextmanager
def keep_loggers():
    """Leaves loggers as they were: a command that is run gives them handlers and levels."""
    loggers = [logging.root, logging.getLogger('absl'), logging.getLogger('ordem')]
    before = [(log.handlers[:], log.level, log.propagate) for log in loggers]
    verbosity = absl_logging.get_verbosity()
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
        for log, (handlers, level, propagate) in zip(loggers, before):
            log.handlers[:] = handlers
            log.setLevel(level)
            log.propagate = propagate


def list_commands() -> list[str]:
    """Returns the modules that end in `cli.run(...)`, `exit.run(...)` or `command.run(...)`."""
    found = []
    for path in sorted(p for room in ROOMS for p in pathlib.Path(room).rglob('*.py')):
        text = path.read_text()
        ends = ('cli.run(', 'exit.run(', 'command.run(')
        if "if __name__ == '__main__':" in text and any(end in text for end in ends):
            found.append('.'.join(path.with_suffix('').parts).removesuffix('.__main__'))
    return [name for name in found if name not in OTHERS]


@contextlib.contextmanager
def isolate_flags():
    """Gives a command the flags of a fresh process; those it defines go when it ends, however it
    ends.

    A test may have imported another program, whose flags would otherwise clash with the
    command's."""
    ours = [
        (module, flag)
        for module, defined_there in flags.FLAGS.flags_by_module_dict().items()
        if module.split('.')[0] in (*ROOMS, 'tests')
        for flag in [*defined_there]
    ]
    for _, flag in ours:
        delattr(flags.FLAGS, flag.name)
    known = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for module, flag in ours:
            flags.FLAGS[flag.name] = flag
            flags.FLAGS.register_flag_by_module(module, flag)


def run_here(module: str, *words, settle=cli._settle_logging) -> subprocess.CompletedProcess:
    """Runs `python -m MODULE WORDS` without a new process; returns what that would have ended with.

    The module runs as __main__, and its flags are taken away afterwards. The log goes to stderr as
    the command sends it there. A process of its own takes seconds to import what is here already.
    """
    arguments = [module, *map(str, words)]
    app.define_help_flags()  # once in a process: they stay when those of the module go
    stdout = io.StringIO()
    stderr = io.StringIO()
    code = 0
    try:
        with (
            keep_loggers(),
            isolate_flags(),
            mock.patch.object(sys, 'argv', arguments),
            mock.patch.object(cli, 'settle', settle),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter('ignore')  # runpy's, of a module that is there already
            runpy.run_module(module, run_name='__main__')
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):  # a text ends a program with 1
            code = stderr.write(code) and 1
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


@functools.cache
def read_definitions(name: str) -> tuple[dict, dict[str, flags.Flag]]:
    """Returns what a command does before main: (keywords of `run`, {name: flag}).

    Nothing of it runs. Fails where `--help` would not show one of its flags.
    """
    asked = []

    def take(*args, **keywords):
        return asked.append(keywords)

    with (
        isolate_flags(),
        mock.patch.object(cli, 'run', take),
        mock.patch.object(exit, 'run', take),
        mock.patch.object(exit, 'parse_flags', lambda: None),
        mock.patch.object(sys, 'argv', [name]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')  # runpy's, of a module that is there already
        known = set(flags.FLAGS)
        runpy.run_module(name, run_name='__main__')
        made = {new: flags.FLAGS[new] for new in set(flags.FLAGS) - known}
        shown = {flag.name for flag in flags.FLAGS.get_flags_for_module(name)}
    assert {*made} <= shown, f'{name} --help leaves out {sorted({*made} - shown)}'
    assert len(asked) == 1, f'{name} ends in neither cli.run nor exit.run'
    return asked[0], made
