"""What the user says of shards that another program wrote: the YAML behind `paretrain data index`."""

import itertools
import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from trainer.config.yaml_file import read_yaml
from trainer.data.format.manifest import SplitName
from trainer.data.format.specs import ImageSpec, Part, TaskSpecs, explain
from trainer.data.format.tar import open_tar, walk_tar
from trainer.errors import UserError

TEMPLATE = """\
splits: {train: "train-*.tar", test: "val-*.tar"}
input: {encoding: jpg, height: 224, width: 224}
labels: cls
tasks:
- {name: label, kind: classification, classes: 1000}
"""

MAX_NUMBERED = 1_000_000
"""Classes without names."""


class Description(Part):
    """What no shard says of itself."""

    splits: dict[SplitName, str] = Field(min_length=1)
    """Name -> pattern of the shards' names in the folder."""
    input: ImageSpec
    """What images become; they may be stored at any size. Channels are 3, and mean and std 0 and 1, if not given."""
    labels: str = "json"
    """Extension of the member with the labels: a JSON object by task, or, of the only task, its label alone."""
    tasks: TaskSpecs
    """As in a manifest. A number of classes stands for their numbers as names; mean and std are as for the input."""


def read_description(path: Path) -> tuple[Description, dict[str, Any]]:
    """Reads a description.

    Returns:
        The description, with what was left out, and the YAML as it was written.

    Raises:
        UserError: the file cannot be read, or is no description.
    """
    try:
        written = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"No file {path}.") from None
    try:
        return Description.model_validate_json(json.dumps(_completed(written))), written
    except ValidationError as error:
        fault = explain(error)
    raise UserError(f"{path} is no description of shards:\n{fault}\nExpected something like:\n{TEMPLATE}")


def ask(folder: Path) -> str:
    """What to tell a user who gave no description: what is there, and what to write."""
    shards = sorted(path for path in folder.rglob("*.tar") if path.is_file())
    if not shards:
        return f"{folder} has no shards: no *.tar anywhere in it."
    with open_tar(shards[0]) as tar:
        members = itertools.islice(walk_tar(tar, str(shards[0]), tolerant=True), 4)
        names = [f"{member.name} ({member.size} bytes)" for member in members]
    return (
        f"{shards[0]} begins with {', '.join(names)}.\n"
        "Which member is the input, which holds the labels, and what do they mean?\n"
        f"Write it into a file, something like\n{TEMPLATE}and type --tasks FILE."
    )


def _completed(values: Any) -> Any:
    """Plain values with what may be left out; what is of another type is left to the validation."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    if isinstance(values.get("input"), dict):
        channels = 1 if values["input"].get("channels") == 1 else 3
        unknown = {"channels": channels, "stored_sizes": "any", "mean": [0.0] * channels, "std": [1.0] * channels}
        values["input"] = unknown | values["input"]
    if isinstance(values.get("tasks"), list):
        values["tasks"] = [_completed_task(task) if isinstance(task, dict) else task for task in values["tasks"]]
    return values


def _completed_task(values: dict[str, Any]) -> dict[str, Any]:
    values = {"kind": "classification"} | values
    if type(values.get("classes")) is int and values["classes"] <= MAX_NUMBERED:
        values["classes"] = [str(number) for number in range(values["classes"])]
    return {"mean": 0.0, "std": 1.0} | values if values["kind"] == "regression" else values
