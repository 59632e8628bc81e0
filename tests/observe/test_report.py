from pathlib import Path

import numpy as np
import pytest

from tests.support.pages import report
from tests.support.run_folders import write_run
from trainer.cli import main
from trainer.errors import UserError
from trainer.observe.metrics import MetricsLog
from trainer.observe.report import figures
from trainer.observe.report.page import write_report
from trainer.observe.report.tables import duration

HOSTILE = "<script>alert(1)</script> & \"quoted\" $x_1$ 'é'"


@pytest.mark.long
@pytest.mark.drawings
def test_one_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "digits", ["left", "right"])
    page = report(tmp_path / "deep" / "er" / "report.html", run)
    assert page.row("left") == ["left", "1.00", "1.00", "0.0250", "50.00"]
    assert page.row("mean")[:3] == ["mean", "1.50", "1.50"]
    assert page.tags.count("svg") == 10  # all figures but the gradient norm, which this run has not measured
    for unit in ("test error (%)", "weight α", "squared gradient norm", "samples/s", "data wait (%)", "cosine", "step"):
        assert unit in page.text
    assert "2 min 14 s" in page.text
    assert "-0.50" in page.text  # the conflict map of few tasks states its numbers
    assert "accelerate launch & <more>" in page.text
    assert "continues after <kill>" in page.text
    assert "has not finished" not in page.text
    assert "Predictions" not in page.text


@pytest.mark.long
@pytest.mark.drawings
def test_many_tasks_fold_the_table_and_draw_maps(tmp_path: Path) -> None:
    page = report(tmp_path / "report.html", write_run(tmp_path / "many", [f"task{index}" for index in range(20)]))
    shown = [row[0] for row in page.rows]
    assert shown[:4] == ["task", "mean", "task19", "task18"]  # the worst first
    assert len(shown) == 1 + 1 + 10 + 1 + 20
    assert sum(link.startswith("data:image/png") for link in page.links) == 6  # three maps and their colour bars
    assert "-0.50" not in page.text


@pytest.mark.long
def test_of_several_units_the_worst_of_each_stand_first(tmp_path: Path) -> None:
    names = [f"price{index}" for index in range(17)] + ["sold", "let", "void"]
    run = write_run(tmp_path / "many", names, evals=False, finished=False)
    errors = {name: 1e6 + index for index, name in enumerate(names[:17])} | {"sold": 3.5, "let": 70.0, "void": None}
    units = {name: "%" if name in ("sold", "let", "void") else "EUR" for name in names}
    log = MetricsLog(run / "metrics.jsonl", resume_step=40)
    log.write({"kind": "eval", "step": 40, "errors": errors, "units": units, "losses": {}, "samples": 9, "seconds": 1})
    log.close()
    shown = [row[0] for row in report(tmp_path / "report.html", run).rows]
    assert shown[2:8] == ["price16", "let", "price15", "sold", "price14", "void"]


@pytest.mark.long
def test_several_runs_stand_side_by_side_with_the_best_in_bold(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", ["left", "right"], scale=2.0)
    second = write_run(tmp_path / "second", ["left", "right"], scale=1.0, steps=20)
    page = report(tmp_path / "report.html", first, second)
    assert page.rows[0] == ["", "first", "second"]
    assert page.row("worst task's error (%)") == ["worst task's error (%)", "4.00", "2.00"]
    assert page.row("left error (%)") == ["left error (%)", "2.00", "1.00"]
    assert page.row("samples/s") == ["samples/s", "500", "1,000"]
    assert page.bold == ["2.00", "1.50", "1.00", "2.00", "1,000"]


@pytest.mark.long
def test_runs_of_different_tasks_and_states_compare(tmp_path: Path) -> None:
    empty = tmp_path / "elsewhere" / "same"
    empty.mkdir(parents=True)
    (empty / "config.yaml").write_text("name: same\n")
    unfinished = write_run(tmp_path / "same", ["depth", "left"], finished=False)
    many = write_run(tmp_path / "many", [f"task{index}" for index in range(20)])
    page = report(tmp_path / "report.html", many, unfinished, empty)
    assert page.rows[0] == ["", str(many), str(unfinished), str(empty)]  # two are called the same: their paths tell
    assert page.row("mean error (%)") == ["mean error (%)", "10.50", "1.50", "–"]
    assert page.text.count("has not finished") == 2


def test_an_unfinished_run_without_evaluation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "live", ["left", "right"], evals=False, finished=False, steps=25)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    page = report(tmp_path / "report.html", run)
    assert "live has not finished: step 25 of 25" in page.text
    assert page.row("right")[:3] == ["right", "–", "–"]
    assert "test error" not in page.text


def test_a_run_that_trains_on_after_its_end_is_not_finished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "longer", ["left"], steps=20)
    log = MetricsLog(run / "metrics.jsonl", resume_step=20)
    log.write({"kind": "eval", "step": 40, "errors": {"left": 0.25}, "losses": {}, "samples": 10, "seconds": 0.1})
    log.close()
    page = report(tmp_path / "report.html", run)
    assert "longer has not finished" in page.text
    assert page.row("left")[1] == "0.25"


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_has_just_begun(tmp_path: Path, steps: int) -> None:
    run = write_run(tmp_path / "new", ["left", "right"], steps=steps, finished=False)
    page = report(tmp_path / "report.html", run)
    assert ("no step is logged yet" in page.text) == (steps == 0)
    assert ("svg" in page.tags) == (steps == 1)


@pytest.mark.long
@pytest.mark.drawings
def test_all_text_is_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a<b>&c", [HOSTILE, "任务"])
    page = report(tmp_path / "report.html", run)
    assert "a<b>&c" in page.text
    assert page.row(HOSTILE)[1] == "1.00"
    assert "<script>alert" not in page.source
    assert "任务" in page.text
    assert ">$x$</text>" in figures.cosine_map(np.eye(2), ["$x$", "y"])  # no formula: it is a name


@pytest.mark.long
@pytest.mark.drawings
def test_the_same_numbers_give_the_same_drawing() -> None:
    steps_S = np.arange(1.0, 9.0)
    drawn = [figures.curves([figures.Line(steps_S, steps_S % 3, "#000000")], "loss", log=True) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert "(0 drawn at 1e-01)" in drawn[0]
    assert "drawn at" not in figures.curves([figures.Line(steps_S, steps_S, "#000000")], "loss", log=True)
    assert "(0 drawn at 1e-20)" in figures.curves([figures.Line(steps_S, 0 * steps_S, "#000000")], "gap", log=True)


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    for found, folder in {"no such folder": tmp_path / "no", "it holds nothing": tmp_path}.items():
        with pytest.raises(UserError, match=f"is not a run's folder: {found}"):
            write_report([folder], tmp_path / "report.html")
    (tmp_path / "cat.png").touch()
    with pytest.raises(UserError, match=r"holds cat\.png"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_report_refuses_a_run_named_twice_and_a_file_of_another_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "runs" / "digits", ["left"])
    mine = tmp_path / "mine.yaml"
    mine.write_text("mine")
    for arguments, said in (
        ([run, run.parent / "." / "digits"], "is named twice"),
        ([run, "--out", mine], "expected a file name that ends in .html"),
        ([run, "--out", ""], "expected a file name that ends in .html"),
        ([tmp_path], f"such as {run}"),
    ):
        assert main(["report", *map(str, arguments)]) == 2
        assert said in capsys.readouterr().err
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("content", ['{"torn', "[]"])
def test_a_damaged_summary_is_an_error(tmp_path: Path, content: str) -> None:
    run = write_run(tmp_path / "digits", ["left"])
    (run / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary\.json[\s\S]*rm "):
        write_report([run], tmp_path / "report.html")


def test_cosines_are_those_of_the_gradients() -> None:
    gradients_TD = np.random.default_rng(0).normal(size=(5, 7))
    gradients_TD[3] = 0
    found_TT = figures.cosines(gradients_TD @ gradients_TD.T)
    for row, column in np.ndindex(5, 5):
        left, right = gradients_TD[row], gradients_TD[column]
        if 3 in (row, column):
            assert np.isnan(found_TT[row, column])
        else:
            np.testing.assert_allclose(found_TT[row, column], left @ right / np.sqrt(left @ left * (right @ right)))


def test_tasks_that_agree_stand_together() -> None:
    camps_T = np.array([0, 1, 0, 1, 1, 0])
    order = figures.order_by_agreement(np.where(camps_T[:, None] == camps_T, 0.9, -0.9))
    assert sorted(order) == list(range(6))
    assert np.count_nonzero(np.diff(camps_T[order])) == 1


@pytest.mark.parametrize(
    ("seconds", "said"), [(8.14, "8.1 s"), (134, "2 min 14 s"), (3599.6, "1 h 00 min"), (11220, "3 h 07 min")]
)
def test_durations_read_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.long
@pytest.mark.drawings
def test_errors_stand_in_their_units(tmp_path: Path) -> None:
    runs = []
    for name, scale in (("first", 1.0), ("second", 0.5)):
        run = write_run(tmp_path / name, ["sold", "price", "rent"], evals=False, finished=False)
        log = MetricsLog(run / "metrics.jsonl", resume_step=40)
        errors = {"sold": 3.5, "price": 1234.5 * scale, "rent": 100.25}
        units = {"sold": "%", "price": "€ <net>", "rent": "€ <net>"}
        record = {"kind": "eval", "step": 40, "errors": errors, "units": units, "losses": {}}
        log.write(record | {"samples": 9, "seconds": 1})
        log.close()
        runs.append(run)
    page = report(tmp_path / "one.html", runs[0])
    assert page.row("price")[:2] == ["price", "1,234 € <net>"]
    assert page.row("sold")[:2] == ["sold", "3.50%"]
    assert page.row("mean")[:3] == ["mean", "–", "–"]
    assert "test error (€ <net>)" in page.text
    assert "test error (%)" in page.text
    page = report(tmp_path / "two.html", *runs)
    assert page.row("price error (€ <net>)")[1:] == ["1,234", "617.2"]
    assert page.row("mean error (€ <net>)")[1:] == ["667.4", "358.8"]
    assert page.row("mean error (%)")[1:] == ["3.50", "3.50"]


@pytest.mark.long
def test_a_watched_run_shows_where_a_task_ascends(tmp_path: Path) -> None:
    watched, other = (write_run(tmp_path / name, ["left", "right"], steps=30) for name in ("a<b>", "other"))
    log = MetricsLog(watched / "metrics.jsonl", resume_step=30)
    for step, slope, ascending in ((10, 0.5, 0), (20, -0.25, 1), (30, 0.75, 0)):
        log.write({"kind": "monitor", "step": step, "worst_slope": slope, "num_ascending": ascending})
    log.close()
    alone = report(tmp_path / "one.html", watched)
    assert alone.tags.count("svg") == 11
    assert "the loss that falls least" in alone.text
    assert "1 of 3 steps seen raise one, 1 at once at most" in alone.text
    both = report(tmp_path / "two.html", watched, other)
    assert "a<b>: 1 of 3 steps seen" in both.text
    assert "Descent" not in report(tmp_path / "none.html", other).text
