"""Samples that cannot be used: they keep their slots without any label, are counted, and must stay rare."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.reading.reader import BadSample
from trainer.errors import UserError

NUM_TOLD = 20
"""Bad samples that each rank tells one by one; all are counted."""

MAX_IN_A_ROW = 100
"""So many on one rank, one after the other, are no accident: the run stops, whatever share of the data they are."""


@dataclass(frozen=True)
class Report:
    """What a rank, or all of them together, have met so far.

    Attributes:
        total: by reason, since the run was started.
        in_epoch: by reason, in this epoch.
        longest_run: the most in a row on one rank.
        first: what is wrong with the first one; empty when there is none.
        news: what is wrong with each that has not been told yet, of the first NUM_TOLD.
    """

    total: Counter[str]
    in_epoch: Counter[str]
    longest_run: int
    first: str
    news: tuple[str, ...]


class BadSamples:
    """Counts this rank's bad samples."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self._in_epoch: Counter[str] = Counter()
        self._run = self._longest_run = 0
        self._first = ""
        self._news: list[str] = []

    def begin_epoch(self) -> None:
        """Count the epoch's anew."""
        self._in_epoch.clear()

    def add(self, bad: Sequence[BadSample], batch_size: int) -> None:
        """Count those of a batch, which come in the order of their slots."""
        if not bad:
            self._run = 0
            return
        for sample in bad:
            if self.total.total() < NUM_TOLD:
                self._news.append(sample.message)
            self._first = self._first or sample.message
            self.total[sample.reason] += 1
            self._in_epoch[sample.reason] += 1
        slots = {sample.slot for sample in bad}
        for slot in range(batch_size):
            self._run = self._run + 1 if slot in slots else 0
            self._longest_run = max(self._longest_run, self._run)

    @property
    def state(self) -> dict[str, Any]:
        """What outlives this process, for `joined_states` and `go_on_from`."""
        return {"total": dict(self.total), "in_epoch": dict(self._in_epoch), "first": self._first}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Count on from what was met before; one rank does so for all of them."""
        self.total.update(state["total"])
        self._in_epoch.update(state["in_epoch"])
        self._first = state["first"]

    def report(self) -> Report:
        """What was met so far; its news are no news afterwards."""
        news, self._news = tuple(self._news), []
        return Report(Counter(self.total), Counter(self._in_epoch), self._longest_run, self._first, news)


def joined_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of all ranks together."""
    counts = {name: sum((Counter(state[name]) for state in states), Counter()) for name in ("total", "in_epoch")}
    first = next((state["first"] for state in states if state["first"]), "")
    return {name: dict(count) for name, count in counts.items()} | {"first": first}


def combined(reports: Iterable[Report]) -> Report:
    """The report of all ranks together."""
    reports = list(reports)
    return Report(
        total=sum((report.total for report in reports), Counter()),
        in_epoch=sum((report.in_epoch for report in reports), Counter()),
        longest_run=max(report.longest_run for report in reports),
        first=next((report.first for report in reports if report.first), ""),
        news=tuple(news for report in reports for news in report.news)[:NUM_TOLD],
    )


def check_rare(report: Report, *, num_samples: int, max_fraction: float) -> None:
    """Refuses to train on when too much of the data cannot be used.

    Args:
        report: of all ranks.
        num_samples: of the split.
        max_fraction: of them that may be bad in an epoch.

    Raises:
        UserError: naming how many, why, and the first one.
    """
    count, allowed = report.in_epoch.total(), int(max_fraction * num_samples)
    reasons = ", ".join(f"{reason} {number}" for reason, number in report.total.items())
    way_on = "See what is wrong with: paretrain data check DATA_FOLDER"
    if count > allowed:
        found = (
            f"{count} of {num_samples:,} train samples cannot be used ({reasons}), and the epoch is not over; "
            f"data.max_bad_fraction={max_fraction:g} allows {allowed}"
        )
        more = min(2 * count / num_samples, 1)
        way_on += f". To train without such samples, allow more of them: data.max_bad_fraction={more:.2g}"
    elif report.longest_run > MAX_IN_A_ROW:
        found = f"{report.longest_run} train samples in a row cannot be used ({reasons})"
    else:
        return
    raise UserError(f"{found}.\nThe first is {report.first}.\n{way_on}")
