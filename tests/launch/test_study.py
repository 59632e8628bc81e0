"""`paretrain study` of training runs: the file, the runs, the choice of settings, and what is written."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml

from launch.study.check import check_study, refuse_unready
from launch.study.command import STUDIES
from launch.study.plan import Plan, distinct_slugs, plan_study
from launch.study.run import here, on_slurm, train_study, write_so_far
from launch.study.schema import read_study
from launch.submit import Job
from tests.support.command import Command
from tests.support.study_runs import trains
from trainer.cli import main
from trainer.config.file import load_config
from trainer.config.schema import Experiment
from trainer.errors import UserError
from trainer.observe.read_run import read_run
from trainer.observe.report.page import write_report
from trainer.observe.study.of_runs import results_of_runs
from trainer.observe.study.page import NUMBERS, PAGE, TABLE

STUDY: dict[str, Any] = {
    "title": "Two rules",
    "base": "config.yaml",
    "seeds": [0, 1, 2],
    "methods": {"equal weights": {"balance.weighting": "uniform"}, "MGDA <UB>": {"balance.weighting": "min_norm"}},
    "tune": {"grid": {"optimizer.learning_rate": [0.01, 0.1]}},
    "baseline": "single_task",
    "front": 3,
    "small": {"seeds": [0, 1], "methods": ["equal weights"], "grid": {}, "overrides": {"train.steps": 2}},
}


def quality(experiment: Experiment, split: str) -> float:
    """What the runs of these tests reach: min_norm is better at the smaller rate on val, the others at the larger."""
    is_min_norm, is_small = experiment.balance.weighting == "min_norm", experiment.optimizer.learning_rate == 0.01
    if split == "val":
        return 0.8 if is_min_norm == is_small else 0.7
    return 0.5 + 0.2 * is_min_norm + 0.01 * experiment.seed + (0.05 if experiment.data.tasks else 0.0)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    kept = {key: value for key, value in (STUDY | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False))
    return path


def plan(config: Path, *overrides: str, scale: str = "full", **changes: Any) -> Plan:
    path = write(config.parent, **changes)
    return plan_study(path, read_study(path).at(scale), config.parent / "out", overrides)


def test_every_method_gets_the_same_grid_and_the_same_seeds(config: Path) -> None:
    found = plan(config, "train.steps=4")
    assert [contender.name for contender in found.contenders] == [
        *("equal weights", "MGDA <UB>", "left alone", "right alone"),
        *("weights 1 and 0", "weights 0.5 and 0.5", "weights 0 and 1"),
    ]
    for contender in found.contenders:
        tuning = [point.experiment for seeds in found.tuning(contender) for point in seeds]
        assert [experiment.optimizer.learning_rate for experiment in tuning] == [0.01, 0.1]
        assert [experiment.seed for experiment in tuning] == [0, 0]
        final = [point.experiment for point in found.final(contender, 0)]
        assert [experiment.seed for experiment in final] == [0, 1, 2]
        assert {experiment.train.steps for experiment in final} == {4}
        assert final[0] == tuning[0]  # Not trained again.
        assert final == [load_config(found.base, point.overrides) for point in found.final(contender, 0)]
    alone = found.final(found.alone[1], 0)[0].experiment
    assert (alone.data.tasks, alone.balance.weighting) == (("right",), "uniform")
    middle = found.final(found.front[1], 0)[0].experiment
    assert middle.balance.weights == {"left": 0.5, "right": 0.5}


def test_a_study_tunes_on_val_trains_the_seeds_and_writes_what_it_finds(config: Path) -> None:
    found, calls = plan(config), []
    assert train_study(found, trains(quality, calls)) == 0
    tuned, trained = calls
    assert len(tuned) == 7 * 2
    assert len(trained) == 7 * 3
    assert "MGDA-UB-learning_rate-0.01-seed-2" in trained
    assert "equal-weights-learning_rate-0.1-seed-2" in trained
    numbers = json.loads((found.out / NUMBERS).read_text())
    equal, ours = numbers["methods"]
    assert ours["chosen"] == {"optimizer.learning_rate": 0.01}
    assert (equal["mean_rank"], ours["mean_rank"]) == ([2, 2, 2], [1, 1, 1])
    # Left alone reaches .55, .56 and .57, right alone .1 less: means of .56 and .46.
    expected = [50 * ((0.7 + 0.01 * seed) / 0.56 + (0.6 + 0.01 * seed) / 0.46 - 2) for seed in range(3)]
    assert ours["delta_m_percent"] == pytest.approx(expected)
    with (found.out / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    (row,) = [row for row in rows if (row["method"], row["metric"]) == ("MGDA <UB>", "delta_m_percent")]
    assert float(row["mean"]) == pytest.approx(fmean(expected))
    assert float(row["standard_error"]) == pytest.approx(stdev(expected) / 3**0.5)
    (row,) = [row for row in rows if list(row.values())[:3] == ["equal weights", "left", "accuracy"]]
    assert (float(row["mean"]), row["seeds"]) == (pytest.approx(0.51), "3")
    page = (found.out / PAGE).read_text()
    for said in ("MGDA &lt;UB&gt;", "0.710 ± 0.006", "Both tasks", "Ranks", "learning rate</th>", "<td>0.01</td>"):
        assert said in page
    assert "<UB>" not in page
    # The same command trains nothing: all is complete.
    everything = [point for contender in found.contenders for n in (0, 1) for point in found.final(contender, n)]
    runs = [point for name in trained for point in everything if point.experiment.name == name]
    assert len(runs) == len(trained)
    assert here(1)(found.base, runs) == 0


def test_a_run_that_is_not_complete_ends_the_study_before_its_page(config: Path) -> None:
    found = plan(config)
    assert train_study(found, lambda base, points: 75) == 75
    assert not found.out.exists()


def test_the_page_so_far_has_what_is_complete(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(config)
    with pytest.raises(UserError, match="no method"):
        write_so_far(found)
    trains(quality, [])(found.base, [point for runs in found.methods[1].runs for point in runs.values()])
    write_so_far(found)
    numbers = json.loads((found.out / NUMBERS).read_text())
    assert [method["name"] for method in numbers["methods"]] == [numbers["baseline"]] == ["MGDA <UB>"]
    assert (numbers["alone"], numbers["front"]) == (None, [])
    said = capsys.readouterr().out
    assert "6 of 7 are not complete: equal weights, left alone" in said
    assert "* MGDA <UB> 0.710 ± 0.006 0.610 ± 0.006" in " ".join(said.split())


def test_small_has_its_own_seeds_methods_and_grid(config: Path) -> None:
    found, calls = plan(config, scale="small", front=0), []
    train_study(found, trains(quality, calls))
    assert calls == [
        ["equal-weights-seed-0", "equal-weights-seed-1"]
        + [f"{task}-alone-seed-{seed}" for task in ("left", "right") for seed in (0, 1)]
    ]
    assert "Dashed: each task alone" in (found.out / PAGE).read_text()
    with pytest.raises(UserError, match="no section `small`"):
        plan(config, scale="small", small=None)


def test_metrics_that_are_not_defined_lose(config: Path) -> None:
    found = plan(config, front=0, baseline=None)

    def breaks(experiment: Experiment, split: str) -> float:
        return float("nan") if experiment.optimizer.learning_rate == 0.1 else quality(experiment, split)

    assert train_study(found, trains(lambda experiment, split: breaks(experiment, split), [])) == 0
    for method in json.loads((found.out / NUMBERS).read_text())["methods"]:
        assert method["chosen"] == {"optimizer.learning_rate": 0.01}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sedes": [0]}, "unknown key 'sedes'; did you mean 'seeds'?"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "each must occur once"),
        ({"tune": {"grid": {"optimizer.learning_rate": []}}}, "tune.grid.optimizer.learning_rate"),
        ({"tune": {"gird": {}}}, "unknown key 'tune.gird'; did you mean 'grid'"),
        ({"baseline": "equal weight"}, "no method 'equal weight'; did you mean 'equal weights'"),
        ({"small": {"methods": ["MGDA"]}}, "small.methods: no method 'MGDA'"),
        ({"overrides": {"seed": 3}}, "seed: a study sets it itself"),
        ({"methods": {"a": {"optimizer.learning_rate": 1.0}}}, "methods.a: optimizer.learning_rate is tuned"),
        ({"methods": {"a": {"balance.weighing": "uniform"}}}, "method 'a'.*did you mean 'weighting'"),
        ({"methods": {"a+": {}, "a-plus": {}}}, "'a\\+', 'a-plus' would share the folders"),
        ({"methods": {str(n): {} for n in range(201)}}, "methods: expected at most 200 items, found 201"),
        ({"methods": {" ": {}}}, "expected names of 1 to 120"),
        ({"methods": {"single_task": {}}}, "Type another name"),
        ({"methods": {"a": {"optimizer": {"learning_rate": 1.0}}}}, "methods.a: optimizer.learning_rate is tuned"),
        ({"methods": {"a": {"wandb": {"group": "x"}}}}, "wandb.group: a study sets it itself"),
        (
            {"tune": {"grid": {"optimizer.learning_rate": [0.1, 0.1]}}},
            "two points would be called NAME-learning_rate-0.1",
        ),
        ({"tune": {"grid": {f"options.{n}": list(range(30)) for n in range(9)}}}, "asks for about 137,781,000,000,021"),
        ({"front": 1}, "1 is no front"),
        ({"base": "other.yaml"}, "no configuration file"),
        ({"seeds": list(range(90)), "front": 101}, "expected at most 1,000"),
    ],
)
def test_a_bad_file_is_refused_before_anything_runs(config: Path, changes: dict[str, Any], said: str) -> None:
    without_small = {"small": None} if "methods" in changes else {}
    with pytest.raises(UserError, match=f"(?s){said}"):
        plan(config, **(without_small | changes))
    assert not (config.parent / "out").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("balance.weighting=uniform", r"'equal weights' of the study sets balance\.weighting"),
        ("balance={weighting: uniform}", r"'equal weights' of the study sets balance\.weighting"),
        ("optimizer.learning_rate=1", "'tune.grid' of the study sets"),
        ("seed=5", "a study sets seed itself"),
        ("wandb={group: x, mode: off}", "a study sets wandb.group itself"),
    ],
)
def test_an_override_of_what_the_study_sets_is_refused(config: Path, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(config, override)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dry-run"], "--dry-run is for Slurm: add --nodes"),
        (["--memory", "4G"], "--memory is for Slurm"),
        (["--check", "--so-far"], "type one of them"),
    ],
)
def test_options_without_effect_are_refused(
    config: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(write(config.parent)), *options]) == 2
    assert said in capsys.readouterr().err


def test_an_override_beside_what_the_study_sets_counts(config: Path) -> None:
    found = plan(config, "balance={normalise: l2}", "wandb={mode: off}", front=0, baseline=None)
    balances = [contender.runs[0][0].experiment.balance for contender in found.methods]
    assert [(balance.weighting, balance.normalise) for balance in balances] == [("uniform", "l2"), ("min_norm", "l2")]


def test_check_names_the_method_whose_rule_is_unknown(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_study(plan(config, tune=STUDY["tune"] | {"split": "test"}))
    assert "points of the grid: 2, seeds: 3; about 28 runs, 0 of them complete" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"a-seed-0 could not start, so the study is not ready.*did you mean"):
        check_study(plan(config, tune=None, methods={"a": {"balance.weighting": "unifrom"}}, small=None))


def test_a_study_that_cannot_be_trained_or_compared_is_refused_before_its_first_run(config: Path) -> None:
    with pytest.raises(UserError, match=r"tune.split: val: the runs are evaluated on test, .* train, test"):
        refuse_unready(plan(config))
    small = {"tune": None, "front": 0, "baseline": None}
    found = plan(config, "train.steps=9", "optimizer.schedule=constant", **small)
    (config.parent / "a file").touch()
    with pytest.raises(UserError, match="it is a file"):
        refuse_unready(dataclasses.replace(found, out=config.parent / "a file"))
    for key in ("train.start_from", "model.encoder.weights"):
        with pytest.raises(UserError, match=r"equal-weights-seed-0 could not start.*no such"):
            refuse_unready(plan(config, f"{key}={config.parent / 'nothing'}", **small))
    foreign = config.parent / "mine" / PAGE
    foreign.parent.mkdir()
    foreign.touch()
    with pytest.raises(UserError, match=f"{PAGE} is not that of a study"):
        refuse_unready(dataclasses.replace(found, out=foreign.parent))
    trains(quality, [])(found.base, [found.methods[0].runs[0][0]])
    refuse_unready(found)
    more = plan(config, "train.steps=10", "optimizer.schedule=constant", **small | {"seeds": [0, 7]})
    refuse_unready(more)  # The runs go on, and there is a new seed.
    fewer = plan(config, "train.steps=8", "optimizer.schedule=constant", **small)
    with pytest.raises(UserError, match=r"1 run has other settings .*equal-weights-seed-0:\n  train.steps: 9 -> 8"):
        refuse_unready(fewer)
    with pytest.raises(UserError, match=r"no method(.|\n)*train.steps: 9 -> 8"):
        write_so_far(fewer)
    other = plan(config, "train.steps=9", "optimizer.schedule=constant", "optimizer.momentum=0.5", **small)
    with pytest.raises(UserError, match=r"optimizer.momentum: 0.9 -> 0.5"):
        refuse_unready(other)
    run = found.methods[0].runs[0][0].experiment
    moved, edited = config.parent / "moved", config.parent / "edited"
    shutil.copytree(str(run.data.path), moved)
    refuse_unready(plan(config, "train.steps=9", "optimizer.schedule=constant", f"data.path={moved}", **small))
    shutil.copytree(moved, edited)
    (edited / "manifest.json").write_text((moved / "manifest.json").read_text().replace("left", "west"))
    with pytest.raises(UserError, match=r"data.path: .*edited, which are not the same data"):
        refuse_unready(plan(config, "train.steps=9", "optimizer.schedule=constant", f"data.path={edited}", **small))
    (run.run_dir / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no metrics of the split test.*metrics.jsonl was damaged"):
        refuse_unready(found)


def test_tasks_alone_have_a_folder_each_whatever_their_names() -> None:
    names = ["任务", "方法", "left", *("x" * 130 + end for end in "ab")]
    assert len(set(distinct_slugs(names))) == len(names)
    assert distinct_slugs(names)[2] == "left"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", ["full", "small"])
def test_the_configurations_of_our_studies_are_valid(path: Path, scale: str, tmp_path: Path) -> None:
    study = read_study(path).at(scale)
    without_data = study.model_copy(update={"baseline": None, "front": 0})  # Their runs are named after its tasks.
    plan_study(path, without_data, tmp_path, [])


def test_on_slurm_a_study_is_an_array_of_what_is_missing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(config, tune=None, front=0)
    runs = found.final(found.methods[1], 0)
    on_cluster = on_slurm(Job(1, 1), dry_run=True)
    trains(quality, [])(found.base, runs[:1])
    assert on_cluster(found.base, runs[:1]) == 0  # Nothing to submit.
    assert train_study(found, lambda base, points: on_cluster(base, runs)) == 75
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-1" in script
    assert ["seed-0" in script, "MGDA-UB-seed-1" in script, "MGDA-UB-seed-2" in script] == [False, True, True]


def test_a_report_of_runs_that_differ_in_their_seeds_is_a_study(config: Path) -> None:
    found = plan(config, tune=None, front=0, baseline=None)
    runs = [point for contender in found.contenders for point in found.final(contender, 0)]
    trains(quality, [])(found.base, runs)
    folders = [point.experiment.run_dir for point in runs]
    write_report(folders, config.parent / "report.html")
    page = (config.parent / "report.html").read_text()
    for said in ("2 methods, 2 tasks, 3 seeds", "weighting min_norm", "0.710 ± 0.006", "+44"):
        assert said in page
    results = results_of_runs([read_run(folder) for folder in folders[:-1]])
    assert results is None  # A method lacks a seed.
    edited = folders[0] / "config.yaml"
    edited.write_text(edited.read_text().replace("seed: 0", "seed: [0]"))
    assert results_of_runs([read_run(folder) for folder in folders]) is None


@pytest.mark.slow
def test_the_command_trains_what_is_missing_and_writes_the_page(config: Path, paretrain: Command) -> None:
    seeds = {"seeds": [0, 1], "tune": None, "front": 0, "small": None, "baseline": None}
    found = plan(config, "train.steps=2", **seeds)
    trains(quality, [])(found.base, found.final(found.methods[0], 0))
    command = ("study", config.parent / "mine.yaml", "train.steps=2", "--out", found.out)
    done = paretrain(*command, limit_seconds=280)
    assert done.returncode == 0, done.stderr
    assert "4 runs, 2 of them complete" in done.stdout
    assert f"page: {found.out / PAGE}" in done.stdout
    numbers = json.loads((found.out / NUMBERS).read_text())
    assert [len(method["seconds"]) for method in numbers["methods"]] == [2, 2]
