"""The commands that say what combining tasks wins, in this process."""

import csv
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from paretrain.theory.coupling import penalty_grid
from tests.support.ranks import run_ranks
from tests.support.runs import checkpoint
from trainer.cli import main
from trainer.commands.evaluated import evaluate_checkpoint
from trainer.commands.refit import refit_run
from trainer.commands.refit_judge import judge
from trainer.data.sources.digits import write_digits
from trainer.data.sources.table import write_table
from trainer.data.sources.tables.options import TableColumns
from trainer.training.evaluate import Evaluation


@pytest.fixture(autouse=True)
def coarse_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer penalties: each takes a fixed point of its own."""
    module = sys.modules["paretrain.theory.coupling.couple"]
    monkeypatch.setattr(module, "penalty_grid", partial(penalty_grid, 0.1, 10, per_decade=1))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two alike numbers, one of them often missing, and two classes, from 6 features."""
    folder = tmp_path_factory.mktemp("table")
    generator = np.random.default_rng(0)
    features = generator.standard_normal((90, 6))
    common = features @ generator.standard_normal(6)
    with (folder / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"f{i}" for i in range(6)), "<b>", "often missing", "sign"])
        for row, value in zip(features, common, strict=True):
            second = "" if generator.random() < 0.4 else round(value + generator.standard_normal(), 3)
            sign = "up" if value + generator.standard_normal() > 0 else "down"
            writer.writerow([*row.round(3), round(value + generator.standard_normal(), 3), second, sign])
    write_table(folder / "t.csv", folder / "data", TableColumns(["<b>", "often missing", "sign"]))
    return folder / "data"


@pytest.mark.long
def test_a_table_gets_its_advice(table, tmp_path, capsys):
    out = tmp_path / "advice.html"

    assert main(["couple", str(table), "--samples", "40", "--out", str(out)]) == 0

    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "advice.json").read_text())
    page = out.read_text()
    assert found["tasks"] == ["<b>", "often missing", "sign"]
    assert found["design"] == "some rows shared"
    assert found["samples"] == 40 < found["predicted_for_samples"]
    assert found["ratio_T"][0] == pytest.approx(6 / found["predicted_for_samples"])
    assert found["sentence"] in shown
    assert "theory of independent rows" in shown
    assert "theory of independent rows" in page
    assert page.count("<svg") == 2
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.long
def test_tasks_with_all_labels_share_their_rows(table, tmp_path, capsys):
    arguments = ["couple", str(table), "--tasks", "<b>", "sign", "--samples", "40", "--out", str(tmp_path / "a.html")]

    assert main(arguments) == 0

    assert "theory of shared rows" in capsys.readouterr().out


def test_images_and_other_folders_are_refused(tmp_path, capsys):
    write_digits(tmp_path / "digits", train_samples=40, test_samples=10)

    assert main(["couple", str(tmp_path / "digits")]) == 2
    assert "holds images" in capsys.readouterr().err
    assert main(["couple", str(tmp_path)]) == 2
    assert "neither a run's folder" in capsys.readouterr().err


def test_what_no_theory_can_advise_on_is_refused(table, tmp_path, capsys):
    (tmp_path / "flat.csv").write_text("x,a,b\n" + "".join(f"1,{row / 8},{(7 * row) % 5 + 0.5}\n" for row in range(60)))
    write_table(tmp_path / "flat.csv", tmp_path / "flat", TableColumns(["a", "b"]))

    for arguments, phrase in [
        ([table, "--tasks", "<b>"], "there is one task, <b>"),
        ([table, "--step", "3"], "--step 3 is that of a run"),
        ([tmp_path / "flat"], "no feature has two values"),
    ]:
        assert main(["couple", *map(str, arguments), "--out", str(tmp_path / "a.html")]) == 2
        assert phrase in capsys.readouterr().err


def test_an_unknown_study_names_those_that_there_are(capsys):
    assert main(["study", "double-decent"]) == 2

    error = capsys.readouterr().err
    assert "did you mean 'double-descent'" in error


def test_a_file_is_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n\n"
        "def run(out: Path, quick: bool, processes: int) -> Path:\n"
        "    if not quick:\n        1 / 0\n"
        "    (out / 'page.html').write_text(f'{quick} {processes}')\n"
        "    return out / 'page.html'\n"
    )

    assert main(["study", "mine.py", "--quick", "--processes", "3"]) == 0
    assert (tmp_path / "study-mine" / "page.html").read_text() == "True 3"
    assert main(["study", "mine.py"]) == 2
    assert "mine.py:5" in capsys.readouterr().err
    assert main(["study", "other.py"]) == 2
    assert "no file" in capsys.readouterr().err
    (tmp_path / "forgets.py").write_text("def run(out, quick, processes):\n    pass\n")
    assert main(["study", "forgets.py"]) == 2
    assert "has returned None; expected a function run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run_dir(table: Path) -> Path:
    """A run of a few steps only: its encoder is nearly random, and its heads are far from their best."""
    values = {
        "name": "run",
        "output": str(table.parent / "runs"),
        "data": {"path": str(table), "workers": 0},
        "model": {"encoder": {"name": "mlp", "options": {"hidden": [16]}}, "head": {"name": "mlp"}},
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "train": {"steps": 3, "global_batch": 16, "eval_every_steps": 3},
        "checkpoint": {"every_steps": 3},
    }
    config = table.parent / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    assert main(["train", str(config)]) == 0
    return table.parent / "runs" / "run"


def evaluated(run_dir: Path) -> Evaluation:
    return evaluate_checkpoint(run_dir, "test", None, None).found


@pytest.mark.processes  # a run asks git which commit it is of
def test_refitted_heads_are_a_run_of_their_own(run_dir, tmp_path, capsys):
    out, again = tmp_path / "refitted", tmp_path / "again"

    assert main(["refit", str(run_dir), "--out", str(out)]) == 0

    found = json.loads((out / "refit.json").read_text())
    assert next(iter(found["validated"])) == "each alone"
    assert "coupled by theory" in found["validated"]
    assert [task["task"] for task in found["tasks"]] == ["<b>", "often missing", "sign"]
    new = [task["task"] for task in found["tasks"] if task["head"] != "as trained"]
    assert "<b>" in new
    for task in found["tasks"]:
        is_better = task["loss"]["after"] < task["loss"]["before"] - 2 * task["loss"]["error"]
        assert (task["task"] in new) == (is_better and task["error"]["after"] <= task["error"]["before"])
    before, after = evaluated(run_dir), evaluated(out)
    assert after.errors["<b>"] < before.errors["<b>"]
    assert main(["export", str(out), "--out", str(tmp_path / "model.safetensors")]) == 0
    assert main(["refit", str(run_dir), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err

    assert main(["refit", str(out), "--out", str(again)]) == 0  # now there is nothing to win

    assert "<b>" in capsys.readouterr().out.split("as trained: ")[1]
    assert evaluated(again).losses["<b>"] == after.losses["<b>"]


@pytest.mark.processes
def test_a_task_keeps_a_head_of_its_own_kind(run_dir, tmp_path, monkeypatch):
    """The trained heads are MLPs; the outputs of those that are kept do not change by a bit."""
    out = tmp_path / "mixed"

    def only_the_first(run, fitted, split, ids):
        found = judge(run, fitted, split, ids)
        return [replace(found[0], head="each alone"), *(replace(one, head="as trained") for one in found[1:])]

    monkeypatch.setattr("trainer.commands.refit.judge", only_the_first)
    assert main(["refit", str(run_dir), "--out", str(out)]) == 0

    model = yaml.safe_load((out / "config.yaml").read_text())["model"]
    assert (model["head"]["name"], model["linear_heads"]) == ("mlp", ["<b>"])
    before, after = evaluated(run_dir), evaluated(out)
    assert after.errors["<b>"] != before.errors["<b>"]
    for kept in ("often missing", "sign"):
        assert after.losses[kept] == pytest.approx(before.losses[kept], rel=1e-6)
    assert main(["export", str(out), "--out", str(tmp_path / "model.safetensors")]) == 0


def refitted_by_two(rank: int, run_dir: Path, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    refit_run(run_dir, out, None, processes=2)


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_refit_as_one(run_dir, tmp_path):
    refit_run(run_dir, tmp_path / "one", None)
    run_ranks(2, refitted_by_two, run_dir, tmp_path / "two", limit_seconds=180)

    one, two = (checkpoint(tmp_path / name)[0] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    verdicts = [json.loads((tmp_path / name / "refit.json").read_text())["tasks"] for name in ("one", "two")]
    for of_one, of_two in zip(*verdicts, strict=True):
        assert (of_one["head"], of_one["samples"]) == (of_two["head"], of_two["samples"])
        assert of_one["loss"] == pytest.approx(of_two["loss"], rel=1e-4)


@pytest.mark.processes
def test_a_runs_representation_gets_its_advice(run_dir, tmp_path, capsys):
    assert main(["couple", str(run_dir), "--samples", "40", "--tasks", "<b>", "sign"]) == 0

    assert "representation" in (run_dir / "couple.html").read_text()
    assert json.loads((run_dir / "couple.json").read_text())["design"] == "shared rows"
