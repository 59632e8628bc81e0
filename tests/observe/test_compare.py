"""The table of `paretrain compare`, of runs whose errors are known: task t of n has scale * t percent."""

import json
from pathlib import Path

import pytest
import yaml

from tests.support.pages import printed, report, row
from tests.support.run_folders import write_run
from trainer.errors import UserError
from trainer.observe.compare import comparison
from trainer.observe.read_run import read_run


def test_shows_each_task_the_worst_and_the_mean_and_marks_the_best(tmp_path: Path) -> None:
    tasks = ["left", "right"]
    low, high = write_run(tmp_path / "low", tasks), write_run(tmp_path / "high", tasks, scale=2.0)
    rows = printed(low, high)
    assert " ".join(row(rows, "low")) == "**1.00 **2.00 **2.00 **1.50 40 2 2 min 14 s **1,000"
    assert " ".join(row(rows, "high")) == "2.00 4.00 4.00 3.00 40 2 2 min 14 s 500"


def test_a_mean_over_fewer_tasks_is_not_compared_and_an_unfinished_run_is_named(tmp_path: Path) -> None:
    both, one = write_run(tmp_path / "both", ["left", "right"]), write_run(tmp_path / "one", ["left"], scale=0.5)
    begun = write_run(tmp_path / "begun", ["left", "right"], evals=False, finished=False)
    rows = printed(both, one, begun)
    assert row(rows, "one")[:4] == ["**0.50", "–", "–", "–"]
    assert row(rows, "both")[:4] == ["1.00", "2.00", "2.00", "1.50"]
    assert row(rows, "begun")[:4] == ["–", "–", "–", "–"]
    assert " ".join(rows[-1]).strip("*").endswith("not finished: begun")


def test_of_many_tasks_the_worst_and_the_mean_stand_for_all(tmp_path: Path) -> None:
    rows = printed(write_run(tmp_path / "many", [f"task{number}" for number in range(40)]))
    assert row(rows, "many")[:3] == ["40.00", "20.50", "40"]


def with_settings(run: Path, **balance: object) -> Path:
    settings = {
        "name": run.name,
        "output": str(run.parent),
        "balance": balance,
        "train": {"steps": 40, "patience": None},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


@pytest.mark.long
def test_only_settings_that_differ_have_columns(tmp_path: Path) -> None:
    runs = [
        with_settings(write_run(tmp_path / name, ["left"]), weighting="min_norm", normalise=name)
        for name in ("loss", "loss+")
    ]
    rows = printed(*runs)
    (heading,) = [line for line in map(" ".join, rows) if "normalise" in line]
    assert "weighting" not in heading
    assert [row(rows, name)[:2] for name in ("loss", "loss+")] == [["loss", "**1.00"], ["loss+", "**1.00"]]
    page = report(tmp_path / "page.html", *runs)
    assert page.row("loss+") == ["loss+", "loss+"]
    assert page.row("weights") == ["weights", "min_norm (loss)", "min_norm (loss+)"]


def evaluated(run: Path, **accuracies: float) -> Path:
    """The run, with an evaluation on val, where half of each task's labels are of one class."""
    metrics = {task: {"accuracy": value, "majority_accuracy": 0.5} for task, value in accuracies.items()}
    errors = {task: 100 * (1 - value) for task, value in accuracies.items()}
    with (run / "metrics.jsonl").open("a") as file:
        record = {"kind": "eval", "step": 40, "split": "val", "errors": errors, "metrics": metrics}
        file.write(json.dumps(record) + "\n")
    return run


def test_runs_are_compared_with_single_tasks_on_val(tmp_path: Path) -> None:
    tasks = ["left", "right"]
    good = evaluated(write_run(tmp_path / "good", tasks), left=0.9, right=0.8)
    bad = evaluated(write_run(tmp_path / "bad", tasks), left=0.6, right=0.8)
    alone = [evaluated(write_run(tmp_path / task, [task]), **{task: 0.8}) for task in tasks]
    rows = printed(good, bad, split="val", baseline=alone)
    # Errors of left and right, the worst and the mean; the mean of +12.5 and 0 %, of -25 and 0 %; mean ranks.
    assert row(rows, "good")[:6] == ["**10.00", "**20.00", "**20.00", "**15.00", "**+6.25", "**1.25"]
    assert row(rows, "bad")[:6] == ["40.00", "**20.00", "40.00", "30.00", "-12.50", "1.75"]
    assert next(words for words in rows if words[0] == "(always")[3:7] == ["50.00"] * 4


def test_a_metric_stands_in_place_of_the_errors(tmp_path: Path) -> None:
    tasks = ["left", "right"]
    good = evaluated(write_run(tmp_path / "good", tasks), left=0.9, right=0.8)
    bad = evaluated(write_run(tmp_path / "bad", tasks), left=0.6, right=0.8)
    rows = printed(good, bad, split="val", metric="accuracy")
    assert rows[0] == ["val", "accuracy"]
    assert row(rows, "good")[:4] == ["**0.9000", "**0.8000", "**0.8000", "**0.8500"]
    assert row(rows, "bad")[:4] == ["0.6000", "**0.8000", "0.6000", "0.7000"]
    with pytest.raises(UserError, match="--metric auroc: none of these runs has it there; found: accuracy, majority"):
        printed(good, bad, split="val", metric="auroc")


def test_a_split_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["left"])
    with pytest.raises(UserError, match="--split val: none of these runs was evaluated on it; found: test"):
        comparison([read_run(run)], "val")
    with pytest.raises(UserError, match="it has no metrics of the split test"):
        comparison([read_run(run)], "test", [read_run(run)])
