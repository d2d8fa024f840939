"""Does the model answer? Exact answers to held-out questions, and what it makes of a bare question.

python -m evals.answers --run=runs/answers
"""

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('run', '', 'Run directory, DIR or DIR@step')
    cli.parse_flags()

import collections
import json

from absl import flags

from data.atlas import pages as atlas_pages
from data.chat import decode_answer, encode_prompt, stop_ids
from model.generate import Stop, generate
from model.sampling import Sampling
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run

_BATCH = 64
GREEDY = Sampling(temperature=0.0)


def questions(config) -> list[dict]:
    """Returns the questions about the countries held out of post-training.

    Each is {lang, relation, code, question, answer}. `config`: the `data.atlas` part of an
    experiment.
    """
    return [
        dict(
            lang=lang,
            relation=relation,
            code=country.code,
            question=r.messages[0][1],
            answer=r.messages[1][1],
        )
        for country, lang, relation, r in atlas_pages.pairs(config, of_held_out=True)
    ]


def answer(model, params, tokenizer, asked: list[str], max_new: int = 24) -> list[str]:
    """Returns greedy answers, asked in the chat template."""
    prompts = [encode_prompt([('user', q)], tokenizer) for q in asked]
    ends = stop_ids(tokenizer)
    generated = _generate(model, params, prompts, max_new, GREEDY, 0, ends)
    return [decode_answer(tokens, tokenizer) for tokens in generated]


def continuations(
    model, params, tokenizer, asked: list[str], max_new: int = 32, seed: int = 0
) -> list[str]:
    """Returns sampled (temperature 1) continuations of the bare questions.

    The model reads them as the base model reads text.
    """
    prompts = [[*tokenizer.begin, *tokenizer.encode(q)] for q in asked]
    ends = (tokenizer.eos,)
    generated = _generate(model, params, prompts, max_new, Sampling(), seed, ends)
    return [tokenizer.decode(tokens) for tokens in generated]


def _generate(  # noqa: PLR0913  (those of `generate`)
    model,
    params,
    prompts: list[list[int]],
    max_new: int,
    sampling: Sampling,
    seed: int,
    ends: tuple[int, ...],
) -> list[list[int]]:
    """Returns what follows each prompt, in batches of one size: few are compiled."""
    count = -(-len(prompts) // _BATCH)
    rows = -(-len(prompts) // max(1, count))
    longest = max(prompts, key=len, default=[])
    generated: list[list[int]] = []
    for start in range(0, len(prompts), max(1, rows)):
        here = prompts[start : start + rows]
        filled = [*here, *[longest] * (rows - len(here))]
        of_batch = generate(model, params, filled, max_new, sampling, seed + start, Stop(ends))
        generated += of_batch[: len(here)]
    return generated


def most_frequent(config) -> dict[tuple[str, str], str]:
    """Returns the control that has read nothing, {(language, relation): an answer}.

    It is the answer most frequent in post-training.
    """
    counts = collections.defaultdict(collections.Counter)
    for _, lang, relation, record in atlas_pages.pairs(config):
        counts[lang, relation][record.messages[1][1]] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}


def accuracy(asked: list[dict], answers: list[str]) -> dict:
    """Returns the share exactly right: over all, by language, by relation."""
    hits = collections.defaultdict(list)
    for q, a in zip(asked, answers, strict=True):
        for key in ('all', q['lang'], q['relation']):
            hits[key].append(a == q['answer'])
    return {key: sum(h) / len(h) for key, h in hits.items()}


def continues(asked: list[dict], texts: list[str]) -> dict:
    """Returns shares of the continuations: those that ask on, and those that hold the answer.

    One asks on whose first sentence ends with '?'.
    """

    def asks_on(text: str) -> bool:
        ends = [text.find(mark) for mark in '?!.' if mark in text]
        return bool(ends) and text[min(ends)] == '?'

    pairs = list(zip(asked, texts, strict=True))
    return {
        'questions': sum(asks_on(t) for _, t in pairs) / len(pairs),
        'answers': sum(q['answer'] in t for q, t in pairs) / len(pairs),
    }


def main() -> None:
    run = Run.parse(flags.FLAGS.run)
    model, params, tokenizer, config = models.load(run)
    if config.data.source != 'atlas':
        raise RunError(
            f'{run.path}: was trained on {config.data.source!r}; '
            'these questions are about the atlas'
        )
    asked = questions(config.data.atlas)
    texts = [q['question'] for q in asked]
    print(
        json.dumps(
            {
                'accuracy': accuracy(asked, answer(model, params, tokenizer, texts)),
                'continuations': continues(asked, continuations(model, params, tokenizer, texts)),
            },
            indent=1,
        )
    )


if __name__ == '__main__':
    cli.run(main)
