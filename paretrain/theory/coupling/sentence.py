"""Say what `couple` found, in one sentence."""

from paretrain.theory.coupling.couple import Advice


def advice_sentence(advice: Advice) -> str:
    """Return the advice with an interval of one standard error on each side; 'may' says less than two from zero."""
    low, high = (100 * (advice.gain.value + side * advice.gain.error) for side in (-1, 1))
    if advice.gain.value <= 0:
        most = f"{max(high, 0):.0f} %"
        return f"combining these tasks should win nothing (at most {most}); keep them apart, mu {advice.own:.3g}"
    return (
        f"combining these tasks {'should' if advice.gain.value > 2 * advice.gain.error else 'may'} cut the error by {100 * advice.gain.value:.0f} % "
        f"({max(low, 0):.0f} to {high:.0f} %); lambda {advice.common:.3g}, mu {advice.own:.3g}"
    )
