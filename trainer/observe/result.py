"""The errors that a run stands for: which split, which step, and why that one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.observe.metrics import TEST


@dataclass(frozen=True)
class Result:
    """The errors that a run is compared by.

    Attributes:
        errors: task name -> error; None where there are no labels.
        split: that was evaluated.
        step: of the parameters; None if nothing was evaluated, or an older version did not say.
        rule: by what train.select has chosen that step, in words; None: it is the last evaluation.
    """

    errors: Mapping[str, float | None]
    split: str
    step: int | None
    rule: str | None


def result_of(found: Mapping[str, Any]) -> Result:
    """Return the result of a run: on the test split if it was evaluated at the end, else the chosen evaluation.

    Args:
        found: summary.json, or `errors_so_far` of a run that has none.
    """
    chosen = found.get("selected")
    if "test_errors" in found:
        step = found.get("test_step")
        return Result(found["test_errors"], TEST, step, chosen["rule"] if chosen and chosen["step"] == step else None)
    split = found.get("eval_split", TEST)
    if chosen:
        return Result(found["best_errors"], split, chosen["step"], chosen["rule"])
    return Result(found["final_errors"], split, found.get("final_step"), None)
