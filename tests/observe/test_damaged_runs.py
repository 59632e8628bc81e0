"""Whatever stands in a run's folder, its readers make the right page or one sentence that names the file."""

import json
import os
import pickle
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from launch.diagnose.diagnosis import diagnose
from tests.support.fault_records import fault_record
from tests.support.run_folders import write_run
from tests.support.seen import seen
from trainer.errors import UserError
from trainer.observe.compare import comparison
from trainer.observe.metrics import MetricsLog
from trainer.observe.predictions import keep_predictions
from trainer.observe.read_run import read_run
from trainer.observe.report.page import write_report
from trainer.observe.tracker import _saved_id
from trainer.runtime.faults.records import write_record
from trainer.terminal import Terminal

TASKS = ["parts", "even", "way", "near"]
FILES = ("metrics.jsonl", "summary.json", "run.json", "config.yaml", "predictions.npz")
LIMIT_SECONDS = 60

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


@contextmanager
def in_time() -> Iterator[None]:
    """A reader that waits for a FIFO would wait for ever."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


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


@pytest.mark.usefixtures("unpainted")
def test_a_page_or_a_sentence_for_any_damage(tmp_path: Path) -> None:
    assert mutation_loop(tmp_path, seed=0, count=40) > 5


def loop_of_links(path: Path) -> None:
    path.symlink_to(path)


def nested(path: Path) -> None:
    path.write_text('{"kind": "note", "step": 1, "text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")


def thousands_of_digits(path: Path) -> None:
    path.write_text('{"kind": "note", "steps": 1, "step": ' + "9" * 5000 + "}\n")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


PUT: tuple[Callable[[Path], Any], ...] = (
    os.mkfifo,
    Path.mkdir,
    loop_of_links,
    nested,
    thousands_of_digits,
    sparse,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.write_bytes(b"\x00\xff\xfe binary\n" * 3),
)


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


@pytest.mark.parametrize("out", ["/dev/full", "folder", "fifo", "n" * 300, "file/report.html", "nul\0"])
def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path, out: str) -> None:
    run = write_run(tmp_path / "run", ["left"], steps=0, finished=False)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with in_time(), pytest.raises(UserError, match="cannot be written"):
        write_report([run], tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_fails_a_log_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", resume_step=None)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match="No space left"):
        log.write({"kind": "note", "step": 1, "text": "x"})
    log.close()


@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/full")])
def test_a_log_is_written_to_a_regular_file_only(tmp_path: Path, put: Callable[[Path], Any]) -> None:
    put(tmp_path / "metrics.jsonl")
    with in_time(), pytest.raises(UserError, match="cannot be written"):
        MetricsLog(tmp_path / "metrics.jsonl", resume_step=None)


@pytest.mark.parametrize("content", [b"", b"../../x\n", b"\xff\xfe", b"a" * 5000, b"two\nlines"])
def test_a_damaged_id_of_wandb_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wandb_id").write_bytes(content)
    with pytest.raises(UserError, match="wandb_id"):
        _saved_id(tmp_path / "wandb_id")


def left(tmp_path: Path) -> Path:
    """A run of which two ranks have left their record, and one its flight record."""
    run = tmp_path / "run"
    (run / "faults").mkdir(parents=True)
    for rank in range(2):
        write_record(run / "faults", fault_record("failed", rank=rank, pid=7 + rank))
    entries = [{"record_id": 3, "profiling_name": "gloo:all_reduce", "state": "scheduled", "frames": None}]
    (run / "faults" / "flight_0").write_bytes(pickle.dumps({"version": "2", "entries": entries}))
    return run


def test_diagnose_reads_what_can_be_read_and_says_what_cannot(tmp_path: Path) -> None:
    run, choose = left(tmp_path), random.Random(0)
    record = run / "faults" / "flight_0"
    sound = record.read_bytes()
    assert "gloo:all_reduce number 3" in diagnose(run)
    memo_bomb = b"\x80\x02}r\xff\xff\xff\x7f."
    runs_code = b"cos\nsystem\n(S'touch /tmp/x'\ntR."
    for content in (b"", sound[:-9], memo_bomb, runs_code, pickle.dumps([1]), pickle.dumps({"entries": [{}]})):
        record.write_bytes(content)
        assert "not read: " in diagnose(run)
    for _ in range(100):
        changed = bytearray(sound)
        changed[choose.randrange(len(changed))] = choose.randrange(256)
        record.write_bytes(changed)
        assert "first cause: rank 0 on alpha" in diagnose(run)


@pytest.mark.parametrize("put", PUT)
def test_diagnose_survives_what_is_no_file(tmp_path: Path, put: Callable[[Path], Any]) -> None:
    run = left(tmp_path)
    for name in ("rank_00001.json", "flight_0"):
        (run / "faults" / name).unlink()
        put(run / "faults" / name)
    logs = run / "logs" / "1.0" / "trainer.train"
    (logs / "node0" / "2026").mkdir(parents=True)
    (logs / "node0" / "2026" / "host").write_text("alpha\x1b[31m\n")
    (logs / "node0" / "2026" / "1_x" / "attempt_0" / "0").mkdir(parents=True)
    (logs / "nodex").mkdir()
    (logs / "node1").write_text("a file")
    put(logs / "node0" / "2026" / "1_x" / "attempt_0" / "0" / "stderr.log")
    with in_time():
        assert "rank 0 on alpha" in diagnose(run)
