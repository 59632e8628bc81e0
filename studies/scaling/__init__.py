"""What a step costs as the number of tasks grows, from 2 to 10,000: `paretrain study scaling`.

CPU time of a step in plain steps, the sum of all losses: median of n = 5 to 9 turns, quartiles in brackets; and the
peak memory of the process. The column `plain` sets a plain step against a plain one: its distance from 1 is noise.

        T  plain                      equal weights               MGDA-UB                    MGDA-UB, loss+
        2  0.94 [0.90, 1.09] 492 MiB  0.99 [0.96, 1.02]  482 MiB  0.95 [0.89, 1.00] 490 MiB  0.97 [0.94, 1.00]   501 MiB
       10  1.06 [1.03, 1.10] 490 MiB  1.01 [0.96, 1.14]  496 MiB  1.04 [0.94, 1.08] 496 MiB  0.98 [0.93, 1.05]   504 MiB
       40  1.00 [0.98, 1.06] 502 MiB  0.98 [0.96, 1.03]  512 MiB  0.96 [0.95, 1.03] 488 MiB  0.93 [0.89, 0.99]   513 MiB
      100  1.04 [0.99, 1.21] 500 MiB  1.02 [0.96, 1.07]  504 MiB  1.04 [0.97, 1.06] 514 MiB  0.99 [0.99, 1.01]   499 MiB
    1,000  0.95 [0.92, 1.00] 504 MiB  1.08 [1.07, 1.18]  514 MiB  1.19 [1.10, 1.22] 518 MiB  1.35 [1.35, 1.39]   526 MiB
    4,096  0.99 [0.94, 1.02] 551 MiB  1.14 [1.07, 1.21]  563 MiB  1.46 [1.46, 1.48] 557 MiB  9.44 [8.27, 10.23] 1311 MiB
   10,000  1.00 [0.97, 1.01] 620 MiB  1.32 [1.30, 1.34]  632 MiB  2.67 [2.67, 2.77] 641 MiB  not within 180 s

2026-11-29, PyTorch 2.13, one thread of a 2-core Xeon with about eight other busy processes, 24 minutes. The last two
rows of equal weights were measured again when these had come to need no Gram matrix; they were 2.41 and 8.05. A plain
step takes 0.26 to 0.50 s. The aims for MGDA-UB, 1.5 with 4,096 tasks and 4 with 10,000, are met, the first by little,
and in the first steps of training; later it takes more products (benchmarks/README.md).

Up to 100 tasks no difference is larger than the noise. With 4,096 tasks and more, MGDA-UB and equal weights form no
Gram matrix, and normalised gradients do.
"""

from studies.scaling.run import run

__all__ = ["run"]
