"""Loss on the whole held-out text of a run, beside what `xz -9` makes of the same text.

python -m evals.heldout --run=runs/machado
"""

import json
import lzma

import jax
import jax.numpy as jnp
from absl import flags

from data import batches
from data.store import TokenStore
from model import loss as losses
from model.transformer import make_row_keys
from runtime import checkpoint, cli, metrics, options
from runtime.errors import RunError
from runtime.run_dir import Run


def loss(model, params, split, config, seed: int) -> float:
    """Nats per token over a split, each token predicted once, documents apart."""

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

    total = weight = 0.0
    for number, batch in enumerate(batches.Batches(split, config, seed, shuffle=False).once()):
        found = jax.device_get(sums(params, batch, number * config.batch_size))
        total, weight = total + float(found['nll']), weight + float(found['weight'])
    return total / weight


def texts(split, tokenizer) -> bytes:
    """The documents of a split, as they were: encoding is exact."""
    return '\n'.join(
        tokenizer.decode(split.document(i)) for i in range(len(split.lengths))
    ).encode()


def xz_bits_per_byte(text: bytes, after: bytes = b'') -> float:
    """What `xz -9` needs for `text`, alone or as the continuation of `after`."""
    size = lambda data: len(lzma.compress(data, preset=9))
    return 8 * (size(after + text) - (size(after) if after else 0)) / len(text)


def measure(run: Run, cache: str) -> dict:
    """`cache`: where the token store is looked for, or built; not where the run's config says, which somebody else may have written."""
    model, params, tokenizer, config = checkpoint.load(run)
    if config.train.objective != 'tokens':
        raise RunError(
            f'{run.path}: trained on pairs (config.train.objective is {config.train.objective!r}), and holds out no text; expected a run on '
            f'texts, or python -m evals.search.retrieval'
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
    options.path('run', '', 'Run directory, DIR or DIR@step')
    options.path('cache', 'runs/.cache', 'Where token stores are kept')
    cli.run(main)
