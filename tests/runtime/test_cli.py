"""Streams, and what the system refuses: in the one place that all commands pass through, on
each."""

import contextlib
import errno
import io
import logging
import os
import pathlib
import runpy
import subprocess
import sys
import warnings
from unittest import mock

import pytest
from absl import app, flags

from runtime import cli, exit, options, refused, schema, streams
from runtime.errors import RunError
from runtime.run_dir import Run
from tests import commands
from tests.faults import bad_inputs

ROOT = bad_inputs.conftest.ROOT
# Commands that make something beside what they print before they are done, and go on unheard.
KEEPS = {
    'train.pretrain',
    'train.posttrain',
    'studies.ablate',
    'studies.claims',
    'studies.countries',
    'studies.extend',
    'launch.aot.check_budgets',
    'launch.local',
    'studies.quickstart',
    'studies.quickstart_seeds',
    'studies.retrieval_lineage',
    'apps.import_model',
    'apps.export_model',
}


def _list_programs() -> list[str]:
    """Modules that run as programs."""
    names = [
        '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__main__')
        for room in commands.ROOMS
        for path in sorted((ROOT / room).rglob('*.py'))
        if "if __name__ == '__main__':" in path.read_text()
    ]
    return [name for name in names if name not in commands.OTHERS]


@pytest.fixture(autouse=True)
def _loggers():
    with commands.keep_loggers():
        yield


@contextlib.contextmanager
def _streams(out: str = '', err: str = '', encoding: str = 'utf-8'):
    """Standard streams of a kind: '' (kept in a file), 'closed', 'unread' (a pipe whose reader has
    gone) or 'full' (/dev/full). Yields a list that in the end holds what was written to each."""
    made, kept, told = [], [], []
    for kind in (out, err):
        file = None
        if kind == 'unread':
            read, write = os.pipe()
            os.close(read)
            file = open(write, 'wb')
        elif kind != 'closed':
            file = open('/dev/full' if kind == 'full' else os.memfd_create('out'), 'wb')
        made.append(file and io.TextIOWrapper(file, encoding, errors='strict'))
        kept.append(file)
    with mock.patch.object(sys, 'stdout', made[0]), mock.patch.object(sys, 'stderr', made[1]):
        yield told
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # as the interpreter does when it ends: it must not raise
    for kind, file in zip((out, err), kept):
        told.append(b'' if kind else os.pread(file.fileno(), 10**6, 0))
    for stream in made:
        with contextlib.suppress(OSError):
            stream and stream.close()


def _code(call) -> int:
    with pytest.raises(SystemExit) as end:
        call()
    return end.value.code or 0


def _tried(name: str, *words: str) -> int:
    """The exit code of a command that ends before main runs, with the streams there are."""
    with (
        commands.isolate_flags(),
        mock.patch.object(sys, 'argv', [name, *words]),
        mock.patch.object(cli, 'settle', lambda: None),
        mock.patch.object(app, '_define_help_flags_called', 'help' in flags.FLAGS),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        return _code(lambda: runpy.run_module(name, run_name='__main__'))


@pytest.mark.parametrize('name', _list_programs())
def test_every_command_passes_through(name):
    """Catches a command that is run without runtime/exit.py, and one that does not say whether it
    goes on when nobody reads what it prints."""
    assert bool(commands.read_definitions(name)[0].get('keeps')) == (name in KEEPS)


@pytest.mark.parametrize('name', _list_programs())
def test_streams_of_every_command(name):
    """Catches a message that its stream cannot show, a help that nobody reads, and a closed stream,
    that end in an exception or in another code than they should."""
    with _streams(encoding='ascii') as told:
        assert _tried(name, '--é€=1') == 2
    assert rb'\xe9\u20ac' in told[1] and told[1].startswith(b'error: '), told
    for err in ('closed', 'unread', 'full'):
        with _streams(err=err):
            assert _tried(name, '--é€=1') == 2, err
    for out, err in (('unread', ''), ('unread', 'unread'), ('closed', 'closed')):
        with _streams(out, err) as told:
            assert _tried(name, '--help') in (1, streams.GONE), (out, err)  # absl's is 1
        assert told[1] == b''
    with _streams('full') as told:
        assert _tried(name, '--help') in (1, os.EX_IOERR)
    assert told[1].startswith(b'error: stdout: No space left on device'), told


def _loop(folder: pathlib.Path) -> dict[str, str]:
    """Names that the system refuses, and what is said of each."""
    (folder / 'loop').symlink_to('loop')
    (folder / 'file.py').write_text('')
    return {
        'x' * 300 + '.py': 'File name too long',
        '/'.join(['x' * 200] * 25) + '.py': 'File name too long',
        'loop/a.py': 'symbolic links',
        'file.py/inside.py': 'file.py is a file',
    }


def _refusals(name: str, flag: str, folder: pathlib.Path) -> None:
    for path, what in _loop(folder).items():
        with contextlib.chdir(folder), _streams() as told:
            assert _tried(name, f'--{flag}={path}') == 2, (flag, path)
        line = told[1].decode()
        assert line.startswith(f'error: --{flag}=') and line.count('\n') == 1, line
        assert what in line and 'expected' in line and len(line) < 250, line


@pytest.mark.parametrize('name', _list_programs())
def test_names_that_the_system_refuses(name, tmp_path):
    """Catches a flag for a path whose value goes on to where the system's refusal is a traceback,
    another line, or taken for something that is not there."""
    for number, (flag, defined) in enumerate(sorted(commands.read_definitions(name)[1].items())):
        if isinstance(defined.parser, options.Path) and defined.parser.there:
            folder = tmp_path / str(number)
            folder.mkdir()
            _refusals(name, flag, folder)
        elif flag == 'config':
            _refusals(name, flag, tmp_path)


@pytest.mark.parametrize('field', schema.names(lambda entry: entry.path))
def test_fields_that_the_system_refuses(field, tmp_path):
    """Catches a field of a config whose path is only looked at after other work."""
    for path, what in _loop(tmp_path).items():
        words = (f'--config={ROOT}/configs/base.py', '--run=new', f'--config.{field}={path}')
        with contextlib.chdir(tmp_path), _streams() as told:
            assert _tried('train.pretrain', *words) == 2
        line = told[1].decode()
        assert line.startswith(f'error: config.{field}=') and what in line, line


@pytest.mark.parametrize('left, code', [(['b.txt'], 2), (['b.txt', '--', 'x'], 2), ([], 0)])
def test_words_beside_the_flags(left, code):
    """Catches a second file after a space, or a flag without its dashes, that nobody hears of."""
    for words in ([], ['--', 'python', '-m', 'x']) if not left else ([],):
        with mock.patch.object(sys, 'argv', ['main', *left, *words]), _streams() as told:
            assert _code(lambda: exit.run(lambda: None)) == code
        assert (b"error: 'b.txt': expected flags only" in told[1]) == bool(code)


def _main(call, **keywords) -> int:
    with mock.patch.object(sys, 'argv', ['main']):
        return _code(lambda: exit.run(call, **keywords))


NUMBERS = ('ENOENT', 'EACCES', 'EPERM', 'EROFS', 'EISDIR', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG')


@pytest.mark.parametrize('number', [*NUMBERS, 'EEXIST', 'EINVAL', 'EMFILE', 'EXDEV'])
def test_refusals_while_main_runs(number, tmp_path):
    """Catches a refusal of the system that ends in a traceback, wherever in main it comes."""
    path = str(tmp_path / 'some\nfile')

    def main():
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)), path)

    with _streams() as told:
        assert _main(main) == 2
    line = told[1].decode()
    assert line.startswith('error: ') and line.count('\n') == 1, line
    assert '; expected ' in line and r'\nfile' in line, line


@pytest.mark.parametrize('number', ['ENOSPC', 'EDQUOT', 'EFBIG', 'EIO'])
@pytest.mark.parametrize('named', [True, False])
def test_no_room_is_worth_another_try(number, named):
    """Catches a full disk that is told as a mistake of the user, or with a traceback."""
    number = getattr(errno, number)

    def main():
        raise OSError(number, os.strerror(number), *['some/file'] * named)

    with _streams() as told:
        assert _main(main) == os.EX_IOERR
    assert os.strerror(number).encode() in told[1] and told[1].count(b'\n') == 1


def test_what_libraries_say_of_the_system():
    """Catches a refusal that only the words of a library in C++ tell of."""
    said = 'NOT_FOUND: Error opening "/a/b": [OS error 36: ENAMETOOLONG File name too long] [x=1]'
    found = refused.explain(ValueError(said), [('--run', '/a')])
    assert str(found).startswith('--run=/a: /a/b: File name too long; expected at most 255 bytes')
    assert refused.explain(ValueError('something else'), []) is None


def test_a_place_that_cannot_be_written(tmp_path):
    """Catches hours of work for a folder that nothing can be written to."""
    for number in (errno.EROFS, errno.EACCES, errno.ENOSPC):
        refusal = OSError(number, os.strerror(number), 'some/file')
        with mock.patch.object(os, 'mkdir', mock.Mock(side_effect=refusal)):
            with pytest.raises(RunError, match=f'^--out=new/x: {os.strerror(number)}; ') as told:
                refused.check_writable('--out', 'new/x')
        assert told.value.code == (os.EX_IOERR if number == errno.ENOSPC else 2)
    with pytest.raises(RunError, match='^--out=/proc/x: .*; expected a place that can be written'):
        refused.check_writable('--out', '/proc/x')  # where not even root can make anything
    with contextlib.chdir(tmp_path):
        refused.check_writable('--out', 'new/x')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('keeps', [False, True])
@pytest.mark.parametrize('out, code', [('unread', streams.GONE), ('full', os.EX_IOERR)])
def test_nobody_reads(keeps, out, code):
    """Catches work that ends with its reader, a printer that goes on for nobody, and a full disk
    under stdout that nothing tells of."""
    done = []

    def main():
        for number in range(3):
            print('€' * 10_000, flush=True)
            print('told', file=sys.stderr)
            done.append(number)

    with _streams(out, 'unread' if out == 'unread' else '') as told:
        assert _main(main, keeps=keeps) == (0 if keeps and out == 'unread' else code)
    assert done == ([0, 1, 2] if keeps else [])
    assert (b'stdout: No space left' in told[1]) == (out == 'full')


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp1252'])
def test_what_an_encoding_lacks(encoding):
    """Catches text that is lost, and work that fails at its last line, for a character."""
    with _streams(encoding=encoding) as told:
        assert _main(lambda: [print('a█ж'), print('b█ж', file=sys.stderr)]) == 0
    assert told == [rb'a\u2588\u0436' + b'\n', rb'b\u2588\u0436' + b'\n']


@pytest.mark.parametrize('encoding', ['ascii', 'utf-8'])
def test_input_is_utf8_and_what_is_not_is_kept(encoding):
    """Catches a chat or a query that a byte from stdin ends."""
    given = io.TextIOWrapper(io.BufferedReader(io.BytesIO('é\n'.encode() + b'\xe9\n')), encoding)
    with mock.patch.object(sys, 'stdin', given), _streams() as told:
        assert _main(lambda: print(ascii(sys.stdin.read()))) == 0
    assert told[0] == rb"'\xe9\n\udce9\n'" + b'\n'


def _program(words: list[str], folder: pathlib.Path, **variables) -> tuple[int, str]:
    """The exit code of a program whose output goes to a pipe without a reader, for as long as its
    words do not say otherwise, and what it says of itself on a stream of its own."""
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, 'PYTHONPATH': str(ROOT), **variables}
    with open(write, 'wb') as unread:
        done = subprocess.run(
            words, stdout=unread, stderr=subprocess.PIPE, text=True, env=env, cwd=folder
        )
    return done.returncode, done.stderr


def test_as_a_shell_starts_them(tmp_path):
    """Catches what only the end of an interpreter says, and a file that takes the number of a
    closed stream and then what is printed."""
    prints = "from runtime import exit; exit.run(lambda: print('x' * 9), keeps=%s)"
    opened = (
        'import os, sys; from runtime import exit; exit.run(lambda: [open("f", "w"), '
        'os.write(2, b"x"), os.write(1, b"y"), sys.stdout.isatty(), sys.stdin.read()])'
    )

    def python(code):
        return [sys.executable, '-c', code]

    assert _program(python(prints % False), tmp_path) == (streams.GONE, '')
    assert _program(python(prints % True), tmp_path) == (0, '')
    shell = ['bash', '-c', f"{sys.executable} -c '{opened}' <&- >&- 2>&-"]
    assert _program(shell, tmp_path) == (0, '') and (tmp_path / 'f').read_text() == ''


def test_training_goes_on_unheard(tmp_path):
    """Catches a training that the end of its reader ends, or that its own report fails."""
    bad_inputs.furnish(tmp_path)
    words = f'{sys.executable} -m train.pretrain --config=mine.py --run=café 2>&1'
    assert _program(['bash', '-c', words], tmp_path, PYTHONIOENCODING='ascii') == (0, '')
    assert Run.parse(str(tmp_path / 'café')).steps() == [4]


def test_a_message_is_one_line():
    """Catches a name with an end of a line in it that makes two lines of a message, the second of
    which passes for one of its own."""
    record = logging.LogRecord('ordem', logging.INFO, '', 0, '%s: read', ('a\nERROR: b.txt',), None)
    told = cli._Formatter('%(levelname)s: %(message)s').format(record)
    assert told == r'INFO: a\nERROR: b.txt: read'


def test_no_path_is_not_the_folder_one_is_in():
    """Catches an unset variable of a shell (`$TEXTS`) that indexes, or takes out, all there is."""
    with pytest.raises(RunError, match='^PATH is empty: expected a path'):
        cli.check_path('PATH', ' ')
    values = flags.FlagValues()
    options.paths('remove', 'What to take out', values)
    with pytest.raises(flags.IllegalFlagValueError, match='expected a path, found nothing'):
        values(['', '--remove='])


def test_flags_of_other_programs():
    """Catches a command that cannot define its flags since a test imported another program's."""
    flags.DEFINE_string('run', '', 'of another program', module_name='tests.another')
    try:
        for _ in range(2):
            with commands.isolate_flags():
                assert 'run' not in flags.FLAGS
                options.path('run', '', 'of the command')
        assert flags.FLAGS.find_module_defining_flag('run') == 'tests.another'
    finally:
        delattr(flags.FLAGS, 'run')
