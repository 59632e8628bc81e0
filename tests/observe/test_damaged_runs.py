"""Whatever stands in a run's folder, its readers make the right page or one sentence that names the file."""

import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.support.no_files import PUT, in_time
from tests.support.run_folders import write_run
from tests.support.seen import seen
from trainer.errors import UserError
from trainer.observe.compare import comparison
from trainer.observe.metrics import MetricsLog
from trainer.observe.predictions import keep_predictions
from trainer.observe.read_run import read_run
from trainer.observe.report.page import write_report
from trainer.terminal import Terminal

TASKS = ["parts", "even", "way", "near"]
FILES = ("metrics.jsonl", "summary.json", "run.json", "config.yaml", "predictions.npz")

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**53 + 1, 10**30, 10**400, 1e308, 1e101, -0.5, float("nan"), float("inf")),
    *("", "x", "\x1b[31m", "[/x]", "<b>", "\ud800", "a" * 5000, [], [1], [[1.0]], [[1.0, 2.0]], {}, {"x": 1}),
    *({"parts": None}, {"parts": "x"}, {"parts": {"a": 1.0}}, [None] * 3, {str(n): 1.0 for n in range(3000)}),
)


def finished_run(folder: Path) -> Path:
    run = write_run(folder, TASKS)
    log = MetricsLog(run / "metrics.jsonl", resume_step=40)
    log.write({"kind": "monitor", "step": 40, "worst_slope": 0.5, "num_ascending": 1})
    fault = {"action": "skip_step", "losses": ["parts"], "gradients": [], "found": "not finite: x"}
    log.write({"kind": "fault", "step": 40, **fault})
    by_class = {"parts": {"road": 50.0, "car": None}}
    units = {"parts": "% mIoU", "way": "m"}
    errors = dict.fromkeys(TASKS, 3.0)
    log.write({"kind": "eval", "step": 40, "errors": errors, "units": units, "by_class": by_class, "averaged": True})
    log.close()
    keep_predictions(run / "predictions.npz", 40, seen())
    info = {
        "command": "paretrain train",
        "started_at": "2026",
        "world_size": 2,
        "git": None,
        "versions": {"torch": "2"},
    }
    (run / "run.json").write_text(json.dumps(info))
    return run


def read_everything(run: Path, out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of numpy, on numbers that are absurd but finite
        write_report([run], out)
    with open(os.devnull, "w") as nowhere:
        Terminal(file=nowhere, width=100).print(comparison([read_run(run)]))


def page_or_sentence(act: Callable[[], None], *named: str) -> str | None:
    """Run it; returns the sentence, which must name one of the files. Anything else than a UserError is a fault."""
    said = None
    with in_time():
        try:
            act()
        except UserError as error:
            said = str(error)
    assert said is None or (len(said) < 2000 and any(name in said for name in named)), said
    return said


def mutated_json(text: str, choose: random.Random) -> str:
    """One value, anywhere in it, replaced, removed or doubled."""
    value = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    walk(value)
    node, key = choose.choice(places)
    if isinstance(node, dict) and choose.random() < 0.2:
        del node[key]
    elif isinstance(node, dict) and choose.random() < 0.1:
        node[choose.choice(("kind", "\x1b[2J", "x"))] = node.pop(key)
    else:
        node[key] = choose.choice(VALUES)
    return json.dumps(value)


def mutate(path: Path, choose: random.Random) -> None:
    """Damage a file: a value of it, its bytes, its length."""
    content = path.read_bytes()
    way = choose.random()
    if path.suffix in (".jsonl", ".json") and way < 0.7:
        lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
        number = choose.randrange(len(lines))
        lines[number] = mutated_json(lines[number], choose)
        path.write_text("\n".join(lines) + "\n")
    elif way < 0.9 and content:
        changed = bytearray(content)
        for _ in range(choose.choice((1, 1, 4, 64))):
            changed[choose.randrange(len(changed))] = choose.randrange(256)
        path.write_bytes(changed)
    else:
        path.write_bytes(content[: choose.randrange(len(content))])


def mutation_loop(tmp_path: Path, seed: int, count: int) -> int:
    run, choose, refused = finished_run(tmp_path / "run"), random.Random(seed), 0
    sound = {name: (run / name).read_bytes() for name in FILES}
    for _ in range(count):
        name = choose.choice(FILES)
        mutate(run / name, choose)
        sentence = page_or_sentence(lambda: read_everything(run, tmp_path / "out.html"), name, "metrics.jsonl")
        refused += sentence is not None
        (run / name).write_bytes(sound[name])
    return refused


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out and not painted, which takes most of a page's time."""

    def savefig(figure: Figure, target: IO[str], **_: Any) -> None:
        target.write("<svg></svg>")

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.mark.long
@pytest.mark.usefixtures("unpainted")
def test_a_page_or_a_sentence_for_any_damage(tmp_path: Path) -> None:
    assert mutation_loop(tmp_path, seed=0, count=40) > 5


@pytest.mark.long
@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("put", PUT)
def test_what_is_no_file_of_ours_is_one_sentence(tmp_path: Path, put: Callable[[Path], Any]) -> None:
    run = finished_run(tmp_path / "run")
    for name in FILES:
        (run / name).rename(tmp_path / name)
        put(run / name)
        said = page_or_sentence(lambda: read_everything(run, tmp_path / "out.html"), name)
        assert said is not None, name
        (run / name).rmdir() if (run / name).is_dir() else (run / name).unlink()
        (tmp_path / name).rename(run / name)


def test_a_torn_last_line_is_said_and_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["left"])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 41, "los')
    write_report([run], tmp_path / "out.html")
    assert "metrics.jsonl is incomplete and was left out" in (tmp_path / "out.html").read_text()
    assert read_run(run).records[-1]["kind"] == "note"


def arrays(path: Path, **changed: Any) -> None:
    """A file of predictions with some arrays replaced, or left out where None."""
    with np.load(path) as found:
        kept = dict(found) | changed
    np.savez_compressed(path, **{name: array for name, array in kept.items() if array is not None})


@pytest.mark.long
@pytest.mark.parametrize(
    "changed",
    [
        {"images": None},
        {"images": np.zeros((4, 8, 16, 2), np.uint8)},
        {"images": np.zeros((4, 8, 15, 3), np.uint8)},
        {"labels0": np.full((4, 8, 16), 7, np.uint8), "known0": np.ones((4, 8, 16), bool)},
        {"answers1": np.zeros((4, 8, 16, 3))},
        {"known2": np.zeros((4, 8, 16))},
        {"about": np.array("[]")},
        {"about": np.array(["x", "y"])},
        {"images": np.zeros((1, 17000, 17000, 1), np.uint8)},
    ],
)
def test_predictions_that_do_not_fit_together_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", ["left"])
    keep_predictions(run / "predictions.npz", 40, seen())
    arrays(run / "predictions.npz", **changed)
    with pytest.raises(UserError, match=r"predictions\.npz is damaged"):
        read_run(run)


def test_nothing_of_predictions_is_unpickled(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["left"])
    np.savez(run / "predictions.npz", about=np.array([Path("x")], dtype=object))
    with pytest.raises(UserError, match=r"predictions\.npz is damaged"):
        read_run(run)
