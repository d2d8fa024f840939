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


def obtained(config, task: str):
    """Tokenizer and token store of a text task. They are in the cache after the first call."""
    t = config.tasks[task]
    whole = ConfigDict(dict(data=t.data.to_dict(), tokenizer=t.tokenizer.to_dict()))
    tokenizer = setup.load_or_train_tokenizer(whole)
    return tokenizer, TokenStore.open_or_build(whole.data, tokenizer, progress=False)


def sizes(config, task: str) -> tuple[int, int, int]:
    """Pieces as the config has them, tokens of a row of training, and of the longest window of the test."""
    t = config.tasks[task]
    return t.tokenizer.vocab_size, t.train_len, max(t.test_lens) + t.scored


def training(config, group) -> tuple[tuple[int, int, int], list[batches.Batches]]:
    """The sizes of the model, and the batches of each cell: rows of `train_len` tokens."""
    t = config.tasks[group[0].task]
    tokenizer, held = obtained(config, group[0].task)
    data = t.data.copy_and_resolve_references()
    data.update(seq_len=t.train_len, batch_size=config.train.batch_size)
    return (tokenizer.vocab_size, *sizes(config, group[0].task)[1:]), [
        batches.Batches(held.split('train'), data, 1000 + cell.seed) for cell in group
    ]


def measured(config, cell, model, rows, params, found: dict) -> dict:
    """The record: three perplexities at each of `test_lens` on the same targets, loss by place, how much order far away and a gap in the ids
    matter, and of the first seed where it looks."""
    t = config.tasks[cell.task]
    held = obtained(config, cell.task)[1]
    split, longest = held.split('validation'), max(t.test_lens)
    documents = [np.asarray(split.document(i), np.int32) for i in range(len(split.lengths))]
    chosen = perplexity.targets(documents, longest, t.windows, t.scored)
    kinds = {
        'non_overlapping': perplexity.non_overlapping(model, params, chosen, t.test_lens),
        'sliding': perplexity.sliding(model, params, chosen, t.test_lens, t.stride),
        'fixed': perplexity.fixed(model, params, chosen, t.test_lens),
    }
    digest = hashlib.sha256(
        b''.join(rows(step, slice(0, 4))['tokens'].tobytes() for step in (0, 1, 1000))
    ).hexdigest()[:16]
    shuffled = perplexity.shuffle_sensitivity(model, params, chosen, t.train_len, t.beyond)
    gaps = [
        g for g in _GAPS if t.train_len + g <= longest
    ]  # no id is beyond those that the model has
    if cell.seed == 1:
        few = _rows(chosen.tokens[:2, : min(2 * t.train_len, longest)])
        found['attention'] = attention.by_distance(
            model, params, few, min(2 * t.train_len, _DISTANCES)
        )
    return {
        'data': f'{held.hash[:8]}-{digest}',
        **found,
        'validation_nats': kinds['fixed'][t.train_len].mean,
        'perplexity': {
            kind: {str(n): round(x.perplexity, 4) for n, x in losses.items()}
            for kind, losses in kinds.items()
        },
        'by_document': {str(d): v for d, v in kinds['fixed'][longest].by_document.items()},
        'by_position': perplexity.by_position(
            model, params, chosen, t.train_len, longest // t.train_len
        ),
        'effective_context': perplexity.effective_context(kinds['fixed']),
        'usable_length': perplexity.max_usable_length(kinds['fixed'], t.train_len),
        'shuffled': {str(k): round(x.mean, 5) for k, x in shuffled.items()},
        'gap': {
            str(g): round(x.mean, 5)
            for g, x in perplexity.gap_sensitivity(model, params, chosen, t.train_len, gaps).items()
        },
    }


def _rows(tokens: np.ndarray) -> dict:
    """Tokens [B,T], each row the beginning of a text, as a batch."""
    return dict(
        tokens=tokens,
        positions=np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1)),
        segment_ids=np.ones_like(tokens),
    )


def check(config, task: str) -> None:
    """Raises RunError where the held-out text has no room for the targets, before any cell is trained."""
    t = config.tasks[task]
    if t.train_len not in t.test_lens:
        raise RunError(f'config.tasks.{task}.test_lens lacks train_len ({t.train_len})')
    _, held = obtained(config, task)
    split = held.split('validation')
    perplexity.targets(
        [split.document(i) for i in range(len(split.lengths))],
        max(t.test_lens),
        t.windows,
        t.scored,
    )
