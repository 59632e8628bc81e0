"""The report: one HTML page about run folders that needs no network and no script.

Shapes: S logged steps, T tasks.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainer.files import make_folder, replace
from trainer.observe.progress import fault_line
from trainer.observe.read_run import RunFolder, read_runs
from trainer.observe.records import Info
from trainer.observe.report.frame import document, section
from trainer.observe.report.metric_tables import metric_tables
from trainer.observe.report.panels import (
    MAX_TASK_CURVES,
    conflict_panels,
    joined,
    legend_of,
    number_panels,
    prediction_panels,
    task_panels,
    weight_panels,
)
from trainer.observe.report.tables import (
    class_tables,
    comparison_table,
    headline,
    key_figures,
    notices,
    settings_table,
    task_table,
    text,
)
from trainer.observe.study.of_runs import results_of_runs
from trainer.observe.study.page import study_body
from trainer.observe.units import MIOU, by_unit, titled


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write one self-contained page about one run, or about several side by side.

    Args:
        run_dirs: Run folders; the runs may be unfinished or have no records.
        out: The path of the page. Its folder is created, and an older page replaced atomically.

    Raises:
        UserError: A folder is not a run, a file in it is damaged, or the page cannot be written.
    """
    runs = read_runs(run_dirs)
    make_folder(out.parent)
    replace(out, _page(runs).encode())


def _page(runs: Sequence[RunFolder]) -> str:
    names = _names(runs)
    title = text(" / ".join(names))
    body = "".join(_head_of_one(runs[0], names[0]) if len(runs) == 1 else _head_of_several(runs, names))
    body += "".join(_sections(runs, names)) + "".join(_folded(runs, names))
    return document(title, body)


def _names(runs: Sequence[RunFolder]) -> list[str]:
    short = [run.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def _head_of_one(run: RunFolder, name: str) -> Iterator[str]:
    yield f"<h1>{text(name)}</h1><p>{headline(run)}</p>"
    yield notices(run, name)
    yield key_figures(run) + task_table(run) + metric_tables([run], [name]) + class_tables([run], [name])


def _head_of_several(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[str]:
    yield f"<h1>{len(runs)} runs side by side</h1><p>One colour a run; the best in bold.</p>"
    yield from (notices(run, name) for run, name in zip(runs, names, strict=True))
    yield comparison_table(runs, legend_of(names)) + settings_table(runs, legend_of(names))
    yield metric_tables(runs, names) + class_tables(runs, names)
    if results := results_of_runs(runs):
        yield f"<h2>{results.title}</h2>" + "".join(study_body(results))


def _sections(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[str]:
    """Yield the sections with figures; a section without any is left out."""
    captions = names if len(runs) > 1 else [""]
    all_tasks = tuple(dict.fromkeys(task for run in runs for task in run.tasks))
    units = {task: unit for run in runs for task, unit in run.units.items()}
    splits = " / ".join(dict.fromkeys(run.eval_split for run in runs))
    several = legend_of(names) if len(runs) > 1 else ()
    by_task = legend_of(runs[0].tasks) if len(runs) == 1 and len(runs[0].tasks) <= MAX_TASK_CURVES else several
    yield section(
        "Losses and errors",
        ("Mean over the tasks, with the middle half of them and their whole range shaded. " if not by_task else "")
        + "".join(_averaged(run, name) for run, name in zip(runs, captions, strict=True)),
        [
            *task_panels(runs, "train", "losses", "training loss", all_tasks),
            *(
                panel
                for unit, tasks in by_unit(all_tasks, units).items()
                for panel in task_panels(runs, "eval", "errors", f"{splits} {titled(unit)}", tasks, score=unit == MIOU)
            ),
        ],
        by_task,
    )
    yield section(
        "Predictions",
        f"Some images of the {text(splits)} split, each above what the model makes of it, where there are labels. "
        "Numbers: the brighter the larger; two numbers a pixel: the direction they point in as hue, grey where they "
        "are short.",
        [panel for run, name in zip(runs, captions, strict=True) for panel in prediction_panels(run, name)],
    )
    yield section(
        "Task weights",
        "The share α of each task in the gradient of the shared encoder; together they are 1.",
        weight_panels(runs, captions),
    )
    yield section(
        "Optimality",
        "The squared norm of the combined gradient nears 0 where no direction helps every task any more. "
        "The duality gap bounds what better weights could still gain: 0 certifies them as exact.",
        [
            *number_panels(runs, "min_norm", "min-norm value", "squared gradient norm", log=True),
            *number_panels(runs, "gap", "duality gap", "squared gradient norm", log=True),
        ],
        several,
    )
    yield section(
        "Held weights",
        "How stale α had become when it was found anew: the duality gap of the held α on the new Gram matrix, as a "
        "fraction of the squared norm of the combined gradient. At 0 it was still exact; above 1 some loss rose. "
        + "".join(_renewals(run, name) for run, name in zip(runs, captions, strict=True) if run.of_kind("renewal")),
        number_panels(runs, "stale", "staleness of the held α", "gap / squared norm", kind="renewal"),
        several,
    )
    yield section(
        "Descent",
        "How much a step lowers the loss that it lowers least, over the mean of all weighted by α, to first order in "
        "the encoder's parameters. At 1 all losses fall alike; below 0 one rises. "
        + "".join(_ascents(run, name) for run, name in zip(runs, captions, strict=True) if run.of_kind("monitor")),
        number_panels(runs, "worst_slope", "the loss that falls least", "over the mean", kind="monitor"),
        several,
    )
    yield section(
        "Conflicts",
        "Cosine between the gradients of two tasks at the shared representation: "
        "1, they pull the same way; -1, against each other. "
        "Many tasks are ordered so that those that agree stand together.",
        [panel for run, name in zip(runs, captions, strict=True) for panel in conflict_panels(run, name)],
    )
    yield section(
        "Optimizer and throughput",
        "",
        [
            *number_panels(runs, "learning_rate", "learning rate", "learning rate"),
            *number_panels(runs, "gradient_norm", "gradient norm over all parameters", "gradient norm"),
            *number_panels(runs, "samples_per_second", "throughput, all processes", "samples/s"),
            *number_panels(runs, "data_wait_percent", "time spent waiting for data", "data wait (%)"),
            *number_panels(runs, "mfu_percent", "model FLOPs utilization", "MFU (%)"),
            *number_panels(runs, "peak_memory_mib", "peak memory of rank 0", "memory (MiB)"),
        ],
        several,
    )


def _averaged(run: RunFolder, name: str) -> str:
    """Return a note if the errors are those of averaged weights."""
    averaged = any(record.get("averaged") for record in run.of_kind("eval"))
    return text(joined(name, "Errors are of averaged weights. ")) if averaged else ""


def _renewals(run: RunFolder, name: str) -> str:
    """Return a note on how often α was found anew, and how stale it had been."""
    stale_S, steps_S = run.series("renewal", "stale"), run.series("renewal", "held_steps")
    middle, every = np.nanmedian(stale_S), np.mean(steps_S)
    return text(joined(name, f"{len(stale_S)} renewals, one in {every:.3g} steps; median staleness {middle:.2g}. "))


def _ascents(run: RunFolder, name: str) -> str:
    """Return a note on how many of the monitored steps raise some loss."""
    ascending_S = run.series("monitor", "num_ascending")
    most = f", {int(ascending_S.max())} at once at most" if ascending_S.any() else ""
    return text(joined(name, f"{np.count_nonzero(ascending_S)} of {len(ascending_S)} steps seen raise one{most}. "))


def _folded(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[str]:
    """Yield notes, configuration and versions, folded."""
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
