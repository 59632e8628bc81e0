"""The report's figures: numbers -> one inline SVG, each a pure function.

Axes and text take the page's own colour and font, so one drawing serves light and dark pages and every width.

Shapes: S logged steps, T tasks.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.plain import one_line, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Petroff 2021 (arXiv 2107.02270), chosen for colour-vision deficiency, and a green and a pink for 11 and 12 tasks.
PALETTE = (
    "#3f90da", "#e76300", "#832db6", "#ffa90e", "#bd1f01", "#92dadd",
    "#a96b59", "#94a4a2", "#b9ac70", "#717581", "#5a9e6f", "#d685b3",
)  # fmt: skip

MAX_POINTS = 300
"""Points a curve: about what a panel's width can show."""

MAX_WEIGHT_POINTS = 150
"""The same for task weights, whose noise from batch to batch hides their course."""

PANEL_WIDTH, PAGE_WIDTH = 4.6, 9.5
"""Inches of a drawing that takes half the page, and all of it."""

MAX_ANNOTATED_TASKS = 8
MAX_LABELLED_TASKS = 48

_TAG = re.compile(r"<[^>]*>")
"""A name between tags is left as it is, whatever it looks like."""

_INK = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "paretrain",
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Line:
    """A curve: S steps, S values (NaN where there is none), and its colour."""

    steps_S: np.ndarray
    values_S: np.ndarray
    colour: str


def curves(lines: Sequence[Line], y_label: str, *, log: bool = False) -> str:
    """Draws curves over the step; each is averaged down to MAX_POINTS points.

    A log axis has no room for zero or less, and a duality gap is that more often than not: such values are drawn below
    all others, everything then as dots, and the axis says so.
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
    """Draws the mean over many tasks, the middle half of them and their whole range."""
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
    """The mean and the largest value, of scores the least, over the tasks at each of the S steps; NaN is left out."""
    known_ST = np.ma.masked_invalid(values_ST)
    worst_S = known_ST.min(axis=1) if score else known_ST.max(axis=1)
    return known_ST.mean(axis=1).filled(np.nan), worst_S.filled(np.nan)


def deserves_log_axis(values: np.ndarray) -> bool:
    """Whether a linear axis would press some values flat: all are positive, the largest > 5 times the least."""
    known = values[~np.isnan(values)]
    return bool(known.size and known.min() > 0 and known.max() > 5 * known.min())


def weights_area(steps_S: np.ndarray, alpha_ST: np.ndarray, *, width: float = PANEL_WIDTH) -> str:
    """Draws the weights of a few tasks as stacked areas, first task at the bottom, in the order of PALETTE."""
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
    """The largest weight that `weights_map` draws, for a scale that several maps share."""
    return float(np.nanmax(_thin(steps_S, alpha_ST, MAX_WEIGHT_POINTS)[1]))


def weights_map(
    steps_S: np.ndarray, alpha_ST: np.ndarray, tasks: Sequence[str], top: float, *, width: float = PANEL_WIDTH
) -> str:
    """Draws the weights of many tasks as a heat map from 0 to `top`, the heaviest task on average first."""
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
    """Draws the cosines between the tasks' gradients, with their numbers when the tasks are few."""
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
    """The cosines behind a Gram matrix; NaN for a task whose gradient is zero."""
    norm_T = np.sqrt(np.diag(gram_TT))
    norm_T = np.where(norm_T > 0, norm_T, np.nan)
    return np.clip(gram_TT / np.outer(norm_T, norm_T), -1, 1)


def mean_cosines(cosines_STT: np.ndarray) -> np.ndarray:
    """The mean over S maps; a task without a gradient in one of them counts where it has one."""
    return np.ma.masked_invalid(cosines_STT).mean(axis=0).filled(np.nan)


def order_by_agreement(cosine_TT: np.ndarray) -> np.ndarray:
    """An order of the tasks in which those that agree stand together (average linkage, optimal leaf order)."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance_TT = 1 - np.nan_to_num((cosine_TT + cosine_TT.T) / 2)
    np.fill_diagonal(distance_TT, 0)
    return leaves_list(linkage(squareform(distance_TT, checks=False), "average", optimal_ordering=True))


def label(name: str, length: int = 40) -> str:
    """A name as a drawing has room for it, without characters that SVG cannot hold."""
    return shortened(one_line(name), length)


def _thin(steps_S: np.ndarray, values_S: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Averages neighbours (the first axis is S) so that at most so many points remain; NaN counts for nothing."""
    if len(steps_S) <= most:
        return steps_S, values_S
    starts = np.linspace(0, len(steps_S), most, endpoint=False, dtype=int)
    known = ~np.isnan(values_S)
    sums = np.add.reduceat(np.where(known, values_S, 0), starts)
    counts = np.add.reduceat(known, starts, dtype=int)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return np.add.reduceat(steps_S, starts) / np.diff(starts, append=len(steps_S)), means


def _log_floor(series: Sequence[np.ndarray]) -> float | None:
    """A power of ten below all positive values, for those that are not positive; None if there are none of these."""
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
            axes.axhline(0, color=_INK, linewidth=0.6)
        return
    axes.set_yscale("log")
    wide = highest > 500 * lowest
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _step_axis(axes: "Axes", last_step: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, max(last_step, 1))  # a first evaluation may be all there is, at step 0
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("step")


def _label_tasks(axis: Any, tasks: Sequence[str], points: float) -> None:
    """Names the rows or columns of a map, each of which has so many points (1/72 inch) of room."""
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


@contextmanager
def canvas(
    *, width: float = PANEL_WIDTH, height: float = 2.7, grid: bool = True
) -> "Iterator[tuple[Axes, io.StringIO]]":
    """Axes to draw on, and the buffer that holds the SVG once the block is left; sizes in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    svg = io.StringIO()
    with rc_context(_STYLE | {"axes.grid": grid}), warnings.catch_warnings():
        # The browser's fonts draw the text: a letter that matplotlib's lack is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), svg
        drawn = io.StringIO()
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(drawn, format="svg", metadata=no_metadata)
    svg.write(_inline(drawn.getvalue()))


def _inline(document: str) -> str:
    """Makes an element of a page from matplotlib's SVG document: the page's colour, font and width; no foreign ids."""
    element = document[document.index("<svg") :]
    element = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r"<style.*?</style>", "", element, count=1, flags=re.DOTALL)
    return _TAG.sub(_inline_tag, element)


def _inline_tag(tag: re.Match[str]) -> str:
    inlined = re.sub(r"font-family: [^;]*; ?", "", tag[0].replace(_INK, "currentColor"))
    # matplotlib numbers its groups from 1 in each figure; only the hashed ids (clip paths, markers) are referred to.
    return re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", inlined)
