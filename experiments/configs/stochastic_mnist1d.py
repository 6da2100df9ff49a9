"""Weights rounded at random while training, to nearest when served, beside nearest throughout.

Command::

    lowbit run experiments/configs/stochastic_mnist1d.py

Gupta et al., Deep Learning with Limited Numerical Precision, ICML 2015; Krishnamoorthi, 2018, finds that it does not help
fine-tuning.

Gives in %, mean ± standard deviation of 3 seeds, in 0.3 minutes on 2 CPU cores: float 93.67 ± 1.02, stochastic_w3
91.27 ± 2.15, rtn_w3 93.90 ± 0.95.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.quantizers.stochastic import stochastic
from lowbit.run import Method

config = on_mnist1d(
    "stochastic_mnist1d",
    Method("stochastic_w3", inner(stochastic("w3")), QAT),
    Method("rtn_w3", inner(lb.rtn("w3")), QAT),
)
