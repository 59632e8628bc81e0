"""The report's tables of metrics, as HTML fragments."""

from collections.abc import Mapping, Sequence

from trainer.config.metrics import METRICS
from trainer.observe.over_tasks import ByTask, mean_ranks, over_tasks
from trainer.observe.read_run import RunFolder
from trainer.observe.report.tables import MAX_TABLE_TASKS, NONE, best_bold, html_table, text

MAJORITY = "majority_accuracy"


def metric_tables(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return the metrics of the tasks of one run; of several runs, the mean of each metric over the tasks."""
    records = [run.evaluated_on(run.result.split) for run in runs]
    metrics: list[ByTask] = [record.get("metrics", {}) for record in records]
    if not any(metrics):
        return ""
    if len(runs) == 1:
        where = f"the {runs[0].result.split} split"
        by_source = {
            f"{where} of source {name}": found["metrics"] for name, found in records[0].get("by_source", {}).items()
        }
        return "".join(_of_one(found, place) for place, found in {where: metrics[0], **by_source}.items())
    return _of_several(metrics, names, records[0].get("deciding", {}))


def _of_one(metrics: ByTask, where: str) -> str:
    """Return a table for the tasks of each set of metrics."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for task, values in metrics.items():
        groups.setdefault(tuple(name for name in METRICS if name in values), []).append(task)
    return "".join(_group(metrics, columns, tasks, where) for columns, tasks in groups.items() if columns)


def _group(metrics: ByTask, columns: Sequence[str], tasks: Sequence[str], where: str) -> str:
    over = over_tasks({task: metrics[task] for task in tasks})
    header = ["task", *map(_titled, columns)]
    below = []
    if len(tasks) > 1:
        means = [_number(over[name].mean if name in over else None) for name in columns]
        worsts = [_number(over[name].worst if name in over else None) for name in columns]
        below = [["mean", *means], ["worst", *worsts]]
    rows = [[text(task), *(_number(metrics[task].get(name)) for name in columns)] for task in tasks]
    said = "Majority accuracy is what always answering the most frequent class scores."
    explained = f"<p>{said}</p>" if MAJORITY in columns else ""
    summary = f"Metrics on {text(where)}, {len(tasks):,} task{'s' if len(tasks) > 1 else ''}"
    is_open = " open" if len(tasks) <= MAX_TABLE_TASKS else ""
    return f"<details{is_open}><summary>{summary}</summary>{explained}{html_table(header, [*below, *rows])}</details>"


def _of_several(metrics: Sequence[ByTask], names: Sequence[str], deciding: Mapping[str, str]) -> str:
    over = [over_tasks(each) for each in metrics]
    rows = []
    for name, metric in METRICS.items():
        values = [each[name].mean if name in each else None for each in over]
        if any(value is not None for value in values):
            rows.append([_titled(name), *best_bold(values, "{:.4f}".format, metric.best)])
    ranks = mean_ranks(metrics, deciding)
    if any(rank is not None for rank in ranks):
        rows.append(["rank by the metric that decides", *best_bold(ranks, "{:.2f}".format, min)])
    table = html_table(["", *map(text, names)], rows)
    return f"<details open><summary>Metrics, as means over the tasks</summary>{table}</details>"


def _titled(name: str) -> str:
    return text(name.replace("_", " "))


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"
