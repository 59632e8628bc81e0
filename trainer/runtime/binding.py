"""Give each process of a host cores of its own, so that no process and no data worker moves to a far core."""

import os
from collections.abc import Sequence

from trainer.errors import UserError


def share_of(cores: Sequence[int], local_rank: int, processes: int) -> list[int]:
    """Return the cores of one of the processes of a host: neighbours, and equally many for each within one.

    Args:
        cores: that the processes may use together.
        local_rank: the number of this process on its host, from 0.
        processes: on this host.

    Raises:
        UserError: there are fewer cores than processes.
    """
    if len(cores) < processes:
        raise UserError(
            f"parallel.bind_cores: {processes} processes share {len(cores)} cores of a host, expected a core for each "
            "at least. Ask for more cores, or add parallel.bind_cores=false"
        )
    first, end = (len(cores) * rank // processes for rank in (local_rank, local_rank + 1))
    return list(cores[first:end])


def bind_cores() -> None:
    """Bind this process, and all that it starts from now on, to its share of the cores that it may use.

    Raises:
        UserError: there are fewer cores than processes.
    """
    local_rank, processes = (int(os.environ.get(name, default)) for name, default in LOCAL.items())
    os.sched_setaffinity(0, share_of(sorted(os.sched_getaffinity(0)), local_rank, processes))


LOCAL = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
"""What launchers say of the processes of a host, and what holds without a launcher."""
