"""The common part of trackers, the services that show a run beside the report: wandb.py, tensorboard.py, mlflow.py.

metrics.jsonl is the record and a tracker only a view of it, so no failure of a service during the run stops the
training. Only rank 0 opens a tracker.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.files import read_text
from trainer.plain import one_line

MAX_CURVES = 100
"""Services draw one chart per task; with more tasks than this, their minimum, mean and maximum are logged instead."""

KEPT = "metrics.jsonl still holds everything"

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

CURVES = ("train", "eval", "monitor", "renewal")
"""The kinds of records that trackers log."""


class Tracker:
    """The interface of all trackers. This one does nothing."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Log a record of metrics.jsonl at its `step`."""

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """End the run in the tracker.

        Args:
            summary: the content of summary.json; None if the run ended early, which marks it as failed. A run that
                resumes continues the same run of the service in both cases.
        """


class Several(Tracker):
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, record: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for tracker in self._trackers:
            tracker.log(record)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """See `Tracker`."""
        for tracker in self._trackers:
            tracker.close(summary)


class Guard:
    """The object of a service that logs a run. Its first failure is said, and ends its use: training goes on.

    Args:
        name: of the service.
        service: what the service's calls need.
        say: called with one-line messages for the user.
    """

    def __init__(self, name: str, service: Any, say: Callable[[str], None]) -> None:
        self._name, self._service, self._say = name, service, say

    def use(self, call: Callable[[Any], object], advice: str = KEPT) -> None:
        """Call `call` with the service, unless it has failed or ended. If it fails, say so, with `advice`."""
        if self._service is None:
            return
        try:
            call(self._service)
        except Exception as error:  # Services fail in their own ways, and none may stop the training.
            self._service = None
            self._say(f"{self._name}: stopped logging ({one_line(str(error))}); {advice}")

    def end(self, call: Callable[[Any], object], advice: str = KEPT) -> None:
        """Call `call` for the last time."""
        self.use(call, advice)
        self._service = None


def saved_id(path: Path, service: str) -> str | None:
    """Return the id of the run in a service, which an earlier start has saved; None if there was none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = read_text(path, max_bytes=1024).strip()
    except FileNotFoundError:
        return None
    if not _ID.fullmatch(found):
        raise UserError(
            f"{path} should hold the id of a run in {service}, found {one_line(found[:40])!r}.\n"
            f"Restore the file, or start a new run in {service}: rm {path}"
        )
    return found


def flatten(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record under wandb's flat names: `train/losses/left`, `eval/by_class/parts/road`, `step`.

    More than MAX_CURVES tasks become `train/losses/min`, `/mean` and `/max`.
    """
    named = {f"{record['kind']}/{key}": value for key, value in record.items() if key != "step"}
    return {"step": record["step"], **_numbers(named)}


def _numbers(named: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for label, value in named.items():
        if isinstance(value, Mapping):
            numbers = _numbers({_key(name): item for name, item in value.items()})
            if len(numbers) > MAX_CURVES:
                found = numbers.values()
                numbers = {"min": min(found), "mean": sum(found) / len(found), "max": max(found)}
            flat |= {f"{label}/{name}": number for name, number in numbers.items()}
        elif isinstance(value, int | float):
            flat[label] = value
    return flat


def _key(name: str) -> str:
    """Escape the name of a task or class as one part of a path; different names give different keys."""
    return one_line(name).replace("%", "%25").replace("/", "%2F")
