"""Names and options -> modules. A name stands in a literal dict below, or is the dotted path of the user's own code."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from models.heads import linear_head, mlp_head
from models.lenet import LeNet
from models.multitask import MultiTaskModel, SeparateHeads, StackedHeads
from models.resnet import resnet18, resnet34, resnet50
from models.tasks import Classification, Task

ENCODERS: Mapping[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}
"""`build(image_shape, **options)` -> a module with an attribute `width`."""

HEADS: Mapping[str, Callable[..., nn.Sequential]] = {"linear": linear_head, "mlp": mlp_head}
"""`build(width, outputs, **options)` -> layers that `StackedHeads` can stack; a dotted path may give any module."""


def build_task(name: str, kind: str, classes: Sequence[str]) -> Task:
    """Make the task that a data folder describes.

    Raises:
        ValueError: the kind is not known here.
    """
    if kind != "classification":
        raise ValueError(f"task '{name}' is of kind '{kind}'; known kinds: classification")
    return Classification(name, len(classes))


def build_encoder(name: str, options: Mapping[str, Any], image_shape: tuple[int, int, int]) -> nn.Module:
    """Build the encoder `name` for images of `image_shape` (C, H, W).

    Raises:
        ValueError: no such name, dotted path or option, a value it refuses, or an encoder without a `width`.
    """
    encoder = _build("encoder", ENCODERS, name, options, image_shape)
    if not isinstance(getattr(encoder, "width", None), int):
        raise ValueError(f"encoder '{name}' has no attribute `width`: the length of its representation z, an int")
    return encoder


def build_model(encoder: nn.Module, tasks: Sequence[Task], head: str, options: Mapping[str, Any]) -> MultiTaskModel:
    """Put one head of the kind `head` for each task on the encoder; of tasks that are alike, as one stack.

    Raises:
        ValueError: no such name, dotted path or option, or a value it refuses.
    """
    heads: list[Any] = [_build("head", HEADS, head, options, encoder.width, task.num_outputs) for task in tasks]
    stackable = head in HEADS and _alike(tasks)
    return MultiTaskModel(encoder, StackedHeads(heads) if stackable else SeparateHeads(heads))


def _alike(tasks: Sequence[Task]) -> bool:
    """Whether the first task's loss and error serve for all of them."""
    return all(isinstance(task, Classification) and task.num_outputs == tasks[0].num_outputs for task in tasks)


def _build(
    what: str, known: Mapping[str, Callable[..., nn.Module]], name: str, options: Mapping[str, Any], *arguments: Any
) -> nn.Module:
    build = known.get(name) or _from_dotted_path(what, known, name)
    allowed = list(inspect.signature(build).parameters)[len(arguments) :]
    for option in options:
        if option not in allowed:
            close = difflib.get_close_matches(option, allowed, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"{what} '{name}' has no option '{option}'.{hint} Its options: {', '.join(allowed)}")
    try:
        return build(*arguments, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
        raise ValueError(f"{what} '{name}' cannot be built with {shown} on {arguments}: {error}") from error


def _from_dotted_path(what: str, known: Mapping[str, Any], path: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        close = difflib.get_close_matches(path, known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(
            f"no {what} '{path}'.{hint} Known: {', '.join(known)}, or a dotted path such as my.module.Name"
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} '{path}' cannot be imported: {error}") from error
