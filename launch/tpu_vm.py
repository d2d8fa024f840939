r"""Leads a run on Cloud TPU VMs, from the queue to the end.

    python -m launch.tpu_vm create --name=llama --type=v5litepod-16 --zone=us-west4-a --spot
    python -m launch.tpu_vm run --name=llama --zone=us-west4-a --keep_going -- \
        python -m train.pretrain --config=... --run=gs://...
    python -m launch.tpu_vm status|logs|stop|delete --name=llama --zone=us-west4-a

`create` asks the queue and waits until the machines are there; `run` sends the code of a commit to
all workers, starts the same command on each, detached, and follows the log of worker 0. With
`--keep_going` it makes the machines anew after a preemption and gives the same command again, which
resumes from the newest checkpoint in the bucket. `--dry_run` prints the commands instead.

Exit codes of `run` and `logs` are those of the trained process (see `launch/worker.sh`): 0
finished; 2 a user's mistake, also one of the launcher's own, told in one line: no use trying again;
130 and 143 stopped; anything else a failure. JAX finds the other workers, and with --slices the
other slices (MEGASCALE_*), in the machines' metadata: nothing is passed for it.
"""

import re
import shlex
import sys

from absl import flags

from launch import accelerators, snapshot
from launch.gcloud import Gcloud, Request
from launch.launcher import Launcher
from model.errors import did_you_mean
from runtime import exit, options, streams
from runtime.errors import RunError


def _check_command(command: list[str], keep_going: bool) -> None:
    """Raises RunError without a command, or where it could not be resumed but should."""
    if not command:
        raise RunError(
            'run: no command: give it after --, as in `run --name=... --zone=... -- python -m '
            'train.pretrain --config=... --run=gs://...`'
        )
    # --run=DIR, or --run DIR.
    run = ''
    for word, after in zip(command, (*command[1:], '')):
        if re.match(r'--?run(=|$)', word):
            run = word.partition('=')[2] or after
            break
    if keep_going and not run.startswith('gs://'):
        raise RunError(
            '--keep_going resumes a run whose machines are gone, so that its directory must be in '
            'a bucket: expected --run=gs://BUCKET/..., '
            f'found {"--run=" + run if run else "no --run="}'
        )


def main(words: list[str]) -> None:
    f = flags.FLAGS
    commands = ('create', 'run', 'logs', 'status', 'stop', 'delete')
    verb, rest = (words[0], words[1:]) if words else ('', [])
    if verb not in commands:
        raise RunError(
            f'{verb or "no command"}: expected one of the commands; {did_you_mean(verb, commands)}'
        )
    if rest and verb != 'run':
        raise RunError(f'{verb}: unexpected {rest[0]!r}')

    accelerators.check_zone(f.zone)
    accelerators.check_name(f.name)
    if f.project:
        accelerators.check_name(f.project, '--project', 30)
    gcloud = Gcloud(f.name, f.zone, f.project, f.dry_run)
    if f.slices < 1:
        raise RunError(f'--slices={f.slices}: expected at least 1')
    launcher = Launcher(gcloud, f.slices, wait=f.wait_minutes * 60, poll=f.poll_seconds)

    if verb == 'create':
        kind = accelerators.find(f.type)
        if not kind.runtime:
            raise RunError(
                f'--type={f.type}: only on GKE, not as a TPU VM: see `python -m launch.templates '
                'gke`'
            )
        launcher.create(Request(kind.type, f.runtime_version or kind.runtime, f.slices, f.spot))
        launcher.note('costs money until it is deleted')
    elif verb == 'run':
        _check_command(rest, f.keep_going)
        streams.settle(keeps=f.keep_going)  # somebody has to make the machines anew
        commit = snapshot.pin(f.commit)
        archive = f'runs/launch/{f.name}/ordem-{commit[:12]}.tar.gz'
        steps = snapshot.commands(commit, archive)
        if f.dry_run:
            for step in steps:
                print(shlex.join(step))
        else:
            snapshot.execute(steps)
        code = _watched(
            launcher, lambda: launcher.run(rest, commit, archive, f.keep_going, f.retries)
        )
        ending = f'ended with exit code {code}' if code else 'finished'
        launcher.note(f'{ending}; `delete` it when it is no longer needed')
        sys.exit(code)
    elif verb == 'logs':
        if not re.fullmatch('[0-9]{1,5}|all', f.worker):
            raise RunError(f'--worker={f.worker}: expected a number from 0 to 99999, or all')
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
    """Returns call(); interrupted, tells first how the run goes on."""
    try:
        return call()
    except KeyboardInterrupt:
        launcher.note(
            'no longer watching; what runs there runs on: `logs` shows it, the same `run` watches '
            'over it again, `stop` ends it'
        )
        raise


if __name__ == '__main__':
    flags.DEFINE_string('name', '', 'Name of the queued resource')
    flags.DEFINE_string('zone', '', 'Zone, for example us-west4-a')
    flags.DEFINE_string('project', '', "Google Cloud project; default: gcloud's own")
    flags.DEFINE_string('type', '', 'TPU type, for example v5litepod-16')
    options.whole('slices', 1, 'Slices of that type, joined by the data center network', 0, 2**12)
    flags.DEFINE_bool('spot', False, 'Cheaper machines that may be taken away')
    flags.DEFINE_string(
        'runtime_version',
        '',
        'Software version of the machines; default: the one documented for the type',
    )
    flags.DEFINE_string(
        'commit',
        '',
        'Commit whose code is sent; default: the last one, when the working tree holds nothing '
        'else',
    )
    flags.DEFINE_bool('keep_going', False, 'After a preemption make the machines anew and resume')
    options.whole(
        'retries',
        3,
        'With --keep_going: how often a command that fails is started again',
        0,
        options.COUNT,
    )
    flags.DEFINE_string('worker', '0', 'Whose log `logs` shows')
    options.number('wait_minutes', 360.0, 'How long to wait in the queue', 0, 1e6)
    options.number('poll_seconds', 30.0, 'Between two looks at the state', 0, 86400)
    flags.DEFINE_bool('dry_run', False, 'Print the commands instead')
    exit.run(main, words=True)
