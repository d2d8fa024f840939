"""Log-likelihoods of continuations, many at a time, against one text at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from evals.likelihood import log_likelihoods
from model.generate import generate
from model.sampling import Sampling
from runtime import models
from runtime.run_dir import Run


def test_batches_score_as_one_text_does(tiny_run):
    """Catches padding that is read, texts that are mixed up, scores of the context, a beginning cut
    from the wrong end, and a likeliest token that is another than greedy decoding writes."""
    model, params, tokenizer, _ = models.load(Run.parse(str(tiny_run)))
    longest = model.config.max_len
    rng = np.random.default_rng(0)

    def draw(count):
        return rng.integers(10, 300, count).tolist()

    pairs = [([1, *draw(n)], draw(k)) for n, k in ((0, 9), (4, 5), (7, 40), (60, 3))]
    greedy_context = [1, *draw(5)]
    [written] = generate(model, params, [greedy_context], 4, Sampling(temperature=0.0))
    pairs += [(greedy_context, written), (greedy_context, [*written[:3], written[3] + 1])]

    @jax.jit
    def log_probabilities(tokens):
        place = jnp.arange(tokens.shape[1])[None]
        logits, _ = model.apply({'params': params}, tokens, place, jnp.ones_like(tokens))
        return jax.nn.log_softmax(logits[0])

    texts = [[*context, *continuation][-longest - 1 :] for context, continuation in pairs]
    alone = [np.asarray(log_probabilities(np.array([text[:-1]]))) for text in texts]
    for batch_tokens in (64, 4096):
        scored = log_likelihoods(model, params, pairs, batch_tokens)
        for (_, continuation), text, of_text, (score, is_greedy) in zip(
            pairs, texts, alone, scored
        ):
            count = min(len(continuation), longest)
            rows = of_text[len(text) - 1 - count :]
            wanted = sum(rows[i, token] for i, token in enumerate(text[-count:]))
            assert abs(score - wanted) < 1e-3
            assert is_greedy == (rows.argmax(-1) == text[-count:]).all()
        assert scored[-2][1] and not scored[-1][1]
