"""Learned step sizes from 8 to 2 bits, and where the step starts.

Command::

    lowbit run experiments/configs/lsq_mnist1d.py

Esser et al., Learned step size quantization, ICLR 2020. ``paper``: the start of its section 2.1; ``mse``: least squares.

Gives in %, mean ± standard deviation of 3 seeds, in 2.9 minutes on 2 CPU cores: float 93.37 ± 0.12, lsq_w8a8
93.67 ± 0.15, lsq_w4a4 93.67 ± 0.29, paper_w4a4 92.97 ± 0.55, lsq_w2a2 85.97 ± 0.35, mse_w2a2 86.10 ± 1.15.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from experiments.config import Method
from experiments.job import run as run

config = on_mnist1d(
    "lsq_mnist1d",
    Method("lsq_w8a8", inner(lb.lsq("w8,a8")), QAT),
    Method("lsq_w4a4", inner(lb.lsq("w4,a4")), QAT),
    Method("paper_w4a4", inner(lb.lsq("w4,a4", start="paper")), QAT),
    Method("lsq_w2a2", inner(lb.lsq("w2,a2")), QAT),
    Method("mse_w2a2", inner(lb.lsq("w2,a2", start="mse")), QAT),
)
