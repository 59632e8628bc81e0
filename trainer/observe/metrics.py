"""The measurements of a run: `metrics.jsonl` with one JSON object per line.

The file is the source of truth for the report, the progress lines and wandb. Every record has a `kind` ("train",
"monitor", "renewal", "fault", "gram", "eval", "test" or "note") and the optimizer `step` that it describes.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from trainer.clock import utc_now
from trainer.errors import UserError
from trainer.files import Appender, open_regular, parse_json, replace
from trainer.observe.records import SCHEMA, Eval, NewerSchemaError, Record, read_record
from trainer.observe.units import PERCENT, by_unit, shortfall

MAX_BYTES = 4 << 30
"""The largest metrics file that is read back."""

TEST = "test"
"""The split of evaluations whose record names none."""

MAX_LINE_BYTES = 64 << 20
"""The longest record; a Gram matrix of 256 tasks has 1.5 MB."""


class MetricsLog:
    """Append records to `metrics.jsonl`; each is handed to the operating system before `write` returns.

    A resumed run repeats every step after its checkpoint, so the old records of these steps are dropped first. A note
    that an earlier start wrote at the same step is not written again. The file then equals that of an uninterrupted
    run, except for times. Write the records of a step before its checkpoint: a stop between the two would lose them.

    Args:
        path: The file, usually `runs/NAME/metrics.jsonl`; its folder exists.
        resume_step: None to start a new, empty file; otherwise the step of the checkpoint that the run continues from.
            Later records are dropped, and so is a last line that a crash has cut off.

    Raises:
        UserError: The file cannot be written; on resume, it is missing or damaged before its last line.
    """

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        kept = [] if resume_step is None else _drop_records_after(path, resume_step)
        self._notes = {(note["step"], note["text"]) for note in kept if note["kind"] == "note"}
        self._file = Appender(path, anew=resume_step is None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. A number that is not finite becomes null, since JSON has neither NaN nor infinity."""
        if record["kind"] == "note" and (record["step"], record["text"]) in self._notes:
            return
        self._file.append(_to_line(record))

    def close(self) -> None:
        """Close the file; no record can be written afterwards."""
        self._file.close()


@dataclass(frozen=True)
class Metrics:
    """The content of a metrics file."""

    records: list[Record]
    """All records, in order."""
    lines: list[bytes]
    """The line of each record."""
    is_torn: bool
    """Whether the last line was incomplete, after a crash or while the run writes it, and was left out."""


def stamped(record: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return a record as it is written: with the version of its schema, the time of day, and the run's clock.

    Args:
        record: its kind, its step and its own fields, among which `seconds` may be.
        seconds: that the run has taken so far.
    """
    own = dict(record)
    kind, step = own.pop("kind"), own.pop("step")
    return {"schema": SCHEMA, "kind": kind, "step": step, "time": utc_now(), "seconds": seconds} | own


def read_metrics(path: Path) -> list[Record]:
    """Return the records of a metrics file, in order; raise the errors of `parse_metrics`."""
    return parse_metrics(path).records


def parse_metrics(path: Path) -> Metrics:
    """Read a metrics file.

    Raises:
        UserError: The file cannot be read, or one of its complete lines is not a record.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}, the metrics of the run, is missing.\n"
            f"Put the file back, or go on without the run's history: touch {path}"
        ) from None
    records: list[Record] = []
    lines: list[bytes] = []
    with file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes; expected at most {MAX_BYTES:,}.")
        try:
            while line := file.readline(MAX_LINE_BYTES):
                number = len(records) + 1
                is_last = not line.endswith(b"\n")  # lines are written whole: only a torn one lacks its end
                if len(line) == MAX_LINE_BYTES:
                    raise UserError(f"{path}, line {number} has {MAX_LINE_BYTES:,} bytes or more: it is no record.")
                try:
                    value = parse_json(line, f"{path}, line {number}")
                except UserError:
                    if is_last:
                        return Metrics(records, lines, is_torn=True)
                    raise
                records.append(read_record(value, f"{path}, line {number}"))
                lines.append(line.rstrip(b"\n") + b"\n")
        except NewerSchemaError:
            raise
        except UserError as error:
            raise UserError(
                f"{error}\nExpected one record a line, as JSON; only the last line may be incomplete. "
                f"Remove the line with: sed -i {len(records) + 1}d {path}"
            ) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return Metrics(records, lines, is_torn=False)


def errors_so_far(records: Sequence[Record]) -> dict[str, Any]:
    """Summarise the evaluations among `records`: `final_errors`, `best_errors`, their steps, and the tasks' `units`.

    The final errors are those of the last evaluation. The best evaluation has the lowest mean error over the tasks (the
    first one among equals), so all best errors belong to the same model. If the tasks have several units, each error is
    first divided by the task's first one. Evaluations with fewer null errors rank before those with more. A score such
    as % mIoU counts by how much it lacks to 100.
    Without an evaluation, errors and units are empty and the step is None. Only evaluations of the split of the last
    one count; it is the `eval_split`, where it is not test.
    """
    evaluations = [record for record in records if record["kind"] == "eval"]
    if not evaluations:
        return {"final_errors": {}, "final_step": None, "best_errors": {}, "best_step": None, "units": {}}
    split = evaluations[-1].get("split", TEST)
    evaluations = [record for record in evaluations if record.get("split", TEST) == split]
    final, units = evaluations[-1]["errors"], evaluations[-1].get("units", {})
    several = len(by_unit(final, units)) > 1

    def errors(record: Eval) -> dict[str, float]:
        known = {task: error for task, error in record["errors"].items() if error is not None}
        return {task: shortfall(error, units.get(task, PERCENT)) for task, error in known.items()}

    def first(task: str) -> float:
        return next((found for record in evaluations if (found := errors(record).get(task))), 1.0)

    yardstick = {task: first(task) if several else 1.0 for task in final}

    def rank(record: Eval) -> tuple[int, float]:
        shares = [error / yardstick.get(task, 1.0) for task, error in errors(record).items()]
        return len(final) - len(shares), fmean(shares) if shares else 0.0

    best = min(evaluations, key=rank)
    found = {
        "final_errors": final,
        "final_step": evaluations[-1]["step"],
        "best_errors": best["errors"],
        "best_step": best["step"],
        "units": units,
    }
    return found if split == TEST else {**found, "eval_split": split}


def tested(records: Sequence[Record]) -> dict[str, Any]:
    """Return `test_errors` and `test_step` of the last evaluation of the test split after the training, if any."""
    tests = [record for record in records if record["kind"] == "test"]
    return {"test_errors": tests[-1]["errors"], "test_step": tests[-1]["step"]} if tests else {}


def metrics_so_far(records: Sequence[Record]) -> dict[str, Any]:
    """Return `metrics`, split -> task -> metric -> value of the last evaluation of each split, and `deciding`.

    `deciding` names the metric by which each task is compared. Of a run of several sources, `by_source` has what these
    evaluations found in each: split -> source -> its samples, errors, losses and metrics.
    """
    found = [record for record in records if record["kind"] in ("eval", "test") and "metrics" in record]
    by_source = {record.get("split", TEST): record["by_source"] for record in found if "by_source" in record}
    return {
        "metrics": {record.get("split", TEST): record["metrics"] for record in found},
        "deciding": found[-1].get("deciding", {}) if found else {},
        **({"by_source": by_source} if by_source else {}),
    }


def faults_so_far(records: Sequence[Record]) -> dict[str, Any]:
    """Count what was not finite: `skipped_steps`, `overflow_steps` and `broken`.

    `overflow_steps` were skipped because a gradient exceeded the range of float16. `broken` maps each task that was
    ever not finite to {"loss": steps, "gradient": steps}.
    """
    faults = [record for record in records if record["kind"] == "fault"]
    broken: dict[str, dict[str, int]] = {}
    for record in faults:
        for what, tasks in (("loss", record["losses"]), ("gradient", record["gradients"])):
            for task in tasks:
                broken.setdefault(task, {"loss": 0, "gradient": 0})[what] += 1
    actions = Counter(record["action"] for record in faults)
    return {"skipped_steps": actions["skip_step"], "overflow_steps": actions["overflow"], "broken": broken}


def _drop_records_after(path: Path, step: int) -> list[Record]:
    """Drop the records of later steps. Returns the others."""
    # `replace` writes a new file and renames it, so a crash here does not lose the history.
    found = parse_metrics(path)
    kept = [pair for pair in zip(found.lines, found.records, strict=True) if pair[1]["step"] <= step]
    replace(path, b"".join(line for line, _ in kept))
    return [record for _, record in kept]


def _to_line(record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_without_non_finite(record), allow_nan=False) + "\n"


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(item) for item in value]
    return value
