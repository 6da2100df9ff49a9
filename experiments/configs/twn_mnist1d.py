"""Ternary weights by a threshold of 0.7 of the mean magnitude, beside 0.5 and beside a learned step; inputs 8 bits.

Command::

    lowbit run experiments/configs/twn_mnist1d.py

Li et al., Ternary Weight Networks, 2016.

Gives in %, mean ± standard deviation of 3 seeds, in 0.6 minutes on 2 CPU cores: float 93.67 ± 1.02, ptq_absmax
27.57 ± 1.01, ptq_twn 44.87 ± 9.66, twn 91.67 ± 0.85, twn_half 92.00 ± 0.92, lsq 92.83 ± 0.92.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d, pair
from lowbit.quantizers.twn import twn
from lowbit.run import Method

config = on_mnist1d(
    "twn_mnist1d",
    Method("ptq_absmax", inner("wternary,a8")),
    Method("ptq_twn", inner(pair(twn("wternary"), lb.rtn("a8")))),
    Method("twn", inner(pair(twn("wternary"), lb.lsq("a8"))), QAT),
    Method("twn_half", inner(pair(twn("wternary", factor=0.5), lb.lsq("a8"))), QAT),
    Method("lsq", inner(lb.lsq("wternary,a8")), QAT),
)
