"""Start a network from that of another run: its encoder, and for each task the head of the same task there."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from trainer.errors import UserError
from trainer.training.network.start_encoder import some_of

SEPARATE_HEAD = re.compile(r"(heads\.(?:main\.|towers\.)?)(\d+)(\..+)")
"""Name of a parameter of one task's head: what is before the task's number, the number, and the rest."""
STACKED_HEADS = re.compile(r"heads\..+_T[A-Z]*")
"""Name of a parameter of all heads, whose first axis is the task."""


def start_network(
    network: nn.Module, tasks: Sequence[str], weights: Mapping[str, Tensor], theirs: Sequence[str], run: Path
) -> None:
    """Fill a network with the encoder and heads of another run.

    Args:
        network: whole.
        tasks: of the network, in the order of its heads.
        weights: of the other run.
        theirs: its tasks, in the order of its heads.
        run: its folder, for errors.

    Raises:
        UserError: it has no head for a task, or its network is another one.
    """
    alone = f"To start from its encoder alone: model.encoder.weights={run} in place of train.start_from"
    if missing := [task for task in tasks if task not in theirs]:
        raise UserError(
            f"train.start_from: {run} has no heads for {some_of(missing)}; it has {some_of(theirs)}. {alone}"
        )
    try:
        network.load_state_dict(of_tasks(weights, [theirs.index(task) for task in tasks]))
    except RuntimeError as error:
        raise UserError(f"train.start_from: {run} holds another network than this run's: {error}\n{alone}") from error


def of_tasks(weights: Mapping[str, Tensor], places: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights of a network with the heads at `places` alone, in that order."""
    chosen = {}
    for name in weights:
        if head := SEPARATE_HEAD.fullmatch(name):
            before, place, after = head.groups()
            if int(place) in places:
                chosen[f"{before}{places.index(int(place))}{after}"] = weights[name]
        else:
            chosen[name] = weights[name][list(places)] if STACKED_HEADS.fullmatch(name) else weights[name]
    return chosen
