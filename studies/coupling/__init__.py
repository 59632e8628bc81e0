"""Real tables: what coupling the tasks wins, and what theory predicted, `python -m studies.coupling DATA --out DIR`.

Fifteen tables of mulan's multi-target collection, 20 draws, each task with its own 12 to 120 rows (at most 400 labels
in all). Errors are relative to the labels' variance; the gain is 1 - combined/alone in %, with standard errors over
draws; `each` is the gain over one penalty for each task. `theory` and `GCV` predict it from the training rows.

    table    T    n   p/n   alone  combined     measured   each       theory          GCV
    andro    6   12   2.5   0.935     0.887   5.1 ± 2.2    4.5    0.5 ± 0.2   10.1 ± 2.4
    atp1d    6   42   9.8   0.224     0.225  -0.7 ± 1.6   -1.2    3.6 ± 0.4   11.4 ± 1.9
    atp7d    6   37  11.1   0.550     0.554  -0.7 ± 4.1    2.9    2.8 ± 0.4   12.4 ± 1.0
    edm      2   19   0.8   0.785     0.785   0.0 ± 1.1    0.0    3.8 ± 1.2    4.6 ± 1.3
    enb      2   96   0.1   0.128     0.115   9.9 ± 0.3    9.9   15.2 ± 1.8   10.2 ± 0.6
    jura     3   44   0.3   0.493     0.493   0.1 ± 0.6   -1.2    0.0 ± 0.0    0.1 ± 0.1
    oes10   16   25  11.9   0.222     0.208   6.6 ± 3.0    9.1   22.7 ± 2.0    0.5 ± 0.2
    oes97   16   25  10.5   0.267     0.244   8.5 ± 2.7   10.1   18.0 ± 1.3    0.9 ± 0.2
    osales  12   33  12.2   0.868     0.759  12.5 ± 1.9   12.5   55.4 ± 3.9   27.1 ± 2.7
    rf1      8   50   1.3   0.300     0.317  -5.8 ± 3.0  -17.2    3.0 ± 0.4    7.3 ± 0.7
    scpf     3  120   0.2   1.136     1.191  -4.9 ± 3.2   -2.7    1.4 ± 0.8    2.8 ± 0.9
    sf1      3   40   0.5   1.021     1.018   0.4 ± 1.5    0.8    1.2 ± 0.3    1.2 ± 0.3
    sf2      3  120   0.2   0.890     0.887   0.3 ± 0.8    0.4    0.2 ± 0.1    0.6 ± 0.2
    slump    3   12   0.6   0.875     0.881  -0.6 ± 1.9  -12.0    0.7 ± 0.3    1.2 ± 0.5
    wq      14   28   0.6   1.024     1.023   0.1 ± 0.1    3.4    0.1 ± 0.1    0.4 ± 0.2

Rank correlation with the measured gains: theory .36, GCV -.06; linear .78 and .44. We had hoped for .7 of ranks. Theory
picks out the tables that gain: its four largest predictions are four of the five gains that differ from zero by two
standard errors. It misses the fifth (andro), and it promises too much, up to four times. Likely reasons: ten measured
gains are zero within two standard errors, so that their ranks are noise; a predicted best penalty cannot lose, one
chosen on few validation rows can (rf1, scpf); theory takes the effects to be alike in all directions of the features
and the labels to be Gaussian; tasks draw some of the same rows. GCV fares worst where p is far above n.

A perfect prediction would reach .85 (.70 to .96 in nine of ten cases): the noise of the measured gains takes the rest
(their rank correlation with themselves plus as much noise again). What else we tried, on the first four draws of each
table, from the training rows alone: leave-one-out, each label predicted by the fit without it, .47 of ranks and .77
linear; a row left out with the labels of all tasks, .25 and .61; five folds of rows, .22 and .62; the smaller of
theory's and leave-one-out's gain, .33. With fifteen tables the standard error of such a correlation is about .25: none
of them is known to be better than theory, and all are far from .7.

What `paretrain refit` did to trained runs: mean test errors of the trained heads, and with fitted heads where those are
better on held-out samples.

    wq      .613 -> .613 σ (0 of 14 heads fitted); on a split val .619 -> .619 σ
    oes10   .248 -> .248 σ (0 of 16); on a split val .239 -> .239 σ
    digits  3.20 -> 3.20 % (0 of 2), on a fifth of the train split
    Tox21   10.25 -> 10.09 %, loss .306 -> .297 (3 of 12), on the split val

`couple` on the representations of the last two predicts gains of 0.01 % and less.
"""

from studies.coupling.run import run

__all__ = ["run"]
