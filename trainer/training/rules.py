"""Build a rule from its name and options. A name is a key of RULES, or leads to a rule of TorchJD or to your own."""

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

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
from paretrain.rules.normalise import Normalised, Scale
from paretrain.rules.preference import Chebyshev
from paretrain.rules.projections import CAGrad, UPGrad
from paretrain.rules.rule import Weighting
from paretrain.rules.scalarised import GeometricMean, ScaleInvariant, SmoothChebyshev, SoftOptimalUncertainty
from paretrain.rules.scalarizer import TorchJDScalarizer
from paretrain.rules.surgery import GradVac, PCGrad
from trainer.errors import did_you_mean
from trainer.user_code import call, errors_explained, is_user_code, load, refuse_unknown

RULES: Mapping[str, Callable[..., Weighting]] = {
    "min_norm": MinNormWeighting,
    "uniform": Uniform,
    "fixed": Fixed,
    "random": Random,
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "dwa": DynamicWeightAverage,
    "tension": Tension,
    "nash": Nash,
    "fairgrad": FairGrad,
    "imtl_g": IMTLG,
    "config": ConFIG,
    "aligned": AlignedMTL,
    "cagrad": CAGrad,
    "upgrad": UPGrad,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    "stch": SmoothChebyshev,
    "si": ScaleInvariant,
    "gls": GeometricMean,
    "uw_so": SoftOptimalUncertainty,
    "db_mtl": DBMTL,
    "ntkmtl": NTKMTL,
    "famo": FAMO,
    "go4align": GO4Align,
}
"""`build(**options)` returns a rule; `num_tasks` and `seed` are passed to those that take them."""

EXPECTED = "expected a rule, which has __call__, state_dict and load_state_dict"


def build_weighting(
    name: str,
    options: Mapping[str, Any],
    *,
    tasks: Sequence[str],
    weights: Mapping[str, float] | None = None,
    preference: Mapping[str, float] | None = None,
    normalise: Literal["none"] | Scale = "none",
    reference: bool = False,
    seed: int = 0,
) -> Weighting:
    """Build a rule.

    Args:
        name: a key of `RULES`; the dotted path of a weighting of TorchJD that needs the Gram matrix alone, or of one of
            its scalarizers; or your own rule (see `trainer.user_code`), called as those in `RULES` are.
        options: keyword arguments of the rule. TorchJD gets lists as vectors.
        tasks: names of all T tasks, in order.
        weights: for `fixed`, a weight for each task.
        preference: an importance for each task; makes `min_norm` a `Chebyshev` rule.
        normalise: what each gradient is divided by; see `Normalised`.
        reference: see `Normalised`.
        seed: decides what random rules draw.

    Raises:
        ValueError: the name or an option is unknown, a value is refused, or the weights do not fit the tasks.
    """
    given: dict[str, Any] = {"num_tasks": len(tasks), "seed": seed}
    build = _load(name) if is_user_code(name) else _known(name)
    if weights is not None:
        given["weights_T"] = _in_task_order("weights", weights, tasks, example=1 / len(tasks))
    if preference is not None:
        build, given["preference_T"] = Chebyshev, _in_task_order("preference", preference, tasks, example=1)
    rule: Any
    if is_from_torchjd(build) or is_scalarizer(build):
        if is_from_torchjd(build):
            refuse_more_than_the_gram(build)  # Before it asks for options and packages in vain.
        wrap = TorchJDScalarizer if is_scalarizer(build) else TorchJDWeighting
        vectors = {key: _vector(name, key, value) for key, value in options.items() if isinstance(value, list)}
        rule = wrap(_call(name, build, {**options, **vectors}, {}), len(tasks), seed)
    else:
        rule = _call(name, build, options, given)
    if not isinstance(rule, Weighting):
        raise ValueError(f"weighting '{name}' gave {type(rule).__name__}; {EXPECTED}")
    return rule if normalise == "none" else Normalised(rule, normalise, reference)


def _known(name: str) -> Callable[..., Weighting]:
    if name in RULES:
        return RULES[name]
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
