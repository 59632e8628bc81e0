"""Say what a dead or hung run left, and which process was the first cause: python -m launch.diagnose RUN

What a process itself could say is in its fault record in RUN/faults, beside its stacks and torch's flight record of its
last collectives. What it could not say is in RUN/logs, where entry.sh keeps each process's output and the launcher's
line on how it ended: crashes, kills, and errors before the processes had met. Nothing is guessed: a process without a
trace is reported as such.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launch.diagnose.flight import last_words
from launch.diagnose.logs import last_start, read_logs
from launch.diagnose.rank import Blame, Rank
from launch.diagnose.records import failures_told, last_earlier, processes_named, read_records, records_folder
from trainer.errors import UserError
from trainer.plain import cut_line, one_line, printable
from trainer.runtime.faults.records import FAULTS, FaultRecord, LostPeer


def diagnose(run_dir: Path) -> str:
    """Return one page: a line for each rank, and which of them was the first cause.

    Raises:
        UserError: the run left nothing.
    """
    lines, ranks = examined(run_dir)
    return "\n".join([*lines, "", answer(ranks)])


def examined(run_dir: Path) -> tuple[list[str], list[Rank]]:
    """Return the lines of the page above the answer, and the ranks.

    Args:
        run_dir: the run's folder; or RUN/faults/TIME, the records of an earlier start.

    Raises:
        UserError: the run left nothing.
    """
    unread: list[str] = []
    folder = records_folder(run_dir)
    records = read_records(folder, unread)
    has_stacks = bool(records)
    start = last_start(run_dir)
    earlier = last_earlier(folder)
    before = f"the last fault before that start: python -m launch.diagnose {earlier}" if earlier else ""
    if start is None and not records and not unread:
        raise UserError(
            f"nothing in {run_dir} tells of a fault: no process has failed or lost another one since the last start "
            f"({FAULTS}/), and only runs that launch/node/entry.sh or `paretrain submit` started keep output (logs/)"
            + (f"\nTo see {before}" if before else "")
        )
    if start is None:
        lines = [f"{folder}: what the processes of the run left"]
        ranks = _ranks_of(records.values())
    else:
        logs = read_logs(start, unread)
        lines = [f"{run_dir}: the start in {start.relative_to(run_dir)}, {logs.num_nodes} nodes"]
        lines += [f"  {host} started no process" for host in logs.idle_hosts]
        ranks, records = list(logs.ranks), {**logs.records, **records}
    told = failures_told(records.values())
    ranks = [_with_record(rank, records.get(rank.number), told, folder, unread) for rank in ranks]
    for rank in ranks:
        collective = f"; its last collective: {rank.collective}" if rank.collective else ""
        lines.append(f"  {_name(rank)}: {rank.story}{collective}")
    if has_stacks:
        lines.append(f"  their stacks: {folder}")
    if before:
        lines.append(f"  {before}")
    lines += [f"  not read: {one_line(reason)}" for reason in dict.fromkeys(unread)]
    return lines, ranks


def answer(ranks: Sequence[Rank]) -> str:
    """Return the first cause in a sentence: which rank, which host, which place."""
    worst = max((rank.blame for rank in ranks), default=Blame.VICTIM)
    first = [rank for rank in ranks if rank.blame == worst]
    names = ", ".join(_name(rank) for rank in first)
    if worst >= Blame.FAILED:
        return "first cause: " + "; ".join(f"{_name(rank)}: {rank.story}" for rank in first)
    if worst == Blame.SILENT and len(first) == len(ranks):
        return "no rank left an error message: they ended without a fault, still run, or all hang"
    behind = _behind(ranks)
    if worst == Blame.SILENT and not (behind and all(rank.sequence is not None for rank in first)):
        return (
            f"first cause: probably {names}: others lost it, and it left no error message. It was killed or stopped, "
            "or its host or network failed. If it still runs, print its stacks with: kill -USR2 PID"
        )
    if behind:
        return "first cause: others waited for " + "; ".join(
            f"{_name(rank)}, which came no further than {rank.collective}"
            + (f"; it {rank.story}" if rank.blame == Blame.THERE else "")
            for rank in behind
        )
    if worst == Blame.THERE:
        return "first cause: probably " + "; ".join(f"{_name(rank)}: {rank.story}" for rank in first)
    return "every rank lost another one, and none failed by itself: the network between the hosts failed"


def _ranks_of(records: Collection[FaultRecord]) -> list[Rank]:
    """Return all ranks of a start without logs."""
    named = processes_named(records)
    # A rank that was killed leaves no record, and the others do not always name it.
    world_size = max((record.world_size for record in records), default=0)
    return [
        Rank(rank, one_line(named[rank].host), Blame.SILENT, f"left no error message (process {named[rank].pid})")
        if rank in named
        else Rank(rank, "an unknown host", Blame.SILENT, "left nothing that can be read")
        for rank in sorted({*named, *range(world_size)})
    ]


def _name(rank: Rank) -> str:
    return f"rank {rank.number} on {rank.host}"


def _behind(ranks: Sequence[Rank]) -> list[Rank]:
    """Return the ranks whose flight record ends before that of others."""
    known = [rank.sequence for rank in ranks if rank.sequence is not None]
    if not known or min(known) == max(known):
        return []
    return [rank for rank in ranks if rank.sequence == min(known)]


def _with_record(
    rank: Rank, record: FaultRecord | None, told: Mapping[int, LostPeer], folder: Path, unread: list[str]
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
        collective, sequence = last_words(folder / f"flight_{rank.number}", unread)
        rank = replace(rank, collective=collective, sequence=sequence)
    words = f"{cut_line(record.words)} (process {record.pid})"
    if record.kind == "lost_peer":
        return replace(rank, blame=Blame.VICTIM, story=f"lost another rank {words}")
    if record.kind == "failed" and rank.blame < Blame.CRASHED:
        return replace(rank, blame=Blame.FAILED, story=f"failed {words}")
    if record.kind == "asked" and rank.blame == Blame.SILENT:
        return replace(rank, blame=Blame.THERE, story=f"was {words}")
    return rank


def main() -> None:
    """Read the command line and print the diagnosis."""
    if len(sys.argv) != 2:
        raise UserError("expected a run's folder: python -m launch.diagnose runs/NAME")
    print(printable(diagnose(Path(sys.argv[1]))))
