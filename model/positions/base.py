"""The contract of a positional encoding.

An encoding is a frozen dataclass: its fields are its parameters in the config, its methods the places where it enters. Each
method has a default that does nothing, so a file overrides only what the encoding does, and where it enters is read off
from what it overrides (`enters`). Learned parameters are declared by calling `site.param`, a scope of the encoding's own: no
other parameter's initial value depends on which encoding is chosen.

Dimensions: B batch, T queries, S keys (S = T without a cache), H heads, K key-value heads, d head size, D width.
"""
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

ENTERS = {  # method -> what the documentation calls the place
    'position_ids': 'position ids', 'embed': 'embedding', 'rotate': 'rotation', 'scale': 'logit scale', 'key_state': 'key state',
    'bias': 'logit bias', 'mask': 'mask', 'softmax': 'softmax'}


@dataclasses.dataclass(frozen=True)
class Dims:
    """What an encoding may need to know of the model. `max_len`: the context length it is trained for."""
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    max_len: int


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the documentation, the compatibility errors and the property tests need to know of an encoding."""
    title: str
    source: str                       # paper and equation
    shift_invariant: bool             # adding a constant to all positions changes nothing
    sees_order: bool = True           # False: one layer cannot tell permuted earlier tokens apart
    limited: bool = False             # positions from max_len on are an error


@dataclasses.dataclass(frozen=True)
class Site:
    """Everything a place of entry can look at. In the model's scope only `param` and `q_positions` are set."""
    param: Callable[..., jax.Array]            # (name, init, shape, logical axes) -> parameter of this encoding
    q_positions: jax.Array                     # [B,T] int32, after `position_ids`
    k_positions: jax.Array | None = None       # [B,S] int32, after `position_ids`
    shared: Any = None                         # what `share` returned
    x: jax.Array | None = None                 # [B,T,D] what queries and keys are projected from
    q: jax.Array | None = None                 # [B,H,T,d] after `rotate` and `scale`
    k: jax.Array | None = None                 # [B,K,S,d] after `rotate`, with what the cache held
    state: dict[str, jax.Array] = dataclasses.field(default_factory=dict)   # `key_state` of all keys, [B,...,S]
    consecutive: bool = False                  # ids count up by one inside each segment, and keys are the queries' tokens

    @property
    def distance(self) -> jax.Array:
        """Query id minus key id, int32 [B,T,S]. Where ids are consecutive it is the same for all rows, [1,T,S]: differences
        inside a segment are those of the columns, and across segments nothing is seen."""
        if self.consecutive:
            column = jnp.arange(self.q_positions.shape[1], dtype=jnp.int32)
            return column[None, :, None] - column[None, None, :]
        return self.q_positions[:, :, None] - self.k_positions[:, None, :]


@dataclasses.dataclass(frozen=True)
class PositionalEncoding:
    """Base of all encodings, and itself the empty one: every place of entry left as it is."""
    dims: Dims
    spec: ClassVar[Spec]

    def check(self) -> None:
        """Raises ModelError where the parameters of the encoding do not fit the model."""

    # Once for the model.
    def position_ids(self, positions: jax.Array, segment_ids: jax.Array, row_keys: jax.Array | None) -> jax.Array:
        """Positions [B,T], from 0 in each segment -> the ids the encoding sees. `row_keys` [B]: a PRNG key for each row of the
        global batch (None: nothing random, as in evaluation), the same on any mesh."""
        return positions

    def embed(self, site: Site, x: jax.Array) -> jax.Array:
        """Token embeddings [B,T,D] -> with the positions in them."""
        return x

    def share(self, site: Site) -> Any:
        """What is the same in all layers: tables computed once, parameters that layers share. Given back as `site.shared`."""
        return None

    # In each layer.
    def rotate(self, site: Site, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        """q [B,H,T,d], k [B,K,T,d] of the new tokens -> transformed; the transformed k is what the cache keeps."""
        return q, k

    def scale(self, site: Site, q: jax.Array) -> jax.Array:
        """q [B,H,T,d] -> scaled by position or head, on top of 1/sqrt(d)."""
        return q

    def key_state(self, site: Site) -> dict[str, jax.Array]:
        """Anything per new key [B,...,T] that the logits of later queries need; cached beside k, given back as `site.state`."""
        return {}

    def bias(self, site: Site) -> jax.Array | None:
        """Added to the logits after their scaling by 1/sqrt(d): float32, broadcastable to [B,H,T,S]."""
        return None

    def mask(self, site: Site) -> jax.Array | None:
        """True where a query may see a key, on top of causality, documents and window: broadcastable to [B,H,T,S]."""
        return None

    def softmax(self, site: Site, logits: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits [B,H,T,S] float32 and the whole mask -> weights of the values. Rows without a visible key must be finite."""
        return jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)

    @classmethod
    def enters(cls) -> frozenset[str]:
        """The places of entry: the methods of `ENTERS` that this encoding overrides."""
        return frozenset(m for m in ENTERS if getattr(cls, m) is not getattr(PositionalEncoding, m))

    @classmethod
    def arguments(cls) -> dict[str, Any]:
        """The parameters that `config.model.positions_args` may set, with their defaults."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.name != 'dims'}
