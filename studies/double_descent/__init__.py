"""Combining tasks and double descent: theory against simulation, `paretrain study double-descent`.

The full study took 6.6 minutes of one core of a 2-core Xeon. Simulation against theory, over the 407 points that are
not within 15 % of a peak:

    median gap                                                 0.4 %
    largest where the standard error is below 1 % (315 points) 2.6 %, the only one above 2.5 %
    largest of all                                             8.4 %, with a standard error of 2.8 %
    points within two standard errors                          93 % (95 % would be expected)

We had hoped for at most 2.5 %. Two things are in the way: the noise of 60 draws, up to 3 % on the shoulders of the
peaks; and the size, n = 100, since theory is a limit. More draws of the points with the largest gaps, at once, twice
and four times n and p (gap ± standard error, in %):

    panel, series, p/n                   60 draws      n = 100       n = 200       n = 400
    own penalty, μ = 1e-5, 0.86             +8.4    +6.3 ± 1.0    +2.7 ± 1.4    +1.3 ± 1.5
    own penalty, μ = 1e-3, 0.86             +5.0    +4.5 ± 1.0    +2.2 ± 1.2    +0.3 ± 1.5
    relu labels, T = 1, 0.76                +5.6    +0.1 ± 0.6    +0.9 ± 0.8    +0.0 ± 1.0
    linear labels, T = 1, 0.76              +4.4    +3.0 ± 0.6    +1.1 ± 0.6    -0.1 ± 1.1
    features, T = 1, 1.55                   +4.8    +0.9 ± 0.3    +0.5 ± 0.3    +0.1 ± 0.5
    wrong signs, squared, T = 4, 0.25       -4.3    -2.8 ± 0.2    -1.7 ± 0.2    -0.6 ± 0.3
    wrong signs, logistic, T = 1, 0.25      -4.4    -3.3 ± 0.8    -1.1 ± 0.7    -0.6 ± 0.5

So the gaps are noise, and a bias that falls as 1/n.
"""

from studies.double_descent.run import run

__all__ = ["run"]
