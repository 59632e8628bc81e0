"""`paretrain submit`: the script that it writes, and what it refuses. The cluster's side: cluster/test_slurm.py."""

import json
import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launch.before_submit import check_runs
from launch.grid import points
from launch.submit import OF_GPUS, Job, render, submit
from tests.support.shellcheck import shellcheck
from trainer.errors import UserError

FAKE_SBATCH = """#!/bin/sh
cp "$2" {copy}
echo "12;cluster"
"""


def header(script: str) -> dict[str, str]:
    """The script's options of sbatch."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {key: "".join(shlex.split(value)) for key, _, value in (line.partition("=") for line in lines)}


def arguments(script: str, task: int | None = None) -> tuple[str, list[str]]:
    """The run's folder and what the trainer is called with, as bash itself reads them."""
    values, _, _ = script.partition("set -euo pipefail")
    probe = values + 'printf "%s\\0" "$RUN_DIR" "$@"'
    environment = os.environ | ({} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)})
    said = subprocess.run(["bash", "-c", probe], env=environment, capture_output=True, text=True, check=True).stdout
    run_dir, *words = said.rstrip("\0").split("\0")
    return run_dir, words


def test_one_run_is_one_job_with_its_numbers(config: Path, run_dir: Path, tmp_path: Path) -> None:
    job = Job(nodes=2, processes_per_node=4, options=("--time=2:00:00", "--constraint=a b"))
    overrides = ["data.workers=2", "data.tasks=[left]", *job.overrides]
    script = render(config, points(config, overrides, []), job)
    found = header(script)
    assert (found["nodes"], found["ntasks-per-node"], found["cpus-per-task"]) == ("2", "1", "12")
    assert (found["job-name"], found["time"], found["constraint"]) == ("run", "2:00:00", "a b")
    assert found["signal"] == "B:USR1@300"
    assert "requeue" in found
    assert "gpus-per-node" not in found
    assert found["output"] == f"{run_dir}/logs/slurm-%j.out"
    assert arguments(script) == (str(run_dir), [str(config), *overrides])
    path = tmp_path / "script"
    path.write_text(script)
    assert shellcheck(path) == ""


def test_a_grid_is_an_array_with_a_run_for_each_task(config: Path, run_dir: Path, tmp_path: Path) -> None:
    job = Job(nodes=1, processes_per_node=2, parallel=3)
    grid = ["seed=0,1", "balance.weights={left: 1, right: 0},{left: 0.5, right: 0.5}"]
    runs = points(config, ["balance.weighting=fixed", "parallel.device=cuda", *job.overrides], grid)
    script = render(config, runs, job)
    found = header(script)
    assert (found["array"], found["job-name"], found["gpus-per-node"]) == ("0-3%3", "run", "2")
    assert len({arguments(script, task)[0] for task in range(4)}) == 4
    folder, words = arguments(script, 2)
    assert folder == str(run_dir.with_name("run-seed-1-weights-left_1_right_0"))
    assert {"seed=1", "balance.weights={left: 1, right: 0}", "wandb.group=run"} <= set(words)
    path = tmp_path / "script"
    path.write_text(script)
    assert shellcheck(path) == ""


def test_gives_sbatch_the_script_that_a_dry_run_prints(
    config: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(FAKE_SBATCH.format(copy=shlex.quote(str(taken))))
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    job = Job(nodes=1, processes_per_node=2)
    runs = points(config, job.overrides, [])
    submit(config, runs, job, dry_run=True)
    printed = capsys.readouterr().out
    assert not run_dir.exists()
    submit(config, runs, job, dry_run=False)
    assert taken.read_text() == printed == (run_dir / "submit.sbatch").read_text()
    assert capsys.readouterr().out.startswith("job 12: run, ")
    (run_dir / "stop").touch()
    with pytest.raises(UserError, match=f"rm {run_dir}/stop"):
        submit(config, runs, job, dry_run=False)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Job(1, 2, options=("--time=5",)), r"--time 5 is 300 s.*at least --time 10 \(minutes\)"),
        (Job(1, 2, options=("--time=soon",)), "found --time 'soon', expected minutes"),
        (Job(1, 2, options=(f"--time={'9' * 5000}",)), "found --time '9999"),
        (Job(1, 2, options=("--mem=lots",)), "found --memory 'lots', expected a whole number"),
        (Job(1, 2, options=("-x",)), "found --sbatch '-x', expected a long option"),
        (Job(1, 3), "train.global_batch=40 cannot be divided among parallel.processes=3"),
    ],
)
def test_refuses_what_could_not_run(config: Path, job: Job, said: str) -> None:
    with pytest.raises(UserError, match=said):
        render(config, points(config, job.overrides, []), job)


@pytest.mark.parametrize("option", ["--gres=gpu:h100:2", "--gpus=4", "--gpus-per-task=2"])
def test_gpus_in_other_words_of_sbatch_are_not_asked_for_twice(config: Path, option: str) -> None:
    job = Job(2, 2, options=(option,))
    found = header(render(config, points(config, ["parallel.device=cuda", *job.overrides], []), job))
    asked = {key: found[key] for key in OF_GPUS if key in found}
    assert asked == dict([option.removeprefix("--").split("=", 1)])


@pytest.mark.parametrize("time", ["UNLIMITED", "infinite", "0", "-1"])
def test_a_job_may_have_no_time_limit(config: Path, time: str) -> None:
    job = Job(1, 2, options=(f"--time={time}",))
    assert header(render(config, points(config, job.overrides, []), job))["time"] == time


CLUSTER = {
    "sinfo": """case "$*" in
  *--partition=gpu*) echo 'gpu gpu:h100:8(S:0-1)' ;;
  *--partition=mixed*) printf 'mixed gpu:2\\nmixed (null)\\n' ;;
  *--partition*) exit 1 ;;
  *) printf 'cpu* (null)\\ngpu gpu:8\\n' ;;
esac""",
    "scontrol": "printf 'MaxArraySize            = 3\\nMaxJobCount = 10\\n'",
    "sbatch": "echo 12",
}


def test_refuses_what_the_cluster_lacks(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name, body in CLUSTER.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def submitted(*options: str, grid: str = "", prologue: Path | None = None) -> None:
        job = Job(1, 2, options=options, prologue=prologue)
        submit(config, points(config, job.overrides, [grid] if grid else []), job, dry_run=False)

    with pytest.raises(UserError, match=r"partition gpu has GPUs(.|\n)*parallel\.device=cuda(.|\n)*--gres=none"):
        submitted("--partition=gpu")
    for options in (("--partition=gpu", "--gres=none"), ("--partition=mixed",), ("--partition=unknown",), ()):
        submitted(*options)
    submitted(grid="seed=0,1,2")
    with pytest.raises(UserError, match="4 runs, and an array of this cluster has 3 at most"):
        submitted(grid="seed=0,1,2,3")
    with pytest.raises(UserError, match="no such file here"):
        submitted(prologue=tmp_path / "missing.sh")


def test_refuses_a_job_of_no_processes() -> None:
    with pytest.raises(UserError, match="expected 1 or more of each"):
        Job(0, 2)


def test_says_what_to_type_where_there_is_no_slurm(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    job = Job(1, 2)
    with pytest.raises(UserError, match=r"no sbatch on this machine(.|\n)*--dry-run(.|\n)*--processes 2"):
        submit(config, points(config, job.overrides, []), job, dry_run=False)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.path=nowhere", "nowhere"),
        ("data.tasks=[lift]", "did you mean 'left'"),
        ("model.encoder.name=resnet19", "resnet19"),
        ("balance.weighting=mgda", "did you mean 'min_norm'"),
        ("train.global_batch=402", "402"),
        ("train.select={}", "train.eval_split=test"),
    ],
)
def test_what_could_not_start_is_not_submitted(override: str, said: str, config: Path) -> None:
    (point,) = points(config, [override, *Job(1, 2).overrides], [])
    with pytest.raises(UserError, match="run could not start, so nothing was submitted") as caught:
        check_runs([point.experiment], so="nothing was submitted")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "prologue", "said"),
    [("data.path=nowhere", None, "run could not start, so nothing was submitted"), ("seed=1", "gone.sh", "gone.sh")],
)
def test_a_dry_run_refuses_what_a_submission_would(
    override: str, prologue: str | None, said: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(1, 2, prologue=Path(prologue) if prologue else None)
    with pytest.raises(UserError, match=said):
        submit(config, points(config, [override, *job.overrides], []), job, dry_run=True)
    assert capsys.readouterr().out.startswith("#!/usr/bin/env bash")


def test_a_job_without_gpus_says_so(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for device, says in (("cpu", True), ("cuda", False)):
        job = Job(1, 8)
        submit(config, points(config, [f"parallel.device={device}", *job.overrides], []), job, dry_run=True)
        assert ("add parallel.device=cuda" in capsys.readouterr().err) == says


HOSTILE = "a'b\"; touch harmed; $(touch harmed) `touch harmed` & | > harmed #*~!"


def test_what_a_shell_reads_otherwise_arrives_as_it_is(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / HOSTILE
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(config.read_text())
    job = Job(1, 2, container=HOSTILE, mounts=HOSTILE, options=(f"--comment={HOSTILE}", f"--partition={HOSTILE}"))
    overrides = [f"data.path={json.dumps(HOSTILE)}", f"output={json.dumps(str(folder))}", *job.overrides]
    script = render(path, points(path, overrides, []), job)
    run_dir, words = arguments(script)
    assert (run_dir, words) == (str(folder / "run"), [str(path), *overrides])
    assert header(script)["comment"] == header(script)["partition"] == HOSTILE
    values, _, _ = script.partition("set -euo pipefail")
    said = subprocess.run(
        ["bash", "-c", values + 'printf %s "$CONTAINER_IMAGE"'], capture_output=True, text=True, check=True
    ).stdout
    assert said == HOSTILE
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("bad", ["x\n#SBATCH --uid=0", "x\r", "x\x1b[0m", "x\u2028y", "x\x7f"])
@pytest.mark.parametrize("where", ["option", "container", "mounts", "config", "override"])
def test_a_line_break_becomes_no_line_of_the_script(where: str, bad: str, config: Path, tmp_path: Path) -> None:
    path, overrides, job = config, ["parallel.processes=2"], Job(1, 2)
    if where == "option":
        job = replace(job, options=(f"--partition={bad}",))
    elif where == "config":
        path = tmp_path / bad.replace("/", "_")
        path.write_text(config.read_text())
    elif where == "override":
        overrides.append(f"data.path='{bad}'")
    else:
        job = replace(job, **({"container": "image"} | {where: bad}))
    with pytest.raises(UserError, match=r"control characters|is not YAML"):
        render(path, points(path, overrides, []), job)


@pytest.mark.parametrize("job", [{"container": ""}, {"container": "x", "mounts": ""}])
def test_refuses_an_empty_value(job: dict[str, str]) -> None:
    with pytest.raises(UserError, match="is empty"):
        Job(1, 2, **job)


def test_refuses_an_option_without_its_value(config: Path) -> None:
    job = Job(1, 2, options=("--partition=",))
    with pytest.raises(UserError, match="--partition=', expected a long option"):
        render(config, points(config, job.overrides, []), job)


def test_refuses_a_grid_larger_than_an_array(config: Path) -> None:
    axis = "seed=" + ",".join(map(str, range(40)))
    with pytest.raises(UserError, match="1,600 runs, expected at most 1,000"):
        points(config, [], [axis, axis.replace("seed", "train.steps")])
