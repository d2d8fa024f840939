"""The set-up command's refusals, and what setup.py promises."""

import os
import pathlib
import re
import subprocess


def env(**variables):
    return subprocess.run(
        ['sh', 'launch/env.sh', 'true'],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_gpu_and_tpu_exclude_each_other():
    """Catches two accelerator builds of JAX in one environment."""
    done = env(ORDEM_EXTRAS='test,gpu,tpu')
    assert (
        done.returncode == 2
        and done.stderr == 'error: ORDEM_EXTRAS is test,gpu,tpu: gpu and tpu exclude each other\n'
    )


def test_a_missing_interpreter_is_named(tmp_path):
    """Catches an old Python taken as it is, and a shell error for a message."""
    for name in ('python3', 'python3.11', 'python3.12', 'python3.13'):
        (tmp_path / name).write_text('#!/bin/sh\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    done = env(PATH=f'{tmp_path}:{os.environ["PATH"]}', ORDEM_PYTHON='')
    assert done.returncode == 2 and done.stderr.startswith('error: no CPython 3.11 to 3.13 found')


def test_every_dependency_has_a_window_and_its_oldest_release_is_pinned():
    """Catches a dependency without bounds, and an oldest version that is not the one tested."""
    listed = re.findall(
        r"'([A-Za-z0-9\-]+)(?:\[\w+\])?>=([0-9.]+),<([0-9.]+)'",
        pathlib.Path('setup.py').read_text(),
    )
    pinned = dict(
        re.findall(
            r'^([A-Za-z0-9\-]+)==([0-9.]+)$', pathlib.Path('launch/oldest.txt').read_text(), re.M
        )
    )
    assert len(listed) > 14

    def exact(v):
        return (v.split('.') + ['0', '0'])[:3]

    for name, low, _ in listed:
        assert exact(pinned[name]) == exact(low), name
    plain = re.findall(r"^        '([^']+)',$", pathlib.Path('setup.py').read_text(), re.M)
    assert all('>=' in p and ',<' in p for p in plain)
