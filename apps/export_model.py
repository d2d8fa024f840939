"""A run as a model that others can use: a folder of Hugging Face, or a file of GGUF.

    python -m apps.export_model --run=runs/answers --out=answers-hf
    python -m apps.export_model --run=runs/answers --out=answers-gguf --format=gguf

The first class is taken that computes what the run does (Llama, Mistral, Qwen2, Qwen3, GPT-2,
GPT-NeoX, OLMo 2, SmolLM3, BLOOM, MPT). A run that none of them has goes out with a modelling file
of Ordem's own, which transformers runs where it is trusted; as GGUF it is refused, with what they
lack. The folder of a run that was trained on pairs is one of sentence-transformers, too.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('run', '', 'Run directory, DIR or DIR@step')
    options.path('out', '', 'Folder to make')
    flags.DEFINE_enum('format', 'hf', ['hf', 'gguf'], 'hf: safetensors and config.json; gguf')
    flags.DEFINE_enum(
        'dtype',
        'as_stored',
        ['as_stored', 'float32', 'bfloat16', 'float16'],
        'Numbers of the weights',
    )
    cli.parse_flags()

import pathlib
import shutil

from ml_collections import ConfigDict

from apps import examine
from apps.exchange import (
    gguf_file,
    gguf_tokenizer,
    hf_tokenizer,
    huggingface,
    sentence_encoder,
)
from apps.exchange.expressed import Expressed
from data import paths
from data.objectives import get_objective
from data.records import printable
from data.tokenizer import Tokenizer
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run

_CARD = """---
{licence}library_name: {library}
pipeline_tag: {task}
tags:
- ordem
---

# {name}

A decoder transformer, exported from a run of Ordem as `{architecture}`.{code}

| | |
|---|---|
{rows}
"""

_CODE = """ No class of transformers
computes it; it comes with its code, which `trust_remote_code=True` lets transformers run."""


def export_folder(run: Run, folder: pathlib.Path, dtype: str = '') -> Expressed:
    """Writes a run as a folder of Hugging Face; returns what was written.

    Args:
      run: of the step that it names, or the newest.
      folder: that is not there yet. It appears when it is whole.
      dtype: of all weights, by name; '': as they are stored.
    Raises:
      RunError: no class is this model, or the folder is there.
    """
    model, params, tokenizer, config = models.defer(run)
    expressed = Expressed.of(model, params)
    begun = begin(folder)
    try:
        huggingface.write_weights(begun, expressed, dtype)
        marks = _marks(tokenizer)
        stored = dtype or config.model.param_dtype
        huggingface.write_json(
            begun / 'config.json', {**expressed.config, **marks, 'dtype': stored}
        )
        huggingface.write_json(begun / 'generation_config.json', marks)
        (begun / tokenizer.file_name).write_bytes(tokenizer.proto)
        embeds = _embeds(config)
        for name, content in hf_tokenizer.files(tokenizer, model.config.max_len, embeds).items():
            (begun / name).write_bytes(content)
        if embeds:
            files = sentence_encoder.make_files(config, model.config.width)
            for name, values in files.items():
                (begun / name).parent.mkdir(exist_ok=True)
                huggingface.write_json(begun / name, values)
        card = make_card(run, config, expressed)
        (begun / 'README.md').write_text(card, encoding='utf-8')
        for file in expressed.one.code:
            shutil.copyfile(file, begun / file.name)
        begun.rename(folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return expressed


def export_gguf(run: Run, folder: pathlib.Path, dtype: str = '') -> Expressed:
    """Writes a run as a file of GGUF, `model.gguf` in a folder; otherwise as `export_folder`."""
    model, params, tokenizer, config = models.defer(run)
    expressed = Expressed.of(model, params, own=False)
    source = run.lineage().get('source') or {}
    more = {'general.name': run.path.name, **gguf_tokenizer.to_gguf(tokenizer)}
    if source.get('licence'):
        more['general.license'] = source['licence']
    begun = begin(folder)
    try:
        stored = dtype or config.model.param_dtype
        gguf_file.write_file(begun / 'model.gguf', expressed, more, stored)
        begun.rename(folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return expressed


def begin(folder: pathlib.Path) -> pathlib.Path:
    """Returns an empty folder beside one to be made, to be renamed when it is whole."""
    if folder.exists():
        raise RunError(f'--out is {folder}: is there already; nothing is written over it')
    begun = folder.parent / paths.begun(folder.name)
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(parents=True)
    return begun


def _embeds(config: ConfigDict) -> bool:
    """Returns whether a run was trained to make vectors of texts, and not to write them."""
    return not get_objective(config.train.objective).holds_out_text


def _marks(tokenizer: Tokenizer) -> dict:
    """Returns the ids that begin, end and fill a text."""
    return {
        'bos_token_id': tokenizer.bos,
        'eos_token_id': list(dict.fromkeys((tokenizer.eos, *tokenizer.ends))),
        'pad_token_id': tokenizer.pad,
    }


def make_card(run: Run, config: ConfigDict, expressed: Expressed) -> str:
    """Returns the model card of a run: where it comes from, and what was measured."""
    lineage = run.lineage()
    source = lineage.get('source') or {}
    parent = lineage.get('parent') or {}
    metrics = examine.read_metrics(run)
    count = sum(x.size for x in expressed.arrays.values())
    facts = {
        'parameters': f'{count:,}',
        'positions': config.model.positions,
        'context': f'{expressed.there.max_len:,} tokens',
        'data': None if source else config.data.source,
        'steps': run.steps()[-1] if run.step is None else run.step,
        'parent': f'{parent.get("run")}@{parent.get("step")}' if parent else None,
        'imported from': source.get('class'),
        'held-out nats per token': metrics.get('validation_nats'),
        'held-out bits per byte': metrics.get('validation_bits_per_byte'),
        'config': lineage['config_hash'],
        'text': lineage['data_hash'],
        'tokenizer': lineage['tokenizer_hash'],
    }
    rows = [f'| {name} | {value} |' for name, value in facts.items() if value is not None]
    licence = f'license: {source["licence"]}\n' if source.get('licence') else ''
    embeds = _embeds(config)
    return _CARD.format(
        licence=licence,
        library='sentence-transformers' if embeds else 'transformers',
        task='sentence-similarity' if embeds else 'text-generation',
        code=_CODE if expressed.one.code else '',
        name=run.path.name,
        architecture=expressed.one.architecture,
        rows='\n'.join(rows),
    )


def main() -> None:
    """Exports the run that the flags name, and prints what was written."""
    f = flags.FLAGS
    cli.check_path('--out', f.out)
    cli.check_writable('--out', f.out)
    out = pathlib.Path(f.out)
    dtype = '' if f.dtype == 'as_stored' else f.dtype
    export = export_gguf if f.format == 'gguf' else export_folder
    expressed = export(Run.parse(f.run), out, dtype)
    count = sum(x.size for x in expressed.arrays.values())
    print(printable(f'{out}: {expressed.one.architecture} with {count:,} parameters'))


if __name__ == '__main__':
    cli.run(main, keeps=True)
