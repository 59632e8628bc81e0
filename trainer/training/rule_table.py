"""What to know of each rule before choosing it: what it sees, and where its paper's guarantee holds."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Sees = Literal["gradients", "losses", "both", "nothing"]
Guarantee = Literal["representation", "parameters", "either", "none"]


class About(NamedTuple):
    """One rule.

    Attributes:
        sees: what its weights depend on: the Gram matrix of the gradients, the losses, both or neither.
        remembers: what it keeps from step to step, and in checkpoints; empty for nothing that changes its weights.
        guarantee: for gradients with respect to what its paper proves something. "either": it weighs losses, whose
            weighted sum descends whatever the encoder is; "none": the paper proves nothing.
        paper: the first author and the number on arXiv.
    """

    sees: Sees
    remembers: str
    guarantee: Guarantee
    paper: str


ABOUT: Mapping[str, About] = {
    "min_norm": About("gradients", "", "representation", "Sener 1810.04650"),
    "uniform": About("nothing", "", "either", "-"),
    "fixed": About("nothing", "", "either", "-"),
    "random": About("nothing", "step", "either", "Lin 2111.10603"),
    "uncertainty": About("losses", "variances", "either", "Kendall 1705.07115"),
    "gradnorm": About("both", "weights", "none", "Chen 1711.02257"),
    "dwa": About("losses", "means", "either", "Liu 1803.10704"),
    "tension": About("both", "norms", "none", "2204.06698"),
    "nash": About("gradients", "", "parameters", "Navon 2202.01017"),
    "fairgrad": About("gradients", "", "parameters", "Ban 2402.15638"),
    "imtl_g": About("gradients", "", "parameters", "Liu, ICLR 2021"),
    "config": About("gradients", "", "parameters", "Liu 2408.11104"),
    "aligned": About("gradients", "", "parameters", "Senushkin 2305.19000"),
    "cagrad": About("gradients", "", "parameters", "Liu 2110.14048"),
    "upgrad": About("gradients", "", "parameters", "Quinton 2406.16232"),
    "pcgrad": About("gradients", "step", "parameters", "Yu 2001.06782"),
    "gradvac": About("gradients", "cosines", "parameters", "Wang 2010.05874"),
    "stch": About("losses", "", "either", "Lin 2402.19078"),
    "si": About("losses", "", "either", "in Navon 2202.01017"),
    "gls": About("losses", "", "either", "Chennupati 1904.08492"),
    "uw_so": About("losses", "", "either", "Kirchdorfer 2408.07985"),
    "db_mtl": About("both", "", "none", "Lin 2308.12029"),
    "ntkmtl": About("gradients", "", "none", "Qin 2510.18258"),
    "famo": About("losses", "logits", "either", "Liu 2306.03792"),
    "go4align": About("losses", "scores", "either", "Shen 2404.06486"),
}
"""Each key of `trainer.training.rules.RULES`."""


def outside_its_guarantee(weighting: str, space: str) -> str:
    """Return a sentence where a rule sees other gradients than those of its paper's guarantee; else an empty string."""
    if weighting not in ABOUT or ABOUT[weighting].guarantee != "parameters" or space == "parameters":
        return ""
    return (
        f"what the paper of weighting={weighting} proves holds for gradients of the encoder's parameters; here it sees "
        "those of the representation, with which results can be far worse (Nash-MTL on QM9: arXiv 2202.01017, appendix "
        "C). balance.space=parameters costs one backward per task; balance.monitor_every_steps=100 shows what happens"
    )
