"""2-bit weights trained with noise: DiffQ's uniform noise, Quant-Noise's random share, and plain rounding.

Command::

    lowbit run experiments/configs/noise_mnist1d.py

Defossez, Adi, Synnaeve, DiffQ, TMLR 2022; Fan et al., Training with Quantization Noise, ICLR 2021. Inputs stay in float.
``until``: noise for half of the 1,600 steps, then rounding.

Gives in %, mean ± standard deviation of 3 seeds, in 0.6 minutes on 2 CPU cores: float 93.67 ± 1.02, ptq 27.67 ± 1.10,
rtn 90.80 ± 1.25, diffq 62.23 ± 6.47, diffq_until 87.87 ± 1.35, quant_noise_until 90.60 ± 0.76.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.quantizers.noise import noise
from lowbit.run import Method

config = on_mnist1d(
    "noise_mnist1d",
    Method("ptq", inner("w2")),
    Method("rtn", inner(lb.rtn("w2")), QAT),
    Method("diffq", inner(noise("w2")), QAT),
    Method("diffq_until", inner(noise("w2", until=800)), QAT),
    Method("quant_noise_until", inner(noise("w2", rate=0.5, until=800)), QAT),
)
