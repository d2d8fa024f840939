r"""Writes an sbatch script for a Slurm cluster (`script`), or submits it too (`submit`).

    python -m launch.slurm submit --name=gpt2 --nodes=2 --gpus_per_node=8 --time=24:00:00 -- \
        python -m train.pretrain --config=... --run=...

The folder `--folder` must lie on a disk that all nodes share: it takes the code of a commit, its
environment and the log. One task runs on each GPU, as JAX expects under Slurm. Before the time
limit, and when the job is to give way to another, the run is told to end, and the job is queued
again: the same command resumes it from its newest checkpoint. A user's mistake (exit code 2) ends
the job for good; another failure is tried again `--retries` times. `--dry_run` prints the commands
and the script.
"""

import dataclasses
import pathlib
import re
import shlex

from absl import flags

from launch import accelerators, snapshot
from model.errors import did_you_mean
from runtime import exit, options
from runtime.errors import RunError

SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{options}#SBATCH --time={time}
#SBATCH --output={log}
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@{notice}
set -u
cd {code} || exit 2
export ORDEM_EXTRAS={extras} ORDEM_ENV={env}
sh launch/env.sh true || exit 2

# Slurm sends TERM {notice} s before the time limit, and when the job is preempted: to this shell,
# which passes it on.
stopped=
trap 'stopped=1; kill -TERM "$step" 2>/dev/null' TERM
srun --kill-on-bad-exit=1 sh launch/env.sh {command} &
step=$!
wait "$step"; code=$?
while [ -n "$stopped" ] && kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done

case $code in
0|2) exit "$code";;         # finished; a user's mistake: the log says which
esac
if [ -n "$stopped" ] || [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ]; then
    echo "exit code $code${{stopped:+ (told to stop)}}: queued again;" \\
        'the run resumes from its newest checkpoint'
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
"""


@dataclasses.dataclass(frozen=True)
class Resources:
    """Resources of a job, and its times; the fields are flags of the command."""

    nodes: int = 1
    gpus_per_node: int = 0
    time: str = '24:00:00'
    partition: str = ''
    account: str = ''
    notice: int = 120
    retries: int = 3


def script(name: str, command: list[str], folder: str, code: str, resources: Resources) -> str:
    """Returns the text of the sbatch script. `folder` and `code` are absolute paths."""
    if not re.fullmatch(r'[\w ./+@,=~-]+', folder):
        raise RunError(
            f'--folder={folder}: expected a path without quotes, % and the like, which sbatch '
            'would read in the path of its log'
        )
    asked = {
        'gpus-per-node': resources.gpus_per_node,
        'partition': resources.partition,
        'account': resources.account,
    }
    lines = [f'#SBATCH --{option}={value}\n' for option, value in asked.items() if value]
    return SCRIPT.format(
        name=name,
        nodes=resources.nodes,
        tasks=max(1, resources.gpus_per_node),
        options=''.join(lines),
        time=resources.time,
        log=shlex.quote(f'{folder}/log'),
        notice=resources.notice,
        code=shlex.quote(code),
        extras='gpu' if resources.gpus_per_node else '',
        env=shlex.quote(f'{folder}/env'),
        command=shlex.join(command),
        retries=resources.retries,
    )


def main(words: list[str]) -> None:
    f = flags.FLAGS
    verb, command = (words[0], words[1:]) if words else ('', [])
    if verb not in ('script', 'submit'):
        raise RunError(
            f'{verb or "no command"}: expected one of the commands; '
            f'{did_you_mean(verb, ("script", "submit"))}'
        )
    if not command:
        raise RunError(
            f'{verb}: no command: give it after --, as in `{verb} --name=... -- python -m '
            'train.pretrain --config=... --run=...`'
        )

    # Flags that go into the script as they are.
    accelerators.check_name(f.name)
    for flag, form, expected in (
        ('time', r'([0-9]{1,4}-)?[0-9]{1,7}(:[0-9]{1,2}){0,2}', 'minutes, HH:MM:SS or D-HH:MM:SS'),
        ('partition', r'[\w.,-]*', 'names of partitions'),
        ('account', r'[\w.-]*', 'an account'),
    ):
        if not re.fullmatch(form, f[flag].value):
            raise RunError(f'--{flag}={f[flag].value}: expected {expected}')

    folder = pathlib.Path(f.folder or f'runs/slurm/{f.name}').absolute()
    commit = snapshot.pin(f.commit)
    code = f'{folder}/code-{commit[:12]}'
    fields = [field.name for field in dataclasses.fields(Resources)]
    resources = Resources(**{name: f[name].value for name in fields})
    text = script(f.name, command, str(folder), code, resources)
    path = folder / 'job.sh'
    steps = snapshot.unpack(commit, code)
    submit = ['sbatch', str(path)]

    if f.dry_run:
        for step in steps:
            print(shlex.join(step))
        print(f"cat > {shlex.quote(str(path))} <<'END OF THE SCRIPT'\n{text}END OF THE SCRIPT")
        print(shlex.join(submit) if verb == 'submit' else f'# {shlex.join(submit)}')
        return
    snapshot.execute(steps)
    path.write_text(text, 'utf-8')
    if verb == 'script':
        print(path)
        return
    try:
        snapshot.execute([submit], show=True)
    except FileNotFoundError:
        raise RunError(
            f'sbatch is not installed here: copy {path} to a machine of the cluster that sees '
            f'{folder}, and submit it there'
        ) from None


if __name__ == '__main__':
    flags.DEFINE_string('name', '', 'Name of the job')
    options.path(
        'folder',
        '',
        'Where code, environment and log lie, on a shared disk; default: runs/slurm/NAME',
    )
    options.whole('nodes', 1, 'Nodes', 1, options.COUNT)
    options.whole(
        'gpus_per_node',
        0,
        'GPUs of each node, one task each; 0: CPU, one task a node',
        0,
        1024,
    )
    flags.DEFINE_string(
        'time',
        '24:00:00',
        'Time limit of one stay in the cluster; the job is queued again after it',
    )
    flags.DEFINE_string('partition', '', 'Partition')
    flags.DEFINE_string('account', '', 'Account')
    options.whole(
        'notice',
        120,
        'Seconds before the time limit at which the run is told to end',
        1,
        86400,
    )
    options.whole('retries', 3, 'How often a command that fails is tried again', 0, options.COUNT)
    flags.DEFINE_string(
        'commit',
        '',
        'Commit whose code runs; default: the last one, when the working tree holds nothing else',
    )
    flags.DEFINE_bool('dry_run', False, 'Print the commands instead')
    exit.run(main, words=True)
