"""The processes of a run, and what each of them holds."""

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.config.section import Section
from trainer.config.sections.limits import MAX_SECONDS
from trainer.config.strategies import STRATEGIES, StrategyName

Place = Literal["none", "cpu", "nvme"]


class OffloadConfig(Section):
    """What DeepSpeed keeps outside of GPU memory: ZeRO-Offload (Ren et al. 2021, arXiv 2101.06840), and on a disk
    ZeRO-Infinity (Rajbhandari et al. 2021, arXiv 2104.07857). Results are the same within rounding."""

    optimizer: Place = "none"
    """Optimizer state and step. cpu: in host memory, under zero1, zero2 and zero3. nvme: the state on a disk, under
    zero3."""
    parameters: Place = "none"
    """This process's shard of the parameters while they are not in use, under zero3. Needs the optimizer, which is
    larger, offloaded too."""
    nvme_dir: Path | None = None
    """For nvme: a folder on a local disk. Each run uses a folder of its own name there, which is worthless after the
    run."""

    @model_validator(mode="after")
    def _places_belong_together(self) -> Self:
        if self.parameters != "none" and self.optimizer == "none":
            raise ValueError(
                f"parameters '{self.parameters}' with optimizer 'none': the optimizer's state is larger and is needed "
                "less often. Type parallel.offload.optimizer=cpu as well"
            )
        if ("nvme" in (self.optimizer, self.parameters)) != (self.nvme_dir is not None):
            raise ValueError(
                f"nvme_dir={self.nvme_dir} with optimizer '{self.optimizer}' and parameters '{self.parameters}': nvme "
                "and a folder go together. Type parallel.offload.nvme_dir=/local/scratch, say"
            )
        return self

    def of_run(self, name: str) -> "OffloadConfig":
        """Return these settings with the run's own folder below `nvme_dir`, so that no two runs share one."""
        return self.model_copy(update={"nvme_dir": self.nvme_dir and self.nvme_dir / name})


class ParallelConfig(Section):
    """The processes of the run. If others are started, the run ends with an error; there is no fallback."""

    processes: int = Field(1, gt=0, le=2**20)
    """Number of processes over all machines."""
    strategy: StrategyName = "ddp"
    """How the model is distributed; α and the parameters come out the same. single: one process. ddp: a copy per
    process. fsdp2: parameters, gradients and optimizer state in shards. zero1, zero2, zero3: DeepSpeed, with the
    optimizer state in shards, then also the gradients, then also the parameters. A run may resume under another
    strategy."""
    shard_processes: int | None = Field(None, gt=0, le=2**20)
    """Processes that hold the shards of one copy of the model: those of a machine, say, whose links are fast. It must
    divide parallel.processes. fsdp2: such groups hold a copy each, and only gradients travel between them (HSDP).
    zero3: each group has a second copy of the parameters, from which the backward gathers (hpZ of ZeRO++). null: all
    processes hold one copy."""
    gather: Literal["fp32", "bf16"] = "fp32"
    """Precision in which shards of the parameters are gathered, under fsdp2. bf16 halves these messages and the memory
    of what was gathered; needs precision bf16. Norms then see rounded weights; shards, gradients' sums and the
    optimizer stay in float32."""
    offload: OffloadConfig = OffloadConfig()
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model is trained."""
    peak_tflops: float | None = Field(None, gt=0, le=1e9)
    """Peak of one process's device in TFLOP/s; mfu_percent is the share of it that is used. null: that of a known GPU
    in bf16 or fp16; mfu_percent is not logged for other devices."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the network's forward, by autocast. fp16 scales the losses and skips a step that overflows; it needs
    a GPU. Parameters, gradients, the optimizer, losses and α stay in float32 or better. A run may resume in another
    precision."""
    threads: int = Field(1, gt=0, le=1024)
    """CPU threads per process."""
    bind_cores: bool = False
    """Bind each process, with its data workers, to its share of the host's cores, in order: with as many GPUs as
    processes, usually those near its GPU."""
    exchange_group: Literal["dedicated", "default", "gloo"] = "dedicated"
    """Process group that carries the Gram matrix and α. dedicated: a group of its own, so that they never queue behind
    gradients. default: the group of the gradients. gloo: over the CPUs, even where gradients use NCCL."""
    timeout_seconds: float = Field(600, gt=0, le=MAX_SECONDS)
    """How long a process waits for another during the start, the first step, evaluations and checkpoints."""
    step_timeout_seconds: float = Field(120, gt=0, le=MAX_SECONDS)
    """How long a process waits for another in all other steps, if this is the shorter of the two."""

    @model_validator(mode="after")
    def _single_is_one_process(self) -> Self:
        if self.processes > 1 and not STRATEGIES[self.strategy].several_processes:
            raise ValueError(f"strategy '{self.strategy}' with processes={self.processes}: type parallel.strategy=ddp")
        return self

    @model_validator(mode="after")
    def _groups_hold_the_shards(self) -> Self:
        if self.shard_processes is None:
            return self
        if not STRATEGIES[self.strategy].replicates_shards:
            able = [name for name, strategy in STRATEGIES.items() if strategy.replicates_shards]
            raise ValueError(
                f"shard_processes={self.shard_processes} needs strategy {' or '.join(able)}, found '{self.strategy}'. "
                f"Type parallel.strategy={able[0]}, or parallel.shard_processes=null"
            )
        if self.strategy == "zero3" and self.shard_processes == 1:
            raise ValueError(
                "shard_processes=1 under zero3: each process would hold all parameters, which DeepSpeed cannot do. "
                "Type the number of processes of a machine, or parallel.shard_processes=null"
            )
        if self.strategy == "zero3" and self.offload.parameters != "none":
            raise ValueError(
                f"shard_processes={self.shard_processes} with offload.parameters '{self.offload.parameters}': the "
                "second copy of the parameters needs the memory that the offload saves. "
                "Type parallel.shard_processes=null"
            )
        if self.processes % self.shard_processes:
            nearest = math.gcd(self.processes, self.shard_processes)
            raise ValueError(
                f"processes={self.processes} cannot be divided into groups of shard_processes="
                f"{self.shard_processes}: type parallel.shard_processes={nearest}"
            )
        return self

    @model_validator(mode="after")
    def _strategy_gathers(self) -> Self:
        if self.gather not in STRATEGIES[self.strategy].gathers:
            able = [name for name, strategy in STRATEGIES.items() if self.gather in strategy.gathers]
            raise ValueError(
                f"gather '{self.gather}' needs strategy {' or '.join(able)}, found '{self.strategy}'. "
                f"Type parallel.strategy={able[0]}, or parallel.gather=fp32"
            )
        if self.gather != "fp32" and self.precision != self.gather:
            raise ValueError(
                f"gather '{self.gather}' needs precision '{self.gather}', found '{self.precision}': the network would "
                f"compute with rounded parameters all the same. Type parallel.precision={self.gather}"
            )
        return self

    @model_validator(mode="after")
    def _fp16_needs_a_gpu(self) -> Self:
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision 'fp16' needs device 'cuda': type parallel.precision=bf16, or fp32")
        return self

    @model_validator(mode="after")
    def _strategy_can_offload(self) -> Self:
        places = {"optimizer": self.offload.optimizer, "parameters": self.offload.parameters}
        asked = {what: place for what, place in places.items() if place != "none"}
        for what, place in asked.items():
            if not STRATEGIES[self.strategy].can_offload(what, place):
                able = [name for name, strategy in STRATEGIES.items() if strategy.can_offload(what, place)]
                raise ValueError(
                    f"offload of {what} to '{place}' needs strategy {' or '.join(able)}, found '{self.strategy}'. "
                    "Type parallel.strategy=zero3"
                )
        if asked and self.precision == "fp16":
            raise ValueError("offload cannot be used with precision 'fp16': type parallel.precision=bf16")
        return self
