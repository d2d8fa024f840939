"""Draws the places where an encoding can enter attention, from the registry.

python -m docs.generate.places     writes docs/img/places.svg
"""

from runtime import cli

if __name__ == '__main__':  # above the imports that take seconds
    cli.parse_flags()

import html
import pathlib
import textwrap

from model.positions import ENTERS, REGISTRY

PICTURE = pathlib.Path(__file__).resolve().parents[1] / 'img' / 'places.svg'

# The way of a token through one layer: each stage with the methods of an encoding that enter it.
STAGES = (
    ('tokens and their positions', ('position_ids',)),
    ('embedding', ('embed',)),
    ('queries, keys = x Wq, x Wk', ('rotate', 'scale')),
    ('cache of keys', ('key_state', 'read')),
    ('logits = q · k / √d', ('product', 'key_bias', 'bias', 'logits')),
    ('causal mask, window', ('mask',)),
    ('weights = softmax(logits)', ('softmax',)),
    ('output = weights · values', ('value',)),
)
WIDTH = 1000
ROW = 46  # height of one place
GAP = 16  # between stages
LEFT = 20  # the column of stages
STAGE_WIDTH = 270
PLACE = 350  # where the column of places begins
EXAMPLES = 78  # characters of names of encodings in a row
INK = '#1f2430'
QUIET = '#5d6679'
LINE = '#9aa3b5'
BOX = '#eef1f8'
MARK = '#3f51b5'


def _text(x: float, y: float, text: str, size: int, colour: str = INK, more: str = '') -> str:
    """Returns a line of text at a place, with `more` attributes."""
    attributes = f'x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}"'
    return f'<text {attributes} {more}>{html.escape(text)}</text>'


def _examples(method: str) -> str:
    """Returns the names of the encodings that enter in a place, cut to one row."""
    names = [name for name, kind in REGISTRY.items() if method in kind.enters()]
    shown = textwrap.shorten(', '.join(names), EXAMPLES, placeholder=' ...')
    return f'{len(names)}: {shown}'


def _place(method: str, y: float) -> list[str]:
    """Returns the arrow, the name and the examples of one place."""
    middle = y + ROW / 2
    tip = LEFT + STAGE_WIDTH
    arrow = f'<path d="M{PLACE - 10} {middle:g}H{tip + 4}" stroke="{MARK}" marker-end="url(#tip)"/>'
    name = _text(PLACE, middle - 4, ENTERS[method], 15, MARK, 'font-weight="600"')
    code = _text(PLACE + 190, middle - 4, f'{method}()', 13, QUIET, 'font-family="monospace"')
    return [arrow, name, code, _text(PLACE, middle + 14, _examples(method), 12, QUIET)]


def draw() -> str:
    """Returns the picture as SVG: the stages of a layer, and beside each what can enter there."""
    parts = []
    y = 70.0
    for number, (stage, methods) in enumerate(STAGES):
        height = ROW * len(methods)

        # The stage, and the way down from the one before.
        if number:
            down = f'M{LEFT + STAGE_WIDTH / 2:g} {y - GAP:g}V{y - 2:g}'
            parts.append(f'<path d="{down}" stroke="{LINE}" marker-end="url(#down)"/>')
        box = f'x="{LEFT}" y="{y:g}" width="{STAGE_WIDTH}" height="{height}" rx="6"'
        parts.append(f'<rect {box} fill="{BOX}" stroke="{LINE}"/>')
        parts.append(_text(LEFT + 14, y + height / 2 + 5, stage, 15))

        for method in methods:
            parts += _place(method, y)
            y += ROW
        y += GAP

    # What is drawn once: the title, the tips of the arrows, and the ground.
    title = _text(LEFT, 34, 'Where an encoding can enter attention', 20, more='font-weight="600"')
    marker = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
    tips = ''.join(
        f'<marker id="{name}" {marker}><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for name, colour in (('tip', MARK), ('down', LINE))
    )
    size = f'viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" height="{y:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif">'
    back = f'<rect width="{WIDTH}" height="{y:g}" fill="#ffffff"/>'
    return '\n'.join([head, f'<defs>{tips}</defs>', back, title, *parts, '</svg>', ''])


def main() -> None:
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(draw())
    print(PICTURE)


if __name__ == '__main__':
    cli.run(main)
