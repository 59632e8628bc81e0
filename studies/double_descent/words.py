"""The page's text, and the numbers as a table."""

import csv
import io
from collections.abc import Mapping, Sequence

from studies.double_descent.experiments import Scale, Series
from studies.double_descent.measured import Equivalence, Results
from studies.page import Section, page, table

_PAPER = '<a href="https://arxiv.org/abs/2603.05060">arXiv 2603.05060</a>'


def build_page(figures: Mapping[str, str], results: Results, scale: Scale, seconds: float) -> str:
    """Return the study's page."""
    agreement = results.agreement
    return page(
        "Combining tasks postpones double descent, and can remove it",
        [
            "A model with as many parameters as samples can be worse than a smaller one or a larger one: its test "
            "error peaks where it just fits the training data (double descent). Couple T tasks, and the peak moves "
            "to T times as many parameters. Couple them with the right strength, and it is gone.",
            f"Lines are theory, points are simulations (mean and standard error of {scale.replicates} draws). Away "
            f"from the peaks the two differ by {agreement.median:.1%} in the median over {agreement.num_points} "
            f"points, and by {agreement.largest_sure:.1%} at most where the simulation's standard error is below 1 % "
            f"({agreement.num_sure} points; {agreement.largest:.1%} at most where it is larger). "
            f"{agreement.within_two_errors:.0%} of the points are within two standard errors.",
        ],
        [
            Section(
                "What is the paper's, and what is ours",
                [
                    f"<b>The paper's</b> ({_PAPER}): the question; the data, T tasks with labels φ(aᵀξ_t), ξ_t = v_0 "
                    "+ σ v_t, of which the learner may see only some features; and two claims: (i) combining tasks "
                    "is asymptotically equivalent to a traditional single-task problem with additional "
                    "regularisation; (ii) it postpones the double descent and can mitigate it asymptotically.",
                    "<b>Our reconstruction</b>: the paper's full text was not available to us. We take the penalty "
                    "of Evgeniou and Pontil, weights w_t = w_0 + v_t with λ/2 |w_0|² + μ/2 Σ|v_t|², which fits "
                    "abstract and data, and derived all formulas for it ourselves. They reproduce both claims and "
                    "are checked here; they are not the paper's theorem. Equation numbers refer to "
                    "<code>paretrain/theory/README.md</code>.",
                ],
            ),
            Section(
                "Four views of one effect",
                [
                    "All tasks are alike: cosine ρ = 0.8 between them, |ξ_t| = 1, noise 0.25, linear labels, λ = 0.001 "
                    "(C: 0.0001) and μ = 0.5 unless varied."
                ],
                [
                    (
                        figures["four_panels"],
                        "<b>A, B</b> With a small common penalty λ each T has its peak at p = T n; beyond its own "
                        "peak every curve falls again. At p = T n the coupled tasks are <i>worse</i> than one task "
                        "alone: postponed is not removed. Infinitely many tasks (no simulation) have no peak. "
                        "<b>C</b> The peak moves only while the tasks are held together: as μ → 0 it returns to p = "
                        "n, and in between there are two. <b>D</b> With λ* = γσ²/(ρβ²), μ* = γσ²/((1-ρ)β²) (equation "
                        "9) more tasks are always better and no peak is left.",
                    )
                ],
            ),
            Section(
                "Claim (i): one task with additional regularisation",
                [
                    "Each of the coupled tasks behaves as ridge regression on its own data alone, around a target m "
                    "that the other tasks provide and with a larger penalty α (equation 10). The orange points are "
                    "fitted to one task's data, with m drawn from its law: the other tasks' data are never made. The "
                    "equivalence is one of laws, in the limit.",
                    _equivalence_table(results.equivalences),
                ],
                [
                    (
                        figures["claim_1"],
                        "Left: four numbers for each setting (λ = 0.01, μ = 0.5). Right: λ = 0.0001, μ = 0.5.",
                    )
                ],
            ),
            Section(
                "Claim (ii): the peak at p = T n",
                [
                    "For λ → 0 at fixed μ the fixed point has a solution with κ > 0 only where p &lt; T n: all the "
                    "rows together can just be fitted at p = T n. The height there grows as 1/√λ. Near the peak "
                    "a simulation of finite size is noisy, and biased by a few per cent."
                ],
                [(figures["claim_2"], "")],
            ),
            Section(
                "Other labels and losses",
                [
                    "For the squared loss, labels φ(z) count by their linear part alone; the rest acts as noise "
                    "(equation 1). Logistic regression has its own fixed point (equation 11)."
                ],
                [
                    (
                        figures["labels"],
                        "Dashed lines and open points: T = 1; solid: T = 4. Left: λ = 0.01, μ = 0.5. Right: labels "
                        "sign(aᵀξ), λ = 0.01, μ = 0.2; the same penalties for both losses, tuned for neither.",
                    )
                ],
            ),
            Section(
                "Misspecified: the learner does not see all features",
                [
                    "What is not seen acts as noise. Left, a fixed share of |ξ|² is seen. Right, the d features "
                    "matter alike and p of them are seen, so that a larger model also knows more: the textbook "
                    "picture of double descent, with a second descent that ends lower."
                ],
                [(figures["misspecified"], "")],
            ),
            Section(
                "How this was run",
                [
                    f"{scale.rows} samples a task (panel B: {scale.features} features), {scale.replicates} draws a "
                    f"point, each with its own seed; {seconds:.0f} seconds. The numbers behind every line and point "
                    "are in <code>numbers.csv</code>. Test errors of fitted weights are computed exactly, not on "
                    "test samples."
                ],
            ),
        ],
    )


def numbers(panels: Mapping[str, Sequence[Series]], results: Results) -> str:
    """Return all numbers as CSV: theory's curves, then the simulated points, then claim (i)."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    write(["panel", "series", "x", "theory", "simulation", "standard_error", "draws"])
    for panel, series in panels.items():
        for one, points in zip(series, results.points[panel], strict=True):
            for x, value in zip(one.curve_x, one.curve, strict=True):
                write([panel, one.name, f"{x:.6g}", f"{value:.6g}", "", "", ""])
            for p in points:
                write([panel, one.name, *(f"{number:.6g}" for number in (p.x, p.theory, p.mean, p.error)), p.n])
    for pair in results.equivalences:
        for name, p in (("coupled", pair.coupled), ("equivalent single task", pair.equivalent)):
            write(["claim_1", f"{pair.name}: {name}", "", *(f"{v:.6g}" for v in (p.theory, p.mean, p.error)), p.n])
    return text.getvalue()


def _equivalence_table(equivalences: Sequence[Equivalence]) -> str:
    return table(
        ["setting", "T tasks, coupled", "equivalent single task", "theory", "task alone (theory)"],
        [
            [
                one.name,
                f"{one.coupled.mean:.3f} ± {one.coupled.error:.3f}",
                f"{one.equivalent.mean:.3f} ± {one.equivalent.error:.3f}",
                f"{one.coupled.theory:.3f}",
                f"{one.alone:.3f}",
            ]
            for one in equivalences
        ],
    )
