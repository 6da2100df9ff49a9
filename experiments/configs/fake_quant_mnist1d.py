"""TensorFlow's fake quantization with trained ranges beside fixed ones, at W4A4 and W3A3.

Command::

    lowbit run experiments/configs/fake_quant_mnist1d.py

Jacob et al., Quantization and Training of Neural Networks, CVPR 2018. Both start at the same minimum and maximum.

Gives in %, mean ± standard deviation of 3 seeds, in 0.6 minutes on 2 CPU cores: float 93.67 ± 1.02, fake_quant_w4a4
92.20 ± 1.28, rtn_w4a4 92.13 ± 0.93, fake_quant_w3a3 85.87 ± 0.40, rtn_w3a3 86.10 ± 0.36.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.quantizers.fake_quant import fake_quant
from lowbit.run import Method

config = on_mnist1d(
    "fake_quant_mnist1d",
    Method("fake_quant_w4a4", inner(fake_quant("w4,a4")), QAT),
    Method("rtn_w4a4", inner(lb.rtn("w4,a4")), QAT),
    Method("fake_quant_w3a3", inner(fake_quant("w3,a3")), QAT),
    Method("rtn_w3a3", inner(lb.rtn("w3,a3")), QAT),
)
