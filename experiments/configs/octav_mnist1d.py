"""The clip with the least squared error by Newton's iteration, without training, beside absmax and a search.

Command::

    lowbit run experiments/configs/octav_mnist1d.py

Sakr et al., Optimal Clipping and Magnitude-aware Differentiation, ICML 2022. Weights and inputs by the same rule.

Gives in %, mean ± standard deviation of 3 seeds, in 0.4 minutes on 2 CPU cores: float 93.67 ± 1.02, absmax_w4a4
86.83 ± 1.85, octav_w4a4 91.03 ± 1.16, mse_w4a4 91.33 ± 1.12, absmax_w3a3 64.43 ± 1.55, octav_w3a3 78.33 ± 2.99,
mse_w3a3 81.07 ± 4.78.
"""

import lowbit as lb
from experiments.base import inner, on_mnist1d
from lowbit.core.clipping import Octav
from lowbit.core.ranges import MSE
from lowbit.run import Method

config = on_mnist1d(
    "octav_mnist1d",
    Method("absmax_w4a4", inner(lb.rtn("w4,a4"))),
    Method("octav_w4a4", inner(lb.rtn("w4,a4", range=Octav()))),
    Method("mse_w4a4", inner(lb.rtn("w4,a4", range=MSE()))),
    Method("absmax_w3a3", inner(lb.rtn("w3,a3"))),
    Method("octav_w3a3", inner(lb.rtn("w3,a3", range=Octav()))),
    Method("mse_w3a3", inner(lb.rtn("w3,a3", range=MSE()))),
)
