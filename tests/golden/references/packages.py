"""Outputs of the published packages: transformers and x-transformers, on torch, in float32.

Needs the extra `reference`. Only numpy arrays and plain values go in and come out, so that outputs
can be kept as files (`outputs.py`) and read where the packages are not installed.

Dimensions: H heads, K key-value heads, T tokens, D width, d size of a head, V words.
"""

import copy
import importlib
import inspect
import pathlib
import tempfile
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from x_transformers import x_transformers

torch.set_grad_enabled(False)  # in this process, where nothing else uses it

# Code that lies in folders is imported from a copy, which is not to be in somebody's home.
_COPIES = tempfile.TemporaryDirectory()
transformers.dynamic_module_utils.HF_MODULES_CACHE = _COPIES.name


def modeling(name):
    """Returns the module of transformers with the model `name`."""
    return importlib.import_module(f'transformers.models.{name}.modeling_{name}')


def tensor(array):
    return torch.from_numpy(np.array(array, np.float32))


# ---- positions by themselves


def frequencies(kind, d, parameters):
    """Returns RoPE's frequencies [d/2] and the factor of queries and keys.

    Args:
      kind: `rope_type` of transformers.
      d: size of a head.
      parameters: of the RoPE, and `longest` (max_position_embeddings) and `length` of the text.
    """
    rope = dict(parameters)
    longest = rope.pop('longest', 131072)
    length = rope.pop('length', None)
    config = transformers.LlamaConfig(
        head_dim=d,
        max_position_embeddings=longest,
        rope_parameters={'rope_type': kind, 'rope_theta': 10000.0, **rope},
    )
    if kind == 'default':
        embedding = modeling('gpt_neox').GPTNeoXRotaryEmbedding
        values, factor = embedding.compute_default_rope_parameters(config)
    else:
        init = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind]
        values, factor = init(config, seq_len=length)
    return {'frequencies': values.numpy(), 'factor': np.asarray(factor, np.float64)}


def rotated(layout, part, q, k):
    """Returns queries and keys [B,H,T,d] turned by RoPE in their first `part` dimensions.

    Args:
      layout: 'half' (Llama's pairs) or 'interleaved' (GPT-J's).
    """
    q, k = tensor(q), tensor(k)
    length = q.shape[2]
    if layout == 'half':
        llama = modeling('llama')
        config = transformers.LlamaConfig(
            head_dim=part, rope_parameters={'rope_type': 'default', 'rope_theta': 10000.0}
        )
        angles = llama.LlamaRotaryEmbedding(config)(q, torch.arange(length)[None])
        turned = llama.apply_rotary_pos_emb(q[..., :part], k[..., :part], *angles)
    else:
        gptj = modeling('gptj')
        sin, cos = gptj.create_sinusoidal_positions(length, part)[None].chunk(2, -1)
        turned = []
        for whole in (q, k):
            by_token = whole[..., :part].transpose(1, 2)
            turned.append(gptj.apply_rotary_pos_emb(by_token, sin, cos).transpose(1, 2))
    return {
        name: torch.cat([first, whole[..., part:]], -1).numpy()
        for name, first, whole in zip('qk', turned, (q, k))
    }


def sinusoids(length, width):
    """Returns three tables [T,D] of sines and cosines, x-transformers' with its initial scale."""
    scaled = x_transformers.ScaledSinusoidalEmbedding(width)(torch.zeros(1, length, width))
    marian = modeling('marian').MarianSinusoidalPositionalEmbedding(length, width).create_weight()
    xlm = modeling('xlm').create_sinusoidal_embeddings(length, width, torch.empty(length, width))
    return {'scaled': scaled.numpy(), 'marian': marian.numpy(), 'xlm': xlm.numpy()}


def alibi(heads, length):
    """Returns ALiBi's bias of `length` tokens as BLOOM, MPT and x-transformers have it."""
    bloom = modeling('bloom').build_alibi_tensor(torch.ones(1, length), heads, torch.float32)
    mpt = modeling('mpt').build_mpt_alibi_tensor(heads, length)
    square = x_transformers.AlibiPositionalBias(heads)(length, length)
    return {'bloom': bloom.numpy(), 'mpt': mpt.numpy(), 'x_transformers': square.numpy()}


def t5_buckets(buckets, longest, length):
    """Returns T5's one-sided bucket [T] of each distance from 0."""
    attention = modeling('t5').T5Attention
    distances = torch.arange(length)
    found = attention._relative_position_bucket(-distances, False, buckets, longest)
    return {'buckets': found.numpy()}


# ---- attention whose input is the identity matrix, so that projections are the queries and keys


def attend(projections, options=None, parameters=None, **inputs):
    """Returns the weights [H,T,T] and the output [T,T] of x-transformers' Attention.

    Args:
      projections: q, k, v [H,T,d] and out_kernel [H,d,T].
      options: further arguments of Attention.
      parameters: values of further parameters, by their names there.
      inputs: what Attention is called with besides the identity.
    """
    heads, length, d = projections['q'].shape
    attention = x_transformers.Attention(
        length, dim_head=d, heads=heads, causal=True, **(options or {})
    )

    def of_heads(a):
        """[H,T,d] -> [(H d),T]."""
        return a.transpose(0, 2, 1).reshape(-1, length)

    values = {
        'to_q.weight': of_heads(projections['q']),
        'to_k.weight': of_heads(projections['k']),
        'to_v.weight': of_heads(projections['v']),
        'to_out.weight': projections['out_kernel'].reshape(-1, length).T,
        **(parameters or {}),
    }
    for name, value in values.items():
        attention.get_parameter(name).copy_(tensor(value))
    out, more = attention(torch.eye(length)[None], return_intermediates=True, **inputs)
    return {'weights': more.post_softmax_attn[0].numpy(), 'out': out[0].numpy()}


def attend_turned(projections, **options):
    """`attend` with the rotary embedding of x-transformers."""
    _, length, d = projections['q'].shape
    angles = x_transformers.RotaryEmbedding(d, **options)(torch.arange(length))
    return attend(projections, rotary_pos_emb=angles)


def attend_polar(projections, delta):
    """`attend` with PoPE; its bias delta [K,d] is one of each key-value head."""
    heads, length, d = projections['q'].shape
    polar = x_transformers.PolarEmbedding(d, heads)
    polar.learned_bias.copy_(tensor(delta.repeat(heads // len(delta), 0))[:, None])
    return attend(projections, polar_pos_emb=polar(torch.arange(length)))


def attend_forgetting(projections, gate, gate_bias):
    """`attend` with the gates [T,H] of a forgetting transformer."""
    name = 'data_dependent_alibi.to_forget_gates.0'
    values = {f'{name}.weight': gate.T, f'{name}.bias': gate_bias}
    return attend(projections, {'data_dependent_alibi': True}, values)


def attend_cope(projections, table):
    """`attend` with CoPE's table [places,d]."""
    options = {'use_cope': True, 'cope_max_pos': len(table)}
    return attend(projections, options, {'attend.cope.pos_emb': table})


def attention(name, projections, parameters):
    """Returns what x-transformers' Attention gives with an encoding of ours, by our name.

    Args:
      name: our encoding, or 'none'.
      projections: as for `attend`.
      parameters: of the encoding, by our names.
    """
    heads = len(projections['q'])
    if name == 'none':
        return attend(projections)
    if name == 'rope_interleaved':
        return attend_turned(projections)
    if name == 'rope_ntk':
        return attend_turned(projections, base_rescale_factor=5.0)
    if name == 'xpos':
        return attend_turned(projections, use_xpos=True, scale_base=16)
    if name == 'pope':
        return attend_polar(projections, **parameters)
    if name == 'alibi':
        return attend(projections, rel_pos=x_transformers.AlibiPositionalBias(heads))
    if name == 'forgetting':
        return attend_forgetting(projections, **parameters)
    if name == 'cope_unscaled':
        return attend_cope(projections, **parameters)
    if name == 'selective':
        return attend(projections, {'selective': True})
    if name == 'window':
        return attend(projections, {'max_attend_past': 2})  # beside its own token
    raise ValueError(name)


def weights_of(logits):
    """Returns the causal softmax of logits [H,T,T]."""
    seen = torch.ones(logits.shape[-2:]).tril() > 0
    return {'weights': torch.softmax(logits.where(seen, -1e30), -1).numpy()}


def deberta(q, k, parameters):
    """Returns the weights of DeBERTa-v2's disentangled attention, made causal.

    Args:
      q, k: [H,T,d].
      parameters: table [span,D], the rows of keys behind; ahead [span,D], those of keys ahead,
        which must not matter; keys, queries [D,H,d], what projects the rows; query_bias [H,d].
    """
    module = modeling('deberta_v2')
    kind = module.DisentangledSelfAttention
    values = {name: tensor(value) for name, value in parameters.items()}
    span = len(values['table'])

    def project_keys(rows):
        return rows @ values['keys'].flatten(1)

    def project_queries(rows):
        return rows @ values['queries'].flatten(1) + values['query_bias'].flatten()

    def split_heads(*arguments):
        return kind.transpose_for_scores(None, *arguments)

    layer = SimpleNamespace(
        num_attention_heads=len(q),
        pos_att_type=['c2p', 'p2c'],
        share_att_key=False,
        position_buckets=-1,
        max_relative_positions=span,
        pos_ebd_size=span,
        pos_key_proj=project_keys,
        transpose_for_scores=split_heads,
        pos_query_proj=project_queries,
    )
    q, k = tensor(q), tensor(k)
    rows = torch.cat([values['ahead'], values['table']])
    bias = kind.disentangled_attention_bias(layer, q, k, None, rows, 3)
    return weights_of(q @ k.mT / module.scaled_size_sqrt(q, 3) + bias)


def transformer_xl(q, k, parameters):
    """Returns the weights of Transformer-XL: XLNet's attention in one direction.

    Args:
      q, k: [H,T,d].
      parameters: u, v [H,d], the two biases; w_r [D,H,d], what projects the sinusoids; D is T.
    """
    model = modeling('xlnet').XLNetModel
    kind = modeling('xlnet').XLNetRelativeAttention
    _, length, d = q.shape

    # No segments and no mask, which the softmax below brings.
    layer = SimpleNamespace(
        d_model=length,
        attn_type='uni',
        bi_data=False,
        clamp_len=-1,
        positional_embedding=model.positional_embedding,
        rel_shift_bnij=kind.rel_shift_bnij,
        r_w_bias=tensor(parameters['u']),
        r_r_bias=tensor(parameters['v']),
        scale=d**-0.5,
        dropout=torch.nn.Identity(),
    )
    sinusoids_ = model.relative_positional_encoding(layer, length, length)
    places = torch.einsum('ibD,Dhd->ibhd', sinusoids_, tensor(parameters['w_r']))
    q, k = (tensor(a).movedim(1, 0)[:, None] for a in (q, k))
    weights = kind.rel_attn_core(layer, q, k, k, places, output_attentions=True)[1]
    return weights_of(weights.log()[:, :, 0].permute(2, 0, 1))


# ---- whole models


def logits(kind, config, weights, tokens):
    """Returns the logits [B,T,V] of a model of transformers with the given weights.

    Args:
      kind: its class, such as 'LlamaForCausalLM'.
      config: arguments of its config.
      weights: all of its parameters, by their names there.
      tokens: [B,T].
    """
    model_class = getattr(transformers, kind)
    # What makes a config of it may add to what it holds.
    model = model_class(model_class.config_class(**copy.deepcopy(config)))
    parameters = dict(model.named_parameters())
    expected = {name: tuple(value.shape) for name, value in parameters.items()}
    given = {name: value.shape for name, value in weights.items()}
    assert given == expected, f'{kind} has other parameters: {expected}'
    for name, value in parameters.items():
        value.copy_(tensor(weights[name]))
    return {'logits': model.eval()(torch.tensor(tokens)).logits.numpy()}


def logits_of_folder(folder, tokens, padding, between=0):
    """Returns logits [B,T,V] of a model in a folder, computed in several ways.

    Args:
      folder: of Hugging Face.
      tokens: [B,T].
      padding: how many tokens of padding stand on the left in 'padded'.
      between: after how many tokens they stand in 'between'; 0: it is left out.
    Returns:
      'float32', 'float64', 'bfloat16': in these numbers. 'cached': token by token. 'padded': with
      padding on the left, which is cut off.
    """
    tokens = torch.tensor(tokens).long()
    ways = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation='eager', trust_remote_code=True
        ).eval()
        ways[str(dtype).removeprefix('torch.')] = model(tokens).logits.double().numpy()
        if dtype != torch.float32:
            continue
        cache, columns = None, []
        for column in tokens.T:
            outputs = model(column[:, None], past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            columns.append(outputs.logits)
        ways['cached'] = torch.cat(columns, 1).numpy()
        padded = torch.nn.functional.pad(tokens, (padding, 0))
        mask = torch.nn.functional.pad(torch.ones_like(tokens), (padding, 0))
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        keywords = dict(position_ids=places) if 'position_ids' in signature(model) else {}
        outputs = model(padded, attention_mask=mask, **keywords)
        ways['padded'] = outputs.logits[:, padding:].numpy()
        if between:
            parts = tokens[:, :between], torch.zeros_like(padded[:, :padding]), tokens[:, between:]
            text = torch.cat(parts, 1)
            mask = torch.cat([torch.full_like(part, i != 1) for i, part in enumerate(parts)], 1)
            ways['between'] = model(text, attention_mask=mask).logits[:, mask[0] > 0].numpy()
    return ways


def writes_of_folder(folder, tokens, lengths, count):
    """Returns how a model in a folder goes on from texts of several lengths, padded on the left.

    Args:
      folder: of Hugging Face.
      tokens: [B,T].
      lengths: [B], of how many of them each text is, the last ones.
      count: new tokens, each the likeliest one.
    Returns:
      'greedy', 'uncached', 'beams': ids [B,T + count], with a cache, without, and of two beams.
    """
    tokens = torch.tensor(tokens).long()
    places = torch.arange(tokens.shape[1])
    mask = (places >= tokens.shape[1] - torch.tensor(lengths)[:, None]).long()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    common = dict(attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    ways = {'greedy': {}, 'uncached': {'use_cache': False}, 'beams': {'num_beams': 2}}
    return {
        name: model.generate(tokens, **common, **way).numpy().astype(np.int32)
        for name, way in ways.items()
    }


def writes_of_gguf(path, tokens, count):
    """Returns what a model in a file of GGUF makes of tokens [T], and how it goes on.

    Args:
      path: of the file.
      tokens: [T].
      count: new tokens, each the likeliest one.
    Returns:
      'float32', 'float64': logits [T,V] in these numbers. 'greedy': ids of the new tokens.
    """
    tokens = torch.tensor(tokens).long()[None]
    path = pathlib.Path(path)
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config._attn_implementation = 'eager'
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    read = transformers.modeling_gguf_pytorch_utils.load_gguf_checkpoint
    weights = read(str(path), return_tensors=True, model_to_load=model)['tensors']
    left = model.load_state_dict(weights, strict=False)
    assert set(left.missing_keys) <= {'lm_head.weight'} and not left.unexpected_keys, left
    model.tie_weights()
    ways = {}
    for dtype in (torch.float32, torch.float64):
        model = model.to(dtype)
        ways[str(dtype).removeprefix('torch.')] = model(tokens).logits[0].double().numpy()
        if dtype == torch.float32:
            new = model.generate(
                tokens, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            ways['greedy'] = new[0, tokens.shape[1] :].numpy()
    return ways


def signature(model):
    return inspect.signature(model.forward).parameters


# ---- tokens


def tokens(files, strings, conversations):
    """Returns the ids of strings, whole and as text, and those of conversations with their masks.

    Args:
      files: content of the files of a folder, by name.
      strings: to encode: special tokens as such (`ids`), and as the text they are (`text`).
      conversations: lists of (role, content), each ending with an answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (pathlib.Path(folder) / name).write_text(content, encoding='utf-8')
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def encode(**how):
        return tokenizer(strings, add_special_tokens=False, **how)['input_ids']

    chats = []
    masks = []
    asked = []
    for conversation in conversations:
        turns = [{'role': role, 'content': content} for role, content in conversation]
        whole = tokenizer.apply_chat_template(
            turns, return_dict=True, return_assistant_tokens_mask=True
        )
        chats.append(whole['input_ids'])
        masks.append(whole['assistant_masks'])
        prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True)
        asked.append(prompt['input_ids'])
    rows = dict(ids=encode(), text=encode(split_special_tokens=True), chats=chats)
    rows |= dict(masks=masks, asked=asked)
    return {name: joined(lists) for name, lists in rows.items()}


def joined(lists):
    """Returns lists of whole numbers as one array, each after its length."""
    return np.concatenate([[len(one), *one] for one in lists]).astype(np.int32)
