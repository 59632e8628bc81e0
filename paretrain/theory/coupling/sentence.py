"""Say what `couple` found, in one sentence."""

from paretrain.theory.coupling.couple import Advice


def advice_sentence(advice: Advice) -> str:
    """Return the advice, with an interval of one standard error on each side, from 0 to 100 %.

    It says "may" instead of "should" where the gain is less than two standard errors, and advises
    against combining where the gain is below half a per cent.
    """
    gain, error = 100 * advice.gain.value, 100 * advice.gain.error
    low, high = (min(max(end, 0), 100) for end in (gain - error, gain + error))
    if gain < 0.5:
        return (
            f"combining these tasks should win next to nothing (at most {high:.1f} %); "
            f"keep them apart, mu {advice.own_alone:.3g}"
        )
    verb = "should" if gain > 2 * error else "may"
    return (
        f"combining these tasks {verb} cut the error by {gain:.0f} % ({low:.0f} to {high:.0f} %); "
        f"lambda {advice.common:.3g}, mu {advice.own:.3g}"
    )
