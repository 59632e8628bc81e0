"""Mean, worst, Δm and mean rank over tasks, computed by hand."""

import pytest

from trainer.observe.over_tasks import changes, delta_m, mean_ranks, over_tasks

DECIDING = {"a": "auroc", "b": "mae"}
OURS = {"a": {"auroc": 0.9}, "b": {"mae": 3.0}}
THEIRS = {"a": {"auroc": 0.6}, "b": {"mae": 2.0}}


def test_more_is_better_for_some_metrics_and_worse_for_others() -> None:
    """Maninis et al. 2019: +50 % in AUROC and 50 % more of an error cancel out."""
    assert changes(OURS, THEIRS, DECIDING) == pytest.approx({"a": 50.0, "b": -50.0})
    assert delta_m(OURS, THEIRS, DECIDING) == pytest.approx(0.0)
    assert delta_m(OURS, {"a": {"auroc": None}, "b": {"mae": 0.0}}, DECIDING) is None
    negative = changes({"a": {"r2": -0.5}}, {"a": {"r2": -1.0}}, {"a": "r2"})
    assert negative == {"a": 50.0}, "a metric below zero that rises is better"


def test_the_worst_task_is_the_lowest_score_or_the_highest_error() -> None:
    found = over_tasks(
        {"a": {"auroc": 0.9, "log_loss": 0.1}, "c": {"auroc": 0.7, "log_loss": None}, "b": {"log_loss": 0.4}}
    )
    assert (found["auroc"].worst_task, found["auroc"].mean) == ("c", pytest.approx(0.8))
    assert (found["log_loss"].worst_task, found["log_loss"].num_tasks) == ("b", 2)


def test_ranks_are_means_over_tasks() -> None:
    third = {"a": {"auroc": 0.6}, "b": {"mae": 1.0}}
    assert mean_ranks([OURS, THEIRS, third], DECIDING) == [pytest.approx(2.0), pytest.approx(2.25), pytest.approx(1.75)]
    assert mean_ranks([OURS, {"a": {"auroc": None}}], DECIDING) == [None, None]
