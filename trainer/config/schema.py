"""One run's configuration: typed, frozen, strict. config_file.py reads it and words the errors.

A configuration is code: a dotted path in it runs what it names. The upper bounds here are absolute; what this machine
can carry is checked when a run starts on it (machine.py), since a configuration may be meant for another one.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_STEPS = 99_999_999
"""A checkpoint's folder has eight digits."""
MAX_RATE = 1e6
"""Of learning rates, decays and factors: far beyond what trains, and far from where float32 ends."""
MAX_SECONDS = 30 * 24 * 3600

Steps = Annotated[int, Field(gt=0, le=MAX_STEPS)]
WandbName = Annotated[str, Field(pattern=r"^[^/\\#?%:]+$", max_length=200)]
"""Without the characters that Weights & Biases refuses in the names of projects."""


class Section(BaseModel):
    """A part of the configuration. Each field's documentation stands under it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class AugmentConfig(Section):
    """Random changes of the training images, drawn from seed, epoch and position alone. Nothing is on by default."""

    flip: bool = False
    """Mirror half of the images left to right; maps of classes with them."""
    crop_padding: int = Field(0, ge=0)
    """Move images by up to so many pixels up, down, left and right; black comes in, and in dense targets "no label"."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Scale all pixels by a factor from 1 - x to 1 + x."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Scale the distance to the image's mean grey value by a factor from 1 - x to 1 + x."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Scale the distance to each pixel's own grey value by a factor from 1 - x to 1 + x."""


class CacheConfig(Section):
    """The copies of remote data on this machine's disk, shared by all its processes and runs."""

    dir: Path = Path("~/.cache/paretrain")
    """On a disk of the machine's own, where it has one."""
    max_gib: float = Field(100.0, gt=0, le=2**30)
    """Upper bound of all copies together. The shards that nobody has opened for longest are removed first; files that
    are not of a copy do not count, and are never removed. Data that does not fit is fetched while it is trained on; a
    disk that holds little needs fewer `shuffle_samples`."""

    @property
    def max_bytes(self) -> int:
        """The bound in bytes."""
        return int(self.max_gib * 2**30)


class DataConfig(Section):
    """Where the samples come from."""

    path: str = Field(min_length=1)
    """Folder of WebDataset shards with a manifest.json, as `paretrain data` writes it; or its address: http(s)://, s3://.
    What lies there is fetched into the cache."""
    cache: CacheConfig = CacheConfig()
    tasks: tuple[str, ...] | None = None
    """The tasks to train, of those in the manifest. null: all of them."""
    workers: int = Field(0, ge=0, le=1024)
    """Data worker processes a rank. 0: decode in the training process; remote data in one worker all the same, so that
    the training process can tell of a slow server. Does not change what is trained on."""
    verify: Literal["checksum", "size"] = "checksum"
    """What is compared with the manifest before step 1: every shard's SHA-256, or only its size in bytes."""
    augment: AugmentConfig = AugmentConfig()
    shuffle_samples: int = Field(2**22, gt=0, le=2**40)
    """Samples that are shuffled together, in whole shards; a split of fewer is permuted as a whole. Fewer than the
    default is for remote shards: those of two such groups and of the test split have to fit the cache together."""
    max_bad_fraction: float = Field(0.001, ge=0, le=1)
    """Of the train samples: how many may be unusable in an epoch before the run stops. They count for nothing."""


class EncoderConfig(Section):
    """The shared encoder."""

    name: str
    """lenet, mlp, resnet18, resnet34, resnet50, vit, transformers (any of its vision models, from a configuration or a
    local folder), or the dotted path of your own: called with (input_shape, **options), has an attribute `width`, the
    length of z; and `stride`, pixels a cell, where z is a map."""
    options: dict[str, Any] = {}
    """Keyword arguments of the encoder."""


class HeadConfig(Section):
    """The head that each task gets."""

    name: str = "linear"
    """For tasks with one target a sample: linear, mlp. For those with a target a pixel: upsampling (two convolutions),
    pyramid (PSPNet's). Where both kinds stand beside each other, the name is that of the one, and the other gets linear
    or upsampling. Or the dotted path of your own: called with (width, outputs, **options)."""
    options: dict[str, Any] = {}
    """Keyword arguments of the head: of mlp hidden and dropout, of upsampling and pyramid hidden and kernel_size."""


class TowerConfig(HeadConfig):
    """A second, smaller head a task while training: Small Towers (Wang et al. 2020, arXiv 2008.05808)."""

    weight: float = Field(1.0, gt=0, le=MAX_RATE)
    """What the tower's loss counts for in its task's loss; 0.5 to 3 in the authors' code, whose towers are linear."""


class ModelConfig(Section):
    """One encoder, one head a task."""

    encoder: EncoderConfig
    head: HeadConfig = HeadConfig()
    checkpoint_activations: bool = False
    """true: the encoder's blocks keep their inputs alone and are computed once more in the backward: a quarter of the
    memory or less, for 10 to 70 % more time. The numbers stay the same, bit for bit."""
    tower: TowerConfig | None = None
    """null: no towers. {}: linear ones. Training losses then hold the towers' too; evaluation asks the heads alone."""
    compile: bool = False
    """true: encoder and heads by torch.compile, which needs a C++ compiler; the first step then takes a minute or more.
    The numbers change within their rounding. Under parallel.strategy=single and ddp."""


class BalanceConfig(Section):
    """How the task weights α are found in each step."""

    weighting: str = "min_norm"
    """min_norm: MGDA-UB, the exact min-norm point. uniform: 1/T. fixed: the weights below. random: RLW. uncertainty:
    Kendall 2018. gradnorm: Chen 2018. dwa: Liu 2019. tension: CDTT. Or a dotted path: a rule of TorchJD that needs the
    Gram matrix alone, such as torchjd.aggregation.UPGradWeighting, whose weights need not sum to 1; or your own."""
    space: Literal["representation", "parameters"] = "representation"
    """representation: MGDA-UB, one backward. parameters: MGDA itself, one backward a task, to compare with."""
    monitor_every_steps: Steps | None = None
    """Steps between looks at the parameter-space gradients of the tasks: how much the worst task falls, and how many
    ascend. Each costs one more forward and one backward a task. null: never."""
    options: dict[str, Any] = {}
    """Keyword arguments of the rule, such as {learning_rate: 0.01} for `uncertainty`."""
    weights: dict[str, float] | None = None
    """For `fixed`: a weight >= 0 for each task; they sum to 1. A task of weight 0 trains its head only."""
    preference: dict[str, Annotated[float, Field(ge=1 / MAX_RATE, le=MAX_RATE)]] | None = None
    """For `min_norm`: relative importance of each task. Steers to the point of the Pareto front where preference times
    loss is the same for all tasks: {left: 2, right: 1} asks for a loss of `left` half as large as that of `right`."""
    normalise: Literal["none", "l2", "loss", "loss+"] = "none"
    """Apply the rule to gradients divided by their norm (l2), their loss, or both (loss+); α is rescaled to fit the
    gradients as they are."""
    on_nonfinite: Literal["stop", "skip_step", "drop_task"] = "stop"
    """A task's loss or gradient that is NaN or infinite, on any process. stop: end the run; the last checkpoint stands.
    skip_step: nothing changes by this batch, BatchNorm's running statistics included. drop_task: the step goes on
    without the broken tasks, whose own heads get no gradient, and without new running statistics; it stops where no
    other task is left. What was not finite past the representation, in the encoder, is skipped by both."""
    reference: bool = False
    """true: do not rescale α after `normalise`, as the code published with MGDA-UB does. For comparison only."""

    @model_validator(mode="after")
    def _weights_belong_to_fixed(self) -> Self:
        if (self.weighting == "fixed") != (self.weights is not None):
            raise ValueError(
                f"weighting '{self.weighting}' with weights {self.weights}: 'fixed' and weights go together"
            )
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.preference is not None and self.weighting != "min_norm":
            raise ValueError(f"preference has no effect with weighting '{self.weighting}': it belongs to min_norm")
        if self.on_nonfinite == "drop_task" and self.space == "parameters":
            raise ValueError(
                "on_nonfinite: drop_task needs space: representation. In the space of the parameters NaN of one task "
                "reaches the gradients of all; type balance.on_nonfinite=skip_step"
            )
        if self.reference and self.normalise == "none":
            raise ValueError("reference: true has no effect with normalise: none; type balance.normalise=l2, say")
        return self


class OptimizerConfig(Section):
    """The optimizer and its learning rate at each step."""

    name: Literal["sgd", "adam", "adamw"]
    learning_rate: float = Field(gt=0, le=MAX_RATE)
    """The peak; the schedule multiplies it."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """For sgd."""
    weight_decay: float = Field(0.0, ge=0, le=MAX_RATE)
    schedule: Literal["constant", "step", "cosine"] = "constant"
    """step: times `decay_factor` every `decay_every_steps`. cosine: down to 0 at the last step."""
    decay_every_steps: Steps | None = None
    decay_factor: float | None = Field(None, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0, le=MAX_STEPS)
    """Steps of linear growth from 0 to the peak."""
    clip_norm: float | None = Field(None, gt=0, le=1e30)
    """Upper bound of the gradient's norm over all parameters. null: no clipping."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """0.999, say: keep an exponential moving average of the parameters, which evaluations and `paretrain export` take
    in their place. BatchNorm's running statistics remain those of the trained parameters. null: no average."""

    @model_validator(mode="after")
    def _options_belong_together(self) -> Self:
        decay = (self.decay_every_steps, self.decay_factor)
        if (self.schedule == "step") != all(decay) or any(decay) != all(decay):
            raise ValueError(
                f"schedule '{self.schedule}' with decay_every_steps={decay[0]} and decay_factor={decay[1]}: "
                "'step' needs both, the others neither"
            )
        if self.momentum and self.name != "sgd":
            raise ValueError(f"momentum={self.momentum} has no effect with '{self.name}': it belongs to sgd")
        return self


class AccumulationConfig(Section):
    """The micro-batches that a process works on one after another in a step, in the memory of one of them."""

    steps: int = Field(1, gt=0, le=2**16)
    """Micro-batches a step; parallel.processes times it divides global_batch. BatchNorm sees one at a time."""
    alpha: Literal["window", "micro"] = "window"
    """window: the exact α of the whole step, as if it were one batch, for one more forward. micro: an α for each
    micro-batch, and the mean of their gradients, which is another method: a rule that learns does so `steps` times."""

    @model_validator(mode="after")
    def _alpha_belongs_to_several(self) -> Self:
        if self.steps == 1 and self.alpha == "micro":
            raise ValueError("alpha: micro has no effect with steps: 1. Type train.accumulation.steps=4, say")
        return self


class TrainConfig(Section):
    """How long, and on how much at a time."""

    steps: Steps
    """Optimizer steps. `paretrain check` prints the number of steps an epoch."""
    global_batch: int = Field(gt=0, le=2**30)
    """Samples a step over all processes; the number of processes must divide it."""
    accumulation: AccumulationConfig = AccumulationConfig()
    log_every_steps: Steps = 10
    eval_every_steps: Steps
    """Steps between evaluations on the test split. The last step is always evaluated."""
    max_hours: float | None = Field(None, gt=0, le=10_000)
    """A start of the run that has lasted so long saves and ends; the same command goes on. What would end it otherwise
    should leave it time for one more step and for saving. null: it trains to its last step."""


class CheckpointConfig(Section):
    """What is kept, to be resumed from."""

    every_steps: Steps
    """Steps between checkpoints. The last step is always saved. Each process writes its share while the training goes
    on: a step waits for the copy in the host's memory alone."""
    keep: int = Field(2, gt=0, le=MAX_STEPS)
    """Checkpoints kept; older ones are removed once a newer one is complete."""


class OffloadConfig(Section):
    """What DeepSpeed keeps outside of a GPU's memory: ZeRO-Offload (Ren et al. 2021, arXiv 2101.06840), and to a disk
    ZeRO-Infinity (Rajbhandari et al. 2021, arXiv 2104.07857). The numbers stay the same within their rounding."""

    optimizer: Literal["none", "cpu", "nvme"] = "none"
    """The optimizer's state and its step. cpu: in the host's memory, under zero1, zero2 and zero3. nvme: the state on a
    disk, under zero3."""
    parameters: Literal["none", "cpu", "nvme"] = "none"
    """This process's share of the parameters, while they do not run: under zero3, where the optimizer's state, which is
    larger, has gone before."""
    nvme_dir: Path | None = None
    """For nvme: a folder on a disk of the machine's own. What lies there is worth nothing after the run."""

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


class ParallelConfig(Section):
    """The processes that must run. Anything else at start is an error, never a fallback."""

    processes: int = Field(1, gt=0, le=2**20)
    """Processes over all machines."""
    strategy: Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"] = "ddp"
    """How the model is spread over the processes; α and the parameters come out the same. single: one process. ddp: all
    of it on each. fsdp2: parameters, gradients and optimizer state in shards. zero1, zero2, zero3: DeepSpeed, with the
    optimizer state in shards, then the gradients too, then the parameters. A run may go on under another one."""
    offload: OffloadConfig = OffloadConfig()
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the network's forward computes in, by autocast; fp16 scales the losses, and skips a step that overflows, so
    it needs a GPU. Parameters, their gradients, the optimizer, losses and α stay in float32 or better throughout. A run
    may go on in another precision."""
    threads: int = Field(1, gt=0, le=1024)
    """CPU threads a process computes with."""
    exchange_group: Literal["dedicated", "default", "gloo"] = "dedicated"
    """Over what the Gram matrix and α travel. dedicated: a process group of their own, so that they never wait in line
    behind gradients. default: the one of the gradients. gloo: over the CPUs, also where the gradients go over NCCL."""
    timeout_seconds: float = Field(600, gt=0, le=MAX_SECONDS)
    """How long a process waits for another one before it gives up: in the start, the first step, evaluations and
    checkpoints."""
    step_timeout_seconds: float = Field(120, gt=0, le=MAX_SECONDS)
    """The same in all other steps, where it is the shorter of the two."""

    @model_validator(mode="after")
    def _single_is_one_process(self) -> Self:
        if self.strategy == "single" and self.processes > 1:
            raise ValueError(f"strategy 'single' with processes={self.processes}: type parallel.strategy=ddp, say")
        return self

    @model_validator(mode="after")
    def _fp16_needs_a_gpu(self) -> Self:
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision 'fp16' needs device 'cuda': type parallel.precision=bf16, or fp32")
        return self

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        places = self.offload.optimizer, self.offload.parameters
        if places == ("none", "none"):
            return self
        able = ("zero3",) if "nvme" in places or self.offload.parameters != "none" else ("zero1", "zero2", "zero3")
        if self.strategy not in able:
            raise ValueError(
                f"offload of optimizer to '{places[0]}' and parameters to '{places[1]}' goes together with strategy "
                f"{' and '.join(able)} alone, found '{self.strategy}'. Type parallel.strategy=zero3"
            )
        if self.precision == "fp16":
            raise ValueError("offload does not go together with precision 'fp16': type parallel.precision=bf16")
        return self


class WandbConfig(Section):
    """Tracking in Weights & Biases. metrics.jsonl and report.html are always written."""

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online with a key, offline without; off: not at all."""
    project: WandbName = "paretrain"
    group: WandbName | None = None
    """The runs that wandb shows together; a sweep's are grouped by the name in its configuration."""


class Experiment(Section):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """The run's folder is `output`/`name`."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Decides the initial parameters, the order of the samples and dropout."""
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
        """Where everything that the run leaves stands."""
        return self.output / self.name

    @property
    def offload(self) -> OffloadConfig:
        """parallel.offload, with a folder on the disk that no other run writes to."""
        found = self.parallel.offload
        own = found.nvme_dir and found.nvme_dir / self.name
        return found.model_copy(update={"nvme_dir": own})

    @model_validator(mode="after")
    def _some_options_need_whole_gradients(self) -> Self:
        asked = {
            "balance.space=parameters": self.balance.space == "parameters",
            "balance.monitor_every_steps": self.balance.monitor_every_steps is not None,
            "balance.on_nonfinite=drop_task": self.balance.on_nonfinite == "drop_task",
        }
        if self.parallel.strategy not in ("single", "ddp") and any(asked.values()):
            names = ", ".join(name for name, is_set in asked.items() if is_set)
            raise ValueError(
                f"{names}: needs every parameter's whole gradient, which parallel.strategy={self.parallel.strategy} "
                "cuts in shards. Type parallel.strategy=ddp, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _compile_needs_whole_parameters(self) -> Self:
        if self.model.compile and self.parallel.strategy not in ("single", "ddp"):
            raise ValueError(
                f"model.compile: true goes together with parallel.strategy=single and ddp alone, found "
                f"{self.parallel.strategy}. Type parallel.strategy=ddp, or model.compile=false"
            )
        return self

    @model_validator(mode="after")
    def _some_options_need_one_plain_backward(self) -> Self:
        asked = {
            "balance.space=parameters": self.balance.space == "parameters",
            "balance.monitor_every_steps": self.balance.monitor_every_steps is not None,
        }
        refused = {
            f"train.accumulation.steps={self.train.accumulation.steps}": self.train.accumulation.steps > 1,
            "parallel.precision=fp16": self.parallel.precision == "fp16",
        }
        if any(asked.values()) and any(refused.values()):
            names, others = (", ".join(name for name, is_set in found.items() if is_set) for found in (asked, refused))
            raise ValueError(f"{names}: does not go together with {others}. Leave one of them out")
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
