"""Configuration + data folder -> the parts of a run."""

from collections.abc import Sequence

import torch

from models import MultiTaskModel, Task, build_encoder, build_model, build_task
from trainer.balance import Balancer
from trainer.balance.weightings.build import build_weighting
from trainer.config import BalanceConfig, Experiment
from trainer.data.manifest import Manifest
from trainer.errors import UserError
from trainer.runtime.setup import Runtime


def build_tasks(manifest: Manifest, names: Sequence[str] | None) -> list[Task]:
    """The tasks `names` of the data, or all of them.

    Raises:
        UserError: the data has no such task.
    """
    specs = manifest.tasks if names is None else manifest.select_tasks(names)
    return [build_task(spec.name, spec.kind, spec.classes) for spec in specs]


def build_network(experiment: Experiment, manifest: Manifest, tasks: Sequence[Task]) -> MultiTaskModel:
    """Encoder and heads with the initial parameters that the seed decides, the same on every rank.

    Raises:
        UserError: a name or an option of the model is wrong.
    """
    image, config = manifest.image, experiment.model
    torch.manual_seed(experiment.seed)
    try:
        encoder = build_encoder(
            config.encoder.name, config.encoder.options, (image.channels, image.height, image.width)
        )
        network = build_model(encoder, tasks, config.head.name, config.head.options)
    except ValueError as error:
        raise UserError(str(error)) from error
    # The order in which images arrive, and the faster one for convolution and pooling: 1.4x a LeNet step on a CPU.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_balancer(config: BalanceConfig, tasks: Sequence[Task], runtime: Runtime, seed: int) -> Balancer:
    """The balancer over all ranks, with its rule; `seed` decides what a random rule draws.

    Raises:
        UserError: no such rule or option, or weights or a preference that do not fit the tasks.
    """
    names = [task.name for task in tasks]
    try:
        weighting = build_weighting(
            config.weighting,
            config.options,
            tasks=names,
            weights=config.weights,
            preference=config.preference,
            normalise=config.normalise,
            reference=config.reference,
            seed=seed,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return Balancer(names, weighting, group=runtime.balance_group)
