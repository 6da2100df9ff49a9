"""The clip with the least squared error by Newton's iteration, without training, beside absmax and a search.

Command::

    lowbit run experiments/configs/octav_mnist1d.py

Sakr et al., Optimal Clipping and Magnitude-aware Differentiation, ICML 2022. Weights and inputs by the same rule.

Gives in %, mean ± standard deviation of 3 seeds, in 1.3 minutes on 2 CPU cores: float 93.37 ± 0.12, absmax_w4a4
86.60 ± 1.15, octav_w4a4 89.80 ± 0.70, mse_w4a4 90.27 ± 0.93, absmax_w3a3 61.93 ± 5.26, octav_w3a3 76.53 ± 5.22,
mse_w3a3 78.20 ± 6.32.
"""

import lowbit as lb
from experiments.base import inner, on_mnist1d
from experiments.config import Method
from experiments.job import run as run
from lowbit.core.clipping import Octav
from lowbit.core.ranges import MSE

config = on_mnist1d(
    "octav_mnist1d",
    Method("absmax_w4a4", inner(lb.rtn("w4,a4"))),
    Method("octav_w4a4", inner(lb.rtn("w4,a4", range=Octav()))),
    Method("mse_w4a4", inner(lb.rtn("w4,a4", range=MSE()))),
    Method("absmax_w3a3", inner(lb.rtn("w3,a3"))),
    Method("octav_w3a3", inner(lb.rtn("w3,a3", range=Octav()))),
    Method("mse_w3a3", inner(lb.rtn("w3,a3", range=MSE()))),
)
