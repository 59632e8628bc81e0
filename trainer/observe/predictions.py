"""Some test images with the labels and predictions of each pixel: a run keeps them and the report draws them.

Shapes: S samples, H rows, W columns, C channels.
"""

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from trainer.errors import UserError
from trainer.files import parse_json, read_bytes, replace
from trainer.observe.records import Count, validated

if TYPE_CHECKING:
    from torch import Tensor

    from models import Task

NUM_SAMPLES = 4
MAX_SIDE = 256
"""The longest side in pixels; of larger images only every second or third pixel is kept."""

MAX_BYTES = 256 << 20
"""The largest file that is read back, also unpacked. Four samples of 256 x 256 pixels with 40 dense tasks are less."""

_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class _AboutMaps(BaseModel):
    task: str
    classes: list[str] = Field(max_length=256)


class _About(BaseModel):
    """The description of the arrays."""

    model_config = ConfigDict(strict=True)

    step: Count
    maps: list[_AboutMaps]


_ABOUT: TypeAdapter[_About] = TypeAdapter(_About)


@dataclass(frozen=True)
class Maps:
    """The labels and predictions of a task, for each pixel.

    Attributes:
        task: name of the task.
        classes: names of the classes; empty if the values are numbers.
        labels: uint8 (S, H, W) classes, or float (S, H, W, C) numbers.
        answers: predictions of the model, of the same type and shape.
        known_SHW: bool, where there is a label.
    """

    task: str
    classes: tuple[str, ...]
    labels: np.ndarray
    answers: np.ndarray
    known_SHW: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """The predictions kept of an evaluation: uint8 images and the maps of the tasks with one output per pixel."""

    step: int
    images_SHWC: np.ndarray
    maps: tuple[Maps, ...]


@dataclass(frozen=True)
class Seen:
    """A batch of the test split.

    Attributes:
        tasks: the tasks in the order of `outputs`.
        inputs: the loader's inputs; images are uint8 (B, H, W, C).
        targets: the loader's targets by task name.
        outputs: the outputs of the model.
    """

    tasks: Sequence["Task"]
    inputs: "Tensor"
    targets: Mapping[str, "Tensor"]
    outputs: "Tensor | list[Tensor]"

    @property
    def maps(self) -> list[tuple["Task", "Tensor"]]:
        """Tasks with one output per pixel, (B, C, H, W), and these outputs; stacked heads have none."""
        outputs = self.outputs if isinstance(self.outputs, list) else []
        return [(task, output) for task, output in zip(self.tasks, outputs, strict=False) if output.dim() == 4]


def keep_predictions(path: Path, step: int, seen: Seen) -> None:
    """Write the first samples of a batch with the labels and predictions of each pixel, replacing an earlier file.

    Args:
        path: the .npz file.
        step: step of the evaluation.
        seen: a batch of images.
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
    replace(path, content.getvalue())


def read_predictions(path: Path) -> Predictions | None:
    """Read the file that `keep_predictions` wrote; return None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = sum(member.file_size for member in archive.infolist())
            if sizes > MAX_BYTES:
                raise ValueError(f"it unpacks to {sizes:,} bytes, expected at most {MAX_BYTES:,}")
            return _parse(archive)
    except FileNotFoundError:
        return None
    # The errors that zipfile, zlib and numpy's header reader raise for a file that is not an archive of arrays.
    except (*_DAMAGE, UserError) as error:
        raise UserError(f"{path} is damaged: {error}.\nRemove it to leave it out of the report: rm {path}") from error


def _parse(archive: zipfile.ZipFile) -> Predictions:
    about = validated(_ABOUT, parse_json(str(_array(archive, "about")), "about"), "about")
    images_SHWC = _array(archive, "images")
    shape = images_SHWC.shape
    if images_SHWC.dtype != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3) or not images_SHWC.size:
        raise ValueError(f"images are {images_SHWC.dtype} {shape}, expected uint8 (S, H, W, 1 or 3)")
    maps = tuple(_maps(archive, number, one, shape[:3]) for number, one in enumerate(about.maps))
    return Predictions(about.step, images_SHWC, maps)


def _maps(archive: zipfile.ZipFile, number: int, about: "_AboutMaps", shape: tuple[int, ...]) -> Maps:
    labels, answers, known_SHW = (_array(archive, f"{what}{number}") for what in ("labels", "answers", "known"))
    if known_SHW.dtype != np.bool_ or known_SHW.shape != shape:
        raise ValueError(f"known{number} is {known_SHW.dtype} {known_SHW.shape}, expected bool {shape}")
    if labels.shape != answers.shape or labels.shape[:3] != shape:
        raise ValueError(f"labels and answers {number} are {labels.shape} and {answers.shape} of images {shape}")
    num_classes = len(about.classes)
    for values in (labels, answers):
        if num_classes and (values.dtype != np.uint8 or values.ndim != 3):
            raise ValueError(
                f"the classes of task {number} are {values.dtype} {values.shape}, expected uint8 (S, H, W)"
            )
        if num_classes and known_SHW.any() and values[known_SHW].max() >= num_classes:
            raise ValueError(f"task {number} has {num_classes} classes, found number {values[known_SHW].max()}")
        if not num_classes and (values.dtype.kind != "f" or values.ndim != 4 or not values.size):
            raise ValueError(
                f"the numbers of task {number} are {values.dtype} {values.shape}, expected float (S, H, W, C)"
            )
    return Maps(about.task, tuple(about.classes), labels, answers, known_SHW)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read one array, without unpickling; its header must match the number of bytes."""
    content = archive.read(f"{name}.npy")
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is not a .npy array of version 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"{name} says it is {dtype} {shape}, and has {len(content) - stream.tell():,} bytes")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran_order else "C")
