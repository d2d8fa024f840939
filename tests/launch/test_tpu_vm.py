"""The launcher of TPU VMs against the stand-in for gcloud (gcloud_stand_in.py)."""

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


def launcher(**how):
    return Launcher(
        Gcloud('llama', 'us-west4-a'), **{'poll': 0, 'sleep': lambda seconds: None, **how}
    )


def started(cloud, kind='v5litepod-4', slices=1, **how):
    """A launcher whose machines are there."""
    made = launcher(**how)
    made.create(Request(kind, 'v2-alpha-tpuv5-lite', slices))
    return made


def run(made, *command, keep_going=False, retries=3):
    commit = snapshot.pin()
    archive = f'runs/launch/llama/ordem-{commit[:12]}.tar.gz'
    snapshot.execute(snapshot.commands(commit, archive))
    return made.run(list(command), commit, archive, keep_going, retries)


def test_a_full_life(cloud):
    """Queued, active, run, preempted, re-created, resumed, finished, deleted. Catches a launcher
    that loses the command, its arguments' quoting, or a worker on the way, and one that takes a
    lost connection for an end."""
    cloud.set(
        create=[
            ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'],
            ['WAITING_FOR_RESOURCES', 'ACTIVE'],
        ],
        preempt=[True, False],
    )
    done = cloud.run_command('create', *QUICK, '--type=v5litepod-16', '--spot')
    assert done.returncode == 0 and re.findall(r'llama: ([A-Z_]+)\n', done.stderr) == [
        'WAITING_FOR_RESOURCES',
        'PROVISIONING',
        'ACTIVE',
    ]

    done = cloud.run_command(
        'run', *QUICK, '--keep_going', '--', 'sh', 'train.sh', str(cloud.bucket), AWKWARD
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'step 100\nresumed after step 100\n'
    kept = sorted(cloud.bucket.glob('argument-*'))
    assert [p.name for p in kept] == [f'argument-t1v-n-llama-w-{i}' for i in range(4)] and {
        p.read_text() for p in kept
    } == {AWKWARD + '\n'}
    assert all((cloud.worker(i=i) / 'extras').read_text() == 'tpu\n' for i in range(4))
    first, second = cloud.calls('queued-resources', 'create')
    assert (
        first == second
        and '--spot' in first
        and '--node-id=llama' in first
        and '--runtime-version=v2-alpha-tpuv5-lite' in first
    )
    starts = [c for c in cloud.calls('tpu-vm', 'ssh') if any('worker.sh start' in w for w in c)]
    assert len(starts) == 2 and starts[0] == starts[1] and '--worker=all' in starts[0]
    assert cloud.calls().index('queued-resources delete') < len(cloud.calls()) - 1 - cloud.calls()[
        ::-1
    ].index('queued-resources create')

    done = cloud.run_command('status', *QUICK)
    assert done.stdout.splitlines()[0] == 'llama: ACTIVE, v5litepod-16 x 1, spot'
    assert done.stdout.count('READY') == 1 and done.stdout.count(': exit 0') == 4
    assert cloud.run_command('delete', *QUICK).returncode == 0
    assert cloud.read()['resources'] == {} and not cloud.worker().exists()


@pytest.mark.parametrize('lag', ['PREEMPTED', 'missing'])
def test_slices_are_one_run(cloud, lag):
    """Catches a second slice that is not installed, not started, or not asked how it ended; and a
    slice that is gone before the queue says so."""
    cloud.set(create=[['ACTIVE'], ['ACTIVE']], preempt=[True], lag=lag)
    assert (
        run(started(cloud, slices=2), 'sh', 'train.sh', str(cloud.bucket), 'x', keep_going=True)
        == 0
    )
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
    """Catches a mistake tried again for ever, a failure that is never tried again, and an exit code
    lost behind ssh."""
    made = started(cloud)
    assert (
        run(
            made,
            'sh',
            '-c',
            f'echo started >> {cloud.bucket}/log; exit {code}',
            keep_going=keep_going,
            retries=2,
        )
        == code
    )
    assert (cloud.bucket / 'log').read_text().count('started') == starts


def test_one_failed_worker_fails_the_run(cloud):
    """Catches a result read from worker 0 alone, and one that counts a worker that does not answer
    among the finished."""
    made = started(cloud, 'v5litepod-16')
    assert run(made, 'sh', '-c', 'case $(hostname) in *-w-2) exit 2;; esac') == 2
    shutil.rmtree(cloud.worker(i=3))
    with pytest.raises(GcloudError, match='3 of 4 workers of llama answer'):
        made.follow()


def test_stop_and_follow_again(cloud, capfd):
    """Catches a second process beside the first, a stop that kills what writes the exit code, and a
    log shown twice or not at all."""
    made = started(cloud)
    command = ('sh', '-c', 'echo step 1; sleep 60')
    commit = snapshot.pin()
    snapshot.execute(snapshot.commands(commit, 'runs/a.tar.gz'))
    made.install('runs/a.tar.gz', commit)
    made.worker('start', *command)
    made.worker('start', *command)
    assert made.results() == [('llama t1v-n-llama-w-0', 'running')]
    with pytest.raises(
        GcloudError, match='another command runs on t1v-n-llama-w-0: sh -c echo step 1; sleep 60'
    ):
        made.worker('start', 'true')
    made.worker('stop')
    assert made.results() == [('llama t1v-n-llama-w-0', 'exit 143')]
    assert made.follow() == 143 and capfd.readouterr().out.count('step 1') == 1
    made.worker('start', *command)  # how it ended before says nothing of this start
    assert made.results() == [('llama t1v-n-llama-w-0', 'running')]
    made.worker('stop')


def test_going_on_with_a_run(cloud, capfd):
    """Catches a launcher that, given again, installs or begins anew on a worker where the command
    has failed, beside the others that still run it; one that ends with worker 0; and one that shows
    the log again at each look."""
    made = started(cloud, 'v5litepod-16')
    command = (
        'sh',
        '-c',
        f'echo >> {cloud.bucket}/$(hostname); case $(hostname) in *-w-0) echo said; exit 0;; '
        '*-w-2) exit 7;; esac; '
        f'until [ -f {cloud.bucket}/go ]; do sleep 0.05; done',
    )
    commit = snapshot.pin()
    snapshot.execute(snapshot.commands(commit, 'runs/a.tar.gz'))
    made.install('runs/a.tar.gz', commit)
    made.worker('start', *command)
    while not {'exit 0', 'exit 7'} <= set(dict(made.results()).values()):
        pass
    made.sleep = lambda seconds: (
        cloud.bucket / 'go'
    ).touch()  # the others end only after a first look
    assert run(made, *command) == 7
    assert [(cloud.bucket / f't1v-n-llama-w-{i}').read_text().count('\n') for i in range(4)] == [
        1,
        1,
        1,
        1,
    ]
    assert len(cloud.calls('tpu-vm', 'scp')) == 1 and capfd.readouterr().out.count('said') == 1


def test_a_wait_is_bounded(cloud):
    """Catches a launcher that waits in the queue for ever, or gives up at once. No second passes:
    the clock is the test's."""
    cloud.set(create=[['WAITING_FOR_RESOURCES']])
    now = [0.0]
    made = launcher(
        wait=600,
        poll=60,
        clock=lambda: now[0],
        sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
    )
    with pytest.raises(
        RunError, match='still WAITING_FOR_RESOURCES after 10 minutes.*`run` goes on waiting'
    ):
        made.create(Request('v5litepod-4', 'r'))
    assert len(cloud.calls('queued-resources', 'describe')) == 11


def test_a_reason_of_the_moment(cloud):
    """Catches a run of days that ends with one answer of 503, and one that asks for ever."""
    made = started(cloud)
    cloud.set(fail=2)
    assert made.describe()['state'] == {'state': 'ACTIVE'}
    assert (
        gcloud._error(
            1,
            "ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Reads' and "
            "limit 'Reads per minute'",
            'l',
            'z',
        ).kind
        == 'other'
    )
    cloud.set(fail=9)
    with pytest.raises(RunError, match='Internal error'):
        made.describe()


def test_ssh_that_comes_back(cloud):
    """Catches a run given up because a connection was refused once, and one that does not come back
    taken for a refusal."""
    made = started(cloud)
    assert run(made, 'true') == 0
    cloud.set(refuse_ssh=2)
    assert made.follow() == 0
    made.worker('start', 'sh', '-c', 'echo step 1; sleep 60')
    cloud.set(preempt=[True])
    with pytest.raises(PreemptedError):
        made.follow()


def test_an_image_with_an_old_python(cloud):
    """Catches an installation that ends with 'no CPython 3.11 to 3.13 found' on the images of TPU
    VMs, whose python3 is 3.10."""
    cloud.program(
        cloud.repository / 'launch/env.sh',
        '#!/bin/sh\n[ "$ORDEM_PYTHON" = /new/python ] || exit 2\nexec "$@"\n',
    )
    cloud.commit()
    cloud.program(
        cloud.folder / 'bin/python3',
        '#!/bin/sh\necho "$@" >> "$HOME/python3"\ncase "$*" in *find*) echo /new/python;; esac\n',
    )
    assert run(started(cloud), 'true') == 0
    assert 'uv python install' in (cloud.worker() / 'python3').read_text()


def test_dry_run_is_what_is_done(cloud):
    """Catches commands that are printed but not those that are run, or that do not survive a shell:
    they are given to one here."""
    create = cloud.run_command('create', *WHERE, '--type=v5litepod-4', '--dry_run')
    ran = cloud.run_command(
        'run',
        *WHERE,
        '--dry_run',
        '--',
        'sh',
        '-c',
        f'printf "%s" "$0" > {cloud.bucket}/said',
        AWKWARD,
    )
    assert (create.returncode, ran.returncode, create.stderr, ran.stderr) == (
        0,
        0,
        '',
        '',
    ) and cloud.calls() == []
    subprocess.run(
        ['sh', '-e'], input=create.stdout + ran.stdout, text=True, check=True, capture_output=True
    )
    assert (cloud.bucket / 'said').read_text() == AWKWARD
    done = cloud.calls()
    cloud.set(calls=[], resources={})
    assert run(started(cloud), 'true') == 0
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
    if there := state.pop('there', ''):
        started(cloud, state.pop('kind', 'v5litepod-4'))
        resources = cloud.read()['resources']
        resources['llama']['states'] = [there]
        cloud.set(resources=resources)
    cloud.set(**state)
    verb, *rest = words
    done = cloud.run_command(verb, *QUICK, *rest)
    lines = [line for line in done.stderr.splitlines() if not re.match(r'\[[\d:]+\] llama: ', line)]
    assert done.returncode == 2 and len(lines) == 1 and re.match('error: .*' + message, lines[0]), (
        done.stderr
    )


def test_gcloud_is_not_installed(cloud, tmp_path):
    """Catches a traceback where there is no gcloud."""
    (tmp_path / 'git').symlink_to(
        subprocess.run(['which', 'git'], capture_output=True, text=True).stdout.strip()
    )
    done = cloud.run_command('status', *WHERE, PATH=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith('error: gcloud is not installed')


def test_what_is_sent_is_a_commit(cloud):
    """Catches a snapshot of the working tree, and changes left behind without a word."""
    before = snapshot.pin()
    (cloud.repository / 'train.sh').write_text('exit 9\n')
    done = cloud.run_command('run', *WHERE, '--dry_run', '--', 'true')
    assert (
        done.returncode == 2
        and 'changes that no commit holds (train.sh): commit them' in done.stderr
    )
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
    """Catches cores taken for chips, and hosts that hold other numbers of chips; expected values
    are from the documentation."""
    facts = {t: (s.chips, s.hosts, s.pods, s.topology) for t, s in accelerators.TYPES.items()}
    assert (
        facts['v5litepod-16'] == (16, 4, 4, '4x4')
        and facts['v5litepod-8'] == (8, 1, 2, '2x4')
        and facts['v5litepod-256'][1] == 64
    )
    assert (
        facts['v5p-8'] == (4, 1, 1, '2x2x1')
        and facts['v5p-4096'] == (2048, 512, 512, '8x16x16')
        and facts['v4-32'] == (16, 4, 4, '2x2x4')
    )
    assert (
        facts['v6e-8'][:2] == (8, 1)
        and facts['v6e-256'] == (256, 64, 64, '16x16')
        and facts['tpu7x-128'][::3] == (64, '4x4x4')
    )
