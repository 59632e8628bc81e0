"""The YAML file in which the user describes shards that another program wrote, for `paretrain data index`."""

import itertools
import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from trainer.config.yaml_file import read_yaml
from trainer.data.format.explain import explain
from trainer.data.format.foreign import ForeignSpec, normal_extension
from trainer.data.format.manifest import SplitName
from trainer.data.format.specs import DenseTaskSpec, ImageSpec, Part, TaskSpecs
from trainer.data.format.tar import open_tar, walk_tar
from trainer.errors import UserError

TEMPLATE = """\
splits: {train: "train-*.tar", test: "val-*.tar"}
input: {encoding: jpg, height: 224, width: 224}
labels: cls
tasks:
- {name: label, kind: classification, classes: 1000}
- {name: age, kind: regression, from: json/person/age, missing: -1}
"""

DENSE = ("segmentation", "dense_regression")
"""Kinds of tasks with a target for each pixel."""

MAX_NUMBERED = 1_000_000
"""Limit of classes given by their number instead of their names."""


class Description(Part):
    """The part of a manifest that cannot be derived from shards."""

    splits: dict[SplitName, str] = Field(min_length=1)
    """Split -> pattern of its shards' file names."""
    input: ImageSpec
    """What images decode to; they may be stored at any size. Defaults: 3 channels, mean 0, std 1."""
    foreign: ForeignSpec
    """Which members hold the input and the labels: of `labels`, of the input's `from`, and of each task's `from` and
    `missing`."""
    tasks: TaskSpecs
    """As in a manifest. `classes` may be their number; mean and std default to 0 and 1."""

    @model_validator(mode="after")
    def _targets_are_whole_members(self) -> "Description":
        for task in self.tasks:
            source = self.foreign.tasks.get(task.name)
            if isinstance(task, DenseTaskSpec) and source and (source.path or source.missing):
                raise ValueError(
                    f"task {task.name!r} has a target for each pixel, which is a member of its own: `from` names it "
                    "without keys, and nothing in it is `missing`"
                )
        return self


def read_description(path: Path) -> tuple[Description, dict[str, Any]]:
    """Read a description.

    Returns:
        The description with defaults filled in, and the original YAML.

    Raises:
        UserError: the file cannot be read, or is not a description.
    """
    try:
        written = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"No file {path}.") from None
    if isinstance(written, dict) and "foreign" in written:  # ours, made of what the other keys say
        raise UserError(f"{path}: unknown key 'foreign'.\nExpected something like:\n{TEMPLATE}")
    try:
        return Description.model_validate_json(json.dumps(_completed(written))), written
    except ValidationError as error:
        fault = explain(error)
    raise UserError(f"{path} is not a description of shards:\n{fault}\nExpected something like:\n{TEMPLATE}")


def ask(folder: Path) -> str:
    """Return a message for a user who gave no description: what the shards contain, and what to write."""
    shards = sorted(path for path in folder.rglob("*.tar") if path.is_file())
    if not shards:
        packed = sorted(path for path in folder.rglob("*.tar.*") if path.is_file())
        hint = f"\n{packed[0]} is packed. Unpack it first: samples are read in random order." if packed else ""
        return f"{folder} has no shards: no *.tar anywhere in it.{hint}"
    with open_tar(shards[0]) as tar:
        members = itertools.islice(walk_tar(tar, str(shards[0]), tolerant=True), 4)
        names = [f"{member.name} ({member.size} bytes)" for member in members]
    return (
        f"{shards[0]} begins with {', '.join(names)}.\n"
        "Which member is the input, which has the labels, and what do they mean?\n"
        f"Write that into a file such as\n{TEMPLATE}and add --tasks FILE."
    )


def _completed(values: Any) -> Any:
    """Fill in defaults, and gather what `labels`, `from` and `missing` say. Wrong types are left to the validation."""
    if not isinstance(values, dict):
        return values
    values = dict(values)
    foreign: dict[str, Any] = {"labels": _extension(values.pop("labels", "json")), "tasks": {}}
    missing = values.pop("missing", None)
    if isinstance(values.get("input"), dict):
        channels = 1 if values["input"].get("channels") == 1 else 3
        unknown = {"channels": channels, "stored_sizes": "any", "mean": [0.0] * channels, "std": [1.0] * channels}
        values["input"] = unknown | values["input"]
        if "." in str(values["input"].get("encoding")):  # left.jpg is both
            values["input"].setdefault("from", values["input"].pop("encoding"))
        if "from" in values["input"]:
            foreign["input"] = _extension(values["input"].pop("from"))
            values["input"].setdefault("encoding", str(foreign["input"]).rpartition(".")[2])
    if isinstance(values.get("tasks"), list):
        values["tasks"] = [dict(task) if isinstance(task, dict) else task for task in values["tasks"]]
        for task in values["tasks"]:
            if isinstance(task, dict):
                source = _source(task, foreign["labels"], missing)
                if source is not None and isinstance(task.get("name"), str):
                    foreign["tasks"][task["name"]] = source
        values["tasks"] = [_completed_task(task) if isinstance(task, dict) else task for task in values["tasks"]]
    return values | {"foreign": foreign}


def _source(task: dict[str, Any], labels: Any, default_missing: Any) -> dict[str, Any] | None:
    """Take `from` and `missing` out of a task; return its source, or None if it has neither."""
    if task.get("kind") in DENSE:
        default_missing = None
    address, missing = task.pop("from", None), task.pop("missing", default_missing)
    if address is None and missing is None:
        return None
    if address is None:
        address = f"{labels}/{task.get('name')}"
    member, *path = str(address).split("/")
    words = missing if isinstance(missing, list) else [] if missing is None else [missing]
    return {"member": _extension(member), "path": path, "missing": words}


def _extension(value: Any) -> Any:
    return normal_extension(value) if isinstance(value, str) else value


def _completed_task(values: dict[str, Any]) -> dict[str, Any]:
    values = {"kind": "classification"} | values
    if type(values.get("classes")) is int and values["classes"] <= MAX_NUMBERED:
        values["classes"] = [str(number) for number in range(values["classes"])]
    elif isinstance(values.get("classes"), list):
        values["classes"] = [str(name) if type(name) is int else name for name in values["classes"]]
    if values["kind"] in DENSE:
        return {"stored_sizes": "any"} | values
    return {"mean": 0.0, "std": 1.0} | values if values["kind"] == "regression" else values
