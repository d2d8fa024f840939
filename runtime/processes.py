"""Several processes that train one model: found, joined, compared, and ended together.

`cli.run(run_distributed(main))` runs `main` as one of them. Where they meet comes from
--coordinator, --num_processes and --process_id, from torchrun-like variables, or from JAX's own
recognition of a cluster (TPU VM, GKE, Slurm, Open MPI); with none of these there is one process and
nothing here does anything. All that leans on JAX's insides (cluster recognition, the coordinator's
key-value store) is in this file.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import jax
from absl import flags
from jax._src import clusters, distributed as jax_distributed

from data.records import printable
from runtime import exit
from runtime.errors import ProcessTimeoutError, RunError, StoppedBySignalError

_LOG = logging.getLogger('ordem')

_MAX_LINE = 2**20  # bytes of a message of the roll call at most
_DAY = 86400.0  # seconds
# Seconds that process 0, which holds the key-value store, waits for the others to have read why it
# ends.
_GRACE = 5.0


@dataclasses.dataclass(frozen=True)
class ClusterSpec:
    """One process's place in a group of processes.

    coordinator: 'HOST:PORT' of process 0, where they meet.
    num_processes: how many there are.
    process_id: which one this is, from 0.
    local_device_ids: its accelerators; None: all of the machine's.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None

    def __post_init__(self):
        host, _, port = self.coordinator.rpartition(':')
        if not host or not re.fullmatch('[0-9]{1,5}', port) or not 0 < int(port) < 2**16:
            raise RunError(
                f'--coordinator is {self.coordinator!r}: expected HOST:PORT of process 0'
            )
        if self.num_processes < 1:
            raise RunError(f'--num_processes is {self.num_processes}: expected at least 1')
        if not 0 <= self.process_id < self.num_processes:
            raise RunError(
                f'--process_id is {self.process_id} of --num_processes={self.num_processes}: '
                f'expected a number from 0 to {self.num_processes - 1}'
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(':')
        return host.strip('[]'), int(port)


# --- Finding -------------------------------------------------------------------------------------


def find_cluster(
    coordinator: str,
    num_processes: int,
    process_id: int,
    join_timeout: float = 300,
    environment: Mapping[str, str] = os.environ,
) -> ClusterSpec | None:
    """Returns this process's place as flags or environment say, None where there is only one.

    Args:
      coordinator: the flag's value; '' where it was not given.
      num_processes: the flag's value; -1 where it was not given.
      process_id: the flag's value; -1 where it was not given.
      join_timeout: seconds that JAX may take to ask a cluster's services.
      environment: the environment's variables.

    Raises:
      RunError: only some of the flags or variables are there, or their values do not fit.
    """
    flags_given = {
        '--coordinator': coordinator != '',
        '--num_processes': num_processes != -1,
        '--process_id': process_id != -1,
    }
    if num_processes == 1 and not coordinator and process_id in (-1, 0):
        return None

    # Flags come first, then torchrun's variables, then what JAX recognises by itself.
    spec: ClusterSpec | None
    if any(flags_given.values()):
        _check_complete(flags_given)
        spec = ClusterSpec(coordinator, num_processes, process_id)
    elif 'WORLD_SIZE' in environment or 'RANK' in environment:
        spec = _read_torchrun(environment)
    else:
        spec = _detect_cluster(join_timeout)

    return spec if spec is not None and spec.num_processes > 1 else None


def _read_torchrun(environment: Mapping[str, str]) -> ClusterSpec | None:
    """Returns the place that torchrun's variables describe, None where they say one process."""
    if environment.get('WORLD_SIZE') == '1':
        return None
    names = ('MASTER_ADDR', 'MASTER_PORT', 'WORLD_SIZE', 'RANK')
    _check_complete({name: name in environment for name in names})
    number = functools.partial(_read_number, environment)
    port = number('MASTER_PORT')
    if environment.get('TORCHELASTIC_USE_AGENT_STORE') == 'True':
        port += 1  # torchrun itself listens on the port that it tells
    return ClusterSpec(
        f'{environment["MASTER_ADDR"]}:{port}',
        number('WORLD_SIZE'),
        number('RANK'),
        [number('LOCAL_RANK')] if 'LOCAL_RANK' in environment else None,
    )


def _detect_cluster(join_timeout: float) -> ClusterSpec | None:
    """Returns the place that JAX recognises (TPU VM, Slurm, ...), None where it sees no cluster."""
    try:
        detected = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(join_timeout)
        )
    except Exception as error:  # whatever a half-described cluster makes the recognition raise
        raise RunError(
            f'the cluster could not be recognised ({type(error).__name__}: {error}); give '
            f'--coordinator, --num_processes and --process_id, or --num_processes=1'
        ) from None
    coordinator, num_processes, process_id, device_ids = detected
    if coordinator is None:
        return None
    assert num_processes is not None and process_id is not None, 'half a place in a cluster'
    return ClusterSpec(coordinator, num_processes, process_id, device_ids)


def _check_complete(present: dict[str, bool]) -> None:
    """Raises RunError where some of the names are present and others are not."""
    if all(present.values()):
        return
    there = ' and '.join(name for name, is_there in present.items() if is_there)
    absent = ' and '.join(name for name, is_there in present.items() if not is_there)
    raise RunError(f'{there} without {absent}: expected {", ".join(present)} together')


def _read_number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise RunError(f'{name}={value:.40}: expected a number of at most 9 digits')
    return int(value)


# --- Joining -------------------------------------------------------------------------------------


def run_distributed(main: Callable[[], None]) -> Callable[[], None]:
    """Returns a function that runs `main` as one of the processes.

    Where one of them fails all end, with its message and its exit code.
    """

    def run() -> None:
        f = flags.FLAGS
        spec = find_cluster(f.coordinator, f.num_processes, f.process_id, f.join_timeout)
        if spec is None:
            main()
            return

        # Join: first all must be there with the same code, then JAX connects their devices.
        if spec.process_id:
            _LOG.setLevel(logging.CRITICAL)  # what all have to say is said once, by process 0
        _roll_call(spec, f.join_timeout)
        jax.distributed.initialize(
            spec.coordinator,
            spec.num_processes,
            spec.process_id,
            spec.local_device_ids,
            cluster_detection_method='deactivate',
            heartbeat_timeout_seconds=f.heartbeat_timeout,
        )
        watcher = threading.Thread(target=_watch, daemon=True)
        watcher.start()

        stop: StoppedBySignalError | None = None
        try:
            try:
                main()
            except StoppedBySignalError as error:  # all of them, after the same step
                stop = error
            barrier('end', _DAY)
        except BaseException as error:
            with _leaving:
                code, message = exit.describe_error(error)
                _leave(code, f'process {spec.process_id}: {message}')

        # A good end: the key that the watchers wait for is set to nothing, so that they end too.
        if is_main_process():
            _client().key_value_set('ordem/failed', '')
        watcher.join()
        if stop:
            raise stop

    return run


def _roll_call(spec: ClusterSpec, timeout: float) -> None:
    """Waits until all processes are there and run the same code.

    It comes before JAX's own, which aborts the process where one is missing and does not say which,
    and uses the same port, as no other may be open between the hosts.
    """
    message = {
        'process': spec.process_id,
        'facts': {'the number of processes': spec.num_processes, **_versions()},
    }
    if spec.process_id == 0:
        verdict = _collect_answers(spec, message, timeout)
    else:
        verdict = _answer_call(spec, message, timeout)
    if verdict:
        raise (ProcessTimeoutError if 'did not come' in verdict else RunError)(verdict)


def _collect_answers(spec: ClusterSpec, message: dict, timeout: float) -> str:
    """Hears all processes, compares what they say, and tells all of them what came of it, or ''."""
    deadline = time.monotonic() + timeout
    facts_by_process = {0: message['facts']}
    connections: list[socket.socket] = []
    verdict = ''
    with _listen(spec) as server:
        # Hear the others, until all have come, one comes twice, or the time is over.
        while not verdict and len(facts_by_process) < spec.num_processes:
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0:
                break
            server.settimeout(seconds_left)
            try:
                connection = server.accept()[0]
                connection.settimeout(_GRACE)
                answer = json.loads(connection.makefile().readline(_MAX_LINE))
                process, facts = answer['process'], answer['facts']
            except (OSError, ValueError, KeyError, TypeError):  # nobody yet, or a stranger
                continue
            connections.append(connection)
            if process in facts_by_process:
                verdict = (
                    f'two processes say that they are number {process}; the ids must be 0 to '
                    f'{spec.num_processes - 1}, each once'
                )
            facts_by_process[process] = facts

        absent = sorted({*range(spec.num_processes)} - {*facts_by_process})
        verdict = (
            verdict
            or difference(facts_by_process)
            or _describe_missing(absent, spec.num_processes, timeout)
        )

        for connection in connections:
            try:
                connection.sendall(json.dumps(verdict).encode() + b'\n')
                connection.recv(1)  # they close first: the port is then free at once
            except OSError:
                pass
            connection.close()
    return verdict


def _listen(spec: ClusterSpec) -> socket.socket:
    """Returns a server on the coordinator's port. Raises RunError where it is taken."""
    dualstack = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ('', spec.address[1]),
            family=socket.AF_INET6 if dualstack else socket.AF_INET,
            dualstack_ipv6=dualstack,
            backlog=spec.num_processes,
        )
    except OSError as error:
        raise RunError(
            f'--coordinator={spec.coordinator}: process 0 cannot listen on that port '
            f'({error.strerror})'
        ) from None


def _answer_call(spec: ClusterSpec, message: dict, timeout: float) -> str:
    """Tells process 0 this one's message; returns what it makes of all of them, or ''."""
    deadline = time.monotonic() + timeout
    while True:
        seconds_left = max(0.1, deadline - time.monotonic())
        try:
            with socket.create_connection(spec.address, seconds_left) as connection:
                connection.sendall(json.dumps(message).encode() + b'\n')
                connection.settimeout(timeout + _GRACE)
                return json.loads(connection.makefile().readline(_MAX_LINE))
        except (OSError, ValueError):  # not there yet, or gone before all had come
            if time.monotonic() > deadline:
                return f'process 0 ({spec.coordinator}) did not come within {timeout:g} s'
            time.sleep(0.1)


def _versions() -> dict[str, str]:
    """Returns what must be the same everywhere before anything is exchanged."""
    root = pathlib.Path(__file__).resolve().parents[1]
    rooms = ('data', 'model', 'runtime', 'train')
    code = hashlib.sha256()
    for path in sorted(path for room in rooms for path in (root / room).rglob('*.py')):
        code.update(f'{path.relative_to(root)}\0'.encode() + path.read_bytes())
    return {
        'the code': code.hexdigest()[:12],
        'jax': jax.__version__,
        'python': '.'.join(platform.python_version_tuple()[:2]),
    }


# --- Meeting: through the key-value store that process 0 keeps -----------------------------------


def is_main_process() -> bool:
    """Returns whether this process writes what is written once."""
    return jax_distributed.global_state.process_id == 0


def count() -> int:
    """Returns how many processes there are."""
    return jax_distributed.global_state.num_processes


def barrier(name: str, timeout: float | None = None) -> None:
    """Waits for all processes, `timeout` seconds at most (None: --join_timeout).

    Raises:
      ProcessTimeoutError: on all of them, with those that did not come.
    """
    broadcast_decision(name, '', lambda messages: '', timeout)


def main_process_first(name: str, make: Callable):
    """Returns make(), called on process 0 and then on the others.

    The others find in a shared cache what it has built, or build it too. The wait is as long as the
    work; that process 0 is alive is what heartbeats are for.
    """
    value = make() if is_main_process() else None
    barrier(name, _DAY)
    if not is_main_process():
        value = make()
    barrier(name, _DAY)  # the others may have to build it too, each on its own disk
    return value


def assert_same(facts: dict) -> None:
    """Raises RunError, on all processes, where a fact is not the same on all of them.

    It names the fact and who says what.
    """

    def compare(messages: Sequence[str]) -> str:
        return difference({i: json.loads(message) for i, message in enumerate(messages)})

    verdict = broadcast_decision('agree', json.dumps(facts, default=str), compare)
    if verdict:
        raise RunError(verdict)


def difference(facts_by_process: dict[int, dict]) -> str:
    """Returns one line that names each fact that differs, with its values; '' where none does."""
    lines = []
    for name in dict.fromkeys(name for facts in facts_by_process.values() for name in facts):
        processes_by_value = collections.defaultdict(list)
        for process, facts in sorted(facts_by_process.items()):
            processes_by_value[str(facts.get(name, 'absent'))].append(process)
        if len(processes_by_value) > 1:
            values = ', '.join(
                f'{value} on {_name_processes(ids)}' for value, ids in processes_by_value.items()
            )
            lines.append(f'{name} is {values}')
    if not lines:
        return ''
    rest = f'; and {len(lines) - 4} more' if len(lines) > 4 else ''
    return f'the processes differ: {"; ".join(lines[:4])}{rest}'


def broadcast_decision(
    name: str, mine: str, rule: Callable[[Sequence[str]], str], timeout: float | None = None
) -> str:
    """Returns what `rule` makes of what all processes say: the same on all of them.

    All call it in the same order; process 0 computes the answer.

    Args:
      name: of this meeting.
      mine: what this process says.
      rule: what all say, in the order of the processes -> the answer.
      timeout: seconds to wait for the others; None: --join_timeout.

    Raises:
      ProcessTimeoutError: on all of them, with those that did not come in time.
    """
    client = _client()
    num_processes = count()
    if client is None:
        return rule([mine])
    timeout = flags.FLAGS.join_timeout if timeout is None else timeout
    where = f' to the meeting {name!r}'
    _meetings[name] += 1
    key = f'ordem/{name}/{_meetings[name]}'
    deadline = time.monotonic() + timeout
    client.key_value_set(f'{key}/{jax_distributed.global_state.process_id}', mine)

    # Process 0 reads what all have said and writes the answer, or who did not come.
    if is_main_process():
        messages = []
        absent = []
        for process in range(num_processes):
            message = _get(client, f'{key}/{process}', max(0.001, deadline - time.monotonic()))
            if message is None:
                absent.append(process)
            else:
                messages.append(message)
        missing = _describe_missing(absent, num_processes, timeout, where)
        client.key_value_set(key, json.dumps([missing, '' if missing else rule(messages)]))

    answer = _get(client, key, timeout + _GRACE)
    if answer:
        missing, verdict = json.loads(answer)
    else:
        missing, verdict = _describe_missing([0], num_processes, timeout, where), ''
    if missing:
        raise ProcessTimeoutError(missing)
    return verdict


def _describe_missing(ids: list[int], num_processes: int, timeout: float, where: str = '') -> str:
    if not ids:
        return ''
    return f'{_name_processes(ids)} of {num_processes} did not come{where} within {timeout:g} s'


def _name_processes(ids: list[int]) -> str:
    """[0, 2, 3] -> 'processes 0, 2 and 3'."""
    if len(ids) == 1:
        return f'process {ids[0]}'
    return f'processes {", ".join(map(str, ids[:-1]))} and {ids[-1]}'


_meetings: collections.Counter = collections.Counter()
_leaving = threading.Lock()  # whoever holds it, main thread or watcher, ends the process


def _client():
    return jax_distributed.global_state.client


def _get(client, key: str, seconds: float) -> str | None:
    """Returns the value of a key of the store, None where none was set in this time."""
    try:
        return client.blocking_key_value_get(key, max(1, int(seconds * 1000)))
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' in str(error):
            return None
        raise


# --- Ending --------------------------------------------------------------------------------------


def _watch() -> None:
    """Ends this process, which may hang in a collective, when another says that it fails.

    It runs in a thread of its own.
    """
    failure = None
    try:
        while failure is None:
            failure = _get(_client(), 'ordem/failed', _DAY)
    except jax.errors.JaxRuntimeError:
        return  # process 0 is dead: JAX ends this process
    if failure and _leaving.acquire(blocking=False):
        code, message = json.loads(failure)
        print(printable(f'error: {message}'), file=sys.stderr)
        _leave(code, message)


def end_all(code: int, message: str) -> None:
    """Ends this process at once, from any thread, and the others of its group with `message`."""
    if _client() is None:
        sys.stdout.flush()
        os._exit(code)
    with _leaving:
        _leave(code, f'process {jax_distributed.global_state.process_id}: {message}')


def _leave(code: int, message: str) -> None:
    """Ends this process without waiting for the others, and says why to those still here.

    JAX's orderly end would wait.
    """
    client = _client()
    process_id = jax_distributed.global_state.process_id
    try:
        client.key_value_set('ordem/failed', json.dumps([code, message]))
        first = True
    except jax.errors.JaxRuntimeError:
        first = False  # another one was first, or process 0 is dead
    sys.stdout.flush()
    sys.stderr.flush()

    try:
        client.key_value_set(f'ordem/heard/{process_id}', '')
        deadline = time.monotonic() + _GRACE

        def wait_for_others(what: str) -> None:
            for process in range(count()):
                if process != process_id:
                    seconds_left = max(0.001, deadline - time.monotonic())
                    _get(client, f'ordem/{what}/{process}', seconds_left)

        if first:
            wait_for_others('heard')  # else they see a broken connection before the reason
        client.key_value_set(f'ordem/leaves/{process_id}', '')
        if process_id == 0:
            wait_for_others('leaves')  # process 0 is the last: JAX aborts whoever outlives it
            time.sleep(0.2)
    except jax.errors.JaxRuntimeError:
        pass
    os._exit(code)
