"""A run as a model of the Language Model Evaluation Harness, under the name `ordem`.

It is imported where the harness is installed: `apps.lm_eval` does, and `lm_eval.simple_evaluate`
takes an `OrdemModel`.
"""

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from data.chat import stop_ids
from data.text import cut_before, line_ends
from evals.likelihood import log_likelihoods
from model.generate import Stop, generate
from model.sampling import Sampling
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run

_ROWS = 16  # texts that are generated together
_DRAWN = {'top_k', 'top_p', 'min_p', 'repetition_penalty'}  # as our sampling calls them, too


@register_model('ordem')
class OrdemModel(TemplateLM):
    """Log-likelihoods, rolling ones and generated text of a run.

    Args:
      run: DIR or DIR@step.
      batch_tokens: tokens that are read at a time.
      max_gen_toks: new tokens at most, where a task does not say.
      others: what the harness gives to every model (batch_size, device); they have no effect.
    """

    def __init__(self, run: str = '', batch_tokens: int = 4096, max_gen_toks: int = 256, **others):
        super().__init__()
        unknown = {*others} - {'batch_size', 'max_batch_size', 'device'}
        if unknown:
            raise RunError(
                f'--model_args: {unknown.pop()}: expected run, batch_tokens, max_gen_toks'
            )
        if not run:
            raise RunError('--model_args: no run: expected run=DIR, or run=DIR@step')
        self.model, self.params, self._tokenizer, _ = models.load(Run.parse(str(run)))
        self.batch_tokens = int(batch_tokens)
        self.max_gen_toks = int(max_gen_toks)

    @property
    def max_length(self) -> int:
        """The context of the model, in tokens."""
        return self.model.config.max_len

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        return self._tokenizer.bos  # as the class `hf` has it, though no text may begin with it

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.hash

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Returns the ids of a text, the begin mark first unless `add_special_tokens` is False."""
        ids = self._tokenizer.encode(line_ends(string))
        return ids if add_special_tokens is False else [*self._tokenizer.begin, *ids]

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_):
        """Returns (log-likelihood, is greedy) of each (texts, context ids, continuation ids)."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        results = log_likelihoods(self.model, self.params, pairs, self.batch_tokens)
        for (texts, _, _), result in zip(requests, results):
            if texts is not None:
                self.cache_hook.add_partial('loglikelihood', texts, result)
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of whole texts, in windows as long as the context."""
        windows = []
        counts = []
        for request in requests:
            of_text = [
                utils.make_disjoint_window(window)
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            windows += [(None, *window) for window in of_text]
            counts.append(len(of_text))

        scored = iter(self._loglikelihood_tokens(windows))
        sums = [sum(next(scored)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, sums):
            self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
        return sums

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Returns what is written after each prompt, up to a text that ends it."""
        texts = [''] * len(requests)
        by_arguments: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            by_arguments.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        for alike in by_arguments.values():
            alike.sort(key=lambda i: len(requests[i].args[0]))
            for first in range(0, len(alike), _ROWS):
                here = alike[first : first + _ROWS]
                prompts = [requests[i].args[0] for i in here]
                written = self._continue(prompts, requests[here[0]].args[1])
                for i, text in zip(here, written):
                    texts[i] = text
                    self.cache_hook.add_partial('generate_until', requests[i].args, text)
        return texts

    def _continue(self, prompts: list[str], arguments: dict) -> list[str]:
        """Returns what follows each prompt. Raises RunError where there is no room for it."""
        arguments = normalize_gen_kwargs(arguments, self.max_gen_toks)
        max_new = arguments['max_gen_toks']
        room = self.max_length - max_new
        if room < 1:
            raise RunError(
                f'max_gen_toks is {max_new}: expected less than the context of the model '
                f'({self.max_length})'
            )
        until = [text for text in arguments['until'] if text]
        sampling = Sampling(
            temperature=arguments['temperature'] if arguments['do_sample'] else 0.0,
            **{name: value for name, value in arguments.items() if name in _DRAWN},
        )

        def all_ended(rows: list[list[int]]) -> bool:
            written = map(self._tokenizer.decode, rows)
            return bool(until) and all(cut_before(text, until) != text for text in written)

        ids = [self.tok_encode(prompt)[-room:] for prompt in prompts]
        stop = Stop(stop_ids(self._tokenizer), all_ended, 16)
        rows = generate(self.model, self.params, ids, max_new, sampling, 0, stop)
        return [cut_before(self._tokenizer.decode(row), until) for row in rows]
