"""Count samples that cannot be used. They keep their slots, without labels, and must stay rare."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.reading.reader import BadSample
from trainer.errors import UserError

NUM_REPORTED = 20
"""How many bad samples each rank reports individually; all are counted."""

MAX_IN_A_ROW = 100
"""More consecutive bad samples than this on one rank stop the run, whatever fraction of the data they are."""


@dataclass(frozen=True)
class Report:
    """The bad samples of one rank, or of all of them, so far.

    Attributes:
        total: reason -> count, since the run was started.
        in_epoch: reason -> count, in this epoch.
        longest_run: most consecutive ones on one rank.
        first: message of the first one; empty if there is none.
        news: messages not reported before, among the first NUM_REPORTED.
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
        """Reset the counts of the epoch."""
        self._in_epoch.clear()

    def add(self, bad: Sequence[BadSample], batch_size: int) -> None:
        """Count a batch's bad samples, which are in the order of their slots."""
        if not bad:
            self._run = 0
            return
        for sample in bad:
            if self.total.total() < NUM_REPORTED:
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
        """State to save, for `joined_states` and `load_state`."""
        return {"total": dict(self.total), "in_epoch": dict(self._in_epoch), "first": self._first}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. One rank does so for all of them."""
        self.total.update(state["total"])
        self._in_epoch.update(state["in_epoch"])
        self._first = state["first"]

    def report(self) -> Report:
        """Return the report so far, and mark its news as reported."""
        news, self._news = tuple(self._news), []
        return Report(Counter(self.total), Counter(self._in_epoch), self._longest_run, self._first, news)


def joined_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the states of all ranks."""
    counts = {name: sum((Counter(state[name]) for state in states), Counter()) for name in ("total", "in_epoch")}
    first = next((state["first"] for state in states if state["first"]), "")
    return {name: dict(count) for name, count in counts.items()} | {"first": first}


def combined(reports: Iterable[Report]) -> Report:
    """Join the reports of all ranks."""
    reports = list(reports)
    return Report(
        total=sum((report.total for report in reports), Counter()),
        in_epoch=sum((report.in_epoch for report in reports), Counter()),
        longest_run=max(report.longest_run for report in reports),
        first=next((report.first for report in reports if report.first), ""),
        news=tuple(news for report in reports for news in report.news)[:NUM_REPORTED],
    )


def check_rare(report: Report, *, num_samples: int, max_fraction: float) -> None:
    """Stop training if too much of the data cannot be used.

    Args:
        report: the joined report of all ranks.
        num_samples: number of samples of the split.
        max_fraction: fraction of them that may be bad in an epoch.

    Raises:
        UserError: there are too many; the message says how many, why, and which was first.
    """
    count, allowed = report.in_epoch.total(), int(max_fraction * num_samples)
    reasons = ", ".join(f"{reason} {number}" for reason, number in report.total.items())
    remedy = "See what is wrong with: paretrain data check DATA_FOLDER"
    if count > allowed:
        found = (
            f"{count} of {num_samples:,} train samples cannot be used ({reasons}), and the epoch is not over; "
            f"data.max_bad_fraction={max_fraction:g} allows {allowed}"
        )
        more = min(2 * count / num_samples, 1)
        remedy += f". To train without such samples, allow more of them: data.max_bad_fraction={more:.2g}"
    elif report.longest_run > MAX_IN_A_ROW:
        found = f"{report.longest_run} train samples in a row cannot be used ({reasons})"
    else:
        return
    raise UserError(f"{found}.\nThe first is {report.first}.\n{remedy}")
