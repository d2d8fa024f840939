"""Does the model answer? Exact answers to held-out questions, and what it makes of a bare question.

python -m evals.answers --run=runs/answers
"""

import collections
import json

from absl import flags

from data.atlas import pages as atlas_pages
from data.chat import decode_answer, encode_prompt
from model.generate import generate
from model.sampling import Sampling
from runtime import checkpoint, cli, options
from runtime.errors import RunError
from runtime.run_dir import Run

_BATCH = 128
GREEDY = Sampling(temperature=0.0)


def questions(config) -> list[dict]:
    """The questions about the countries held out of post-training: {lang, relation, code, question, answer}.

    `config`: the `data.atlas` part of an experiment.
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
    """Greedy answers, asked in the chat template."""
    prompts = [encode_prompt([('user', q)], tokenizer) for q in asked]
    return [
        decode_answer(out, tokenizer)
        for out in _batched(model, params, prompts, max_new, GREEDY, (tokenizer.end, tokenizer.eos))
    ]


def continuations(
    model, params, tokenizer, asked: list[str], max_new: int = 32, seed: int = 0
) -> list[str]:
    """Sampled (temperature 1) continuations of the bare questions, as the base model reads text."""
    prompts = [[tokenizer.bos, *tokenizer.encode(q)] for q in asked]
    return [
        tokenizer.decode(out)
        for out in _batched(model, params, prompts, max_new, Sampling(), (tokenizer.eos,), seed)
    ]


def _batched(model, params, prompts, max_new, sampling, end, seed=0):
    found = []
    for i in range(0, len(prompts), _BATCH):
        found += generate(model, params, prompts[i : i + _BATCH], max_new, sampling, seed + i, end)
    return found


def most_frequent(config) -> dict[tuple[str, str], str]:
    """The control that has read nothing: for each language and relation the answer most frequent in post-training."""
    counts = collections.defaultdict(collections.Counter)
    for _, lang, relation, record in atlas_pages.pairs(config):
        counts[lang, relation][record.messages[1][1]] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}


def accuracy(asked: list[dict], answers: list[str]) -> dict:
    """Share exactly right: over all, by language, by relation."""
    hits = collections.defaultdict(list)
    for q, a in zip(asked, answers, strict=True):
        for key in ('all', q['lang'], q['relation']):
            hits[key].append(a == q['answer'])
    return {key: sum(h) / len(h) for key, h in hits.items()}


def continues(asked: list[dict], texts: list[str]) -> dict:
    """Of the continuations: how many go on with a question (the first sentence ends with '?'), how many hold the answer."""

    def asks_on(text):
        ends = [text.find(mark) for mark in '?!.' if mark in text]
        return bool(ends) and text[min(ends)] == '?'

    pairs = list(zip(asked, texts, strict=True))
    return {
        'questions': sum(asks_on(t) for _, t in pairs) / len(pairs),
        'answers': sum(q['answer'] in t for q, t in pairs) / len(pairs),
    }


def main() -> None:
    run = Run.parse(flags.FLAGS.run)
    model, params, tokenizer, config = checkpoint.load(run)
    if config.data.source != 'atlas':
        raise RunError(
            f'{run.path}: was trained on {config.data.source!r}; these questions are about the atlas'
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
    options.path('run', '', 'Run directory, DIR or DIR@step')
    cli.run(main)
