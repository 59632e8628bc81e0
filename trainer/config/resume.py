"""What may differ between a run and its continuation."""

from collections.abc import Mapping
from typing import Any

from trainer.config.schema import Experiment

RESUMABLE = (
    "name",
    "parallel",
    "model.checkpoint_activations",
    "wandb",
    "data.path",
    "data.cache",
    "data.workers",
    "data.verify",
    "data.max_bad_fraction",
    "train.global_batch",
    "train.max_hours",
    "checkpoint",
    "output",
    "balance.monitor_every_steps",
    "balance.on_nonfinite",
)
"""What does not decide which numbers come out, unless they are NaN.
Only train.global_batch and parallel.precision do: a run may have to go on where fewer samples fit, or on another
machine. With another batch the epoch goes on at the same sample, and the log says so.

data.path may move: the checkpoint holds the data's fingerprint. train.steps may change: the schedule is a function of
the step, and `cosine` alone depends on the last one. train.accumulation.steps may change where α is that of the window.
"""


def differences(old: Experiment, new: Experiment) -> list[str]:
    """Lines `key: old -> new` for every value that a continued run may not change."""
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    ignored = list(RESUMABLE)
    if new.optimizer.schedule != "cosine":
        ignored.append("train.steps")
    if new.train.accumulation.alpha == "window":
        ignored.append("train.accumulation.steps")
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not any(f"{key}.".startswith(f"{name}.") for name in ignored)
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
