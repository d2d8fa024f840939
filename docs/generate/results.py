"""Makes the page of results: every figure that documents state, with its command.

python -m docs.generate.results     writes docs/results.md from docs/figures.toml
"""

import pathlib
import tomllib

from docs.generate import markdown
from runtime import cli

FOLDER = pathlib.Path(__file__).resolve().parents[1]
PAGE = FOLDER / 'results.md'
HEAD = """# Results

What was measured, and the command that measures it again. Times are of 2 cores of an AMD EPYC
virtual machine unless a line says otherwise. Raw lines and reports of studies are in
`studies/results/`, of benchmarks in `benchmarks/results/`. Findings, failures included, are in the
[laboratory](lab/index.md); what does not hold is in [limitations](limitations.md).

This page is made by `python -m docs.generate.results` from `docs/figures.toml`.

"""


def figures() -> list[dict]:
    """Returns the entries of docs/figures.toml: claim, value, command, and a pattern or none."""
    return tomllib.loads((FOLDER / 'figures.toml').read_text())['figure']


def page() -> str:
    """Returns docs/results.md."""
    items = []
    for figure in figures():
        claim, value, command = (
            ' '.join(figure[name].split()) for name in ('claim', 'value', 'command')
        )
        if command.startswith('python'):
            command = f'`{command}`'
        items += [markdown.item(f'**{claim}**: {value}'), markdown.item(command, 4)]
    return HEAD + '\n'.join(items) + '\n'


def main() -> None:
    PAGE.write_text(page())
    print(PAGE)


if __name__ == '__main__':
    cli.run(main)
