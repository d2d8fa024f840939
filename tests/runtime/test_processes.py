"""Several processes on this machine train as one does: found, joined, compared, ended together."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from launch.local import free_port
from runtime import metrics, processes
from runtime.errors import RunError
from runtime.processes import ClusterSpec, difference, find_cluster
from runtime.run_dir import Run
from train import loop, setup

HERE = pathlib.Path(__file__).parent


def local(processes, devices, *command):
    """`command` in a group of processes -> (exit code, lines of stdout and stderr, JAX's own noise
    left out)."""
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'launch.local',
            f'--processes={processes}',
            f'--devices={devices}',
            '--',
            *command,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, [
        line for line in (done.stdout + done.stderr).splitlines() if 'Gloo' not in line
    ]


def pretrain(config, path, *more):
    """The command that trains `config` in another process."""
    file = path.parent / f'{path.name}.py'
    file.write_text(
        f'import json\nfrom ml_collections import ConfigDict\n\n'
        f'def get_config():\n    return ConfigDict(json.loads({config.to_json()!r}))\n'
    )
    return [sys.executable, '-m', 'train.pretrain', f'--config={file}', f'--run={path}', *more]


def trained(path):
    """What metrics.jsonl says of the training and the held-out text, as numbers in order."""
    lines = metrics.read(Run.parse(str(path)))
    names = (
        'step',
        'weight',
        'loss',
        'grad_norm',
        'learning_rate',
        'validation_nats',
        'validation_bits_per_byte',
    )
    return [[line[n] for n in names if n in line] for line in lines]


def alike(found, wanted):
    """Sums in another order differ in the last bits of float32 (2**-24); six steps of Adam make of
    that less than 1e-5."""
    assert [len(line) for line in found] == [len(line) for line in wanted]
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.fixture(scope='module')
def alone(tmp_path_factory, tiny):
    """One process, one device: what all groups are compared with."""
    c = tiny(str(tmp_path_factory.mktemp('cache')))
    c.model.num_layers = 1
    path = tmp_path_factory.mktemp('alone') / 'run'
    loop.train(setup.build_experiment(c.copy_and_resolve_references(), str(path)))
    c.mesh.data = -1
    return c, trained(path)


def test_groups_train_as_one_process_does(alone, tmp_path, request):
    """Two processes begin, four (forked) go on, and so does one. Catches rows read twice or not at
    all, a tokenizer, a store, metrics or a summary made by each, an evaluation of one process's
    rows, text that wants parameters which lie elsewhere, and checkpoints that only the group that
    saved them can read."""
    config, wanted = alone
    config = config.copy_and_resolve_references()
    config.data.cache = str(tmp_path / 'cache')  # nothing in it yet: one builds, the other finds
    config.sample.update(every=3, prompt='A', tokens=4)
    config.train.stop_at = 3
    config.mesh.fsdp = 2
    config.log.tensorboard = True
    code, lines = local(2, 2, *pretrain(config, tmp_path / 'run'))
    assert code == 0, lines
    assert (
        len([x for x in lines if 'tokenized' in x])
        == len([x for x in lines if 'step 3, loss' in x])
        == 1
    )
    alike(trained(tmp_path / 'run'), wanted[:4])
    assert [
        m['sample'][0] for m in metrics.read(Run.parse(str(tmp_path / 'run'))) if 'sample' in m
    ] == ['A']
    assert len(list((tmp_path / 'run').glob('events*'))) == 1
    assert len([p for p in pathlib.Path(config.data.cache).iterdir()]) == 2

    wanted = wanted[:4] + [
        line for line in wanted[4:] if len(line) == 5
    ]  # without the evaluation at the end, to be quick
    config.train.stop_at = config.sample.every = config.eval.every = config.data.prefetch = 0
    config.mesh.update(data=1, fsdp=4)
    shutil.copytree(tmp_path / 'run', tmp_path / 'again')
    request.getfixturevalue('forks')
    code, lines = local(4, 1, *pretrain(config, tmp_path / 'run'))
    assert code == 0, lines
    alike(trained(tmp_path / 'run'), wanted)

    config.mesh.update(data=1, fsdp=1)
    loop.train(setup.build_experiment(config, str(tmp_path / 'again')))
    alike(trained(tmp_path / 'again'), wanted)


def test_hosts_with_their_own_addresses(alone, tmp_path):
    """Catches a group that meets only because all of it is on one address."""
    if (
        not sys.platform == 'linux'
        or os.geteuid()
        or subprocess.run(
            ['unshare', '-n', '-m', 'sh', HERE / 'hosts.sh', '1', 'true'], capture_output=True
        ).returncode
    ):
        pytest.skip('network namespaces need Linux, root, and the commands unshare, nsenter and ip')
    config, wanted = alone
    config = config.copy_and_resolve_references()
    config.eval.every = config.checkpoint.every = 0
    flags = '--xla_backend_optimization_level=0'
    done = subprocess.run(
        ['unshare', '-n', '-m', 'sh', HERE / 'hosts.sh', '2', *pretrain(config, tmp_path / 'run')],
        timeout=300,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    alike(trained(tmp_path / 'run'), [line for line in wanted if len(line) == 5])


@pytest.mark.usefixtures('forks')
def test_meetings_and_an_end_for_all():
    """Rows and time cut over processes and lying apart, a meeting that one misses, a disagreement,
    and one process that fails while the other is in a collective. Catches a shard with other rows,
    a missing process that is not named, and a group that hangs."""
    code, lines = local(2, 2, sys.executable, '-m', 'tests.runtime.meetings')
    assert code == 2
    ours = [
        line
        for line in lines
        if any(word in line for word in ('error:', 'differ', 'lunch', 'Error'))
    ]  # JAX may log too
    assert sorted(ours) == sorted(
        [
            "[0] process 1 of 2 did not come to the meeting 'lunch' within 0.2 s",
            '[0] the processes differ: the data is 0 on process 0, 1 on process 1',
            '[1] the processes differ: the data is 0 on process 0, 1 on process 1',
            '[0] error: process 1: this one fails',
            '[1] error: this one fails',
        ]
    )


def test_hosts_that_disagree(alone, tmp_path):
    """Catches hosts that train two experiments as one, and a run directory made before that is
    known."""
    config, _ = alone
    shell = 'exec "$@" --config.optimizer.lr=0.0$((RANK + 1)) --config.eval.every=$((RANK + 1))'
    code, lines = local(2, 1, 'sh', '-c', shell, 'sh', *pretrain(config, tmp_path / 'run'))
    message = (
        'error: the processes differ: config.eval.every is 1 on process 0, 2 on process 1; '
        'config.optimizer.lr is 0.01 on process 0, 0.02 on process 1'
    )
    assert code == 2
    assert {
        line[4:].replace('process 0: the', 'the').replace('process 1: the', 'the') for line in lines
    } == {message}
    assert len(lines) == 2 and not (tmp_path / 'run').exists()


def roll_call(*places, timeout=30.0):
    """The verdicts of processes that call the roll, each in a thread; None: all is well."""
    found = [None] * len(places)

    def join(i):
        try:
            processes._roll_call(places[i], timeout)
        except RunError as error:
            found[i] = str(error)

    threads = [threading.Thread(target=join, args=(i,)) for i in range(len(places))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return found


def test_who_does_not_come_is_named():
    """Catches a wait without an end, and one that does not say for whom."""

    def at():
        return f'127.0.0.1:{free_port()}'

    here = at()
    assert roll_call(*(ClusterSpec(here, 3, i) for i in range(3))) == [None, None, None]
    here = at()
    assert (
        roll_call(ClusterSpec(here, 4, 0), ClusterSpec(here, 4, 1), timeout=1)
        == ['processes 2 and 3 of 4 did not come within 1 s'] * 2
    )
    here = at()
    assert roll_call(ClusterSpec(here, 2, 1), timeout=0.2) == [
        f'process 0 ({here}) did not come within 0.2 s'
    ]


def test_the_roll_call_compares(monkeypatch):
    """Catches two processes with one number, other code on a host, another count of processes, and
    a stranger that ends the call."""
    here = f'127.0.0.1:{free_port()}'
    assert set(
        roll_call(ClusterSpec(here, 3, 0), ClusterSpec(here, 3, 1), ClusterSpec(here, 3, 1))
    ) == {'two processes say that they are number 1; the ids must be 0 to 2, each once'}
    here = f'127.0.0.1:{free_port()}'
    [a, b] = roll_call(ClusterSpec(here, 2, 0), ClusterSpec(here, 3, 1))
    assert (
        a == b == 'the processes differ: the number of processes is 2 on process 0, 3 on process 1'
    )
    versions = iter([{'the code': 'a', 'jax': '1'}, {'the code': 'b', 'jax': '1'}])
    monkeypatch.setattr(processes, '_versions', lambda: next(versions))
    here = f'127.0.0.1:{free_port()}'
    [a, b] = roll_call(ClusterSpec(here, 2, 0), ClusterSpec(here, 2, 1))
    assert a == b and a.startswith('the processes differ: the code is') and 'jax' not in a


def test_a_stranger_does_not_join():
    """Catches a port scanner, or a process of another program, that ends the roll call or counts in
    it."""
    port = free_port()
    call = threading.Thread(
        target=lambda: verdict.append(roll_call(ClusterSpec(f'127.0.0.1:{port}', 2, 0), timeout=20))
    )
    verdict = []
    call.start()
    for said in (b'GET / HTTP/1.1\r\n\r\n', b'', b'[1]\n', b'{"process": "x"}\n'):
        while True:
            try:
                with socket.create_connection(('127.0.0.1', port)) as line:
                    line.sendall(said)
                break
            except ConnectionRefusedError:
                continue
    assert roll_call(ClusterSpec(f'127.0.0.1:{port}', 2, 1)) == [None]
    call.join()
    assert verdict == [[None]]


def test_a_port_in_use():
    """Catches a traceback where another program has the coordinator's port."""
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as taken:
        taken.bind(('', 0))
        taken.listen()
        [verdict] = roll_call(ClusterSpec(f'127.0.0.1:{taken.getsockname()[1]}', 2, 0))
    assert 'process 0 cannot listen on that port' in verdict


TORCHRUN = dict(MASTER_ADDR='h', MASTER_PORT='70', WORLD_SIZE='4', RANK='3')
SLURM = dict(
    SLURM_JOB_ID='5',
    SLURM_STEP_NODELIST='node[07-09]',
    SLURM_NTASKS='3',
    SLURM_PROCID='2',
    SLURM_LOCALID='0',
)


@pytest.mark.parametrize(
    'given, environment, found',
    [
        (('', -1, -1), {}, None),
        (('h:1', 2, 1), TORCHRUN, ClusterSpec('h:1', 2, 1)),
        (('[::1]:1', 2, 0), {}, ClusterSpec('[::1]:1', 2, 0)),
        (('', 1, -1), TORCHRUN, None),
        (('', -1, -1), TORCHRUN, ClusterSpec('h:70', 4, 3)),
        (('', -1, -1), {**TORCHRUN, 'LOCAL_RANK': '1'}, ClusterSpec('h:70', 4, 3, [1])),
        (
            ('', -1, -1),
            {**TORCHRUN, 'TORCHELASTIC_USE_AGENT_STORE': 'True'},
            ClusterSpec('h:71', 4, 3),
        ),
        (('', -1, -1), {'WORLD_SIZE': '1', 'RANK': '0'}, None),
        (('', -1, -1), SLURM, ClusterSpec('node07:61445', 3, 2, [0])),
        (('', -1, -1), {**SLURM, 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}, None),
    ],
)
def test_places(given, environment, found, monkeypatch):
    """Catches flags that the environment overrules, variables that are not read, and one process
    that waits for others."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_cluster(*given) == found


@pytest.mark.parametrize(
    'given, environment, message',
    [
        (('h:1', 2, -1), {}, '--coordinator and --num_processes without --process_id'),
        (('', -1, 3), {}, '--process_id without --coordinator and --num_processes'),
        (('h', 2, 1), {}, "--coordinator is 'h': expected HOST:PORT"),
        (('h:x', 2, 1), {}, "--coordinator is 'h:x': expected HOST:PORT"),
        (('h:70000', 2, 1), {}, 'expected HOST:PORT'),
        (
            ('h:1', 2, 2),
            {},
            '--process_id is 2 of --num_processes=2: expected a number from 0 to 1',
        ),
        (('h:1', 0, 0), {}, '--num_processes is 0: expected at least 1'),
        (
            ('', -1, -1),
            {'RANK': '1', 'WORLD_SIZE': '2'},
            'WORLD_SIZE and RANK without MASTER_ADDR and MASTER_PORT',
        ),
        (('', -1, -1), {**TORCHRUN, 'RANK': 'x'}, 'RANK=x: expected a number'),
        (('', -1, -1), {**SLURM, 'SLURM_PROCID': 'x'}, 'the cluster could not be recognised'),
    ],
)
def test_nonsense_is_refused(given, environment, message, monkeypatch):
    """Catches a traceback, or a process that trains alone because half of what it was told is
    missing."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError) as error:
        find_cluster(*given)
    assert message in str(error.value) and '\n' not in str(error.value)


def test_what_differs_is_named():
    """Catches a message that names no field, no value or no process, and one that is a page
    long."""
    said = {0: {'a': 1, 'b': 2}, 1: {'a': 1, 'b': 3}, 2: {'a': 1, 'b': 2}, 3: {'a': 1}}
    assert (
        difference(said)
        == 'the processes differ: b is 2 on processes 0 and 2, 3 on process 1, absent on process 3'
    )
    assert difference({0: {'a': [1]}, 1: {'a': [1]}}) == ''
    assert difference({i: dict.fromkeys('abcdef', i) for i in (0, 1)}).endswith('; and 2 more')


def test_alone_nothing_is_waited_for():
    """Catches a single process that meets itself over a network."""
    processes.barrier('x')
    processes.assert_same({'x': 1})
    assert (
        processes.main_process_first('x', lambda: 5) == 5
        and processes.is_main_process()
        and processes.count() == 1
    )
    assert json.loads(processes.broadcast_decision('x', '"y"', lambda said: said[0])) == 'y'
