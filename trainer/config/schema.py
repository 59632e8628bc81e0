"""The configuration of one run: typed, frozen, strict. file.py reads it and words the errors.

The sections are in sections/, a file each; what several of them decide together is checked here. A configuration is
code: a dotted path in it runs what it names. The upper bounds hold on any machine; what this machine can carry is
checked when a run starts on it (machine.py), since a configuration may be meant for another one.

docs/configuration.md and docs/config.schema.json are made from it: python -m trainer.config.write_schema.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from trainer.config.section import Section
from trainer.config.sections.balance import BalanceConfig
from trainer.config.sections.data import DataConfig
from trainer.config.sections.limits import NAME
from trainer.config.sections.model import ModelConfig
from trainer.config.sections.optimizer import OptimizerConfig
from trainer.config.sections.parallel import ParallelConfig
from trainer.config.sections.tasks import TaskConfig
from trainer.config.sections.tracking import TrackConfig, WandbConfig
from trainer.config.sections.train import CheckpointConfig, TrainConfig
from trainer.config.strategies import STRATEGIES


class Experiment(Section):
    """The configuration of one run."""

    name: str = Field(pattern=NAME, max_length=200, examples=["digits"])
    """Name of the run. Its folder is `output`/`name`."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Decides the initial parameters, the order of the samples, and dropout."""
    output: Path = Path("runs")
    """Folder of all runs."""
    data: DataConfig
    model: ModelConfig
    tasks: dict[str, TaskConfig] = Field({})
    """Loss and metrics of some tasks: by a task's name, a pattern such as NR-*, or a kind: classification,
    regression, segmentation or dense_regression. The others have those of their kind."""
    balance: BalanceConfig = BalanceConfig()
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    parallel: ParallelConfig = ParallelConfig()
    wandb: WandbConfig = WandbConfig()
    track: TrackConfig = TrackConfig()

    @property
    def run_dir(self) -> Path:
        """Return the folder of everything that the run writes."""
        return self.output / self.name

    @model_validator(mode="after")
    def _dropped_tasks_need_whole_gradients(self) -> Self:
        if self.balance.on_nonfinite == "drop_task" and not STRATEGIES[self.parallel.strategy].whole_gradients:
            raise ValueError(
                f"balance.on_nonfinite=drop_task: not available under parallel.strategy={self.parallel.strategy}, "
                "where no process holds whole gradients. Type parallel.strategy=ddp, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _strategy_compiles(self) -> Self:
        if self.model.compile and not STRATEGIES[self.parallel.strategy].compiles:
            able = [name for name, strategy in STRATEGIES.items() if strategy.compiles]
            raise ValueError(
                f"model.compile: true needs parallel.strategy {' or '.join(able)}, found {self.parallel.strategy}. "
                "Type parallel.strategy=ddp, or model.compile=false"
            )
        return self

    @model_validator(mode="after")
    def _snapshots_are_of_a_gpu(self) -> Self:
        if self.train.memory_snapshot and self.parallel.device == "cpu":
            raise ValueError(
                "train.memory_snapshot: true records the memory of a GPU, and needs parallel.device 'cuda', found "
                "'cpu'. Type parallel.device=cuda, or train.memory_snapshot=false"
            )
        return self

    @model_validator(mode="after")
    def _strategy_keeps_matrices_whole(self) -> Self:
        if self.optimizer.name == "muon" and STRATEGIES[self.parallel.strategy].shards:
            raise ValueError(
                f"optimizer.name=muon needs whole matrices, which parallel.strategy={self.parallel.strategy} does not "
                "keep. Type parallel.strategy=ddp, or optimizer.name=adamw"
            )
        return self

    @model_validator(mode="after")
    def _parameter_space_needs_each_backwards_gradients(self) -> Self:
        asked = _chosen(
            {
                "balance.space=parameters": self.balance.space == "parameters",
                "balance.monitor_every_steps": self.balance.monitor_every_steps is not None,
            }
        )
        offload = self.parallel.offload
        others = _chosen(
            {
                "train.accumulation.alpha=micro": self.train.accumulation.alpha == "micro",
                "parallel.precision=fp16": self.parallel.precision == "fp16",
                # DeepSpeed then moves every backward's gradients to the host, where they are added up.
                f"parallel.offload.optimizer={offload.optimizer}": offload.optimizer != "none",
            }
        )
        if asked and others:
            raise ValueError(f"{asked}: cannot be used with {others}. Leave one of them out")
        return self

    @model_validator(mode="after")
    def _one_alpha_a_step_can_be_held(self) -> Self:
        if self.balance.every_steps > 1 and self.train.accumulation.alpha == "micro":
            raise ValueError(
                f"balance.every_steps={self.balance.every_steps} holds one α for whole steps, and "
                "train.accumulation.alpha=micro finds one for each micro-batch. Type train.accumulation.alpha=window"
            )
        return self

    @model_validator(mode="after")
    def _one_alpha_a_step_can_be_judged(self) -> Self:
        if self.balance.weighting == "famo" and self.train.accumulation.alpha == "micro":
            raise ValueError(
                "balance.weighting=famo learns from what one α has done to the losses, and "
                "train.accumulation.alpha=micro finds one for each micro-batch. Type train.accumulation.alpha=window"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_have_all_sources(self) -> Self:
        if self.data.sources and self.train.accumulation.alpha == "micro":
            raise ValueError(
                "train.accumulation.alpha=micro: a micro-batch may lack samples of some of data.sources, and so has no "
                "weights for all tasks. Type train.accumulation.alpha=window"
            )
        return self

    @model_validator(mode="after")
    def _profiled_ranks_exist(self) -> Self:
        ranks, processes = self.train.profile.ranks if self.train.profile else (), self.parallel.processes
        if absent := [rank for rank in ranks if not 0 <= rank < processes]:
            raise ValueError(
                f"train.profile.ranks: found {absent[0]}, and parallel.processes={processes} have the ranks 0 to "
                f"{processes - 1}. Type train.profile.ranks=[0]"
            )
        return self

    @model_validator(mode="after")
    def _processes_divide_the_batch(self) -> Self:
        batch, processes, steps = self.train.global_batch, self.parallel.processes, self.train.accumulation.steps
        if batch % (processes * steps):
            nearest = max(batch // (processes * steps), 1) * processes * steps
            micro_batches = f" and train.accumulation.steps={steps}" if steps > 1 else ""
            raise ValueError(
                f"train.global_batch={batch} cannot be divided among parallel.processes={processes}{micro_batches}: "
                f"type train.global_batch={nearest}"
            )
        return self


def _chosen(settings: dict[str, bool]) -> str:
    """Return the names of the settings that are on, for a message."""
    return ", ".join(name for name, is_on in settings.items() if is_on)
