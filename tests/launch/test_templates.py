"""Checks task files of SkyPilot and GKE, and the command line of xpk.

Their structure here, and by the packages' own parsers where those are installed.
"""

import re
import shlex
import subprocess

import pytest
import yaml

from launch import accelerators, templates
from runtime.errors import RunError

AWKWARD = '--run=gs://b/it\'s a "run"; $HOME $(HOME) `x` \\ *'
COMMAND = ['python', '-m', 'train.pretrain', AWKWARD]
KIND = accelerators.find('v5litepod-16')
IMAGE = 'us-docker.pkg.dev/p/ordem/ordem'


def sky_task(**how):
    return templates.sky('llama', KIND, 'us-west4-a', True, how.get('code', '.'), COMMAND)


def workload(kind=KIND, slices=2, spot=True):
    return templates.Workload('llama', kind, slices, spot, IMAGE, restarts=7)


def jobset(kind=KIND, slices=2, spot=True):
    return templates.jobset(workload(kind, slices, spot), COMMAND)


def xpk_words():
    return templates.xpk(workload(), 'cluster', 'us-west4-a', 'p-1', COMMAND)


def test_sky_task(tmp_path):
    """Catches a script that a shell would read otherwise than the command was given.

    Also a file that is not YAML.
    """
    task = yaml.safe_load(templates.dump(sky_task()))
    assert task == sky_task() and set(task) == {'name', 'workdir', 'resources', 'setup', 'run'}
    assert task['resources'] == {
        'infra': 'gcp/us-west4/us-west4-a',
        'accelerators': 'tpu-v5litepod-16:1',
        'use_spot': True,
        'accelerator_args': {'tpu_vm': True, 'runtime_version': 'v2-alpha-tpuv5-lite'},
    }
    (tmp_path / 'ordem').mkdir()
    (tmp_path / 'ordem/worker.sh').write_text('printf "%s\\n" "$@"')
    done = subprocess.run(
        ['bash', '-c', task['run']],
        env={'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ['exec', *COMMAND]


def test_sky_parses_it(tmp_path, monkeypatch):
    """Catches fields that SkyPilot does not know, and words it would replace by variables."""
    sky = pytest.importorskip(
        'sky', reason='SkyPilot is not installed: its own parser cannot be asked'
    )
    path = tmp_path / 'sky.yaml'
    path.write_text(templates.dump(sky_task(code=str(tmp_path))))
    task = sky.Task.from_yaml(str(path))
    (resources,) = task.resources
    assert task.run == sky_task()['run'] and task.setup == sky_task()['setup']
    assert task.workdir == str(tmp_path)
    assert resources.accelerators == {'tpu-v5litepod-16': 1}
    assert resources.use_spot and resources.zone == 'us-west4-a'
    assert resources.accelerator_args['runtime_version'] == 'v2-alpha-tpuv5-lite'


@pytest.mark.parametrize(
    'name', ['v5litepod-1', 'v5litepod-8', 'v5litepod-16', 'v5p-32', 'v6e-256', 'tpu7x-128']
)
def test_jobset(name):
    """Catches a slice that waits for pods that never come (pods times chips is not its chips).

    Also words that Kubernetes would replace.
    """
    kind = accelerators.find(name)
    text = templates.dump(jobset(kind))
    assert yaml.safe_load(text) == jobset(kind)
    assert jobset(kind)['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
    assert jobset(kind)['kind'] == 'JobSet'
    (slices,) = jobset(kind)['spec']['replicatedJobs']
    job = slices['template']['spec']
    pod = job['template']['spec']
    (container,) = pod['containers']
    chips = container['resources']['limits']['google.com/tpu']
    assert slices['replicas'] == 2 and job['parallelism'] == job['completions']
    assert job['completions'] * chips == kind.chips
    assert pod['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': kind.gke,
        'cloud.google.com/gke-tpu-topology': kind.topology,
        'cloud.google.com/gke-spot': 'true',
    }
    assert container['command'] == [
        'sh',
        'launch/env.sh',
        *COMMAND[:-1],
        AWKWARD.replace('$(HOME)', '$$(HOME)'),
    ]

    # A user's mistake ends the set: the Job fails by its policy, and the set does not start it
    # again. The policy asks for restartPolicy Never.
    assert job['podFailurePolicy']['rules'][0]['onExitCodes'] == {
        'containerName': container['name'],
        'operator': 'In',
        'values': [2],
    }
    assert jobset(kind)['spec']['failurePolicy']['rules'][0] == {
        'action': 'FailJobSet',
        'onJobFailureReasons': ['PodFailurePolicy'],
    }
    assert pod['restartPolicy'] == 'Never'
    (slices,) = jobset(kind, spot=False)['spec']['replicatedJobs']
    assert 'tolerations' in pod
    assert 'tolerations' not in slices['template']['spec']['template']['spec']


def unknown_fields(client, content, kind, path=''):
    """Returns the fields of `content` that the Kubernetes type `kind` does not have.

    Types are written 'V1JobSpec', 'list[V1Container]', 'dict(str, str)'.
    """
    unknown = []
    inner = re.fullmatch(r'list\[(.+)\]', kind)
    if inner:
        for i, item in enumerate(content):
            unknown += unknown_fields(client, item, inner[1], f'{path}[{i}]')
        return unknown
    if not hasattr(client, kind):
        return []

    model = getattr(client, kind)
    known = {key: name for name, key in model.attribute_map.items()}
    for key, value in content.items():
        if key not in known:
            unknown.append(f'{path}.{key}')
            continue
        field_type = model.openapi_types[known[key]]
        unknown += unknown_fields(client, value, field_type, f'{path}.{key}')
    return unknown


def test_kubernetes_knows_the_fields():
    """Catches a mistyped field of the Job and its pod, which a cluster would silently drop."""
    client = pytest.importorskip(
        'kubernetes.client',
        reason='the Kubernetes client is not installed: its types cannot be asked',
    )
    job = jobset()['spec']['replicatedJobs'][0]['template']
    assert unknown_fields(client, job, 'V1JobTemplateSpec') == []
    assert unknown_fields(client, {'spec': {'paralelism': 1}}, 'V1JobTemplateSpec') == [
        '.spec.paralelism'
    ]
    fields = ('parallelism', 'completions', 'template')
    assert client.V1JobSpec(**{name: job['spec'][name] for name in fields})


def test_xpk_words():
    """Catches a command that does not survive the two shells behind xpk."""
    words = xpk_words()
    assert words[:3] == ['xpk', 'workload', 'create']
    assert '--num-slices=2' in words and '--tpu-type=v5litepod-16' in words
    assert shlex.split(words[-1].removeprefix('--command=')) == ['sh', 'launch/env.sh', *COMMAND]
    with pytest.raises(RunError, match='line break'):
        templates.xpk(workload(), 'cluster', 'us-west4-a', '', ['a\nb'])


def test_xpk_parses_it():
    """Catches flags that xpk does not know."""
    parser = pytest.importorskip(
        'xpk.parser.core', reason='xpk is not installed: its own parser cannot be asked'
    )
    import argparse

    root = argparse.ArgumentParser()
    parser.set_parser(root)
    args = root.parse_args(xpk_words()[1:])
    assert (args.workload, args.num_slices, args.tpu_type) == ('llama', 2, 'v5litepod-16')
    assert (args.max_restarts, args.spot, args.docker_image) == ('7', True, IMAGE)
    assert args.command == shlex.join(['sh', 'launch/env.sh', *COMMAND])


def test_xpk_counts_as_we_do():
    """Catches a topology or a number of machines other than the one GKE has for a type."""
    systems = pytest.importorskip(
        'xpk.core.system_characteristics',
        reason='xpk is not installed: its table cannot be compared',
    )
    xpk_types = {
        name: (system.topology, system.vms_per_slice, system.gke_accelerator)
        for name, system in systems.UserFacingNameToSystemCharacteristics.items()
    }
    types = {
        name: (kind.topology, kind.pods, kind.gke)
        for name, kind in accelerators.TYPES.items()
        if name in xpk_types
    }
    assert len(types) > 35 and types == {name: xpk_types[name] for name in types}


@pytest.mark.parametrize('verb', ['sky', 'gke', 'xpk'])
def test_the_command(cloud, verb):
    """Catches a dry run that prints another file than is written, or writes one.

    Also an image that is not tagged with its commit.
    """
    words = (
        verb,
        '--name=llama',
        '--type=v5litepod-16',
        '--zone=us-west4-a',
        '--cluster=c',
        f'--image={IMAGE}',
        '--',
        *COMMAND,
    )
    printed = cloud.run_command(*words[:1], '--dry_run', *words[1:], module='launch.templates')
    assert printed.returncode == 0 and not (cloud.repository / 'runs').exists(), printed.stderr
    done = cloud.run_command(*words, module='launch.templates')
    assert done.returncode == 0 and printed.stdout.endswith(done.stdout)
    head = cloud.git('rev-parse', 'HEAD')
    if verb != 'xpk':
        written = (cloud.repository / f'runs/launch/llama/{verb}.yaml').read_text()
        assert written and written in printed.stdout
    assert (f'docker push {IMAGE}:{head[:12]}' in done.stdout) == (verb != 'sky')
    assert (cloud.repository / f'runs/launch/llama/code-{head[:12]}/train.sh').exists() == (
        verb == 'sky'
    )


@pytest.mark.parametrize(
    'words, message',
    [
        (('skye', '--', 'x'), "did you mean 'sky'"),
        (('sky',), 'no command'),
        (('sky', '--type=v5litepod-16', '--slices=2', '--', 'x'), 'SkyPilot makes single slices'),
        (('gke', '--type=v5litepod-16', '--image=a b', '--', 'x'), '--image=a b: expected'),
        (('gke', '--type=v5litpod-16', '--', 'x'), "did you mean 'v5litepod-16'"),
        (
            ('xpk', '--type=v5litepod-16', '--image=a', '--zone=us-west4-a', '--', 'x'),
            '--cluster=(empty): expected',
        ),
        (('sky', '--type=tpu7x-8', '--', 'x'), '--type=tpu7x-8'),
    ],
)
def test_mistakes(cloud, words, message):
    """Catches a traceback, and a file with a hole in it."""
    done = cloud.run_here(words[0], '--name=llama', *words[1:], module='launch.templates')
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert message in done.stderr
