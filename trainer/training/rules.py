"""The rules by their names, and how the rule of a run is built from the section `balance`."""

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from paretrain.rules.alignment import GO4Align
from paretrain.rules.bargaining import FairGrad, Nash
from paretrain.rules.constant import Fixed, Random, Uniform
from paretrain.rules.famo import FAMO
from paretrain.rules.from_torchjd import TorchJDWeighting, is_from_torchjd, is_scalarizer, refuse_more_than_the_gram
from paretrain.rules.gradients import GradNorm, MinNormWeighting, Tension
from paretrain.rules.inverse import IMTLG, AlignedMTL, ConFIG
from paretrain.rules.lengths import DBMTL, NTKMTL
from paretrain.rules.losses import DynamicWeightAverage, Uncertainty
from paretrain.rules.normalise import Normalised
from paretrain.rules.preference import Chebyshev
from paretrain.rules.projections import CAGrad, UPGrad
from paretrain.rules.rule import Weighting
from paretrain.rules.scalarised import GeometricMean, ScaleInvariant, SmoothChebyshev, SoftOptimalUncertainty
from paretrain.rules.scalarizer import TorchJDScalarizer
from paretrain.rules.surgery import GradVac, PCGrad
from trainer.config.sections.balance import BalanceConfig
from trainer.errors import UserError, did_you_mean
from trainer.training.task_groups import task_groups
from trainer.user_code import call, errors_explained, is_user_code, load, refuse_unknown

Sees = Literal["gradients", "losses", "both", "nothing"]
Guarantee = Literal["representation", "parameters", "either", "none"]


class Rule(NamedTuple):
    """A rule that has a name, and what to know of it before choosing it.

    Attributes:
        build: `build(**options)` returns the rule; `num_tasks` and `seed` are passed to those that take them.
        sees: what its weights depend on: the Gram matrix of the gradients, the losses, both or neither.
        remembers: what it keeps from step to step, and in checkpoints; empty for nothing that changes its weights.
        guarantee: for gradients with respect to what its paper proves something. "either": it weighs losses, whose
            weighted sum descends whatever the encoder is; "none": the paper proves nothing.
        paper: the first author and the number on arXiv.
    """

    build: Callable[..., Weighting]
    sees: Sees
    remembers: str
    guarantee: Guarantee
    paper: str


RULES: Mapping[str, Rule] = {
    "min_norm": Rule(MinNormWeighting, "gradients", "", "representation", "Sener 1810.04650"),
    "uniform": Rule(Uniform, "nothing", "", "either", "-"),
    "fixed": Rule(Fixed, "nothing", "", "either", "-"),
    "random": Rule(Random, "nothing", "step", "either", "Lin 2111.10603"),
    "uncertainty": Rule(Uncertainty, "losses", "variances", "either", "Kendall 1705.07115"),
    "gradnorm": Rule(GradNorm, "both", "weights", "none", "Chen 1711.02257"),
    "dwa": Rule(DynamicWeightAverage, "losses", "means", "either", "Liu 1803.10704"),
    "tension": Rule(Tension, "both", "norms", "none", "2204.06698"),
    "nash": Rule(Nash, "gradients", "", "parameters", "Navon 2202.01017"),
    "fairgrad": Rule(FairGrad, "gradients", "", "parameters", "Ban 2402.15638"),
    "imtl_g": Rule(IMTLG, "gradients", "", "parameters", "Liu, ICLR 2021"),
    "config": Rule(ConFIG, "gradients", "", "parameters", "Liu 2408.11104"),
    "aligned": Rule(AlignedMTL, "gradients", "", "parameters", "Senushkin 2305.19000"),
    "cagrad": Rule(CAGrad, "gradients", "", "parameters", "Liu 2110.14048"),
    "upgrad": Rule(UPGrad, "gradients", "", "parameters", "Quinton 2406.16232"),
    "pcgrad": Rule(PCGrad, "gradients", "step", "parameters", "Yu 2001.06782"),
    "gradvac": Rule(GradVac, "gradients", "cosines", "parameters", "Wang 2010.05874"),
    "stch": Rule(SmoothChebyshev, "losses", "", "either", "Lin 2402.19078"),
    "si": Rule(ScaleInvariant, "losses", "", "either", "in Navon 2202.01017"),
    "gls": Rule(GeometricMean, "losses", "", "either", "Chennupati 1904.08492"),
    "uw_so": Rule(SoftOptimalUncertainty, "losses", "", "either", "Kirchdorfer 2408.07985"),
    "db_mtl": Rule(DBMTL, "both", "", "none", "Lin 2308.12029"),
    "ntkmtl": Rule(NTKMTL, "gradients", "", "none", "Qin 2510.18258"),
    "famo": Rule(FAMO, "losses", "logits", "either", "Liu 2306.03792"),
    "go4align": Rule(GO4Align, "losses", "scores", "either", "Shen 2404.06486"),
}

EXPECTED = "expected a rule, which has __call__, state_dict and load_state_dict"


def build_rule(config: BalanceConfig, tasks: Sequence[str], seed: int = 0) -> Weighting:
    """Build the rule of a run. It sees the groups of tasks where there are any.

    Args:
        config: names the rule: by a key of `RULES`; by the dotted path of a weighting of TorchJD that needs the Gram
            matrix alone, or of one of its scalarizers; or by the user's own (see `trainer.user_code`), called as those
            in `RULES` are.
        tasks: names of all T tasks, in order.
        seed: decides what random rules draw.

    Raises:
        UserError: the name or an option is unknown, a value is refused, or groups, weights or a preference do not fit
            the tasks.
    """
    names, _ = task_groups(config.groups or {}, tasks)
    try:
        rule = _build(config, names, seed)
        return rule if config.normalise == "none" else Normalised(rule, config.normalise, config.reference)
    except ValueError as error:
        raise UserError(f"balance: {error}") from error


def outside_its_guarantee(weighting: str, space: str) -> str:
    """Return a sentence where a rule sees other gradients than those of its paper's guarantee; else an empty string."""
    if weighting not in RULES or RULES[weighting].guarantee != "parameters" or space == "parameters":
        return ""
    return (
        f"what the paper of weighting={weighting} proves holds for gradients of the encoder's parameters; here it sees "
        "those of the representation, with which results can be far worse (Nash-MTL on QM9: arXiv 2202.01017, appendix "
        "C). balance.space=parameters costs one backward per task; balance.monitor_every_steps=100 shows what happens"
    )


def _build(config: BalanceConfig, tasks: Sequence[str], seed: int) -> Weighting:
    name, options = config.weighting, config.options
    given: dict[str, Any] = {"num_tasks": len(tasks), "seed": seed}
    build = _load(name) if is_user_code(name) else _known(name)
    if config.weights is not None:
        given["weights_T"] = _in_task_order("weights", config.weights, tasks, example=1 / len(tasks))
    if config.preference is not None:
        build, given["preference_T"] = Chebyshev, _in_task_order("preference", config.preference, tasks, example=1)
    rule: Any
    if is_from_torchjd(build) or is_scalarizer(build):
        if is_from_torchjd(build):
            refuse_more_than_the_gram(build)  # First, since it might ask for options and packages that do not help.
        wrap = TorchJDScalarizer if is_scalarizer(build) else TorchJDWeighting
        # TorchJD takes lists as vectors.
        vectors = {key: _vector(name, key, value) for key, value in options.items() if isinstance(value, list)}
        rule = wrap(_call(name, build, {**options, **vectors}, {}), len(tasks), seed)
    else:
        rule = _call(name, build, options, given)
    if not isinstance(rule, Weighting):
        raise ValueError(f"weighting '{name}' gave {type(rule).__name__}; {EXPECTED}")
    return rule


def _known(name: str) -> Callable[..., Weighting]:
    if name in RULES:
        return RULES[name].build
    raise ValueError(
        f"no weighting '{name}'{did_you_mean(name, RULES)} Known: {', '.join(RULES)}; a rule of TorchJD, "
        "such as torchjd.aggregation.UPGradWeighting; or your own, such as my_rules.py:Rule"
    )


def _load(path: str) -> Callable[..., Any]:
    named = f"weighting '{path}'"
    if path.startswith("torchjd.") and importlib.util.find_spec("torchjd") is None:
        raise ValueError(
            f"{named} cannot be imported: No module named 'torchjd'; type pip install 'paretrain[torchjd]'"
        )
    return load(path, Weighting, named=named, expected=EXPECTED)


def _call(name: str, build: Callable[..., Any], options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    parameters = list(inspect.signature(build).parameters)
    allowed = [parameter for parameter in parameters if parameter not in given]
    refuse_unknown(options, allowed, f"weighting '{name}'")
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
    taken = {key: value for key, value in given.items() if key in parameters}
    return call(build, doing=f"weighting '{name}' cannot be built with {shown}", **taken, **options)


def _vector(name: str, key: str, value: list[Any]) -> torch.Tensor:
    """Return a list as a tensor: TorchJD takes vectors in no other form, and YAML has no tensors."""
    with errors_explained(f"weighting '{name}' cannot take {key}={value!r}"):
        return torch.tensor(value, dtype=torch.float64)


def _in_task_order(key: str, values: Mapping[str, float], tasks: Sequence[str], *, example: float) -> list[float]:
    if set(values) != set(tasks):
        typed = ", ".join(f"{task}: {example:.9g}" for task in tasks)
        raise ValueError(
            f"balance.{key} names the tasks {', '.join(sorted(values))}; expected one {key.removesuffix('s')} for each "
            f"of {', '.join(tasks)}: type balance.{key}={{{typed}}}"
        )
    return [values[task] for task in tasks]
