"""docs/observability.md names the fields that the files have."""

import re
from typing import get_args

from tests.docs.markdown import ROOT
from trainer.observe.heartbeat import GAUGES, State
from trainer.observe.records import Record

PAGE = (ROOT / "docs" / "observability.md").read_text()


def named(line: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", line))


def test_the_fields_of_every_kind_of_record_are_on_the_page() -> None:
    rows = {row[1]: row[2] for row in re.finditer(r"^\| `(\w+)` \|.*?\| (.*) \|$", PAGE, re.MULTILINE)}
    common = {"schema", "kind", "step", "time", "seconds"}
    for record in get_args(Record):
        kind = get_args(record.__annotations__["kind"])[0]
        of_page = named(rows["eval" if kind == "test" else kind])
        assert record.__annotations__.keys() == of_page | common, kind


def test_the_metrics_and_states_of_the_heartbeat_are_on_the_page() -> None:
    assert {f"paretrain_{name}" for name, _ in GAUGES.values()} <= named(PAGE)
    assert {str(state) for state in State} <= named(PAGE)
