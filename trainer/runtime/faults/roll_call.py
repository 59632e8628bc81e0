"""The roll call: find out which of the other processes is lost.

An error of torch about a lost connection names a port at best, and a collective that times out names nobody. So each
process has a thread that waits to be called, through the store by which the processes found one another, and answers
with what its main thread is doing. A process that was killed or stopped does not answer.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from trainer.runtime.faults.records import LostPeer, Process

Value = TypeVar("Value")

ANSWER_SECONDS = 5.0
"""How long an answer may take."""
SECONDS_A_RANK = 0.01
"""Added for each rank: when a step is late, all ranks call all others at once."""
NAMED = 8
"""Processes named in a message at most."""
LONGEST_WAIT = timedelta(days=20)
"""Close to the longest wait that the store's sockets allow."""
CALLS = "roll_call/calls"
"""The store's key of the number of calls so far."""


class Verdict(NamedTuple):
    """The result of a roll call.

    Attributes:
        words: the result as a sentence.
        lost: the processes that have failed, or else those that did not answer.
        is_certain: whether a process is known to be lost; False where all answer.
    """

    words: str
    lost: Sequence[LostPeer]
    is_certain: bool


class _Answer(NamedTuple):
    """The answer of a process that is called.

    Attributes:
        words: where it is.
        failed: it has ended with an error of its own.
        is_last: it ends, and this answers every later call too.
        calls: how many calls there were when it answered.
    """

    words: str
    failed: bool
    is_last: bool
    calls: int


class RollCall:
    """This process in the roll calls of a run: answers the calls of others, and calls them.

    Args:
        store: shared by all processes.
        rank: this process.
        peers: all processes, by rank.
        answer: returns what this process says when it is called; runs on a thread of its own.
    """

    def __init__(self, store: Store, rank: int, peers: Sequence[Process], answer: Callable[[], str]) -> None:
        self._store, self._rank, self._peers, self._answer = store, rank, peers, answer
        self._answer_seconds = answer_seconds(len(peers))
        self._ended = self._has_said_last = False
        self._speaking = threading.Lock()
        own: Store = store.clone()  # type: ignore[attr-defined]  # A wait blocks its connection.
        self._listener = threading.Thread(target=self._listen, args=(own,), name="roll-call", daemon=True)
        self._listener.start()

    def say_last(self, words: str, *, failed: bool) -> None:
        """Leave the answer to all later calls: this process ends, with an error of its own (`failed`) or not."""
        _within(self._answer_seconds, lambda: self._say(words, failed=failed, is_last=True))

    def call(self) -> Verdict:
        """Call all other processes and wait for their answers."""
        # On a thread: the store lives in one of the processes, and if that one is stopped, a request never returns.
        answers = _within(2 * self._answer_seconds, self._call)
        if answers is None:
            lost = "another process of this run is gone or stuck, and with it the store in which they meet"
            return Verdict(lost, [], is_certain=True)
        failed = [self._lost(rank, answer.words) for rank, answer in answers.items() if answer.failed]
        silent = [self._lost(rank) for rank in range(len(self._peers)) if rank not in answers and rank != self._rank]
        if failed:
            said = [f"{peer} {peer.failure}" for peer in failed]
            return Verdict(f"another process of this run failed: {_some(said)}", failed, is_certain=True)
        if silent:
            said = [str(peer) for peer in silent]
            return Verdict(f"another process of this run is gone or stuck: {_some(said)}", silent, is_certain=True)
        said = [f"{self._peers[rank]} is {answer.words}" for rank, answer in answers.items()]
        lost = "another process of this run is gone or stuck, or the network between them, but all answer"
        return Verdict(f"{lost}: {_some(said)}", [], is_certain=False)

    def end(self) -> None:
        """Stop listening."""
        self._ended = True
        _within(ANSWER_SECONDS, lambda: self._store.set(_call_key(self._rank), ""))
        self._listener.join(ANSWER_SECONDS)

    def _lost(self, rank: int, failure: str | None = None) -> LostPeer:
        return LostPeer(**self._peers[rank].model_dump(), failure=failure)

    def _listen(self, store: Store) -> None:
        with suppress(RuntimeError):  # The store is gone, and with it everybody who could call.
            while not self._ended:
                with suppress(dist.DistStoreError):  # The longest wait is over.
                    store.wait([_call_key(self._rank)], LONGEST_WAIT)
                    # Before the calls are counted: a call that comes in between is either counted or heard next.
                    store.delete_key(_call_key(self._rank))
                    if not self._ended:
                        self._say(self._answer(), failed=False, is_last=False)

    def _say(self, words: str, *, failed: bool, is_last: bool) -> None:
        with self._speaking:
            if not self._has_said_last:
                answer = _Answer(words, failed, is_last, calls=self._store.add(CALLS, 0))
                self._store.set(_answer_key(self._rank), json.dumps(answer._asdict()))
            self._has_said_last |= is_last

    def _call(self) -> dict[int, _Answer]:
        others = set(range(len(self._peers))) - {self._rank}
        number = self._store.add(CALLS, 1)
        for rank in others:
            self._store.set(_call_key(rank), "")
        deadline = time.monotonic() + self._answer_seconds
        # Polled: the store's own wait prints a warning each time it times out.
        while time.monotonic() < deadline:
            if self._store.check([_answer_key(rank) for rank in others]):
                answers = self._answers(others, number)
                if len(answers) == len(others):
                    return answers
            time.sleep(0.1)
        return self._answers({rank for rank in others if self._store.check([_answer_key(rank)])}, number)

    def _answers(self, ranks: set[int], number: int) -> dict[int, _Answer]:
        """Return the answers to call `number` of those of `ranks`, which all have answered some call."""
        values = self._store.multi_get([_answer_key(rank) for rank in sorted(ranks)])
        answers = {rank: _Answer(**json.loads(value)) for rank, value in zip(sorted(ranks), values, strict=True)}
        return {rank: answer for rank, answer in answers.items() if answer.is_last or answer.calls >= number}


def answer_seconds(world_size: int) -> float:
    """Return how long an answer may take among `world_size` processes."""
    return ANSWER_SECONDS + SECONDS_A_RANK * world_size


def _call_key(rank: int) -> str:
    return f"roll_call/{rank}"


def _answer_key(rank: int) -> str:
    return f"roll_call/{rank}/answer"


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return "; ".join(words[:NAMED]) + more


def _within(seconds: float, ask: Callable[[], Value]) -> Value | None:
    """Return what the store answers; None if it is gone or does not answer in time."""
    answers: list[Value] = []

    def work() -> None:
        with suppress(RuntimeError):
            answers.append(ask())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
