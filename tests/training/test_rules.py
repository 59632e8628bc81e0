"""From the configuration to a rule; and every mistake is named with what to type instead."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from paretrain import Chebyshev, Fixed, GradNorm, Normalised, Random, Uncertainty, Uniform, Weighting, Weights
from paretrain.rules.from_torchjd import TorchJDWeighting
from paretrain.rules.rule import Stateless
from trainer.commands.rules import print_rules
from trainer.config.file import load_config, parse_config, to_yaml
from trainer.config.sections.balance import BalanceConfig
from trainer.errors import UserError
from trainer.training.rules import RULES, build_rule, outside_its_guarantee

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"
TASKS = ["left", "right", "top"]
GRAM = np.array([[2.0, -1, 0], [-1, 1, 0], [0, 0, 3]])
LOSSES = np.array([1.0, 2, 4])


def build(balance: str, seed: int = 0) -> Weighting:
    """The rule of a `balance:` section, the way a run builds it."""
    return build_rule(load_config(CONFIG, [f"balance={balance}"]).balance, TASKS, seed)


def weigh(rule: Weighting) -> list[float]:
    return rule(GRAM, LOSSES, np.arange(3)).alpha_A.tolist()


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(RULES) - {"fixed"}))
def test_every_name_builds_without_options(name: str) -> None:
    assert isinstance(build(f"{{weighting: {name}}}"), RULES[name].build)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ("{weighting: fixed, weights: {top: 0.5, left: 0.2, right: 0.3}}", Fixed([0.2, 0.3, 0.5])),
        ("{weighting: uncertainty, options: {closed_form: true}}", Uncertainty(3, closed_form=True)),
        ("{preference: {top: 3, left: 1, right: 2}}", Chebyshev([1, 2, 3])),
        ("{preference: {top: 3, left: 1, right: 2}, options: {strength: 2}}", Chebyshev([1, 2, 3], strength=2)),
        ("{weighting: uniform, normalise: loss+}", Normalised(Uniform(), "loss+")),
        ("{weighting: gradnorm, normalise: l2, reference: true}", Normalised(GradNorm(3), "l2", reference=True)),
    ],
)
def test_the_configuration_reaches_the_rule(balance: str, expected: Weighting) -> None:
    assert weigh(build(balance)) == weigh(expected)


def test_the_seed_reaches_random_rules() -> None:
    assert weigh(build("{weighting: random}", seed=4)) == weigh(Random(3, seed=4))
    rule = build("{weighting: torchjd.aggregation.PCGradWeighting}", seed=4)
    assert rule.state_dict()["seed"] == 4


def test_a_rule_of_torchjd_by_its_path() -> None:
    rule = build("{weighting: torchjd.aggregation.UPGradWeighting, options: {pref_vector: [1, 2, 3]}}")
    assert isinstance(rule, TorchJDWeighting)
    assert weigh(rule)[2] == pytest.approx(3)


@pytest.mark.parametrize(
    ("path", "options", "like"),
    [("STCH", "{mu: 0.5}", "{weighting: stch, options: {mu: 1.5}}"), ("GeometricMean", "{}", "{weighting: gls}")],
)
def test_a_scalarizer_of_torchjd_by_its_path(path: str, options: str, like: str) -> None:
    """TorchJD's preferences are 1/T each, which is a factor of mu."""
    found = np.array(weigh(build(f"{{weighting: torchjd.scalarization.{path}, options: {options}}}")))
    np.testing.assert_allclose(found / found.sum(), np.array(weigh(build(like))) / sum(weigh(build(like))), rtol=1e-9)


def test_a_random_scalarizer_goes_on_where_it_was() -> None:
    first, second = (build("{weighting: torchjd.scalarization.Random}", seed=4) for _ in range(2))
    assert weigh(first) == weigh(second)
    expected = weigh(first)
    third = build("{weighting: torchjd.scalarization.Random}")
    third.load_state_dict(second.state_dict())
    assert weigh(third) == expected


def test_a_scalarizer_with_a_number_for_each_task_says_which_are_absent() -> None:
    rule = build("{weighting: torchjd.scalarization.Constant, options: {weights: [1, 2, 3]}}")
    assert weigh(rule) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"the tasks of index \[1\] have no label"):
        rule(np.eye(2), np.ones(2), np.array([0, 2]))


def test_the_table_of_rules_has_every_rule_and_says_which_to_warn_of(capsys: pytest.CaptureFixture[str]) -> None:
    print_rules(num_tasks=3)
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in RULES)
    assert "weighting=nash" in outside_its_guarantee("nash", "representation")
    for weighting, space in (("nash", "parameters"), ("min_norm", "representation"), ("my.py:Rule", "representation")):
        assert not outside_its_guarantee(weighting, space)


class Mine(Stateless):
    """A user's own rule."""

    def __init__(self, num_tasks: int, favourite: int = 0) -> None:
        self.one_hot = np.eye(num_tasks)[favourite]

    def __call__(self, gram_AA: np.ndarray, losses_A: np.ndarray, tasks_A: np.ndarray) -> Weights:
        return Weights(self.one_hot[tasks_A])


class NotARule:
    """It has none of the methods."""


def test_a_rule_of_the_user() -> None:
    assert weigh(build("{weighting: tests.training.test_rules.Mine, options: {favourite: 2}}")) == [0, 0, 1]


@pytest.mark.long
@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ("{weighting: min_nrom}", "no weighting 'min_nrom'; did you mean 'min_norm'?"),
        ("{weighting: mgda}", "no weighting 'mgda'; did you mean 'min_norm'?"),
        ("{weighting: equal}", "no weighting 'equal'; did you mean 'uniform'?"),
        ("{weighting: gradnorm, options: {learning_rat: 1}}", "'learning_rat'; did you mean 'learning_rate'?"),
        ("{weighting: gradnorm, options: {num_tasks: 1}}", "no option 'num_tasks'"),
        ("{weighting: min_norm, options: {strength: 1}}", "no option 'strength'. Its options: none"),
        ("{weighting: gradnorm, options: {learning_rate: 0}}", "built with learning_rate=0: learning_rate must be > 0"),
        ("{weighting: gradnorm, options: {learning_rate: a}}", "cannot be built with learning_rate='a'"),
        ("{weighting: torchjd.aggregation.UPGrat}", "'torchjd.aggregation.UPGrat' cannot be imported"),
        ("{weighting: torchjd.aggregation.NashMTL}", "NashMTL does not work on a Gram matrix alone"),
        ("{weighting: torchjd.scalarization.STCH}", "cannot be built with no options"),
        ("{weighting: torchjd.scalarization.DWA}", "DWA learns or remembers"),
        ("{weighting: torchjd.scalarization.UW, options: {shape: 3}}", "UW learns or remembers"),
        ("{weighting: torchjd.scalarization.Constant, options: {weights: [1, 2]}}", "Constant cannot take 3 losses"),
        ("{weighting: torchjd.aggregation.ConFIG}", "ConFIG does not work on a Gram matrix alone"),
        ("{weighting: torchjd.aggregation.CAGradWeighting}", "cannot be built with no options"),
        ("{weighting: my.own.Rule}", "'my.own.Rule' cannot be imported: No module named 'my'"),
        ("{weighting: tests.training.test_rules.NotARule}", "expected a rule, which has __call__"),
        ("{weighting: subprocess.getoutput, options: {cmd: ls}}", "Python's own module subprocess; expected a rule"),
        ("{weighting: builtins.exit}", "Python's own module builtins; expected a rule"),
        ("{weighting: trainer.cli.main}", "returns int; expected a rule"),
        ("{weighting: torchjd.aggregation.CAGradWeighting, options: {c: [a]}}", "cannot take c=['a']"),
        ("{preference: {left: 1}}", "type balance.preference={left: 1, right: 1, top: 1}"),
        ("{weighting: fixed, weights: {lefft: 1.0}}", "expected one weight for each of left, right, top"),
        ("{weighting: fixed, weights: {left: 1.0, right: 1.0, top: 1.0}}", "must sum to 1"),
    ],
)
def test_a_mistake_in_a_rule_is_named(balance: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(balance)
    assert message in str(caught.value)


def test_the_weights_that_an_error_tells_to_type_are_taken() -> None:
    with pytest.raises(UserError) as caught:
        build("{weighting: fixed, weights: {}}")
    _, _, typed = str(caught.value).partition("type balance.weights=")
    assert weigh(build(f"{{weighting: fixed, weights: {typed}}}")) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        ("{weighting: fixed}", "weighting=fixed needs weights"),
        ("{weights: {left: 1.0}}", "has no effect with weighting=min_norm: it belongs to weighting=fixed"),
        ("{weighting: dwa, preference: {left: 1}}", "it belongs to weighting=min_norm"),
        (
            "{preference: {left: 0}}",
            "balance.preference.left: input should be greater than or equal to 0.000001, found 0",
        ),
        ("{reference: true}", "reference: true has no effect with normalise: none"),
        ("{normalise: l1}", "balance.normalise: input should be 'none', 'l2', 'loss' or 'loss+', found 'l1'"),
        ("{normalize: l2}", "unknown key 'balance.normalize'; did you mean 'normalise'?"),
        ("{weighting: 3}", "balance.weighting: expected a text, found 3"),
    ],
)
def test_a_mistake_in_the_section_is_named(balance: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIG, [f"balance={balance}"])
    assert message in str(caught.value)


def test_what_is_written_is_read_back() -> None:
    balance = "{preference: {left: 2, right: 0.5}, normalise: loss+, reference: true, options: {strength: 2.0}}"
    experiment = load_config(CONFIG, [f"balance={balance}"])
    assert parse_config(yaml.safe_load(to_yaml(experiment)), "again") == experiment


def test_the_default_is_the_min_norm_point() -> None:
    config: Mapping[str, Any] = BalanceConfig().model_dump()
    assert (config["weighting"], config["normalise"], config["preference"]) == ("min_norm", "none", None)


def test_without_torchjd_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == "torchjd"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=r"No module named 'torchjd'; type pip install 'paretrain\[torchjd\]'"):
        build_rule(BalanceConfig(weighting="torchjd.aggregation.UPGradWeighting"), TASKS)


@pytest.mark.parametrize(
    ("weighting", "normalise", "part"),
    [
        ("uniform", "none", lambda norm, loss: norm),
        ("min_norm", "none", lambda norm, loss: 1 / norm),
        ("min_norm", "l2", lambda norm, loss: 0 * norm + 1),
        ("min_norm", "loss", lambda norm, loss: loss / norm),
        ("min_norm", "loss+", lambda norm, loss: loss),
    ],
)
def test_what_each_rule_favours_where_gradients_are_orthogonal(
    weighting: str, normalise: Any, part: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """The table of docs/balance.md: the length of each task's part of the step, up to a common factor."""
    norms_T, losses_T = np.array([0.5, 2.0, 8.0]), np.array([3.0, 1.0, 0.2])
    rule = build_rule(BalanceConfig(weighting=weighting, normalise=normalise), TASKS)
    parts_T = rule(np.diag(norms_T**2), losses_T, np.arange(3)).alpha_A * norms_T
    expected_T = part(norms_T, losses_T)
    np.testing.assert_allclose(parts_T / parts_T.sum(), expected_T / expected_T.sum(), rtol=1e-6)
