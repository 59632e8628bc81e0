"""Grids, `paretrain sweep` and `paretrain compare`."""

import json
from pathlib import Path

import pytest

from launch.grid import points
from tests.support.command import Command
from trainer.config.file import load_config, to_yaml
from trainer.errors import UserError


def test_a_grid_has_every_combination_in_order(config: Path) -> None:
    found = points(config, ["train.steps=3"], ["seed=0,1", "balance.normalise=none,loss+"])
    assert [point.experiment.name for point in found] == [
        "run-seed-0-normalise-none",
        "run-seed-0-normalise-loss-plus",
        "run-seed-1-normalise-none",
        "run-seed-1-normalise-loss-plus",
    ]
    assert [point.experiment.seed for point in found] == [0, 0, 1, 1]
    assert {point.experiment.balance.normalise for point in found} == {"none", "loss+"}
    assert {point.experiment.train.steps for point in found} == {3}
    assert {point.experiment.wandb.group for point in found} == {"run"}


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (["seed"], "found --grid 'seed', expected key=value,value"),
        (["seed=0,"], "found --grid 'seed=0,', expected"),
        (["seed=0,1", "seed=2"], "names seed twice"),
        (["seed=1,1"], "the same folder, run-seed-1"),
        (["name=a,b"], "get their names from their values"),
        (["sed=0,1"], "unknown key 'sed'"),
    ],
)
def test_a_grid_is_refused_before_anything_runs(config: Path, grid: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        points(config, [], grid)


@pytest.mark.slow
def test_what_differs_by_a_plus_has_two_names(config: Path) -> None:
    found = points(config, [], ["balance.normalise=loss,loss+", "optimizer.learning_rate=1e+1"])
    assert [point.experiment.name for point in found] == [
        "run-normalise-loss-learning_rate-1e_1",
        "run-normalise-loss-plus-learning_rate-1e_1",
    ]


def test_a_sweep_trains_what_is_missing_and_compares_all(config: Path, run_dir: Path, paretrain: Command) -> None:
    command = ("sweep", config, "--grid", "seed=0,1", "--parallel", 2, "train.steps=3")
    other = run_dir.with_name("run-seed-1")
    other.mkdir(parents=True)
    (other / "config.yaml").write_text(to_yaml(load_config(config, ["name=run-seed-1", "seed=5"])))
    failed = paretrain(*command)
    assert failed.returncode == 2
    assert "1 of 2 runs failed: run-seed-1" in failed.stderr
    assert "seed: 5 -> 1" in other.with_name("run-seed-1.txt").read_text()
    (other / "config.yaml").unlink()
    done = paretrain(*command)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 of them complete" in done.stdout
    assert "run-seed-0 starts" not in done.stdout
    summaries = [json.loads((run_dir.with_name(f"run-seed-{seed}") / "summary.json").read_text()) for seed in (0, 1)]
    for summary in summaries:
        for error in summary["final_errors"].values():
            assert f"{error:.2f}" in done.stdout
    compared = paretrain("compare", *(run_dir.with_name(f"run-seed-{seed}") for seed in (0, 1)))
    assert compared.stdout.splitlines() == done.stdout.splitlines()[-len(compared.stdout.splitlines()) :]
