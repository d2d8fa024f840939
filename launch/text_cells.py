"""A cell whose task is text: trained on short texts, measured on long ones."""
import hashlib

import numpy as np
from ml_collections import ConfigDict

from data import batches, store
from evals import perplexity
from train import loop, trial
from train.errors import RunError


def prepared(config, task: str):
    """Tokenizer and token store of a text task. They are in the cache after the first call."""
    t = config.tasks[task]
    whole = ConfigDict(dict(data=t.data.to_dict(), tokenizer=t.tokenizer.to_dict()))
    tokenizer = loop.obtain_tokenizer(whole)
    return tokenizer, store.open_or_build(whole.data, tokenizer, progress=False)


def measure(config, group, model_of) -> list[dict]:
    """Trains on rows of `train_len` tokens; then, for each seed, three perplexities at each of `test_lens` on the same targets, loss by
    place, and how much order far away matters. `model_of`: (vocabulary, length of training, longest) -> model."""
    t = config.tasks[group[0].task]
    tokenizer, held = prepared(config, group[0].task)
    data = t.data.copy_and_resolve_references()
    data.update(seq_len=t.train_len, batch_size=config.train.batch_size)
    training = [batches.Batches(held.split('train'), data, 1000 + cell.seed) for cell in group]
    model = model_of(tokenizer.vocab_size, t.train_len, max(t.test_lens) + t.scored)
    trained = trial.run(model, config, training, [cell.seed for cell in group])
    return [_measured(t, held, model, rows, *of_seed) for rows, of_seed in zip(training, trained)]


def _measured(t, held, model, rows, params, found: dict) -> dict:
    split, longest = held.split('validation'), max(t.test_lens)
    documents = [np.asarray(split.document(i), np.int32) for i in range(len(split.lengths))]
    chosen = perplexity.targets(documents, longest, t.windows, t.scored)
    kinds = {'non_overlapping': perplexity.non_overlapping(model, params, chosen, t.test_lens),
             'sliding': perplexity.sliding(model, params, chosen, t.test_lens, t.stride),
             'fixed': perplexity.fixed(model, params, chosen, t.test_lens)}
    digest = hashlib.sha256(b''.join(rows(step, slice(0, 4))['tokens'].tobytes() for step in (0, 1, 1000))).hexdigest()[:16]
    shuffled = perplexity.shuffle_sensitivity(model, params, chosen, t.train_len, t.beyond)
    return {'data': f'{held.hash[:8]}-{digest}', **found, 'validation_nats': kinds['fixed'][t.train_len].mean,
            'perplexity': {kind: {str(n): round(x.perplexity, 4) for n, x in losses.items()} for kind, losses in kinds.items()},
            'by_document': {str(d): v for d, v in kinds['fixed'][longest].by_document.items()},
            'by_position': perplexity.by_position(model, params, chosen, t.train_len, longest // t.train_len),
            'effective_context': perplexity.effective_context(kinds['fixed']),
            'usable_length': perplexity.max_usable_length(kinds['fixed'], t.train_len),
            'shuffled': {str(k): round(x.mean, 5) for k, x in shuffled.items()}}


def check(config, task: str) -> None:
    """Raises RunError where the held-out text has no room for the targets, before any cell is trained."""
    t = config.tasks[task]
    if t.train_len not in t.test_lens:
        raise RunError(f'config.tasks.{task}.test_lens lacks train_len ({t.train_len})')
    _, held = prepared(config, task)
    split = held.split('validation')
    perplexity.targets([split.document(i) for i in range(len(split.lengths))], max(t.test_lens), t.windows, t.scored)
