"""Stands in for `gcloud compute tpus`, put first on PATH.

States, flags, outputs and error texts are as documented and as in SDK 528.

What it is to play lies in $STAND_IN/state.json, which the test writes and reads: `create` (for each
creation the states that successive looks find, the last of which stays), `quota`, `account`,
`project`, `agent`, `api`, `refuse_ssh` (how many times), `preempt` (for each `follow`, whether the
machines vanish under it), `lag` (the queue does not notice; the slices are PREEMPTED or missing),
`fail` (the next commands that fail for no known reason). Every call is recorded in `calls`. Workers
are directories $STAND_IN/workers/NODE/i; their commands are run by a shell, as sshd does.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(os.environ['STAND_IN'])
HOSTS = {'v5litepod-4': 1, 'v5litepod-16': 4, 'v6e-8': 1}


@contextlib.contextmanager
def state():
    with open(HERE / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        now = json.loads((HERE / 'state.json').read_text())
        try:
            yield now
        finally:
            (HERE / 'state.json').write_text(json.dumps(now, indent=1))


class Parser(argparse.ArgumentParser):
    def error(self, message):
        fail(message, 2)


def fail(message, code=1):
    print(f'ERROR: (gcloud.{".".join(PATH)}) {message}', file=sys.stderr)
    sys.exit(code)


def path_of(a):
    return f'projects/{a.project or "p"}/locations/{a.zone}/queuedResources/{a.name}'


def nodes_of(r):
    spec = r['tpu']['nodeSpec'][0]
    params = spec.get('multisliceParams')
    if not params:
        return [spec['nodeId']]
    return [f'{params["nodeIdPrefix"]}-{i}' for i in range(params['nodeCount'])]


def kill(node):
    for pid in (HERE / 'workers' / node).glob('*/ordem/pid'):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    shutil.rmtree(HERE / 'workers' / node, ignore_errors=True)


def create(a, s):
    if not re.fullmatch(r'[a-z]([-a-z0-9]{0,61}[a-z0-9])?', a.name):
        fail('INVALID_ARGUMENT: Cloud TPU received a bad request. Invalid resource name')
    if a.node_count is not None and a.node_count <= 1:
        fail('Invalid value for [--node-count]: Node count must be greater than 1')
    if (a.node_id is None) == (a.node_count is None) or a.node_id and a.node_prefix:
        fail('Exactly one of (--node-id | --node-count : --node-prefix) must be specified.', 2)
    if a.name in s['resources']:
        fail(f"ALREADY_EXISTS: Resource '{path_of(a)}' already exists")
    if a.accelerator_type not in HOSTS:
        fail(
            'INVALID_ARGUMENT: Cloud TPU received a bad request. The requested accelerator '
            f'configuration for accelerator type, "{a.accelerator_type}", could not be '
            f'found in the zonal accelerator configurations for "{a.zone}".; the accelerator '
            f'{a.accelerator_type} was not found in zone {a.zone} [EID: 0x1]'
        )
    if s.get('quota'):
        fail(
            "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' "
            f'has been exceeded. Limit: 0 in zone {a.zone}.'
        )
    spec = dict(
        parent=f'projects/p/locations/{a.zone}',
        node=dict(acceleratorType=a.accelerator_type, runtimeVersion=a.runtime_version),
    )
    if a.node_id:
        spec['nodeId'] = a.node_id
    else:
        prefix = a.node_prefix or a.name
        spec['multisliceParams'] = {'nodeCount': a.node_count, 'nodeIdPrefix': prefix}
    states = s['create'].pop(0) if s.get('create') else ['ACTIVE']
    s['resources'][a.name] = {
        'name': path_of(a),
        'tpu': {'nodeSpec': [spec]},
        **({'spot': {}} if a.spot else {}),
        'states': states,
    }
    print(f'Create request issued for: [{a.name}]', file=sys.stderr)


def look(name, s):
    """Returns the state that this look finds; machines are there while it is ACTIVE."""
    r = s['resources'][name]
    now = r['states'][0] if len(r['states']) == 1 else r['states'].pop(0)
    first = now == 'ACTIVE' and not r.get('up')
    r['up'] = r.get('up') or first
    hosts = HOSTS[r['tpu']['nodeSpec'][0]['node']['acceleratorType']] if first else 0
    for node in nodes_of(r):
        for i in range(hosts):
            (HERE / 'workers' / node / str(i)).mkdir(parents=True, exist_ok=True)
        if now in ('SUSPENDING', 'SUSPENDED', 'FAILED'):
            kill(node)
    return now


def resource(a, s):
    if a.name not in s['resources']:
        fail(f"NOT_FOUND: Resource '{path_of(a)}' was not found")
    return s['resources'][a.name]


def describe(a, s):
    r = resource(a, s)
    now = look(a.name, s)
    shown = {k: v for k, v in r.items() if k not in ('states', 'up')} | {'state': {'state': now}}
    if now == 'FAILED':
        shown['state']['failedData'] = {
            'error': {'code': 8, 'message': 'There is no more capacity in the zone "us-west4-a"'}
        }
    print(now if a.format == 'value(state.state)' else json.dumps(shown))


def delete(a, s):
    r = resource(a, s)
    now = look(a.name, s)
    if (
        now not in ('WAITING_FOR_RESOURCES', 'FAILED', 'SUSPENDED')
        and not a.force
        or now == 'SUSPENDING'
    ):
        fail(
            f'FAILED_PRECONDITION: Queued resource {a.name} is in state {now} and cannot be deleted'
        )
    if not a.quiet:
        fail('the prompt would wait for an answer')
    for node in nodes_of(r):
        kill(node)
    del s['resources'][a.name]


def node(a, s):
    """Returns (hosts, name of the resource) of a node; no hosts where they are gone."""
    for name, r in s['resources'].items():
        if a.name in nodes_of(r):
            hosts = sorted((HERE / 'workers' / a.name).glob('[0-9]*'), key=lambda p: int(p.name))
            if hosts:
                return hosts, name
            if s.get('lag') == 'missing':
                break
            if PATH[-1] != 'describe':
                fail('This TPU has terminal state "PREEMPTED", so it cannot be used anymore.')
            return [], name
    fail(f"NOT_FOUND: Resource 'projects/p/locations/{a.zone}/nodes/{a.name}' was not found")


def describe_node(a, s):
    hosts, _ = node(a, s)
    print('READY' if hosts else 'PREEMPTED')


def chosen(a, hosts, s):
    picked = hosts if a.worker == 'all' else [hosts[int(a.worker)]]
    if len(picked) > 1 and not s.get('agent', True):
        fail(
            'SSH Key is not present in the SSH agent. Please run "ssh-add '
            '/home/me/.ssh/google_compute_engine" to add it, and try again.'
        )
    if s.get('refuse_ssh', 0) > 0:
        s['refuse_ssh'] -= 1
        print(f'{PATH[-1].upper()}: Attempting to connect to worker 0...', file=sys.stderr)
        fail('[/usr/bin/ssh] exited with return code [255].', 255)
    return picked


def vanish(hosts, name):
    """Takes the machines away while the log is read; what was written until then is shown."""
    log = hosts[0] / 'ordem' / 'log'
    until = time.monotonic() + 5
    while not log.exists() or 'step' not in log.read_text():
        assert time.monotonic() < until, 'the command wrote no step'
        time.sleep(0.01)
    sys.stdout.write(log.read_text())
    sys.stdout.flush()
    with state() as s:
        s['resources'][name]['states'] = ['ACTIVE'] if s.get('lag') else ['SUSPENDING', 'SUSPENDED']
        for n in nodes_of(s['resources'][name]):
            kill(n)
    fail('[/usr/bin/ssh] exited with return code [255].', 255)


def ssh(a):
    with state() as s:
        hosts, name = node(a, s)
        hosts = chosen(a, hosts, s)
        gone = 'worker.sh follow' in a.command and s.get('preempt') and s['preempt'].pop(0)
    if gone:
        vanish(hosts, name)
    command = ' '.join(a.command.split(' '))  # gcloud splits, OpenSSH joins

    def run_on(home):
        print(f'SSH: Attempting to connect to worker {home.name}...', file=sys.stderr)
        env = {
            'HOME': str(home),
            'PATH': f'{HERE}/bin:/usr/bin:/bin',
            'WORKER': f't1v-n-{a.name}-w-{home.name}',
        }
        done = subprocess.run(
            ['sh', '-c', command],
            cwd=home,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        if done.returncode and len(hosts) > 1:
            print(
                f'##### Command execution on worker {home.name} failed with exit status '
                f'{done.returncode}. Continuing.',
                file=sys.stderr,
            )
        return done.returncode

    codes = {}

    def note_code(home):
        codes[home] = run_on(home)

    threads = [threading.Thread(target=note_code, args=[home]) for home in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(next((codes[home] for home in hosts if codes[home]), 0))


def scp(a, s):
    hosts, _ = node(a, s)
    for home in chosen(a, hosts, s):
        shutil.copy(a.path, home)


PATH = [w for w in sys.argv[1:6] if not w.startswith('-')][:4]
VERBS = {
    ('queued-resources', 'create'): create,
    ('queued-resources', 'describe'): describe,
    ('queued-resources', 'delete'): delete,
    ('tpu-vm', 'describe'): describe_node,
    ('tpu-vm', 'ssh'): ssh,
    ('tpu-vm', 'scp'): scp,
}


FLAGS = {
    create: ('--node-id', '--node-prefix', '--accelerator-type', '--runtime-version'),
    describe: ('--format',),
    describe_node: ('--format',),
    ssh: ('--worker', '--command', '--ssh-flag'),
    scp: ('--worker',),
}
SWITCHES = {create: ('--spot',), delete: ('--force',)}
REQUIRED = ('--zone', '--accelerator-type', '--runtime-version')


def parse(verb):
    """Returns the arguments of a verb, as strictly as gcloud takes them."""
    parser = Parser(add_help=False, allow_abbrev=False)
    if verb is scp:
        parser.add_argument('path')
    parser.add_argument('name')
    for flag in ('--zone', '--project', *FLAGS.get(verb, ())):
        parser.add_argument(flag, required=flag in REQUIRED)
    for flag in ('--quiet', *SWITCHES.get(verb, ())):
        parser.add_argument(flag, action='store_true')
    if verb is create:
        parser.add_argument('--node-count', type=int)
    arguments = parser.parse_args(sys.argv[5:])
    if verb is scp:
        arguments.name, colon, rest = arguments.name.partition(':')
        assert colon and not rest
    return arguments


def main():
    with state() as s:
        s['calls'].append(sys.argv[1:])
        failing = s.get('fail', 0) > 0
        if failing:
            s['fail'] -= 1
    if failing:
        fail('INTERNAL: Internal error encountered.')
    verb = VERBS.get(tuple(PATH[2:])) if PATH[:2] == ['compute', 'tpus'] else None
    if verb is None:
        fail(f"Invalid choice: '{' '.join(PATH)}'.", 2)
    a = parse(verb)

    # What fails whatever the verb; then the verb, ssh with the state not locked.
    with state() as s:
        if not s.get('account', True):
            fail(
                'You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud '
                'auth login\n\nto obtain new credentials.'
            )
        if not (a.project or s.get('project', 'p')):
            fail(
                'Error parsing [queued_resource].\nThe [queued_resource] resource is not properly '
                'specified.\nFailed to find attribute [project]. The attribute can be set '
                'in the following ways: \n- provide the argument `--project` on the command '
                'line\n- set the property `core/project`'
            )
        if not s.get('api', True):
            fail(
                'PERMISSION_DENIED: Cloud TPU API has not been used in project p before or it is '
                'disabled. reason: SERVICE_DISABLED'
            )
        if verb is not ssh:
            verb(a, s)
    if verb is ssh:
        ssh(a)


if __name__ == '__main__':
    main()
