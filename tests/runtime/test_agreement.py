"""Processes that differ in configuration, data, code or packages are refused, each difference by its name and place."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ranks import run_ranks
from trainer.config.file import load_config
from trainer.config.schema import Experiment
from trainer.data.sources.digits import write_digits
from trainer.errors import UserError
from trainer.runtime.agreement import difference, facts_of, facts_of_data
from trainer.train import train


def an_experiment(config: Path, **changes: Any) -> Experiment:
    """The configuration of two processes, with some keys changed."""
    return load_config(config, ["parallel.processes=2", *(f"{key}={value}" for key, value in changes.items())])


def test_a_difference_names_the_fact_its_values_and_their_hosts() -> None:
    said = difference([{"train.steps": "9", "torch": "2"}] * 3 + [{"train.steps": "8", "torch": "2"}], list("aabb"))
    assert "train.steps: 8 on b (rank 3), 9 on a (rank 0), b (rank 2)" in said
    assert "torch" not in said
    many = difference([{str(number): "9" for number in range(100)}, {}], ["a", "b"])
    assert len(many.splitlines()) < 20
    assert "and 88 more" in many


@pytest.mark.long
def test_the_facts_change_with_the_configuration_the_data_and_the_users_own_code(
    config: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_own_nets").mkdir()
    helper = tmp_path / "my_own_nets" / "helper.py"
    helper.write_text("DEPTH = 3\n")
    experiment = an_experiment(config, **{"model.encoder.name": "my_own_nets.net.Net"})
    before = facts_of(experiment)
    assert {"code: trainer/train.py", "code: models/build.py", "code: launch/local.py"} < before.keys()
    assert before == facts_of(experiment)

    def changed(now: dict[str, str]) -> set[str]:
        return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}

    more = an_experiment(config, **{"model.encoder.name": "my_own_nets.net.Net", "optimizer.learning_rate": 0.06})
    assert changed(facts_of(more)) == {"optimizer.learning_rate"}
    helper.write_text("DEPTH = 4\n")
    assert changed(facts_of(experiment)) == {"code: my_own_nets/helper.py"}

    manifest = yaml.safe_load((digits / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(yaml.safe_dump(manifest | {"name": "other"}))
    assert facts_of_data(tmp_path / "manifest.json") != facts_of_data(digits / "manifest.json")


def refusal(rank: int, experiments: list[Experiment], modules: list[Path]) -> str:
    """Start as one of two processes, each with a configuration and code of its own. Returns what it is told."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    sys.path.insert(0, str(modules[rank]))
    with pytest.raises(UserError) as caught:
        train(experiments[rank])
    return str(caught.value)


@pytest.mark.processes
def test_two_ranks_that_differ_in_configuration_and_code_do_not_start(config: Path, tmp_path: Path) -> None:
    """Also in what decides which process groups there are, and where one would make more steps than the other."""
    modules = [tmp_path / "one", tmp_path / "other"]
    for folder in modules:
        folder.mkdir()
        (folder / "my_net.py").write_text(f"WHERE = {folder.name!r}\n")
    same = {"model.encoder.name": "my_net.Net"}
    other = {"train.steps": 7, "parallel.exchange_group": "default"}
    experiments = [an_experiment(config, **same), an_experiment(config, **same, **other)]
    said, also = run_ranks(2, refusal, experiments, modules)
    assert said == also
    host = os.uname().nodename
    assert f"train.steps: 7 on {host} (rank 1), 6 on {host} (rank 0)" in said
    assert "parallel.exchange_group" in said
    assert "code: my_net.py" in said
    assert len(said.splitlines()) == 5
    assert not (tmp_path / "runs" / "run" / "config.yaml").exists()


@pytest.mark.processes
def test_two_ranks_with_data_of_another_seed_do_not_start(config: Path, digits: Path, tmp_path: Path) -> None:
    """The same path on two hosts, which has other content: here a link that each rank follows its own way."""
    write_digits(tmp_path / "other", train_samples=400, test_samples=90, seed=1)
    os.symlink("/proc/self/cwd", tmp_path / "data")
    experiment = an_experiment(config, **{"data.path": tmp_path / "data"})
    said, also = run_ranks(2, refusal_in, experiment, [digits, tmp_path / "other"])
    assert said == also
    assert "data: manifest.json: " in said


def refusal_in(rank: int, experiment: Experiment, folders: list[Path]) -> str:
    """The same, in a current folder of its own."""
    os.chdir(folders[rank])
    return refusal(rank, [experiment] * 2, folders)
