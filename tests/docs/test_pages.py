"""What the pages say can be typed can be typed, and the files and keys that they name exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from launch.grid import points
from launch.study.schema import SmallConfig, StudyConfig, TuneConfig
from tests.docs.markdown import PAGES, ROOT, blocks, commands, files, keys, links, mentions, name, overrides, spans
from trainer import cli
from trainer.config.file import load_config, parse_section
from trainer.config.schema import Experiment
from trainer.config.yaml_file import parse_yaml
from trainer.errors import UserError

README = ROOT / "README.md"
HISTORY = ROOT / "CHANGELOG.md"
"""It names files and keys that are gone."""
NOW = [page for page in PAGES if page != HISTORY]
OTHERS_FILES = {ROOT / "docs" / "names.md"}
"""They speak of files that a reader may have."""
COMPANIONS = {
    "balance.adaptive": ["balance.every_steps=10"],
    "balance.weights": ["balance.weighting=fixed"],
    "parallel.offload": ["parallel.strategy=zero3"],
    "parallel.gather": ["parallel.strategy=fsdp2", "parallel.precision=bf16"],
    "parallel.shard_processes": ["parallel.strategy=fsdp2", "parallel.processes=8"],
    "train.memory_snapshot": ["parallel.device=cuda"],
    "train.patience": ["train.select={}"],
    "parallel.strategy=single": ["parallel.processes=1"],
}
"""What must stand beside some keys."""


@pytest.fixture
def beside_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configurations of the project and of README.md."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.yaml").write_text(blocks(README, "yaml")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not target.exists()] == []


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in NOW if page not in OTHERS_FILES], ids=name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    assert [file for file in files(page) if not any(ROOT.glob(file.rstrip("/")))] == []


@pytest.mark.long
@pytest.mark.parametrize("page", NOW, ids=name)
def test_the_commands_of_a_page_can_be_typed(page: Path, beside_the_readme: Path) -> None:
    for words in commands(page, "paretrain"):
        options = cli._parse(words)  # It prints and exits where an option is not known.
        if "overrides" in options and "config" in options:
            given = cli._overrides(options) if "processes" in options else options.overrides
            points(options.config, given, getattr(options, "grid", []))


@pytest.mark.long
@pytest.mark.parametrize("page", NOW, ids=name)
def test_the_commands_in_sentences_have_the_options_that_they_name(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in mentions(page, "paretrain"):
        command = words[: 2 if words[0] == "data" else 1]
        if command[-1].isupper():
            continue  # A placeholder for any source.
        with pytest.raises(SystemExit) as ended:
            cli._parse([*command, "--help"])
        assert ended.value.code == 0, words
        help_text = capsys.readouterr().out
        assert [word for word in words if word.startswith("--") and word not in help_text] == []


@pytest.mark.long
@pytest.mark.parametrize("page", NOW, ids=name)
def test_make_and_python_modules_that_a_page_names_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    both = [[*commands(page, program), *mentions(page, program)] for program in ("make", "python")]
    assert [words for words in both[0] if words[0] not in targets] == []
    for words in both[1]:
        if words[-1] == "-m":
            continue
        module = words[words.index("-m") + 1].replace(".", "/") if "-m" in words else words[0].removesuffix(".py")
        ours = module.split("/")[0] in ("trainer", "launch", "benchmarks", "studies", "tests", "examples")
        assert not ours or any((ROOT / f"{module}{end}").exists() for end in (".py", "/__main__.py")), words


@pytest.mark.long
@pytest.mark.parametrize("page", NOW, ids=name)
def test_the_keys_that_a_page_names_are_known(page: Path) -> None:
    known = set(_keys(Experiment))
    assert [key for key in keys(page) if key not in known and not key.startswith(_FREE)] == []


@pytest.mark.long
@pytest.mark.parametrize("page", NOW, ids=name)
def test_the_values_that_a_page_names_are_accepted(page: Path) -> None:
    for override in overrides(page):
        if any(letter in override for letter in ("...", "://", "$")) or re.search(r"=[A-Z_]*$|\*", override):
            continue  # A shortened value, or a placeholder.
        beside = [word for key, words in COMPANIONS.items() if override.startswith(key) for word in words]
        try:
            load_config(ROOT / "configs" / "digits.yaml", [*beside, override])
        except UserError as error:
            raise AssertionError(f"{override}: {error}") from None


_FREE = ("model.encoder.options.", "model.head.options.", "balance.options.")
"""What a class of its own checks."""


@pytest.mark.parametrize("study", sorted((ROOT / "studies").glob("*.yaml")), ids=name)
def test_the_commands_in_the_head_of_a_study_can_be_typed(study: Path) -> None:
    head = re.sub(r"\\\n# +", "", study.read_text())
    found = re.findall(r"^#   paretrain (.*)$", head, re.MULTILINE)
    assert any(command.startswith(f"study {study.stem}") for command in found)
    for command in found:
        cli._parse(shlex.split(command, comments=True))


def test_the_page_on_studies_has_every_key_and_a_valid_example() -> None:
    page = ROOT / "docs" / "studies.md"
    named = " ".join(spans(page))
    for section in (StudyConfig, TuneConfig, SmallConfig):
        assert [key for key in section.model_fields if key not in named] == []
    (example,) = blocks(page, "yaml")
    assert parse_section(StudyConfig, parse_yaml(example, "docs"), "docs", "study").at("small").seeds == (0, 1)


def test_the_algorithm_in_architecture_md_is_the_file() -> None:
    quoted = [block for block in blocks(ROOT / "ARCHITECTURE.md", "python") if "def descend" in block]
    assert len(quoted) == 1
    assert quoted[0] in (ROOT / "paretrain" / "reference.py").read_text()


def test_the_walks_in_architecture_md_have_as_many_files_as_they_say() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    walks = re.findall(r"^### Walk: .*?\((\d+) files\)$(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
    assert len(walks) >= 3
    for number, text in walks:
        found = set(re.findall(r"`([\w/]+\.py)`", text))
        assert len(found) == int(number), sorted(found)


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=name)
def test_measured_numbers_stand_where_they_were_measured(page: Path) -> None:
    sources = [
        *(ROOT / "configs").glob("*.yaml"),
        ROOT / "benchmarks" / "README.md",
        *ROOT.glob("studies/*/__init__.py"),
        *ROOT.glob("studies/*.yaml"),
    ]
    measured = "".join(source.read_text() for source in sources)
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for number in re.findall(r"(?<![\w.])(\d+\.\d+) ?(?:%|times|to \d)", text):
        assert number in measured, number


def test_there_is_something_to_test() -> None:
    assert sum(len(commands(page, "paretrain")) for page in PAGES) > 20
    assert sum(len(overrides(page)) for page in PAGES) > 20
    assert "mine.yaml" in spans(README)


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for field, info in section.model_fields.items():
        yield prefix + field
        for part in _sections(info.annotation):
            yield from _keys(part, f"{prefix}{field}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
