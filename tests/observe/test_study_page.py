"""The page of a study, of results that are made here: what it draws for few, many and too many tasks."""

import re
from dataclasses import replace

import numpy as np
import pytest

from trainer.observe.study.page import study_page
from trainer.observe.study.results import Method, Results
from trainer.observe.study.tables import over_seeds


def results(num_tasks: int, metric: str = "accuracy") -> Results:
    """Each task's accuracy is .5 alone; `good` is 10 % better, `equal` as good, `bad` 10 % worse, `worst` 20 %."""
    tasks = [f"task-{place}" for place in range(num_tasks)]

    def method(name: str, value: float) -> Method:
        metrics = [{task: {metric: value + 0.001 * seed} for task in tasks} for seed in (-1, 0, 1)]
        return Method(name, metrics, np.ones(3), np.ones(3), 1, {})

    values = {"worst": 0.4, "good": 0.55, "fine": 0.52, "equal": 0.5, "bad": 0.45}
    alone = method("each task alone", 0.5)
    methods = [method(name, value) for name, value in values.items()]
    return Results("Mine", "test", [0, 1, 2], dict.fromkeys(tasks, metric), methods, alone, alone)


def test_changes_of_tasks_are_percentages_of_the_baseline():
    found = results(2)
    assert found.task_changes(found.methods[1]) == pytest.approx(np.array([[9.8] * 2, [10] * 2, [10.2] * 2]))


@pytest.mark.drawings
@pytest.mark.parametrize("num_tasks", [7, 40])
def test_many_tasks_are_drawn_around_a_circle_for_the_best_methods_and_the_first(num_tasks: int):
    page = study_page(results(num_tasks))
    heading, _, drawing = page.partition("further out")
    assert heading
    for said in ("good", "fine", "equal", "worst", *(f"task-{place}<" for place in range(num_tasks))):
        assert said in drawing.partition("<details>")[0]
    assert "bad" not in drawing.partition("<details>")[0]


@pytest.mark.parametrize("num_tasks", [2, 6, 49])
def test_few_and_very_many_tasks_are_not(num_tasks: int):
    assert "further out" not in study_page(results(num_tasks))


def test_a_mean_over_fewer_seeds_than_the_others_says_so():
    assert over_seeds(np.array([0.5, np.nan, 0.5])) == "0.5 ± 0 (n = 2)"
    assert over_seeds(np.array([0.5, 0.5])) == "0.5 ± 0"
    assert over_seeds(np.array([np.nan, np.nan])) == "–"


@pytest.mark.drawings
def test_metrics_that_are_not_defined_are_named_and_not_drawn():
    found = results(2)
    broken = replace(found.methods[0], metrics=[{}, *found.methods[0].metrics[1:]])
    page = study_page(replace(found, methods=[broken, *found.methods[1:]]))
    assert "not defined for all seeds: worst." in page
    alone = replace(found.methods[0], name="each task alone", metrics=[{}] * 3)
    page = study_page(replace(found, alone=alone, front=[alone], baseline=found.methods[1]))
    assert "Both tasks" in page
    assert "Dashed" not in page


@pytest.mark.drawings
def test_one_method_and_equal_methods_have_axes_that_can_be_read():
    found = results(2)
    same = [replace(found.methods[0], name=name) for name in ("first", "x" * 100)]
    one, equal = (replace(found, methods=methods, alone=None, baseline=methods[0]) for methods in (same[:1], same))
    assert "Differences" not in study_page(one)
    page = study_page(replace(equal, methods=[replace(m, metrics=m.metrics[:1] * 3) for m in equal.methods]))
    drawn = re.findall(r">([^<]*)</text>", page)
    assert "0.40" in " ".join(drawn)
    assert not any("1e" in said for said in drawn)
    assert f'<span class="long">{"x" * 100}</span>' in page


@pytest.mark.drawings
def test_methods_at_the_same_place_share_their_numbers():
    found = results(2)
    twin = replace(found.methods[1], name="twin")
    assert "2, 6</text>" in study_page(replace(found, methods=[*found.methods, twin]))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.01, 0.1, 1], ["4 of 5 methods chose lr=1,", "1 of 5 methods chose lr=0.01,"]),
        ([0.01, 1], []),
        ([0.001, 0.01, 1, 2], []),
        (["adam", "sgd", "muon"], []),
    ],
)
def test_choices_at_an_end_of_the_grid_are_named(values: list[float | str], said: list[str]):
    found = results(2)
    methods = [
        replace(method, chosen={"lr": 0.01 if number == 0 else 1}) for number, method in enumerate(found.methods)
    ]
    page = study_page(replace(found, methods=methods, grid={"lr": values}))
    assert page.count("an end of the grid") == len(said)
    assert all(sentence in page for sentence in said)


def test_a_task_without_a_number_leaves_a_gap():
    found = results(8)
    found.methods[1].metrics[0]["task-3"]["accuracy"] = None  # type: ignore[index]
    changes_T = found.task_changes(found.methods[1])[0]
    assert np.isnan(changes_T[3])
    assert np.isfinite(np.delete(changes_T, 3)).all()
    assert "further out" in study_page(found)


def test_errors_of_unlike_units_have_no_mean():
    assert "mean accuracy" in study_page(results(7))
    assert "mean mae" not in study_page(results(7, "mae"))
