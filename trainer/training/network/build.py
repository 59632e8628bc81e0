"""Build the network of a run from its configuration and its data, and fill it with the weights of a checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from models import MultiTaskModel, Task, Tower, build_encoder, build_model, checkpoint_activations
from models.build import EXPECTED, Build
from models.freezing import freeze, trained
from trainer.config.schema import Experiment
from trainer.data.format.specs import DataSpec
from trainer.errors import UserError
from trainer.training.network.patterns import matching
from trainer.user_code import errors_explained, is_user_code, load, placed


def build_network(experiment: Experiment, data: DataSpec, tasks: Sequence[Task]) -> MultiTaskModel:
    """Build encoder and heads with the initial parameters that the seed determines, the same on every rank.

    Raises:
        UserError: a name or an option of the model is wrong.
    """
    config = experiment.model
    torch.manual_seed(experiment.seed)
    try:
        encoder = build_encoder(_load("encoder", config.encoder.name), config.encoder.options, data.input.encoder_shape)
        head, tower = _load("head", config.head.name), None
        if config.tower:
            tower = Tower(_load("tower", config.tower.name), config.tower.options, config.tower.weight)
        network = build_model(encoder, tasks, head, config.head.options, tower, config.linear_heads, config.head.takes)
        _initialise_lazy(network, data.input.encoder_shape)
    except ValueError as error:
        raise UserError(f"model: {placed(error)}") from error
    _refuse_tied(network)
    if experiment.parallel.device == "cpu" and any(isinstance(part, nn.SyncBatchNorm) for part in encoder.modules()):
        raise UserError(
            "SyncBatchNorm (norm: sync of our ResNets) is for GPUs: torch has it for no CPU. Type "
            "model.encoder.options.norm=group (or batch), or use another norm in an encoder of your own"
        )
    _freeze(network, config.freeze)
    if config.checkpoint_activations:
        checkpoint_activations(encoder)
    # The order in which images arrive, and the faster one for convolution and pooling: 1.4x a LeNet step on a CPU.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _initialise_lazy(network: MultiTaskModel, input_shape: Sequence[int]) -> None:
    """Give lazy layers, such as nn.LazyLinear, their parameters, by a forward of zeros."""
    if any(is_lazy(parameter) for parameter in network.parameters()):
        with torch.no_grad(), errors_explained("the encoder's lazy layers cannot be initialised"):
            network.eval()(torch.zeros(1, *input_shape))
        network.train()


def _freeze(network: MultiTaskModel, patterns: Sequence[str]) -> None:
    names = network.state_dict().keys()
    freeze(network, {name for pattern in patterns for name in matching(pattern, names, "model.freeze")})
    if not trained(network):
        raise UserError("no parameter is left to train: model.freeze, or the network itself, has frozen all of them")


def _load(what: str, name: str) -> str | Build:
    """Return the user's own class or function, or the name as it is if it is a short one."""
    return load(name, nn.Module, named=f"{what} '{name}'", expected=EXPECTED) if is_user_code(name) else name


def fill(network: MultiTaskModel, weights: Mapping[str, Tensor], checkpoint: Path, data: str) -> None:
    """Load a checkpoint's weights into a network that was built for the data as it is now.

    Args:
        network: whole.
        weights: of the checkpoint.
        checkpoint: where they are from, for the error.
        data: where the data is, for the error.

    Raises:
        UserError: they do not fit.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {checkpoint} does not fit the data in {data}, which must have changed since: {error}"
        ) from error


def _refuse_tied(network: nn.Module) -> None:
    """Refuse parameters with two names: exactly one module must save each parameter and gather its shards."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if parameter in names:
            raise UserError(
                f"{names[parameter]} and {name} are one parameter under two names, which can be neither sharded nor "
                "saved as two. Leave one of the names out of the module, or give it a parameter of its own: "
                "torch.nn.Parameter(other.detach().clone())"
            )
        names[parameter] = name
