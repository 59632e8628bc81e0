"""Decide which settings may change when a run is resumed."""

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
"""Keys that may change. They do not change the results, unless a loss is NaN.

The exceptions are train.global_batch and parallel.precision, which may change so that a run can resume where fewer
samples fit, or on another machine. With another batch the epoch continues at the same sample, and the log says so.

data.path may move: the checkpoint holds the data's fingerprint. train.steps may change unless the schedule is cosine,
the only one that depends on the last step. train.accumulation.steps may change where α is that of the window.
"""


def differences(old: Experiment, new: Experiment) -> list[str]:
    """Return a line `key: old -> new` for every changed value that a resumed run must keep."""
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
