"""The contract of a positional encoding.

An encoding is a frozen dataclass: its fields are its parameters in the config, its methods the places where it enters. Each
method has a default that does nothing, so a file overrides only what the encoding does, and where it enters is read off
from what it overrides (`enters`). Learned parameters are declared by calling `inputs.param`, a scope of the encoding's own: no
other parameter's initial value depends on which encoding is chosen.

Dimensions: B batch, T queries, S keys (S = T without a cache), H heads, K key-value heads, d head size, D width.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from model.errors import ModelError, describe_underflow

ENTERS = {  # method -> what the documentation calls the place
    'position_ids': 'position ids',
    'embed': 'embedding',
    'rotate': 'rotation',
    'read': 'rotation when read',
    'scale': 'logit scale',
    'key_state': 'key state',
    'product': 'products',
    'key_bias': 'key bias',
    'bias': 'logit bias',
    'logits': 'logits',
    'mask': 'mask',
    'softmax': 'softmax',
    'value': 'values',
}


@dataclasses.dataclass(frozen=True)
class Dims:
    """What an encoding may need to know of the model. `max_len`: the longest context it is used for; `train_len`: the longest
    it is trained on (0: the same); `ids`: how many ids encodings may see, where some draw from more than max_len (0: the same)."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    max_len: int
    train_len: int = 0
    ids: int = 0

    @property
    def trained(self) -> int:
        return self.train_len or self.max_len

    @property
    def num_ids(self) -> int:
        return self.ids or self.max_len


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the documentation, the compatibility errors and the property tests need to know of an encoding."""

    title: str
    source: str  # paper and equation
    shift_invariant: bool  # adding a constant to all positions changes nothing
    sees_order: bool = True  # False: one layer cannot tell permuted earlier tokens apart
    limited: bool = False  # positions from max_len on are an error
    bias_form: str = ''  # of its bias over (query, key): '' none, rank 1, Toeplitz, data (depends on the text), other
    wraps: bool = False  # changes the ids or logits of another encoding; alone it does nothing
    task_ids: str = ''  # the scheme of ids that the data has to give
    version: int = 1  # raised when its start, its defaults or their meaning change
    before: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    # ^ arguments whose defaults meant something else in version 1, with what they were
    differs: tuple[str, ...] = ()  # what is not taken over from its source, and why


@dataclasses.dataclass(frozen=True)
class EncodingInputs:
    """Everything a place of entry can look at. In the model's scope (`position_ids`, `embed`, `share`) nothing of keys is set."""

    param: Callable[
        ..., jax.Array
    ]  # (name, init, shape, logical axes) -> parameter of this encoding
    q_ids: jax.Array  # [B,T] int32 or float32, after `position_ids`
    positions: jax.Array | None = None  # [B,T] int32, place in the document, whatever the ids
    segment_ids: jax.Array | None = None  # [B,T] int32, 0: padding
    row_keys: jax.Array | None = (
        None  # [B] a PRNG key for each row of the global batch; None, as at test: nothing random
    )
    task_ids: jax.Array | None = None  # [B,T] int32, ids that the data gives
    k_ids: jax.Array | None = None  # [B,S], after `position_ids`
    k_positions: jax.Array | None = None  # [B,S] int32, place in the document, whatever the ids
    k_segment_ids: jax.Array | None = (
        None  # [B,S] int32; between two keys of a document there may be padding
    )
    shared: Any = None  # what `share` returned
    x: jax.Array | None = None  # [B,T,D] what queries and keys are projected from
    q: jax.Array | None = None  # [B,H,T,d] after `rotate` and `scale`
    k: jax.Array | None = None  # [B,K,S,d] after `rotate`, with what the cache held
    state: dict[str, jax.Array] = dataclasses.field(
        default_factory=dict
    )  # `key_state` of all keys, [B,...,S]
    carried: dict[str, jax.Array] = dataclasses.field(
        default_factory=dict
    )  # what `carry` kept of earlier queries, [B,...,S]
    visible: jax.Array | None = (
        None  # [B,1 or H,T,S] bool: causal, same document, inside the window, and what `mask` leaves
    )
    keys_seen: jax.Array | None = (
        None  # [B,1 or H,T] int32: how many keys each query sees, at least 1
    )
    z: jax.Array | None = (
        None  # [B,H,T,S] float32: in `product` q.k/sqrt(d), later with the soft cap and biases
    )
    draw_keys: jax.Array | None = None  # [B] as row_keys, for ids, which may be drawn at test too
    batch_key: jax.Array | None = None  # one PRNG key for the whole batch, in training
    distances: Callable[['EncodingInputs'], jax.Array] | None = (
        None  # in place of differences of ids
    )
    consecutive: bool = (
        False  # ids count up by one inside each segment, and keys are the queries' tokens
    )

    @property
    def distance(self) -> jax.Array:
        """Query id minus key id, int32 [B,T,S]. Where ids are consecutive it is the same for all rows, [1,T,S]: differences
        inside a segment are those of the columns, and across segments nothing is seen. Where a layer has drawn distances
        (`distances`) those count."""
        if self.distances is not None:
            return self.distances(self)
        if self.consecutive:
            column = jnp.arange(self.q_ids.shape[1], dtype=jnp.int32)
            return column[None, :, None] - column[None, None, :]
        return self.q_ids[:, :, None] - self.k_ids[:, None, :]

    @property
    def reach(self) -> jax.Array:
        """`distance`, float32 and 0 where the key is ahead of the query: what a bias is a function of."""
        return jnp.maximum(self.distance, 0).astype(jnp.float32)

    @property
    def column_of_query(self) -> jax.Array:
        """[B,T,S] bool: the column of each query's own token among the keys."""
        same = self.segment_ids[:, :, None] == self.k_segment_ids[:, None, :]
        return (
            same
            & (self.positions[:, :, None] == self.k_positions[:, None, :])
            & (self.k_segment_ids[:, None, :] > 0)
        )

    def at_query(self, x: jax.Array) -> jax.Array:
        """x [B,...,S], a float32 of each key -> [B,...,T], that of each query's own token; 0 for padding. The product with zeros and ones is
        exact: by default accelerators cut such sums to bfloat16 or TF32, and their differences from those of keys with them."""
        return jnp.einsum(
            'bts,b...s->b...t',
            self.column_of_query.astype(jnp.float32),
            x,
            precision=jax.lax.Precision.HIGHEST,
        )

    @property
    def heads_of_keys(self) -> jax.Array:
        """`k` for each query head, [B,H,S,d]."""
        return jnp.repeat(self.k, self.q.shape[1] // self.k.shape[1], axis=1)


@dataclasses.dataclass(frozen=True)
class PositionalEncoding:
    """Base of all encodings, and itself the empty one: every place of entry left as it is."""

    dims: Dims
    spec: ClassVar[Spec]

    def check(self) -> None:
        """Raises ModelError where the parameters of the encoding do not fit the model."""

    def check_use(self) -> None:
        """Raises ModelError where the encoding, or several together, cannot make up a layer."""
        if self.spec.wraps:
            raise ModelError(
                f'config.model.positions: {self.spec.title} alone does nothing; expected it beside another encoding, '
                f"for example 'rope+...'"
            )

    # Once for the model.
    def position_ids(self, inputs: EncodingInputs) -> jax.Array:
        """`inputs.q_ids` [B,T], from 0 in each segment -> the ids the encoding sees, int32 or float32, below 0 where there is none
        (the outputs are then NaN). What is random follows `inputs.row_keys`, so that it is the same on any mesh; without them the ids of a
        place are always the same."""
        return inputs.q_ids

    def embed(self, inputs: EncodingInputs, x: jax.Array) -> jax.Array:
        """Token embeddings [B,T,D] -> with the positions in them."""
        return x

    def share(self, inputs: EncodingInputs) -> Any:
        """What is the same in all layers: tables computed once, parameters that layers share. Given back as `inputs.shared`."""
        return None

    def share_anew(self, inputs: EncodingInputs) -> Any:
        """`inputs.shared`, of ids that a layer has drawn for itself: what depends on them anew,
        without parameters, which are the model's."""
        return inputs.shared

    # In each layer.
    def redraw(
        self, inputs: EncodingInputs, layer: int | jax.Array, beside: frozenset[str]
    ) -> EncodingInputs:
        """`inputs` with the ids or distances that this layer, counted from 0, draws for itself;
        `beside`: the places where the encodings of the layer enter."""
        return inputs

    def bends_distances(self, beside: frozenset[str]) -> bool:
        """Whether distances are no differences of ids any more, beside encodings that enter in
        these places: a bias is then none of the keys alone."""
        return False

    def rotate(
        self, inputs: EncodingInputs, q: jax.Array, k: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """q [B,H,T,d], k [B,K,T,d] of the new tokens -> transformed; the transformed k is what the cache keeps."""
        return q, k

    def scale(self, inputs: EncodingInputs, q: jax.Array) -> jax.Array:
        """q [B,H,T,d] -> scaled by position or head, on top of 1/sqrt(d)."""
        return q

    def key_state(self, inputs: EncodingInputs) -> dict[str, jax.Array]:
        """Anything per new key [B,...,T] that the logits of later queries need; cached beside k, given back as `inputs.state`."""
        return {}

    def read(
        self, inputs: EncodingInputs, q: jax.Array, k: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """q [B,H,T,d] and all keys [B,K,S,d] as the cache keeps them -> transformed, anew at each call: for rotations that
        change as the text grows."""
        return q, k

    def product(self, inputs: EncodingInputs) -> jax.Array:
        """`inputs.z` [B,H,T,S], which is q.k/sqrt(d) -> what stands in its place, still without a soft cap or a bias."""
        return inputs.z

    def key_bias(self, inputs: EncodingInputs) -> jax.Array | None:
        """A bias that depends on the query only by a constant, as a function of the key: float32 [B or 1,H,S]. It rides on
        extra columns of q and k through any kernel (`columns`)."""
        return None

    def bias(self, inputs: EncodingInputs) -> jax.Array | None:
        """Added to the logits after their scaling by 1/sqrt(d): float32, broadcastable to [B,H,T,S]."""
        return None

    def pair_bias(self, inputs: EncodingInputs) -> jax.Array | None:
        """What no column of the keys carries, beside `key_bias`: `bias`, of an encoding that has no `key_bias`."""
        return None if 'key_bias' in self.enters() else self.bias(inputs)

    def additive(self, inputs: EncodingInputs) -> jax.Array | None:
        """The whole bias [B,H,T,S]: `bias`, else `key_bias` less its largest value in each row, which keeps it near 0 where
        attention is."""
        of_pair = self.bias(inputs)
        of_key = self.key_bias(inputs) if of_pair is None else None
        if of_key is None:
            return of_pair
        of_key = of_key[:, :, None]
        return of_key - jax.lax.stop_gradient(
            jnp.where(inputs.visible, of_key, -jnp.inf).max(-1, keepdims=True, initial=-1e30)
        )

    def logits(self, inputs: EncodingInputs) -> jax.Array:
        """`inputs.z` [B,H,T,S] -> changed, where the change depends on the logits or on q and k."""
        return inputs.z

    def carry(self, inputs: EncodingInputs) -> dict[str, jax.Array]:
        """With a cache: what later queries need of these ones, [B,...,S], kept in place of `inputs.carried`."""
        return {}

    def logits_and_carried(self, inputs: EncodingInputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`logits` and `carry`, of the same z."""
        return self.logits(inputs), self.carry(inputs)

    def mask(self, inputs: EncodingInputs) -> jax.Array | None:
        """True where a query may see a key, on top of causality, documents and window, by ids and places alone (no q, k or state is
        there yet): broadcastable to [B,H,T,S]."""
        return None

    def softmax(self, inputs: EncodingInputs, logits: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits [B,H,T,S] float32 and the whole mask -> weights of the values. Rows without a visible key must be finite."""
        return jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)

    def value(self, inputs: EncodingInputs, weights: jax.Array) -> jax.Array | None:
        """Weights [B,H,T,S] -> added to what the heads read, [B,H,T,d]."""
        return None

    @classmethod
    def enters(cls) -> frozenset[str]:
        """The places of entry: the methods of `ENTERS` that this encoding overrides."""
        return frozenset(m for m in ENTERS if getattr(cls, m) is not getattr(PositionalEncoding, m))

    @classmethod
    def arguments(cls) -> dict[str, Any]:
        """The parameters that `config.model.positions_args` may set, with their defaults."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.name != 'dims'}

    @classmethod
    def kernel(cls) -> str:
        """What attention needs to carry the encoding: 'reference' where the logits or weights are changed by what they are, 'bias'
        where a kernel has to take one, 'mask' where it has to take one, 'any'."""
        enters = cls.enters()
        if enters & {'product', 'logits', 'softmax', 'value'}:
            return 'reference'
        return (
            'bias'
            if 'bias' in enters and 'key_bias' not in enters
            else 'mask'
            if 'mask' in enters
            else 'any'
        )

    @classmethod
    def cache(cls) -> str:
        """What the cache holds beside the values."""
        enters = cls.enters()
        held = (
            'keys, turned when read'
            if 'read' in enters
            else 'rotated keys'
            if 'rotate' in enters
            else 'keys'
        )
        held += ', a state of each key' if 'key_state' in enters else ''
        return held + (', a sum over queries' if cls.carries() else '')

    @classmethod
    def carries(cls) -> bool:
        """Whether later queries need something of these: only what comes first can be computed first."""
        return cls.carry is not PositionalEncoding.carry

    @property
    def bidirectional(self) -> bool:
        """Whether it is defined where tokens see those after them, too: it is where it knows nothing of pairs."""
        return self.enters() <= {'position_ids', 'embed', 'rotate'}

    @property
    def name(self) -> str:
        """Of the scope of the parameters that belong to the whole model."""
        return type(self).__name__.lower()

    @property
    def head_size(self) -> int:
        """Dimensions of queries and keys after `rotate`."""
        return self.dims.head_dim

    @property
    def drawn_at_test(self) -> bool:
        """Whether `position_ids` gets the keys of an evaluation, because ids are drawn there as in training. Nothing else gets them."""
        return False

    @property
    def num_ids(self) -> int:
        """Ids are below this number: tables have a row for each."""
        return self.dims.num_ids

    @property
    def parts(self) -> 'tuple[PositionalEncoding, ...]':
        """What it is made of: itself, but for a composite."""
        return (self,)

    def collect_shared(self, shared: dict) -> Any:
        """What each part gave to share -> `inputs.shared`."""
        return shared[self]


def uniform_of(fan_in: int) -> Callable:
    """Returns the initializer of PyTorch's linear layers and convolutions for weights and biases.

    Args:
      fan_in: inputs of one output; of a convolution, channels times taps.
    Returns:
      (key, shape, dtype) -> values drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    Source: torch.nn.Linear, torch.nn.Conv1d and Conv2d, `reset_parameters`.
    """
    bound = fan_in**-0.5

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def positive(field: str, value: float) -> None:
    """Raises ModelError where a parameter of an encoding is not above 0."""
    if not value > 0:
        raise ModelError(f'config.model.positions_args.{field} is {value}: expected more than 0')


_LONGEST = 2**24  # tokens, distances, rows of tables: more are in no model
_GREATEST = 10**12  # of other numbers, whatever their sign


def check_numbers(field: str, value, default) -> None:
    """Raises ModelError where a parameter of an encoding is, or holds, a number that none of them
    can be: where its default is a whole number they are from 0, or from that default below 0, to
    2^24, others finite and at most 1e12 in size. Each encoding checks for itself what it needs beyond that."""
    low, high, what = -_GREATEST, _GREATEST, 'a number'
    if isinstance(default, int) and not isinstance(default, bool):
        low, high, what = min(default, 0), _LONGEST, 'a whole number'
    for one in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(one, (int, float)) and not low <= one <= high:
            said = one if isinstance(one, float) or abs(one) < 10**30 else 'of many digits'
            raise ModelError(
                f'config.model.positions_args.{field} is {said}: expected {what} from {low} to '
                f'{high}'
            )
        if isinstance(one, float) and describe_underflow(one):
            raise ModelError(
                f'config.model.positions_args.{field} is {one}: {describe_underflow(one)}'
            )
