"""Fill an encoder with weights from elsewhere, every tensor accounted for."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from trainer.config.sections.model import EncoderConfig
from trainer.errors import UserError
from trainer.plain import cut_line
from trainer.runtime.collectives import Runtime
from trainer.training.network.weights import Weights, open_weights

OURS = "encoder."
"""What the encoder's names begin with in checkpoints and exports."""
MAX_SHOWN = 6


@dataclass(frozen=True)
class EncoderStart:
    """Where an encoder's weights came from, as run.json records it.

    Attributes:
        path: of the file, the folder or the checkpoint.
        sha256: of its files.
        prefix: what the encoder's names begin with there.
        num_tensors: how many were read.
        left_out: the names of the others there.
        at_random: names of the encoder that are not there.
    """

    path: str
    sha256: Mapping[str, str]
    prefix: str
    num_tensors: int
    left_out: Sequence[str]
    at_random: Sequence[str]

    @property
    def sentence(self) -> str:
        """Return all that in words."""
        hashes = ", ".join(f"{name} {found[:12]}…" for name, found in list(self.sha256.items())[:MAX_SHOWN])
        said = f"the encoder starts from {self.num_tensors} tensors of {self.path} (SHA-256 of {hashes})"
        if self.prefix:
            said += f", named {self.prefix}*"
        if self.left_out:
            tops = Counter(name.partition(".")[0] for name in self.left_out)
            said += f"; left out there: {', '.join(f'{cut_line(top)} ({count})' for top, count in tops.items())}"
        if self.at_random:
            said += f"; not there, and started at random: {some_of(self.at_random)}"
        return said


def load_encoder_weights(encoder: nn.Module, config: EncoderConfig, runtime: Runtime) -> EncoderStart | None:
    """Fill the encoder from what the configuration names; return None if it names nothing. Collective.

    Raises:
        UserError: it cannot be read, or does not fit.
    """
    if config.weights is None:
        return None
    weights = open_weights(config.weights, runtime)
    with runtime.raise_together():
        return start_encoder(encoder, weights, config)


def start_encoder(encoder: nn.Module, weights: Weights, config: EncoderConfig) -> EncoderStart:
    """Fill the encoder's parameters and buffers.

    Names match where they are the same after a prefix of the names there, and after one that all of the encoder's
    names share, such as `backbone.`. What lies there outside of the prefix, such as heads, is left out.

    Args:
        encoder: whole; filled in place.
        weights: to start from.
        config: of the encoder.

    Raises:
        UserError: a tensor is missing, left over or of another shape.
    """
    own = encoder.state_dict()
    here, there = _prefixes(own, weights.tensors, config.weights_prefix)
    inside = {name.removeprefix(there): name for name in weights.tensors if name.startswith(there)}
    wanted = {name.removeprefix(here): name for name in own}
    lacking = [wanted[name] for name in wanted if name not in inside]
    left_over = [name for name in inside if name not in wanted]
    shared = {wanted[name]: weights.tensors[inside[name]] for name in wanted if name in inside}
    unlike = [
        f"{name} {tuple(tensor.shape)}, expected {tuple(own[name].shape)}"
        for name, tensor in shared.items()
        if tensor.shape != own[name].shape or tensor.is_floating_point() != own[name].is_floating_point()
    ]
    faults = [
        _fault("lacks", _without(lacking, config.weights_missing), "To start them at random", "weights_missing"),
        _fault("has, left over,", _without(left_over, config.weights_ignore), "To leave them out", "weights_ignore"),
        f"has of another shape {some_of(unlike)}" if unlike else "",
    ]
    if any(faults):
        raise UserError(
            f"model.encoder.weights: {weights.path}, whose names begin with '{there}', does not fit the encoder:\n  "
            + "\n  ".join(f"it {fault}" for fault in faults if fault)
        )
    with torch.no_grad():
        for name, tensor in shared.items():
            own[name].copy_(tensor)
    return EncoderStart(
        path=str(weights.path),
        sha256=weights.sha256,
        prefix=there,
        num_tensors=len(shared),
        left_out=[name for name in weights.tensors if name.removeprefix(there) not in wanted],
        at_random=lacking,
    )


def _prefixes(own: Collection[str], tensors: Collection[str], given: str | None) -> tuple[str, str]:
    """Return what to take off the names here and there.

    Raises:
        UserError: no name matches, whatever the prefix.
    """
    tried = [("", _best_prefix(own, tensors, given))]
    first = next(iter(own)).partition(".")[0] + "."
    if all(name.startswith(first) for name in own):
        tried.append((first, _best_prefix([name.removeprefix(first) for name in own], tensors, given)))
    here, (there, count) = max(tried, key=lambda found: found[1][1])
    if not count:
        raise UserError(
            f"model.encoder.weights: no name there {'begins with ' + repr(given) + ' and ' if given else ''}ends like "
            f"one of the encoder's: it has {some_of(own)}; there are {some_of(tensors)}"
        )
    return here, there


def _best_prefix(own: Collection[str], tensors: Collection[str], given: str | None) -> tuple[str, int]:
    """Return the prefix under which most of the names are found, and how many."""
    names = set(own)
    if given is not None:
        return given, sum(name.startswith(given) and name.removeprefix(given) in names for name in tensors)
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in names:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    # Of several, the one that we write ourselves, or the shortest.
    return max(counts.items(), key=lambda found: (found[1], found[0] == OURS, -len(found[0])), default=("", 0))


def _without(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]


def _fault(what: str, names: Sequence[str], purpose: str, key: str) -> str:
    if not names:
        return ""
    parts = sorted({f"{name.partition('.')[0]}.*" if "." in name else name for name in names})
    return f"{what} {some_of(names)}. {purpose}: model.encoder.{key}='[{', '.join(parts[:MAX_SHOWN])}]'"


def some_of(names: Iterable[str]) -> str:
    """Return the number of names, and the first of them."""
    found = [cut_line(name) for name in names]
    return f"{len(found)}: {', '.join(found[:MAX_SHOWN])}{', ...' if len(found) > MAX_SHOWN else ''}"
