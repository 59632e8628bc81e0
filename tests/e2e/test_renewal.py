"""Lazy weights in a run: what its records say, and a stop between two renewals."""

from pathlib import Path

import pytest
import torch

from tests.support.runs import checkpoint, numbers
from trainer.cli import main

LAZY = ["balance.every_steps=4", "balance.adaptive.gap=1e-6"]


@pytest.mark.parametrize("space", ["parameters", pytest.param("representation", marks=pytest.mark.slow)])
def test_a_run_that_stops_between_two_renewals_goes_on_bit_for_bit(space: str, config: Path, run_dir: Path) -> None:
    arguments = ["train", str(config), *LAZY, f"balance.space={space}"]
    whole = run_dir.with_name("whole")
    assert main([*arguments, "train.steps=9", "name=whole"]) == 0
    for steps in (3, 9):
        assert main([*arguments, f"train.steps={steps}"]) == 0
    assert numbers(run_dir) == numbers(whole)
    for found, expected in zip(checkpoint(run_dir), checkpoint(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    records = numbers(run_dir)
    # Any other α is too stale for a gap of 1e-6, so 4 steps become 2, and then 1.
    renewals = {record["step"]: record["held_steps"] for record in records if record["kind"] == "renewal"}
    assert renewals == {5: 4, 7: 2, 8: 1, 9: 1}
    alphas = {record["step"]: record["alpha"] for record in records if record["kind"] == "train"}
    assert alphas[1] == alphas[4]
    assert alphas[5] != alphas[4]
    # The evaluations are after steps 3, 6 and 9: the Gram matrices that follow them.
    assert [record["step"] for record in records if record["kind"] == "gram"] == [5, 7]
    assert "stale " in (run_dir / "log.txt").read_text()
    assert "4 renewals, one in 2 steps" in (run_dir / "report.html").read_text()


def test_what_cannot_be_held_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for overrides, said in {
        ("balance.adaptive.gap=0.1",): "no effect with every_steps: 1",
        ("balance.weighting=uniform", *LAZY): "weighting=uniform",
        ("balance.normalise=l2", *LAZY): "Leave out one of them",
        ("balance.every_steps=2", "train.accumulation={steps: 2, alpha: micro}"): "train.accumulation.alpha=window",
    }.items():
        assert main(["train", str(config), *overrides]) == 2
        assert said in capsys.readouterr().err
