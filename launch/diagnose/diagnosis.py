"""Say what a dead or hung run left, and which process was the first cause: python -m launch.diagnose RUN

What a process itself could say is in its fault record in RUN/faults, beside its stacks and torch's flight record of its
last collectives. What it could not say is in RUN/logs, where entry.sh keeps each process's output and the launcher's
line on how it ended: crashes, kills, and errors before the processes had met. Nothing is guessed: a process without a
trace is reported as such.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from launch.diagnose.flight import last_collective
from launch.diagnose.records import failures_told, processes_named, read_records, record_on_stderr
from launch.node.accelerated import HOST, LOG
from trainer.errors import UserError
from trainer.files import open_regular
from trainer.plain import cut_line, one_line, printable
from trainer.runtime.faults.records import FAULTS, FaultRecord, LostPeer

TAIL_BYTES = 64 * 1024
"""How much of the end of a process's output is read."""

# What Python, torch and our launcher print.
_KILLED = re.compile(r"rank (\d+) \(process \d+\) was ended by (\w+)")
_CRASH = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_PLACE = re.compile(r'^ +File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_RAISED = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)|AssertionError)(?::.*)?$", re.MULTILINE)
_LINE = re.compile(r'^  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
_ERROR = re.compile(r"^paretrain: error: (.+)$", re.MULTILINE)
_WATCHDOG = re.compile(r"Watchdog caught collective operation timeout: WorkNCCL\((.+?)\) ran for")
_NODE = re.compile(r"node(\d{1,9})")
_LOCAL_RANK = re.compile(r"\d{1,9}")


class Blame(IntEnum):
    """How much a rank looks like the first cause."""

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
    """One rank, as far as its traces tell.

    Attributes:
        number: the rank.
        host: its machine.
        blame: how much it looks like the first cause.
        story: what happened, in words.
        collective: the last collective that its flight record knows, with its number and state.
        sequence: the number of that collective.
    """

    number: int
    host: str
    blame: Blame
    story: str
    collective: str | None = None
    sequence: int | None = None


@dataclass(frozen=True)
class _Output:
    """The output of one process.

    Attributes:
        rank: its rank.
        node: the folder of its node's last start.
        path: its stderr.
        text: the end of its stderr.
    """

    rank: int
    node: Path
    path: Path
    text: str


def diagnose(run_dir: Path) -> str:
    """Return one page: a line for each rank, and which of them was the first cause.

    Raises:
        UserError: the run left nothing.
    """
    unread: list[str] = []
    records = read_records(run_dir, unread)
    has_stacks = bool(records)
    start = _last_start(run_dir)
    if start is None and not records and not unread:
        raise UserError(
            f"nothing in {run_dir} tells of a fault: no process has lost another one since the last start ({FAULTS}/), "
            "and only runs that launch/node/entry.sh or `paretrain submit` started keep their output (logs/)"
        )
    if start is None:
        lines = [f"{run_dir}: what its processes left in {FAULTS}"]
        ranks = [
            Rank(rank, one_line(process.host), Blame.SILENT, f"left no word of an error (process {process.pid})")
            for rank, process in sorted(processes_named(records.values()).items())
        ]
    else:
        nodes = _nodes(start)
        lines = [f"{run_dir}: the start in {start.relative_to(run_dir)}, {len(nodes)} nodes"]
        lines += [f"  {_host(folder, unread)} started no process" for folder in nodes if not _folders(folder)]
        outputs = _outputs(nodes, unread)
        for output in outputs:
            if record := record_on_stderr(output.text, str(output.path), unread):
                records.setdefault(output.rank, record)
        ranks = _ranks(nodes, outputs, unread)
    told = failures_told(records.values())
    ranks = [_with_record(rank, records.get(rank.number), told, run_dir, unread) for rank in ranks]
    for rank in ranks:
        collective = f"; its last collective: {rank.collective}" if rank.collective else ""
        lines.append(f"  {_name(rank)}: {rank.story}{collective}")
    if has_stacks:
        lines.append(f"  their stacks: {run_dir / FAULTS}")
    lines += [f"  not read: {one_line(reason)}" for reason in dict.fromkeys(unread)]
    return "\n".join([*lines, "", answer(ranks)])


def answer(ranks: Sequence[Rank]) -> str:
    """Return the first cause in a sentence: which rank, which host, which place."""
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
    """Return the ranks whose flight record ends before that of others."""
    known = [rank.sequence for rank in ranks if rank.sequence is not None]
    if not known or min(known) == max(known):
        return []
    return [rank for rank in ranks if rank.sequence == min(known)]


def _with_record(
    rank: Rank, record: FaultRecord | None, told: Mapping[int, LostPeer], run_dir: Path, unread: list[str]
) -> Rank:
    """Add what the rank's own record says to what its output says.

    A rank that recorded a lost peer is a victim, however it ended. Its record of an error of its own counts for more
    than its output, except for a crash or a kill. Without a record, what it told the others counts.
    """
    if record is None:
        if rank.number in told and rank.blame == Blame.SILENT:
            peer = told[rank.number]
            story = f"failed {cut_line(peer.failure or '')} (process {peer.pid})"
            return replace(rank, blame=Blame.FAILED, story=story)
        return rank
    if rank.collective is None:
        collective, sequence = _flight(run_dir / FAULTS / f"flight_{rank.number}", unread)
        rank = replace(rank, collective=collective, sequence=sequence)
    words = f"{cut_line(record.words)} (process {record.pid})"
    if record.kind == "lost_peer":
        return replace(rank, blame=Blame.VICTIM, story=f"lost another one {words}")
    if record.kind == "failed" and rank.blame < Blame.CRASHED:
        return replace(rank, blame=Blame.FAILED, story=f"failed {words}")
    if record.kind == "asked" and rank.blame == Blame.SILENT:
        return replace(rank, blame=Blame.THERE, story=f"was {words}")
    return rank


def _last_start(run_dir: Path) -> Path | None:
    hosts = [path for path in run_dir.glob(f"logs/*/*/node*/*/{HOST}") if _number(path.parents[1].name) is not None]
    return max(hosts, key=lambda path: path.parent.name).parents[2] if hosts else None


def _nodes(start: Path) -> list[Path]:
    """Return the folder of each node's last start, in the order of the nodes."""
    folders = [folder for folder in start.iterdir() if folder.is_dir()]
    numbered = {number: folder for folder in folders if (number := _number(folder.name)) is not None}
    starts = [[path for path in numbered[number].iterdir() if path.is_dir()] for number in sorted(numbered)]
    return [max(paths) for paths in starts if paths]


def _number(name: str) -> int | None:
    found = _NODE.fullmatch(name)
    return int(found[1]) if found else None


def _folders(node: Path) -> list[Path]:
    """Return the folders of this node's processes, in the order of local ranks."""
    found = [path for path in node.glob("*/attempt_0/*") if _LOCAL_RANK.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name))


def _outputs(nodes: Sequence[Path], unread: list[str]) -> list[_Output]:
    folders = [(node, folder) for node in nodes for folder in _folders(node)]
    # All nodes have the same number of processes, and static rendezvous ranks them in the order of the nodes.
    per_node = max((int(folder.name) for _, folder in folders), default=0) + 1
    return [
        _Output(
            rank=int(node.parent.name[4:]) * per_node + int(folder.name),
            node=node,
            path=folder / "stderr.log",
            text=_tail(folder / "stderr.log", unread),
        )
        for node, folder in folders
    ]


def _ranks(nodes: Sequence[Path], outputs: Sequence[_Output], unread: list[str]) -> list[Rank]:
    killed = dict(match for node in nodes for match in _KILLED.findall(_tail(node / LOG, unread)))
    ranks = []
    for output in outputs:
        blame, story = _story(output.text, killed.get(str(output.rank)))
        collective, sequence = _flight(output.node / f"flight_{output.rank}", unread)
        ranks.append(Rank(output.rank, _host(output.node, unread), blame, story, collective, sequence))
    return ranks


def _story(text: str, signal: str | None) -> tuple[Blame, str]:
    """Return how a rank ended, by its own output and its launcher's line."""
    if late := _WATCHDOG.search(text):
        return Blame.VICTIM, f"waited in vain for others in NCCL: {late[1]}"
    if crash := _CRASH.search(text):
        place = _PLACE.search(text, crash.end())
        where = f" at {place[1]}:{place[2]} in {place[3]}" if place else ""
        return Blame.CRASHED, f"crashed: {crash[1]}{where}"
    if error := _ERROR.search(text):
        return Blame.FAILED, error[1]
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


def _flight(path: Path, unread: list[str]) -> tuple[str | None, int | None]:
    """Return the last collective that a flight record knows, in words, and its number."""
    try:
        last = last_collective(path)
    except UserError as error:
        unread.append(str(error))
        return None, None
    return (None, None) if last is None else (last.words, last.record_id)


def _tail(path: Path, unread: list[str]) -> str:
    """Return the end of a text file; an empty text if there is none."""
    try:
        with open_regular(path) as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            return stream.read(TAIL_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except UserError as error:
        unread.append(str(error))
        return ""
    except OSError as error:
        unread.append(f"{path} cannot be read: {error.strerror}.")
        return ""


def _host(node: Path, unread: list[str]) -> str:
    return _tail(node / HOST, unread).strip() or f"the host of {node.parent.name}"


def main() -> None:
    """Read the command line and print the diagnosis."""
    if len(sys.argv) != 2:
        raise UserError("expected a run's folder: python -m launch.diagnose runs/NAME")
    print(printable(diagnose(Path(sys.argv[1]))))
