"""The pictures of a study's report, as SVG text. Records are the lines of `cells.jsonl`."""

import io
import re

import matplotlib
import numpy as np

matplotlib.use('Agg')
matplotlib.rcParams.update(
    {
        'svg.hashsalt': 'ordem',
        'font.size': 9,
        'axes.grid': True,
        'grid.alpha': 0.25,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'legend.frameon': False,
    }
)
from matplotlib import pyplot  # noqa: E402  (the backend is chosen first)

_COLORS = [*pyplot.get_cmap('tab10').colors, *pyplot.get_cmap('Dark2').colors]


def _svg(figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format='svg', metadata={'Date': None})
    pyplot.close(figure)
    text = out.getvalue()
    short = lambda path: re.sub(
        r'(\.\d\d)\d+', r'\1', path[0]
    )  # hundredths of a point: a third of the file
    return re.sub(r' d="[^"]*"', short, text[text.index('<svg') :])


def _panels(count: int, width: float = 4.6, height: float = 3.2, columns: int = 3):
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout='constrained'
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _legend(figure, arms):
    handles = [
        pyplot.Line2D([], [], color=_COLORS[i % len(_COLORS)], lw=2, label=arm)
        for i, arm in enumerate(arms)
    ]
    figure.legend(handles=handles, loc='outside lower center', ncols=min(8, len(arms)))


def by_length(config, arms, records) -> str:
    """Accuracy against length: a thin line a seed, their mean thick, the lengths of training shaded."""
    tasks = [t for t in config.tasks if config.tasks[t].kind == 'task']
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks):
        low, high = config.tasks[task].train
        axis.axvspan(low - 0.5, high + 0.5, color='0.92', zorder=0)
        for i, arm in enumerate(arms):
            mine = [r['by_length'] for r in records if r['task'] == task and r['arm'] == arm]
            lengths = sorted(map(int, mine[0])) if mine else []
            curves = np.array([[m[str(n)]['exact'] for n in lengths] for m in mine])
            for curve in curves:
                axis.plot(lengths, curve, color=_COLORS[i % len(_COLORS)], lw=0.5, alpha=0.4)
            if len(curves):
                axis.plot(lengths, curves.mean(0), color=_COLORS[i % len(_COLORS)], lw=2)
        axis.set(title=task, xlabel='length', ylabel='answers wholly right', ylim=(-0.03, 1.03))
    _legend(figure, arms)
    return _svg(figure)


def perplexity(config, arms, records) -> str:
    """Three perplexities of the same targets against the length of the text, on a logarithmic scale."""
    tasks = [t for t in config.tasks if config.tasks[t].kind == 'text']
    kinds = ('non_overlapping', 'sliding', 'fixed')
    figure, axes = _panels(len(tasks) * len(kinds))
    for axis, (task, kind) in zip(axes, [(t, k) for t in tasks for k in kinds]):
        axis.axvspan(0, config.tasks[task].train_len, color='0.92', zorder=0)
        for i, arm in enumerate(arms):
            mine = [
                r['perplexity'][kind]
                for r in records
                if r['task'] == task and r['arm'] == arm and r['finite']
            ]
            lengths = sorted(map(int, mine[0])) if mine else []
            curves = np.array([[m[str(n)] for n in lengths] for m in mine])
            for curve in curves:
                axis.plot(lengths, curve, color=_COLORS[i % len(_COLORS)], lw=0.5, alpha=0.4)
            if len(curves):
                axis.plot(
                    lengths,
                    np.exp(np.log(curves).mean(0)),
                    color=_COLORS[i % len(_COLORS)],
                    lw=2,
                    marker='.',
                )
        axis.set(
            title=f'{task}: {kind.replace("_", "-")}',
            xlabel='tokens of text seen',
            ylabel='perplexity',
            xscale='log',
            yscale='log' if _any_finite(axis) else 'linear',
        )
    _legend(figure, arms)
    return _svg(figure)


def _any_finite(axis) -> bool:
    """Whether a line of the axis has a point that a logarithmic scale can show."""
    return any(np.isfinite(line.get_ydata()).any() for line in axis.lines)


def by_position(config, arms, records) -> str:
    """Loss of a token against its place in the text, out to many times the length of training."""
    tasks = [t for t in config.tasks if config.tasks[t].kind == 'text']
    figure, axes = _panels(len(tasks), width=7)
    for axis, task in zip(axes, tasks):
        axis.axvspan(1, config.tasks[task].train_len, color='0.92', zorder=0)
        for i, arm in enumerate(arms):
            mine = [r['by_position'] for r in records if r['task'] == task and r['arm'] == arm]
            if mine:
                axis.plot(
                    mine[0]['places'],
                    np.mean([m['nats'] for m in mine], 0),
                    color=_COLORS[i % len(_COLORS)],
                    lw=1.5,
                )
        axis.set(title=task, xlabel='place in the text', ylabel='nats per token', xscale='log')
    _legend(figure, arms)
    return _svg(figure)


def rank_bars(arms, mean, low, high, critical: float, tasks: int) -> str:
    """Mean rank over tasks with its interval; the critical difference of the Nemenyi test where it is defined."""
    order = np.argsort(mean)
    figure, axis = pyplot.subplots(figsize=(7, 0.42 * len(arms) + 1), layout='constrained')
    for row, i in enumerate(order):
        axis.plot([low[i], high[i]], [row, row], color='0.5', lw=2)
        axis.plot(mean[i], row, 'o', color=_COLORS[i % len(_COLORS)])
    axis.set_yticks(range(len(arms)), [arms[i] for i in order])
    axis.invert_yaxis()
    axis.set(xlabel=f'mean rank over {tasks} task{"s" * (tasks > 1)} (1 is best)')
    if np.isfinite(critical):
        axis.plot([1, 1 + critical], [-0.7, -0.7], color='black', lw=1.5)
        axis.annotate(f'critical difference {critical:.2f}', (1, -0.75), fontsize=8, va='bottom')
    return _svg(figure)


def strips(tasks, arms, score, label: str) -> str:
    """Every seed of every cell: score(task, arm) -> values."""
    figure, axes = _panels(len(tasks), height=0.24 * len(arms) + 1.1)
    rng = np.random.default_rng(0)
    for axis, task in zip(axes, tasks):
        for i, arm in enumerate(arms):
            values = score(task, arm)
            axis.plot(
                values,
                i + rng.uniform(-0.15, 0.15, len(values)),
                'o',
                ms=4,
                alpha=0.7,
                color=_COLORS[i % len(_COLORS)],
            )
        axis.set_yticks(range(len(arms)), arms)
        axis.invert_yaxis()
        axis.set(title=task, xlabel=label)
    return _svg(figure)


def score_bars(panels: dict[str, tuple[str, dict[str, list[float]]]]) -> str:
    """{title: (label, {name: [value, low, high]})}: a bar each with its interval, in the order given; names that begin with the same word
    have one color."""
    figure, axes = _panels(
        len(panels),
        width=6,
        height=0.22 * max(len(bars) for _, bars in panels.values()) + 1,
        columns=2,
    )
    for axis, (title, (label, bars)) in zip(axes, panels.items()):
        first = [re.match(r'[\w-]*', name)[0] for name in bars]
        color = {word: _COLORS[i % len(_COLORS)] for i, word in enumerate(dict.fromkeys(first))}
        for row, (value, low, high) in enumerate(bars.values()):
            axis.barh(row, value, color=color[first[row]], alpha=0.75)
            axis.plot([low, high], [row, row], color='black', lw=1.2)
        axis.set_yticks(range(len(bars)), bars)
        axis.invert_yaxis()
        axis.set(title=title, xlabel=label)
    return _svg(figure)


def quality_and_speed(arms, speed, quality, label: str) -> str:
    """One point an encoding: tokens a second in training against the mean score."""
    figure, axis = pyplot.subplots(figsize=(6, 3.6), layout='constrained')
    for i, arm in enumerate(arms):
        axis.plot(speed[arm], quality[arm], 'o', color=_COLORS[i % len(_COLORS)])
        axis.annotate(arm, (speed[arm], quality[arm]), xytext=(5, 3), textcoords='offset points')
    axis.set(xlabel='tokens a second in training (one process)', ylabel=label, xlim=(0, None))
    return _svg(figure)


def attention(tasks, arms, records) -> str:
    """Mean attention against distance, a line a head, all layers of one cell of each task (a row of panels, where there are several) and encoding."""
    cells = {(r['task'], r['arm']): r['attention'] for r in reversed(records) if 'attention' in r}
    shown = [(task, arm) for task in tasks for arm in arms if (task, arm) in cells]
    several = len({task for task, _ in shown}) > 1
    figure, axes = _panels(
        len(shown),
        width=2.6 if several else 3.6,
        height=2.1 if several else 2.5,
        columns=len(arms) if several else 4,
    )
    for axis, (task, arm) in zip(axes, shown):
        heads = [h for layer in cells[task, arm] for h in layer]
        for i, head in enumerate(heads):
            axis.plot(
                np.arange(len(head)),
                head,
                lw=0.9,
                color=pyplot.get_cmap('viridis')(i / max(1, len(heads) - 1)),
            )
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
