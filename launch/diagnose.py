"""What did a dead or hung run leave? python -m launch.diagnose RUN

Reads what the processes left in RUN/faults (their stacks, and torch's flight records of their last collectives), and
what node_entry.sh keeps in RUN/logs of the last start: each rank's output, and the launchers' word on how ranks ended.
Nothing is guessed: what left no trace is said to have left none.
"""

import pickle
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from launch.accelerated import HOST, LOG
from launch.faults import Left, left_in, named_in
from trainer.errors import UserError, run_command
from trainer.runtime.faults.guard import FAULTS

TAIL_BYTES = 64 * 1024

_KILLED = re.compile(r"rank (\d+) \(process \d+\) was ended by (\w+)")
_CRASH = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_PLACE = re.compile(r'^ +File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)|AssertionError)(?::.*)?$", re.MULTILINE)
_LINE = re.compile(r'^  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
_ERROR = re.compile(r"^paretrain: error: (.+)$", re.MULTILINE)
_WATCHDOG = re.compile(r"Watchdog caught collective operation timeout: WorkNCCL\((.+?)\) ran for")
_LOST_PEER = "stopped: another process of this run"
_OF_TORCH = re.compile(r"/(torch|deepspeed|accelerate)/")


class Blame(IntEnum):
    """How much a rank looks like the cause."""

    VICTIM = 0
    """It lost another one."""
    THERE = 1
    """It was asked where it is, and answered."""
    SILENT = 2
    FAILED = 3
    CRASHED = 4
    KILLED = 5


@dataclass(frozen=True)
class Rank:
    """What is known of one rank.

    Attributes:
        number: the rank.
        host: its machine.
        blame: see there.
        story: what happened, in words.
        collective: the last one that its flight record knows, with its number and state.
        sequence: that number.
    """

    number: int
    host: str
    blame: Blame
    story: str
    collective: str | None = None
    sequence: int | None = None


def diagnose(run_dir: Path) -> str:
    """One page: a line a rank, and which of them came first.

    Raises:
        UserError: the run has left nothing.
    """
    left = left_in(run_dir)
    start = _last_start(run_dir)
    if start is None and not left:
        raise UserError(
            f"nothing in {run_dir} tells of a fault: no process has lost another one since the last start ({FAULTS}/), "
            "and only runs that launch/node_entry.sh or `paretrain submit` started keep their output (logs/)"
        )
    if start is None:
        lines = [f"{run_dir}: what its processes left in {FAULTS}"]
        ranks = [
            Rank(rank, host, Blame.SILENT, f"left no word of an error (process {process})")
            for rank, (host, process) in sorted(named_in(run_dir).items())
        ]
    else:
        nodes = [max(folder.iterdir()) for folder in sorted(start.iterdir(), key=lambda folder: int(folder.name[4:]))]
        lines = [f"{run_dir}: the start in {start.relative_to(run_dir)}, {len(nodes)} nodes"]
        lines += [
            f"  {(folder / HOST).read_text().strip()} started no process" for folder in nodes if not _outputs(folder)
        ]
        ranks = _ranks(nodes)
    ranks = [_with_faults(rank, left.get(rank.number), run_dir) for rank in ranks]
    for rank in ranks:
        collective = f"; its last collective: {rank.collective}" if rank.collective else ""
        lines.append(f"  {_name(rank)}: {rank.story}{collective}")
    if left:
        lines.append(f"  their stacks: {run_dir / FAULTS}")
    return "\n".join([*lines, "", answer(ranks)])


def answer(ranks: Sequence[Rank]) -> str:
    """Which rank, which host, which place."""
    worst = max((rank.blame for rank in ranks), default=Blame.VICTIM)
    first = [rank for rank in ranks if rank.blame == worst]
    names = ", ".join(_name(rank) for rank in first)
    if worst >= Blame.FAILED:
        return "first cause: " + "; ".join(f"{_name(rank)}: {rank.story}" for rank in first)
    if worst == Blame.SILENT and len(first) == len(ranks):
        return "no rank has left a word of an error: they ended well, still run, or hang all together"
    behind = _behind(ranks)
    if worst == Blame.SILENT and not (behind and all(rank.sequence is not None for rank in first)):
        return (
            f"first cause: probably {names}: others lost it, and it left no word. It was killed, it is stopped, or its "
            "host or network went away. If it still runs, it prints its stacks upon: kill -USR2 PID"
        )
    if behind:
        return "first cause: others waited for " + "; ".join(
            f"{_name(rank)}, which came no further than {rank.collective}"
            + (f"; it {rank.story}" if rank.blame == Blame.THERE else "")
            for rank in behind
        )
    if worst == Blame.THERE:
        return "first cause: probably " + "; ".join(f"{_name(rank)}: {rank.story}" for rank in first)
    return "every rank lost another one, and none says why: the network between the hosts stopped"


def _name(rank: Rank) -> str:
    return f"rank {rank.number} on {rank.host}"


def _behind(ranks: Sequence[Rank]) -> list[Rank]:
    """The ranks whose flight record ends before that of others."""
    known = [rank.sequence for rank in ranks if rank.sequence is not None]
    if not known or min(known) == max(known):
        return []
    return [rank for rank in ranks if rank.sequence == min(known)]


def _with_faults(rank: Rank, left: Left | None, run_dir: Path) -> Rank:
    """Add what the rank itself has left to what its output tells."""
    if left is None:
        return rank
    if rank.collective is None:
        collective, sequence = _flight(run_dir / FAULTS / f"flight_{rank.number}")
        rank = replace(rank, collective=collective, sequence=sequence)
    if rank.blame != Blame.SILENT:
        return rank
    blame, story = Blame.THERE, f"was {left.words}"
    if left.has_failed:
        blame, story = Blame.FAILED, f"failed {left.words}"
    elif left.has_lost:
        blame, story = Blame.VICTIM, f"lost another one {left.words}"
    return replace(rank, blame=blame, story=f"{story} (process {left.process})")


def _last_start(run_dir: Path) -> Path | None:
    hosts = sorted(run_dir.glob(f"logs/*/*/node*/*/{HOST}"), key=lambda path: path.parent.name)
    return hosts[-1].parents[2] if hosts else None


def _outputs(node: Path) -> list[Path]:
    """The folders of this node's processes, in the order of local ranks."""
    return sorted(node.glob("*/attempt_0/[0-9]*"), key=lambda path: int(path.name))


def _ranks(nodes: Sequence[Path]) -> list[Rank]:
    outputs = [(node, folder) for node in nodes for folder in _outputs(node)]
    killed = dict(match for node in nodes for match in _KILLED.findall(_tail(node / LOG)))
    ranks = []
    # Nodes have as many processes each, and static rendezvous ranks them in the order of the nodes.
    per_node = max((int(folder.name) for _, folder in outputs), default=0) + 1
    for node, folder in outputs:
        number = int(node.parent.name[4:]) * per_node + int(folder.name)
        blame, story = _story(_tail(folder / "stderr.log"), killed.get(str(number)))
        collective, sequence = _flight(node / f"flight_{number}")
        ranks.append(Rank(number, (node / HOST).read_text().strip(), blame, story, collective, sequence))
    return ranks


def _story(text: str, signal: str | None) -> tuple[Blame, str]:
    """How a rank ended, by its own output and its launcher's word."""
    if late := _WATCHDOG.search(text):
        return Blame.VICTIM, f"waited in vain for others in NCCL: {late[1]}"
    if crash := _CRASH.search(text):
        place = _PLACE.search(text, crash.end())
        where = f" at {place[1]}:{place[2]} in {place[3]}" if place else ""
        return Blame.CRASHED, f"crashed: {crash[1]}{where}"
    if error := _ERROR.search(text):
        return (Blame.VICTIM if _LOST_PEER in error[1] else Blame.FAILED), error[1]
    if raised := list(_RAISED.finditer(text)):
        places = list(_LINE.finditer(text, 0, raised[-1].start()))
        where = f" at {places[-1][1]}:{places[-1][2]} in {places[-1][3]}" if places else ""
        return Blame.FAILED, f"raised {raised[-1][0]}{where}"
    if signal == "SIGTERM":
        return Blame.VICTIM, "was ended by SIGTERM, as launchers do when another rank has ended"
    if signal:
        somebody = " (out of memory, or somebody's hand)" if signal == "SIGKILL" else ""
        return Blame.KILLED, f"was ended by {signal}{somebody}"
    return Blame.SILENT, "left no word of an error"


def _flight(path: Path) -> tuple[str | None, int | None]:
    """The last collective that a flight record knows, in words, and its number among all of this rank."""
    if not path.exists():
        return None, None
    with path.open("rb") as stream:
        entries = _PlainUnpickler(stream).load()["entries"]
    last = max(entries, key=lambda entry: entry["record_id"], default=None)
    if last is None:
        return None, None
    frames = [frame for frame in last.get("frames") or [] if not _OF_TORCH.search(frame["filename"])]
    where = f" at {frames[0]['filename']}:{frames[0]['line']} in {frames[0]['name']}" if frames else ""
    sequence = last["record_id"]
    return f"{last['profiling_name']} number {sequence}, {last['state']}{where}", sequence


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, words and numbers, which flight records are made of, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise UserError(f"a flight record asks for {module}.{name}: it is not what torch writes, and was not read")


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - TAIL_BYTES))
        return stream.read().decode(errors="replace")


def main() -> None:
    """Read the command line."""
    if len(sys.argv) != 2:
        raise UserError("expected a run's folder: python -m launch.diagnose runs/NAME")
    print(diagnose(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(run_command(main))
