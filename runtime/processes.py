"""Several processes that train one model: found, joined, compared, and ended together.

`cli.run(run_distributed(main))` runs `main` as one of them. Where they meet comes from --coordinator, --num_processes and --process_id, from
torchrun-like variables, or from JAX's own recognition of a cluster (TPU VM, GKE, Slurm, Open MPI); with none of these there is one
process and nothing here does anything. All that leans on JAX's insides (cluster recognition, the coordinator's key-value store) is in
this file.
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
from collections.abc import Callable

import jax
from absl import flags
from jax._src import clusters, distributed as jax_distributed

from data.records import printable
from runtime import exit, options
from runtime.errors import ProcessTimeoutError, RunError, StoppedBySignalError

_LOG = logging.getLogger('ordem')
_LINE = 2**20  # bytes of a message of the roll call at most
_GRACE = 5.0  # seconds that process 0, which holds the key-value store, waits for the others to have read why it ends
_DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class ClusterSpec:
    """Where the processes meet ('HOST:PORT' of process 0), how many they are, which one this is, and its accelerators (None: all)."""

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None

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
                f'--process_id is {self.process_id} of --num_processes={self.num_processes}: expected a number from 0 to '
                f'{self.num_processes - 1}'
            )

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(':')
        return host.strip('[]'), int(port)


def define_flags() -> None:
    flags.DEFINE_string(
        'coordinator',
        '',
        'Several processes: HOST:PORT of process 0; empty: as the cluster says, else one process',
    )
    options.whole(
        'num_processes',
        -1,
        'Several processes: how many; 1: one, whatever the environment says',
        -1,
        options.COUNT,
    )
    options.whole(
        'process_id',
        -1,
        'Several processes: which one this is, from 0',
        -1,
        options.COUNT,
    )
    options.number(
        'join_timeout',
        300.0,
        'Seconds to wait for the other processes at the start, and wherever they meet',
        1,
        _DAY,
    )
    options.whole(
        'heartbeat_timeout',
        100,
        'Seconds of silence after which a process counts as dead and the others end',
        1,
        int(_DAY),
    )


def find_cluster(
    coordinator: str,
    num_processes: int,
    process_id: int,
    join_timeout: float = 300,
    environment=os.environ,
) -> ClusterSpec | None:
    """The flags' values (absent: '' and -1) and the environment -> this process's place; None: there is only one process.

    Raises RunError where only some of the flags or variables are there, or their values do not fit.
    """
    given = {
        '--coordinator': coordinator != '',
        '--num_processes': num_processes != -1,
        '--process_id': process_id != -1,
    }
    if num_processes == 1 and not coordinator and process_id in (-1, 0):
        return None
    if any(given.values()):
        _complete(given)
        found = ClusterSpec(coordinator, num_processes, process_id)
    elif 'WORLD_SIZE' in environment or 'RANK' in environment:
        if environment.get('WORLD_SIZE') == '1':
            return None
        _complete(
            {
                name: name in environment
                for name in ('MASTER_ADDR', 'MASTER_PORT', 'WORLD_SIZE', 'RANK')
            }
        )
        number = functools.partial(_number, environment)
        port = number('MASTER_PORT') + (
            environment.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
        )  # torchrun itself listens there
        found = ClusterSpec(
            f'{environment["MASTER_ADDR"]}:{port}',
            number('WORLD_SIZE'),
            number('RANK'),
            [number('LOCAL_RANK')] if 'LOCAL_RANK' in environment else None,
        )
    else:
        try:
            detected = clusters.ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, int(join_timeout)
            )
        except Exception as error:  # whatever a half-described cluster makes the recognition raise
            raise RunError(
                f'the cluster could not be recognised ({type(error).__name__}: {error}); give --coordinator, '
                f'--num_processes and --process_id, or --num_processes=1'
            ) from None
        if detected[0] is None:
            return None
        found = ClusterSpec(*detected)
    return found if found.num_processes > 1 else None


def _complete(given: dict[str, bool]) -> None:
    if not all(given.values()):
        names = lambda there: ' and '.join(
            name for name, is_there in given.items() if is_there == there
        )
        raise RunError(
            f'{names(True)} without {names(False)}: expected {", ".join(given)} together'
        )


def _number(environment, name: str) -> int:
    said = environment[name]
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        raise RunError(f'{name}={said:.40}: expected a number of at most 9 digits')
    return int(environment[name])


# --- Joining ---------------------------------------------------------------------------------------------------------------------


def run_distributed(main: Callable[[], None]) -> Callable[[], None]:
    """`main` run as one of the processes. Where one of them fails all end, with its message and its exit code."""

    def joined() -> None:
        f = flags.FLAGS
        here = find_cluster(f.coordinator, f.num_processes, f.process_id, f.join_timeout)
        if here is None:
            main()
            return
        if here.process_id:
            _LOG.setLevel(logging.CRITICAL)  # what all have to say is said once, by process 0
        _roll_call(here, f.join_timeout)
        jax.distributed.initialize(
            here.coordinator,
            here.num_processes,
            here.process_id,
            here.local_device_ids,
            cluster_detection_method='deactivate',
            heartbeat_timeout_seconds=f.heartbeat_timeout,
        )
        watching = threading.Thread(target=_watch, daemon=True)
        watching.start()
        stopped = None
        try:
            try:
                main()
            except StoppedBySignalError as stop:  # all of them, after the same step
                stopped = stop
            barrier('end', _DAY)
        except BaseException as error:
            with _leaving:
                code, message = exit.describe_error(error)
                _leave(code, f'process {here.process_id}: {message}')
        if is_main_process():
            _client().key_value_set('ordem/failed', '')
        watching.join()
        if stopped:
            raise stopped

    return joined


def _roll_call(here: ClusterSpec, timeout: float) -> None:
    """Waits until all processes are there and run the same code. It comes before JAX's own, which aborts the process where one is
    missing and does not say which, and uses the same port, as no other may be open between the hosts."""
    mine = dict(
        process=here.process_id,
        facts={'the number of processes': here.num_processes, **_versions()},
    )
    verdict = _call(here, mine, timeout) if here.process_id == 0 else _answer(here, mine, timeout)
    if verdict:
        raise (ProcessTimeoutError if 'did not come' in verdict else RunError)(verdict)


def _call(here: ClusterSpec, mine: dict, timeout: float) -> str:
    deadline = time.monotonic() + timeout
    said, lines, verdict = {0: mine['facts']}, [], ''
    try:
        many = socket.has_dualstack_ipv6()
        server = socket.create_server(
            ('', here.address[1]),
            family=socket.AF_INET6 if many else socket.AF_INET,
            dualstack_ipv6=many,
            backlog=here.num_processes,
        )
    except OSError as error:
        raise RunError(
            f'--coordinator={here.coordinator}: process 0 cannot listen on that port ({error.strerror})'
        ) from None
    with server:
        while (
            not verdict
            and len(said) < here.num_processes
            and (left := deadline - time.monotonic()) > 0
        ):
            server.settimeout(left)
            try:
                line = server.accept()[0]
                line.settimeout(_GRACE)
                theirs = json.loads(line.makefile().readline(_LINE))
                who, facts = theirs['process'], theirs['facts']
            except (OSError, ValueError, KeyError, TypeError):  # nobody yet, or a stranger
                continue
            lines.append(line)
            if who in said:
                verdict = f'two processes say that they are number {who}; the ids must be 0 to {here.num_processes - 1}, each once'
            said[who] = facts
        verdict = (
            verdict
            or difference(said)
            or _missing(sorted({*range(here.num_processes)} - {*said}), here.num_processes, timeout)
        )
        for line in lines:
            try:
                line.sendall(json.dumps(verdict).encode() + b'\n')
                line.recv(1)  # they close first: the port is then free at once
            except OSError:
                pass
            line.close()
    return verdict


def _answer(here: ClusterSpec, mine: dict, timeout: float) -> str:
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection(
                here.address, max(0.1, deadline - time.monotonic())
            ) as line:
                line.sendall(json.dumps(mine).encode() + b'\n')
                line.settimeout(timeout + _GRACE)
                return json.loads(line.makefile().readline(_LINE))
        except (OSError, ValueError):  # not there yet, or gone before all had come
            if time.monotonic() > deadline:
                return f'process 0 ({here.coordinator}) did not come within {timeout:g} s'
            time.sleep(0.1)


def _versions() -> dict[str, str]:
    """What must be the same everywhere before anything is exchanged."""
    code, root = hashlib.sha256(), pathlib.Path(__file__).resolve().parents[1]
    for path in sorted(
        p for room in ('data', 'model', 'train') for p in (root / room).rglob('*.py')
    ):
        code.update(f'{path.relative_to(root)}\0'.encode() + path.read_bytes())
    return {
        'the code': code.hexdigest()[:12],
        'jax': jax.__version__,
        'python': '.'.join(platform.python_version_tuple()[:2]),
    }


# --- Meeting: through the key-value store that process 0 keeps ----------------------------------------------------------------------


def is_main_process() -> bool:
    """Whether this process writes what is written once."""
    return jax_distributed.global_state.process_id == 0


def count() -> int:
    return jax_distributed.global_state.num_processes


def barrier(name: str, timeout: float | None = None) -> None:
    """Waits for all processes. Raises ProcessTimeoutError, on all of them, with those that did not come in `timeout` seconds (--join_timeout)."""
    broadcast_decision(name, '', lambda said: '', timeout)


def main_process_first(name: str, make: Callable):
    """make() on process 0 and then on the others, which find in a shared cache what it has built, or build it too. The wait is as
    long as the work; that process 0 is alive is what heartbeats are for."""
    found = make() if is_main_process() else None
    barrier(name, _DAY)
    if not is_main_process():
        found = make()
    barrier(name, _DAY)  # the others may have to build it too, each on its own disk
    return found


def assert_same(facts: dict) -> None:
    """Raises RunError, on all processes, where a fact is not the same on all; it names the fact and who says what."""
    verdict = broadcast_decision(
        'agree',
        json.dumps(facts, default=str),
        lambda said: difference({i: json.loads(s) for i, s in enumerate(said)}),
    )
    if verdict:
        raise RunError(verdict)


def difference(said: dict[int, dict]) -> str:
    """Facts by process -> '' or one line that names each fact that differs, with its values."""
    lines = []
    for name in dict.fromkeys(name for facts in said.values() for name in facts):
        who = collections.defaultdict(list)
        for process, facts in sorted(said.items()):
            who[str(facts.get(name, 'absent'))].append(process)
        if len(who) > 1:
            lines.append(
                f'{name} is '
                + ', '.join(f'{value} on {_processes(ids)}' for value, ids in who.items())
            )
    return (
        ''
        if not lines
        else f'the processes differ: {"; ".join(lines[:4])}'
        + (f'; and {len(lines) - 4} more' if lines[4:] else '')
    )


def broadcast_decision(
    name: str, mine: str, rule: Callable[[list[str]], str], timeout: float | None = None
) -> str:
    """What `rule` makes of what all processes say, in their order: computed by process 0, the same answer for all.

    All call it in the same order. Raises ProcessTimeoutError, on all of them, with those that did not come in time.
    """
    client, n = _client(), count()
    if client is None:
        return rule([mine])
    timeout = flags.FLAGS.join_timeout if timeout is None else timeout
    _meetings[name] += 1
    key = f'ordem/{name}/{_meetings[name]}'
    deadline = time.monotonic() + timeout
    client.key_value_set(f'{key}/{jax_distributed.global_state.process_id}', mine)
    if is_main_process():
        said = [
            _get(client, f'{key}/{i}', max(0.001, deadline - time.monotonic())) for i in range(n)
        ]
        missing = _missing(
            [i for i, s in enumerate(said) if s is None], n, timeout, f' to the meeting {name!r}'
        )
        client.key_value_set(key, json.dumps([missing, '' if missing else rule(said)]))
    answer = _get(client, key, timeout + _GRACE)
    missing, verdict = (
        json.loads(answer)
        if answer
        else (_missing([0], n, timeout, f' to the meeting {name!r}'), '')
    )
    if missing:
        raise ProcessTimeoutError(missing)
    return verdict


def _missing(ids: list[int], n: int, timeout: float, where: str = '') -> str:
    return '' if not ids else f'{_processes(ids)} of {n} did not come{where} within {timeout:g} s'


def _processes(ids: list[int]) -> str:
    """[0, 2, 3] -> 'processes 0, 2 and 3'."""
    return (
        f'process {ids[0]}'
        if len(ids) == 1
        else f'processes {", ".join(map(str, ids[:-1]))} and {ids[-1]}'
    )


_meetings: collections.Counter = collections.Counter()
_leaving = threading.Lock()  # whoever holds it, main thread or watcher, ends the process


def _client():
    return jax_distributed.global_state.client


def _get(client, key: str, seconds: float) -> str | None:
    try:
        return client.blocking_key_value_get(key, max(1, int(seconds * 1000)))
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' in str(error):
            return None
        raise


# --- Ending ----------------------------------------------------------------------------------------------------------------------


def _watch() -> None:
    """In a thread: ends this process, which may hang in a collective, when another one says that it fails."""
    found = None
    try:
        while found is None:
            found = _get(_client(), 'ordem/failed', _DAY)
    except jax.errors.JaxRuntimeError:
        return  # process 0 is dead: JAX ends this process
    if found and _leaving.acquire(blocking=False):
        code, message = json.loads(found)
        print(printable(f'error: {message}'), file=sys.stderr)
        _leave(code, message)


def end_all(code: int, message: str) -> None:
    """Ends this process at once, from any thread, and with it the others of its group, which are told `message`."""
    if _client() is None:
        sys.stdout.flush()
        os._exit(code)
    with _leaving:
        _leave(code, f'process {jax_distributed.global_state.process_id}: {message}')


def _leave(code: int, message: str) -> None:
    """Ends this process without waiting for the others, which JAX's orderly end would do, and says why to those still here."""
    client, me = _client(), jax_distributed.global_state.process_id
    try:
        client.key_value_set('ordem/failed', json.dumps([code, message]))
        first = True
    except jax.errors.JaxRuntimeError:
        first = False  # another one was first, or process 0 is dead
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        client.key_value_set(f'ordem/heard/{me}', '')
        deadline = time.monotonic() + _GRACE
        wait = lambda what: [
            _get(client, f'ordem/{what}/{i}', max(0.001, deadline - time.monotonic()))
            for i in range(count())
            if i != me
        ]
        if first:
            wait('heard')  # else the others see a broken connection before the reason
        client.key_value_set(f'ordem/leaves/{me}', '')
        if me == 0:
            wait('leaves')  # process 0 is the last: JAX aborts whoever outlives it
            time.sleep(0.2)
    except jax.errors.JaxRuntimeError:
        pass
    os._exit(code)
