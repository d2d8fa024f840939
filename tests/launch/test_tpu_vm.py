"""Runs the launcher of TPU VMs against the stand-in for gcloud (gcloud_stand_in.py)."""

import re
import shutil
import subprocess
import sys

import pytest

from launch import accelerators, gcloud, snapshot
from launch.gcloud import Gcloud, GcloudError, Request
from launch.launcher import Launcher, PreemptedError
from runtime.errors import RunError

WHERE = ('--name=llama', '--zone=us-west4-a')
QUICK = (*WHERE, '--poll_seconds=0')
AWKWARD = '--run=gs://bucket/it\'s a "run"; $HOME `x` \\ *'


def make_launcher(**how):
    settings = {'poll': 0, 'sleep': lambda seconds: None, **how}
    return Launcher(Gcloud('llama', 'us-west4-a'), **settings)


def start_launcher(cloud, kind='v5litepod-4', slices=1, **how):
    """Returns a launcher whose machines are there."""
    launcher = make_launcher(**how)
    launcher.create(Request(kind, 'v2-alpha-tpuv5-lite', slices))
    return launcher


def run(launcher, *command, keep_going=False, retries=3):
    commit = snapshot.pin()
    archive = f'runs/launch/llama/ordem-{commit[:12]}.tar.gz'
    snapshot.execute(snapshot.commands(commit, archive))
    return launcher.run(list(command), commit, archive, keep_going, retries)


def test_a_full_life(cloud):
    """Catches a launcher that loses the command, its arguments' quoting, or a worker on the way.

    Also one that takes a lost connection for an end. The life: queued, active, run, preempted,
    re-created, resumed, finished, deleted.
    """
    cloud.set(
        create=[
            ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'],
            ['WAITING_FOR_RESOURCES', 'ACTIVE'],
        ],
        preempt=[True, False],
    )
    done = cloud.run_command('create', *QUICK, '--type=v5litepod-16', '--spot')
    assert done.returncode == 0
    states = re.findall(r'llama: ([A-Z_]+)\n', done.stderr)
    assert states == ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']

    done = cloud.run_command(
        'run', *QUICK, '--keep_going', '--', 'sh', 'train.sh', str(cloud.bucket), AWKWARD
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'step 100\nresumed after step 100\n'

    # The argument came to every worker as it was given, and so did the machines' extra.
    arguments = sorted(cloud.bucket.glob('argument-*'))
    assert [path.name for path in arguments] == [f'argument-t1v-n-llama-w-{i}' for i in range(4)]
    assert {path.read_text() for path in arguments} == {AWKWARD + '\n'}
    assert all((cloud.worker(i=i) / 'extras').read_text() == 'tpu\n' for i in range(4))

    # The same machines were asked for again, and the same command started, after a deletion.
    first, second = cloud.calls('queued-resources', 'create')
    assert first == second and {
        '--spot',
        '--node-id=llama',
        '--runtime-version=v2-alpha-tpuv5-lite',
    } <= set(first)
    starts = [c for c in cloud.calls('tpu-vm', 'ssh') if any('worker.sh start' in w for w in c)]
    assert len(starts) == 2 and starts[0] == starts[1] and '--worker=all' in starts[0]
    verbs = cloud.calls()
    last_create = len(verbs) - 1 - verbs[::-1].index('queued-resources create')
    assert verbs.index('queued-resources delete') < last_create

    done = cloud.run_command('status', *QUICK)
    assert done.stdout.splitlines()[0] == 'llama: ACTIVE, v5litepod-16 x 1, spot'
    assert done.stdout.count('READY') == 1 and done.stdout.count(': exit 0') == 4
    assert cloud.run_command('delete', *QUICK).returncode == 0
    assert cloud.read()['resources'] == {} and not cloud.worker().exists()


@pytest.mark.parametrize('lag', ['PREEMPTED', 'missing'])
def test_slices_are_one_run(cloud, lag):
    """Catches a second slice that is not installed, not started, or not asked how it ended.

    Also a slice that is gone before the queue says so.
    """
    cloud.set(create=[['ACTIVE'], ['ACTIVE']], preempt=[True], lag=lag)
    command = ('sh', 'train.sh', str(cloud.bucket), 'x')
    assert run(start_launcher(cloud, slices=2), *command, keep_going=True) == 0
    assert {p.name for p in cloud.bucket.glob('argument-*')} == {
        'argument-t1v-n-llama-0-w-0',
        'argument-t1v-n-llama-1-w-0',
    }
    assert [w for w in cloud.calls('queued-resources', 'create')[1] if 'node' in w] == [
        '--node-count=2',
        '--node-prefix=llama',
    ]


@pytest.mark.parametrize(
    'code, keep_going, starts',
    [(0, True, 1), (2, True, 1), (143, True, 1), (7, False, 1), (7, True, 3)],
)
def test_exit_codes(cloud, code, keep_going, starts):
    """Catches a mistake tried again for ever, and a failure that is never tried again.

    Also an exit code lost behind ssh.
    """
    launcher = start_launcher(cloud)
    command = ('sh', '-c', f'echo started >> {cloud.bucket}/log; exit {code}')
    assert run(launcher, *command, keep_going=keep_going, retries=2) == code
    assert (cloud.bucket / 'log').read_text().count('started') == starts


def test_one_failed_worker_fails_the_run(cloud):
    """Catches a result read from worker 0 alone.

    Also one that counts a worker that does not answer among the finished.
    """
    launcher = start_launcher(cloud, 'v5litepod-16')
    assert run(launcher, 'sh', '-c', 'case $(hostname) in *-w-2) exit 2;; esac') == 2
    shutil.rmtree(cloud.worker(i=3))
    with pytest.raises(GcloudError, match='3 of 4 workers of llama answer'):
        launcher.follow()


def test_stop_and_follow_again(cloud, capfd):
    """Catches a second process beside the first, and a stop that kills what writes the exit code.

    Also a log shown twice or not at all.
    """
    launcher = start_launcher(cloud)
    command = ('sh', '-c', 'echo step 1; sleep 60')
    commit = snapshot.pin()
    snapshot.execute(snapshot.commands(commit, 'runs/a.tar.gz'))
    launcher.install('runs/a.tar.gz', commit)
    launcher.worker('start', *command)
    launcher.worker('start', *command)
    assert launcher.results() == [('llama t1v-n-llama-w-0', 'running')]
    with pytest.raises(
        GcloudError, match='another command runs on t1v-n-llama-w-0: sh -c echo step 1; sleep 60'
    ):
        launcher.worker('start', 'true')
    launcher.worker('stop')
    assert launcher.results() == [('llama t1v-n-llama-w-0', 'exit 143')]
    assert launcher.follow() == 143 and capfd.readouterr().out.count('step 1') == 1
    launcher.worker('start', *command)  # how it ended before says nothing of this start
    assert launcher.results() == [('llama t1v-n-llama-w-0', 'running')]
    launcher.worker('stop')


def test_going_on_with_a_run(cloud, capfd):
    """Catches a launcher that, given again, begins anew where the command has failed.

    It would install or start it on a worker beside the others that still run it. Also one that ends
    with worker 0, and one that shows the log again at each look.
    """
    launcher = start_launcher(cloud, 'v5litepod-16')
    command = (
        'sh',
        '-c',
        f'echo >> {cloud.bucket}/$(hostname); case $(hostname) in *-w-0) echo said; exit 0;; '
        '*-w-2) exit 7;; esac; '
        f'until [ -f {cloud.bucket}/go ]; do sleep 0.05; done',
    )
    commit = snapshot.pin()
    snapshot.execute(snapshot.commands(commit, 'runs/a.tar.gz'))
    launcher.install('runs/a.tar.gz', commit)
    launcher.worker('start', *command)
    while not {'exit 0', 'exit 7'} <= set(dict(launcher.results()).values()):
        pass

    # The others end only after a first look.
    def sleep(seconds):
        (cloud.bucket / 'go').touch()

    launcher.sleep = sleep
    assert run(launcher, *command) == 7
    starts = [(cloud.bucket / f't1v-n-llama-w-{i}').read_text().count('\n') for i in range(4)]
    assert starts == [1, 1, 1, 1]
    assert len(cloud.calls('tpu-vm', 'scp')) == 1 and capfd.readouterr().out.count('said') == 1


def test_a_wait_is_bounded(cloud):
    """Catches a launcher that waits in the queue for ever, or gives up at once.

    No second passes: the clock is the test's.
    """
    cloud.set(create=[['WAITING_FOR_RESOURCES']])
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    launcher = make_launcher(wait=600, poll=60, clock=lambda: now[0], sleep=sleep)
    with pytest.raises(
        RunError, match='still WAITING_FOR_RESOURCES after 10 minutes.*`run` goes on waiting'
    ):
        launcher.create(Request('v5litepod-4', 'r'))
    assert len(cloud.calls('queued-resources', 'describe')) == 11


def test_a_reason_of_the_moment(cloud):
    """Catches a run of days that ends with one answer of 503, and one that asks for ever."""
    launcher = start_launcher(cloud)
    cloud.set(fail=2)
    assert launcher.describe()['state'] == {'state': 'ACTIVE'}
    message = (
        "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Reads' and "
        "limit 'Reads per minute'"
    )
    assert gcloud._error(1, message, 'l', 'z').kind == 'other'
    cloud.set(fail=9)
    with pytest.raises(RunError, match='Internal error'):
        launcher.describe()


def test_ssh_that_comes_back(cloud):
    """Catches a run given up because a connection was refused once.

    Also a connection that does not come back taken for a refusal.
    """
    launcher = start_launcher(cloud)
    assert run(launcher, 'true') == 0
    cloud.set(refuse_ssh=2)
    assert launcher.follow() == 0
    launcher.worker('start', 'sh', '-c', 'echo step 1; sleep 60')
    cloud.set(preempt=[True])
    with pytest.raises(PreemptedError):
        launcher.follow()


def test_an_image_with_an_old_python(cloud):
    """Catches an installation that ends with 'no CPython 3.11 to 3.13 found'.

    The python3 of images of TPU VMs is 3.10.
    """
    cloud.program(
        cloud.repository / 'launch/env.sh',
        '#!/bin/sh\n[ "$ORDEM_PYTHON" = /new/python ] || exit 2\nexec "$@"\n',
    )
    cloud.commit()
    cloud.program(
        cloud.folder / 'bin/python3',
        '#!/bin/sh\necho "$@" >> "$HOME/python3"\ncase "$*" in *find*) echo /new/python;; esac\n',
    )
    assert run(start_launcher(cloud), 'true') == 0
    assert 'uv python install' in (cloud.worker() / 'python3').read_text()


def test_dry_run_is_what_is_done(cloud):
    """Catches commands that are printed but not those that are run.

    Also those that do not survive a shell: they are given to one here.
    """
    create = cloud.run_command('create', *WHERE, '--type=v5litepod-4', '--dry_run')
    command = ('sh', '-c', f'printf "%s" "$0" > {cloud.bucket}/said', AWKWARD)
    ran = cloud.run_command('run', *WHERE, '--dry_run', '--', *command)
    assert (create.returncode, create.stderr) == (0, '')
    assert (ran.returncode, ran.stderr) == (0, '')
    assert cloud.calls() == []
    subprocess.run(
        ['sh', '-e'], input=create.stdout + ran.stdout, text=True, check=True, capture_output=True
    )
    assert (cloud.bucket / 'said').read_text() == AWKWARD
    done = cloud.calls()
    cloud.set(calls=[], resources={})
    assert run(start_launcher(cloud), 'true') == 0
    again = cloud.calls()
    look = 'queued-resources describe'
    assert [c for c in done if c != look] == [c for c in again if c != look]


MISTAKES = {
    'quota': (
        dict(quota=True),
        ('create', '--type=v5litepod-4'),
        r'quota .* Limit: 0 in zone us-west4-a.*another --zone',
    ),
    'login': (dict(account=False), ('create', '--type=v5litepod-4'), 'run `gcloud auth login`'),
    'project': (dict(project=''), ('create', '--type=v5litepod-4'), 'give --project=ID'),
    'api': (
        dict(api=False),
        ('create', '--type=v5litepod-4'),
        'gcloud services enable tpu.googleapis.com',
    ),
    'exists': (
        dict(there='ACTIVE'),
        ('create', '--type=v5litepod-4'),
        'llama exists already in us-west4-a: choose another --name',
    ),
    'missing': ({}, ('status',), 'no queued resource llama in us-west4-a: make it by `create`'),
    'zone': (
        {},
        ('create', '--type=v5p-8'),
        'us-west4-a does not offer this type .*zones that do are listed',
    ),
    'failed': (
        dict(create=[['PROVISIONING', 'FAILED']]),
        ('create', '--type=v5litepod-4'),
        'failed .There is no more capacity.*`delete` it',
    ),
    'too long': (
        dict(create=[['WAITING_FOR_RESOURCES']]),
        ('create', '--type=v5litepod-4', '--wait_minutes=0'),
        'still WAITING_FOR_RESOURCES',
    ),
    'suspended': (
        dict(there='SUSPENDED'),
        ('run', '--', 'true'),
        'was preempted.*`run --keep_going`',
    ),
    'stop of nothing': (dict(there='SUSPENDED'), ('stop',), 'was preempted'),
    'no log': (dict(there='ACTIVE'), ('logs',), 'nothing has run on llama yet'),
    'agent': (
        dict(there='ACTIVE', kind='v5litepod-16', agent=False),
        ('run', '--', 'true'),
        'ssh-add ~/.ssh/google_compute_engine',
    ),
    'ssh': (
        dict(there='ACTIVE', refuse_ssh=99),
        ('run', '--', 'true'),
        'ssh to llama was refused .*255.*firewall.*again',
    ),
    'name': (
        {},
        ('create', '--type=v5litepod-4', '--name=x; rm -rf ~'),
        '--name=x; rm -rf ~: expected 1 to 60 lower-case letters',
    ),
    'project name': ({}, ('status', '--project=$(x)'), r'--project=\$\(x\): expected'),
    'type': (
        {},
        ('create', '--type=v5e-16'),
        "--type=v5e-16: no such TPU type; did you mean 'v5litepod-16'",
    ),
    'zone name': (
        {},
        ('status', '--zone=us-west4a'),
        "--zone=us-west4a: expected a zone; did you mean 'us-west4-a'",
    ),
    'tpu7x': ({}, ('create', '--type=tpu7x-8'), 'only on GKE'),
    'verb': ({}, ('creat',), "did you mean 'create'"),
    'words': ({}, ('status', 'now'), "unexpected 'now'"),
    'no command': ({}, ('run',), 'no command: give it after --'),
    'slices': ({}, ('create', '--slices=0'), '--slices=0: expected at least 1'),
    'no bucket': (
        {},
        ('run', '--keep_going', '--', 'x', '--run=runs/x'),
        'expected --run=gs://BUCKET/..., found --run=runs/x',
    ),
}


@pytest.mark.parametrize('case', MISTAKES)
def test_each_failure_is_one_line(cloud, case):
    """Catches a traceback, gcloud's own ten lines, and a failure that does not say what to do."""
    state, words, message = MISTAKES[case]
    state = dict(state)
    queue_state = state.pop('there', '')
    if queue_state:
        start_launcher(cloud, state.pop('kind', 'v5litepod-4'))
        resources = cloud.read()['resources']
        resources['llama']['states'] = [queue_state]
        cloud.set(resources=resources)
    cloud.set(**state)
    verb, *rest = words
    done = cloud.run_here(verb, *QUICK, *rest)
    lines = [line for line in done.stderr.splitlines() if not re.match(r'\[[\d:]+\] llama: ', line)]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert re.match('error: .*' + message, lines[0]), done.stderr


def test_gcloud_is_not_installed(cloud, tmp_path):
    """Catches a traceback where there is no gcloud."""
    (tmp_path / 'git').symlink_to(shutil.which('git'))
    done = cloud.run_command('status', *WHERE, PATH=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith('error: gcloud is not installed')


def test_what_is_sent_is_a_commit(cloud):
    """Catches a snapshot of the working tree, and changes left behind without a word."""
    before = snapshot.pin()
    (cloud.repository / 'train.sh').write_text('exit 9\n')
    done = cloud.run_command('run', *WHERE, '--dry_run', '--', 'true')
    assert done.returncode == 2
    assert 'changes that no commit holds (train.sh): commit them' in done.stderr
    assert snapshot.pin('HEAD') == before
    with pytest.raises(RunError, match='no-such'):
        snapshot.pin('no-such')
    folder = cloud.bucket / 'code'
    snapshot.execute(snapshot.unpack(before, str(folder)))
    assert 'resumed' in (folder / 'train.sh').read_text()


def test_a_launcher_starts_quickly():
    """Catches an import of JAX, which takes seconds, in a program that only starts others."""
    code = (
        'import sys, launch.tpu_vm, launch.gcloud; '
        'sys.exit("jax" in sys.modules or "numpy" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_types():
    """Catches cores taken for chips, and hosts that hold other numbers of chips.

    Expected values are from the documentation.
    """
    facts = {t: (s.chips, s.hosts, s.pods, s.topology) for t, s in accelerators.TYPES.items()}
    assert facts['v5litepod-16'] == (16, 4, 4, '4x4')
    assert facts['v5litepod-8'] == (8, 1, 2, '2x4')
    assert facts['v5litepod-256'][1] == 64
    assert facts['v5p-8'] == (4, 1, 1, '2x2x1')
    assert facts['v5p-4096'] == (2048, 512, 512, '8x16x16')
    assert facts['v4-32'] == (16, 4, 4, '2x2x4')
    assert facts['v6e-8'][:2] == (8, 1)
    assert facts['v6e-256'] == (256, 64, 64, '16x16')
    assert facts['tpu7x-128'][::3] == (64, '4x4x4')
