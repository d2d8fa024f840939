"""metrics.jsonl, trackers beside it, progress, and a few sums."""

import hashlib
import json
import logging
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
from etils import epath

from data import safe_read
from data.progress import track
from model.lora import FACTORS
from runtime import processes, trackers
from runtime.run_dir import Run, write_atomically

_LOG = logging.getLogger('ordem')

# bf16 peak of one device in FLOP/s, by `device_kind`; a device not here has no known peak, and MFU
# is n/a.
PEAKS = {
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5p': 459e12,
    'TPU v5': 459e12,
    'TPU v6 lite': 918e12,
    'TPU v6e': 918e12,
    'TPU7x': 1153e12,
    'NVIDIA A100-SXM4-40GB': 312e12,
    'NVIDIA A100-SXM4-80GB': 312e12,
    'NVIDIA H100 80GB HBM3': 989e12,
    'NVIDIA H200': 989e12,
}


def flops_per_token(params, config, seq_len: int, logits: bool = True) -> float:
    """Returns the FLOPs of one token, forward and backward.

    They are 6 a parameter in a matmul, and 6 T H d a layer for causal attention (both matmuls, half
    of the square). The embedding lookup counts only where its table is the output too (PaLM, 2022,
    appendix B). Beside factors of adapters a matrix has no gradient, which leaves 4.

    Args:
      params: the parameters, or their shapes.
      config: the architecture (model.config.ModelConfig).
      seq_len: T, tokens of a row.
      logits: whether they are computed.
    """
    in_matmuls = 0
    in_factors = 0
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key in FACTORS:
            in_factors += x.size
        is_kernel = path[-1].key == 'kernel' and (logits or path[0].key != 'output')
        is_tied_output = path[-1].key == 'embedding' and config.tied and logits
        if is_kernel or is_tied_output:
            in_matmuls += x.size
    attention = 0
    if config.mixing == 'attention':
        attention = config.num_layers * seq_len * config.num_heads * config.head_dim
    per_weight = 4.0 if in_factors else 6.0
    return per_weight * in_matmuls + 6.0 * in_factors + 6.0 * attention


def mfu(flops_per_second: float) -> float | None:
    """Returns the share of the peak of all devices, None where the peak is not known."""
    device = jax.devices()[0]
    peak = PEAKS.get(device.device_kind)
    return None if peak is None else flops_per_second / (peak * jax.device_count())


def bits_per_byte(nats_per_token: float, tokens: int, num_bytes: int) -> float:
    """Returns the bits that a byte of text takes.

    `tokens`: those that are predicted in the text of `num_bytes`.
    """
    return nats_per_token * tokens / (num_bytes * math.log(2))


class Metrics:
    """Writes metrics.jsonl, one line a call, and gives it to the trackers (`runtime/trackers.py`).

    Of several processes only the first writes. An object store (gs://) cannot append: there files
    are written on this machine and copied every minute and at the end.

    Args:
      run: whose metrics they are.
      start: the step that a resumed run goes on from: lines after it are cut off first.
      total: steps of the whole run.
      config: the `log` part of an experiment.
      seed_line: the facts of the run, with 'flops_per_token' and 'tokens_per_step'.

    Attributes:
      folder: of this machine, that is the run's or is copied there.
    """

    def __init__(self, run: Run, start: int, total: int, config, seed_line: dict):
        writes = processes.is_main_process()
        self.store = run.path if writes and '://' in os.fspath(run.path) else None
        self.folder = epath.Path(tempfile.mkdtemp()) if self.store else run.path
        self.path = self.folder / 'metrics.jsonl'
        before = run.path / 'metrics.jsonl'
        lines: list[str] = []
        if writes and before.exists():
            lines = [
                json.dumps(line) + '\n'
                for line in safe_read.objects(before)
                if isinstance(line.get('step'), int) and line['step'] <= start
            ]
        if writes:
            write_atomically(self.path, ''.join(lines))
        self.file = open(self.path if writes else os.devnull, 'a', buffering=1)
        self.trackers: list[trackers.Tracker] = []
        self.failed: set[str] = set()  # trackers that could not write, each told of once
        if writes:
            self._bring_database()
            self.trackers = trackers.open_trackers(
                config, self.folder, run.path.name, _identity(run), start, seed_line
            )
        self.progress = track(
            None,
            total=total,
            unit='steps',
            show=config.progress and writes,
            initial=start,
            leave=True,
        )
        self.flops = seed_line['flops_per_token']
        self.tokens_per_step = seed_line['tokens_per_step']
        self.last = (time.perf_counter(), start)
        self.copied = time.monotonic()

    def train(self, step: int, values: dict, learning_rate: float) -> None:
        """Writes what was measured since the last call, with the speed, and shows it."""
        now = time.perf_counter()
        speed = (step - self.last[1]) * self.tokens_per_step / max(now - self.last[0], 1e-9)
        self.last = (now, step)
        share = mfu(speed * self.flops)
        self.write(
            step,
            {**values, 'learning_rate': learning_rate, 'tokens_per_second': speed, 'mfu': share},
        )
        self.progress.set_postfix_str(
            f'loss {values["loss"]:.3f}, {speed:,.0f} tokens/s, '
            f'MFU {"n/a" if share is None else f"{share:.1%}"}'
        )

    def pause(self, seconds: float) -> None:
        """Leaves evaluation and checkpoints out of the speed."""
        self.last = (self.last[0] + seconds, self.last[1])

    def write(self, step: int, values: dict) -> None:
        """Writes one line."""
        self.file.write(json.dumps({'step': step, **values}) + '\n')
        for tracker in self.trackers:
            self._try(tracker, tracker.write, step, values)
        if time.monotonic() - self.copied > 60:
            self.copy()

    def _try(self, tracker: trackers.Tracker, call: Callable, *args) -> None:
        """Calls a tracker: one that fails, as when its server is away, does not end the run."""
        try:
            call(*args)
        except Exception as error:
            if tracker.name not in self.failed:
                _LOG.warning(
                    '%s takes no measurements (%s: %s); metrics.jsonl has them all',
                    tracker.name,
                    type(error).__name__,
                    str(error).partition('\n')[0],
                )
            self.failed.add(tracker.name)

    def _bring_database(self) -> None:
        """Brings the one file that a resumed run adds to from the object store."""
        if self.store and (self.store / trackers.MLFLOW_DB).exists():
            content = (self.store / trackers.MLFLOW_DB).read_bytes()
            (self.folder / trackers.MLFLOW_DB).write_bytes(content)

    def copy(self) -> bool:
        """Copies the files to the object store, if there is one; returns whether they are there.

        It is called every minute, and with each checkpoint, after whose step a run goes on.
        """
        self.copied = time.monotonic()
        if not self.store:
            return True
        for tracker in self.trackers:
            self._try(tracker, tracker.flush)
        try:
            for path in sorted(pathlib.Path(self.folder).rglob('*')):
                if path.is_file() and not path.is_symlink():
                    there = self.store / path.relative_to(self.folder).as_posix()
                    there.parent.mkdir(parents=True, exist_ok=True)
                    there.write_bytes(path.read_bytes())
        except Exception as error:  # a store that fails for a while is no reason to stop training
            _LOG.warning(
                '%s: metrics were not copied (%s: %s); they lie in %s',
                self.store,
                type(error).__name__,
                error,
                self.folder,
            )
            return False
        return True

    def close(self) -> None:
        """Closes the files; in an object store they are whole then."""
        self.progress.close()
        self.file.close()
        for tracker in self.trackers:
            self._try(tracker, tracker.close)
        if self.store and self.copy():  # else what could not be copied stays on this machine
            self.folder.rmtree()


def _identity(run: Run) -> str:
    """Returns what tells a run from all others, whenever it goes on: a hash of its lineage."""
    known = run.lineage_path.read_bytes() if run.lineage_path.exists() else b''
    return hashlib.sha256(known + os.fspath(run.path).encode()).hexdigest()[:16]


def read(run: Run) -> list[dict]:
    """Returns the lines of metrics.jsonl."""
    return list(safe_read.objects(run.path / 'metrics.jsonl'))
