"""How fast are tokens generated beside what else a user would install?

    python -m benchmarks.decode --shape=small --batch=8 --rounds=7
    python -m benchmarks.decode --shape=124m --out=benchmarks/results/decode.jsonl
    python -m benchmarks.decode --quick

A Llama-shaped model in float32 with the same weights for all continues the same prompts greedily:
64 tokens are read and 128 written, a row. That each token is the most likely one is checked against
a forward pass without a cache. Contenders: Ordem, `apps.generate` without its start;
`transformers`, LlamaForCausalLM of PyTorch as it comes, left out where it is not installed.
"""

from absl import flags

from benchmarks import turns
from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    turns.define_flags()
    flags.DEFINE_bool('quick', False, 'The same work at the smallest sizes, in a few seconds')
    options.whole('batch', 1, 'Prompts at a time', 1, options.COUNT)
    options.whole('prompt', 64, 'Tokens of a prompt', 1, options.COUNT)
    options.whole('new', 128, 'New tokens of each', 1, options.COUNT)
    options.weights('How Ordem keeps matrices, as in apps.generate')
    cli.parse_flags()

import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import shapes, weights as weight_files
from configs import base
from model import generate
from model.config import resolve
from model.sampling import Sampling
from model.transformer import Transformer
from runtime.errors import RunError

# A token's logit may be so far below the largest one of the forward pass: rounding of float32, and
# of narrow weights.
_ROUNDING = dict(as_computed=1e-3, bfloat16=0.1, int8=1.0)


def compare(
    shape: str, batch: int, prompt: int, new: int, rounds: int, weights: str = 'as_computed'
) -> list[dict]:
    """Returns a measurement of each contender and round: seconds of a generation, and its tokens.

    Args:
      shape: of `shapes.SHAPES`.
      batch, prompt, new: rows, tokens of each that are read, and tokens that are written.
      weights: how Ordem keeps matrices, of `generate.WEIGHTS`.
    Raises:
      RunError: not as many tokens as were asked for, or one that is not the most likely.
    """
    model = _build(shape, prompt + new)
    params = _initial(model)
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, model.config.vocab_size, (batch, prompt)).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        weight_files.write(pathlib.Path(folder), params, prompts=prompts)
        sizes = [f'--shape={shape}', f'--new={new}']
        commands = {
            turns.ORDEM: [
                *(sys.executable, '-m', 'benchmarks.decode', *sizes),
                *(f'--weights={weights}', f'--serve={folder}'),
            ]
        }
        if turns.has_transformers():
            theirs = [*turns.start('benchmarks.torch_llama'), 'decode', folder]
            commands[turns.TRANSFORMERS] = [*theirs, *sizes]
        lines = turns.take_turns(commands, rounds)

    written = {line['name']: np.asarray(line.pop('tokens')) for line in lines}
    for name, tokens in written.items():
        if tokens.shape != (batch, new):
            raise RunError(f'not the same work: {name} wrote {tokens.shape}')
        below = _below_the_likeliest(model, params, prompts, tokens)
        if below > _ROUNDING[weights if name == turns.ORDEM else 'as_computed']:
            raise RunError(f'{name} wrote a token whose logit is {below} below the largest')
    return lines


def _build(shape: str, length: int) -> Transformer:
    """Returns the model with a context of `length` tokens."""
    sizes = shapes.SHAPES[shape]
    config = base.get_config().model
    config.update(sizes.model, scan_layers=False)
    return Transformer(resolve(config, sizes.vocabulary, length))


def _initial(model: Transformer) -> dict:
    one = jnp.ones((1, 1), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), one, one * 0, one)
    return nn.meta.unbox(variables['params'])


def _below_the_likeliest(model: Transformer, params, prompts, tokens) -> float:
    """Returns by how much a token's logit falls short of the largest one, at most.

    The logits are those of one forward pass over prompts and tokens, without a cache.
    """
    text = jnp.concatenate([prompts, tokens], axis=1)
    positions = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
    logits, _ = jax.jit(model.apply)({'params': params}, text, positions, jnp.ones_like(text))
    before = logits[:, prompts.shape[1] - 1 : -1]
    own = jnp.take_along_axis(before, tokens[..., None], axis=-1)[..., 0]
    return float((before.max(-1) - own).max())


def serve(folder: pathlib.Path, shape: str, new: int, weights: str) -> None:
    """Writes `new` tokens for each prompt a turn, as the contender Ordem."""
    prompts = np.load(folder / 'inputs.npz', allow_pickle=False)['prompts'].tolist()
    model = _build(shape, len(prompts[0]) + new)
    params = weight_files.read(folder, jax.eval_shape(lambda: _initial(model)))
    model, params = generate.narrow_weights(model, params, weights)

    def work():
        began = time.perf_counter()
        tokens = generate.generate(model, params, prompts, new, Sampling(temperature=0.0))
        return dict(seconds=time.perf_counter() - began, tokens=tokens)

    work()  # compiled
    turns.serve(work)


def main() -> None:
    f = flags.FLAGS
    if f.serve:
        return serve(pathlib.Path(f.serve), f.shape, f.new, f.weights)
    sizes = dict(shape=f.shape, batch=f.batch, prompt=f.prompt, new=f.new, weights=f.weights)
    rounds = f.rounds
    if f.quick:
        sizes = dict(shape='tiny', batch=2, prompt=8, new=8, weights=f.weights)
        rounds = 1
    lines = compare(**sizes, rounds=rounds)
    if f.out:
        turns.keep(f.out, lines, **sizes)
    print(turns.table(lines, lines[-1]['name']))


if __name__ == '__main__':
    cli.run(main)
