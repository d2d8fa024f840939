"""What the environment says to JAX, and what of it a command takes."""

import os
import subprocess
import sys

from tests import conftest

PROGRAM = """
from runtime import cli
cli.settle()
import jax
import jax.numpy as jnp
jnp.ones((2, 3)) * jnp.ones(3, jnp.int32)
print(jnp.arange(2.0).dtype, jax.random.key_data(jax.random.key(7)).tolist())
"""


def _python(*words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **variables},
        cwd=conftest.ROOT,
        capture_output=True,
        text=True,
    )


def test_results_do_not_depend_on_it():
    """Catches JAX_ENABLE_X64, which made checkpoints unreadable, an offset of seeds, which made
    other parameters of the same seed, and checks of types and ranks that no step passes."""
    said = _python(
        '-c',
        PROGRAM,
        JAX_ENABLE_X64='1',
        JAX_RANDOM_SEED_OFFSET='3',
        JAX_NUMPY_DTYPE_PROMOTION='strict',
        JAX_NUMPY_RANK_PROMOTION='raise',
        JAX_TRANSFER_GUARD='disallow',
    )
    assert said.stdout == 'float32 [0, 7]\n', said.stderr
    for variable in ('JAX_ENABLE_X64=1', 'JAX_RANDOM_SEED_OFFSET=3', 'JAX_TRANSFER_GUARD=disallow'):
        assert f'WARNING: {variable} is not taken' in said.stderr


def test_a_device_that_is_not_there_is_told():
    """Catches a traceback, and a run that is called damaged, where JAX finds no device."""
    run = str(conftest.ROOT / 'tests' / 'golden' / 'format_1')
    words = ('-m', 'apps.generate', f'--run={run}', '--prompt=x')
    said = _python(*words, JAX_PLATFORMS='nonsense')
    assert said.returncode == 2
    assert said.stderr.startswith('error: JAX_PLATFORMS=nonsense: this machine has no such device')
    assert said.stderr.count('\n') == 1
