"""The report's tables of metrics: of one run by task, of several runs as means."""

from pathlib import Path

from tests.support.pages import report
from tests.support.run_folders import write_run
from trainer.observe.metrics import MetricsLog


def run_with(folder: Path, auroc: dict[str, float]) -> Path:
    """A run of imbalanced classifications and one number, evaluated once."""
    run = write_run(folder, [*auroc, "weight"], evals=False, finished=False)
    classes = {task: {"majority_accuracy": 0.95, "auroc": value} for task, value in auroc.items()}
    metrics = {**classes, "weight": {"mae": 2.0, "r2": None}}
    deciding = {**dict.fromkeys(auroc, "auroc"), "weight": "mae"}
    errors = dict.fromkeys(metrics, 5.0)
    log = MetricsLog(run / "metrics.jsonl", resume_step=40)
    log.write({"kind": "eval", "step": 40, "errors": errors, "metrics": metrics, "deciding": deciding})
    log.close()
    return run


def test_a_run_shows_its_metrics_beside_those_of_the_majority(tmp_path: Path) -> None:
    page = report(tmp_path / "report.html", run_with(tmp_path / "one", {"toxic": 0.7, "<b>": 0.9}))
    assert ["task", "majority accuracy", "auroc"] in page.rows
    assert ["toxic", "0.9500", "0.7000"] in page.rows
    assert ["<b>", "0.9500", "0.9000"] in page.rows
    assert ["mean", "0.9500", "0.8000"] in page.rows
    assert ["weight", "2.0000", "–"] in page.rows
    assert "always answering the most frequent class" in page.text


def test_several_runs_are_compared_by_means_and_ranks(tmp_path: Path) -> None:
    runs = run_with(tmp_path / "a", {"toxic": 0.7}), run_with(tmp_path / "b", {"toxic": 0.8})
    page = report(tmp_path / "report.html", *runs)
    assert page.row("auroc") == ["auroc", "0.7000", "0.8000"]
    assert page.row("rank by the metric that decides") == ["rank by the metric that decides", "1.75", "1.25"]
