"""DoReFa at 4 and 2 bits beside the straight-through gradient on an absmax grid.

Command::

    lowbit run experiments/configs/dorefa_mnist1d.py

Zhou et al., DoReFa-Net, 2016. Inputs are clipped at 1, whatever they were in float: batch norm has to follow.

Gives in %, mean ± standard deviation of 3 seeds, in 1.4 minutes on 2 CPU cores: float 93.37 ± 0.12, dorefa_w4a4
89.57 ± 0.84, rtn_w4a4 92.90 ± 0.27, dorefa_w2a2 85.60 ± 0.85, rtn_w2a2 64.63 ± 0.81.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from experiments.config import Method
from experiments.job import run as run
from lowbit.quantizers.dorefa import dorefa

config = on_mnist1d(
    "dorefa_mnist1d",
    Method("dorefa_w4a4", inner(dorefa("w4,a4")), QAT),
    Method("rtn_w4a4", inner(lb.rtn("w4,a4")), QAT),
    Method("dorefa_w2a2", inner(dorefa("w2,a2")), QAT),
    Method("rtn_w2a2", inner(lb.rtn("w2,a2")), QAT),
)
