"""What is compiled is kept: the next process loads it."""

import json
import os
import pathlib
import subprocess
import sys

import jax

from runtime import compiled

# Four starts of a program, forked before JAX has started anything; the entry is cut off before the
# third. Prints [cache hits, compiled and kept] of each; its log goes to stderr.
_STARTS = """
import json, os, pathlib
import jax
from jax import monitoring
from runtime import cli

def start():
    events = []
    monitoring.register_event_listener(lambda name, **_: events.append(name.split('/')[-1]))
    cli.settle()
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.jit(lambda x: x * 2 + 1)(1.0).block_until_ready()
    jax.jit(lambda x: x * 3 + 1)(1.0).block_until_ready()
    print(json.dumps([events.count('cache_hits'), events.count('cache_misses')]), flush=True)

for number in range(4):
    if number == 2:
        for entry in pathlib.Path(os.environ['XDG_CACHE_HOME']).rglob('jit__lambda-*-cache'):
            entry.write_bytes(entry.read_bytes()[:99])
    if not os.fork():
        start()
        os._exit(0)
    os.wait()
"""


def test_the_next_process_loads_what_was_compiled(tmp_path):
    """Catches programs that are not kept on a CPU, are kept elsewhere, and one that was cut off
    when its process was killed and that is compiled at every start, or told of in many lines."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_COMPILATION')}
    environment.update(XDG_CACHE_HOME=str(tmp_path), JAX_PLATFORMS='cpu')
    done = subprocess.run(
        [sys.executable, '-c', _STARTS],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    first, second, damaged, last = map(json.loads, done.stdout.splitlines())
    assert first[0] == 0 and first[1] >= 2
    assert second == last == [first[1], 0]
    assert damaged == [first[1] - 2, 2]
    (line,) = done.stderr.splitlines()
    assert line.startswith('WARNING: ') and 'a compiled program cannot be loaded' in line
    (folder,) = (tmp_path / 'ordem' / 'compiled').iterdir()
    assert str(folder) in line


def test_a_folder_for_each_processor_and_jaxlib(monkeypatch, tmp_path):
    """Catches machines that share a home and load each other's programs."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    here = compiled.find_folder()
    assert here == compiled.find_folder() and here.is_relative_to(tmp_path)
    monkeypatch.setattr(compiled, '_describe_processor', lambda: 'another')
    other = compiled.find_folder()
    monkeypatch.setattr(compiled.importlib.metadata, 'version', lambda name: '0.99.0')
    assert len({here, other, compiled.find_folder()}) == 3


def test_what_the_environment_says_holds(monkeypatch, tmp_path):
    """Catches a folder in place of the one that the user has named, and programs that are kept
    though they are not to be."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    before = {**jax.config.values}
    try:
        jax.config.update('jax_compilation_cache_dir', 'mine')
        compiled.keep()
        assert jax.config.values['jax_compilation_cache_dir'] == 'mine'
        jax.config.update('jax_compilation_cache_dir', None)
        jax.config.update('jax_enable_compilation_cache', False)
        compiled.keep()
        assert not jax.config.values['jax_compilation_cache_dir']
    finally:
        for name in ('jax_compilation_cache_dir', 'jax_enable_compilation_cache'):
            jax.config.update(name, before[name])
    assert not list(tmp_path.iterdir())


def test_the_least_recently_used_go(tmp_path):
    """Catches a folder that grows without end, and one that loses what is in use."""
    for age, name in enumerate(('new', 'used', 'old', 'older')):
        path: pathlib.Path = tmp_path / name
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    os.utime(tmp_path / 'used', (2000, 999))  # read after it was written
    compiled.make_room(tmp_path, 40)
    assert len(list(tmp_path.iterdir())) == 4
    compiled.make_room(tmp_path, 15)
    assert [path.name for path in tmp_path.iterdir()] == ['used']
