"""Power-of-two scales with trained thresholds beside free learned steps, per tensor, at 8, 4 and 3 bits.

Command::

    lowbit run experiments/configs/tqt_mnist1d.py

Jain et al., Trained Quantization Thresholds, MLSys 2020. Inputs come out of a ReLU: unsigned, symmetric.

Gives in %, mean ± standard deviation of 3 seeds, in 2.6 minutes on 2 CPU cores: float 93.37 ± 0.12, tqt_w8a8
93.90 ± 0.27, tqt_w4a4 93.53 ± 0.71, lsq_w4a4 93.33 ± 0.06, tqt_w3a3 91.97 ± 0.51, lsq_w3a3 91.73 ± 0.90.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from experiments.config import Method
from experiments.job import run as run
from lowbit.quantizers.tqt import tqt

config = on_mnist1d(
    "tqt_mnist1d",
    Method("tqt_w8a8", inner(tqt("w8/tensor,auint8/sym")), QAT),
    Method("tqt_w4a4", inner(tqt("w4/tensor,auint4/sym")), QAT),
    Method("lsq_w4a4", inner(lb.lsq("w4/tensor,auint4/sym")), QAT),
    Method("tqt_w3a3", inner(tqt("w3/tensor,auint3/sym")), QAT),
    Method("lsq_w3a3", inner(lb.lsq("w3/tensor,auint3/sym")), QAT),
)
