"""Power-of-two scales with trained thresholds beside free learned steps, per tensor, at 8, 4 and 3 bits.

Command::

    lowbit run experiments/configs/tqt_mnist1d.py

Jain et al., Trained Quantization Thresholds, MLSys 2020. Inputs come out of a ReLU: unsigned, symmetric.

Gives in %, mean ± standard deviation of 3 seeds, in 0.8 minutes on 2 CPU cores: float 93.67 ± 1.02, tqt_w8a8
94.07 ± 0.32, tqt_w4a4 93.43 ± 0.57, lsq_w4a4 93.43 ± 0.59, tqt_w3a3 91.83 ± 1.10, lsq_w3a3 91.80 ± 0.53.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.quantizers.tqt import tqt
from lowbit.run import Method

config = on_mnist1d(
    "tqt_mnist1d",
    Method("tqt_w8a8", inner(tqt("w8/tensor,auint8/sym")), QAT),
    Method("tqt_w4a4", inner(tqt("w4/tensor,auint4/sym")), QAT),
    Method("lsq_w4a4", inner(lb.lsq("w4/tensor,auint4/sym")), QAT),
    Method("tqt_w3a3", inner(tqt("w3/tensor,auint3/sym")), QAT),
    Method("lsq_w3a3", inner(lb.lsq("w3/tensor,auint3/sym")), QAT),
)
