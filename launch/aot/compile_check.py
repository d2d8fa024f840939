"""Tells what an experiment would need and do on an absent TPU slice.

Its programs are compiled for the slice, and their schedule is replayed.

    python -m launch.aot.compile_check --config=configs/llama_1b.py --topology=v5e:4x4 --rows=4
    python -m launch.aot.compile_check --config=configs/llama_1b.py --topology=v5e:4x4 --fit

Needs the extra `tpu-compile` and no TPU. Times are predictions, good to about 15 %; memory is the
compiler's own count. All budgets that are kept are checked by `python -m launch.aot.check_budgets`.
"""

from absl import flags

from runtime import cli, config_flags, options

if __name__ == '__main__':  # above the imports that take seconds
    flags.DEFINE_string(
        'topology', 'v5e:4x4', 'The slice to compile for, for example v5e:4x4 or v5p:2x2x4'
    )
    options.whole('slices', 1, 'How many of them', 1, 2**12)
    options.whole(
        'rows',
        0,
        'Rows on each device in each microbatch; 0: as config.data.batch_size says',
        0,
        options.COUNT,
    )
    flags.DEFINE_list('programs', 'train,prefill,decode', 'Which programs, separated by commas')
    options.whole('batch', 16, 'Rows of prefill and decode', 1, options.COUNT)
    options.whole('context', 0, "Context of prefill and decode; 0: the model's", 0, 2**24)
    options.weights('How prefill and decode keep matrices, as in apps.generate')
    flags.DEFINE_bool(
        'fit',
        False,
        'Find the largest batch and the cheapest remat policy that fit, and rank meshes',
    )
    flags.DEFINE_bool('save', False, 'Keep the summary as a budget under launch/aot/budgets/')
    flags.DEFINE_bool('json', False, 'Print the summary as JSON')
    config_flags.define_flag()
    cli.parse_flags()

import json
import logging

from launch.aot import budgets, fit, programs, topologies
from runtime import field_checks
from runtime.errors import RunError

PROGRAMS = ('train', 'prefill', 'decode')
_GIB = topologies.GIB
_LOG = logging.getLogger('ordem')


def check(  # noqa: PLR0913  (each is a flag)
    config,
    topology: str,
    slices: int = 1,
    rows: int = 0,
    which: tuple = PROGRAMS,
    batch: int = 16,
    context: int = 0,
    weights: str = 'as_computed',
) -> dict:
    """Returns the summaries of an experiment's programs on a slice.

    One that does not fit is a line under 'refused'.
    """
    chip = topologies.chip(topology)
    devices = topologies.devices(topology, slices)
    summary = {
        'topology': topology,
        'slices': slices,
        'devices': len(devices),
        'programs': {},
        'refused': {},
    }
    if 'train' in which:
        summary['programs']['train'] = programs.train(config, chip, devices, slices, rows)

    # Generation runs on one chip.
    generations = [name for name in ('prefill', 'decode') if name in which]
    if generations:
        single = topologies.devices(f'{chip.name}:{"x".join("1" * chip.dims)}')[0]
        for name in generations:
            try:
                summary['programs'][name] = programs.generation(
                    config, chip, single, name, batch, context, weights
                )
            except programs.DoesNotFitError as error:
                summary['refused'][name] = str(error)
    return summary


def lines(summary: dict) -> list[str]:
    """Returns the summary as lines for a person."""
    chip = topologies.chip(summary['topology'])
    slices = f', {summary["slices"]} slices' if summary['slices'] > 1 else ''
    devices = f'{summary["devices"]} devices of {chip.limit / _GIB:.2f} GiB'
    out = [f'{summary["topology"]}{slices}: {devices}']
    for name, p in summary['programs'].items():
        own_lines = _train_lines(p) if name == 'train' else _generation_lines(name, p)
        out += ['', *own_lines, *_shared_lines(p)]
    if summary['refused']:
        out += ['', *summary['refused'].values()]
    return out


def _train_lines(p: dict) -> list[str]:
    """Returns what is said of the train step alone."""
    state = p['state_bytes']
    mesh = ' x '.join(f'{axis} {n}' for axis, n in p['mesh'].items() if n > 1) or 'one device'
    micro = f' in each of {p["accumulation"]} microbatches' if p['accumulation'] > 1 else ''
    fused = 'not fused'
    if p['fused_attention']:
        counts = [f'{kernel} x{count}' for kernel, count in p['kernels'].items()]
        fused = f'a fused kernel: {", ".join(counts)}'
    squares = 'not looked for'
    if p['square_buffers'] is not None:
        squares = ', '.join(p['square_buffers']) or 'none'
    return [
        f'train step (pretraining and post-training): {mesh}; {p["batch_size"]} rows of '
        f'{p["seq_len"]}, {p["rows_a_device"]} a device{micro}; remat {p["remat"]}',
        f'  on each device        parameters {state["parameters"] / _GIB:.3f} GiB, optimizer '
        f'{state["optimizer"] / _GIB:.3f} GiB',
        *(f'  {line}' for line in p['attention']),
        f'  attention is          {fused}',
        f'  [T,T] buffers         {squares}',
    ]


def _generation_lines(name: str, p: dict) -> list[str]:
    """Returns what is said of prefill or decode alone."""
    each = ''
    if 'token_seconds' in p:
        each = (
            f'; a token of every row in {p["token_seconds"] * 1e3:.2f} ms, '
            f'{p["token_bytes"] / 1e9:.2f} GB'
        )
    return [
        f'{name}: {p["batch"]} rows, context {p["context"]}, on one device{each}',
        f'  held                  weights {p["weight_bytes"] / _GIB:.3f} GiB, cache '
        f'{p["cache_bytes"] / _GIB:.3f} GiB, temporary {p["temporary_bytes"] / _GIB:.3f} GiB',
    ]


def _shared_lines(p: dict) -> list[str]:
    """Returns what is said of every program."""
    band = topologies.BAND
    bounds = ', '.join(f'{k} {v * 1e3:.1f}' for k, v in p['bounds'].items())
    rows = [
        f'  peak memory           {p["peak_bytes"] / _GIB:.2f} of {p["limit_bytes"] / _GIB:.2f} '
        'GiB',
        f'  FLOPs                 model {p["model_flops"]:.3e}, executed {p["executed_flops"]:.3e}',
        f'  predicted time        {p["step_seconds"] * 1e3:.1f} ms, within about {band:.0%} (not '
        f'measured); ms bound by: {bounds}',
        f'  predicted MFU         {p["mfu"]:.3f} ({p["mfu"] * (1 - band):.2f} to '
        f'{p["mfu"] * (1 + band):.2f})',
        f"  elementwise           {p['elementwise_seconds'] * 1e3:.1f} ms more by the compiler's "
        'own estimate of vector arithmetic, not counted',
    ]
    for kind, m in p['collectives'].items():
        hidden = 1 - m['exposed'] / m['seconds'] if m['seconds'] else 1.0
        rows.append(
            f'  {kind:<21} {m["count"]}, {m["bytes"] / 1e9:.3f} GB sent by each device, '
            f'{m["seconds"] * 1e3:.1f} ms on the links, {hidden:.0%} hidden'
        )
    for loop in p['loops']:
        rows.append(
            f'  loop                  {loop["trips"]} rounds ({loop["how"]}): {loop["loop"]}'
        )
    if p['kernels_without_cost']:
        rows.append(
            f'  kernels without cost  {p["kernels_without_cost"]}, counted by their memory alone'
        )
    return [*rows, f'  compiled in           {p["compile_seconds"]:.1f} s']


def main() -> None:
    flag = flags.FLAGS
    config = config_flags.get()
    field_checks.check(config)
    unknown = [p for p in flag.programs if p not in PROGRAMS]
    if unknown:
        raise RunError(f'--programs={unknown[0]}: expected some of {", ".join(PROGRAMS)}')
    if flag.fit:
        ranking = fit.fit(
            config, flag.topology, flag.slices, progress=lambda line: _LOG.info('%s', line)
        )
        print(json.dumps(ranking, indent=1) if flag.json else '\n'.join(fit.lines(ranking)))
        return
    summary = check(
        config,
        flag.topology,
        flag.slices,
        flag.rows,
        tuple(flag.programs),
        flag.batch,
        flag.context,
        flag.weights,
    )
    print(json.dumps(summary, indent=1) if flag.json else '\n'.join(lines(summary)))
    if flag.save:
        print(f'saved: {budgets.save(config_flags.file(), summary)}')
    if not summary['programs']:
        raise RunError('nothing fits: ' + '; '.join(summary['refused'].values()))


if __name__ == '__main__':
    cli.run(main)
