"""Names and options -> modules. A name stands in a literal dict below, or is the dotted path of the user's own code."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from models import dotted
from models.encoders.lenet import LeNet
from models.encoders.mlp import MLP
from models.encoders.resnet import resnet18, resnet34, resnet50
from models.encoders.transformers import TransformersEncoder
from models.encoders.vit import ViT
from models.heads.task_heads import SeparateHeads, StackedHeads
from models.heads.towers import HeadsWithTowers, Tower
from models.heads.vector import linear_head, mlp_head, pooled, pyramid_head, upsampling_head
from models.multitask import MultiTaskModel
from models.tasks import Classification, DenseRegression, Regression, Segmentation, Task

ENCODERS: Mapping[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "mlp": MLP,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "vit": ViT,
    "transformers": TransformersEncoder,
}
"""`build(input_shape, **options)` -> a module with an attribute `width`: of z (B, D), D; of a spatial z (B, D, h, w), D
too, and then it has an attribute `stride`, H / h."""

HEADS: Mapping[str, Callable[..., nn.Sequential]] = {"linear": linear_head, "mlp": mlp_head}
"""`build(width, outputs, **options)` -> layers that `StackedHeads` can stack; a dotted path may give any module."""

DENSE_HEADS: Mapping[str, Callable[..., nn.Module]] = {"upsampling": upsampling_head, "pyramid": pyramid_head}
"""`build(width, outputs, stride, **options)` for tasks with a target for every pixel; the others beside them get the
linear head. Under the names in HEADS, dense tasks have the upsampling head as it is without options."""

EXPECTED = "expected a torch.nn.Module"


def build_encoder(name: str, options: Mapping[str, Any], input_shape: tuple[int, ...]) -> nn.Module:
    """Build the encoder `name` for images of `input_shape` (C, H, W), or for so many features (F,).

    Raises:
        ValueError: no such name, dotted path or option, a value it refuses, an encoder without a `width`, or a spatial
            z whose cells do not cover the image.
    """
    encoder = _build("encoder", ENCODERS, name, options, input_shape)
    if not _number(encoder, "width"):
        raise ValueError(f"encoder '{name}' has no attribute `width`: the length of its representation z, an int")
    stride = _number(encoder, "stride")
    if stride and any(side % stride for side in input_shape[1:]):
        raise ValueError(
            f"each cell of the z of encoder '{name}' stands for {stride} x {stride} pixels, and images of "
            f"{' x '.join(map(str, input_shape[1:]))} are not made of such cells: give them sides that {stride} divides"
        )
    return encoder


def build_model(
    encoder: nn.Module,
    tasks: Sequence[Task],
    head: str,
    options: Mapping[str, Any],
    tower: Tower | None = None,
) -> MultiTaskModel:
    """Put one head of the kind `head` for each task on the encoder; of tasks that are alike, as one stack.

    Args:
        encoder: has an attribute `width`.
        tasks: one head each, in this order.
        head: name in HEADS, or dotted path.
        options: the head's keyword arguments.
        tower: what each task gets beside its head; None: nothing.

    Raises:
        ValueError: no such name, dotted path or option, or a value it refuses.
    """
    _refuse_idle(head, options, tasks)
    known = head in HEADS and (tower is None or tower.name in HEADS)
    stackable = known and _alike(tasks) and not _number(encoder, "stride")
    kind = StackedHeads if stackable else SeparateHeads

    def one_each(what: str, name: str, keywords: Mapping[str, Any]) -> Any:
        modules: list[Any] = [_build_head(what, name, keywords, encoder, task) for task in tasks]
        return kind(modules)

    heads = one_each("head", head, options)
    if tower is None:
        return MultiTaskModel(encoder, heads)
    return MultiTaskModel(encoder, HeadsWithTowers(heads, one_each("tower", tower.name, tower.options), tower.weight))


def _refuse_idle(head: str, options: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Refuse a head, or its options, that no task would get."""
    dense = [isinstance(task, Segmentation | DenseRegression) for task in tasks]
    if head in DENSE_HEADS and not any(dense):
        raise ValueError(
            f"head '{head}' is for tasks with a target for every pixel, and there is none. For those that there are: "
            + ", ".join(HEADS)
        )
    if head in HEADS and options and all(dense):
        raise ValueError(
            f"head '{head}' is for tasks with one target a sample, and there is none to use its options "
            f"({', '.join(options)}). For those that there are: {', '.join(DENSE_HEADS)}"
        )


def _alike(tasks: Sequence[Task]) -> bool:
    """Whether the first task's loss and error serve for all of them."""
    kinds = {(type(task), task.num_outputs) for task in tasks}
    return len(kinds) == 1 and isinstance(tasks[0], Classification | Regression)


def _build_head(what: str, name: str, options: Mapping[str, Any], encoder: nn.Module, task: Task) -> nn.Module:
    """Build a head for z as the encoder gives it: a vector, or a map that dense tasks need and others average."""
    width, stride = _number(encoder, "width"), _number(encoder, "stride")
    if name not in HEADS and name not in DENSE_HEADS:
        return _build(what, {**HEADS, **DENSE_HEADS}, name, options, width, task.num_outputs)
    dense = isinstance(task, Segmentation | DenseRegression)
    if not stride and (dense or name in DENSE_HEADS):
        found = f"task '{task.name}' has a target for every pixel and" if dense else f"{what} '{name}'"
        raise ValueError(
            f"{found} needs a spatial z: an encoder with an attribute `stride`, such as resnet18 with options "
            "{pool: null}"
        )
    if dense and name in DENSE_HEADS:
        return _build(what, DENSE_HEADS, name, options, width, task.num_outputs, stride)
    if dense:
        return upsampling_head(width, task.num_outputs, stride)
    if name in DENSE_HEADS:
        return pooled(linear_head(width, task.num_outputs))
    head = _build(what, {**HEADS, **DENSE_HEADS}, name, options, width, task.num_outputs)
    return pooled(head) if stride else head


def _number(encoder: nn.Module, attribute: str) -> int:
    """What an encoder says of its z; 0 where it says nothing."""
    found = getattr(encoder, attribute, None)
    return found if isinstance(found, int) else 0


def _build(
    what: str, known: Mapping[str, Callable[..., nn.Module]], name: str, options: Mapping[str, Any], *arguments: Any
) -> nn.Module:
    build = known.get(name) or _of_the_user(what, known, name)
    allowed = list(inspect.signature(build).parameters)[len(arguments) :]
    for option in options:
        if option not in allowed:
            having = [other for other, build in known.items() if option in _options(build)]
            others = f". '{option}' belongs to: {', '.join(having)}" if having else ""
            hint = _did_you_mean(option, allowed)
            raise ValueError(
                f"{what} '{name}' has no option '{option}'.{hint} Its options: {', '.join(allowed) or 'none'}{others}"
            )
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
    doing = f"{what} '{name}' cannot be built with {shown} on {arguments}"
    module = dotted.call(build, *arguments, doing=doing, **options)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{what} '{name}' gave {type(module).__name__}; {EXPECTED}")
    empty = [key for key, parameter in module.named_parameters() if parameter.numel() == 0]
    if empty:
        raise ValueError(f"{doing}: its parameter {empty[0]} has no entries")
    return module


def _options(build: Callable[..., Any]) -> list[str]:
    """The keyword arguments that may be left out."""
    parameters = inspect.signature(build).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is not parameter.empty]


def _of_the_user(what: str, known: Mapping[str, Any], path: str) -> Callable[..., nn.Module]:
    if "." not in path:
        raise ValueError(
            f"no {what} '{path}'.{_did_you_mean(path, known)} Known: {', '.join(known)}, or a dotted path such as "
            "my.module.Name"
        )
    return dotted.find(path, nn.Module, named=f"{what} '{path}'", expected=EXPECTED)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
