"""Roll call: which process is it that this one has lost?

What torch says of a lost connection names a port at best, and a collective that is not answered in time names nobody.
So each process has a thread that waits to be called, in the store by which the processes found one another, and answers
with what its main thread does. A process that was killed or stopped does not answer.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

Value = TypeVar("Value")

ANSWER_SECONDS = 5.0
"""How long an answer may take."""
SECONDS_A_RANK = 0.01
"""How much longer with each rank: where a step is late, all call all others at once."""
NAMED = 8
"""Processes named in a message at most."""
LONGEST_WAIT = timedelta(days=20)
"""Of the store's sockets, nearly."""
CALLS = "roll_call/calls"
"""How many there were."""


class Verdict(NamedTuple):
    """What a roll call has found.

    Attributes:
        words: who was lost.
        is_certain: whether somebody did not answer, or has failed.
    """

    words: str
    is_certain: bool


class RollCall:
    """This process's ear and voice.

    Args:
        store: the one that all processes share.
        rank: this process.
        names: all processes' names, by rank.
        answer: what this process says when it is called; runs on a thread of its own.
    """

    def __init__(self, store: Store, rank: int, names: Sequence[str], answer: Callable[[], str]) -> None:
        self._store, self._rank, self._names, self._answer = store, rank, names, answer
        self._answer_seconds = answer_seconds(len(names))
        self._ended = self._has_said_last = False
        self._speaking = threading.Lock()
        own: Store = store.clone()  # type: ignore[attr-defined]  # A wait keeps its connection to itself.
        self._listener = threading.Thread(target=self._listen, args=(own,), name="roll-call", daemon=True)
        self._listener.start()

    def say_last(self, words: str, *, failed: bool) -> None:
        """Answer all calls to come: this process ends, since it has `failed` or because it has lost another one."""
        _within(self._answer_seconds, lambda: self._say(words, failed=failed, is_last=True))

    def call(self) -> Verdict:
        """Call all others, and wait for their answers."""
        # On a thread, for the store too is at one of the processes, and a wait for one that is stopped has no end.
        answers = _within(2 * self._answer_seconds, self._call)
        if answers is None:
            lost = "another process of this run is gone or stuck, and with it the store in which they meet"
            return Verdict(lost, is_certain=True)
        failed = [rank for rank, answer in answers.items() if answer["failed"]]
        silent = [rank for rank in range(len(self._names)) if rank not in answers and rank != self._rank]
        if failed:
            said = [f"{self._names[rank]} {answers[rank]['words']}" for rank in failed]
            return Verdict(f"another process of this run failed: {_some(said)}", is_certain=True)
        if silent:
            said = [self._names[rank] for rank in silent]
            return Verdict(f"another process of this run is gone or stuck: {_some(said)}", is_certain=True)
        said = [f"{self._names[rank]} is {answer['words']}" for rank, answer in answers.items()]
        lost = "another process of this run is gone or stuck, or the network between them, but all answer"
        return Verdict(f"{lost}: {_some(said)}", is_certain=False)

    def end(self) -> None:
        """Stop listening."""
        self._ended = True
        _within(ANSWER_SECONDS, lambda: self._store.set(_called(self._rank), ""))
        self._listener.join(ANSWER_SECONDS)

    def _listen(self, store: Store) -> None:
        with suppress(RuntimeError):  # The store is gone, and with it whoever could call.
            while not self._ended:
                with suppress(dist.DistStoreError):  # The longest wait is over.
                    store.wait([_called(self._rank)], LONGEST_WAIT)
                    # Before the calls are counted, so that one that comes meanwhile is counted or heard.
                    store.delete_key(_called(self._rank))
                    if not self._ended:
                        self._say(self._answer(), failed=False, is_last=False)

    def _say(self, words: str, *, failed: bool, is_last: bool) -> None:
        with self._speaking:
            if not self._has_said_last:
                answer = {"words": words, "failed": failed, "is_last": is_last, "calls": self._store.add(CALLS, 0)}
                self._store.set(_answer(self._rank), json.dumps(answer))
            self._has_said_last |= is_last

    def _call(self) -> dict[int, dict[str, Any]]:
        others = set(range(len(self._names))) - {self._rank}
        number = self._store.add(CALLS, 1)
        for rank in others:
            self._store.set(_called(rank), "")
        deadline = time.monotonic() + self._answer_seconds
        # By asking again, not by the store's own wait, which warns of each that comes to nothing.
        while time.monotonic() < deadline:
            if self._store.check([_answer(rank) for rank in others]):
                answers = self._answers(others, number)
                if len(answers) == len(others):
                    return answers
            time.sleep(0.1)
        return self._answers({rank for rank in others if self._store.check([_answer(rank)])}, number)

    def _answers(self, ranks: set[int], number: int) -> dict[int, dict[str, Any]]:
        """What those of these ranks that have ever said something answer to call `number`."""
        values = self._store.multi_get([_answer(rank) for rank in sorted(ranks)])
        answers = dict(zip(sorted(ranks), map(json.loads, values), strict=True))
        return {rank: answer for rank, answer in answers.items() if answer["is_last"] or answer["calls"] >= number}


def answer_seconds(world_size: int) -> float:
    """How long an answer may take among so many processes."""
    return ANSWER_SECONDS + SECONDS_A_RANK * world_size


def _called(rank: int) -> str:
    return f"roll_call/{rank}"


def _answer(rank: int) -> str:
    return f"roll_call/{rank}/answer"


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return "; ".join(words[:NAMED]) + more


def _within(seconds: float, ask: Callable[[], Value]) -> Value | None:
    """What the store answers; None where it does not, or is gone."""
    answers: list[Value] = []

    def work() -> None:
        with suppress(RuntimeError):
            answers.append(ask())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
