"""Makes a cloud that is a directory.

The stand-in for gcloud is first on PATH, and a small repository is there whose code is sent.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests import commands

ROOT = pathlib.Path(__file__).resolve().parents[2]

# What is "trained": started anew it writes a step and waits, resumed it finishes. $1 is the bucket,
# the rest stays as it came.
TRAIN = """
bucket=$1; shift
printf '%s\\n' "$@" > "$bucket/argument-$(hostname)"
if [ -f "$bucket/step" ]; then echo "resumed after step $(cat "$bucket/step")"; exit 0; fi
case $(hostname) in *-w-0) echo 100 > "$bucket/step";; esac
echo 'step 100'
sleep 60
"""


class Cloud:
    """Stands for a cloud: its state, its machines, and the repository that is sent there."""

    def __init__(self, folder):
        self.folder = folder / 'cloud'
        self.repository = folder / 'repository'
        self.bucket = folder / 'bucket'
        for path in (
            self.folder / 'bin',
            self.folder / 'path',
            self.repository / 'launch',
            self.bucket,
        ):
            path.mkdir(parents=True)

        # The stand-in answers for gcloud, and each worker has a name.
        self.write({'calls': [], 'resources': {}})
        self.program(
            self.folder / 'path' / 'gcloud',
            f'#!{sys.executable} -IS\n' + (ROOT / 'tests/launch/gcloud_stand_in.py').read_text(),
        )
        self.program(self.folder / 'bin' / 'hostname', '#!/bin/sh\necho "$WORKER"\n')

        # What is sent: the real worker.sh, and a set-up that installs nothing.
        shutil.copy(ROOT / 'launch/worker.sh', self.repository / 'launch')
        self.program(
            self.repository / 'launch/env.sh',
            '#!/bin/sh\necho "$ORDEM_EXTRAS" > "$HOME/extras"\nexec "$@"\n',
        )
        (self.repository / 'train.sh').write_text(TRAIN)
        (self.repository / '.gitignore').write_text('/runs/\n')
        self.git('init', '-q')
        self.commit()

    @staticmethod
    def program(path, text):
        path.write_text(text)
        path.chmod(0o755)

    def git(self, *words):
        return subprocess.run(
            ['git', '-c', 'user.name=n', '-c', 'user.email=e', *words],
            cwd=self.repository,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def commit(self):
        self.git('add', '-A')
        self.git('commit', '-qm', 'code')

    def read(self):
        return json.loads((self.folder / 'state.json').read_text())

    def write(self, state):
        (self.folder / 'state.json').write_text(json.dumps(state))

    def set(self, **what):
        self.write(self.read() | what)

    def calls(self, *verb):
        """Returns the calls of one verb, or the verbs of all."""
        calls = self.read()['calls']
        if verb:
            return [words for words in calls if tuple(words[2:4]) == verb]
        return [' '.join(words[2:4]) for words in calls]

    def worker(self, node='llama', i=0):
        return self.folder / 'workers' / node / str(i)

    @staticmethod
    def run_here(*words, module='launch.tpu_vm'):
        """Runs a command in this process: where only what it says counts."""
        return commands.run_here(module, *words)

    def run_command(self, *words, module='launch.tpu_vm', **env):
        return subprocess.run(
            [sys.executable, '-m', module, *words],
            cwd=self.repository,
            capture_output=True,
            text=True,
            env={**os.environ, 'PYTHONPATH': str(ROOT), **env},
            timeout=60,
        )


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Returns a cloud, first on PATH; the current folder is its repository."""
    directory = Cloud(tmp_path)
    monkeypatch.setenv('STAND_IN', str(directory.folder))
    monkeypatch.setenv('PATH', f'{directory.folder / "path"}:{os.environ["PATH"]}')
    monkeypatch.chdir(directory.repository)
    yield directory

    # What a test that failed has left running.
    for pid in directory.folder.glob('workers/*/*/ordem/pid'):
        try:
            os.killpg(int(pid.read_text()), 9)
        except ProcessLookupError:
            pass
