"""The configuration: strict, frozen, and written back without loss."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from trainer.config.file import load_config, parse_config, to_yaml
from trainer.config.resume import check_request, differences, how_to_change
from trainer.config.schema import Experiment
from trainer.config.sections.limits import PATTERNS
from trainer.config.strategies import STRATEGIES, StrategyName
from trainer.errors import UserError

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"


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


def test_a_whole_float_is_an_integer_where_one_is_expected() -> None:
    in_train = ["train.steps=1e3", "train.patience=3.0", "train.select={}", "train.profile={start: 2e0, ranks: [0.0]}"]
    in_model = ["model.encoder.options={dropout: 1.0}", "model.head.takes={left: 1.0}"]
    experiment = load_config(CONFIG, [*in_train, *in_model])
    found = experiment.train.steps, experiment.train.patience, experiment.train.profile.start  # type: ignore[union-attr]
    assert repr(found) == "(1000, 3, 2)"
    assert repr(experiment.model.head.takes) == "{'left': 1}"
    assert repr(experiment.model.encoder.options) == "{'dropout': 1.0}", "options are as they were typed"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("checkpoint={}", "missing key 'checkpoint.every_steps'. Type checkpoint.every_steps=100, say"),
        (
            "optimizer=adam",
            "expected a section with keys, found 'adam'. Type optimizer.name=adamw optimizer.learning_ra",
        ),
        ("data=null", "found null. Type data.path=data/digits, say"),
        ("train.select=error", "Type train.select.metric=error, say"),
        ("data.sources.a.share=2", "missing key 'data.sources.a.path'. Type data.sources.a.path=data/digits, say"),
        ("data.tasks=left,right", "data.tasks: expected a list, such as [left,right], found 'left,right'"),
        ("balance.weights=[1]", "balance.weights: expected keys and values, such as {key: value}, found [1]"),
        ("name=a b", "name: expected letters, digits, '.', '_' and '-', such as digits-2, found 'a b'"),
        ("wandb.group=a/b", "wandb.group: expected a text without / "),
        ("optimizer.groups=[{}]", "missing key 'optimizer.groups.0.match'"),
    ],
)
def test_a_fault_says_what_to_type(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIG, [override])
    assert said in str(caught.value)


def test_every_pattern_is_put_into_words() -> None:
    patterns = set(re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(Experiment.model_json_schema())))
    assert {json.loads(pattern) for pattern in patterns} == set(PATTERNS)


def test_a_profile_is_of_ranks_that_exist() -> None:
    experiment = load_config(CONFIG, ["train.profile={start: 20, ranks: [0, 1]}", "parallel.processes=2"])
    assert experiment.train.profile is not None
    assert (experiment.train.profile.steps, experiment.train.profile.ranks) == (3, (0, 1))
    with pytest.raises(UserError, match=r"found 2, and parallel.processes=2 have the ranks 0 to 1"):
        load_config(CONFIG, ["train.profile={start: 20, ranks: [2]}", "parallel.processes=2"])


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIG, ["seed=-1", "train.steps=0", "optimiser.name=sgd"])
    for key in ("seed", "train.steps", "unknown key 'optimiser'; did you mean 'optimizer'?"):
        assert key in str(caught.value)


def test_nothing_can_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config(CONFIG).train.steps = 3


@pytest.mark.long
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
        ("data.path=elsewhere", False),
        ("wandb.mode=offline", False),
    ],
)
def test_a_run_goes_on_only_where_its_numbers_stay_the_same(override: str, decides_numbers: bool) -> None:
    assert bool(differences(load_config(CONFIG), load_config(CONFIG, [override]))) == decides_numbers


def test_a_run_of_sources_goes_on_where_they_moved_and_on_request_with_other_shares() -> None:
    def run(**of_a: object) -> Experiment:
        values = load_config(CONFIG).model_dump(mode="json")
        return parse_config(values | {"data": {"sources": {"a": {"path": "x"} | of_a, "b": {"path": "y"}}}}, "x")

    assert not differences(run(), run(path="z"))
    assert differences(run(), run(tasks=["left"]))
    assert differences(run(), run(share=2.0)) == {"data.sources.a.share": "1.0 -> 2.0"}
    assert "--allow-change data.sources.a.share" in how_to_change(differences(run(), run(share=2.0)))
    check_request(["data.sources.a.share"])
    assert not differences(run(), run(share=2.0), ["data.sources.a.share"])


def test_a_run_may_become_longer_unless_the_schedule_depends_on_its_end() -> None:
    for schedule, differ in {"constant": False, "cosine": True}.items():
        override = f"optimizer.schedule={schedule}"
        short, long = (load_config(CONFIG, [override, f"train.steps={steps}"]) for steps in (10, 20))
        assert bool(differences(short, long)) == differ


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("optimizer.lr", "learning_rate"), ("balance.normalize", "normalise"), ("train.Max-Steps", "steps")],
)
def test_what_others_call_a_key_is_understood(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        load_config(CONFIG, [f"{typed}=1"])


def test_a_section_that_may_be_absent_is_as_strict() -> None:
    experiment = load_config(CONFIG, ["model.tower={}"])
    assert experiment.model.tower is not None
    assert (experiment.model.tower.name, experiment.model.tower.weight) == ("linear", 1.0)
    assert load_config(CONFIG).model.tower is None
    with pytest.raises(UserError, match=r"unknown key 'model\.tower\.wieght'; did you mean 'weight'\?"):
        load_config(CONFIG, ["model.tower.wieght=2"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.momentum=0.9", "momentum=0.9 has no effect with name=adamw: it belongs to name=sgd"),
        ("optimizer.decay_factor=0.5", "decay_factor=0.5 has no effect with schedule=cosine"),
        ("optimizer.schedule=step", "schedule=step needs decay_every_steps and decay_factor"),
        ("balance={preference: {left: 2}, weighting: uniform}", "it belongs to weighting=min_norm"),
        ("data={path: x, sources: {a: {path: y}}}", "data: expected either path or sources, found both"),
        ("data={}", "data: expected either path or sources, found neither"),
        ("data.temperature=0.5", "temperature and multiple_of have an effect with sources only"),
        ("data={sources: {a: {path: x, share: 2}}, temperature: 0.5}", "sources.a.share both say how many samples"),
        ("data={sources: {a/b: {path: x}}}", "sources.a/b: expected a name of at most 64 letters"),
    ],
)
def test_a_key_that_has_no_effect_is_refused(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(CONFIG, [override])
    assert said in str(error.value)


def test_a_key_that_has_no_effect_may_keep_its_default() -> None:
    """As a run's own config.yaml has it, where every default is written."""
    overrides = ["optimizer.name=adam", "optimizer.momentum=0.0", "optimizer.decay_factor=null"]
    assert load_config(CONFIG, overrides).optimizer.name == "adam"


def test_every_strategy_has_its_line_in_the_table() -> None:
    assert set(STRATEGIES) == set(get_args(StrategyName))


@pytest.mark.long
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: expected a finite number, found inf"),
        ("optimizer.learning_rate=1e999", "optimizer.learning_rate: expected a finite number"),
        ("optimizer.learning_rate=1e7", "optimizer.learning_rate: input should be less than or equal to 1000000"),
        ("model.encoder.options={dropout: .nan}", "model.encoder.options.dropout: expected a finite number, found nan"),
        ("model.head.options.a=[1, {b: -.inf}]", "model.head.options.a.1.b: expected a finite number"),
        ("data.workers=2147483648", "data.workers: input should be less than or equal to 1024"),
        ("parallel.threads=1000000", "parallel.threads: input should be less than or equal to 1024"),
        ("train.steps=100000000", "train.steps: input should be less than or equal to 99999999"),
        ("train.max_hours=1e300", "train.max_hours"),
        ("parallel.timeout_seconds=1e12", "parallel.timeout_seconds"),
        ("data.cache.max_gib=1e300", "data.cache.max_gib"),
        ('data.path="a\\nb"', "data.path: expected a text of at most 4096 characters, without line breaks"),
        ('model.encoder.options={"a\\e": 1}', "a key with control characters"),
        (f"data.path={'x' * 5000}", "data.path: expected a text of at most 4096 characters"),
        (f"name={'x' * 201}", "name: string should have at most 200 characters"),
        ("name=..", "name: expected letters, digits"),
        ("name=-x", "name: expected letters, digits"),
        ("wandb.project=a/b", "wandb.project"),
        ("wandb.group=../x", "wandb.group"),
        ("=1", "expected key=value"),
        ("train.=1", "expected key=value"),
        ("train..steps=1", "expected key=value"),
        ("train.steps", "expected key=value"),
        ("seed.x.y=1", "'seed' is 0, not a section with keys"),
        (".".join("a" * 100) + "=1", "its key has 100 parts"),
        ("balance.options.x=[", "override 'balance.options.x=[' is not YAML"),
        (f"{'k' * 9000}=1", "unknown key"),
    ],
)
def test_what_no_run_can_use_is_refused_by_its_key(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(CONFIG, ["seed=0", override])
    assert said in str(error.value)
    assert len(str(error.value)) < 1000


def test_an_override_keeps_what_follows_its_first_equals_sign() -> None:
    assert load_config(CONFIG, ["data.path=a=b", "seed=1", "seed=2"]).data.path == "a=b"
    assert load_config(CONFIG, ["seed=1", "seed=010"]).seed == 10


def test_an_empty_file_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="is empty"):
        load_config(path, ["seed=1"])


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")


KEYS = [*_keys(Experiment), "model.encoder.options.dropout", "a.b", "data..x", "train."]
VALUES = [
    "-1",
    "0",
    "2147483648",
    "9223372036854775808",
    "1e308",
    "1e-308",
    ".inf",
    ".nan",
    "true",
    "null",
    "[]",
    "{}",
    "''",
    "abc",
    '"\\x00"',
    "[1, [2]]",
    "{a: {b: 1}}",
    "2024-13-45",
    "!!int abc",
    "!!python/name:os.system x",
    "&a [*a]",
    "*b",
    "é☃",
    "../x",
    "-x",
    "..",
    "[red]",
    "{? [a] : 1}",
    "010",
    "{1: 2}",
    "@",
    "{",
    "`",
    "\t",
    ":",
    "- ",
    "#",
    "9" * 5000,
    "x" * 5000,
    "[" * 500,
    "\n",
    "\ufeff",
    "\x85",
    "\ud800",
]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_a_mutated_configuration_is_read_or_refused(seed: int, tmp_path: Path) -> None:
    """No traceback whatever is typed; what is accepted is written and read back unchanged."""
    random = Random(seed)
    text = CONFIG.read_text()
    path = tmp_path / "config.yaml"
    for _ in range(10):
        place = random.randrange(len(text))
        mutated = text[:place] + random.choice(VALUES) + text[place + random.choice([0, 1, 20]) :]
        path.write_bytes(mutated.encode("utf-8", "surrogatepass"))
        overrides = [f"{random.choice(KEYS)}={random.choice(VALUES)}" for _ in range(2)]
        for source, changes in ((path, []), (CONFIG, overrides), (CONFIG, overrides[:1])):
            with suppress(UserError):
                experiment = load_config(source, changes)
                assert parse_config(yaml.safe_load(to_yaml(experiment)), "again") == experiment
