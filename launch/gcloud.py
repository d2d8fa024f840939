"""Runs the commands of `gcloud` that a TPU needs; tells what to do where one fails."""

import dataclasses
import json
import re
import shlex
import subprocess
import tempfile

from runtime.errors import RunError

# (pattern of what gcloud says, kind, what to do). The first that its stderr matches counts.
_KNOWN = (
    (
        r'active account selected|gcloud auth login|Reauthentication|invalid_grant',
        'login',
        'not logged in to Google Cloud: run `gcloud auth login`',
    ),
    (
        r'find attribute \[project\]|property \[project\] is not',
        'project',
        'no Google Cloud project is chosen: give --project=ID, or run '
        '`gcloud config set project ID`',
    ),
    (
        r'SERVICE_DISABLED|has not been used in project|API .*not enabled',
        'api',
        'the Cloud TPU API is off in this project: run `gcloud services enable tpu.googleapis.com`',
    ),
    (
        r'ALREADY_EXISTS|already exists',
        'exists',
        '{name} exists already in {zone}: choose another --name, go on with it by `run`, or '
        '`delete` it first',
    ),
    (
        r'zonal accelerator configurations|zone .* is not supported|was not found in zone|'
        r'LOCATION_POLICY_VIOLATED',
        'zone',
        '{zone} does not offer this type ({reason}): zones that do are listed at '
        'https://cloud.google.com/tpu/docs/regions-zones',
    ),
    (
        r'NOT_FOUND|was not found',
        'missing',
        'there is no queued resource {name} in {zone}: make it by `create`, or look for it in '
        'another --zone',
    ),
    (r'[Qq]uota .*per minute', 'other', '{reason}'),
    (
        r'[Qq]uota|RESOURCE_EXHAUSTED',
        'quota',
        'the quota of the project does not allow it ({reason}): choose a smaller --type, another '
        '--zone or --spot, delete queued resources that are suspended or failed, or ask for more '
        'at https://console.cloud.google.com/iam-admin/quotas',
    ),
    (
        r'SSH Key is not present in the SSH agent',
        'agent',
        'several workers need the key in the ssh agent: run '
        '`eval $(ssh-agent); ssh-add ~/.ssh/google_compute_engine` and try again',
    ),
    (
        r'terminal state|cannot be currently connected to',
        'gone',
        '{name} is preempted or stopped ({reason})',
    ),
)
_STATUS = re.compile(
    r'#####|SSH: |SCP: |Using (ssh|scp) batch|Retrying: |Completed execution|'
    r'Finished preparing|Failed to execute command on|WARNING: '
)


class GcloudError(RunError):
    """Tells of a command that was refused.

    `kind`: absent, login, project, api, exists, zone, missing, quota, agent, gone, ssh, remote (the
    command on a worker failed), or other.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to the queue for machines."""

    type: str
    runtime: str
    slices: int = 1
    spot: bool = False

    @classmethod
    def of(cls, described: dict) -> 'Request':
        """Reads what `queued-resources describe` says.

        With several slices there is one entry, or one for each.
        """
        specs = described['tpu']['nodeSpec']
        count = sum(int(s.get('multisliceParams', {}).get('nodeCount', 1)) for s in specs)
        return cls(
            specs[0]['node']['acceleratorType'],
            specs[0]['node']['runtimeVersion'],
            count,
            'spot' in described,
        )


@dataclasses.dataclass(frozen=True)
class Gcloud:
    """Gives commands on one queued resource.

    With `dry_run` they are printed, fit for a shell, and taken to have succeeded.
    """

    name: str
    zone: str
    project: str = ''
    dry_run: bool = False

    def _words(self, *words: str) -> list[str]:
        return [
            'gcloud',
            'compute',
            'tpus',
            *words,
            f'--zone={self.zone}',
            *([f'--project={self.project}'] if self.project else []),
            '--quiet',
        ]

    def _call(self, words: list[str], name: str, echo: bool = False) -> str:
        """Returns the stdout of a command; with `echo` it is shown as it comes.

        Raises GcloudError.
        """
        if self.dry_run:
            print(shlex.join(words))
            return ''

        # Errors go to a file: a pipe of their own might fill while the output is read.
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
                )
            except FileNotFoundError:
                raise GcloudError(
                    'absent',
                    'gcloud is not installed, or not on PATH: see '
                    'https://cloud.google.com/sdk/docs/install',
                ) from None

            # Lines end at \n alone: a progress bar's \r ends none, and lines are counted.
            lines = []
            with process:
                for raw in process.stdout:
                    line = raw.decode(errors='replace')
                    lines.append(line)
                    if echo:
                        print(line, end='', flush=True)
            errors.seek(0)
            message = errors.read().decode(errors='replace')

        # A connection that ends is no error while following.
        if process.returncode and not (echo and process.returncode == 255):
            raise _error(process.returncode, message, name, self.zone)
        return ''.join(lines)

    def create(self, request: Request) -> None:
        """Asks the queue for the machines."""
        nodes = [f'--node-id={self.name}']
        if request.slices > 1:
            nodes = [f'--node-count={request.slices}', f'--node-prefix={self.name}']
        self._call(
            self._words(
                'queued-resources',
                'create',
                self.name,
                *nodes,
                f'--accelerator-type={request.type}',
                f'--runtime-version={request.runtime}',
                *(['--spot'] if request.spot else []),
            ),
            self.name,
        )

    def describe(self) -> dict:
        """Returns what the queue says of the resource; ACTIVE in a dry run."""
        text = self._call(
            self._words('queued-resources', 'describe', self.name, '--format=json'), self.name
        )
        return json.loads(text) if text else {'state': {'state': 'ACTIVE'}}

    def delete(self) -> None:
        """Deletes the resource and its machines."""
        self._call(self._words('queued-resources', 'delete', self.name, '--force'), self.name)

    def node_state(self, node: str) -> str:
        """Returns READY, PREEMPTED, ... of one slice."""
        return self._call(
            self._words('tpu-vm', 'describe', node, '--format=value(state)'), node
        ).strip()

    def ssh(self, node: str, command: str, worker: str = 'all', echo: bool = False) -> str:
        """Runs `command` in the shell of the workers.

        A connection to a machine that vanished ends after a minute and a half.
        """
        return self._call(
            self._words(
                'tpu-vm',
                'ssh',
                node,
                f'--worker={worker}',
                f'--command={command}',
                '--ssh-flag=-oServerAliveInterval=30',
            ),
            node,
            echo,
        )

    def send(self, node: str, path: str) -> None:
        """Sends a file to the home directory of all workers."""
        self._call(self._words('tpu-vm', 'scp', path, f'{node}:', '--worker=all'), node)


def _error(code: int, stderr: str, name: str, zone: str) -> GcloudError:
    """Returns the error for what gcloud wrote, with what to do about it."""
    lines = [
        line.strip()
        for line in stderr.splitlines()
        if line.strip() and not _STATUS.match(line.strip())
    ]

    # An error of gcloud's own names itself; anything else is of the command on the worker.
    own = next((i for i, line in enumerate(lines) if line.startswith('ERROR: (gcloud')), None)
    if own is not None:
        reason = re.sub(r'ERROR: \(gcloud[\w.-]*\) ', '', ' '.join(lines[own : own + 4]))
    else:
        reason = lines[-1] if lines else f'exit code {code}'
    for pattern, kind, advice in _KNOWN if own is not None else ():
        if re.search(pattern, reason):
            return GcloudError(kind, advice.format(name=name, zone=zone, reason=reason))

    if code == 255:
        return GcloudError(
            'ssh',
            f'ssh to {name} was refused ({reason}): see that a firewall rule lets port 22 in '
            '(`gcloud compute firewall-rules list`) and that the machine is up (`status`), then '
            'give the command again',
        )
    kind = 'remote' if own is None else 'other'
    return GcloudError(kind, f'{name}: {reason.removeprefix("error: ")}')
