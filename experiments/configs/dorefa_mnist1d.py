"""DoReFa at 4 and 2 bits beside the straight-through gradient on an absmax grid.

Command::

    lowbit run experiments/configs/dorefa_mnist1d.py

Zhou et al., DoReFa-Net, 2016. Inputs are clipped at 1, whatever they were in float: batch norm has to follow.

Gives in %, mean ± standard deviation of 3 seeds, in 0.6 minutes on 2 CPU cores: float 93.67 ± 1.02, dorefa_w4a4
89.53 ± 1.04, rtn_w4a4 92.13 ± 0.93, dorefa_w2a2 84.43 ± 1.86, rtn_w2a2 66.23 ± 2.54.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.quantizers.dorefa import dorefa
from lowbit.run import Method

config = on_mnist1d(
    "dorefa_mnist1d",
    Method("dorefa_w4a4", inner(dorefa("w4,a4")), QAT),
    Method("rtn_w4a4", inner(lb.rtn("w4,a4")), QAT),
    Method("dorefa_w2a2", inner(dorefa("w2,a2")), QAT),
    Method("rtn_w2a2", inner(lb.rtn("w2,a2")), QAT),
)
