"""Pictures of reports, as SVG text. Records are lines of a study's `cells.jsonl`.

An encoding has one color in all reports (`encoding_color`).
"""

import colorsys
import dataclasses
import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import matplotlib
import numpy as np

matplotlib.use('Agg')
matplotlib.rcParams.update(
    {
        'svg.hashsalt': 'ordem',
        'svg.fonttype': 'none',
        'font.size': 9,
        'font.family': 'sans-serif',
        'axes.grid': True,
        'grid.alpha': 0.25,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'legend.frameon': False,
    }
)
from matplotlib import pyplot  # noqa: E402  (the backend is chosen first)

# The encodings that studies compare most often; others get a color from their name.
_COLORS = {
    'none': '#3a3a3a',
    'alibi': '#1f77b4',
    'rope': '#d62728',
    'rope_partial': '#ff9896',
    'sinusoidal': '#2ca02c',
    't5': '#ff7f0e',
    'learned': '#9467bd',
    'kerple_log': '#17becf',
    'fire': '#8c564b',
    'coupling': '#e377c2',
    'abacus': '#bcbd22',
    'yarn': '#7b4173',
    'xpos': '#e7298a',
    'shaw': '#637939',
    'cope': '#66a61e',
    'dape': '#a6761d',
    'forgetting': '#7570b3',
    'randomized+rope': '#843c39',
}
_BASELINE_COLOR = '#9a9a9a'
_DASHES = ('-', '--', ':', '-.')
_METADATA = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))  # none of them is written


@dataclasses.dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn: its encoding's color; a dash where that encoding is there twice."""

    color: str
    dash: str = '-'


def encoding_color(positions: str) -> str:
    """Returns the color of an encoding, '#rrggbb': the same in every report and picture."""
    if positions in _COLORS:
        return _COLORS[positions]
    digest = hashlib.sha256(positions.encode()).digest()
    hue = int.from_bytes(digest[:2], 'big') / 2**16
    lightness = (0.35, 0.5, 0.65)[digest[2] % 3]
    return matplotlib.colors.to_hex(colorsys.hls_to_rgb(hue, lightness, 0.55))


def arm_styles(arms: Mapping[str, Mapping]) -> dict[str, ArmStyle]:
    """Returns the style of each arm; `arms`: {name: {'positions': the encoding, ...}}.

    Arms of one encoding with other parameters have its color and differ in their dashes; the one
    that is called like the encoding is drawn solid.
    """
    styles = {}
    taken: dict[str, int] = {}
    for name in sorted(arms, key=lambda name: name != arms[name]['positions']):
        positions = arms[name]['positions']
        number = taken.get(positions, 0)
        taken[positions] = number + 1
        styles[name] = ArmStyle(encoding_color(positions), _DASHES[number % len(_DASHES)])
    return {name: styles[name] for name in arms}


def _svg(figure) -> str:
    """Returns a figure as SVG text, with no more digits and ids than it needs."""
    file = io.StringIO()
    figure.savefig(file, format='svg', metadata=_METADATA)
    pyplot.close(figure)
    text = file.getvalue()
    text = text[text.index('<svg') :]

    # Digits beyond a tenth of a point are half of the file; ids that nothing refers to, a part.
    text = re.sub(r' (?:d|x|y)="[^"]*"', _rounded, text)
    referred = {*re.findall(r'(?:url\(|href=")#([^")]+)', text)}
    return re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in referred else '', text)


def _rounded(match: re.Match) -> str:
    return re.sub(r'(\.\d)\d+', r'\1', match[0])


def _panels(count: int, width: float = 4.6, height: float = 3.2, columns: int = 3):
    """Returns a figure and its axes, `count` of them in rows; sizes in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (width * columns, height * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout='constrained')
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _legend(figure, styles: Mapping[str, ArmStyle]) -> None:
    handles = [
        pyplot.Line2D([], [], color=style.color, linestyle=style.dash, lw=2, label=arm)
        for arm, style in styles.items()
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=min(8, len(styles)))


def _tasks_of_kind(config, kind: str) -> list[str]:
    return [task for task in config.tasks if config.tasks[task].kind == kind]


def _draw_seeds(axis, x: Sequence, curves: np.ndarray, mean: np.ndarray, style: ArmStyle, **line):
    """Draws a thin line a seed, `curves` [seeds, points], and their `mean` [points] thick."""
    for curve in curves:
        axis.plot(x, curve, color=style.color, linestyle=style.dash, lw=0.5, alpha=0.4)
    axis.plot(x, mean, color=style.color, linestyle=style.dash, lw=2, **line)


def by_length(config, styles: Mapping[str, ArmStyle], records: Sequence[Mapping]) -> str:
    """Draws accuracy against length, a panel a task, the lengths of training shaded."""
    tasks = _tasks_of_kind(config, 'task')
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks):
        low, high = config.tasks[task].train
        axis.axvspan(low - 0.5, high + 0.5, color='0.92', zorder=0)
        for arm, style in styles.items():
            results = [r['by_length'] for r in records if r['task'] == task and r['arm'] == arm]
            if not results:
                continue
            lengths = sorted(map(int, results[0]))
            curves = np.array([[of[str(n)]['exact'] for n in lengths] for of in results])
            _draw_seeds(axis, lengths, curves, curves.mean(0), style)
        axis.set(title=task, xlabel='length', ylabel='answers wholly right', ylim=(-0.03, 1.03))
    _legend(figure, styles)
    return _svg(figure)


def perplexity(config, styles: Mapping[str, ArmStyle], records: Sequence[Mapping]) -> str:
    """Draws three perplexities of the same targets against the length of the text, log scale."""
    panels = [
        (task, kind)
        for task in _tasks_of_kind(config, 'text')
        for kind in ('non_overlapping', 'sliding', 'fixed')
    ]
    figure, axes = _panels(len(panels))
    for axis, (task, kind) in zip(axes, panels):
        axis.axvspan(0, config.tasks[task].train_len, color='0.92', zorder=0)
        for arm, style in styles.items():
            results = [
                r['perplexity'][kind]
                for r in records
                if r['task'] == task and r['arm'] == arm and r['finite']
            ]
            if not results:
                continue
            lengths = sorted(map(int, results[0]))
            curves = np.array([[of[str(n)] for n in lengths] for of in results])
            geometric_mean = np.exp(np.log(curves).mean(0))
            _draw_seeds(axis, lengths, curves, geometric_mean, style, marker='.')
        axis.set(
            title=f'{task}: {kind.replace("_", "-")}',
            xlabel='tokens of text seen',
            ylabel='perplexity',
            xscale='log',
            yscale='log' if _any_finite(axis) else 'linear',
        )
    _legend(figure, styles)
    return _svg(figure)


def _any_finite(axis) -> bool:
    """Returns whether a line has a point that a logarithmic scale can show."""
    return any(np.isfinite(line.get_ydata()).any() for line in axis.lines)


def by_position(config, styles: Mapping[str, ArmStyle], records: Sequence[Mapping]) -> str:
    """Draws a token's loss against its place in the text, to many times the training length."""
    tasks = _tasks_of_kind(config, 'text')
    figure, axes = _panels(len(tasks), width=7)
    for axis, task in zip(axes, tasks):
        axis.axvspan(1, config.tasks[task].train_len, color='0.92', zorder=0)
        for arm, style in styles.items():
            results = [r['by_position'] for r in records if r['task'] == task and r['arm'] == arm]
            if results:
                nats = np.mean([of['nats'] for of in results], 0)
                look = dict(color=style.color, linestyle=style.dash, lw=1.5)
                axis.plot(results[0]['places'], nats, **look)
        axis.set(title=task, xlabel='place in the text', ylabel='nats per token', xscale='log')
    _legend(figure, styles)
    return _svg(figure)


def rank_bars(ranked: Mapping, styles: Mapping[str, ArmStyle]) -> str:
    """Draws mean ranks over tasks with intervals, and the critical difference (Nemenyi).

    ranked: 'arms', and of each its 'mean', 'low' and 'high'; 'tasks', 'critical' (nan: none).
    """
    arms = ranked['arms']
    order = np.argsort(ranked['mean'])
    figure, axis = pyplot.subplots(figsize=(7, 0.42 * len(arms) + 1), layout='constrained')
    for row, i in enumerate(order):
        axis.plot([ranked['low'][i], ranked['high'][i]], [row, row], color='0.5', lw=2)
        _draw_point(axis, ranked['mean'][i], row, styles[arms[i]])
    axis.set_yticks(range(len(arms)), [arms[i] for i in order])
    axis.invert_yaxis()
    count = len(ranked['tasks'])
    axis.set(xlabel=f'mean rank over {count} task{"s" * (count > 1)} (1 is best)')

    critical = ranked['critical']
    if np.isfinite(critical):
        axis.plot([1, 1 + critical], [-0.7, -0.7], color='black', lw=1.5)
        axis.annotate(f'critical difference {critical:.2f}', (1, -0.75), fontsize=8, va='bottom')
    return _svg(figure)


def _draw_point(axis, x, y, style: ArmStyle, **look) -> None:
    """Draws points in the style of an arm: hollow where its lines are dashed."""
    fill = style.color if style.dash == '-' else 'none'
    axis.plot(x, y, 'o', color=style.color, markerfacecolor=fill, **look)


def strips(
    tasks: Sequence[str],
    styles: Mapping[str, ArmStyle],
    scores: Callable[[str, str], Sequence[float]],
    label: str,
) -> str:
    """Draws every seed of every cell; `scores(task, arm)`: a value a seed."""
    figure, axes = _panels(len(tasks), height=0.24 * len(styles) + 1.1)
    rng = np.random.default_rng(0)
    for axis, task in zip(axes, tasks):
        for row, (arm, style) in enumerate(styles.items()):
            values = scores(task, arm)
            spread = row + rng.uniform(-0.15, 0.15, len(values))
            _draw_point(axis, values, spread, style, ms=4, alpha=0.7)
        axis.set_yticks(range(len(styles)), styles)
        axis.invert_yaxis()
        axis.set(title=task, xlabel=label)
    return _svg(figure)


def dose_curves(
    panels: Mapping[str, tuple[Sequence[float], Sequence[str]]],
    values: Mapping[str, Sequence[float]],
    label: str,
) -> str:
    """Draws values against a dose, a point a seed and a line through the means.

    Args:
      panels: {title: (doses, names)}; doses are drawn evenly spaced, in this order.
      values: {name: a value a seed}.
      label: of what is drawn.
    """
    figure, axes = _panels(len(panels), columns=2)
    for axis, (title, (doses, names)) in zip(axes, panels.items()):
        places = range(len(doses))
        for place, name in zip(places, names):
            axis.plot([place] * len(values[name]), values[name], 'o', color='#1f77b4', alpha=0.5)
        axis.plot(places, [np.mean(values[name]) for name in names], color='#1f77b4', lw=2)
        axis.set_xticks(places, [f'{dose:g}' for dose in doses])
        axis.set(xlabel=title, ylabel=label)
    return _svg(figure)


def heat_map(weights: Sequence[Sequence[float]]) -> str:
    """Draws a matrix of weights from 0 to 1, [queries, keys], dark where they are large."""
    figure, axis = pyplot.subplots(figsize=(3.4, 3.4), layout='constrained')
    axis.imshow(np.asarray(weights), cmap='Blues', vmin=0, vmax=1)
    axis.grid(False)
    axis.set(xlabel='key', ylabel='query')
    return _svg(figure)


def seed_curves(
    panels: Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[Sequence[float]]]]],
    label: str,
) -> str:
    """Draws curves, a thin line a seed and a thick one through their means.

    Args:
      panels: {title: (x, {name: a curve a seed})}; a name that is an encoding has its color.
      label: of what is drawn.
    """
    names = dict.fromkeys(name for _, curves in panels.values() for name in curves)
    styles = {name: ArmStyle(encoding_color(name)) for name in names}
    figure, axes = _panels(len(panels), width=7, columns=2)
    for axis, (title, (x, curves)) in zip(axes, panels.items()):
        for name, of_seeds in curves.items():
            seeds = np.asarray(of_seeds, float)
            _draw_seeds(axis, x, seeds, seeds.mean(0), styles[name], marker='.')
        axis.set(xlabel=title, ylabel=label)
    _legend(figure, styles)
    return _svg(figure)


def score_bars(
    panels: Mapping[str, tuple[str, Mapping[str, Sequence[float]]]], colors: Mapping[str, str]
) -> str:
    """Draws a bar with its interval for each system, a panel a data set.

    panels: {title: (label, {name: [value, low, high]})}, bars in the order given.
    colors: of the names; others are gray.
    """
    figure, axes = _panels(
        len(panels),
        width=6,
        height=0.22 * max(len(bars) for _, bars in panels.values()) + 1,
        columns=2,
    )
    for axis, (title, (label, bars)) in zip(axes, panels.items()):
        for row, (name, (value, low, high)) in enumerate(bars.items()):
            axis.barh(row, value, color=colors.get(name, _BASELINE_COLOR), alpha=0.75)
            axis.plot([low, high], [row, row], color='black', lw=1.2)
        axis.set_yticks(range(len(bars)), bars)
        axis.margins(y=0.01)
        axis.invert_yaxis()
        axis.set(title=title, xlabel=label)
    return _svg(figure)


def quality_and_speed(
    styles: Mapping[str, ArmStyle],
    speed: Mapping[str, float],
    quality: Mapping[str, float],
    label: str,
) -> str:
    """Draws a point an encoding: tokens a second in training against the mean score."""
    figure, axis = pyplot.subplots(figsize=(6, 3.6), layout='constrained')
    for arm, style in styles.items():
        place = (speed[arm], quality[arm])
        _draw_point(axis, *place, style)
        axis.annotate(arm, place, xytext=(5, 3), textcoords='offset points')
    axis.set(xlabel='tokens a second in training (one process)', ylabel=label, xlim=(0, None))
    return _svg(figure)


def attention(tasks: Iterable[str], arms: Sequence[str], records: Sequence[Mapping]) -> str:
    """Draws mean attention against distance, a line a head, a panel an encoding.

    All layers of one cell of each task and encoding are drawn; several tasks are rows of panels.
    """
    cells = {(r['task'], r['arm']): r['attention'] for r in reversed(records) if 'attention' in r}
    shown = [cell for cell in itertools.product(tasks, arms) if cell in cells]
    several = len({task for task, _ in shown}) > 1
    size = (2.6, 2.1, len(arms)) if several else (3.6, 2.5, 4)
    figure, axes = _panels(len(shown), *size)
    viridis = pyplot.get_cmap('viridis')
    for axis, (task, arm) in zip(axes, shown):
        heads = [head for layer in cells[task, arm] for head in layer]
        for i, head in enumerate(heads):
            color = viridis(i / max(1, len(heads) - 1))
            axis.plot(np.arange(len(head)), head, lw=0.9, color=color)
        axis.set(
            title=f'{arm} ({task})',
            xlabel='distance',
            ylabel='mean attention',
            yscale='log',
            ylim=(1e-4, 1.5),
        )
        axis.minorticks_off()
        if several:
            axis.label_outer()
    return _svg(figure)
