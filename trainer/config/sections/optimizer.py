"""The optimizer and its schedule."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainer.config.section import OnlyWith, Section
from trainer.config.sections.limits import MAX_RATE, MAX_STEPS, Steps

NAMES = ("sgd", "adam", "adamw", "muon")
"""The names that are not the path of a user's own class."""
OWN_KEYS = {"lr": "learning_rate", "weight_decay": "weight_decay", "momentum": "momentum"}
"""Arguments of an optimizer that have a key of their own here."""
ENDS_WITH_THE_RUN = ("linear", "cosine", "polynomial", "one_cycle")
"""The schedules that depend on the last step."""


class ParameterGroup(Section):
    """Parameters with a learning rate or a weight decay of their own."""

    match: str
    """Pattern of their names, such as encoder.* or *.positions_ND. The first group that matches a name decides."""
    learning_rate_scale: float = Field(1.0, gt=0, le=MAX_RATE)
    """Factor of the learning rate."""
    weight_decay: float | None = Field(None, ge=0, le=MAX_RATE)
    """Their weight decay. null: that of the optimizer."""


class OptimizerConfig(Section):
    """The optimizer and its learning rate at each step."""

    name: str = Field(examples=["adamw"])
    """sgd, adam, adamw of torch.optim; muon (torch's Muon for the matrices of the encoder, AdamW for the rest); or the
    dotted path of your own class, a torch.optim.Optimizer. Under fsdp2 and zero1 to zero3 it must treat each entry of a
    parameter by itself, as Adam does; muon does not, and runs under single and ddp."""
    options: dict[str, Any] = Field({})
    """Keyword arguments of the optimizer, such as {betas: [0.9, 0.95], fused: true} or {nesterov: true}. Of muon:
    those of torch's Muon."""
    learning_rate: float = Field(gt=0, le=MAX_RATE, examples=[1e-3])
    """Peak learning rate; the schedule multiplies it."""
    momentum: Annotated[float, OnlyWith("name", "sgd")] = Field(0.0, ge=0, lt=1)
    """Momentum factor."""
    weight_decay: float = Field(0.0, ge=0, le=MAX_RATE)
    """Weight decay: decoupled for adamw and muon, an L2 penalty for sgd and adam."""
    decay_norms_and_biases: bool = True
    """false: no weight decay on vectors, such as the scale of a norm, nor on parameters called bias, in any group."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters with other settings, such as [{match: encoder.*, learning_rate_scale: 0.1}]."""
    layer_decay: float | None = Field(None, gt=0, lt=1)
    """Layer-wise decay: the learning rate of a layer of the encoder is this times that of the layer above it, and the
    heads are the top layer. A layer is a member of the encoder's outermost lists, such as a block. null: none."""
    schedule: Literal["constant", "step", "linear", "cosine", "polynomial", "one_cycle"] = "constant"
    """step: multiply by `decay_factor` every `decay_every_steps`. linear, cosine, polynomial: fall to 0 at the last
    step. one_cycle: rise from 1/25 of the peak in `warmup_steps` and fall to nearly 0, both along a cosine."""
    decay_every_steps: Annotated[Steps | None, OnlyWith("schedule", "step", required=True)] = None
    """Steps between decays."""
    decay_factor: Annotated[float | None, OnlyWith("schedule", "step", required=True)] = Field(None, gt=0, le=1)
    """Factor of each decay."""
    power: Annotated[float | None, OnlyWith("schedule", "polynomial", required=True)] = Field(None, gt=0, le=100)
    """Power of the fraction of steps that are left."""
    warmup_steps: int = Field(0, ge=0, le=MAX_STEPS)
    """Steps of linear growth from 0 to the peak, with any schedule; under one_cycle, the steps of its rise."""
    clip_norm: float | None = Field(None, gt=0, le=1e30)
    """Upper bound of the gradient norm over all parameters. null: no clipping."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the parameters, such as 0.999. Evaluations and `paretrain export` use
    the average instead of the trained parameters; BatchNorm keeps the running statistics of the latter. null: no
    average."""

    @model_validator(mode="after")
    def _name_is_known_or_a_path(self) -> Self:
        if self.name not in NAMES and not any(mark in self.name for mark in ".:"):
            raise ValueError(
                f"name: no optimizer '{self.name}'. Known: {', '.join(NAMES)}, or your own, such as my_optimizers.Lion"
            )
        return self

    @model_validator(mode="after")
    def _options_are_not_keys(self) -> Self:
        own = {key: OWN_KEYS[key] for key in self.options if key in OWN_KEYS}
        if self.name != "sgd":
            own.pop("momentum", None)
        for option, key in own.items():
            raise ValueError(f"options: '{option}' has a key of its own. Type optimizer.{key}={self.options[option]}")
        return self
