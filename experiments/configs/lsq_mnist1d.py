"""Learned step sizes from 8 to 2 bits, and where the step starts.

Command::

    lowbit run experiments/configs/lsq_mnist1d.py

Esser et al., Learned step size quantization, ICLR 2020. ``paper``: the start of its section 2.1; ``mse``: least squares.

Gives in %, mean ± standard deviation of 3 seeds, in 0.8 minutes on 2 CPU cores: float 93.67 ± 1.02, lsq_w8a8
93.97 ± 0.59, lsq_w4a4 93.47 ± 0.49, paper_w4a4 93.83 ± 0.06, lsq_w2a2 85.40 ± 0.92, mse_w2a2 85.57 ± 0.21.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.run import Method

config = on_mnist1d(
    "lsq_mnist1d",
    Method("lsq_w8a8", inner(lb.lsq("w8,a8")), QAT),
    Method("lsq_w4a4", inner(lb.lsq("w4,a4")), QAT),
    Method("paper_w4a4", inner(lb.lsq("w4,a4", start="paper")), QAT),
    Method("lsq_w2a2", inner(lb.lsq("w2,a2")), QAT),
    Method("mse_w2a2", inner(lb.lsq("w2,a2", start="mse")), QAT),
)
