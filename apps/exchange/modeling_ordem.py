"""A decoder of Ordem in PyTorch.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

It lies in the folders of models that no class of transformers computes, beside config.json, whose
fields are those of `config.model` in Ordem, and `positions_ordem.py`, the positional encodings.

Dimensions: B batch, T new tokens, S all tokens, H heads, K key-value heads, d head size, D width.
"""

import dataclasses
import types

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .positions_ordem import KINDS, Here

BIASED = {  # config.biases -> projections
    'none': '',
    'qkv': 'q k v',
    'attention': 'q k v o',
    'feed_forward': 'up gate down',
    'all': 'q k v o up gate down',
}


class OrdemConfig(PreTrainedConfig):
    """Holds the architecture; under transformers' names, too, where it has them."""

    model_type = 'ordem'
    attribute_map = {
        'hidden_size': 'width',
        'intermediate_size': 'mlp_width',
        'num_hidden_layers': 'num_layers',
        'num_attention_heads': 'num_heads',
        'num_key_value_heads': 'num_kv_heads',
        'max_position_embeddings': 'max_len',
        'tie_word_embeddings': 'tied',
    }


def project(config, inputs, outputs, name):
    """Returns a projection; its bias is there where the architecture has it."""
    return nn.Linear(inputs, outputs, bias=name in BIASED[config.biases].split())


class Norm(nn.Module):
    """Normalises the last axis, in float32 or more: RMSNorm, or LayerNorm with or without bias."""

    def __init__(self, kind, size, eps):
        super().__init__()
        self.kind = kind
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if kind == 'layernorm' else None

    def forward(self, x):
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.kind != 'rmsnorm':
            y = y - y.mean(-1, keepdim=True)
        y = y * (y.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class Arrays(nn.Module):
    """Holds the arrays of encodings, by name."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def get(self, prefix, dtype):
        """Returns those whose names begin so, by the rest of their names."""
        return {
            name.removeprefix(prefix): array.to(dtype)
            for name, array in self.named_parameters()
            if name.startswith(prefix)
        }


class Attention(nn.Module):
    """Lets each token read from those that it sees: softmax(q k^T / sqrt(d) + bias) v."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.layer = layer
        heads = config.num_heads * config.head_dim
        kv_heads = config.num_kv_heads * config.head_dim
        self.q_proj = project(config, config.width, heads, 'q')
        self.k_proj = project(config, config.width, kv_heads, 'k')
        self.v_proj = project(config, config.width, kv_heads, 'v')
        self.o_proj = project(config, heads, config.width, 'o')
        if config.qk_norm:
            is_whole = config.qk_norm_over == 'heads'
            for name, size in (('q_norm', heads), ('k_norm', kv_heads)):
                size = size if is_whole else config.head_dim
                setattr(self, name, Norm('rmsnorm', size, config.norm_eps))

        # The encodings of the layer, and their arrays in it.
        listed = config.encodings[config.pattern[layer]]
        self.encodings = [KINDS[one['kind']](one, config) for one in listed]
        shapes = {}
        for one in listed:
            shapes |= {one['prefix'] + name: shape for name, shape in one['own'].items()}
        self.positions = Arrays(shapes)

    def forward(self, x, here, shared, cache):
        """Returns what the tokens read, [B,T,D].

        Args:
          x: [B,T,D].
          here: of the tokens.
          shared: scope -> arrays of encodings that belong to the whole model.
          cache: or None.
        """
        config = self.config
        here = dataclasses.replace(here, x=x)
        parts = []
        for one in self.encodings:
            arrays = self.positions.get(one.prefix, here.float) | shared[one.scope]
            parts.append((one, types.SimpleNamespace(**arrays)))

        # Queries, keys and values, [B,heads,T,d]; what turns and scales them as they come.
        q = self.split(self.q_proj(x), 'q_norm')
        k = self.split(self.k_proj(x), 'k_norm')
        v = self.split(self.v_proj(x))
        for one, w in parts:
            q, k = one.rotate(q, k, w, here)
        here.visible = self.see(parts, here)
        for one, w in parts:
            q = one.scale(q, w, here)

        # With a cache, what it holds of earlier tokens comes before that of the new ones.
        kept = [(w, name, t) for one, w in parts for name, t in one.keep(w, here).items()]
        tensors = [k.transpose(1, 2), *(t for _, _, t in kept)]
        all_queries = any(one.all_queries for one in self.encodings)
        if all_queries:
            tensors.append(q.transpose(1, 2))
        tensors, v = self.remember(tensors, v, cache)
        k = tensors[0].transpose(1, 2).to(x.dtype)
        for (w, name, _), t in zip(kept, tensors[1:]):
            setattr(w, name, t)
        if all_queries:
            q = tensors[-1].transpose(1, 2).to(x.dtype)
            here.count = q.shape[2]
            here.visible = self.see(parts, here)

        # Logits: products under the cap, biases, and what changes them.
        for one, w in parts:
            q, k = one.read(q, k, w, here)
        groups = config.num_heads // config.num_kv_heads
        here.q = q.to(here.float)
        here.k = k.repeat_interleave(groups, 1).to(here.float)
        z = here.q @ here.k.mT * config.head_dim**-0.5
        for one, w in parts:
            z = one.product(z, w, here)
        if config.logit_cap:
            z = config.logit_cap * (z / config.logit_cap).tanh()
        biases = [one.bias(w, here) for one, w in parts]
        z = sum((bias for bias in biases if bias is not None), z)
        for one, w in parts:
            z = one.logits(z, w, here)

        # Weights, and the values by their weights.
        weights = [one.softmax(z, w, here) for one, w in parts]
        plain = z.masked_fill(~here.visible, -1e30).softmax(-1)
        weights = next((own for own in weights if own is not None), plain)
        read = weights.to(v.dtype) @ v.repeat_interleave(groups, 1)
        values = [one.value(weights, w, here) for one, w in parts]
        read = sum((value.to(read.dtype) for value in values if value is not None), read)
        return self.o_proj(read[:, :, -x.shape[1] :].transpose(1, 2).flatten(2))

    def split(self, x, norm=''):
        """Returns vectors [B,T,heads*d] as [B,heads,T,d], normalised where they are."""
        if norm and self.config.qk_norm and self.config.qk_norm_over == 'heads':
            x = getattr(self, norm)(x)
        x = x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        if norm and self.config.qk_norm and self.config.qk_norm_over == 'head':
            x = getattr(self, norm)(x)
        return x

    def see(self, parts, here):
        """Returns which keys the queries see, bool [B,1 or H,T,S]."""
        seen = here.tokens[:, -here.count :, None] & here.tokens[:, None]
        if self.config.causal:
            seen = seen & (here.distance >= 0)
        if self.config.window:
            seen = seen & (here.distance.abs() < self.config.window)
        seen = seen[:, None]
        for one, _ in parts:
            mask = one.mask(here)
            seen = seen if mask is None else seen & mask
        return seen

    def remember(self, tensors, v, cache):
        """Returns tensors [B,T,...] and values with those of the cache before them, [B,S,...].

        All of a token is one row in the cache, in the place of keys: [B,1,S,n].
        """
        if cache is None:
            return tensors, v
        rows = torch.cat([t.reshape(*t.shape[:2], -1) for t in tensors], -1)
        rows, v = cache.update(rows[:, None], v, self.layer)
        columns = rows[:, 0].split([t[0, 0].numel() for t in tensors], -1)
        return [c.reshape(*c.shape[:2], *t.shape[2:]) for c, t in zip(columns, tensors)], v


class Layer(nn.Module):
    """One layer: attention and feed-forward, each beside a norm."""

    def __init__(self, config, layer):
        super().__init__()
        self.config = config
        self.attention_norm = Norm(config.norm, config.width, config.norm_eps)
        self.feed_forward_norm = Norm(config.norm, config.width, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)

    def forward(self, x, here, shared, cache):
        """Returns the residual stream after the layer, [B,T,D]."""
        if self.config.residual == 'post_norm':
            x = x + self.attention_norm(self.self_attn(x, here, shared, cache))
            return x + self.feed_forward_norm(self.mlp(x))
        y = x + self.self_attn(self.attention_norm(x), here, shared, cache)
        before = x if self.config.residual == 'parallel' else y
        return y + self.mlp(self.feed_forward_norm(before))


class FeedForward(nn.Module):
    """SwiGLU or GELU."""

    def __init__(self, config):
        super().__init__()
        self.activation = config.activation
        self.up_proj = project(config, config.width, config.mlp_width, 'up')
        self.down_proj = project(config, config.mlp_width, config.width, 'down')
        if self.activation == 'swiglu':
            self.gate_proj = project(config, config.width, config.mlp_width, 'gate')

    def forward(self, x):
        if self.activation == 'swiglu':
            return self.down_proj(self.up_proj(x) * F.silu(self.gate_proj(x)))
        approximate = 'tanh' if self.activation == 'gelu' else 'none'
        return self.down_proj(F.gelu(self.up_proj(x), approximate=approximate))


class OrdemPreTrainedModel(PreTrainedModel):
    """What both models below share."""

    config_class = OrdemConfig
    base_model_prefix = 'model'
    _no_split_modules = ['Layer']
    _keep_in_fp32_modules_strict = ['positions', 'norm']  # as in Ordem


class OrdemModel(OrdemPreTrainedModel):
    """The decoder without logits."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        if config.embedding_norm:
            self.embedding_norm = Norm(config.norm, config.width, config.norm_eps)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = Norm(config.norm, config.width, config.norm_eps)

        # Encodings that are in several layers have some arrays once, by the name of their scope.
        listed = [one for layer in config.encodings for one in layer]
        self.scopes = {one['scope']: KINDS[one['kind']](one, config) for one in listed}
        self.positions = nn.ModuleDict({one['scope']: Arrays(one['shared']) for one in listed})
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        """Returns the hidden states [B,T,D], and the cache with the new tokens in it.

        Args:
          input_ids: new tokens, [B,T]; or `inputs_embeds`, their vectors.
          attention_mask: of all tokens, [B,S], 0 for padding, on any side; places are counted
            without it, so `position_ids` are not asked for.
          cache: from the call before, by older releases given as `past_key_values`.
        """
        config = self.config
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = kwargs.get('past_key_values', cache)
        if cache is None and use_cache:
            cache = DynamicCache()
        total = x.shape[1] + (0 if cache is None else cache.get_seq_length())
        if attention_mask is None:
            attention_mask = torch.ones(x.shape[0], total, dtype=torch.long, device=x.device)
        if attention_mask.shape != (x.shape[0], total):
            found = list(attention_mask.shape)
            raise ValueError(f'attention_mask is {found}: expected {[x.shape[0], total]}')
        places = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        wide = torch.promote_types(x.dtype, torch.float32)
        here = Here(places, attention_mask.bool(), x.shape[1], wide)

        # The embedding, with positions in it where an encoding adds them there.
        if config.scale_embedding:
            x = x * config.width**0.5
        if config.embedding_norm:
            x = self.embedding_norm(x)
        shared = {scope: arrays.get('', wide) for scope, arrays in self.positions.items()}
        for scope, one in self.scopes.items():
            x = one.embed(x, types.SimpleNamespace(**shared[scope]), here)
        for layer in self.layers:
            x = layer(x, here, shared, cache)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), **_named(cache))


def _named(cache):
    """Returns a cache under the name that this release of transformers has for it."""
    fields = {field.name for field in dataclasses.fields(BaseModelOutputWithPast)}
    return {'cache' if 'cache' in fields else 'past_key_values': cache}


class OrdemForCausalLM(OrdemPreTrainedModel, GenerationMixin):
    """The decoder with logits."""

    _tied_weights_keys = {'lm_head.weight': 'model.embed_tokens.weight'}

    def __init__(self, config):
        super().__init__(config)
        self.model = OrdemModel(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        cache=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Returns logits [B,T,V] of what follows each token; arguments as of `OrdemModel`.

        `logits_to_keep`: of the last so many tokens only; 0: of all.
        """
        cache = kwargs.pop('past_key_values', cache)
        outputs = self.model(input_ids, attention_mask, cache, inputs_embeds, use_cache)
        x = outputs[0]
        if isinstance(logits_to_keep, int):
            logits_to_keep = slice(-logits_to_keep, None) if logits_to_keep else slice(None)
        logits = self.lm_head(x[:, logits_to_keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        cache = outputs[1] if len(outputs) > 1 else None
        return CausalLMOutputWithPast(loss=loss, logits=logits, **_named(cache))
