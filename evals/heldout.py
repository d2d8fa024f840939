"""Loss on the whole held-out text of a run, beside what `xz -9` makes of the same text.

python -m evals.heldout --run=runs/machado
"""

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('run', '', 'Run directory, DIR or DIR@step')
    options.path('cache', 'runs/.cache', 'Where token stores are kept')
    cli.parse_flags()

import json
import lzma

import jax
import jax.numpy as jnp
from absl import flags

from data import batches
from data.objectives import get_objective
from data.store import TokenStore
from model import loss as losses
from model.transformer import make_row_keys
from runtime import metrics, models
from runtime.errors import RunError
from runtime.run_dir import Run


def loss(model, params, split, config, seed: int) -> float:
    """Returns nats per token over a split, each token predicted once, documents apart."""

    @jax.jit
    def sums(params, batch, first):
        rows = first + jnp.arange(len(batch['tokens']))
        logits, _ = model.apply(
            {'params': params},
            batch['tokens'],
            batch['positions'],
            batch['segment_ids'],
            row_keys=make_row_keys(rows),
        )
        return losses.weighted_token_loss(logits, batch)[1]

    nats = 0.0
    weight = 0.0
    for number, batch in enumerate(batches.Batches(split, config, seed, shuffle=False).once()):
        of_batch = jax.device_get(sums(params, batch, number * config.batch_size))
        nats += float(of_batch['nll'])
        weight += float(of_batch['weight'])
    return nats / weight


def texts(split, tokenizer) -> bytes:
    """Returns the documents of a split as they were: encoding is exact."""
    documents = [tokenizer.decode(split.document(i)) for i in range(len(split.lengths))]
    return '\n'.join(documents).encode()


def xz_bits_per_byte(text: bytes, after: bytes = b'') -> float:
    """Returns what `xz -9` needs for `text`, alone or as the continuation of `after`."""
    before = len(lzma.compress(after, preset=9)) if after else 0
    return 8 * (len(lzma.compress(after + text, preset=9)) - before) / len(text)


def measure(run: Run, cache: str) -> dict:
    """Returns the loss of a run on its held-out text, and what xz makes of it.

    `cache`: where the token store is looked for, or built; not where the run's config says, which
    somebody else may have written. Raises RunError where no text is held out, or it has changed.
    """
    model, params, tokenizer, config = models.load(run)
    if not get_objective(config.train.objective).holds_out_text:
        raise RunError(
            f'{run.path}: trained on pairs (config.train.objective is '
            f'{config.train.objective!r}), and holds out no text; expected a run on texts, or '
            'python -m evals.search.retrieval'
        )
    config.data.cache = cache
    wanted = run.lineage()['data_hash']
    data = TokenStore.open_or_build(config.data, tokenizer, wanted=wanted)
    if data.hash != wanted:
        raise RunError(f'{run.path}: the text of config.data has changed since the run was started')
    held_out = data.split('validation')
    if not len(held_out.tokens):
        raise RunError(
            f'{run.path}: holds out no text (config.data.validation is {config.data.validation})'
        )
    nats = loss(model, params, held_out, config.data, config.seed)
    text, training = texts(held_out, tokenizer), texts(data.split('train'), tokenizer)
    predicted = len(held_out.tokens) - len(held_out.lengths)
    return {
        'run': str(run.path),
        'bytes': len(text),
        'nats_per_token': nats,
        'bits_per_byte': metrics.bits_per_byte(nats, predicted, held_out.num_bytes),
        'xz_bits_per_byte': xz_bits_per_byte(text),
        'xz_after_training_text_bits_per_byte': xz_bits_per_byte(text, training),
    }


def main() -> None:
    print(json.dumps(measure(Run.parse(flags.FLAGS.run), flags.FLAGS.cache), indent=1))


if __name__ == '__main__':
    cli.run(main)
