"""Stretched elastic quantization at 2 bits and ternary beside LSQ; inputs LSQ, 8 bits.

Command::

    lowbit run experiments/configs/seq_mnist1d.py

Liu et al., ParetoQ, 2025, whose claim is that SEQ is the better grid at 1.58 and 2 bits.

Gives in %, mean ± standard deviation of 3 seeds, in 0.6 minutes on 2 CPU cores: float 93.67 ± 1.02, seq_w2
92.83 ± 0.71, lsq_w2 91.97 ± 1.02, seq_ternary 91.93 ± 0.25, lsq_ternary 92.83 ± 0.92.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d, pair
from lowbit.quantizers.seq import seq
from lowbit.run import Method

config = on_mnist1d(
    "seq_mnist1d",
    Method("seq_w2", inner(pair(seq("w2"), lb.lsq("a8"))), QAT),
    Method("lsq_w2", inner(lb.lsq("w2,a8")), QAT),
    Method("seq_ternary", inner(pair(seq("wternary"), lb.lsq("a8"))), QAT),
    Method("lsq_ternary", inner(lb.lsq("wternary,a8")), QAT),
)
