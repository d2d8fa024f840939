"""The contrastive loss: a query is nearer to its document than to all others of the global batch.

And a document to its query.

Dimensions: b examples of this device, B of the global batch, G documents an example (the positive,
then hard negatives), N texts compared with, T tokens, D width.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from model.config import ModelConfig
from model.embed import check_pooling, embed, normalize, parse_sizes
from model.transformer import Transformer
from runtime.errors import RunError
from train.losses import LossContext, Sums

_LARGEST_SCALE = 100.0  # of a similarity, where it is learned (Radford et al. 2021, section 2.5)


@dataclasses.dataclass(frozen=True)
class ContrastiveLoss:
    """Symmetric InfoNCE over every size of the embedding.

    van den Oord et al. 2018, arXiv 1807.03748, equation 4; both ways as Radford et al. 2021,
    arXiv 2103.00020, figure 3; sizes as Kusupati et al. 2022, arXiv 2205.13147, equation 1.

    The batch: `queries` [b,Tq] and `documents` [b,G,T] token ids, padded on the right; `lengths`
    and `text_ids` [b,1+G] of the query and each document, length 0 and id -1 where there is none;
    `known` [b,K] ids of the texts that belong to the query, -1 beyond them.

    A negative of a query is each other text of the global batch, once however often it is there,
    but for the query's own text and those known to belong to it.
    """

    takes_whole_batch: ClassVar[bool] = True

    pooling: str
    temperature: float
    sizes: tuple[int, ...]  # leading dimensions, the whole width among them

    def __call__(
        self, model: Transformer, params: Any, batch: dict, context: LossContext
    ) -> tuple[jax.Array, Sums]:
        """The loss of this device's examples, against those of all devices of the manual axes.

        The texts are embedded in `context.accumulation` chunks, one after the other, and again in
        the backward pass: of what lies between tokens and vectors one chunk's is held at a time,
        whatever the batch (GradCache, Gao et al. 2021, arXiv 2101.06983).

        Returns (sum to minimise, {'nll', 'weight', 'correct'}: sums over examples; correct: the
        document is the nearest), float32 scalars.
        """
        queries_bxD, documents_bxGxD = self._embed(model, params, batch, context)

        # Cosine similarities are scaled by a learned factor, or by a fixed temperature.
        scale: jax.Array | float = 1 / self.temperature
        if model.config.logit_scale:
            scale = jnp.exp(jnp.minimum(params['logit_scale'], jnp.log(_LARGEST_SCALE)))

        # Each leading part of the vectors has to do the work of the whole.
        comparison = _Comparison(batch, context.axes)
        losses, corrects = [], []
        for size in self.sizes:
            queries = normalize(queries_bxD[..., :size])
            documents = normalize(documents_bxGxD[..., :size])
            loss_b, correct_b = comparison.loss(queries, documents, scale)
            losses.append(loss_b)
            corrects.append(correct_b)
        mean_b = sum(losses) / len(losses)

        weights_b = comparison.weights
        total = (mean_b * weights_b).sum()
        correct = (corrects[-1] * weights_b).sum()  # by the whole width
        return total, {'nll': total, 'weight': weights_b.sum(), 'correct': correct}

    def _embed(
        self, model: Transformer, params: Any, batch: dict, context: LossContext
    ) -> tuple[jax.Array, jax.Array]:
        """Returns queries [b,D] and documents [b,G,D], float32, in as many chunks as asked."""
        texts = {name: batch[name] for name in ('queries', 'documents', 'lengths')}
        inputs = (texts, context.row_keys)
        chunks = context.accumulation

        def embed_chunk(chunk):
            return self._vectors(model, params, *chunk)

        if chunks == 1:
            return embed_chunk(inputs)

        # Dealt like cards, as the step deals microbatches: each chunk stays spread over `fsdp`.
        def deal(x):
            return jnp.swapaxes(x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]), 0, 1)

        def gather(x):
            return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

        vectors = jax.lax.map(jax.checkpoint(embed_chunk), jax.tree.map(deal, inputs))
        return jax.tree.map(gather, vectors)

    def _vectors(
        self, model: Transformer, params: Any, texts: dict, row_keys: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns queries [b,D] and documents [b,G,D], float32, not of length 1.

        Each text has random keys of its own, by its row and place.
        """
        rows, group, columns = texts['documents'].shape
        query_keys = document_keys = None
        if row_keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(key, 1 + group))(row_keys)
            query_keys, document_keys = (part.reshape(-1) for part in jnp.split(keys, [1], axis=1))

        def embed_texts(tokens, lengths, keys):
            valid = jnp.arange(tokens.shape[1]) < lengths.reshape(-1, 1)
            return embed(model, params, tokens, valid, self.pooling, keys)

        lengths = texts['lengths']
        queries = embed_texts(texts['queries'], lengths[:, 0], query_keys)
        flat_documents = texts['documents'].reshape(-1, columns)
        documents = embed_texts(flat_documents, lengths[:, 1:], document_keys)
        return queries, documents.reshape(rows, group, -1)


class _Comparison:
    """Who is compared with whom: the examples of this device with the texts of all."""

    def __init__(self, batch: dict, axes: tuple[str, ...]):
        self._axes = axes
        ids = batch['text_ids']
        known = batch['known']
        all_ids = self._gather(ids)
        all_known = self._gather(known)
        query_ids = all_ids[:, 0]
        document_ids = all_ids[:, 1:].reshape(-1)
        rows, group = ids.shape[0], ids.shape[1] - 1
        self.weights = (batch['lengths'][:, 0] > 0).astype(jnp.float32)

        # Where this device's own queries and documents stand among those of all.
        self._own = jnp.arange(rows) + (jax.lax.axis_index(axes) * rows if axes else 0)
        self._own_document = self._own * group

        # From a query to documents [b,B*G]: no second one that answers it, no text twice.
        is_known = (document_ids[None, :, None] == known[:, None]).any(-1)
        belongs = is_known | (document_ids == ids[:, :1])
        is_own = jnp.arange(document_ids.size) == self._own_document[:, None]
        self._documents = ~belongs & _first(document_ids) | is_own

        # And back, from a document to queries [b,B].
        is_known = (ids[:, 1, None, None] == all_known[None]).any(-1)
        belongs = is_known | (query_ids == ids[:, 1:2])
        is_own = jnp.arange(query_ids.size) == self._own[:, None]
        self._queries = ~belongs & _first(query_ids) | is_own

    def _gather(self, x: jax.Array) -> jax.Array:
        """Returns what all devices have of `x`, one after the other along its first axis."""
        return jax.lax.all_gather(x, self._axes, tiled=True) if self._axes else x

    def loss(
        self, queries_bxD: jax.Array, documents_bxGxD: jax.Array, scale: jax.Array | float
    ) -> tuple[jax.Array, jax.Array]:
        """Returns float32 [b] each: the losses, and 1 where the document is the nearest."""
        all_queries = self._gather(queries_bxD)
        all_documents = self._gather(documents_bxGxD)
        all_documents = all_documents.reshape(-1, all_documents.shape[-1])
        to_document, is_nearest = _nll(
            queries_bxD, all_documents, self._documents, self._own_document, scale
        )
        to_query, _ = _nll(documents_bxGxD[:, 0], all_queries, self._queries, self._own, scale)
        return (to_document + to_query) / 2, is_nearest


def _nll(
    vectors_bxD: jax.Array,
    others_NxD: jax.Array,
    compared_bxN: jax.Array,
    own_b: jax.Array,
    scale: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Returns float32 [b] each: -log softmax at each one's own, and 1 where that is the largest."""
    similarities = jnp.einsum(
        'bd,nd->bn', vectors_bxD, others_NxD, precision=jax.lax.Precision.HIGHEST
    )
    logits = jnp.where(compared_bxN, scale * similarities, -jnp.inf)
    own = jnp.take_along_axis(logits, own_b[:, None], axis=1)[:, 0]
    is_largest = (logits >= own[:, None]).sum(1) == 1
    return jax.nn.logsumexp(logits, axis=1) - own, is_largest.astype(jnp.float32)


def _first(ids_N: jax.Array) -> jax.Array:
    """Returns bool [N]: True for a text that is there (not -1), where it stands first."""
    order = jnp.argsort(ids_N, stable=True)
    ordered = ids_N[order]
    is_first = (ordered != jnp.roll(ordered, 1)) | (jnp.arange(ordered.size) == 0)
    return jnp.zeros(ids_N.shape, bool).at[order].set(is_first) & (ids_N >= 0)


def make_loss(config: ConfigDict, model: ModelConfig) -> ContrastiveLoss:
    """Returns the loss that the `embedding` part of an experiment asks for.

    Raises RunError or ModelError where a field has no valid value.
    """
    check_pooling(config.pooling, model)
    if model.bag and 'bag' not in config.pooling:
        raise RunError(
            f'config.model.bag is True: it has no effect with config.embedding.pooling='
            f"{config.pooling!r}; expected False, or 'bag+mean' or 'bag'"
        )
    if not 0 < config.temperature < float('inf'):
        raise RunError(
            f'config.embedding.temperature is {config.temperature}: expected more than 0'
        )
    every_size = tuple(sorted({*parse_sizes(config.sizes, model.width), model.width}))
    return ContrastiveLoss(config.pooling, config.temperature, every_size)
