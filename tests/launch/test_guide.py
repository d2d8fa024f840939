"""Follows the guide's way to a run on Cloud TPUs."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECTION = (ROOT / 'docs/cloud-tpus.md').read_text()
COMMANDS = [
    line
    for block in re.findall(r'```sh\n(.*?)```', SECTION, re.S)
    for line in block.replace('\\\n', ' ').splitlines()
]
OURS = [line for line in COMMANDS if line.startswith('python -m launch.')]


@pytest.mark.parametrize(
    'command', OURS, ids=[f'{i}-{line.split()[3]}' for i, line in enumerate(OURS)]
)
def test_each_command_parses(cloud, command):
    """Catches a command of the guide that has a flag no more, or that needs another one."""
    cloud.program(cloud.folder / 'path/python', f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    dry = re.sub(
        r'^(python -m launch\.\w+ \w+)',
        rf'cd {cloud.repository}; PYTHONPATH={ROOT} \1 --dry_run',
        command,
    )
    done = subprocess.run(
        ['sh', '-c', f'PROJECT=my-project ZONE=us-west4-a BUCKET=my-project-ordem; {dry}'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == '' and done.stdout, done.stderr
    assert cloud.calls() == []
    for config in re.findall(r'--config=(\S+)', command):
        assert (ROOT / config).is_file()


def test_the_way_is_whole():
    """Catches a step left out between project and plots, and a line that no shell would read."""
    steps = [
        'gcloud auth login',
        'gcloud services enable tpu',
        'gcloud storage buckets create',
        'launch.tpu_vm create',
        'launch.tpu_vm run',
        'launch.tpu_vm status',
        'launch.tpu_vm logs',
        'tensorboard --logdir',
        'launch.tpu_vm delete',
    ]
    places = [next((i for i, line in enumerate(COMMANDS) if step in line), None) for step in steps]
    assert None not in places and places == sorted(places)
    assert subprocess.run(['sh', '-n'], input='\n'.join(COMMANDS), text=True).returncode == 0
