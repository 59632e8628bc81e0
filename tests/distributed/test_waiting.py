"""A rank that lacks its data does not hold the others up in a collective: all wait in turns, and end together."""

import time
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.ranks import run_ranks
from trainer.errors import UserError
from trainer.runtime import polling
from trainer.runtime.collectives import Runtime
from trainer.runtime.polling import run_while_polling
from trainer.runtime.stopping import Request
from trainer.training import next_batch as waiting


class Late:
    """A loader whose next batch is there after so many looks, or never, because of a fault."""

    def __init__(self, turns: int, fault: str | None = None) -> None:
        self._turns, self._fault, self.handed_out = turns, fault, 0

    def ready(self) -> bool:
        time.sleep(0.01)
        self._turns -= 1
        if self._turns < 0 and self._fault:
            raise UserError(self._fault)
        return self._turns < 0

    def arriving(self) -> dict[str, int]:
        return {"train-000003.tar": 10_000_000 * (9 - self._turns), "left-over.tar": 7}

    def __next__(self) -> str:
        self.handed_out += 1
        return "batch"


def waited(runtime: Runtime, batches: Late, request: Request = Request.GO_ON) -> Any:
    """Return the batch or the error, the reports, how often the wait for data was timed, and the batches taken."""
    notes: list[str] = []
    entered: list[None] = []
    throughput: Any = SimpleNamespace(data_wait=lambda: entered.append(None) or nullcontext())
    stop_requests: Any = SimpleNamespace(read=lambda: request)
    loader: Any = batches
    try:
        came: Any = waiting.next_batch(loader, runtime, stop_requests, throughput, notes.append)
    except UserError as error:
        came = str(error)
    return came, notes, len(entered), batches.handed_out


def cases(rank: int) -> dict[str, Any]:
    waiting.REPORT_EVERY_TURNS = 2
    polling.TURN_SECONDS = 0.05
    runtime = Runtime(None, rank, 2, torch.device("cpu"), None)  # type: ignore[arg-type]
    found = {
        "at once": waited(runtime, Late(0)),
        "late": waited(runtime, Late(5 * rank)),
        "saves later": waited(runtime, Late(5 * rank), Request.SAVE),
        "fault": waited(runtime, Late(3 * rank, "the disk is gone" if rank else None)),
        "stopped": waited(runtime, Late(3 * rank), Request.STOP if rank else Request.GO_ON),
        "stopped in time": waited(runtime, Late(0), Request.STOP),
    }

    def work(seconds: float, fault: str | None = None) -> int:
        time.sleep(seconds)
        if fault:
            raise UserError(fault)
        return rank

    found["worked"] = run_while_polling(runtime, lambda: work(0.3 * rank))
    began = time.monotonic()
    for name, seconds in (("failed", (0.0, 30.0)), ("failed late", (0.3, 0.0))):
        try:
            run_while_polling(runtime, partial(work, seconds[rank], None if rank else "no room"))
        except UserError as error:
            found[name] = str(error)
    found["seconds"] = time.monotonic() - began
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_ranks(2, cases)


def test_whoever_has_its_batch_waits_and_hears_who_has_not(found: list[dict[str, Any]]) -> None:
    for rank in range(2):
        assert found[rank]["at once"] == (("batch", Request.GO_ON), [], 1, 1)
        (batch, request), notes, waits, handed_out = found[rank]["late"]
        assert (batch, request, handed_out) == ("batch", Request.GO_ON, 1)
        assert waits == 2, "the wait for the other rank's data is a wait for data"
        assert notes == [
            "waiting for data for 2 s: train-000003.tar, 10 MB/s (rank 1)",
            "waiting for data for 4 s: train-000003.tar, 10 MB/s (rank 1)",
        ]
        assert found[rank]["saves later"][0] == ("batch", Request.SAVE)


def test_a_fault_after_a_wait_is_everybodys(found: list[dict[str, Any]]) -> None:
    said = "the disk is gone (on rank 1 only)"
    assert [found[rank]["fault"][0] for rank in range(2)] == [said, said]


def test_whoever_is_to_end_does_not_wait_for_the_data(found: list[dict[str, Any]]) -> None:
    for rank in range(2):
        assert found[rank]["stopped"][0] == (None, Request.STOP)
        assert found[rank]["stopped"][3] == 0, "no batch was taken"
        assert found[rank]["stopped in time"][0] == ("batch", Request.STOP)


def test_long_work_is_done_in_turns_and_one_fault_ends_it_for_all(found: list[dict[str, Any]]) -> None:
    assert [found[rank]["worked"] for rank in range(2)] == [0, 1]
    for rank in range(2):
        assert found[rank]["failed"] == found[rank]["failed late"] == "no room (on rank 0 only)"
        assert found[rank]["seconds"] < 20, "nobody waits for what the others are at"
