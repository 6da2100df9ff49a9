"""A step that follows the mean magnitude beside a learned one; inputs LSQ.

Command::

    lowbit run experiments/configs/statsq_mnist1d.py

Liu, Liu, Cheng, Oscillation-free Quantization, ICML 2023.

Gives in %, mean ± standard deviation of 3 seeds, in 1.9 minutes on 2 CPU cores: float 93.37 ± 0.12, statsq_w3a3
91.50 ± 0.46, lsq_w3a3 91.43 ± 0.42, statsq_w2a2 87.17 ± 0.85, lsq_w2a2 84.73 ± 0.75.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d, pair
from experiments.config import Method
from experiments.job import run as run
from lowbit.quantizers.statsq import statsq

config = on_mnist1d(
    "statsq_mnist1d",
    Method("statsq_w3a3", inner(pair(statsq("w3"), lb.lsq("a3"))), QAT),
    Method("lsq_w3a3", inner(lb.lsq("w3,a3")), QAT),
    Method("statsq_w2a2", inner(pair(statsq("w2"), lb.lsq("a2"))), QAT),
    Method("lsq_w2a2", inner(lb.lsq("w2,a2")), QAT),
)
