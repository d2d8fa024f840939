"""Perplexity of long texts at lengths beyond training, of the same target tokens for all.

The targets are the same for all models, lengths and protocols. A window is `longest` + `scored`
tokens of one document; its targets are its last `scored` tokens, all of them and no others. A model
reads chunks of L tokens of a window, L <= longest, positions from 0. Places count from 0 in a
window: a chunk that ends before place e reads the places e - L .. e - 1 and predicts the places
e - L + 1 .. e; the context of a target is what its chunk reads before it. Three protocols say which
chunk that is:

    non_overlapping   chunks one after the other; 1 .. L tokens of context
                      (Press et al. 2022, arXiv 2108.12409)
    sliding           chunks that move by S, of each only the last S predictions;
                      L - S + 1 .. L tokens (S = 1: just L)
    fixed             the chunk that ends before the last target; L - scored + 1 .. L tokens
                      (Kazemnejad et al. 2023, F.3)

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
from model.transformer import Transformer, make_row_keys, output_matrix, unembed
from runtime.errors import RunError

_GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly, over any run of them
_LOGITS = 2**27  # of them that are held at a time
BATCH_TOKENS = 8192  # read at a time: a batch has as many chunks as fit, at least one


@dataclasses.dataclass(frozen=True)
class Targets:
    """Windows of text whose last tokens are to be predicted.

    tokens: [W, longest + scored] int32, the last `scored` of each being targets.
    documents: [W], the number of each window's document in the list they were chosen from.
    starts: [W], where a window begins there.
    scored: targets of a window.
    """

    tokens: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    scored: int

    @property
    def longest(self) -> int:
        return self.tokens.shape[1] - self.scored


@dataclasses.dataclass(frozen=True)
class Loss:
    """`nats` [W, scored] float64 of each target, and the `documents` [W] of the windows.

    Of a sensitivity: differences.
    """

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
        """{document: (sum of nats, tokens)}.

        Documents are what a bootstrap draws, since the tokens of one depend on each other.
        """
        sums = {}
        for document in np.unique(self.documents):
            nats = self.nats[self.documents == document]
            sums[int(document)] = (float(nats.sum()), nats.size)
        return sums

    def __sub__(self, other: 'Loss') -> 'Loss':
        return Loss(self.nats - other.nats, self.documents)


def targets(documents: Sequence[np.ndarray], longest: int, count: int, scored: int) -> Targets:
    """Chooses `count` windows of the documents, int [n] each, BOS first.

    Documents are cut from their beginning into windows of longest + scored tokens; one of each is
    taken, then a second of each, and so on, and at the end documents are left out evenly. Raises
    RunError where the documents do not hold as many windows.
    """
    if min(longest, count, scored) < 1:
        raise RunError(
            f'longest is {longest}, count {count}, scored {scored}: expected at least 1 of each'
        )
    size = longest + scored
    windows = [
        (turn, d) for d, document in enumerate(documents) for turn in range(len(document) // size)
    ]
    if len(windows) < count:
        raise RunError(
            f'the documents hold {len(windows)} windows of {size} tokens (longest + scored): '
            f'expected {count}'
        )
    chosen = sorted(windows, key=lambda window: (window[0], window[1] * _GOLDEN % 1))[:count]
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
    """Returns {L: Loss}: each target predicted inside consecutive chunks of L tokens.

    A target is early in a chunk as often as late (the early-token curse of Press et al. 2022). The
    cuts move on from window to window, the same for all models, so that targets stand at all places
    of a chunk alike though a window may have fewer than L of them.
    """
    reader = _Reader(model, params, targets, batch_tokens)
    return {n: reader.loss(n, n) for n in lengths}


def sliding(
    model: Transformer,
    params,
    targets: Targets,
    lengths: Iterable[int],
    stride: int = 1,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """Returns {L: Loss}: chunks of L tokens that move by `stride`, of each its last predictions.

    These are the last `stride` ones: each target has at least L - stride + 1 tokens of context
    (Press et al. 2022). With `stride` = L this is `non_overlapping`.
    """
    reader = _Reader(model, params, targets, batch_tokens)
    return {n: reader.loss(n, stride) for n in lengths}


def fixed(
    model: Transformer,
    params,
    targets: Targets,
    lengths: Iterable[int],
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """Returns {L: Loss}: a window's targets in the one chunk of L tokens before the last of them.

    The context varies, the targets do not (Kazemnejad et al. 2023, arXiv 2305.19466, appendix F.3).
    L is all that the model reads, so that at the length of training no position is new to it: the
    first target has L - scored + 1 tokens of context, the last L.
    """
    reader = _Reader(model, params, targets, batch_tokens)
    return {n: reader.fixed(n) for n in lengths}


def by_position(
    model: Transformer,
    params,
    targets: Targets,
    train_len: int,
    times: int = 16,
    per_octave: int = 4,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, list]:
    """Returns mean nats against place in the text, out to `times` the training length.

    Each window is read once, from its beginning. Bins are equally wide on a logarithmic scale,
    `per_octave` for a factor of 2; one of them ends at `train_len`, beyond which positions are new
    to the model. The lists have an entry a bin: 'places' (geometric middle), 'last' (its last
    place; place n is predicted from the n tokens before it), 'nats', and 'count' (of predicted
    tokens). Raises RunError where the windows are shorter.
    """
    length = train_len * times
    size = targets.tokens.shape[1]
    if not 0 < length < size:
        raise RunError(
            f'{times} times {train_len} tokens do not fit into windows of {size}: '
            'choose longer targets'
        )
    windows = np.arange(len(targets.tokens))
    ends = np.full_like(windows, length)
    reader = _Reader(model, params, targets, batch_tokens)
    nats = reader.read(length, length, windows, ends).sum(0)

    # The last place of each bin, in octaves from the training length.
    first = -per_octave * math.ceil(math.log2(train_len))
    octaves = np.arange(first, per_octave * math.ceil(math.log2(times)) + 1) / per_octave
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
    """Returns the smallest L whose loss is within `eps` nats per token of the best.

    More context gains nothing. `losses`: of `fixed`; None where none of them is finite.
    """
    finite = {n: loss.mean for n, loss in losses.items() if math.isfinite(loss.mean)}
    enough = [n for n, nats in finite.items() if nats <= min(finite.values()) + eps]
    return min(enough, default=None)


def max_usable_length(losses: dict[int, Loss], train_len: int, tolerance: float = 0.01) -> int:
    """Returns the last length at which perplexity is no worse than at `train_len`.

    That is at most 1 + `tolerance` times as much; the length is `train_len` at least.
    """
    if train_len not in losses:
        raise RunError(f'the lengths {sorted(losses)} lack that of training ({train_len})')
    most = (1 + tolerance) * losses[train_len].perplexity
    usable = [n for n, loss in losses.items() if loss.perplexity <= most]
    return max([train_len, *usable])


def shuffle_sensitivity(
    model: Transformer,
    params,
    targets: Targets,
    length: int,
    beyond: Iterable[int],
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """Returns {k: Loss}, differences from the text as it is, of text permuted further than k.

    What the chunk of `fixed` has further than k tokens before the first target is permuted, each
    window by itself (Khandelwal et al. 2018, arXiv 1805.04623). 0: the order there is not used.
    """
    start = targets.longest + targets.scored - 1 - length
    reader = _Reader(model, params, targets, batch_tokens)
    as_it_is = reader.fixed(length)
    differences = {}
    for k in beyond:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, k])))
        tokens = targets.tokens.copy()
        far = slice(start, max(start, targets.longest - k))
        tokens[:, far] = rng.permuted(tokens[:, far], axis=1)
        permuted = dataclasses.replace(targets, tokens=tokens)
        differences[k] = dataclasses.replace(reader, targets=permuted).fixed(length) - as_it_is
    return differences


def gap_sensitivity(
    model: Transformer,
    params,
    targets: Targets,
    length: int,
    gaps: Iterable[int],
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """Returns {g: Loss}, differences from ids without a gap, of ids with a gap of g.

    The last `scored` tokens of the chunk of `fixed`, which the targets are predicted from, have ids
    g larger. Only the ids that encodings see move; what goes by the place (causality, windows)
    stays.
    """
    behind = np.arange(length) >= length - targets.scored
    reader = _Reader(model, params, targets, batch_tokens)
    return _move_ids(reader, length, {g: g * behind for g in gaps})


def shift_sensitivity(
    model: Transformer,
    params,
    targets: Targets,
    length: int,
    shifts: Iterable[int],
    batch_tokens: int = BATCH_TOKENS,
) -> dict[int, Loss]:
    """Returns {c: Loss}, differences from ids that count from 0, of ids that are all c larger.

    They are those of the chunk of `fixed`, as with gaps.
    """
    reader = _Reader(model, params, targets, batch_tokens)
    return _move_ids(reader, length, {c: np.full(length, c) for c in shifts})


class _Offset(PositionalEncoding):
    """Adds what the data gives to the id of each token.

    It is an encoding because with positions that are handed to the model relative encodings would
    count columns (`EncodingInputs.consecutive`) and see no gap.
    """

    spec = Spec('moved ids', 'gap and shift tests', shift_invariant=False, wraps=True)

    def position_ids(self, inputs):
        return inputs.q_ids + inputs.task_ids


class _OffsetConfig(ModelConfig):
    """The same model, its ids moved after any are drawn and before an encoding sees them.

    No parameter changes its name.
    """

    @property
    def parts(self):
        return (*super().parts, _Offset(self.encodings[0].dims))


@dataclasses.dataclass(frozen=True)
class _Reader:
    """A model that reads chunks of the targets' windows.

    batch_tokens: read at a time.
    offset: of the ids that encodings see, [L]; None: ids are the places.
    """

    model: Transformer
    params: object
    targets: Targets
    batch_tokens: int
    offset: np.ndarray | None = None

    def fixed(self, length: int) -> Loss:
        """Returns the loss in the one chunk that ends before the last target."""
        return self.loss(length, self.targets.scored, first=self.targets.scored - 1)

    def loss(self, length: int, stride: int, first: int | None = None) -> Loss:
        """Returns the loss of each target in chunks that move by `stride`.

        Chunks end before the places longest + `first` + 0, 1, .. strides, as many as have targets
        among their last `stride` predictions; `first`, if not given, moves on from window to window
        through 0 .. stride - 1.
        """
        targets = self.targets
        if not 1 <= stride <= length <= targets.longest:
            raise RunError(
                f'chunks of {length} tokens, {stride} of them scored: '
                f'expected 1 <= scored <= length <= {targets.longest}'
            )
        # Where the chunks of each window end.
        windows = np.arange(len(targets.tokens))
        phase = (windows * _GOLDEN % 1 * stride).astype(int)
        if first is not None:
            phase = np.full_like(windows, first)
        moves = stride * np.arange(-(-targets.scored // stride) + 1)
        ends = targets.longest + phase[:, None] + moves
        windows, which = np.nonzero(ends - stride + 1 < targets.tokens.shape[1])
        ends = ends[windows, which]
        predicted = self.read(length, stride, windows, ends)

        # Which target each of the last predictions is; those beside the targets are left out.
        target = ends[:, None] - np.arange(stride)[::-1] - targets.longest
        inside = (target >= 0) & (target < targets.scored)
        window = np.broadcast_to(windows[:, None], target.shape)
        nats = np.full((len(targets.tokens), targets.scored), np.nan)
        nats[window[inside], target[inside]] = predicted[inside]
        return Loss(nats, targets.documents)

    def read(self, length: int, last: int, windows: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Returns nats of the `last` predictions of each chunk, [N, last] float64.

        Chunks, of `windows` [N] and before the places `ends` [N], are read in batches of one shape.
        What one would read beyond its window is padding. Raises ModelError where the encoding has
        no such positions.
        """
        config = self.model.config
        most = length + (0 if self.offset is None else int(self.offset.max()))
        if any(e.spec.limited for e in config.distinct) and most > config.max_len:
            raise ModelError(
                f'positions for {most} tokens are asked for, '
                f'config.model.max_len is {config.max_len}'
            )
        rows = max(1, self.batch_tokens // length)
        size = self.targets.tokens.shape[1]
        predicted = []
        for at in range(0, len(ends), rows):
            # The place of each token that is read, or predicted last; `size` stands for none.
            here = slice(at, at + rows)
            count = len(ends[here])
            place = np.full((rows, length + 1), size)
            place[:count] = ends[here, None] - length + np.arange(length + 1)
            window = np.pad(windows[here], (0, rows - count))
            tokens = self.targets.tokens[window[:, None], np.minimum(place, size - 1)]
            real = place[:, :-1] < size - 1
            numbers = at + np.arange(rows)
            kept = last if rows * length * config.vocab_size > _LOGITS else length
            nats = _nats(self.model, self.params, kept, tokens, real, numbers, self.offset)
            predicted.append(np.asarray(nats, np.float64)[:count, kept - last :])
        return np.concatenate(predicted)


def _move_ids(reader: _Reader, length: int, offsets: dict[int, np.ndarray]) -> dict[int, Loss]:
    """Returns the differences that offsets of the ids make, by their names."""
    as_it_is = reader.fixed(length)
    model = Transformer(_OffsetConfig(**vars(reader.model.config)))
    moved = {
        n: dataclasses.replace(reader, model=model, offset=offset) for n, offset in offsets.items()
    }
    return {n: one.fixed(length) - as_it_is for n, one in moved.items()}


@functools.partial(jax.jit, static_argnames=('model', 'last'))
def _nats(
    model,
    params,
    last: int,
    tokens: jax.Array,
    real: jax.Array,
    numbers: jax.Array,
    offset: jax.Array | None,
) -> jax.Array:
    """Returns nats [B,last] of the last predictions of `tokens` [B,L+1].

    real: [B,L], which of the tokens that are read are no padding.
    numbers: [B], of the chunks.
    offset: [L], of the ids.
    """
    positions = jnp.where(real, jnp.arange(real.shape[1], dtype=jnp.int32), 0)
    ids = None if offset is None else jnp.broadcast_to(offset.astype(jnp.int32), real.shape)
    hidden, _ = model.apply(
        {'params': params},
        tokens[:, :-1],
        positions,
        real.astype(jnp.int32),
        ids,
        row_keys=make_row_keys(numbers),
        logits=False,
    )

    # Of a long text no more logits are held at a time than `_LOGITS`.
    output = output_matrix(model.config, params)
    parts = -(-last * len(tokens) * model.config.vocab_size // _LOGITS)
    columns = -(-last // parts)

    def cut(x):
        padded = jnp.pad(
            x[:, -last:], ((0, 0), (0, parts * columns - last), *[(0, 0)] * (x.ndim - 2))
        )
        return jnp.moveaxis(padded.reshape(len(x), parts, columns, *x.shape[2:]), 1, 0)

    def nats_of(part):
        part_of_hidden, part_of_targets = part
        logits = unembed(part_of_hidden, output, model.config.tied)
        return cross_entropy(logits, part_of_targets)[0]

    nats = jax.lax.map(nats_of, (cut(hidden), cut(tokens)))
    return jnp.moveaxis(nats, 0, 1).reshape(len(tokens), -1)[:, :last]
