"""Check a representation: its type, and the places where it cannot be split."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def as_tensors(z: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors of z.

    Raises:
        TypeError: one is not a tensor of floating-point numbers.
    """
    if isinstance(z, Mapping):
        raise TypeError(
            f"split() takes a tensor or a sequence of tensors; found a {type(z).__name__} of {', '.join(map(str, z))}. "
            "Give what the heads read, such as z.last_hidden_state, or tuple(z.values())"
        )
    zs = (z,) if isinstance(z, Tensor) else tuple(z)
    if not zs:
        raise TypeError("split() needs a tensor, found an empty sequence")
    for each in zs:
        if not isinstance(each, Tensor):
            raise TypeError(f"split() takes a tensor or a sequence of tensors; found {type(each).__name__}")
        if each.is_complex():
            raise TypeError(
                "z is complex: split its real view, torch.view_as_real(z), and make it complex in each head"
            )
        if not each.is_floating_point():
            raise TypeError(f"z is of {each.dtype}, which has no gradient: split what the encoder returns in float")
    return zs


def is_narrow(zs: Sequence[Tensor]) -> bool:
    """Return whether the heads run in float16: because z is, or by autocast."""
    devices = {z.device.type for z in zs}
    return any(z.dtype == torch.float16 for z in zs) or any(
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16 for device in devices
    )


def refuse_join() -> None:
    """Raise RuntimeError inside the forward of a DistributedDataParallel whose join() is on."""
    wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if wrapper is not None and wrapper._join_config.enable:
        raise RuntimeError(
            "a Balancer cannot run inside DDP's join(): ranks that have ended would not answer its collectives. Give "
            "every rank the same number of steps; a rank without samples left takes part with any batch and counts of 0"
        )
