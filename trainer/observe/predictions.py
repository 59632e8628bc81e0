"""Some test images with what the model makes of them, beside their labels: kept by a run, drawn by the report.

Shapes: S samples, H rows, W columns, C channels.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import UserError
from trainer.files import write_durably

if TYPE_CHECKING:
    from torch import Tensor

    from models import Task

NUM_SAMPLES = 4
MAX_SIDE = 256
"""Pixels; of larger images every second or third one is kept."""


@dataclass(frozen=True)
class Maps:
    """A task's labels and answers, a value or some a pixel.

    Attributes:
        task: its name.
        classes: what the values stand for; empty: they are numbers.
        labels: uint8 (S, H, W) classes, or float (S, H, W, C) numbers.
        answers: the same, of the model.
        known_SHW: where there is a label.
    """

    task: str
    classes: tuple[str, ...]
    labels: np.ndarray
    answers: np.ndarray
    known_SHW: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """What is kept of an evaluation: images_SHWC uint8, and the maps of the tasks that have one."""

    step: int
    images_SHWC: np.ndarray
    maps: tuple[Maps, ...]


@dataclass(frozen=True)
class Seen:
    """A batch of the test split.

    Attributes:
        tasks: in the order of `outputs`.
        inputs: as the loader gives them; of images uint8 (B, H, W, C).
        targets: by task, as the loader gives them.
        outputs: the model's.
    """

    tasks: Sequence["Task"]
    inputs: "Tensor"
    targets: Mapping[str, "Tensor"]
    outputs: "Tensor | list[Tensor]"

    @property
    def maps(self) -> list[tuple["Task", "Tensor"]]:
        """The tasks that have an output a pixel, (B, C, H, W); heads that are stacked have none."""
        outputs = self.outputs if isinstance(self.outputs, list) else []
        return [(task, output) for task, output in zip(self.tasks, outputs, strict=False) if output.dim() == 4]


def keep_predictions(path: Path, step: int, seen: Seen) -> None:
    """Writes the first samples of a batch, with all that has a value a pixel; replaces an earlier file.

    Args:
        path: the file, .npz.
        step: of the evaluation.
        seen: the batch, of images.
    """
    every = -(-max(seen.inputs.shape[1:3]) // MAX_SIDE)
    cut = (slice(NUM_SAMPLES), slice(None, None, every), slice(None, None, every))
    arrays: dict[str, Any] = {"images": seen.inputs[cut].numpy()}
    about = []
    for number, (task, output) in enumerate(seen.maps):
        label = seen.targets[task.name][cut]
        answer = output.permute(0, 2, 3, 1)[cut].float().cpu()
        arrays[f"labels{number}"] = label.numpy()
        arrays[f"answers{number}"] = answer.argmax(-1).byte().numpy() if task.parts else answer.numpy()
        arrays[f"known{number}"] = (label < len(task.parts) if task.parts else ~label.isnan().any(-1)).numpy()
        about.append({"task": task.name, "classes": list(task.parts)})
    content = io.BytesIO()
    np.savez_compressed(content, about=json.dumps({"step": step, "maps": about}), **arrays)
    aside = path.with_name(path.name + ".tmp")
    write_durably(aside, content.getvalue())
    aside.replace(path)


def read_predictions(path: Path) -> Predictions:
    """Reads what `keep_predictions` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            maps = (
                Maps(
                    one["task"],
                    tuple(one["classes"]),
                    *(arrays[f"{what}{number}"] for what in ("labels", "answers", "known")),
                )
                for number, one in enumerate(about["maps"])
            )
            return Predictions(about["step"], arrays["images"], tuple(maps))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}.\nRemove it to leave it out of the report: rm {path}") from error
