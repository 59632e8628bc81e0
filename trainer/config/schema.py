"""The configuration of one run: typed, frozen, strict. file.py reads it and words the errors.

A configuration is code: a dotted path in it runs what it names. The upper bounds here hold on any machine; what this
machine can carry is checked when a run starts on it (machine.py), since a configuration may be meant for another one.

docs/configuration.md and docs/config.schema.json are made from this file: python -m trainer.config.write_schema. The
file is longer than others so that every key of a configuration is found in one place.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainer.config.section import OnlyWith, Section
from trainer.config.strategies import STRATEGIES, StrategyName

MAX_STEPS = 99_999_999
"""The folder of a checkpoint has eight digits."""
MAX_RATE = 1e6
"""Bound of learning rates, decays and factors: far beyond what trains, and far from where float32 ends."""
MAX_SECONDS = 30 * 24 * 3600

Steps = Annotated[int, Field(gt=0, le=MAX_STEPS)]
WandbName = Annotated[str, Field(pattern=r"^[^/\\#?%:]+$", max_length=200)]
"""Without the characters that Weights & Biases refuses in the names of projects."""
Place = Literal["none", "cpu", "nvme"]


class AugmentConfig(Section):
    """Random changes of the training images, drawn from the seed, the epoch and the position alone. Off by default."""

    flip: bool = False
    """Mirror half of the images left to right, and their dense targets with them."""
    crop_padding: int = Field(0, ge=0)
    """Shift images by up to this many pixels in each direction. Pixels that enter are black; in dense targets they
    have no label."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Multiply all pixels by a factor from 1 - x to 1 + x."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Multiply each pixel's difference from the image's mean grey value by a factor from 1 - x to 1 + x."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Multiply each pixel's difference from its own grey value by a factor from 1 - x to 1 + x."""


class CacheConfig(Section):
    """Copies of remote data on this machine's disk, shared by all its processes and runs."""

    dir: Path = Path("~/.cache/paretrain")
    """Folder of the copies, best on a local disk."""
    max_gib: float = Field(100.0, gt=0, le=2**30)
    """Upper bound of all copies together, in GiB. The least recently used shards are removed first; files that are not
    copies neither count nor are removed. Data that does not fit is fetched while training; a small disk needs a
    smaller `data.shuffle_samples`."""

    @property
    def max_bytes(self) -> int:
        """Return the bound in bytes."""
        return int(self.max_gib * 2**30)


class DataConfig(Section):
    """The samples to train on."""

    path: str = Field(min_length=1)
    """Folder of WebDataset shards with a manifest.json, as `paretrain data` writes it, or its address (http(s)://,
    s3://). Remote data is fetched into the cache."""
    cache: CacheConfig = CacheConfig()
    tasks: tuple[str, ...] | None = None
    """Names of the tasks to train. null: all tasks of the manifest."""
    workers: int = Field(0, ge=0, le=1024)
    """Data worker processes per rank. 0: decode in the training process; remote data still takes one worker, so that
    the training process can report a slow server. The number does not change which samples a step trains on."""
    verify: Literal["checksum", "size"] = "checksum"
    """What is compared with the manifest before step 1: the SHA-256 of every shard, or only its size."""
    augment: AugmentConfig = AugmentConfig()
    shuffle_samples: int = Field(2**22, gt=0, le=2**40)
    """Number of samples that are shuffled together, in whole shards; a smaller split is permuted as a whole. Remote
    data may need fewer: two such groups and the test split must fit the cache together."""
    max_bad_fraction: float = Field(0.001, ge=0, le=1)
    """Fraction of the training samples that may be unreadable in an epoch before the run stops. Unreadable samples have
    no effect on the training."""


class EncoderConfig(Section):
    """The shared encoder."""

    name: str
    """lenet, mlp, resnet18, resnet34, resnet50, vit, transformers (a vision model of Hugging Face, from a configuration
    or a local folder), or the dotted path of your own: called with (input_shape, **options), with an attribute `width`,
    the length of z; and `stride`, the pixels per cell, where z is a map."""
    options: dict[str, Any] = Field({})
    """Keyword arguments of the encoder."""


class HeadConfig(Section):
    """The head that each task gets."""

    name: str = "linear"
    """For tasks with one target per sample: linear, mlp, or shared (linear heads of equal tasks, pulled towards one
    another). For tasks with one target per pixel: upsampling (two convolutions), pyramid (as in PSPNet). Where both
    kinds of tasks occur, the name applies to its own kind; the other kind gets linear or upsampling. Or the dotted path
    of your own: called with (width, outputs, **options)."""
    options: dict[str, Any] = Field({})
    """Keyword arguments of the head: hidden and dropout of mlp; common and own of shared; hidden and kernel_size of
    upsampling and pyramid."""


class TowerConfig(HeadConfig):
    """A second, smaller head per task, used in training only: Small Towers (Wang et al. 2020, arXiv 2008.05808)."""

    weight: float = Field(1.0, gt=0, le=MAX_RATE)
    """Factor of the tower's loss in its task's loss. The authors use linear towers and 0.5 to 3."""


class ModelConfig(Section):
    """One encoder, and one head per task."""

    encoder: EncoderConfig
    head: HeadConfig = HeadConfig()
    checkpoint_activations: bool = False
    """true: keep only the inputs of the encoder's blocks, and compute the blocks again in the backward. It takes a
    quarter of the memory or less, and 10 to 70 % more time. The results are the same bit for bit."""
    tower: TowerConfig | None = None
    """null: no towers. {}: linear towers. Training losses then include the towers; evaluations use the heads only."""
    compile: bool = False
    """true: compile the encoder and the heads with torch.compile, which needs a C++ compiler; the first step then takes
    a minute or more. Results change within rounding. Needs parallel.strategy single or ddp."""


class BalanceConfig(Section):
    """How the task weights α are found in each step."""

    weighting: str = "min_norm"
    """min_norm: MGDA-UB, the exact min-norm point. uniform: 1/T. fixed: the weights below. random: RLW. uncertainty:
    Kendall 2018. gradnorm: Chen 2018. dwa: Liu 2019. tension: CDTT. Or a dotted path: a rule of TorchJD that needs only
    the Gram matrix, such as torchjd.aggregation.UPGradWeighting, whose weights need not sum to 1; or your own."""
    space: Literal["representation", "parameters"] = "representation"
    """representation: MGDA-UB, one backward. parameters: MGDA itself, one backward per task, for comparison."""
    monitor_every_steps: Steps | None = None
    """Steps between measurements of the tasks' gradients in parameter space: the decrease of the worst task, and the
    number of tasks whose loss ascends. Each costs one more forward, and one backward per task. null: never."""
    options: dict[str, Any] = Field({})
    """Keyword arguments of the rule, such as {learning_rate: 0.01} for `uncertainty`."""
    weights: Annotated[dict[str, float] | None, OnlyWith("weighting", "fixed", required=True)] = None
    """A weight >= 0 for each task. They sum to 1. A task of weight 0 trains its head only."""
    preference: Annotated[
        dict[str, Annotated[float, Field(ge=1 / MAX_RATE, le=MAX_RATE)]] | None, OnlyWith("weighting", "min_norm")
    ] = None
    """Relative importance of each task. The run approaches the point of the Pareto front where preference times loss is
    the same for all tasks: {left: 2, right: 1} asks for a loss of `left` half as large as that of `right`."""
    normalise: Literal["none", "l2", "loss", "loss+"] = "none"
    """Apply the rule to gradients divided by their norm (l2), by their loss, or by both (loss+). α is rescaled to the
    original gradients."""
    on_nonfinite: Literal["stop", "skip_step", "drop_task"] = "stop"
    """What to do when the loss or gradient of a task is NaN or infinite on any process. stop: end the run; the last
    checkpoint remains. skip_step: the batch changes nothing, not even the running statistics of BatchNorm. drop_task:
    go on without the broken tasks, whose own heads get no gradient, and without new running statistics; stop if no task
    is left. Both skip a step whose gradients break inside the encoder."""
    reference: bool = False
    """true: do not rescale α after `normalise`, as the published code of MGDA-UB does. For comparison only."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.on_nonfinite == "drop_task" and self.space == "parameters":
            raise ValueError(
                "on_nonfinite: drop_task needs space: representation. In parameter space, NaN of one task reaches the "
                "gradients of all tasks. Type balance.on_nonfinite=skip_step"
            )
        if self.reference and self.normalise == "none":
            raise ValueError("reference: true has no effect with normalise: none. Type balance.normalise=l2, say")
        return self


class OptimizerConfig(Section):
    """The optimizer and its learning rate at each step."""

    name: Literal["sgd", "adam", "adamw"]
    """The optimizer of torch.optim."""
    learning_rate: float = Field(gt=0, le=MAX_RATE)
    """Peak learning rate; the schedule multiplies it."""
    momentum: Annotated[float, OnlyWith("name", "sgd")] = Field(0.0, ge=0, lt=1)
    """Momentum factor."""
    weight_decay: float = Field(0.0, ge=0, le=MAX_RATE)
    """Weight decay: decoupled for adamw, an L2 penalty for the others."""
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """step: multiply by `decay_factor` every `decay_every_steps`. cosine: decay to 0 at the last step."""
    decay_every_steps: Annotated[Steps | None, OnlyWith("schedule", "step", required=True)] = None
    """Steps between decays."""
    decay_factor: Annotated[float | None, OnlyWith("schedule", "step", required=True)] = Field(None, gt=0, le=1)
    """Factor of each decay."""
    warmup_steps: int = Field(0, ge=0, le=MAX_STEPS)
    """Steps of linear growth from 0 to the peak."""
    clip_norm: float | None = Field(None, gt=0, le=1e30)
    """Upper bound of the gradient norm over all parameters. null: no clipping."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the parameters, such as 0.999. Evaluations and `paretrain export` use
    the average instead of the trained parameters; BatchNorm keeps the running statistics of the latter. null: no
    average."""


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


class TrainConfig(Section):
    """Length of the run, and size of a batch."""

    steps: Steps
    """Optimizer steps. `paretrain check` prints the number of steps per epoch."""
    global_batch: int = Field(gt=0, le=2**30)
    """Samples per step over all processes. The number of processes must divide it."""
    accumulation: AccumulationConfig = AccumulationConfig()
    log_every_steps: Steps = 10
    """Steps between lines of the log and records of metrics.jsonl."""
    eval_every_steps: Steps
    """Steps between evaluations on the test split. The last step is always evaluated."""
    max_hours: float | None = Field(None, gt=0, le=10_000)
    """Hours after which the run saves a checkpoint and ends; the same command continues it. Leave time for one more
    step and a checkpoint before any outer limit. null: no limit."""


class CheckpointConfig(Section):
    """Checkpoints to resume from."""

    every_steps: Steps
    """Steps between checkpoints. The last step is always saved. Each process writes its part in the background; a step
    waits only for the copy into host memory."""
    keep: int = Field(2, gt=0, le=MAX_STEPS)
    """Number of checkpoints to keep. An older one is removed once a newer one is complete."""


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
    offload: OffloadConfig = OffloadConfig()
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model is trained."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the network's forward, by autocast. fp16 scales the losses and skips a step that overflows; it needs
    a GPU. Parameters, gradients, the optimizer, losses and α stay in float32 or better. A run may resume in another
    precision."""
    threads: int = Field(1, gt=0, le=1024)
    """CPU threads per process."""
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


class WandbConfig(Section):
    """Tracking in Weights & Biases. metrics.jsonl and report.html are always written."""

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online with a key, offline without. off: no tracking."""
    project: WandbName = "paretrain"
    """Name of the project."""
    group: WandbName | None = None
    """Runs that wandb shows together. The runs of a sweep are grouped by the name in its configuration."""


class Experiment(Section):
    """The configuration of one run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run. Its folder is `output`/`name`."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Decides the initial parameters, the order of the samples, and dropout."""
    output: Path = Path("runs")
    """Folder of all runs."""
    data: DataConfig
    model: ModelConfig
    balance: BalanceConfig = BalanceConfig()
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    parallel: ParallelConfig = ParallelConfig()
    wandb: WandbConfig = WandbConfig()

    @property
    def run_dir(self) -> Path:
        """Return the folder of everything that the run writes."""
        return self.output / self.name

    @model_validator(mode="after")
    def _strategy_has_whole_gradients(self) -> Self:
        asked = _chosen(
            {
                "balance.space=parameters": self.balance.space == "parameters",
                "balance.monitor_every_steps": self.balance.monitor_every_steps is not None,
                "balance.on_nonfinite=drop_task": self.balance.on_nonfinite == "drop_task",
            }
        )
        if asked and not STRATEGIES[self.parallel.strategy].whole_gradients:
            raise ValueError(
                f"{asked}: not available under parallel.strategy={self.parallel.strategy}, where no process holds "
                "whole gradients. Type parallel.strategy=ddp, or leave it out"
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
    def _parameter_space_needs_one_plain_backward(self) -> Self:
        asked = _chosen(
            {
                "balance.space=parameters": self.balance.space == "parameters",
                "balance.monitor_every_steps": self.balance.monitor_every_steps is not None,
            }
        )
        others = _chosen(
            {
                f"train.accumulation.steps={self.train.accumulation.steps}": self.train.accumulation.steps > 1,
                "parallel.precision=fp16": self.parallel.precision == "fp16",
            }
        )
        if asked and others:
            raise ValueError(f"{asked}: cannot be used with {others}. Leave one of them out")
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
