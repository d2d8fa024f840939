"""A run made of a model of another house: a folder of Hugging Face, or a file of GGUF.

    python -m apps.import_model --from=SmolLM2-135M --run=runs/smollm2
    python -m apps.import_model --from=model.gguf --run=runs/smollm2
    python -m apps.generate --run=runs/smollm2 --prompt='The capital of Brazil is'

The run is a run: it can be inspected, generates, embeds, and is the parent of a post-training. Its
one checkpoint is of step 0. Nothing of the source is run, and nothing is written unless all of it
was read.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('from', '', 'Folder with config.json and safetensors, or a file of GGUF')
    options.path('run', '', 'Run directory to make')
    flags.DEFINE_enum(
        'param_dtype',
        'float32',
        ['float32', 'bfloat16'],
        'Numbers of the parameters: bfloat16 takes half the room, and is trained with a float32 '
        'copy',
    )
    cli.parse_flags()

import pathlib
import types

import jax
import numpy as np
from ml_collections import ConfigDict

from apps.exchange import classes, source as sources
from apps.exchange.gguf_file import GgufFile
from apps.exchange.huggingface import Folder
from apps.exchange.source import Source
from data.cache import stable_hash
from data.fast_tokenizer import FastTokenizer
from data.records import printable
from data.tokenizer import Tokenizer
from model import config as model_config
from runtime import checkpoint, encoding_meaning, origin, run_dir
from runtime.errors import RunError
from runtime.run_dir import Run


def open_source(path: pathlib.Path) -> Source:
    """Returns the model in a folder or a file. Raises RunError where there is none."""
    if path.is_dir():
        return Folder(path)
    if path.suffix == '.gguf' and path.is_file():
        return GgufFile(path)
    if path.exists():
        raise RunError(f'--from is {path}: expected a folder of Hugging Face, or a file .gguf')
    raise RunError(f'--from is {path}: nothing is there')


def import_run(source: Source, run: Run, param_dtype: str = 'float32') -> dict[str, float]:
    """Makes a run of a model, and returns {'parameters', 'arrays'}: how many it has.

    Args:
      source: all of it is read, and checked, before anything is written.
      run: a directory that holds no run yet.
      param_dtype: of the matrices; norms are float32.
    Raises:
      RunError: whatever is wrong with the source, or a run that is there already.
    """
    if run.config_path.exists() or run.steps():
        raise RunError(f'--run is {run.path}: a run is there already; expected another directory')
    config = classes.read(source.fields)
    config.model.param_dtype = param_dtype
    config.data.source = 'files'  # of its text nothing is known
    tokenizer = _pad(source.tokenizer(), source)
    config.tokenizer.path = str(run.path / tokenizer.file_name)
    architecture = model_config.resolve(config.model, tokenizer.vocab_size, config.data.seq_len)
    config.model.encodings = encoding_meaning.get_meaning(config)
    lineage = make_lineage(source, config, tokenizer)

    # Array by array, since the model may be larger than memory: read once, for what may be wrong
    # with any of them, and for their checksums.
    params = sources.defer_params(source, architecture)
    state = {'step': np.int32(0), 'params': params}
    sums = checkpoint.checksums(state)

    # Everything can be read and fits: only now is anything written.
    run_dir.create(run, config, tokenizer, lineage)
    checkpoints = checkpoint.Checkpoints(run, config.checkpoint, deferred=True)
    with run_dir.room_in(run):
        checkpoints.save(state, None, sums=sums)
        checkpoints.wait()
    checkpoints.close()
    leaves = jax.tree.leaves(params)
    return {'parameters': sum(x.size for x in leaves), 'arrays': len(leaves)}


def _pad(tokenizer: Tokenizer, source: Source) -> Tokenizer:
    """Returns the tokenizer with an id for each row of the table, as far as it can have more."""
    table = source.shapes.get(source.model_class().names['embedding'], ())
    if isinstance(tokenizer, FastTokenizer) and table and table[0] > tokenizer.vocab_size:
        return tokenizer.with_settings(vocab_size=table[0])
    return tokenizer


def make_lineage(source: Source, config: ConfigDict, tokenizer: Tokenizer) -> dict:
    """Returns what lineage.json says of a run that was not trained here."""
    hashes = sources.hash_files(source.files)
    store = types.SimpleNamespace(hash=stable_hash(hashes))  # in the place of a text
    lineage = origin.make_lineage(config, store, tokenizer, None)
    lineage['source'] = {
        'from': str(source.path),
        'class': source.model_class().architecture,
        'files': hashes,
        'licence': source.licence,
    }
    return lineage


def main() -> None:
    """Imports the model that the flags name, and prints what the run is."""
    f = flags.FLAGS
    cli.check_path('--from', f['from'].value)
    run = run_dir.place(f.run)
    cli.check_writable('--run', f.run)
    source = open_source(pathlib.Path(f['from'].value))
    told = import_run(source, run, f.param_dtype)
    licence = source.licence or 'not named in the source'
    print(
        printable(
            f'{run.path}: {source.model_class().architecture} with {told["parameters"]:,} '
            f'parameters in {told["arrays"]} arrays; licence: {licence}'
        )
    )


if __name__ == '__main__':
    cli.run(main, keeps=True)
