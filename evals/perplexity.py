"""Perplexity of long texts at lengths beyond training, of the same target tokens for all models, lengths and protocols.

A window is `longest` + `scored` tokens of one document; its targets are its last `scored` tokens, all of them and no others. A
model reads chunks of L tokens of a window, L <= longest, positions from 0. Places count from 0 in a window: a chunk that ends
before place e reads the places e - L .. e - 1 and predicts the places e - L + 1 .. e; the context of a target is what its chunk
reads before it. Three protocols say which chunk that is:

    non_overlapping   chunks one after the other; 1 .. L tokens of context (Press et al. 2022, arXiv 2108.12409)
    sliding           chunks that move by S, of each only the last S predictions; L - S + 1 .. L tokens (S = 1: just L)
    fixed             the chunk that ends before the last target; L - scored + 1 .. L tokens (Kazemnejad et al. 2023, F.3)

Dimensions: W windows, N chunks, L tokens of a chunk, B chunks in a batch.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig
from model.errors import ModelError
from model.loss import cross_entropy
from model.positions import PositionalEncoding, Spec
from model.transformer import Transformer, make_row_keys
from runtime.errors import RunError

_GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly, over any run of them
BATCH_TOKENS = 8192  # read at a time: a batch has as many chunks as fit, at least one


@dataclasses.dataclass(frozen=True)
class Targets:
    """Windows, `tokens` [W, longest + scored] int32, the last `scored` of each being targets; `documents` [W], the number of each
    one's document in the list they were chosen from, and `starts` [W], where it begins there."""

    tokens: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    scored: int

    @property
    def longest(self) -> int:
        return self.tokens.shape[1] - self.scored


@dataclasses.dataclass(frozen=True)
class Loss:
    """`nats` [W, scored] float64 of each target, and the `documents` [W] of the windows. Of a sensitivity: differences."""

    nats: np.ndarray
    documents: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per token, every token counting the same."""
        return float(self.nats.mean())

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nats.mean()))

    @property
    def by_document(self) -> dict[int, tuple[float, int]]:
        """{document: (sum of nats, tokens)}: what a bootstrap draws, since the tokens of a document depend on each other."""
        return {
            int(d): (
                float(self.nats[self.documents == d].sum()),
                int((self.documents == d).sum()) * self.nats.shape[1],
            )
            for d in np.unique(self.documents)
        }

    def __sub__(self, other: 'Loss') -> 'Loss':
        return Loss(self.nats - other.nats, self.documents)


def targets(documents: Sequence[np.ndarray], longest: int, count: int, scored: int) -> Targets:
    """Chooses `count` windows: documents (int [n], BOS first) are cut from their beginning into windows of longest + scored
    tokens; one of each is taken, then a second of each, and so on, and at the end documents are left out evenly.

    Raises RunError where the documents do not hold as many windows.
    """
    if min(longest, count, scored) < 1:
        raise RunError(
            f'longest is {longest}, count {count}, scored {scored}: expected at least 1 of each'
        )
    size = longest + scored
    held = [
        (turn, d) for d, document in enumerate(documents) for turn in range(len(document) // size)
    ]
    if len(held) < count:
        raise RunError(
            f'the documents hold {len(held)} windows of {size} tokens (longest + scored): expected {count}'
        )
    chosen = sorted(held, key=lambda h: (h[0], h[1] * _GOLDEN % 1))[:count]
    tokens = [
        np.asarray(documents[d][turn * size : (turn + 1) * size], np.int32) for turn, d in chosen
    ]
    return Targets(
        np.stack(tokens),
        np.array([d for _, d in chosen]),
        np.array([turn * size for turn, _ in chosen]),
        scored,
    )


def non_overlapping(
    model: Transformer,
    params,
    targets: Targets,
    lengths: Iterable[int],
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """{L: Loss}: each target predicted inside consecutive chunks of L tokens, early in a chunk as often as late (the early-token
    curse of Press et al. 2022). The cuts move on from window to window, the same for all models, so that targets stand at all
    places of a chunk alike though a window may have fewer than L of them."""
    return {n: _loss(model, params, targets, n, n, batch_tokens) for n in lengths}


def sliding(
    model: Transformer,
    params,
    targets: Targets,
    lengths: Iterable[int],
    stride: int = 1,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """{L: Loss}: chunks of L tokens that move by `stride`, of each only the last `stride` predictions: each target has at least
    L - stride + 1 tokens of context (Press et al. 2022). With `stride` = L this is `non_overlapping`."""
    return {n: _loss(model, params, targets, n, stride, batch_tokens) for n in lengths}


def fixed(
    model: Transformer,
    params,
    targets: Targets,
    lengths: Iterable[int],
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """{L: Loss}: all targets of a window in the one chunk of L tokens that ends before the last of them: the context varies, the
    targets do not (Kazemnejad et al. 2023, arXiv 2305.19466, appendix F.3). L is all that the model reads, so that at the length
    of training no position is new to it: the first target has L - scored + 1 tokens of context, the last L."""
    return {n: _fixed(model, params, targets, n, batch_tokens) for n in lengths}


def by_position(
    model: Transformer,
    params,
    targets: Targets,
    train_len: int,
    times: int = 16,
    per_octave: int = 4,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, list]:
    """Mean nats against place in the text, each window read once, from its beginning out to `times` the training length.

    Bins are equally wide on a logarithmic scale, `per_octave` for a factor of 2; one of them ends at `train_len`, beyond which
    positions are new to the model. Returns lists with an entry a bin: 'places' (geometric middle), 'last' (its last place; place
    n is predicted from the n tokens before it), 'nats', and 'count' (of predicted tokens).
    Raises RunError where the windows are shorter.
    """
    length, size = train_len * times, targets.tokens.shape[1]
    if not 0 < length < size:
        raise RunError(
            f'{times} times {train_len} tokens do not fit into windows of {size}: choose longer targets'
        )
    windows = np.arange(len(targets.tokens))
    nats = _read(
        model, params, targets, length, length, windows, np.full_like(windows, length), batch_tokens
    ).sum(0)
    octaves = (
        np.arange(
            -per_octave * math.ceil(math.log2(train_len)),
            per_octave * math.ceil(math.log2(times)) + 1,
        )
        / per_octave
    )
    last = np.unique(np.minimum(np.rint(train_len * 2.0**octaves), length)).astype(int)
    before = np.concatenate([[0], last[:-1]])
    count = (last - before) * len(windows)
    return {
        'places': np.sqrt((before + 1) * last).tolist(),
        'last': last.tolist(),
        'count': count.tolist(),
        'nats': (np.add.reduceat(nats, before) / count).tolist(),
    }


def effective_context(losses: dict[int, Loss], eps: float = 0.01) -> int | None:
    """The smallest L whose loss is within `eps` nats per token of the best: more context gains nothing. `losses`: of `fixed`; None where none of
    them is finite."""
    finite = {n: loss.mean for n, loss in losses.items() if math.isfinite(loss.mean)}
    return min(
        (n for n, nats in finite.items() if nats <= min(finite.values()) + eps), default=None
    )


def max_usable_length(losses: dict[int, Loss], train_len: int, tolerance: float = 0.01) -> int:
    """The last length, `train_len` at least, whose perplexity is at most 1 + `tolerance` times that at `train_len`."""
    if train_len not in losses:
        raise RunError(f'the lengths {sorted(losses)} lack that of training ({train_len})')
    return max(
        [
            train_len,
            *(
                n
                for n, x in losses.items()
                if x.perplexity <= (1 + tolerance) * losses[train_len].perplexity
            ),
        ]
    )


def shuffle_sensitivity(
    model: Transformer,
    params,
    targets: Targets,
    length: int,
    beyond: Iterable[int],
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """{k: Loss}, differences from the text as it is: what the chunk of `fixed` has further than k tokens before the first target
    is permuted, each window by itself (Khandelwal et al. 2018, arXiv 1805.04623). 0: the order there is not used."""
    start = targets.longest + targets.scored - 1 - length
    as_it_is, found = _fixed(model, params, targets, length, batch_tokens), {}
    for k in beyond:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, k])))
        tokens, far = targets.tokens.copy(), slice(start, max(start, targets.longest - k))
        tokens[:, far] = rng.permuted(tokens[:, far], axis=1)
        found[k] = (
            _fixed(model, params, dataclasses.replace(targets, tokens=tokens), length, batch_tokens)
            - as_it_is
        )
    return found


def gap_sensitivity(
    model: Transformer,
    params,
    targets: Targets,
    length: int,
    gaps: Iterable[int],
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """{g: Loss}, differences from ids without a gap: the last `scored` tokens of the chunk of `fixed`, which the targets are
    predicted from, have ids g larger. Only the ids that encodings see move; what goes by the place (causality, windows) stays."""
    behind = np.arange(length) >= length - targets.scored
    return _moved(model, params, targets, length, {g: g * behind for g in gaps}, batch_tokens)


def shift_sensitivity(
    model: Transformer,
    params,
    targets: Targets,
    length: int,
    shifts: Iterable[int],
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """{c: Loss}, differences from ids that count from 0: all ids of the chunk of `fixed` are c larger, as with gaps."""
    return _moved(
        model, params, targets, length, {c: np.full(length, c) for c in shifts}, batch_tokens
    )


class _Offset(PositionalEncoding):
    """Adds what the data gives to the id of each token. It is an encoding because with positions that are handed to the model
    relative encodings would count columns (`EncodingInputs.consecutive`) and see no gap."""

    spec = Spec('moved ids', 'gap and shift tests', shift_invariant=False, wraps=True)

    def position_ids(self, inputs):
        return inputs.q_ids + inputs.task_ids


class _OffsetConfig(ModelConfig):
    """The same model, its ids moved after any are drawn and before an encoding sees them; no parameter changes its name."""

    @property
    def parts(self):
        return (*super().parts, _Offset(self.encodings[0].dims))


def _moved(
    model, params, targets, length, offsets: dict[int, np.ndarray], batch_tokens
) -> dict[int, Loss]:
    as_it_is = _fixed(model, params, targets, length, batch_tokens)
    moved = Transformer(_OffsetConfig(**vars(model.config)))
    return {
        n: _fixed(moved, params, targets, length, batch_tokens, offset) - as_it_is
        for n, offset in offsets.items()
    }


def _fixed(model, params, targets, length, batch_tokens, offset=None) -> Loss:
    return _loss(
        model,
        params,
        targets,
        length,
        targets.scored,
        batch_tokens,
        offset,
        first=targets.scored - 1,
    )


def _loss(model, params, targets, length, stride, batch_tokens, offset=None, first=None) -> Loss:
    """Chunks end before the places longest + `first` + 0, 1, .. strides, as many as have targets among their last `stride`
    predictions; `first`, if not given, moves on from window to window through 0 .. stride - 1."""
    if not 1 <= stride <= length <= targets.longest:
        raise RunError(
            f'chunks of {length} tokens, {stride} of them scored: expected 1 <= scored <= length <= {targets.longest}'
        )
    windows = np.arange(len(targets.tokens))
    phase = (
        np.full_like(windows, first)
        if first is not None
        else (windows * _GOLDEN % 1 * stride).astype(int)
    )
    ends = targets.longest + phase[:, None] + stride * np.arange(-(-targets.scored // stride) + 1)
    windows, which = np.nonzero(ends - stride + 1 < targets.tokens.shape[1])
    ends = ends[windows, which]
    found = _read(model, params, targets, length, stride, windows, ends, batch_tokens, offset)
    target = ends[:, None] - np.arange(stride)[::-1] - targets.longest
    inside = (target >= 0) & (target < targets.scored)
    nats = np.full((len(targets.tokens), targets.scored), np.nan)
    nats[np.broadcast_to(windows[:, None], target.shape)[inside], target[inside]] = found[inside]
    return Loss(nats, targets.documents)


def _read(
    model, params, targets, length, last, windows, ends, batch_tokens, offset=None
) -> np.ndarray:
    """Nats of the `last` predictions of each chunk, [N, last] float64, from batches of one shape. What a chunk would read beyond
    its window is padding. Raises ModelError where the encoding has no such positions."""
    most = length + (0 if offset is None else int(offset.max()))
    if any(e.spec.limited for e in model.config.distinct) and most > model.config.max_len:
        raise ModelError(
            f'positions for {most} tokens are asked for, config.model.max_len is {model.config.max_len}'
        )
    rows, size, found = max(1, batch_tokens // length), targets.tokens.shape[1], []
    for at in range(0, len(ends), rows):
        here = slice(at, at + rows)
        place = np.full((rows, length + 1), size)
        place[: len(ends[here])] = ends[here, None] - length + np.arange(length + 1)
        window = np.pad(windows[here], (0, rows - len(ends[here])))
        tokens = targets.tokens[window[:, None], np.minimum(place, size - 1)]
        nats = _nats(model, params, tokens, place[:, :-1] < size - 1, at + np.arange(rows), offset)
        found.append(np.asarray(nats, np.float64)[: len(ends[here]), length - last :])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnames='model')
def _nats(
    model, params, tokens: jax.Array, real: jax.Array, numbers: jax.Array, offset: jax.Array | None
) -> jax.Array:
    """tokens [B,L+1], which of the L read ones are `real`, numbers of the chunks [B], offsets of ids [L] -> nats [B,L]."""
    positions = jnp.where(real, jnp.arange(real.shape[1], dtype=jnp.int32), 0)
    ids = None if offset is None else jnp.broadcast_to(offset.astype(jnp.int32), real.shape)
    logits, _ = model.apply(
        {'params': params},
        tokens[:, :-1],
        positions,
        real.astype(jnp.int32),
        ids,
        row_keys=make_row_keys(numbers),
    )
    return cross_entropy(logits, tokens[:, 1:])[0]
