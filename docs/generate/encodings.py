"""Makes the table of positional encodings from the registry: model/positions/README.md.

python -m docs.generate.encodings          writes the table
python -m docs.generate.encodings --json   prints every spec as JSON
"""

from absl import flags

from runtime import cli

if __name__ == '__main__':  # above the imports that take seconds
    flags.DEFINE_bool('json', False, 'Print every spec as JSON, write nothing')
    cli.parse_flags()

import collections
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from configs import base
from docs.generate import markdown
from model.config import resolve
from model.positions import ENTERS, PATTERNS, REGISTRY
from model.transformer import Transformer

# Where the lines are counted that `Spec.differs` names: project -> commit or release.
READ = {
    'openai/gpt-2': '9b63575',
    'tensorflow/tensor2tensor': 'bafdc1b',
    'tensorflow/mesh': 'da90793',
    'huggingface/transformers': '5.24.0',
    'lucidrains/x-transformers': '9252ed7',
    'lucidrains/FLASH-pytorch': 'ef3bee7',
    'lucidrains/PoPE-pytorch': 'ee11cab',
    'marian-nmt/marian-dev': 'c9f287d',
    'McGill-NLP/length-generalization': '40f8a44',
    'kingoflolz/mesh-transformer-jax': 'f8315e3',
    'microsoft/torchscale': '4d1e0e8',
    'jquesnelle/yarn': '995db5b',
    'microsoft/LongRoPE': 'c9e56aa',
    'bojone/rerope': 'acfe788',
    'datamllab/LongLM': 'cdbbb06',
    'HKUNLP/STRING': '216cc2f',
    'Glaciohound/LM-Infinite': 'a0ce64c',
    'chijames/KERPLE': '25be3d7',
    'chuanyang-Zheng/DAPE': 'bde344a',
    'kimiyoung/transformer-xl': '44781ed',
    'microsoft/DeBERTa': '4d7fe0b',
    'guolinke/TUPE': '4c64ff7',
    'facebookresearch/RAM': 'e6f051f',
    'shawntan/stickbreaking-attention': '3147a38',
    'IBM/dolomite-engine': 'd0ee186',
    'model-architectures/GRAPE': 'f5b539f',
    'zhixuan-lin/forgetting-transformer': '883f260',
    'axiomlab/Cable': '8bc6b83',
    'google-deepmind/randomized_positional_encodings': 'e8c6474',
    'dwzhu-pku/PoSE': 'a3d4ba8',
    'mcleish7/arithmetic': '86022a5',
    'HanseulJo/position-coupling': 'b9cad94',
    'AntNLP/nope_head_scale': '51e0a82',
    'allenai/longformer': 'caefee6',
    'CyndxAI/QKNorm': 'c628cb5',
    'meta-llama/llama-models': 'a9c89c4',
}
TABLE = pathlib.Path(__file__).resolve().parents[2] / 'model' / 'positions' / 'README.md'


@functools.cache
def count_added_parameters(name: str) -> int:
    """Returns how many parameters an encoding adds to the model of `configs/base.py`.

    That has 4 layers of width 192, 6 heads and 256 tokens.
    """
    config = base.get_config()
    layers = config.model.num_layers
    config.model.num_layers = 1  # one is traced, and counted as often as there are
    config.model.positions = _in_a_pattern(name)
    model = Transformer(resolve(config.model, 256, config.data.seq_len))
    one = jnp.ones((1, 1), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), one, one * 0, one, one)
    params = nn.meta.unbox(variables['params'])

    total = 0
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if any(key.key.startswith('positions') for key in path):
            total += x.size * (layers if path[0].key == 'layer_0' else 1)
    return total


def _in_a_pattern(name: str) -> str:
    """Returns a pattern with the encoding, beside RoPE where alone it does nothing."""
    kind = REGISTRY[name]
    if not kind.spec.wraps:
        return name
    return f'{name}+rope' if 'position_ids' in kind.enters() else f'rope+{name}'


def row(name: str) -> dict:
    """Returns all that is known of an encoding, from its spec and its methods."""
    kind = REGISTRY[name]
    spec = kind.spec
    enters = kind.enters()
    return {
        'name': name,
        'title': spec.title,
        'family': kind.__module__.rsplit('.', 1)[-1],
        'enters': [ENTERS[m] for m in ENTERS if m in enters] or ['nowhere'],
        'parameters': kind.arguments(),
        'added': count_added_parameters(name),
        'shift_invariant': spec.shift_invariant,
        'sees_order': spec.sees_order,
        'bias': spec.bias_form or 'none',
        'length_limit': 'max_len' if spec.limited else 'none',
        'cache': kind.cache(),
        'kernel': kind.kernel(),
        'data': f'{spec.task_ids} ids' if spec.task_ids else '',
        'beside_another': spec.wraps,
        'source': spec.source,
        'version': spec.version,
        'before': dict(spec.before),
        'differs': list(spec.differs),
    }


def _arguments(arguments: dict) -> str:
    """Returns arguments with their values, as the table shows them."""
    return ', '.join(f'`{name}={value!r}`' for name, value in arguments.items())


def _table_line(r: dict) -> str:
    """Returns the line of an encoding in the first table, from its `row`."""
    note = ''
    if r['beside_another']:
        note = ' (beside another)'
    elif r['data']:
        note = f' (needs {r["data"]})'
    cells = [
        f'`{r["name"]}`',
        r['title'] + note,
        ', '.join(r['enters']),
        r['added'],
        'yes' if r['shift_invariant'] else 'no',
        r['bias'],
        r['length_limit'],
        r['cache'],
        r['kernel'],
        r['source'],
    ]
    return f'| {" | ".join(map(str, cells))} |'


_COLUMNS = (
    'name | title | enters | added | shift invariant | bias | length limit | cache holds | kernel '
    '| source'
)


def table() -> str:
    """Returns the whole page, as `TABLE` holds it."""
    rows = [row(name) for name in REGISTRY]
    families = collections.Counter(r['family'] for r in rows)
    by_family = ', '.join(f'{family} {count}' for family, count in families.items())

    # How to choose one, and the table.
    lines = [
        '# Positional encodings',
        '',
        markdown.fill(
            'Generated by `python -m docs.generate.encodings` from the registry; a test compares '
            'it. `--config.model.positions=NAME` chooses one, '
            '`--config.model.positions_args.FIELD=VALUE` sets its parameters. `rope,rope,none` is '
            'a pattern over the layers, `randomized+rope` puts several into the same layer.'
        ),
        '',
        markdown.fill(
            f'{len(rows)} encodings and variants, {len(PATTERNS)} patterns with a name. By family '
            f'(file): {by_family}.'
        ),
        '',
        markdown.fill(
            '*added*: parameters added to the model of `configs/base.py`. *kernel*: what attention '
            'needs: any kernel; a bias (a kernel that takes one); a mask; or the reference path, '
            'where the logits themselves are changed. Packing asks the same of all: positions that '
            'restart and segment ids.'
        ),
        '',
        f'| {_COLUMNS} |',
        '|' + '---|' * 10,
        *map(_table_line, rows),
    ]

    # Versions above 1 with what they replace, and what is not taken over from a source.
    versions = [
        f'| `{r["name"]}` | {r["version"]} | {_arguments(r["before"]) or "initial values only"} |'
        for r in rows
        if r['version'] > 1
    ]
    versions += [
        f'| `{name}` | {pattern.version} | `{pattern.before}` |'
        for name, pattern in PATTERNS.items()
        if pattern.version > 1
    ]
    lines += [
        '',
        '| pattern | layers | source |',
        '|---|---|---|',
        *(f'| `{n}` | `{p}` | {source} |' for n, (p, source, *_) in PATTERNS.items()),
        '',
        '## Parameters',
        '',
        '| name | fields of `positions_args` and their defaults |',
        '|---|---|',
        *(f'| `{r["name"]}` | {_arguments(r["parameters"])} |' for r in rows if r['parameters']),
        '',
        markdown.fill(
            'In a pattern an encoding may have arguments of its own in parentheses, '
            '`rope(base=10000)+window,rope(base=1000000)`; those of `positions_args` hold for all '
            'layers and count for more.'
        ),
        '',
        *_differences(rows),
        '## Versions',
        '',
        markdown.fill(
            'An encoding, or a pattern that has a name, gets another version where its initial '
            'values, its defaults or their meaning change; all others have version 1. A run keeps '
            'the arguments and the version that it was started with in `config.json` and '
            '`lineage.json`; one from before they were kept is read as version 1. These arguments '
            'give what version 1 meant:'
        ),
        '',
        '| name | version | version 1 |',
        '|---|---|---|',
        *versions,
        '',
        '## Adding one',
        '',
        markdown.fill(
            'One file with one class, an entry in `model/positions/__init__.py`, and a reference '
            'in `tests/model/references.py`. This is a whole encoding (a '
            'bias that falls with the square root of the distance, at a rate '
            'that each head learns); `tests/docs/test_encodings.py` adds it and trains with it:'
        ),
        '',
        '```python',
        EXAMPLE.strip(),
        '```',
        '',
        '```sh',
        'python -m train.pretrain --config=configs/base.py --config.model.positions=root \\',
        '    --run=runs/root',
        '```',
        '',
    ]
    return '\n'.join(lines)


def _differences(rows: list[dict]) -> list[str]:
    """Returns the lines of the section on what is not taken over from the sources."""
    differences = {r['name']: r['differs'] for r in rows}
    differences |= {name: pattern.differs for name, pattern in PATTERNS.items()}
    alike = [f'`{name}`' for name, differs in differences.items() if not differs]
    read = [f'{project} {commit}' for project, commit in READ.items()]
    return [
        '## What differs from the source',
        '',
        markdown.fill(
            'What an encoding does not take over from its source, or takes where sources disagree, '
            'and where it stands there: a place in the paper, or file and lines of the code of the '
            'authors (of transformers, tensor2tensor and others where they are named).'
        ),
        '',
        '| name | what differs |',
        '|---|---|',
        *(
            f'| `{name}` | {"<br>".join(differs)} |'
            for name, differs in differences.items()
            if differs
        ),
        '',
        markdown.fill(f'Nothing is known to differ: {", ".join(alike)}.'),
        '',
        markdown.fill(f'Lines are counted in {", ".join(read)}.'),
        '',
    ]


EXAMPLE = '''
"""A bias that falls with the square root of the distance."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from model.positions.base import PositionalEncoding, Spec


@dataclasses.dataclass(frozen=True)
class Root(PositionalEncoding):
    """b_ij = -r_h sqrt(i - j), r learned in each layer."""

    rate: float = 0.5
    spec = Spec('root', 'this page', shift_invariant=True, bias_form='Toeplitz')

    def bias(self, inputs):
        init = nn.initializers.constant(self.rate)
        rate_H = inputs.float32_param('r', init, (self.dims.num_heads,), ('heads',))
        # The square root has no gradient at 0: it is kept away from there.
        root = jnp.where(inputs.reach > 0, jnp.sqrt(jnp.maximum(inputs.reach, 1.0)), 0.0)
        return -rate_H[:, None, None] * root[:, None]
'''


def main() -> None:
    if flags.FLAGS.json:
        print(json.dumps([row(name) for name in REGISTRY], indent=1))
    else:
        TABLE.write_text(table(), 'utf-8')
        print(TABLE)


if __name__ == '__main__':
    cli.run(main)
