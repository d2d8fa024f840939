r"""Writes task files for other people's launchers, and prints the commands that use them.

    python -m launch.templates sky --name=llama --type=v5litepod-16 --zone=us-west4-a --spot -- \
        python -m train.pretrain --config=... --run=gs://...
    python -m launch.templates gke --name=llama --type=v5litepod-16 --slices=2 \
        --image=us-docker.pkg.dev/PROJECT/ordem/ordem -- python ...
    python -m launch.templates xpk --name=llama --type=v5litepod-16 --cluster=CLUSTER \
        --zone=us-west4-a --image=... -- python ...

`sky`: a SkyPilot task; as a managed job it is made anew after a preemption. `gke`: a JobSet for a
cluster with TPU node pools, whose restarts resume the run; a user's mistake (exit code 2) is not
tried again. `xpk`: the command line that makes such a JobSet by itself. The file goes to
runs/launch/NAME and the commands are printed; with `--dry_run` the file is printed too, and not
written. The code is that of a commit: SkyPilot sends it as a folder, GKE has it in an image tagged
with it.
"""

import dataclasses
import pathlib
import re
import shlex

import yaml
from absl import flags

from launch import accelerators, snapshot
from launch.accelerators import Slice
from model.errors import did_you_mean
from runtime import exit, options
from runtime.errors import RunError


class _Dumper(yaml.SafeDumper):
    """Writes scripts as blocks of lines, and keys in the order of the code."""


_Dumper.add_representer(
    str,
    lambda d, s: d.represent_scalar('tag:yaml.org,2002:str', s, style='|' if '\n' in s else None),
)


def dump(content: dict) -> str:
    """Returns the content as YAML."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1000)


def sky(name: str, kind: Slice, zone: str, spot: bool, code: str, command: list[str]) -> dict:
    """Returns a task of SkyPilot.

    Form: docs.skypilot.co/en/latest/reference/yaml-spec.html. All workers of a slice run the same
    script; JAX finds them by their metadata.
    """
    return {
        'name': name,
        'workdir': code,
        'resources': {
            'infra': f'gcp/{zone.rpartition("-")[0]}/{zone}',
            'accelerators': f'tpu-{kind.type}:1',
            'accelerator_args': {'tpu_vm': True, 'runtime_version': kind.runtime},
            'use_spot': spot,
        },
        'setup': (
            'mkdir -p ~/ordem\n'
            'ln -sfn "$PWD" ~/ordem/code\n'
            'cp launch/worker.sh ~/ordem\n'
            'sh ~/ordem/worker.sh install\n'
        ),
        'run': f'exec sh ~/ordem/worker.sh exec {shlex.join(command)}\n',
    }


@dataclasses.dataclass(frozen=True)
class Workload:
    """A run on GKE: what it is called, and the machines and the image that it takes."""

    name: str
    kind: Slice
    slices: int
    spot: bool
    image: str
    restarts: int


# Machines that may be taken away repel pods that do not say that they bear it.
_TOLERATES_SPOT = {
    'key': 'cloud.google.com/gke-spot',
    'operator': 'Equal',
    'value': 'true',
    'effect': 'NoSchedule',
}


def jobset(workload: Workload, command: list[str]) -> dict:
    """Returns a JobSet for GKE.

    Form: cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice and
    jobset.sigs.k8s.io/docs/reference. GKE tells each pod its place (TPU_WORKER_ID,
    TPU_WORKER_HOSTNAMES, MEGASCALE_*), which JAX reads.
    """
    kind = workload.kind
    spot = workload.spot
    words = [w.replace('$(', '$$(') for w in command]  # Kubernetes would put a variable there
    pod = {
        'restartPolicy': 'Never',
        'hostNetwork': True,
        'dnsPolicy': 'ClusterFirstWithHostNet',
        'nodeSelector': {
            'cloud.google.com/gke-tpu-accelerator': kind.gke,
            'cloud.google.com/gke-tpu-topology': kind.topology,
            **({'cloud.google.com/gke-spot': 'true'} if spot else {}),
        },
        **({'tolerations': [_TOLERATES_SPOT]} if spot else {}),
        'containers': [
            {
                'name': 'ordem',
                'image': workload.image,
                'command': ['sh', 'launch/env.sh', *words],
                'ports': [
                    {'containerPort': 8471},
                    {'containerPort': 8080},
                    {'containerPort': 8431},
                ],
                'securityContext': {'privileged': True},
                'resources': {
                    'requests': {'google.com/tpu': min(4, kind.chips)},
                    'limits': {'google.com/tpu': min(4, kind.chips)},
                },
            }
        ],
    }
    job = {
        'parallelism': kind.pods,
        'completions': kind.pods,
        'backoffLimit': 0,
        'podFailurePolicy': {
            'rules': [
                {
                    'action': 'FailJob',
                    'onExitCodes': {
                        'containerName': 'ordem',
                        'operator': 'In',
                        'values': [exit.MISTAKE],
                    },
                }
            ]
        },
        'template': {'spec': pod},
    }
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2',
        'kind': 'JobSet',
        'metadata': {
            'name': workload.name,
            'annotations': {
                'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
            },
        },
        'spec': {
            'failurePolicy': {
                'maxRestarts': workload.restarts,
                'rules': [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
            },
            'replicatedJobs': [
                {'name': 'slice', 'replicas': workload.slices, 'template': {'spec': job}}
            ],
        },
    }


def xpk(workload: Workload, cluster: str, zone: str, project: str, command: list[str]) -> list[str]:
    """Returns the command `xpk workload create` (github.com/AI-Hypercomputer/xpk)."""
    if any('\n' in w for w in command):
        raise RunError('xpk puts the command into one line of a file: it cannot hold a line break')
    return [
        'xpk',
        'workload',
        'create',
        f'--workload={workload.name}',
        f'--cluster={cluster}',
        f'--zone={zone}',
        *([f'--project={project}'] if project else []),
        f'--tpu-type={workload.kind.type}',
        f'--num-slices={workload.slices}',
        f'--docker-image={workload.image}',
        f'--max-restarts={workload.restarts}',
        *(['--spot'] if workload.spot else []),
        f'--command={shlex.join(["sh", "launch/env.sh", *command])}',
    ]


def _image(image: str, commit: str) -> str:
    """Returns the image with a tag, the commit's where it has none."""
    if not re.fullmatch(r'[a-z0-9][a-z0-9._:/-]*(@sha256:[0-9a-f]{64})?', image):
        raise RunError(
            f'--image={image or "(empty)"}: expected the name of an image, for example '
            'us-docker.pkg.dev/PROJECT/ordem/ordem'
        )
    return image if ':' in image.rpartition('/')[2] else f'{image}:{commit[:12]}'


def main(words: list[str]) -> None:
    f = flags.FLAGS
    verb, command = (words[0], words[1:]) if words else ('', [])
    if verb not in ('sky', 'gke', 'xpk'):
        raise RunError(
            f'{verb or "no launcher"}: expected one of the launchers; '
            f'{did_you_mean(verb, ("sky", "gke", "xpk"))}'
        )
    if not command:
        raise RunError(
            f'{verb}: no command: give it after --, as in `{verb} --name=... -- python -m '
            'train.pretrain --config=... --run=gs://...`'
        )
    accelerators.check_name(f.name, longest=40)  # pods get names made from it
    kind = accelerators.find(f.type)
    commit = snapshot.pin(f.commit)
    folder = pathlib.Path('runs/launch') / f.name
    steps = []
    text = ''
    path = folder / f'{verb}.yaml'
    then = []

    # The file's text, the commands that come before it, and those that a person gives then.
    if verb == 'sky':
        if not kind.runtime or f.slices != 1:
            raise RunError(
                f'--type={f.type} --slices={f.slices}: SkyPilot makes single slices of TPU VMs: '
                'take `launch.tpu_vm` or `gke`'
            )
        code = str(folder / f'code-{commit[:12]}')
        steps = snapshot.unpack(commit, code)
        text = dump(sky(f.name, kind, accelerators.check_zone(f.zone), f.spot, code, command))
        then = [shlex.join(['sky', 'jobs', 'launch', f'--name={f.name}', str(path)])]
    else:
        image = _image(f.image, commit)
        workload = Workload(f.name, kind, f.slices, f.spot, image, f.max_restarts)
        then = [
            f'git archive --format=tar {commit} | docker build --tag={image} '
            '--file=launch/Dockerfile -',
            f'docker push {image}',
        ]
        if verb == 'gke':
            text = dump(jobset(workload, command))
            then.append(f'kubectl apply --filename={path}')
        else:
            accelerators.check_zone(f.zone)
            cluster = accelerators.check_name(f.cluster, '--cluster', 40)
            then.append(shlex.join(xpk(workload, cluster, f.zone, f.project, command)))

    if f.dry_run:
        if text and not steps:
            steps = [['mkdir', '-p', str(folder)]]
        for step in steps:
            print(shlex.join(step))
        if text:
            print(f"cat > {path} <<'END OF THE FILE'\n{text}END OF THE FILE")
    else:
        snapshot.execute(steps)
        if text:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, 'utf-8')
    print('\n'.join(then))


if __name__ == '__main__':
    flags.DEFINE_string('name', '', 'Name of the job')
    flags.DEFINE_string('type', '', 'TPU type, for example v5litepod-16')
    options.whole('slices', 1, 'Slices of that type', 1, 2**12)
    flags.DEFINE_bool('spot', False, 'Cheaper machines that may be taken away')
    flags.DEFINE_string('zone', '', 'Zone, for example us-west4-a')
    flags.DEFINE_string('project', '', "Google Cloud project (xpk); default: gcloud's own")
    flags.DEFINE_string('cluster', '', 'Name of the cluster (xpk)')
    flags.DEFINE_string(
        'image', '', 'Image to build and run (gke, xpk); without a tag it gets that of the commit'
    )
    options.whole(
        'max_restarts',
        100,
        'How often the run is resumed after preemptions and failures (gke, xpk)',
        0,
        options.COUNT,
    )
    flags.DEFINE_string(
        'commit',
        '',
        'Commit whose code runs; default: the last one, when the working tree holds nothing else',
    )
    flags.DEFINE_bool('dry_run', False, 'Print the file too, and write none')
    exit.run(main, words=True)
