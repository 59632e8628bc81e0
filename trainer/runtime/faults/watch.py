"""What this process is doing, and for how long it waits for another one there."""

import time
from datetime import timedelta

import torch.distributed as dist


class Watch:
    """Two limits: a long one where processes take their own time (the start, evaluations, checkpoints), and a short one
    in the steps, which all make alike.

    Args:
        patient_seconds: the long one, which the process groups were made with.
        step_seconds: the short one.
        grace_seconds: how much longer than that a collective itself may wait in a step: NCCL ends the process with no
            word of ours, so whoever has one must have said it before.

    Attributes:
        what: what this process is doing, such as "step 12".
        deadline: when a step is late, by time.monotonic(); never, where the long limit counts.
    """

    def __init__(self, patient_seconds: float, step_seconds: float, grace_seconds: float = 0.0) -> None:
        self._patient_seconds, self._step_seconds, self._grace_seconds = patient_seconds, step_seconds, grace_seconds
        self._is_patient = True
        self.what = "the start"
        self.deadline = float("inf")

    def at(self, what: str, *, patient: bool) -> None:
        """Say what begins here, and which limit counts from here on, for all process groups of this run."""
        self.what = what
        if patient != self._is_patient:
            self._is_patient = patient
            seconds = self._patient_seconds if patient else self._step_seconds + self._grace_seconds
            # The groups of DDP, FSDP2 and DeepSpeed too. Gloo and NCCL take it for what is sent from now on.
            for group in dist.distributed_c10d._world.pg_map:
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
        self.met()

    def met(self) -> None:
        """All processes have just met: a step is late no sooner than a limit from now."""
        self.deadline = float("inf") if self._is_patient else time.monotonic() + self._step_seconds
