"""The configuration: strict, frozen, and written back without loss."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from trainer.config_file import load_config, parse_config, to_yaml
from trainer.errors import UserError
from trainer.resumable import differences

CONFIG = Path(__file__).parents[1] / "configs" / "digits.yaml"


def test_what_is_written_is_read_back() -> None:
    experiment = load_config(CONFIG, ["data.tasks=[left]", "balance={weighting: fixed, weights: {left: 1.0}}"])
    assert parse_config(yaml.safe_load(to_yaml(experiment)), "again") == experiment


def test_numbers_and_words_are_those_of_yaml_1_2() -> None:
    experiment = load_config(CONFIG, ["optimizer.learning_rate=5e-4", "wandb.mode=off", "optimizer.weight_decay=1E-5"])
    assert experiment.optimizer.learning_rate == 0.0005
    assert experiment.optimizer.weight_decay == 1e-5
    assert experiment.wandb.mode == "off"


def test_a_text_is_no_number_and_a_float_no_integer() -> None:
    with pytest.raises(UserError, match=r"train\.steps: input should be a valid integer, found .100."):
        load_config(CONFIG, ["train.steps='100'"])
    with pytest.raises(UserError, match="seed: input should be a valid integer"):
        load_config(CONFIG, ["seed=1.5"])


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIG, ["seed=-1", "train.steps=0", "optimiser.name=sgd"])
    for key in ("seed", "train.steps", "unknown key 'optimiser'; did you mean 'optimizer'?"):
        assert key in str(caught.value)


def test_nothing_can_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config(CONFIG).train.steps = 3


@pytest.mark.parametrize(
    ("override", "decides_numbers"),
    [
        ("seed=1", True),
        ("train.global_batch=512", False),
        ("data.max_bad_fraction=0.1", False),
        ("data.augment={flip: true}", True),
        ("data.shuffle_samples=100", True),
        ("model.encoder.options={dropout: 0.5}", True),
        ("data.tasks=[left]", True),
        ("parallel.processes=1", False),
        ("data.workers=2", False),
        ("checkpoint.keep=9", False),
        ("wandb.mode=offline", False),
    ],
)
def test_a_run_goes_on_only_where_its_numbers_stay_the_same(override: str, decides_numbers: bool) -> None:
    assert bool(differences(load_config(CONFIG), load_config(CONFIG, [override]))) == decides_numbers


def test_a_run_may_become_longer_unless_the_schedule_depends_on_its_end() -> None:
    for schedule, differ in {"constant": False, "cosine": True}.items():
        override = f"optimizer.schedule={schedule}"
        short, long = (load_config(CONFIG, [override, f"train.steps={steps}"]) for steps in (10, 20))
        assert bool(differences(short, long)) == differ


def test_a_section_that_may_be_absent_is_as_strict() -> None:
    experiment = load_config(CONFIG, ["model.tower={}"])
    assert experiment.model.tower is not None
    assert (experiment.model.tower.name, experiment.model.tower.weight) == ("linear", 1.0)
    assert load_config(CONFIG).model.tower is None
    with pytest.raises(UserError, match=r"unknown key 'model\.tower\.wieght'; did you mean 'weight'\?"):
        load_config(CONFIG, ["model.tower.wieght=2"])
