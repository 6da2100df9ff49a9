"""BitNet b1.58 beside a learned ternary step: weights rounded to their mean magnitude, inputs 8 bits per row.

Command::

    lowbit run experiments/configs/bitnet_mnist1d.py

Ma et al., The Era of 1-bit LLMs, 2024, at a size where it is not at home: the paper's claim is about language models.

Gives in %, mean ± standard deviation of 3 seeds, in 0.4 minutes on 2 CPU cores: float 93.67 ± 1.02, ptq 12.87 ± 2.06,
bitnet 91.97 ± 0.50, lsq 92.10 ± 0.60.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d, pair
from lowbit.quantizers.bitnet import bitnet
from lowbit.run import Method

config = on_mnist1d(
    "bitnet_mnist1d",
    Method("ptq", inner("wternary/tensor,a8")),
    Method("bitnet", inner(pair(bitnet("wternary/tensor"), lb.rtn("a8/dynamic"))), QAT),
    Method("lsq", inner(lb.lsq("wternary/tensor,a8")), QAT),
)
