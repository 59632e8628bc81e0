"""The page of `paretrain couple`.

Shapes: C tasks, which are columns of labels.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from paretrain.theory.coupling import Advice, MeanErrors
from studies.figure_style import PALETTE, draw, short
from studies.page import Section, page, table
from trainer.observe.report.svg import label
from trainer.observe.report.tables import text

MAX_SHOWN = 24
"""Tasks that a drawing has room for."""


def couple_page(
    source: str,
    columns: Sequence[str],
    left_out: Sequence[str],
    advice: Advice,
    times: Sequence[float],
    curve: Sequence[MeanErrors],
    sentences: Sequence[str],
) -> str:
    """Return the page as self-contained HTML."""
    shown = min(len(columns), MAX_SHOWN)
    names = [label(name, 18) for name in columns[:shown]]
    tasks = draw([[_similarities(names, advice), _errors(names, advice)]], None)
    labels = draw([[_curve(times, curve)]], None, panel_width=9.4, panel_height=2.4)
    lead = [f"{_capital(sentences[0])}.", f"{_capital(sentences[1])}. Estimated from {text(source)}."]
    omitted = f" Left out, with too few labels or one value only: {text(', '.join(left_out))}." if left_out else ""
    return page(
        f"Should these {len(columns)} tasks be combined?",
        lead,
        [
            Section(
                "Similarity, errors, and more labels",
                [],
                [
                    (
                        tasks,
                        "Left: correlations between the tasks' effects; blank where a task's own signal is not above "
                        "zero. Right: predicted test errors relative to each task's variance; 1 is what predicting "
                        "the mean gives."
                        + (f" The first {shown} of {len(columns)} tasks." if shown < len(columns) else ""),
                    ),
                    (labels, "The mean error if every task had so many times its labels, each with its best penalty."),
                ],
            ),
            Section("Task by task", [_task_table(columns, advice), f"<p>{omitted}</p>" if omitted else ""]),
            Section(
                "How to read this",
                [
                    "Linear models with the penalty λ/2 |w_0|² + μ/2 Σ|w_t - w_0|² are set against linear models of "
                    "each task alone; λ and μ are for features and labels with unit variance. Similarity and noise are "
                    "estimated from products of labels (equation 15), errors from the limit of many features and "
                    "labels; intervals are one standard error, by a jackknife over groups of samples. A class is a "
                    "task with the labels 0 and 1. Equation numbers refer to <code>paretrain/theory/README.md</code>.",
                    "On real tables the theory has picked out those that gain, and promised too much, up to four "
                    "times: take the gain as a reason to try, not as a measurement. A run's representation has seen "
                    "the labels of its train split, so that the noise is estimated too low there.",
                ],
            ),
        ],
    )


def _task_table(columns: Sequence[str], advice: Advice) -> str:
    closest = np.where(np.eye(len(columns), dtype=bool), np.nan, advice.similarity_TT)
    rows = []
    for task, name in enumerate(columns):
        known = not np.isnan(closest[task]).all()
        other = int(np.nanargmax(closest[task])) if known else 0
        error = advice.similarity_error_TT[task, other]
        nearest = f"{text(columns[other])} ({closest[task, other]:.2f} ± {error:.2f})" if known else "-"
        values = (advice.ratio_T, advice.noise_T, advice.alone_T, advice.combined_T)
        rows.append([text(name), *(f"{value[task]:.3g}" for value in values), nearest])
    return table(["task", "p / n", "noise", "error alone", "error combined", "most similar to"], rows)


def _similarities(names: Sequence[str], advice: Advice) -> Callable[[Axes], None]:
    def panel(axes: Axes) -> None:
        axes.grid(False)
        shown_CC = advice.similarity_TT[: len(names), : len(names)]
        axes.imshow(shown_CC, cmap="PuOr_r", vmin=-1, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title("Similarity of the tasks")
        if len(names) <= 8:
            for (row, column), value in np.ndenumerate(shown_CC):
                if np.isfinite(value):
                    colour = "#fff" if abs(value) > 0.5 else "#222"
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)

    return panel


def _errors(names: Sequence[str], advice: Advice) -> Callable[[Axes], None]:
    def panel(axes: Axes) -> None:
        places = np.arange(len(names))
        for offset, values_C, colour, legend in (
            (-0.18, advice.alone_T, PALETTE[7], "alone"),
            (0.18, advice.combined_T, PALETTE[0], "combined"),
        ):
            axes.barh(places + offset, values_C[: len(names)], 0.34, color=colour, label=legend)
        axes.set_yticks(places, names, fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.35)  # room for the legend
        axes.set_xlabel("predicted test error / variance")
        axes.set_title("Each task alone, and combined")
        axes.legend()

    return panel


def _curve(times: Sequence[float], curve: Sequence[MeanErrors]) -> Callable[[Axes], None]:
    def panel(axes: Axes) -> None:
        axes.plot(times, [errors.alone for errors in curve], color=PALETTE[7], marker="o", linewidth=3, label="alone")
        combined = [errors.combined for errors in curve]
        axes.plot(times, combined, color=PALETTE[0], marker="o", markersize=3, label="combined")
        axes.set_xscale("log", base=2)
        axes.set_xticks(times, [short(value) for value in times])
        axes.set_xlabel("times the labels of every task")
        axes.set_title("Mean error with more labels")
        axes.legend()

    return panel


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
