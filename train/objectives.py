"""The contrastive objective: a query is nearer to its document than to all others in the global batch, and a document to its query.

Dimensions: b examples of this device, B of the global batch, G documents an example (the positive, then hard negatives), T tokens, D width.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from model import loss
from model.config import ModelConfig
from model.embed import check_pooling, embed, normalize, parse_sizes
from model.transformer import Transformer
from runtime.errors import RunError


def make_losses(config, model: ModelConfig):
    """Returns (the loss to train with, the loss to evaluate with). Raises as `make`."""
    if config.train.objective == 'contrastive':
        return (make(config.embedding, model),) * 2
    training = functools.partial(loss.weighted_token_loss, z_loss=config.train.z_loss)
    return training, loss.weighted_token_loss


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """Symmetric InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, equation 4; both ways as Radford et al. 2021, arXiv 2103.00020,
    figure 3), over every size of the embedding (Kusupati et al. 2022, arXiv 2205.13147, equation 1).

    The batch: `queries` [b,Tq] and `documents` [b,G,T] token ids, padded on the right; `lengths` and `text_ids` [b,1+G] of the query and
    each document, length 0 and id -1 where there is none; `known` [b,K] ids of the texts that belong to the query, -1 beyond them.

    A negative of a query is each other text of the global batch, once however often it is there, but for the query's own text and those
    known to belong to it.
    """

    pooling: str
    temperature: float
    sizes: tuple[int, ...]  # leading dimensions, the whole width among them

    def __call__(
        self,
        model: Transformer,
        params,
        batch: dict,
        row_keys: jax.Array | None,
        axes: tuple[str, ...],
        chunks: int,
    ) -> tuple[jax.Array, dict]:
        """The loss of this device's examples, against those of all devices along the manual `axes`.

        The texts are embedded in so many `chunks`, one after the other, and again in the backward pass: of what lies between tokens and
        vectors one chunk's is held at a time, whatever the batch (GradCache, Gao et al. 2021, arXiv 2101.06983).

        Returns (sum to minimise, {'nll', 'weight', 'correct'}: sums over examples; correct: the document is the nearest).
        """
        of_chunk = lambda part: self._vectors(model, params, *part)
        parts = ({name: batch[name] for name in ('queries', 'documents', 'lengths')}, row_keys)
        if chunks == 1:
            vectors = of_chunk(parts)
        else:
            # Dealt like cards, as the step deals microbatches, so that each chunk stays spread over `fsdp`.
            deal = lambda x: jnp.swapaxes(
                x.reshape(x.shape[0] // chunks, chunks, *x.shape[1:]), 0, 1
            )
            vectors = jax.lax.map(jax.checkpoint(of_chunk), jax.tree.map(deal, parts))
            vectors = jax.tree.map(
                lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), vectors
            )
        scale = (
            jnp.exp(jnp.minimum(params['logit_scale'], jnp.log(100.0)))
            if model.config.logit_scale
            else 1 / self.temperature
        )
        there = _Pairs(batch, axes)
        losses, correct = zip(
            *(
                there.loss(*(normalize(v[..., :size]) for v in vectors), scale)
                for size in self.sizes
            )
        )
        here = there.weights
        total = sum(losses) / len(losses)
        return (total * here).sum(), {
            'nll': (total * here).sum(),
            'weight': here.sum(),
            'correct': (correct[-1] * here).sum(),
        }

    def _vectors(self, model, params, texts: dict, row_keys) -> tuple[jax.Array, jax.Array]:
        """Queries [b,D] and documents [b,G,D] float32, not of length 1. Each text has random keys of its own, by its row and place."""
        rows, group, columns = texts['documents'].shape
        keys = (
            [None] * 2
            if row_keys is None
            else jnp.split(
                jax.vmap(lambda key: jax.random.split(key, 1 + group))(row_keys), [1], axis=1
            )
        )
        of = lambda tokens, lengths, keys: embed(
            model,
            params,
            tokens,
            jnp.arange(tokens.shape[1]) < lengths.reshape(-1, 1),
            self.pooling,
            None if keys is None else keys.reshape(-1),
        )
        queries = of(texts['queries'], texts['lengths'][:, 0], keys[0])
        documents = of(texts['documents'].reshape(-1, columns), texts['lengths'][:, 1:], keys[1])
        return queries, documents.reshape(rows, group, -1)


class _Pairs:
    """Who is compared with whom: the examples of this device with the texts of all."""

    def __init__(self, batch: dict, axes: tuple[str, ...]):
        self._everywhere = lambda x: jax.lax.all_gather(x, axes, tiled=True) if axes else x
        ids, known = batch['text_ids'], batch['known']
        all_ids, all_known = self._everywhere(ids), self._everywhere(known)
        query, documents = all_ids[:, 0], all_ids[:, 1:].reshape(-1)
        rows, group = ids.shape[0], ids.shape[1] - 1
        self.weights = (batch['lengths'][:, 0] > 0).astype(jnp.float32)
        self._own = jnp.arange(rows) + (jax.lax.axis_index(axes) * rows if axes else 0)
        self._own_document = self._own * group
        belongs = (documents[None, :, None] == known[:, None]).any(-1) | (
            documents == ids[:, :1]
        )  # [b,B*G]
        self._documents = ~belongs & _first(documents) | (
            jnp.arange(documents.size) == self._own_document[:, None]
        )
        belongs = (ids[:, 1, None, None] == all_known[None]).any(-1) | (
            query == ids[:, 1:2]
        )  # [b,B]
        self._queries = ~belongs & _first(query) | (jnp.arange(query.size) == self._own[:, None])

    def loss(
        self, queries_bxD: jax.Array, documents_bxGxD: jax.Array, scale
    ) -> tuple[jax.Array, jax.Array]:
        """Of each example, float32 [b]: the loss, and whether its document is the nearest."""
        all_queries, all_documents = (
            self._everywhere(queries_bxD),
            self._everywhere(documents_bxGxD),
        )
        all_documents = all_documents.reshape(-1, all_documents.shape[-1])
        there, best = _nll(queries_bxD, all_documents, self._documents, self._own_document, scale)
        back, _ = _nll(documents_bxGxD[:, 0], all_queries, self._queries, self._own, scale)
        return (there + back) / 2, best


def _nll(vectors_bxD, others_NxD, compared_bxN, own_b, scale) -> tuple[jax.Array, jax.Array]:
    """-log softmax at each one's own among those it is compared with, and whether that is larger than all others."""
    logits = jnp.where(
        compared_bxN,
        scale
        * jnp.einsum('bd,nd->bn', vectors_bxD, others_NxD, precision=jax.lax.Precision.HIGHEST),
        -jnp.inf,
    )
    own = jnp.take_along_axis(logits, own_b[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - own, ((logits >= own[:, None]).sum(1) == 1).astype(
        jnp.float32
    )


def _first(ids_N: jax.Array) -> jax.Array:
    """[N] bool: a text that is there (not -1), where it stands first."""
    order = jnp.argsort(ids_N, stable=True)
    found = ids_N[order]
    return jnp.zeros(ids_N.shape, bool).at[order].set(
        (found != jnp.roll(found, 1)) | (jnp.arange(found.size) == 0)
    ) & (ids_N >= 0)


def make(config, model: ModelConfig) -> Contrastive:
    """`config`: the `embedding` part of an experiment. Raises RunError or ModelError where a field has no valid value."""
    check_pooling(config.pooling, model)
    if model.bag and 'bag' not in config.pooling:
        raise RunError(
            f"config.model.bag is True: it has no effect with config.embedding.pooling={config.pooling!r}; expected False, or 'bag+mean' or 'bag'"
        )
    if not 0 < config.temperature < float('inf'):
        raise RunError(
            f'config.embedding.temperature is {config.temperature}: expected more than 0'
        )
    return Contrastive(
        config.pooling,
        config.temperature,
        tuple(sorted({*parse_sizes(config.sizes, model.width), model.width})),
    )
