"""The contender `transformers`: LlamaForCausalLM of PyTorch, with the weights of a model of Ordem.

No command of its own: `benchmarks.train_step` and `benchmarks.decode` start it.

What it is given is in a folder (`benchmarks/weights.py`). It imports no JAX.
"""

import argparse
import pathlib
import time

import numpy as np
import torch
import transformers

from benchmarks import shapes, turns


def load(folder: pathlib.Path, shape: str) -> transformers.LlamaForCausalLM:
    """Returns the model with the weights in `folder`, which compute the same there."""
    sizes = shapes.SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.model['width'],
        intermediate_size=sizes.model['mlp_width'],
        num_hidden_layers=sizes.model['num_layers'],
        num_attention_heads=sizes.model['num_heads'],
        num_key_value_heads=sizes.model['num_kv_heads'],
        max_position_embeddings=max(1024, sizes.length),
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation='sdpa',
    )
    model = transformers.LlamaForCausalLM(config)
    weights = np.load(folder / 'weights.npz', allow_pickle=False)
    named = {
        'model.embed_tokens.weight': weights['embedding'],
        'lm_head.weight': weights['embedding'],
    }
    named['model.norm.weight'] = weights['final_norm/scale']
    width = sizes.model['width']
    for i in range(sizes.model['num_layers']):
        ours, theirs = f'layer_{i}', f'model.layers.{i}'
        for mine, other in (('query', 'q'), ('key', 'k'), ('value', 'v')):
            kernel = weights[f'{ours}/attention/{mine}/kernel'].reshape(width, -1)
            named[f'{theirs}.self_attn.{other}_proj.weight'] = kernel.T
        kernel = weights[f'{ours}/attention/out/kernel'].reshape(-1, width)
        named[f'{theirs}.self_attn.o_proj.weight'] = kernel.T
        for name in ('up', 'gate', 'down'):
            kernel = weights[f'{ours}/feed_forward/{name}/kernel']
            named[f'{theirs}.mlp.{name}_proj.weight'] = kernel.T
        named[f'{theirs}.input_layernorm.weight'] = weights[f'{ours}/attention_norm/scale']
        named[f'{theirs}.post_attention_layernorm.weight'] = weights[
            f'{ours}/feed_forward_norm/scale'
        ]
    model.load_state_dict({name: torch.tensor(np.array(x)) for name, x in named.items()})
    return model


def serve_training(folder: pathlib.Path, shape: str, steps: int, compiled: bool) -> None:
    """Takes `steps` train steps a turn."""
    rows = np.load(folder / 'inputs.npz', allow_pickle=False)
    tokens = torch.tensor(rows['tokens'].astype(np.int64))
    targets = torch.tensor(rows['targets'].astype(np.int64)).reshape(-1)
    model = load(folder, shape).train()
    run = torch.compile(model) if compiled else model
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [dict(params=matrices, weight_decay=0.1), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step():
        logits = run(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    first_loss = step().item()

    def work():
        began = time.perf_counter()
        for _ in range(steps):
            loss = step()
        loss.item()
        return dict(seconds=(time.perf_counter() - began) / steps)

    turns.serve(work, first_loss=first_loss)


def serve_decoding(folder: pathlib.Path, shape: str, new: int) -> None:
    """Writes `new` tokens for each prompt a turn, greedily."""
    prompts = torch.tensor(
        np.load(folder / 'inputs.npz', allow_pickle=False)['prompts'].astype(np.int64)
    )
    model = load(folder, shape).eval()
    settings = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    def work():
        began = time.perf_counter()
        with torch.inference_mode():
            text = model.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)
        tokens = text[:, prompts.shape[1] :].tolist()
        return dict(seconds=time.perf_counter() - began, tokens=tokens)

    work()  # what is made at the first call
    turns.serve(work)


def main() -> None:
    """Is the contender that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['train', 'decode'])
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('--shape', choices=shapes.SHAPES, default='small')
    parser.add_argument('--steps', type=int, default=2)
    parser.add_argument('--new', type=int, default=128)
    parser.add_argument('--compile', action='store_true')
    arguments = parser.parse_args()
    if arguments.what == 'decode':
        serve_decoding(arguments.folder, arguments.shape, arguments.new)
    else:
        serve_training(arguments.folder, arguments.shape, arguments.steps, arguments.compile)
