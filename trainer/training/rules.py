"""Build a weighting rule from its name and options. A name is a key of `RULES` or a dotted path: TorchJD's or yours."""

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from models import dotted
from paretrain.rules.constant import Fixed, Random, Uniform
from paretrain.rules.from_torchjd import TorchJDWeighting, is_from_torchjd, refuse_more_than_the_gram
from paretrain.rules.gradients import GradNorm, MinNormWeighting, Tension
from paretrain.rules.losses import DynamicWeightAverage, Uncertainty
from paretrain.rules.normalise import Normalised, Scale
from paretrain.rules.preference import Chebyshev
from paretrain.rules.rule import Weighting
from trainer.errors import did_you_mean

RULES: Mapping[str, Callable[..., Weighting]] = {
    "min_norm": MinNormWeighting,
    "uniform": Uniform,
    "fixed": Fixed,
    "random": Random,
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "dwa": DynamicWeightAverage,
    "tension": Tension,
}
"""Each is called with its options, and with `num_tasks` and `seed` where it takes them."""

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
        name: a key of `RULES`; the dotted path of a Gram-only weighting of TorchJD, called with `options`, of which
            lists become vectors; or that of your own rule, called as those in `RULES` are.
        options: keyword arguments of the rule.
        tasks: names of all T tasks, in order.
        weights: for `fixed`, by task.
        preference: by task; makes `min_norm` a `Chebyshev` rule.
        normalise: what each gradient is divided by, see `Normalised`.
        reference: see `Normalised`.
        seed: for random rules.

    Raises:
        ValueError: no such name, dotted path or option, a value that the rule refuses, or weights that do not fit the
            tasks.
    """
    given: dict[str, Any] = {"num_tasks": len(tasks), "seed": seed}
    build = _of_the_user(name) if "." in name else _known(name)
    if weights is not None:
        given["weights_T"] = _in_task_order("weights", weights, tasks, example=1 / len(tasks))
    if preference is not None:
        build, given["preference_T"] = Chebyshev, _in_task_order("preference", preference, tasks, example=1)
    if is_from_torchjd(build):
        refuse_more_than_the_gram(build)  # Before its options or missing packages are complained about.
        # TorchJD takes vectors as tensors only, and YAML has none.
        torch_options = {
            key: dotted.call(
                torch.tensor, value, dtype=torch.float64, doing=f"weighting '{name}' cannot take {key}={value!r}"
            )
            if isinstance(value, list)
            else value
            for key, value in options.items()
        }
        rule = TorchJDWeighting(_call(name, build, torch_options, {}), len(tasks), seed)
    else:
        rule = _call(name, build, options, given)
    if not isinstance(rule, Weighting):
        raise ValueError(f"weighting '{name}' gave {type(rule).__name__}; {EXPECTED}")
    return rule if normalise == "none" else Normalised(rule, normalise, reference)


def _known(name: str) -> Callable[..., Weighting]:
    if name in RULES:
        return RULES[name]
    raise ValueError(
        f"no weighting '{name}'{did_you_mean(name, RULES)} Known: {', '.join(RULES)}, or a dotted path such as "
        "torchjd.aggregation.UPGradWeighting"
    )


def _of_the_user(path: str) -> Callable[..., Any]:
    named = f"weighting '{path}'"
    if path.startswith("torchjd.") and importlib.util.find_spec("torchjd") is None:
        raise ValueError(
            f"{named} cannot be imported: No module named 'torchjd'; type pip install 'paretrain[torchjd]'"
        )
    return dotted.find(path, Weighting, named=named, expected=EXPECTED)


def _call(name: str, build: Callable[..., Any], options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    parameters = list(inspect.signature(build).parameters)
    allowed = [parameter for parameter in parameters if parameter not in given]
    for option in options:
        if option not in allowed:
            hint = did_you_mean(option, allowed)
            raise ValueError(
                f"weighting '{name}' has no option '{option}'{hint} Its options: {', '.join(allowed) or 'none'}"
            )
    shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "no options"
    taken = {key: value for key, value in given.items() if key in parameters}
    return dotted.call(build, doing=f"weighting '{name}' cannot be built with {shown}", **taken, **options)


def _in_task_order(key: str, values: Mapping[str, float], tasks: Sequence[str], *, example: float) -> list[float]:
    if set(values) != set(tasks):
        typed = ", ".join(f"{task}: {example:.9g}" for task in tasks)
        raise ValueError(
            f"balance.{key} names the tasks {', '.join(sorted(values))}; expected one {key.removesuffix('s')} for each "
            f"of {', '.join(tasks)}: type balance.{key}={{{typed}}}"
        )
    return [values[task] for task in tasks]
