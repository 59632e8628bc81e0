"""The page of `paretrain conflicts`.

Shapes: T tasks.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from studies.figure_style import PALETTE, draw
from studies.page import Section, page, table
from trainer.commands.conflicts_estimate import Conflicts, Moment
from trainer.observe.report.svg import label
from trainer.observe.report.tables import text

MAX_SHOWN = 24
"""Tasks that a drawing has room for."""


def conflicts_page(source: str, tasks: Sequence[str], moments: Sequence[Moment], sentence: str) -> str:
    """Return the page as self-contained HTML."""
    sections = [_moment(tasks, moment) for moment in moments]
    lead = [f"{text(sentence[:1].upper() + sentence[1:])}.", f"Measured on {text(source)}."]
    reading = [
        "A cosine is that of two tasks' gradients on one batch, averaged over the batches; ± is one standard error of "
        "that mean. It is beyond noise where Student's t test rejects 0, at 5 % for all pairs together; else it is "
        "crossed out in the maps, or marked as noise, and counts as 0 in the groups.",
        "At the representation, samples that only one of two tasks has labels for add nothing to their cosine: tasks "
        "on different samples always have 0 there, whatever they do to the encoder. In the parameters they can "
        "conflict. A rule sees the representation, unless balance.space=parameters.",
        "The min-norm point is the shortest mean of the gradients, squared, relative to their mean square: 1 where all "
        "agree, 0 where no step helps every task. Noise of a batch makes it larger. In the parameters that bias is "
        "removed: weights from a third of the batches, the value from the two other thirds.",
        "Groups are joined while the mean cosine between them is above 0 (average linkage).",
    ]
    return page(
        f"Do these {len(tasks)} tasks conflict?", lead, [*reversed(sections), Section("How to read this", reading)]
    )


def _moment(tasks: Sequence[str], moment: Moment) -> Section:
    shown = min(len(tasks), MAX_SHOWN)
    names = [label(name, 18) for name in tasks[:shown]]
    maps = draw(
        [
            [
                _map("Cosines at the representation", names, moment.at_z),
                _map("Cosines in the encoder's parameters", names, moment.in_parameters),
            ]
        ],
        None,
        panel_height=max(3.1, 0.16 * shown + 1.2),
    )
    parts = draw([[_blocks(moment), _slopes(names, moment)]], None, panel_height=max(2.6, 0.17 * shown + 1))
    first = f" The first {shown} of {len(tasks)} tasks." if shown < len(tasks) else ""
    when = "At the initial weights" if moment.step == 0 else f"After {moment.step} steps"
    groups = "; ".join(text(", ".join(tasks[task] for task in group)) for group in moment.groups)
    return Section(
        when,
        [_space_table(moment), f"<p>Groups of tasks that agree in the parameters: {groups}.</p>"],
        [
            (maps, f"Negative: conflict. Crossed out, or noise: within noise.{first}"),
            (
                parts,
                "Left: the share of pairs that conflict beyond noise in each part of the encoder, from the input to "
                "the representation. Right: what a step of equal weights does to each task; left of 0 its loss rises.",
            ),
        ],
    )


def _space_table(moment: Moment) -> str:
    rows = []
    value, error = moment.corrected
    for name, found, corrected in (
        ("representation", moment.at_z, "not possible: samples are not shared by batches"),
        ("encoder's parameters", moment.in_parameters, f"{value:.3f} ± {error:.3f}"),
    ):
        positive_T = found.length_T[found.length_T > 0]
        ratio = f"{positive_T.max() / positive_T.min():.1f}" if len(positive_T) else "-"
        min_norm = f"{found.min_norm:.3f} ± {found.min_norm_error:.3f}"
        rows.append([name, str(len(found.opposing)), str(len(found.raised)), ratio, min_norm, corrected])
    return table(
        [
            "gradients of the",
            "pairs in conflict",
            "losses raised by equal weights",
            "longest / shortest",
            "min-norm, batches",
            "min-norm, without noise",
        ],
        rows,
    )


def _map(title: str, names: Sequence[str], found: Conflicts) -> Callable[[Axes], None]:
    shown = len(names)

    def panel(axes: Axes) -> None:
        axes.grid(False)
        cosines_TT = found.cosine_TT[:shown, :shown]
        sure_TT = found.sure_TT[:shown, :shown] | np.eye(shown, dtype=bool)
        axes.imshow(cosines_TT, cmap="PuOr_r", vmin=-1, vmax=1)
        axes.set_xticks(range(shown), names, rotation=90, fontsize=7)
        axes.set_yticks(range(shown), names, fontsize=7)
        axes.set_title(title)
        for (row, column), value in np.ndenumerate(cosines_TT):
            if shown > 8 and not sure_TT[row, column]:
                axes.plot(column, row, marker="x", markersize=max(2.0, 40 / shown), color="#717581", linewidth=0.5)
            if shown <= 8 and np.isfinite(value) and row != column:
                colour = "#fff" if abs(value) > 0.5 else "#222"
                noise = "" if sure_TT[row, column] else "\nnoise"
                words = f"{value:.2f}\n± {found.error_TT[row, column]:.2f}{noise}"
                axes.text(column, row, words, ha="center", va="center", fontsize=7, color=colour)

    return panel


def _blocks(moment: Moment) -> Callable[[Axes], None]:
    def panel(axes: Axes) -> None:
        names = [label(name, 20) for name in moment.in_blocks]
        num_tasks = len(moment.at_z.length_T)
        pairs = max(1, num_tasks * (num_tasks - 1) // 2)
        shares = [len(found.opposing) / pairs for found in moment.in_blocks.values()]
        axes.barh(range(len(names) + 1), [*shares, len(moment.at_z.opposing) / pairs], 0.6, color=PALETTE[0])
        axes.set_yticks(range(len(names) + 1), [*names, "(z)"], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of pairs in conflict")
        axes.set_title("Where in the encoder")

    return panel


def _slopes(names: Sequence[str], moment: Moment) -> Callable[[Axes], None]:
    def panel(axes: Axes) -> None:
        places = np.arange(len(names))
        for offset, found, colour, legend in (
            (-0.15, moment.at_z, PALETTE[7], "representation"),
            (0.15, moment.in_parameters, PALETTE[1], "parameters"),
        ):
            values_T, errors_T = found.uniform_T[: len(names)], found.uniform_error_T[: len(names)]
            axes.errorbar(values_T, places + offset, xerr=2 * errors_T, fmt="o", ms=3, color=colour, label=legend)
        axes.axvline(0, color=PALETTE[4], linewidth=0.8)
        axes.set_yticks(places, names, fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("cosine with the mean gradient (± 2 standard errors)")
        axes.set_title("Equal weights")
        axes.legend()

    return panel
