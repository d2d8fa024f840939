"""A run on Cloud TPU VMs, from the queue to the end:

    python -m launch.tpu_vm create --name=llama --type=v5litepod-16 --zone=us-west4-a --spot
    python -m launch.tpu_vm run --name=llama --zone=us-west4-a --keep_going -- python -m train.pretrain --config=... --run=gs://...
    python -m launch.tpu_vm status|logs|stop|delete --name=llama --zone=us-west4-a

`create` asks the queue and waits until the machines are there; `run` sends the code of a commit to all workers, starts the same command
on each, detached, and follows the log of worker 0. With `--keep_going` it makes the machines anew after a preemption and gives the
same command again, which resumes from the newest checkpoint in the bucket. `--dry_run` prints the commands instead.

Exit codes of `run` and `logs` are those of the trained process (see `launch/worker.sh`): 0 finished; 2 a user's mistake, also one of
the launcher's own, told in one line: no use trying again; 130 and 143 stopped; anything else a failure. JAX finds the other workers,
and with --slices the other slices (MEGASCALE_*), in the machines' metadata: nothing is passed for it.
"""
import concurrent.futures
import dataclasses
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Callable

from absl import flags

from launch import accelerators, snapshot
from launch.gcloud import Gcloud, GcloudError, Request
from model.errors import nearest
from train import guard
from train.errors import RunError

_QUEUED = ('CREATING', 'ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'STATE_UNSPECIFIED')
_GONE = ('SUSPENDING', 'SUSPENDED')
_RESULT = "if [ -f ordem/worker.sh ]; then sh ordem/worker.sh result; else echo worker $(hostname): idle; fi"
_ATTEMPTS = 3       # of a command that fails for no known reason, and looks at the state before a failure counts as none of the machines'


class Preempted(RunError):
    """The machines were taken away."""

    def __init__(self, name: str):
        super().__init__(f'{name} was preempted, and what was on its disks is gone: `delete` it, `create` it and `run` the same command again, '
                         f'or let `run --keep_going` do so')


@dataclasses.dataclass
class Launcher:
    """The life of one queued resource. Seconds: `wait`, how long to stay in the queue; `poll`, between two looks."""
    gcloud: Gcloud
    slices: int = 1
    workers: int = 0            # of all slices together; 0: not known
    wait: float = 6 * 3600
    poll: float = 30
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    @property
    def name(self) -> str:
        return self.gcloud.name

    @property
    def nodes(self) -> list[str]:
        return [self.name] if self.slices == 1 else [f'{self.name}-{i}' for i in range(self.slices)]

    def note(self, text: str) -> None:
        if not self.gcloud.dry_run:
            print(f'[{time.strftime("%H:%M:%S")}] {self.name}: {text}', file=sys.stderr, flush=True)

    def _insist(self, call):
        """A call that may fail for a reason of the moment (a network, a service) is given again."""
        for attempt in range(_ATTEMPTS):
            try:
                return call()
            except GcloudError as error:
                if error.kind != 'other' or attempt == _ATTEMPTS - 1:
                    raise
                self.sleep(self.poll)

    def describe(self) -> dict:
        return self._insist(self.gcloud.describe)

    def wait_until_active(self) -> None:
        """Raises Preempted where the machines are gone, RunError where they will not come or the wait is over."""
        began, before = self.clock(), None
        while True:
            found = self.describe()
            state = found['state']['state']
            if state != before:
                self.note(state)
                before = state
            if state == 'ACTIVE':
                self._read(found)
                return
            if state in _GONE:
                raise Preempted(self.name)
            if state == 'FAILED':
                why = found['state'].get('failedData', {}).get('error', {}).get('message', 'the service gives no reason')
                raise RunError(f'{self.name} failed ({why}): `delete` it, then `create` it again, in another --zone if it was for lack of room')
            if state not in _QUEUED:
                raise RunError(f'{self.name} is {state}: wait until it is gone (`status`), then `create` it again')
            if self.clock() - began >= self.wait:
                raise RunError(f'{self.name} is still {state} after {self.wait / 60:.0f} minutes and stays in the queue: `run` goes on waiting, '
                               f'`delete` gives it up; --spot, a smaller --type or another --zone may come sooner')
            self.sleep(self.poll)

    def _read(self, found: dict) -> None:
        """How many slices and workers there are, from what the service says."""
        if 'tpu' in found:
            request = Request.of(found)
            self.slices = request.slices
            self.workers = request.slices * accelerators.TYPES[request.type].hosts if request.type in accelerators.TYPES else 0

    def create(self, request: Request) -> None:
        self.slices = request.slices
        self.gcloud.create(request)
        self.wait_until_active()

    def _on_all(self, call) -> list:
        """call(node) for each slice; at once, except where the order is to be read."""
        if self.gcloud.dry_run or len(self.nodes) == 1:
            return [call(node) for node in self.nodes]
        with concurrent.futures.ThreadPoolExecutor(min(16, len(self.nodes))) as pool:
            return list(pool.map(call, self.nodes))

    def install(self, archive: str, commit: str) -> None:
        """The code of `commit`, and its environment, on all workers. Done again it is quick."""
        code = f'ordem/code-{commit[:12]}'
        words = [['mkdir', '-p', code], ['tar', '-xzf', pathlib.Path(archive).name, '-C', code], ['ln', '-sfn', f'code-{commit[:12]}', 'ordem/code'],
                 ['cp', 'ordem/code/launch/worker.sh', 'ordem/worker.sh'], ['sh', 'ordem/worker.sh', 'install']]

        def one(node: str) -> None:
            self._insist(lambda: self.gcloud.send(node, archive))
            self.gcloud.ssh(node, ' && '.join(map(shlex.join, words)))
        self.note(f'installing commit {commit[:12]}')
        self._on_all(one)

    def worker(self, *words: str) -> None:
        """`sh worker.sh WORDS` on all workers; the words arrive as they are, whatever is in them."""
        self._on_all(lambda node: self.gcloud.ssh(node, shlex.join(['sh', 'ordem/worker.sh', *words])))

    def results(self) -> list[tuple[str, str]]:
        """(worker, 'idle', 'running' or 'exit N') for all workers. Raises GcloudError where one does not answer."""
        told = self._on_all(lambda node: self.gcloud.ssh(node, _RESULT))
        found = [(f'{node} {host}', state) for node, lines in zip(self.nodes, told)
                 for host, state in re.findall(r'^worker (\S+): (idle|running|exit \d+)$', lines, re.M)]
        if len(found) < self.workers:
            raise GcloudError('ssh', f'{len(found)} of {self.workers} workers of {self.name} answer: see `status`, and give the command again')
        return found

    def follow(self, worker: str = '0') -> int:
        """Shows the log until the command ends on all workers. Returns its exit code. Raises Preempted, or RunError where ssh stays refused."""
        seen, refused, late = 0, 0, 0
        while True:
            try:
                seen += self.gcloud.ssh(self.nodes[0], shlex.join(['sh', 'ordem/worker.sh', 'follow', str(seen)]), worker, echo=True).count('\n')
                found = self.results()
                refused = 0
            except GcloudError as error:
                if error.kind not in ('ssh', 'gone', 'missing', 'other'):
                    raise
                if self.is_preempted():
                    raise Preempted(self.name) from None
                refused += 1
                if refused == _ATTEMPTS:
                    raise
                self.sleep(self.poll)
                continue
            if self.gcloud.dry_run:
                return 0
            codes = {who: int(state.split()[1]) for who, state in found if state.startswith('exit')}
            late += bool(codes)
            if len(codes) == len(found) or late > 10:       # where one has failed, the others should not be long
                failed = {who: code for who, code in codes.items() if code}
                for who, code in failed.items():
                    self.note(f'{who}: exit code {code}')
                if late > 10:
                    self.note('other workers still run; stopping them')
                    self.worker('stop')
                return guard.MISTAKE if guard.MISTAKE in failed.values() else next(iter(failed.values()), 0)
            self.sleep(self.poll)

    def is_preempted(self) -> bool:
        """By the queue, or before it has noticed by a slice's own state."""
        if self.describe()['state']['state'] in _GONE:
            return True
        try:
            return any(self.gcloud.node_state(node) in ('PREEMPTED', 'TERMINATED') for node in self.nodes)
        except GcloudError as error:
            return error.kind == 'missing'

    def _preempted_soon(self) -> bool:
        """Processes end some seconds before the service tells why."""
        for _ in range(_ATTEMPTS):
            if self.is_preempted():
                return True
            self.sleep(self.poll)
        return False

    def recreate(self, request: Request) -> None:
        """Deletes what is left and asks the queue for the same again."""
        began = self.clock()
        while self.describe()['state']['state'] == 'SUSPENDING':
            if self.clock() - began >= self.wait:
                raise RunError(f'{self.name} is still SUSPENDING after {self.wait / 60:.0f} minutes: `delete` it, `create` it and `run` again')
            self.sleep(self.poll)
        self.gcloud.delete()
        self.gcloud.create(request)

    def run(self, command: list[str], commit: str, archive: str, keep_going: bool, retries: int) -> int:
        """Starts the command, or goes on following it where it runs already. Returns its exit code."""
        request = None if self.gcloud.dry_run else Request.of(self.describe())
        failures = 0
        while True:
            try:
                self.wait_until_active()
                if 'running' not in dict(self.results()).values():
                    self.install(archive, commit)
                self.worker('start', *command)
                code = self.follow()
                if self.gcloud.dry_run and keep_going:
                    print('# after a preemption: `delete` and `create` as before, then these commands again')
                if not keep_going or self.gcloud.dry_run or code in (0, guard.MISTAKE):
                    return code
                if self._preempted_soon():
                    raise Preempted(self.name)
                if code in (130, 143) or failures == retries:
                    return code
                failures += 1
                self.note(f'starting again after a failure, {failures} of {retries}')
                self.worker('stop')
            except (Preempted, GcloudError) as error:
                if isinstance(error, GcloudError):
                    if error.kind not in ('ssh', 'gone', 'missing') or not self.is_preempted():
                        raise
                    error = Preempted(self.name)
                if not keep_going:
                    raise error from None
                self.note('preempted; asking for it again')
                self.recreate(request)

    def status(self) -> None:
        """Prints the queue's state and, where there are machines, theirs and what runs on them."""
        found = self.describe()
        state = found['state']['state']
        asked = '' if 'tpu' not in found else ', {0.type} x {0.slices}{1}'.format(Request.of(found), ', spot' if 'spot' in found else '')
        lines = [f'{self.name}: {state}{asked}']
        if state == 'ACTIVE':
            self._read(found)
            lines += [f'  {node}: {self.gcloud.node_state(node)}' for node in self.nodes]
            lines += [f'  {who}: {what}' for who, what in self.results()]
        if not self.gcloud.dry_run:
            print('\n'.join(lines))


def _check_command(command: list[str], keep_going: bool) -> None:
    if not command:
        raise RunError('run: no command: give it after --, as in `run --name=... --zone=... -- python -m train.pretrain --config=... --run=gs://...`')
    run = next((w.split('=', 1)[1] for w in command if re.match(r'--?run=', w)), '')
    if keep_going and not run.startswith('gs://'):
        raise RunError(f'--keep_going resumes a run whose machines are gone, so that its directory must be in a bucket: expected '
                       f'--run=gs://BUCKET/..., found {"--run=" + run if run else "no --run="}')


def main(words: list[str]) -> None:
    f = flags.FLAGS
    commands = ('create', 'run', 'logs', 'status', 'stop', 'delete')
    verb, rest = (words[0], words[1:]) if words else ('', [])
    if verb not in commands:
        raise RunError(f'{verb or "no command"}: expected one of the commands; {nearest(verb, commands)}')
    if rest and verb != 'run':
        raise RunError(f'{verb}: unexpected {rest[0]!r}')
    accelerators.check_zone(f.zone)
    gcloud = Gcloud(accelerators.check_name(f.name), f.zone, accelerators.check_name(f.project, '--project', 30) if f.project else '', f.dry_run)
    if f.slices < 1:
        raise RunError(f'--slices={f.slices}: expected at least 1')
    launcher = Launcher(gcloud, f.slices, wait=f.wait_minutes * 60, poll=f.poll_seconds)
    if verb == 'create':
        found = accelerators.find(f.type)
        if not found.runtime:
            raise RunError(f'--type={f.type}: only on GKE, not as a TPU VM: see `python -m launch.templates gke`')
        launcher.create(Request(found.type, f.runtime_version or found.runtime, f.slices, f.spot))
        launcher.note('costs money until it is deleted')
    elif verb == 'run':
        _check_command(rest, f.keep_going)
        commit = snapshot.pin(f.commit)
        archive = f'runs/launch/{f.name}/ordem-{commit[:12]}.tar.gz'
        for words in snapshot.commands(commit, archive):
            print(shlex.join(words)) if f.dry_run else snapshot.execute([words])
        code = _watched(launcher, lambda: launcher.run(rest, commit, archive, f.keep_going, f.retries))
        launcher.note(f'{"finished" if code == 0 else f"ended with exit code {code}"}; `delete` it when it is no longer needed')
        sys.exit(code)
    elif verb == 'logs':
        launcher.wait_until_active()
        if 'idle' in dict(launcher.results()).values():
            raise RunError(f'nothing has run on {f.name} yet: start a command by `run`')
        sys.exit(_watched(launcher, lambda: launcher.follow(f.worker)))
    elif verb == 'status':
        launcher.status()
    elif verb == 'stop':
        launcher.wait_until_active()
        launcher.worker('stop')
    else:
        gcloud.delete()


def _watched(launcher: Launcher, call) -> int:
    try:
        return call()
    except KeyboardInterrupt:
        launcher.note('no longer watching; what runs there runs on: `logs` shows it, the same `run` watches over it again, `stop` ends it')
        raise


if __name__ == '__main__':
    flags.DEFINE_string('name', '', 'Name of the queued resource')
    flags.DEFINE_string('zone', '', 'Zone, for example us-west4-a')
    flags.DEFINE_string('project', '', "Google Cloud project; default: gcloud's own")
    flags.DEFINE_string('type', '', 'TPU type, for example v5litepod-16')
    flags.DEFINE_integer('slices', 1, 'Slices of that type, joined by the data center network')
    flags.DEFINE_bool('spot', False, 'Cheaper machines that may be taken away')
    flags.DEFINE_string('runtime_version', '', 'Software version of the machines; default: the one documented for the type')
    flags.DEFINE_string('commit', '', 'Commit whose code is sent; default: the last one, when the working tree holds nothing else')
    flags.DEFINE_bool('keep_going', False, 'After a preemption make the machines anew and resume')
    flags.DEFINE_integer('retries', 3, 'With --keep_going: how often a command that fails is started again')
    flags.DEFINE_string('worker', '0', 'Whose log `logs` shows')
    flags.DEFINE_float('wait_minutes', 360, 'How long to wait in the queue')
    flags.DEFINE_float('poll_seconds', 30, 'Between two looks at the state')
    flags.DEFINE_bool('dry_run', False, 'Print the commands instead')
    guard.run(main, words=True)
