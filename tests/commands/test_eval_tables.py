"""The tables that `paretrain eval` prints."""

import io

import pytest

from models import Classification
from trainer.commands.eval import metric_tables
from trainer.config.metrics import metrics_of
from trainer.terminal import Terminal


@pytest.mark.parametrize("with_ends", [False, True])
@pytest.mark.parametrize(
    "name", ["a", "Größe in mm", "a name of a task that is far longer than all others, of 70 letters"]
)
def test_each_metric_stands_beside_the_name_of_its_task_in_80_columns(name: str, with_ends: bool) -> None:
    of_classes = metrics_of("classification", 2)
    metrics = {task: dict.fromkeys(of_classes, 0.1234) for task in (name, "the other")}
    ends = {task: dict.fromkeys(of_classes, (0.111, 0.222)) for task in metrics} if with_ends else {}
    terminal = Terminal(file=io.StringIO(), width=80)
    shown = []
    for table in metric_tables([Classification(task, ("no", "yes")) for task in metrics], metrics, ends, terminal):
        with terminal.capture() as capture:
            terminal.print(table)
        lines = capture.get().splitlines()
        rows = [line for line in lines if "0.1234" in line]
        assert [row[:10].split()[0] for row in rows] == [name.split()[0], "the", "mean", "worst"]
        assert max(map(len, lines)) <= 80
        assert "…" not in capture.get()
        shown += [each for row in rows[:1] for each in row.split() if each == "0.1234"]
    assert len(shown) == len(of_classes)
