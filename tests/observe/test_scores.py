"""Segmentation has a score among the errors: of mIoU more is better, wherever runs and tasks are compared."""

from pathlib import Path

import pytest

from models import tasks
from tests.support.pages import printed, report, row
from tests.support.run_folders import write_run
from trainer.observe import units
from trainer.observe.metrics import MetricsLog, errors_so_far
from trainer.observe.progress import eval_line
from trainer.observe.tracker import flatten

UNITS = {"semantic": "% mIoU", "parts": "% mIoU", "instance": "px"}
IOU = {"road": 90.0, "car": 30.5, "train": None}


def evaluation(step: int, semantic: float | None, parts: float | None = 50.0, instance: float = 10.0) -> dict:
    errors = {"semantic": semantic, "parts": parts, "instance": instance}
    common = {"losses": dict.fromkeys(UNITS, 1.0), "samples": 9, "duration_seconds": 2.0}
    by_class = {"semantic": IOU | {"car": semantic and semantic / 2}}
    return {"kind": "eval", "step": step, "errors": errors, "units": UNITS, "by_class": by_class, **common}


def run_of(folder: Path, semantic: float) -> Path:
    run = write_run(folder, list(UNITS), evals=False, finished=False)
    log = MetricsLog(run / "metrics.jsonl", resume_step=40)
    log.write(evaluation(20, semantic / 2))
    log.write(evaluation(40, semantic))
    log.close()
    return run


def test_the_unit_is_that_of_the_task() -> None:
    assert units.MIOU == tasks.MIOU == tasks.Segmentation("x", ("a", "b")).unit
    assert units.with_unit(66.634, units.MIOU) == "66.63% mIoU"


def test_the_best_evaluation_has_the_highest_score() -> None:
    found = errors_so_far([evaluation(1, 20.0), evaluation(2, 60.0), evaluation(3, 55.0)])
    assert (found["best_step"], found["best_errors"]["semantic"]) == (2, 60.0)
    # From 80 to 60 it lacks a half more; that outweighs a quarter fewer pixels.
    found = errors_so_far([evaluation(1, 80.0, instance=12.0), evaluation(2, 60.0, instance=9.0)])
    assert found["best_step"] == 1
    assert errors_so_far([evaluation(1, None), evaluation(2, 0.5)])["best_step"] == 2


@pytest.mark.drawings
def test_an_evaluation_tells_scores_from_errors() -> None:
    assert eval_line(evaluation(5, 54.587)) == (
        "eval at step 5  error instance 10 px  semantic 54.59% mIoU parts 50.00% mIoU  in 2.0 s"
    )
    many = evaluation(5, 54.0)
    many["errors"] |= {f"p{number}": 60.0 for number in range(4)}
    many["units"] = dict.fromkeys(many["errors"], "% mIoU")
    many["errors"].pop("instance")
    assert "  mean 57.33% mIoU worst 50.00% mIoU (parts)  in" in eval_line(many)
    assert "error" not in eval_line(many)


def test_runs_are_compared_by_the_higher_score(tmp_path: Path) -> None:
    low, high = run_of(tmp_path / "low", 40.0), run_of(tmp_path / "high", 60.0)
    rows = printed(low, high)
    assert row(rows, "high")[:4] == ["**60.00", "**50.00", "**50.00", "**55.00"]
    assert row(rows, "low")[:4] == ["40.00", "**50.00", "40.00", "45.00"]
    page = report(tmp_path / "both.html", low, high)
    assert page.row("semantic mIoU (%)")[1:] == ["40.00", "60.00"]
    assert page.row("worst task's mIoU (%)")[1:] == ["40.00", "50.00"]
    assert page.row("instance error (px)")[1:] == ["10", "10"]
    assert page.row("car")[1:] == ["20.00", "30.00"]
    assert page.row("train")[1:] == ["–", "–"]
    assert {"60.00", "30.00"} <= set(page.bold)
    assert not {"40.00", "20.00"} & set(page.bold)


@pytest.mark.long
@pytest.mark.drawings
def test_one_run_shows_its_score_and_its_classes(tmp_path: Path) -> None:
    page = report(tmp_path / "one.html", run_of(tmp_path / "run", 40.0))
    assert page.row("semantic")[1:3] == ["40.00% mIoU", "40.00% mIoU"]
    for text in ("Score of the worst task", "test mIoU (%)", "test error (px)", "error or score", "its 3 classes (%)"):
        assert text in page.text
    assert page.row("road") == ["road", "90.00"]


def test_wandb_gets_each_class() -> None:
    flat = flatten(evaluation(5, 40.0))
    assert flat["eval/by_class/semantic/road"] == 90.0
    assert "eval/by_class/semantic/train" not in flat
    assert flat["eval/errors/semantic"] == 40.0


@pytest.mark.parametrize(("errors", "first"), [({"semantic": 60.0, "parts": 30.0}, "parts"), ({"parts": 1.0}, "parts")])
def test_the_lowest_score_stands_first(errors: dict[str, float], first: str) -> None:
    assert units.worst_first(["semantic", "parts"], errors, UNITS)[0] == first
