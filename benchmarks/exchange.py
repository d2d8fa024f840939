"""How much memory a model takes that comes in, or goes out: more layers must take no more.

    python -m benchmarks.exchange --layers=12

Makes folders of two models of random weights, one with twice as many layers, bfloat16 in files of
512 MiB; imports each and exports the run, every time in a process of its own; and prints one line
of JSON for each: bytes of the model and of its largest array, the most memory that either process
held (`ru_maxrss`), and seconds. The folders are removed.
"""

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.whole('layers', 12, 'Layers of the first model; the second has twice as many', 1, 512)
    options.whole('width', 1536, 'Size of the residual stream', 64, 2**14)
    options.whole('vocabulary', 32000, 'Rows of the table of embeddings', 300, 2**20)
    options.path('out', '/tmp', 'On which disk')
    cli.parse_flags()

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import ml_dtypes
import numpy as np
from absl import flags

from apps.exchange import huggingface
from configs import base
from data import tokenizer as tokenizers

_FILE = 2**29  # bytes


def make_folder(folder: pathlib.Path, layers: int, width: int, vocabulary: int) -> tuple[int, int]:
    """Makes a Llama of random weights; returns its bytes, and those of its largest tensor."""
    from safetensors.numpy import save_file

    folder.mkdir()
    wide = 4 * width
    config = {
        'model_type': 'llama',
        'hidden_size': width,
        'num_hidden_layers': layers,
        'num_attention_heads': width // 64,
        'intermediate_size': wide,
        'vocab_size': vocabulary,
        'tie_word_embeddings': False,
    }
    huggingface.write_json(folder / 'config.json', config)
    fields = base.get_config().tokenizer
    fields.update(kind='byte_bpe', vocab_size=270)
    (folder / 'tokenizer.json').write_bytes(tokenizers.train(['a text of words'], fields).proto)

    shapes = {name: (vocabulary, width) for name in ('model.embed_tokens.weight', 'lm_head.weight')}
    shapes['model.norm.weight'] = (width,)
    for layer in range(layers):
        block = f'model.layers.{layer}'
        for name in 'qkvo':
            shapes[f'{block}.self_attn.{name}_proj.weight'] = width, width
        for name in ('gate', 'up'):
            shapes[f'{block}.mlp.{name}_proj.weight'] = wide, width
        shapes[f'{block}.mlp.down_proj.weight'] = width, wide
        for name in ('input', 'post_attention'):
            shapes[f'{block}.{name}_layernorm.weight'] = (width,)

    # The same numbers everywhere, more of them than compression looks back on.
    numbers = np.random.default_rng(layers).standard_normal(2**24, np.float32) / 64
    narrow = numbers.astype(ml_dtypes.bfloat16)
    placed: dict[str, str] = {}
    tensors: dict[str, np.ndarray] = {}
    sizes = []
    for name, shape in shapes.items():
        tensors[name] = np.resize(narrow, shape)
        sizes.append(tensors[name].nbytes)
        if sum(x.nbytes for x in tensors.values()) > _FILE or len(sizes) == len(shapes):
            file = f'model-{len(placed):05}.safetensors'
            save_file(tensors, folder / file, metadata={'format': 'pt'})
            placed |= dict.fromkeys(tensors, file)
            tensors = {}
    huggingface.write_json(folder / 'model.safetensors.index.json', {'weight_map': placed})
    return sum(sizes), max(sizes)


def run_command(command: Sequence[str]) -> tuple[int, float]:
    """Returns the most bytes that a process held, and its seconds."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, '-m', *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f'{" ".join(command)}: exit code {process.returncode}')
    return usage.ru_maxrss * 1024, time.perf_counter() - began


def main() -> None:
    for layers in (flags.FLAGS.layers, 2 * flags.FLAGS.layers):
        with tempfile.TemporaryDirectory(dir=flags.FLAGS.out) as made:
            folder = pathlib.Path(made)
            f = flags.FLAGS
            size, largest = make_folder(folder / 'model', layers, f.width, f.vocabulary)
            figures: dict[str, float] = {'layers': layers, 'model': size, 'largest': largest}
            commands = {
                'import': ['import_model', f'--from={folder}/model', '--param_dtype=bfloat16'],
                'export': ['export_model', f'--out={folder}/out'],
            }
            for name, (app, *words) in commands.items():
                memory, seconds = run_command([f'apps.{app}', *words, f'--run={folder}/run'])
                figures |= {f'{name}_memory': memory, f'{name}_seconds': round(seconds, 1)}
            print(json.dumps(figures), flush=True)


if __name__ == '__main__':
    cli.run(main)
