"""Muon for the matrices of the encoder, AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

MATCH_ADAMW = "match_rms_adamw"
"""Scales Muon's updates to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982): one learning rate fits both."""


class MuonAndAdamW(Optimizer):
    """Step matrices with torch's Muon (Jordan et al. 2024), and other parameters with AdamW.

    Args:
        groups: of parameters; each says by `is_matrix` whose it is.
        lr: learning rate of both.
        momentum: of Muon.
        nesterov: of Muon.
        ns_coefficients: of Muon's Newton-Schulz iteration.
        ns_steps: of Muon's Newton-Schulz iteration.
        eps: of Muon.
        adjust_lr_fn: of Muon; the default scales its updates to the size of AdamW's.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        eps: float = 1e-7,
        adjust_lr_fn: str = MATCH_ADAMW,
    ) -> None:
        self._parts: list[Optimizer] = []
        super().__init__(groups, {"lr": lr})
        matrices = [group for group in self.param_groups if group["is_matrix"]]
        others = [group for group in self.param_groups if not group["is_matrix"]]
        if matrices:
            muon = {"momentum": momentum, "nesterov": nesterov, "ns_coefficients": ns_coefficients}
            muon |= {"ns_steps": ns_steps, "eps": eps, "adjust_lr_fn": adjust_lr_fn}
            self._parts.append(Muon(matrices, lr=lr, **muon))  # type: ignore[arg-type]
        if others:
            self._parts.append(AdamW(others, lr=lr))
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load groups and state into both parts."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step both parts. A closure is not called."""
        for part in self._parts:
            part.step()

    def _share(self) -> None:
        """Let both parts read and change the groups and the state of this optimizer."""
        for part in self._parts:
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["is_matrix"] is isinstance(part, Muon)]
