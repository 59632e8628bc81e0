"""One step, from its first split to its backward: where the Gram matrices of all its splits meet and become α.

The first split of a step stays connected to the encoder. Autograd runs the youngest node first, so its backward comes
after those of all later splits, and finds α. A later split is cut off from the encoder: its own backward cannot know α
yet. The node `_Rest`, which `total` adds to the scalar, hands its gradient to the encoder in the same backward; it is
given the age of the first split's node, so that autograd leaves it for last.

Shapes: T tasks.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import Function, Variable

from paretrain.factored import Factored, added, is_cheaper
from paretrain.losses import Totals
from paretrain.ranks import Ranks
from paretrain.scalar import watched
from paretrain.split import Combine, Weighed, anchor

Find = Callable[[Tensor | Factored, Totals], Weighed]
"""Turns this rank's Gram matrix, of the global mean losses' gradients, into α. Float64, overwritten. Collective.

Its factors do as well where the rule needs no more than products. Its diagonal is enough in a step that holds α."""

Method = TypeVar("Method", bound=Callable[..., Any])

Holds = Callable[[Tensor], bool]
"""Returns whether a step holds α, from the labelled samples of each task over all ranks."""


def inside_backward() -> bool:
    """Return whether autograd is running a backward on this thread."""
    return torch._C._current_graph_task_id() != -1


def outside_of_graphs(method: Method) -> Method:
    """Keep a method, and all that it calls, out of the graphs of torch.compile: autograd's work is no part of one."""
    # torch.compiler.disable is the same, but would load the compiler, which takes seconds, at every import.
    eager = _disable_dynamo(method)

    @functools.wraps(method)
    def outside(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(
                msg="the Balancer runs outside of compiled graphs. Leave out fullgraph=True, or compile the encoder "
                "with it, by itself"
            )
        return eager(*arguments, **options)

    return cast(Method, outside)


class Step:
    """The splits of one step, and what `total` and the backward add to them. It finds α once, however many backwards.

    Attributes:
        known: α, once a backward has found it.
    """

    def __init__(self, num_tasks: int, ranks: Ranks, find: Find, holds: Holds, by_products: bool) -> None:
        self._num_tasks = num_tasks
        self._ranks = ranks
        self._find = find
        self._holds = holds
        self._by_products = by_products
        self._parts: list[weakref.ref[Part]] = []
        self._totals: Totals | None = None
        self._is_split = False
        self._factor: Tensor | None = None
        self._gram_TT: Tensor | Factored | None = None
        self.known: Weighed | None = None
        self._backward = -1
        """The backward that found α; see `torch._C._current_graph_task_id`."""

    @property
    def parts(self) -> "list[Part]":
        """The splits that are still in use, in their order: those of a forward that was thrown away are not."""
        return [part for reference in self._parts if (part := reference()) is not None]

    @property
    def needs_gram(self) -> bool:
        """See `split.Weigher`."""
        return self._totals is None or not self._holds(self._totals.counts_T)

    def multiplies(self, num_outputs: int, width: int) -> bool:
        """See `split.Weigher`. Every rank answers alike, since the counts are those of all ranks."""
        if self._totals is None or not (self._by_products and self.needs_gram):
            return False
        num_samples = float(self._totals.counts_T.max()) / self._ranks.size
        return is_cheaper(self._num_tasks, num_outputs, width, num_samples)

    def add_part(self, zs: Sequence[Tensor], narrow: bool) -> "Part":
        """Add a split of `zs`. `narrow`: the heads run in float16, whose gradients a scaled loss can overflow."""
        others = self.parts
        part = Part(self, zs, narrow, age=others[0].age if others else _age(), is_first=not others)
        self._parts = [weakref.ref(each) for each in [*others, part]]
        return part

    def close(self, totals: Totals, scalar: Tensor) -> Tensor:
        """Give the step its losses; return the scalar to call backward on."""
        self._totals, self._is_split = totals, bool(self.parts)
        if later := [part for part in self.parts if not part.is_first]:
            scalar = scalar + _rest(self, later).to(scalar)
        return watched(scalar, self)

    def begin(self, factor: Tensor) -> None:
        """See `scalar.Watcher`."""
        self._factor = factor
        Variable._execution_engine.queue_callback(self._end)

    def weighed(self) -> Weighed | None:
        """Return α if an earlier backward has found it.

        Raises:
            RuntimeError: this backward has found it already, without the split that asks.
        """
        if self.known is not None and self._backward == torch._C._current_graph_task_id():
            raise RuntimeError(
                "the backward found α before it reached one of the step's splits. That happens if one split depends on "
                "another, if a split belongs to another total(), or if the splits lie on several devices. Give all "
                "tensors of z to one call: balancer.split((z1, z2))"
            )
        return self.known

    def add(self, gram_TT: Tensor | Factored) -> None:
        """Add the Gram matrix of one split, its diagonal or its factors."""
        self._gram_TT = gram_TT if self._gram_TT is None else added(self._gram_TT, gram_TT)

    def weigh(self) -> Weighed:
        """Find α from the Gram matrices so far. Collective.

        Raises:
            RuntimeError: the backward did not start at what `total` returned.
        """
        if self._totals is None or self._factor is None:
            raise RuntimeError(
                "backward() reached z before it passed what balancer.total(...) returns: call backward on that scalar"
            )
        gram_TT, self._gram_TT = self._gram_TT, None
        if gram_TT is None:
            shape = (self._num_tasks,) * (2 if self.needs_gram else 1)
            gram_TT = torch.zeros(shape, dtype=torch.float64)
        # The caller scaled the gradients, and total() multiplied them by W for the wrapper's average.
        factor = float(self._factor)
        divisor = (self._ranks.size * factor) ** 2 or 1.0
        if isinstance(gram_TT, Factored):
            gram_TT.scale /= divisor
        else:
            gram_TT /= divisor
        self.known = self._find(gram_TT, self._totals._replace(scaled=factor > 1 and self._totals.scaled))
        self._backward = torch._C._current_graph_task_id()
        return self.known

    def _end(self) -> None:
        if self.known is None:
            if not self._is_split:
                raise RuntimeError(
                    "no split() or linear() ran with gradients before balancer.total(), so there is no α. The model "
                    "must call that of the same balancer in every step, and not under torch.no_grad()"
                )
            raise RuntimeError(
                "the backward reached no view of z, so there is no α. Each head must read the view that split() gives "
                "its task, or the outputs of linear(). In backward(inputs=...), name parameters of the encoder, too"
            )


class Part:
    """One split of a step. Its node in the graph keeps it alive. Implements `split.Weigher`.

    Attributes:
        zs: for a later split, the tensors of z, until `total` has connected them.
        num_samples: the first dimension of z; None if its tensors differ in it or have none.
        narrow: whether the heads run in float16.
        age: an age below that of the first split's node; see `_rest`.
        is_first: whether no other split of the step was in use before it.
        combine: for a later split whose backward has run, what combines its gradients.
    """

    def __init__(self, step: Step, zs: Sequence[Tensor], narrow: bool, age: int, is_first: bool) -> None:
        self.zs = () if is_first else tuple(zs)
        self.num_samples = num_samples(zs)
        self.narrow = narrow
        self.age = age
        self.is_first = is_first
        self.combine: Combine | None = None
        self._step = step

    @property
    def found(self) -> Weighed | None:
        """See `split.Weigher`."""
        return self._step.weighed() if self.is_first else None

    @property
    def needs_gram(self) -> bool:
        """See `split.Weigher`."""
        return self._step.needs_gram

    def multiplies(self, num_outputs: int, width: int) -> bool:
        """See `split.Weigher`."""
        return self._step.multiplies(num_outputs, width)

    def receive(self, gram_TT: Tensor | Factored, combine: Combine) -> Weighed | None:
        """See `split.Weigher`."""
        if self._step.weighed() is None:
            self._step.add(gram_TT)
        if self.is_first:
            return self._step.weigh()
        self.combine = combine
        return None


class Recomputed:
    """Stands for a split inside the backward, where checkpointing repeats a forward. Implements `split.Weigher`."""

    found = None
    needs_gram = True

    def multiplies(self, num_outputs: int, width: int) -> bool:
        """See `split.Weigher`."""
        return False

    def receive(self, gram_TT: Tensor | Factored, combine: Combine) -> Weighed | None:
        """Refuse: non-reentrant checkpointing repeats the forward for what it saved, and never gets here."""
        raise RuntimeError(
            "split ran inside a part of the model that reentrant checkpointing repeats in the backward: keep it out of "
            "there, or checkpoint with use_reentrant=False"
        )


def _age() -> int:
    """Return an age below that of all nodes to come: autograd numbers its nodes one by one."""
    torch.zeros((), requires_grad=True).view(())  # This node takes the age that is returned.
    return torch._C._autograd._get_sequence_nr() - 1


def num_samples(zs: Sequence[Tensor]) -> int | None:
    """Return the first dimension of the tensors of z; None if they differ in it or have none."""
    found = {z.shape[0] if z.dim() else None for z in zs}
    return found.pop() if len(found) == 1 else None


def _rest(step: Step, parts: Sequence[Part]) -> Tensor:
    """Return a zero whose node, which runs last, hands the gradients of the later splits to the encoder."""
    zs = [z for part in parts for z in part.zs]
    counted = [(part, len(part.zs)) for part in parts]
    zero: Tensor = _Rest.apply(step, counted, anchor(*zs), *zs)  # type: ignore[no-untyped-call]
    assert zero.grad_fn is not None, "z or the anchor needs a gradient"
    zero.grad_fn._set_sequence_nr(parts[0].age)  # type: ignore[attr-defined]
    for part in parts:
        part.zs = ()
    return zero


class _Rest(Function):
    @staticmethod
    def forward(ctx: Any, step: Step, parts: Sequence[tuple[Part, int]], _: Tensor | None, *zs: Tensor) -> Tensor:
        ctx.step, ctx.parts = step, parts
        return zs[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        weighed = ctx.step.known or ctx.step.weigh()
        gradients: list[Tensor | None] = []
        for part, num_tensors in ctx.parts:
            gradients += part.combine(weighed) if part.combine else [None] * num_tensors
            part.combine = None
        return None, None, None, *gradients
