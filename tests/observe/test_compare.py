"""The table of `paretrain compare`, of runs whose errors are known: task t of n has scale * t percent."""

from pathlib import Path

from tests.support.pages import printed, row
from tests.support.run_folders import write_run


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
