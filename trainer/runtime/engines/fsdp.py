"""FSDP2: shard parameters, gradients and optimizer state with torch's `fully_shard`.

Zhao et al. 2023, arXiv 2304.11277. Section 3.2.2 has hybrid sharding (HSDP): groups of ranks hold one copy of the model
each, in shards; gradients are scattered inside a group, then averaged over the groups.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from models import MultiTaskModel
from models.blocks import blocks
from trainer.runtime.checkpoints.pieces import Piece, piece_of
from trainer.runtime.engines.engine import BuildOptimizer, TorchEngine
from trainer.runtime.engines.precision import DTYPES, LossScale, Precision
from trainer.runtime.engines.shards import ReduceScatter, Room, by_messages, gather, part_of


def hybrid_mesh(device: torch.device, world_size: int, shard_processes: int) -> DeviceMesh:
    """Return the mesh of hybrid sharding: `shard_processes` neighbouring ranks are a group. Collective."""
    shape = (world_size // shard_processes, shard_processes)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    # NCCL connects at the first message, which would otherwise be one inside a backward.
    dist.all_reduce(torch.zeros(1, device=device), group=mesh.get_group("replicate"))
    return mesh


class Fsdp2Engine(TorchEngine):
    """Shard the network in units that are gathered only while they run.

    The units are the members of the encoder's outermost lists (blocks, layers), the heads, and the rest.

    Args:
        network: the bare network, on its device, the same on every rank; sharded in place.
        build_optimizer: makes an optimizer of the trained parameters, each with its name.
        clip_norm: upper bound of the gradient's norm; None: no bound.
        loss_scale: see `Engine`.
        mesh: of the ranks, see `hybrid_mesh`; None: all ranks hold one copy of the model.
        gather: the precision in which parameters are gathered. Their gradients are added up in float32.
    """

    def __init__(
        self,
        network: MultiTaskModel,
        build_optimizer: BuildOptimizer,
        clip_norm: float | None,
        loss_scale: LossScale,
        mesh: DeviceMesh | None = None,
        gather: Precision = "fp32",
    ) -> None:
        # Stacked heads return a view; nobody writes into it.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        policy = MixedPrecisionPolicy() if gather == "fp32" else MixedPrecisionPolicy(DTYPES[gather], torch.float32)
        for part in blocks(network.encoder):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        fully_shard(network.heads, mesh=mesh, mp_policy=policy)
        fully_shard(network, mesh=mesh, mp_policy=policy)
        super().__init__(network, network, build_optimizer, clip_norm, loss_scale)
        self._mesh = mesh
        self._room = Room()
        if mesh is None and by_messages(next(iter(self._parameters.values()))):
            reduce_scatter = ReduceScatter()
            for module in self._units():
                module.set_custom_reduce_scatter(reduce_scatter)  # type: ignore[arg-type]

    @contextmanager
    def in_shards(self, num_backwards: int) -> Iterator[None]:
        """See `Engine`. The parameters stay gathered where that takes no more memory than the shards do."""
        if num_backwards < dist.get_world_size():
            yield
            return
        self._set_reshards(False)
        try:
            yield
        finally:
            self._set_reshards(True)
            self._reshard()

    def new_shards(self, names: Sequence[str], num_backwards: int) -> Tensor:
        """See `Engine`."""
        locals_ = [_local(self._parameters[name]) for name in names]
        # Replicas hold the same shard: each takes its part of it.
        size = -(-sum(local.numel() for local in locals_) // self._replica()[1])
        return self._room.shards(num_backwards, size, locals_[0])

    def take_shard(self, names: Sequence[str], shard_S: Tensor, *, add: bool) -> None:
        """See `Engine`. The backward has averaged and scattered the gradients."""
        local = [_local(gradient).flatten() for gradient in self._take(names)]
        number, num_replicas = self._replica()
        if num_replicas == 1 and not add:
            torch.cat(local, out=shard_S)
        else:
            mine_S = part_of(torch.cat(local), number, num_replicas)
            shard_S.copy_(shard_S + mine_S if add else mine_S)

    def put_shard(self, names: Sequence[str], shard_S: Tensor) -> None:
        """See `Engine`."""
        if self._mesh:
            shard_S = gather(shard_S, self._mesh.get_group("replicate"))
        start = 0
        for parameter in (self._parameters[name] for name in names):
            assert isinstance(parameter, DTensor), "fully_shard made it one"
            local = _local(parameter)
            parameter.grad = DTensor.from_local(
                shard_S[start : start + local.numel()].view(local.shape),
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            start += local.numel()

    def _replica(self) -> tuple[int, int]:
        """Return which copy of the model this rank has a shard of, and how many there are."""
        if self._mesh is None:
            return 0, 1
        return self._mesh.get_local_rank("replicate"), self._mesh.size(0)

    def _clip(self) -> Tensor:
        norm = super()._clip()
        assert isinstance(norm, DTensor), "the norm of shards"
        return norm.full_tensor()

    def _swap_averages(self) -> None:
        super()._swap_averages()
        self._reshard()  # After a forward without a backward the root module stays gathered, with the old values.

    def _reshard(self) -> None:
        for module in self._units():
            module.reshard()

    def _set_reshards(self, reshards: bool) -> None:
        """Say whether each unit gives its gathered parameters up after a forward and a backward."""
        root, *others = self._units()
        root.set_reshard_after_backward(reshards, recurse=False)
        for module in others:
            module.set_reshard_after_forward(reshards, recurse=False)
            module.set_reshard_after_backward(reshards, recurse=False)

    def _units(self) -> list[FSDPModule]:
        return [module for module in self.predictor.modules() if isinstance(module, FSDPModule)]

    def _piece(self, name: str, value: Tensor) -> Piece:
        assert isinstance(value, DTensor), "fully_shard made it one"
        coordinate = value.device_mesh.get_coordinate()
        assert coordinate is not None, "every rank is in the mesh"
        replica, rank = (0, *coordinate)[-2:]
        num_replicas, num_ranks = (1, *value.device_mesh.shape)[-2:]
        num_rows, *row = value.shape
        # Every rank has as many rows as the first one, until there are none left.
        start = min(rank * -(-num_rows // num_ranks), num_rows) * math.prod(row)
        # Replicas hold the same shard: each saves its part of it.
        part = piece_of(name, value.to_local(), replica, num_replicas)
        return Piece(name, value.shape, start + part.start, part.values)

    def _shard(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        assert isinstance(parameter, DTensor), "fully_shard made it one"
        if value.shape != parameter.shape:
            return value  # Adam's count of steps, one number for the whole parameter.
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor."""
    assert isinstance(tensor, DTensor), "fully_shard made it one"
    return tensor.to_local().detach()
