"""Show the progress of a training: a live bar on a terminal, plain lines everywhere else.

The plain lines always go to the run's log.txt too, each after the time of day; cut -d' ' -f2- removes the times, for
comparing two runs.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import progress
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from trainer.clock import utc_now
from trainer.files import Appender
from trainer.observe.units import MIOU, by_unit, cache_words, with_unit, worst_task
from trainer.plain import one_line, printable

MAX_TASKS_A_LINE = 4
"""With more tasks than this, a line shows their mean, the worst one and the largest weight."""

ETA_WINDOW_SECONDS = 600
"""The ETA follows from the speed of the last ten minutes, including evaluations and checkpoints."""


class Progress:
    """Show records in the terminal and append them to log.txt. Leaving the context restores the terminal.

    Args:
        log_path: The run's log.txt; lines are appended.
        total_steps: Optimizer steps of the whole run.
        start_step: The step of the checkpoint that the run continues from, or 0.
        console: The console to write to; the process's stdout by default.
    """

    def __init__(self, log_path: Path, total_steps: int, start_step: int, console: Console | None = None) -> None:
        self._console = console or Console()
        self._total_steps = total_steps
        self._file = Appender(log_path)
        self._bar = None
        if self._console.is_interactive:
            self._bar = _Bar(self._console, total_steps, start_step)
            self._bar.start()

    def train(self, record: Mapping[str, Any]) -> None:
        """Show a "train" record: move the bar, or write a line."""
        self._log(train_line(record, self._total_steps))
        if self._bar is None:
            self._print(train_line(record, self._total_steps))
        else:
            self._bar.show(record)

    def eval(self, record: Mapping[str, Any]) -> None:
        """Write the line of an "eval" or "test" record."""
        self._log(eval_line(record))
        self._print(eval_line(record))

    def note(self, text: str) -> None:
        """Write a line of text."""
        self._print(printable(text))
        self._log(printable(text))

    def close(self) -> None:
        """Stop the bar and close the log."""
        if self._bar is not None:
            self._bar.stop()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _log(self, line: str) -> None:
        time = utc_now()
        self._file.append("".join(f"{time} {part}\n" for part in line.split("\n")))

    def _print(self, line: str) -> None:
        self._console.print(Text(_printable(line, self._console)), soft_wrap=True)


def train_line(record: Mapping[str, Any], total_steps: int) -> str:
    """Return the plain line of a "train" record."""
    return one_line(
        "  ".join(
            [
                f"step {record['step']}/{total_steps}",
                *_numbers(record, brief=len(record["losses"]) > MAX_TASKS_A_LINE),
                *_staleness(record),
                f"lr {record['learning_rate']:.3g}",
                _speed(record),
                f"data wait {record['data_wait_percent']:.1f}%",
                *_device_use(record),
                *_cache(record),
                *_bad_samples(record),
            ]
        )
    )


def _speed(record: Mapping[str, Any]) -> str:
    speed, of_each = record["samples_per_second"], record.get("samples_per_second_per_process")
    each = "" if of_each in (None, speed) else f" ({of_each:,.0f} a process)"
    return f"{speed:,.0f} samples/s{each}"


def _device_use(record: Mapping[str, Any]) -> list[str]:
    if "mfu_percent" not in record:
        return []
    return [f"MFU {record['mfu_percent']:.0f}%", f"memory {record['peak_memory_mib'] / 1024:.1f} GiB"]


def _cache(record: Mapping[str, Any]) -> list[str]:
    use = record.get("cache", {})
    return [f"cache {cache_words(use)}"] if use else []


def _staleness(record: Mapping[str, Any]) -> list[str]:
    stale = record.get("stale")
    return [] if stale is None else [f"stale {stale:.2g}"]


def _bad_samples(record: Mapping[str, Any]) -> list[str]:
    count = sum(record.get("bad_samples", {}).values())
    return [f"bad samples {count:,}"] if count else []


def eval_line(record: Mapping[str, Any]) -> str:
    """Return the plain line of an "eval" or "test" record."""
    errors, groups = record["errors"], by_unit(record["errors"], record.get("units", {}))

    def show(unit: str) -> str:
        found, form = {task: errors[task] for task in groups[unit]}, partial(with_unit, unit=unit)
        return _each(found, form) if len(errors) <= MAX_TASKS_A_LINE else _summary(found, form, unit)

    shown = [f"error {'  '.join(found)}"] if (found := [show(unit) for unit in groups if unit != MIOU]) else []
    shown += [show(MIOU)] if MIOU in groups else []
    weights = "  by averaged weights" if record.get("averaged") else ""
    split = record.get("split", "test")
    what = "test of" if record["kind"] == "test" else "eval at" if split == "test" else f"eval on {split} at"
    return one_line(f"{what} step {record['step']}  {'  '.join(shown)}{weights}  in {record['duration_seconds']:.1f} s")


def fault_line(record: Mapping[str, Any]) -> str:
    """Return the plain line of a "fault" record."""
    done = "left out of this step" if record["action"] == "drop_task" else "step skipped"
    return one_line(f"step {record['step']}: {record['found']}: {done}")


def status_line(record: Mapping[str, Any], width: int) -> str:
    """Return the losses and weights of a "train" record: of every task if they fit `width` cells, else a summary."""
    full = one_line("   ".join(_numbers(record, brief=False)))
    return full if cell_len(full) <= width else one_line("   ".join(_numbers(record, brief=True)))


class _Bar(progress.Progress):
    """A line with the bar and a line with the numbers.

    It redraws only when `show` is called and starts no thread, so nothing runs beside the training.
    """

    def __init__(self, console: Console, total_steps: int, start_step: int) -> None:
        super().__init__(
            progress.TextColumn("step"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(bar_width=None),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TextColumn("ETA"),
            progress.TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            expand=True,
            speed_estimate_period=ETA_WINDOW_SECONDS,
        )
        self._steps = self.add_task("", total=total_steps, completed=start_step, speed="", numbers="")

    def show(self, record: Mapping[str, Any]) -> None:
        self.update(
            self._steps,
            completed=record["step"],
            speed=f"{record['samples_per_second']:,.0f} samples/s",
            numbers=_printable(status_line(record, self.console.width), self.console),
            refresh=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["numbers"], style="dim", no_wrap=True, overflow="crop")


def _printable(text: str, console: Console) -> str:
    # A task name may have characters that the terminal's encoding lacks: show a question mark rather than raise.
    return text.encode(console.encoding, "replace").decode(console.encoding)


def _numbers(record: Mapping[str, Any], *, brief: bool) -> list[str]:
    losses, alpha = record["losses"], record["alpha"]
    if not brief:
        return [f"loss {_each(losses, _loss)}", f"alpha {_each(alpha, _weight)}"]
    heaviest = max(alpha, key=lambda task: alpha[task] or 0.0)
    return [f"loss {_summary(losses, _loss)}", f"alpha max {_weight(alpha[heaviest])} ({heaviest})"]


def _each(values: Mapping[str, float | None], form: Callable[[float], str]) -> str:
    return " ".join(f"{task} {'-' if value is None else form(value)}" for task, value in values.items())


def _summary(values: Mapping[str, float | None], form: Callable[[float], str], unit: str = "") -> str:
    known = {task: value for task, value in values.items() if value is not None}
    if not known:
        return "-"
    worst = worst_task(known, unit)
    return f"mean {form(sum(known.values()) / len(known))} worst {form(known[worst])} ({worst})"


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _weight(value: float) -> str:
    return f"{value:.3f}"
