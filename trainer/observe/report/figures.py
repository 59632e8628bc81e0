"""The report's figures: pure functions from numbers to an inline SVG.

Axes and text use the page's own colour and font, so one drawing serves light and dark pages of any width.

Shapes: S logged steps, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.observe.report.svg import INK, PANEL_WIDTH, canvas, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Petroff 2021 (arXiv 2107.02270), chosen for colour-vision deficiency, and a green and a pink for 11 and 12 tasks.
PALETTE = (
    "#3f90da", "#e76300", "#832db6", "#ffa90e", "#bd1f01", "#92dadd",
    "#a96b59", "#94a4a2", "#b9ac70", "#717581", "#5a9e6f", "#d685b3",
)  # fmt: skip

MAX_POINTS = 300
"""Points per curve: about as many as a panel's width can show."""

MAX_WEIGHT_POINTS = 150
"""The same for task weights, which are averaged more, since they vary from batch to batch."""


MAX_ANNOTATED_TASKS = 8
MAX_LABELLED_TASKS = 48


@dataclass(frozen=True)
class Line:
    """A curve: S steps, S values (NaN if missing) and its colour."""

    steps_S: np.ndarray
    values_S: np.ndarray
    colour: str


def curves(lines: Sequence[Line], y_label: str, *, log: bool = False) -> str:
    """Draw curves over the step; each is averaged down to MAX_POINTS points.

    A log axis cannot show zero or less, which a duality gap mostly is. Such values are drawn below all others, all
    curves then as dots, and the axis label says so.
    """
    thinned = [(*_thin(line.steps_S, line.values_S), line.colour) for line in lines]
    floor = _log_floor([values for _, values, _ in thinned]) if log else None
    with canvas() as (axes, svg):
        for steps, values, colour in thinned:
            if floor is None:
                axes.plot(steps, values, color=colour, marker=_marker(steps), clip_on=False)
            else:
                axes.plot(steps, np.maximum(values, floor), ".", color=colour, markersize=3, clip_on=False)
        _scale(axes, log, max(line.steps_S[-1] for line in lines if line.steps_S.size))
        axes.set_ylabel(label(y_label) if floor is None else f"{label(y_label)}\n(0 drawn at {floor:.0e})")
    return svg.getvalue()


def spread(steps_S: np.ndarray, values_ST: np.ndarray, y_label: str, *, log: bool = False) -> str:
    """Draw the mean over many tasks, the middle half of them and their whole range."""
    with canvas() as (axes, svg):
        steps, values = _thin(steps_S, values_ST)
        known = ~np.isnan(values).all(axis=1)
        steps, values = steps[known], values[known]
        low, lower, upper, high = np.nanpercentile(values, (0, 25, 75, 100), axis=1)
        axes.fill_between(steps, low, high, color=PALETTE[0], alpha=0.18, linewidth=0)
        axes.fill_between(steps, lower, upper, color=PALETTE[0], alpha=0.35, linewidth=0)
        axes.plot(steps, np.nanmean(values, axis=1), color=PALETTE[0], marker=_marker(steps), clip_on=False)
        _scale(axes, log, steps_S[-1])
        axes.set_ylabel(label(y_label))
    return svg.getvalue()


def mean_and_worst(values_ST: np.ndarray, *, score: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the largest value (of scores the smallest) over the tasks at each step, without NaN."""
    known_ST = np.ma.masked_invalid(values_ST)
    worst_S = known_ST.min(axis=1) if score else known_ST.max(axis=1)
    return known_ST.mean(axis=1).filled(np.nan), worst_S.filled(np.nan)


def deserves_log_axis(values: np.ndarray) -> bool:
    """Return whether to use a log axis: all values are positive, and the largest is over 5 times the smallest."""
    known = values[~np.isnan(values)]
    return bool(known.size and known.min() > 0 and known.max() > 5 * known.min())


def weights_area(steps_S: np.ndarray, alpha_ST: np.ndarray, *, width: float = PANEL_WIDTH) -> str:
    """Draw the weights of a few tasks as stacked areas, the first task at the bottom, in the order of PALETTE."""
    steps, alpha = _thin(steps_S, alpha_ST, MAX_WEIGHT_POINTS)
    if len(steps) == 1:  # an area needs two points
        steps, alpha = np.append(0, steps), np.repeat(alpha, 2, axis=0)
    with canvas(width=width) as (axes, svg):
        axes.stackplot(steps, np.nan_to_num(alpha).T, colors=PALETTE, linewidth=0)
        _step_axis(axes, steps_S[-1])
        axes.set_ylim(0, 1)
        axes.set_ylabel("weight α")
    return svg.getvalue()


def largest_weight(steps_S: np.ndarray, alpha_ST: np.ndarray) -> float:
    """Return the largest weight that `weights_map` draws, for a scale that several maps share."""
    return float(np.nanmax(_thin(steps_S, alpha_ST, MAX_WEIGHT_POINTS)[1]))


def weights_map(
    steps_S: np.ndarray, alpha_ST: np.ndarray, tasks: Sequence[str], top: float, *, width: float = PANEL_WIDTH
) -> str:
    """Draw the weights of many tasks as a heat map from 0 to `top`, the task with the largest mean weight first."""
    _, alpha = _thin(steps_S, alpha_ST, MAX_WEIGHT_POINTS)
    order = np.argsort(-np.nan_to_num(alpha).mean(axis=0), kind="stable")
    row_inches = 0.12 if len(tasks) <= MAX_LABELLED_TASKS else 5 / len(tasks)
    with canvas(width=width, height=row_inches * len(tasks) + 0.8, grid=False) as (axes, svg):
        image = axes.imshow(
            alpha.T[order],
            aspect="auto",
            interpolation="none",
            cmap="viridis",
            vmin=0,
            vmax=top,
            extent=(0, max(steps_S[-1], 1), len(tasks) - 0.5, -0.5),
        )
        _label_tasks(axes.yaxis, [tasks[task] for task in order], 72 * row_inches)
        _step_axis(axes, steps_S[-1])
        _colour_bar(axes, image, "weight α")
    return svg.getvalue()


def cosine_map(cosine_TT: np.ndarray, tasks: Sequence[str]) -> str:
    """Draw the cosines between the tasks' gradients, with numbers if the tasks are few."""
    few = len(tasks) <= MAX_ANNOTATED_TASKS
    side_inches = 3.0 if few else 3.3
    with canvas(height=side_inches + (0.4 if few else 1), grid=False) as (axes, svg):
        image = axes.imshow(cosine_TT, aspect="auto", interpolation="none", cmap="RdBu", vmin=-1, vmax=1)
        _label_tasks(axes.yaxis, tasks, 72 * side_inches / len(tasks))
        _label_tasks(axes.xaxis, tasks, 72 * side_inches / len(tasks))
        if len(tasks) > 3:
            axes.tick_params(axis="x", labelrotation=90)
        if few:
            for (row, column), cosine in np.ndenumerate(cosine_TT):
                ink = "white" if abs(cosine) > 0.6 else "black"
                number = "-" if np.isnan(cosine) else f"{cosine:.2f}"
                axes.text(column, row, number, ha="center", va="center", color=ink)
        _colour_bar(axes, image, "cosine").set_ticks([-1, -0.5, 0, 0.5, 1])
    return svg.getvalue()


def cosines(gram_TT: np.ndarray) -> np.ndarray:
    """Return the cosines of a Gram matrix; NaN for a task whose gradient is zero."""
    norm_T = np.sqrt(np.diag(gram_TT))
    norm_T = np.where(norm_T > 0, norm_T, np.nan)
    return np.clip(gram_TT / np.outer(norm_T, norm_T), -1, 1)


def mean_cosines(cosines_STT: np.ndarray) -> np.ndarray:
    """Return the mean over S maps, for each entry over the maps in which it is finite."""
    return np.ma.masked_invalid(cosines_STT).mean(axis=0).filled(np.nan)


def order_by_agreement(cosine_TT: np.ndarray) -> np.ndarray:
    """Order the tasks so that those that agree are neighbours (average linkage, optimal leaf order)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance_TT = 1 - np.nan_to_num((cosine_TT + cosine_TT.T) / 2)
    np.fill_diagonal(distance_TT, 0)
    return leaves_list(linkage(squareform(distance_TT, checks=False), "average", optimal_ordering=True))


def _thin(steps_S: np.ndarray, values_S: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbours along the first axis (S) so that at most `most` points remain, ignoring NaN."""
    if len(steps_S) <= most:
        return steps_S, values_S
    starts = np.linspace(0, len(steps_S), most, endpoint=False, dtype=int)
    known = ~np.isnan(values_S)
    sums = np.add.reduceat(np.where(known, values_S, 0), starts)
    counts = np.add.reduceat(known, starts, dtype=int)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return np.add.reduceat(steps_S, starts) / np.diff(starts, append=len(steps_S)), means


def _log_floor(series: Sequence[np.ndarray]) -> float | None:
    """Return a power of ten below all positive values at which to draw the others; None if all are positive."""
    values = np.concatenate(series)
    if not (values <= 0).any():
        return None
    positive = values[values > 0]
    return float(10.0 ** (np.floor(np.log10(positive.min())) - 1)) if positive.size else 1e-20


def _marker(steps_S: np.ndarray) -> str | None:
    return "." if len(steps_S) <= 40 else None


def _scale(axes: "Axes", log: bool, last_step: float) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    _step_axis(axes, last_step)
    lowest, highest = axes.dataLim.intervaly
    if not log:
        axes.set_ylim(bottom=min(0, lowest))
        if lowest < 0:
            axes.axhline(0, color=INK, linewidth=0.6)
        return
    axes.set_yscale("log")
    wide = highest > 500 * lowest
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _step_axis(axes: "Axes", last_step: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, max(last_step, 1))  # the only record may be an evaluation at step 0
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("step")


def _label_tasks(axis: Any, tasks: Sequence[str], points: float) -> None:
    """Label the rows or columns of a map, each `points` (1/72 inch) high."""
    if len(tasks) > MAX_LABELLED_TASKS:
        axis.set_ticks([])
        axis.set_label_text(f"{len(tasks):,} tasks")
    else:
        axis.set_ticks(range(len(tasks)), [label(task, 20) for task in tasks], fontsize=min(9, 0.9 * points))


def _colour_bar(axes: "Axes", image: Any, label: str) -> Any:
    height_inches, bar_inches = axes.figure.bbox.height / axes.figure.dpi, 0.13
    slim = height_inches / bar_inches
    bar = axes.figure.colorbar(image, ax=axes, label=label, fraction=0.04, pad=0.02, aspect=slim)
    bar.outline.set_visible(False)
    return bar
