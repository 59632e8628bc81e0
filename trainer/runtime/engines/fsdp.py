"""FSDP2: shard parameters, gradients and optimizer state with torch's `fully_shard`.

Zhao et al. 2023, arXiv 2304.11277.
"""

import math
import warnings

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from models import MultiTaskModel
from models.blocks import blocks
from trainer.runtime.checkpoints.pieces import Piece
from trainer.runtime.engines.engine import BuildOptimizer, TorchEngine, rank_and_size
from trainer.runtime.engines.precision import LossScale


class Fsdp2Engine(TorchEngine):
    """Shard the network in units that are gathered only while they run.

    The units are the members of the encoder's outermost lists (blocks, layers), the heads, and the rest.

    Args:
        network: the bare network, on its device, the same on every rank; sharded in place.
        build_optimizer: makes an optimizer of the trained parameters, each with its name.
        clip_norm: upper bound of the gradient's norm; None: no bound.
        loss_scale: see `Engine`.
    """

    def __init__(
        self,
        network: MultiTaskModel,
        build_optimizer: BuildOptimizer,
        clip_norm: float | None,
        loss_scale: LossScale,
    ) -> None:
        # Stacked heads return a view; nobody writes into it.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        for part in blocks(network.encoder):
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
        # After a forward without a backward the root module stays gathered, with the old values.
        for module in self.predictor.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _piece(self, name: str, value: Tensor) -> Piece:
        assert isinstance(value, DTensor), "fully_shard made it one"
        rank, world_size = rank_and_size()
        num_rows, *row = value.shape
        # Every rank has as many rows as the first one, until there are none left.
        start = min(rank * -(-num_rows // world_size), num_rows) * math.prod(row)
        return Piece(name, value.shape, start, value.to_local().detach().flatten())

    def _shard(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        assert isinstance(parameter, DTensor), "fully_shard made it one"
        if value.shape != parameter.shape:
            return value  # Adam's count of steps, one number for the whole parameter.
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
