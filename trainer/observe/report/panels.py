"""The report's panels: from the records of runs to drawings with captions and legends.

Shapes: S logged steps, T tasks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

import numpy as np

from trainer.observe.read_run import RunFolder
from trainer.observe.report import figures, predictions
from trainer.observe.report.figures import PALETTE, Line
from trainer.observe.report.svg import PAGE_WIDTH, PANEL_WIDTH

MAX_TASK_CURVES = 8
"""With more tasks than this, the curves of one run show their mean and spread."""
MAX_TASK_PANELS = 4
"""With more tasks than this, the panels of several runs show their mean and the worst one."""
Legend = Sequence[tuple[str, str]]
"""Names and their colours."""


@dataclass(frozen=True)
class Panel:
    """A drawing with its caption and legend."""

    caption: str
    svg: str
    legend: Legend = ()
    size: Literal["panel", "large", "page"] = "panel"
    """panel: half the page; large: half of it, but a phone scrolls rather than shrinks it; page: the whole width."""


def task_panels(
    runs: Sequence[RunFolder], kind: str, key: str, label: str, tasks: Sequence[str], *, score: bool = False
) -> Iterator[Panel]:
    """Draw losses or errors of `tasks`.

    One run gets one panel; several runs get one panel per task, or panels of the mean and the worst. For a score,
    higher is better.
    """
    caption = label.partition(" (")[0]
    logged = [(run, colour) for run, colour in zip(runs, cycle(PALETTE)) if run.of_kind(kind)]
    if not logged:
        return
    if len(runs) == 1:
        run = runs[0]
        steps_S, values_ST = run.steps(kind), run.by_task(kind, key, tasks)
        if np.isnan(values_ST).all():
            return
        log = not score and figures.deserves_log_axis(values_ST)
        if len(run.tasks) <= MAX_TASK_CURVES:
            colours = dict(zip(run.tasks, cycle(PALETTE)))
            lines = [Line(steps_S, values_ST[:, column], colours[task]) for column, task in enumerate(tasks)]
            yield Panel(caption, figures.curves(lines, label, log=log))
        else:
            yield Panel(caption, figures.spread(steps_S, values_ST, label, log=log))
        return
    if len(tasks) <= MAX_TASK_PANELS:
        panels = {task: [run.by_task(kind, key, [task])[:, 0] for run, _ in logged] for task in tasks}
    else:
        reduced = [figures.mean_and_worst(run.by_task(kind, key, tasks), score=score) for run, _ in logged]
        panels = {
            "mean of the tasks": [mean_S for mean_S, _ in reduced],
            "worst task": [worst_S for _, worst_S in reduced],
        }
    for panel, series in panels.items():
        lines = [
            Line(run.steps(kind), values_S, colour) for (run, colour), values_S in zip(logged, series, strict=True)
        ]
        log = not score and figures.deserves_log_axis(np.concatenate(series))
        yield Panel(f"{caption}: {panel}", figures.curves(lines, label, log=log))


def number_panels(
    runs: Sequence[RunFolder], key: str, caption: str, label: str, *, log: bool = False, kind: str = "train"
) -> Iterator[Panel]:
    """Draw a number of the records of a kind, if any run has it."""
    lines = [Line(run.steps(kind), run.series(kind, key), colour) for run, colour in zip(runs, cycle(PALETTE))]
    if any(not np.isnan(line.values_S).all() for line in lines):
        yield Panel(caption, figures.curves(lines, label, log=log))


def weight_panels(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[Panel]:
    """Draw the weights of each run: stacked areas, or heat maps with a common scale if the tasks are many."""
    logged = [
        (name, run.tasks, run.steps("train"), run.by_task("train", "alpha", run.tasks))
        for name, run in zip(names, runs, strict=True)
        if run.of_kind("train")
    ]
    width = PAGE_WIDTH if len(runs) == 1 else PANEL_WIDTH
    size: Literal["page", "large"] = "page" if len(runs) == 1 else "large"
    mapped = [(steps_S, alpha_ST) for _, tasks, steps_S, alpha_ST in logged if len(tasks) > len(PALETTE)]
    top = max((figures.largest_weight(steps_S, alpha_ST) for steps_S, alpha_ST in mapped), default=1.0)
    for name, tasks, steps_S, alpha_ST in logged:
        if len(tasks) <= len(PALETTE):
            yield Panel(name, figures.weights_area(steps_S, alpha_ST, width=width), legend_of(tasks), size=size)
        else:
            svg = figures.weights_map(steps_S, alpha_ST, tasks, top, width=width)
            yield Panel(joined(name, "the heaviest task on average first"), svg, size=size)


def conflict_panels(run: RunFolder, name: str) -> Iterator[Panel]:
    """Draw the cosines between the tasks' gradients: the last ones, and their mean."""
    grams = run.of_kind("gram")
    if not grams:
        return
    cosines_STT = np.stack([figures.cosines(np.array(record["gram"], dtype=float)) for record in grams])
    mean_TT = figures.mean_cosines(cosines_STT)
    many = len(run.tasks) > MAX_TASK_CURVES
    order = figures.order_by_agreement(mean_TT) if many else np.arange(len(run.tasks))
    for when, cosine_TT in (
        (f"step {grams[-1]['step']:,}", cosines_STT[-1]),
        (f"mean of {len(grams)}, steps {grams[0]['step']:,} to {grams[-1]['step']:,}", mean_TT),
    ):
        svg = figures.cosine_map(cosine_TT[np.ix_(order, order)], [run.tasks[task] for task in order])
        yield Panel(joined(name, when), svg, size="large" if many else "panel")


def prediction_panels(run: RunFolder, name: str) -> Iterator[Panel]:
    """Draw the predictions that a run has kept, if any."""
    shown = run.predictions
    if shown is not None:
        keys = [entry for maps in shown.maps for entry in predictions.legend(maps)]
        yield Panel(joined(name, f"step {shown.step:,}"), predictions.draw(shown), keys, size="page")


def joined(*parts: str) -> str:
    """Join the parts of a caption that are not empty."""
    return ": ".join(part for part in parts if part)


def legend_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return a legend that gives each name its colour of the palette."""
    return list(zip(names, cycle(PALETTE)))
