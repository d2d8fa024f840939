"""What a model does with one prompt, step by step: the numbers behind `apps.explain`.

Everything is read off one forward pass (`observe`). What a positional encoding does is not known
here: its own methods are called by the model as always, through `Watched`, which keeps what went in
and what came out at each place of entry.

Dimensions: P tokens of the padded prompt, T those that are drawn, L layers, H heads, d head size, D
width, V vocabulary.
"""

import dataclasses
import functools
import re
import unicodedata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from data.chat import decode_answer, encode_prompt, stop_ids
from data.records import printable
from data.text import line_ends
from data.tokenizer import Tokenizer
from model.errors import ModelError
from model.generate import (
    cast_weights,
    decode,
    end_ids,
    pad,
    read_prompts,
    round_up,
    unroll_layers,
)
from model.layers import Norm
from model.positions import ENTERS
from model.ring import scaled_products, soft_cap, visible_pairs
from model.sampling import Sampling
from model.transformer import Block, Transformer, output_matrix, unembed

DRAWN = 48  # tokens at the end of a prompt that matrices are drawn for
DIMENSIONS = 64  # of an embedding that are drawn
NEIGHBOURS = 5
GUESSES = 5  # of each layer
LIKELIEST = 20
NEW = 24  # tokens of a continuation
ROWS = 8  # the prompt and its swaps: always as many, so that one program serves all

_BYTES = re.compile('(<0x[0-9A-F]{2}>)+')
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SPACE = '\u2581'  # as SentencePiece writes one
_UNKNOWN = ' \u2047 '  # as it decodes its piece for what has none, which byte fallback never needs


# --- What is watched ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Watched:
    """An encoding in one layer, which does what it does and leaves what it did in `log`.

    It stands in the place of the encoding while the model is traced; all that is not written here
    is the encoding's own.
    """

    encoding: Any
    layer: int
    params: Any = dataclasses.field(compare=False, repr=False)  # of the encoding in this layer
    config: Any = dataclasses.field(compare=False, repr=False)
    log: dict = dataclasses.field(compare=False, repr=False)

    def __getattr__(self, name):
        return getattr(self.encoding, name)

    def redraw(self, inputs, layer, beside):
        redrawn = self.encoding.redraw(inputs, layer, beside)
        self.log['ids'] = redrawn.q_ids
        return redrawn

    def rotate(self, inputs, q, k):
        self.log['plain'] = (q, k)
        return self.encoding.rotate(inputs, q, k)

    def read(self, inputs, q, k):
        self.log['turns'] = self._probe(inputs)
        return self.encoding.read(inputs, q, k)

    def additive(self, inputs):
        bias = self.encoding.additive(inputs)
        self.log['bias'] = bias
        return bias

    def softmax(self, inputs, logits, mask):
        weights = self.encoding.softmax(inputs, logits, mask)
        self.log['weights'] = weights

        # The same queries and keys without the encoding: their products, and who sees whom.
        q, k = self.log['plain']
        products = soft_cap(scaled_products(q, k, self.config), self.config)
        places = (inputs.positions, inputs.segment_ids, inputs.k_positions, inputs.k_segment_ids)
        visible = visible_pairs(*places, self.config.window, self.config.causal)
        self.log['bare'] = jax.nn.softmax(jnp.where(visible, products, -1e30), axis=-1)
        return weights

    def _probe(self, inputs) -> dict[str, jax.Array] | None:
        """Returns how unit vectors and the queries themselves are turned, of the first head.

        'units' [d,P,d'], a unit vector along each dimension; 'before' and 'after' [P,d] and [P,d'],
        the queries. None where queries are not turned.
        """
        if not self.encoding.enters() & {'rotate', 'read'}:
            return None
        q, k = self.log['plain']

        # Parameters are looked up: none can be declared inside of a transformation.
        inputs = dataclasses.replace(inputs, param=lambda name, *_: self.params[name])

        def turn(query):
            """Returns a query of all heads and places, [P,d] or [d], turned: [P,d']."""
            turned, keys = self.encoding.rotate(inputs, jnp.broadcast_to(query, q.shape), k)
            return self.encoding.read(inputs, turned, keys)[0][0, 0]

        units = jax.vmap(turn)(jnp.eye(q.shape[-1], dtype=q.dtype))
        return {'units': units, 'before': q[0, 0], 'after': turn(q[0, 0])}


@functools.partial(jax.jit, static_argnames=('model',))
def observe(model: Transformer, params, tokens: jax.Array, length: jax.Array, words: jax.Array):
    """Returns what happens to one prompt on its way through a model, in one forward pass.

    Args:
      model: with unrolled layers.
      tokens: [P] int32, padded on the right.
      length: how many of them are the prompt's.
      words: bool [V], the pieces that may be named as neighbours.
    Returns:
      arrays of the last T = min(P, DRAWN) tokens: 'start', the first of them; 'ids' [P], those that
      encodings see; 'vectors' [T,D] of the table; 'neighbours' and 'cosines' [T,NEIGHBOURS];
      'added' {scope: [T,D]}, what encodings add to an embedding of zeros; 'guesses' and 'shares'
      [L+1,T,GUESSES], the likeliest next tokens after the embedding and after each layer; 'logits'
      [V] of the last token; 'layers', of each layer with attention 'weights' and 'bare' [H,T,T],
      attention with its encoding and without, 'bias' [H,T,T] or None, 'ids' [P], 'turns'
      (`Watched._probe`).
    """
    cfg = model.config
    columns = jnp.arange(len(tokens), dtype=jnp.int32)
    segment_ids = (columns < length).astype(jnp.int32)[None]
    drawn = min(len(tokens), DRAWN)
    start = jnp.maximum(length - drawn, 0)

    def cut(x, *axes):
        """Returns the part of x that is drawn."""
        for axis in axes:
            x = jax.lax.dynamic_slice_in_dim(x, start, drawn, axis)
        return x

    # 1. The pass, each layer's encoding and the residual stream watched.
    logs: list[dict] = [{} for _ in cfg.encodings]
    stream: list[jax.Array] = []
    layouts: list = []

    def watch(call, arguments, keywords, context):
        outputs = call(*arguments, **keywords)
        if context.method_name == '_embed_positions':
            layouts.append(arguments[1])
            stream.append(outputs[0])
        elif isinstance(context.module, Block) and context.method_name == '__call__':
            stream.append(outputs[0])
        return outputs

    watched = tuple(
        Watched(encoding, i, params[f'layer_{i}'].get('attention', {}).get('positions'), cfg, log)
        for i, (encoding, log) in enumerate(zip(cfg.encodings, logs))
    )
    seen = dataclasses.replace(cfg, encodings=watched, attention='reference', remat='none')
    with nn.intercept_methods(watch):
        logits, _ = Transformer(seen).apply(
            {'params': params}, tokens[None], columns[None] * segment_ids, segment_ids
        )

    # 2. The table, and what encodings add to an embedding.
    table = params['embedding'].astype(jnp.float32)
    unit = table * jax.lax.rsqrt(jnp.square(table).sum(-1, keepdims=True) + 1e-12)
    ids = cut(tokens, 0)
    cosines = jnp.where(words, unit[ids] @ unit.T, -2.0).at[jnp.arange(drawn), ids].set(-2.0)
    cosines, neighbours = jax.lax.top_k(cosines, min(NEIGHBOURS, cfg.vocab_size))
    added = {}
    for part, scope in zip(cfg.parts, cfg.scopes):
        if 'embed' in part.enters():
            inputs = layouts[0].encoding_inputs(lambda name, *_, s=scope: params[s][name])
            nothing = jnp.zeros((1, len(tokens), cfg.width), jnp.dtype(cfg.dtype))
            added[scope] = cut(part.embed(inputs, nothing)[0], 0)

    # 3. What each layer would have said, had it been the last.
    def guess(x_PxD):
        x = Norm(cfg.norm, cfg.norm_eps).apply(
            {'params': params['final_norm']}, cut(x_PxD, 0)[None]
        )
        shares = jax.nn.softmax(unembed(x, output_matrix(cfg, params), cfg.tied)[0], axis=-1)
        return jax.lax.top_k(shares, min(GUESSES, cfg.vocab_size))

    guesses = [guess(x[0]) for x in stream]
    outcome = {
        'start': start,
        'ids': layouts[0].ids[0],
        'vectors': table[ids],
        'neighbours': neighbours,
        'cosines': cosines,
        'added': added,
        'layers': [_layer_arrays(log, cut) for log in logs if log],
        'guesses': jnp.stack([tokens for _, tokens in guesses]),
        'shares': jnp.stack([shares for shares, _ in guesses]),
        'logits': logits[0, length - 1],
    }
    for log in logs:
        log.clear()  # caches of the model hold on to `Watched`
    return outcome


def _layer_arrays(log: dict, cut) -> dict:
    """Returns what is kept of a layer; `cut` takes the part that is drawn."""
    weights = cut(log['weights'][0], 1, 2)
    bias = log['bias']
    if bias is not None:
        shape = (1, *log['weights'].shape[1:])
        bias = cut(jnp.broadcast_to(bias[:1], shape)[0].astype(jnp.float32), 1, 2)
    return {
        'weights': weights,
        'bare': cut(log['bare'][0], 1, 2),
        'bias': bias,
        'ids': log['ids'][0],
        'turns': log['turns'],
    }


# --- Pieces and words -----------------------------------------------------------------------------


def describe_piece(tokenizer: Tokenizer, token: int) -> dict:
    """Returns {'text', 'kind'} of a token as it may be shown.

    kind: 'byte' (text is two hex digits for each), 'mark' of the tokenizer, which stands for no
    text, or 'text'. Spaces are spaces, and what would command a terminal is spelled out.
    """
    piece = tokenizer.piece(token)
    if _BYTES.fullmatch(piece):
        return {'text': re.sub('<0x|>', '', piece), 'kind': 'byte'}
    if tokenizer.decode([token]) in ('', _UNKNOWN):
        return {'text': printable(piece), 'kind': 'mark'}
    return {'text': printable(piece.replace(_SPACE, ' ')), 'kind': 'text'}


def find_words(tokenizer: Tokenizer, tokens: list[int]) -> list[dict]:
    """Returns the words of a tokenized prompt: {'text', 'pieces', 'fate'}.

    'pieces' are places in `tokens`. 'fate': 'whole' (one piece), 'parts', 'characters' (one piece
    each), 'bytes' (some are spelled in bytes: no piece holds them) or 'mark'. Punctuation is a word
    of its own.
    """
    pieces = [describe_piece(tokenizer, token) for token in tokens]
    groups: list[list[int]] = []
    before: dict = {'text': '', 'kind': 'mark'}
    for place, piece in enumerate(pieces):
        begins = piece['text'].startswith((' ', '\n')) or before['text'].endswith('\n')
        both = {piece['kind'], before['kind']}
        joins = not begins and 'mark' not in both
        if joins and 'byte' not in both and before['text'].strip():
            joins = _is_lexical(piece['text']) == _is_lexical(before['text'])
        if joins:
            groups[-1].append(place)
        else:
            groups.append([place])
        before = piece

    words = []
    for group in groups:
        inside = [pieces[place] for place in group]
        kinds = {piece['kind'] for piece in inside}
        ids = [tokens[place] for place in group]
        longest = max(len(piece['text'].strip()) for piece in inside)
        fate = 'parts'
        if 'mark' in kinds:
            fate = 'mark'
        elif 'byte' in kinds:
            fate = 'bytes'
        elif len(group) == 1:
            fate = 'whole'
        elif longest <= 1:
            fate = 'characters'
        text = inside[0]['text'] if fate == 'mark' else printable(tokenizer.decode(ids)).strip(' ')
        words.append({'text': text, 'pieces': group, 'fate': fate})
    return words


def _is_lexical(text: str) -> bool:
    """Returns whether a piece holds a letter, a digit or a mark on one."""
    return any(unicodedata.category(letter)[0] in 'LNM' for letter in text)


def swap_words(prompt: str, most: int = ROWS - 1) -> list[tuple[str, str, str]]:
    """Returns (first word, second word, prompt with the two swapped) for neighbouring words.

    At most `most`, the last ones; words that are the same are no pair.
    """
    found = [*_WORD.finditer(prompt)]
    swaps = []
    for a, b in zip(found, found[1:]):
        if a[0] != b[0]:
            between = prompt[a.end() : b.start()]
            swapped = prompt[: a.start()] + b[0] + between + a[0] + prompt[b.end() :]
            swaps.append((a[0], b[0], swapped))
    return swaps[-most:]


# --- What is told of it ---------------------------------------------------------------------------


class Walk:
    """One model, and what it does with prompts.

    Args:
      model, params, tokenizer: as `runtime.models.load` gives them.
      in_template: whether prompts are asked in the chat template, as after post-training.
    """

    def __init__(self, model: Transformer, params, tokenizer: Tokenizer, in_template: bool):
        # Without dropout, which no evaluation has: a run and its parent are then one program.
        config = dataclasses.replace(model.config, dropout=0.0)
        self.model, self.params = unroll_layers(Transformer(config), params)
        self.tokenizer = tokenizer
        self.in_template = in_template

    def encode(self, prompt: str) -> list[int]:
        """Returns the token ids of a prompt, marks included."""
        if self.in_template:
            return encode_prompt([('user', prompt)], self.tokenizer)
        return [*self.tokenizer.begin, *self.tokenizer.encode(line_ends(prompt))]

    def check(self, prompt: str) -> None:
        """Raises ModelError where the model has no next word for the prompt, or no room for it."""
        if not self.model.config.causal:
            raise ModelError(
                'this model sees both ways (config.model.causal is False): it embeds texts and has '
                'no next word; expected a causal one'
            )
        length = len(self.encode(prompt))
        context = self.model.config.max_len
        if length >= context:
            raise ModelError(
                f'the prompt has {length} tokens, the context of this model {context}: expected at '
                f'most {context - 1}'
            )

    def follow(self, prompt: str) -> dict:
        """Returns all that the page shows of a prompt, but for the last section, as JSON values.

        Raises ModelError as `check`, or where the logits are no numbers.
        """
        self.check(prompt)
        tokens = self.encode(prompt)
        padded, _ = pad([tokens])
        arrays = jax.device_get(
            observe(self.model, self.params, padded[0], np.int32(len(tokens)), self._text_pieces())
        )
        if not np.isfinite(arrays['logits']).all():
            raise ModelError('the logits of this model are no numbers: its training went wrong')

        start = int(arrays['start'])
        shown = slice(0, len(tokens) - start)
        order = np.argsort(-arrays['logits'], kind='stable')
        return {
            'pieces': [{'id': t, **describe_piece(self.tokenizer, t)} for t in tokens],
            'words': find_words(self.tokenizer, tokens),
            'start': start,
            'vectors': _rounded(arrays['vectors'][shown, :DIMENSIONS]),
            'neighbours': [
                [{'text': self._text(i), 'cosine': _rounded(c)} for i, c in zip(ids, values)]
                for ids, values in zip(arrays['neighbours'][shown], arrays['cosines'][shown])
            ],
            'positions': self._positions(arrays, len(tokens)),
            'attention': [_triangles(layer['weights'], shown) for layer in arrays['layers']],
            'guesses': [
                [self._named(*guess) for guess in zip(ids[shown], shares[shown])]
                for ids, shares in zip(arrays['guesses'], arrays['shares'])
            ],
            'next': [self._text(i) for i in order[:LIKELIEST]],
            'logits': _rounded(arrays['logits'][order]),
            'swaps': self._swaps(prompt),
        }

    def continue_greedily(self, prompts: list[str]) -> list[dict]:
        """Returns what each prompt goes on with: {'next', 'shares', 'text'}, at most ROWS prompts.

        'next': the likeliest next tokens; 'shares': the probability of each id, float32 [V].
        """
        rows = [self.encode(prompt) for prompt in prompts]
        filled = rows + [rows[0]] * (ROWS - len(rows))
        model, params = self.model, cast_weights(self.model, self.params)
        prompts_padded, lengths = pad(filled)
        # So many columns for each padded length: a run and its parent are one program.
        columns = prompts_padded.shape[1] + round_up(NEW)
        state = read_prompts(model, params, prompts_padded, lengths, columns)
        shares = np.asarray(jax.nn.softmax(state['logits'], axis=-1))

        state['key'] = jax.random.key(0)  # of greedy drawing nothing depends on it
        settings = dataclasses.asdict(Sampling(temperature=0.0))
        end = end_ids(stop_ids(self.tokenizer))
        _, drawn = decode(model, params, state, settings, np.int32(NEW), NEW, end)

        outcomes = []
        for row, row_shares in zip(np.asarray(drawn)[: len(rows)], shares):
            order = np.argsort(-row_shares, kind='stable')[: LIKELIEST // 2]
            ids = [int(token) for token in row if token >= 0]
            text = self.tokenizer.decode(ids)
            if self.in_template:
                text = decode_answer(ids, self.tokenizer)
            likeliest = self._named(order, row_shares[order])
            outcomes.append({'next': likeliest, 'shares': row_shares, 'text': printable(text)})
        return outcomes

    def _swaps(self, prompt: str) -> dict:
        """Returns what comes next, and what would if two neighbouring words were swapped."""
        room = self.model.config.max_len
        swaps = [swap for swap in swap_words(prompt) if len(self.encode(swap[2])) < room]
        first, *others = self.continue_greedily([prompt, *(text for _, _, text in swaps)])
        told = []
        for (a, b, text), outcome in zip(swaps, others):
            moved = 0.5 * np.abs(outcome['shares'] - first['shares']).sum()
            words = [printable(a), printable(b)]
            told.append(_without_shares(outcome, words=words, prompt=printable(text), moved=moved))
        return {'unchanged': _without_shares(first), 'swapped': told}

    def _positions(self, arrays: dict, length: int) -> dict:
        """Returns what the encodings of the layers do to this prompt."""
        cfg = self.model.config
        start = int(arrays['start'])
        shown = slice(0, length - start)
        places = np.arange(length)
        groups: list[dict] = []
        for encoding in cfg.distinct:
            layers = [i for i, other in enumerate(cfg.encodings) if other is encoding]
            enters = [place for place in ENTERS if place in encoding.enters()]
            attention = arrays['layers'][layers[0] : layers[0] + 1]
            turns = attention[0]['turns'] if attention else None
            groups.append(
                {
                    'layers': layers,
                    'title': encoding.spec.title,
                    'source': encoding.spec.source,
                    'enters': enters,
                    'turns': find_turns(turns, slice(start, length)),
                }
            )

        ids: list[dict] = []
        for layer, of_layer in enumerate([arrays, *arrays['layers']], -1):
            seen = of_layer['ids'][:length]
            known = ids[-1]['ids'] if ids else places.tolist()
            if seen.tolist() != known:
                ids.append({'layer': layer, 'ids': seen.tolist()})
        changes = [
            _triangles(layer['weights'] - layer['bare'], shown) for layer in arrays['layers']
        ]
        return {
            'groups': groups,
            'ids': [{**one, 'ids': one['ids'][start:]} for one in ids],
            'added': [
                {'scope': scope, 'vectors': _rounded(x[shown, :DIMENSIONS])}
                for scope, x in arrays['added'].items()
            ],
            'bias': [
                None if layer['bias'] is None else _triangles(layer['bias'], shown)
                for layer in arrays['layers']
            ],
            'change': changes,
        }

    def _text_pieces(self) -> np.ndarray:
        """Returns which pieces stand for text, bool [V]."""
        pieces = (describe_piece(self.tokenizer, t) for t in range(self.tokenizer.vocab_size))
        return np.asarray([piece['kind'] == 'text' for piece in pieces])

    def _text(self, token: int) -> str:
        piece = describe_piece(self.tokenizer, int(token))
        return f'<{piece["text"]}>' if piece['kind'] == 'byte' else piece['text']

    def _named(self, ids, shares) -> list[dict]:
        """Returns tokens with their probabilities."""
        return [{'text': self._text(i), 'share': _rounded(s)} for i, s in zip(ids, shares)]


def _without_shares(outcome: dict, **more) -> dict:
    """Returns an outcome of `continue_greedily` as JSON values, with `more` in it."""
    moved = {name: _rounded(x) if name == 'moved' else x for name, x in more.items()}
    return {name: x for name, x in outcome.items() if name != 'shares'} | moved


def find_turns(probe: dict | None, shown: slice, hands: int = 6) -> dict | None:
    """Returns the angles by which an encoding turns pairs of dimensions, None where it does not.

    They are read off what it makes of unit vectors: dimensions that mix are a pair, and the angle
    is that of the first one's image. Nothing of this knows the encoding.

    Args:
      probe: as of `Watched._probe`, of all places.
      shown: the places that are told of.
      hands: pairs that are told of, from the fastest to the slowest.
    Returns:
      'angles' [pair][place], radians; 'lengths' alike, of a vector of length 1 after the turn.
    """
    if probe is None:
        return None
    units = np.asarray(probe['units'], np.float64)[:, shown]  # [d,T,d']
    before = np.asarray(probe['before'], np.float64)[shown]
    after = np.asarray(probe['after'], np.float64)[shown]
    size = units.shape[0]
    if units.shape[2] != size or not np.isfinite(units).all():
        return None

    # Only what is linear in the query is a turn.
    expected = np.einsum('td,dte->te', before, units)
    if np.abs(expected - after).max() > 1e-2 * (1 + np.abs(after).max()):
        return None

    # The partner of each dimension; what lies beside the two would be no turn in one plane.
    pairs = []
    for first in range(size):
        image = units[first]  # [T,d]
        weight = np.square(image).sum(0)
        weight[first] = -1
        second = int(weight.argmax())
        rest = np.delete(np.square(image), [first, second], axis=1).sum(1)
        if (rest > 1e-3 * (1e-9 + np.square(image).sum(1))).any():
            return None
        if first < second:
            angle = np.arctan2(image[:, second], image[:, first])
            length = np.hypot(image[:, first], image[:, second])
            pairs.append((np.unwrap(angle), length))
    if not pairs:
        return None

    # From the fastest to the slowest, an even choice of them.
    pairs.sort(key=lambda pair: -np.abs(np.diff(pair[0])).sum())
    moving = [pair for pair in pairs if np.ptp(pair[0]) > 1e-4] or pairs[:1]
    chosen = np.unique(np.linspace(0, len(moving) - 1, min(hands, len(moving))).astype(int))
    return {
        'angles': [_rounded(moving[i][0]) for i in chosen],
        'lengths': [_rounded(moving[i][1]) for i in chosen],
    }


def _triangles(x_HxTxT: np.ndarray, shown: slice) -> list:
    """Returns [head][query][key] as JSON values, of each query the keys up to its own place."""
    return [
        [_rounded(row[: i + 1]) for i, row in enumerate(matrix[shown, shown])] for matrix in x_HxTxT
    ]


def _rounded(x, digits: int = 4):
    """Returns numbers as JSON values, None where one is none or stands for minus infinity."""
    values = np.round(np.asarray(x, np.float64), digits)
    if (np.abs(values) < 1e9).all():
        return values.tolist()
    if values.ndim:
        return [_rounded(value, digits) for value in values]
    return None
