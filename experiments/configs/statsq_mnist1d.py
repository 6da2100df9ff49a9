"""A step that follows the mean magnitude beside a learned one; inputs LSQ.

Command::

    lowbit run experiments/configs/statsq_mnist1d.py

Liu, Liu, Cheng, Oscillation-free Quantization, ICML 2023.

Gives in %, mean ± standard deviation of 3 seeds, in 0.6 minutes on 2 CPU cores: float 93.67 ± 1.02, statsq_w3a3
91.77 ± 0.35, lsq_w3a3 91.77 ± 1.33, statsq_w2a2 87.33 ± 1.66, lsq_w2a2 85.40 ± 0.92.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d, pair
from lowbit.quantizers.statsq import statsq
from lowbit.run import Method

config = on_mnist1d(
    "statsq_mnist1d",
    Method("statsq_w3a3", inner(pair(statsq("w3"), lb.lsq("a3"))), QAT),
    Method("lsq_w3a3", inner(lb.lsq("w3,a3")), QAT),
    Method("statsq_w2a2", inner(pair(statsq("w2"), lb.lsq("a2"))), QAT),
    Method("lsq_w2a2", inner(lb.lsq("w2,a2")), QAT),
)
