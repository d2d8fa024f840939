"""The doctor of a run directory: what it holds, where it comes from, whether all of it is whole.

    python -m apps.inspect --run=runs/answers
    python -m apps.inspect --run=runs/answers --batch=17
    python -m apps.inspect --run=runs/atlas@2400 --against=configs/atlas.py \\
        -- --config.data.seq_len=128
    python -m apps.inspect --run=runs/answers --against=runs/other --json

It reads every byte that has a hash or a checksum, on the processor only, and writes nothing but a
token store that --batch needs and that is no more in the cache. Exit code 2, with a last line on
stderr, where something is damaged.
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
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
    cli.parse_flags()

import json
import math

import jax
import numpy as np

from apps import compare, examine
from data import tokenizer as tokenizers
from data.objectives import get_objective
from data.records import printable
from runtime import checkpoint
from runtime.errors import RunError
from runtime.run_dir import Run

# Round what the loss weights: brackets that texts hardly have.
OPEN, CLOSE = '\u27e6', '\u27e7'
HASHES = {
    'config.json': 'config',
    **dict.fromkeys(tokenizers.FILES, 'tokenizer'),
    'token store': 'data',
}
NO_FLAG = 'no flag: it is in the file, or the text has changed'
# Fields of a summary of metrics, and what they are called.
LOSSES = {
    'loss': 'last loss',
    'validation_nats': 'held-out nats per token',
    'validation_bits_per_byte': 'bits per byte',
}


def collect_facts(
    e: examine.Examined, step: int | None = None, against: compare.Other | None = None
) -> dict:
    """Returns all that is shown of a run, as JSON values.

    Args:
      e: the run, its files checked.
      step: whose batch is shown; None: of none.
      against: what it is compared with; None: with nothing.
    """
    family = [e, *examine.ancestors(e)]
    lineage = e.lineage or {}
    passed_over = [path.name for path in e.run.damaged.iterdir()] if e.run.damaged.exists() else []
    optimizer_sizes = [
        array.nbytes for name, array in e.arrays.items() if name.startswith('opt_state/')
    ]
    facts = {
        'run': str(e.run.path),
        'phase': _describe_phase(e),
        'steps_done': e.steps[-1] if e.steps else 0,
        'steps': e.config and e.config.train.steps,
        'checkpoints': e.steps,
        'passed_over': sorted(passed_over),
        'rollbacks': e.rollbacks,
        'metrics': examine.read_metrics(e.run),
        'config': e.config and e.config.to_dict(),
        'versions': lineage.get('versions', {}),
        'cores': lineage.get('cores'),
        'lineage': [_describe_link(member) for member in family],
        'parameters': examine.parameters(e),
        'optimizer_bytes': sum(optimizer_sizes),
    }
    if step is not None:
        facts['batch'] = examine.batch(e, step)
    if against is not None:
        facts |= compare.compare(e, against)
    return facts | {'damage': [line for member in family for line in member.damage]}


def _describe_link(member: examine.Examined) -> dict:
    """Returns what is shown of a run and of each that it comes from."""
    lineage = member.lineage or {}
    hashes = {
        part: lineage.get(f'{what}_hash') for part, what in HASHES.items() if part in member.checks
    }
    return {
        'run': str(member.run.path),
        'step': member.run.step,
        'checked': member.checks,
        'hashes': hashes,
    }


def _describe_phase(e: examine.Examined) -> str:
    if e.lineage is None:
        return 'unknown'
    source = e.lineage.get('source')
    if isinstance(source, dict):
        return f'imported from {source.get("from")}, {source.get("class")}'
    kind = ''
    if e.data is not None:
        is_answers = e.data.manifest.get('conversations', True)
        kind = 'post-training ' if is_answers else 'pretraining '
    parent = e.lineage.get('parent')
    if parent:
        return f'{kind}from the parameters of {parent["run"]}@{parent["step"]}'
    return f'{kind}from random weights'


def format_facts(facts: dict) -> str:
    """Returns the facts of a run for a person."""
    parts = [
        _format_overview(facts),
        _format_lineage(facts['lineage']),
        _format_parameters(facts['parameters'], facts['optimizer_bytes']),
    ]
    if 'batch' in facts:
        parts.append(_format_batch(facts['batch']))
    if 'differences' in facts:
        parts.append(_format_differences(facts))
    return '\n\n'.join(parts)


def table(rows: list[list], indent: str = '  ') -> str:
    """Returns rows of cells in aligned columns."""
    rows = [[str(cell).replace('\n', '\\n') for cell in row] for row in rows]
    columns = range(max(map(len, rows)))
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in columns]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append((indent + '  '.join(cells)).rstrip())
    return '\n'.join(lines)


def _format_overview(facts: dict) -> str:
    steps = f'{facts["steps_done"]} saved'
    if facts['steps']:
        steps = f'{facts["steps_done"]} of {facts["steps"]} saved'
    passed_over = 'none'
    if facts['passed_over']:
        passed_over = f'{", ".join(facts["passed_over"])} (in damaged/)'
    rollbacks = [
        f'from step {r["step"]} on {r["batches"]} batches were passed over'
        for r in facts['rollbacks']
    ]
    versions = ', '.join(f'{name} {version}' for name, version in facts['versions'].items())
    rows = [
        ['phase', facts['phase']],
        ['steps', steps],
        ['checkpoints', ', '.join(map(str, facts['checkpoints'])) or 'none'],
        ['passed over', passed_over],
        ['rollbacks', '; '.join(rollbacks) or 'none'],
        ['metrics', _format_metrics(facts['metrics'])],
    ]
    if facts['config']:
        rows += _config_rows(facts['config'])
    rows.append(['made with', f'{versions}; {facts["cores"]} cores'])
    return f'{facts["run"]}\n{table(rows)}'


def _format_metrics(metrics: dict) -> str:
    text = f'{metrics["lines"]} lines'
    if metrics['unreadable']:
        text += f', {metrics["unreadable"]} more that cannot be read'
    for name, label in LOSSES.items():
        if name not in metrics:
            continue
        value = metrics[name]
        if isinstance(value, float):
            text += f'; {label} {value:.4f} at step {metrics[f"{name}_step"]}'
        else:
            text += f'; {label} {value}'
    return text


def _config_rows(config: dict) -> list[list[str]]:
    """Returns the rows of the overview that come from the config."""
    model = config['model']
    data = config['data']
    tokenizer = config['tokenizer']
    optimizer = config['optimizer']
    model_text = (
        f'{model["num_layers"]} layers of width {model["width"]}, {model["num_heads"]} heads '
        f'({model["num_kv_heads"]} of keys and values), positions {model["positions"]} '
        f'{model["positions_args"] or ""}'
    )
    rows_text = get_objective(config['train']['objective']).describe_rows(data)
    tokenizer_text = tokenizer['path']
    if not tokenizer_text:
        tokenizer_text = tokenizer['kind']
        if tokenizer['kind'] != 'char':
            tokenizer_text += f' of {tokenizer["vocab_size"]} pieces'
    adapters = config['lora']
    adapters_text = (
        f'rank {adapters["rank"]}, alpha {adapters["alpha"]:g}, beside {adapters["targets"]}; all '
        f"other weights are the parent's"
    )
    return [
        ['model', model_text.rstrip()],
        *([['adapters', adapters_text]] if adapters['rank'] else []),
        [
            'data',
            f'{data["source"]}, {data["batch_size"]} rows of {data["seq_len"]} tokens, {rows_text}',
        ],
        ['tokenizer', tokenizer_text],
        ['mesh', ', '.join(f'{axis} {size}' for axis, size in config['mesh'].items())],
        [
            'optimizer',
            f'{optimizer["kind"]}, learning rate {optimizer["lr"]:g}, {optimizer["schedule"]}, '
            f'{optimizer["warmup"]} steps of warmup; seed {config["seed"]}',
        ],
    ]


def _format_lineage(links: list[dict]) -> str:
    lines = ['lineage, and what was checked']
    for depth, link in enumerate(links):
        name = link['run'] if link['step'] is None else f'{link["run"]}@{link["step"]}'
        rows = []
        for part, check in link['checked'].items():
            if check == examine.OK and part in HASHES:
                check = f'{check}, {link["hashes"][part][:12]}'
            rows.append([part, check])
        lines += [f'  {"began from " if depth else ""}{name}', table(rows, '    ')]
    return '\n'.join(lines)


def _format_parameters(parameters: list[dict], optimizer_bytes: int) -> str:
    title = 'dimensions (axis of the mesh that cuts them, where larger than 1)'
    rows = [['', 'shape', 'type', title, 'norm']]
    module = None
    total = 0
    size = 0
    for parameter in parameters:
        # The first parameter of a module comes after a line with the sum of all of them.
        top, slash, rest = parameter['path'].partition('/')
        if slash and top != module:
            inside = [p['shape'] for p in parameters if p['path'].startswith(f'{top}/')]
            rows.append([top, f'{sum(map(math.prod, inside)):,}'])
        module = top

        axes = []
        for name, axis in zip(parameter['axes'], parameter['cut_over']):
            axes.append(f'{name or "-"} ({axis})' if axis else name or '-')
        norm = '-' if parameter['norm'] is None else f'{float(parameter["norm"]):.4g}'
        shape = ' x '.join(map(str, parameter['shape']))
        name = f'  {rest}' if slash else top
        rows.append([name, shape, parameter['dtype'], ', '.join(axes), norm])

        count = math.prod(parameter['shape'])
        total += count
        size += count * np.dtype(parameter['dtype']).itemsize
    return (
        f'parameters\n{table(rows)}\n  in all {total:,} parameters in {len(parameters)} arrays, '
        f'{_format_size(size)}; optimizer {_format_size(optimizer_bytes)}'
    )


def _format_size(count: int) -> str:
    return f'{count / 2**30:.2f} GiB' if count >= 2**30 else f'{count / 2**20:.2f} MiB'


def _format_batch(batch: dict) -> str:
    lines = [
        f'the batch of step {batch["step"]} (from 0; in metrics.jsonl the line of step '
        f'{batch["step"] + 1}): batch({batch["number"]}) of data {batch["data_hash"][:12]}, seed '
        f'{batch["seed"]}'
    ]
    if 'pairs' in batch:
        lines.append(
            f'  {batch["weight"]:g} pairs: a query, what answers it, and negatives beside the '
            f'other texts of the batch'
        )
        for number, pair in enumerate(batch['pairs']):
            lines += _format_pair(number, pair)
        return '\n'.join(lines)

    lines.append(
        f'  {batch["weight"]:g} targets are weighted by the loss; they stand in {OPEN}these '
        f'brackets{CLOSE}'
    )
    for number, row in enumerate(batch['rows']):
        for index, segment in enumerate(row['segments'], 1):
            first_column, last_column = segment['columns']
            first_position, last_position = segment['positions']
            lines.append(
                f'  row {number}, segment {index} of {len(row["segments"])}: '
                f'columns {first_column} to {last_column}, '
                f'positions {first_position} to {last_position}, {segment["weighted"]} weighted'
            )
            lines += [f'    | {line}' for line in mark_weighted(segment).split('\n')]
        if row['padding']:
            lines.append(f'  row {number}, padding: {row["padding"]} columns')
    return '\n'.join(lines)


def _format_pair(number: int, pair: dict) -> list[str]:
    kinds = ('query', 'positive', *['negative'] * len(pair['documents']))
    texts = (pair['query'], *pair['documents'])
    return [
        f'  row {number}, {kind}, text {text_id}: {text}'
        for kind, text_id, text in zip(kinds, pair['text_ids'], texts)
    ]


def mark_weighted(segment: dict) -> str:
    """Returns the text of a segment, with what the loss weights in brackets.

    The tokenizer's marks stand by their names.
    """
    text = ''
    inside = False
    for piece in segment['pieces']:
        if piece['weighted'] != inside:
            text += CLOSE if inside else OPEN
            inside = not inside
        text += piece['text']
    if inside:
        text += CLOSE
    if segment['beyond']:
        text += f' and, after the row, {OPEN}{segment["beyond"]}{CLOSE}'
    return text


def _format_differences(facts: dict) -> str:
    name = facts['against']
    differences = facts['differences']
    lines = [f'against {name}' if differences else f'against {name}: nothing differs']
    for what, title in compare.KINDS.items():
        of_kind = [difference for difference in differences if difference['what'] == what]
        if of_kind:
            # A field has a flag of its own; else all that differs has the same flags.
            is_field = what in ('config', 'harmless')
            lines += [f'  {title}', *_format_kind(of_kind, is_field)]
    all_flags = dict.fromkeys(flag for d in differences for flag in d['flags'] or ())
    if all_flags:
        lines += [f'  flags that make {name} like this run:', f'    {" ".join(all_flags)}']
    lines += [f'  not compared: {line}' for line in facts['unknown']]
    return '\n'.join(lines)


def _format_kind(differences: list[dict], is_field: bool) -> list[str]:
    """Returns a table of differences of one kind; those that are alike share a row."""
    names_by_values: dict[tuple, list[str]] = {}
    for d in differences:
        flags_text = NO_FLAG if d['flags'] is None else ' '.join(d['flags'])
        values = (d['here'], d['there'], flags_text)
        names_by_values.setdefault(values, []).append(d['name'])

    def format_value(value) -> str:
        if value is None:
            return 'absent'
        return repr(value) if is_field else value

    rows = [['', 'here', 'there', 'flag' if is_field else '']]
    for (here, there, flags_text), names in names_by_values.items():
        paths = checkpoint.summarize_paths(names)
        flag = flags_text if is_field else ''
        rows.append([paths, format_value(here), format_value(there), flag])
    lines = [table(rows, '    ')]
    if not is_field:
        all_flags = dict.fromkeys(flags_text for _, _, flags_text in names_by_values)
        lines += [f'    {flags_text}' for flags_text in all_flags]
    return lines


def main(words: list[str]) -> None:
    """Prints the facts of the run that the flags name.

    `words`: flags of the config that --against names.
    """
    f = flags.FLAGS
    jax.config.update('jax_platforms', 'cpu')  # a run may be training on the accelerator
    if words and not f.against:
        raise RunError(
            f'{words[0]}: expected only flags; what follows after -- belongs to the config of '
            f'--against'
        )
    run = Run.parse(f.run)
    against = compare.open_other(f.against, words) if f.against else None
    facts = collect_facts(examine.examine(run), f.batch, against)
    print(json.dumps(facts) if f.json else printable(format_facts(facts)))
    if facts['damage']:
        raise RunError(f'{facts["run"]}: damaged: {"; ".join(facts["damage"])}')


if __name__ == '__main__':
    cli.run(main, words=True)
