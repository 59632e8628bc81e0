"""The study's page, and its numbers as text."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict

from studies.page import Section, page, table
from studies.scaling.figure import AIMS
from studies.scaling.measure import METHODS, MGDA_UB, PLAIN, Missing, Row, Spread

HEADER = (
    "method", "tasks", "turns", "plain steps: median", "lower quartile", "upper quartile", "plain step, CPU ms",
    "peak memory, MiB",
)  # fmt: skip


def build_csv(rows: Sequence[Row]) -> str:
    """Return one line for each row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *map(_cells, rows)])
    return text.getvalue()


def build_json(rows: Sequence[Row], missing: Sequence[Missing], setting: str) -> str:
    """Return all numbers, turn by turn."""
    numbers = {"setting": setting, "rows": [asdict(row) for row in rows], "missing": [asdict(one) for one in missing]}
    return json.dumps(numbers, indent=1) + "\n"


def build_page(rows: Sequence[Row], missing: Sequence[Missing], figure: str, setting: str) -> str:
    """Return the study's page."""
    return page(
        "What a step costs as the number of tasks grows",
        [
            "A plain step computes the sum of all tasks' losses and every gradient. The other methods also weigh the "
            f"tasks for the encoder. {_most_tasks(rows)}",
        ],
        [
            Section(
                "How many plain steps a step takes",
                [
                    "A step of the method and a plain one of the same network and batch take turns; the ratio is that "
                    "of their CPU times, as the median of the turns, with the quartiles in brackets. "
                    f"<b>{PLAIN}</b> is a plain step against a plain one: its distance from 1 is noise. "
                    "Memory is the peak of the process, PyTorch included. "
                    + ("Cells without a ratio say why there is none. " if missing else ""),
                    _table(rows, missing),
                ],
                [
                    (
                        figure,
                        "Medians, with a band from the lower to the upper quartile of the turns."
                        + "".join(
                            f" The aim with {size:,} tasks is {aim:g}."
                            for size, aim in AIMS.items()
                            if any(row.num_tasks == size for row in rows)
                        ),
                    )
                ],
            ),
            Section(
                "What was measured",
                [
                    f"{setting}. Forward, losses, weights and every gradient, without an optimizer: 64 images of "
                    "64 x 64, a small CNN, z of width 512, and a linear head of two classes for each task, stacked. "
                    "One process, one thread. The labels are random and the network untrained; as training goes on, "
                    "MGDA-UB with thousands of tasks takes more time (<code>benchmarks/README.md</code>).",
                    "From 2,048 tasks on, MGDA-UB and equal weights form no Gram matrix: products with it are enough. "
                    "With normalised gradients it is formed. Its size is T x T, so it decides the cost of thousands of "
                    "tasks. With <code>balance.every_steps=10</code> only every tenth step forms it.",
                ],
            ),
        ],
    )


def _most_tasks(rows: Sequence[Row]) -> str:
    """Say what MGDA-UB costs with the most tasks."""
    ours = [row for row in rows if row.method == MGDA_UB]
    if not ours:
        return ""
    most = max(ours, key=lambda row: row.num_tasks)
    return (
        f"With {most.num_tasks:,} tasks, a step of MGDA-UB takes {most.ratio.median:.2f} times as long as a plain one "
        f"(quartiles {most.ratio.low:.2f} and {most.ratio.high:.2f}, n = {most.ratio.n} turns)."
    )


def _table(rows: Sequence[Row], missing: Sequence[Missing]) -> str:
    cells = {(row.num_tasks, row.method): _cell(row.ratio, row.peak_mib) for row in rows}
    cells |= {(one.num_tasks, one.method): one.reason for one in missing}
    plain_ms = {row.num_tasks: f"{row.plain_ms:,.0f}" for row in rows if row.method == PLAIN}
    sizes = sorted({num_tasks for num_tasks, _ in cells})
    return table(
        ["tasks", "plain step, CPU ms", *METHODS],
        [[f"{size:,}", plain_ms.get(size, ""), *(cells[size, method] for method in METHODS)] for size in sizes],
    )


def _cell(ratio: Spread, peak_mib: float) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]<br>n = {ratio.n}, {peak_mib:,.0f} MiB"


def _cells(row: Row) -> list[str]:
    ratio = row.ratio
    return [
        row.method,
        str(row.num_tasks),
        str(ratio.n),
        *(f"{value:.4g}" for value in (ratio.median, ratio.low, ratio.high)),
        f"{row.plain_ms:.1f}",
        f"{row.peak_mib:.0f}",
    ]
