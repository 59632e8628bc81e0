"""The current phase of this process, and how long it may wait for other processes there."""

import time
from datetime import timedelta

import torch.distributed as dist


class Watch:
    """The phase of this process, and the time limit of its collectives.

    There are two limits: a long one for the start, evaluations and checkpoints, in which processes take their own time,
    and a short one for steps, which take all processes alike.

    Args:
        patient_seconds: the long limit, with which the process groups were made.
        step_seconds: the short limit.
        grace_seconds: what collectives get on top of the short limit. NCCL's own watchdog ends a process without a
            message of ours, so the message must come before.

    Attributes:
        phase: what this process is doing, such as "step 12".
        step: the last step that a phase named; None before the first.
        deadline: when the current step is late, by time.monotonic(); infinite under the long limit.
    """

    def __init__(self, patient_seconds: float, step_seconds: float, grace_seconds: float = 0.0) -> None:
        self._patient_seconds, self._step_seconds, self._grace_seconds = patient_seconds, step_seconds, grace_seconds
        self._is_patient = True
        self.phase = "the start"
        self.step: int | None = None
        self.deadline = float("inf")

    def set_phase(self, phase: str, *, patient: bool, step: int | None = None) -> None:
        """Enter a phase, and set its limit on all process groups of this run.

        Args:
            phase: its name, for errors.
            patient: use the long limit.
            step: the step that it belongs to; None: the same as before.
        """
        self.phase = phase
        self.step = self.step if step is None else step
        if patient != self._is_patient:
            self._is_patient = patient
            seconds = self._patient_seconds if patient else self._step_seconds + self._grace_seconds
            # The groups of DDP, FSDP2 and DeepSpeed too. Gloo and NCCL use the limit from their next collective on.
            for group in dist.distributed_c10d._world.pg_map:
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
        self.restart()

    def restart(self) -> None:
        """Restart the clock of the current step: all processes have just met."""
        self.deadline = float("inf") if self._is_patient else time.monotonic() + self._step_seconds
