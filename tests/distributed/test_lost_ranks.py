"""A rank of a run is killed, stopped, or fails: the other one ends soon, and its error names the rank and the place.

Under every strategy; `make test` tries each kind of fault under DDP alone.
"""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launch.diagnose.diagnosis import diagnose
from tests.support.ranks import RankFailed, run_ranks
from trainer.config.schema import Experiment
from trainer.data.sources.digits import write_digits
from trainer.errors import FaultError, LostPeerError, UserError
from trainer.runtime.faults import guard, roll_call
from trainer.runtime.faults.records import RECORD
from trainer.runtime.faults.watch import Watch
from trainer.train import train

STRATEGIES = ("fsdp2", "zero1", "zero2", "zero3")
"""Besides DDP."""
STEP_TIMEOUT_SECONDS = 10.0
HOST = os.uname().nodename
LOST = f"rank 0 on {HOST} stopped: another process of this run"
FOUND = r"Found in (step \d|the checkpoint of step \d), .*at (trainer|models|paretrain)/\S+:\d+ in \w+: "


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder, train_samples=80, test_samples=20)
    return folder


def an_experiment(digits: Path, output: Path, strategy: str, encoder: dict[str, str], **others: Any) -> Experiment:
    values = {
        "name": strategy,
        "output": output,
        "data": {"path": str(digits)},
        "model": {
            "encoder": {"name": "tests.support.breaking.Breaking", "options": encoder},
            "head": {"name": "linear"},
        },
        "optimizer": {"name": "sgd", "learning_rate": 0.05},
        "train": {"steps": 4, "global_batch": 20, "eval_every_steps": 4},
        "checkpoint": {"every_steps": 2},
        "parallel": {
            "processes": 2,
            "strategy": strategy,
            "timeout_seconds": 60,
            "step_timeout_seconds": STEP_TIMEOUT_SECONDS,
        },
    }
    return Experiment.model_validate(values | others)


def as_launched(rank: int) -> None:
    """The environment of a launcher; the group is there already."""
    world_size = str(dist.get_world_size())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world_size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    roll_call.ANSWER_SECONDS = 2.0  # A lost rank is silent for any time.


def train_to_an_end(rank: int, experiment: Experiment) -> tuple[str, str]:
    """Returns the kind of the error, and its words."""
    as_launched(rank)
    try:
        train(experiment)
    except Exception as error:
        return type(error).__name__, str(error)
    return "none", ""


def ends(experiment: Experiment, lost: tuple[int, ...] = ()) -> list[tuple[str, str]]:
    return run_ranks(experiment.parallel.processes, train_to_an_end, experiment, limit_seconds=90, lost=lost)


def check_failed(experiment: Experiment) -> None:
    """Rank 1 has its own error, and rank 0 says so."""
    (kind, said), its_own = ends(experiment)
    assert its_own == ("ValueError", "no luck")
    assert kind == LostPeerError.__name__
    place = r"in (step \d|the checkpoint of step \d), at tests/support/breaking.py:\d+ in break_here"
    expected = rf"{LOST} failed: rank 1 on {HOST} \(process \d+\) {place}: ValueError: no luck\. {FOUND}"
    assert re.match(expected, said), said
    answer = diagnose(experiment.run_dir).splitlines()[-1]
    assert re.match(rf"first cause: rank 1 on {HOST}: failed {place}: ValueError: no luck \(process \d+\)", answer), (
        answer
    )


def check_lost(experiment: Experiment, how: str) -> None:
    """Rank 1 is silent, and rank 0 says so."""
    [(kind, said)] = ends(experiment, lost=(1,))
    assert kind == LostPeerError.__name__
    found = re.match(rf"{LOST} is gone or stuck: rank 1 on {HOST} \(process (\d+)\)\. {FOUND}", said)
    assert found, said
    is_late = "Timed out waiting" in said
    assert is_late == (how == "stop"), said
    answer = diagnose(experiment.run_dir).splitlines()[-1]
    assert answer.startswith(f"first cause: probably rank 1 on {HOST}: others lost it, and it left no error message"), (
        answer
    )
    assert f"left no error message (process {found[1]})" in diagnose(experiment.run_dir)


CHECKS = {"raise": check_failed, "kill": partial(check_lost, how="kill"), "stop": partial(check_lost, how="stop")}
PLACES = ("forward", "backward", "checkpoint")


@pytest.mark.parametrize(("where", "how"), [("backward", "raise"), ("checkpoint", "raise"), ("forward", "kill")])
def test_the_other_rank_names_the_one_that_failed_or_was_killed(
    where: str, how: str, digits: Path, tmp_path: Path
) -> None:
    CHECKS[how](an_experiment(digits, tmp_path, "ddp", {"where": where, "how": how}))


def test_after_the_first_step_a_stopped_rank_is_noticed_within_the_short_time_out(digits: Path, tmp_path: Path) -> None:
    """The patient one would not end before the ranks' time limit here."""
    experiment = an_experiment(digits, tmp_path, "ddp", {"where": "backward", "how": "stop"})
    parallel = experiment.parallel.model_copy(update={"timeout_seconds": 3600.0})
    check_lost(experiment.model_copy(update={"parallel": parallel}), how="stop")


@pytest.mark.slow
@pytest.mark.parametrize("how", CHECKS)
@pytest.mark.parametrize("where", PLACES)
def test_so_it_is_under_every_strategy(where: str, how: str, digits: Path, tmp_path: Path) -> None:
    experiments = [an_experiment(digits, tmp_path, each, {"where": where, "how": how}) for each in STRATEGIES]
    with ThreadPoolExecutor() as pool:
        list(pool.map(CHECKS[how], experiments))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "kill", "stop"])
def test_all_others_name_the_same_one(how: str, digits: Path, tmp_path: Path) -> None:
    """Also those that had no connection to it, and lose the run only when another one ends."""
    experiment = an_experiment(digits, tmp_path, "ddp", {"where": "forward", "how": how})
    parallel = experiment.parallel.model_copy(update={"processes": 4})
    for kind, said in ends(experiment.model_copy(update={"parallel": parallel}), lost=(1,)):
        assert kind == LostPeerError.__name__
        named = rf"rank 1 on {HOST} \(process \d+\)( in step 2, .+: ValueError: no luck)?\. Found "
        assert re.match(
            rf"rank [023] on {HOST} stopped: another process of this run (failed|is gone or stuck): {named}", said
        ), said


@pytest.mark.slow
def test_a_disk_that_fails_one_rank_and_a_rule_that_fails_end_all_with_the_same_words(
    digits: Path, tmp_path: Path
) -> None:
    full = an_experiment(digits, tmp_path, "ddp", {"where": "checkpoint", "how": "disk"})
    (kind, said), other = ends(full)
    assert (kind, said) == other
    assert kind == FaultError.__name__
    assert said.startswith(
        "the checkpoint of step 2 could not be written: [Errno 28] No space left on device. There is "
    )
    assert said.endswith("(on rank 1 only)")
    rule = {"weighting": "tests.support.breaking.BreakingRule"}
    (kind, said), other = ends(an_experiment(digits, tmp_path, "ddp", {}, name="rule", balance=rule))
    assert (kind, said) == other
    assert kind == UserError.__name__
    assert said.startswith("stopped at step 2: the weighting failed on rank 0: ValueError: no luck\n")


def wait_where_no_exception_comes(rank: int, folder: Path, is_stopped: bool) -> int:
    """As for a collective over NCCL, which the main thread waits for inside CUDA. Returns the number of ranks."""
    guard.say_error = (folder / "said").write_text
    if is_stopped:
        roll_call.ANSWER_SECONDS = 2.0
    watch = Watch(patient_seconds=60, step_seconds=1)
    with guard.guarded(rank, 2, watch, folder, waits_on_gpu=True):
        watch.set_phase("step 7", patient=False, step=7)
        if is_stopped and rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        while is_stopped or not all((folder / f"rank_{rank:05d}.txt").exists() for rank in range(2)):
            time.sleep(0.1)
        watch.set_phase("the evaluation after step 7", patient=True)
        ones = torch.ones(1)
        dist.all_reduce(ones)
    return int(ones)


def test_a_process_that_waits_for_its_gpu_is_ended_where_another_one_is_lost(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="rank 0 died without a word"):
        run_ranks(2, wait_where_no_exception_comes, tmp_path, True, limit_seconds=60, lost=(1,))
    expected = (
        rf"{LOST} is gone or stuck: rank 1 on {HOST} \(process \d+\)\. Found in step 7, at tests/\S+ in wait_where"
    )
    assert re.match(expected, (tmp_path / "said").read_text())


def test_a_step_that_is_late_on_all_ranks_goes_on(tmp_path: Path) -> None:
    assert run_ranks(2, wait_where_no_exception_comes, tmp_path, False) == [2, 2]
    for rank in range(2):
        assert "in wait_where_no_exception_comes" in (tmp_path / f"rank_{rank:05d}.txt").read_text()
        record = RECORD.validate_json((tmp_path / f"rank_{rank:05d}.json").read_text())
        assert (record.kind, record.rank, record.world_size) == ("asked", rank, 2)
        assert record.step == 7
