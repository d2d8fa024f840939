"""Leads a run on Cloud TPU VMs from the queue to its end.

Queued, active, run, preempted, made anew, resumed, ended. The command is `launch/tpu_vm.py`.
"""

import dataclasses
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Callable

from launch import accelerators
from launch.gcloud import Gcloud, GcloudError, Request
from runtime import exit
from runtime.errors import RunError

_QUEUED = ('CREATING', 'ACCEPTED', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'STATE_UNSPECIFIED')
_GONE = ('SUSPENDING', 'SUSPENDED')
_RESULT = (
    'if [ -f ordem/worker.sh ]; then sh ordem/worker.sh result; '
    'else echo worker $(hostname): idle; fi'
)
_ANSWER = r'^worker (\S+): (idle|running|exit \d+)$'

# Attempts of a command that fails for no known reason; and looks at the state before a failure
# counts as none of the machines'.
_ATTEMPTS = 3


class PreemptedError(RunError):
    """Tells that the machines were taken away."""

    def __init__(self, name: str):
        super().__init__(
            f'{name} was preempted, and what was on its disks is gone: `delete` it, `create` it '
            'and `run` the same command again, or let `run --keep_going` do so'
        )


@dataclasses.dataclass
class Launcher:
    """Leads one queued resource through its life.

    Attributes:
      workers: of all slices together; 0: not known.
      wait: seconds to stay in the queue.
      poll: seconds between two looks.
    """

    gcloud: Gcloud
    slices: int = 1
    workers: int = 0
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
        """Writes a line with time and name to stderr; nothing in a dry run."""
        if not self.gcloud.dry_run:
            print(f'[{time.strftime("%H:%M:%S")}] {self.name}: {text}', file=sys.stderr, flush=True)

    def _insist(self, call):
        """Gives a call again that fails for a reason of the moment: a network, a service."""
        for attempt in range(_ATTEMPTS):
            try:
                return call()
            except GcloudError as error:
                if error.kind != 'other' or attempt == _ATTEMPTS - 1:
                    raise
                self.sleep(self.poll)

    def describe(self) -> dict:
        """Returns what the queue says of the resource."""
        return self._insist(self.gcloud.describe)

    def wait_until_active(self) -> None:
        """Waits for the machines.

        Raises PreemptedError where they are gone, RunError where they will not come or the wait is
        over.
        """
        began = self.clock()
        before = None
        while True:
            resource = self.describe()
            state = resource['state']['state']
            if state != before:
                self.note(state)
                before = state

            # The states that end the wait: the machines are there, are gone, or will not come.
            if state == 'ACTIVE':
                self._read(resource)
                return
            if state in _GONE:
                raise PreemptedError(self.name)
            if state == 'FAILED':
                error = resource['state'].get('failedData', {}).get('error', {})
                why = error.get('message', 'the service gives no reason')
                raise RunError(
                    f'{self.name} failed ({why}): `delete` it, then `create` it again, in another '
                    '--zone if it was for lack of room'
                )
            if state not in _QUEUED:
                raise RunError(
                    f'{self.name} is {state}: wait until it is gone (`status`), then `create` it '
                    'again'
                )

            if self.clock() - began >= self.wait:
                raise RunError(
                    f'{self.name} is still {state} after {self.wait / 60:.0f} minutes and stays in '
                    'the queue: `run` goes on waiting, `delete` gives it up; --spot, a smaller '
                    '--type or another --zone may come sooner'
                )
            self.sleep(self.poll)

    def _read(self, resource: dict) -> None:
        """Reads from what the service says how many slices and workers there are."""
        if 'tpu' not in resource:
            return
        request = Request.of(resource)
        self.slices = request.slices
        self.workers = 0
        if request.type in accelerators.TYPES:
            self.workers = request.slices * accelerators.TYPES[request.type].hosts

    def create(self, request: Request) -> None:
        """Asks for the machines, and waits until they are there."""
        self.slices = request.slices
        self.gcloud.create(request)
        self.wait_until_active()

    def _on_all(self, call) -> list:
        """Returns call(node) of each slice, all at once; one by one in a dry run."""
        if self.gcloud.dry_run or len(self.nodes) == 1:
            return [call(node) for node in self.nodes]
        import concurrent.futures  # here: it takes longer to import than the rest of a launcher

        with concurrent.futures.ThreadPoolExecutor(min(16, len(self.nodes))) as pool:
            return list(pool.map(call, self.nodes))

    def install(self, archive: str, commit: str) -> None:
        """Installs the code of `commit` and its environment on all workers.

        Done again it is quick.
        """
        code = f'ordem/code-{commit[:12]}'
        words = [
            ['mkdir', '-p', code],
            ['tar', '-xzf', pathlib.Path(archive).name, '-C', code],
            ['ln', '-sfn', f'code-{commit[:12]}', 'ordem/code'],
            ['cp', 'ordem/code/launch/worker.sh', 'ordem/worker.sh'],
            ['sh', 'ordem/worker.sh', 'install'],
        ]

        def install_on(node: str) -> None:
            self._insist(lambda: self.gcloud.send(node, archive))
            self.gcloud.ssh(node, ' && '.join(map(shlex.join, words)))

        self.note(f'installing commit {commit[:12]}')
        self._on_all(install_on)

    def worker(self, *words: str) -> None:
        """Runs `sh worker.sh WORDS` on all workers; the words arrive as they are."""
        self._on_all(
            lambda node: self.gcloud.ssh(node, shlex.join(['sh', 'ordem/worker.sh', *words]))
        )

    def results(self) -> list[tuple[str, str]]:
        """Returns (worker, 'idle', 'running' or 'exit N') of all workers.

        Raises GcloudError where one does not answer.
        """
        outputs = self._on_all(lambda node: self.gcloud.ssh(node, _RESULT))
        answers = []
        for node, output in zip(self.nodes, outputs):
            for host, state in re.findall(_ANSWER, output, re.M):
                answers.append((f'{node} {host}', state))
        if len(answers) < self.workers:
            raise GcloudError(
                'ssh',
                f'{len(answers)} of {self.workers} workers of {self.name} answer: see `status`, '
                'and give the command again',
            )
        return answers

    def follow(self, worker: str = '0') -> int:
        """Shows the log until the command ends on all workers; returns its exit code.

        Raises PreemptedError, or RunError where ssh stays refused.
        """
        seen = 0  # lines of the log
        refused = 0
        late = 0
        while True:
            # Show what is new of the log; a connection that ends says that something happened.
            try:
                seen += self.gcloud.ssh(
                    self.nodes[0],
                    shlex.join(['sh', 'ordem/worker.sh', 'follow', str(seen)]),
                    worker,
                    echo=True,
                ).count('\n')
                answers = self.results()
                refused = 0
            except GcloudError as error:
                if error.kind not in ('ssh', 'gone', 'missing', 'other'):
                    raise
                if self.is_preempted():
                    raise PreemptedError(self.name) from None
                refused += 1
                if refused == _ATTEMPTS:
                    raise
                self.sleep(self.poll)
                continue
            if self.gcloud.dry_run:
                return 0

            # Where one has ended, the others should not be long.
            codes = {
                worker: int(state.split()[1])
                for worker, state in answers
                if state.startswith('exit')
            }
            late += bool(codes)
            if len(codes) == len(answers) or late > 10:
                failed = {worker: code for worker, code in codes.items() if code}
                for worker, code in failed.items():
                    self.note(f'{worker}: exit code {code}')
                if late > 10:
                    self.note('other workers still run; stopping them')
                    self.worker('stop')
                if exit.MISTAKE in failed.values():
                    return exit.MISTAKE
                return next(iter(failed.values()), 0)
            self.sleep(self.poll)

    def is_preempted(self) -> bool:
        """Returns True where the queue says so, or before it has noticed a slice's own state."""
        if self.describe()['state']['state'] in _GONE:
            return True
        try:
            return any(
                self._insist(lambda: self.gcloud.node_state(node)) in ('PREEMPTED', 'TERMINATED')
                for node in self.nodes
            )
        except GcloudError as error:
            return error.kind == 'missing'

    def _preempted_soon(self) -> bool:
        """Returns True where the machines turn out to be gone.

        Processes end some seconds before the service tells why.
        """
        for _ in range(_ATTEMPTS):
            if self.is_preempted():
                return True
            self.sleep(self.poll)
        return False

    def recreate(self, request: Request) -> None:
        """Deletes what is left and asks the queue for the same again."""
        # What is being suspended cannot be deleted yet.
        began = self.clock()
        while self.describe()['state']['state'] == 'SUSPENDING':
            if self.clock() - began >= self.wait:
                raise RunError(
                    f'{self.name} is still SUSPENDING after {self.wait / 60:.0f} minutes: `delete` '
                    'it, `create` it and `run` again'
                )
            self.sleep(self.poll)

        # An attempt that seemed to fail may have done its work.
        for call, done in (
            (self.gcloud.delete, 'missing'),
            (lambda: self.gcloud.create(request), 'exists'),
        ):
            try:
                self._insist(call)
            except GcloudError as error:
                if error.kind != done:
                    raise

    def run(
        self, command: list[str], commit: str, archive: str, keep_going: bool, retries: int
    ) -> int:
        """Starts the command, or follows it where it runs already; returns its exit code."""
        request = None if self.gcloud.dry_run else Request.of(self.describe())
        failures = 0
        while True:
            try:
                self.wait_until_active()
                states = set(dict(self.results()).values())
                if 'running' in states:
                    self.note('a command runs there already: going on with it')
                else:
                    self.install(archive, commit)

                # Where some have ended, the others will too: none is begun beside them.
                if 'running' not in states or len(states) == 1:
                    self.worker('start', *command)
                code = self.follow()
                if self.gcloud.dry_run and keep_going:
                    print(
                        '# after a preemption: `delete` and `create` as before, then these '
                        'commands again'
                    )

                # Done, or no use trying again; otherwise a preemption, or a failure to try again.
                if not keep_going or self.gcloud.dry_run or code in (0, exit.MISTAKE):
                    return code
                if self._preempted_soon():
                    raise PreemptedError(self.name)
                if code in (130, 143) or failures == retries:
                    return code
                failures += 1
                self.note(f'starting again after a failure, {failures} of {retries}')
                self.worker('stop')
            except (PreemptedError, GcloudError) as error:
                if isinstance(error, GcloudError):
                    if error.kind not in ('ssh', 'gone', 'missing') or not self.is_preempted():
                        raise
                    error = PreemptedError(self.name)
                if not keep_going:
                    raise error from None
                self.note('preempted; asking for it again')
                self.recreate(request)

    def status(self) -> None:
        """Prints the queue's state and, where there are machines, theirs and what runs on them."""
        resource = self.describe()
        state = resource['state']['state']
        asked = ''
        if 'tpu' in resource:
            request = Request.of(resource)
            spot = ', spot' if request.spot else ''
            asked = f', {request.type} x {request.slices}{spot}'
        lines = [f'{self.name}: {state}{asked}']
        if state == 'ACTIVE':
            self._read(resource)
            lines += [f'  {node}: {self.gcloud.node_state(node)}' for node in self.nodes]
            lines += [f'  {worker}: {answer}' for worker, answer in self.results()]
        if not self.gcloud.dry_run:
            print('\n'.join(lines))
