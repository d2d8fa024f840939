"""Sets up all tests.

They have eight forced CPU devices, the command's numeric settings, and one store of compiled
programs. On a GPU:

    ORDEM_TEST_PLATFORM=cuda,cpu python -m pytest -n4 tests/model
"""

import atexit
import fcntl
import gc
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

XLA_FLAGS = [
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
]
# The older emitters of loops, and a program in one piece: it is compiled in a sixth of the time.
# Only for releases that are known to have them, since XLA ends at a flag that it does not know.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    XLA_FLAGS += ['--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1']
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *XLA_FLAGS])
os.environ['JAX_PLATFORMS'] = os.environ.get('ORDEM_TEST_PLATFORM', 'cpu')

# Programs do not say which lines they are of: they are traced and compiled a little faster.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')

# On a GPU products are exact, and several processes share it.
if os.environ['JAX_PLATFORMS'] != 'cpu':
    os.environ.update(JAX_DEFAULT_MATMUL_PRECISION='float32', XLA_PYTHON_CLIENT_PREALLOCATE='false')

# What one test compiles serves the others, and the processes that they start.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=tempfile.mkdtemp(prefix='compiled-'),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    )
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

# Tracing makes so many objects that looking for cycles at Python's own thresholds takes a tenth of
# a test that compiles.
gc.set_threshold(50_000, 10, 10)

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)

import pytest  # noqa: E402  (the environment is set first)

from tests import forked  # noqa: E402


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
    """Returns one cache of token stores and tokenizers for the whole session."""
    return str(tmp_path_factory.mktemp('cache'))


@pytest.fixture
def forks(monkeypatch):
    """Forks the processes that a test starts from one that has imported what they import."""
    monkeypatch.setattr(subprocess, 'Popen', forked.Popen)


@pytest.fixture(scope='session')
def make_once(tmp_path_factory):
    """Returns the function (name, make) -> folder, filled by `make(folder)` once for all workers.

    Who would change the folder copies it first.
    """
    common = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        common = common.parent

    def get(name, make):
        folder = common / f'once-{name}'
        whole = common / f'once-{name}.whole'
        with open(common / f'once-{name}.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                whole.touch()
        return folder

    return get


@pytest.fixture(scope='session')
def tiny_run(make_once):
    """Returns the directory of a finished run of two steps and one layer, its store beside it.

    Its context is 48 tokens, its vectors have sizes 8 and 32.
    """
    return make_once('tiny-run', _train_tiny_run) / 'run'


def _train_tiny_run(folder):
    from train import loop, setup

    c = _tiny(str(folder / 'cache'))
    c.data.seq_len = 48
    c.model.num_layers = 1
    c.embedding.sizes = '8,32'
    c.train.steps = 2
    c.optimizer.warmup = 1
    c.eval.every = 0
    loop.train(setup.build_experiment(c, str(folder / 'run')))


@pytest.fixture
def tiny_config(cache, tiny):
    """Returns a whole experiment of a few seconds: change what the test is about."""
    return tiny(cache)


@pytest.fixture(scope='session')
def tiny():
    """Returns the function from the folder of a cache to that experiment."""
    return _tiny


def _tiny(cache):
    from configs import base

    c = base.get_config()
    c.data.update(seq_len=32, batch_size=8, cache=cache)
    c.data.atlas.update(countries=6, editions=4)
    c.tokenizer.update(kind='bpe', vocab_size=420)
    c.model.update(width=32, num_layers=2, num_heads=2, num_kv_heads=2)
    c.train.steps = 6
    c.optimizer.update(warmup=2, lr=1e-2)
    c.log.update(every=1, tensorboard=False, progress=False)
    c.eval.update(every=3, batches=2)
    c.checkpoint.every = 3
    c.mesh.data = 1
    return c


# The quick tier (`-m quick`): what a person runs while working. Whole files and folders; all others
# compile or train too much to be waited for.
QUICK = (
    'test_house.py',
    'data/',
    'docs/test_commands.py',
    'docs/test_config_fields.py',
    'docs/test_figures.py',
    'evals/search/test_datasets.py',
    'evals/search/test_ranking.py',
    'evals/test_statistics.py',
    'launch/aot/test_cost_model.py',
    'launch/test_templates.py',
    'model/test_initial.py',
    'model/test_references.py',
    'model/test_sampling.py',
    'runtime/test_config_flags.py',
    'runtime/test_environment.py',
    'runtime/test_metrics.py',
    'runtime/test_schema.py',
    'studies/test_studies.py',
    'train/test_golden.py',
    'train/test_objectives.py',
    'train/test_plan.py',
    'train/test_schedule.py',
)
SLOWER = ('data/test_untrusted.py', 'data/test_tokenizer.py', 'data/test_template.py')  # of those

# Files of a minute and more, the longest first: a worker that began with one of them near the end
# would be waited for.
LONGEST = (
    'faults/test_faults.py',
    'studies/test_quickstart.py',
    'model/test_properties.py',
    'runtime/test_processes.py',
    'model/test_kernels.py',
    'model/test_decoder.py',
    'train/test_search_run.py',
)


def pytest_collection_modifyitems(items):
    """Marks the tests of the quick tier, and begins with the longest files."""
    places = {}
    for item in items:
        path = item.path.relative_to(ROOT / 'tests').as_posix()
        places[item] = LONGEST.index(path) if path in LONGEST else len(LONGEST)
        if path.startswith(QUICK) and not path.startswith(SLOWER):
            item.add_marker('quick')
    items.sort(key=places.get)
