"""Reads, writes and compares budgets: a JSON file for each config and slice.

They lie under launch/aot/budgets/, with a table of all of them. A budget is the summary of
`launch.aot.compile_check` without what may change for no reason (seconds of compiling). A later
summary is compared with it: memory, FLOPs, bytes sent and predicted time may differ by 5 %.
"""

import json
import pathlib
import textwrap

from launch.aot import topologies
from runtime.run_dir import write_atomically
from runtime.system import package_versions

FOLDER = pathlib.Path(__file__).resolve().parent / 'budgets'
TABLE = FOLDER / 'README.md'
TOLERANCE = 0.05
_COMPARED = ('peak_bytes', 'executed_flops', 'model_flops', 'memory_bytes', 'step_seconds')
_GIB = topologies.GIB


def path(config_file: str, summary: dict) -> pathlib.Path:
    """Returns the file of the budget for a summary of `compile_check.check`."""
    slices = f'_{summary["slices"]}slices' if summary['slices'] > 1 else ''
    remat = summary['programs'].get('train', {}).get('remat', '')
    suffix = f'_{remat}' if remat else ''
    stem = pathlib.Path(config_file).stem
    return FOLDER / f'{stem}_{summary["topology"].replace(":", "_")}{slices}{suffix}.json'


def save(config_file: str, summary: dict) -> pathlib.Path:
    """Writes the budget for a summary; returns its path."""
    budget = json.loads(json.dumps(summary))
    for program in budget['programs'].values():
        program.pop('compile_seconds')
    budget['config'] = pathlib.Path(config_file).stem
    budget['compiler'] = versions()
    FOLDER.mkdir(exist_ok=True)
    target = path(config_file, summary)
    write_atomically(target, json.dumps(_rounded(budget), indent=1) + '\n')
    return target


def versions() -> dict:
    """Returns the versions of the packages that compile."""
    return package_versions('jax', 'libtpu')


def _rounded(x):
    """Returns the numbers of a JSON value to six digits."""
    if isinstance(x, dict):
        return {k: _rounded(v) for k, v in x.items()}
    if isinstance(x, list):
        return [_rounded(v) for v in x]
    return float(f'{x:.6g}') if isinstance(x, float) else x


def load_all() -> dict[str, dict]:
    """Returns all budgets by the names of their files."""
    return {p.stem: json.loads(p.read_text()) for p in sorted(FOLDER.glob('*.json'))}


def differences(budget: dict, summary: dict) -> list[str]:
    """Returns what of a budget no longer holds, a line each.

    Figures that fell are among it, since a budget is what is known.
    """
    lines = []
    for name in sorted({*budget['programs'], *summary['programs']}):
        old = budget['programs'].get(name)
        new = summary['programs'].get(name)
        if old is None:
            lines.append(f'{name}: now compiles')
        elif new is None:
            lines.append(f'{name}: no longer compiles: {summary["refused"].get(name, "")}')
        else:
            lines += [f'{name}: {line}' for line in _differences_of_program(old, new)]
    return lines


def _differences_of_program(old: dict, new: dict) -> list[str]:
    """Returns what of one program's budget no longer holds, a line each."""
    lines = []

    # Figures, which may move by the tolerance.
    figures = {name: (old[name], new[name]) for name in _COMPARED}
    for kind in sorted({*old['collectives'], *new['collectives']}):
        figures[f'{kind} bytes'] = (_bytes_sent(old, kind), _bytes_sent(new, kind))
    for figure, (a, b) in figures.items():
        larger = max(abs(a), abs(b))
        if abs(b - a) <= TOLERANCE * larger or larger <= 1e-6:
            continue
        change = f' ({(b - a) / a:+.1%})' if a else ''
        lines.append(f'{figure} {a:.4g} -> {b:.4g}{change}')

    # What may not change at all.
    for field in ('fused_attention', 'square_buffers', 'kernels'):
        if old.get(field) != new.get(field):
            lines.append(f'{field} {old.get(field)} -> {new.get(field)}')
    unknown = [loop['loop'] for loop in new['loops'] if loop['how'] == 'unknown']
    if unknown:
        lines.append(f'a loop whose rounds are not known: {unknown[0]}')
    return lines


def _bytes_sent(program: dict, kind: str) -> float:
    """Returns the bytes that a device sends by collectives of one kind."""
    return program['collectives'].get(kind, {'bytes': 0.0})['bytes']


def table() -> str:
    """Returns the text of launch/aot/budgets/README.md."""
    budgets = load_all().values()
    compilers = sorted(
        {f'jax {b["compiler"]["jax"]}, libtpu {b["compiler"]["libtpu"]}' for b in budgets}
    )
    lines = [
        '# Budgets',
        '',
        *textwrap.wrap(_HEAD, 100, break_long_words=False, break_on_hyphens=False),
        '',
        '| ' + ' | '.join(_COLUMNS) + ' |',
        '|' + '---|' * len(_COLUMNS),
        *map(_row, budgets),
        '',
        f'Compiled with {"; ".join(compilers)}.',
        '',
    ]
    return '\n'.join(lines)


_HEAD = (
    'What each shipped config needs on the TPU slices that are recommended for it: compiled for '
    'them without having one. Generated by `python -m launch.aot.check_budgets --save` from the '
    'files beside it; `python -m launch.aot.check_budgets` compiles all again and compares. Memory '
    "is the compiler's count. **Times and MFU are predictions from the schedule, good to about 15 "
    '%; nothing ran on a TPU.** Bytes are what a device sends in a step.'
)
_COLUMNS = (
    'config',
    'slice',
    'mesh',
    'rows a device',
    'remat',
    'peak GiB',
    'of',
    'ms',
    'MFU',
    'executed / model FLOPs',
    'GB sent',
    'attention',
    'decode: ms a token',
)


def _row(budget: dict) -> str:
    """Returns the line of a budget in the table."""
    train = budget['programs']['train']
    decode = budget['programs'].get('decode')
    slices = f'{budget["slices"]} x ' if budget['slices'] > 1 else ''
    mesh = ' x '.join(f'{axis} {size}' for axis, size in train['mesh'].items() if size > 1)
    sent = sum(moved['bytes'] for moved in train['collectives'].values()) / 1e9
    cells = [
        f'`{budget["config"]}`',
        f'{slices}{budget["topology"]}',
        mesh or '1',
        train['rows_a_device'],
        train['remat'],
        f'{train["peak_bytes"] / _GIB:.2f}',
        f'{train["limit_bytes"] / _GIB:.2f}',
        f'{train["step_seconds"] * 1e3:.3g}',
        f'{train["mfu"]:.3f}',
        f'{train["executed_flops"] / train["model_flops"]:.2f}',
        f'{sent:.3g}',
        'fused' if train['fused_attention'] else 'reference',
        f'{decode["token_seconds"] * 1e3:.3g}' if decode else '',
    ]
    return '| ' + ' | '.join(map(str, cells)) + ' |'
