"""Advice: given where a solved task holds all the weight, and nowhere else."""

import pytest

from trainer.observe.advice import solved_task


def records(alpha_of_a: list[float], loss_of_a: list[float]) -> list[dict]:
    return [
        {"kind": "train", "alpha": {"a": alpha, "b": 1 - alpha}, "losses": {"a": loss, "b": 1.0}}
        for alpha, loss in zip(alpha_of_a, loss_of_a, strict=True)
    ]


def test_a_solved_task_with_all_the_weight_is_named() -> None:
    found = [*records([0.5, 0.6, 0.98, 1.0], [2.0, 1.0, 0.01, 0.01]), {"kind": "eval", "errors": {}}]
    said = solved_task(found)
    assert said is not None
    assert said.startswith("a had 99% of the weight in the second half, with 0.50% of its first loss left")
    assert "may make another task worse" in said


@pytest.mark.parametrize(
    ("alphas", "losses"),
    [
        ([0.5, 0.5, 0.5, 0.5], [2.0, 1.0, 0.01, 0.01]),  # solved, but shares the weight
        ([0.5, 0.6, 1.0, 1.0], [2.0, 2.0, 1.9, 1.9]),  # has the weight, and needs it
        ([1.0], [0.0]),  # too short to tell
    ],
)
def test_nothing_is_said_of_a_sound_run(alphas: list[float], losses: list[float]) -> None:
    assert solved_task(records(alphas, losses)) is None


def test_one_task_alone_always_has_all_the_weight() -> None:
    alone = [{"kind": "train", "alpha": {"a": 1.0}, "losses": {"a": loss}} for loss in (1.0, 0.1, 0.01, 0.01)]
    assert solved_task(alone) is None
