"""Facts of a run directory: its files against their hashes, its lineage, parameters and batches.

Nothing here needs the accelerator, trains, or writes into a run.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from data import batches, tokenizer as tokenizers
from data.objectives import get_objective
from data.records import DataError
from data.store import TokenStore
from model import config as model_config, lora
from model.sharding import spec
from model.transformer import Transformer
from runtime import checkpoint, models, run_dir
from runtime.errors import ErrorCollector, RunError
from runtime.run_dir import Run

OK = 'ok'


@dataclasses.dataclass(frozen=True)
class Array:
    """Facts of an array of a checkpoint."""

    shape: tuple[int, ...]
    dtype: np.dtype
    nbytes: int
    norm: float


@dataclasses.dataclass
class Examined:
    """A run whose files were checked. A part that is not whole is None.

    checks: for each part OK, or what is to be said of it.
    damage: what is damaged.
    steps: those of all checkpoints that are there.
    arrays: whole ones of the newest checkpoint that was read.
    """

    run: Run
    checks: dict[str, str]
    damage: list[str]
    lineage: dict | None = None
    config: ConfigDict | None = None
    tokenizer: tokenizers.Tokenizer | None = None
    data: TokenStore | None = None
    rollbacks: list[dict] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)
    arrays: dict[str, Array] = dataclasses.field(default_factory=dict)

    def check(self, name: str, read: Callable[[], Any]) -> Any:
        """Returns read(), or None where it finds something damaged."""
        errors = ErrorCollector()
        value = errors.check(read)
        self.checks[name] = '; '.join(errors.messages) or OK
        self.damage += errors.messages
        return value


def examine(run: Run) -> Examined:
    """Checks the files of a run against the hashes that were written with them.

    They are config, tokenizer, token store and checkpoints: that of `run.step`, or all.
    """
    e = Examined(run, {}, [])
    e.lineage = e.check('lineage.json', lambda: _lineage(run))
    if e.lineage is None:
        for name in ('config.json', run.tokenizer_path.name):
            e.checks[name] = 'not checked: its hash is in lineage.json'
    else:
        e.config = e.check('config.json', run.config)
        e.tokenizer = e.check(run.tokenizer_path.name, run.tokenizer)
    if e.config is None or e.tokenizer is None or e.lineage is None:
        e.checks['token store'] = 'not looked for, since what names it is damaged'
    else:
        e.data = e.check('token store', lambda: _store(e))
        if e.data is None and e.checks['token store'] == OK:
            e.checks['token store'] = (
                f'not in {e.config.data.cache} (config.data.cache): not checked'
            )
    if e.config is not None and e.config.lora.rank:
        e.check("parent's weights", lambda: models.open_base(run))
    e.rollbacks = e.check('rollbacks.json', run.rollbacks) or []
    reader = checkpoint.Checkpoints(run)
    e.steps = reader.steps()
    for step in e.steps if run.step is None else [run.step]:
        _check_checkpoint(e, reader, step)
    reader.close()
    return e


def _check_checkpoint(e: Examined, reader: checkpoint.Checkpoints, step: int) -> None:
    """Reads all arrays of a checkpoint and compares them with their checksums."""
    name = f'checkpoint {step}'
    if step not in e.steps:
        e.checks[name] = f'not there; there are {", ".join(map(str, e.steps)) or "none"}'
        return
    arrays: dict[str, Array] = {}
    paths_by_fault: dict[str, list[str]] = {}
    for path, x, fault in reader.read(step):
        if fault:
            paths_by_fault.setdefault(fault, []).append(path)
        else:
            norm = float(np.linalg.norm(np.asarray(x).astype(np.float32)))
            arrays[path] = Array(x.shape, x.dtype, x.nbytes, norm)

    if paths_by_fault and not (e.run.checkpoints / str(step)).exists():
        # The run is training, and keeps newer ones.
        e.checks[name] = 'was removed while it was read'
        return
    faults = [
        f'{checkpoint.summarize_paths(paths)} {fault}' for fault, paths in paths_by_fault.items()
    ]
    e.checks[name] = '; '.join(faults) or OK
    e.damage += [f'{e.run.path}@{step}: {fault}' for fault in faults]
    e.arrays = arrays or e.arrays


def _lineage(run: Run) -> dict:
    """Returns lineage.json. Raises RunError where its parent is not what is written there."""
    lineage = run.lineage()
    parent = lineage.get('parent')
    if parent is not None and not (
        isinstance(parent, dict)
        and isinstance(parent.get('run'), str)
        and isinstance(parent.get('step'), int)
    ):
        raise RunError(
            f'{run.path / "lineage.json"}: damaged (the parent is {parent!r}, expected run and '
            f'step)'
        )
    return lineage


def _store(e: Examined) -> TokenStore | None:
    """Returns the token store of a run, None where it is not in the cache.

    Raises RunError where it is another than the run was started with.
    """
    try:
        store_class = get_objective(e.config.train.objective).store_class
        store_class.path_of(e.config.data, e.tokenizer)
    except DataError:
        # The text is somewhere else: then nothing of it can be checked, and nothing is damaged.
        return None
    data = store_class.find(e.config.data, e.tokenizer, e.lineage['data_hash'])
    if data is not None and data.hash != e.lineage['data_hash']:
        raise RunError(
            f'{data.path}: data_hash is {data.hash[:12]}, the run was started with '
            f'{e.lineage["data_hash"][:12]}'
        )
    return data


def ancestors(e: Examined) -> list[Examined]:
    """Returns the run's parent, its parent and so on, each at the step that its child began from.

    One that is not there ends the list, with the reason as its only check.
    """
    ancestors: list[Examined] = []
    child = e
    seen = {str(e.run.path)}
    while child.lineage and child.lineage.get('parent'):
        parent = child.lineage['parent']
        try:
            run = Run.at(parent['run'], parent['step'])
            if str(run.path) in seen:
                raise RunError(
                    f'{run.path}: its own ancestor: lineage.json is not what was written'
                )
        except RunError as error:
            gone = Run(run_dir.epath.Path(parent['run']), parent['step'])
            return [*ancestors, Examined(gone, {'run': f'moved or deleted ({error})'}, [])]
        seen.add(str(run.path))
        child = examine(run)
        ancestors.append(child)
    return ancestors


def read_metrics(run: Run) -> dict:
    """Returns a summary of metrics.jsonl.

    It is how many lines it has, how many more are no lines of metrics, and the last losses.
    """
    path = run.path / 'metrics.jsonl'
    text = path.read_bytes().decode(errors='replace') if path.exists() else ''
    records = []
    unreadable = 0
    for line in text.splitlines():
        try:
            record = json.loads(line)
            if isinstance(record['step'], int):
                records.append(record)
        except (ValueError, KeyError, TypeError):
            unreadable += 1
    last = {}
    for record in records:
        for name in ('loss', 'validation_nats', 'validation_bits_per_byte'):
            if name in record:
                last[name] = record[name]
                last[f'{name}_step'] = record['step']
    return {'lines': len(records), 'unreadable': unreadable, **last}


def parameters(e: Examined) -> list[dict]:
    """Returns the facts of each parameter.

    They are path, shape, dtype, logical axes, the axes of the mesh that may cut it (None: not cut),
    and norm (None: no checkpoint has it whole).
    """
    boxes: dict[str, Any] = {}
    mesh = None
    if e.config is not None and e.tokenizer is not None:
        architecture = model_config.resolve(
            e.config.model, e.tokenizer.vocab_size, e.config.data.seq_len
        )
        model = Transformer(lora.adapt(architecture, e.config.lora))
        tree = jax.tree_util.tree_leaves_with_path(
            models.abstract_params(model), is_leaf=lambda x: isinstance(x, nn.Partitioned)
        )
        boxes = {checkpoint.path(keys): box for keys, box in tree}
        if e.config.lora.rank and e.arrays:  # the others are the parent's
            boxes = {name: box for name, box in boxes.items() if f'params/{name}' in e.arrays}
        mesh = jax.sharding.AbstractMesh(
            tuple(max(1, size) for size in e.config.mesh.values()), tuple(e.config.mesh)
        )
    arrays = {
        name.removeprefix('params/'): x
        for name, x in e.arrays.items()
        if name.startswith('params/')
    }
    facts = []
    for name in dict.fromkeys((*boxes, *arrays)):
        x = arrays[name] if name in arrays else nn.meta.unbox(boxes[name])
        axes = [None] * len(x.shape)
        if isinstance(boxes.get(name), nn.Partitioned):
            axes = list(boxes[name].names)
        norm = arrays[name].norm if name in arrays else None
        if norm is not None and not math.isfinite(norm):
            norm = str(norm)  # JSON has no such number
        facts.append(
            {
                'path': name,
                'shape': list(x.shape),
                'dtype': str(x.dtype),
                'axes': axes,
                'cut_over': list(spec(mesh, x.shape, axes)) if mesh else [None] * len(x.shape),
                'norm': norm,
            }
        )
    return facts


def batch(e: Examined, step: int) -> dict:
    """Returns the batch that `step` (from 0) trained on, or would, as text.

    The token store is built again where it is not there.

    Returns:
      'rows': for each its 'padding' and its 'segments': 'columns' and 'positions' (first and last),
      'pieces' of text, each with 'weighted' (whether the loss counts it) and 'special' (a mark of
      the tokenizer, by its name), and 'beyond': what the last target is where it lies after the
      row. Where texts are compared, in place of 'rows' 'pairs': 'query' and 'documents', the one
      that answers it first, their 'text_ids', and the ids 'known' to answer it.

    Raises:
      RunError: a part of the run is damaged, the text has changed, or the run has no such step.
    """
    if e.config is None or e.tokenizer is None or e.lineage is None:
        raise RunError(f'--batch={step}: cannot be told, since {e.damage[0]}')
    if not 0 <= step < e.config.train.steps:
        raise RunError(
            f'--batch is {step}: expected 0 to {e.config.train.steps - 1} (config.train.steps is '
            f'{e.config.train.steps})'
        )
    objective = get_objective(e.config.train.objective)
    data = objective.store_class.open_or_build(
        e.config.data, e.tokenizer, wanted=e.lineage['data_hash']
    )
    if data.hash != e.lineage['data_hash']:
        raise RunError(
            f'--batch={step}: the text has changed: data_hash is {data.hash[:12]}, the run was '
            f'started with {e.lineage["data_hash"][:12]}'
        )
    number = run_dir.batch_of(e.rollbacks, step)
    rows = objective.make_batches(data.split('train'), e.config.data, e.config.seed)(number)
    facts = {'step': step, 'number': number, 'data_hash': data.hash, 'seed': e.config.seed}
    if 'queries' in rows:
        return {
            **facts,
            'weight': float(len(rows['queries'])),
            'pairs': [_pair(rows, row, e.tokenizer) for row in range(len(rows['queries']))],
        }
    return {
        **facts,
        'weight': float(rows['loss_weights'].sum()),
        'rows': [
            {
                'padding': int((ids == 0).sum()),
                'segments': [_segment(rows, row, n, e.tokenizer) for n in np.unique(ids) if n],
            }
            for row, ids in enumerate(rows['segment_ids'])
        ],
    }


def _pair(rows: batches.Batch, row: int, tokenizer: tokenizers.Tokenizer) -> dict:
    texts = [
        tokenizer.decode(ids[:length]).strip()
        for ids, length in zip(
            (rows['queries'][row], *rows['documents'][row]), rows['lengths'][row]
        )
        if length
    ]
    return {
        'query': texts[0],
        'documents': texts[1:],
        'text_ids': [n for n in rows['text_ids'][row].tolist() if n >= 0],
        'known': [n for n in rows['known'][row].tolist() if n >= 0],
    }


def _segment(rows: batches.Batch, row: int, number: int, tokenizer: tokenizers.Tokenizer) -> dict:
    """Returns a segment of a row: its places, and its text in pieces, counted or not."""
    columns = np.flatnonzero(rows['segment_ids'][row] == number)
    first, last = int(columns[0]), int(columns[-1])
    tokens = rows['tokens'][row, first : last + 1].tolist()
    # Weights stand where a token is predicted: one before it.
    counts = [False, *(rows['loss_weights'][row, first:last] > 0).tolist()]

    # Neighbours that the loss treats alike are one piece; a mark of the tokenizer is one by itself.
    pieces: list[tuple[bool, bool, list[int]]] = []
    for token, counted in zip(tokens, counts):
        special = not tokenizer.decode([token])
        joins = False
        if pieces and not special and not pieces[-1][1]:
            joins = pieces[-1][0] == counted or _continues(tokenizer.piece(token))
        if joins:
            pieces[-1][2].append(token)
        else:
            pieces.append((counted, special, [token]))

    beyond = rows['loss_weights'][row, last] > 0
    return {
        'columns': [first, last],
        'positions': rows['positions'][row, [first, last]].tolist(),
        'tokens': tokens,
        'weighted': sum(counts) + int(beyond),
        'pieces': [
            {
                'text': tokenizer.piece(ids[0]) if special else tokenizer.decode(ids),
                'special': special,
                'weighted': counted,
            }
            for counted, special, ids in pieces
        ],
        'beyond': tokenizer.piece(int(rows['targets'][row, last])) if beyond else None,
    }


def _continues(piece: str) -> bool:
    """Returns whether a piece is a byte inside a character, which is shown as a whole."""
    return re.match('<0x[89AB][0-9A-F]>', piece) is not None
