"""Advice that follows from the numbers of a finished run."""

from collections.abc import Sequence
from statistics import fmean

from trainer.observe.records import Record

MOST_OF_ALPHA = 0.9
"""A task with at least this mean weight takes nearly all of it."""
SOLVED = 0.1
"""A task is solved if its loss has fallen to this fraction of its first one."""


def solved_task(records: Sequence[Record]) -> str | None:
    """Name the task that took nearly all of α in the second half of the run although it was solved; None if none did.

    The gradient of a solved task is short, and the min-norm point moves to the shortest gradient. No task gets worse in
    that direction, but the others hardly improve.

    Args:
        records: the records of metrics.jsonl, in order.

    Returns:
        A sentence with the numbers and a setting to try.
    """
    trained = [record for record in records if record["kind"] == "train"]
    late = trained[len(trained) // 2 :]
    if len(trained) < 2 or len(trained[0]["alpha"]) < 2:
        return None
    shares = {task: fmean(record["alpha"].get(task) or 0.0 for record in late) for task in trained[0]["alpha"]}
    task = max(shares, key=shares.__getitem__)
    known = [loss for record in late if (loss := record["losses"].get(task)) is not None]
    left = fmean(known) / (trained[0]["losses"].get(task) or 1.0) if known else 1.0
    if shares[task] < MOST_OF_ALPHA or left > SOLVED:
        return None
    left_words = f"{left:.2%}" if left >= 1e-4 else "under 0.01%"
    return (
        f"{task} had {shares[task]:.0%} of the weight in the second half, with {left_words} of its first loss left: "
        "the min-norm point follows the shortest gradient, here that of a solved task, and the others hardly learn. "
        "balance.weighting=uniform and balance.normalise=loss+ do not follow it, but either may make another task "
        "worse: compare them on your data. docs/balance.md says what each favours"
    )
