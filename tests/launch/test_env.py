"""What the set-up command installs, refuses and leaves behind, and what setup.py promises."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest


def env(**variables):
    return subprocess.run(
        ['sh', 'launch/env.sh', 'true'],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_gpu_and_tpu_exclude_each_other():
    """Catches two accelerator builds of JAX in one environment."""
    done = env(ORDEM_EXTRAS='test,gpu,tpu')
    assert (
        done.returncode == 2
        and done.stderr == 'error: ORDEM_EXTRAS is test,gpu,tpu: gpu and tpu exclude each other\n'
    )


def test_a_missing_interpreter_is_named(tmp_path):
    """Catches an old Python taken as it is, and a shell error for a message."""
    for name in ('python3', 'python3.11', 'python3.12', 'python3.13'):
        (tmp_path / name).write_text('#!/bin/sh\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    done = env(PATH=f'{tmp_path}:{os.environ["PATH"]}', ORDEM_PYTHON='')
    assert done.returncode == 2 and done.stderr.startswith('error: no CPython 3.11 to 3.13 found')


# What `python -m venv` and `python -m pip install` are documented to do, without a network: a venv
# is made or brought up to date where it stands, and a failed installation says ERROR and exits
# with 1.
PYTHON = """#!/bin/sh
case "$*" in
-VV) echo "Python 3.12.1 (stand-in)";;
"-c "*) exit 0;;
"-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    echo "venv $3" >> "$CALLS";;
"-m pip install "*)
    echo "pip $*" >> "$CALLS"
    if [ -n "${PIP_ENDS:-}" ]; then echo "ERROR: $PIP_ENDS" >&2; eval "$PIP_ENDS"; fi;;
*) echo "ran $*";;
esac
"""
# `uv venv` refuses a folder that is there unless --allow-existing, and puts no pip into it.
UV = """#!/bin/sh
echo "uv $*" >> "$CALLS"
case "$1" in
venv)
    for folder in "$@"; do :; done
    case " $* " in *" --allow-existing "*) ;; *) if [ -e "$folder" ]; then exit 2; fi;; esac
    mkdir -p "$folder/bin"
    printf '#!/bin/sh\\necho "ran $*"\\n' > "$folder/bin/python"
    chmod +x "$folder/bin/python";;
pip) exit "${UV_ENDS:-0}";;
esac
"""
PIP = '-m pip install --quiet --disable-pip-version-check'


class Checkout:
    """A copy of what env.sh reads, with stand-ins for the tools that it calls."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = folder / '.venv'
        (folder / 'launch').mkdir()
        (folder / 'tools').mkdir()
        shutil.copy('launch/env.sh', folder / 'launch')
        shutil.copy('setup.py', folder)
        self.add_tool('python3', PYTHON)

    def add_tool(self, name, text):
        (self.folder / 'tools' / name).write_text(text)
        (self.folder / 'tools' / name).chmod(0o755)

    def env(self, *command, **variables):
        """Runs env.sh with a command, `python true` unless one is given."""
        settings = {
            'PATH': f'{self.folder}/tools:/usr/bin:/bin',
            'CALLS': str(self.folder / 'calls'),
            **variables,
        }
        return subprocess.run(
            ['sh', 'launch/env.sh', *(command or ('python', 'true'))],
            cwd=self.folder,
            env=settings,
            capture_output=True,
            text=True,
        )

    def calls(self):
        """Returns what the stand-ins were asked for since the last time."""
        path = self.folder / 'calls'
        calls = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return calls

    def installed(self):
        """Returns what was to be installed since the last time."""
        return [call.split(' -e ')[1] for call in self.calls() if ' -e ' in call]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_the_first_command_installs_the_core_and_pytest_adds_its_extra(checkout):
    """Catches tests' packages in everybody's environment, and one that is made anew."""
    done = checkout.env('python', '-m', 'studies.quickstart')
    assert (done.returncode, done.stdout) == (0, 'ran -m studies.quickstart\n')
    assert re.fullmatch(
        r'Making the environment in \.venv: about \d+ MB to download, once \.\.\.\n', done.stderr
    )
    assert checkout.calls() == ['venv .venv', f'pip {PIP} -e .']

    done = checkout.env('python', '-m', 'pytest', '-m', 'quick')
    assert done.stdout == 'ran -m pytest -m quick\n'
    assert done.stderr.startswith('Adding test to the environment in .venv: about ')
    assert checkout.installed() == ['.[test]']

    # Back to the core, and to the tests again: nothing is to be done.
    for command in (('python', '-m', 'studies.quickstart'), ('python', '-m', 'pytest')):
        done = checkout.env(*command)
        assert (done.returncode, done.stderr, checkout.calls()) == (0, '', [])


def test_extras_are_added_to_those_that_are_there(checkout):
    """Catches an extra that takes the others' place, or that is installed again."""
    checkout.env(ORDEM_EXTRAS='test,hf')
    assert checkout.installed() == ['.[test,hf]']
    checkout.env('ruff', ORDEM_EXTRAS='hf')
    assert checkout.installed() == ['.[test,hf,dev]']
    checkout.env('python', '-m', 'mypy', ORDEM_EXTRAS='hf, test')
    assert checkout.installed() == []

    # Another setup.py, constraints or interpreter: everything that is there, once.
    with open(checkout.folder / 'setup.py', 'a') as f:
        f.write('# changed\n')
    done = checkout.env()
    assert done.stderr == 'Bringing the environment in .venv up to date ...\n'
    assert checkout.installed() == ['.[test,hf,dev]']
    (checkout.folder / 'oldest.txt').write_text('numpy==2.0.0\n')
    checkout.env(ORDEM_CONSTRAINTS='oldest.txt')
    assert checkout.installed() == ['.[test,hf,dev] -c oldest.txt']
    checkout.env(ORDEM_ENV='other')
    assert checkout.calls() == ['venv other', f'pip {PIP} -e .']


def test_a_mistyped_extra_is_named(checkout):
    """Catches an extra that pip would pass over with a warning."""
    done = checkout.env(ORDEM_EXTRAS='tests')
    assert done.returncode == 2 and checkout.calls() == []
    assert done.stderr.startswith("error: ORDEM_EXTRAS has 'tests': expected some of core,dev,")


def test_the_other_accelerator_is_not_added(checkout):
    """Catches a second build of JAX in the environment of the first."""
    checkout.env(ORDEM_EXTRAS='gpu')
    checkout.calls()
    done = checkout.env(ORDEM_EXTRAS='tpu')
    assert done.returncode == 2 and checkout.calls() == []
    assert done.stderr == (
        'error: ORDEM_EXTRAS adds tpu to .venv, which has gpu: gpu and tpu exclude each other; '
        'give the other one a folder: ORDEM_ENV=.venv-2\n'
    )


@pytest.mark.parametrize(
    'ends, code', [('exit 1', 1), ('exit 2', 1), ('kill -INT $PPID', 130), ('kill $PPID', 143)]
)
def test_a_failed_installation_leaves_nothing(checkout, ends, code):
    """Catches half an environment, taken for a whole one or filling the disk."""
    done = checkout.env(PIP_ENDS=ends)
    assert (done.returncode, done.stdout) == (code, '')
    assert 'ERROR: ' in done.stderr and done.stderr.endswith(
        'error: the environment could not be made; .venv is removed again\n'
    )
    assert not checkout.environment.exists()
    assert checkout.env().returncode == 0 and checkout.environment.exists()


@pytest.mark.parametrize('ends, code', [('exit 1', 1), ('kill -INT $PPID', 130)])
def test_an_environment_that_was_there_is_kept(checkout, ends, code):
    """Catches a working environment removed since an addition to it failed."""
    checkout.env()
    (checkout.environment / 'mine').write_text('')
    done = checkout.env('pytest', PIP_ENDS=ends)
    assert (done.returncode, done.stdout) == (code, '')
    assert done.stderr.endswith(
        'error: the environment could not be changed; nothing was removed from .venv\n'
    )
    checkout.calls()
    done = checkout.env()
    assert (done.returncode, done.stderr, checkout.calls()) == (0, '', [])
    assert (checkout.environment / 'mine').exists()

    # The addition is tried again.
    checkout.env('python', '-m', 'pytest')
    assert checkout.installed() == ['.[test]']


def test_a_folder_that_is_not_ours_is_kept(checkout):
    """Catches a folder removed that env.sh did not make."""
    checkout.environment.mkdir()
    (checkout.environment / 'thesis.tex').write_text('')
    assert checkout.env(PIP_ENDS='exit 1').returncode == 1
    assert (checkout.environment / 'thesis.tex').exists()


def test_uv_is_taken_only_when_asked_for(checkout):
    """Catches uv chosen silently, which does not read pip's settings, and pip in its place."""
    checkout.add_tool('uv', UV)
    checkout.env()
    assert checkout.calls()[0] == 'venv .venv'

    done = checkout.env('pytest', ORDEM_ENV='fast', ORDEM_UV='1', ORDEM_CONSTRAINTS='setup.py')
    venv, install = checkout.calls()
    assert venv.startswith('uv venv ') and venv.endswith(' --python python3 fast')
    assert install == (
        'uv pip install --quiet --python fast/bin/python --compile-bytecode -e .[test] -c setup.py'
    )
    assert done.stderr.startswith('Making the environment in fast: ')

    # An environment made by pip is added to by uv, and the other way round.
    assert checkout.env(ORDEM_UV='1', ORDEM_EXTRAS='hf').returncode == 0
    assert [call.split()[0] for call in checkout.calls()] == ['uv', 'uv']
    assert checkout.env(ORDEM_ENV='fast', ORDEM_EXTRAS='hf').returncode == 0
    assert checkout.calls() == ['venv fast', f'pip {PIP} -e .[test,hf]']

    done = checkout.env(ORDEM_ENV='third', ORDEM_UV='1', UV_ENDS='1')
    assert done.returncode == 1 and not (checkout.folder / 'third').exists()


@pytest.mark.parametrize(
    'value, message',
    [
        ('1', 'error: ORDEM_UV is 1, and there is no uv: pip install uv\n'),
        ('yes', 'error: ORDEM_UV is yes: expected 0 (pip) or 1 (uv)\n'),
    ],
)
def test_what_is_asked_of_uv_is_done_or_refused(checkout, value, message):
    """Catches pip taken where uv was asked for."""
    done = checkout.env(ORDEM_UV=value)
    assert (done.returncode, done.stderr) == (2, message)
    assert not checkout.environment.exists()


def test_each_extra_is_known_and_says_how_much_it_downloads(checkout):
    """Catches an extra of setup.py that env.sh refuses, or whose size it does not know."""
    text = pathlib.Path('setup.py').read_text()
    extras = re.findall(r"^        '([\w-]+)': \[", text, re.M)
    known = re.search(r'^known=(.*)$', pathlib.Path('launch/env.sh').read_text(), re.M)[1]
    assert sorted(['core', *extras]) == known.split(',')
    for extra in extras:
        checkout.env()
        done = checkout.env(ORDEM_EXTRAS=extra)
        assert int(re.search(r'about (\d+) MB to download', done.stderr)[1]) > 0, extra
        shutil.rmtree(checkout.environment)


def test_every_dependency_has_a_window_and_its_oldest_release_is_pinned():
    """Catches a dependency without bounds, and an oldest version that is not the one tested."""
    listed = re.findall(
        r"'([A-Za-z0-9\-]+)(?:\[\w+\])?>=([0-9.]+),<([0-9.]+)'",
        pathlib.Path('setup.py').read_text(),
    )
    pinned = dict(
        re.findall(
            r'^([A-Za-z0-9\-]+)==([0-9.]+)$', pathlib.Path('launch/oldest.txt').read_text(), re.M
        )
    )
    assert len(listed) > 14

    def exact(version):
        return (version.split('.') + ['0', '0'])[:3]

    for name, low, _ in listed:
        assert exact(pinned[name]) == exact(low), name
    plain = re.findall(r"^        '([^']+)',$", pathlib.Path('setup.py').read_text(), re.M)
    assert all('>=' in p and ',<' in p for p in plain)
