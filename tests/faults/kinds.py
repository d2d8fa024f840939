"""The kinds of faults: what is done to a run, how its process must end, and from where the next
must go on.

Each function makes one case in a folder of its own and returns what is logged of it; `wrong` in it
says what was not as it must be."""

import dataclasses
import pathlib
import random
import shutil
import signal
import subprocess
import time

from tests.faults import lives
from tests.faults.lives import EVERY, Experiment

_SAVE_EVENTS = 60  # file operations of one save, about


@dataclasses.dataclass
class Case:
    """One run that is harmed, with the state that it must have at the end all the same."""

    experiment: Experiment
    folder: pathlib.Path
    rng: random.Random
    wanted: dict
    fork: bool = True  # whether its processes are, or are started as by a person

    def __post_init__(self):
        self.run = self.folder / 'run'
        self.wrong: list[str] = []

    def must(self, holds: bool, else_: str) -> None:
        if not holds:
            self.wrong.append(else_)

    def live(
        self,
        fault: dict | None = None,
        more=(),
        after: float | None = None,
        number: int = signal.SIGKILL,
    ) -> subprocess.CompletedProcess:
        """One process, which must go on from the newest whole checkpoint that it finds."""
        newest = max(lives.whole_steps(self.run), default=0)
        command = self.experiment.command(self.run, fault, more)
        found = lives.live(command, after, number, fork=self.fork)
        if 'goes on from step' in found.stdout:
            self.must(
                lives.resumed_from(found.stdout) == newest,
                f'went on from {lives.resumed_from(found.stdout)}, not {newest}',
            )
        return found

    def end(self, more=()) -> None:
        """The run is trained to its end, and compared with the one to which nothing happened."""
        newest, found = max(lives.whole_steps(self.run), default=0), self.live(more=more)
        self.must(found.returncode == 0, f'exit code {found.returncode}: {_last(found)}')
        if not found.returncode:
            self.must(newest == 0 or 'goes on from step' in found.stdout, 'began anew')
            difference = lives.differs(lives.state(self.run), self.wanted)
            self.must(not difference, f'another result: {difference}')

    def prepared(self, half: pathlib.Path) -> None:
        """A run in the middle, to harm: a copy of `half`."""
        shutil.copytree(half, self.run)


def _last(found) -> str:
    lines = [line for line in found.stdout.splitlines() if 'Gloo' not in line]
    return lines[-1][:300] if lines else ''


def kills(case: Case, count: int, in_saves: bool) -> list[dict]:
    """SIGKILL again and again: at any moment since the process began, at any after a step, or at
    any file operation of a save."""
    steps, rows, life = case.experiment.steps, [], 0
    while len(rows) < count:
        newest = max(lives.whole_steps(case.run), default=0)
        if newest >= steps:
            _finish(case, rows)
            shutil.rmtree(case.run)
            newest = 0
        life += 1
        after = None
        if in_saves:
            fault = {'save_event': case.rng.randint(1, 2 * _SAVE_EVENTS)}
        elif case.rng.random() < 0.3:
            fault, after = None, case.rng.uniform(0.5, 8)
        else:
            fault = {
                'line': case.rng.randint(newest + 1, min(newest + EVERY + 2, steps)),
                'delay': case.rng.choice((0, case.rng.uniform(0, 0.3))),
            }
        found = case.live(fault, after=after)
        if found.returncode in (-9, 137):
            temporary = (
                [p.name for p in (case.run / 'checkpoints').glob('*') if not p.name.isdigit()]
                if (case.run / 'checkpoints').exists()
                else []
            )
            rows.append(
                dict(
                    kind='kill in a save' if in_saves else 'kill',
                    experiment=case.experiment.name,
                    life=life,
                    fault=fault,
                    after=after,
                    newest_before=newest,
                    newest_after=max(lives.whole_steps(case.run), default=0),
                    half_written=temporary,
                )
            )
            case.must(rows[-1]['newest_after'] >= newest, f'checkpoint {newest} is gone')
        else:
            case.must(found.returncode == 0, f'exit code {found.returncode}: {_last(found)}')
        if case.wrong:
            break
    _finish(case, rows)
    return rows


def _finish(case: Case, rows: list[dict]) -> None:
    """What is wrong with a run is noted in the last of its rows."""
    if not case.wrong:
        case.end()
    if rows:
        rows[-1]['wrong'] = list(case.wrong)


def signals(case: Case, number: int) -> dict:
    """SIGTERM or SIGINT once a step was taken, to one process where there are several: the run is
    saved at once, and the exit code says who asked."""
    fault = {
        'line': case.rng.randint(1, case.experiment.steps - 5),
        'signal': int(number),
        'delay': case.rng.choice((0, case.rng.uniform(0, 0.05))),
    }
    if case.experiment.processes > 1:
        fault['rank'] = 0
    found = case.live(fault)
    if found.returncode:  # else it had ended before the signal came
        case.must(found.returncode == 128 + number, f'exit code {found.returncode}: {_last(found)}')
        case.must('asked, and saved' in found.stdout, 'does not say that it saved')
    newest = max(lives.whole_steps(case.run), default=0)
    case.must(newest >= fault['line'], f'saved step {newest}, the signal came at {fault["line"]}')
    case.end()
    return dict(
        kind=f'{signal.Signals(number).name}{" to one of a group" if "rank" in fault else ""}',
        experiment=case.experiment.name,
        fault=fault,
        code=found.returncode,
        newest_after=newest,
        wrong=case.wrong,
    )


def full_disk(case: Case) -> dict:
    """A disk that another program fills up: the run ends with its own code and goes on when there
    is room."""
    disk = case.folder / 'disk'
    disk.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', disk], check=True)
    try:
        case.run = disk / 'run'
        fault = {
            'line': case.rng.randint(1, case.experiment.steps - 5),
            'fill': [str(disk / 'ballast'), case.rng.randrange(20_000)],
        }
        found = case.live(fault)
        before = lives.whole_steps(case.run)
        case.must(found.returncode == 74, f'exit code {found.returncode}: {_last(found)}')
        case.must(
            'the disk is full' in _last(found) and 'Traceback' not in found.stdout,
            f'not told in a line: {_last(found)}',
        )
        (disk / 'ballast').unlink(missing_ok=True)
        case.end()
    finally:
        subprocess.run(['umount', '-l', disk], check=True)
    return dict(
        kind='full disk',
        experiment=case.experiment.name,
        fault=fault,
        code=found.returncode,
        newest_after=max(before, default=0),
        wrong=case.wrong,
    )


def damage(case: Case, half: pathlib.Path, target: str) -> dict:
    """One file of the newest checkpoint, the token store, the tokenizer, or the config is
    truncated, changed in one bit, emptied, or deleted."""
    case.prepared(half)
    newest, more = max(lives.whole_steps(case.run)), ()
    cache = case.folder / 'cache'
    if target == 'store':
        shutil.copytree(case.folder.parent / 'cache', cache)
        more = (f'--config.data.cache={cache}',)
    key = 'store-*/*' if target == 'store' else ''
    files = {
        'checkpoint': (case.run / 'checkpoints' / str(newest)).rglob('*'),
        'tokenizer': [case.run / 'tokenizer.model'],
        'config': [case.run / 'config.json'],
    }.get(target) or [p for p in cache.glob(key) if p.parent.name == _store_of(case, cache)]
    if case.experiment.processes > 1:  # what process 1 alone reads
        files = (case.run / 'checkpoints' / str(newest)).rglob('ocdbt.process_1/d/*')
    file = case.rng.choice(sorted(p for p in files if p.is_file() and p.stat().st_size))
    how = case.rng.choice(('truncated', 'changed', 'emptied', 'deleted'))
    content = bytearray(file.read_bytes())
    place = case.rng.randrange(len(content))
    if how == 'deleted':
        file.unlink()
    else:
        content[place] ^= 1 << case.rng.randrange(8)
        file.write_bytes({'truncated': content[:place], 'emptied': b'', 'changed': content}[how])
    found = lives.live(case.experiment.command(case.run, more=more))
    text = found.stdout
    if (
        case.experiment.processes > 1 and found.returncode == 75
    ):  # only one of them reads what is damaged: it says so, and the next start passes it over
        case.must('moved to' in found.stdout, 'ended without a word of the damage')
        found = lives.live(case.experiment.command(case.run, more=more))
        text += found.stdout
    said = [
        line
        for line in text.splitlines()
        if any(
            w in line
            for w in (
                'passed over',
                'damaged',
                'missing',
                'built again',
                'written anew',
                'no tokenizer',
            )
        )
    ]
    case.must(found.returncode == 0, f'exit code {found.returncode}: {_last(found)}')
    case.must('goes on from step' in found.stdout, 'began anew')
    back = lives.resumed_from(found.stdout)
    if target == 'checkpoint':
        case.must(back == newest or bool(said), 'passed a checkpoint over without a word')
    else:
        case.must(back == newest, f'went on from {back}, not {newest}')
        case.must(bool(said), 'mended without a word')
    if not found.returncode:
        difference = lives.differs(lives.state(case.run), case.wanted)
        case.must(not difference, f'another result: {difference}')
    return dict(
        kind=f'damaged {target}{" of a group" * (case.experiment.processes > 1)}',
        experiment=case.experiment.name,
        file=str(file.relative_to(case.folder)),
        how=how,
        byte=place,
        went_on_from=back,
        said=said[:2],
        wrong=case.wrong,
    )


def _store_of(case: Case, cache: pathlib.Path) -> str:
    """The store of this experiment's data, by its hash."""
    import json

    wanted = json.loads((case.run / 'lineage.json').read_text())['data_hash']
    return next(
        p.parent.name
        for p in cache.glob('store-*/manifest.json')
        if json.loads(p.read_text())['hash'] == wanted
    )


def lost_process(case: Case, stops: bool) -> dict:
    """One process of a group is killed, or stopped so that it says nothing: the others end in
    bounded time."""
    fault = {
        'line': case.rng.randint(1, case.experiment.steps - 5),
        'rank': case.rng.choice((0, 1)),
        'signal': int(signal.SIGSTOP if stops else signal.SIGKILL),
    }
    if not stops and case.rng.random() < 0.5:
        fault = {
            'save_event': case.rng.randint(1, _SAVE_EVENTS),
            'rank': 0,
        }  # which makes most of the files
    began = time.monotonic()
    found = case.live(fault)
    seconds = time.monotonic() - began
    case.must(found.returncode != 0, 'ended as if nothing had happened')
    case.end()
    return dict(
        kind='stopped process of a group' if stops else 'killed process of a group',
        experiment=case.experiment.name,
        fault=fault,
        code=found.returncode,
        seconds=round(seconds, 1),
        wrong=case.wrong,
    )


def not_finite(case: Case, mode: str, poisoned: dict | None) -> dict:
    """A batch whose loss is NaN. `stop`: the run ends and tells which; mended, it goes on. Else: as
    `poisoned`, which was not killed on the way."""
    steps = case.experiment.steps
    number = case.rng.randrange(6, steps - 3) if poisoned is None else poisoned['number']
    more = (f'--config.train.on_spike={mode}',)
    fault = {'nan': [number]}
    if poisoned is None:
        found = case.live(fault, more)
        case.must(found.returncode == 2, f'exit code {found.returncode}: {_last(found)}')
        case.must(
            'loss is nan' in _last(found) and f'batch({number})' in _last(found), _last(found)
        )
        case.end()
    else:
        found = case.live(fault | {'line': case.rng.randint(number + 2, steps - 1)}, more)
        case.must(found.returncode == -9, f'exit code {found.returncode}: {_last(found)}')
        found = case.live(fault, more)
        case.must(found.returncode == 0, f'exit code {found.returncode}: {_last(found)}')
        difference = lives.differs(lives.state(case.run), poisoned['state'])
        case.must(not difference, f'another result: {difference}')
    return dict(
        kind=f'NaN, {mode}',
        experiment=case.experiment.name,
        fault=fault,
        code=found.returncode,
        wrong=case.wrong,
    )


def hang(case: Case) -> dict:
    """The main thread, or the one that makes batches, stops for ever: the watchdog ends the process
    and shows where it stands."""
    step = case.rng.randint(2, case.experiment.steps - 5)
    fault = case.rng.choice(({'line': step, 'hang': True}, {'batch': step}))
    found = case.live(fault, ('--config.log.stall=8',))
    case.must(found.returncode == 76, f'exit code {found.returncode}: {_last(found)}')
    case.must(
        'stop_for_ever' in found.stdout and 'no progress for' in found.stdout,
        'does not say where it stands',
    )
    case.end()
    return dict(
        kind='hang',
        experiment=case.experiment.name,
        fault=fault,
        code=found.returncode,
        wrong=case.wrong,
    )
