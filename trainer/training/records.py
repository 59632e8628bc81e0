"""The records that the loop publishes of a step and of an evaluation. `trainer.observe.records` has their schema."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import nn

from models.heads.constrained import ConstrainedHeads
from paretrain import Balance
from trainer.training.evaluate import Evaluation
from trainer.training.step import BROKEN_IN_THE_ENCODER, Outcome, StepResult

MAX_GRAM_TASKS = 256
"""With more tasks the Gram matrix is not logged: T x T numbers a line are too many."""

Record = Mapping[str, Any]


def step_records(step: int, result: StepResult, task_names: Sequence[str]) -> Iterator[Record]:
    """Yield what is notable about optimizer step `step`; nothing for most steps."""
    if result.slopes is not None:
        found = {"worst_slope": result.slopes.worst, "num_ascending": result.slopes.num_ascending}
        yield {"kind": "monitor", "step": step, **found}
    held_steps, stale = result.balance.held_steps, result.balance.stale
    if held_steps > 0 and stale is not None:
        yield {"kind": "renewal", "step": step, "held_steps": held_steps, "stale": stale}
    if not result.balance.certified:
        yield _note(step, f"α is not certified: the duality gap is {result.balance.gap:.3g}")
    if result.outcome is Outcome.OVERFLOW:
        scales = f"{result.loss_scale:g} to {result.next_loss_scale:g}"
        yield _fault(step, "overflow", f"overflow in float16: the loss scale goes from {scales}")
    elif result.outcome in (Outcome.DROPPED_TASKS, Outcome.NOT_FINITE):
        yield _not_finite(step, result, task_names)
    elif result.outcome is Outcome.NO_GRADIENT:
        yield _note(step, "no task has a labelled sample with a gradient: step skipped")


def train_record(step: int, result: StepResult, task_names: Sequence[str], **about: Any) -> Record:
    """Return the record of a step that is logged.

    Args:
        step: optimizer steps done.
        result: of the last one.
        task_names: in the order of every (T,) array.
        about: the other fields, in the order in which they are to be written.
    """
    balance = result.balance
    return {
        "kind": "train",
        "step": step,
        **about,
        "losses": dict(zip(task_names, balance.losses_T.tolist(), strict=True)),
        "alpha": dict(zip(task_names, balance.alpha_T.tolist(), strict=True)),
        "min_norm": balance.min_norm,
        "gap": balance.gap,
        **({} if balance.stale is None else {"stale": balance.stale}),
        "gradient_norm": float(result.gradient_norm),
    }


def constraint_fields(heads: nn.Module, task_names: Sequence[str]) -> Record:
    """Return the fields of a train record that say how heads hold their constraints; none for heads without any."""
    if not isinstance(heads, ConstrainedHeads):
        return {}
    found = {"multipliers": heads.multipliers_T, "distances": heads.distances_T}
    return {key: dict(zip(task_names, values_T.tolist(), strict=True)) for key, values_T in found.items()}


def eval_record(
    kind: Literal["eval", "test"],
    step: int,
    found: Evaluation,
    split: str,
    deciding: Mapping[str, str],
    *,
    averaged: bool,
    seconds: float,
) -> Record:
    """Return the record of an evaluation of the parameters after optimizer step `step`.

    Args:
        kind: during the training, or of the test split after it.
        step: optimizer steps done.
        found: by the evaluation.
        split: that was evaluated.
        deciding: task -> the metric by which it is compared.
        averaged: whether the weights are averages over steps.
        seconds: that it took.
    """
    return {
        "kind": kind,
        "step": step,
        "split": split,
        "errors": found.errors,
        "units": found.units,
        **({"by_class": found.by_class} if found.by_class else {}),
        "losses": found.losses,
        "metrics": found.metrics,
        "deciding": deciding,
        "samples": found.samples,
        **({"by_source": by_source(found)} if found.by_source else {}),
        "averaged": averaged,
        "duration_seconds": seconds,
    }


def by_source(found: Evaluation) -> dict[str, dict[str, Any]]:
    """Return what was found of each source, for a record."""
    return {
        name: {
            "samples": of_source.samples,
            "errors": of_source.errors,
            "losses": of_source.losses,
            "metrics": of_source.metrics,
        }
        for name, of_source in found.by_source.items()
    }


def follows_evaluation(step: int, balance: Balance, eval_every_steps: int) -> bool:
    """Return whether step `step` is the first one to find α after an evaluation, where α had been held in it."""
    last = step - balance.held_steps
    return balance.held_steps > 0 and (last - 1) // eval_every_steps < (step - 1) // eval_every_steps


def gram_record(step: int, balance: Balance | None) -> Record | None:
    """Return the record of a step's Gram matrix; None where there is none, or one of too many tasks."""
    if balance is None or balance.gram_TT is None or len(balance.gram_TT) > MAX_GRAM_TASKS:
        return None
    return {"kind": "gram", "step": step, "gram": balance.gram_TT.tolist()}


def _not_finite(step: int, result: StepResult, task_names: Sequence[str]) -> Record:
    action = "drop_task" if result.outcome is Outcome.DROPPED_TASKS else "skip_step"
    broken = result.balance.broken
    if broken is None:
        return _fault(step, action, BROKEN_IN_THE_ENCODER)
    losses, gradients = (
        [task_names[task] for task in np.flatnonzero(of_T).tolist()] for of_T in (broken.losses_T, broken.gradients_T)
    )
    return _fault(step, action, f"not finite: {broken.describe(task_names)}", losses, gradients)


def _fault(
    step: int, action: str, found: str, losses: Sequence[str] = (), gradients: Sequence[str] = ()
) -> dict[str, Any]:
    tasks = {"losses": list(losses), "gradients": list(gradients)}
    return {"kind": "fault", "step": step, "action": action, **tasks, "found": found}


def _note(step: int, text: str) -> dict[str, Any]:
    return {"kind": "note", "step": step, "text": text}
