"""A cell whose task is text: trained on short texts, measured on long ones."""

import hashlib

import numpy as np
from ml_collections import ConfigDict

from data import batches
from data.store import TokenStore
from evals import attention, perplexity
from runtime.errors import RunError
from train import setup

_GAPS = (1, 4, 16, 64)  # ids that a gap leaves out
_DISTANCES = 256  # at which attention is kept


def load_text(config, task: str):
    """Returns tokenizer and token store of a text task, from the cache after the first call."""
    t = config.tasks[task]
    whole = ConfigDict(dict(data=t.data.to_dict(), tokenizer=t.tokenizer.to_dict()))
    tokenizer = setup.load_or_train_tokenizer(whole)
    return tokenizer, TokenStore.open_or_build(whole.data, tokenizer, progress=False)


def sizes(config, task: str) -> tuple[int, int, int]:
    """Returns pieces as the config has them, and tokens of the longest rows.

    These are tokens of a row of training, and of the longest window of the test.
    """
    t = config.tasks[task]
    return t.tokenizer.vocab_size, t.train_len, max(t.test_lens) + t.scored


def training(config, group) -> tuple[tuple[int, int, int], list[batches.Batches]]:
    """Returns the sizes of the model, and the batches of each cell: rows of `train_len` tokens."""
    task = group[0].task
    t = config.tasks[task]
    tokenizer, store = load_text(config, task)
    data = t.data.copy_and_resolve_references()
    data.update(seq_len=t.train_len, batch_size=config.train.batch_size)
    split = store.split('train')
    of_cells = [batches.Batches(split, data, 1000 + cell.seed) for cell in group]
    return (tokenizer.vocab_size, *sizes(config, task)[1:]), of_cells


def measured(config, cell, model, rows, params, record: dict) -> dict:
    """Returns the completed record of a cell.

    It has three perplexities at each of `test_lens` on the same targets, loss by place, how much
    order far away and a gap in the ids matter, and of the first seed where it looks.
    """
    t = config.tasks[cell.task]
    _, store = load_text(config, cell.task)
    split = store.split('validation')
    longest = max(t.test_lens)
    documents = [np.asarray(split.document(i), np.int32) for i in range(len(split.lengths))]
    chosen = perplexity.targets(documents, longest, t.windows, t.scored)
    kinds = {
        'non_overlapping': perplexity.non_overlapping(model, params, chosen, t.test_lens),
        'sliding': perplexity.sliding(model, params, chosen, t.test_lens, t.stride),
        'fixed': perplexity.fixed(model, params, chosen, t.test_lens),
    }
    places = perplexity.by_position(model, params, chosen, t.train_len, longest // t.train_len)
    shuffled = perplexity.shuffle_sensitivity(model, params, chosen, t.train_len, t.beyond)
    gaps = [g for g in _GAPS if t.train_len + g <= longest]  # no id is beyond those of the model
    moved = perplexity.gap_sensitivity(model, params, chosen, t.train_len, gaps)
    if cell.seed == 1:
        few = _rows(chosen.tokens[:2, : min(2 * t.train_len, longest)])
        distances = min(2 * t.train_len, _DISTANCES)
        record['attention'] = attention.by_distance(model, params, few, distances)
    tokens = [rows(step, slice(0, 4))['tokens'].tobytes() for step in (0, 1, 1000)]
    digest = hashlib.sha256(b''.join(tokens)).hexdigest()[:16]
    return {
        'data': f'{store.hash[:8]}-{digest}',
        **record,
        'validation_nats': kinds['fixed'][t.train_len].mean,
        'perplexity': {
            kind: {str(n): round(x.perplexity, 4) for n, x in losses.items()}
            for kind, losses in kinds.items()
        },
        'by_document': {str(d): v for d, v in kinds['fixed'][longest].by_document.items()},
        'by_position': places,
        'effective_context': perplexity.effective_context(kinds['fixed']),
        'usable_length': perplexity.max_usable_length(kinds['fixed'], t.train_len),
        'shuffled': {str(k): round(x.mean, 5) for k, x in shuffled.items()},
        'gap': {str(g): round(x.mean, 5) for g, x in moved.items()},
    }


def _rows(tokens: np.ndarray) -> dict:
    """Returns tokens [B,T], each row the beginning of a text, as a batch."""
    return dict(
        tokens=tokens,
        positions=np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1)),
        segment_ids=np.ones_like(tokens),
    )


def check(config, task: str) -> None:
    """Raises RunError where the held-out text has no room for the targets."""
    t = config.tasks[task]
    if t.train_len not in t.test_lens:
        raise RunError(f'config.tasks.{task}.test_lens lacks train_len ({t.train_len})')
    _, store = load_text(config, task)
    split = store.split('validation')
    documents = [split.document(i) for i in range(len(split.lengths))]
    perplexity.targets(documents, max(t.test_lens), t.windows, t.scored)
