import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import pearsonr, spearmanr

from studies.coupling.tables import NUM_TARGETS, Table, read_table
from studies.coupling.trial import Outcome, rows_of_a_task, trial
from studies.figure_style import PALETTE, draw
from studies.page import Section, page, table
from studies.replicates import replicate

SEED = 13


@dataclass(frozen=True)
class Row:
    """Hold a table's sizes, the mean and standard error of its trials, and the gain: 1 - combined/alone of the means.

    `gain_error` is the standard error of the gain, whose numerator and denominator come from the same draws.
    """

    name: str
    num_tasks: int
    rows: int
    features: int
    mean: Outcome
    error: Outcome
    gain: float
    gain_each: float
    gain_error: float


def run(data: Path, out: Path, draws: int, processes: int) -> Path:
    """Measure on real tables what coupling wins, beside what was predicted, and write a page, a figure and numbers."""
    out.mkdir(parents=True, exist_ok=True)
    tables = [read_table(data / f"{name}.arff") for name in NUM_TARGETS if (data / f"{name}.arff").is_file()]
    if not tables:
        raise FileNotFoundError(f"{data} has none of {', '.join(f'{name}.arff' for name in NUM_TARGETS)}")
    results = replicate(trial, [(one, draws) for one in tables], seed=SEED, processes=processes, label="fitting")
    rows = [_summarise(one, found) for one, found in zip(tables, results, strict=True)]
    with (out / "numbers.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([_HEADER, *map(_cells, rows)])
    figure = draw(
        [[lambda axes: _scatter(axes, rows, "theory"), lambda axes: _scatter(axes, rows, "validation")]],
        out / "gains.png",
    )
    (out / "page.html").write_text(_page(rows, figure, draws), encoding="utf-8")
    return out / "page.html"


def _summarise(one: Table, draws: np.ndarray) -> Row:
    """Average the trials; the gain's error by the delta method."""
    mean, error = Outcome(*draws.mean(axis=0)), Outcome(*(draws.std(axis=0, ddof=1) / len(draws) ** 0.5))
    alone_D, combined_D = draws[:, 0], draws[:, 2]
    ratio = combined_D.mean() / alone_D.mean()
    gain_error = (combined_D - ratio * alone_D).std(ddof=1) / alone_D.mean() / len(draws) ** 0.5
    return Row(
        one.name,
        one.labels_NT.shape[1],
        rows_of_a_task(one),
        one.features_NP.shape[1],
        mean,
        error,
        float(1 - ratio),
        float(1 - mean.combined / mean.alone_each),
        float(gain_error),
    )


def correlations(rows: Sequence[Row], predictor: str) -> tuple[float, float]:
    """Return Spearman's and Pearson's correlation between the measured and the predicted gains over the tables."""
    gains = [row.gain for row in rows], [_predicted(row, predictor)[0] for row in rows]
    return float(spearmanr(*gains)[0]), float(pearsonr(*gains)[0])


def _predicted(row: Row, predictor: str) -> tuple[float, float]:
    if predictor == "theory":
        return row.mean.predicted_gain, row.error.predicted_gain
    return row.mean.validated_gain, row.error.validated_gain


_HEADER = (
    "table", "tasks", "rows of each", "p / n", "error alone", "alone, one μ each", "combined", "measured gain %",
    "gain over one μ each %", "theory's gain %", "cross-validated gain %", "theory's error alone",
    "cross-validated error alone", "similarity",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    mean, error = row.mean, row.error
    return [
        row.name,
        str(row.num_tasks),
        str(row.rows),
        f"{row.features / row.rows:.1f}",
        *(f"{value:.3f}" for value in (mean.alone, mean.alone_each, mean.combined)),
        f"{100 * row.gain:.1f} ± {100 * row.gain_error:.1f}",
        f"{100 * row.gain_each:.1f}",
        f"{100 * mean.predicted_gain:.1f} ± {100 * error.predicted_gain:.1f}",
        f"{100 * mean.validated_gain:.1f} ± {100 * error.validated_gain:.1f}",
        *(f"{value:.3f}" for value in (mean.predicted_alone, mean.validated_alone)),
        f"{mean.similarity:.2f}",
    ]


def _scatter(axes: Axes, rows: Sequence[Row], predictor: str) -> None:
    predicted = [_predicted(row, predictor) for row in rows]
    ends = [100 * value for row, (gain, _) in zip(rows, predicted, strict=True) for value in (row.gain, gain)]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=PALETTE[7], linewidth=0.8, linestyle="--")
    for row, (gain, error) in zip(rows, predicted, strict=True):
        axes.errorbar(
            100 * gain, 100 * row.gain, 100 * row.gain_error, 100 * error,
            fmt="o", color=PALETTE[0], markersize=4, elinewidth=0.8,
        )  # fmt: skip
        if max(abs(gain), abs(row.gain)) > 0.03:
            axes.annotate(row.name, (100 * gain, 100 * row.gain), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("predicted gain, %")
    axes.set_ylabel("measured gain, %")
    name = "Theory with estimates" if predictor == "theory" else "Generalised cross-validation"
    axes.set_title("{}: correlation {:.2f} of ranks, {:.2f}".format(name, *correlations(rows, predictor)))
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("symlog", linthresh=10)
        axis.set_major_locator(FixedLocator([-10, -5, 0, 5, 10, 20, 50]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def _page(rows: Sequence[Row], figure: str, draws: int) -> str:
    theory, validation = (correlations(rows, predictor) for predictor in ("theory", "validation"))
    sure = [row for row in rows if abs(row.gain) > 2 * row.gain_error]
    return page(
        "What coupling wins on real tables, and what was predicted",
        [
            f"{len(rows)} tables with several numbers to predict. Each task gets its own few rows; ridge regression "
            "of all tasks coupled (λ, μ) is set against ridge regression of each task alone (μ), all penalties "
            f"chosen on validation rows, over {draws} random divisions. The rank correlation of predicted and "
            f"measured gains is {theory[0]:.2f} for the theory (linear: {theory[1]:.2f}) and {validation[0]:.2f} for "
            f"generalised cross-validation ({validation[1]:.2f}). {len(sure)} measured gains differ from zero by two "
            f"standard errors: {', '.join(row.name for row in sure)}."
        ],
        [
            Section(
                "Predicted and measured",
                [
                    "The gain is the decrease of the mean squared error over tasks, 1 - combined/alone; bars are one "
                    "standard error. Both predictions use the training rows only: theory with the estimated "
                    "similarity and noise (equations 5 and 15), as <code>couple</code> does; generalised "
                    "cross-validation (equation 17) fits every penalty. This is our reconstruction of the theory, "
                    "for tasks with their own rows; where two tasks drew the same row, its common noise is accounted "
                    "for in the estimates, not in the prediction.",
                    table(_HEADER, [_cells(row) for row in rows]),
                ],
                [
                    (
                        figure,
                        "One point a table, named where a gain exceeds 3 %; both agree on the dashed line. Predictions "
                        "are for the best penalty of the grid and cannot be negative; penalties chosen on few "
                        "validation rows can lose.",
                    )
                ],
            )
        ],
    )
