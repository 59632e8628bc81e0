"""The report: run folders -> one HTML page that needs no network and no script.

Shapes: S logged steps, T tasks.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal

import numpy as np

from trainer.files import make_folder, replace
from trainer.observe.progress import fault_line
from trainer.observe.read_run import RunFolder, read_run
from trainer.observe.records import Info
from trainer.observe.report import figures, predictions
from trainer.observe.report.figures import PALETTE, Line
from trainer.observe.report.style import CSS
from trainer.observe.report.tables import (
    class_tables,
    comparison_table,
    headline,
    key_figures,
    notices,
    task_table,
    text,
)
from trainer.observe.units import MIOU, by_unit, titled

MAX_TASK_CURVES = 8
"""One run: with more tasks than this the curves show their mean and spread."""

MAX_TASK_PANELS = 4
"""Several runs: with more tasks than this the panels show their mean and the worst one."""

Legend = Sequence[tuple[str, str]]
"""Names and their colours."""


@dataclass(frozen=True)
class Figure:
    """A drawing and what stands above it."""

    caption: str
    svg: str
    legend: Legend = ()
    size: Literal["panel", "large", "page"] = "panel"
    """Half the page; half of it, but so detailed that a phone scrolls rather than shrinks it; the whole page."""


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Writes one self-contained page about one run, or about several side by side.

    Args:
        run_dirs: Run folders; they may be unfinished, or without a single record.
        out: The page; its folder is made, an older page replaced in one go.

    Raises:
        UserError: A folder is not a run, a file in it is damaged, or the page cannot be written.
    """
    runs = [read_run(path) for path in run_dirs]
    make_folder(out.parent)
    replace(out, _page(runs).encode())


def _page(runs: Sequence[RunFolder]) -> str:
    names = _names(runs)
    title = text(" / ".join(names))
    body = "".join(_head_of_one(runs[0], names[0]) if len(runs) == 1 else _head_of_several(runs, names))
    body += "".join(_sections(runs, names)) + "".join(_folded(runs, names))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} - paretrain</title><style>{CSS}</style></head><body><main>{body}</main></body></html>\n"
    )


def _names(runs: Sequence[RunFolder]) -> list[str]:
    short = [run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def _head_of_one(run: RunFolder, name: str) -> Iterator[str]:
    yield f"<h1>{text(name)}</h1><p>{headline(run)}</p>"
    yield notices(run, name)
    yield key_figures(run) + task_table(run) + class_tables([run], [name])


def _head_of_several(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[str]:
    yield f"<h1>{len(runs)} runs side by side</h1><p>One colour a run; the best in bold.</p>"
    yield from (notices(run, name) for run, name in zip(runs, names, strict=True))
    yield comparison_table(runs, _legend(names)) + class_tables(runs, names)


def _sections(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[str]:
    """The figures; a section without any is left out."""
    captions = names if len(runs) > 1 else [""]
    all_tasks = tuple(dict.fromkeys(task for run in runs for task in run.tasks))
    units = {task: unit for run in runs for task, unit in run.units.items()}
    several = _legend(names) if len(runs) > 1 else ()
    by_task = _legend(runs[0].tasks) if len(runs) == 1 and len(runs[0].tasks) <= MAX_TASK_CURVES else several
    yield _section(
        "Losses and errors",
        ("Mean over the tasks, with the middle half of them and their whole range shaded. " if not by_task else "")
        + "".join(_averaged(run, name) for run, name in zip(runs, captions, strict=True)),
        [
            *_task_figures(runs, "train", "losses", "training loss", all_tasks),
            *(
                figure
                for unit, tasks in by_unit(all_tasks, units).items()
                for figure in _task_figures(runs, "eval", "errors", f"test {titled(unit)}", tasks, score=unit == MIOU)
            ),
        ],
        by_task,
    )
    yield _section(
        "Predictions",
        "Some images of the test split, each above what the model makes of it, where there are labels. Numbers: the "
        "brighter the larger; two numbers a pixel: the direction they point in as hue, grey where they are short.",
        [figure for run, name in zip(runs, captions, strict=True) for figure in _predictions(run, name)],
    )
    yield _section(
        "Task weights",
        "The share α of each task in the gradient of the shared encoder; together they are 1.",
        _weights(runs, captions),
    )
    yield _section(
        "Optimality",
        "The squared norm of the combined gradient nears 0 where no direction helps every task any more. "
        "The duality gap bounds what better weights could still gain: 0 certifies them as exact.",
        [
            *_number_figures(runs, "min_norm", "min-norm value", "squared gradient norm", log=True),
            *_number_figures(runs, "gap", "duality gap", "squared gradient norm", log=True),
        ],
        several,
    )
    yield _section(
        "Descent",
        "How much a step lowers the loss that it lowers least, over the mean of all weighted by α, to first order in "
        "the encoder's parameters. At 1 all losses fall alike; below 0 one rises. "
        + "".join(_ascents(run, name) for run, name in zip(runs, captions, strict=True) if run.of_kind("monitor")),
        _number_figures(runs, "worst_slope", "the loss that falls least", "over the mean", kind="monitor"),
        several,
    )
    yield _section(
        "Conflicts",
        "Cosine between the gradients of two tasks at the shared representation: "
        "1, they pull the same way; -1, against each other. "
        "Many tasks are ordered so that those that agree stand together.",
        [figure for run, name in zip(runs, captions, strict=True) for figure in _conflicts(run, name)],
    )
    yield _section(
        "Optimizer and throughput",
        "",
        [
            *_number_figures(runs, "learning_rate", "learning rate", "learning rate"),
            *_number_figures(runs, "gradient_norm", "gradient norm over all parameters", "gradient norm"),
            *_number_figures(runs, "samples_per_second", "throughput, all processes", "samples/s"),
            *_number_figures(runs, "data_wait_percent", "time spent waiting for data", "data wait (%)"),
        ],
        several,
    )


def _task_figures(
    runs: Sequence[RunFolder], kind: str, key: str, label: str, tasks: Sequence[str], *, score: bool = False
) -> Iterator[Figure]:
    """Losses or errors of `tasks`: one panel for a single run; several runs get a panel a task, or mean and worst.

    Of a score more is better.
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
            yield Figure(caption, figures.curves(lines, label, log=log))
        else:
            yield Figure(caption, figures.spread(steps_S, values_ST, label, log=log))
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
        yield Figure(f"{caption}: {panel}", figures.curves(lines, label, log=log))


def _number_figures(
    runs: Sequence[RunFolder], key: str, caption: str, label: str, *, log: bool = False, kind: str = "train"
) -> Iterator[Figure]:
    """One panel for a number of the records of a kind; none if no run has it."""
    lines = [Line(run.steps(kind), run.series(kind, key), colour) for run, colour in zip(runs, cycle(PALETTE))]
    if any(not np.isnan(line.values_S).all() for line in lines):
        yield Figure(caption, figures.curves(lines, label, log=log))


def _averaged(run: RunFolder, name: str) -> str:
    """Says whose errors are not those of the weights as trained."""
    told = any(record.get("averaged") for record in run.of_kind("eval"))
    return text(_caption(name, "Errors are of averaged weights. ")) if told else ""


def _ascents(run: RunFolder, name: str) -> str:
    """Says how many of the steps looked at raise some loss."""
    ascending_S = run.series("monitor", "num_ascending")
    most = f", {int(ascending_S.max())} at once at most" if ascending_S.any() else ""
    return text(_caption(name, f"{np.count_nonzero(ascending_S)} of {len(ascending_S)} steps seen raise one{most}. "))


def _weights(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[Figure]:
    """One panel a run: stacked areas, or heat maps of one common scale when the tasks are many."""
    logged = [
        (name, run.tasks, run.steps("train"), run.by_task("train", "alpha", run.tasks))
        for name, run in zip(names, runs, strict=True)
        if run.of_kind("train")
    ]
    width = figures.PAGE_WIDTH if len(runs) == 1 else figures.PANEL_WIDTH
    size: Literal["page", "large"] = "page" if len(runs) == 1 else "large"
    mapped = [(steps_S, alpha_ST) for _, tasks, steps_S, alpha_ST in logged if len(tasks) > len(PALETTE)]
    top = max((figures.largest_weight(steps_S, alpha_ST) for steps_S, alpha_ST in mapped), default=1.0)
    for name, tasks, steps_S, alpha_ST in logged:
        if len(tasks) <= len(PALETTE):
            yield Figure(name, figures.weights_area(steps_S, alpha_ST, width=width), _legend(tasks), size=size)
        else:
            svg = figures.weights_map(steps_S, alpha_ST, tasks, top, width=width)
            yield Figure(_caption(name, "the heaviest task on average first"), svg, size=size)


def _conflicts(run: RunFolder, name: str) -> Iterator[Figure]:
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
        yield Figure(_caption(name, when), svg, size="large" if many else "panel")


def _predictions(run: RunFolder, name: str) -> Iterator[Figure]:
    shown = run.predictions
    if shown is not None:
        keys = [entry for maps in shown.maps for entry in predictions.legend(maps)]
        yield Figure(_caption(name, f"step {shown.step:,}"), predictions.draw(shown), keys, size="page")


def _folded(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[str]:
    """Notes, configuration and versions, for whoever opens them."""
    yield "<h2>How it was run</h2>"
    for run, name in zip(runs, names, strict=True):
        if len(runs) > 1:
            yield f"<h3>{text(name)}</h3><p>{headline(run)}</p>"
        notes = "\n".join(f"step {note['step']}: {note['text']}" for note in run.of_kind("note"))
        faults = "\n".join(map(fault_line, run.of_kind("fault")))
        contents = {
            "Notes": notes,
            "Not finite": faults,
            "Configuration": run.config_text,
            "Versions, git state and command": _as_json(run.info),
        }
        for title, content in contents.items():
            if content:
                yield f"<details><summary>{title}</summary><pre>{text(content)}</pre></details>"


def _as_json(info: Info | None) -> str:
    return "" if info is None else json.dumps(info.model_dump(exclude_unset=True), indent=2, ensure_ascii=False)


def _section(title: str, explanation: str, panels: Iterable[Figure], legend: Legend = ()) -> str:
    drawn = "".join(
        f'<figure class="{panel.size}"><figcaption>{text(panel.caption)}</figcaption>'
        f'{_legend_list(panel.legend)}<div class="scroll">{panel.svg}</div></figure>'
        for panel in panels
    )
    if not drawn:
        return ""
    explained = f"<p>{explanation}</p>" if explanation else ""
    return f'<h2>{title}</h2>{explained}{_legend_list(legend)}<div class="panels">{drawn}</div>'


def _caption(*parts: str) -> str:
    return ": ".join(part for part in parts if part)


def _legend(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(names, cycle(PALETTE)))


def _legend_list(legend: Legend) -> str:
    entries = "".join(f'<li><i style="background:{colour}"></i>{text(name)}</li>' for name, colour in legend)
    return f'<ul class="legend">{entries}</ul>' if entries else ""
