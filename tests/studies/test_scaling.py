"""What a step costs: the order of the turns, their summary, the page, and the small study from end to end."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from studies.scaling.figure import draw_costs
from studies.scaling.measure import EQUAL, METHODS, MGDA_UB, NORMALISED, PLAIN, QUICK, Missing, Row, Spread, spread
from studies.scaling.words import build_csv, build_json, build_page
from studies.turns import apart, take_turns
from tests.support.command import Command

ROWS = [
    Row(PLAIN, 2, [0.2, 0.2], [0.2, 0.2], 400.0),
    Row(MGDA_UB, 2, [0.2, 0.2, 0.2], [0.2, 0.3, 0.6], 500.0),
    Row(PLAIN, 4096, [0.3], [0.3], 600.0),
    Row(MGDA_UB, 4096, [0.3], [0.6], 700.0),
]
MISSING = [Missing(method, num_tasks, "over 180 s") for num_tasks in (2, 4096) for method in (EQUAL, NORMALISED)]


@pytest.mark.parametrize(("least", "most", "seconds", "expected"), [(0, 5, 0, 1), (2, 5, 0, 2), (0, 3, math.inf, 3)])
def test_turns_alternate_and_end(least: int, most: int, seconds: float, expected: int) -> None:
    calls: list[str] = []

    turns = take_turns(lambda: calls.append("a"), lambda: calls.append("b"), least, most, seconds)

    assert len(turns) == expected
    assert "".join(calls).startswith("baabbaab"[: len(calls)])


def test_the_spread_is_that_of_the_quartiles() -> None:
    assert spread(np.array([9, 1, 2, 3, 4])) == Spread(3, 2, 4, 5)


def test_a_ratio_is_of_neighbouring_turns() -> None:
    assert ROWS[1].ratio == Spread(pytest.approx(1.5), pytest.approx(1.25), pytest.approx(2.25), 3)


def test_the_page_and_the_numbers_have_all_rows_and_what_is_missing() -> None:
    page = build_page(ROWS, MISSING, "<svg></svg>", "today, this machine")
    assert "1.50 [1.25, 2.25]<br>n = 3, 500 MiB" in page
    assert "<td>over 180 s</td>" in page
    assert "With 4,096 tasks, a step of MGDA-UB takes 2.00 times" in page
    assert [row[:3] for row in csv.reader(build_csv(ROWS).splitlines())][1:] == [
        [PLAIN, "2", "2"],
        [MGDA_UB, "2", "3"],
        [PLAIN, "4096", "1"],
        [MGDA_UB, "4096", "1"],
    ]
    assert json.loads(build_json(ROWS, MISSING, "today"))["rows"][1]["step_N"] == [0.2, 0.3, 0.6]


def test_the_figure_has_the_aims_of_the_numbers_of_tasks_that_it_shows(tmp_path: Path) -> None:
    assert "aim of MGDA-UB" in draw_costs(ROWS, tmp_path / "costs.png")
    assert "aim of MGDA-UB" not in draw_costs(ROWS[:1], tmp_path / "costs.png")


@pytest.mark.processes
def test_a_process_of_its_own_answers_or_its_end_is_the_reason() -> None:
    assert apart(divmod, 7, 2, seconds=60, preload=[]) == (3, 1)
    assert apart(os._exit, 1, seconds=60, preload=[]) == "died"


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(600)
def test_the_small_study_measures_every_method(tmp_path: Path, paretrain: Command) -> None:
    done = paretrain("study", "scaling", "--quick", "--out", tmp_path, limit_seconds=580)

    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "study.json").read_text())
    assert numbers["missing"] == []
    assert [(row["num_tasks"], row["method"]) for row in numbers["rows"]] == [
        (num_tasks, method) for num_tasks in QUICK.num_tasks for method in METHODS
    ]
    assert all(len(row["step_N"]) >= QUICK.least_turns and min(row["step_N"]) > 0 for row in numbers["rows"])
    assert "<svg" in (tmp_path / "study.html").read_text()
    assert (tmp_path / "costs.png").stat().st_size > 0
