"""Element-wise gradient scaling at W2A2, by its strength; 0 is the straight-through gradient.

Command::

    lowbit run experiments/configs/ewgs_mnist1d.py

Lee, Kim, Ham, Network Quantization with Element-wise Gradient Scaling, CVPR 2021, whose constant is 0.001.

Gives in %, mean ± standard deviation of 3 seeds, in 0.5 minutes on 2 CPU cores: float 93.67 ± 1.02, delta_0
85.47 ± 1.21, delta_1e-3 85.37 ± 1.69, delta_1 84.27 ± 0.49.
"""

from experiments.base import QAT, inner, on_mnist1d
from lowbit.quantizers.ewgs import ewgs
from lowbit.run import Method

config = on_mnist1d(
    "ewgs_mnist1d",
    Method("delta_0", inner(ewgs("w2,a2", delta=0.0)), QAT),
    Method("delta_1e-3", inner(ewgs("w2,a2", delta=0.001)), QAT),
    Method("delta_1", inner(ewgs("w2,a2", delta=1.0)), QAT),
)
