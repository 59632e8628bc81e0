"""The report's headline, key figures and tables, as HTML fragments."""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from trainer.observe.metrics import TEST
from trainer.observe.read_run import RunFolder
from trainer.observe.settings import differing_settings
from trainer.observe.units import (
    MIOU,
    PERCENT,
    Choice,
    best_in,
    by_unit,
    cache_words,
    number_in,
    titled,
    with_unit,
    worst_first,
    worst_in,
    worst_task,
)
from trainer.plain import printable

MAX_LINE = 40
"""Longest name that is not folded."""
MAX_TABLE_TASKS = 16
NUM_WORST_TASKS = 10
"""With more than MAX_TABLE_TASKS tasks, the table shows this many, and all of them in a folded one below it."""

NONE = "–"

Form = Callable[[float], str]


def text(value: object) -> str:
    """Escape a value for HTML text; control characters are shown as escapes."""
    return html.escape(printable(str(value)))


def headline(run: RunFolder) -> str:
    """Return one line about what was trained, without what is not known yet."""
    weighting = _weighting(run)
    counted = {"parameters": run.latest("parameters"), "processes": run.world_size, "samples": run.latest("samples")}
    parts = [f"{len(run.tasks):,} tasks" if run.tasks else None, f"{weighting} weights" if weighting else None]
    parts += [f"{count:,} {what}" for what, count in counted.items() if count is not None]
    return text(" · ".join(part for part in parts if part))


def notices(run: RunFolder, name: str) -> str:
    """Return notices that the run has not finished, or that an incomplete record was left out."""
    found = [] if run.summary is not None else [f"{name} has not finished: {_reached(run)}."]
    if run.metrics.is_torn:
        found.append(f"The last line of {name}'s metrics.jsonl is incomplete and was left out.")
    return "".join(f'<p class="notice">{text(notice)}</p>' for notice in found)


def key_figures(run: RunFolder) -> str:
    """Return the few most important numbers of a run."""
    found: list[tuple[str, str, str]] = []
    result = run.result
    errors = _known(result.errors)
    if result.rule or run.eval_split != TEST:
        step = "not evaluated yet" if result.step is None else f"step {result.step:,}"
        found.append((f"Errors of the {result.split} split", step, result.rule or "the last evaluation"))
    for unit, tasks in by_unit(errors, run.units).items():
        worst = worst_task({task: errors[task] for task in tasks}, unit)
        what = "Score" if unit == MIOU else "Error"
        found.append((f"{what} of the worst task" if len(tasks) > 1 else what, with_unit(errors[worst], unit), worst))
        if len(tasks) > 1:
            mean = fmean(errors[task] for task in tasks)
            found.append((f"Mean {what.lower()}", with_unit(mean, unit), f"over {len(tasks):,} tasks"))
    if (seconds := _seconds(run)) is not None:
        found.append(("Wall time", duration(seconds), f"{_steps(run) or 0:,} steps"))
    if (speed := run.latest("samples_per_second")) is not None:
        waited, processes = run.latest("data_wait_percent"), run.world_size or 1
        details = [f"{speed / processes:,.0f} a process"] if processes > 1 else []
        details += [] if waited is None else [f"{waited:.1f} % waiting for data"]
        found.append(("Samples/s", f"{speed:,.0f}", ", ".join(details)))
    if use := run.latest("cache"):
        hits, _, fetched = cache_words(use).partition(", ")
        found.append(("Shards from the cache", hits, fetched))
    if bad_samples := run.latest("bad_samples"):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in bad_samples.items())
        found.append(("Bad samples", f"{sum(bad_samples.values()):,}", reasons))
    if faults := run.of_kind("fault"):
        skipped = sum(fault["action"] != "drop_task" for fault in faults)
        found.append(("Not finite", f"{len(faults):,} steps", f"{skipped:,} of them skipped"))
    cells = "".join(
        f"<div><dt>{label}</dt><dd>{text(value)}<small>{text(detail)}</small></dd></div>"
        for label, value, detail in found
    )
    return f'<dl class="facts">{cells}</dl>'


def task_table(run: RunFolder) -> str:
    """Return the table of final and best error, last loss and mean weight of every task of one run."""
    if not run.tasks:
        return ""
    final, best, best_step = (run.errors[key] for key in ("final_errors", "best_errors", "best_step"))
    on = "" if run.eval_split == TEST else f"{run.eval_split} "
    tested = run.errors.get("test_errors")
    last = (run.of_kind("train") or [{"losses": {}}])[-1]["losses"]
    alpha_T = 100 * np.nan_to_num(run.by_task("train", "alpha", run.tasks)).mean(axis=0) if last else []
    mean_alpha = dict(zip(run.tasks, alpha_T, strict=True)) if last else {}
    units = list(by_unit(run.tasks, run.units))
    unit = units[0] if len(units) == 1 else None
    form = partial(number_in, unit or PERCENT)
    what = text(titled(unit)) if unit else "error or score" if MIOU in units else "error"
    header = (
        "task",
        f"final {text(on)}{what}",
        f"best {text(on)}{what}" if best_step is None else f"{text(on)}{what} at best step {best_step:,}",
        *([] if tested is None else [f"test {what} at step {run.errors.get('test_step', 0):,}"]),
        "last training loss",
        "mean weight α (%)",
    )

    def error(value: float | None, task: str) -> str:
        if unit is not None or value is None:
            return _number(value, form)
        return text(with_unit(value, run.units.get(task, PERCENT)))

    def row(task: str) -> list[str]:
        return [
            text(task),
            error(final.get(task), task),
            error(best.get(task), task),
            *([] if tested is None else [error(tested.get(task), task)]),
            _number(last.get(task), "{:.4f}".format),
            _number(mean_alpha.get(task), "{:.2f}".format),
        ]

    columns = [final, best, *([] if tested is None else [tested])]
    mean_errors = [NONE if unit is None else _mean(column, form) for column in columns]
    mean_row = ["mean", *mean_errors, _mean(last, "{:.4f}".format), NONE]
    by_error = worst_first(run.tasks, _known(final), run.units)
    return _fold(header, [mean_row] if len(run.tasks) > 1 else [], run.tasks, row, by_error, [])


def comparison_table(runs: Sequence[RunFolder], legend: Sequence[tuple[str, str]]) -> str:
    """Return the table of the final errors of several runs, the best in bold, and what each run cost."""
    tasks = tuple(dict.fromkeys(task for run in runs for task in run.tasks))
    finals = [_known(run.result.errors) for run in runs]
    units = {task: unit for run in runs for task, unit in run.units.items()}
    known = {task: [final[task] for final in finals if task in final] for task in tasks}
    worst = {task: worst_in(units.get(task, PERCENT))(found) for task, found in known.items() if found}
    header = ["", *(f'<i style="background:{colour}"></i>{text(name)}' for name, colour in legend)]

    def error_row(label: str, unit: str, values: Iterable[float | None]) -> list[str]:
        return [
            f"{text(label)} {text(titled(unit))}",
            *best_bold(list(values), partial(number_in, unit), best_in(unit)),
        ]

    def over_tasks(label: str, unit: str, group: Sequence[str], reduce: Choice) -> list[str]:
        found = [[final[task] for task in group if task in final] for final in finals]
        return error_row(label, unit, [reduce(errors) if errors else None for errors in found])

    def cost_row(label: str, values: Iterable[Any], form: Callable[[Any], str]) -> list[str]:
        return [label, *(NONE if value is None else text(form(value)) for value in values)]

    above = [
        over_tasks(label, unit, group, reduce)
        for unit, group in by_unit(tasks, units).items()
        for label, reduce in (("worst task's", worst_in(unit)), ("mean", fmean))
    ]
    below = [
        cost_row("weights", [_weighting(run) for run in runs], str),
        cost_row("processes", [run.world_size for run in runs], str),
        cost_row("steps", [_steps(run) for run in runs], "{:,}".format),
        cost_row("wall time", [_seconds(run) for run in runs], duration),
        ["samples/s", *best_bold([run.latest("samples_per_second") for run in runs], "{:,.0f}".format, max)],
        cost_row("data wait", [run.latest("data_wait_percent") for run in runs], "{:.1f} %".format),
        cost_row("peak memory", [run.latest("peak_memory_mib") for run in runs], "{:,.0f} MiB".format),
    ]

    def row(task: str) -> list[str]:
        return error_row(task, units.get(task, PERCENT), [final.get(task) for final in finals])

    return _fold(header, above, tasks, row, worst_first(tasks, worst, units), below)


def settings_table(runs: Sequence[RunFolder], legend: Sequence[tuple[str, str]]) -> str:
    """Return the table of the settings in which the runs differ, a row each; nothing where they do not."""
    differing = differing_settings(runs)
    if not differing:
        return ""
    header = ["", *map(text, differing)]
    rows = (
        [f'<i style="background:{colour}"></i>{text(name)}', *(NONE if value is None else text(value) for value in row)]
        for (name, colour), row in zip(legend, zip(*differing.values(), strict=True), strict=True)
    )
    return html_table(header, rows)


def class_tables(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """Return folded tables of each class's intersection over union at the last evaluation of each run."""
    last = [run.of_kind("eval")[-1].get("by_class", {}) if run.of_kind("eval") else {} for run in runs]
    tables = ""
    for task in dict.fromkeys(task for found in last for task in found):
        classes = dict.fromkeys(part for found in last for part in found.get(task, {}))
        rows = (
            [text(part), *best_bold([found.get(task, {}).get(part) for found in last], "{:.2f}".format, max)]
            for part in classes
        )
        header = ["class", *map(text, names if len(runs) > 1 else ["IoU (%)"])]
        summary = f"{text(task)}: intersection over union of its {len(classes)} classes (%)"
        tables += f"<details><summary>{summary}</summary>{html_table(header, rows)}</details>"
    return tables


def duration(seconds: float) -> str:
    """Format seconds: 8.1 s, 2 min 14 s, 3 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _weighting(run: RunFolder) -> str | None:
    rule, normalise = run.latest("weighting") or run.config.balance.weighting, run.config.balance.normalise
    return rule if rule is None or normalise == "none" else f"{rule} ({normalise})"


def _reached(run: RunFolder) -> str:
    total = run.config.train.steps
    reached = run.latest("step")
    return "no step is logged yet" if reached is None else f"step {reached:,}{f' of {total:,}' if total else ''}"


def _steps(run: RunFolder) -> int | None:
    return run.latest("steps") or run.latest("step")


def _seconds(run: RunFolder) -> float | None:
    return run.latest("wall_seconds") or run.latest("seconds")


def _fold(
    header: Sequence[str],
    above: list[list[str]],
    tasks: Sequence[str],
    row: Callable[[str], list[str]],
    by_error: Sequence[str],
    below: list[list[str]],
) -> str:
    """Return a table with one row per task; with many tasks, one with the worst and a folded one with all."""
    if len(tasks) <= MAX_TABLE_TASKS:
        return html_table(header, above + [row(task) for task in tasks] + below)
    return (
        html_table(header, above + [row(task) for task in by_error[:NUM_WORST_TASKS]] + below)
        + f"<details><summary>All {len(tasks):,} tasks (above: the {NUM_WORST_TASKS} with the largest error)</summary>"
        + html_table(header, [row(task) for task in tasks])
        + "</details>"
    )


def name_cell(name: str) -> str:
    """Return a name as HTML for a table, folded where it is long: the numbers beside it are to stay in sight."""
    return f'<span class="long">{text(name)}</span>' if len(name) > MAX_LINE else text(name)


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells in HTML; the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{label}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for label, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def best_bold(values: Sequence[float | None], form: Form, best_of: Choice) -> list[str]:
    """Format values, the best of several in bold."""
    known = [value for value in values if value is not None]
    best = form(best_of(known)) if len(known) > 1 else None  # compare as printed: values that look equal are all bold
    cells = [_number(value, form) for value in values]
    return [f"<b>{cell}</b>" if cell == best else cell for cell in cells]


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {task: value for task, value in values.items() if value is not None}


def _mean(values: Mapping[str, float | None], form: Form) -> str:
    known = _known(values)
    return form(fmean(known.values())) if known else NONE


def _number(value: float | None, form: Form) -> str:
    return NONE if value is None else form(value)
