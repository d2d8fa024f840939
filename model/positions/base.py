"""The contract of a positional encoding.

An encoding is a frozen dataclass: its fields are its parameters in the config, its methods the
places where it enters. Each method has a default that does nothing, so a file overrides only what
the encoding does, and where it enters is read off from what it overrides (`enters`). Learned
parameters are declared by calling `inputs.param`, a scope of the encoding's own: no other
parameter's initial value depends on which encoding is chosen.

Dimensions: B batch, T queries, S keys (S = T without a cache), H heads, K key-value heads, d head
size, D width.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

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
# What attention needs to carry an encoding, from what every kernel carries to what one does.
KERNELS = ('any', 'mask', 'bias', 'rows', 'reference')


@dataclasses.dataclass(frozen=True)
class Dims:
    """The sizes of the model that an encoding may need to know.

    Attributes:
      max_len: the longest context that the model is used for, in tokens.
      train_len: the longest that it is trained on; 0: the same.
      ids: how many ids encodings may see, where some draw from more than max_len; 0: the same.
    """

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
        """The longest context that the model is trained on, in tokens."""
        return self.train_len or self.max_len

    @property
    def num_ids(self) -> int:
        """How many ids encodings may see."""
        return self.ids or self.max_len


@dataclasses.dataclass(frozen=True)
class Spec:
    """Facts on an encoding, for the documentation, errors of compatibility and property tests."""

    title: str
    source: str  # paper and equation
    shift_invariant: bool  # adding a constant to all positions changes nothing
    sees_order: bool = True  # False: one layer cannot tell permuted earlier tokens apart
    limited: bool = False  # positions from max_len on are an error

    # Form of its bias over (query, key): '' for none, rank 1, Toeplitz, data (depends on the text),
    # other.
    bias_form: str = ''

    wraps: bool = False  # changes the ids or logits of another encoding; alone it does nothing
    task_ids: str = ''  # the scheme of ids that the data has to give

    # Incremented when initial values, defaults or their meaning change; and the arguments whose
    # defaults meant something else in version 1, with what they were.
    version: int = 1
    before: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    differs: tuple[str, ...] = ()  # what is not taken over from its source, and why


@dataclasses.dataclass(frozen=True)
class EncodingInputs:
    """All that an encoding may look at in a place of entry.

    Every layer fills in more of it as attention goes on. In the scope of the whole model
    (`position_ids`, `embed`, `share`) nothing of keys is set.
    """

    # (name, init, shape, logical axes) -> a parameter of this encoding; none for `position_ids`.
    param: Callable[..., jax.Array] | None

    # The tokens of this call. `q_ids` come after `position_ids`, `positions` are the place in the
    # document, whatever the ids; segment 0 is padding; `task_ids` are what the data gives.
    q_ids: jax.Array  # [B,T] int32 or float32
    positions: jax.Array | None = None  # [B,T] int32
    segment_ids: jax.Array | None = None  # [B,T] int32
    row_keys: jax.Array | None = None  # [B], a PRNG key for each row of the global batch, or none
    task_ids: jax.Array | None = None  # [B,T] int32

    # All keys. Between two keys of a document there may be padding.
    k_ids: jax.Array | None = None  # [B,S] int32 or float32, after `position_ids`
    k_positions: jax.Array | None = None  # [B,S] int32
    k_segment_ids: jax.Array | None = None  # [B,S] int32

    # What `share` returned, and what attention has made so far.
    shared: Any = None
    x: jax.Array | None = None  # [B,T,D], what queries and keys are projected from
    q: jax.Array | None = None  # [B,H,T,d], after `rotate` and `scale`
    k: jax.Array | None = None  # [B,K,S,d], after `rotate`, with what the cache held

    # `key_state` of all keys and what `carry` kept of earlier queries, each [B,...,S].
    state: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    carried: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    # Causal, in the same document, inside the window, and what `mask` leaves: [B,1 or H,T,S] bool;
    # and how many keys each query sees so, at least 1: [B,1 or H,T] int32.
    visible: jax.Array | None = None
    keys_seen: jax.Array | None = None

    z: jax.Array | None = None  # [B,H,T,S] float32: q.k/sqrt(d), later with the soft cap and biases

    # For ids: as `row_keys`, also at test where they are drawn there; one key for the whole batch.
    draw_keys: jax.Array | None = None
    batch_key: jax.Array | None = None

    # In place of differences of ids, where a layer draws distances.
    distances: Callable[['EncodingInputs'], jax.Array] | None = None

    # Ids count up by one inside each segment, and the queries' tokens are the last of the keys: see
    # `distance`.
    consecutive: bool = False

    def float32_param(self, name, init, shape, axes) -> jax.Array:
        """Declares a parameter as `param` does; returns it in float32."""
        assert self.param is not None, 'no parameters in this place of entry'
        return self.param(name, init, shape, axes).astype(jnp.float32)

    @property
    def distance(self) -> jax.Array:
        """Query id minus key id, int32 [B,T,S].

        Where ids are consecutive it is the same for all rows, [1,T,S]: differences inside a segment
        are those of the columns, and across segments nothing is seen. Where a layer has drawn
        distances (`distances`) those count.
        """
        if self.distances is not None:
            return self.distances(self)
        if self.consecutive:
            # The queries are the last of the keys: all of them, or a block at their end.
            column = jnp.arange(_present(self.k_ids).shape[1], dtype=jnp.int32)
            return column[None, -self.q_ids.shape[1] :, None] - column[None, None, :]
        return self.q_ids[:, :, None] - _present(self.k_ids)[:, None, :]

    @property
    def reach(self) -> jax.Array:
        """`distance`, float32 and 0 where the key is ahead: what a bias is a function of."""
        return jnp.maximum(self.distance, 0).astype(jnp.float32)

    @property
    def column_of_query(self) -> jax.Array:
        """The column of each query's own token among the keys, bool [B,T,S]."""
        k_segment_ids = _present(self.k_segment_ids)[:, None, :]
        same_segment = _present(self.segment_ids)[:, :, None] == k_segment_ids
        same_position = (
            _present(self.positions)[:, :, None] == _present(self.k_positions)[:, None, :]
        )
        return same_segment & same_position & (k_segment_ids > 0)

    def at_query(self, x: jax.Array) -> jax.Array:
        """Picks from x [B,...,S], a float32 of each key, that of each query's token: [B,...,T].

        It is 0 for padding. The product with zeros and ones is exact: by default accelerators cut
        such sums to bfloat16 or TF32, and their differences from those of keys with them.
        """
        return jnp.einsum(
            'bts,b...s->b...t',
            self.column_of_query.astype(jnp.float32),
            x,
            precision=jax.lax.Precision.HIGHEST,
        )

    @property
    def heads_of_keys(self) -> jax.Array:
        """`k` for each query head, [B,H,S,d]."""
        k = _present(self.k)
        return jnp.repeat(k, _present(self.q).shape[1] // k.shape[1], axis=1)


class RatioLayer(NamedTuple):
    """Holds a bias of each head that is a layer of ReLUs on one number of query and key.

    b_ij = w2 relu(w1 r + b1) + b2, r = numerator / denominator.

    Attributes:
      numerator: float32 [1 or B,T,S], a function of the distance.
      denominator: float32 [B,T].
      w1, b1: float32 [hidden].
      w2: float32 [hidden,H].
      b2: float32 [H].
    """

    numerator: jax.Array
    denominator: jax.Array
    w1: jax.Array
    b1: jax.Array
    w2: jax.Array
    b2: jax.Array


def _present(x: jax.Array | None) -> jax.Array:
    """Returns a field of `EncodingInputs` that is set in the place at hand."""
    assert x is not None, 'not set in this place of entry'
    return x


@dataclasses.dataclass(frozen=True)
class PositionalEncoding:
    """Base of all encodings, and itself the empty one: every place of entry left as it is.

    Most encodings override one of the first three methods and little else. A layer asks in this
    order: redraw, mask, rotate, scale, key_state, read, product, key_bias or bias, logits, carry,
    softmax, value (model/attention.py).
    """

    dims: Dims
    spec: ClassVar[Spec]
    by_rows: ClassVar[bool] = False  # `product` declares nothing, and asks for no other query

    # The three that most encodings are made of: q and k are turned (RoPE), a bias of distances is
    # added (T5), or logits depend on the text (CoPE).

    def rotate(
        self, inputs: EncodingInputs, q: jax.Array, k: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns q [B,H,T,d] and k [B,K,T,d] of the new tokens, transformed.

        The transformed k is what the cache keeps.
        """
        return q, k

    def bias(self, inputs: EncodingInputs) -> jax.Array | None:
        """Returns what is added to the scaled logits, float32, broadcastable to [B,H,T,S]."""
        return None

    def logits(self, inputs: EncodingInputs) -> jax.Array:
        """Returns `inputs.z` [B,H,T,S], changed depending on itself or on q and k."""
        return _present(inputs.z)

    # Ids in the place of positions, drawn or given by the data.

    def position_ids(self, inputs: EncodingInputs) -> jax.Array:
        """Returns the ids that the encoding sees, [B,T] int32 or float32.

        Ids below 0 stand for none (the outputs are then NaN). What is random follows
        `inputs.row_keys`, so that it is the same on any mesh; without them the ids of a place are
        always the same. `inputs.q_ids` are from 0 in each segment.
        """
        return inputs.q_ids

    def redraw(
        self, inputs: EncodingInputs, layer: int | jax.Array, beside: frozenset[str]
    ) -> EncodingInputs:
        """Returns `inputs` with the ids or distances that this layer draws for itself.

        Args:
          layer: counted from 0.
          beside: the places where the encodings of the layer enter.
        """
        return inputs

    def bends_distances(self, beside: frozenset[str]) -> bool:
        """Returns True where distances are no longer differences of ids.

        No bias depends on the key alone then. `beside`: the places where the encodings of the layer
        enter.
        """
        return False

    @property
    def drawn_at_test(self) -> bool:
        """True where `position_ids` gets the keys of an evaluation, to draw ids as in training.

        Nothing else gets them.
        """
        return False

    @property
    def num_ids(self) -> int:
        """Number that all ids are below: tables have a row for each."""
        return self.dims.num_ids

    # Once for the whole model, before its layers.

    def embed(self, inputs: EncodingInputs, x: jax.Array) -> jax.Array:
        """Returns token embeddings x [B,T,D] with the positions in them."""
        return x

    def share(self, inputs: EncodingInputs) -> Any:
        """Returns what is the same in all layers, given back to them as `inputs.shared`.

        Tables computed once, parameters that layers share.
        """
        return None

    def share_anew(self, inputs: EncodingInputs) -> Any:
        """Returns `inputs.shared` for ids that a layer has drawn for itself.

        What depends on ids is computed anew, without parameters, which are the model's.
        """
        return inputs.shared

    def collect_shared(self, shared: dict) -> Any:
        """Returns `inputs.shared` for its layers, from what each part gave to share."""
        return shared[self]

    # Queries and keys beyond `rotate`.

    def scale(self, inputs: EncodingInputs, q: jax.Array) -> jax.Array:
        """Returns q [B,H,T,d] scaled by position or head, on top of 1/sqrt(d)."""
        return q

    def read(
        self, inputs: EncodingInputs, q: jax.Array, k: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns q [B,H,T,d] and all keys [B,K,S,d], transformed anew at each call.

        k is as the cache keeps it: for rotations that change as the text grows.
        """
        return q, k

    @property
    def head_size(self) -> int:
        """Dimensions of queries and keys after `rotate`."""
        return self.dims.head_dim

    # A bias of the keys alone, which any kernel can carry.

    def key_bias(self, inputs: EncodingInputs) -> jax.Array | None:
        """Returns a bias as a function of the key, float32 [B or 1,H,S].

        It may depend on the query only by a constant, and rides on extra columns of q and k through
        any kernel (`kernels.append_bias_columns`).
        """
        return None

    def pair_bias(self, inputs: EncodingInputs) -> jax.Array | None:
        """Returns the bias that no column of the keys carries, which comes beside `key_bias`."""
        return None if 'key_bias' in self.enters() else self.bias(inputs)

    def distance_bias(self, inputs: EncodingInputs) -> jax.Array | None:
        """Returns the bias that is a function of the distance (`of_distances`), as `bias` does."""
        return None if self.has_ratio_layer() else self.bias(inputs)

    def ratio_layer(self, inputs: EncodingInputs) -> RatioLayer | None:
        """Returns what `bias` is made of, where it is a layer of ReLUs on a ratio."""
        return None

    @classmethod
    def has_ratio_layer(cls) -> bool:
        """Returns True where the bias is a layer of ReLUs on a ratio (`ratio_layer`)."""
        return cls.ratio_layer is not PositionalEncoding.ratio_layer

    def column_bias(self, inputs: EncodingInputs) -> jax.Array | None:
        """Returns the bias of keys that comes beside `distance_bias`, as `key_bias` does."""
        return None if 'bias' in self.enters() else self.key_bias(inputs)

    def additive(self, inputs: EncodingInputs) -> jax.Array | None:
        """Returns the whole bias, broadcastable to [B,H,T,S]: `bias`, else `key_bias`.

        `key_bias` is taken less its largest value in each row, which keeps it near 0 where
        attention is.
        """
        pair_bias = self.bias(inputs)
        if pair_bias is not None:
            return pair_bias
        key_bias = self.key_bias(inputs)
        if key_bias is None:
            return None
        key_bias = key_bias[:, :, None]
        seen = jnp.where(_present(inputs.visible), key_bias, -jnp.inf)
        return key_bias - jax.lax.stop_gradient(seen.max(-1, keepdims=True, initial=-1e30))

    # What attention does with pairs of query and key.

    def mask(self, inputs: EncodingInputs) -> jax.Array | None:
        """Returns True where a query may see a key, broadcastable to [B,H,T,S].

        It comes on top of causality, documents and window, from ids and positions alone: no q, k or
        state is there yet.
        """
        return None

    def product(self, inputs: EncodingInputs) -> jax.Array:
        """Returns what stands in the place of q.k/sqrt(d), which is `inputs.z` [B,H,T,S].

        A soft cap and biases come after it.
        """
        return _present(inputs.z)

    def softmax(self, inputs: EncodingInputs, logits: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the weights of the values from logits [B,H,T,S] float32 and the whole mask.

        Rows without a visible key must be finite.
        """
        return jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)

    def value(self, inputs: EncodingInputs, weights: jax.Array) -> jax.Array | None:
        """Returns what is added to what the heads read, [B,H,T,d], from weights [B,H,T,S]."""
        return None

    # What the cache keeps beside keys and values, for queries that come later.

    def key_state(self, inputs: EncodingInputs) -> dict[str, jax.Array]:
        """Returns all that logits of later queries need of each new key beside k, [B,...,T].

        It is cached, and given back as `inputs.state`.
        """
        return {}

    def carry(self, inputs: EncodingInputs) -> dict[str, jax.Array]:
        """Returns what later queries need of these ones, [B,...,S], with a cache.

        It takes the place of `inputs.carried`.
        """
        return {}

    @classmethod
    def carries(cls) -> bool:
        """Returns True where later queries need something of earlier ones, computed before."""
        return cls.carry is not PositionalEncoding.carry

    def logits_and_carried(self, inputs: EncodingInputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns `logits` and `carry`, of the same z."""
        return self.logits(inputs), self.carry(inputs)

    # Checks, when the model is built.

    def check(self) -> None:
        """Raises ModelError where the parameters of the encoding do not fit the model."""

    def check_use(self) -> None:
        """Raises ModelError where the encoding, or several together, cannot make up a layer."""
        if self.spec.wraps:
            raise ModelError(
                f'config.model.positions: {self.spec.title} alone does nothing; expected it beside '
                f"another encoding, for example 'rope+...'"
            )

    # Facts that documentation, kernels, cache and tests are derived from.

    @classmethod
    def enters(cls) -> frozenset[str]:
        """Returns the places of entry: the methods of `ENTERS` that this encoding overrides."""
        return frozenset(m for m in ENTERS if getattr(cls, m) is not getattr(PositionalEncoding, m))

    @classmethod
    def arguments(cls) -> dict[str, Any]:
        """Returns the parameters that `config.model.positions_args` may set, with defaults."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.name != 'dims'}

    @classmethod
    def kernel(cls) -> str:
        """Returns what attention needs to carry the encoding.

        'reference' where logits or weights are changed by what they are; 'rows' where a query has
        another product with each key; 'bias' or 'mask' where a kernel has to take one; 'any'.
        """
        enters = cls.enters()
        changed = enters & {'product', 'logits', 'softmax', 'value'}
        if changed:
            return 'rows' if changed == {'product'} and cls.by_rows else 'reference'
        if 'bias' in enters and 'key_bias' not in enters:
            return 'bias'
        return 'mask' if 'mask' in enters else 'any'

    @classmethod
    def cache(cls) -> str:
        """Describes what the cache holds beside the values."""
        enters = cls.enters()
        if 'read' in enters:
            contents = 'keys, turned when read'
        elif 'rotate' in enters:
            contents = 'rotated keys'
        else:
            contents = 'keys'
        if 'key_state' in enters:
            contents += ', a state of each key'
        if cls.carries():
            contents += ', a sum over queries'
        return contents

    @property
    def of_distances(self) -> bool:
        """True where bias and mask are functions of the head and the distance alone.

        A bias of keys that comes without `bias` is left out, and so is one of `ratio_layer`.
        """
        if not self.enters() & {'bias', 'mask'} or self.has_ratio_layer():
            return True
        return self.spec.shift_invariant and self.spec.bias_form in ('', 'rank 1', 'Toeplitz')

    @property
    def bidirectional(self) -> bool:
        """True where tokens may see later ones, too: it uses no pair of query and key."""
        return self.enters() <= {'position_ids', 'embed', 'rotate'}

    @property
    def name(self) -> str:
        """Name of the scope of the parameters that belong to the whole model."""
        return type(self).__name__.lower()

    @property
    def parts(self) -> 'tuple[PositionalEncoding, ...]':
        """The encodings that it is made of: itself, but for a composite."""
        return (self,)


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
    """Raises ModelError where a parameter is, or holds, a number that no encoding takes.

    Where its default is a whole number they are from 0, or from that default below 0, to 2^24;
    others are finite and at most 1e12 in size. Each encoding checks for itself what it needs beyond
    that.
    """
    if isinstance(default, int) and not isinstance(default, bool):
        low = min(default, 0)
        high = _LONGEST
        expected = 'a whole number'
    else:
        low = -_GREATEST
        high = _GREATEST
        expected = 'a number'

    for number in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(number, (int, float)) and not low <= number <= high:
            # A whole number may be too long to print.
            printable = isinstance(number, float) or abs(number) < 10**30
            raise ModelError(
                f'config.model.positions_args.{field} is '
                f'{number if printable else "of many digits"}: expected {expected} from {low} to '
                f'{high}'
            )
        underflow = describe_underflow(number) if isinstance(number, float) else ''
        if underflow:
            raise ModelError(f'config.model.positions_args.{field} is {number}: {underflow}')
