"""The description of a run that the user gets before its first step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.training.network.start_encoder import EncoderStart


@dataclass(frozen=True)
class Description:
    """The network and the optimizer of a run, in words and numbers.

    Attributes:
        num_parameters: of "encoder" and "heads", before a strategy sharded them.
        notes: on the network, a sentence each.
        groups: of parameters, as the optimizer has them, a line each.
        encoder_start: where the encoder's weights came from; None: from random numbers, or from a checkpoint.
    """

    num_parameters: Mapping[str, int]
    notes: Sequence[str]
    groups: Sequence[str]
    encoder_start: EncoderStart | None
