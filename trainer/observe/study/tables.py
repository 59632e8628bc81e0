"""The tables of a study: HTML for the page, rows for the CSV file, and plain values for the JSON file.

Shapes: S seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.config.metrics import METRICS
from trainer.observe.report.tables import NONE, duration, html_table, name_cell, text
from trainer.observe.study.results import Method, Results
from trainer.observe.study.statistics import Estimate, bootstrap_interval, estimate, is_noise, plus_minus, t_interval

MAX_TASK_COLUMNS = 6
"""With more tasks than this, the first table has their mean; a folded one has all."""
HEADER = ("method", "task", "metric", "mean", "standard_error", "seeds")
"""Columns of the CSV file."""


def method_table(results: Results) -> str:
    """Return one row a method: the metrics that decide, Δm, mean rank, time and memory.

    In bold: the best method of a metric or of Δm, and those that the seeds do not tell from it.
    """
    rows, columns = results.rows, list(metric_columns(results))
    bold = [
        results.like_the_best({method.name: column.scores[method.name] for method in results.methods})
        for column in columns
    ]
    ranks, changes = results.mean_ranks, {method.name: results.changes(method) for method in rows}
    best_changes = results.like_the_best({method.name: changes[method.name] for method in results.methods})
    tuned = list(dict.fromkeys(key for method in rows for key in method.chosen))
    header = [
        "method",
        *(name_cell(column.title) for column in columns),
        "Δm, %",
        "mean rank",
        "time",
        "ms a step",
        "MiB a process",
    ]
    cells = []
    for method in rows:
        shown = [
            _bold(over_seeds(column.values[method.name]), method.name in best)
            for column, best in zip(columns, bold, strict=True)
        ]
        change = NONE if np.isnan(changes[method.name]).any() else signed(estimate(changes[method.name]))
        cells.append(
            [
                name_cell(method.name),
                *shown,
                _bold(change, method.name in best_changes),
                f"{ranks[method.name]:.2f}" if method.name in ranks and not np.isnan(ranks[method.name]) else NONE,
                *_costs(method),
                *(text(method.chosen[key]) if key in method.chosen else NONE for key in tuned),
            ]
        )
    return html_table([*header, *(text(key.rpartition(".")[2].replace("_", " ")) for key in tuned)], cells)


def task_table(results: Results) -> str:
    """Return one row a task and one column a method, of the metric that decides."""
    rows = []
    for task, metric in results.deciding.items():
        best = results.like_the_best({method.name: results.scores(method, task) for method in results.methods})
        shown = [_bold(over_seeds(m.values(task, metric)), m.name in best) for m in results.rows]
        rows.append([name_cell(titled(task, metric)), *shown])
    return html_table(["task", *(name_cell(method.name) for method in results.rows)], rows)


def difference_table(results: Results) -> str:
    """Return how far each method's Δm is below that of the best one, with intervals, paired by seed."""
    changes = {method.name: results.changes(method) for method in results.methods}
    known = {name: values_S for name, values_S in changes.items() if not np.isnan(values_S).any()}
    if len(known) < 2:
        return ""
    best = max(known, key=lambda name: float(known[name].mean()))
    rows = []
    for name in sorted(known, key=lambda name: -float(known[name].mean())):
        if name == best:
            continue
        differences_S = known[name] - known[best]
        verdict = "not told apart" if is_noise(differences_S) else "<b>behind</b>"
        intervals = [_interval(found(differences_S)) for found in (bootstrap_interval, t_interval)]
        rows.append([name_cell(name), signed(estimate(differences_S)), *intervals, verdict])
    header = [name_cell(f"against {best}"), "difference of Δm", "95 % by bootstrap", "95 % by Student's t", "verdict"]
    return html_table(header, rows)


def metric_rows(results: Results) -> Iterator[tuple[str, str, str, Estimate]]:
    """Yield method, task, metric and its estimate: of every task, and what a method has reached and cost in all."""
    for method in [*results.rows, *results.front]:
        for task in results.tasks:
            names = dict.fromkeys(name for found in method.metrics for name in found.get(task, {}))
            for name in names:
                yield method.name, task, name, estimate(method.values(task, name))
        yield method.name, "", "delta_m_percent", estimate(results.changes(method))
        yield method.name, "", "seconds", estimate(method.seconds_S)
        yield method.name, "", "peak_memory_mib", estimate(method.mib_S)
    for method, ranks_S in zip(results.methods, results.ranks, strict=True):
        yield method.name, "", "mean_rank", estimate(ranks_S)


def csv_rows(results: Results) -> list[Sequence[str]]:
    """Return the rows of the CSV file; empty where a number is not defined."""
    return [HEADER, *((*names, _plain(e.mean), _plain(e.error), str(e.count)) for *names, e in metric_rows(results))]


def as_json(results: Results) -> dict[str, Any]:
    """Return everything that the study has found, seed by seed, as plain values."""

    def plain(method: Method) -> dict[str, Any]:
        return {
            "name": method.name,
            "chosen": dict(method.chosen),
            "metrics": list(method.metrics),
            "delta_m_percent": _numbers(results.changes(method)),
            "seconds": _numbers(method.seconds_S),
            "peak_memory_mib": _numbers(method.mib_S),
            "steps": method.steps,
        }

    return {
        "title": results.title,
        "split": results.split,
        "seeds": list(results.seeds),
        "deciding": dict(results.deciding),
        "baseline": results.baseline.name,
        "methods": [
            plain(method) | {"mean_rank": _numbers(ranks_S)}
            for method, ranks_S in zip(results.methods, results.ranks, strict=True)
        ],
        "alone": plain(results.alone) if results.alone else None,
        "front": [plain(method) for method in results.front],
    }


@dataclass(frozen=True)
class Column:
    """A metric of all methods: name of each method -> its values, (S,)."""

    title: str
    metric: str
    values: Mapping[str, np.ndarray]

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Return the values such that more is better."""
        sign = 1 if METRICS[self.metric].best is max else -1
        return {name: sign * values_S for name, values_S in self.values.items()}


def metric_columns(results: Results) -> Iterator[Column]:
    """Yield the metrics that decide: of each task, where they are few, and their means over tasks."""
    if len(results.tasks) <= MAX_TASK_COLUMNS:
        for task, metric in results.deciding.items():
            yield Column(titled(task, metric), metric, {m.name: m.values(task, metric) for m in results.rows})
    for metric in dict.fromkeys(results.deciding.values()):
        tasks = [task for task, name in results.deciding.items() if name == metric]
        if len(tasks) > 1 and not METRICS[metric].has_unit:
            means = {m.name: np.mean([m.values(task, metric) for task in tasks], axis=0) for m in results.rows}
            yield Column(f"mean {metric.replace('_', ' ')}", metric, means)


def titled(task: str, metric: str) -> str:
    """Return a heading: left, balanced accuracy."""
    return f"{task}, {metric.replace('_', ' ')}"


def _costs(method: Method) -> list[str]:
    seconds, mib = estimate(method.seconds_S), estimate(method.mib_S)
    if not seconds.count:
        return [NONE, NONE, f"{mib.mean:,.0f}" if mib.count else NONE]
    spread = "" if np.isnan(seconds.error) else f" ± {seconds.error:.2g} s"
    milliseconds = 1000 * seconds.mean / max(method.steps, 1)
    each = f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
    return [f"{duration(seconds.mean)}{spread}", each, f"{mib.mean:,.0f}" if mib.count else NONE]


def over_seeds(values_S: np.ndarray) -> str:
    """Format a mean with its standard error, and their number where they are not defined for all seeds."""
    found = estimate(values_S)
    return plus_minus(found) + (f" (n = {found.count})" if 0 < found.count < len(values_S) else "")


def signed(found: Estimate) -> str:
    """Format a change as `plus_minus` does, with its sign."""
    return plus_minus(found) if found.mean < 0 else f"+{plus_minus(found)}"


def _interval(found: tuple[float, float]) -> str:
    return f"{found[0]:+.2f} … {found[1]:+.2f}" if np.isfinite(found[0]) else NONE


def _bold(cell: str, is_bold: bool) -> str:
    return f"<b>{cell}</b>" if is_bold else cell


def _plain(value: float) -> str:
    return f"{value:.8g}" if np.isfinite(value) else ""


def _numbers(values_S: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values_S]
