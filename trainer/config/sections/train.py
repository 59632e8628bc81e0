"""The length of a run, its batches and its checkpoints."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.config.section import Section
from trainer.config.sections.limits import ADDRESS, MAX_STEPS, Steps


class AccumulationConfig(Section):
    """Gradient accumulation: a step processes several micro-batches, in the memory of one."""

    steps: int = Field(1, gt=0, le=2**16)
    """Micro-batches per step. Times parallel.processes, it divides global_batch. BatchNorm sees one at a time."""
    alpha: Literal["window", "micro"] = "window"
    """window: the exact α of the whole step, as if it were one batch, for one more forward. micro: one α per
    micro-batch, and the mean of their gradients; this is another method, and a rule that learns does so `steps` times
    per step."""

    @model_validator(mode="after")
    def _micro_needs_several_steps(self) -> Self:
        if self.steps == 1 and self.alpha == "micro":
            raise ValueError("alpha: micro has no effect with steps: 1. Type train.accumulation.steps=4, say")
        return self


class SelectConfig(Section):
    """Which evaluation is the best one. Its checkpoint is kept beside the last ones."""

    metric: str = "error"
    """error: what the task's unit counts; loss; or a metric such as accuracy, auroc, rmse; tasks that do not have it do
    not count. Tasks of different units count by their share of their own first evaluation."""
    mode: Literal["min", "max"] | None = None
    """min: lower is better; max: higher is. null: as the metric is meant."""
    over: str = "mean"
    """mean: over all tasks; worst: the worst task; or the name of one task, which alone counts."""


class ProfileConfig(Section):
    """Steps of which torch's profiler leaves traces in RUN/profile."""

    start: Steps = Field(examples=[20])
    """The first of them; the first step of a run is 1. A resumed run that starts after it leaves no trace."""
    steps: int = Field(3, gt=0, le=1000)
    """Number of steps."""
    ranks: tuple[int, ...] = Field((0,), min_length=1)
    """Ranks that leave a trace each."""


class TrainConfig(Section):
    """Length of the run, and size of a batch."""

    steps: Steps = Field(examples=[1000])
    """Optimizer steps. `paretrain check` prints the number of steps per epoch."""
    global_batch: int = Field(gt=0, le=2**30, examples=[256])
    """Samples per step over all processes. The number of processes must divide it."""
    accumulation: AccumulationConfig = AccumulationConfig()
    log_every_steps: Steps = 10
    """Steps between lines of the log and records of metrics.jsonl."""
    eval_every_steps: Steps = Field(examples=[100])
    """Steps between evaluations. The last step is always evaluated."""
    eval_split: str | None = Field(None, min_length=1)
    """Split that these evaluations are made on. null: val where the data has one, else test. With another split than
    test, the test split is evaluated once, at the end of the run."""
    select: SelectConfig | None = None
    """Keep the checkpoint of the best evaluation: `--step best` names it in `paretrain eval` and `export`, and the test
    split is evaluated with it. {}: the lowest mean error. null: the last step counts."""
    patience: Steps | None = None
    """End the run when this many evaluations in a row were no better than the best one before them. Needs `select`.
    null: all steps are made."""
    profile: ProfileConfig | None = None
    """null: no traces. {start: 20}: of steps 20 to 22 of rank 0. The steps are slower meanwhile; results are the
    same."""
    memory_snapshot: bool = False
    """true: record allocations of GPU memory. A process that runs out of it leaves RUN/profile/memory.rank_N.pickle for
    https://pytorch.org/memory_viz. Needs parallel.device=cuda."""
    collect_garbage_every_steps: Steps | None = None
    """Steps between two runs of Python's garbage collector, which then runs in the same steps on all processes, and at
    no other time. null: each process runs it when Python decides, and the others wait for it in their next step."""
    start_from: Path | None = None
    """Folder of another run, whose checkpoint a new run starts from: the one that its `select` has chosen, else its
    last. Each task takes the head of the task of that name. `paretrain train CONFIG --from RUN name=NEW` is short for
    it. null: from the initial parameters."""
    start_with: Literal["weights", "everything"] = "weights"
    """weights: take its parameters; their averages, where it keeps any. everything: the optimizer's state, the rule's,
    the place in the data and the number of steps too, as if that run went on."""
    max_hours: float | None = Field(None, gt=0, le=10_000)
    """Hours after which the run saves a checkpoint and ends; the same command continues it. Leave time for one more
    step and a checkpoint before any outer limit. null: no limit."""

    @model_validator(mode="after")
    def _patience_needs_a_choice(self) -> Self:
        if self.patience is not None and self.select is None:
            raise ValueError("patience needs to know which evaluation is better. Type train.select.metric=error")
        return self


class CheckpointConfig(Section):
    """Checkpoints to resume from."""

    every_steps: Steps = Field(examples=[100])
    """Steps between checkpoints. The last step is always saved. Each process writes its part in the background; a step
    waits only for the copy into host memory."""
    keep: int = Field(2, gt=0, le=MAX_STEPS)
    """Number of checkpoints to keep, beside the one that `train.select` has chosen. An older one is removed once a
    newer one is complete."""
    upload: str | None = Field(None, pattern=ADDRESS)
    """Copy each published checkpoint to a folder of the run's name below this address, of any file system of fsspec:
    s3://bucket/runs. A run that has no checkpoint here goes on from the newest one there. `keep` counts there too."""
