"""Decide which settings may change when a run is resumed."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from trainer.config.schema import Experiment
from trainer.config.sections.optimizer import ENDS_WITH_THE_RUN
from trainer.errors import UserError

RESUMABLE = (
    "name",
    "parallel",
    "model.checkpoint_activations",
    "wandb",
    "track",
    "data.path",
    "data.sources.*.path",
    "data.cache",
    "data.workers",
    "data.verify",
    "data.max_bad_fraction",
    "train.global_batch",
    "train.max_hours",
    "train.profile",
    "checkpoint",
    "output",
    "balance.monitor_every_steps",
    "balance.on_nonfinite",
)
"""Keys that may change. They do not change the results, unless a loss is NaN.

The exceptions are train.global_batch and parallel.precision, which may change so that a run can resume where fewer
samples fit, or on another machine. With another batch the epoch continues at the same sample, and the log says so.

The metrics of a task may change, and the one that decides.

Data may move: the checkpoint holds its fingerprint. train.steps may change unless the schedule depends on
the last step. train.accumulation.steps may change where α is that of the window.
"""


GROUPS = "balance.groups"
"""Where none are given; the keys of those that are given are longer."""
ON_REQUEST = (
    "optimizer",
    "train",
    "balance",
    "data.augment",
    "data.sources.*.share",
    "data.temperature",
    "data.multiple_of",
)
"""Keys that may change where the user names them: the run is then another one than its first command says.

Nothing else may: the checkpoint's tensors and its place in the data would mean nothing.
"""


def check_request(keys: Sequence[str]) -> None:
    """Refuse to allow a change that no run could go on after.

    Raises:
        UserError: naming the key, and those that may change.
    """
    for key in keys:
        if not _is_in(key, ON_REQUEST):
            raise UserError(
                f"--allow-change {key}: a run can go on after changes of {', '.join(ON_REQUEST)} and the keys in them, "
                "such as optimizer.learning_rate. With another value of anything else, start a new run: "
                "name=ANOTHER_NAME"
            )


def how_to_change(changed: Mapping[str, Any]) -> str:
    """Return what to type to go on with these changes; nothing where no request would help."""
    if not all(_is_in(key, ON_REQUEST) for key in changed):
        return ""
    return f"To go on with the change, add {' '.join(f'--allow-change {key}' for key in changed)}. "


def differences(old: Experiment, new: Experiment, allowed: Sequence[str] = ()) -> dict[str, str]:
    """Return `old -> new` for the key of every changed value that a resumed run must keep.

    Args:
        old: the configuration of the run.
        new: the one to go on with.
        allowed: keys that may change, with all keys in them.
    """
    before, after = _flatten(old.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    if not (new.data.sources and new.balance.space == "parameters"):
        # Older versions wrote {} where none were given; only with sources, in the parameter space, does null differ.
        before, after = ({key: each[key] for key in each if key != GROUPS} for each in (before, after))
    ignored = [*RESUMABLE, *allowed]
    if new.optimizer.schedule not in ENDS_WITH_THE_RUN:
        ignored.append("train.steps")
    if new.train.accumulation.alpha == "window":
        ignored.append("train.accumulation.steps")
    return {
        key: f"{before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _is_in(key, ignored) and not _only_measures(key)
    }


def _is_in(key: str, sections: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{name}.") or fnmatchcase(key, name) for name in sections)


def _only_measures(key: str) -> bool:
    return key.startswith("tasks.") and key.endswith((".metrics", ".decides"))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
