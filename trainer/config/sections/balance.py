"""How the tasks are weighted."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainer.config.section import OnlyWith, Section
from trainer.config.sections.limits import MAX_RATE, Steps


class AdaptiveConfig(Section):
    """Find α more often while it changes fast."""

    gap: float = Field(gt=0, le=MAX_RATE, examples=[0.04])
    """Staleness that halves the number of steps between two Gram matrices; below it, the number doubles, up to
    `every_steps`. Staleness is the duality gap of the held α on the new Gram matrix, as a fraction of the squared norm
    of the gradient that it combines: with 0.04, that gradient is within 20 % of its length of the shortest one."""


class BalanceConfig(Section):
    """How the task weights α are found in each step."""

    weighting: str = "min_norm"
    """min_norm: MGDA-UB, the exact min-norm point. uniform: 1/T. fixed: the weights below. Rules of other papers, which
    docs/balance.md describes: nash, fairgrad, imtl_g, config, aligned, cagrad, upgrad, pcgrad, gradvac, tension,
    gradnorm, uncertainty, dwa, stch, si, gls, uw_so, db_mtl, ntkmtl, famo (one more forward a step), go4align, random.
    Or a dotted path: a rule of TorchJD that needs only the Gram matrix, such as torchjd.aggregation.DualProjWeighting,
    whose weights need not sum to 1; or your own."""
    space: Literal["representation", "parameters"] = "representation"
    """representation: MGDA-UB, one backward. parameters: MGDA itself, one backward per task; each process keeps its
    shard of every task's gradient."""
    groups: dict[str, list[str]] | None = None
    """Tasks that share one α, by names or patterns of tasks: {faces: [age, smile*], street: [seg]}. The rule sees the
    mean gradient and the mean loss of each group, and the tasks of a group share its α equally. A task that is in none
    is a group of its own. In the parameter space a step then takes one backward per group. null: in the parameter
    space with `data.sources`, the tasks of a source are a group, and those of several sources one more; otherwise each
    task is a group, as with {}."""
    every_steps: Steps = 1
    """Steps between two Gram matrices. α is found from each and held in between; it is found sooner for a task that has
    labels now and had none when it was last found. metrics.jsonl has the staleness of α at each renewal. In the
    parameter space, a step that holds α costs what a plain step does. A rule that learns does so at each renewal."""
    adaptive: Annotated[AdaptiveConfig | None, OnlyWith("weighting", "min_norm")] = None
    """When to find α sooner than after `every_steps`. null: never."""
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

    @property
    def words(self) -> str:
        """Return the rule as people tell rules apart: min_norm (loss+)."""
        return self.weighting if self.normalise == "none" else f"{self.weighting} ({self.normalise})"

    @model_validator(mode="after")
    def _adaptive_measures_the_min_norm_point(self) -> Self:
        if self.adaptive is None:
            return self
        if self.every_steps == 1:
            raise ValueError("adaptive has no effect with every_steps: 1. Type balance.every_steps=10, say")
        if self.groups and self.space == "representation":
            raise ValueError(
                "adaptive measures the distance from the min-norm point of all tasks, and groups have another in the "
                "representation space. Type balance.space=parameters, or leave out one of them"
            )
        if self.normalise != "none" or self.preference is not None:
            raise ValueError(
                "adaptive measures the distance from the min-norm point, which normalise and preference move away "
                "from. Leave out one of them"
            )
        return self

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
