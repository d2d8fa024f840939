"""What a model does with a prompt, in six steps, as one page for someone who is learning.

    python -m apps.explain --run=runs/answers --prompt='Qual é a capital do Brasil?' --lang=pt

The page opens from its file and needs nothing else: no network, no other file. All its numbers are
the model's own, for this prompt (`evals/walkthrough.py`).
"""

from absl import flags

from runtime import cli, options

if __name__ == '__main__':  # above the imports that take seconds
    options.path('run', '', 'Run directory, DIR or DIR@step')
    flags.DEFINE_string('prompt', '', 'Text that is followed on its way through the model')
    flags.DEFINE_enum('lang', 'en', ['en', 'pt'], 'Language of the page')
    options.path(
        'out', '', 'The page to write, .html. Default: explain.html, or the next free name'
    )
    cli.parse_flags()

import base64
import hashlib
import html
import itertools
import json
import pathlib
import re

import jax
from etils import epath
from ml_collections import ConfigDict

from data.objectives import get_objective
from data.records import DataError, printable
from evals.html import STYLE
from evals.walkthrough import Walk
from model.errors import ModelError
from runtime import models
from runtime.errors import RunError
from runtime.run_dir import Run, write_atomically

HERE = pathlib.Path(__file__).parent
DEFAULT = 'explain'


def _find_input(walk: Walk) -> str:
    """Returns which text says how the prompt is given to the model."""
    if walk.in_template:
        return 'input_own' if walk.tokenizer.template else 'input_template'
    return 'input_plain' if walk.tokenizer.begin else 'input_bare'


def collect_facts(run: Run, prompt: str) -> dict:
    """Returns all numbers of the page, as JSON values.

    Raises RunError or ModelError where the run has no next word for the prompt.
    """
    walk, config = _load(run)
    walk.check(prompt)
    tokenizer = walk.tokenizer
    facts = walk.follow(prompt)
    model = walk.model.config
    facts |= {
        'prompt': printable(prompt),
        'template': walk.in_template,
        'input': _find_input(walk),
        'marks': {
            name: tokenizer.piece(token)
            for name, token in (
                ('begin', tokenizer.bos),
                ('user', tokenizer.user),
                ('assistant', tokenizer.assistant),
            )
            if token is not None
        },
        'run': {
            'run': printable(_name(run)),
            'layers': model.num_layers,
            'heads': model.num_heads,
            'width': model.width,
            'parameters': sum(x.size for x in jax.tree.leaves(walk.params)),
            'positions': config.model.positions,
            'mixing': model.mixing,
        },
    }
    after = {**facts['swaps']['unchanged'], 'run': _name(run), 'template': walk.in_template}
    return facts | {'family': {'after': after, **_ask_parent(run, prompt)}}


def _load(run: Run) -> tuple[Walk, ConfigDict]:
    """Returns the model of a run and its config. Raises RunError where it has no next word."""
    model, params, tokenizer, config = models.load(run)
    objective = get_objective(config.train.objective)
    if not objective.holds_out_text:
        raise RunError(
            f'{run.path}: trained on pairs (config.train.objective is '
            f'{config.train.objective!r}): it embeds texts and has no next word; expected a run on '
            f'texts'
        )
    return Walk(model, params, tokenizer, objective.asks_in_template(config.data)), config


def _ask_parent(run: Run, prompt: str) -> dict:
    """Returns what the run that this one began from makes of the prompt.

    {'before': ...}, {'missing': why} where it cannot be asked, or {} where there is none.
    """
    parent = run.lineage().get('parent')
    if not parent:
        return {}
    try:
        begun_from = Run.at(parent['run'], parent['step'])
        walk, _ = _load(begun_from)
        walk.check(prompt)
    except (RunError, ModelError, DataError) as error:
        return {'missing': printable(str(error))}
    [outcome] = walk.continue_greedily([prompt])
    del outcome['shares']
    return {'before': {**outcome, 'run': _name(begun_from), 'template': walk.in_template}}


def _name(run: Run) -> str:
    """Returns a run as a person names it."""
    step = '' if run.step is None else f'@{run.step}'
    return printable(f'{run.path}{step}')


def render(facts: dict, lang: str) -> str:
    """Returns the page, which needs nothing else. `facts`: as `collect_facts` gives them.

    Nothing of them can end the block that they stand in, and they are shown as text alone. The
    browser runs one script, whose hash is in the page's policy, and asks the network for nothing.
    """
    texts = json.loads((HERE / 'explain.json').read_text('utf-8'))[lang]
    template = (HERE / 'explain.html').read_text('utf-8')
    script = re.search('<script>(.*?)</script>', template, re.S)
    assert script is not None, 'a template without its script'
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    values = {
        'lang': lang,
        'title': html.escape(texts['title']),
        'noscript': html.escape(texts['noscript']),
        'style': STYLE,
        'hash': f"'sha256-{digest}'",
        'facts': _embed_json({**facts, 'texts': texts, 'lang': lang}),
    }
    head, tail = template[: script.start()], template[script.end() :]
    filled = re.sub(r'\{(\w+)\}', lambda match: values.get(match[1], match[0]), head)
    return filled + script[0] + tail


def _embed_json(value) -> str:
    """Returns JSON that can stand inside a script element: ASCII, without a bracket of markup."""
    text = json.dumps(value, allow_nan=False, separators=(',', ':'))
    return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def _choose_file(out: str) -> pathlib.Path:
    """Returns the file to write. Raises RunError where it is there, or cannot be written."""
    if not out:
        names = (f'{DEFAULT}{f"-{n}" if n > 1 else ""}.html' for n in itertools.count(1))
        out = next(name for name in names if not pathlib.Path(name).exists())
    path = pathlib.Path(out)
    if path.suffix != '.html':
        raise RunError(f'--out={out}: expected the name of a file to write, ending in .html')
    if path.exists():
        raise RunError(f'--out={out}: is there already; nothing is written over it')
    if not path.parent.is_dir():
        raise RunError(f'--out={out}: {path.parent} is no directory')
    cli.check_writable('--out', out)
    return path


def main() -> None:
    """Follows the prompt through the model of the run, and writes the page."""
    f = flags.FLAGS
    if not f.prompt.strip():
        raise RunError('--prompt is empty: expected text')
    path = _choose_file(f.out)
    page = render(collect_facts(Run.parse(f.run), f.prompt), f.lang)
    write_atomically(epath.Path(path), page)
    print(printable(f'{path}: {len(page.encode()):,} bytes; open it in a browser'))


if __name__ == '__main__':
    cli.run(main)
