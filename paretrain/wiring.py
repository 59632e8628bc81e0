"""Find heads that read something else than their own view of z, by one walk of the autograd graph.

A head that reads z in place of its view, or the view of another task, gives gradients and an α that look sound. The
walk goes from each loss to the nodes of `split`. Where the views of several tasks pass through one node, as in a stack
of them for a batched product, it cannot tell them apart and says nothing.

Shapes: T tasks.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paretrain.split import Weigher, task_of
from paretrain.stacked import is_stacked

MAX_NODES = 100_000
"""With more nodes behind the losses, nothing is said."""

Place = tuple[Any, int]
"""A node of the graph, and one of its outputs."""

IDENTITIES = ("_DDPSink", "RegisterPostBackward", "BackwardHook")
"""Nodes that return their inputs in the same order, by a part of their names: those of DDP, FSDP2 and hooks."""


class _Reach(NamedTuple):
    """What is behind a loss: nodes, the tasks whose views it reads, and the nodes that z comes from."""

    nodes: set[Any]
    tasks: set[int]
    sources: set[Any]


def miswired(losses_T: Tensor, weighers: Collection[Weigher], zs: Sequence[Tensor]) -> Tensor:
    """Return the tasks whose loss reads z beside its view, or another task's view in place of its own: bool, (T,).

    Two tasks whose losses both read the views of both are passed over, and so are losses without a graph, as those of a
    rank without samples.

    Args:
        losses_T: made of a list of losses by `torch.stack`. Of another tensor nothing is said.
        weighers: those of the step's splits. A split of another balancer is a part of a head.
        zs: tensors that were cut off from the encoder before they were split.
    """
    wrong_T, num_left, reached = torch.zeros(len(losses_T), dtype=torch.bool), MAX_NODES, []
    for place in _losses_in(losses_T):
        reach = _walk(place, weighers, num_left)
        num_left -= len(reach.nodes)
        if num_left <= 0:
            return wrong_T
        reached.append(reach)
    sources = {z.grad_fn for z in zs}.union(*(reach.sources for reach in reached)) - {None}
    for task, (nodes, read, _) in enumerate(reached):
        # Through a common node both losses reach both views; else only the loss that reads the other's view reaches it.
        others = any(reached[other].tasks and task not in reached[other].tasks for other in read)
        wrong_T[task] = bool(nodes & sources) or others or (bool(read) and task not in read)
    return wrong_T


def _losses_in(losses_T: Tensor) -> list[Place]:
    """Return the losses that a stack was made of; none if it is no stack of one loss a task."""
    node: Any = losses_T.grad_fn
    while node is not None and not type(node).__name__.startswith("StackBackward"):
        inputs = [each for each, _ in node.next_functions if each is not None]
        node = inputs[0] if len(inputs) == 1 else None
    places = [] if node is None else list(node.next_functions)
    return places if len(places) == len(losses_T) else []


def _walk(loss: Place, weighers: Collection[Weigher], most: int) -> _Reach:
    """Return what is behind a loss, up to the nodes of `split`; with more than `most` nodes, a part of it."""
    found = _Reach(set(), set(), set())
    waiting, seen = [loss], {loss}
    while waiting and len(found.nodes) < most:
        node, output = waiting.pop()
        task = task_of(node, output, weighers)
        if task is not None:
            found.tasks.add(task)
            found.sources.update(each for each, _ in node.next_functions)
        # The outputs of stacked heads, and what torch.compile has made, are one tensor or one node for all tasks.
        elif node is not None and not is_stacked(node) and "CompiledFunction" not in type(node).__name__:
            found.nodes.add(node)
            passes_on = any(name in type(node).__name__ for name in IDENTITIES)
            inputs = node.next_functions[output : output + 1] if passes_on else node.next_functions
            waiting += [place for place in inputs if place not in seen]
            seen.update(inputs)
    return found
