"""Checks the sbatch script.

Its head by its fields, its body by running it with stand-ins for srun and scontrol.
"""

import os
import re
import subprocess
import time

import pytest

AWKWARD = '--run=it\'s a "run"; $HOME `x` \\ *'
COMMAND = dict(module='launch.slurm')


@pytest.fixture
def slurm(cloud):
    """Returns `cloud` with sbatch, srun and scontrol that write down how they were called."""
    path = cloud.folder / 'path'
    cloud.program(
        path / 'sbatch',
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {cloud.bucket}/sbatch\necho Submitted batch job 42\n',
    )
    cloud.program(
        path / 'srun',
        '#!/bin/sh\nwhile case "$1" in --*) true;; *) false;; esac; do shift; done\nexec "$@"\n',
    )
    cloud.program(path / 'scontrol', f'#!/bin/sh\necho "$@" > {cloud.bucket}/scontrol\n')
    return cloud


def test_submit(slurm):
    """Catches a script that is written but not submitted, or without the code it needs.

    Also fields that sbatch does not know.
    """
    done = slurm.run_command(
        'submit',
        '--name=gpt2',
        '--nodes=2',
        '--gpus_per_node=8',
        '--partition=a,b',
        '--account=me',
        '--',
        'true',
        AWKWARD,
        **COMMAND,
    )
    assert (done.returncode, done.stdout) == (0, 'Submitted batch job 42\n'), done.stderr
    script = (slurm.bucket / 'sbatch').read_text().strip()
    text = open(script).read()
    fields = dict(re.findall(r'^#SBATCH --([\w-]+)(?:=(.*))?$', text, re.M))
    assert fields == {
        'job-name': 'gpt2',
        'nodes': '2',
        'ntasks-per-node': '8',
        'gpus-per-node': '8',
        'partition': 'a,b',
        'account': 'me',
        'time': '24:00:00',
        'output': f'{os.path.dirname(script)}/log',
        'open-mode': 'append',
        'requeue': '',
        'signal': 'B:TERM@120',
    }
    assert 'ORDEM_EXTRAS=gpu' in text
    code = re.search(r'^cd (\S+)', text, re.M)[1]
    assert os.path.exists(f'{code}/train.sh')
    assert subprocess.run(['bash', '-n', script]).returncode == 0


def written(slurm, *command):
    done = slurm.run_command('script', '--name=gpt2', '--', *command, **COMMAND)
    assert done.returncode == 0, done.stderr
    return ['bash', done.stdout.strip()]


def requeued(slurm):
    return (slurm.bucket / 'scontrol').exists()


@pytest.mark.parametrize(
    'code, restarts, ends, again',
    [(0, 0, 0, False), (2, 0, 2, False), (7, 0, 0, True), (7, 3, 7, False)],
)
def test_how_it_ends(slurm, code, restarts, ends, again):
    """Catches a mistake that is queued for ever, and a failure that is not tried again.

    Also arguments split or read by a shell.
    """
    env = {**os.environ, 'SLURM_JOB_ID': '42', 'SLURM_RESTART_COUNT': str(restarts)}
    done = subprocess.run(
        written(slurm, 'sh', '-c', f'printf %s "$0" > {slurm.bucket}/said; exit {code}', AWKWARD),
        env=env,
        capture_output=True,
    )
    assert (done.returncode, requeued(slurm)) == (ends, again)
    assert (slurm.bucket / 'said').read_text() == AWKWARD


def test_it_gives_way(slurm):
    """Catches a run killed at the time limit without having been told.

    Also one that is told and not queued again.
    """
    command = (
        f'trap "echo told > {slurm.bucket}/said; exit 143" TERM; echo > {slurm.bucket}/runs; '
        'while :; do sleep 0.05; done'
    )
    job = subprocess.Popen(
        written(slurm, 'sh', '-c', command),
        env={**os.environ, 'SLURM_JOB_ID': '42', 'SLURM_RESTART_COUNT': '9'},
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 20
    while not (slurm.bucket / 'runs').exists() and time.monotonic() < until:
        time.sleep(0.02)
    job.terminate()
    assert job.wait(20) == 0
    assert (slurm.bucket / 'said').read_text() == 'told\n'
    assert (slurm.bucket / 'scontrol').read_text() == 'requeue 42\n'


def test_dry_run_is_what_is_done(slurm):
    """Catches a printed script that a shell would not write as it is."""
    done = slurm.run_command('submit', '--name=gpt2', '--dry_run', '--', 'true', AWKWARD, **COMMAND)
    assert done.returncode == 0 and not (slurm.bucket / 'sbatch').exists()
    subprocess.run(['sh', '-e'], input=done.stdout, text=True, check=True, capture_output=True)
    printed = open((slurm.bucket / 'sbatch').read_text().strip()).read()
    assert printed == open(written(slurm, 'true', AWKWARD)[1]).read()


@pytest.mark.parametrize(
    'words, message',
    [
        (('sumbit',), "did you mean 'submit'"),
        (('submit', '--name=x'), 'no command'),
        (('submit', '--name=A b', '--', 'x'), '--name=A b: expected'),
        (('submit', '--name=x', '--time=soon', '--', 'x'), '--time=soon: expected minutes'),
        (('submit', '--name=x', '--nodes=0', '--', 'x'), '--nodes=0'),
        (('submit', '--name=x', '--folder=/tmp/50%', '--', 'x'), '--folder=/tmp/50%: expected'),
        (('submit', '--name=x', '--account=a;b', '--', 'x'), '--account=a;b: expected'),
    ],
)
def test_mistakes(slurm, words, message):
    """Catches a script with a field of another meaning, and a traceback."""
    done = slurm.run_here(*words, **COMMAND)
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert message in done.stderr and done.stderr.startswith('error: ')


def test_no_slurm_here(slurm):
    """Catches a traceback on a machine that is not of the cluster."""
    (slurm.folder / 'path/sbatch').unlink()
    done = slurm.run_command('submit', '--name=x', '--', 'true', **COMMAND)
    assert done.returncode == 2 and 'sbatch is not installed here: copy' in done.stderr
