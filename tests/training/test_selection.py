"""Which evaluation is the best one, and when patience is over: by hand."""

from typing import Any

import pytest

from models import Classification, Regression
from trainer.config.sections.train import SelectConfig
from trainer.errors import UserError
from trainer.training.evaluate import Evaluation
from trainer.training.migrations import in_todays_format
from trainer.training.selection import check_select, is_patience_over, select
from trainer.training.state import SelectionState, TrainState
from trainer.training.tasks import metric_names

TASKS = [Classification("a", 2), Classification("b", 2)]


def evaluation(units: dict[str, str] | None = None, **errors: float | None) -> Evaluation:
    units = units or dict.fromkeys(errors, "%")
    losses = {task: None if error is None else 100 - error for task, error in errors.items()}
    # The metric is 1 where the error is 0: more is better.
    metrics = {task: {"accuracy": None if error is None else 1 - error / 100} for task, error in errors.items()}
    return Evaluation(
        errors, units, by_class={}, losses=losses, metrics=metrics, samples=10, predicted=None, too_large=None
    )


def chosen(config: SelectConfig, *evaluations: Evaluation) -> tuple[int | None, int]:
    """The best step, of evaluations at steps 1, 2, ..., and how many came after it."""
    state: SelectionState | None = None
    for step, found in enumerate(evaluations, start=1):
        state = select(state, step, found, config, "val")
    assert state
    return state.step, state.num_since


THREE = (evaluation(a=4.0, b=8.0), evaluation(a=1.0, b=9.0), evaluation(a=3.0, b=7.5))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (2, 1)),
        ({"over": "worst"}, (3, 0)),
        ({"over": "a"}, (2, 1)),
        ({"over": "b"}, (3, 0)),
        ({"metric": "loss"}, (1, 2)),
        ({"metric": "accuracy"}, (2, 1)),
        ({"metric": "accuracy", "over": "worst"}, (3, 0)),
        ({"metric": "loss", "over": "worst"}, (1, 2)),
    ],
)
def test_lower_is_better_over_what_was_asked_for(config: dict[str, Any], expected: tuple[int, int]) -> None:
    assert chosen(SelectConfig(**config), *THREE) == expected


def test_of_a_score_higher_is_better() -> None:
    scores = [evaluation({"a": "% mIoU"}, a=score) for score in (50.0, 60.0, 55.0)]
    assert chosen(SelectConfig(), *scores) == (2, 1)
    mixed = [
        evaluation({"a": "% mIoU", "b": "m"}, a=score, b=depth)
        for score, depth in [(50.0, 2.0), (60.0, 2.0), (60.0, 1.0), (40.0, 1.0)]
    ]
    assert chosen(SelectConfig(), *mixed) == (3, 1)


def test_tasks_of_different_units_count_by_their_share_of_the_first_value() -> None:
    units = {"price": "EUR", "sold": "%"}
    found = [
        evaluation(units, price=price, sold=sold)
        for price, sold in [(1000.0, 10.0), (900.0, 10.0), (990.0, 2.0), (100.0, 11.0)]
    ]
    assert chosen(SelectConfig(), *found) == (3, 1)  # Shares: 2, 1.9, 1.19, 1.2.
    assert chosen(SelectConfig(over="worst"), *found) == (3, 1)


def test_what_is_not_finite_is_never_the_best_and_equal_ones_keep_the_first() -> None:
    nan = float("nan")
    found = [evaluation(a=nan, b=1.0), evaluation(a=2.0, b=1.0), evaluation(a=2.0, b=1.0), evaluation(a=1.0, b=nan)]
    for over in ("mean", "worst"):
        assert chosen(SelectConfig(over=over), *found) == (2, 2)
    assert chosen(SelectConfig(), *found[:1]) == (None, 1)


def test_another_rule_chooses_anew() -> None:
    state = select(None, 1, THREE[0], SelectConfig(), "val")
    state = select(state, 2, THREE[1], SelectConfig(over="b"), "val")
    assert (state.step, state.value, state.num_since) == (2, 9.0, 0)


def test_patience_counts_evaluations_in_a_row() -> None:
    state = None
    for step, error in enumerate([5.0, 6.0, 4.0, 4.0, 4.5], start=1):
        state = select(state, step, evaluation(a=error), SelectConfig(), "val")
        assert is_patience_over(state, 2) == (step == 5)
    assert not is_patience_over(state, None)


@pytest.mark.parametrize(
    ("config", "asked", "said"),
    [
        ({"over": "aa"}, "val", "did you mean 'a'"),
        ({"metric": "accurracy"}, "val", "did you mean 'accuracy'"),
        ({"mode": "max"}, "val", "leave the mode out"),
        ({}, None, "type train.eval_split=test"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(config: dict[str, Any], asked: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_select(SelectConfig(**config), asked, asked or "test", TASKS, metric_names(TASKS, {}))


def test_the_mode_may_say_what_is_meant_anyway() -> None:
    tasks = [*TASKS, Regression("c", "m")]
    check_select(SelectConfig(mode="min"), "test", "test", tasks, metric_names(tasks, {}))


def test_a_state_without_a_selection_is_that_of_an_older_version() -> None:
    old = {"step": 0, "samples": 0, "global_batch": 1, "seconds": 0.0, "cursor": {"epoch": 0, "samples": 0}}
    old |= {"fingerprint": "", "weighting": {}, "loss_scale": None, "damaged_checkpoints": 0}
    old |= {"bad_samples": {"total": {}, "in_epoch": {}, "first": ""}}
    state = TrainState.from_dict(in_todays_format(old, 4))
    assert (state.eval_split, state.selection) == ("test", None)
