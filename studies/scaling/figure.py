"""Draw what a step costs, in plain steps, against the number of tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from studies.figure_style import PALETTE, draw
from studies.scaling.measure import METHODS, MGDA_UB, PLAIN, Row

AIMS: Mapping[int, float] = {4096: 1.5, 10_000: 4.0}
"""Number of tasks -> the plain steps that a step of MGDA-UB is meant to take at most."""
COLOURS = dict(zip(METHODS, (PALETTE[7], PALETTE[3], PALETTE[0], PALETTE[1]), strict=True))


def draw_costs(rows: Sequence[Row], png: Path) -> str:
    """Write the figure as a PNG file and return its SVG."""
    return draw([[lambda axes: _costs(axes, rows)]], png, panel_width=7.2, panel_height=4.2)


def _costs(axes: Axes, rows: Sequence[Row]) -> None:
    axes.axhline(1, color=COLOURS[PLAIN], linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    for method, colour in COLOURS.items():
        of_method = [row for row in rows if row.method == method]
        num_tasks, ratios = [row.num_tasks for row in of_method], [row.ratio for row in of_method]
        axes.plot(num_tasks, [ratio.median for ratio in ratios], "o-", color=colour, markersize=3.6, label=method)
        bounds = [ratio.low for ratio in ratios], [ratio.high for ratio in ratios]
        axes.fill_between(num_tasks, *bounds, color=colour, alpha=0.22, linewidth=0)
    sizes = sorted({row.num_tasks for row in rows})
    aims = {size: aim for size, aim in AIMS.items() if size in sizes}
    if aims:
        axes.plot(*zip(*aims.items(), strict=True), "_", color=COLOURS[MGDA_UB], markersize=14, label="aim of MGDA-UB")
    axes.set_xlabel("number of tasks T")
    axes.set_ylabel("CPU time of a step, in plain steps")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [tick for tick in (0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 20, 50, 100) if tick <= 1.3 * axes.get_ylim()[1]]
    for axis, marks in ((axes.xaxis, sizes), (axes.yaxis, ticks)):
        axis.set_major_locator(FixedLocator(marks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())
    axes.legend(loc="upper left")
