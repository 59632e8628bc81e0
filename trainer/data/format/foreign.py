"""How to read shards that another program wrote: which member is the input, and where each label is."""

from collections.abc import Callable
from typing import Any

from pydantic import Field, model_serializer

from trainer.data.format.specs import DenseTaskSpec, FeaturesSpec, ImageSpec, Name, Part, TaskSpec


class LabelSource(Part):
    """Where a task's label is, or the member of a dense task's target."""

    member: Name
    """Extension of the member, such as `cls`, `json` or `age.cls`."""
    path: tuple[str, ...] = ()
    """Keys inside the member's JSON, from the outermost; a number is a place in a list. Empty: the member is the
    label."""
    missing: tuple[float | str, ...] = ()
    """Labels that mean that there is none. null, NaN and an absent key always do."""


class ForeignSpec(Part):
    """How to read shards that another program wrote. Other members are ignored."""

    labels: Name = "json"
    """Extension of the labels member: a JSON object, task -> label; a list with an entry for each task; or the bare
    label if there is only one task."""
    input: Name | None = None
    """Extension of the input's member. null: the input's encoding."""
    tasks: dict[Name, LabelSource] = Field(default_factory=dict)
    """Task -> its source, for the tasks whose label is not in the labels member under the task's name."""

    @model_serializer(mode="wrap")
    def _what_is_said(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Manifests that say nothing of it stay as earlier versions wrote them.
        return {key: value for key, value in dump(self).items() if key == "labels" or value}


def stored_extensions(
    inputs: ImageSpec | FeaturesSpec, tasks: tuple[TaskSpec, ...], foreign: ForeignSpec | None
) -> list[str]:
    """Return the extensions under which shards hold the array members: the input, then the dense tasks."""
    sources = foreign.tasks if foreign else {}
    return [
        (foreign.input if foreign else None) or inputs.encoding,
        *(
            sources[task.name].member if task.name in sources else task.extension
            for task in tasks
            if isinstance(task, DenseTaskSpec)
        ),
    ]


def normal_extension(text: str) -> str:
    """Return an extension in lower case, with `jpg` for `jpeg` at its end."""
    text = text.lower()
    return text.removesuffix("jpeg") + "jpg" if text == "jpeg" or text.endswith(".jpeg") else text
