"""The Language Model Evaluation Harness on a run: its own command line, with `--model ordem`.

    python -m apps.lm_eval --model ordem --model_args run=runs/mine --tasks lambada_openai
    python -m apps.lm_eval --model ordem --model_args run=runs/mine,max_gen_toks=64 \\
        --tasks my_task --include_path tasks/

All flags are the harness's own (`pip install -e .[harness]`). Model arguments: `run`, DIR or
DIR@step; `batch_tokens`, tokens that are read at a time; `max_gen_toks`, new tokens at most where a
task says nothing.
"""

import importlib.util
import sys

from runtime import exit
from runtime.errors import RunError

_ARGUMENTS = sys.argv[1:]  # of the harness


def main() -> None:
    if importlib.util.find_spec('lm_eval') is None:
        raise RunError('apps.lm_eval needs the package lm-eval: pip install -e .[harness]')
    from lm_eval.__main__ import cli_evaluate

    from apps import harness  # noqa: F401  (registers the model `ordem`)

    sys.argv[1:] = _ARGUMENTS
    cli_evaluate()


if __name__ == '__main__':
    del sys.argv[1:]  # they are not flags of this command
    exit.run(main)
