import io
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tests.support.runs import without_times
from trainer.observe.progress import Progress, eval_line, status_line, train_line


def train_record(tasks: list[str], step: int = 10) -> dict:
    return {
        "kind": "train",
        "step": step,
        "losses": {task: 1.0 + index for index, task in enumerate(tasks)},
        "alpha": {task: (index + 1) / (len(tasks) * (len(tasks) + 1) / 2) for index, task in enumerate(tasks)},
        "learning_rate": 0.05,
        "samples_per_second": 8123.4,
        "data_wait_percent": 1.25,
    }


def eval_record(tasks: list[str], step: int = 10) -> dict:
    return {"kind": "eval", "step": step, "errors": dict.fromkeys(tasks, 3.5), "samples": 100, "duration_seconds": 2.0}


def show_everything(log: Path, console: Console, tasks: list[str]) -> None:
    with Progress(log, 100, 0, console) as progress:
        progress.note("wandb: off [by request]")
        for step in (10, 20):
            progress.train(train_record(tasks, step))
        progress.eval(eval_record(tasks, 20))


def screen_lines(shown: io.StringIO) -> list[str]:
    return re.split(r"\r?\n|\r", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()))


def test_an_evaluation_names_each_error_in_its_unit() -> None:
    record = {"kind": "eval", "step": 20, "duration_seconds": 2.0, "samples": 100}
    units = {"sold": "%", "price": "EUR", "depth": "m"}
    errors = {"sold": 3.5, "price": 1234.5678, "depth": 0.03125}
    shown = eval_line(record | {"errors": errors, "units": units})
    assert shown == "eval at step 20  error sold 3.50%  price 1,235 EUR  depth 0.03125 m  in 2.0 s"
    many = {f"t{t}": float(t) for t in range(6)} | {"price": None, "rent": 7.0}
    units = {"price": "EUR", "rent": "EUR"}
    shown = eval_line(record | {"errors": many, "units": units})
    assert "error mean 2.50% worst 5.00% (t5)  mean 7 EUR worst 7 EUR (rent)  in" in shown


def test_plain_lines_off_a_terminal_and_the_same_in_the_log(tmp_path: Path) -> None:
    shown = io.StringIO()
    show_everything(tmp_path / "log.txt", Console(file=shown, width=40), ["left", "[red]right"])
    assert shown.getvalue().splitlines() == [
        "wandb: off [by request]",
        *(
            f"step {step}/100  loss left 1.0000 [red]right 2.0000  alpha left 0.333 [red]right 0.667"
            "  lr 0.05  8,123 samples/s  data wait 1.2%"
            for step in (10, 20)
        ),
        "eval at step 20  error left 3.50% [red]right 3.50%  in 2.0 s",
    ]
    lines = (tmp_path / "log.txt").read_text().splitlines(keepends=True)
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", line) for line in lines)
    assert without_times(tmp_path / "log.txt") == shown.getvalue()


def test_many_tasks_are_summed_up_and_an_unknown_loss_is_no_number() -> None:
    record = train_record([f"task{index}" for index in range(1000)])
    record["losses"]["task999"] = None
    assert "loss mean 500.0000 worst 999.0000 (task998)  alpha max 0.002 (task999)" in train_line(record, 100)
    few = train_record(["left", "right"]) | {"losses": {"left": None, "right": 0.5}}
    assert "loss left - right 0.5000" in train_line(few, 100)
    none = train_record(list("abcde")) | {"losses": dict.fromkeys("abcde")}
    assert "loss -" in train_line(none, 100)


@pytest.mark.parametrize("num_tasks", [2, 40, 1000])
@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_never_wraps_and_the_log_keeps_plain_lines(tmp_path: Path, num_tasks: int, width: int) -> None:
    tasks = [f"attribute_{index}" for index in range(num_tasks)]
    shown, plain = io.StringIO(), io.StringIO()
    terminal = Console(file=shown, width=width, force_terminal=True, force_interactive=True, _environ={})
    show_everything(tmp_path / "terminal.txt", terminal, tasks)
    show_everything(tmp_path / "plain.txt", Console(file=plain), tasks)

    assert without_times(tmp_path / "terminal.txt") == without_times(tmp_path / "plain.txt") == plain.getvalue()
    lines = screen_lines(shown)
    assert any("20/100" in line and "8,123 samples/s" in line and "ETA" in line for line in lines)
    assert any("alpha" in line for line in lines)
    assert max(map(cell_len, lines)) <= width


@pytest.mark.long
@given(
    st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1, max_size=9, unique=True),
    st.integers(20, 200),
)
def test_the_bar_never_wraps_whatever_the_names(tasks: list[str], width: int) -> None:
    def lines(tasks: list[str], width: int) -> list[str]:
        shown = io.StringIO()
        console = Console(file=shown, width=width, force_terminal=True, force_interactive=True, _environ={})
        with tempfile.TemporaryDirectory() as folder, Progress(Path(folder) / "log.txt", 100, 0, console) as progress:
            progress.train(train_record(tasks))
        return screen_lines(shown)

    found = lines(tasks, width)
    assert max(map(cell_len, found)) <= width
    assert len(found) == len(lines(["left"], 200))


def test_all_tasks_are_shown_as_long_as_they_fit() -> None:
    record = train_record(["left", "right"])
    full = "loss left 1.0000 right 2.0000   alpha left 0.333 right 0.667"
    assert status_line(record, len(full)) == full
    assert status_line(record, len(full) - 1) == "loss mean 1.5000 worst 2.0000 (right)   alpha max 0.667 (right)"


def test_a_name_that_the_terminal_cannot_print_does_not_stop_the_training(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as ascii_only:
        for interactive in (False, True):
            console = Console(file=ascii_only, force_terminal=interactive, force_interactive=interactive)
            show_everything(tmp_path / "log.txt", console, ["tâche", "任务"])
        ascii_only.flush()
        assert b"t?che" in raw.getvalue()
    assert "任务" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_crash_leaves_the_terminal_and_the_log_in_order(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, force_interactive=True)

    def crash() -> None:
        with Progress(tmp_path / "log.txt", 100, 40, console) as progress:
            progress.train(train_record(["left"], 50))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    assert shown.getvalue().rindex("\x1b[?25h") > shown.getvalue().rindex("\x1b[?25l")  # the cursor is back
    assert without_times(tmp_path / "log.txt").startswith("step 50/100")


def test_mfu_and_memory_are_shown_where_the_peak_is_known() -> None:
    assert "MFU" not in train_line(train_record(["left"]) | {"peak_memory_mib": 512.0}, 100)
    line = train_line(train_record(["left"]) | {"mfu_percent": 41.4, "peak_memory_mib": 5120.0}, 100)
    assert line.endswith("data wait 1.2%  MFU 41%  memory 5.0 GiB")


def test_the_speed_of_each_of_several_processes_is_shown() -> None:
    assert "8,123 samples/s  data" in train_line(
        train_record(["left"]) | {"samples_per_second_per_process": 8123.4}, 100
    )
    line = train_line(train_record(["left"]) | {"samples_per_second_per_process": 4061.7}, 100)
    assert "8,123 samples/s (4,062 a process)  data" in line
