"""What each parallel.strategy can do: one table, read by the configuration, the engines and the memory estimate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

StrategyName = Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"]


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """The capabilities of one strategy.

    Attributes:
        shards: what each process holds only a shard of, among "optimizer", "gradients" and "parameters". Empty: every
            process holds everything.
        zero_stage: the ZeRO stage that DeepSpeed runs; None: another engine.
        several_processes: whether it runs on more than one process.
        whole_gradients: whether a backward leaves the whole gradient of every parameter in `.grad`, which dropping one
            task's gradients needs.
        compiles: whether it takes a network that torch.compile has compiled.
        replicates_shards: whether groups of processes can hold a copy of the model in shards each (HSDP, hpZ).
        gathers: the precisions in which it can gather shards of float32 parameters.
        offloads: what parallel.offload can move, and where to.
    """

    shards: tuple[str, ...] = ()
    zero_stage: int | None = None
    several_processes: bool = True
    whole_gradients: bool = False
    compiles: bool = False
    replicates_shards: bool = False
    gathers: tuple[str, ...] = ("fp32",)
    offloads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def can_offload(self, what: str, place: str) -> bool:
        """Return whether `what`, "optimizer" or "parameters", can be kept in `place`, "cpu" or "nvme"."""
        return place in self.offloads.get(what, ())


STRATEGIES: Mapping[StrategyName, Strategy] = {
    "single": Strategy(several_processes=False, whole_gradients=True, compiles=True),
    "ddp": Strategy(whole_gradients=True, compiles=True),
    "fsdp2": Strategy(
        shards=("optimizer", "gradients", "parameters"),
        compiles=True,
        replicates_shards=True,
        gathers=("fp32", "bf16"),
    ),
    "zero1": Strategy(zero_stage=1, shards=("optimizer",), offloads={"optimizer": ("cpu",)}),
    "zero2": Strategy(zero_stage=2, shards=("optimizer", "gradients"), offloads={"optimizer": ("cpu",)}),
    "zero3": Strategy(
        zero_stage=3,
        shards=("optimizer", "gradients", "parameters"),
        replicates_shards=True,
        offloads={"optimizer": ("cpu", "nvme"), "parameters": ("cpu", "nvme")},
    ),
}
