"""The main class: `split` the representation, `total` the losses, call backward once, read `alpha`.

It is long because it is the reference of the library: most of it says what the methods take, return and raise.

Shapes: T tasks, B samples, C outputs a task, D representation width.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paretrain.balance import Balance, balance_of, refuse_faults
from paretrain.exchange import exchange
from paretrain.factored import MANY_TASKS, Factored
from paretrain.gram import diagonal, gram
from paretrain.losses import MISWIRED, Counts, Losses, Totals, Values, means_of, read_losses, refuse_positional
from paretrain.nonfinite import OnNonFinite, some, zero_gradients
from paretrain.parameters import ParameterStep, task_gradients
from paretrain.ranks import Ranks
from paretrain.renewal import Held, Renewal
from paretrain.rules import MinNormWeighting, Weighting
from paretrain.rules.grouped import Grouped
from paretrain.rules.rule import LooksBack
from paretrain.solve import BY_PRODUCTS, solve_step
from paretrain.split import Weighed, Weigher, fan_out
from paretrain.stacked import stacked_linear
from paretrain.step import Recomputed, Step, inside_backward, outside_of_graphs
from paretrain.window import Window
from paretrain.wiring import miswired
from paretrain.z import as_tensors, is_narrow, refuse_join


class Balancer:
    """Compute exact Pareto weights for T tasks on one shared representation, inside one ordinary backward.

    This is MGDA-UB (Sener & Koltun 2018, arXiv 1810.04650, Algorithm 2 with equation 5): α minimises the norm of the
    combined gradient Σ α_t g_t with respect to the representation z of the whole batch, over all ranks. The encoder
    receives that gradient; every head keeps its own unweighted gradient.

        balancer = Balancer(tasks=40)
        views = balancer.split(encoder(x))                 # T views of z, no copy
        outputs = [head(view) for head, view in zip(heads, views)]
        balancer.total(sums=sums, counts=counts).backward()  # summed losses, and the number of labelled samples
        balancer.alpha                                     # the weights of this step

    Heads of equal shape can be one stacked module whose first layer is `balancer.linear(z, weight_TCD, bias_TC)`, in
    place of `split`. No task then needs a gradient of the size of z, so thousands of tasks fit.

    Every rank must run every head in every step, also a head without labels: its loss is then 0, a sum over no samples.

    Args:
        tasks: the number of tasks, or their names (used in error messages).
        weighting: the rule that turns the Gram matrix into α; the exact min-norm point by default.
        group: the process group that shares the batch. None means the default group, or this process alone if
            torch.distributed is not initialised. The data-parallel wrapper must AVERAGE gradients over the same ranks,
            as DDP, FSDP and DeepSpeed ZeRO do.
        on_nonfinite: what to do if a task's loss, or its gradient with respect to z, is NaN or infinite on any rank.
            Every rank does the same, and `last.broken` says what was found.
            stop: the backward raises NonFiniteError, with the same message on every rank.
            skip_step: the encoder's gradient is zero, the rule's state is unchanged and `last.active_T` is all False;
            do not step the optimizer.
            drop_task: α and the gradients of the encoder and the other heads are those of a batch without the broken
            tasks. Call `zero_broken(heads)` after the backward, since the heads of the broken tasks have NaN gradients.
            If no other task has a label, the backward raises NonFiniteError.
        every_steps: K: find α in every K-th step and hold it in between. A step that holds α makes and sends no Gram
            matrix. α is found sooner for a task that has labels now and had none when it was last found. Each new Gram
            matrix says how stale α had become: `last.stale`.
        max_gap: find α more often than every K steps while it is staler than this; see `renewal.Renewal`. None: never.
        group_of: the index of each task's group, from 0 on. The rule sees groups in place of tasks, and the tasks of a
            group share its α; see `Grouped`. None: each task is a group.

    Attributes:
        group_of: the index of each task's group.
        names: names of the tasks; their numbers if only a number of tasks was given.
        weighting: the rule.
        last: the `Balance` of the last backward; None before the first one.
        renewal: what is held between the steps that find α.

    Raises:
        TypeError: `weighting` is no rule, but the name or the class of one, say.
        ValueError: there is no task, or `on_nonfinite`, `every_steps` or `max_gap` has no such value.
    """

    def __init__(
        self,
        tasks: int | Sequence[str],
        weighting: Weighting | None = None,
        group: dist.ProcessGroup | None = None,
        on_nonfinite: OnNonFinite = "stop",
        every_steps: int = 1,
        max_gap: float | None = None,
        group_of: Sequence[int] | None = None,
    ) -> None:
        self.names = [f"{task}" for task in range(tasks)] if isinstance(tasks, int) else list(tasks)
        if not self.names:
            raise ValueError("a Balancer needs at least one task, found none")
        texts = not isinstance(tasks, str) and all(isinstance(name, str) for name in self.names)
        if not texts or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"tasks must be their number, or their names, all different: a list of text. Found {tasks!r}"
            )
        if on_nonfinite not in get_args(OnNonFinite):
            raise ValueError(f"on_nonfinite must be one of {', '.join(get_args(OnNonFinite))}, found '{on_nonfinite}'")
        rule = MinNormWeighting() if weighting is None else weighting
        if isinstance(rule, type) or not isinstance(rule, Weighting):
            found = f"the class {rule.__name__}" if isinstance(rule, type) else repr(rule)
            raise TypeError(f"weighting must be a rule, such as paretrain.Uniform(); found {found}")
        self.weighting: Weighting = rule if group_of is None else Grouped(rule, group_of)
        self.group_of = list(range(len(self.names)) if group_of is None else group_of)
        if len(self.group_of) != len(self.names):
            raise ValueError(f"expected the group of each of {len(self.names)} tasks, found {len(self.group_of)}")
        self.last: Balance | None = None
        self._ranks = Ranks(group)
        self._on_nonfinite = on_nonfinite
        self.renewal = Renewal(every_steps, max_gap)
        self._is_wired = False
        self._step = self._new_step()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the step that is under way: it belongs to a graph, which no copy has."""
        return {name: value for name, value in vars(self).items() if name != "_step"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Begin with the next step."""
        vars(self).update(state)
        self._step = self._new_step()

    @property
    def alpha(self) -> Tensor:
        """α of the last backward: float64, (T,), on the CPU, with the same bits on every rank.

        Raises:
            RuntimeError: there was no backward yet.
        """
        if self.last is None:
            raise RuntimeError("there is no α yet: call split, total and backward first")
        return torch.from_numpy(self.last.alpha_T.copy())

    @property
    def weights(self) -> dict[str, float]:
        """α of the last backward by the names of the tasks; see `alpha`."""
        return dict(zip(self.names, self.alpha.tolist(), strict=True))

    @overload
    def split(self, z: Tensor) -> tuple[Tensor, ...]: ...

    @overload
    def split(self, z: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]: ...

    @outside_of_graphs
    def split(self, z: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], ...]:
        """Give each task its own view of z, without a copy.

        All calls between two calls of `total` belong to one step: z then consists of the tensors of all of them, and
        one α is found for it. So an encoder may run over its batch in chunks. A call under `torch.no_grad()`, as in an
        evaluation, does not count. z need not require a gradient: for a frozen encoder, α is found as always.

        Args:
            z: the representation of this rank's samples, of any shape; or several such tensors, as the levels of a
                feature pyramid. Each rank gives the z of its own samples.

        Returns:
            T views of z; of several tensors, T tuples of views. View t must reach the loss of task t alone.

        Raises:
            TypeError: z is not of floating-point numbers.
        """
        zs, weigher = self._begin(as_tensors(z))
        views = fan_out(zs, len(self.names), weigher)
        return tuple(view for (view,) in views) if isinstance(z, Tensor) else views

    @outside_of_graphs
    def linear(self, z_BD: Tensor, weight_TCD: Tensor, bias_TC: Tensor | None = None) -> Tensor:
        """Apply the first linear layer of T stacked heads to z, in place of `split`.

        Args:
            z_BD: the representation of this rank's samples.
            weight_TCD: one C x D matrix per task.
            bias_TC: one bias per task and output, or None.

        Returns:
            (B, T, C), the C outputs of each task. Those of task t must reach the loss of task t alone.

        Raises:
            ValueError: the shapes do not match each other or the number of tasks.
        """
        z_shape, weight_shape = tuple(z_BD.shape), tuple(weight_TCD.shape)
        fits = len(z_shape) == 2 and len(weight_shape) == 3 and weight_shape[::2] == (len(self.names), z_shape[1])
        if not fits:
            raise ValueError(
                f"linear() takes z (B, D) and weights (T, C, D) with T = {len(self.names)}; found {z_shape} and "
                f"{weight_shape}. For a z or heads of another shape, call split()"
            )
        (z_BD,), weigher = self._begin(as_tensors(z_BD))
        return stacked_linear(z_BD, weight_TCD, bias_TC, weigher)

    @outside_of_graphs
    def total(
        self,
        *losses: object,
        sums: Values | None = None,
        means: Values | None = None,
        counts: Counts | None = None,
    ) -> Tensor:
        """Turn this rank's losses into the scalar to call `backward` on. Collective: one all-reduce of 5 T numbers.

        The scalar is W Σ_t S_t / N_t, where S_t is the sum of task t's loss over this rank's samples, and N_t the
        number of its labelled samples over all W ranks. The wrapper's average over ranks is then the gradient of the
        mean loss over the whole batch, also if the ranks have different numbers of samples. A task without a label on
        any rank contributes 0. The caller may multiply the scalar by any number, as a GradScaler does: `last` describes
        the gradients without that factor.

        The backward of the scalar finds α. It is collective, and raises on every rank alike: NonFiniteError if
        something is not finite and `on_nonfinite` says to stop; BalanceError if the rule failed. A second backward
        through the same graph keeps α.

        If the factor is above 1 and the heads run in float16, a gradient that is not finite while all losses are finite
        counts as an overflow for any `on_nonfinite`: the encoder gets NaN on every rank, so that every scaler skips the
        step and backs off.

        Args:
            *losses: none. Losses are given by keyword, since a mean taken for a sum trains wrongly.
            sums: each task's loss SUMMED over this rank's labelled samples: (T,), or T tensors of no dimension, or such
                tensors by the names of the tasks, in a dict or a named tuple.
            means: the same as means over these samples, in place of `sums`. That of a task whose count is 0 counts for
                nothing, also if it is NaN.
            counts: the number of those samples, in one of these forms; or the sum of their weights, if the sums or
                means are weighted. It may be left out where every sample is labelled; z then has the samples along its
                first dimension.

        Raises:
            TypeError: losses without a keyword, or both sums and means.
            ValueError: not one loss and one count for each task.
            BalanceError: losses and counts of some rank cannot belong together, as a loss with a count of 0, or a mean
                given as a sum. On a GPU the backward raises it.
        """
        refuse_positional(losses)
        parts = self._step.parts
        if counts is None and not parts:
            raise ValueError(
                "found no split() or linear() of this balancer before total() whose views a head has read: call it on "
                "the encoder's output. In an evaluation under torch.no_grad(), give total() the counts=..."
            )
        num_samples = parts[0].num_samples if len(parts) == 1 else None
        given = read_losses(self.names, sums, means, counts, num_samples)
        means_T, totals = self._global_means(self._checked(given, parts, [z for part in parts for z in part.zs]))
        scalar = self._ranks.size * means_T.sum()
        if not torch.is_grad_enabled():
            return scalar
        step, self._step, self.last = self._step, self._new_step(), None
        return step.close(totals._replace(scaled=any(part.narrow for part in parts)), scalar)

    @property
    def looks_back(self) -> bool:
        """Whether the rule learns from the losses of the same batch after the step; then call `after_step`."""
        return hasattr(self.weighting, "after_step")  # Each step asks, and isinstance takes a hundred times as long.

    def after_step(self, *, sums: Values, counts: Counts | None = None) -> None:
        """Show the rule the losses of the same batch after the optimizer's step, where it `looks_back`. Collective.

        Args:
            sums: each task's loss, summed over this rank's samples, by the new parameters; as for `total`.
            counts: as for `total`.

        Raises:
            ValueError: not one loss and one count for each task.
            BalanceError: losses and counts of some rank cannot belong together.
        """
        _, totals = self._global_means(read_losses(self.names, sums, None, counts, None))
        losses_T = self._ranks.sum(totals.losses_T).cpu().numpy()
        if isinstance(self.weighting, LooksBack) and self._ranks.rank == 0:  # The rule runs there alone.
            self.weighting.after_step(losses_T)

    def window(self, divided_by: int = 1) -> Window:
        """Start a step of several micro-batches whose α is that of one batch of all their samples.

        Args:
            divided_by: the number by which the caller divides each micro-batch's scalar before its backward.

        Returns:
            What to give to the model in place of the balancer during this step; `Window` shows the loop.
        """
        return Window(self.names, self._ranks, self._find, self._checked, divided_by)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step needs from past ones: the names, the rule's state and the weights that are held.

        They are plain numbers and text. The rule's state is that of rank 0, since the rule runs there alone.
        """
        state = {"tasks": list(self.names), "weighting": self.weighting.state_dict()}
        return state | ({"held": held} if (held := self.renewal.state_dict()) else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. A closure that an optimizer evaluates several times a step can return to its start.

        Raises:
            ValueError: the state is that of other tasks.
        """
        if list(state["tasks"]) != self.names:
            saved, own = (some("task", names) for names in (state["tasks"], self.names))
            raise ValueError(f"the saved state is that of {saved}; this balancer has {own}")
        self.weighting.load_state_dict(state["weighting"])
        self.renewal.load_state_dict(state.get("held", {}), len(self.names))

    def zero_broken(self, heads: Sequence[nn.Module] | nn.Module) -> None:
        """Zero the gradients of the heads of broken tasks. With `drop_task`, call it after the backward on every rank.

        Weight decay and momentum still move the parameters of these heads.

        Args:
            heads: a list of one module per task, in the order of the tasks; or a module made of such lists and of
                parameters with one row per task, as stacked heads have.

        Raises:
            ValueError: `heads` has another form.
            RuntimeError: a parameter has no `.grad`: there was no backward, or the wrapper does not expose gradients.
        """
        if self.last is not None and self.last.broken is not None:
            zero_gradients(heads, self.last.broken.tasks, len(self.names))

    def parameter_gradients(
        self,
        sums: Values,
        counts: Counts,
        shared: Sequence[nn.Parameter],
    ) -> Tensor:
        """Return each task's gradient with respect to `shared`, summed over the ranks. Collective; takes T backwards.

        Compute `sums` with the bare module, without `split` and without a data-parallel wrapper.

        Args:
            sums: (T,) as for `total`.
            counts: (T,) as for `total`.
            shared: the parameters, P numbers together.

        Returns:
            (T, P), in the precision of the parameters; equal on every rank.

        Raises:
            ValueError: not one sum and one count for each task.
        """
        means_T, _ = self._global_means(read_losses(self.names, sums, None, counts, None))
        return task_gradients(means_T, shared, self._ranks)

    def fill_gradients(
        self,
        sums: Values,
        counts: Counts,
        shared: Sequence[nn.Parameter],
        own: Sequence[nn.Parameter],
    ) -> None:
        """Fill every `.grad` by MGDA in the space of the shared parameters (Désidéri 2012; Sener & Koltun 2018, eq. 3).

        Call it instead of `total(...).backward()`, to compare MGDA-UB with the problem that it bounds. It takes T
        backwards and communicates T x P numbers; a step that holds α takes one, and communicates P. Compute `sums` with
        the bare module, without `split` and without a data-parallel wrapper: the gradients that it leaves are those of
        the whole batch. Collective.

        Args:
            sums: (T,) as for `total`.
            counts: (T,) as for `total`.
            shared: the encoder's parameters, which get Σ α_t ∂L_t/∂θ.
            own: the heads' parameters, which get their own unweighted gradient.

        Raises:
            ValueError: not one sum and one count for each task.
            NonFiniteError: as in the backward of `total`. `drop_task` stops too: here the NaN of one task
                spreads to the gradients of all.
        """
        means_T, totals = self._global_means(read_losses(self.names, sums, None, counts, None))
        held = self.renewal.held if self.renewal.holds(totals.counts_T) else None
        if held:
            held_T = torch.from_numpy(held.alpha_T).to(means_T)
            combined_P = task_gradients((held_T @ means_T)[None], shared, self._ranks)[0]
            # Without the tasks' own gradients: each has one, and it is finite where the sum is.
            is_finite = bool(combined_P.isfinite().all())
            gram_TT = combined_P.new_full((len(self.names),), 1 if is_finite else torch.nan, dtype=torch.float64)
        else:
            gradients_TP = task_gradients(means_T, shared, self._ranks)
            # Every rank already holds the Gram matrix of the whole batch, and the exchange sums over the ranks.
            gram_TT = gram(gradients_TP)
            gram_TT /= self._ranks.size
        own_gradients = torch.autograd.grad(means_T.sum(), list(own))
        alpha_T, dropped = self._find(gram_TT, totals)
        if held and dropped:
            combined_P = torch.zeros_like(combined_P)
        elif not held:
            if dropped:
                gradients_TP[dropped] = 0
            combined_P = alpha_T.to(gradients_TP) @ gradients_TP
        combined = torch.split(combined_P, [parameter.numel() for parameter in shared])
        for parameter, gradient_P in zip(shared, combined, strict=True):
            parameter.grad = gradient_P.view_as(parameter)
        for parameter, gradient in zip(own, own_gradients, strict=True):
            parameter.grad = self._ranks.sum(gradient).to(gradient.device)

    def parameter_step(self, sums: Values, counts: Counts, *, watch: bool = False) -> ParameterStep:
        """Begin a step in the space of the parameters whose gradients are kept as shards. Collective.

        It is `fill_gradients` for wrappers that shard gradients, and for several micro-batches. Memory is a shard a
        group of tasks.

        Args:
            sums: this rank's loss sums of the whole step, as for `total`.
            counts: as for `total`.
            watch: make the backward of each task, whatever is held or grouped, to look at its gradient.

        Raises:
            ValueError: not one sum and one count for each task.
        """
        _, totals = self._global_means(read_losses(self.names, sums, None, counts, None))
        held = self.renewal.held if self.renewal.holds(totals.counts_T) and not watch else None
        held_T = torch.from_numpy(held.alpha_T) if held else None
        group_of_T = torch.tensor(range(len(self.names)) if watch else self.group_of)
        return ParameterStep(totals, group_of_T, held_T, self._ranks, self._find)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks, such as that of their Gram matrices, on the CPU of every rank. Collective."""
        return self._ranks.sum(values).cpu()

    def _global_means(self, losses: Losses) -> tuple[Tensor, Totals]:
        """Return this rank's part of the global mean losses, and the step's totals. Collective."""
        message = torch.cat([losses.counts_T[None], losses.faults_FT])
        summed = self._ranks.sum(message).to(losses.sums_T.device)
        counts_T, faults_FT = summed[0], summed[1:]
        if not faults_FT.is_cuda:  # There it would wait for the forward; the backward has to wait anyway.
            refuse_faults(faults_FT, self.names)
        means_T = means_of(losses.sums_T, counts_T)
        return means_T, Totals(means_T.detach().double(), counts_T, faults_FT)

    def _checked(self, losses: Losses, weighers: Collection[Weigher], zs: Sequence[Tensor]) -> Losses:
        """Mark the tasks whose heads read another thing than their view, until they have been found sound once."""
        if not self._is_wired and losses.sums_T.requires_grad:
            wrong_T = miswired(losses.sums_T, weighers, zs)
            losses.faults_FT[MISWIRED] = wrong_T.to(losses.faults_FT)
            self._is_wired = not wrong_T.any()
        return losses

    def _new_step(self) -> Step:
        by_products = type(self.weighting) in BY_PRODUCTS and len(self.names) >= MANY_TASKS
        return Step(len(self.names), self._ranks, self._find, self.renewal.holds, by_products)

    def _begin(self, zs: Sequence[Tensor]) -> tuple[Sequence[Tensor], Weigher]:
        """Add a split to the step; return what its node reads, and who weighs it."""
        refuse_join()
        if inside_backward():
            return zs, Recomputed()
        part = self._step.add_part(zs, is_narrow(zs))
        return zs if part.is_first else [z.detach() for z in zs], part

    def _find(self, gram_TT: Tensor | Factored, totals: Totals) -> Weighed:
        """Turn this rank's Gram matrix, of the gradients of the global mean losses, into α. Collective.

        Overwrites `gram_TT`. Every rank calls it once per step, inside the backward. In a step that holds α only the
        diagonal of `gram_TT` is used.
        """
        refuse_faults(totals.faults_FT, self.names)
        holds = self.renewal.holds(totals.counts_T)
        # Free the last Gram matrix before this one is unpacked: for 10,000 tasks each takes 800 MB.
        self.last = None
        if holds and isinstance(gram_TT, Tensor):
            gram_TT = diagonal(gram_TT)
        decide = partial(
            solve_step,
            rule=self.weighting,
            on_nonfinite=self._on_nonfinite,
            scaled=totals.scaled,
            held=self.renewal.held,
        )
        verdict, summed_TT = exchange(gram_TT, totals.losses_T, totals.counts_T, self._ranks, decide)
        counts_T = totals.counts_T.cpu().numpy()
        age = self.renewal.age
        found = balance_of(verdict, counts_T, None if holds else summed_TT, self.names, self._on_nonfinite)
        self.last = replace(found, age=age if holds else 0, held_steps=0 if holds else age)
        self._count(self.last, holds)
        alpha_T = torch.full_like(self.alpha, torch.nan) if self.last.overflow else self.alpha
        return Weighed(alpha_T, self.last.dropped)

    def _count(self, balance: Balance, holds: bool) -> None:
        """Count a step for the next renewal of α."""
        labelled_T = balance.counts_T > 0
        if holds:
            if labelled_T.any():
                self.renewal.held_step()
        elif balance.active_T.any():
            if balance.broken is not None:
                labelled_T[balance.broken.tasks] = False
            found = balance.min_norm, balance.gap, balance.certified, balance.stale
            self.renewal.renew(Held(balance.alpha_T, labelled_T, *found))
