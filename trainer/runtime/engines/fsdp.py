"""FSDP2: parameters, gradients and optimizer state in shards (Zhao et al. 2023, arXiv 2304.11277; in torch
`fully_shard`).
"""

import math
import warnings
from collections.abc import Callable

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from models import MultiTaskModel
from trainer.runtime.checkpoints.pieces import Piece
from trainer.runtime.engines.engine import TorchEngine, place
from trainer.runtime.engines.precision import LossScale


class Fsdp2Engine(TorchEngine):
    """Parts of the encoder's outermost lists (blocks, layers), the heads, and the rest: whole only while they run.

    Args:
        network: the bare network, on its device, the same on every rank; it is sharded in place.
        build_optimizer: from parameters.
        clip_norm: upper bound of the gradient's norm; None: no bound.
        loss_scale: see `Engine`.
    """

    def __init__(
        self,
        network: MultiTaskModel,
        build_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        clip_norm: float | None,
        loss_scale: LossScale,
    ) -> None:
        # Stacked heads return a view, which nobody writes into.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        for part in _parts(network.encoder):
            fully_shard(part)
        fully_shard(network.heads)
        fully_shard(network)
        super().__init__(network, network, build_optimizer, clip_norm, loss_scale)

    def _clip(self) -> Tensor:
        norm = super()._clip()
        assert isinstance(norm, DTensor), "the norm of shards"
        return norm.full_tensor()

    def _swap_averages(self) -> None:
        super()._swap_averages()
        # The root stays whole after a forward without a backward.
        for module in self.predictor.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _piece(self, name: str, value: Tensor) -> Piece:
        assert isinstance(value, DTensor), "fully_shard made it one"
        rank, world_size = place()
        num_rows, *row = value.shape
        # Every rank has as many rows as the first, until there are none left.
        start = min(rank * -(-num_rows // world_size), num_rows) * math.prod(row)
        return Piece(name, value.shape, start, value.to_local().detach().flatten())

    def _share(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        assert isinstance(parameter, DTensor), "fully_shard made it one"
        if value.shape != parameter.shape:
            return value  # Adam's count of steps, which belongs to all of the parameter.
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _parts(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return [child for child in module if any(True for _ in child.parameters())]
    return [part for child in module.children() for part in _parts(child)]
