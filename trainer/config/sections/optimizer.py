"""The optimizer and its schedule."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.section import OnlyWith, Section
from trainer.config.sections.limits import MAX_RATE, MAX_STEPS, Steps


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
