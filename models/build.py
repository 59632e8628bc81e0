"""Build an encoder and the heads of all tasks from names and options.

A name is a key of the dictionaries below. In place of a name stands the user's own class or function.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from models.calls import errors_named
from models.encoders.lenet import LeNet
from models.encoders.mlp import MLP
from models.encoders.resnet import resnet18, resnet34, resnet50
from models.encoders.timm_models import PREFIX as TIMM
from models.encoders.timm_models import TimmEncoder
from models.encoders.transformers import TransformersEncoder
from models.encoders.vit import ViT
from models.heads.shared import NAME as SHARED
from models.heads.shared import shared_heads
from models.heads.task_heads import SeparateHeads, StackedHeads
from models.heads.towers import HeadsWithTowers, Tower
from models.heads.vector import linear_head, mlp_head, pooled, pyramid_head, upsampling_head
from models.levels import Takes, has_levels, level_of, number_of
from models.multitask import MultiTaskModel
from models.tasks import Classification, DenseRegression, Regression, Segmentation, Task

Build = Callable[..., nn.Module]
"""A class or function that returns a module."""

ENCODERS: Mapping[str, Build] = {
    "lenet": LeNet,
    "mlp": MLP,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "vit": ViT,
    "transformers": TransformersEncoder,
}
"""`build(input_shape, **options)` returns a module with an attribute `width`: D, if z has the shape (B, D) or the
spatial shape (B, D, h, w). With a spatial z it also has an attribute `stride`: H / h. Where it returns several tensors,
both are tuples."""

HEADS: Mapping[str, Callable[..., nn.Sequential]] = {"linear": linear_head, "mlp": mlp_head}
"""`build(width, outputs, **options)` returns layers that `StackedHeads` can stack; the user's own may be any module."""

DENSE_HEADS: Mapping[str, Build] = {"upsampling": upsampling_head, "pyramid": pyramid_head}
"""`build(width, outputs, stride, **options)`, for tasks with a target for every pixel. Other tasks of the model get the
linear head. Conversely, with a name from HEADS, dense tasks get the upsampling head without options."""

EXPECTED = "expected a torch.nn.Module"


def build_encoder(encoder: str | Build, options: Mapping[str, Any], input_shape: tuple[int, ...]) -> nn.Module:
    """Build an encoder for images of `input_shape` (C, H, W), or for vectors of features (F,).

    Args:
        encoder: a name in ENCODERS, `timm/` and a model of timm, or a class or function that is called as those are.
        options: its keyword arguments.
        input_shape: shape of one sample.

    Raises:
        ValueError: the name or an option is unknown, a value is refused, the encoder has no `width`, or the cells of a
            spatial z do not cover the image.
    """
    if isinstance(encoder, str) and encoder.startswith(TIMM):
        with errors_named(f"encoder '{encoder}' cannot be built with {dict(options)} on {input_shape}"):
            module: nn.Module = TimmEncoder(input_shape, encoder.removeprefix(TIMM), options)  # type: ignore[arg-type]
    else:
        module = _build("encoder", ENCODERS, encoder, options, input_shape)
    levels: Sequence[int | None] = range(len(module.width)) if has_levels(module) else [None]  # type: ignore[arg-type]
    for level in levels:
        if not number_of(module, "width", level):
            raise ValueError(
                f"encoder '{_name(encoder)}' has no attribute `width`: the length of its representation z, an int; or "
                "the lengths of several tensors, a tuple"
            )
        stride = number_of(module, "stride", level)
        if stride and any(side % stride for side in input_shape[1:]):
            raise ValueError(
                f"each cell of the z of encoder '{_name(encoder)}' covers {stride} x {stride} pixels, and images of "
                f"{' x '.join(map(str, input_shape[1:]))} are not made of such cells: give them sides that {stride} "
                "divides"
            )
    return module


def build_model(
    encoder: nn.Module,
    tasks: Sequence[Task],
    head: str | Build,
    options: Mapping[str, Any],
    tower: Tower | None = None,
    linear: Sequence[str] = (),
    takes: Takes = None,
) -> MultiTaskModel:
    """Add one head for each task to the encoder. Heads of equal tasks are stacked if their kind allows it.

    Args:
        encoder: has an attribute `width`.
        tasks: one head each, in this order.
        head: a name in HEADS or DENSE_HEADS, `shared` (models/heads/shared.py), or a class or function that is called
            as those in HEADS are.
        options: the head's keyword arguments.
        tower: a second head for each task; None: no such heads.
        linear: names of tasks that get a linear head in place of `head`.
        takes: which tensor of a representation of several the heads, and towers, take.

    Raises:
        ValueError: a name or an option is unknown, or a value is refused.
    """
    _refuse_wrong_linear(linear, head, tasks)
    if isinstance(takes, Mapping):
        for name in takes.keys() - {task.name for task in tasks}:
            hint = _did_you_mean(name, [task.name for task in tasks])
            raise ValueError(f"model.head.takes names a task '{name}', and there is none.{hint}")
    alone = not has_levels(encoder) and takes is None
    if head == SHARED:
        if tower is not None or not _are_equal(tasks) or not alone or number_of(encoder, "stride"):
            raise ValueError(
                f"head '{SHARED}' is for tasks that are alike (numbers, or as many classes), on a z that is a vector, "
                "and without towers. Type model.head.name=linear, or train such tasks alone: data.tasks=[...]"
            )
        outputs = {task.name: task.num_outputs for task in tasks}
        return MultiTaskModel(encoder, shared_heads(number_of(encoder, "width"), outputs, options))
    _refuse_unused_head(head, options, tasks)
    known = head in HEADS and (tower is None or tower.head in HEADS) and not linear
    stackable = known and _are_equal(tasks) and alone and not number_of(encoder, "stride")
    levels = [level_of(takes, task.name) for task in tasks]

    def one_each(what: str, build: str | Build, keywords: Mapping[str, Any]) -> Any:
        modules: list[Any] = [
            _build_head(what, build, keywords, encoder, task, level) for task, level in zip(tasks, levels, strict=True)
        ]
        return StackedHeads(modules) if stackable else SeparateHeads(modules, levels)

    heads = one_each("head", head, options)
    for place, task in enumerate(tasks):
        if task.name in linear:
            heads[place] = _build_head("head", "linear", {}, encoder, task, levels[place])
    if tower is None:
        return MultiTaskModel(encoder, heads)
    return MultiTaskModel(encoder, HeadsWithTowers(heads, one_each("tower", tower.head, tower.options), tower.weight))


def _refuse_unused_head(head: str | Build, options: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Refuse a head, or options of a head, that no task would get."""
    dense = [isinstance(task, Segmentation | DenseRegression) for task in tasks]
    if head in DENSE_HEADS and not any(dense):
        raise ValueError(
            f"head '{head}' is for tasks with a target for every pixel, and this data has none. For tasks with one "
            f"target a sample: {', '.join(HEADS)}"
        )
    if head in HEADS and options and all(dense):
        raise ValueError(
            f"head '{head}' is for tasks with one target a sample, and this data has none that could use its options "
            f"({', '.join(options)}). For tasks with a target for every pixel: {', '.join(DENSE_HEADS)}"
        )


def _refuse_wrong_linear(linear: Sequence[str], head: str | Build, tasks: Sequence[Task]) -> None:
    """Refuse tasks that cannot have a linear head of their own, or have one already."""
    if linear and head in ("linear", SHARED):
        raise ValueError(
            f"linear_heads {list(linear)} with head '{head}', which is linear for all tasks: leave one out"
        )
    able = [task.name for task in tasks if isinstance(task, Classification | Regression)]
    for name in linear:
        if name not in able:
            raise ValueError(
                f"linear_heads names '{name}'.{_did_you_mean(name, able)} Tasks with one target a sample: "
                f"{', '.join(able) or 'none'}"
            )


def _are_equal(tasks: Sequence[Task]) -> bool:
    """Return whether the first task's loss and measure can be applied to all tasks at once."""
    kinds = {(type(task), task.num_outputs) for task in tasks}
    # A subclass is the user's own, and its loss is not written for stacked outputs.
    return len(kinds) == 1 and type(tasks[0]) in (Classification, Regression)


def _build_head(
    what: str, build: str | Build, options: Mapping[str, Any], encoder: nn.Module, task: Task, level: int | None
) -> nn.Module:
    """Build one head. A spatial z is a map for dense tasks, and is averaged for the others."""
    if build not in HEADS and build not in DENSE_HEADS:
        all_of_it = level is None and has_levels(encoder)
        its_width: Any = encoder.width if all_of_it else number_of(encoder, "width", level)
        return _build(what, {**HEADS, **DENSE_HEADS}, build, options, its_width, task.num_outputs)
    width, stride = number_of(encoder, "width", level), number_of(encoder, "stride", level)
    dense = isinstance(task, Segmentation | DenseRegression)
    if not stride and (dense or build in DENSE_HEADS):
        found = f"task '{task.name}' has a target for every pixel and" if dense else f"{what} '{build}'"
        raise ValueError(
            f"{found} needs a spatial z: an encoder with an attribute `stride`, such as resnet18 with options "
            "{pool: null}"
        )
    if dense and build in DENSE_HEADS:
        return _build(what, DENSE_HEADS, build, options, width, task.num_outputs, stride)
    if dense:
        return upsampling_head(width, task.num_outputs, stride)
    if build in DENSE_HEADS:
        return pooled(linear_head(width, task.num_outputs))
    head = _build(what, {**HEADS, **DENSE_HEADS}, build, options, width, task.num_outputs)
    return pooled(head) if stride else head


def _build(
    what: str, known: Mapping[str, Build], build: str | Build, options: Mapping[str, Any], *arguments: Any
) -> nn.Module:
    name = _name(build)
    function = _known(what, known, build) if isinstance(build, str) else build
    allowed = list(inspect.signature(function).parameters)[len(arguments) :]
    for option in options:
        if option not in allowed:
            owners = [other for other, builder in known.items() if option in _optional(builder)]
            others = f". '{option}' belongs to: {', '.join(owners)}" if owners else ""
            hint = _did_you_mean(option, allowed)
            raise ValueError(
                f"{what} '{name}' has no option '{option}'.{hint} Its options: {', '.join(allowed) or 'none'}{others}"
            )
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
    doing = f"{what} '{name}' cannot be built with {shown} on {arguments}"
    with errors_named(doing):
        module = function(*arguments, **options)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{what} '{name}' gave {type(module).__name__}; {EXPECTED}")
    empty = [key for key, parameter in module.named_parameters() if not is_lazy(parameter) and parameter.numel() == 0]
    if empty:
        raise ValueError(f"{doing}: its parameter {empty[0]} has no entries")
    return module


def _name(build: str | Build) -> str:
    return build if isinstance(build, str) else str(getattr(build, "__qualname__", build))


def _known(what: str, known: Mapping[str, Build], name: str) -> Build:
    if name in known:
        return known[name]
    raise ValueError(
        f"no {what} '{name}'.{_did_you_mean(name, known)} Known: {', '.join(known)}, or your own, such as "
        "my_nets/tiny.py:Net or my_nets.tiny.Net"
    )


def _optional(build: Build) -> list[str]:
    """Return the keyword arguments that have a default."""
    parameters = inspect.signature(build).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is not parameter.empty]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
