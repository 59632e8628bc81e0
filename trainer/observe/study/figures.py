"""The figures of a study: pure functions from numbers to an inline SVG. What the seeds do not tell apart looks alike.

Shapes: S seeds, N runs, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, cast

import numpy as np

from trainer.observe.report.figures import PALETTE
from trainer.observe.report.svg import INK, PAGE_WIDTH, canvas, label
from trainer.observe.study.statistics import (
    Ellipse,
    cliques,
    critical_difference,
    estimate,
    front,
    standard_error_ellipse,
    t_interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.projections.polar import PolarAxes

LIKE_BEST, OTHER = "#3f90da", "#94a4a2"
"""Colours of the methods that the seeds do not tell from the best one, and of those that they do."""
ROW_INCHES = 0.26
MAX_RANK_LABELS = 16
"""With more methods than this, the axis of ranks has a number at every fifth."""


def forest(changes: Mapping[str, np.ndarray], like_best: set[str], x_label: str) -> str:
    """Draw each method's values of all seeds, their mean, standard error (thick) and 95 % interval (thin), best first.

    Args:
        changes: name of each method -> its values, (S,); more is better.
        like_best: the methods that cannot be told from the best.
        x_label: what is drawn.
    """
    order = sorted(changes, key=lambda name: -np.nan_to_num(changes[name].mean(), nan=-np.inf))
    centres = [float(changes[name].mean()) for name in order]
    with canvas(width=PAGE_WIDTH, height=ROW_INCHES * len(order) + 0.8) as (axes, svg):
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.5)
        low, high = _reach(list(changes.values()))
        for row, (name, centre) in enumerate(zip(order, centres, strict=True)):
            values_S, colour = changes[name], LIKE_BEST if name in like_best else OTHER
            found, (first, last) = estimate(values_S), t_interval(values_S)
            if np.isfinite(first):
                axes.hlines(row, max(first, low), min(last, high), color=colour, linewidth=1)
                axes.hlines(row, centre - found.error, centre + found.error, color=colour, linewidth=3.5)
            axes.plot(values_S, np.full(len(values_S), row + 0.28), ".", color=colour, markersize=3, alpha=0.8)
            axes.plot([centre], [row], "o", color=colour, markersize=5)
        axes.set_xlim(low, high)
        axes.set_yticks(range(len(order)), [label(name) for name in order])
        axes.set_ylim(len(order) - 0.4, -0.7)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(x_label)
    return svg.getvalue()


def _reach(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the range that is drawn: of all values, and 0. Intervals of few seeds may be longer, and are cut."""
    known = np.concatenate([*values, np.zeros(1)])
    low, high = np.nanmin(known), np.nanmax(known)
    margin = 0.15 * _span(high - low, 1.0)
    return float(low - margin), float(high + margin)


def _span(found: float, otherwise: float) -> float:
    """Return how far values are apart; where they are equal but for their last digits, another number, not 0."""
    return found if found > 1e-6 * max(otherwise, 1e-6) else max(otherwise, 1e-6)


@dataclass(frozen=True)
class Cloud:
    """The runs of a method on two tasks: its name, and a point of each seed, (S, 2)."""

    name: str
    points_S2: np.ndarray


def pareto(
    methods: Sequence[Cloud],
    fixed: Sequence[Cloud],
    alone_2: np.ndarray | None,
    labels: Sequence[str],
    signs_2: np.ndarray,
) -> tuple[str, list[tuple[str, str]]]:
    """Draw two tasks against each other: methods as ellipses of their standard errors, and the front of fixed weights.

    Args:
        methods: their metrics as they are shown; the view is chosen to hold them.
        fixed: runs of fixed weights.
        alone_2: the mean metric of each task trained alone; None: not known.
        labels: of both axes.
        signs_2: +1 where more of the metric is better, -1 where less is.

    Returns:
        The drawing, and its legend: methods with the numbers that stand in the drawing.
    """
    legend = []
    numbers_at: dict[tuple[float, float], list[str]] = {}
    with canvas(width=PAGE_WIDTH, height=5.6) as (axes, svg):
        if fixed:
            means_N2 = np.array([cloud.points_S2.mean(axis=0) for cloud in fixed])
            for cloud in fixed:
                _add_ellipse(axes, standard_error_ellipse(cloud.points_S2), OTHER)
            axes.plot(*means_N2.T, "x", color=OTHER, markersize=5)
            axes.plot(*means_N2[front(means_N2 * signs_2)].T, "-", color=OTHER)
        for number, (cloud, colour) in enumerate(zip(methods, cycle(PALETTE)), start=1):
            centre_2 = cloud.points_S2.mean(axis=0)
            _add_ellipse(axes, standard_error_ellipse(cloud.points_S2), colour)
            axes.plot(*cloud.points_S2.T, ".", color=colour, markersize=3, alpha=0.7)
            axes.plot(*centre_2, "o", color=colour, markersize=5)
            numbers_at.setdefault((float(centre_2[0]), float(centre_2[1])), []).append(str(number))
            legend.append((f"{number} {cloud.name}", colour))
        for place, numbers in numbers_at.items():  # For two tasks some rules are the same.
            axes.annotate(", ".join(numbers), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        shown = [cloud.points_S2 for cloud in methods]
        if alone_2 is not None:
            axes.axvline(alone_2[0], color=INK, linewidth=0.8, linestyle="--", alpha=0.6)
            axes.axhline(alone_2[1], color=INK, linewidth=0.8, linestyle="--", alpha=0.6)
            shown.append(alone_2[None])
        points_N2 = np.concatenate(shown)
        low_2, high_2 = points_N2.min(axis=0), points_N2.max(axis=0)
        margin_2 = [0.2 * _span(high - low, abs(high)) for low, high in zip(low_2, high_2, strict=True)]
        # Better is always right and up.
        ranges = zip(low_2 - margin_2, high_2 + margin_2, strict=True)
        ends = [found[:: int(sign)] for found, sign in zip(ranges, signs_2, strict=True)]
        axes.set_xlim(*ends[0])
        axes.set_ylim(*ends[1])
        axes.set_xlabel(label(labels[0]))
        axes.set_ylabel(label(labels[1]))
    return svg.getvalue(), legend


def _add_ellipse(axes: "Axes", ellipse: Ellipse, colour: str) -> None:
    from matplotlib import patches

    shape = patches.Ellipse(
        ellipse.centre, ellipse.width, ellipse.height, angle=ellipse.angle, facecolor=colour, edgecolor=colour
    )
    shape.set_alpha(0.25)
    axes.add_patch(shape)


def radar(methods: Mapping[str, np.ndarray], tasks: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Draw the tasks as spokes and each method as a closed line, in the order of the first method's values.

    Args:
        methods: name of each method -> its values, (S, T); more is better, and further out. The band is ± 1 standard
            error. Zero is the dark circle.
        tasks: T names.

    Returns:
        The drawing, and its legend.
    """
    means = {name: values_ST.mean(axis=0) for name, values_ST in methods.items()}
    order = np.argsort(-np.nan_to_num(next(iter(means.values())), nan=-np.inf), kind="stable")
    angles_T = np.linspace(0, 2 * np.pi, len(tasks), endpoint=False)
    closed = np.append(order, order[0])
    around = np.append(angles_T, 2 * np.pi)
    legend = list(zip(methods, PALETTE, strict=False))
    with canvas(width=PAGE_WIDTH, height=7.6, projection="polar") as (axes, svg):
        low, high = _reach(list(means.values()))
        axes.plot(np.linspace(0, 2 * np.pi, 200), np.zeros(200), color=INK, linewidth=0.8, alpha=0.6)
        for name, colour in legend:
            error_T = np.array([estimate(values_S).error for values_S in methods[name].T])
            lower, upper = means[name] - error_T, means[name] + error_T
            axes.fill_between(
                around,
                np.maximum(lower, low)[closed],
                np.minimum(upper, high)[closed],
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
            axes.plot(around, means[name][closed], "-o", color=colour, markersize=3)
        axes.set_ylim(low, high)
        axes.set_xticks(angles_T, [])
        for angle, task in zip(angles_T, (tasks[place] for place in order), strict=True):
            is_left = np.pi / 2 < angle < 3 * np.pi / 2
            axes.annotate(
                label(task, 28),
                (angle, high),
                xytext=(6 * np.cos(angle), 6 * np.sin(angle)),
                textcoords="offset points",
                rotation=np.degrees(angle) + 180 * is_left,
                rotation_mode="anchor",
                ha="right" if is_left else "left",
                va="center",
                annotation_clip=False,
                fontsize=8,
            )
        cast("PolarAxes", axes).set_rlabel_position(180 / len(tasks))  # Between two spokes.
    return svg.getvalue(), legend


def critical_differences(ranks: Mapping[str, float], num_blocks: int) -> str:
    """Draw mean ranks, the best left, and join methods that Nemenyi's test does not tell apart (Demsar 2006, figure 1).

    Args:
        ranks: name of each of at least two methods -> its mean rank.
        num_blocks: independent blocks that the means are over.
    """
    ordered = sorted(ranks, key=lambda name: ranks[name])
    num, difference = len(ordered), critical_difference(len(ordered), num_blocks)
    groups = cliques(np.array(list(ranks.values())), difference)
    num_rows = (num + 1) // 2
    top = -0.45 * len(groups) - 0.9
    with canvas(width=PAGE_WIDTH, height=0.22 * (num_rows + 0.5 * len(groups)) + 1.1, grid=False) as (axes, svg):
        axes.set_axis_off()
        axes.hlines(0, 1, num, color=INK, linewidth=1)
        for rank in range(1, num + 1):
            axes.vlines(rank, 0, 0.2, color=INK, linewidth=1)
            if num <= MAX_RANK_LABELS or rank % 5 == 0 or rank == 1:
                axes.text(rank, 0.35, str(rank), ha="center", va="bottom")
        shown = min(difference, num - 1)
        axes.hlines(1.9, 1, 1 + shown, color=INK, linewidth=1.5)
        cut = "" if difference <= num - 1 else ", longer than the axis"
        axes.text(1, 2.05, f"critical difference {difference:.2f}{cut}", ha="left", va="bottom")
        for row, (first, last) in enumerate(groups):
            axes.hlines(-0.5 - 0.45 * row, first - 0.03, last + 0.03, color=LIKE_BEST, linewidth=3)
        for place, name in enumerate(ordered):
            is_left = place < num_rows
            height = top - (place if is_left else num - 1 - place)
            side, end, offset = (0.9, "right", -4) if is_left else (num + 0.1, "left", 4)
            axes.plot([ranks[name], ranks[name], side], [0, height, height], color=INK, linewidth=0.7)
            axes.annotate(
                f"{label(name)} ({ranks[name]:.2f})",
                (side, height),
                xytext=(offset, 0),
                textcoords="offset points",
                ha=end,
                va="center",
                annotation_clip=False,
            )
        axes.set_xlim(1 - 0.5 * num, num + 0.5 * num)
        axes.set_ylim(top - num_rows, 3.0)
    return svg.getvalue()
