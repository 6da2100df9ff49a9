"""A learned offset beside a fixed zero point, at W4A4 and W2A2.

Command::

    lowbit run experiments/configs/lsq_plus_mnist1d.py

Bhalgat et al., LSQ+, CVPR Workshops 2020. Inputs here come out of a ReLU, where the paper expects little of the offset.

Gives in %, mean ± standard deviation of 3 seeds, in 0.7 minutes on 2 CPU cores: float 93.67 ± 1.02, lsq_plus_w4a4
93.73 ± 0.12, lsq_w4a4 93.47 ± 0.49, lsq_plus_w2a2 86.33 ± 1.40, lsq_w2a2 85.57 ± 0.21.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.quantizers.lsq_plus import lsq_plus
from lowbit.run import Method

config = on_mnist1d(
    "lsq_plus_mnist1d",
    Method("lsq_plus_w4a4", inner(lsq_plus("w4,a4")), QAT),
    Method("lsq_w4a4", inner(lb.lsq("w4,a4")), QAT),
    Method("lsq_plus_w2a2", inner(lsq_plus("w2,a2")), QAT),
    Method("lsq_w2a2", inner(lb.lsq("w2,a2", start="mse")), QAT),
)
