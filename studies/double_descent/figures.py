"""Draw the panels: theory as lines, simulation as points with error bars of one standard error."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from studies.double_descent.experiments import MOST_FEATURES, Series, strengths
from studies.double_descent.measured import Measured, Results
from studies.figure_style import PALETTE, draw, short

Corner = Literal["best", "upper left", "lower right"]
PanelsOfSeries = Mapping[str, Sequence[Series]]


@dataclass(frozen=True)
class Look:
    """Hold what a panel needs besides its series."""

    title: str
    x_label: str
    y_label: str = "test error"
    marks: tuple[float, ...] = ()
    log_y: bool = True
    paired: bool = False
    legend: Corner = "best"


LOOKS = {
    "features": Look(
        "A. The peak moves to p = T n",
        "features per sample of one task, p / n",
        marks=(1, 2, 4, 8),
        legend="upper left",
    ),
    "samples": Look(
        "B. In samples it moves to n = p / T", "samples of one task per feature, n / p", marks=(1, 0.5, 0.25, 0.125)
    ),
    "own": Look("C. Without coupling (μ → 0) it returns to p = n", "p / n  (T = 4)", marks=(1, 4), legend="upper left"),
    "tuned": Look("D. With the best λ and μ there is no peak", "p / n", log_y=False, legend="upper left"),
    "height": Look("The height of the peak grows as 1 / √λ", "λ, at p = T n", "test error at p = T n"),
    "labels": Look("Squared error for three kinds of labels", "p / n", paired=True, legend="upper left"),
    "classification": Look(
        "Wrong signs, fitted by two losses",
        "p / n",
        "share of wrong signs",
        log_y=False,
        paired=True,
        legend="lower right",
    ),
    "unseen": Look("A fixed share of the features is seen (T = 4)", "p / n", marks=(4,), legend="upper left"),
    "seen": Look(
        f"Ever more of d = {MOST_FEATURES} n features are seen", "p / n", marks=(1, 2, 4), legend="upper left"
    ),
}


def draw_figures(panels: PanelsOfSeries, results: Results, folder: Path) -> dict[str, str]:
    """Write each figure as a PNG file and return its SVG by name."""

    def panel(name: str) -> Callable[[Axes], None]:
        return lambda axes: _panel(axes, LOOKS[name], panels[name], results.points[name])

    layout: dict[str, list[list[Callable[[Axes], None]]]] = {
        "four_panels": [[panel("features"), panel("samples")], [panel("own"), panel("tuned")]],
        "claim_1": [[lambda axes: _equivalence(axes, results), _strengths]],
        "claim_2": [[lambda axes: _peaks(axes, panels["features"], results.points["features"]), panel("height")]],
        "labels": [[panel("labels"), panel("classification")]],
        "misspecified": [[panel("unseen"), panel("seen")]],
    }
    return {name: draw(rows, folder / f"{name}.png") for name, rows in layout.items()}


def _panel(axes: Axes, look: Look, series: Sequence[Series], points: Sequence[Sequence[Measured]]) -> None:
    for mark in look.marks:
        axes.axvline(mark, color="#888888", linewidth=0.6, linestyle=(0, (2, 3)), zorder=0)
    for number, (one, measured) in enumerate(zip(series, points, strict=True)):
        colour = PALETTE[number // 2 if look.paired else number]
        dashed = look.paired and number % 2 == 0
        axes.plot(one.curve_x, one.curve, color=colour, linestyle="--" if dashed else "-", label=one.name)
        axes.errorbar(
            [point.x for point in measured],
            [point.mean for point in measured],
            [point.error for point in measured],
            fmt="o",
            color=colour,
            markersize=3.6,
            markerfacecolor="white" if dashed else colour,
            elinewidth=1,
            capsize=1.5,
        )
    axes.set_title(look.title)
    axes.set_xlabel(look.x_label)
    axes.set_ylabel(look.y_label)
    _plain_logarithm(axes, "x")
    if look.log_y:
        _plain_logarithm(axes, "y")
        if look.paired:  # room for the legend
            axes.set_ylim(top=4 * axes.get_ylim()[1])
    axes.legend(loc=look.legend, ncols=2 if look.paired else 1)


def _equivalence(axes: Axes, results: Results) -> None:
    """Draw claim (i) as rows: the coupled tasks, the equivalent single task, theory, and one task alone."""
    rows = np.arange(len(results.equivalences))[::-1]
    for row, one in zip(rows, results.equivalences, strict=True):
        first = row == rows[0]
        axes.plot([one.coupled.theory] * 2, [row - 0.3, row + 0.3], color=PALETTE[7], label="theory" if first else None)
        for offset, point, colour, name in (
            (0.13, one.coupled, PALETTE[0], "T tasks, coupled"),
            (-0.13, one.equivalent, PALETTE[1], "equivalent single task"),
        ):
            axes.errorbar(
                point.mean,
                row + offset,
                xerr=point.error,
                fmt="o",
                color=colour,
                markersize=4,
                label=name if first else None,
            )
        axes.plot(one.alone, row, "x", color=PALETTE[4], markersize=5, label="task alone, same λ, μ" if first else None)
    axes.set_yticks(rows, [one.name for one in results.equivalences])
    axes.set_ylim(-0.6, len(rows) + 0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("test error")
    _plain_logarithm(axes, "x")
    axes.set_title("Coupled tasks and their equivalent single task")
    axes.legend(loc="upper center", ncols=2)


def _strengths(axes: Axes) -> None:
    numbers = sorted({round(number) for number in np.geomspace(1, 128, 22)})
    for colour, ratio in zip(PALETTE, (0.5, 1, 2, 4), strict=False):
        axes.plot(numbers, strengths(ratio, numbers), ".-", color=colour, label=f"p / n = {ratio:g}")
    axes.axhline(0.5, color="#888888", linewidth=0.8, linestyle=(0, (2, 3)))
    axes.annotate("μ", (1, 0.5), xytext=(2, -11), textcoords="offset points")
    axes.set_title("Its ridge penalty α grows from λμ/(λ+μ) to μ")
    axes.set_xlabel("number of tasks T")
    axes.set_ylabel("penalty α of the equivalent task")
    _plain_logarithm(axes, "x")
    axes.legend(loc="lower right")


def _peaks(axes: Axes, series: Sequence[Series], points: Sequence[Sequence[Measured]]) -> None:
    numbers, theory, simulated = [], [], []
    for one, measured in zip(series, points, strict=True):
        if measured:
            numbers.append(measured[0].setting.num_tasks)
            theory.append(one.curve_x[np.argmax(one.curve)])
            simulated.append(max(measured, key=lambda point: point.mean).x)
    axes.plot([1, 8], [1, 8], color=PALETTE[7], label="p = T n")
    axes.plot(
        numbers, theory, "D", color=PALETTE[1], markersize=8, markerfacecolor="none", label="theory's highest point"
    )
    axes.plot(numbers, simulated, "o", color=PALETTE[0], markersize=4, label="highest simulated point")
    axes.set_title("Where the peak of panel A stands")
    axes.set_xlabel("number of tasks T")
    axes.set_ylabel("p / n at the peak")
    _plain_logarithm(axes, "x")
    _plain_logarithm(axes, "y")
    axes.set_xticks(numbers)
    axes.set_yticks(numbers)
    axes.legend(loc="upper left")


def _plain_logarithm(axes: Axes, which: str) -> None:
    """Make a logarithmic axis with plain numbers at 1, 2 and 5, or at powers of ten alone where it is long."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_locator(NullLocator())
