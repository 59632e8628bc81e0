"""What a finished run's numbers say that its user might change."""

from collections.abc import Sequence
from statistics import fmean

from trainer.observe.records import Record

MOST_OF_ALPHA = 0.9
SOLVED = 0.1
"""Of its first loss: what a task that hardly learns any more has left."""


def solved_task(records: Sequence[Record]) -> str | None:
    """Say which task held nearly all of the min-norm point's α in the second half of the run, although it was solved.

    The gradient of a task that is solved is short, and the point of least norm lies at the shortest gradient: the
    direction is still one in which no task gets worse, but hardly one in which another gets better.

    Args:
        records: of metrics.jsonl, in order.
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
        "the min-norm point follows the shortest gradient, here that of a task which is solved, and the others wait. "
        "Try balance.normalise=loss+, which divides each gradient by its length and its loss"
    )
