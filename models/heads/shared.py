"""Linear heads that are alike: a quadratic penalty 1/2 Σ_ts Q_ts w_t · w_s holds them together.

Four ways to say Q, for each output apart:

- `common` λ and `own` μ: w_t = w_0 + v_t with λ/2 |w_0|² + μ/2 Σ_t |v_t|² (Evgeniou & Pontil 2004), minimised over w_0
  in closed form, so that the heads hold w_t alone;
- `graph` A and `own` μ: μ/2 Σ_t |w_t|² + 1/2 Σ_{s<t} A_st |w_s - w_t|², where it is known which tasks are alike;
- `learnt` μ: μ/2 tr(Wᵀ Ω⁻¹ W), minimised over the similarities Ω of trace 1 (Zhang & Yeung 2010): Ω = S / tr S with
  S = (W Wᵀ)^½, so that the penalty is μ/2 times the square of the trace norm of W;
- `common` λ, `constraint` ε and `dual_rate` η: a μ_t for each task, found by dual ascent: models/heads/constrained.py.

The heads are evaluated, saved and exported as linear heads are; biases are free. Task t's share of the penalty,
P_t = 1/2 w_t · Σ_s Q_ts w_s, is a part of its loss, as a mean over the batch: a step in which task t has no label
leaves it out. It does not reach z, so that neither the gradients to balance nor α change by it, unless a rule looks at
losses.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.heads.constrained import ConstrainedHeads
from models.heads.penalised import PenalisedHeads
from models.heads.vector import linear_head

NAME = "shared"


class SharedHeads(PenalisedHeads):
    """Heads with something in common.

    Args:
        heads: linear heads, in task order.
        common: λ, for what all tasks have in common.
        own: μ, for what each task has of its own.
    """

    def __init__(self, heads: Sequence[nn.Sequential], common: float, own: float) -> None:
        super().__init__(heads)
        self.common = common
        self.own = own

    def penalties(self) -> Tensor:
        """Return P_t with Q = μ I - μ²/(λ + T μ) 11ᵀ."""
        weight_TCD = self._weight()
        factor = self.own / (self.common + len(weight_TCD) * self.own)
        pulled_TCD = weight_TCD - factor * weight_TCD.sum(dim=0)
        return 0.5 * self.own * (weight_TCD * pulled_TCD).sum(dim=(1, 2))


class GraphHeads(PenalisedHeads):
    """Heads of which some pairs are alike.

    Args:
        heads: linear heads, in task order.
        edges_TT: A, symmetric, with zeros on the diagonal.
        own: μ.
    """

    edges_TT: Tensor

    def __init__(self, heads: Sequence[nn.Sequential], edges_TT: Tensor, own: float) -> None:
        super().__init__(heads)
        self.register_buffer("edges_TT", edges_TT, persistent=False)
        self.own = own

    def penalties(self) -> Tensor:
        """Return P_t with Q = μ I + diag(A 1) - A."""
        weight_TCD = self._weight()
        edges_TT = self.edges_TT.to(weight_TCD)
        neighbours_TCD = (edges_TT @ weight_TCD.flatten(1)).view_as(weight_TCD)
        pulled_TCD = (self.own + edges_TT.sum(dim=1))[:, None, None] * weight_TCD - neighbours_TCD
        return 0.5 * (weight_TCD * pulled_TCD).sum(dim=(1, 2))


class LearntHeads(PenalisedHeads):
    """Heads whose similarities are learnt with them.

    Args:
        heads: linear heads, in task order.
        own: μ.
    """

    def __init__(self, heads: Sequence[nn.Sequential], own: float) -> None:
        super().__init__(heads)
        self.own = own

    def penalties(self) -> Tensor:
        """Return P_t with Q = μ tr(S) S⁻¹, constant in the backward: Ω is the penalty's minimum."""
        weight_TN = self._weight().flatten(1)
        with torch.no_grad():
            values_T, vectors_TT = torch.linalg.eigh((weight_TN @ weight_TN.T).double())
            root_T = values_T.clamp(min=SMALLEST * values_T[-1].clamp(min=torch.finfo().tiny)).sqrt()
            penalty_TT = self.own * root_T.sum() * (vectors_TT / root_T) @ vectors_TT.T
        return 0.5 * (weight_TN * (penalty_TT.to(weight_TN) @ weight_TN)).sum(dim=1)


SMALLEST = 1e-6
"""Floor of the eigenvalues of W Wᵀ, relative to the largest: a direction without any weight can still get some."""


def shared_heads(width: int, tasks: Mapping[str, int], options: Mapping[str, Any]) -> PenalisedHeads:
    """Build a head for each task.

    Args:
        width: D.
        tasks: name -> C, which must be the same for all.
        options: common and own, graph and own, learnt, or common, constraint and dual_rate.

    Raises:
        ValueError: an option that is missing, unknown or not a positive number, or an edge that is none.
    """
    heads = [linear_head(width, outputs) for outputs in tasks.values()]
    numbers = {key: value for key, value in options.items() if key != "graph"}
    if all(map(_is_positive, numbers.values())):
        if options.keys() == {"common", "own"}:
            return SharedHeads(heads, **options)
        if options.keys() == {"graph", "own"}:
            return GraphHeads(heads, _edges(list(tasks), options["graph"]), options["own"])
        if options.keys() == {"learnt"}:
            return LearntHeads(heads, options["learnt"])
        if options.keys() == {"common", "constraint", "dual_rate"}:
            return ConstrainedHeads(heads, **options)
    raise ValueError(
        f"head '{NAME}' takes positive numbers: common (λ) and own (μ); or own and a graph; or learnt; or common, "
        f"constraint (ε) and dual_rate (η). Found {dict(options)}. For instance: "
        "model.head={name: shared, options: {common: 1e-4, own: 1e-3}}"
    )


def _edges(names: Sequence[str], graph: object) -> Tensor:
    """Return A from {task: {another: weight}}, each pair once.

    Raises:
        ValueError: it is not of that form.
    """
    edges_TT = torch.zeros(len(names), len(names), dtype=torch.float64)
    pairs: list[tuple[Any, Any, Any]] = [
        (one, other, weight)
        for one, others in (graph.items() if isinstance(graph, Mapping) else [(graph, None)])
        for other, weight in (others.items() if isinstance(others, Mapping) else [(others, None)])
    ]
    for one, other, weight in pairs:
        if one not in names or other not in names or one == other or not _is_positive(weight):
            raise ValueError(
                f"head '{NAME}': the graph has {one!r}: {{{other!r}: {weight!r}}}; expected two different tasks of "
                f"{', '.join(names)} and a positive weight: graph: {{{names[0]}: {{{names[-1]}: 0.01}}}}"
            )
        first, second = names.index(one), names.index(other)
        if edges_TT[first, second] != 0:
            raise ValueError(f"head '{NAME}': the graph has {one!r} and {other!r} twice; give each pair once")
        edges_TT[first, second] = edges_TT[second, first] = weight
    return edges_TT


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
