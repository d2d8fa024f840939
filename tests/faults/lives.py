"""What the faults are done to: small experiments, their processes, and what a run must be at the
end."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

from runtime import metrics, run_dir
from runtime.run_dir import Run
from tests import forked
from tests.conftest import _tiny

STEPS = 24  # of a run of the log; the tests take fewer
EVERY = 4  # steps between checkpoints
_CLOCK = ('tokens_per_second', 'mfu')


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config in a file, with the module that runs it, and how many processes."""

    name: str
    module: str
    file: pathlib.Path
    processes: int = 1
    steps: int = STEPS

    def command(self, run, fault: dict | None = None, more=()) -> list[str]:
        group = (
            []
            if self.processes == 1
            else [
                sys.executable,
                '-m',
                'launch.local',
                f'--processes={self.processes}',
                '--devices=2',
                '--',
            ]
        )
        command = [
            sys.executable,
            '-m',
            *(['tests.faults.victim', json.dumps(fault)] if fault else []),
            self.module,
        ]
        return [
            *group,
            *command,
            f'--config={self.file}',
            f'--run={run}',
            *(['--heartbeat_timeout=10', '--join_timeout=30'] if self.processes > 1 else []),
            *more,
        ]


def save(config, file: pathlib.Path) -> pathlib.Path:
    """A config as a file that --config takes."""
    file.write_text(
        f'import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n    return '
        f'ConfigDict(json.loads({config.to_json()!r}))\n'
    )
    return file


def experiments(folder: pathlib.Path, steps: int = STEPS) -> dict[str, Experiment]:
    """Between them: both phases, both optimizers, microbatches, dropout, each source, both
    packings, each mesh axis, several layers and layers in a scan, several processes.

    The first is the lightest: most faults are tried on it."""
    cache = str(folder / 'cache')
    texts = folder / 'texts'
    texts.mkdir(parents=True, exist_ok=True)
    lines = [f'line {i}: the {i * i}th of {i % 7} words' for i in range(400)]
    (texts / 'a.txt').write_text('\n'.join(lines))
    (texts / 'b.jsonl').write_text(''.join(json.dumps({'text': line * 3}) + '\n' for line in lines))
    found = {}

    def add(name, module='train.pretrain', processes=1, **fields):
        c = _tiny(cache)
        c.train.steps = steps
        c.model.num_layers = 1
        c.checkpoint.every, c.eval.every, c.eval.batches = EVERY, 2 * EVERY, 1
        c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
        found[name] = Experiment(name, module, save(c, folder / f'{name}.py'), processes, steps)

    add('atlas', model__dropout=0.1, mesh__fsdp=4)
    add(
        'muon',
        model__num_layers=2,
        optimizer__kind='muon',
        optimizer__weight_decay=0.1,
        train__accumulation=2,
        model__dropout=0.1,
        mesh__data=2,
        mesh__fsdp=2,
        mesh__tensor=2,
        data__source='pydoc',
        data__pydoc__modules=6,
    )
    add(
        'files',
        tokenizer__vocab_size=320,
        data__source='files',
        data__files__paths=str(texts),
        data__packing='whole',
        data__split='documents',
        data__validation=0.1,
        data__seq_len=64,
        model__num_layers=2,
        model__scan_layers=True,
        model__dropout=0.1,
        mesh__data=4,
        mesh__context=2,
    )
    add(
        'answers',
        'train.posttrain',
        parent=str(folder / 'straight' / 'atlas'),
        data__packing='whole',
        data__validation=0.1,
        data__atlas__part='answers',
        model__dropout=0.1,
        train__accumulation=2,
        mesh__data=1,
        mesh__fsdp=4,
        mesh__tensor=2,
        sample__every=2 * EVERY,
        sample__prompt='A',
        sample__tokens=4,
    )
    add(
        'group', processes=2, mesh__data=1, mesh__fsdp=4, model__dropout=0.1
    )  # each process reads its part of each array
    return found


def untouched(
    folder: pathlib.Path, names, half=(), steps: int = STEPS
) -> tuple[dict[str, Experiment], dict[str, dict]]:
    """The experiments of these names, run in `straight/` with nothing done to them (and cut back
    to two thirds of their steps in `half/`), and how they ended.

    They are started as a person does it, with a seed of hash() of their own: what is computed by
    forked processes must not depend on it."""
    made = experiments(folder, steps)
    for name in names:
        run = folder / 'straight' / name
        more = ('--config.checkpoint.keep_last=5',) if name in half else ()
        found = live(made[name].command(run, more=more), fork=False)
        if found.returncode:
            raise RuntimeError(f'a run that nothing is done to failed:\n{found.stdout}')
        if name in half:
            cut_back(run, folder / 'half' / name, 2 * steps // 3)
    return made, {name: state(folder / 'straight' / name) for name in names}


def cut_back(whole: pathlib.Path, half: pathlib.Path, step: int) -> None:
    """Copies a run as it was after `step` steps: without later checkpoints and metrics."""
    shutil.copytree(whole, half)
    for later in whole_steps(half):
        if later > step:
            shutil.rmtree(half / 'checkpoints' / str(later))
    lines = (half / 'metrics.jsonl').read_text().splitlines(keepends=True)
    lines = [line for line in lines if json.loads(line)['step'] <= step]
    (half / 'metrics.jsonl').write_text(''.join(lines))


def live(
    command: list[str],
    after: float | None = None,
    number: int = signal.SIGKILL,
    seconds: float = 600,
    fork: bool = True,
) -> subprocess.CompletedProcess:
    """Runs a process to its end, or sends it the signal `number` once it has lived `after` seconds.
    Its stdout and stderr are one text.

    `fork`: whether it is forked from one that has imported, as are those that it starts. One that
    is to be ended at any moment is not: it may be one at which it imports."""
    make = forked.Popen if fork and after is None else subprocess.Popen
    with make(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        start_new_session=True,
    ) as process:
        try:
            text = process.communicate(timeout=seconds if after is None else after)[0]
        except subprocess.TimeoutExpired:
            if after is None:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            process.send_signal(number)
            text = process.communicate(timeout=seconds)[0]
    return subprocess.CompletedProcess(command, process.returncode, text)


def whole_steps(run: pathlib.Path) -> list[int]:
    folder = run / 'checkpoints'
    return (
        sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []
    )


def resumed_from(text: str) -> int:
    """The step that a process said it goes on from; 0 where it began anew."""
    found = re.search(r'goes on from step (\d+)', text)
    return int(found[1]) if found else 0


def state(run: pathlib.Path) -> dict:
    """What a finished run is: the checksums of every array of its last checkpoint, PRNG and
    optimizer included, and its metrics without the clock."""
    last = whole_steps(run)[-1]
    arrays = json.loads((run / 'checkpoints' / str(last) / 'meta' / 'metadata').read_text())[
        'arrays'
    ]
    lines = [
        {k: v for k, v in line.items() if k not in _CLOCK}
        for line in metrics.read(Run.parse(str(run)))
    ]
    return dict(
        step=last,
        arrays=arrays,
        lines=lines,
        data=run_dir.Run.parse(str(run)).lineage()['data_hash'],
    )


def differs(found: dict, wanted: dict) -> str:
    """'' or where two states differ first."""
    for name, value in wanted['arrays'].items():
        if found['arrays'].get(name) != value:
            return f'array {name} at step {found["step"]}'
    if found['lines'] != wanted['lines']:
        at = next(
            (i for i, (a, b) in enumerate(zip(found['lines'], wanted['lines'])) if a != b),
            min(len(found['lines']), len(wanted['lines'])),
        )
        return f'line {at + 1} of {len(found["lines"])} in metrics.jsonl'
    return '' if found == wanted else 'step or data'
