"""The doctor: what a run directory holds, where it comes from, whether all of it is whole.

    python -m apps.inspect --run=runs/answers
    python -m apps.inspect --run=runs/answers --batch=17
    python -m apps.inspect --run=runs/atlas@600 --against=configs/atlas.py -- --config.data.seq_len=128
    python -m apps.inspect --run=runs/answers --against=runs/other --json

It reads every byte that has a hash or a checksum, on the processor only, and writes nothing but a token store that --batch needs and that
is no more in the cache. Exit code 2, with a last line on stderr, where something is damaged.
"""

import json
import math

import jax
import numpy as np
from absl import flags

from apps import compare, examine
from data.records import printable
from runtime import checkpoint, cli, options
from runtime.errors import RunError
from runtime.run_dir import Run

OPEN, CLOSE = '\u27e6', '\u27e7'  # round what the loss weights: brackets that texts hardly have
HASHES = {'config.json': 'config', 'tokenizer.model': 'tokenizer', 'token store': 'data'}
NO_FLAG = 'no flag: it is in the file, or the text has changed'


def define_flags() -> None:
    options.path(
        'run', '', 'Run directory, DIR or DIR@step; with a step only that checkpoint is read'
    )
    options.whole(
        'batch',
        None,
        'Show the batch that this step (from 0) trains on, as text',
        0,
        options.MOST,
    )
    options.path(
        'against', '', 'Show what differs from this run or config file, whose flags follow after --'
    )
    flags.DEFINE_bool('json', False, 'The same as one JSON object')


def facts(
    e: examine.Examined, step: int | None = None, against: compare.Other | None = None
) -> dict:
    """All that is told of a run, as JSON values."""
    line = [e, *examine.ancestors(e)]
    found = {
        'run': str(e.run.path),
        'phase': _phase(e),
        'steps_done': e.steps[-1] if e.steps else 0,
        'steps': e.config and e.config.train.steps,
        'checkpoints': e.steps,
        'passed_over': sorted(p.name for p in e.run.damaged.iterdir())
        if e.run.damaged.exists()
        else [],
        'rollbacks': e.rollbacks,
        'metrics': examine.measured(e.run),
        'config': e.config and e.config.to_dict(),
        'versions': (e.lineage or {}).get('versions', {}),
        'cores': (e.lineage or {}).get('cores'),
        'lineage': [
            {
                'run': str(a.run.path),
                'step': a.run.step,
                'checked': a.said,
                'hashes': {
                    part: (a.lineage or {}).get(f'{what}_hash') for part, what in HASHES.items()
                },
            }
            for a in line
        ],
        'parameters': examine.parameters(e),
        'optimizer_bytes': sum(
            x.nbytes for name, x in e.arrays.items() if name.startswith('opt_state/')
        ),
    }
    if step is not None:
        found['batch'] = examine.batch(e, step)
    if against is not None:
        found |= compare.compare(e, against)
    return found | {'damage': [line for a in line for line in a.damage]}


def _phase(e: examine.Examined) -> str:
    if e.lineage is None:
        return 'unknown'
    kind = (
        ''
        if e.data is None
        else 'post-training '
        if e.data.manifest.get('conversations', True)
        else 'pretraining '
    )
    parent = e.lineage.get('parent')
    return kind + (
        f'from the parameters of {parent["run"]}@{parent["step"]}'
        if parent
        else 'from random weights'
    )


def told(found: dict) -> str:
    """The facts of a run for a person."""
    parts = [
        _overview(found),
        _lineage(found['lineage']),
        _parameters(found['parameters'], found['optimizer_bytes']),
    ]
    if 'batch' in found:
        parts.append(_batch(found['batch']))
    if 'differences' in found:
        parts.append(_differences(found))
    return '\n\n'.join(parts)


def table(rows: list[list], indent: str = '  ') -> str:
    """Rows of cells in aligned columns."""
    rows = [[str(cell).replace('\n', '\\n') for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return '\n'.join(
        (indent + '  '.join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip()
        for row in rows
    )


def _overview(found: dict) -> str:
    c, m = found['config'], found['metrics']
    rows = [
        ['phase', found['phase']],
        [
            'steps',
            f'{found["steps_done"]} of {found["steps"]} saved'
            if found['steps']
            else f'{found["steps_done"]} saved',
        ],
        ['checkpoints', ', '.join(map(str, found['checkpoints'])) or 'none'],
        [
            'passed over',
            f'{", ".join(found["passed_over"])} (in damaged/)' if found['passed_over'] else 'none',
        ],
        [
            'rollbacks',
            '; '.join(
                f'from step {r["step"]} on {r["batches"]} batches were passed over'
                for r in found['rollbacks']
            )
            or 'none',
        ],
        [
            'metrics',
            f'{m["lines"]} lines'
            + (f', {m["unreadable"]} more that cannot be read' if m['unreadable'] else '')
            + ''.join(
                f'; {label} {m[name]:.4f} at step {m[f"{name}_step"]}'
                if isinstance(m[name], float)
                else f'; {label} {m[name]}'
                for name, label in (
                    ('loss', 'last loss'),
                    ('validation_nats', 'held-out nats per token'),
                    ('validation_bits_per_byte', 'bits per byte'),
                )
                if name in m
            ),
        ],
    ]
    if c:
        t, o = c['tokenizer'], c['optimizer']
        rows += [
            [
                'model',
                f'{c["model"]["num_layers"]} layers of width {c["model"]["width"]}, {c["model"]["num_heads"]} heads ({c["model"]["num_kv_heads"]} '
                f'of keys and values), positions {c["model"]["positions"]} {c["model"]["positions_args"] or ""}'.rstrip(),
            ],
            [
                'data',
                f'{c["data"]["source"]}, {c["data"]["batch_size"]} rows of {c["data"]["seq_len"]} tokens, '
                + (
                    f'packing {c["data"]["packing"]}'
                    if c['train']['objective'] == 'tokens'
                    else f'pairs {c["data"]["pairs"]["kind"]}'
                ),
            ],
            [
                'tokenizer',
                t['path']
                or (
                    t['kind'] if t['kind'] == 'char' else f'{t["kind"]} of {t["vocab_size"]} pieces'
                ),
            ],
            ['mesh', ', '.join(f'{axis} {size}' for axis, size in c['mesh'].items())],
            [
                'optimizer',
                f'{o["kind"]}, learning rate {o["lr"]:g}, {o["schedule"]}, {o["warmup"]} steps of warmup; seed {c["seed"]}',
            ],
        ]
    rows.append(
        [
            'made with',
            ', '.join(f'{name} {version}' for name, version in found['versions'].items())
            + f'; {found["cores"]} cores',
        ]
    )
    return f'{found["run"]}\n{table(rows)}'


def _lineage(line: list[dict]) -> str:
    shown = ['lineage, and what was checked']
    for depth, link in enumerate(line):
        name = link['run'] if link['step'] is None else f'{link["run"]}@{link["step"]}'
        rows = [
            [
                part,
                f'{said}, {link["hashes"][part][:12]}'
                if said == examine.OK and part in HASHES
                else said,
            ]
            for part, said in link['checked'].items()
        ]
        shown += [f'  {"began from " if depth else ""}{name}', table(rows, '    ')]
    return '\n'.join(shown)


def _parameters(rows: list[dict], optimizer_bytes: int) -> str:
    shown, module, total, size = (
        [
            [
                '',
                'shape',
                'type',
                'dimensions (axis of the mesh that cuts them, where larger than 1)',
                'norm',
            ]
        ],
        None,
        0,
        0,
    )
    for row in rows:
        top, slash, rest = row['path'].partition('/')
        if slash and top != module:
            inside = sum(math.prod(r['shape']) for r in rows if r['path'].startswith(f'{top}/'))
            shown.append([top, f'{inside:,}'])
        module = top
        cut = ', '.join(
            f'{name or "-"}{f" ({axis})" if axis else ""}'
            for name, axis in zip(row['axes'], row['cut_over'])
        )
        norm = '-' if row['norm'] is None else f'{float(row["norm"]):.4g}'
        shown.append(
            [
                f'  {rest}' if slash else top,
                ' x '.join(map(str, row['shape'])),
                row['dtype'],
                cut,
                norm,
            ]
        )
        total += math.prod(row['shape'])
        size += math.prod(row['shape']) * np.dtype(row['dtype']).itemsize
    return (
        f'parameters\n{table(shown)}\n  in all {total:,} parameters in {len(rows)} arrays, {_size(size)}; '
        f'optimizer {_size(optimizer_bytes)}'
    )


def _size(count: int) -> str:
    return f'{count / 2**30:.2f} GiB' if count >= 2**30 else f'{count / 2**20:.2f} MiB'


def _batch(found: dict) -> str:
    shown = [
        f'the batch of step {found["step"]} (from 0; in metrics.jsonl the line of step {found["step"] + 1}): batch({found["number"]}) of data '
        f'{found["data_hash"][:12]}, seed {found["seed"]}',
        f'  {found["weight"]:g} targets are weighted by the loss; they stand in {OPEN}these brackets{CLOSE}',
    ]
    if 'pairs' in found:
        shown[1:] = [
            f'  {found["weight"]:g} pairs: a query, what answers it, and negatives beside the other texts of the batch'
        ]
        for number, pair in enumerate(found['pairs']):
            shown += [
                f'  row {number}, {what}, text {n}: {text}'
                for what, n, text in zip(
                    ('query', 'positive', *['negative'] * len(pair['documents'])),
                    pair['text_ids'],
                    (pair['query'], *pair['documents']),
                )
            ]
    for number, row in enumerate(found.get('rows', ())):
        for index, s in enumerate(row['segments'], 1):
            columns, positions = (
                f'{first} to {last}' for first, last in (s['columns'], s['positions'])
            )
            shown.append(
                f'  row {number}, segment {index} of {len(row["segments"])}: columns {columns}, positions {positions}, {s["weighted"]} weighted'
            )
            shown += [f'    | {line}' for line in marked(s).split('\n')]
        if row['padding']:
            shown.append(f'  row {number}, padding: {row["padding"]} columns')
    return '\n'.join(shown)


def marked(segment: dict) -> str:
    """The text of a segment, what the loss weights in brackets, the tokenizer's marks by their names."""
    text, inside = '', False
    for piece in segment['pieces']:
        if piece['weighted'] != inside:
            text, inside = text + (CLOSE if inside else OPEN), not inside
        text += piece['text']
    text += CLOSE if inside else ''
    return text + (
        f' and, after the row, {OPEN}{segment["beyond"]}{CLOSE}' if segment['beyond'] else ''
    )


def _differences(found: dict) -> str:
    name, differences = found['against'], found['differences']
    shown = [f'against {name}' if differences else f'against {name}: nothing differs']
    for what, title in compare.KINDS.items():
        groups: dict[tuple, list[str]] = {}
        for d in differences:
            if d['what'] == what:
                groups.setdefault(
                    (
                        d['here'],
                        d['there'],
                        NO_FLAG if d['flags'] is None else ' '.join(d['flags']),
                    ),
                    [],
                ).append(d['name'])
        if not groups:
            continue
        fields = what in (
            'config',
            'harmless',
        )  # each has a flag of its own; else all that differs has the same
        value = lambda x: 'absent' if x is None else repr(x) if fields else x
        shown += [
            f'  {title}',
            table(
                [
                    ['', 'here', 'there', 'flag' if fields else ''],
                    *(
                        [checkpoint.named(paths), value(here), value(there), flag if fields else '']
                        for (here, there, flag), paths in groups.items()
                    ),
                ],
                '    ',
            ),
        ]
        shown += (
            []
            if fields
            else [f'    {flag}' for flag in dict.fromkeys(flag for _, _, flag in groups)]
        )
    all_flags = dict.fromkeys(flag for d in differences for flag in d['flags'] or ())
    if all_flags:
        shown += [f'  flags that make {name} like this run:', f'    {" ".join(all_flags)}']
    return '\n'.join([*shown, *(f'  not compared: {line}' for line in found['unknown'])])


def main(words: list[str]) -> None:
    f = flags.FLAGS
    jax.config.update('jax_platforms', 'cpu')  # a run may be training on the accelerator
    if words and not f.against:
        raise RunError(
            f'{words[0]}: expected only flags; what follows after -- belongs to the config of --against'
        )
    run, against = Run.parse(f.run), compare.other(f.against, words) if f.against else None
    found = facts(examine.examine(run), f.batch, against)
    print(json.dumps(found) if f.json else printable(told(found)))
    if found['damage']:
        raise RunError(f'{found["run"]}: damaged: {"; ".join(found["damage"])}')


if __name__ == '__main__':
    define_flags()
    cli.run(main, words=True)
